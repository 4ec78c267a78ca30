"""torchvision's datasets, read from its raw files, which are downloaded if they are missing."""

from __future__ import annotations

import math
import struct
from pathlib import Path

from torch import Tensor

from ppl_vae.data.catalogue import TORCHVISION
from ppl_vae.data.dataset import Dataset
from ppl_vae.system.errors import one_line


class DataError(OSError):
    """The files of a dataset are missing and could not be downloaded."""


def from_torchvision(name: str, root: Path, download: bool) -> Dataset:
    """The dataset in torchvision's raw files below `root`. Raises DataError if files are missing, and ValueError if one
    is damaged."""
    # torchvision takes seconds to import, and no other dataset needs it
    from torchvision import datasets

    source = TORCHVISION[name]
    folder = root / source.torchvision / "raw"
    files = [folder / file.format(part) for part in source.parts for file in source.files]
    reason = "download is off"
    if download and not all(file.is_file() for file in files):
        try:
            download_to = getattr(datasets, source.torchvision)
            for is_train in (True, False):
                download_to(root, train=is_train, download=True, **dict(source.options))
        except Exception as error:  # whatever made the download fail, the remedy is the same
            reason = one_line(error, foreign=True)
        else:
            reason = "torchvision left them out"
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise DataError(
            f"{name}: expected {', '.join(file.name for file in files)} in {folder}; "
            f"got no {', '.join(missing)} ({reason}); mnist-mini and fashion-mnist-mini need no download"
        )
    train, train_labels, test, test_labels = (read_idx(file) for file in files)
    if source.torchvision == "EMNIST":  # stored with rows and columns exchanged
        train, test = (images.transpose(1, 2).contiguous() for images in (train, test))
    if source.torchvision == "QMNIST":  # the class, then the writer and six other numbers
        train_labels, test_labels = train_labels[:, 0], test_labels[:, 0]
    return Dataset(name, train[:, None], test[:, None], train_labels.long(), test_labels.long())


def read_idx(path: Path) -> Tensor:
    """The array in an IDX file, uint8 or int32. Raises ValueError if its size is not the one that its header claims."""
    from torchvision.datasets import mnist

    # the file name says what the header must be: idx3-ubyte, idx1-ubyte or idx2-int
    ndim, dtype = int(path.name.rsplit("-", 2)[1][-1]), path.name.rsplit("-", 1)[1]
    code, itemsize = {"ubyte": (8, 1), "int": (12, 4)}[dtype]
    with path.open("rb") as file:
        header = file.read(4 + 4 * ndim)
    size = path.stat().st_size
    if len(header) < 4 + 4 * ndim:
        raise ValueError(f"{path}: expected an IDX file of at least {4 + 4 * ndim} bytes; got {size} bytes")
    magic, *shape = struct.unpack(f">{1 + ndim}I", header)
    if magic != code * 256 + ndim:
        raise ValueError(f"{path}: expected an IDX file, magic number {code * 256 + ndim}; got {magic}")
    expected = len(header) + itemsize * math.prod(shape)
    if size != expected or 0 in shape:
        raise ValueError(
            f"{path}: expected {expected} bytes for shape {tuple(shape)}, not empty; got {size} bytes "
            "(remove it to download it again)"
        )
    # not by the dataset's class, which prefers the unchecked *.pt file of an old version
    return mnist.read_sn3_pascalvincent_tensor(path)
