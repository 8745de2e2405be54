"""Each remedy of pipeline/faust_safe, with a test that fails without it.

The whole of it under kill -9 is in test_crash.py.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiokafka.errors
import faust
import mode
import pytest
from faust.transport.drivers import aiokafka as driver
from faust.types.tuples import TP

from pipeline.effects import Output
from pipeline.faust_safe import BatchSchema, Outbox, create_app
from pipeline.faust_safe.table import SafeTable
from pipeline.faust_safe.transport import SafeConsumer, SafeTransport, Unread
from pipeline.settings import Settings
from pipeline.simulate import NO_FAULTS, Simulation
from pipeline.simulate.produce import send_all
from tests.support import PATIENCE, evidence
from tests.support.brokers import Broker, broker, kind
from tests.support.consumers import CHANGELOG, SOURCE, consumer, fetching, message, records
from tests.support.internals import fingerprints
from tests.support.worker import WorkerProcess
from topics.apply import apply
from topics.catalogue import JOBS, LIFECYCLE, WEBHOOKS, catalogue
from topics.producer import Producer

PARTITIONS = 2

#: Sources of the internals as they were when the remedies were written and tested.
KNOWN = {
    "Consumer.getmany": "4b168d84882a70d6",
    "Consumer._wait_next_records": "6218e1969a636b3f",
    "Consumer._drain_messages": "44a2500309e83c63",
    "Consumer.ack": "5fcf41cf45153475",
    "Consumer.track_message": "217d7f1399a4cd8e",
    "Consumer._new_offset": "1d2c7ea89a7ad4f1",
    "Consumer._add_gap": "4df2573ded7c1c2c",
    "Consumer.resume_partitions": "afe6b7c02a41d63c",
    "Consumer.resume_flow": "db59630f25b5819b",
    "Consumer.wait_empty": "e4662fe24f094819",
    "Consumer.perform_seek": "0e8c130ff4b0afd8",
    "Consumer.force_commit": "cc094614d22c70fb",
    "ConsumerThread._create_worker_consumer": "c2701bfc3e6f6cad",
    "ConsumerThread._fetch_records": "39a2c6c79fc1455a",
    "Recovery.on_rebalance": "aa4d997a1795ceae",
    "Recovery._restart_recovery": "6bd8a8558a2dffe4",
    "Recovery._wait": "ec7429b70176f8c6",
    "Recovery.on_recovery_completed": "6ef567acf072e46d",
    "Recovery._resume_streams": "d986a6710c1aca98",
    "Collection._should_expire_keys": "ac578d5af0a404f6",
    "Collection._maybe_set_key_ttl": "39b7465fa5803899",
    "Collection._maybe_del_key_ttl": "c873b702c4e59af5",
    "Collection._new_store": "914a2bda605d38f5",
    "Stream.noack": "921a6f5c674d32d4",
    "Stream.ack": "32d7171a89b0931d",
    "aiokafka.PartitionRecords._unpack_records": "b803e6d46480732c",
    "aiokafka.AIOKafkaProducer.send_offsets_to_transaction": "4b58002b44962a5c",
    "aiokafka.Sender._find_coordinator": "33001a36bf6a0ae0",
    "aiokafka.AIOKafkaConnection.close": "28f164aa1e4f0bbc",
}


def test_the_overridden_internals_are_the_ones_we_know() -> None:
    now = fingerprints()
    changed = sorted(name for name in KNOWN if now.get(name) != KNOWN[name])
    assert not changed, (
        f"faust-streaming {faust.__version__} or mode {mode.__version__} changed "
        f"{', '.join(changed)}. Read what changed, check it against pipeline/faust_safe, run "
        "tests/test_crash.py, then put the new fingerprints here."
    )
    assert now.keys() == KNOWN.keys()


# -- the transport, on a consumer without a broker -------------------------------------------------


def test_source_partitions_stay_paused_until_the_seek_after_recovery_is_done() -> None:
    # faust-streaming#175: what is fetched between un-pause and seek is lost.
    recovering = consumer(rebalancing=True)
    recovering.resume_partitions({SOURCE, CHANGELOG})
    assert recovering._active_partitions == {CHANGELOG}
    recovering.resume_flow()
    assert recovering._active_partitions == {SOURCE, CHANGELOG}
    settled = consumer(rebalancing=False)
    settled.resume_partitions({SOURCE})
    assert settled._active_partitions == {SOURCE}


async def test_an_interrupted_recovery_releases_nothing_in_the_next_one() -> None:
    # A second rebalance during the first one's last seek: Faust then lets the flow resume to read
    # changelogs, and source records would be folded on tables that are not recovered.
    interrupted = consumer(rebalancing=True)
    interrupted.resume_partitions({SOURCE})

    async def nothing(revoked: Any) -> None:
        pass

    interrupted._on_partitions_revoked = nothing
    interrupted.app._start_span_from_rebalancing = lambda name: nullcontext()
    interrupted.app.in_recovery = True
    interrupted.resume_flow()
    assert interrupted._active_partitions == set()
    interrupted.diag = SimpleNamespace(set_flag=lambda f: None, unset_flag=lambda f: None)
    interrupted._gap = interrupted._acked_index = interrupted._read_offset = {}
    await interrupted.on_partitions_revoked({SOURCE})
    interrupted.app.in_recovery = False
    interrupted.resume_flow()
    assert interrupted._active_partitions == set()


async def test_where_nothing_was_committed_the_seek_goes_to_the_beginning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Faust seeks nowhere then, and what was fetched and dropped before is never read again.
    fresh, known = TP(SOURCE.topic, 0), TP(SOURCE.topic, 1)
    safe = consumer()
    sought: list[Any] = []

    async def seek_to_committed() -> dict[TP, int | None]:
        return {fresh: None, known: 7}

    async def seek_to_beginning(*partitions: Any) -> None:
        sought.extend(partitions)

    monkeypatch.setattr(safe, "seek_to_committed", seek_to_committed, raising=False)
    safe.assignment = lambda: {fresh, known, CHANGELOG}
    safe._thread = SimpleNamespace(seek_to_beginning=seek_to_beginning)
    safe._read_offset = {fresh: 51, known: 60}
    # A commit that was refused because of a rebalance: Faust takes it for made.
    safe._committed_offset[fresh] = 51
    await safe.perform_seek()
    assert [(tp.topic, tp.partition) for tp in sought] == [(fresh.topic, 0)]
    assert safe._read_offset == {fresh: None, known: 7}


async def test_a_fetch_does_not_see_the_set_of_partitions_change() -> None:
    # aiokafka takes an emptied set for "all partitions", the paused ones too.
    safe = consumer()
    seen: list[Any] = []

    async def getmany(active: Any, timeout: float) -> dict[Any, Any]:
        live.clear()
        seen.append(active)
        return {}

    live = {SOURCE}
    safe._thread = SimpleNamespace(getmany=getmany)
    await safe._getmany(live, 1.0)
    assert seen == [{SOURCE}]


def test_only_a_finished_batch_of_this_generation_moves_the_offset() -> None:
    # faust-streaming#606: Faust acks what it skips as if it had been processed.
    safe = consumer(generation=2)
    skipped, foreign, finished = message(0, 9, 2), message(10, 19, 1), message(20, 29, 2)
    foreign.value.done = finished.value.done = True
    safe.ack(skipped)
    assert safe._new_offset(SOURCE) is None
    safe.ack(foreign)
    assert safe._new_offset(SOURCE) is None
    safe.ack(finished)
    assert safe._new_offset(SOURCE) == 30
    assert safe._new_offset(SOURCE) is None
    assert not safe._unacked_messages


async def test_one_message_a_batch_with_the_position_behind_it() -> None:
    # A transaction's mark at 8: last record + 1 is not where the partition ends.
    safe = consumer()
    safe._active_partitions = {SOURCE}
    fetching(safe, {SOURCE: records(5, 7)}, {SOURCE: 9})
    got = [(tp, m) async for tp, m in safe.getmany(1.0)]
    assert [tp for tp, _ in got] == [SOURCE]
    batch = got[0][1].value
    assert (got[0][1].offset, batch.next_offset) == (7, 9)
    assert [r.offset for r in batch.records] == [5, 6, 7]
    batch.done = True
    safe.ack(got[0][1])
    assert safe._new_offset(SOURCE) == 9


class Committing:
    """What force_commit of Faust's consumer is left with."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.committed: list[dict[TP, int]] = []

        async def force_commit(safe: Any, *args: Any, **kwargs: Any) -> bool:
            self.committed.append({tp: safe._new_offset(tp) for tp in list(safe._acked)})
            return True

        monkeypatch.setattr(driver.Consumer, "force_commit", force_commit)


async def test_a_partition_that_has_only_marks_to_pass_is_committed_behind_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    safe, commits = consumer(), Committing(monkeypatch)
    safe._active_partitions = {SOURCE}
    fetching(safe, {SOURCE: records(5, 7)}, {SOURCE: 8})
    [(_, m)] = [each async for each in safe.getmany(1.0)]
    fetching(safe, {}, {SOURCE: 10})
    assert [each async for each in safe.getmany(1.0)] == []
    # Not while a batch before it is unfinished.
    await safe.force_commit()
    assert commits.committed == [{}]
    m.value.done = True
    safe.ack(m)
    await safe.force_commit()
    safe._committed_offset[SOURCE] = 8
    await safe.force_commit()
    assert commits.committed[1:] == [{SOURCE: 8}, {SOURCE: 10}]


async def test_what_was_fetched_and_dropped_is_not_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    # A rebalance in the middle of a fetch: the position is behind records nobody has seen.
    safe, commits = consumer(), Committing(monkeypatch)
    safe._active_partitions = {SOURCE}
    fetching(safe, {SOURCE: records(5, 7)}, {SOURCE: 8})
    fetch = safe._wait_next_records

    async def overtaken(timeout: float) -> Any:
        got = await fetch(timeout)
        safe._look_for_hole = rebalance
        return got

    def rebalance(tp: TP, offset: int) -> None:
        safe.app.consumer_generation_id += 1

    safe._wait_next_records = overtaken
    assert [each async for each in safe.getmany(1.0)] == []
    fetching(safe, {}, {SOURCE: 8})
    assert [each async for each in safe.getmany(1.0)] == []
    await safe.force_commit()
    assert commits.committed == [{}]


async def test_a_fetch_that_a_seek_overtook_says_nothing_of_positions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Its positions are from before the seek, and what lay before them has been dropped.
    safe, commits = consumer(), Committing(monkeypatch)
    safe._active_partitions = {SOURCE}
    fetching(safe, {}, {SOURCE: 200})
    fetch = safe._wait_next_records

    async def overtaken(timeout: float) -> Any:
        got = await fetch(timeout)
        safe._forget_positions()
        return got

    safe._wait_next_records = overtaken
    assert [each async for each in safe.getmany(1.0)] == []
    await safe.force_commit()
    assert commits.committed == [{}]


async def test_a_fetch_that_a_rebalance_overtook_is_dropped_and_read_again() -> None:
    # It ends after recovery has sought: what it brings lies behind what was dropped before.
    safe, sought = consumer(), []
    safe._active_partitions = {SOURCE}
    safe.log = logging.getLogger("test")

    async def perform_seek() -> None:
        sought.append(len(sought))
        if len(sought) == 1:
            raise aiokafka.errors.KafkaConnectionError("not yet")
        safe._forget_positions()

    safe.perform_seek = perform_seek
    fetching(safe, {SOURCE: records(50, 60)}, {SOURCE: 61})
    fetch = safe._wait_next_records

    async def overtaken(timeout: float) -> Any:
        got = await fetch(timeout)
        safe._forget_positions()
        safe.app.consumer_generation_id += 1
        safe.app.in_recovery = True
        return got

    safe._wait_next_records = overtaken
    assert [each async for each in safe.getmany(1.0)] == []
    # Not while recovery is on: it has a seek of its own, before or after.
    fetching(safe, {}, {SOURCE: 61})
    assert [each async for each in safe.getmany(1.0)] == []
    assert sought == []
    safe.app.in_recovery = False
    fetching(safe, {SOURCE: records(10, 60)}, {SOURCE: 61})
    assert [each async for each in safe.getmany(1.0)] == []
    [(_, again)] = [each async for each in safe.getmany(1.0)]
    assert again.value.records[0].offset == 10
    assert sought == [0, 1]


def test_nothing_is_dropped_as_old() -> None:
    # A delivery that waits through a rebalance is noted after the seek that goes back before it.
    made = Unread()
    made[SOURCE] = 60
    made.update({SOURCE: 10})
    assert made[SOURCE] is None
    assert not made


async def test_offsets_that_were_passed_over_are_told() -> None:
    safe, holes = consumer(), []
    safe._active_partitions = {SOURCE}
    safe.on_hole = lambda tp, first, end: holes.append((tp, first, end))
    safe._committed_offset[SOURCE] = 100
    for first, position in ((100, 106), (106, 111), (300, 305)):
        fetching(safe, {SOURCE: records(first, first + 4)}, {SOURCE: position})
        assert len([each async for each in safe.getmany(1.0)]) == 1
    # Not the mark at 105: the position had passed it.
    assert holes == [(SOURCE, 111, 300)]


async def test_delivery_is_direct_while_nothing_is_suspended() -> None:
    safe = consumer()
    delivered = []

    async def on_message() -> None:
        delivered.append(len(asyncio.all_tasks()))

    before = len(asyncio.all_tasks())
    await safe.wait_first(on_message(), safe.suspend_flow.wait())
    assert delivered == [before], "a delivery made tasks of its own"


def test_a_partition_without_a_position_ends_nothing() -> None:
    # Faust's watch over stuck partitions asserted on it in the middle of a rebalance.
    safe = consumer()
    safe._thread = None  # it is not even asked
    safe.verify_event_path(0.0, SOURCE)


async def test_undecodable_bytes_reach_the_agent() -> None:
    # robinhood/faust#586: a decode error inside Faust ends the agent for good.
    decode = BatchSchema().compile(
        SimpleNamespace(create_event=lambda key, value, headers, m: value)
    )
    bad = message(0, 0)
    assert await decode(bad, propagate=True) is bad.value


def test_a_back_pressured_consumer_looks_again_soon() -> None:
    assert SafeConsumer.BACK_PRESSURE_WAIT <= 0.1


# -- the table -------------------------------------------------------------------------------------


def test_windowed_tables_index_and_expire_nothing_themselves(tmp_path: Path) -> None:
    app = create_app(Settings(data_dir=tmp_path), web_port=6066)
    assert app.conf.Table is SafeTable
    table = app.Table("t", partitions=1)
    table.tumbling(60, expires=1)
    for _ in range(300):
        table._maybe_set_key_ttl(("k", (0.0, 59.9)), 0)
    assert not table._partition_timestamps
    assert not table._should_expire_keys()


# -- the app ---------------------------------------------------------------------------------------


def test_the_settings_the_guarantees_rest_on(tmp_path: Path) -> None:
    app = create_app(Settings(data_dir=tmp_path), web_port=6066)
    conf = app.conf
    assert isinstance(app.transport, SafeTransport)
    assert conf.agent_supervisor is mode.CrashingSupervisor
    assert conf.consumer_auto_offset_reset == "earliest"
    assert conf.broker_max_poll_interval >= 86_400
    assert conf.topic_allow_declare is False
    assert conf.web_tables_enabled is False
    assert conf.logging_config["root"]["level"] == "INFO"
    assert conf.logging_config["loggers"]["aiokafka"]["level"] == "WARNING"


def test_passwords_do_not_show(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path, kafka_security="SASL_SSL", kafka_user="u", kafka_password="s3cret",
        clickhouse="clickhouse://u:pa55@h/db",
    )  # fmt: skip
    shown = f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"
    assert "s3cret" not in shown
    assert "pa55" not in shown


# -- with a broker ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(tmp_path_factory.mktemp("broker")) as made:
        apply({"bootstrap_servers": made.bootstrap}, catalogue(partitions=PARTITIONS))
        yield made


async def test_what_the_outbox_returns_from_is_in_the_log(running: Broker) -> None:
    outbox = Outbox({JOBS: PARTITIONS}, {"bootstrap_servers": running.bootstrap})
    await outbox.start()
    try:
        small = [Output(JOBS, 0, b"k%d" % n, b"v" * 100) for n in range(20_000)]
        large = [Output(JOBS, 1, b"large", b"x" * 900_000)]
        offsets = await outbox.publish(small + large)
        assert offsets.keys() == {(JOBS, 0), (JOBS, 1)}
        if kind() == "kafka":
            assert offsets == {(JOBS, 0): 19_999, (JOBS, 1): 0}
        got = [r.value for r in evidence.read_topic(running.bootstrap, JOBS)]
        if kind() == "kafka":
            assert len(got) == 20_001
    finally:
        await outbox.stop()


async def test_a_refused_write_raises(running: Broker) -> None:
    # Faust logs a failed changelog write and goes on.
    if kind() != "kafka":
        pytest.skip("the embedded broker takes records of any size")
    outbox = Outbox({JOBS: PARTITIONS}, {"bootstrap_servers": running.bootstrap})
    await outbox.start()
    try:
        with pytest.raises(aiokafka.errors.KafkaError):
            await outbox.publish([Output(JOBS, 0, b"k", b"x" * (3 << 20))])
    finally:
        await outbox.stop()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Broker]:
    if kind() != "kafka":
        pytest.skip("recovery is asserted on Apache Kafka: the embedded broker's ends fall short")
    with broker(tmp_path / "broker") as made:
        apply({"bootstrap_servers": made.bootstrap}, catalogue(partitions=PARTITIONS))
        yield made


def load(bootstrap: str, seed: int, jobs: int = 400) -> Simulation:
    start = int(time.time() * 1000) - 6 * 3_600_000
    simulation = Simulation(seed, jobs, start_ms=start, duration_s=1_800, faults=NO_FAULTS)
    with Producer(bootstrap) as producer:
        send_all(simulation.records(), producer)
        producer.flush()
    return simulation


def drained(bootstrap: str) -> None:
    for topics in ([WEBHOOKS, LIFECYCLE], [JOBS]):
        evidence.wait_drained(bootstrap, "runnerstream", topics, 60)


def test_an_exception_in_an_agent_ends_the_process_and_loses_nothing(
    own: Broker, tmp_path: Path
) -> None:
    # Faust's own restart of an agent acks what was in flight: 1,600 of 2,000 lost in a trial.
    simulation = load(own.bootstrap, 1)
    worker = WorkerProcess(
        own.bootstrap,
        command=["-m", "tests.support.killer"],
        log=tmp_path / "w.log",
        partitions=PARTITIONS,
        lateness=864_000,
        TEST_KILL_AT="windows",
        TEST_KILL_AFTER=0,
        TEST_KILL_BY="raise",
    )
    worker.start(wait=False)
    deadline = time.monotonic() + PATIENCE * 40
    while worker.alive() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert worker.returncode not in (None, 0), worker.tail()
    worker._given["TEST_KILL_AT"] = ""
    worker.start(wait=False)
    drained(own.bootstrap)
    evidence.check_topics(own.bootstrap, simulation.truth())
    assert worker.stop() == 0


def test_restarts_with_a_backlog_leave_no_gap(own: Broker, tmp_path: Path) -> None:
    """The recovery race, on the real thing: recovery must have something to replay and the
    source something to deliver meanwhile."""
    simulation = load(own.bootstrap, 2, jobs=3_000)
    worker = WorkerProcess(
        own.bootstrap,
        command=["-m", "tests.support.killer"],
        log=tmp_path / "w.log",
        partitions=PARTITIONS,
        lateness=864_000,
        batch_records=200,
        group_instance_id="w",
    )
    for _ in range(3):
        worker.start(wait=False)
        time.sleep(6)
        worker.signal(signal.SIGKILL)
        worker.kill()
    worker.start(wait=False)
    drained(own.bootstrap)
    gaps = worker.metric("runnerstream_offset_gaps_total")
    assert gaps == 0
    assert worker.metric("runnerstream_table_records_recovered_total") > 0
    evidence.check_topics(own.bootstrap, simulation.truth())
    assert worker.stop() == 0, worker.tail()


def test_rocksdb_restarts_from_disk_and_says_the_same(own: Broker, tmp_path: Path) -> None:
    pytest.importorskip("rocksdict")
    one = load(own.bootstrap, 3, jobs=600)
    worker = WorkerProcess(
        own.bootstrap,
        command=["-m", "tests.support.killer"],
        log=tmp_path / "w.log",
        directory=tmp_path / "state",
        partitions=PARTITIONS,
        lateness=864_000,
        store="rocksdb",
        group_instance_id="w",
    )
    worker.start(wait=False)
    drained(own.bootstrap)
    worker.kill()
    worker.start(wait=False)
    with Producer(
        own.bootstrap
    ) as producer:  # everything once more: duplicates must find their jobs
        send_all(one.records(), producer)
        producer.flush()
    drained(own.bootstrap)
    truth = one.truth()
    evidence.check_topics(own.bootstrap, truth)
    assert worker.metric("runnerstream_job_transitions_total") == 0
    live = sum(1 for job in truth.jobs.values() if job.status != "completed")
    assert worker.metric("runnerstream_jobs") == live
    assert worker.stop() == 0, worker.tail()


logging.getLogger("kafka").setLevel(logging.CRITICAL)
