import random

import numpy as np
import pytest
import torch
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Subset,
    TensorDataset,
    WeightedRandomSampler,
)

from ppl_vae.system.rows import Rows, chunks_of_data, rows_of, select

X = torch.arange(60.0).reshape(20, 3)
Y = torch.arange(20)


class Pairs(Dataset):
    """Items that count how often they are read."""

    def __init__(self, items=None):
        self.items, self.reads = items or [(X[i], int(Y[i])) for i in range(20)], []

    def __len__(self):
        return len(self.items)

    def __getitem__(self, i):
        self.reads.append(i)
        return self.items[i]


class Stream(IterableDataset):
    """The same, in their order. `num_begun` passes were begun, and `num_read` items read."""

    def __init__(self, num_items=20):
        self.num_items, self.num_begun, self.num_read = num_items, 0, 0

    def __iter__(self):
        self.num_begun += 1
        for i in range(self.num_items):
            self.num_read += 1
            yield X[i], int(Y[i])


class Sized(Stream):
    def __len__(self):
        return 20


SOURCES = {
    "map": Pairs,
    "loader": lambda: DataLoader(Pairs(), batch_size=4, shuffle=True),
    "subset": lambda: Subset(TensorDataset(X, Y), range(20)),
    "stream": Stream,
    "sized stream": Sized,
    "loader of a stream": lambda: DataLoader(Stream(), batch_size=7),
}


@pytest.mark.parametrize("source", SOURCES)
def test_items_are_rows_in_any_order(source):
    x, y = rows_of(SOURCES[source]())
    assert type(x) is type(y) is Rows
    assert (x.shape, x.dtype, y.dtype) == ((20, 3), torch.float32, torch.int64)
    assert x.are_items
    assert x.are_streamed == ("stream" in source)
    index = torch.tensor([7, 19, 0, 7])
    for part, whole in ((x, X), (y, Y)):
        assert torch.equal(part[index], whole[index])
        assert torch.equal(part.index_select(0, index), whole[index])
        assert torch.equal(part[5:9], whole[5:9])
        assert torch.equal(part[-1], whole[-1])
        assert torch.equal(part[:0], whole[:0])
        assert torch.equal(select(part, index)[1:3], whole[index][1:3])
        assert torch.equal(part + 1, whole + 1)
        assert torch.equal(torch.cat([t for (t,) in chunks_of_data(6, part)]), whole)


def test_tensors_of_a_tensor_dataset_are_those():
    assert [t.data_ptr() for t in rows_of(TensorDataset(X, Y))] == [X.data_ptr(), Y.data_ptr()]


def test_the_parts_of_an_item_are_of_one_reading():
    """What is random in an item is the same in both parts, and what is kept is not what was given."""

    class Random(Pairs):
        def __getitem__(self, i):
            value = random.random()
            return torch.tensor([value], dtype=torch.float64), value

    x, y = rows_of(Random())
    for index in (torch.arange(5), torch.tensor([3])):
        first, second = x[index], y[index]
        assert torch.equal(first[:, 0], second)
        first.zero_()
        assert torch.equal(x[index][:, 0], second)


def test_a_stream_is_read_onwards():
    stream = Sized()
    x, y = rows_of(DataLoader(stream, batch_size=4))
    stream.num_begun = stream.num_read = 0
    for part in chunks_of_data(6, x, y):
        assert torch.equal(part[1] * 3, part[0][:, 0].long())
    assert (stream.num_begun, stream.num_read) == (0, 16)  # it stood at the first batch of 4, and goes on from there
    assert torch.equal(x[:2], X[:2])
    assert stream.num_begun == 1


def test_a_stream_that_ends_early_is_an_error():
    stream = Sized()
    (x, _) = rows_of(DataLoader(stream, batch_size=4))
    stream.num_items = 18
    with pytest.raises(ValueError, match="Sized: expected a stream of 20 items in each pass; got 18"):
        torch.cat([x[:5], x[3:20]])


def test_a_sampler_of_ones_own_is_followed():
    only_3 = WeightedRandomSampler([float(i == 3) for i in range(20)], 8)
    (x, _) = rows_of(DataLoader(Pairs(), batch_size=3, sampler=only_3, drop_last=True))
    assert (x + 0).tolist() == [X[3].tolist()] * 6
    replaced = RandomSampler(Pairs(), replacement=True, num_samples=5)
    assert len(rows_of(DataLoader(Pairs(), sampler=replaced))[0]) == 5


def test_rows_in_another_precision():
    (x,) = rows_of(Pairs([np.array([i, i / 2]) for i in range(4)]))
    assert x.dtype == torch.float64
    assert torch.equal(Rows(x.source, x.at, torch.float32)[1:3], torch.tensor([[1, 0.5], [2, 1]]))
    assert Rows(x.source, x.at, torch.float32)[1:3].dtype == torch.float32


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([{"x": X[0]}] * 3, "got a dict"),
        (["text"] * 3, "got str"),
        ([(X[0], "text")] * 3, "got Tensor, tuple"),
        ([object()] * 3, "got TypeError"),
        ([(X[0], None)] * 3, "got TypeError"),
        ([(X[0], Y[: i + 1]) for i in range(3)], "got RuntimeError: stack expects each tensor to be equal size"),
        ([()] * 3, "got "),
    ],
)
def test_items_that_are_no_tensors(items, message):
    with pytest.raises(ValueError, match=r"^Pairs: expected items that are tensors of one shape, .*; got ") as caught:
        torch.cat([rows_of(Pairs(items))[0][:2], torch.zeros(0)])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_can_not_be_read():
    for empty in (Pairs([1][:0]), Subset(Pairs(), [])):
        with pytest.raises(ValueError, match="a length of 1 or more; got none"):
            rows_of(empty) if isinstance(empty, Subset) else rows_of(Subset(empty, []))
    with pytest.raises(ValueError, match="Stream: expected a stream of 1 item or more; got none"):
        rows_of(Stream(0))
    with pytest.raises(ValueError, match="expected one with a batch_size; got None"):
        rows_of(DataLoader(Pairs(), batch_size=None))
    with pytest.warns(UserWarning, match="its 2 workers are not used"):
        rows_of(DataLoader(Pairs(), num_workers=2))
