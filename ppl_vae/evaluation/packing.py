"""Work on Pyro programs as bytes, for another process."""

from __future__ import annotations

import io
import pickle
import weakref
from collections.abc import Callable
from typing import Any

import pyro

from ppl_vae.programs import own_param_store


def packed(function: Callable[..., Any], *arguments: Any) -> bytes:
    """A call for `unpacked_call`, with the parameters that Pyro holds outside of modules (`pyro.param`). Function and
    programs have to be what another process can import: no closures."""
    state = pyro.get_param_store().get_state()
    outside = {name for name in state["params"] if "$$$" not in name}  # as `pyro.module` names those of modules
    params = {
        "params": {name: t.detach().clone().requires_grad_() for name, t in state["params"].items() if name in outside},
        "constraints": {name: c for name, c in state["constraints"].items() if name in outside},
    }
    content = io.BytesIO()
    _Pickler(content).dump((function, arguments, params))
    return content.getvalue()


def unpacked_call(content: bytes) -> Any:
    """What the call returns."""
    function, arguments, params = pickle.loads(content)
    with own_param_store():
        pyro.get_param_store().set_state(params)
        return function(*arguments)


class _Pickler(pickle.Pickler):
    """Without the weak references that Pyro gives parameters to themselves."""

    def reducer_override(self, thing: Any) -> Any:
        return (_nothing, ()) if isinstance(thing, weakref.ReferenceType) else NotImplemented


def _nothing() -> None:
    return None
