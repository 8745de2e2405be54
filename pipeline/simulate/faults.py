"""What goes wrong between the event and the topic, and records that are wrong in themselves.

A fault never changes what happened, only which records arrive, when, and how often. The rates
are assumptions; the mechanisms are GitHub's documented delivery behaviour: no order, no retry,
minutes of delay, redelivery by hand for days under the same delivery id, two hooks that get the
same event under the same id (Q8, Q10, Q23, Q24).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgspec

from pipeline.simulate.wire import HOST, Headers, guid_at
from topics.bridge import RECEIVED_AT
from topics.catalogue import LIFECYCLE, WEBHOOKS
from topics.models import Reason, job_key


@dataclass(frozen=True)
class Faults:
    """How often, as shares of the records."""

    #: Sent again within seconds: half of them byte for byte (a producer's retry), half as a
    #: second hook's delivery of the same event.
    duplicates: float = 0.01
    #: Never sent at all.
    drops: float = 0.003
    #: Held back, so that others overtake them, by up to ``reorder_s``.
    reordered: float = 0.02
    reorder_s: float = 120.0
    #: Sent again after hours, under the same delivery id.
    redelivered: float = 0.003
    redeliver_s: tuple[float, float] = (3_600.0, 6 * 3_600.0)
    #: Spans (start, length, in seconds from the simulation's start) in which nothing gets
    #: through; it all arrives in a burst afterwards.
    outages: tuple[tuple[float, float], ...] = ()
    #: Malformed records among the good ones.
    malformed: float = 0.0

    def __post_init__(self) -> None:
        for name in ("duplicates", "drops", "reordered", "redelivered", "malformed"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a share between 0 and 1")


NO_FAULTS: Final = Faults(duplicates=0, drops=0, reordered=0, redelivered=0)


class Arrival(NamedTuple):
    """One sending of a record. ``exact``: the same bytes as the one before."""

    send_at: int
    exact: bool = False


class Network:
    """Decides when, how often and whether each record arrives. Deterministic by seed."""

    def __init__(self, seed: int, faults: Faults, start_ms: int) -> None:
        self._rng = random.Random(f"network {seed}")
        self._faults = faults
        self._outages = [
            (start_ms + int(start * 1000), start_ms + int((start + length) * 1000))
            for start, length in faults.outages
        ]
        self.counts = dict.fromkeys(("duplicated", "dropped", "reordered", "redelivered"), 0)

    def arrivals(self, topic: str, event_at: int, sure: bool = False) -> list[Arrival]:
        """The sendings of one record, none if it is lost. None is before the event.

        ``sure``: it is not lost.
        """
        rng, faults = self._rng, self._faults
        # Webhooks take a second or so, a dispatcher on our own network some milliseconds.
        median_ms = 700.0 if topic == WEBHOOKS else 4.0
        at = event_at + 1 + int(median_ms * min(60.0, rng.lognormvariate(0.0, 0.6)))
        if rng.random() < faults.drops and not sure:
            self.counts["dropped"] += 1
            return []
        if rng.random() < faults.reordered:
            self.counts["reordered"] += 1
            at += int(1000 * rng.uniform(1.0, max(1.0, faults.reorder_s)))
        for begin, end in self._outages:
            if begin <= at < end:
                at = end + rng.randrange(2_000)
        arrivals = [Arrival(at)]
        if rng.random() < faults.duplicates:
            self.counts["duplicated"] += 1
            arrivals.append(Arrival(at + rng.randrange(1, 5_000), exact=rng.random() < 0.5))
        if rng.random() < faults.redelivered:
            self.counts["redelivered"] += 1
            arrivals.append(Arrival(at + int(1000 * rng.uniform(*faults.redeliver_s))))
        return arrivals


class Malformed(NamedTuple):
    """A record that must end in the dead letters, and the reason it must have there."""

    name: str
    topic: str
    key: bytes
    value: bytes
    reason: Reason
    #: Of one in raw form.
    headers: Headers = ()


def malformed(seed: int, number: int, at_ms: int = 1_750_000_000_000) -> Iterator[Malformed]:
    """Malformed records, all kinds in turn, deterministic by seed."""
    rng = random.Random(f"malformed {seed}")
    kinds = list(_KINDS.items())
    for n in range(number):
        name, make = kinds[n % len(kinds)]
        # Ids of their own: none of these may touch a job of the simulation.
        job_id = 10_000_000 + seed % 1_000 * 100_000 + n
        topic, value, reason, *headers = make(rng, job_id, at_ms)
        key = job_key("github", HOST, job_id).encode()
        yield Malformed(name, topic, key, value, reason, *headers)


_Made = tuple[str, bytes, Reason] | tuple[str, bytes, Reason, Headers]


def _delivery(rng: random.Random, job_id: int, at: int, **changes: Any) -> dict[str, Any]:
    record: dict[str, Any] = {
        "id": guid_at(at, rng.randrange(10_000), rng.getrandbits(48)),
        "kind": "github.workflow_job",
        "version": 1,
        "source": "github",
        "occurred_at": at,
        "received_at": at + 900,
        "key": job_key("github", HOST, job_id),
        "host": HOST,
        "payload": msgspec.json.encode(
            {"action": "queued", "workflow_job": {"id": job_id, "status": "queued"}}
        ).decode(),
    }
    return record | changes


def _lifecycle(rng: random.Random, job_id: int, at: int, **changes: Any) -> dict[str, Any]:
    record: dict[str, Any] = {
        "id": f"bad-{rng.getrandbits(64):016x}",
        "kind": "job.claimed",
        "version": 1,
        "source": "dispatcher",
        "occurred_at": at,
        "received_at": at + 5,
        "key": job_key("github", HOST, job_id),
        "job_id": str(job_id),
        "claim": f"{job_id}-1",
    }
    return record | changes


def _not_json(rng: random.Random, job_id: int, at: int) -> _Made:
    whole = msgspec.json.encode(_delivery(rng, job_id, at))
    return WEBHOOKS, whole[: rng.randrange(1, len(whole) - 1)], Reason.NOT_JSON


def _not_utf8(rng: random.Random, job_id: int, at: int) -> _Made:
    whole = msgspec.json.encode(_delivery(rng, job_id, at, source="?"))
    return WEBHOOKS, whole.replace(b'"?"', b'"\xff\xfe"'), Reason.NOT_JSON


def _raw(
    rng: random.Random, at: int, body: bytes, reason: Reason, event: bytes = b"workflow_job"
) -> _Made:
    """In raw form, as a bridge writes it."""
    guid = guid_at(at, rng.randrange(10_000), rng.getrandbits(48)).encode()
    told = (("x-github-event", event), ("x-github-delivery", guid))
    return WEBHOOKS, body, reason, (*told, (RECEIVED_AT, b"%d" % (at + 900)))


def _raw_cut(rng: random.Random, job_id: int, at: int) -> _Made:
    return _raw(rng, at, b'{"action":"queued","workflow_job":', Reason.NOT_JSON)


def _raw_not_utf8(rng: random.Random, job_id: int, at: int) -> _Made:
    body = b'{"action":"queued","workflow_job":{"id":%d,"name":"\xff\xfe"}}'
    return _raw(rng, at, body % job_id, Reason.NOT_JSON)


def _raw_null(rng: random.Random, job_id: int, at: int) -> _Made:
    return _raw(rng, at, b'{"action":"queued","workflow_job":null}', Reason.NO_JOB)


def _raw_unknown(rng: random.Random, job_id: int, at: int) -> _Made:
    body = b'{"action":"queued","workflow_job":{"id":%d}}' % job_id
    return _raw(rng, at, body, Reason.UNKNOWN_KIND, b"workflow_jobs")


def _body_not_json(rng: random.Random, job_id: int, at: int) -> _Made:
    record = _delivery(rng, job_id, at, payload='{"action":"queued","workflow_job":')
    return WEBHOOKS, msgspec.json.encode(record), Reason.NOT_JSON


def _bad_body(rng: random.Random, job_id: int, at: int) -> _Made:
    body = {"action": "queued", "workflow_job": {"id": "the first", "status": "queued"}}
    record = _delivery(rng, job_id, at, payload=msgspec.json.encode(body).decode())
    return WEBHOOKS, msgspec.json.encode(record), Reason.BAD_PAYLOAD


def _no_payload(rng: random.Random, job_id: int, at: int) -> _Made:
    record = _delivery(rng, job_id, at)
    del record["payload"]
    return WEBHOOKS, msgspec.json.encode(record), Reason.BAD_ENVELOPE


def _unknown_kind(rng: random.Random, job_id: int, at: int) -> _Made:
    record = _delivery(rng, job_id, at, kind="github.workflow_jobs")
    return WEBHOOKS, msgspec.json.encode(record), Reason.UNKNOWN_KIND


def _newer(rng: random.Random, job_id: int, at: int) -> _Made:
    return (
        WEBHOOKS,
        msgspec.json.encode(_delivery(rng, job_id, at, version=99)),
        Reason.NEWER_VERSION,
    )


def _seconds(rng: random.Random, job_id: int, at: int) -> _Made:
    record = _lifecycle(rng, job_id, at, occurred_at=at // 1000)
    return LIFECYCLE, msgspec.json.encode(record), Reason.BAD_TIME


def _no_claim(rng: random.Random, job_id: int, at: int) -> _Made:
    return (
        LIFECYCLE,
        msgspec.json.encode(_lifecycle(rng, job_id, at, claim="")),
        Reason.MISSING_CLAIM,
    )


def _bad_job_id(rng: random.Random, job_id: int, at: int) -> _Made:
    record = _lifecycle(rng, job_id, at) | {"job_id": "a job/with a path"}
    return LIFECYCLE, msgspec.json.encode(record), Reason.BAD_ENVELOPE


def _unknown_lifecycle(rng: random.Random, job_id: int, at: int) -> _Made:
    record = _lifecycle(rng, job_id, at, kind="job.teleported")
    return LIFECYCLE, msgspec.json.encode(record), Reason.UNKNOWN_KIND


_KINDS: Final[dict[str, Callable[[random.Random, int, int], _Made]]] = {
    "value cut short": _not_json,
    "value not UTF-8": _not_utf8,
    "body cut short": _body_not_json,
    "raw body cut short": _raw_cut,
    "raw body not UTF-8": _raw_not_utf8,
    "workflow_job null": _raw_null,
    "unknown event": _raw_unknown,
    "body of the wrong shape": _bad_body,
    "no payload": _no_payload,
    "unknown webhook": _unknown_kind,
    "newer version": _newer,
    "seconds for milliseconds": _seconds,
    "claim without handle": _no_claim,
    "job id with a path": _bad_job_id,
    "unknown lifecycle kind": _unknown_lifecycle,
}
