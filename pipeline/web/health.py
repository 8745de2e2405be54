"""Can the answers be trusted, and does the work flow? What follows from the evidence.

The evidence is gathered directly, by a thread (``watch.py``). So /readyz names what is wrong
("ClickHouse unreachable for 34 s: ...") instead of guessing from symptoms, and answers at once
whatever hangs.

The sink belongs to the answer wherever a ClickHouse is configured, also when this process runs
the fold only: rows that do not arrive are somebody's missing data. ``/readyz?part=fold`` leaves
it out, for load balancers that should keep sending people to the views meanwhile. With the
setting ``clickhouse`` empty there is no sink to wait for. A process beside this one that does not
stay up is told alike, and left out alike.
"""

from __future__ import annotations

import time
from typing import Any, Final, NamedTuple

from pipeline import metrics
from pipeline.holes import Hole
from pipeline.web.ports import Readiness
from pipeline.web.watch import SOURCES, Evidence, Watch

#: A lag that has not moved for this long is called so. Seconds.
STUCK_S: Final = 10.0
#: Evidence older than this is none. Seconds.
STALE_S: Final = 45.0
#: Records of the worker that wait for this long without one being done: it is stuck. A batch takes
#: a second or so. Seconds.
WORKER_STUCK_S: Final = 30.0
#: The same, and for so long that only a restart can help. Seconds.
WEDGED_S: Final = 300.0


class Reason(NamedTuple):
    """Why the worker is not ready. ``code`` is one of a few words, ``text`` is for people."""

    code: str
    text: str


class Health:
    """Readiness of this worker: what it knows itself, and what the watch found."""

    def __init__(self, worker: Readiness) -> None:
        self._worker = worker
        self._settings = worker.settings
        self.watch = Watch(worker)
        #: Since when the worker is neither rebalancing nor recovering, monotonic.
        self._settled_since: float | None = None
        # A member that gets no partition is a member all the same, and generations of some
        # brokers begin at 0: only the assignment itself tells.
        self._joined = False
        #: What it is doing instead of working, how much of it is left, and since when that is so.
        self._doing: tuple[str, int] | None = None
        self._doing_since = time.monotonic()
        #: Restarts that are counted, by role.
        self._restarts: dict[str, int] = {}
        worker.on_assigned(self._on_assigned)

    def refresh(self) -> list[Reason]:
        """All reasons not to be ready, and the gauges brought up to date. Cheap."""
        doing = self._preparing()
        if doing != self._doing:
            self._doing, self._doing_since = doing, time.monotonic()
        beside = [Reason("process", text) for text in self._worker.beside.troubles()]
        reasons = self._own() + self._seen() + beside
        tell, evidence = self._worker.metrics.set, self.watch.evidence
        tell(metrics.READY, (), 0 if reasons else 1)
        tell(metrics.TICK_LAG, (), self.tick_lag())
        if evidence is not None:
            lag = evidence.worker.by_topic()
            for topic in SOURCES:
                tell(metrics.CONSUMER_LAG, (topic,), lag.get(topic, 0))
        self._count_processes()
        return reasons

    def _count_processes(self) -> None:
        for role, (up, restarts) in self._worker.beside.restarts().items():
            self._worker.metrics.set(metrics.ROLE_UP, (role,), int(up))
            more = restarts - self._restarts.get(role, 0)
            self._restarts[role] = restarts
            self._worker.metrics.count(metrics.ROLE_RESTARTS, (role,), more)

    def tick_lag(self) -> float:
        """Seconds since the latest tick that the slowest owned partition has folded."""
        worker = self._worker
        if not (worker.settled and self._joined):
            return 0.0
        now = time.time()
        if self._settled_since is None:
            self._settled_since = time.monotonic()
        waited = time.monotonic() - self._settled_since
        worst = 0.0
        for partition in worker.owned():
            ledger = worker.ledgers.get(partition)
            # Before its first tick a partition is as late as we have waited for it.
            late = now - ledger.clock / 1000 if ledger is not None and ledger.clock else waited
            worst = max(worst, late)
        return worst

    def _preparing(self) -> tuple[str, int] | None:
        """What the worker does before it works, as a reason's code, and how much is left of it."""
        if not self._joined:
            return "starting", 0
        if self._worker.rebalancing:
            return "rebalancing", 0
        left = self._worker.recovering
        return None if left is None else ("recovering", left)

    def _on_assigned(self) -> None:
        self._joined = True

    def _own(self) -> list[Reason]:
        worker = self._worker
        doing = self._preparing()
        if doing is not None:
            self._settled_since = None
            code, left = doing
            if code == "rebalancing":
                return [Reason("rebalancing", "partitions are being moved between workers")]
            if code == "recovering":
                text = f"reading back the tables, {left:,} records to go"
                return [Reason("recovering", text)]
            up = time.time() - worker.started_at
            return [Reason("starting", f"joining the consumer group for {up:.0f} s")]
        reasons = []
        late = self.tick_lag()
        if late > self._settings.max_lag:
            text = f"the fold is {late:.0f} s behind (max_lag is {self._settings.max_lag:g} s)"
            reasons.append(Reason("lagging", text))
        unloaded = [p for p in worker.owned() if p not in worker.ledgers]
        if unloaded:
            text = f"jobs of {len(unloaded)} partitions are not loaded yet"
            reasons.append(Reason("loading", text))
        return reasons

    def _seen(self) -> list[Reason]:
        evidence = self.watch.evidence
        if evidence is None:
            return [Reason("starting", "broker and ClickHouse are being checked")]
        age = time.monotonic() - evidence.at
        if age > STALE_S:
            return [Reason("checks", f"the checks of broker and ClickHouse hang for {age:.0f} s")]
        reasons = []
        limit = self._settings.max_lag
        if evidence.broker is not None:
            t = evidence.broker
            text = f"Kafka at {self._settings.kafka} unreachable for {t.seconds:.0f} s: {t.error}"
            reasons.append(Reason("broker", text))
        elif evidence.worker.total and evidence.worker.still > WORKER_STUCK_S:
            waiting = ", ".join(
                f"{n:,} of {where.topic} partition {where.partition}"
                for where, n in sorted(evidence.worker.records.items())
                if n
            )
            text = f"records wait ({waiting}) and none was done for"
            reasons.append(Reason("stuck", f"{text} {evidence.worker.still:.0f} s"))
        elif evidence.worker.seconds > limit:
            behind = f"{evidence.worker.total:,} records and {evidence.worker.seconds:.0f} s"
            reasons.append(Reason("lagging", f"the worker is {behind} behind its topics"))
        if evidence.more_partitions and evidence.broker is None:
            have = self._settings.partitions
            topics = ", ".join(f"{name} has {n}" for name, n in evidence.more_partitions.items())
            text = f"{topics} partitions, and the setting partitions is {have}: records on the "
            text += "others are not read. `runnerstream doctor` says how to go on"
            reasons.append(Reason("partitions", text))
        if evidence.clickhouse is not None:
            t = evidence.clickhouse
            text = f"ClickHouse unreachable for {t.seconds:.0f} s: {t.error}"
            reasons.append(Reason("clickhouse", text))
        sink = evidence.sink
        if sink is not None and evidence.broker is None:
            if evidence.sink_members == 0:
                text = f"no sink is running: group {self._settings.app_id}-sink has no members"
                reasons.append(Reason("sink", f"{text}; {sink.total:,} records wait"))
            elif sink.total and sink.still > STUCK_S:
                text = f"the sink is {sink.total:,} records behind and not moving"
                reasons.append(Reason("sink", f"{text} for {sink.still:.0f} s"))
            elif sink.seconds > limit:
                text = f"the sink is {sink.total:,} records and {sink.seconds:.0f} s behind"
                reasons.append(Reason("sink", text))
        return reasons

    def wedged(self) -> str | None:
        """Why only a restart can help; ``None`` while there is hope.

        The broker answers, and for minutes no record that waits was done, or joining or reading
        back got no further. Not for a broker or a ClickHouse that is away: a restart would not
        bring it back.
        """
        evidence = self.watch.evidence
        if evidence is None or evidence.broker is not None:
            return None
        if time.monotonic() - evidence.at > STALE_S:
            return None
        if self._doing is not None:
            stood = time.monotonic() - self._doing_since
            if stood <= WEDGED_S:
                return None
            return f"{self._doing[0]} without progress for {stood:.0f} s"
        lag = evidence.worker
        if not lag.total or lag.still <= WEDGED_S:
            return None
        return f"{lag.total:,} records wait and none was done for {lag.still:.0f} s"

    def missed(self) -> list[dict[str, Any]]:
        """Records that were removed before they were read, by partition, the latest first."""
        return [hole_data(hole) for hole in self._worker.holes.found()]

    def facts(self) -> dict[str, Any]:
        """What /workers and /readyz show beside the reasons."""
        evidence = self.watch.evidence
        sink = evidence.sink if evidence else None
        return {
            "tick_lag_s": round(self.tick_lag(), 3),
            "consumer_lag": evidence.worker.by_topic() if evidence else None,
            "sink": None
            if evidence is None or sink is None
            else {
                "lag_records": sink.total,
                "lag_s": round(sink.seconds, 1),
                "members": evidence.sink_members,
            },
            "clickhouse": self._clickhouse(evidence),
            "missed": self.missed(),
        }

    def _clickhouse(self, evidence: Evidence | None) -> str:
        if not self._settings.clickhouse.get_secret_value():
            return "not configured"
        if evidence is None:
            return "unknown"
        return "unreachable" if evidence.clickhouse else "reachable"


def hole_data(hole: Hole) -> dict[str, Any]:
    """A hole as the views show it. Offsets from ``first`` to ``last`` were passed, all or in part;
    ``records`` counts those that are lost."""
    return {
        "topic": hole.topic,
        "partition": hole.partition,
        "records": hole.records,
        "first": hole.first,
        "last": hole.end - 1,
        "since": hole.since,
        "latest": hole.latest,
    }


#: Codes of reasons that are about what runs beside the fold, not about the fold.
BESIDE_CODES: Final = frozenset({"sink", "clickhouse", "process"})
