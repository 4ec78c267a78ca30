import errno
import os
import re
import subprocess
from pathlib import Path

import pytest
from stopping import TRAIN, one_line, results

from ppl_vae.experiments.runs import unfinished


@pytest.fixture
def disk(tmp_path):
    """Mounts a disk of so many bytes, or gives it another size."""
    folder = tmp_path / "disk"
    folder.mkdir()

    def mount(size):
        options = f"size={size}{',remount' * os.path.ismount(folder)}"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.decode().strip()}")
        return folder

    yield mount
    if os.path.ismount(folder):
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_an_error_that_the_run_goes_on_from(ppl_vae, disk, undisturbed, tmp_path):
    command = [*TRAIN[:-1], "disk/run"]
    folder = disk(500_000)
    status, err = ppl_vae(*command)
    assert status == 1
    assert re.search(r"disk/run/checkpoints/.*: No space left on device$", one_line(err))
    assert 1 <= len(list((folder / "run" / "checkpoints").iterdir())) <= 2
    assert ppl_vae(*command, "--resume")[0] == 1
    disk(5_000_000)
    assert ppl_vae(*command, "--resume")[0] == 0
    assert results(folder / "run") == undisturbed


@pytest.mark.parametrize("name", ["checksums.json", "metrics.json"])
def test_a_run_whose_last_files_cannot_be_written_goes_on_too(name, ppl_vae, undisturbed, tmp_path, monkeypatch):
    replace = os.replace

    def full(source, target):
        if Path(target).name == name:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        status, err = ppl_vae(*TRAIN)
    assert status == 1
    assert one_line(err) == f"ppl-vae: error: run/{name}: No space left on device"
    assert not list(tmp_path.rglob("*.tmp"))
    assert unfinished(tmp_path / "run")
    assert ppl_vae(*TRAIN, "--resume")[0] == 0
    assert results(tmp_path / "run") == undisturbed
