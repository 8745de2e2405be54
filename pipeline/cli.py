"""The command ``runnerstream``. ``python -m pipeline.cli`` is the same.

Exit codes: 0 done, 1 failed, 2 wrong usage or settings, 3 something cannot be reached, 130 ended by
Ctrl-C, 141 nobody read the output to its end.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

#: The exit code of Ctrl-C, as shells give it.
INTERRUPTED: Final = 128 + 2


@contextmanager
def quiet_interrupt() -> Iterator[None]:
    """Ctrl-C while modules are imported ends the program without a traceback."""

    def end(*_: object) -> None:
        raise SystemExit(INTERRUPTED)

    ours = threading.current_thread() is threading.main_thread()
    ours = ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if ours:
        signal.signal(signal.SIGINT, end)
    try:
        yield
    finally:
        if ours:
            signal.signal(signal.SIGINT, signal.default_int_handler)


with quiet_interrupt():
    from importlib import import_module
    from pathlib import Path

    import click

    from pipeline.commands.context import Context
    from pipeline.commands.output import OutputClosed
    from pipeline.text import version

# clickhouse-driver makes a table of all days of four centuries when it is imported, a sixth of the
# time that a command takes to start; with this it makes each day when it meets it.
os.environ.setdefault("CLICKHOUSE_DRIVER_LASY_DATE_LUT", "lazy")

#: Each is in the module of its name. A module is imported when its command is meant: all of them
#: together take several times as long as the one.
_COMMANDS: Final = (
    "demo",
    "worker",
    "topics",
    "schema",
    "simulate",
    "replay",
    "post",
    "emit",
    "local",
    "sql",
    "plot",
    "jobs",
    "explain",
    "dead-letters",
    "verify",
    "doctor",
    "executor",
    "gateway",
    "relay",
    "redeliver",
    "scrape",
    "recovery",
)


class _Commands(dict[str, click.Command]):
    """Commands by name, each imported when it is asked for."""

    def __getitem__(self, name: str) -> click.Command:
        found: click.Command | None = self.get(name)
        if found is None:
            raise KeyError(name)
        return found

    def get(self, name: str, default: Any = None) -> Any:
        if name not in self:
            return default
        if not isinstance(super().get(name), click.Command):
            python_name = name.replace("-", "_")
            with quiet_interrupt():
                module = import_module(f"pipeline.commands.{python_name}")
            self[name] = getattr(module, python_name)
        return super().get(name)

    def items(self) -> Any:
        return {name: self[name] for name in self}.items()

    def values(self) -> Any:
        return [self[name] for name in self]


class Program(click.Group):
    """The group of all commands: Ctrl-C and a reader that has gone end it without a word."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = _Commands(dict.fromkeys(_COMMANDS))  # type: ignore[arg-type]

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order in which they are wanted, not of the alphabet."""
        return list(_COMMANDS)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command that is named."""
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, click.Abort):
            click.echo(err=True)
            raise SystemExit(INTERRUPTED) from None
        except BrokenPipeError:
            raise OutputClosed from None


@click.group(
    cls=Program, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(version(), prog_name="runnerstream", message="%(prog)s %(version)s")
@click.option(
    "--config",
    type=click.Path(path_type=Path),
    help="File of RUNNERSTREAM_NAME=value lines. The environment wins over it.",
)
@click.option("-v", "--verbose", count=True, help="Say more; twice for everything.")
@click.pass_context
def main(ctx: click.Context, config: Path | None, verbose: int) -> None:
    """Where every CI job is, how long it waited, and which one is stuck.

    Settings are environment variables RUNNERSTREAM_*; `runnerstream demo` needs none.
    """
    ctx.obj = Context(config, verbose)
    # These print tracebacks and warnings of their own for what commands tell in a sentence.
    for name in ("kafka", "clickhouse_driver"):
        logging.getLogger(name).setLevel(logging.DEBUG if verbose > 1 else logging.CRITICAL)


if __name__ == "__main__":
    main(prog_name="runnerstream")
