"""Readers of tables of your own: columns of numbers, counts of cells, and Hugging Face's datasets on disk."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_vae.components import unknown
from ppl_vae.data.arrays import data_of, vectors_of
from ppl_vae.data.dataset import Dataset
from ppl_vae.data.readers import FEWEST, divide, images_of
from ppl_vae.system.arrays import LARGEST_ARCHIVE, LARGEST_RATIO, Array
from ppl_vae.system.errors import needed, one_line
from ppl_vae.system.files import read_json

_SEPARATORS = ",;\t"


def from_table(name: str, path: Path, label: str | None = None) -> Dataset:
    """The dataset in a `.csv`, `.tsv` or `.parquet` file; raises what `ppl_vae.data.loading.load` says."""
    pandas = needed("pandas", "tables", path)
    is_parquet = path.suffix.lower() == ".parquet"
    if is_parquet:
        needed("pyarrow.parquet", "tables", path)
    with _refused(path, "a table"):
        frame = _read_parquet(path) if is_parquet else _read_csv(pandas, path)
    return _from_frame(name, path, frame, label)


def _read_csv(pandas: Any, path: Path) -> Any:
    with path.open(encoding="utf-8-sig") as file:
        first = file.readline(2**20)
    separator = max(_SEPARATORS, key=first.count)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # lines that are longer than the first
        return pandas.read_csv(path, sep=separator, encoding="utf-8-sig", index_col=False, low_memory=False)


def _read_parquet(path: Path) -> Any:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        _check_claimed(file.metadata.num_rows * file.metadata.num_columns * 8, path)
        return file.read().to_pandas()


def _check_claimed(size: int, path: Path) -> None:
    """Raises `ValueError` for a file that would take far more memory than it has bytes."""
    if size > (limit := max(LARGEST_ARCHIVE, LARGEST_RATIO * path.stat().st_size)):
        raise ValueError(f"{size:,} bytes, unpacked; at most are {limit:,}")


@contextmanager
def _refused(path: Path, what: str) -> Iterator[None]:
    """What is wrong with a file is a `ValueError` of one line: each library has its own errors."""
    try:
        yield
    except (FileNotFoundError, MemoryError, ImportError):
        raise
    except Exception as error:
        raise ValueError(f"{path}: expected {what}; got {one_line(error, foreign=True)}") from error


def _from_frame(name: str, path: Path, frame: Any, label: str | None) -> Dataset:
    columns = [str(column) for column in frame.columns]
    frame.columns = columns
    if unnamed := [c for c in columns if not c.strip() or c.startswith("Unnamed: ")]:
        raise ValueError(
            f"{path}: expected a name for each column; got {len(unnamed)} without. If that is the number of the row, "
            "leave it out: to_csv(..., index=False)"
        )
    if all(map(_is_number, columns)):
        raise ValueError(f"{path}: expected a first line of column names; got numbers: {', '.join(columns[:5])}")
    labels, classes = (None, ()) if label is None else labels_of(_column(frame, label, path), f"{path}: {label}")
    frame = frame.drop(columns=[] if label is None else [label])
    if len(frame) < FEWEST or not len(frame.columns):
        got = f"{len(frame)} rows of {len(frame.columns)}"
        raise ValueError(f"{path}: expected at least {FEWEST} rows, of 1 or more columns of numbers; got {got}")
    if others := [f"{c} ({_example(frame[c])})" for c in frame.columns if frame[c].dtype.kind not in "biuf"]:
        more = ", ..." * (len(others) > 5)
        raise ValueError(
            f"{path}: expected columns of numbers; got others: {', '.join(others[:5])}{more}. Leave them out, or take "
            "one for the labels: --label NAME"
        )
    data = _numbers(frame, str(path))
    return divide(name, data, labels, columns=tuple(frame.columns), classes=classes)


def _numbers(frame: Any, where: str) -> Tensor:
    """Of columns of numbers, int64 if all of them are whole, else float32."""
    are_whole = all(t.kind in "bi" or (t.kind == "u" and t.itemsize < 8) for t in frame.dtypes)
    are_whole = are_whole and not frame.isna().to_numpy().any()
    array = frame.to_numpy(np.int64) if are_whole else frame.to_numpy(np.float64, na_value=np.nan)
    return vectors_of(array, where, gaps=True)


def _column(frame: Any, label: str, path: Path) -> Any:
    if label not in frame.columns:
        raise ValueError(f"{path}: {unknown('label', label, [str(c) for c in frame.columns])}")
    return frame[label]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _example(column: Any) -> str:
    """The first value of a column that is no number."""
    return next((repr(str(value)[:20]) for value in column.dropna() if not _is_number(str(value))), str(column.dtype))


def labels_of(column: Any, where: str) -> tuple[Tensor, tuple[str, ...]]:
    """The labels (N,) in a column, int64, and the names that they are numbers of: whole numbers are taken as they are,
    without names; others are numbered in the order of their names. -1 is for a label that is missing."""
    missing = column.isna().to_numpy()
    if column.dtype.kind in "biuf":
        values = column.to_numpy(np.float64, na_value=np.nan)[~missing]
        if not len(values) or (values != np.rint(values)).any():
            got = f"{values[values != np.rint(values)][0]:g}" if len(values) else "none"
            raise ValueError(f"{where}: expected names or whole numbers as labels; got {got}")
        numbers = np.full(len(column), -1, np.int64)
        numbers[~missing] = values
        return torch.from_numpy(numbers), ()
    names = column.astype(object).where(~missing, "").astype(str).to_numpy()
    classes = sorted({*names[~missing]})
    if not classes:
        raise ValueError(f"{where}: expected names or whole numbers as labels; got none")
    number_of = {name: number for number, name in enumerate(classes)}
    return torch.tensor([-1 if m else number_of[n] for n, m in zip(names, missing, strict=True)]), tuple(classes)


class _Sparse:
    """A sparse matrix as a `StoredArray`: a row is made dense when it is read."""

    def __init__(self, matrix: Any):
        self.matrix, self.shape, self.dtype = matrix, matrix.shape, matrix.dtype
        self.ndim, self.size = 2, matrix.shape[0] * matrix.shape[1]

    def __getitem__(self, index: Any) -> Array:
        return self.matrix[index].toarray()


def from_h5ad(name: str, path: Path, label: str | None = None, layer: str | None = None) -> Dataset:
    """The dataset in an AnnData file: a row for each cell, X or one of the layers, and labels from a column of obs.
    A sparse matrix stays sparse in memory."""
    anndata_io, h5py = needed("anndata.io", "anndata", path), needed("h5py", "anndata", path)
    needed_parts = [f"layers/{layer}" if layer is not None else "X", "obs", "var"]
    with _refused(path, "an AnnData file (.h5ad)"), h5py.File(path) as file:
        if layer is not None and layer not in file.get("layers", ()):
            raise ValueError(unknown("layer", layer, [*file.get("layers", ())]))
        _check_claimed(sum(_bytes_of(file, part, h5py) for part in needed_parts), path)
        matrix, obs, var = (anndata_io.read_elem(file[part]) for part in needed_parts)
    if matrix.shape != (len(obs), len(var)) or matrix.dtype.kind not in "biuf":
        raise ValueError(
            f"{path}: expected numbers ({len(obs)}, {len(var)}), a row for each of obs; got {matrix.dtype} "
            f"{matrix.shape}"
        )
    if len(obs) < FEWEST or not len(var):
        raise ValueError(f"{path}: expected at least {FEWEST} rows, of 1 or more columns; got {matrix.shape}")
    labels, classes = (None, ()) if label is None else labels_of(_column(obs, label, path), f"{path}: {label}")
    array = matrix if isinstance(matrix, np.ndarray) else _Sparse(matrix.tocsr())
    data = vectors_of(array, f"{path}: {needed_parts[0]}", gaps=True)
    return divide(name, data, labels, columns=tuple(map(str, var.index)), classes=classes)


def _bytes_of(parent: Any, name: str, h5py: Any) -> int:
    """What the arrays below an element take in memory, as they claim. Raises `ValueError` for what is in other files,
    and for objects."""
    if not isinstance(parent.get(name, getlink=True), h5py.HardLink):
        raise ValueError(f"{name}: expected what is in this file; got a link")
    element = parent[name]
    if isinstance(element, h5py.Group):
        return sum(_bytes_of(element, child, h5py) for child in element)
    if element.is_virtual or element.external or h5py.check_ref_dtype(element.dtype):
        raise ValueError(f"{name}: expected an array in this file; got references to others")
    return element.size * element.dtype.itemsize


def from_hugging_face(
    name: str,
    path: Path,
    label: str | None = None,
    resize: tuple[int, int] | None = None,
    channels: int | None = None,
) -> Dataset:
    """The dataset that Hugging Face's `save_to_disk` wrote: one column of images, or of arrays; or columns of
    numbers. Labels are those of the column `label`, or of the only `ClassLabel`."""
    datasets = needed("datasets", "datasets", path)
    with _refused(path, "a dataset as Hugging Face's save_to_disk writes it"):
        for state in path.rglob("state.json"):
            for file in read_json(state)["_data_files"]:
                if Path(file["filename"]).name != file["filename"]:
                    raise ValueError(f"a path to another folder, {file['filename']}")
        stored = datasets.load_from_disk(str(path))
    parts: Mapping[str, Any] = stored if isinstance(stored, datasets.DatasetDict) else {"train": stored}
    if {*parts} not in ({"train"}, {"train", "test"}):
        raise ValueError(f"{path}: expected the parts train and test, or one dataset; got {', '.join(parts)}")
    read = {
        part: _from_features(f"{path}: {part}", part_of, label, resize, channels) for part, part_of in parts.items()
    }
    data, labels, names = read["train"]
    if "test" not in read:
        if len(data) < FEWEST:
            raise ValueError(f"{path}: expected at least {FEWEST} items; got {len(data)}")
        return divide(name, data, labels, **names)
    test, test_labels, _ = read["test"]
    return Dataset(name, data, test, labels, test_labels, **names)


def _from_features(
    where: str, stored: Any, label: str | None, resize: tuple[int, int] | None, channels: int | None
) -> tuple[Tensor, Tensor | None, dict[str, Any]]:
    """Data, labels, and the names of columns and classes."""
    kinds = {column: type(feature).__name__ for column, feature in stored.features.items()}
    known = [column for column, kind in kinds.items() if kind == "ClassLabel"]
    label = label or (known[0] if len(known) == 1 else None)
    if label is not None and label not in kinds:
        raise ValueError(f"{where}: {unknown('label', label, [*kinds])}")
    labels, names = None, dict[str, Any]()
    if label is not None:
        column = stored.select_columns([label]).to_pandas()[label]
        labels, classes = labels_of(column, f"{where}: {label}")
        names["classes"] = tuple(getattr(stored.features[label], "names", classes))
    rest = [column for column in kinds if column != label]
    pictures = [column for column in rest if kinds[column] == "Image"]
    if len(pictures) == 1:
        from datasets import Image

        # not decoded by the package: a path in it may lead anywhere
        items = stored.select_columns(pictures).cast_column(pictures[0], Image(decode=False))[:][pictures[0]]
        if any(item["bytes"] is None for item in items):
            raise ValueError(f"{where}: expected images in the dataset itself; got paths to others")
        content = [(f"{where}: image {i}", item["bytes"]) for i, item in enumerate(items)]
        return images_of(content, resize, channels), labels, names
    if all(kinds[column] == "Value" for column in rest):
        frame = stored.select_columns(rest).to_pandas()
        if others := [column for column in rest if frame[column].dtype.kind not in "biuf"]:
            raise ValueError(f"{where}: expected columns of numbers; got others: {', '.join(others[:5])}")
        return _numbers(frame, where), labels, names | {"columns": tuple(rest)}
    if len(rest) == 1:
        with _refused(Path(where), "arrays of one shape"):
            array = np.stack(stored.with_format("numpy", columns=rest)[:][rest[0]])
        return data_of(array, where), labels, names
    raise ValueError(f"{where}: expected one column of images or arrays, or columns of numbers; got {kinds}")
