"""Runs that are handed on: as an archive, or on the Hugging Face Hub, each with its card.

What is handed on are numbers, text and pictures: safetensors, `.npz` without objects, JSON, CSV, Markdown and PNG. Who
loads them runs no code of yours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ppl_vae.components import UsageError
from ppl_vae.experiments.folders import RESULTS, check_run
from ppl_vae.experiments.runs import Run, load_run
from ppl_vae.experiments.sampling import picture_of_samples
from ppl_vae.report.card import model_card
from ppl_vae.system.archives import NAME, to_zip
from ppl_vae.system.errors import needed, one_line
from ppl_vae.system.files import CHECKSUMS, check, checksums, to_checksums, write_whole

NEEDED = ("config.json", "weights.safetensors", "metrics.json")
CARD, PICTURE = "README.md", "samples.png"
REPO_ID = re.compile(r"[\w.-]+/[\w.-]+", re.ASCII)


def export_run(run: Run | Path | str, path: Path | str) -> Path:
    """Writes a run, or that in a folder, to an archive `FILE.zip` for `load_run`: config, weights, history, metrics,
    its evaluations on its own data, a picture of samples and a card, with the SHA-256 of each. What training resumes
    from stays behind. Returns the path.

    The config names the data as the training did: by their path, if they are your own.

    Raises `FileNotFoundError` for a folder that is no finished run, and `ValueError` for damaged files.
    """
    path = Path(path)
    write_whole(path, to_zip(contents_of(folder_of(run), load=f'pv.load_run("{path.name}")')))
    return path


def push_to_hub(
    run: Run | Path | str,
    repo_id: str,
    *,
    private: bool = False,
    token: str | None = None,
    message: str = "A run of ppl_vae",
) -> str:
    """Uploads the same files to the repository `repo_id`, OWNER/NAME, of the Hugging Face Hub, in one commit. Returns
    the address of the commit.

    Arguments:
        private: of a repository that is not there yet, and is made.
        token: by default that of `hf auth login`.
        message: of the commit.

    Raises `UsageError` for a repo_id of another form, `ImportError` unless huggingface_hub is installed, `OSError`
    for what the hub refuses, and as `export_run` does.
    """
    hub = _hub(repo_id)
    contents = contents_of(folder_of(run), load=f'pv.from_pretrained("{repo_id}")')
    contents = {CHECKSUMS: to_checksums(contents), **contents}
    api = hub.HfApi(token=token)
    with _refused(repo_id):
        api.create_repo(repo_id, private=private, exist_ok=True)
        operations = [hub.CommitOperationAdd(name, content) for name, content in contents.items()]
        return str(api.create_commit(repo_id, operations, commit_message=message).commit_url)


def from_pretrained(
    repo_id: str,
    *,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: Path | str | None = None,
    **options: Any,
) -> Run:
    """A run from the Hugging Face Hub, where `push_to_hub` put it.

    Arguments:
        revision: a branch, tag or commit; by default the newest. What a commit names can't change.
        token: by default that of `hf auth login`.
        cache_dir: where what is downloaded is kept; by default the hub's own cache.
        options: of `load_run`.

    Raises as `push_to_hub` and `load_run` do, and `ValueError` for a repository of something else.
    """
    hub = _hub(repo_id)
    with _refused(repo_id):
        patterns = [*NEEDED, CHECKSUMS]
        more: dict[str, Any] = {"revision": revision, "cache_dir": cache_dir}
        folder = Path(hub.HfApi(token=token).snapshot_download(repo_id, allow_patterns=patterns, **more))
    missing = [name for name in (*NEEDED, CHECKSUMS) if not (folder / name).is_file()]
    if missing or not {*NEEDED} <= {*checksums(folder)}:
        why = f"one without {missing[0]}" if missing else "one without their checksums"
        raise ValueError(f"{repo_id}: expected a repository that ppl_vae wrote; got {why}")
    return dataclasses.replace(load_run(folder, **options), folder=None)  # a part of one, and the cache's


def folder_of(run: Run | Path | str) -> Path:
    """The folder of a run. Raises `ValueError` for one that has none: loaded from an archive, say."""
    folder = run.folder if isinstance(run, Run) else Path(run)
    if folder is None:
        raise ValueError("run: expected one that was loaded from a folder; got one without")
    return folder


def contents_of(folder: Path, *, load: str) -> dict[str, bytes]:
    """The files that are handed on of the run in a folder, by name. `load` is the Python expression that loads it."""
    check_run(folder)
    run = load_run(folder)
    picture = picture_of_samples(run)
    results = {path.name for pattern in RESULTS for path in folder.glob(pattern) if path.is_file()}
    names = [*NEEDED, "history.csv", *sorted(n for n in results if NAME.fullmatch(n) and "-partial." not in n)]
    check(folder, *names)
    contents = {name: (folder / name).read_bytes() for name in names}
    if picture is not None:
        png = io.BytesIO()
        picture.save(png, "PNG")
        contents[PICTURE] = png.getvalue()
    card = model_card(run, folder, load=load, samples=None if picture is None else PICTURE)
    return {CARD: card.encode(), **contents}


def _hub(repo_id: str) -> Any:
    if not REPO_ID.fullmatch(repo_id):
        raise UsageError(f"repo_id: expected OWNER/NAME; got {repo_id[:100]!r}")
    return needed("huggingface_hub", "hub", repo_id)


@contextlib.contextmanager
def _refused(repo_id: str) -> Iterator[None]:
    """What the hub, or the way there, refuses is an `OSError` of one line."""
    try:
        yield
    except Exception as error:
        why = [one_line(e, foreign=True) for e in (error, error.__cause__) if e is not None]
        raise OSError(f"{repo_id}: expected an answer of the hub; got {'; '.join(why)}") from error
