"""What this worker knows about its own partitions, as plain data that can travel to a peer.

Everything is read from the ledgers. Long lists are walked in slices with the event loop let go
between them, so that 200,000 jobs do not stop the fold. A list is a moment's view: jobs may move
while it is made.
"""

from __future__ import annotations

import asyncio
import heapq
import os
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec
from msgspec.structs import asdict

from pipeline.jobs import Job, View
from pipeline.ledger import LIVE, Known, Ledger
from pipeline.text import version
from pipeline.windows import SIZES_S, Pane, Sketch, start_of
from topics.models import Status

if TYPE_CHECKING:
    from pipeline.worker import Worker

#: Index entries looked at, and jobs decoded, before the loop is let go. A millisecond or two.
SLICE: Final = 2_000
DECODE_SLICE: Final = 25

#: Most rows on a page of jobs, and most windows in an answer.
MAX_LIMIT: Final = 1_000
MAX_WINDOWS: Final = 5_000

STATUSES: Final = tuple(status.value for status in Status)


@dataclass(frozen=True, slots=True)
class JobQuery:
    """Which jobs to list, and from where. Oldest first: by when they entered their state."""

    states: tuple[str, ...] = LIVE
    fleet: str | None = None
    repo: str | None = None
    #: Least time in the state, ms. A job of which no fact tells since when does not match.
    min_age_ms: int = 0
    #: The last (time, key) of the page before.
    after: tuple[int, str] | None = None
    limit: int = 100


async def jobs(worker: Worker, partitions: Iterable[int], query: JobQuery) -> dict[str, Any]:
    """One page of matching jobs of the given partitions, and how many match in all."""
    now = int(time.time() * 1000)
    states = frozenset(query.states)
    needle = None if query.repo is None else b'"repo":' + msgspec.json.encode(query.repo)
    # A heap of the smallest (time, key) so far, its largest on top. Times are negated for that;
    # keys break ties, so they are compared the other way round through _Reversed.
    page: list[tuple[int, _Reversed, Ledger]] = []
    matched = unknown_age = looked = 0
    answered = []
    for partition in partitions:
        ledger = worker.fold.ledgers.get(partition)
        if ledger is None:
            continue
        answered.append(partition)
        for key, known in list(ledger.index.items()):
            looked += 1
            if looked % SLICE == 0:
                await asyncio.sleep(0)
            if known.status not in states:
                continue
            if query.fleet is not None and known.fleet != query.fleet:
                continue
            if query.min_age_ms and known.since is None:
                unknown_age += 1
                continue
            if query.min_age_ms and now - (known.since or 0) < query.min_age_ms:
                continue
            if needle is not None and not _says(ledger, key, needle):
                continue
            matched += 1
            at = _order(known)
            if query.after is not None and (at, key) <= query.after:
                continue
            entry = (-at, _Reversed(key), ledger)
            # One more than the page holds: it tells that there is another page.
            if len(page) <= query.limit:
                heapq.heappush(page, entry)
            elif entry[:2] > page[0][:2]:
                heapq.heapreplace(page, entry)
    page.sort(key=lambda entry: entry[:2], reverse=True)
    rows = []
    for number, (minus_at, key_, ledger) in enumerate(page):
        if number % DECODE_SLICE == 0:
            await asyncio.sleep(0)
        found = ledger.job(key_.key)
        if found is not None:
            rows.append(_row(*found, now) | {"order": [-minus_at, key_.key]})
    return {
        "partitions": answered,
        "jobs": rows,
        "matched": matched,
        "unknown_age": unknown_age,
    }


class _Reversed:
    """A key that sorts the other way round."""

    __slots__ = ("key",)

    def __init__(self, key: str) -> None:
        self.key = key

    def __lt__(self, other: _Reversed) -> bool:
        return self.key > other.key

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Reversed) and self.key == other.key

    __hash__ = None  # type: ignore[assignment]


def _order(known: Known) -> int:
    # Where no fact tells since when, since we first heard of it is the earliest we can say.
    return known.first_seen if known.since is None else known.since


def _says(ledger: Ledger, key: str, needle: bytes) -> bool:
    # The stored bytes are searched instead of decoded, which is a hundred times as fast. Quotes
    # inside strings are escaped there, so only the field itself can match.
    value = ledger.stored(key)
    return value is not None and needle in value


def _row(job: Job, view: View, now: int) -> dict[str, Any]:
    a, at = job.attributes, view.at
    return {
        "key": job.key,
        "status": view.status,
        "since": view.since,
        "age_ms": None if view.since is None else max(0, now - view.since),
        "first_seen": job.first_seen,
        "fleet": view.fleet,
        "repo": a.repo,
        "workflow": a.workflow,
        "name": a.name,
        "branch": a.branch,
        "run_id": a.run_id,
        "run_attempt": a.run_attempt,
        "url": a.url,
        "runner": job.runner.name if job.runner else "",
        "conclusion": view.conclusion,
        "queued_at": at.queued.ms if at.queued else None,
        "started_at": at.started.ms if at.started else None,
        "completed_at": at.completed.ms if at.completed else None,
        # Milliseconds, or the word why there is none.
        "timings": {
            family: t.missing if t.ms is None else t.ms for family, t in view.timings.items()
        },
        "rev": job.rev,
    }


def job(worker: Worker, partition: int, key: str) -> dict[str, Any] | None:
    """All about one job; ``None`` when it is not known. Raises LookupError while the partition's
    jobs are not loaded."""
    ledger = worker.fold.ledgers.get(partition)
    if ledger is None:
        raise LookupError(partition)
    found = ledger.job(key)
    if found is None:
        return None
    known, view = found
    now = int(time.time() * 1000)
    row = _row(known, view, now)
    at, a = view.at, known.attributes
    provider, host, job_id = known.key.split(":", 2)
    return row | {
        "provider": provider,
        "host": host,
        "job_id": job_id,
        "partition": partition,
        "labels": list(a.labels),
        "pool": a.pool,
        "runner_group": a.runner_group or (known.runner.group if known.runner else ""),
        "sha": a.sha,
        "waiting_at": at.waiting,
        "claimed_at": at.claimed,
        "minted_at": at.minted,
        "gated_ms": at.gated_ms,
        "abandoned_ms": view.abandoned_ms,
        "copied": at.copied,
        "timings": {
            family: {
                "ms": t.ms,
                "missing": t.missing,
                "start_clock": t.start_clock,
                "end_clock": t.end_clock,
                "clamped_ms": t.clamped_ms,
            }
            for family, t in view.timings.items()
        },
        "timeline": _timeline(known, view),
        "claims": [
            {"handle": handle, **asdict(claim), "chosen": handle == at.claim}
            for handle, claim in sorted(
                known.claims.items(), key=lambda item: (item[1].claimed_at or 0, item[0])
            )
        ],
        "run": None if known.run is None else asdict(known.run),
        "causes": list(known.causes),
    }


def _timeline(known: Job, view: View) -> list[dict[str, Any]]:
    """Every moment anybody told of, in time order. ``used`` marks those that count."""
    at = view.at
    chosen = {
        (name, found.clock)
        for name, found in (
            ("queued", at.queued),
            ("started", at.started),
            ("completed", at.completed),
        )
        if found is not None
    }
    moments: list[tuple[int, str, str, str, bool]] = []
    for milestone, clocks in known.times.items():
        for clock, ms in clocks.items():
            moments.append((ms, milestone, clock, "", (milestone, clock) in chosen))
    for ms, kind in known.marks:
        moments.append((ms, f"called {kind}", "delivery", "", False))
    for handle, claim in known.claims.items():
        said = f"claim {handle}" + (f" on {claim.runner}" if claim.runner else "")
        counts = handle == at.claim
        for ms_, what in ((claim.claimed_at, "claimed"), (claim.minted_at, "minted")):
            if ms_ is not None:
                moments.append((ms_, what, "runner", said, counts))
        if claim.released_at is not None:
            why = f"{said}: {claim.reason}" if claim.reason else said
            moments.append((claim.released_at, "released", "runner", why, counts))
    if known.run is not None:
        attempt = f"attempt {known.run.attempt}"
        for ms_, what in (
            (known.run.started_at, "run started"),
            (known.run.completed_at, "run completed"),
        ):
            if ms_ is not None:
                moments.append((ms_, what, "provider", attempt, False))
    moments.append((known.first_seen, "first heard of", "received", "", False))
    return [
        {"at": ms, "what": what, "clock": clock, "detail": detail, "used": used}
        for ms, what, clock, detail, used in sorted(moments)
    ]


async def fleets(worker: Worker, partitions: Iterable[int], span_s: int) -> dict[str, Any]:
    """Jobs by fleet and status, the oldest of each, and the timings of the last ``span_s``."""
    since = start_of(int(time.time() * 1000), SIZES_S[0]) - span_s * 1000 + SIZES_S[0] * 1000
    found: dict[str, dict[str, Any]] = {}
    merged: dict[str, Pane] = {}
    answered = []
    looked = 0
    for partition in partitions:
        ledger = worker.fold.ledgers.get(partition)
        if ledger is None:
            continue
        answered.append(partition)
        for (fleet, status), count in ledger.counts().items():
            one = found.setdefault(fleet, {"jobs": {}, "oldest": {}})
            one["jobs"][status] = one["jobs"].get(status, 0) + count
            oldest = ledger.oldest(fleet, status) if status in LIVE else None
            if oldest is not None:
                one["oldest"][status] = min(oldest, one["oldest"].get(status, oldest))
        for (fleet, start), pane in list(ledger.panes.items()):
            looked += 1
            if looked % SLICE == 0:
                await asyncio.sleep(0)
            if start >= since:
                merged.setdefault(fleet, Pane()).merge(pane)
    for fleet, pane in merged.items():
        found.setdefault(fleet, {"jobs": {}, "oldest": {}})["pane"] = pane_data(pane)
    return {"partitions": answered, "fleets": found, "since": since}


async def windows(
    worker: Worker,
    partitions: Iterable[int],
    fleet: str | None,
    size_s: int,
    since: int,
    until: int,
) -> dict[str, Any]:
    """The windows of a size that start in ``[since, until)``, made of the panes still kept.

    Panes go once their hour is closed and the grace is over, all of an hour together, so a
    window is there whole or not at all.
    """
    merged: dict[tuple[str, int], Pane] = {}
    still_open: set[tuple[str, int]] = set()
    answered = []
    looked = 0
    for partition in partitions:
        ledger = worker.fold.ledgers.get(partition)
        if ledger is None:
            continue
        answered.append(partition)
        for (name, pane_at), pane in list(ledger.panes.items()):
            looked += 1
            if looked % (SLICE // 10) == 0:
                await asyncio.sleep(0)
            start = start_of(pane_at, size_s)
            if not since <= start < until or (fleet is not None and name != fleet):
                continue
            merged.setdefault((name, start), Pane()).merge(pane)
            if ledger.policy.closes_at(start, size_s) > ledger.clock:
                still_open.add((name, start))
    newest = sorted(merged, key=lambda where: (-where[1], where[0]))[:MAX_WINDOWS]
    return {
        "partitions": answered,
        "truncated": len(merged) - len(newest),
        "windows": [
            {
                "fleet": name,
                "start": start,
                "open": (name, start) in still_open,
                "pane": pane_data(merged[(name, start)]),
            }
            for name, start in newest
        ],
    }


def about(worker: Worker) -> dict[str, Any]:
    """This worker: what it owns, how long it has run, how far behind it is."""
    ledgers = worker.fold.ledgers
    owned = worker.owned() if worker.settled else []
    return {
        "partitions": sorted(ledgers),
        "owned": owned,
        "url": str(worker.app.conf.canonical_url),
        "pid": os.getpid(),
        "version": version(),
        "started_at": int(worker.started_at * 1000),
        "jobs": sum(len(ledger.index) for ledger in ledgers.values()),
        "clock": {str(partition): ledger.clock for partition, ledger in sorted(ledgers.items())},
    }


def pane_data(pane: Pane) -> dict[str, Any]:
    """A pane as data for a peer."""
    return {
        "families": {
            family: [s.count, s.sum_ms, s.zeros, {str(b): n for b, n in s.bins.items()}]
            for family, s in pane.families.items()
        },
        "conclusions": dict(pane.conclusions),
    }


def pane_of(data: dict[str, Any]) -> Pane:
    """The pane that was made data."""
    pane = Pane()
    for family, (count, sum_ms, zeros, bins) in data["families"].items():
        pane.families[family] = Sketch(count, sum_ms, zeros, {int(b): n for b, n in bins.items()})
    pane.conclusions = dict(data["conclusions"])
    return pane


def summary(pane: Pane) -> dict[str, Any]:
    """What people want of a pane: per family count, mean, quantiles, largest; conclusions."""
    return {
        "families": {
            family: {
                "count": sketch.count,
                "sum_ms": sketch.sum_ms,
                "mean_ms": sketch.sum_ms / sketch.count,
                "p50_ms": sketch.quantile(0.5),
                "p95_ms": sketch.quantile(0.95),
                "p99_ms": sketch.quantile(0.99),
                "max_ms": sketch.max_ms,
            }
            for family, sketch in sorted(pane.families.items())
            # Samples that a later fact moved elsewhere leave an empty sketch behind.
            if sketch.count > 0
        },
        "conclusions": dict(sorted(pane.conclusions.items())),
    }
