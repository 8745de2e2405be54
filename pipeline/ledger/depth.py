"""Depth: how many jobs of each fleet are in each live status, and since when, at every tick."""

from __future__ import annotations

from typing import Final

from msgspec.json import Encoder

from pipeline.effects import Output
from pipeline.ledger.index import Index
from pipeline.ledger.limits import OTHER_FLEET
from pipeline.ledger.pending import Pending
from topics.catalogue import FLEETS, SAMPLES, TELEMETRY
from topics.envelope import VERSION
from topics.events import PART
from topics.models import Status
from topics.recovery import Depth as FleetDepth

#: The statuses of a job that has not ended.
LIVE: Final = tuple(status.value for status in Status if status is not Status.COMPLETED)

#: A fleet without live jobs is sampled as 0 for this long after its last one ended.
QUIET_MS: Final = 3_600_000

#: Waiting for this long is for long.
LONG_MS: Final = 60_000

_encoder: Final = Encoder()


class Depth:
    """The samples of a partition. ``max_fleets`` have samples of their own."""

    def __init__(self, partition: int, index: Index, pending: Pending, max_fleets: int) -> None:
        self._partition = partition
        self._index = index
        self._pending = pending
        self._max_fleets = max_fleets
        #: What had jobs at the last tick: (fleet, status).
        self._sampled: set[tuple[str, str]] = set()
        #: Jobs that wait, of every fleet that was sampled at the last tick.
        self._queued: dict[str, int] = {}

    def on_tick(self, at: int) -> None:
        """Depth and oldest age of what lives, and zeros where somebody may be looking for them.

        A fleet is sampled while it has live jobs and for :data:`QUIET_MS` after its last one has
        ended, then no more. Beyond ``max_fleets`` the smaller ones share ``other``.
        """
        told = self._told(at)
        sampled: set[tuple[str, str]] = set()
        for fleet, status in sorted(told, key=_sample_order):
            where = (fleet, status)
            count, oldest = told[where]
            # Explicit zeros: always for the queue, once for what has just become empty.
            if not count and status != "queued" and where not in self._sampled:
                continue
            if count:
                sampled.add(where)
            key = f"{fleet}|{status}|{self._partition}"
            record = {
                "id": f"{key}@{at}",
                "kind": "sample",
                "version": VERSION,
                "source": "runnerstream",
                "occurred_at": at,
                "received_at": at,
                "key": key,
                "fleet": fleet,
                "partition": self._partition,
                "status": status,
                "count": count,
                "oldest_ms": max(0, at - oldest) if oldest is not None else 0,
            }
            self._pending.outputs.append(
                Output(SAMPLES, self._partition, key.encode(), _encoder.encode(record))
            )
        self._sampled = sampled
        self._queued = {
            fleet: told[fleet, "queued"][0] for fleet, status in told if status == "queued"
        }

    def tell_fleets(self, at: int) -> None:
        """Tell who knows of idle runners how many jobs wait: each fleet of those that wait for
        long, and its pools of all.
        """
        for fleet, queued in sorted(self._queued.items()):
            since = self._index.oldest(fleet, "queued") if queued else None
            record = FleetDepth(
                id=f"depth|{fleet}|{self._partition}|{at}",
                source="runnerstream",
                occurred_at=at,
                received_at=at,
                key=fleet,
                partition=self._partition,
                counts={"queued": queued},
                queued_since=since,
            )
            value = record.model_dump_json(exclude_none=True).encode()
            pools = PART.join(("pools", fleet, "")).encode()
            self._pending.outputs.append(Output(TELEMETRY, None, pools, value))
            if since is not None and at - since >= LONG_MS:
                self._pending.outputs.append(Output(FLEETS, None, fleet.encode(), value))

    def _told(self, at: int) -> dict[tuple[str, str], tuple[int, int | None]]:
        """Jobs by (fleet, live status), and since when the oldest is in it."""
        counts, oldest = self._index.counts, self._index.oldest
        shown = {fleet for (fleet, status), n in counts.items() if n and status != "completed"}
        quiet = at - QUIET_MS
        shown.update(fleet for fleet, ended in self._index.last_end.items() if ended > quiet)
        merged: list[str] = []
        if len(shown) > self._max_fleets:
            jobs = self._index.jobs_of
            merged = sorted(shown, key=lambda fleet: (fleet != OTHER_FLEET, jobs[fleet], fleet))
            del merged[len(merged) - self._max_fleets :]
            shown.difference_update(merged)
        told: dict[tuple[str, str], tuple[int, int | None]] = {}
        for fleet in shown:
            for status in LIVE:
                told[fleet, status] = counts.get((fleet, status), 0), oldest(fleet, status)
        if merged:
            for status in LIVE:
                known = (oldest(fleet, status) for fleet in merged)
                since = [at_ for at_ in known if at_ is not None]
                n = sum(counts.get((fleet, status), 0) for fleet in merged)
                told[OTHER_FLEET, status] = n, min(since, default=None)
        for where in self._sampled:
            told.setdefault(where, (0, None))
        return told


def _sample_order(where: tuple[str, str]) -> tuple[str, int]:
    return where[0], LIVE.index(where[1])
