"""Tables made again from their changelogs: cut short anywhere, from another log, in both stores."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.admin import ApiVersionRequest
from aiokafka.protocol.coordination import FindCoordinatorRequest
from faust.types.tuples import TP
from kafka import KafkaAdminClient
from kafka.admin import NewTopic

from pipeline.effects import Output
from pipeline.faust_safe import Fenced, FencedOutbox, create_app, sensor
from pipeline.faust_safe.fencing import can_fence
from pipeline.faust_safe.identity import cluster_id, log_names
from pipeline.faust_safe.recovery import BatchRecovery
from pipeline.faust_safe.store import Origin, PartitionedStore
from pipeline.local.process import LOOPBACK
from pipeline.settings import Settings
from tests.support import evidence
from tests.support.brokers import Broker, broker, kind

TABLE = "runnerstream-things-changelog"
STORES = ["memory", "rocksdb"]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(tmp_path_factory.mktemp("broker")) as made:
        yield made


@pytest.fixture
def topic(running: Broker) -> Iterator[str]:
    """The changelog, made anew for each test."""
    make(running, TABLE)
    yield running.bootstrap
    drop(running, TABLE)


def make(running: Broker, name: str, partitions: int = 2) -> None:
    admin = KafkaAdminClient(bootstrap_servers=running.bootstrap)
    admin.create_topics([NewTopic(name, partitions, 1)])
    admin.close()


def drop(running: Broker, name: str) -> None:
    admin = KafkaAdminClient(bootstrap_servers=running.bootstrap)
    admin.delete_topics([name])
    admin.close()


class Tables:
    """A worker's table and its recovery, without the rest of the worker."""

    def __init__(self, bootstrap: str, store: str, directory: Path) -> None:
        if store == "rocksdb":
            pytest.importorskip("rocksdict")
        settings = Settings(data_dir=directory, store=store, group_instance_id="w")  # type: ignore[arg-type]
        app = create_app(settings, web_port=6066)
        table = app.Table("things", partitions=2, key_type=bytes, value_type=bytes)
        self.recovery: Any = app.tables.recovery
        assert isinstance(self.recovery, BatchRecovery)
        self.recovery.options = {"bootstrap_servers": bootstrap}

        async def identify(topics: Any) -> Any:
            return await log_names({"bootstrap_servers": bootstrap}, topics)

        self.recovery.identify = identify
        self.tps = {TP(TABLE, 0), TP(TABLE, 1)}
        for tp in self.tps:
            self.recovery.tp_to_table[tp] = table
        self.store: PartitionedStore = table.data

    async def read(self) -> int:
        return int(await self.recovery._read(self.tps, until_end=True))

    def held(self) -> dict[bytes, bytes]:
        return dict(self.store.items(0)) | dict(self.store.items(1))

    def close(self) -> None:
        self.store.keep(frozenset())


async def write(bootstrap: str, count: int, seed: int = 0) -> None:
    """So many records over some hundred keys, a tenth of them deletions."""
    rng = random.Random(seed)
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap, linger_ms=5)
    await producer.start()
    for n in range(count):
        key = b"k%d" % rng.randrange(300)
        value = None if rng.random() < 0.1 else b"v%d" % n
        await producer.send(TABLE, key=key, value=value, partition=len(key) % 2)
    await producer.stop()


@pytest.mark.parametrize("store", STORES)
async def test_a_recovery_cut_short_anywhere_goes_on_where_the_data_ends(
    topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: str
) -> None:
    # A rebalance in the middle: Faust's own recovery seeks past what it had not applied.
    monkeypatch.setattr("pipeline.faust_safe.recovery.BATCH_RECORDS", 100)
    await write(topic, 5_000)
    rng = random.Random(store)
    tables = Tables(topic, store, tmp_path)
    puts = cuts = 0
    put = tables.store.put

    def counted(*args: Any) -> None:
        nonlocal puts
        put(*args)
        puts += 1
        if puts % 7 == 0 and cuts < 5:
            reading.cancel()

    monkeypatch.setattr(tables.store, "put", counted)
    while True:
        reading = asyncio.create_task(tables.read())
        try:
            await reading
            break
        except asyncio.CancelledError:
            cuts += 1
            if rng.random() < 0.5:
                # The process ended as well. Memory begins anew then, a disk does not.
                tables.close()
                tables = Tables(topic, store, tmp_path)
                put = tables.store.put
                monkeypatch.setattr(tables.store, "put", counted)
    assert cuts == 5
    assert tables.held() == evidence.compacted(topic, TABLE)
    read_again = await tables.read()
    assert read_again == 0
    tables.close()


@pytest.mark.parametrize("store", STORES)
async def test_state_of_another_log_is_dropped(
    running: Broker, topic: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, store: str
) -> None:
    """The topic made anew: shorter at first, then longer than the old one was."""
    await write(topic, 500, seed=1)
    tables = Tables(topic, store, tmp_path)
    assert await tables.read() == 500
    for count in (200, 900):
        drop(running, TABLE)
        await asyncio.sleep(0.5)
        make(running, TABLE)
        await write(topic, count, seed=count)
        caplog.clear()
        assert await tables.read() == count
        assert tables.held() == evidence.compacted(topic, TABLE)
        said = [r.getMessage() for r in caplog.records if "another log" in r.getMessage()]
        assert len(said) == 2, "one warning per partition"
        assert await tables.read() == 0
    tables.close()


async def test_a_log_that_lost_its_end_is_read_again(topic: str, tmp_path: Path) -> None:
    # A broker that came back without its last records (an unclean election).
    await write(topic, 300)
    tables = Tables(topic, "memory", tmp_path)
    await tables.read()
    origin = tables.store.origin(0)
    assert origin is not None
    tables.store.put(0, [(b"ahead", b"of the log")], origin.position + 50)
    await tables.read()
    assert tables.held() == evidence.compacted(topic, TABLE)


@pytest.mark.parametrize("store", STORES)
def test_a_store_vouches_for_what_it_holds_and_lets_go(tmp_path: Path, store: str) -> None:
    tables = Tables("127.0.0.1:1", store, tmp_path)
    held = tables.store
    assert held.origin(0) is None
    held.reset(0, "log/1")
    assert (held.origin(0), held.blank(0)) == (Origin("log/1", 0), True)
    held.put(0, [(b"a", b"1"), (b"b", b"2"), (b"a", None)], 12)
    assert (held.origin(0), held.blank(0)) == (Origin("log/1", 12), False)
    assert (held.get(0, b"a"), held.get(0, b"b"), held.get(1, b"b")) == (None, b"2", None)
    held.put(0, [(b"c", b"3")], None)
    assert held.origin(0) == Origin("log/1", 12)
    assert sorted(held.items(0)) == [(b"b", b"2"), (b"c", b"3")]
    held.keep({1})
    # Memory forgets what has moved away, a disk knows it when it comes back.
    assert held.origin(0) == (None if store == "memory" else Origin("log/1", 12))
    held.reset(0, "log/2")
    assert (held.origin(0), held.items(0)) == (Origin("log/2", 0), [])
    tables.close()


# -- fencing ---------------------------------------------------------------------------------------


@pytest.fixture
def transactional(running: Broker, topic: str) -> str:
    if kind() != "kafka":
        pytest.skip("the embedded broker has no working transactions")
    return topic


async def test_the_former_writer_is_refused_and_the_new_one_is_not(
    transactional: str, tmp_path: Path
) -> None:
    options = {"bootstrap_servers": transactional}
    told: Counter[Any] = Counter()

    def count(metric: Any, labels: Any, value: float = 1.0) -> None:
        told[metric, labels] += 1 if metric is sensor.PRODUCE_SECONDS else value

    first = FencedOutbox("app", {TABLE: 2}, options, count)
    second = FencedOutbox("app", {TABLE: 2}, options)
    source = TopicPartition(TABLE, 1)
    record = [Output(TABLE, 0, b"k", b"first")]
    try:
        await first.take_over({0, 1})
        assert await first.commit(0, record, "group", {source: 5}) == {(TABLE, 0): 0}
        await second.take_over({0})
        with pytest.raises(Fenced, match="partition 0"):
            await first.commit(0, [Output(TABLE, 0, b"k", b"older")], "group", {source: 3})
        with pytest.raises(Fenced):
            await first.commit(0, [Output(TABLE, 0, b"k", b"older")], "group", {source: 3})
        await second.commit(0, [Output(TABLE, 0, b"k", b"second")], "group", {source: 9})
        # What was not taken over is still the first one's.
        await first.commit(1, [Output(TABLE, 1, b"j", b"still")], "group", {source: 9})
        await first.take_over({0})
        await first.commit(0, [Output(TABLE, 0, b"k", b"third")], "group", {source: 11})
        with pytest.raises(Fenced):
            await second.commit(0, record, "group", {source: 10})
    finally:
        await first.stop()
        await second.stop()
    assert evidence.compacted(transactional, TABLE) == {b"k": b"third", b"j": b"still"}
    # The second time the broker need not be asked.
    assert told == {
        (sensor.PRODUCE_FAILURES, ("fenced",)): 1,
        (sensor.PRODUCED, (sensor.CHANGELOG,)): 3,
        (sensor.PRODUCE_SECONDS, ("transaction",)): 3,
    }
    tables = Tables(transactional, "memory", tmp_path)
    assert await tables.read() == 4
    assert evidence.committed(transactional, "group", source) == 11


async def test_a_connection_that_breaks_while_the_coordinator_is_looked_up_costs_a_second_look(
    transactional: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = AIOKafkaClient.send
    broken = {CoordinationType.TRANSACTION: 2, CoordinationType.GROUP: 2}

    async def breaks(self: AIOKafkaClient, node_id: int, request: Any, **more: Any) -> Any:
        if isinstance(request, FindCoordinatorRequest):
            kind = CoordinationType(request._coordinator_type)
            if broken[kind]:
                broken[kind] -= 1
                raise KafkaConnectionError("the broker is being restarted")
        return await send(self, node_id, request, **more)

    monkeypatch.setattr(AIOKafkaClient, "send", breaks)
    outbox = FencedOutbox("app", {TABLE: 2}, {"bootstrap_servers": transactional})
    record = [Output(TABLE, 0, b"k", b"v")]
    try:
        await outbox.take_over({0})
        committed = await outbox.commit(0, record, "group", {TopicPartition(TABLE, 0): 1})
        assert committed == {(TABLE, 0): 0}
    finally:
        await outbox.stop()
    assert set(broken.values()) == {0}


def test_a_request_meets_a_connection_that_has_just_ended() -> None:
    uvloop = pytest.importorskip("uvloop")
    closed: list[CloseReason] = []

    async def scenario() -> None:
        ended = asyncio.Event()
        server = await asyncio.start_server(lambda _, __: ended.wait(), LOOPBACK, 0)
        host, port = server.sockets[0].getsockname()
        connection = AIOKafkaConnection(
            host, port, client_id="c", on_close=lambda _, reason: closed.append(reason)
        )
        connection._reader, connection._writer = await asyncio.open_connection(host, port)
        connection._read_task = asyncio.create_task(ended.wait())
        # As a reset leaves it: the loop knows, and has not told the reader yet.
        connection._writer.transport.abort()
        with pytest.raises(KafkaConnectionError):
            await connection.send(ApiVersionRequest())
        assert not connection.connected()
        ended.set()
        server.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(scenario())
    assert closed == [CloseReason.CONNECTION_BROKEN]


async def test_what_was_begun_by_a_former_writer_is_neither_kept_nor_waited_for(
    transactional: str, tmp_path: Path
) -> None:
    options = {"bootstrap_servers": transactional}
    first, second = (FencedOutbox("app", {TABLE: 2}, options) for _ in range(2))
    sent = asyncio.Event()

    def never_decided() -> None:
        sent.set()
        raise ConnectionError("the process sleeps here")

    try:
        await first.take_over({0})
        with pytest.raises(ConnectionError):
            await first.commit(
                0, [Output(TABLE, 0, b"k", b"open")], "g", {TopicPartition(TABLE, 0): 1},
                never_decided,
            )  # fmt: skip
        assert sent.is_set()
        await second.take_over({0})
        tables = Tables(transactional, "memory", tmp_path)
        assert await tables.read() == 0
        assert tables.held() == {}
    finally:
        await first.stop()
        await second.stop()


def test_the_embedded_broker_is_known_by_its_cluster(running: Broker) -> None:
    cluster = cluster_id({"bootstrap_servers": running.bootstrap})
    assert can_fence(cluster) is (kind() == "kafka")
