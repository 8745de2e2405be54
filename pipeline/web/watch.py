"""Evidence about broker, ClickHouse and lag, gathered directly by a thread.

It asks the broker and ClickHouse every few seconds: the committed offsets of the worker's and the
sink's group against the ends of the logs, the members of the sink's group, and a ping over native
TCP. What follows from it is in ``health.py``.

**Lag is what is left to read,** not a difference of offsets. Behind the last record there may be
markers of transactions, aborted records, or nothing at all where compaction or retention was: a
consumer at rest need not ever commit beyond them. So where a group has stood still for a while,
we read from its position ourselves; when nothing comes up to the end, nothing is left.

**Positions.** What the worker has done is told by its commits. A worker may tell more, with a
method ``positions()`` that returns for each owned source partition the offset from which it goes
on once everything before is done: ``{("runners.jobs", 3): 1_234}``. It is called from the watch's
thread, so it may neither wait nor ask the broker.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from clickhouse_driver import Client
from kafka import KafkaConsumer, TopicPartition
from kafka.admin import KafkaAdminClient, OffsetSpec

from pipeline.web.ports import Readiness
from sinks.rows import TOPICS as SINK_TOPICS
from topics.catalogue import LIFECYCLE, LOGS, OUTCOMES, POSTED, WEBHOOKS, catalogue

log = logging.getLogger(__name__)

SOURCES: Final = POSTED + LOGS
#: What becomes facts about jobs.
_OF_JOBS: Final = (WEBHOOKS, LIFECYCLE, OUTCOMES)

#: Between two rounds of checks, and how long one question may take. Seconds.
EVERY_S: Final = 3.0
TIMEOUT_S: Final = 5.0
#: Between two looks at how many partitions there are. Seconds.
PARTITIONS_S: Final = 15.0

Offsets = dict[TopicPartition, int]


class Trouble(NamedTuple):
    """Something that fails. ``since`` on the monotonic clock."""

    since: float
    error: str

    @property
    def seconds(self) -> float:
        """How long it has failed."""
        return time.monotonic() - self.since


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a group is behind."""

    #: Records per topic and partition.
    records: Offsets = field(default_factory=dict)
    #: Seconds since the log end passed what is committed; 0 without lag. A lower bound: it
    #: starts when we began to look.
    seconds: float = 0.0
    #: Seconds since a commit moved while records waited.
    still: float = 0.0

    @property
    def total(self) -> int:
        """Records over all partitions."""
        return sum(self.records.values())

    def by_topic(self) -> dict[str, int]:
        """Records by topic."""
        found: dict[str, int] = {}
        for where, n in self.records.items():
            found[where.topic] = found.get(where.topic, 0) + n
        return found


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the last round of checks found. Replaced whole, so it may be read from any thread."""

    at: float
    broker: Trouble | None = None
    clickhouse: Trouble | None = None
    worker: Lag = Lag()
    sink: Lag | None = None
    #: Members of the sink's group, ``None`` when the broker does not tell.
    sink_members: int | None = None
    #: Topics of which we read some partitions only, with how many they have.
    more_partitions: Mapping[str, int] = field(default_factory=dict)


class LagMeter:
    """Turns snapshots of committed offsets and log ends into a :class:`Lag`."""

    HISTORY: Final = 2_000

    def __init__(self) -> None:
        self._ends: dict[TopicPartition, deque[tuple[float, int]]] = {}
        self._moved: dict[TopicPartition, tuple[float, int]] = {}

    def still(self, now: float, committed: Offsets, ends: Offsets) -> list[TopicPartition]:
        """The partitions that are behind and have not moved for a while."""
        return [
            where
            for where, end in ends.items()
            if end > committed.get(where, 0)
            and (before := self._moved.get(where)) is not None
            and before[1] == committed.get(where, 0)
            and now - before[0] >= EVERY_S
        ]

    def measure(self, now: float, committed: Offsets, ends: Offsets) -> Lag:
        """The lag now, ``now`` on the monotonic clock."""
        records: Offsets = {}
        oldest = still = 0.0
        for where, end in ends.items():
            done = committed.get(where, 0)
            behind = max(0, end - done)
            records[where] = behind
            # When each end was first seen: the first one beyond what is committed tells how
            # long the next record has waited.
            seen = self._ends.setdefault(where, deque(maxlen=self.HISTORY))
            if not seen or seen[-1][1] != end:
                seen.append((now, end))
            while seen and seen[0][1] <= done:
                seen.popleft()
            moved_at, before = self._moved.get(where, (now, done))
            if before != done or not behind:
                moved_at = now
            self._moved[where] = (moved_at, done)
            if behind and seen:
                waited = now - seen[0][0]
                oldest = max(oldest, waited)
                still = max(still, min(waited, now - moved_at))
        for gone in self._ends.keys() - ends.keys():
            del self._ends[gone]
            self._moved.pop(gone, None)
        return Lag(records, oldest, still)


class Remains:
    """Is there anything left to read between an offset and the end of a partition?

    Asks by reading, one record at most, and remembers the answer.

    Args:
        first_record: the offset of the first record of a partition at or behind an offset that
            may be read, ``None`` when there is none up to the end. Asks the broker.
    """

    def __init__(self, first_record: Callable[[TopicPartition, int, int], int | None]) -> None:
        self._first_record = first_record
        #: Where nothing is: from, to, and whether a record is known to be at its end.
        self._empty: dict[TopicPartition, tuple[int, int, bool]] = {}

    def next(self, where: TopicPartition, done: int, end: int, *, ask: bool) -> int:
        """The offset from which something may be left to read: ``done`` or behind it.

        ``ask`` the broker, unless the answer is known.
        """
        start, stop, occupied = self._empty.get(where, (done, done, False))
        if not start <= done <= stop:
            start, stop, occupied = done, done, False
        if stop < end and ask and not occupied:
            found = self._first_record(where, stop, end)
            stop, occupied = (end, False) if found is None else (found, True)
            self._empty[where] = (start, stop, occupied)
        return max(done, min(stop, end))


class Watch:
    """The checks in a thread of their own. ``evidence`` is the last round's."""

    def __init__(self, worker: Readiness) -> None:
        self._worker = worker
        self._settings = worker.settings
        self._url = worker.settings.clickhouse.get_secret_value()
        self._group = worker.settings.app_id
        self._sink_group = f"{worker.settings.app_id}-sink"
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._admin: Any = None
        self._client: Client | None = None
        self._mine = LagMeter()
        self._sinks = LagMeter()
        self._reader: KafkaConsumer | None = None
        self._remains = {
            group: Remains(self._first_record) for group in (self._group, self._sink_group)
        }
        self._holes = worker.holes
        #: Where each partition of ours stood when its log was first seen to begin behind it.
        self._behind_start: Offsets = {}
        #: Where the group stood in a source when it was last behind there.
        self._asked_of: Offsets = {}
        self._specs = {
            spec.name: spec.partitions
            for spec in catalogue(partitions=self._settings.partitions, app_id=self._group)
            if spec.name in SOURCES or spec.name.startswith(f"{self._group}-")
        }
        self._counted_at = -PARTITIONS_S
        self._more: Mapping[str, int] = {}
        self.evidence: Evidence | None = None

    def start(self) -> None:
        """Begin to look."""
        # kafka-python and clickhouse-driver log each failure with a traceback; the reasons say it.
        for name in ("kafka", "clickhouse_driver"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._thread.start()

    def stop(self) -> None:
        """Stop looking; does not wait for a question that hangs."""
        self._stop.set()

    def _run(self) -> None:
        while not self._stop.is_set():
            self.evidence = self._look(self.evidence or Evidence(0.0))
            self._stop.wait(EVERY_S)
        self._close_admin()

    def _look(self, before: Evidence) -> Evidence:
        broker, mine, sink, members = None, before.worker, before.sink, before.sink_members
        try:
            mine, sink, members = self._ask_broker()
        except Exception as error:  # whatever it is, it is the answer
            self._close_admin()
            broker = _trouble(before.broker, error)
        clickhouse = None
        if self._url:
            try:
                self._ping()
            except Exception as error:
                self._disconnect()
                clickhouse = _trouble(before.clickhouse, error)
        return Evidence(time.monotonic(), broker, clickhouse, mine, sink, members, self._more)

    def _ask_broker(self) -> tuple[Lag, Lag | None, int | None]:
        if self._admin is None:
            self._admin = KafkaAdminClient(
                **self._settings.kafka_options(),
                client_id=f"{self._group}-watch",
                bootstrap_timeout_ms=int(TIMEOUT_S * 1000),
                request_timeout_ms=int(TIMEOUT_S * 1000),
            )
        self._count_partitions()
        owned = set(self._worker.owned()) if self._worker.settled else set()
        mine = self._lag(
            self._mine,
            self._group,
            [TopicPartition(t, p) for t in SOURCES for p in owned],
            self._positions(),
            ours=True,
        )
        self._follow_sources()
        if not self._url:
            return mine, None, None
        everything = range(self._settings.partitions)
        sink = self._lag(
            self._sinks,
            self._sink_group,
            [TopicPartition(t, p) for t in SINK_TOPICS for p in everything],
        )
        return mine, sink, self._members()

    def _follow_sources(self) -> None:
        """Up to when the whole group, all its workers, has done what producers posted."""
        wanted = [
            TopicPartition(topic, partition)
            for topic in _OF_JOBS
            for partition in range(self._settings.partitions)
        ]
        at = int(time.time() * 1000)
        found = self._admin.list_group_offsets({self._group: wanted}).get(self._group, {})
        done = {where: max(0, offset.offset) for where, offset in found.items()}
        ends = self._edges(wanted, OffsetSpec.LATEST)
        remains = self._remains[self._group]
        behind = [where for where in wanted if done.get(where, 0) < ends[where]]
        for where in behind:
            # Where nothing was committed, or only marks follow, there may be nothing to do.
            still = self._asked_of.get(where) == done.get(where, 0)
            self._asked_of[where] = done.get(where, 0)
            done[where] = remains.next(where, done.get(where, 0), ends[where], ask=still)
        self._worker.sources.look(at, done, ends)

    def _positions(self) -> Mapping[tuple[str, int], int]:
        told = getattr(self._worker, "positions", None)
        return {} if told is None else dict(told())

    def _count_partitions(self) -> None:
        if time.monotonic() - self._counted_at < PARTITIONS_S:
            return
        self._more = more_partitions(self._specs, self._admin.describe_topics(list(self._specs)))
        self._counted_at = time.monotonic()

    def _lag(
        self,
        meter: LagMeter,
        group: str,
        wanted: list[TopicPartition],
        positions: Mapping[tuple[str, int], int] | None = None,
        *,
        ours: bool = False,
    ) -> Lag:
        if not wanted:
            return meter.measure(time.monotonic(), {}, {})
        # Commits first: a log that grows in between makes the lag larger, never negative.
        found = self._admin.list_group_offsets({group: wanted}).get(group, {})
        done = {where: at.offset for where, at in found.items() if at.offset >= 0}
        for (topic, partition), position in (positions or {}).items():
            where = TopicPartition(topic, partition)
            if where in done:
                done[where] = max(done[where], position)
        starts = self._edges(wanted, OffsetSpec.EARLIEST)
        if ours:
            self._look_for_holes(done, starts)
        # Nothing committed yet: the group starts at the beginning. What was removed is not left.
        done = {where: max(done.get(where, 0), starts[where]) for where in wanted}
        ends = self._edges(wanted, OffsetSpec.LATEST)
        now = time.monotonic()
        remains = self._remains[group]
        done = {where: remains.next(where, done[where], ends[where], ask=False) for where in wanted}
        for where in meter.still(now, done, ends):
            done[where] = remains.next(where, done[where], ends[where], ask=True)
        return meter.measure(now, done, ends)

    def _edges(self, wanted: Iterable[TopicPartition], which: Any) -> Offsets:
        # Committed: what belongs to a transaction that is still open cannot be read yet.
        found = self._admin.list_partition_offsets(
            dict.fromkeys(wanted, which), isolation_level="read_committed"
        )
        return {where: at.offset for where, at in found.items()}

    def _look_for_holes(self, done: Offsets, starts: Offsets) -> None:
        """Records of ours that are gone: told by whoever met the gap, or seen from here."""
        for where, at in done.items():
            start = starts.get(where, 0)
            if at >= start:
                self._behind_start.pop(where, None)
            elif self._behind_start.get(where) == at:
                # Seen twice, so it is not that a commit was under way.
                self._holes.gap(where.topic, where.partition, at, start)
            else:
                self._behind_start[where] = at
        suspected = {TopicPartition(*where) for where in self._holes.suspected()}
        known = dict(starts)
        if suspected - known.keys():
            known |= self._edges(suspected - known.keys(), OffsetSpec.EARLIEST)
        for hole in self._holes.settle({(w.topic, w.partition): at for w, at in known.items()}):
            log.error("lost: %s, offsets %d to %d, were removed before they were read; "
                      "retention is too short or the worker was away too long",
                      hole, hole.first, hole.end - 1)  # fmt: skip

    def _first_record(self, where: TopicPartition, start: int, end: int) -> int | None:
        if self._reader is None:
            self._reader = KafkaConsumer(
                **self._settings.kafka_options(),
                client_id=f"{self._group}-watch",
                group_id=None,
                enable_auto_commit=False,
                auto_offset_reset="earliest",
                isolation_level="read_committed",
                max_poll_records=1,
                max_partition_fetch_bytes=65_536,
                fetch_max_wait_ms=100,
                allow_auto_create_topics=False,
                request_timeout_ms=int(TIMEOUT_S * 1000),
                bootstrap_timeout_ms=int(TIMEOUT_S * 1000),
            )
        reader = self._reader
        reader.assign([where])
        reader.seek(where, start)
        until = time.monotonic() + TIMEOUT_S
        while time.monotonic() < until:
            for record in reader.poll(500).get(where, ()):
                return None if record.offset >= end else int(record.offset)
            if reader.position(where, timeout_ms=500) >= end:
                return None
        raise TimeoutError(f"nothing read of {where.topic}, partition {where.partition}")

    def _members(self) -> int | None:
        try:
            described = self._admin.describe_groups([self._sink_group])[self._sink_group]
            return len(described["members"])
        except Exception as error:
            log.debug("the broker does not tell about %s: %r", self._sink_group, error)
            return None

    def _ping(self) -> None:
        if self._client is None:
            client = Client.from_url(self._url)
            client.connection.connect_timeout = TIMEOUT_S
            client.connection.send_receive_timeout = TIMEOUT_S
            self._client = client
        self._client.execute("SELECT 1")

    def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            client.disconnect()

    def _close_admin(self) -> None:
        clients = (self._admin, self._reader)
        self._admin = self._reader = None
        for client in clients:
            if client is not None:
                try:
                    client.close()
                except Exception as error:
                    log.debug("closing a client of the watch: %r", error)


def more_partitions(
    expected: Mapping[str, int], described: Iterable[Mapping[str, Any]]
) -> dict[str, int]:
    """Topics with more partitions than are read, and how many they have.

    Args:
        expected: partitions of each topic as the settings have it.
        described: topics as Kafka's metadata tells.
    """
    found = {topic["name"]: len(topic["partitions"]) for topic in described}
    return {name: found[name] for name, wanted in expected.items() if found.get(name, 0) > wanted}


def _trouble(before: Trouble | None, error: BaseException) -> Trouble:
    text = " ".join(str(error).split("Stack trace:")[0].split())[:300]
    name = type(error).__name__
    said = text if text.startswith(name) else f"{name}: {text}" if text else name
    return Trouble(before.since if before else time.monotonic(), said)
