import functools
import itertools
import random
import types
from collections import deque

import numpy as np
import pytest
import torch
from pyro import poutine
from torch import nn

from ppl_vae.programs import mode
from ppl_vae.system.places import Constants, modules_of


class Owner(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Dropout()

    def model(self, x): ...


def test_modules_are_found_through_methods_closures_partials_and_globals():
    owner, other = Owner(), Owner()

    def closure(x):
        return other.layer(x)

    assert modules_of(owner) == [owner]
    assert modules_of(owner.model, owner.model) == [owner]
    assert modules_of(closure) == [other]
    assert modules_of(functools.partial(closure, 1), owner.model) == [other, owner]
    assert modules_of(lambda x: x) == []


HELPERS = Owner()


class Nets:
    of_class = Owner()


class Plain:
    """No `nn.Module`, with a method that the program calls, which calls what is global."""

    def __init__(self, module):
        self.module = module

    def __call__(self, x):
        return self.model(x)

    def model(self, x):
        return self.helper(self.module.layer(x))

    def helper(self, x):
        return helper(x) + Nets.of_class.layer(x)


def helper(x):
    return [HELPERS.layer(y) for y in x]


class Holding(nn.Module):
    """A module that holds another out of sight of torch, in a list."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Identity()
        self.others = [Owner()]


def test_modules_are_found_in_plain_objects_keywords_containers_and_helpers():
    own = Owner()
    assert modules_of(Plain(own)) == [own, HELPERS, Nets.of_class]
    assert modules_of(Plain(own).model) == [own, HELPERS, Nets.of_class]
    assert modules_of(functools.partial(lambda x, net: net(x), net=own)) == [own]
    assert modules_of(lambda x, net=own: net(x)) == [own]
    assert modules_of(lambda x: (lambda y: own(y))(x)) == [own]
    assert modules_of(poutine.scale(own.model, 0.5)) == [own]
    nested = {"nets": ({1: own},)}
    assert modules_of(lambda x: nested["nets"]) == [own]
    holding = Holding()
    assert modules_of(holding, holding.inner.forward) == [holding, *holding.others]
    with mode(Plain(own), training=False):
        assert not any(dropout.training for dropout in (own.layer, HELPERS.layer, Nets.of_class.layer))


class Slots:
    __slots__ = ("net",)

    def __init__(self, net):
        self.net = net

    def __call__(self, x):
        return self.net(x)


def of_class(net):
    """A class that gets at a module by variables alone, in each kind of what a class can have, and one below it."""

    class Base:
        @property
        def by_property(self):
            return net

        @functools.cached_property
        def by_cached_property(self):
            return net

        @staticmethod
        def by_static_method(x):
            return net(x)

        @classmethod
        def by_class_method(cls, x):
            return net(x)

        def by_super(self, x):
            return net(x)

    class Below(Base):
        def by_super(self, x):
            return super().by_super(x)

    return Below()


def in_a_module(net):
    module = types.ModuleType("theirs")
    module.net = net
    return lambda x: module.net(x)


WAYS = {
    "slots": Slots,
    "keyword default": lambda net: lambda x, *, net=net: net(x),
    "property": lambda net: types.MethodType(lambda self, x: self.by_property(x), of_class(net)),
    "cached property": lambda net: types.MethodType(lambda self, x: self.by_cached_property(x), of_class(net)),
    "static method": lambda net: types.MethodType(lambda self, x: self.by_static_method(x), of_class(net)),
    "class method": lambda net: types.MethodType(lambda self, x: self.by_class_method(x), of_class(net)),
    "super": lambda net: of_class(net).by_super,
    "property of what is captured": lambda net: (lambda owner: lambda x: owner.by_cached_property(x))(of_class(net)),
    "method of what is captured": lambda net: (lambda owner: lambda x: owner.by_super(x))(of_class(net)),
    "module": in_a_module,
    "cache": lambda net: (lambda get: lambda x: get()(x))(functools.lru_cache(lambda: net)),
    "deque": lambda net: (lambda nets: lambda x: nets[0](x))(deque([net])),
}


@pytest.mark.parametrize("way", WAYS)
def test_modules_are_found_however_a_program_gets_at_them(way):
    net = Owner()
    assert modules_of(WAYS[way](net)) == [net]


class Counter:
    """Counts in each of the ways in which a program can have a number, or a tensor."""

    of_class = 0

    def __init__(self):
        self.number, self.of_numpy, self.array = 0, np.float32(0), np.zeros(2)
        self.items, self.keys, self.queue, self.nested = [0], {"a": 0}, deque([0]), types.SimpleNamespace(n=0)
        self.pair, self.iterator, self.random = (0, 0), itertools.count(), random.Random(0)
        self.slots, self.tensor = Slots(0), torch.zeros(())
        self.captured = self.capturing()

    def capturing(self):
        n = 0

        def count():
            nonlocal n
            n += 1

        return count

    def __call__(self):
        return type(self).of_class

    def count(self, where):
        if where in ("number", "of_numpy", "tensor"):
            setattr(self, where, getattr(self, where) + 1)
        elif where in ("array", "items", "queue"):
            getattr(self, where)[0] += 1
        else:
            CHANGES[where](self)


CHANGES = {
    "of_class": lambda c: setattr(Counter, "of_class", Counter.of_class + 1),
    "keys": lambda c: c.keys.update(a=c.keys["a"] + 1),
    "nested": lambda c: setattr(c.nested, "n", c.nested.n + 1),
    "replaced": lambda c: setattr(c, "nested", types.SimpleNamespace(n=c.nested.n + 1)),
    "pair": lambda c: setattr(c, "pair", (0, 1)),
    "iterator": lambda c: next(c.iterator),
    "random": lambda c: c.random.random(),
    "slots": lambda c: setattr(c.slots, "net", 1),
    "captured": lambda c: c.captured(),
}
WHERE = ["number", "of_numpy", "tensor", "array", "items", "queue", *CHANGES]


@pytest.mark.parametrize("where", WHERE)
def test_what_a_program_changes_is_seen_and_can_be_written_back(where):
    counter = Counter()
    constants = Constants(counter)
    assert constants.changed() == ""
    constants.are_in_graph([counter.tensor])
    write_back = constants.kept()
    counter.count(where)
    assert constants.changed().endswith("of which a trace makes a constant: make it a buffer")
    if where not in ("iterator", "random"):
        write_back()
        assert constants.changed() == ""


def test_a_tensor_is_no_constant_but_where_a_graph_holds_it():
    counter = Counter()
    constants = Constants(counter)
    counter.count("tensor")
    assert constants.changed() == ""  # and this one is found now
    constants.are_in_graph([torch.zeros(())])
    counter.count("tensor")
    assert constants.changed() == ""
    constants.are_in_graph([counter.tensor])
    before = constants.kept()
    counter.tensor += 1  # in place
    assert constants.changed() == ""
    before()
    assert counter.tensor.item() == 2
    counter.count("tensor")
    assert "'tensor' became another tensor" in constants.changed()


def test_an_iterator_of_unknown_state_is_no_constant():
    counter = Counter()
    counter.iterator = iter([1, 2])
    assert "'iterator' gives another value at each call" in Constants(counter).changed()
