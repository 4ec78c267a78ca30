import pytest
import torch
from image_files import pixels

from ppl_vae.data.dataset import Dataset, Rows, split
from ppl_vae.system.hashing import fingerprint


def test_rows_read_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    whole = Rows.rows
    monkeypatch.setattr(Rows, "rows", lambda self, index: seen.append(len(self.at[index])) or whole(self, index))
    rows = Rows(torch.from_numpy(pixels(60, 1, 5, 4)), torch.arange(50))
    monkeypatch.setattr("ppl_vae.system.hashing.CHUNK_BYTES", 7 * 20)
    fingerprint(rows)
    assert max(seen) == 7
    assert sum(seen) == 50 + 1  # and the first, for its size
    rows.index_select(0, torch.tensor([3, 1]))  # as `fit` takes a batch
    assert seen[-1] == 2


def images(*shape: int) -> torch.Tensor:
    return torch.zeros(shape, dtype=torch.uint8)


@pytest.mark.parametrize(
    "fields",
    [
        {"train": images(3, 1, 5, 4).float()},
        {"train": images(3, 5, 4), "test": images(3, 5, 4)},
        {"test": images(3, 1, 4, 5)},
        {"train": images(0, 1, 5, 4)},
        {"test": images(0, 1, 5, 4)},
        {"train_labels": torch.zeros(3)},
        {"train_labels": torch.zeros(2, dtype=torch.int64)},
        {"test_labels": torch.zeros(2, 1, dtype=torch.int64)},
    ],
)
def test_dataset_checks_its_fields(fields: dict[str, torch.Tensor]) -> None:
    good = {"train": images(3, 1, 5, 4), "test": images(2, 1, 5, 4)}
    assert Dataset("good", **good).image_shape == (1, 5, 4)
    with pytest.raises(ValueError, match=r"^bad: expected .*; got .*$"):
        Dataset("bad", **good | fields)


def test_split_is_seeded_and_disjoint() -> None:
    train, validation = split(100, 20, seed=1)
    assert (train.shape, validation.shape) == ((80,), (20,))
    assert torch.equal(torch.cat([train, validation]).sort().values, torch.arange(100))
    assert torch.equal(train, train.sort().values)
    assert torch.equal(validation, validation.sort().values)
    assert torch.equal(validation, split(100, 20, seed=1)[1])
    assert not torch.equal(validation, split(100, 20, seed=2)[1])
    assert validation.tolist() != list(range(80, 100))


@pytest.mark.parametrize("num_validation", [-1, 0, 10, 11])
def test_split_leaves_neither_part_empty(num_validation: int) -> None:
    assert len(split(10, 9, seed=0)[0]) == 1
    with pytest.raises(ValueError, match=f"^expected num_validation from 1 to .*9; got {num_validation}$"):
        split(10, num_validation, seed=0)
