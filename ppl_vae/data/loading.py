"""Datasets by name: `load` reads a bundled dataset, a torchvision dataset, or your own images or vectors."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

import platformdirs

from ppl_vae.components import UsageError, unknown
from ppl_vae.data.catalogue import BUNDLED, TORCHVISION, names
from ppl_vae.data.dataset import Dataset as Dataset
from ppl_vae.data.readers import from_file, from_folder
from ppl_vae.data.torchvision_sets import DataError as DataError
from ppl_vae.data.torchvision_sets import from_torchvision
from ppl_vae.system.hashing import fingerprint as fingerprint


def load(name: str, data_dir: Path | None = None, *, download: bool = True) -> Dataset:
    """Load the dataset `name`: one of `names()`, or else the path of your own images or vectors.

    A torchvision dataset is read from the folder `data_dir`, else from that of the environment variable `PPL_VAE_DATA`,
    else from the user's cache folder; missing files are downloaded to it if `download`.

    Your own images (all of one size, at least 10) are one of

    - a `.npz` file of uint8 arrays `train` and `test`, perhaps `train_labels` and `test_labels`; or of one
      array `images`, perhaps `labels`; or a `.npy` file of one array. An array of images is `(N, H, W)`,
      `(N, C, H, W)` or `(N, H, W, C)` with at most 16 channels (1 or 3 if there is a choice, then the fewer, then
      channels first); labels are integers `(N,)`. Other numbers are taken too where they are 8-bit pixels, or these
      divided by 255. Arrays `(N, D)` of floats, or of whole numbers that are not uint8, are vectors in the same way,
      and so are, with a warning, images of any other numbers;
    - a folder of png, jpg, bmp, gif, tif or webp files, in the order of their names; hidden files are left
      out. If all of them are grey they have 1 channel, otherwise 3 (RGB); what is transparent is shown on white,
      and an animation gives its first frame. If all files are in immediate subfolders, these, sorted, are the labels
      0, 1, ...; but subfolders named `train` and `test` are the parts, and their own subfolders the labels.

    A `.npy` file of 64 MB or more is memory-mapped: images are read when they are used. The arrays of a `.npz` file may
    take 1 GB or 50 times its size, whichever is more.

    Images without a test part are split: the last sixth after a shuffle (always with seed 0) is the test part. Both
    parts keep the order of the file.

    Returns images uint8 `(N, C, H, W)`, or vectors float32 or int64 `(N, D)`, and labels int64 `(N,)` or None.

    Raises DataError if files are missing and could not be downloaded; FileNotFoundError if the path does not exist or
    has no images; UsageError, a ValueError, if the name is unknown; ValueError if a file is invalid.
    """
    if name in BUNDLED:
        with resources.as_file(resources.files("ppl_vae.data") / "bundled" / f"{name}.npz") as file:
            return from_file(name, file)
    if name in TORCHVISION:
        root = data_dir or os.environ.get("PPL_VAE_DATA") or platformdirs.user_cache_dir("ppl-vae")
        return from_torchvision(name, Path(root).expanduser(), download)
    path = Path(name).expanduser()
    if name and path.is_dir():
        return from_folder(path)
    if path.suffix.lower() in {".npy", ".npz"}:
        return from_file(path.stem, path)
    if name and path.exists():
        raise ValueError(f"{path}: expected a .npz or .npy file or a folder of images; got another file")
    if len(path.parts) > 1:
        raise FileNotFoundError(f"{path}: expected a .npz or .npy file or a folder of images; got nothing there")
    raise UsageError(unknown("dataset", name, [*names(), "a path"]))
