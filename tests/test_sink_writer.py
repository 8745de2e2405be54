"""The writer against a real ClickHouse that is slow, away, killed or full of refusals."""

from __future__ import annotations

import itertools
import os
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from clickhouse_driver import Client
from clickhouse_driver.errors import NetworkError, ServerException, SocketTimeoutError

from pipeline.local import EmbeddedClickHouse
from sinks import rows, schema, writer
from sinks.metrics import SinkMetrics
from sinks.rows import TableRows
from sinks.writer import Abandoned, Backoff, Writer
from tests.support import PATIENCE
from topics.models import Reason

NOW = int(time.time() * 1000)
FAST = Backoff(first_s=0.02, longest_s=0.2)


@dataclass(frozen=True)
class FakeRecord:
    offset: int
    topic: str = rows.SAMPLES
    partition: int = 0
    timestamp: int = NOW
    key: bytes | None = None
    value: bytes | None = b"{}"
    headers: list[tuple[str, bytes | None]] = field(default_factory=list)


_databases = (f"test_writer_{number}" for number in itertools.count())


@pytest.fixture
def url(server: EmbeddedClickHouse) -> str:
    if not server.alive():
        server.start()
    fresh = schema.with_database(server.url, next(_databases))
    schema.apply(fresh)
    return fresh


@pytest.fixture
def metrics() -> SinkMetrics:
    return SinkMetrics()


@pytest.fixture
def under_test(url: str, metrics: SinkMetrics) -> Iterator[Writer]:
    subject = Writer(url, metrics, FAST)
    yield subject
    subject.abandon()
    subject.close()


def gauges(start: int, number: int, **wrong: Any) -> TableRows:
    """``number`` rows of gauges, told apart by ``count``; ``wrong`` maps a count to a bad value."""
    made = TableRows(rows.GAUGES)
    for count in range(start, start + number):
        value = wrong.get(f"c{count}", count)
        made.rows.append(("fleet", "queued", NOW + count, 0, NOW, value, 0))
        made.origins.append(FakeRecord(count))
    return made


def query(url: str, sql: str) -> list[tuple[Any, ...]]:
    with schema.connected(url) as client:
        found: list[tuple[Any, ...]] = client.execute(sql)
        return found


def value_of(counter: Any, *labels: str) -> float:
    return float(counter.labels(*labels)._value.get())


def eventually(check: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + PATIENCE * seconds
    while not check():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.01)


class Tap:
    """A TCP proxy that can swallow the server's answers: the insert happens, the client never
    hears of it. This is the failure for which tokens exist."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        #: Once: when a connection has sent so many bytes, and the server has answered to them
        #: (profile events come after each block, before the client sends the end of the data),
        #: all further answers are swallowed, and then it is cut.
        self.mute_after: int | None = None
        self._data_seen = False
        self._answered = False
        self.cuts = 0
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(("127.0.0.1", self._to))
            muted = threading.Event()
            for pump in (self._up, self._down):
                threading.Thread(target=pump, args=(client, server, muted), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket, muted: threading.Event) -> None:
        seen = 0
        with suppress(OSError):
            while data := client.recv(65536):
                seen += len(data)
                if self.mute_after is not None and seen >= self.mute_after:
                    self._data_seen = True
                if self._answered and self.mute_after is not None:
                    self.mute_after = None
                    muted.set()
                    # Everything still goes up; half a second is ample for the server's work.
                    threading.Timer(0.5, self._cut, (client,)).start()
                server.sendall(data)

    def _down(self, client: socket.socket, server: socket.socket, muted: threading.Event) -> None:
        with suppress(OSError):
            while data := server.recv(65536):
                self._answered = self._data_seen
                if not muted.is_set():
                    client.sendall(data)

    def _cut(self, client: socket.socket) -> None:
        self.cuts += 1
        client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.close()


def test_a_batch_is_written_and_counted(url: str, under_test: Writer, metrics: SinkMetrics) -> None:
    assert under_test.write([gauges(0, 1000)], "t1") == []
    assert query(url, "SELECT count(), uniqExact(count) FROM gauges") == [(1000, 1000)]
    assert value_of(metrics.rows, "gauges") == 1000
    assert value_of(metrics.inserts, "gauges") == 1
    assert under_test.trouble is None


@pytest.mark.parametrize(("with_token", "stored"), [(True, 500), (False, 1000)])
def test_a_lost_answer_makes_duplicates_only_without_the_token(
    url: str,
    server: EmbeddedClickHouse,
    metrics: SinkMetrics,
    monkeypatch: pytest.MonkeyPatch,
    with_token: bool,
    stored: int,
) -> None:
    """The control is the proof that the test can fail: count() reads the bare table."""
    query(url, "SYSTEM STOP MERGES gauges")
    tap = Tap(server.port)
    subject = Writer(url.replace(f":{server.port}/", f":{tap.port}/"), metrics, FAST)
    subject.write([gauges(100_000, 1)], "connects")
    if not with_token:
        original = Client.execute

        def without_token(self: Client, *args: Any, settings: Any = None, **more: Any) -> Any:
            kept = {
                name: value
                for name, value in (settings or {}).items()
                if name != "insert_deduplication_token"
            }
            # Without a token ClickHouse compares contents; a sink could not rely on that, since
            # two equal batches may both be meant.
            kept["insert_deduplicate"] = 0
            kept["deduplicate_insert"] = "disable"
            return original(self, *args, settings=kept, **more)

        monkeypatch.setattr(Client, "execute", without_token)
    subject.close()
    # More than a handshake and less than the data: 36 bytes a row.
    tap.mute_after = 500 * 30
    subject.write([gauges(0, 500)], "batch")
    subject.close()
    tap.close()
    assert tap.cuts == 1
    assert value_of(metrics.retries, "network") >= 1
    assert query(url, "SELECT count() FROM gauges WHERE count < 100000") == [(stored,)]


def test_the_same_records_in_other_batches_replace_themselves(url: str, under_test: Writer) -> None:
    under_test.write([gauges(0, 100)], "a")
    under_test.write([gauges(0, 60)], "b")
    under_test.write([gauges(60, 60)], "c")
    assert query(url, "SELECT count() FROM gauges FINAL") == [(120,)]


def test_equal_rows_in_two_batches_are_both_meant(url: str, under_test: Writer) -> None:
    """With a window and without tokens the second would be dropped as a repetition."""
    query(url, "SYSTEM STOP MERGES gauges")
    under_test.write([gauges(0, 10)], "a")
    under_test.write([gauges(0, 10)], "b")
    assert query(url, "SELECT count() FROM gauges") == [(20,)]


def test_nothing_is_lost_while_clickhouse_is_away(
    url: str, server: EmbeddedClickHouse, under_test: Writer, metrics: SinkMetrics
) -> None:
    under_test.write([gauges(0, 100)], "a")
    server.kill()
    done: list[Any] = []
    flight = threading.Thread(target=lambda: done.append(under_test.write([gauges(100, 50)], "b")))
    flight.start()
    eventually(lambda: under_test.trouble is not None)
    time.sleep(0.3)
    trouble = under_test.trouble
    assert trouble is not None
    assert trouble.reason == "network"
    assert not done
    server.start()
    flight.join(20)
    assert done == [[]]
    assert under_test.trouble is None
    assert query(url, "SELECT count(), uniqExact(count) FROM gauges") == [(150, 150)]
    assert value_of(metrics.retries, "network") >= 2


@pytest.mark.crash
def test_exact_under_kill_9(url: str, server: EmbeddedClickHouse, metrics: SinkMetrics) -> None:
    """Killed every half second while it takes batches: every row is there, none twice.

    count() and not FINAL: the rows must be exact before any merge. CI_CHAOS_SECONDS=60 to insist.
    """
    query(url, "SYSTEM STOP MERGES gauges")
    subject = Writer(url, metrics, FAST)
    stop = threading.Event()
    chance = random.Random(7)
    kills = 0

    def killer() -> None:
        nonlocal kills
        while not stop.wait(chance.uniform(0.2, 0.6)):
            server.restart()
            kills += 1

    chaos = threading.Thread(target=killer)
    chaos.start()
    batches, until = 0, time.monotonic() + float(os.environ.get("CI_CHAOS_SECONDS", "6"))
    try:
        while time.monotonic() < until or kills < 5:
            subject.write([gauges(batches * 2000, 2000)], f"batch-{batches}")
            batches += 1
    finally:
        stop.set()
        chaos.join()
        subject.close()
    if not server.alive():
        server.start()
    assert query(url, "SELECT count(), uniqExact(count) FROM gauges") == [(batches * 2000,) * 2]
    retries = sum(value_of(metrics.retries, reason) for reason in ("network", "timeout"))
    assert kills >= 5
    assert retries >= 1
    print(f"{batches} batches, {kills} kills, {retries:.0f} retries")


@pytest.mark.parametrize("bad_value", ["text", -1, 2**64, None])
def test_a_poison_row_is_cornered_and_the_rest_is_written(
    url: str, under_test: Writer, bad_value: Any
) -> None:
    batch = gauges(0, 1000, c137=bad_value, c700=bad_value)
    refused = under_test.write(
        [
            batch,
        ],
        "t",
    )
    assert sorted(each.record.offset for each in refused) == [137, 700]
    assert {each.why.reason for each in refused} == {Reason.BAD_PAYLOAD}
    found = query(url, "SELECT count(), countIf(count IN (137, 700)) FROM gauges FINAL")
    assert found == [(998, 0)]
    # The next batch is as usual.
    assert under_test.write([gauges(1000, 10)], "u") == []


def test_one_record_with_many_bad_rows_gives_one_letter(url: str, under_test: Writer) -> None:
    batch = gauges(0, 10, c3="x", c4="y")
    batch.origins[4] = batch.origins[3]
    assert len(under_test.write([batch], "t")) == 1


def test_when_everything_is_refused_it_waits_instead_of_emptying_the_stream(
    url: str, under_test: Writer, metrics: SinkMetrics
) -> None:
    """A column that changed its type refuses good rows. They must not become dead letters.

    One that no projection has, for those keep their columns.
    """
    query(url, "ALTER TABLE gauges DROP COLUMN received_at")
    query(url, "ALTER TABLE gauges ADD COLUMN received_at Array(String)")
    outcome: list[Any] = []
    flight = threading.Thread(target=lambda: outcome.append(under_test.write([gauges(0, 64)], "t")))
    flight.start()
    eventually(lambda: value_of(metrics.retries, "systemic") >= 1)
    assert under_test.trouble is not None
    assert not outcome
    query(url, "ALTER TABLE gauges DROP COLUMN received_at")
    query(url, "ALTER TABLE gauges ADD COLUMN received_at DateTime64(3)")
    flight.join(15)
    assert outcome == [[]]
    assert query(url, "SELECT count() FROM gauges FINAL") == [(64,)]


def test_small_batches_of_refusals_add_up(under_test: Writer, metrics: SinkMetrics) -> None:
    """One bad row is bad data; twenty batches with nothing else in them are a bad schema."""
    for number in range(writer.SYSTEMIC_ROWS):
        assert len(under_test.write([gauges(number, 1, **{f"c{number}": "x"})], f"t{number}")) == 1
    flight = threading.Thread(target=lambda: _ignore(under_test, gauges(99, 1, c99="x")))
    flight.start()
    eventually(lambda: value_of(metrics.retries, "systemic") >= 2)
    under_test.abandon()
    flight.join(5)
    assert not flight.is_alive()


def _ignore(subject: Writer, batch: TableRows) -> None:
    with pytest.raises(Abandoned):
        subject.write([batch], "last")


def test_a_missing_table_is_waited_for(url: str, under_test: Writer, metrics: SinkMetrics) -> None:
    query(url, "RENAME TABLE gauges TO hidden")
    done: list[Any] = []
    flight = threading.Thread(target=lambda: done.append(under_test.write([gauges(0, 5)], "t")))
    flight.start()
    eventually(lambda: value_of(metrics.retries, "refused") >= 1)
    query(url, "RENAME TABLE hidden TO gauges")
    flight.join(10)
    assert done == [[]]
    assert query(url, "SELECT count() FROM gauges") == [(5,)]


def test_records_from_many_months_fit_into_one_insert(url: str, under_test: Writer) -> None:
    """The server's default of 100 partitions per insert fails with the code of too many parts,
    which would be retried for ever."""
    query(url, "ALTER TABLE gauges MODIFY TTL toDateTime(occurred_at) + INTERVAL 50 YEAR")
    batch = TableRows(rows.GAUGES)
    for month in range(130):
        batch.rows.append(("f", "queued", NOW - month * 31 * 86_400_000, 0, NOW, month, 0))
        batch.origins.append(FakeRecord(month))
    assert under_test.write([batch], "t") == []
    assert query(url, "SELECT count() FROM gauges") == [(130,)]


def test_giving_up_is_prompt(server: EmbeddedClickHouse, metrics: SinkMetrics) -> None:
    subject = Writer("clickhouse://127.0.0.1:1/nowhere", metrics, Backoff(longest_s=60.0))
    outcome: list[BaseException] = []

    def run() -> None:
        try:
            subject.write([gauges(0, 1)], "t")
        except Abandoned as error:
            outcome.append(error)

    flight = threading.Thread(target=run)
    flight.start()
    eventually(lambda: subject.trouble is not None)
    subject.abandon()
    flight.join(3)
    assert len(outcome) == 1


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ServerException("memory", 241), "overload"),
        (ServerException("too many parts", 252), "overload"),
        (ServerException("timeout", 159), "overload"),
        (ServerException("too many queries", 202), "overload"),
        (ServerException("no such table", 60), "refused"),
        (ServerException("never heard of", 9999), "refused"),
        (ServerException("cannot parse", 27), None),
        (NetworkError("gone"), "network"),
        (SocketTimeoutError("slow"), "timeout"),
        (TimeoutError(), "timeout"),
        (EOFError(), "network"),
        (ConnectionResetError(), "network"),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no"), None),
        (OverflowError(), None),
        (MemoryError(), "refused"),
    ],
)
def test_only_what_is_known_to_be_about_data_is(error: Exception, reason: str | None) -> None:
    assert writer.classify(error) == reason


def test_the_pause_grows_is_bounded_and_jitters() -> None:
    backoff = Backoff(first_s=0.1, factor=2.0, longest_s=5.0)
    for attempt in (1, 3, 10, 5000):
        longest = min(5.0, 0.1 * 2.0 ** min(attempt - 1, 100))
        pauses = [backoff.delay(attempt) for _ in range(50)]
        assert all(longest / 2 <= pause <= longest for pause in pauses)
        assert len(set(pauses)) > 10


def test_timeouts_are_ours_unless_the_url_has_its_own() -> None:
    assert writer.with_timeouts("clickhouse://h/d").endswith(
        "?connect_timeout=5&send_receive_timeout=60"
    )
    kept = writer.with_timeouts("clickhouse://h/d?connect_timeout=1&secure=1")
    assert "connect_timeout=1&secure=1&send_receive_timeout=60" in kept


def wide(number: int) -> TableRows:
    """Rows of 2 kB each, told apart by their offset."""
    made = TableRows(rows.EVENTS_RAW)
    blank = {"received_at": NOW, "occurred_at": NOW, "headers": {}, "topic": "t", "version": 1,
             "payload": random.Random(1).randbytes(2_000)}  # fmt: skip
    for offset in range(number):
        row = {**dict.fromkeys(rows.EVENTS_RAW.columns, ""), **blank}
        row |= {"partition": 0, "offset": offset, "id": str(offset), "key": str(offset)}
        made.rows.append(tuple(row[column] for column in rows.EVENTS_RAW.columns))
        made.origins.append(FakeRecord(offset))
    return made


# A server needs some 9 MB for a single row, whatever is in it.
@pytest.mark.parametrize("memory", [12_000_000, 30_000_000])
def test_a_batch_too_large_for_the_servers_memory_is_split(
    url: str, metrics: SinkMetrics, memory: int
) -> None:
    subject = Writer(f"{url}?max_memory_usage={memory}", metrics, FAST)
    try:
        for number in (1, 2):
            assert subject.write([wide(20_000)], f"t{number}") == []
        assert query(url, "SELECT count(), uniqExact(id) FROM events_raw FINAL") == [(20_000,) * 2]
        assert value_of(metrics.splits, "events_raw") >= 1
        assert value_of(metrics.rows, "events_raw") == 40_000
        assert subject.trouble is None
        first = value_of(metrics.splits, "events_raw")
        # What went through is remembered: the second batch did not begin with the whole again.
        assert subject.write([wide(20_000)], "t3") == []
        assert value_of(metrics.splits, "events_raw") - first <= 2
    finally:
        subject.close()


def test_parts_of_a_batch_have_tokens_of_their_own(
    url: str, metrics: SinkMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same part, tried again, has the same token; no two parts share one."""
    query(url, "SYSTEM STOP MERGES gauges")
    tokens: list[tuple[str, int]] = []
    original = Client.execute

    def crowded(self: Client, *args: Any, settings: Any = None, **more: Any) -> Any:
        if settings is not None and "insert_deduplication_token" in settings:
            size = len(args[1][0])
            tokens.append((settings["insert_deduplication_token"], size))
            if size > 30:
                raise ServerException("memory limit exceeded", 241)
            original(self, *args, settings=settings, **more)
            # Its answer is lost once: the same part comes again.
            if tokens.count(tokens[-1]) == 1:
                raise ConnectionResetError
            return None
        return original(self, *args, settings=settings, **more)

    monkeypatch.setattr(Client, "execute", crowded)
    subject = Writer(url, metrics, FAST)
    subject.write([gauges(0, 100)], "t")
    subject.close()
    monkeypatch.undo()
    assert query(url, "SELECT count(), uniqExact(count) FROM gauges") == [(100, 100)]
    done = [token for token, size in tokens if size <= 30]
    assert len(done) == 2 * len(set(done)) == 8


def test_a_single_row_without_room_is_kept_and_tried_again(
    url: str, metrics: SinkMetrics, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never dropped, never a dead letter: the server is too small, the row is not wrong."""
    full = True
    original = Client.execute

    def crowded(self: Client, *args: Any, settings: Any = None, **more: Any) -> Any:
        if full and settings is not None and "insert_deduplication_token" in settings:
            raise ServerException("memory limit exceeded", 241)
        return original(self, *args, settings=settings, **more)

    monkeypatch.setattr(Client, "execute", crowded)
    subject = Writer(url, metrics, FAST)
    done: list[Any] = []
    flight = threading.Thread(target=lambda: done.append(subject.write([gauges(0, 4)], "t")))
    flight.start()
    eventually(lambda: value_of(metrics.retries, "overload") >= 6)
    trouble = subject.trouble
    assert trouble is not None
    assert (trouble.reason, done) == ("overload", [])
    assert "memory" in trouble.error
    full = False
    flight.join(15)
    assert done == [[]]
    assert query(url, "SELECT count() FROM gauges FINAL") == [(4,)]
    subject.close()
