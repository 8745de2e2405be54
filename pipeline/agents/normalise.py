"""``runners.webhooks``, ``runners.lifecycle`` and ``runners.outcomes`` -> facts on ``runners.jobs``
and records on ``runners.fleets``. No state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

from pipeline import metrics
from pipeline.agents.letters import bury
from pipeline.agents.transaction import SLICE, StepWrites
from pipeline.agents.unrouted import Unrouted
from pipeline.effects import Effects, Note, Output
from pipeline.faust_safe import Batch
from pipeline.fold_spec import OUTPUTS
from pipeline.providers import gitlab, lifecycle, outcomes
from pipeline.providers.base import AHEAD_MS, Fact
from pipeline.providers.registry import PROVIDERS, check, provider_of
from topics import bridge
from topics.catalogue import EVENTS, FLEETS, JOBS, OUTCOMES, TELEMETRY, WEBHOOKS
from topics.dead_letters import SourceRecord
from topics.events import EVENT, key_of
from topics.models import (
    DELIVERY,
    LIFECYCLE,
    RUNNER_KINDS,
    Delivery,
    JobFact,
    LifecycleKind,
    RunLink,
)
from topics.reading import read
from topics.recovery import OUTCOME, Ending, HostGone, RunnerSeen

FleetRecord = RunnerSeen | HostGone | Ending

#: Sees each delivery about jobs with its facts, and says what is to be counted.
Look = Callable[[Delivery, Iterable[Fact]], list[Note[Any]]]

#: Nothing is checked.
NO_SECRETS: Final[Mapping[str, Sequence[bytes]]] = {}

#: The event under which a job comes that was asked for: no delivery of a webhook.
POLLED: Final = "api_job"
#: What providers call that which a delivery about a job tells, as :data:`metrics.WEBHOOK_ACTIONS`
#: have it. GitLab tells the status of the job instead.
_ACTIONS: Final[Mapping[str, str]] = {
    **{action: action for action in metrics.WEBHOOK_ACTIONS},
    "requested": "queued",
    "pending": "queued",
    **dict.fromkeys(gitlab.HELD, "waiting"),
    **dict.fromkeys(gitlab.STARTED, "in_progress"),
    **dict.fromkeys(gitlab.CONCLUSIONS, "completed"),
}

#: Links that are not sent again while remembered. About 100 bytes each.
LINKS_REMEMBERED = 100_000


class Normalise:
    """Turns what producers say into facts."""

    stage = "normalise"
    steps: tuple[str, ...] = (OUTPUTS,)
    #: It has no working copies to drop.
    epoch = 0

    def __init__(
        self,
        on_notes: Callable[[list[Note[Any]]], None],
        secrets: Mapping[str, Sequence[bytes]] = NO_SECRETS,
        trust_envelopes: bool = False,
        fleet_of: Callable[[str], str] = str,
        unrouted: Unrouted | None = None,
    ) -> None:
        """``secrets`` are those of providers that sign, see :func:`record_facts`. ``fleet_of``
        tells the fleet that a pool is called, ``unrouted`` looks for what no route fits."""
        self._on_notes = on_notes
        self._fleet_of = fleet_of
        self._look = None if unrouted is None else unrouted.look
        self._secrets = {name: tuple(each) for name, each in secrets.items() if each}
        self._trust_envelopes = trust_envelopes
        self._linked: dict[str, None] = {}

    async def fold(self, batch: Batch) -> Effects:
        """Facts of one partition batch, and dead letters for what cannot be understood."""
        effects = Effects()
        hooks = batch.tp.topic == WEBHOOKS
        telemetry = batch.tp.topic == EVENTS
        ends = batch.tp.topic == OUTCOMES
        for number, record in enumerate(batch.records):
            if number % SLICE == 0:
                await asyncio.sleep(0)
            try:
                fleet: FleetRecord | None = None
                if telemetry:
                    output, notes = telemetry_record(record.value, self._fleet_of)
                    effects.outputs.append(output)
                    effects.notes += notes
                    continue
                if hooks:
                    facts, notes = record_facts(
                        record, self._secrets, self._trust_envelopes, self._look
                    )
                elif ends:
                    facts, fleet, notes = outcome_facts(record.value)
                else:
                    facts, fleet, notes = lifecycle_facts(record.value, self._fleet_of)
            except Exception as exc:
                # It keeps no state, so even a bug of ours may put the record aside and go on.
                letter, note = bury(self.stage, record, exc)
                effects.outputs.append(letter)
                effects.notes.append(note)
                if hooks:
                    effects.notes.append(Note(metrics.WEBHOOK_JOBS, ("other", "malformed")))
                continue
            effects.outputs += [
                Output(JOBS, None, fact.key.encode(), to_bytes(fact))
                for fact in facts
                if not (isinstance(fact, RunLink) and self._told(fact))
            ]
            if fleet is not None:
                effects.outputs.append(Output(FLEETS, None, fleet.key.encode(), to_bytes(fleet)))
            effects.notes += notes
        return effects

    def writes(self, partition: int, effects: Effects) -> StepWrites:
        """It keeps no state."""
        return {OUTPUTS: effects.outputs}

    def visible(
        self, partition: int, effects: Effects, offsets: dict[tuple[str, int], int]
    ) -> None:
        """Nothing to show but the counts."""
        self._on_notes(effects.notes)

    def forget(self) -> None:
        """Say every link again."""
        self._linked.clear()

    def _told(self, link: RunLink) -> bool:
        """Whether this process has sent the link already: every delivery of a job repeats it.

        Only memory of this process, so what a crash leaves unsent is sent again.
        """
        if link.id in self._linked:
            return True
        if len(self._linked) >= LINKS_REMEMBERED:
            self._linked.clear()
        self._linked[link.id] = None
        return False


def record_facts(
    record: SourceRecord,
    secrets: Mapping[str, Sequence[bytes]] = NO_SECRETS,
    trust_envelopes: bool = False,
    look: Look | None = None,
) -> tuple[Iterable[Fact], list[Note[Any]]]:
    """The facts of one ``runners.webhooks`` record, in raw form or an envelope.

    With ``secrets``, what has a provider's HTTP headers must be signed, byte for byte, by one of
    that provider's. An envelope must carry the signature of its payload among its headers, unless
    ``trust_envelopes`` says that whoever posts them has checked them. ``look`` sees what is
    believed. Raises Unreadable.
    """
    raw = bridge.raw(record)
    if raw is None:
        return webhook_facts(record.value, NO_SECRETS if trust_envelopes else secrets, look)
    check(PROVIDERS[raw.form.provider], raw.headers, raw.body, secrets)
    if raw.enveloped:
        return webhook_facts(record.value, look=look)
    return _delivery_facts(bridge.delivery(raw), [], look)


def webhook_facts(
    value: bytes | None,
    secrets: Mapping[str, Sequence[bytes]] = NO_SECRETS,
    look: Look | None = None,
) -> tuple[Iterable[Fact], list[Note[Any]]]:
    """The facts of an envelope; with ``secrets`` it must carry its body's signature."""
    envelope: list[str] = []
    delivery = read(DELIVERY, value, odd=envelope)
    provider = provider_of(delivery.kind)
    if secrets:
        headers = {name.lower(): told for name, told in delivery.headers.items()}
        check(provider, headers, delivery.payload.encode("utf-8", "surrogatepass"), secrets)
    return _delivery_facts(delivery, envelope, look)


def _delivery_facts(
    delivery: Delivery, envelope: list[str], look: Look | None
) -> tuple[Iterable[Fact], list[Note[Any]]]:
    said = provider_of(delivery.kind).facts(delivery)
    if said.ignored is not None:
        return [], [Note(metrics.IGNORED_WEBHOOKS, (said.ignored,))]
    event = delivery.kind.partition(".")[2]
    seen = [Note[Any](metrics.WEBHOOKS, (event,))]
    if delivery.occurred_at != delivery.received_at:  # else nobody said when it was made
        lag = max(0, delivery.received_at - delivery.occurred_at) / 1000
        seen.append(Note(metrics.WEBHOOK_LAG, (), lag))
    missing: list[Note[Any]] = [] if look is None else look(delivery, said)
    if said and isinstance(said[0], JobFact) and event != POLLED:
        outcome = missing[0].labels[0] if missing else "accepted"
        action = _ACTIONS.get(said[0].cause.rpartition(".")[2], "other")
        seen.append(Note(metrics.WEBHOOK_JOBS, (action, outcome)))
    seen += missing
    return said, [*seen, *_odd(said.odd, envelope)]


def lifecycle_facts(
    value: bytes | None, fleet_of: Callable[[str], str] = str
) -> tuple[Iterable[Fact], FleetRecord | None, list[Note[Any]]]:
    """What one ``runners.lifecycle`` record says: of its job, and of its runner."""
    envelope: list[str] = []
    event = read(LIFECYCLE, value, odd=envelope)
    kind: LifecycleKind = event.kind
    notes = [Note(metrics.LIFECYCLE_EVENTS, (kind.value,)), *_odd({}, envelope)]
    if lifecycle.is_ahead(event):
        notes.append(Note(metrics.ODD_FIELDS, ("occurred_at", "future")))
    facts = [] if kind in RUNNER_KINDS else [lifecycle.lifecycle_fact(event)]
    return facts, lifecycle.fleet_record(event, fleet_of), notes


def outcome_facts(
    value: bytes | None,
) -> tuple[Iterable[Fact], FleetRecord | None, list[Note[Any]]]:
    """What one ``runners.outcomes`` record says: of its job, and to its fleet."""
    outcome = read(OUTCOME, value)
    return outcomes.job_facts(outcome), outcomes.fleet_record(outcome), []


def telemetry_record(
    value: bytes | None, fleet_of: Callable[[str], str] = str
) -> tuple[Output, list[Note[Any]]]:
    """What one ``runners.events`` record says, under its key. Raises Unreadable.

    ``fleet_of`` tells the fleet that a pool is called, which is what producers may say instead.
    A time more than a day after the event's own arrival is not believed: then arrival is all that
    is known of when.
    """
    envelope: list[str] = []
    event = read(EVENT, value, odd=envelope)
    notes = _odd({}, envelope)
    event = event.model_copy(update={"fleet": fleet_of(event.fleet)})
    said: dict[str, Any] = {"key": key_of(event)}
    if event.occurred_at > event.received_at + AHEAD_MS:
        notes.append(Note(metrics.ODD_FIELDS, ("occurred_at", "future")))
        said["occurred_at"] = event.received_at
    event = event.model_copy(update=said)
    told = event.model_dump_json(exclude_none=True).encode()
    return Output(TELEMETRY, None, event.key.encode(), told), notes


def _odd(fields: Mapping[tuple[str, str], int], envelope: list[str]) -> list[Note[Any]]:
    notes: list[Note[Any]] = [
        Note(metrics.ODD_FIELDS, where, float(times)) for where, times in fields.items()
    ]
    if envelope:
        notes.append(Note(metrics.ODD_FIELDS, ("envelope", "unusable"), float(len(envelope))))
    return notes


def to_bytes(fact: Fact | FleetRecord) -> bytes:
    """The record value of a fact, or of what a fleet is told."""
    return fact.model_dump_json(exclude_none=True).encode()
