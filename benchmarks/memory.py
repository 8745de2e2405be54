"""Part 2: memory per live job, and the start of a worker that has many."""

from __future__ import annotations

import time
from typing import Any, Final

from benchmarks import facts, machine, marks
from benchmarks.bench import PARTITIONS, Observed, Options, Stage, say, stage
from benchmarks.throughput import ends

CHANGELOG: Final = "runnerstream-jobs-changelog"


def measure(options: Options) -> dict[str, Any]:
    """Fold many live jobs into a worker, look at it, start it again."""
    with stage(options.kind) as place:
        observed = Observed(place, "memory")
        with observed.process as process:
            process.wait_ready()
            # The first tick has come, so everything that is loaded late is loaded.
            observed.wait_taken(PARTITIONS, 60)
            time.sleep(1.0)
            empty = _rss(observed)
            say(f"memory: empty {empty / 2**20:.0f} MiB; folding {options.jobs_live:,} jobs")
            records = list(facts.live(options.jobs_live))
            runs = len({key for key, _ in records if b":run/" in key})
            before = observed.taken()
            facts.preload(place.bootstrap, records, PARTITIONS)
            observed.wait_taken(before + len(records), 600)
            observed.wait_quiet(60)
            full = _rss(observed)
        folded = marks.rate(_behind(observed.marks(), before), "fold", len(records))
        restarted = _restart(place, options, records[: 8 * PARTITIONS])
        return {
            "jobs": options.jobs_live,
            "runs": runs,
            "facts": len(records),
            "empty_rss": empty,
            "folded_rss": full,
            "bytes_per_job_folded": (full - empty) / options.jobs_live,
            "fold_per_second": folded.per_second,
            "bytes_per_job": (restarted["rss"] - empty) / options.jobs_live,
            "start": restarted,
        }


def _restart(place: Stage, options: Options, backlog: list[facts.Record]) -> dict[str, Any]:
    """Start a worker on the changelog; a few facts (all known) wait for it on the topic."""
    facts.preload(place.bootstrap, backlog, PARTITIONS)
    changelog = ends(place.bootstrap, CHANGELOG)
    observed = Observed(place, "restarted")
    began = time.monotonic()
    process = observed.process.start(wait=False)
    try:
        process.wait_ready(timeout=300)
        ready = time.monotonic() - began
        observed.wait_taken(1, 120)
        # The tables are there; what of the replay can be freed is freed by the next ticks.
        time.sleep(6.0)
        rss = _rss(observed)
    finally:
        process.stop()
    noted = observed.marks()
    first = marks.of(noted, "fold")[0]
    imported = marks.of(noted, "imported")[0]["t"] - began
    assigned = [mark["t"] for mark in marks.of(noted, "assigned")]
    settled = [mark["t"] for mark in marks.of(noted, "settled") if mark["t"] < first["t"]]
    replay = settled[-1] - assigned[0] if assigned and settled else None
    say(f"memory: restarted on {changelog:,} changelog records, ready after {ready:.1f} s")
    return {
        "changelog_records": changelog,
        "imported_s": imported,
        "replay_s": replay,
        "replay_per_second": changelog / replay if replay else None,
        "ready_s": ready,
        "first_batch_s": first["t"] - began,
        "first_fold_s": first["fold_seconds"],
        "rss": rss,
        "jobs": options.jobs_live,
    }


def _behind(noted: list[marks.Mark], records: int) -> list[marks.Mark]:
    """The fold's marks without those of the first ``records`` records."""
    folds = marks.of(noted, "fold")
    while folds and records > 0:
        records -= folds.pop(0)["records"]
    return folds


def _rss(observed: Observed) -> int:
    pid = observed.process.pid
    assert pid is not None
    return machine.rss(pid)
