import pytest

from ppl_vae.system.progress import progress


@pytest.mark.parametrize(
    ("options", "expected"), [({}, "fit: half\n"), ({"lines": False}, ""), ({"enabled": False}, "")]
)
def test_plain_lines_where_there_is_no_terminal(capsys, monkeypatch, options, expected):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    with progress("fit", 2, **options) as report:
        report(text="half")
        report()
    out, err = capsys.readouterr()
    assert (out, err) == ("", expected)


def test_a_bar_in_a_terminal_keeps_the_text_above_it(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with progress("fit", 2) as report:
        report(text="a text that is longer than what would be left to it beside the bar")
        report()
    err = capsys.readouterr().err
    assert "fit: a text that is longer than what would be left to it beside the bar" in err
    assert "2/2" in err
