"""`ppl-vae COMMAND`, of the commands in `ppl_vae.cli.options`.

What takes long to import is imported inside, where an interrupt is one line too."""

from __future__ import annotations

import contextlib
import importlib.metadata
import itertools
import os
import shlex
import signal
import sys
import traceback
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from ppl_vae.components import UsageError
from ppl_vae.system.errors import one_line
from ppl_vae.system.machine import num_launched
from ppl_vae.system.signals import terminable


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit status 0, 2 for bad usage, 1 for failure, 130 for SIGINT and 143 for SIGTERM; an error is one
    line. A reader of the output that goes away, as in `ppl-vae --help | head`, ends it silently."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        try:
            _main(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the interpreter's end is silent too
        raise SystemExit(128 + 13) from None  # as by SIGPIPE


def _main(arguments: list[str]) -> None:
    signals: list[int] = []
    try:
        with terminable() as signals, warnings_in_one_line():
            check_launch(arguments)
            parse(arguments)()
    except UsageError as error:
        fail(str(error), 2)
    except BrokenPipeError:
        raise
    except (ValueError, OSError, ArithmeticError, MemoryError, ImportError) as error:
        fail(one_line(error), 1)
    except Exception as error:
        if not plugins(arguments):
            raise
        fail(f"{one_line(error)} ({place(error, plugins(arguments))})", 1)
    except KeyboardInterrupt as interrupt:
        stop(interrupt, arguments, signals)


def check_launch(arguments: list[str]) -> None:
    """Raises `UsageError` for a command other than `train` in several processes, which would do the same."""
    if num_launched() > 1 and arguments[:1] != ["train"]:
        raise UsageError(f"torchrun: expected the command train; got {next(iter(arguments), 'none')} (see --help)")


def stop(interrupt: KeyboardInterrupt, arguments: list[str], signals: list[int]) -> NoReturn:
    """Ends by a signal, saying how to resume what can be resumed."""
    reason = getattr(interrupt, "reason", None)  # of `Stopped`, which has written a checkpoint
    status = 128 + (signals[0] if signals else reason or signal.SIGINT)
    command = next(iter(arguments), "")
    if reason is None and command not in ("run", "sweep"):
        fail("interrupted", status)
    message = "interrupted; what is finished is kept" if reason is None else f"{interrupt}, with a checkpoint"
    again = [a for a in arguments if a not in ("--resume", "--overwrite")] + ["--resume"] * (command == "train")
    print(f"ppl-vae: {message}. To go on:\n{shlex.join(['ppl-vae', *again])}", file=sys.stderr)
    raise SystemExit(status)


def fail(message: str, status: int) -> NoReturn:
    print(f"ppl-vae: error: {message}", file=sys.stderr)
    raise SystemExit(status)


def place(error: Exception, plugins: list[str]) -> str:
    """Where in the user's own module an error that nobody foresaw came up, or just that there is one."""
    from ppl_vae.cli.plugins import plugin_module

    files = {module.__file__ for name in plugins if (module := plugin_module(name)) is not None}
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename in files]
    lines = [f"{frame.filename}:{frame.lineno}" for frame in frames]
    return f"at {lines[-1]}" if lines else f"with plugin {', '.join(plugins)}"


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
    if arguments == ["--version"]:
        print(f"ppl-vae {importlib.metadata.version('ppl-vae')}")
        raise SystemExit(0)
    import tyro

    from ppl_vae.cli.options import COMMANDS, starting_from

    commands = dict(COMMANDS)
    if arguments[:1] == ["train"] and (runs := given("--from", "--start-from", of=arguments)):
        commands["train"] = starting_from(Path(runs[-1]))
    for plugin in plugins(arguments):  # before its components are looked for
        from ppl_vae.cli.plugins import load_plugin

        load_plugin(plugin)
    match arguments:
        case ["run"]:
            arguments = ["run", "study"]
        case ["run", first, *_] if first.startswith("-") and first not in ("-h", "--help"):
            arguments = ["run", "study", *arguments[1:]]
    config = (tyro.conf.OmitSubcommandPrefixes,)
    if arguments and arguments[0] in commands:  # alone, so that what is suggested for a misspelt flag is its own
        name, *arguments = arguments
        return tyro.cli(commands[name], prog=f"ppl-vae {name}", args=arguments, config=config)
    return tyro.extras.subcommand_cli_from_dict(
        commands,
        prog="ppl-vae",
        description="Variational autoencoders as probabilistic programs, with log-likelihoods that carry their error. "
        "`ppl-vae COMMAND --help` explains a command; `ppl-vae --version` prints the version, and "
        "`ppl-vae --tyro-print-completion bash` (or zsh, tcsh) what completes commands in a shell.",
        args=arguments,
        config=config,
    )


def plugins(arguments: list[str]) -> list[str]:
    """
    >>> plugins(["train", "--plugin", "mine", "--epochs", "3", "--plugin=ours.py"])
    ['mine', 'ours.py']
    """
    return given("--plugin", of=arguments)


def given(*flags: str, of: list[str]) -> list[str]:
    """What arguments give for a flag, before they are parsed."""
    after = [value for flag, value in itertools.pairwise(of) if flag in flags]
    return after + [a.partition("=")[2] for a in of if a.partition("=")[0] in flags and "=" in a]


if __name__ == "__main__":
    main()
