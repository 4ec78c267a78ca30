"""Nothing in the package unpickles or evaluates what it reads, and files that were made to harm do nothing but fail."""

from __future__ import annotations

import ast
import io
import json
import pickle
import struct
import zipfile
from pathlib import Path

import pytest
import torch
from array_files import npy, npz, objects
from readers import CONFIG, READERS, RUN, SHAPE, read

import ppl_vae
from ppl_vae.data.loading import load
from ppl_vae.experiments.config import read_config
from ppl_vae.experiments.preparation import assemble
from ppl_vae.experiments.runs import load_weights
from ppl_vae.system.archives import to_zip
from ppl_vae.training.checkpoints import Checkpoints

CODE = sorted(Path(ppl_vae.__file__).parent.rglob("*.py"))


FORBIDDEN = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "yaml", "runpy", "code"}


BETWEEN_PROCESSES = {"executors", "packing", "parallel"}  # of one user, who has written what is pickled


EVALUATES = {"eval", "exec", "compile", "__import__", "input"}


def names(node: ast.AST) -> str:
    return ast.unparse(node.func) if isinstance(node, ast.Call) else ""


@pytest.mark.parametrize("path", CODE, ids=lambda path: path.stem)
def test_the_code_neither_unpickles_nor_evaluates(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            allowed_here = {"pickle"} if path.stem in BETWEEN_PROCESSES else set()
            assert not {m.split(".")[0] for m in modules} & FORBIDDEN - allowed_here
        name = names(node)
        assert name not in EVALUATES, name
        assert name not in ("torch.load", "torch.hub.load", "os.system", "os.popen", "subprocess.run"), name
        if isinstance(node, ast.Call):
            allowed = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert allowed.get("allow_pickle", "False") == "False"
            assert name != "np.load" or "allow_pickle" in allowed


class Payload:
    """What leaves a file behind when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", READERS)
def test_a_pickle_in_any_place_is_never_loaded(name: str, tmp_path: Path) -> None:
    bait = tmp_path / "bait"
    payload, torch_file = Payload(bait), io.BytesIO()
    torch.save(payload, torch_file)
    contents = [
        pickle.dumps(payload),
        pickle.dumps(payload, protocol=0),
        objects(payload),
        npz(images=objects(payload)),
        npz(images=pickle.dumps(payload)),
        npz(log_p=objects(payload), mc_se=pickle.dumps(payload)),
        torch_file.getvalue(),
    ]
    folder = tmp_path / "folder"
    folder.mkdir()
    for content in contents:
        assert not read(name, content, folder)
    assert not bait.exists()
    pickle.loads(contents[0]).close()
    assert bait.exists()  # it would have


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("idx", struct.pack(">4I", 2051, 10**9, 1000, 1) + bytes(84)),
        ("idx-labels", struct.pack(">2I", 2049, 2**32 - 1) + bytes(92)),
        ("npy", npy((10**12,), bytes(12))),
        ("npy", npy((2**40, 2**40), bytes(12))),
        ("npy-mapped", npy((10**12,), bytes(12))),
        ("npz", npz(images=npy((10**12,), bytes(12)))),
        ("evaluation", npz(log_p=npy((10**12,), bytes(12)))),
        ("weights", struct.pack("<Q", 10**12) + bytes(92)),
        (
            "weights",
            (lambda h: struct.pack("<Q", len(h)) + h)(
                b'{"a":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
            ),
        ),
        ("checkpoint", struct.pack("<Q", 10**12) + bytes(92)),
        ("archive", to_zip({**RUN, "weights.safetensors": struct.pack("<Q", 10**12) + bytes(92)})),
        ("config", b'{"event_shape": [1, 1000000, 1000000]}'),
        ("config", b'{"event_shape": [1, 4, 4], "latent_size": 1000000000000}'),
        ("config", b'{"event_shape": [1, 4, 4], "prior": "vamp-prior:num_components=1000000000000"}'),
        ("config", b'{"event_shape": [1, 4, 4], "prior": "exemplar-prior:num_exemplars=1000000000000"}'),
        ("config", b'{"event_shape": [1, 4, 4], "prior": "normalizing-flow:num_transforms=1000000000000"}'),
        ("config", b'{"event_shape": [1, 4, 4], "model": "dense-vae", "hidden": [1000000000000]}'),
        ("config", b'{"event_shape": [1, 4, 4], "seed": ' + b"9" * 5000 + b"}"),
        ("config", b"[" * 100_000),
    ],
)
def test_a_size_that_is_claimed_takes_no_memory(name: str, content: bytes, tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert not read(name, content, tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # KB


def test_a_large_model_is_not_made_for_small_weights(tmp_path: Path) -> None:
    large = {"model": "dense-vae:hidden=9000+9000", "event_shape": [1, 64, 64]}
    (tmp_path / "config.json").write_text(json.dumps(large))
    config, shape, num_classes = read_config(tmp_path / "config.json")
    (tmp_path / "weights.safetensors").write_bytes(READERS["weights"].whole)
    assert load_weights(assemble(CONFIG), SHAPE, 0, tmp_path / "weights.safetensors") is not None
    with pytest.raises(ValueError, match=r"expected a model of at most .* parameters; got one of more"):
        load_weights(assemble(config), shape, num_classes, tmp_path / "weights.safetensors")


def test_a_path_that_climbs_out_is_a_name_and_no_path(tmp_path: Path) -> None:
    folder = tmp_path / "inside" / "folder"
    folder.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with zipfile.ZipFile(folder / "x.npz", "w") as archive:
        archive.writestr("../../images.npy", npy((12, 4, 4), bytes(192)))
    with pytest.raises(ValueError, match=r"expected arrays train, test.*; got \.\./\.\./images"):
        load(str(folder / "x.npz"))
    for key in ("model", "likelihood", "prior", "posterior", "encoding", "objective", "kl_weight", "noise", "schedule"):
        config = {"event_shape": SHAPE, "model": "dense-vae", key: "../../x"}
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"(expected one of|input should be) .*; got '\.\./\.\./x'"):
            assemble(read_config(folder / "config.json")[0])
    whole = READERS["checkpoint"].whole
    (folder / "checkpoint-1.safetensors").write_bytes(whole.replace(b"modules.0", b"../../m.0"))
    with pytest.raises(ValueError, match=r"expected a whole checkpoint"):
        Checkpoints(folder).load()
    assert sorted(path for path in tmp_path.rglob("*") if path.parent != folder) == before
