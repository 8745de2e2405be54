"""Events made of what a host says about them: checked, given an id and a time, freed of secrets.

Lifecycle events and telemetry alike. Whoever says something names the kind and the fields; the rest
is made. What makes no event that the pipeline understands is a ValueError that says why.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from hashlib import blake2b
from secrets import token_hex
from typing import Any, Final, Literal, NoReturn, TypedDict, cast, get_origin, get_type_hints

from topics.batching import Drop
from topics.events import MODELS, Event
from topics.events.base import Text
from topics.keys import GITHUB_HOST, canonical_host, job_key
from topics.masking import Masker
from topics.models import RUNNER_KINDS, LifecycleEvent, LifecycleKind, RunnerRef

#: What can be told.
Told = LifecycleEvent | Event

#: What others wait for: it ends a wait, or something is lost or broken. The rest waits for company.
URGENT: Final[frozenset[str]] = frozenset(
    {
        LifecycleKind.JOB_STARTED, LifecycleKind.JOB_COMPLETED, LifecycleKind.CLAIM_RELEASED,
        LifecycleKind.RUNNER_GONE, LifecycleKind.HOST_GONE,
        "runner.stopped", "task.finished", "task.flush_failed", "task.reaped",
        "run.finished", "queue.dead_lettered", "schedule.missed",
        "reconciler.violation_opened", "reconciler.violation_closed", "work.dispatch_failed",
    }
)  # fmt: skip
_CLAIM_KINDS: Final = frozenset(
    {LifecycleKind.JOB_CLAIMED, LifecycleKind.JOB_MINTED, LifecycleKind.CLAIM_RELEASED}
)
#: Fields of an event that tell nothing apart: here a secret is masked. In any other it would make
#: one job, runner or fleet of several, so there the event is dropped. Beside them the short words
#: of telemetry.
_PROSE: Final = frozenset({"reason", "repo", "trace"})
#: As long as the key of a job may be.
_LONGEST_KEY: Final = 256


class Said(TypedDict, total=False):
    """What a lifecycle event says: the fields of :class:`~topics.models.LifecycleEvent`."""

    job_id: str | int
    #: Its name, or more.
    runner: str | RunnerRef
    claim: str
    #: The emitter's unless given; so are the next three.
    fleet: str
    source: str
    provider: str
    host: str
    runner_host: str
    boot_ms: int | None
    conclusion: str | None
    reason: str
    repo: str
    #: In ms; now unless given.
    occurred_at: int | None
    #: Made of kind, key, claim and time unless given.
    id: str
    trace: str | None


#: What the pipeline and the maker of events fill in, not who says something.
_MADE: Final = frozenset({"kind", "key", "version", "received_at"})


def sayable(kind: str) -> tuple[str, ...]:
    """The fields that an event of a kind may be given. Raises ValueError for no kind."""
    if kind in MODELS:
        return tuple(name for name in MODELS[kind].model_fields if name not in _MADE)
    _lifecycle_kind(kind)
    return tuple(Said.__annotations__)


def _lifecycle_kind(kind: str) -> LifecycleKind:
    try:
        return LifecycleKind(kind)
    except ValueError:
        raise ValueError(f"there is no kind {kind!r}") from None


class Maker:
    """Makes events of what is said, with what is said of all of them.

    ``always`` are fields that hold unless an event says otherwise, where it has them: ``source``,
    ``fleet``, ``provider``, ``host``, ``runner``. Safe to share between threads.
    """

    def __init__(self, always: Mapping[str, str], masker: Masker) -> None:
        self._always = dict(always)
        self._masker = masker
        self.renew()

    def renew(self) -> None:
        """Make other ids than any other process: after a fork both would make the same."""
        self._mark = token_hex(4)
        self._numbers = itertools.count()

    def event(self, kind: str, said: Mapping[str, Any]) -> Told:
        """The event that says this. Raises ValueError.

        With a time an id of telemetry is made of what is said, so the same said again counts once.
        Without one nobody can say the same again: each is an event of its own, also two within a
        millisecond.
        """
        _require_known(kind, said)
        if kind in MODELS:
            return self._telemetry(kind, said)
        return self._lifecycle(LifecycleKind(kind), said)

    def _lifecycle(self, kind: LifecycleKind, said: Mapping[str, Any]) -> LifecycleEvent:
        try:
            always = dict(self._always)
            if kind is LifecycleKind.HOST_GONE:
                always.pop("runner", None)  # it is about all runners there
            event = _lifecycle({**always, **said, "kind": kind})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"a field is of the wrong type: {error}") from error
        require_names(event)
        return event

    def _telemetry(self, kind: str, said: Mapping[str, Any]) -> Event:
        model = MODELS[kind]
        now = time.time_ns() // 1_000_000
        fields: dict[str, Any] = {
            n: value for n, value in self._always.items() if n in model.model_fields
        }
        fields |= said
        fields |= {"kind": kind, "received_at": now, "id": said.get("id") or "made below"}
        timed = said.get("occurred_at") is not None
        if not timed:
            fields["occurred_at"] = now
        event = model.model_validate(fields)
        if said.get("id"):
            return event
        at = event.occurred_at
        what = self._digest(event) if timed else f"{self._mark}{next(self._numbers)}"
        made = "/".join((kind, event.fleet, event.subject, str(at), what))
        return event.model_copy(update={"id": made[:512]})

    def _digest(self, event: Event) -> str:
        """What an event says, in few characters; nothing of a secret is in it."""
        text = event.model_dump_json(exclude={"id", "received_at", "trace", "version"})
        return blake2b(self._masker.mask(text).encode(), digest_size=8).hexdigest()


def _require_known(kind: str, said: Mapping[str, Any]) -> None:
    known = sayable(kind)
    if unknown := sorted(set(said) - set(known)):
        raise ValueError(f"{kind} has no {', '.join(unknown)}; it has {', '.join(known)}")


def _lifecycle(said: dict[str, Any]) -> LifecycleEvent:
    """Raises ValueError."""
    now = time.time_ns() // 1_000_000
    said["received_at"] = now
    if said.get("occurred_at") is None:
        said["occurred_at"] = now
    runner = said.get("runner") or ""
    runner = RunnerRef.model_validate({"name": runner} if isinstance(runner, str) else runner)
    said["runner"] = runner
    kind = said["kind"]
    if kind is LifecycleKind.HOST_GONE:
        said["key"] = said.get("runner_host") or _lacks(kind)
    elif kind in RUNNER_KINDS:
        said["key"] = runner.name or _lacks(kind)
    else:
        said["key"] = job_key(said["provider"], said["host"], said.get("job_id", ""))
    if not said.get("id"):
        parts = (kind.value, said["key"], said.get("claim") or "", said["occurred_at"])
        said["id"] = "/".join(map(str, parts))[:512]
    return LifecycleEvent.model_validate(said)


def require_names(event: Told) -> None:
    """Raise ValueError for what the pipeline would put aside, though the model takes it."""
    if isinstance(event, Event):
        return
    if event.kind in _CLAIM_KINDS and not event.claim.strip():
        raise ValueError(f"{event.kind.value} needs a claim")
    if event.kind not in RUNNER_KINDS:
        key = job_key(event.provider, canonical_host(event.host) or GITHUB_HOST, event.job_id)
        if len(key) > _LONGEST_KEY:
            raise ValueError("provider and host are too long for a key")
        return
    of_host = event.kind is LifecycleKind.HOST_GONE
    if not event.fleet or not (event.runner_host if of_host else event.runner.name):
        _lacks(event.kind)


def _lacks(kind: LifecycleKind) -> NoReturn:
    what = "runner_host" if kind is LifecycleKind.HOST_GONE else "runner"
    raise ValueError(f"{kind.value} needs a fleet and a {what}")


def masked(event: Told, masker: Masker) -> Told | Drop:
    """The event without secrets; a reason to drop it where it cannot be told without."""
    hints = _hints(type(event))
    texts: dict[str, str] = {}
    inside: list[str] = []
    for name, value in event:
        if type(value) is str:
            # A word of the contract is no secret.
            if get_origin(hints[name]) is not Literal:
                texts[name] = value
        elif value is not None:
            inside += _texts(value)
    together = "\n".join((*texts.values(), *inside))
    if masker.mask(together) == together:
        return event
    if any(masker.mask(text) != text for text in inside):
        return Drop.SECRET
    found = {name: masker.mask(value) for name, value in texts.items()}
    changed = {name: value for name, value in found.items() if value != texts[name]}
    if any(name not in _PROSE and hints[name] != Text for name in changed):
        return Drop.SECRET
    return event.model_copy(update=changed)


@lru_cache(maxsize=64)
def _hints(model: type[Told]) -> Mapping[str, Any]:
    return get_type_hints(model, include_extras=True)


def _texts(value: object) -> Iterator[str]:
    """Every text in a value that holds others, keys as well."""
    if type(value) is str:
        yield value
    elif isinstance(value, RunnerRef):
        yield from _texts(dict(value))
    elif isinstance(value, Mapping):
        for name, each in cast(Mapping[object, object], value).items():
            yield from _texts(name)
            yield from _texts(each)
    elif isinstance(value, tuple):
        for each in value:
            yield from _texts(each)


#: What tells the fields of a level, each time it is told; None when there is nothing to tell.
Fields = Callable[[], Mapping[str, Any] | None]

__all__ = ["URGENT", "Fields", "Maker", "Said", "Told", "masked", "require_names", "sayable"]
