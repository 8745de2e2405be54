"""What the pipeline tells of itself: its process, its event loop, its group, tables, producers."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiokafka.errors
import pytest
from prometheus_client import CollectorRegistry

from pipeline.effects import Output
from pipeline.faust_safe import Outbox, sensor
from pipeline.local.process import free_port
from pipeline.pulse import BEATS_KEPT, LOOP_LAG_WORST, Pulse
from sinks.process import tell_process
from tests.support.brokers import Broker, broker, kind
from tests.support.load import simulation
from tests.support.worker import WorkerProcess
from topics.apply import apply
from topics.catalogue import JOBS, catalogue
from topics.producer import Producer

PARTITIONS = 2


# -- a process -------------------------------------------------------------------------------------


def test_a_process_tells_of_itself(tmp_path: Path) -> None:
    registry = CollectorRegistry()
    tell_process(registry, "1.2.3")

    def value(name: str, **labels: str) -> float:
        found = registry.get_sample_value(name, labels)
        assert found is not None, name
        return found

    assert value("runnerstream_build_info", version="1.2.3") == 1
    assert 0 < value("process_start_time_seconds") <= time.time()
    assert value("process_virtual_memory_bytes") > value("process_resident_memory_bytes")
    for generation in "012":
        assert value("python_gc_objects_uncollectable_total", generation=generation) >= 0
    files = [(tmp_path / str(n)).open("w") for n in range(20)]
    many, full = value("process_open_fds"), value("process_resident_memory_bytes")
    held = b"x" * (100 << 20)
    assert value("process_resident_memory_bytes") > full + len(held) // 2
    for file in files:
        file.close()
    assert value("process_open_fds") <= many - 20 < value("process_max_fds")
    stop, threads = threading.Event(), value("runnerstream_threads")
    thread = threading.Thread(target=stop.wait)
    thread.start()
    assert value("runnerstream_threads") == threads + 1
    stop.set()
    thread.join()
    spent, full_runs = value("process_cpu_seconds_total"), value(
        "python_gc_collections_total", generation="2"
    )  # fmt: skip
    collected = value("python_gc_objects_collected_total", generation="2")
    runs, stood = value("runnerstream_gc_pause_seconds_count"), value(
        "runnerstream_gc_pause_seconds_sum"
    )  # fmt: skip
    while value("process_cpu_seconds_total") == spent:
        knot: list[Any] = []
        knot.append(knot)
        del knot
        gc.collect()
    assert value("python_gc_collections_total", generation="2") > full_runs
    assert value("python_gc_objects_collected_total", generation="2") > collected
    assert value("runnerstream_gc_pause_seconds_count") > runs
    assert value("runnerstream_gc_pause_seconds_sum") > stood
    assert value("runnerstream_gc_pause_seconds_bucket", le="+Inf") == value(
        "runnerstream_gc_pause_seconds_count"
    )


# -- the event loop --------------------------------------------------------------------------------


async def test_an_event_loop_that_is_held_up_is_late() -> None:
    pulse = Pulse(beat_s=0.001)
    assert list(pulse.levels()) == []
    late = asyncio.create_task(pulse.beat())
    await asyncio.sleep(0)
    time.sleep(0.1)  # noqa: ASYNC251 - as a batch that takes long
    assert await late > 0.09
    ((gauge, labels, worst),) = pulse.levels()
    assert (gauge, labels, worst) == (LOOP_LAG_WORST, (), await late)
    for _ in range(BEATS_KEPT):
        await pulse.beat()
    # Not for ever.
    assert next(pulse.levels())[2] != worst


# -- the group and the producers -------------------------------------------------------------------


class Told:
    """What was counted, by metric and labels; of a distribution the sum."""

    def __init__(self) -> None:
        self.counted: Counter[Any] = Counter()
        self.times: Counter[Any] = Counter()

    def __call__(self, metric: Any, labels: Any, value: float = 1.0) -> None:
        self.counted[metric, labels] += value
        self.times[metric, labels] += 1


def test_a_rebalance_that_is_overtaken_goes_on() -> None:
    told = Told()
    group = sensor.GroupSensor(told)
    first = time.monotonic()
    group.on_rebalance_start(None)
    time.sleep(0.02)
    group.on_rebalance_start(None)
    assert not told.times[sensor.REBALANCE_SECONDS, ()]
    group.on_rebalance_end(None, {})
    assert told.counted[sensor.REBALANCES, ()] == 2
    assert told.times[sensor.REBALANCE_SECONDS, ()] == 1
    assert 0.02 <= told.counted[sensor.REBALANCE_SECONDS, ()] <= time.monotonic() - first
    # What did not begin here does not end here.
    group.on_rebalance_end(None, {})
    assert told.times[sensor.REBALANCE_SECONDS, ()] == 1


async def test_a_write_that_fails_is_counted() -> None:
    told = Told()
    outbox = Outbox({JOBS: 1}, {"bootstrap_servers": f"127.0.0.1:{free_port()}"}, told)
    with pytest.raises(aiokafka.errors.KafkaConnectionError):
        await outbox.publish([Output(JOBS, 0, b"k", b"v")])
    assert told.counted == {(sensor.PRODUCE_FAILURES, ("error",)): 1}


# -- a worker --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(tmp_path_factory.mktemp("broker")) as made:
        apply({"bootstrap_servers": made.bootstrap}, catalogue(partitions=PARTITIONS))
        yield made


#: Everything that a worker does counts somewhere.
RISES = (
    "rebalances_total",
    "rebalance_seconds_count",
    "assignment_seconds_count",
    "table_recovery_seconds_count",
    "offset_commit_seconds_count",
    'produced_records_total{topic="changelog"}',
    f'produced_records_total{{topic="{JOBS}"}}',
    'produce_seconds_count{way="plain"}',
    "loop_lag_seconds_count",
    "loop_lag_worst_seconds",
    "threads",
)


def test_a_worker_tells_what_its_group_tables_and_producers_do(
    running: Broker, tmp_path: Path
) -> None:
    worker = WorkerProcess(running.bootstrap, partitions=PARTITIONS, log=tmp_path / "w.log")
    rises = [f"runnerstream_{name}" for name in RISES]
    if kind() == "kafka":
        rises.append('runnerstream_produce_seconds_count{way="transaction"}')

    def told() -> dict[str, float]:
        lines = str(worker.get("/metrics")[1]).splitlines()
        pairs = (line.rpartition(" ") for line in lines if not line.startswith("#"))
        return {name: float(value) for name, _, value in pairs}

    with worker:
        worker.wait_ready()
        with Producer(running.bootstrap) as producer:
            for record in simulation(1, 20).records():
                producer.send(record.topic, record.key, record.value, record.headers)
        for name in rises:
            worker.wait(lambda name=name: told()[name] > 0, 30, f"count {name}")
        found = told()
        assert "runnerstream_gc_pause_seconds_count" in found
        assert found['runnerstream_produce_failures_total{reason="error"}'] == 0
        assert [name for name in found if name.startswith("runnerstream_build_info{version=")]
        assert found["process_resident_memory_bytes"] > 20 << 20
        assert len(found) < 5_000
