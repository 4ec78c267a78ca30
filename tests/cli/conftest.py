import pytest
from commands import save_own

from ppl_vae.cli.main import main


@pytest.fixture
def drawn():
    """Figures are drawn where a test takes this."""


@pytest.fixture
def ppl_vae(capsys, tmp_path, monkeypatch, request):
    """Runs a command in a folder with `own.npz` alone: (exit status, standard output, standard error)."""
    monkeypatch.chdir(tmp_path)
    save_own(tmp_path)
    if "drawn" not in request.fixturenames:
        request.getfixturevalue("undrawn")

    def run(*arguments):
        status = 0
        try:
            main([str(a) for a in arguments])
        except SystemExit as stop:
            status = int(stop.code or 0)
        out, err = capsys.readouterr()
        return status, out, err

    return run
