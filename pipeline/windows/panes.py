"""Panes, windows, lateness: which samples a job contributes, and to what.

A job's *contributions* are a pure function of its facts. When a new fact changes them, the old
ones are taken out and the new ones put in, so a window always equals what could be computed
from the job states themselves.

The *pane* is the stored unit: one fleet, one minute, one partition, all families. Windows of 5
minutes and 1 hour are sums of panes. One pane is one value in the windowed table and one
changelog record per batch.

Lateness is declared: a window is open until the partition's clock (its ticks) passes the
window's end plus ``lateness_ms``. A contribution to a closed window is counted as late and
dropped here; it still reaches ClickHouse in the job's own row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from msgspec import Struct
from msgspec.json import Decoder, Encoder, decode, encode

from pipeline.jobs import Job, View
from pipeline.windows.sketch import Sketch, bin_of
from topics.envelope import VERSION
from topics.recovery import StallKind
from topics.stranded import left_at
from topics.tables import PANE_S

SIZES_S: Final = (60, 300, 3600)

#: What the families of stranded time begin with: each kind of stall has its own.
STRANDED: Final = "stranded."

#: A pane's fleet and its start, Unix milliseconds.
PaneKey = tuple[str, int]


@dataclass(frozen=True, slots=True)
class WindowPolicy:
    """When windows close and panes are forgotten. Milliseconds."""

    #: Events up to this much older than the clock still count. One hour: the delays and bursts
    #: after a provider's outage; redeliveries of days do not hold windows open.
    lateness_ms: int = 3_600_000
    #: A closed pane is kept this much longer, so that a replay after a crash still meets its
    #: fence instead of an empty place.
    grace_ms: int = 600_000

    def closes_at(self, start: int, size_s: int) -> int:
        """Clock time at which the window closes."""
        return start + size_s * 1000 + self.lateness_ms

    def forgotten_at(self, start: int) -> int:
        """Clock time at which a pane may be deleted: its hour is closed, and the grace over."""
        return self.closes_at(start_of(start, SIZES_S[-1]), SIZES_S[-1]) + self.grace_ms


class Contribution(Struct, frozen=True, gc=False):
    """One sample: a timing of a family, or (``ms`` None) one completed job of a conclusion."""

    at: int
    fleet: str
    #: A Family value or a kind of stall behind :data:`STRANDED`; a Conclusion value when ``ms``
    #: is None.
    name: str
    ms: int | None


def contributions(v: View) -> frozenset[Contribution]:
    """What a job adds to windows. Queue and claim-to-start count when it started, run and total
    when it completed. A copied job adds nothing."""
    at = v.at
    if at.copied or (at.started is None and at.completed is None):
        return _NONE
    out = []
    if at.started is not None:
        for family in ("queue", "claim_to_start"):
            ms = v.timings[family].ms
            if ms is not None:
                out.append(Contribution(at.started.ms, v.fleet, family, ms))
    if at.completed is not None:
        for family in ("run", "total"):
            ms = v.timings[family].ms
            if ms is not None:
                out.append(Contribution(at.completed.ms, v.fleet, family, ms))
        out.append(Contribution(at.completed.ms, v.fleet, v.conclusion or "unknown", None))
    return frozenset(out)


_NONE: Final[frozenset[Contribution]] = frozenset()


def stranded(job: Job, v: View) -> frozenset[Contribution]:
    """What a job's stalls add to windows: how long each lasted, when the job had left it.

    A completion that was missed is none of them: it says how long the job ran.
    """
    if job.recovery is None or v.at.copied:
        return _NONE
    at, out = v.at, []
    for stall in job.recovery.stalls.values():
        kind, since = StallKind(stall.head.kind), stall.head.since
        if kind is StallKind.MISSED_COMPLETION:
            continue
        left = left_at(
            kind,
            since,
            stall.head.claim,
            job.claims,
            started_at=at.started.ms if at.started else None,
            completed_at=at.completed.ms if at.completed else None,
            lost_at=job.lost_at,
            found_at=job.found_at,
        )
        if left is not None:
            out.append(Contribution(left, v.fleet, f"{STRANDED}{kind.value}", left - since))
    return frozenset(out)


def start_of(at: int, size_s: int) -> int:
    """Start of the tumbling window of ``size_s`` seconds that holds the time ``at``."""
    size = size_s * 1000
    return at - at % size


def pane_start(at: int) -> int:
    """Start of the pane that holds the time ``at``."""
    return start_of(at, PANE_S)


class Pane(Struct, eq=False, omit_defaults=True):
    """Sketches by family and completed jobs by conclusion. Mutable.

    ``fence`` is the last source offset whose contribution is inside: a replayed record at or
    below it is skipped.
    """

    fence: int = -1
    families: dict[str, Sketch] = {}
    conclusions: dict[str, int] = {}

    def add(self, c: Contribution, weight: int) -> None:
        """Put a contribution in (1) or take it out (-1).

        What has become empty stays, with count 0, as long as the window is open: whoever has
        shown it must learn that it is gone, also when it sees only the last of several records
        of a window. People see :meth:`filled`. What is not inside is not taken out.
        """
        if c.ms is None:
            self.tally(c.name, weight)
        else:
            self.put(c.name, c.ms, bin_of(c.ms), weight)

    def tally(self, conclusion: str, weight: int) -> None:
        """Count a completed job (1) or uncount it (-1): see :meth:`add`."""
        known = self.conclusions.get(conclusion, 0)
        if weight > 0 or known > 0:
            self.conclusions[conclusion] = known + weight

    def put(self, family: str, ms: int, bin_: int | None, weight: int) -> None:
        """Put a sample of the bin ``bin_of(ms)`` in or take it out: see :meth:`add`."""
        sketch = self.families.get(family)
        if sketch is None:
            if weight < 0:
                return
            sketch = self.families[family] = Sketch()
        sketch.put(ms, bin_, weight)

    @property
    def empty(self) -> bool:
        """Whether it has no cells."""
        return not (self.families or self.conclusions)

    def filled(self) -> Pane:
        """The pane without empty cells; itself when it has none."""
        if all(s.count for s in self.families.values()) and all(self.conclusions.values()):
            return self
        families = {family: s for family, s in self.families.items() if s.count}
        conclusions = {conclusion: n for conclusion, n in self.conclusions.items() if n}
        return Pane(self.fence, families, conclusions)

    def merge(self, other: Pane) -> None:
        """Add everything in another pane; the fence becomes the later one."""
        self.fence = max(self.fence, other.fence)
        for family, sketch in other.families.items():
            mine = self.families.get(family)
            if mine is None:
                self.families[family] = sketch.copy()
            else:
                mine.merge(sketch)
        for conclusion, n in other.conclusions.items():
            self.conclusions[conclusion] = self.conclusions.get(conclusion, 0) + n

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Pane):
            return NotImplemented
        return self._inside() == other._inside()

    def __ne__(self, other: object) -> bool:
        # Struct has its own, which would not ask __eq__.
        return not self == other

    def _inside(self) -> tuple[dict[str, Sketch], dict[str, int]]:
        return (
            {family: s for family, s in self.families.items() if s.count or s.bins},
            {conclusion: n for conclusion, n in self.conclusions.items() if n},
        )

    __hash__ = None  # type: ignore[assignment]


_encoder: Final = Encoder()
_decoder: Final = Decoder(Pane)


def by_kind(families: Mapping[str, Sketch]) -> tuple[dict[str, Sketch], dict[str, Sketch]]:
    """A pane's families: the timings, and stranded time by kind of stall."""
    timings, stranded = {}, {}
    for name, sketch in families.items():
        if name.startswith(STRANDED):
            stranded[name.removeprefix(STRANDED)] = sketch
        else:
            timings[name] = sketch
    return timings, stranded


def encode_pane(pane: Pane) -> bytes:
    """The pane as a table value. Never empty."""
    return _encoder.encode(pane)


def decode_pane(value: bytes) -> Pane:
    """The pane that was encoded. Raises msgspec.DecodeError on foreign bytes."""
    return _decoder.decode(value)


def window_record(
    pane: Pane,
    *,
    fleet: str,
    partition: int,
    size_s: int,
    start: int,
    closed: bool,
    rev: int,
    at: int,
) -> dict[str, Any]:
    """The :class:`topics.models.Window` record of a window as a plain dict."""
    key = f"{fleet}|{size_s}|{start}|{partition}"
    families, stranded = by_kind(pane.families)
    return {
        "id": f"{key}@{rev}",
        "kind": "window",
        "version": VERSION,
        "source": "runnerstream",
        "occurred_at": start,
        "received_at": at,
        "key": key,
        "fleet": fleet,
        "partition": partition,
        "size_s": size_s,
        "start": start,
        "closed": closed,
        "rev": rev,
        "families": {family: _values(s) for family, s in families.items()},
        "conclusions": pane.conclusions,
        # Only where there is some: no record grows for jobs that were never stuck.
        **({"stranded": {k: _values(s) for k, s in stranded.items()}} if stranded else {}),
    }


def _values(s: Sketch) -> dict[str, Any]:
    return {
        "count": s.count,
        "sum_ms": s.sum_ms,
        "max_ms": s.max_ms,
        "zeros": s.zeros,
        "bins": s.bins,
    }


# A pane's key in the windowed table is Faust's: the name, here partition and fleet, and the
# window's range in seconds, its end 0.1 s before the next window, as JSON.


def pane_key_bytes(partition: int, key: PaneKey) -> bytes:
    """The key of a pane in the table."""
    fleet, start = key
    begin = start / 1000
    return encode([f"{partition}|{fleet}", [begin, begin + PANE_S - 0.1]])


def pane_key_of(raw: bytes) -> PaneKey:
    """The pane that a key of the table names."""
    name, (begin, _) = decode(raw)
    return name.partition("|")[2], round(begin * 1000)
