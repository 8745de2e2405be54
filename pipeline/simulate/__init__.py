"""A CI fleet that misbehaves on purpose: load and faults with a known truth.

    simulation = Simulation(seed=7, jobs=1_000, start_ms=now_ms, duration_s=3_600)
    for send_at_ms, topic, key, value, headers in simulation.records():
        ...
    truth = simulation.truth()

``fleet`` is the world, ``wire`` how it is reported, ``faults`` what goes wrong on the way,
``truth`` what can be known of it all the same. ``produce`` and ``replay`` send. With ``stalls``
jobs get stuck (``stuck``), and the world can be asked and commanded while it goes on (``asked``).
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import count
from typing import NamedTuple

from pipeline.simulate.asked import Asked
from pipeline.simulate.faults import NO_FAULTS, Faults, Malformed, Network, malformed
from pipeline.simulate.fleet import LIVE, Fleet, Mix, Tempo, World, default_fleets
from pipeline.simulate.stuck import Cause, Stalls, Stuck, StuckWorld
from pipeline.simulate.truth import JobTruth, Truth, truth_of
from pipeline.simulate.wire import Headers, Said, Wire

__all__ = [
    "LIVE",
    "NO_FAULTS",
    "Asked",
    "Cause",
    "Faults",
    "Fleet",
    "JobTruth",
    "Malformed",
    "Mix",
    "Sending",
    "Simulation",
    "Stalls",
    "Stuck",
    "Tempo",
    "Truth",
    "default_fleets",
    "malformed",
]


class Sending(NamedTuple):
    """One record on its way: when to send it, where, and its bytes.

    It can be read like a record that was consumed at that time.
    """

    send_at_ms: int
    topic: str
    key: bytes
    value: bytes
    #: Of a webhook in raw form: the HTTP headers.
    headers: Headers = ()
    partition: int = 0
    offset: int = 0

    @property
    def timestamp(self) -> int:
        """When it is written, in milliseconds."""
        return self.send_at_ms


class Simulation:
    """A world, its records and the truth about them. The same arguments give the same bytes.

    ``jobs`` is how many jobs the workflow runs have at first; re-runs add some. ``start_ms`` and
    ``duration_s`` say when they arrive; the world then runs until the last job is over.
    ``fleets`` defaults to six that are busy to 80 % on average. ``remember=False`` keeps no note of
    what was sent (some 1,000 bytes a record), for long loads that nobody judges. ``stalls``: jobs
    get stuck, and stay so unless a command frees them; then ``asked`` is what one may ask and
    command while records are taken, and the same records need the same commands at the same times.
    """

    def __init__(
        self,
        seed: int,
        jobs: int,
        fleets: Sequence[Fleet] | None = None,
        *,
        start_ms: int,
        duration_s: float,
        faults: Faults | None = None,
        tempo: Tempo | None = None,
        mix: Mix | None = None,
        remember: bool = True,
        stalls: Stalls | None = None,
    ) -> None:
        if jobs < 1 or duration_s <= 0:
            raise ValueError("a simulation needs at least one job and some time")
        self.seed = seed
        self.jobs = jobs
        self.start_ms = start_ms
        self.duration_s = duration_s
        self.faults = Faults() if faults is None else faults
        self.tempo = Tempo() if tempo is None else tempo
        self.mix = Mix() if mix is None else mix
        self.fleets = list(
            default_fleets(jobs, duration_s, self.tempo) if fleets is None else fleets
        )
        self.stalls = stalls
        #: Once records are asked for, of a simulation in which jobs get stuck.
        self.asked: Asked | None = None
        self._remember = remember
        self._said: list[Said] | None = None
        self._sent: Counter[str] = Counter()
        self._dead: Counter[str] = Counter()
        #: What the network did to the records made so far.
        self.counts: dict[str, int] = {}

    def records(self) -> Iterator[Sending]:
        """All records in sending order, made as they are asked for, from the beginning."""
        said: list[Said] = []
        self._said = said
        sent = self._sent = Counter[str]()
        dead = self._dead = Counter[str]()
        world = self._world()
        stuck = world if isinstance(world, StuckWorld) else None
        self.asked = None if stuck is None else Asked(stuck)
        wire = Wire(self.seed, hosts=stuck is not None)
        network = Network(self.seed, self.faults, self.start_ms)
        self.counts = network.counts
        bad = malformed(self.seed, 10**9, self.start_ms)
        owed = 0.0
        sequence = count()
        # Nothing is sent before it happens: what is due before the world's next event is final.
        waiting: list[tuple[int, int, str, bytes, bytes, Headers, Said | Malformed]] = []

        def due(until: int | None) -> Iterator[Sending]:
            while waiting and (until is None or waiting[0][0] < until):
                at, _, topic, key, value, headers, what = heapq.heappop(waiting)
                sent[topic] += 1
                if isinstance(what, Malformed):
                    dead[what.reason.value] += 1
                elif self._remember:
                    said.append(what)
                yield Sending(at, topic, key, value, headers)

        for event in world.events():
            yield from due(event.at)
            message = wire.message(event)
            value, headers, told = b"", message.headers, message.said
            sure = stuck is not None and stuck.is_picked(event.job)
            for arrival in network.arrivals(message.topic, event.at, sure):
                if not arrival.exact:
                    value, headers, told = message.at(arrival.send_at)
                place = (message.topic, message.key)
                heapq.heappush(
                    waiting, (arrival.send_at, next(sequence), *place, value, headers, told)
                )
            owed += self.faults.malformed
            if owed >= 1.0:
                owed -= 1.0
                wrong = next(bad)
                place = (wrong.topic, wrong.key)
                heapq.heappush(
                    waiting, (event.at, next(sequence), *place, wrong.value, wrong.headers, wrong)
                )
        yield from due(None)

    def _world(self) -> World:
        made = World if self.stalls is None else partial(StuckWorld, stalls=self.stalls)
        return made(
            self.seed,
            self.jobs,
            self.fleets,
            start_ms=self.start_ms,
            duration_s=self.duration_s,
            tempo=self.tempo,
            mix=self.mix,
        )

    def truth(self, closed: Mapping[str, tuple[int, str]] | None = None) -> Truth:
        """What can be known from the records taken so far; from all, if none was asked for yet.

        ``closed``: when (ms) and as what jobs count as over of which GitHub told that their run is
        (:meth:`Asked.closings`): that only whoever asked can say.

        Raises RuntimeError for a simulation that does not remember.
        """
        if not self._remember:
            raise RuntimeError("a simulation made with remember=False has no truth")
        if self._said is None:
            for _ in self.records():
                pass
        assert self._said is not None
        heard = [] if self.asked is None else self.asked.said()
        for key, (at, conclusion) in (closed or {}).items():
            heard.append(Said("", "closed", key, at, at, conclusion=conclusion))
        truth = truth_of([*self._said, *heard])
        truth.sent = dict(self._sent)
        truth.dead_letters = dict(self._dead)
        return truth
