"""The command line: `ppl-vae run | train | evaluate | compare | sample | denoise | impute | report |
datasets`."""

from __future__ import annotations

import contextlib
import itertools
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from typing import Any, NoReturn, cast

import tyro

from ppl_vae.cli.commands import COMMANDS, RunCommand, TrainCommand
from ppl_vae.cli.plugins import load_plugin, plugin_module
from ppl_vae.cli.terminal import fail
from ppl_vae.components import UsageError
from ppl_vae.system.errors import one_line
from ppl_vae.system.signals import terminable
from ppl_vae.training.history import Stopped


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit status 0, 2 for bad usage, 1 for failure, 130 for SIGINT, 143 for SIGTERM while there is
    something to go on with; an error is one line."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command: Any = None
    signals: list[int] = []
    try:
        with warnings_in_one_line():
            command = parse(arguments)
            goes_on = isinstance(command, TrainCommand | RunCommand)
            with contextlib.ExitStack() as stack:
                if goes_on:
                    signals = stack.enter_context(terminable())
                command()
    except UsageError as error:
        fail(str(error), 2)
    except (ValueError, OSError, ArithmeticError, MemoryError, ImportError) as error:
        fail(one_line(error), 1)
    except Stopped as stopped:
        stop(f"{stopped}, with a checkpoint", command, arguments, cast(int, stopped.reason))
    except Exception as error:
        if not plugins(arguments):
            raise
        fail(f"{one_line(error)} ({place(error, plugins(arguments))})", 1)
    except KeyboardInterrupt:
        number = signals[0] if signals else signal.SIGINT
        if not isinstance(command, RunCommand):
            fail("interrupted", 128 + number)
        stop("interrupted; what is finished is kept", command, arguments, number)


def place(error: Exception, plugins: list[str]) -> str:
    """Where in the user's own module an error that nobody foresaw came up, or just that there is one."""
    files = {module.__file__ for name in plugins if (module := plugin_module(name)) is not None}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    lines = [f"{frame.filename}:{frame.lineno}" for frame in frames]
    return f"at {lines[-1]}" if lines else f"with plugin {', '.join(plugins)}"


def stop(message: str, command: Any, arguments: list[str], number: int) -> NoReturn:
    """Ends by a signal, saying how to go on."""
    again = [a for a in arguments if a not in ("--resume", "--overwrite")]
    again += ["--resume"] * isinstance(command, TrainCommand)
    print(f"ppl-vae: {message}. To go on:\n{shlex.join(['ppl-vae', *again])}", file=sys.stderr)
    raise SystemExit(128 + number)


@contextlib.contextmanager
def warnings_in_one_line() -> Iterator[None]:
    """Within it warnings are printed as errors are, without the line of code that they come from."""

    def show(message: Warning | str, *args: Any, **kwargs: Any) -> None:
        print(f"ppl-vae: warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def parse(arguments: list[str]) -> Any:
    """The command that the arguments ask for. A parser's refusal is its own message, and exit status 2."""
    for plugin in plugins(arguments):  # before its components are looked for
        load_plugin(plugin)
    match arguments:
        case ["run"]:
            arguments = ["run", "study"]
        case ["run", first, *_] if first.startswith("-") and first not in ("-h", "--help"):
            arguments = ["run", "study", *arguments[1:]]
    return tyro.extras.subcommand_cli_from_dict(
        COMMANDS,
        prog="ppl-vae",
        description="Variational autoencoders as probabilistic programs, with log-likelihoods that carry their error.",
        args=arguments,
        config=(tyro.conf.OmitSubcommandPrefixes,),
    )


def plugins(arguments: list[str]) -> list[str]:
    """
    >>> plugins(["train", "--plugin", "mine", "--epochs", "3", "--plugin=ours.py"])
    ['mine', 'ours.py']
    """
    after = [name for flag, name in itertools.pairwise(arguments) if flag == "--plugin"]
    return after + [a.removeprefix("--plugin=") for a in arguments if a.startswith("--plugin=")]


if __name__ == "__main__":
    main()
