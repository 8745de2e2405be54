"""``emit``: what happens to jobs and runners, and telemetry, told from a shell."""

from __future__ import annotations

import difflib
import json
import os
import signal
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, Final, TextIO

import click
from pydantic import ValidationError

from pipeline.commands.context import Context, Duration
from pipeline.commands.event_fields import KINDS, hints_of, is_required, typed, words
from pipeline.commands.failure import UNREACHABLE, USAGE, Failure
from pipeline.commands.output import print_table, say
from pipeline.settings import Settings
from topics.batching import Batching, Drop
from topics.emitter import Emitter
from topics.events import MODELS
from topics.models import Conclusion

#: The exit code of a program that SIGTERM has ended, as shells give it.
_TERMINATED: Final = 128 + 15
#: Lines are read no faster than they go, as long as they go; s between looks.
_CROWDED: Final = Batching().max_records // 2
_LOOK_S: Final = 1.0
#: What every event has and the command fills in.
_ALWAYS: Final = frozenset({"id", "source", "occurred_at", "trace"})


class _Field(click.ParamType):
    """``NAME=VALUE``."""

    name = "field"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple):
            return value
        name, equals, text = value.partition("=")
        if not equals or not name:
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        return name, text


@click.command()
@click.argument("kind", required=False)
@click.option("--set", "fields", multiple=True, metavar="NAME=VALUE", type=_Field(),
              help="Any other field of the event; may be repeated.")  # fmt: skip
@click.option("--list", "listed", is_flag=True,
              help="Show all kinds; with a KIND its fields. Tells nothing.")  # fmt: skip
@click.option("--job", "job_id", help="The job's id at the provider.")
@click.option("--runner", help="Name of the runner.")
@click.option("--claim", help="The claim's handle.")
@click.option("--fleet", help="The pool it belongs to.")
@click.option("--runner-host", help="The machine that the runner runs on.")
@click.option("--boot-ms", type=click.IntRange(0),
              help="From the machine's start to registration.")  # fmt: skip
@click.option("--conclusion", type=click.Choice([c.value for c in Conclusion]),
              help="How the job ended.")  # fmt: skip
@click.option("--reason", help="Why a claim was released.")
@click.option("--repo", help="owner/name.")
@click.option("--at", "occurred_at", type=int, help="When it happened, in ms.  [default: now]")
@click.option("--id", "id", help="The same for the same statement.  [default: made of the rest]")
@click.option("--source", help="Who says so.  [default: this machine's name]")
@click.option("--provider", help="Provider of the job.  [default: github]")
@click.option("--host", help="The provider's host.  [default: github.com]")
@click.option("--mask-env", multiple=True, metavar="NAME",
              help="Mask the value of this environment variable; may be repeated.")  # fmt: skip
@click.option("--timeout", type=Duration(), default="10s", show_default=True,
              help="How long delivering what is left may take.")  # fmt: skip
@click.pass_obj
def emit(
    context: Context,
    /,
    kind: str | None,
    fields: tuple[tuple[str, str], ...],
    listed: bool,
    mask_env: tuple[str, ...],
    timeout: float,
    **options: str | int | None,
) -> None:
    """Tell what happened: one event, or one a line from standard input.

    KIND is the event's: job.started, claim.released, runner.idle, or one of telemetry's, whose
    fields are named with --set. Without it each line is a JSON object with kind, job_id, runner and
    so on; the options are for lines that do not say it themselves and can. Lines go in batches, and
    what is told in vain while Kafka is away waits in memory.
    """
    if listed:
        _show(kind)
        return
    said = {name: value for name, value in options.items() if value is not None}
    secrets = [os.environ[name] for name in mask_env if os.environ.get(name)]
    emitter = _emitter(context.settings, secrets, timeout)
    wrong = 0
    with _closing(emitter):
        if kind is not None:
            _tell(emitter, kind, said | _typed(kind, fields, ""), "")
        elif sys.stdin.isatty():
            raise Failure("what happened?", "name a KIND, or pipe lines of JSON in", USAGE)
        else:
            lines = click.get_text_stream("stdin", errors="replace")
            wrong = _lines(emitter, said, fields, lines)
    _conclude(emitter, wrong, timeout)


def _emitter(settings: Settings, secrets: list[str], timeout: float) -> Emitter:
    options = settings.kafka_options()
    brokers = options.pop("bootstrap_servers")
    return Emitter(
        brokers, source=socket.gethostname() or "runnerstream", secrets=secrets, close_s=timeout,
        client_id=f"{settings.app_id}-emit", **options,
    )  # fmt: skip


@contextmanager
def _closing(emitter: Emitter) -> Iterator[None]:
    """Whatever ends the command, what was read is delivered first; unless it is impatience."""

    def end(*_: object) -> None:
        raise SystemExit(_TERMINATED)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        emitter.close()
        signal.signal(signal.SIGTERM, before)


def _lines(
    emitter: Emitter, said: dict[str, Any], fields: tuple[tuple[str, str], ...], lines: TextIO
) -> int:
    """Tell each line; how many were no events."""

    @cache
    def otherwise(kind: str) -> dict[str, Any]:
        # What a kind has no field for is for other lines.
        known = hints_of(kind)
        found = {name: value for name, value in said.items() if name in known}
        return found | _typed(kind, [each for each in fields if each[0] in known], "")

    wrong = 0
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            told = json.loads(line)
            if not isinstance(told, dict):
                raise Failure(f"line {number}: an event is a JSON object")
            where, kind = f"line {number}: ", told.pop("kind", None)
            if not isinstance(kind, str):
                raise Failure(f"{where}no kind")
            _require_kind(kind, where)
            _tell(emitter, kind, otherwise(kind) | told, where)
        except (Failure, ValueError, RecursionError) as error:
            wrong += 1
            what = error.message if isinstance(error, Failure) else f"line {number}: not JSON"
            click.echo(f"error: {what}", err=True)
        # While Kafka is away, whoever writes to the pipe must not be held up.
        while not emitter.trouble and emitter.stats().waiting > _CROWDED:
            emitter.flush(_LOOK_S)
    return wrong


def _typed(kind: str, fields: Iterable[tuple[str, str]], where: str) -> dict[str, Any]:
    """Values of the fields that were named. Raises :class:`Failure`."""
    _require_kind(kind, where)
    try:
        return {name: typed(kind, name, text) for name, text in fields}
    except ValueError as error:
        raise Failure(f"{where}{error}", exit_code=USAGE) from None


def _require_kind(kind: str, where: str) -> None:
    if kind not in KINDS:
        close = difflib.get_close_matches(kind, KINDS, 3)
        remedy = f"{' or '.join(close)}? " if close else ""
        raise Failure(
            f"{where}there is no kind {kind}", f"{remedy}`runnerstream emit --list`", USAGE
        )


def _tell(emitter: Emitter, kind: str, said: dict[str, Any], where: str) -> None:
    """Raises :class:`Failure` for what makes no event."""
    try:
        event = emitter.event(kind, **said)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        # Of a union pydantic names the branch as well.
        name = str(first["loc"][0]) if first["loc"] else ""
        if first["type"] == "missing":
            what = f"{kind} needs {name} ({words(hints_of(kind).get(name, str))})"
        elif name == "fleet" and kind in MODELS and not said.get("fleet"):
            what = f"{kind} needs a fleet"
        else:
            what = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        remedy = f"`runnerstream emit --list {kind}`"
        raise Failure(f"{where}{what}", remedy, exit_code=USAGE) from None
    except (ValueError, TypeError) as error:
        raise Failure(f"{where}{error}", exit_code=USAGE) from None
    emitter.post(event)


def _show(kind: str | None) -> None:
    """The kinds with their fields, or the fields of one with what they hold."""
    if kind is not None:
        _require_kind(kind, "")
        rows = [
            (name, "required" if is_required(kind, name) else "", words(hint))
            for name, hint in hints_of(kind).items()
            if name not in _ALWAYS
        ]
        print_table(("field", "", "type"), rows)
        return
    for each in KINDS:
        names = [
            name if is_required(each, name) else f"[{name}]"
            for name in hints_of(each)
            if name not in _ALWAYS
        ]
        say(f"{each}: {' '.join(names)}")


def _conclude(emitter: Emitter, wrong: int, timeout: float) -> None:
    """Say what became of it. Raises :class:`Failure` unless all is well."""
    stats = emitter.stats()
    told = stats.delivered
    say(f"{told} event{'' if told == 1 else 's'} told")
    lost = {drop: number for drop, number in stats.dropped.items() if number}
    if lost.get(Drop.UNSENT) or lost.get(Drop.OVERFLOW):
        why = f": {emitter.trouble}" if emitter.trouble else ""
        number = sum(lost.values())
        raise Failure(
            f"{number} not delivered within {timeout:g} s{why}",
            "`runnerstream doctor` looks at what is between here and Kafka",
            UNREACHABLE,
        )
    if lost:
        raise Failure(", ".join(f"{number} {drop.value}" for drop, number in lost.items()))
    if wrong:
        raise Failure(f"{wrong} line{'' if wrong == 1 else 's'} made no event")
