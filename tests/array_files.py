"""The bytes of `.npy` and `.npz` files, also of such as no honest program writes."""

from __future__ import annotations

import io
import struct
import zipfile

import numpy as np


def npz(**members: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in members.items():
            archive.writestr(name + ".npy", content)
    return file.getvalue()


def objects(payload: object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.array([payload] * 12, dtype=object), allow_pickle=True)
    return file.getvalue()


def npy(shape: tuple[int, ...], rest: bytes = b"") -> bytes:
    header = str({"descr": "|u1", "fortran_order": False, "shape": shape}).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + rest
