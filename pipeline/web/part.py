"""What this worker knows about its own partitions, as plain data that can travel to a peer.

Everything is read from the ledgers. Long lists are walked in slices with the event loop let go
between them (:mod:`pipeline.web.turns`), so that 200,000 jobs do not stop the fold. A list is a
moment's view: jobs may move while it is made.

Answers are pages. Each worker gives the first so many entries behind the cursor, and one more,
which tells that there is another page. What is among the first of all is among the first of
whoever has it, so pages put together from all workers are whole.
"""

from __future__ import annotations

import heapq
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Generic, TypeVar

import msgspec
from msgspec.structs import asdict

from pipeline.jobs import Job, View, explain
from pipeline.jobs.facts import Step
from pipeline.ledger import LIVE, Known, Ledger
from pipeline.recovery.explain import explain_recovery
from pipeline.text import version
from pipeline.web.ports import Console, JobReader
from pipeline.web.turns import Turn
from pipeline.windows import SIZES_S, Pane, Sketch, by_kind, start_of
from topics.keys import parse_job_key
from topics.models import Status

#: Index entries looked at, stored jobs searched, and jobs decoded, before the loop is let go. A
#: millisecond or two each.
SLICE: Final = 2_000
SEARCH_SLICE: Final = 500
DECODE_SLICE: Final = 25

#: Most rows on a page.
MAX_LIMIT: Final = 1_000

STATUSES: Final = tuple(status.value for status in Status)

#: Where an entry stands in a list.
Order = tuple[Any, ...]


T = TypeVar("T")


class First(Generic[T]):
    """The entries that come first in order, of any number, in little memory."""

    def __init__(self, most: int) -> None:
        self._most = most
        # The last of them on top.
        self._heap: list[tuple[_Reversed, T]] = []

    def add(self, order: Order, entry: T) -> None:
        """Take an entry. No two have the same order."""
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, (_Reversed(order), entry))
        elif order < self._heap[0][0].order:
            heapq.heapreplace(self._heap, (_Reversed(order), entry))

    def __iter__(self) -> Iterator[tuple[Order, T]]:
        return ((at.order, entry) for at, entry in sorted(self._heap, reverse=True))


class _Reversed:
    """An order that sorts the other way round."""

    __slots__ = ("order",)

    def __init__(self, order: Order) -> None:
        self.order = order

    def __lt__(self, other: _Reversed) -> bool:
        return self.order > other.order

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Reversed) and self.order == other.order

    __hash__ = None  # type: ignore[assignment]


@dataclass(frozen=True, slots=True)
class JobQuery:
    """Which jobs to list, and from where.

    Live jobs come first, the one longest in its state first of all; then completed ones, the
    latest first.
    """

    states: tuple[str, ...] = LIVE
    fleet: str | None = None
    #: In any case: providers do not tell ``Acme/App`` from ``acme/app``.
    repo: str | None = None
    #: Who started the run, and the event that did. In any case, too.
    actor: str | None = None
    trigger: str | None = None
    #: Least time in the state, ms. A job of which no fact tells since when does not match.
    min_age_ms: int = 0
    #: The order of the last job of the page before: (0 live or 1 completed, time, key). The time
    #: of a completed one is negative.
    after: Order | None = None
    limit: int = 100


async def jobs(
    worker: JobReader, partitions: Iterable[int], query: JobQuery, turn: Turn
) -> dict[str, Any]:
    """One page of matching jobs of the given partitions, and how many match in all."""
    now = int(time.time() * 1000)
    states = frozenset(query.states)
    wanted = [
        (f'"{name}":'.encode(), said.casefold())
        for name in ("repo", "actor", "trigger")
        if (said := getattr(query, name)) is not None
    ]
    page: First[Ledger] = First(query.limit + 1)
    matched = unknown_age = looked = 0
    answered = []
    every = SEARCH_SLICE if wanted else SLICE
    for partition in partitions:
        ledger = worker.ledgers.get(partition)
        if ledger is None:
            continue
        answered.append(partition)
        for key, known in list(ledger.index.items()):
            looked += 1
            if looked % every == 0:
                await turn.next()
            if known.status not in states:
                continue
            if query.fleet is not None and known.fleet != query.fleet:
                continue
            if query.min_age_ms and known.since is None:
                unknown_age += 1
                continue
            if query.min_age_ms and now - (known.since or 0) < query.min_age_ms:
                continue
            if wanted and not _says(ledger.stored(key), wanted):
                continue
            matched += 1
            order = _order(key, known)
            if query.after is None or order > query.after:
                page.add(order, ledger)
    rows = []
    for number, (order, ledger) in enumerate(page):
        if number % DECODE_SLICE == 0:
            await turn.next()
        found = ledger.job(order[-1])
        if found is not None:
            rows.append(_row(*found, now) | {"order": order})
    return {
        "partitions": answered,
        "jobs": rows,
        "matched": matched,
        "unknown_age": unknown_age,
    }


def _order(key: str, known: Known) -> Order:
    # Where no fact tells since when, since we first heard of it is the earliest we can say.
    at = known.first_seen if known.since is None else known.since
    return (1, -at, key) if known.status == Status.COMPLETED else (0, at, key)


def _says(value: bytes | None, wanted: list[tuple[bytes, str]]) -> bool:
    """Whether a stored job has these texts, each as ``(b'"name":', text in folded case)``."""
    return value is not None and all(_text(value, at).casefold() == text for at, text in wanted)


def _text(value: bytes, field: bytes) -> str:
    # The stored bytes are searched instead of decoded, which is a hundred times as fast. Quotes
    # inside strings are escaped there, so only the field itself can match.
    start = value.find(field + b'"')
    if start < 0:
        return ""
    start += len(field)
    end = value.find(b'"', start + 1)
    while value[end - 1] == 0x5C:
        # An escaped quote, or the end behind an escaped backslash, which a name never has.
        end = value.find(b'"', end + 1)
        if end < 0:
            return ""
    text: str = msgspec.json.decode(value[start : end + 1])
    return text


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
        "actor": a.actor,
        "trigger": a.trigger,
        "pull_request": a.pull_request,
        "head_repo": a.head_repo,
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


def job(worker: JobReader, partition: int, key: str) -> dict[str, Any] | None:
    """All about one job; ``None`` when it is not known. Raises LookupError while the partition's
    jobs are not loaded."""
    ledger = worker.ledgers.get(partition)
    if ledger is None:
        raise LookupError(partition)
    found = ledger.job(key)
    if found is None:
        return None
    known, view = found
    now = int(time.time() * 1000)
    row = _row(known, view, now)
    at, a = view.at, known.attributes
    provider, host, job_id = parse_job_key(known.key)
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
        "facts": len(known.facts),
        "run": None if known.run is None else asdict(known.run),
        "steps": [asdict(step) | {"ms": _took(step)} for step in known.steps],
        "causes": list(known.causes),
        "explanation": [
            asdict(section)
            for section in (
                *explain(known, view, now),
                *explain_recovery(known, view, now, ledger.policies.of(view.fleet)),
            )
        ],
        "recovery": _recovery(known),
    }


def _recovery(known: Job) -> list[dict[str, Any]]:
    """What is known of its stalls, the first one first."""
    if known.recovery is None:
        return []
    return [
        {"n": int(n), **asdict(stall.head)}
        | {
            name: None if said is None else asdict(said)
            for name, said in (
                ("asked", stall.asked), ("answered", stall.answered),
                ("proposed", stall.proposed), ("withheld", stall.withheld),
            )
        }
        | {
            "commands": [
                {"attempt": int(attempt), **asdict(issued)}
                | {"ended": asdict(stall.ended[attempt]) if attempt in stall.ended else None}
                for attempt, issued in stall.issued.items()
            ]
        }
        for n, stall in known.recovery.stalls.items()
    ]  # fmt: skip


def _took(step: Step) -> int | None:
    """How long a step ran; ``None`` when that is not known, or its times contradict each other."""
    if step.started_at is None or step.completed_at is None:
        return None
    ms = step.completed_at - step.started_at
    return ms if ms >= 0 else None


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


async def totals(worker: JobReader, partitions: Iterable[int], turn: Turn) -> dict[str, Any]:
    """Jobs by status, and since when the oldest live one is in it."""
    jobs = dict.fromkeys(STATUSES, 0)
    oldest: dict[str, int] = {}
    answered = []
    for partition in partitions:
        ledger = worker.ledgers.get(partition)
        if ledger is None:
            continue
        answered.append(partition)
        for number, ((fleet, status), count) in enumerate(ledger.counts().items()):
            if number % SEARCH_SLICE == 0:
                await turn.next()
            jobs[status] += count
            since = ledger.oldest(fleet, status) if count and status in LIVE else None
            if since is not None:
                oldest[status] = min(since, oldest.get(status, since))
    return {"partitions": answered, "jobs": jobs, "oldest": oldest}


def span_start(now: int, span_s: int) -> int:
    """The first minute of the last ``span_s`` seconds. Unix milliseconds."""
    return start_of(now, SIZES_S[0]) - span_s * 1000 + SIZES_S[0] * 1000


async def fleets(
    worker: JobReader, partitions: Iterable[int], since: int, turn: Turn
) -> dict[str, Any]:
    """Every fleet with jobs, or with samples from ``since`` on: few numbers each.

    Per fleet the jobs by status, in the order of ``STATUSES``, and since when the oldest is in
    each live one. The timings of those that are shown are asked for next: :func:`panes`.
    """
    found: dict[str, tuple[list[int], list[int | None]]] = {}
    answered = []
    looked = 0
    for partition in partitions:
        ledger = worker.ledgers.get(partition)
        if ledger is None:
            continue
        answered.append(partition)
        for (fleet, status), count in ledger.counts().items():
            looked += 1
            if looked % SEARCH_SLICE == 0:
                await turn.next()
            # A fleet whose jobs are all known under another name by now has nothing to show.
            if not count:
                continue
            jobs, oldest = found.setdefault(fleet, _nothing())
            jobs[STATUSES.index(status)] += count
            at = ledger.oldest(fleet, status) if status in LIVE else None
            if at is not None:
                where = LIVE.index(status)
                known = oldest[where]
                oldest[where] = at if known is None else min(at, known)
        for (fleet, start), pane in list(ledger.panes.items()):
            looked += 1
            if looked % SLICE == 0:
                await turn.next()
            if start >= since and fleet not in found and _sampled(pane):
                found[fleet] = _nothing()
    return {"partitions": answered, "fleets": found}


def _nothing() -> tuple[list[int], list[int | None]]:
    return [0] * len(STATUSES), [None] * len(LIVE)


def _sampled(pane: Pane) -> bool:
    return any(sketch.count > 0 for sketch in pane.families.values())


async def panes(
    worker: JobReader, partitions: Iterable[int], fleets: Iterable[str], since: int, turn: Turn
) -> dict[str, Any]:
    """The timings of the named fleets from ``since`` on."""
    merged: dict[str, Pane] = {}
    wanted = frozenset(fleets)
    answered = []
    left = SLICE
    for partition in partitions:
        ledger = worker.ledgers.get(partition)
        if ledger is None:
            continue
        answered.append(partition)
        for (fleet, start), pane in list(ledger.panes.items()):
            left -= 1
            if left <= 0:
                await turn.next()
                left = SLICE
            if start >= since and fleet in wanted:
                merged.setdefault(fleet, Pane()).merge(pane)
                # A merge costs as much as looking at many that are not wanted.
                left -= 20
    return {
        "partitions": answered,
        "panes": {fleet: pane_data(pane) for fleet, pane in merged.items()},
    }


@dataclass(frozen=True, slots=True)
class WindowQuery:
    """Which windows to list: of one size, those that start in ``[since, until)``, newest first."""

    size_s: int
    since: int
    until: int
    fleet: str | None = None
    #: The order of the last window of the page before: (minus its start, its fleet).
    after: Order | None = None
    limit: int = 500


async def windows(
    worker: JobReader, partitions: Iterable[int], query: WindowQuery, turn: Turn
) -> dict[str, Any]:
    """One page of windows, made of the panes still kept.

    Panes go once their hour is closed and the grace is over, all of an hour together, so a
    window is there whole or not at all.
    """
    size_s = query.size_s
    seen: set[Order] = set()
    page: First[None] = First(query.limit + 1)
    ledgers = []
    answered = []
    looked = 0
    for partition in partitions:
        ledger = worker.ledgers.get(partition)
        if ledger is None:
            continue
        answered.append(partition)
        ledgers.append(ledger)
        for name, pane_at in list(ledger.panes):
            looked += 1
            if looked % SLICE == 0:
                await turn.next()
            start = start_of(pane_at, size_s)
            if not query.since <= start < query.until:
                continue
            order = (-start, name)
            if order in seen or (query.fleet is not None and name != query.fleet):
                continue
            seen.add(order)
            if query.after is None or order > query.after:
                page.add(order, None)
    found = []
    for (minus_start, name), _ in page:
        merged, is_open = Pane(), False
        for ledger in ledgers:
            looked += 1
            if looked % DECODE_SLICE == 0:
                await turn.next()
            here = False
            for at in range(-minus_start, -minus_start + size_s * 1000, SIZES_S[0] * 1000):
                pane = ledger.panes.get((name, at))
                if pane is not None:
                    here = True
                    merged.merge(pane)
            if here and ledger.policy.closes_at(-minus_start, size_s) > ledger.clock:
                is_open = True
        found.append(
            {"fleet": name, "start": -minus_start, "open": is_open, "pane": pane_data(merged)}
        )
    return {"partitions": answered, "windows": found}


def about(worker: Console) -> dict[str, Any]:
    """This worker: what it owns, how long it has run, how far behind it is."""
    ledgers = worker.ledgers
    owned = worker.owned() if worker.settled else []
    return {
        "partitions": sorted(ledgers),
        "owned": owned,
        "url": worker.url,
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
    """What people want of a pane: per family count, mean, quantiles, largest; conclusions; and the
    same of stranded time, per kind of stall."""
    families, stranded = by_kind(pane.families)
    return {
        "families": _measured(families),
        "conclusions": {name: n for name, n in sorted(pane.conclusions.items()) if n > 0},
        "stranded": _measured(stranded),
    }


def _measured(sketches: dict[str, Sketch]) -> dict[str, Any]:
    return {
        name: {
            "count": sketch.count,
            "sum_ms": sketch.sum_ms,
            "mean_ms": sketch.sum_ms / sketch.count,
            "p50_ms": sketch.quantile(0.5),
            "p95_ms": sketch.quantile(0.95),
            "p99_ms": sketch.quantile(0.99),
            "max_ms": sketch.max_ms,
        }
        for name, sketch in sorted(sketches.items())
        # Samples that a later fact moved elsewhere leave an empty place behind.
        if sketch.count > 0
    }
