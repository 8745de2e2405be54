"""Part 4: the way into ClickHouse, the sink against a bare consumer and driver.

Both take the same job states from ``runners.job-states``. The floor does, per batch of at most
:data:`BATCH`: ``poll`` of a bare kafka-python consumer with the sink's fetch options, the same
parse and rows (``sinks.rows.decode`` and ``build``), one columnar insert per table through a bare
clickhouse-driver with the sink's insert settings, then a commit. It has no tokens, no flights, no
back pressure, no retries and no dead letters, and the next poll waits for the insert.
"""

from __future__ import annotations

import subprocess
import sys
import time
from statistics import median
from typing import Any, Final

from clickhouse_driver import Client
from kafka import KafkaConsumer, TopicPartition

from benchmarks import facts, machine
from benchmarks.bench import BATCH, PARTITIONS, Observed, Options, Stage, say, stage
from benchmarks.throughput import ends
from pipeline.local import EmbeddedClickHouse
from sinks import rows, schema
from sinks.config import SinkConfig
from sinks.writer import INSERT_SETTINGS
from tests.support.worker import ROOT, WorkerProcess
from topics.catalogue import JOB_STATES

#: With fewer, the sink's rate would be that of its first and last batch.
LEAST_FACTS: Final = 60_000
RECORDS: Final = SinkConfig({}, "", "").max_records


def measure(options: Options) -> dict[str, Any]:
    """Make states with a worker, then floor and sink in turn, each on a database of its own."""
    records = facts.arriving(max(LEAST_FACTS, options.facts))
    with (
        stage(options.kind) as place,
        EmbeddedClickHouse(place.directory / "clickhouse") as server,
    ):
        facts.preload(place.bootstrap, records, PARTITIONS)
        worker = Observed(place, "worker", batch_records=BATCH)
        with worker.process:
            worker.wait_taken(len(records), 300)
            worker.wait_quiet(30)
        states = ends(place.bootstrap, JOB_STATES)
        say(f"insert: {states:,} job states")
        rounds = []
        for number in range(1, options.rounds + 1):
            ground = _floor(place, server, number, states)
            said = _sink(place, server, number, states)
            say(
                f"insert: round {number}: floor {ground['per_second']:,.0f} states/s, "
                f"sink {said['per_second']:,.0f}"
            )
            rounds.append(
                {"floor": ground, "sink": said, "ratio": said["per_second"] / ground["per_second"]}
            )
    return {
        "states": states,
        "floor_per_second": median(r["floor"]["per_second"] for r in rounds),
        "sink_per_second": median(r["sink"]["per_second"] for r in rounds),
        "ratio": median(r["ratio"] for r in rounds),
        "floor_cpu_us": median(r["floor"]["cpu_us"] for r in rounds),
        "sink_cpu_us": median(r["sink"]["cpu_us"] for r in rounds),
        "rounds": rounds,
    }


def _database(server: EmbeddedClickHouse, name: str) -> str:
    url = server.url.rpartition("/")[0] + f"/{name}"
    schema.apply(url)
    return url


def _floor(place: Stage, server: EmbeddedClickHouse, number: int, states: int) -> dict[str, Any]:
    url = _database(server, f"floor_{number}")
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.insert", place.bootstrap, url, str(states)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=ROOT,
    )
    if done.returncode:
        raise RuntimeError(f"the insert floor failed:\n{done.stderr[-2000:]}")
    seconds, cpu, counted = (float(word) for word in done.stdout.split())
    return {"per_second": counted / seconds, "cpu_us": cpu / counted * 1e6, "records": counted}


def run_floor(bootstrap: str, url: str, states: int) -> tuple[float, float, int]:
    """Do it; (seconds, processor seconds, records) from the end of the first batch on."""
    client = Client.from_url(url)
    names = client.execute(
        "SELECT name FROM system.settings WHERE name IN %(names)s",
        {"names": tuple(INSERT_SETTINGS)},
    )
    settings = {name: INSERT_SETTINGS[name] for (name,) in names}
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap,
        group_id=f"bench-{url.rpartition('/')[2]}",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        max_poll_records=RECORDS,
        fetch_max_wait_ms=250,
        metrics_enabled=False,
        isolation_level="read_committed",
    )
    tps = [TopicPartition(JOB_STATES, p) for p in range(PARTITIONS)]
    consumer.assign(tps)

    def position() -> int:
        # Marks of transactions count, here and for the sink: both have to pass them.
        return sum(consumer.position(tp) or 0 for tp in tps)

    first = taken = 0
    began = time.monotonic(), time.process_time()
    while taken < states:
        items: list[rows.Item] = []
        while len(items) < RECORDS and position() < states:
            fetched = consumer.poll(timeout_ms=200, max_records=RECORDS - len(items))
            items += [rows.decode(record) for batch in fetched.values() for record in batch]
        for table in rows.build(items)[0]:
            columns = ", ".join(f"`{column}`" for column in table.table.columns)
            client.execute(
                f"INSERT INTO {table.table.name} ({columns}) VALUES",
                list(zip(*table.rows, strict=True)),
                columnar=True,
                settings=settings,
            )
        consumer.commit()
        taken = position()
        if not first and taken < states:
            # That was the first of several.
            first, began = taken, (time.monotonic(), time.process_time())
    result = time.monotonic() - began[0], time.process_time() - began[1], taken - first
    consumer.close()
    return result


def _sink(place: Stage, server: EmbeddedClickHouse, number: int, states: int) -> dict[str, Any]:
    """A sink process; its progress is what it has committed."""
    app_id = f"bench-sink-{number}"
    sink = WorkerProcess(
        place.bootstrap,
        role="sink",
        log=place.directory / f"{app_id}.log",
        directory=place.directory / app_id,
        app_id=app_id,
        partitions=PARTITIONS,
        clickhouse=_database(server, f"sink_{number}"),
    )
    watcher = KafkaConsumer(
        bootstrap_servers=place.bootstrap, group_id=f"{app_id}-sink", enable_auto_commit=False
    )
    tps = [TopicPartition(JOB_STATES, p) for p in range(PARTITIONS)]
    noted: list[tuple[float, float, int]] = []
    started = time.monotonic()
    process = sink.start(wait=False)
    try:
        deadline = started + 300
        done = 0
        while done < states:
            if time.monotonic() > deadline:
                raise TimeoutError(f"the sink committed {done} of {states}:\n{process.tail()}")
            now, used = time.monotonic(), machine.cpu_seconds(process.pid or 0)
            committed = sum(watcher.committed(tp) or 0 for tp in tps)
            if committed > done:
                done = committed
                noted.append((now, used, done))
            time.sleep(0.02)
        rss = machine.rss(process.pid or 0)
    finally:
        watcher.close()
        process.stop()
    first, last = noted[0], noted[-1]
    if len(noted) == 1:
        first = (started, 0.0, 0)
    counted = last[2] - first[2]
    return {
        "per_second": counted / (last[0] - first[0]),
        "cpu_us": (last[1] - first[1]) / counted * 1e6,
        "records": counted,
        "rss": rss,
    }


if __name__ == "__main__":
    print(*run_floor(sys.argv[1], sys.argv[2], int(sys.argv[3])))
