import pytest

from ppl_vae.system.progress import progress


@pytest.mark.parametrize(("options", "expected"), [({}, "fit: half\n"), ({"enabled": False}, "")])
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


def test_a_line_every_ten_seconds_says_how_far_it_is(capsys, monkeypatch):
    monkeypatch.delenv("FORCE_COLOR", raising=False)
    now = 0.0
    monkeypatch.setattr("ppl_vae.system.progress.time.monotonic", lambda: now)
    with progress("fit", 1000) as report:
        report(400, "resumes")  # done before: it tells nothing of the rate
        for _ in range(60):
            now += 1.0
            report(10)
    lines = [
        "resumes",
        "500 of 1,000, about 50 s left",
        "600 of 1,000, about 40 s left",
        "700 of 1,000, about 30 s left",
        "800 of 1,000, about 20 s left",
        "900 of 1,000, about 10 s left",
    ]
    assert capsys.readouterr().err.splitlines() == [f"fit: {line}" for line in lines]
