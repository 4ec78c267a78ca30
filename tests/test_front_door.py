"""`import ppl_vae as pv`: every name is there, torch is not imported before it is needed, and type checkers see all."""

import ast
import inspect
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ppl_vae as pv

PACKAGE = Path(pv.__file__).parent
STUB = ast.parse((PACKAGE / "__init__.pyi").read_text())
NAMES = [alias for node in STUB.body if isinstance(node, ast.ImportFrom) for alias in node.names]


def python(*arguments, folder=None):
    """A Python of its own, in which nothing has been imported."""
    where = {"PYTHONPATH": os.pathsep.join(map(os.path.abspath, filter(None, sys.path)))}
    run = [sys.executable, *arguments]
    return subprocess.run(run, cwd=folder, env=os.environ | where, capture_output=True, text=True, check=False)


def test_the_import_alone_imports_no_torch():
    heavy = "{'torch', 'pyro', 'numpy', 'matplotlib', 'arviz', 'tyro'}"
    done = python("-c", f"import sys, ppl_vae as pv; dir(pv); print(sorted({heavy} & {{*sys.modules}}))")
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_stub_names_what_there_is():
    assert all(alias.name == alias.asname for alias in NAMES)
    names = sorted(alias.name for alias in NAMES)
    assert names == sorted({*names}) == sorted(pv.__all__) == sorted(dir(pv))


@pytest.mark.parametrize("name", pv.__all__)
def test_every_name_is_found(name):
    value = getattr(pv, name)
    assert inspect.getdoc(value) or inspect.ismodule(value)
    assert inspect.ismodule(value) or value.__name__ == name


def test_a_name_that_is_missing_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = pv.no_such_name


def test_no_module_hides_a_function():
    """An import of `ppl_vae.fit`, if there were one, would put the module in the place of the function `pv.fit`."""
    modules = {info.name.rpartition(".")[2] for info in pkgutil.walk_packages(pv.__path__, "ppl_vae.")}
    assert "fitting" in modules
    assert not modules & {name for name in pv.__all__ if not inspect.ismodule(getattr(pv, name))}


def test_python_m_is_the_command_line():
    done = python("-m", "ppl_vae", "train", "--epochs", "none")
    assert done.returncode == 2
    assert "--epochs" in done.stderr
    assert "Traceback" not in done.stderr
    done = python("-m", "ppl_vae", "datasets")
    assert done.returncode == 0
    assert "mnist-mini" in done.stdout


def test_type_checkers_see_the_names(tmp_path):
    pytest.importorskip("mypy")
    assert (PACKAGE / "py.typed").is_file()
    program = "import ppl_vae as pv\n\nreveal_type(pv.fit)\nreveal_type(pv.likelihoods.Gaussian)\npv.no_such_name\n"
    (tmp_path / "program.py").write_text(program)
    # of other packages none is read, which would take half a minute
    (tmp_path / "mypy.ini").write_text("[mypy]\nfollow_imports = skip\n[mypy-ppl_vae.*]\nfollow_imports = silent\n")
    done = python("-m", "mypy", "program.py", folder=tmp_path)
    fit, gaussian, error = done.stdout.splitlines()[:3]
    assert "def (model:" in fit
    assert "-> ppl_vae.training.history.History" in fit
    assert re.search(r"def \(scale: \S*float =\) -> ppl_vae.likelihoods.Gaussian", gaussian)
    assert 'Module has no attribute "no_such_name"' in error
