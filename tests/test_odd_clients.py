"""What clients other than ours may do to the worker's topics. On a real broker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from kafka import KafkaProducer

from pipeline.faust_safe.undecodable import KeptRecords, Undecodable
from tests.support import evidence
from tests.support.brokers import Broker, broker, kind
from tests.support.worker import WorkerProcess
from topics.apply import apply
from topics.catalogue import DEAD_LETTERS, LIFECYCLE, WEBHOOKS, catalogue
from topics.models import LifecycleEvent

PARTITIONS = 2

kafka_only = pytest.mark.skipif(
    kind() != "kafka", reason="the embedded broker has no working transactions"
)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(tmp_path_factory.mktemp("broker")) as made:
        apply({"bootstrap_servers": made.bootstrap}, catalogue(partitions=PARTITIONS))
        yield made


@pytest.fixture(scope="module")
def worker(running: Broker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[WorkerProcess]:
    log = tmp_path_factory.mktemp("worker") / "worker.log"
    with WorkerProcess(running.bootstrap, partitions=PARTITIONS, log=log) as made:
        made.wait_ready()
        yield made


def event(job: str, said: str = "job.queued") -> tuple[bytes, bytes]:
    at = int(time.time() * 1000)
    made = LifecycleEvent(
        id=f"{job}-{said}", kind=said, source="odd", occurred_at=at, received_at=at,
        key=f"own:here:{job}", job_id=job, provider="own", host="here",
    )  # fmt: skip
    return made.key.encode(), made.model_dump_json().encode()


def knows(worker: WorkerProcess, job: str, status: str = "queued") -> None:
    def known() -> bool:
        code, body = worker.get(f"/jobs/own:here:{job}")
        return code == 200 and status in str(body)

    worker.wait(known, 30, f"know {job} as {status}")


def letters(running: Broker) -> list[dict[str, Any]]:
    return [
        msgspec.json.decode(record.value)
        for record in evidence.read_topic(running.bootstrap, DEAD_LETTERS)
    ]


@kafka_only
async def test_an_aborted_transaction_was_never_said(
    running: Broker, worker: WorkerProcess
) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=running.bootstrap, transactional_id="odd")
    await producer.start()
    for job, decide in (("kept", True), ("aborted", False), ("after", True)):
        await producer.begin_transaction()
        key, value = event(job)
        await producer.send_and_wait(LIFECYCLE, key=key, value=value, partition=0)
        await (producer.commit_transaction() if decide else producer.abort_transaction())
    await producer.stop()
    knows(worker, "kept")
    knows(worker, "after")
    assert worker.get("/jobs/own:here:aborted")[0] == 404


@kafka_only
async def test_nothing_is_left_to_read_behind_the_mark_of_a_transaction(
    running: Broker, worker: WorkerProcess
) -> None:
    # Committing the last record + 1 left the mark behind it: lag 1 and not ready, for ever.
    producer = AIOKafkaProducer(bootstrap_servers=running.bootstrap, transactional_id="marks")
    await producer.start()
    for n in range(3):
        await producer.begin_transaction()
        key, value = event(f"marked{n}")
        await producer.send_and_wait(LIFECYCLE, key=key, value=value, partition=1)
        await producer.commit_transaction()
        await producer.begin_transaction()
        await producer.send_and_wait(LIFECYCLE, key=key, value=value, partition=1)
        await producer.abort_transaction()
    await producer.stop()
    knows(worker, "marked2")
    where = TopicPartition(LIFECYCLE, 1)
    [(_, end)] = evidence.ends(running.bootstrap, [where]).items()

    def caught_up() -> bool:
        return evidence.committed(running.bootstrap, "runnerstream", where) == end

    await asyncio.to_thread(worker.wait, caught_up, 20, f"commit the position {end}")
    worker.wait_ready()


class Latin(str):
    """A header name as a client writes it that does not care for UTF-8."""

    __slots__ = ()

    def encode(self, *args: Any) -> bytes:
        return b"gr\xfc\xdfe"


async def test_a_header_name_that_is_no_utf8_and_one_without_a_value(
    running: Broker, worker: WorkerProcess
) -> None:
    producer: Any = KafkaProducer(bootstrap_servers=running.bootstrap, acks="all")
    headers = [(Latin("x"), b"\xff"), ("ok", b"yes")]
    key, value = event("headers")
    producer.send(LIFECYCLE, key=key, value=value, headers=headers, partition=0)
    producer.send(WEBHOOKS, key=None, value=b"\xff{", headers=headers, partition=0)
    producer.flush()
    producer.close()
    null = AIOKafkaProducer(bootstrap_servers=running.bootstrap)
    await null.start()
    await null.send_and_wait(WEBHOOKS, b"\xff}", headers=[("null", None)], partition=0)
    key, value = event("behind")
    await null.send_and_wait(LIFECYCLE, value, key, headers=[("null", None)], partition=0)
    await null.stop()
    knows(worker, "headers")
    knows(worker, "behind")
    worker.wait(lambda: len(letters(running)) == 2, 20, "bury the unreadable ones")
    latin, without = letters(running)
    for letter in (latin, without):
        assert (letter["reason"], letter["stage"]) == ("not_json", "normalise")
    assert latin["record_headers"] == {"gr\\xfc\\xdfe": "\ufffd", "ok": "yes"}
    assert without["record_headers"] == {"null": ""}
    assert worker.alive()


# -- batches that cannot be decoded at all ---------------------------------------------------------


def batch(first: int, count: int, codec: int = 0) -> bytearray:
    builder: Any = DefaultRecordBatchBuilder(2, codec, 0, -1, -1, -1, 1 << 20)
    for n in range(count):
        builder.append(n, 1_000, b"k", b"value %d" % n, [("h", b"v")])
    raw = bytearray(builder.build())
    raw[0:8] = first.to_bytes(8, "big")
    return raw


def taken(*batches: bytes) -> list[Any]:
    records, found = KeptRecords(b"".join(map(bytes, batches))), []
    while records.has_next():
        each = records.next_batch()
        assert each.validate_crc()
        found += list(each)
    return found


@pytest.mark.parametrize("fault", ["checksum", "codec 7", "length", "not gzip"])
def test_a_damaged_batch_is_one_record_that_says_so_and_the_rest_is_read(fault: str) -> None:
    bad = batch(4, 4)
    if fault == "checksum":
        bad[-1] ^= 0xFF
    else:
        if fault == "length":
            bad[61] = 0x7E
        else:
            bad[22] |= {"codec 7": 7, "not gzip": 1}[fault]
        from crc32c import crc32c

        bad[17:21] = crc32c(bytes(bad[21:])).to_bytes(4, "big")
    found = taken(batch(0, 4), bad, batch(8, 2))
    assert [each.offset for each in found] == [0, 1, 2, 3, 7, 8, 9]
    value = found[4].value
    assert isinstance(value, Undecodable)
    assert value == bytes(bad)
    assert "offsets 4 to 7" in value.error


def test_a_batch_that_is_right_is_read_by_the_clients_own_decoder() -> None:
    found = taken(batch(0, 3), batch(3, 1))
    assert [(each.offset, each.key, each.value, each.headers) for each in found] == [
        (n, b"k", b"value %d" % (n % 3), [("h", b"v")]) for n in range(4)
    ]


# -- a changelog that is gone ----------------------------------------------------------------------


@kafka_only
@pytest.mark.slow
def test_tables_whose_changelogs_were_deleted_are_made_again_from_the_log(tmp_path: Path) -> None:
    from tests.support.load import Load, fold_worker, simulation, wait_folded

    with broker(tmp_path / "broker") as kafka:
        topics = catalogue(partitions=4)
        apply({"bootstrap_servers": kafka.bootstrap}, topics)
        load = Load(kafka.bootstrap, simulation(41, 800), rate=50_000)
        load.start()
        load.finish()
        worker = fold_worker(kafka, tmp_path).start()
        wait_folded(kafka)
        assert worker.stop() == 0, worker.tail()
        for each in ("jobs", "windows"):
            evidence.delete(kafka.bootstrap, f"runnerstream-{each}-changelog")
        time.sleep(1)
        apply({"bootstrap_servers": kafka.bootstrap}, topics)
        worker.start()
        live = sum(job.status != "completed" for job in load.truth.jobs.values())
        worker.wait(lambda: worker.metric("runnerstream_jobs") == live, 60, f"know {live} jobs")
        wait_folded(kafka)
        assert "folding it again from its beginning" in worker.tail(400)
        evidence.check_topics(kafka.bootstrap, load.truth)
        assert worker.stop() == 0, worker.tail()
