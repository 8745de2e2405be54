"""Dispatchers: what runners asked them for, what was claimed and minted. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from msgspec import Struct

from pipeline.metrics import Counter, Gauge, Histogram, Label, Level, Source
from pipeline.telemetry.subject import HOUR_MS, Family, Subject, latest
from topics.events import Event
from topics.events.dispatch import (
    ClaimAttempted,
    ClaimOutcome,
    DispatchOutcome,
    DispatchRequested,
    MintOutcome,
    RunnerMinted,
)

_GROUP: Final = "dispatch"
_FLEET: Final = Label("fleet", Source.FLEET)
#: A runner that polls waits for no longer than some seconds. Few, since there are many outcomes.
REQUEST_BUCKETS: Final = (0.05, 0.25, 1, 5)
MINT_BUCKETS: Final = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

REQUESTS: Final = Counter[tuple[str, str]](
    "dispatch_requests",
    "Requests of runners for work, by what they were told.",
    "requests",
    (_FLEET, Label("outcome", tuple(each.value for each in DispatchOutcome))),
    group=_GROUP,
)
REQUEST_SECONDS: Final = Histogram[tuple[str]](
    "dispatch_request_seconds",
    "How long a runner that asked for work waited for the answer.",
    "seconds",
    (Label("outcome", tuple(each.value for each in DispatchOutcome)),),
    buckets=REQUEST_BUCKETS,
)
CLAIMS: Final = Counter[tuple[str, str]](
    "claim_attempts",
    "Tries to claim a job for a runner.",
    "tries",
    (_FLEET, Label("outcome", tuple(each.value for each in ClaimOutcome))),
    group=_GROUP,
)
MINTS: Final = Counter[tuple[str, str]](
    "runner_mints",
    "Requests to the provider for the credentials of a runner.",
    "requests",
    (_FLEET, Label("outcome", tuple(each.value for each in MintOutcome))),
    group=_GROUP,
)
MINT_SECONDS: Final = Histogram[tuple[()]](
    "runner_mint_seconds",
    "How long the provider took to give a runner its credentials, or to refuse.",
    "seconds",
    buckets=MINT_BUCKETS,
)
LAST_REQUEST: Final = Gauge[tuple[str]](
    "dispatch_last_request_timestamp_seconds",
    "When a runner last asked for work, as Unix time. Stands still when no runner asks.",
    "seconds",
    (_FLEET,),
    group=_GROUP,
    over="max",
)


class Heard(Struct, frozen=True):
    """When a runner last asked."""

    at: int
    id: str


def apply(subject: Subject, event: Event) -> None:
    """See :attr:`Family.apply`."""
    if isinstance(event, DispatchRequested):
        heard = Heard(event.occurred_at, event.id)
        subject.put("heard", latest(subject.get("heard"), heard))
        subject.note(REQUESTS, event.outcome.value)
        if event.duration_ms is not None:
            subject.note(REQUEST_SECONDS, event.outcome.value, value=event.duration_ms / 1000)
    elif isinstance(event, ClaimAttempted):
        subject.note(CLAIMS, event.outcome.value)
    elif isinstance(event, RunnerMinted):
        subject.note(MINTS, event.outcome.value)
        if event.duration_ms is not None:
            subject.note(MINT_SECONDS, value=event.duration_ms / 1000)


def tick(subject: Subject, clock: int) -> None:
    """See :attr:`Family.tick`."""
    heard: Heard | None = subject.get("heard")
    if heard is not None and clock - heard.at > HOUR_MS:
        subject.drop("heard")


def levels(subject: Subject, clock: int) -> Iterator[Level]:
    """See :attr:`Family.levels`."""
    heard: Heard | None = subject.get("heard")
    if heard is not None:
        yield LAST_REQUEST, (subject.fleet,), heard.at / 1000


def view(subject: Subject, clock: int) -> dict[str, Any]:
    """See :attr:`Family.view`."""
    heard: Heard | None = subject.get("heard")
    return {"last_request_at": heard.at if heard else None}


FAMILY: Final = Family(
    name="dispatch",
    parts={"heard": Heard},
    metrics=(REQUESTS, REQUEST_SECONDS, CLAIMS, MINTS, MINT_SECONDS, LAST_REQUEST),
    apply=apply,
    levels=levels,
    view=view,
    tick=tick,
)
