"""The panes of a partition and the wider windows around them: filled, sent, closed, forgotten."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from typing import Final

from msgspec.json import Encoder

from pipeline import metrics
from pipeline.effects import Effects, Note, Output
from pipeline.ledger.limits import OTHER_FLEET
from pipeline.ledger.pending import Pending
from pipeline.windows import (
    SIZES_S,
    STRANDED,
    Contribution,
    Pane,
    PaneKey,
    WindowPolicy,
    bin_of,
    decode_pane,
    encode_pane,
    pane_key_bytes,
    pane_key_of,
    pane_start,
    start_of,
    window_record,
)
from topics.catalogue import WINDOWS
from topics.tables import WINDOWS_TABLE

_encoder: Final = Encoder()


class Windows:
    """What is kept of a partition's samples, by fleet and minute.

    ``max_fleets`` of each hour have panes of their own. A contribution comes with its offset and
    the partition's clock: what lies at or below the fence of its pane is inside already, and what
    lies in a closed window is late.
    """

    def __init__(
        self, partition: int, policy: WindowPolicy, pending: Pending, max_fleets: int
    ) -> None:
        self.policy = policy
        self.panes: dict[PaneKey, Pane] = {}
        self._partition = partition
        self._pending = pending
        self._max_fleets = max_fleets
        #: Open windows by fleet, size in seconds and start. The smallest are the panes themselves.
        self._wide: dict[tuple[str, int, int], Pane] = {}
        #: Heaps of what the clock closes and forgets.
        self._closing: list[tuple[int, str, int, int]] = []
        self._forgetting: list[tuple[int, str, int]] = []
        #: Fleets with panes of their own, by the hour they lie in.
        self._named: dict[int, set[str]] = {}
        #: Last offset whose samples the loaded panes may hold: up to here we replay.
        self._replayed_to = -1
        # What the batch under way has touched.
        self._dirty_panes: dict[PaneKey, None] = {}
        self._gone_panes: dict[PaneKey, None] = {}
        #: Windows to say again at the next tick.
        self._dirty_windows: dict[tuple[str, int, int], None] = {}
        #: Open panes this batch adds to, each with the wider windows around it; all are marked
        #: dirty. Valid until the clock moves, which closes windows, or the batch ends.
        self._open: dict[PaneKey, tuple[Pane, ...]] = {}

    def load(self, table: Iterable[tuple[bytes, bytes]], clock: int) -> list[int]:
        """Take the panes of the table. Returns their fences, ascending."""
        for key, value in table:
            pane_key = pane_key_of(key)
            pane = decode_pane(value)
            self.panes[pane_key] = pane
            self._replayed_to = max(self._replayed_to, pane.fence)
            fleet, start = pane_key
            self._name(fleet, start)
            heapq.heappush(self._forgetting, (self.policy.forgotten_at(start), fleet, start))
            for size_s in SIZES_S:
                first = start_of(start, size_s)
                if self.policy.closes_at(first, size_s) > clock:
                    window = self._window(fleet, size_s, first, start)
                    if window is not pane:
                        window.merge(pane)
                    self._dirty_windows[(fleet, size_s, first)] = None
        return sorted({pane.fence for pane in self.panes.values()})

    def open_windows(self) -> Iterator[tuple[str, int, int, Pane]]:
        """Open windows with something inside: fleet, size in seconds, start, this partition's
        part."""
        for (fleet, size_s, first), window in self._wide.items():
            part = window.filled()
            if not part.empty:
                yield fleet, size_s, first, part

    # -- samples -------------------------------------------------------------------------------

    def on_change(
        self,
        offset: int,
        clock: int,
        before: frozenset[Contribution],
        after: frozenset[Contribution],
    ) -> None:
        """A job contributes something else than it did before this stretch."""
        # Sorted, so that the effects do not depend on hash order.
        if before:
            for c in sorted(before - after, key=_order):
                self.contribute(offset, clock, c, -1)
            after -= before
        for c in sorted(after, key=_order):
            self.contribute(offset, clock, c, 1)

    def contribute(self, offset: int, clock: int, c: Contribution, weight: int) -> None:
        """Put a contribution in (1) or take it out (-1)."""
        start = pane_start(c.at)
        pane_key = (c.fleet, start)
        around = self._open.get(pane_key)
        pane = around[0] if around is not None else self.panes.get(pane_key)
        if pane is None and self._shares(c.fleet, start):
            pane_key = (OTHER_FLEET, start)
            around = self._open.get(pane_key)
            pane = around[0] if around is not None else self.panes.get(pane_key)
        if pane is not None and offset <= pane.fence:
            return  # counted before the crash this is a replay of
        if around is None and self.policy.closes_at(start, SIZES_S[0]) <= clock:
            what = _family(c.name) if c.ms is not None else "conclusion"
            self._pending.note(metrics.LATE_SAMPLES, (what,))
            return
        if around is None:
            around = self._open[pane_key] = self._dirty(pane, pane_key[0], start)
        if c.ms is not None:
            timing = metrics.TIMINGS.get(c.name)
            if weight < 0:
                self._pending.note(metrics.REVISED_TIMINGS, (_family(c.name),))
            elif timing is not None:
                self._pending.notes.append(Note(timing, (c.fleet,), c.ms / 1000))
            else:
                kind = c.name.removeprefix(STRANDED)
                labels = c.fleet, kind
                self._pending.notes.append(Note(metrics.STRANDED_SECONDS, labels, c.ms / 1000))
            bin_ = bin_of(c.ms)
            for each in around:
                each.put(c.name, c.ms, bin_, weight)
        else:
            for each in around:
                each.tally(c.name, weight)

    def _shares(self, fleet: str, start: int) -> bool:
        """Whether the fleet's samples go to the panes of ``other``.

        The first ``max_fleets`` fleets of an hour of event time have panes of their own. That
        is remembered by the panes, which stay, also empty, until the whole hour is forgotten. So
        a replay decides alike: who has a pane keeps it, and an hour that is full stays full. (Who
        comes first depends on what was folded together, so a rebuild from the whole log may name
        others; what all fleets add up to is the same.)
        """
        named = self._named.get(start_of(start, SIZES_S[-1]))
        return named is not None and len(named) >= self._max_fleets and fleet not in named

    def _name(self, fleet: str, start: int) -> None:
        if fleet != OTHER_FLEET:
            self._named.setdefault(start_of(start, SIZES_S[-1]), set()).add(fleet)

    def _dirty(self, pane: Pane | None, fleet: str, start: int) -> tuple[Pane, ...]:
        """The pane, made when there is none, and the windows around it, marked as changed."""
        pane_key = (fleet, start)
        if pane is None:
            pane = self.panes[pane_key] = Pane()
            self._name(fleet, start)
            heapq.heappush(self._forgetting, (self.policy.forgotten_at(start), fleet, start))
        self._gone_panes.pop(pane_key, None)
        self._dirty_panes[pane_key] = None
        around = [pane]
        for size_s in SIZES_S:
            first = start_of(start, size_s)
            window = self._window(fleet, size_s, first, start)
            if window is not pane:
                around.append(window)
            self._dirty_windows[(fleet, size_s, first)] = None
        return tuple(around)

    def _window(self, fleet: str, size_s: int, first: int, start: int) -> Pane:
        """The open window; of the smallest size it is the pane itself."""
        where = (fleet, size_s, first)
        window = self._wide.get(where)
        if window is None:
            window = self.panes[(fleet, start)] if size_s == SIZES_S[0] else Pane()
            self._wide[where] = window
            heapq.heappush(
                self._closing, (self.policy.closes_at(first, size_s), fleet, size_s, first)
            )
        return window

    # -- the clock -----------------------------------------------------------------------------

    def on_clock(self) -> None:
        """The clock moves: which panes are open has to be found out again."""
        self._open.clear()

    def on_tick(self, offset: int, at: int) -> None:
        """Send what has changed, for the last time what closes, and forget what is old."""
        self.on_clock()
        while self._closing and self._closing[0][0] <= at:
            _, fleet, size_s, first = heapq.heappop(self._closing)
            self._dirty_windows.pop((fleet, size_s, first), None)
            window = self._wide.pop((fleet, size_s, first), None)
            if window is not None:
                self._send(window, fleet, size_s, first, True, offset, at)
                self._pending.note(metrics.CLOSED_WINDOWS, (str(size_s),))
        for fleet, size_s, first in self._dirty_windows:
            window = self._wide.get((fleet, size_s, first))
            if window is not None:
                self._send(window, fleet, size_s, first, False, offset, at)
        # During a replay the panes are ahead of the ticks. A tick that was sent before the crash
        # carries a higher rev and less than is sent now: say it again after the replay.
        if offset > self._replayed_to:
            self._dirty_windows.clear()
        self._forget(at)

    def _send(
        self, window: Pane, fleet: str, size_s: int, first: int, closed: bool, offset: int, at: int
    ) -> None:
        record = window_record(
            window,
            fleet=fleet,
            partition=self._partition,
            size_s=size_s,
            start=first,
            closed=closed,
            rev=offset,
            at=at,
        )
        key: str = record["key"]
        self._pending.outputs.append(
            Output(WINDOWS, self._partition, key.encode(), _encoder.encode(record))
        )

    def _forget(self, at: int) -> None:
        while self._forgetting and self._forgetting[0][0] <= at:
            _, fleet, start = heapq.heappop(self._forgetting)
            # All panes of an hour are forgotten by the same tick.
            self._named.pop(start_of(start, SIZES_S[-1]), None)
            if self.panes.pop((fleet, start), None) is not None:
                self._dirty_panes.pop((fleet, start), None)
                self._gone_panes[(fleet, start)] = None

    def flush(self, offset: int, effects: Effects) -> None:
        """Write the changed panes, fenced by the offset, and delete those that are forgotten."""
        self._open.clear()
        writes = effects.writes(WINDOWS_TABLE)
        for pane_key in self._dirty_panes:
            pane = self.panes[pane_key]
            pane.fence = offset
            writes.append((pane_key_bytes(self._partition, pane_key), encode_pane(pane)))
        for pane_key in self._gone_panes:
            writes.append((pane_key_bytes(self._partition, pane_key), None))
        self._dirty_panes.clear()
        self._gone_panes.clear()


def _family(name: str) -> str:
    """A family as a label: stranded time of all kinds is one."""
    return metrics.STRANDED if name.startswith(STRANDED) else name


def _order(c: Contribution) -> tuple[int, str, str, int]:
    return c.at, c.fleet, c.name, -1 if c.ms is None else c.ms
