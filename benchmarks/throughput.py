"""Part 1: facts per second and processor time per fact, floor and worker in turn."""

from __future__ import annotations

import json
import subprocess
import sys
from statistics import median
from typing import Any, Final

from kafka import KafkaConsumer, TopicPartition

from benchmarks import facts, floor, machine, marks
from benchmarks.bench import BATCH, PARTITIONS, Observed, Options, Stage, say, stage
from tests.support.worker import ROOT
from topics.catalogue import DEAD_LETTERS, JOB_STATES

#: Application ids of the floor and of the same fold without a framework.
FLOOR: Final = "bench-floor"
BARE: Final = "bench-bare"


def measure(options: Options) -> dict[str, Any]:
    """Preload, floor, worker; as many rounds as asked for, each on an empty broker."""
    say(f"throughput: making {options.facts:,} facts")
    records = facts.arriving(options.facts)
    sizes = facts.written(records, PARTITIONS, BATCH // PARTITIONS)
    rounds = []
    for number in range(1, options.rounds + 1):
        with stage(options.kind, "runnerstream", FLOOR, BARE) as place:
            seconds = facts.preload(place.bootstrap, records, PARTITIONS)
            say(f"throughput: round {number}: preloaded in {seconds:.1f} s")
            ground = _floor(place, FLOOR, len(records), sizes)
            say(f"throughput: round {number}: floor {ground.per_second:,.0f} facts/s")
            bare = _floor(place, BARE, len(records), sizes)
            say(f"throughput: round {number}: same fold, no framework {bare.per_second:,.0f}")
            worker = _worker(place, len(records))
            said = worker["rate"]
            say(f"throughput: round {number}: worker {said['per_second']:,.0f} facts/s")
            rounds.append(
                {
                    "floor": ground.data(),
                    "bare": bare.data(),
                    "worker": worker,
                    "ratio": said["per_second"] / ground.per_second,
                    "framework_ratio": said["per_second"] / bare.per_second,
                }
            )
    return {
        "facts": len(records),
        "fact_bytes": round(sum(len(value) for _, value in records) / len(records)),
        "job_state_bytes": sizes.job_bytes,
        "run_state_bytes": sizes.run_bytes,
        "floor_per_second": median(r["floor"]["per_second"] for r in rounds),
        "worker_per_second": median(r["worker"]["rate"]["per_second"] for r in rounds),
        "bare_per_second": median(r["bare"]["per_second"] for r in rounds),
        "ratio": median(r["ratio"] for r in rounds),
        "framework_ratio": median(r["framework_ratio"] for r in rounds),
        "bare_cpu_us": median(r["bare"]["cpu_us"] for r in rounds),
        "floor_cpu_us": median(r["floor"]["cpu_us"] for r in rounds),
        "worker_cpu_us": median(r["worker"]["rate"]["cpu_us"] for r in rounds),
        "worker_rss": max(r["worker"]["rss"] for r in rounds),
        "rounds": rounds,
    }


def _floor(place: Stage, app_id: str, number: int, sizes: facts.Written) -> marks.Rate:
    task = floor.Task(
        bootstrap=place.bootstrap,
        # Its changelogs are its own: the worker must not recover from them.
        app_id=app_id,
        fold=app_id == BARE,
        partitions=PARTITIONS,
        facts=number,
        batch=BATCH,
        job_bytes=sizes.job_bytes,
        run_bytes=sizes.run_bytes,
    )
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.floor"],
        input=floor.encode(task),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=ROOT,
    )
    if done.returncode:
        raise RuntimeError(f"the floor failed:\n{done.stderr[-2000:]}")
    return marks.rate(json.loads(done.stdout), "fold", number)


def _worker(place: Stage, number: int) -> dict[str, Any]:
    states = ends(place.bootstrap, JOB_STATES)
    observed = Observed(place, "worker")
    with observed.process as process:
        observed.wait_taken(number, 300)
        pid = process.pid
        assert pid is not None
        rss, peak = machine.rss(pid), machine.peak_rss(pid)
    return {
        "rate": marks.rate(observed.marks(), "fold", number).data(),
        "rss": rss,
        "peak_rss": peak,
        "job_states_written": ends(place.bootstrap, JOB_STATES) - states,
        "dead_letters": ends(place.bootstrap, DEAD_LETTERS),
    }


def ends(bootstrap: str, topic: str) -> int:
    """How many records a topic has ever had."""
    client = KafkaConsumer(bootstrap_servers=bootstrap, enable_auto_commit=False)
    try:
        tps = [TopicPartition(topic, p) for p in client.partitions_for_topic(topic) or ()]
        return sum(client.end_offsets(tps).values())
    finally:
        client.close()
