"""Every file of a run folder is damaged at random places: each command that reads it ends with one line of error.

The suite damages each at a few places. At 200, in some minutes:

    PPL_VAE_DAMAGES=200 pytest -n 0 -s tests/experiments/test_damaged_files.py
"""

import random
import shutil
import signal

import pytest
from stopping import DAMAGES, IN_TRAINING, TRAIN, one_line, raising_at, results

from ppl_vae.cli.main import main
from ppl_vae.data.observation import Observe


def damaged(content, generator, number):
    """Truncated, with a bit flipped, or with the last one of a byte, which makes other digits of digits."""
    i = generator.randrange(len(content))
    flip = [0, 1 << generator.randrange(8), 1][number % 3]
    return content[:i] + bytes([content[i] ^ flip]) + content[i + 1 :] if flip else content[:i]


EVALUATE, SAMPLE, COMPARE = ["evaluate", "run"], ["sample", "run"], ["compare", "run", "run"]


RESUME = [*TRAIN, "--resume"]


READ_BY = {
    "weights.safetensors": [EVALUATE, SAMPLE, RESUME],
    "config.json": [EVALUATE, SAMPLE, COMPARE, RESUME],
    "metrics.json": [EVALUATE, SAMPLE, COMPARE, RESUME],
    "history.csv": [SAMPLE, RESUME],
    "log_likelihood.npz": [COMPARE],
    "log_likelihood.json": [COMPARE],
    "checksums.json": [EVALUATE, SAMPLE, COMPARE, RESUME],
}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evaluated")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(TRAIN)
        main([*EVALUATE, "--method", "importance", "--num-samples", "3", "--num-images", "5"])
        main(COMPARE)
    return folder / "run"


def test_a_damaged_file_is_refused_by_all_that_read_it(evaluated, tmp_path, monkeypatch, capsys):
    shutil.copytree(evaluated, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    for name, readers in READ_BY.items():
        path, generator = tmp_path / "run" / name, random.Random(name)
        content = path.read_bytes()
        for i in range(DAMAGES or 3):
            path.write_bytes(damaged(content, generator, i))
            for command in readers:
                before = {p: p.read_bytes() for p in path.parent.iterdir() if p.is_file()}
                with pytest.raises(SystemExit) as stop:
                    main(command)
                err = capsys.readouterr().err
                assert stop.value.code == 1, (name, command, err)
                assert f"run/{name}: expected " in one_line(err)
                assert {p: p.read_bytes() for p in path.parent.iterdir() if p.is_file()} == before
        path.write_bytes(content)
        if DAMAGES:
            print(f"{name}: refused at {DAMAGES} places by each of {len(readers)} commands")
    main(COMPARE)


@pytest.mark.filterwarnings("default:.*whole checkpoint:RuntimeWarning")
def test_a_damaged_checkpoint_is_said_and_the_one_before_is_used(ppl_vae, undisturbed, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Observe, "__call__", raising_at(IN_TRAINING + 78, signal.SIGTERM))
        assert ppl_vae(*TRAIN)[0] == 143
    run, stopped, generator = tmp_path / "run", tmp_path / "stopped", random.Random(0)
    run.rename(stopped)
    for i in range(DAMAGES or 3):
        shutil.copytree(stopped, run)
        newest, before = sorted((run / "checkpoints").iterdir(), reverse=True)
        newest.write_bytes(damaged(newest.read_bytes(), generator, i))
        both = i % 4 == 2
        if both:
            before.write_bytes(damaged(before.read_bytes(), generator, i // 4))
        status, err = ppl_vae(*RESUME)
        if both:
            assert status == 1
            assert "expected a whole checkpoint; got 2 damaged ones" in one_line(err)
        else:
            assert status == 0, err
            assert f"ppl-vae: warning: run/checkpoints/{newest.name}: expected a whole checkpoint" in err
            assert results(run) == undisturbed
        shutil.rmtree(run)
    print(f"checkpoints: damaged at {DAMAGES or 3} places, in a quarter of them both")
