"""Datasets by name: `load` reads a bundled dataset, a torchvision dataset, or data of your own."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import platformdirs

from ppl_vae.components import UsageError, unknown
from ppl_vae.data.catalogue import BUNDLED, TORCHVISION, names
from ppl_vae.data.dataset import Dataset as Dataset
from ppl_vae.data.readers import from_file, from_folder, from_zarr
from ppl_vae.data.tables import from_h5ad, from_hugging_face, from_table
from ppl_vae.data.torchvision_sets import DataError as DataError
from ppl_vae.data.torchvision_sets import from_torchvision
from ppl_vae.system.hashing import fingerprint as fingerprint

Reader = Callable[..., Dataset]
_TABLES = (".csv", ".tsv", ".parquet")
_OPTIONS: dict[Reader, str] = {
    from_file: "",
    from_zarr: "",
    from_table: "label",
    from_h5ad: "label layer",
    from_hugging_face: "label resize channels",
    from_folder: "resize channels",
}
_WHAT = "a .npz, .npy, .csv, .tsv, .parquet or .h5ad file, a .zarr folder or a folder of images"


def load(
    name: str,
    data_dir: Path | None = None,
    *,
    download: bool = True,
    label: str | None = None,
    layer: str | None = None,
    resize: tuple[int, int] | None = None,
    channels: int | None = None,
) -> Dataset:
    """Load the dataset `name`: one of `names()`, or else the path of your own images, vectors, counts or table.

    A torchvision dataset is read from the folder `data_dir`, else from that of the environment variable `PPL_VAE_DATA`,
    else from the user's cache folder; missing files are downloaded to it if `download`.

    Data of your own, at least 10, are one of

    - a `.npz` file of uint8 arrays `train` and `test`, perhaps `train_labels` and `test_labels`; or of one
      array `images`, perhaps `labels`; or a `.npy` file of one array. An array of images is `(N, H, W)`,
      `(N, C, H, W)` or `(N, H, W, C)` with at most 16 channels (1 or 3 if there is a choice, then the fewer, then
      channels first); labels are integers `(N,)`. Other numbers are taken too where they are 8-bit pixels, or these
      divided by 255. Arrays `(N, D)` of floats, or of whole numbers that are not uint8, are vectors in the same way,
      and so are, with a warning, images of any other numbers;
    - a `.zarr` folder of one array, or of a group of arrays with these names (`pip install 'ppl-vae[zarr]'`);
    - a folder of png, jpg, bmp, gif, tif or webp files, in the order of their names; hidden files are left
      out. If all of them are grey they have 1 channel, otherwise 3 (RGB), or as many as `channels` says. They are of
      one size, or brought to `resize`, (H, W), without regard to their proportions. What is transparent is shown on
      white, 16-bit grey is scaled to 8 bits (65535 is white), and an animation gives its first frame. If all files are
      in immediate subfolders, these, sorted, are the labels 0, 1, ...; but subfolders named `train` and `test` are the
      parts, and their own subfolders the labels;
    - a table, `.csv` or `.tsv` (separated by commas, semicolons or tabs, with a first line of column names) or
      `.parquet` (`pip install 'ppl-vae[tables]'`). Each row is a vector of the numbers in all columns but `label`;
      whole numbers are counts if there are no others. What is empty is NaN, a missing value;
    - a `.h5ad` file of AnnData (`pip install 'ppl-vae[anndata]'`): X, or one of the layers, by name. Sparse counts
      stay sparse in memory. `label` is a column of obs;
    - a folder that Hugging Face's `save_to_disk` wrote (`pip install 'ppl-vae[datasets]'`), of one column of images or
      arrays, or of columns of numbers; `label` is by default its only `ClassLabel`.

    Labels that are whole numbers are taken as they are; names are numbered in their order, and are `Dataset.classes`.
    A label that is missing is -1.

    A `.npy` file of 64 MB or more is memory-mapped, and a `.zarr` folder is read by rows: data are read when they are
    used, and may be larger than memory. Files are looked at before memory is taken: the arrays of a file may take 1 GB
    or 50 times its size, whichever is more.

    Data without a test part are split: the last sixth after a shuffle (always with seed 0) is the test part. Both
    parts keep the order of the file.

    Returns images uint8 `(N, C, H, W)`, or vectors float32 or int64 `(N, D)`, and labels int64 `(N,)` or None.

    Raises DataError if files are missing and could not be downloaded; FileNotFoundError if the path does not exist or
    has no images; UsageError, a ValueError, if the name is unknown, or an option is not for such data; ValueError if a
    file is invalid; ImportError if a package for it is missing.
    """
    given: dict[str, Any] = {"label": label, "layer": layer, "resize": resize, "channels": channels}
    options = {option: value for option, value in given.items() if value is not None}
    path, reader = Path(name).expanduser(), _reader_of(name)
    for option in options.keys() - options_of(name):
        takes = [r.__name__.removeprefix("from_").replace("_", " ") for r, o in _OPTIONS.items() if option in o.split()]
        raise UsageError(f"{option}: expected data that take it ({', '.join(takes)}); got {name!r}")
    if name in BUNDLED:
        with resources.as_file(resources.files("ppl_vae.data") / "bundled" / f"{name}.npz") as file:
            return from_file(name, file)
    if name in TORCHVISION:
        root = data_dir or os.environ.get("PPL_VAE_DATA") or platformdirs.user_cache_dir("ppl-vae")
        return from_torchvision(name, Path(root).expanduser(), download)
    if reader is not None:
        return reader(path.resolve().name if path.is_dir() else path.stem, path, **options)
    if name and path.exists():
        raise ValueError(f"{path}: expected {_WHAT}; got another file")
    if len(path.parts) > 1:
        raise FileNotFoundError(f"{path}: expected {_WHAT}; got nothing there")
    raise UsageError(unknown("dataset", name, [*names(), "a path"]))


def options_of(name: str) -> set[str]:
    """The options of `load` that data of this name or path take."""
    reader = _reader_of(name)
    return set() if reader is None else {*_OPTIONS[reader].split()}


def _reader_of(name: str) -> Reader | None:
    """Of a path, by its ending or by what is in a folder; None for others."""
    if not name or name in names():
        return None
    path = Path(name).expanduser()
    if path.is_dir():
        if path.suffix.lower() == ".zarr":
            return from_zarr
        is_saved = any((path / file).is_file() for file in ("dataset_dict.json", "dataset_info.json"))
        return from_hugging_face if is_saved else from_folder
    by_ending = {".npy": from_file, ".npz": from_file, ".h5ad": from_h5ad, **dict.fromkeys(_TABLES, from_table)}
    return by_ending.get(path.suffix.lower())
