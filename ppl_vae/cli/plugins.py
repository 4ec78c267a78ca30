"""Components of a user's own module: plugins."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

from ppl_vae.components import UsageError
from ppl_vae.experiments import listing as listing  # from now on --help lists what there is
from ppl_vae.system.errors import one_line


def load_plugin(name: str) -> None:
    """Imports a module of one's own, by name (also from the current folder) or as the path of a .py file: its
    components are choices from then on. Raises `UsageError` where that fails."""
    path = list(sys.path)
    try:
        if name.endswith(".py"):
            spec = importlib.util.spec_from_file_location(_module_name(name), name)
            assert spec is not None
            assert spec.loader is not None
            sys.modules[spec.name] = module = importlib.util.module_from_spec(spec)  # dataclasses look there
            spec.loader.exec_module(module)
        else:
            sys.path.insert(0, "")
            importlib.import_module(name)
    except Exception as error:  # it is not ours, and may fail in any way
        reason = one_line(error, foreign=True)
        raise UsageError(f"plugin: expected a module or .py file that imports; got {name!r} ({reason})") from error
    finally:
        sys.path[:] = path


def setup_of(plugin: str | None) -> Callable[[], object] | None:
    """What a worker of an executor has to do for a plugin."""
    return None if plugin is None else partial(_load_once, plugin)


def _load_once(name: str) -> None:
    if plugin_module(name) is None:
        load_plugin(name)


def plugin_module(name: str) -> ModuleType | None:
    """The module that `load_plugin` imported under this name."""
    return sys.modules.get(_module_name(name))


def _module_name(name: str) -> str:
    return f"plugin_{Path(name).stem}" if name.endswith(".py") else name
