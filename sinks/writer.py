"""Bring a batch into ClickHouse and do not give up.

What makes it effectively once, in three independent layers:

1. **The same batch, tried again.** A batch stays in memory until every table acknowledged it. Each
   insert carries a token made of what the batch is (topics, partitions, offset ranges, contents),
   so that an insert which had succeeded before its answer was lost is not repeated.
2. **The same rows, batched differently.** After a crash the records are read again and cut into
   other batches. Then the tokens differ, and the sorting keys of the tables (row identities) make
   the second copy replace the first.
3. **Nothing is committed before it is acknowledged** (``sink.py``).

The contents are part of the token because offsets alone lie: a topic that was created anew counts
from 0 again, and with a token of offsets only ClickHouse would silently drop the new records for
having seen ``jobs 0..99`` before.

What fails is told apart by its code. Unless an error is known to be about the data, it is not, and
the batch waits: dead-lettering good rows because of a missing right would lose them from history.
Data errors are cornered by halving the batch. And when most rows are refused, the schema is wrong
and not the rows, so that waits too. A part for which the server has no room is halved as well, down
to single rows, and the size that went through is remembered for the next batch.
"""

from __future__ import annotations

import hashlib
import logging
import random
import struct
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from clickhouse_driver import Client
from clickhouse_driver.errors import Error, ServerException, TypeMismatchError

from sinks import schema
from sinks.columns import Row
from sinks.metrics import RetryReason, SinkMetrics
from sinks.rows import PLACED, TableRows
from sinks.schema import database_of, with_database
from topics.dead_letters import SourceRecord
from topics.models import Reason, Unreadable

log = logging.getLogger(__name__)

#: What every insert asks for, whatever the server's defaults are (they changed in 26.x):
#: synchronous, deduplicated by token, also behind materialised views and Distributed tables.
#: A block may span any number of partitions: with the default of 100 a few records with odd dates
#: fail as "too many parts", which looks like overload and would be retried for ever.
INSERT_SETTINGS: Final[Mapping[str, Any]] = {
    "async_insert": 0,
    "insert_deduplicate": 1,
    "deduplicate_insert": "enable",
    "deduplicate_blocks_in_dependent_materialized_views": 1,
    "distributed_foreground_insert": 1,
    "max_partitions_per_insert_block": 0,
}

#: Server codes that are about the data in the insert: cannot parse or convert, out of range, too
#: large, NULL where none may be.
DATA_CODES: Final = frozenset(
    {6, 26, 27, 38, 41, 53, 69, 70, 72, 117, 131, 167, 190, 321, 349, 376, 407, 441}
)
#: What clickhouse-driver raises when it cannot encode a value. Nothing has been inserted then.
_ENCODE_ERRORS: Final = (
    TypeMismatchError, struct.error, UnicodeError, OverflowError, TypeError, ValueError,
    AttributeError, IndexError, KeyError,
)  # fmt: skip
#: The server is alive and asks to wait: timeout exceeded (159, 160), too many simultaneous queries
#: (202), memory limit (241), too many parts (252), keeper (225, 242, 999), quorum (285, 286),
#: too many rows or bytes (396), query cancelled (394).
_OVERLOAD_CODES: Final = frozenset(
    {158, 159, 160, 202, 225, 241, 242, 252, 285, 286, 307, 394, 396, 999}
)
#: The insert itself is too large for the server: memory limit (241), too many rows (158), too many
#: bytes (307), too many rows or bytes (396). Tried again in two halves.
_ROOM_CODES: Final = frozenset({158, 241, 307, 396})
_TIMEOUT_CODES: Final = frozenset({209})
#: Protocol out of step or connection lost.
_NETWORK_CODES: Final = frozenset({3, 32, 33, 40, 100, 101, 102, 210, 279, 425})

#: So many times in sequence the connection may be lost in the middle of the same insert, with the
#: server well enough to be connected to, before the insert is taken for too large.
_CUT_OFF: Final = 3

#: More rows than a batch makes of one table: from here on a whole batch is tried at once again.
_ROOM_ENOUGH: Final = 1 << 17

#: Rows of one table that may be refused in sequence, with none accepted between, before the
#: schema is suspected instead of the data.
SYSTEMIC_ROWS: Final = 20


class Abandoned(RuntimeError):
    """The writer was told to stop before the batch was acknowledged. Its records are read again."""


class _NoRoom(Exception):
    """The server has no memory for this part of a batch; for half of it, maybe."""


class Refused(NamedTuple):
    """A record whose row ClickHouse will never take."""

    record: SourceRecord
    why: Unreadable


class Trouble(NamedTuple):
    """What keeps the current insert from succeeding. ``since`` is on the monotonic clock."""

    since: float
    reason: RetryReason
    error: str


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential, seconds, with jitter: between half of the delay and all of it."""

    first_s: float = 0.1
    factor: float = 2.0
    longest_s: float = 5.0

    def delay(self, attempt: int) -> float:
        """Pause after the given failed attempt (1, 2, ...)."""
        # The exponent is capped because 2.0 ** 1100 does not fit a float.
        delay = min(self.longest_s, self.first_s * self.factor ** min(attempt - 1, 32))
        return delay * random.uniform(0.5, 1.0)


@dataclass(slots=True)
class BatchIdentity:
    """What a batch consists of, as a digest: the same records give the same, in any arrival order
    of the partitions."""

    salt: str = ""
    _parts: dict[tuple[str, int], Any] = field(default_factory=dict)

    def add(self, records: Sequence[SourceRecord]) -> None:
        """Count in records of one partition, in offset order."""
        if not records:
            return
        place = (records[0].topic, records[0].partition)
        digest = self._parts.get(place)
        if digest is None:
            digest = self._parts[place] = hashlib.blake2b(digest_size=16)
        for record in records:
            digest.update(b"%d:%d;" % (record.offset, record.timestamp))
            digest.update(record.value or b"\x00")

    def token(self) -> str:
        whole = hashlib.blake2b(self.salt.encode(), digest_size=16)
        for (topic, partition), digest in sorted(self._parts.items(), key=lambda part: part[0]):
            whole.update(f"{topic}:{partition}:".encode() + digest.digest())
        return whole.hexdigest()


class Writer:
    """Writes batches over one connection, one at a time. Not for several threads at once, except
    :meth:`abandon` and ``trouble``."""

    def __init__(self, url: str, metrics: SinkMetrics, backoff: Backoff | None = None) -> None:
        """``url`` as in :func:`sinks.schema.apply`. Connects on first use."""
        self._url = with_timeouts(with_database(url, database_of(url)))
        self._metrics = metrics
        self._backoff = backoff if backoff is not None else Backoff()
        self._client: Client | None = None
        self._settings: dict[str, Any] = {}
        self._abandon = threading.Event()
        self._refused_in_sequence: dict[str, int] = {}
        #: Rows of a table that the server had room for at once, where that was not all.
        self._room: dict[str, int] = {}
        self._epochs: dict[tuple[str, str], int] = {}
        #: Set while the current insert fails; None otherwise. Replaced whole, so safe to read.
        self.trouble: Trouble | None = None

    def write(self, tables: Sequence[TableRows], token: str) -> list[Refused]:
        """Insert the rows of one batch, table by table. Returns when all of it is acknowledged.

        Returns the records of rows that will never be accepted; their other rows and all other
        records are stored. Raises Abandoned after :meth:`abandon`, and nothing else.
        """
        refused: dict[int, Refused] = {}
        for table_rows in tables:
            for found in self._write_table(table_rows, f"{table_rows.table.name}:{token}"):
                # Several rows of one record give one letter.
                refused.setdefault(id(found.record), found)
        return list(refused.values())

    def epoch(self, topic: str, log_id: str) -> int:
        """Which life of a topic a log is: 1, 2, ... in the order in which sinks have met them.

        ``log_id`` is what the broker calls it; empty when it does not tell, which counts as one
        life. Kept in ClickHouse, so that all sinks agree. Waits for ClickHouse as :meth:`write`
        does, and raises Abandoned as it does.
        """
        known = self._epochs.get((topic, log_id))
        attempt = 0
        while known is None:
            try:
                known = schema.epoch(self._connected(), topic, log_id, PLACED[topic])
            except Exception as error:
                self._disconnect()
                attempt += 1
                self._wait(classify(error) or "refused", describe(error), attempt)
        self._epochs[topic, log_id] = known
        return known

    def abandon(self) -> None:
        """Make :meth:`write` stop at its next failed attempt. For shutdown."""
        self._abandon.set()

    def close(self) -> None:
        """Close the connection."""
        self._disconnect()

    def _write_table(self, table_rows: TableRows, token: str) -> list[Refused]:
        name = table_rows.table.name
        attempt = 0
        began = time.monotonic()
        while True:
            bad = self._corner(table_rows, token)
            good = len(table_rows.rows) - len(bad)
            in_sequence = len(bad) + (0 if good else self._refused_in_sequence.get(name, 0))
            limit = max(SYSTEMIC_ROWS, good)
            if in_sequence <= limit:
                self.trouble = None
                self._metrics.clickhouse_up.set(1)
                self._refused_in_sequence[name] = 0 if good else in_sequence
                self._metrics.rows.labels(name).inc(good)
                return [
                    Refused(table_rows.origins[row], Unreadable(Reason.BAD_PAYLOAD, why))
                    for row, why in bad
                ]
            attempt += 1
            error = f"{name} refuses {len(bad)} of {len(table_rows.rows)} rows: {bad[0][1]}"
            self._wait("systemic", error, attempt, since=began)

    def _corner(self, table_rows: TableRows, token: str) -> list[tuple[int, str]]:
        """Insert all rows that can be inserted; the others are found by halving.

        Every part has a token of its own, so the order and number of attempts do not matter.
        """
        name, whole = table_rows.table.name, len(table_rows.rows)
        bad: list[tuple[int, str]] = []
        room = self._room.get(name, whole)
        # The first part comes last, since parts are taken from the end.
        open_parts = [(low, min(low + room, whole)) for low in range(0, whole, room)][::-1]
        while open_parts:
            low, high = open_parts.pop()
            part = token if high - low == whole else f"{token}:{low}-{high}"
            try:
                why = self._insert(table_rows, low, high, part)
            except _NoRoom:
                self._metrics.splits.labels(name).inc()
                self._room[name] = max(1, (high - low) // 2)
            else:
                if why is None:
                    continue
                if high - low == 1:
                    bad.append((low, why))
                    continue
            middle = (low + high) // 2
            open_parts += [(middle, high), (low, middle)]
        if name in self._room:
            # The next batch may try a little more: too much costs an attempt that fails.
            self._room[name] += self._room[name] // 8 + 1
            if self._room[name] > _ROOM_ENOUGH:
                del self._room[name]
        return bad

    def _insert(self, table_rows: TableRows, low: int, high: int, token: str) -> str | None:
        """Insert a part, trying until ClickHouse answers. None is success, else what is wrong
        with the data. Raises _NoRoom when it is too large for the server and can be cut."""
        name, columns = table_rows.table.name, table_rows.table.columns
        rows: Sequence[Row] = table_rows.rows
        data = list(zip(*(rows if high - low == len(rows) else rows[low:high]), strict=True))
        statement = f"INSERT INTO {name} ({', '.join(f'`{column}`' for column in columns)}) VALUES"
        attempt = cut_off = 0
        while True:
            started = time.monotonic()
            connected = False
            try:
                client = self._connected()
                connected = True
                settings = {**self._settings, "insert_deduplication_token": token}
                client.execute(statement, data, columnar=True, settings=settings)
            except Exception as error:
                self._disconnect()
                reason = classify(error)
                if reason is None:
                    return describe(error)
                attempt += 1
                self._wait(reason, describe(error), attempt)
                # A server that runs out of memory while rows still come closes the connection, and
                # its reason is lost with it. One that says what it lacks is well: another server
                # of its cluster is away.
                lost = reason == "network" and not isinstance(error, ServerException)
                cut_off = cut_off + 1 if connected and lost else 0
                too_large = getattr(error, "code", None) in _ROOM_CODES or cut_off >= _CUT_OFF
                if high - low > 1 and too_large:
                    raise _NoRoom from error
            else:
                self.trouble = None
                self._metrics.clickhouse_up.set(1)
                self._metrics.inserts.labels(name).inc()
                self._metrics.insert_seconds.observe(time.monotonic() - started)
                return None

    def _wait(
        self, reason: RetryReason, error: str, attempt: int, since: float | None = None
    ) -> None:
        before = self.trouble
        if since is None:
            since = before.since if before else time.monotonic()
        self.trouble = Trouble(since, reason, error)
        self._metrics.clickhouse_up.set(0)
        self._metrics.retries.labels(reason).inc()
        if before is None or before.reason != reason:
            log.warning("ClickHouse does not take the batch (%s), trying on: %s", reason, error)
        if self._abandon.wait(self._backoff.delay(attempt)):
            raise Abandoned(error)

    def _connected(self) -> Client:
        if self._client is None:
            client = Client.from_url(self._url)
            # Servers know different settings; an unknown one is a warning in their log per insert.
            names: list[tuple[str]] = client.execute(
                "SELECT name FROM system.settings WHERE name IN %(names)s",
                {"names": tuple(INSERT_SETTINGS)},
            )
            self._settings = {name: INSERT_SETTINGS[name] for (name,) in names}
            self._client = client
        return self._client

    def _disconnect(self) -> None:
        if self._client is not None:
            try:
                self._client.disconnect()
            except Exception:
                log.debug("disconnecting failed", exc_info=True)
            self._client = None


def classify(error: BaseException) -> RetryReason | None:
    """Why to try again, or None when the data themselves are refused."""
    if isinstance(error, ServerException):
        code = error.code
        if code in DATA_CODES:
            return None
    elif isinstance(error, TimeoutError):
        return "timeout"
    elif isinstance(error, (OSError, EOFError)):
        return "network"
    elif isinstance(error, _ENCODE_ERRORS):
        return None
    elif isinstance(error, Error):
        code = error.code
    else:
        return "refused"
    if code in _TIMEOUT_CODES:
        return "timeout"
    if code in _NETWORK_CODES:
        return "network"
    if code in _OVERLOAD_CODES:
        return "overload"
    return "refused"


def describe(error: BaseException) -> str:
    """One line for logs, health and dead letters; a server's stack trace is left out."""
    text = str(error).split("Stack trace:")[0]
    return f"{type(error).__name__}: {' '.join(text.split())}"[:500]


def with_timeouts(url: str) -> str:
    """Add the timeouts that the URL does not set: 5 s to connect, 60 s for an answer.

    The driver's own 300 s would hold a batch five minutes on a connection that died silently.
    """
    for option, seconds in (("connect_timeout", 5), ("send_receive_timeout", 60)):
        if option + "=" not in url:
            url += ("&" if "?" in url else "?") + f"{option}={seconds}"
    return url
