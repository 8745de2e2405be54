"""Sending a simulation through Kafka, in real time or as fast as it goes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pipeline.simulate import LIVE, Faults, Fleet, Sending, Simulation, Stalls


class Sink(Protocol):
    """What sends: :class:`topics.producer.Producer`, or a list in a test."""

    def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        """Take one record."""
        ...


@dataclass(frozen=True)
class Sent:
    """What was sent, in how long."""

    records: int
    bytes: int
    seconds: float

    @property
    def per_second(self) -> float:
        """Records a second."""
        return self.records / self.seconds if self.seconds else 0.0


def live(
    seed: int,
    jobs_per_minute: float,
    minutes: float,
    *,
    start_ms: int,
    fleets: list[Fleet] | None = None,
    faults: Faults | None = None,
    stalls: Stalls | None = None,
) -> Simulation:
    """A simulation for watching: waits and runs last seconds, so that a minute shows it all.

    ``start_ms`` is now: the pipeline's clock is the wall clock, so the events must be near it.
    Redeliveries come after a minute or two instead of hours.
    """
    return Simulation(
        seed,
        max(1, round(jobs_per_minute * minutes)),
        fleets,
        start_ms=start_ms,
        duration_s=minutes * 60,
        faults=Faults(reorder_s=8.0, redeliver_s=(45.0, 120.0)) if faults is None else faults,
        tempo=LIVE,
        stalls=stalls,
    )


def send_all(records: Iterable[Sending], sink: Sink) -> Sent:
    """Send as fast as the sink takes them. Does not flush."""
    return _send(records, sink, None, time.monotonic, time.sleep)


def send_live(
    records: Iterable[Sending],
    sink: Sink,
    *,
    stop: Callable[[], bool] = lambda: False,
    now_s: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> Sent:
    """Send each record at its time by the wall clock; late ones at once. ``stop`` ends it early.

    Raises what the sink raises. Sleeps at most half a second at a time, so ``stop`` is heard.
    """
    return _send(records, sink, stop, now_s, sleep)


def _send(
    records: Iterable[Sending],
    sink: Sink,
    stop: Callable[[], bool] | None,
    now_s: Callable[[], float],
    sleep: Callable[[float], None],
) -> Sent:
    began = now_s()
    number = size = 0
    for record in records:
        if stop is not None:
            while not stop() and (ahead := record.send_at_ms / 1000 - now_s()) > 0:
                sleep(min(ahead, 0.5))
            if stop():
                break
        sink.send(record.topic, record.key, record.value, record.headers)
        number += 1
        size += len(record.value)
    return Sent(number, size, now_s() - began)
