"""``verify``: the retained log folded again, and compared with what is served."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from typing import Any, Final

import click
from kafka import TopicPartition
from kafka.errors import (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    KafkaError,
)

from pipeline.commands.connections import broker_failure, kafka_admin, kafka_options
from pipeline.commands.context import Context
from pipeline.commands.failure import FAILED, UNREACHABLE, Failure
from pipeline.commands.output import cell, print_json, print_table, say, to_json
from pipeline.folds import fleet_names, fleets, jobs, retention
from pipeline.settings import Settings
from pipeline.verify import Difference, Refold, Result, Rules, Served, Tally
from pipeline.verify_fleets import RefoldFleets
from sinks.consumer import make_consumer, position_of
from topics.catalogue import FLEETS, JOB_STATES, JOBS, WINDOWS
from topics.tables import FLEETS_TABLE

#: How long the broker may be silent before we say that it does not answer. Seconds.
_SILENCE_S: Final = 15.0
#: How long a transaction may stay open in a topic before its records are left out. One whose end
#: is under way takes milliseconds, and only such a one belongs to an offset that is committed.
_OPEN_S: Final = 5.0
#: Records between two signs of progress.
_SIGN: Final = 5_000
_SHOWN: Final = 120

Progress = Callable[[str], None]


@click.command()
@click.option("--partition", "wanted", multiple=True, type=click.IntRange(0),
              help="Only this partition; may be repeated.")  # fmt: skip
@click.option("--limit", type=click.IntRange(0), default=20, show_default=True,
              help="Most differences shown; all are counted.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@click.pass_obj
def verify(context: Context, wanted: tuple[int, ...], limit: int, as_json: bool) -> None:
    """Fold the retained log again and compare job states, windows and fleets with what is served.

    Reads only: writes nothing, commits nothing, joins no group. Give it the settings of the
    workers. Partitions are folded one after the other, each in memory.
    Exit code 1 when anything differs, or when there was nothing to compare.
    """
    tallies: dict[str, Tally] = {}
    found: list[Difference] = []
    partitions: list[dict[str, Any]] = []
    unreadable = 0
    with _progress() as progress, closing(_verified(context.settings, wanted, limit, progress)) as \
            all_of_them:  # fmt: skip
        for partition, log, results in all_of_them:
            partitions.append({"partition": partition, **log})
            for result in results:
                for what, tally in result.tallies.items():
                    tallies.setdefault(what, Tally()).add(tally)
                found += result.differences[: limit - len(found)]
                unreadable += result.unreadable
    different = sum(tally.different for tally in tallies.values())
    equal = not different and any(tally.folded for tally in tallies.values())
    if as_json:
        print_json(
            {
                "equal": equal,
                "compared": {
                    what: {name: getattr(tally, name) for name in Tally.__slots__}
                    for what, tally in tallies.items()
                },
                "differences": [
                    {name: getattr(each, name) for name in Difference.__slots__} for each in found
                ],
                "unreadable": unreadable,
                "partitions": partitions,
            }
        )
    else:
        _tell(tallies, found, partitions, unreadable, equal)
    if not equal:
        raise SystemExit(FAILED)


def _tell(
    tallies: dict[str, Tally],
    found: list[Difference],
    partitions: list[dict[str, Any]],
    unreadable: int,
    equal: bool,
) -> None:
    print_table(
        ("what", "in the log", "served", "different", "in part", "moved on"),
        (
            (what, *(f"{n:,}" for n in (t.folded, t.served, t.different, t.in_part, t.moved)))
            for what, t in tallies.items()
        ),
        right=(1, 2, 3, 4, 5),
    )
    say()
    for each in found:
        say(_sentence(each))
    different = sum(tally.different for tally in tallies.values())
    if different:
        say(f"{different:,} {'key differs' if different == 1 else 'keys differ'} in all\n")
    of_fleets = [{"partition": each["partition"], **each["fleets"]} for each in partitions]
    logs = {JOBS: partitions, FLEETS: of_fleets}
    counts = [f"{sum(e['records'] for e in each):,} records of {log}" for log, each in logs.items()]
    say(f"{' and '.join(counts)} folded, of {len(partitions)} partitions")
    if unreadable:
        say(f"{unreadable:,} of them cannot be read; the worker has passed over them as well")
    for log, each_log in logs.items():
        of = "" if log == JOBS else f" of {log}"
        cut = [str(each["partition"]) for each in each_log if each["from"]]
        if cut:
            say(f"the log no longer has its beginning in partitions {', '.join(cut)}{of}: what "
                "lies before it cannot be checked (in part)")  # fmt: skip
        never = [str(each["partition"]) for each in each_log if each["committed"] is None]
        if never:
            say(f"no worker has committed anything of partitions {', '.join(never)}{of}: "
                "not compared")  # fmt: skip
    say("no difference" if equal else "different" if different else "nothing was compared")


def _sentence(each: Difference) -> str:
    place = f"{each.what}, partition {each.partition}, {cell(each.key)}"
    if each.field:
        place += f", {cell(each.field)}"
    return f"{place}: the log says {_shown(each.folded)}, served is {_shown(each.served)}"


def _shown(value: Any) -> str:
    text = "nothing" if value is None else to_json(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


@contextmanager
def _progress() -> Iterator[Progress]:
    """A line on standard error that is written over, when that is a terminal."""
    stream = click.get_text_stream("stderr")
    if not stream.isatty():
        yield lambda text: None
        return
    try:
        yield lambda text: click.echo(f"\r\x1b[K{text}", nl=False, err=True)
    finally:
        click.echo("\r\x1b[K", nl=False, err=True)


# -- reading ---------------------------------------------------------------------------------------


def rules(settings: Settings) -> Rules:
    """Under which a worker with these settings folds."""
    return Rules(
        jobs(settings), fleet_names(settings), retention(settings), settings.max_fleet_labels
    )


class _Readers:
    """What reads: ``committed`` the records, ``ends`` where a partition ends, transactions that
    are open included. Neither has a group."""

    def __init__(self, settings: Settings, admin: Any, stack: ExitStack) -> None:
        self._admin = admin
        self._group = settings.app_id
        options = {
            **kafka_options(settings),
            "group_id": None,
            "enable_auto_commit": False,
            "auto_offset_reset": "earliest",
            "allow_auto_create_topics": False,
        }
        self.committed, self._ends = (
            stack.enter_context(closing(make_consumer({**options, "isolation_level": level})))
            for level in ("read_committed", "read_uncommitted")
        )

    def partitions(self, topic: str) -> list[int]:
        """Of a topic. Raises :class:`Failure` when there is none."""
        known = self.committed.partitions_for_topic(topic)
        if not known:
            raise Failure(f"topic {topic} does not exist", "create it with `runnerstream topics "
                          "apply`")  # fmt: skip
        return sorted(known)

    def folded(self, where: TopicPartition) -> int | None:
        """Up to here the worker's group has committed; None when it never did."""
        pause = 0.2
        while True:
            try:
                found = self._admin.list_group_offsets({self._group: [where]})
            except (CoordinatorNotAvailableError, CoordinatorLoadInProgressError):
                # A broker that never had a group makes the topic of groups first.
                if pause > 4:
                    raise
                time.sleep(pause)
                pause *= 2
                continue
            offset = found.get(self._group, {}).get(where)
            return None if offset is None or offset.offset < 0 else int(offset.offset)

    def begin(self, where: TopicPartition) -> int:
        """The first offset there is."""
        return int(self.committed.beginning_offsets([where])[where])

    def end(self, where: TopicPartition) -> int:
        """Behind the last record that is committed."""
        return int(self.committed.end_offsets([where])[where])

    def high(self, where: TopicPartition) -> int:
        """Behind the last record that was written, committed or not."""
        return int(self._ends.end_offsets([where])[where])

    def read(self, where: TopicPartition, until: int) -> Iterator[Any]:
        """The committed records from the first to ``until``, which may be the end of an open
        transaction: it is waited for, up to :data:`_OPEN_S`. May bring more."""
        consumer = self.committed
        consumer.assign([where])
        consumer.seek_to_beginning(where)
        at, heard = -1, time.monotonic()
        while at < until:
            for records in consumer.poll(timeout_ms=200).values():
                yield from records
            reached = position_of(consumer, where)
            if reached is not None and reached > at:
                at, heard = reached, time.monotonic()
                continue
            silent = time.monotonic() - heard
            if silent > _OPEN_S and at >= self.end(where):
                return
            if silent > _SILENCE_S:
                raise Failure(
                    f"the broker sends nothing of {where.topic} for {_SILENCE_S:g} s",
                    "look at the broker's log",
                    UNREACHABLE,
                )
        # The embedded broker tells less than the end of a compacted topic: what comes behind the
        # end that is told is read until nothing comes.
        while True:
            more = consumer.poll(timeout_ms=100)
            for records in more.values():
                yield from records
            if not more or (position_of(consumer, where) or 0) <= self.high(where):
                return


def _verified(
    settings: Settings, wanted: tuple[int, ...], limit: int, progress: Progress
) -> Generator[tuple[int, dict[str, Any], list[Result]]]:
    """Each partition, what of its logs was folded, and what came of it."""
    table = FLEETS_TABLE.changelog(settings.app_id)
    with kafka_admin(settings) as admin, ExitStack() as stack:
        try:
            readers = _Readers(settings, admin, stack)
            partitions = readers.partitions(JOBS)
            for topic in (JOB_STATES, WINDOWS, FLEETS, table):
                readers.partitions(topic)
            unknown = sorted(set(wanted) - set(partitions))
            if unknown:
                raise click.UsageError(f"{JOBS} has no partition {unknown[0]}")
            for partition in wanted or partitions:
                told, result = _jobs(readers, settings, partition, limit, progress)
                told["fleets"], other = _fleets(readers, settings, partition, limit, progress)
                yield partition, told, [each for each in (result, other) if each is not None]
        except KafkaError as error:
            raise broker_failure(settings, error) from None


Folded = tuple[dict[str, Any], Result | None]


def _jobs(
    readers: _Readers, settings: Settings, partition: int, limit: int, progress: Progress
) -> Folded:
    log = TopicPartition(JOBS, partition)
    begin, committed = readers.begin(log), readers.folded(log)
    if committed is None:
        return _never(readers, log, begin), None
    served = _served(readers, partition, progress)
    fold = Refold(rules(settings), partition, whole=begin == 0, now=int(time.time() * 1000))
    _fold(readers, log, fold, lambda: fold.judge(served), committed, progress)
    result = fold.result(limit)
    return {"from": begin, "committed": committed, "records": result.records}, result


def _fleets(
    readers: _Readers, settings: Settings, partition: int, limit: int, progress: Progress
) -> Folded:
    log = TopicPartition(FLEETS, partition)
    begin, committed = readers.begin(log), readers.folded(log)
    if committed is None:
        return _never(readers, log, begin), None
    table = TopicPartition(FLEETS_TABLE.changelog(settings.app_id), partition)
    rows, _ = _latest(readers, table, readers.high(table), progress)
    now = int(time.time() * 1000)
    fold = RefoldFleets(fleets(settings), partition, whole=begin == 0, now=now)
    _fold(readers, log, fold, lambda: fold.judge(rows), committed, progress)
    result = fold.result(limit)
    return {"from": begin, "committed": committed, "records": result.records}, result


def _never(readers: _Readers, log: TopicPartition, begin: int) -> dict[str, Any]:
    """What is told of a partition of which nothing was ever committed."""
    # An empty partition has been folded by whoever looked at it.
    empty = readers.end(log) == begin == 0
    return {"from": begin, "committed": 0 if empty else None, "records": 0}


def _fold(
    readers: _Readers,
    log: TopicPartition,
    fold: Refold | RefoldFleets,
    judge: Callable[[], None],
    committed: int,
    progress: Progress,
) -> None:
    """Fold a partition, and judge it where the worker has committed."""
    # All that is served by now came of records before this.
    end = readers.end(log)
    judged = False
    for record in readers.read(log, end):
        if record.offset < committed:
            fold.take(record.offset, record.value, record.timestamp)
        else:
            if not judged:
                judge()
                judged = True
            if not fold.pending:
                break
            fold.go_on(record.offset, record.value, record.timestamp)
        if fold.records % _SIGN == 0:
            progress(f"partition {log.partition}: {log.topic} {record.offset:,} of {end:,}")
    if not judged:
        judge()


def _served(readers: _Readers, partition: int, progress: Progress) -> Served:
    """What is served now, transactions whose end is under way included."""
    states, windows = (TopicPartition(topic, partition) for topic in (JOB_STATES, WINDOWS))
    # Before either is read, so that both tell of all that is committed.
    ends = {where: readers.high(where) for where in (states, windows)}
    trimmed = readers.begin(windows) > 0
    of_states, _ = _latest(readers, states, ends[states], progress)
    of_windows, first = _latest(readers, windows, ends[windows], progress)
    return Served(of_states, of_windows, first if trimmed else 0)


def _latest(
    readers: _Readers, where: TopicPartition, end: int, progress: Progress
) -> tuple[dict[bytes, bytes], int]:
    """The latest value of each key, and when the first record was written (ms)."""
    latest: dict[bytes, bytes] = {}
    first = 0
    for number, record in enumerate(readers.read(where, end)):
        first = first or record.timestamp
        if record.key is None:
            continue
        if record.value is None:
            latest.pop(record.key, None)
        else:
            latest[record.key] = record.value
        if number % _SIGN == 0:
            progress(f"partition {where.partition}: {where.topic}, {number:,} records")
    return latest, first
