"""``doctor``: what works, what does not, and what to do about it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC
from typing import Any, Final, Literal

import click
from clickhouse_driver.errors import Error as ClickHouseError
from kafka import TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import KafkaError
from rich.markup import escape

from pipeline.commands.common import (
    FAILED,
    UNREACHABLE,
    Context,
    Failure,
    place,
    plain_console,
    print_json,
    short,
    table,
)
from pipeline.commands.reach import (
    ask,
    clickhouse,
    clickhouse_failure,
    kafka_admin,
    topics_plan,
    worker_url,
)
from pipeline.commands.worker import sink_group
from pipeline.settings import Settings
from pipeline.text import duration
from sinks import schema
from sinks.rows import TOPICS as SINK_TOPICS
from topics.catalogue import DEAD_LETTERS, JOBS, LIFECYCLE, WEBHOOKS

State = Literal["ok", "look", "bad", "skipped"]

#: Clocks further apart than this make ages and lateness wrong. Seconds.
SKEW_S: Final = 2.0
_WORDS: Final = {"ok": "ok", "look": "look", "bad": "BAD", "skipped": "–"}
_STYLES: Final = {"ok": "green", "look": "yellow", "bad": "bold red", "skipped": "dim"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``todo`` says what to do when it is not ok."""

    what: str
    state: State
    told: str
    todo: str = ""
    unreachable: bool = False


@click.command()
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@click.pass_obj
def doctor(context: Context, as_json: bool) -> None:
    """Look at everything the program needs, and say what to do.

    Exit code 0 when nothing is bad, 1 when something is, 3 when something cannot be reached.
    """
    findings = list(examine(context.settings))
    if as_json:
        print_json(
            [{"what": f.what, "state": f.state, "told": f.told, "todo": f.todo} for f in findings]
        )
    else:
        made = table((), ())
        for _ in range(3):
            made.add_column()
        made.show_header = False
        for each in findings:
            style = _STYLES[each.state]
            made.add_row(f"[{style}]{_WORDS[each.state]}[/]", escape(each.what), escape(each.told))
            if each.todo:
                made.add_row("", "", f"[dim]do:[/] {escape(each.todo)}")
        plain_console().print(made)
    if any(f.unreachable for f in findings):
        raise SystemExit(UNREACHABLE)
    if any(f.state == "bad" for f in findings):
        raise SystemExit(FAILED)


def examine(settings: Settings) -> Iterator[Finding]:
    """All findings, one after another. Never raises."""
    broker = _broker(settings)
    yield broker
    if broker.state == "ok":
        yield from _guarded("topics", _topics(settings))
        yield from _guarded("lag", _lags(settings))
        yield from _guarded("dead letters", _letters(settings))
    yield from _guarded("ClickHouse", _clickhouse(settings))
    yield from _guarded("worker", _worker(settings))
    if settings.clickhouse.get_secret_value():
        yield from _guarded("sink", _sink(settings))


def _guarded(what: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    try:
        yield from findings
    except Failure as error:
        yield Finding(what, "bad", error.message, error.remedy, error.exit_code == UNREACHABLE)
    except (KafkaError, ClickHouseError, OSError, EOFError, LookupError, ValueError) as error:
        yield Finding(what, "bad", short(error))


def _broker(settings: Settings) -> Finding:
    began = time.monotonic()
    try:
        with kafka_admin(settings) as admin:
            brokers = admin.describe_cluster()["brokers"]
    except Failure as error:
        return Finding("Kafka", "bad", error.message, error.remedy, unreachable=True)
    except KafkaError as error:
        return Finding("Kafka", "bad", f"{settings.kafka} refuses: {short(error)}",
                       "are user, password and kafka_security right?")  # fmt: skip
    took = duration((time.monotonic() - began) * 1000)
    count = len(brokers)
    told = f"{settings.kafka} answers in {took}, {count} broker{'' if count == 1 else 's'}"
    return Finding("Kafka", "ok", told)


def _topics(settings: Settings) -> Iterator[Finding]:
    found = topics_plan(settings)
    if found.create:
        names = ", ".join(spec.name for spec in found.create)
        yield Finding("topics", "bad", f"missing: {names}", "runnerstream topics apply")
    for mismatch in found.mismatches:
        yield Finding("topics", "bad", str(mismatch).partition(" (")[0], mismatch.remedy)
    for drift in found.drift:
        yield Finding("topics", "look", str(drift), "runnerstream topics apply --mend")
    if not (found.create or found.mismatches or found.drift):
        note = f", settings of {len(found.unknown)} not told" if found.unknown else ""
        yield Finding("topics", "ok", f"{len(found.unchanged)} as they should be{note}")


def _lags(settings: Settings) -> Iterator[Finding]:
    groups: list[tuple[str, tuple[str, ...], str]] = [
        (settings.app_id, (WEBHOOKS, LIFECYCLE, JOBS), "worker")
    ]
    if settings.clickhouse.get_secret_value():
        groups.append((sink_group(settings), SINK_TOPICS, "sink"))
    with kafka_admin(settings) as admin:
        for group, topics, who in groups:
            lag = _lag(admin, group, topics, settings.partitions)
            members = _members(admin, group)
            told = f"group {group}: {lag:,} records behind"
            if members is not None:
                told += f", {members} member{'' if members == 1 else 's'}"
            if members == 0:
                role = "sink" if who == "sink" else "fold"
                yield Finding(f"{who} group", "bad", told, f"runnerstream worker --role {role}")
            else:
                yield Finding(f"{who} group", "ok", told)


def _lag(admin: Any, group: str, topics: tuple[str, ...], partitions: int) -> int:
    existing = set(admin.list_topics())
    wanted = [TopicPartition(t, p) for t in topics if t in existing for p in range(partitions)]
    if not wanted:
        return 0
    found = admin.list_group_offsets({group: wanted}).get(group, {})
    done = {where: at.offset for where, at in found.items() if at.offset >= 0}
    missing = [where for where in wanted if where not in done]
    if missing:
        first = admin.list_partition_offsets(dict.fromkeys(missing, OffsetSpec.EARLIEST))
        done |= {where: at.offset for where, at in first.items()}
    ends = admin.list_partition_offsets(dict.fromkeys(wanted, OffsetSpec.LATEST))
    return sum(max(0, ends[where].offset - done[where]) for where in wanted)


def _members(admin: Any, group: str) -> int | None:
    try:
        return len(admin.describe_groups([group])[group]["members"])
    except (KafkaError, LookupError, TypeError, ValueError):
        return None  # Tansu answers in a way the client cannot read


def _letters(settings: Settings) -> Iterator[Finding]:
    with kafka_admin(settings) as admin:
        where = [TopicPartition(DEAD_LETTERS, p) for p in range(settings.partitions)]
        first = admin.list_partition_offsets(dict.fromkeys(where, OffsetSpec.EARLIEST))
        ends = admin.list_partition_offsets(dict.fromkeys(where, OffsetSpec.LATEST))
        hour_ago = int((time.time() - 3600) * 1000)
        recent = admin.list_partition_offsets(dict.fromkeys(where, hour_ago))
    total = sum(ends[w].offset - first[w].offset for w in where)
    late = sum(
        ends[w].offset - recent[w].offset for w in where if w in recent and recent[w].offset >= 0
    )
    told = f"{total:,} kept, {late:,} of the last hour"
    if late:
        yield Finding("dead letters", "look", told, "runnerstream dead-letters list --since 1h")
    else:
        yield Finding("dead letters", "ok", told)


def _clickhouse(settings: Settings) -> Iterator[Finding]:
    url = settings.clickhouse.get_secret_value()
    if not url:
        yield Finding("ClickHouse", "skipped", "none is configured")
        return
    with clickhouse(settings) as client:
        began = time.time()
        (version, theirs), *_ = client.execute("SELECT version(), now64(3, 'UTC')")
        ended = time.time()
    yield Finding(
        "ClickHouse",
        "ok",
        f"{place(url)} answers in {duration((ended - began) * 1000)}, version {version}",
    )
    if theirs.tzinfo is None:
        theirs = theirs.replace(tzinfo=UTC)
    yield _skew("clock of ClickHouse", theirs.timestamp() - (began + ended) / 2)
    try:
        pending = schema.pending(url)
    except schema.SchemaError as error:
        yield Finding("tables", "bad", str(error), "run the release that made them, or a newer one")
        return
    except (ClickHouseError, OSError, EOFError) as error:
        raise clickhouse_failure(settings, error) from None
    if pending:
        names = ", ".join(f"{m.version:04d}_{m.name}" for m in pending)
        yield Finding("tables", "bad", f"not applied: {names}", "runnerstream schema apply")
    else:
        yield Finding("tables", "ok", f"{len(schema.migrations())} migrations applied")


def _skew(what: str, seconds: float) -> Finding:
    told = f"{abs(seconds):.2f} s {'ahead of' if seconds > 0 else 'behind'} this machine's"
    if abs(seconds) > SKEW_S:
        return Finding(what, "bad", told, "let NTP set both clocks: ages and lateness are wrong")
    return Finding(what, "ok", told)


def _worker(settings: Settings) -> Iterator[Finding]:
    base = worker_url(settings)
    try:
        ready = ask(base, "/readyz", timeout=5.0)
    except Failure as error:
        # It may run elsewhere; the group's members tell whether one runs at all.
        yield Finding("worker", "look", error.message, error.remedy)
        return
    if "reasons" not in ready:
        yield Finding("worker", "bad", f"what listens at {base} is not a worker", "see --web-port")
        return
    if ready["ready"]:
        yield Finding("worker", "ok", f"{base} is ready, {ready['tick_lag_s']:.1f} s behind")
    for reason in ready["reasons"]:
        yield Finding("worker", "bad", reason["text"], _REMEDIES.get(reason["code"], ""))
    began = time.time()
    group = ask(base, "/workers", timeout=10.0)
    yield _skew("clock of the worker", group["now"] / 1000 - (began + time.time()) / 2)
    for gap in group.get("incomplete", ()):
        yield Finding("group", "bad", gap["reason"], "is that worker reachable by its web_host?")


_REMEDIES: Final = {
    "starting": "wait some seconds",
    "rebalancing": "wait some seconds; if it lasts, look for a worker that keeps restarting",
    "recovering": "wait; store=rocksdb makes it shorter",
    "lagging": "add workers, or look for a broker that is slow",
    "sink": "is `runnerstream worker --role sink` (or all) running? see its log",
    "clickhouse": "start ClickHouse; nothing is lost meanwhile",
    "broker": "start Kafka; nothing is lost meanwhile",
}


def _sink(settings: Settings) -> Iterator[Finding]:
    base = f"http://{settings.web_host}:{settings.sink_port}"
    try:
        status = ask(base, "/readyz", timeout=5.0)
    except Failure:
        yield Finding("sink", "look", f"nothing answers at {base}",
                      "fine when it runs elsewhere: see the sink group above")  # fmt: skip
        return
    if status.get("ready"):
        yield Finding(
            "sink", "ok", f"{base} is ready, writes {status.get('partitions')} partitions"
        )
    else:
        yield Finding("sink", "bad", str(status.get("reason")), _REMEDIES["clickhouse"])
