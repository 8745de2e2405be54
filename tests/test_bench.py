"""The benchmark runs and its figures are sane. How fast anything is, is not tested here."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks import facts, marks, report
from tests.support.worker import ROOT
from topics.models import JOBS_RECORD, JobFact, RunLink
from topics.reading import read


def bench(
    folder: Path, options: str, timeout: float = 120
) -> tuple[subprocess.CompletedProcess[str], dict[str, Any]]:
    """Run it with these options; what it printed, and what it wrote down."""
    out = folder / "bench.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *options.split(), "--json", str(out)],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    return done, json.loads(out.read_text())


def test_a_tiny_run_writes_sane_figures(tmp_path: Path) -> None:
    done, result = bench(tmp_path, "--facts 2000 --rounds 1 --parts throughput")
    assert result["machine"]["cores"] >= 1
    part = result["parts"]["throughput"]
    assert part["facts"] == 2000
    assert part["ratio"] > 0
    (only,) = part["rounds"]
    for rate in (only["floor"], only["worker"]["rate"]):
        assert rate["records"] >= 2000 / 2
        assert rate["per_second"] > 0
        assert rate["cpu_us"] > 0
        assert 0 < rate["written_per_record"] < 3
    assert only["worker"]["dead_letters"] == 0
    assert only["worker"]["job_states_written"] > 100
    assert "worker / floor" in done.stdout


def test_a_tiny_tick_part_times_what_is_due(tmp_path: Path) -> None:
    done, result = bench(tmp_path, "--parts tick --jobs-live 400 --runners 200 --ticks 3")
    part = result["parts"]["tick"]
    jobs, fleets = part["jobs"], part["fleets"]
    assert jobs["live"] >= 400
    assert set(jobs["by_status"]) >= {"queued", "claimed", "starting", "running"}
    assert jobs["nothing"]["looked"]["max"] == 0
    assert jobs["burst"]["looked"]["max"] > jobs["usual"]["looked"]["max"]
    assert jobs["retention"]["forgotten"] >= jobs["live"]
    assert fleets["proposed"]["outputs"]["max"] > fleets["quiet"]["outputs"]["p50"]
    cases = [jobs[name] for name in ("nothing", "usual", "burst", "retention")]
    for case in (*cases, fleets["quiet"], fleets["beating"], fleets["proposed"]):
        assert case["ticks"] == 3
        assert 0 < case["cpu_ms"]["p50"] <= case["cpu_ms"]["max"]
    assert "tick, all due" in done.stdout


def test_a_tiny_stall_part_gets_a_command_for_every_stuck_job(tmp_path: Path) -> None:
    done, result = bench(
        tmp_path, "--parts stall --rate 50 --stall-seconds 1.5 --tick-seconds 0.5", timeout=240
    )
    part = result["parts"]["stall"]
    assert part["commanded"] == part["stuck"] == 6, done.stderr
    assert part["other_commands"] == 0
    assert part["questions"] >= 4
    assert set(part["by_kind"]) == {"orphan", "runner_lost", "stale_claim"}
    # Nobody commands before the rule applies, and no job is stuck before it says so.
    for each in part["by_kind"].values():
        assert 0 < each["found_ms"]["p50"] <= each["found_ms"]["max"]
        assert each["took_ms"]["p50"] > 0
    assert "stall to command" in done.stdout


def test_a_tiny_gateway_part_finds_all_that_was_accepted(tmp_path: Path) -> None:
    done, result = bench(tmp_path, "--parts gateway --rounds 1 --gateway-seconds 0.5")
    part = result["parts"]["gateway"]
    (only,) = part["rounds"]
    for each in (only["floor"], only["gateway"]):
        assert each["accepted"] == each["deliveries"] > 0
        assert each["cpu_us"] > 0
        assert 0 < each["p50_s"] <= each["p99_s"]
    over = part["overload"]
    assert over["accepted"] > 0
    assert over["shed"] > 0
    assert over["accepted"] + over["shed"] == over["answers"]
    assert over["accepted_and_not_written"] == 0
    assert over["ready_after"]
    paced = part["paced"]
    assert paced["accepted"] + paced["shed"] == paced["offered"] > 0
    assert paced["accepted_and_not_written"] == 0
    assert paced["ready_after"]
    slow = part["slow"]
    assert slow["accepted"] == slow["ordinary"] > 0
    assert slow["accepted_and_not_written"] == 0
    assert slow["connections"] == slow["open"][0] >= 1_000
    assert "gateway / bare" in done.stdout


def test_wrong_parts_are_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--parts", "speed"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 2
    assert "throughput" in done.stderr


def test_live_jobs_are_as_many_as_asked_for_and_distinct() -> None:
    records = list(facts.live(900, templates=200))
    said = [read(JOBS_RECORD, value) for _, value in records]
    assert [fact.key.encode() for fact in said] == [key for key, _ in records]
    assert len({fact.id for fact in said}) == len(said)
    jobs = {fact.key for fact in said if isinstance(fact, JobFact)}
    # A run is not cut, so the last one may bring some more.
    assert 900 <= len(jobs) < 900 + 256
    assert {fact.job_key for fact in said if isinstance(fact, RunLink)} == jobs
    assert not any("completed" in fact.times for fact in said if isinstance(fact, JobFact))


def test_a_rate_leaves_out_the_first_batch_and_what_comes_after_the_last() -> None:
    def mark(t: float, records: int) -> marks.Mark:
        return {
            "what": "fold", "t": t, "cpu": t / 2, "records": records, "seconds": 1.0,
            "fold_seconds": 0.5, "writes": {"outputs": records},
        }  # fmt: skip

    rate = marks.rate([mark(10, 100), mark(11, 100), mark(12, 100), mark(90, 1)], "fold", 300)
    assert (rate.records, rate.seconds, rate.per_second) == (200, 2, 100)
    assert rate.cpu_us == 1 / 200 * 1e6
    assert rate.fold_share == 0.5


def test_the_table_says_what_was_not_measured_by_leaving_it_out() -> None:
    result = {
        "machine": {"cores": 2, "cpu": "x", "memory_gib": 1, "python": "3", "load_before": [0]},
        "broker": "broker: Apache Kafka",
        "parts": {},
    }
    assert "facts/s" not in report.text(result)
