"""Each notebook is stored twice, as a script to read and with its output to look at: the two say the same."""

from pathlib import Path

import jupytext
import pytest

NOTEBOOKS = sorted((Path(__file__).parent.parent / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_notebook_is_its_script_with_output(path):
    notebook, script = jupytext.read(path), jupytext.read(path.with_suffix(".py"))

    def cells(nb):
        return [(cell.cell_type, cell.source) for cell in nb.cells]

    assert cells(notebook) == cells(script)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code), "stored without its output"
    outputs = [output for cell in code for output in cell.outputs]
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
