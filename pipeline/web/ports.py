"""What the views need of a worker, and nothing more. A worker knows the views; they know these.

Each port is what one kind of question needs: :class:`JobReader` what a worker knows itself,
:class:`Membership` whom to ask for the rest, :class:`Readiness` whether it can be relied on.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from pipeline.compat.page import Page
from pipeline.effects import Output
from pipeline.exporter import Exporter
from pipeline.fleet import FleetLedger
from pipeline.holes import Holes
from pipeline.ledger import Ledger
from pipeline.reached import Reached
from pipeline.settings import Settings
from pipeline.telemetry import TelemetryLedger


class JobReader(Protocol):
    """What one worker knows itself: the jobs and windows of the partitions it owns."""

    @property
    def ledgers(self) -> Mapping[int, Ledger]:
        """By partition of ``runners.jobs``. One may be missing while tables are read back."""
        ...


class FleetReader(JobReader, Protocol):
    """And the fleets of those partitions, which one worker owns together with the jobs'."""

    @property
    def fleet_ledgers(self) -> Mapping[int, FleetLedger]:
        """By partition of ``runners.fleets``. One may be missing while tables are read back."""
        ...


class TelemetryReader(Protocol):
    """What one worker knows of the telemetry of the same partitions."""

    @property
    def telemetry_ledgers(self) -> Mapping[int, TelemetryLedger]:
        """By partition of ``runners.telemetry``. One may be missing while tables are read back."""
        ...


class Publisher(Protocol):
    """Writes records to topics."""

    async def publish(self, outputs: Iterable[Output]) -> object:
        """Return when all are durable. Raises aiokafka.errors.KafkaError."""
        ...


class Membership(Protocol):
    """Who is in the group of workers, and what each of them owns."""

    @property
    def settings(self) -> Settings:
        """How many partitions there are, and the group's name."""
        ...

    @property
    def url(self) -> str:
        """Where the others reach this worker."""
        ...

    def members(self) -> Mapping[str, Collection[int]]:
        """Partitions of ``runners.jobs`` by URL, as of the last rebalance."""
        ...


class Sample(Protocol):
    """Deliveries that lack the same."""

    @property
    def about(self) -> str:
        """Which of them lack it."""
        ...

    @property
    def deliveries(self) -> int:
        """How many."""
        ...

    @property
    def first_at(self) -> int:
        """When the first of them arrived, in ms."""
        ...

    @property
    def last_at(self) -> int:
        """When the last of them arrived, in ms."""
        ...

    @property
    def job_key(self) -> str:
        """The last one's job."""
        ...


class Unrouted(Protocol):
    """What no configured route fits."""

    def samples(self) -> Mapping[str, Sequence[Sample]]:
        """The latest of each reason, the last one first."""
        ...


class Receiver(Protocol):
    """A worker that reads webhooks."""

    @property
    def unrouted(self) -> Unrouted | None:
        """What no route fits, since this worker started; None without routes."""
        ...


class Beside(Protocol):
    """The processes that run beside a worker, one for each further role."""

    def restarts(self) -> Mapping[str, tuple[bool, int]]:
        """By role, whether its process runs, and how often it was started again."""
        ...

    def troubles(self) -> list[str]:
        """What does not stay up, a sentence each."""
        ...


class Alone:
    """Nothing runs beside a worker."""

    def restarts(self) -> Mapping[str, tuple[bool, int]]:
        """None."""
        return {}

    def troubles(self) -> list[str]:
        """None."""
        return []


class Readiness(Protocol):
    """How a worker stands: what it owns, and what it does instead of working."""

    @property
    def settings(self) -> Settings:
        """Limits, and where broker and ClickHouse are."""
        ...

    @property
    def ledgers(self) -> Mapping[int, Ledger]:
        """As in :class:`JobReader`."""
        ...

    @property
    def metrics(self) -> Exporter:
        """Where gauges are brought up to date."""
        ...

    @property
    def compat(self) -> Page | None:
        """The same series by other systems' names; None when none are asked for."""
        ...

    @property
    def holes(self) -> Holes:
        """Records that were gone before they were read."""
        ...

    @property
    def beside(self) -> Beside:
        """What this worker keeps running beside it."""
        ...

    @property
    def sources(self) -> Reached:
        """Up to when all that producers posted is in ``runners.jobs``."""
        ...

    @property
    def started_at(self) -> float:
        """Unix time, seconds."""
        ...

    @property
    def rebalancing(self) -> bool:
        """Whether partitions are being moved."""
        ...

    @property
    def recovering(self) -> int | None:
        """Changelog records still to be read back; None when the tables are whole."""
        ...

    @property
    def settled(self) -> bool:
        """Neither rebalancing nor recovering."""
        ...

    def owned(self) -> list[int]:
        """Partitions of ``runners.jobs`` that are its own now."""
        ...

    def on_assigned(self, call: Callable[[], None]) -> None:
        """Have ``call`` called whenever partitions are assigned, none included."""
        ...


class Console(FleetReader, TelemetryReader, Membership, Readiness, Receiver, Protocol):
    """All of it: what the views together need of their worker."""

    @property
    def outbox(self) -> Publisher:
        """How what a person commands is put into the log."""
        ...

    @property
    def app(self) -> Any:
        """The Faust app whose web server they are mounted on."""
        ...
