import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import assert_raises, pixels

from ppl_vae.data.dataset import Dataset, Rows, split
from ppl_vae.data.loading import load
from ppl_vae.experiments.config import TrainConfig
from ppl_vae.experiments.preparation import fitted

pandas = pytest.importorskip("pandas")
pytest.importorskip("pyarrow")

FRAME = pandas.DataFrame(
    {
        "height": np.linspace(1.5, 2.0, 12),
        "kind": ["b", "a", "c"] * 4,
        "age": np.arange(12),
        "grown": np.arange(12) > 3,
    }
)


def together(dataset: Dataset) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Data and labels in the order of the file."""
    order = torch.cat(split(len(dataset.train) + len(dataset.test), len(dataset.test), seed=0)).argsort()
    labels = (dataset.train_labels, dataset.test_labels)
    known = None if labels[0] is None or labels[1] is None else torch.cat(labels)[order]
    return torch.cat([dataset.train, dataset.test])[order], known


@pytest.mark.parametrize("name", ["a.csv", "a.tsv", "b.csv", "a.parquet"])
def test_a_table_has_columns_and_labels(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".parquet":
        FRAME.to_parquet(path)
    else:
        FRAME.to_csv(path, index=False, sep={"a.csv": ",", "a.tsv": "\t", "b.csv": ";"}[name])
    dataset = load(str(path), label="kind")
    assert dataset.columns == ("height", "age", "grown")
    assert dataset.classes == ("a", "b", "c")
    x, y = together(dataset)
    assert x.dtype == torch.float32
    assert np.allclose(x, FRAME[["height", "age", "grown"]].astype(float))
    assert y is not None
    assert y.tolist() == [1, 0, 2] * 4


def test_whole_numbers_are_counts_and_labels(tmp_path: Path) -> None:
    frame = FRAME[["age", "grown"]].assign(age_group=[0.0, np.nan, 2.0] * 4)
    frame.to_csv(tmp_path / "a.csv", index=False)
    x, y = together(load(str(tmp_path / "a.csv"), label="age_group"))
    assert x.dtype == torch.int64
    assert x.tolist() == [[i, i > 3] for i in range(12)]
    assert y is not None
    assert y.tolist() == [0, -1, 2] * 4
    assert load(str(tmp_path / "a.csv"), label="age_group").classes == ()
    frame.assign(age_group=["x", None, "y"] * 4).to_csv(tmp_path / "a.csv", index=False)
    _, y = together(load(str(tmp_path / "a.csv"), label="age_group"))
    assert y is not None
    assert y.tolist() == [0, -1, 1] * 4


def test_missing_values_are_named_or_taken(tmp_path: Path) -> None:
    frame = FRAME.drop(columns="kind").astype(float)
    frame.loc[[2, 7], "age"] = np.nan
    frame.to_csv(tmp_path / "a.csv", index=False)
    dataset = load(str(tmp_path / "a.csv"))
    config = TrainConfig(model="dense-vae", dataset=str(tmp_path / "a.csv"), likelihood="gaussian-learned")
    with pytest.raises(ValueError, match=r"got NaN in 2 of 12 rows, in column age\. .*--missing"):
        fitted(config, dataset)
    taken = TrainConfig(**{**vars(config), "missing": True})
    assert fitted(taken, dataset).config.missing


@pytest.mark.parametrize(
    ("text", "fragments"),
    [
        ("1,2\n" * 12, ("a first line of column names; got numbers: 1, 2",)),
        ("a,b\n" + "1,x\n" * 12, ("got others: b ('x')", "--label NAME")),
        ("a;b\n" + "1,5;2\n" * 12, ("got others: a ('1,5')",)),
        ("a,b\n" + "1,2\n" * 9, ("at least 10 rows", "got 9 rows of 2")),
        (",a\n" + "1,2\n" * 12, ("a name for each column; got 1 without", "index=False")),
        ("a,b\n" + "1,2\n" * 11 + "1,2,3\n", ("a table",)),
        ("a,b\n" + "1,2,3\n" * 12, ("a table",)),
        ("a,b\n" + "1,inf\n" * 12, ("finite numbers in float32; got infinity",)),
        ("", ("a table",)),
    ],
)
def test_bad_tables(tmp_path: Path, text: str, fragments: tuple[str, ...]) -> None:
    (tmp_path / "a.csv").write_text(text)
    assert_raises(tmp_path / "a.csv", ValueError, "a.csv", *fragments)


def test_bad_labels(tmp_path: Path) -> None:
    FRAME.to_csv(tmp_path / "a.csv", index=False)
    assert_raises(tmp_path / "a.csv", ValueError, "height, kind, age, grown", "did you mean 'height'", label="hieght")
    assert_raises(tmp_path / "a.csv", ValueError, "names or whole numbers as labels; got 1.5", label="height")
    for damaged in (b"\xff\xfe\x00", b"PAR1" * 10):
        for name in ("b.csv", "b.parquet"):
            (tmp_path / name).write_bytes(damaged)
            assert_raises(tmp_path / name, ValueError, name)


def test_a_parquet_file_that_claims_much_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pandas.DataFrame({"a": np.zeros(200_000)}).to_parquet(tmp_path / "a.parquet")  # 1.6 MB in some hundred bytes
    monkeypatch.setattr("ppl_vae.data.tables.LARGEST_ARCHIVE", 2**20)
    assert_raises(tmp_path / "a.parquet", ValueError, "1,600,000 bytes, unpacked")


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    FRAME.to_csv(tmp_path / "a.csv", index=False)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"a\.csv: expected the package pandas; got none \(pip install 'ppl-vae\[tab"):
        load(str(tmp_path / "a.csv"))


def write_h5ad(path: Path, **layers: Any) -> np.ndarray:
    anndata, sparse = pytest.importorskip("anndata"), pytest.importorskip("scipy.sparse")
    counts = np.random.default_rng(0).poisson(0.5, (12, 5)).astype(np.float32)
    obs = pandas.DataFrame({"cell": pandas.Categorical(["T", "B", "T"] * 4)}, index=[f"c{i}" for i in range(12)])
    var = pandas.DataFrame(index=[f"gene{i}" for i in range(5)])
    cells = anndata.AnnData(sparse.csr_matrix(counts), obs, var)
    cells.layers["dense"], cells.layers["columns"] = counts.astype(np.int64) + 1, sparse.csc_matrix(counts)
    cells.write_h5ad(path)
    return counts


def test_cells_and_their_labels(tmp_path: Path) -> None:
    counts = write_h5ad(tmp_path / "a.h5ad")
    dataset = load(str(tmp_path / "a.h5ad"), label="cell")
    assert type(dataset.train) is Rows
    x, y = together(dataset)
    assert np.array_equal(x, counts)
    assert y is not None
    assert (y.tolist(), dataset.classes) == ([1, 0, 1] * 4, ("B", "T"))
    assert dataset.columns == ("gene0", "gene1", "gene2", "gene3", "gene4")
    dense, columns = (together(load(str(tmp_path / "a.h5ad"), layer=layer))[0] for layer in ("dense", "columns"))
    assert dense.dtype == torch.int64
    assert np.array_equal(dense, counts + 1)
    assert np.array_equal(columns, counts)
    assert_raises(tmp_path / "a.h5ad", ValueError, "layer", "dense", "got 'densee'", layer="densee")
    assert_raises(tmp_path / "a.h5ad", ValueError, "cell", "got 'cel'", label="cel")


@pytest.mark.parametrize(
    ("change", "fragment"),
    [
        ("link", "expected what is in this file; got a link"),
        ("claim", "bytes, unpacked"),
        ("no file", "an AnnData file (.h5ad)"),
        ("shape", "expected numbers (12, 5)"),
    ],
)
def test_bad_cells(tmp_path: Path, change: str, fragment: str) -> None:
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "a.h5ad"
    write_h5ad(path)
    if change == "no file":
        path.write_bytes(b"no HDF5")
    else:
        with h5py.File(path, "a") as file:
            if change == "link":
                with h5py.File(tmp_path / "other.h5", "w") as other:
                    other["data"] = file["X/data"][:]
                del file["X/data"]
                file["X/data"] = h5py.ExternalLink("other.h5", "/data")
            if change == "claim":
                del file["X/data"]
                file["X"].create_dataset("data", (10**12,), "f4", chunks=(10**6,), compression="gzip")
            if change == "shape":
                file["X"].attrs["shape"] = (12, 10**9)
    assert_raises(path, ValueError, "a.h5ad", fragment)


def test_hugging_face_datasets(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    import PIL.Image

    images = pixels(12, 5, 4)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"]), "x": datasets.Value("int64")}
    )
    columns = {"image": [PIL.Image.fromarray(i) for i in images], "label": [0, 1] * 6, "x": list(range(12))}
    stored = datasets.Dataset.from_dict(columns, features=features)
    stored.remove_columns("x").save_to_disk(str(tmp_path / "images"))
    dataset = load(str(tmp_path / "images"))
    x, y = together(dataset)
    assert np.array_equal(x[:, 0], images)
    assert y is not None
    assert (y.tolist(), dataset.classes) == ([0, 1] * 6, ("cat", "dog"))
    numbers = stored.remove_columns("image")
    datasets.DatasetDict(train=numbers, test=numbers.select(range(3))).save_to_disk(str(tmp_path / "numbers"))
    dataset = load(str(tmp_path / "numbers"))
    assert dataset.columns == ("x",)
    assert dataset.test.tolist() == [[0], [1], [2]]
    datasets.Dataset.from_dict({"v": [[1.5, i] for i in range(12)]}).save_to_disk(str(tmp_path / "vectors"))
    assert together(load(str(tmp_path / "vectors")))[0].tolist() == [[1.5, i] for i in range(12)]
    assert_raises(tmp_path / "images", ValueError, "label", label="labl")
    state = tmp_path / "images/state.json"
    state.write_text(state.read_text().replace("data-", "../data-"))
    assert_raises(tmp_path / "images", ValueError, "a path to another folder")
    state.write_text(json.dumps({}))
    assert_raises(tmp_path / "images", ValueError, "save_to_disk")
