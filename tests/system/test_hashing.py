import hashlib

import torch

from ppl_vae.system.hashing import fingerprint


def test_fingerprint() -> None:
    tensor = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
    mark = fingerprint(tensor)
    assert mark == hashlib.sha256(b"torch.uint8[2, 3, 4]" + bytes(range(24))).hexdigest()[:16]
    assert fingerprint(tensor.transpose(0, 2).contiguous().transpose(0, 2)) == mark
    changed = tensor.clone()
    changed[1, 2, 3] += 1
    others = [(changed,), (tensor.reshape(3, 2, 4),), (tensor.char(),), (tensor, tensor), tensor.unbind(), ()]
    assert len({mark, *(fingerprint(*other) for other in others)}) == 1 + len(others)
    assert fingerprint(torch.tensor(1.0, requires_grad=True)) == fingerprint(torch.tensor(1.0))
    assert fingerprint(torch.zeros(0), tensor.bool(), torch.zeros(2, dtype=torch.bfloat16))
