"""GitHub's bodies: the parts that are read, and each field's value, whatever came instead of it.

A field that has a value it cannot have is blank and counts as odd, by its name and the reason. Only
what is asked for by ``needed`` can refuse a body.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
from msgspec import UNSET, Raw, Struct

from topics.envelope import EARLIEST_MS, LATEST_MS, MAX_STEPS
from topics.models import Conclusion, Reason, Step, Unreadable

_TEXT_LIMIT: Final = 1024
WORD_LIMIT: Final = 256
_STEP_NAME_LIMIT: Final = 128
_LABEL_LIMIT: Final = 100
#: What a conclusion is called.
CONCLUSIONS: Final[dict[str, Conclusion]] = {c.value: c for c in Conclusion}


# The part of the bodies we read, each field as whatever it is. All else is skipped by the parser,
# unseen.


class Body(Struct, gc=False):
    """A delivery: of its parts only those that are there are read any further."""

    action: Any = None
    workflow_job: Raw = Raw(b"null")
    workflow_run: Raw = Raw(b"null")
    repository: Raw = Raw(b"null")
    sender: Raw = Raw(b"null")
    #: Only in a ping.
    zen: Raw = Raw(b"null")
    hook_id: Raw = Raw(b"null")


class Repository(Struct, gc=False):
    """A repository, the one that the delivery is about or the one of the code."""

    full_name: Any = None
    html_url: Any = None


class _Account(Struct, gc=False):
    login: Any = None


class _Installation(Struct, gc=False):
    id: Any = None


class _Installed(Struct, gc=False):
    installation: _Installation | None = None


class ListedStep(Struct, gc=False):
    """A step as a job lists it."""

    started_at: Any = None
    number: Any = None
    name: Any = None
    conclusion: Any = None
    completed_at: Any = None


class Job(Struct, gc=False):
    """A ``workflow_job``, in a webhook or from the REST API."""

    id: Any = None
    run_id: Any = None
    run_attempt: Any = None
    status: Any = None
    conclusion: Any = None
    created_at: Any = None
    started_at: Any = None
    completed_at: Any = None
    name: Any = None
    workflow_name: Any = None
    head_branch: Any = None
    head_sha: Any = None
    html_url: Any = None
    labels: Any = None
    steps: Raw | msgspec.UnsetType = UNSET
    runner_id: Any = UNSET
    runner_name: Any = UNSET
    runner_group_name: Any = None


class Run(Struct, gc=False):
    """A ``workflow_run``."""

    id: Any = None
    run_attempt: Any = None
    status: Any = None
    conclusion: Any = None
    html_url: Any = None
    run_started_at: Any = None
    updated_at: Any = None
    event: Any = None
    actor: Raw = Raw(b"null")
    triggering_actor: Raw = Raw(b"null")
    head_repository: Raw = Raw(b"null")
    pull_requests: Any = None


BODY: Final = msgspec.json.Decoder(Body)
JOB: Final = msgspec.json.Decoder(Job)
RUN: Final = msgspec.json.Decoder(Run)
REPOSITORY: Final = msgspec.json.Decoder(Repository)
_ACCOUNT: Final = msgspec.json.Decoder(_Account)
_INSTALLED: Final = msgspec.json.Decoder(_Installed)
_STEPS: Final = msgspec.json.Decoder(list[ListedStep])
_ANYTHING: Final = msgspec.json.Decoder()


_EVERY_RUNNER: Final = "self-hosted"


def canonical_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """A label set in the form that names a fleet: lower-case, sorted, without ``self-hosted``.

    GitHub matches labels without regard to case and adds ``self-hosted`` to every runner of
    yours, so neither tells fleets apart. Alone it stays: it is all that the job asks for.
    """
    known = {label.strip().lower()[:WORD_LIMIT] for label in labels} - {""}
    return tuple(sorted(known - {_EVERY_RUNNER} or known)[:_LABEL_LIMIT])


def is_null(raw: Raw) -> bool:
    """Whether a part of the body is missing or null."""
    return memoryview(raw).nbytes == 4 and bytes(raw) == b"null"


def inner(decoder: msgspec.json.Decoder[Any], raw: Raw, needed: str = "") -> Any:
    """An object inside the body; None when it is none and not needed. Raises Unreadable."""
    try:
        return decoder.decode(raw)
    except msgspec.ValidationError as error:
        if needed:
            raise Unreadable(Reason.BAD_PAYLOAD, f"{needed}: {error}") from error
        return None


def within(
    decoder: msgspec.json.Decoder[Any], raw: Raw, name: str, odd: Counter[tuple[str, str]]
) -> Any:
    """An object inside the body that may be missing: then None."""
    if is_null(raw):
        return None
    found = inner(decoder, raw)
    if found is None:
        odd[name, "wrong_type"] += 1
    return found


def text_of(value: Any, name: str, odd: Counter[tuple[str, str]]) -> str:
    """A text that may be missing: then blank."""
    if isinstance(value, str):
        return value[:_TEXT_LIMIT]
    if value is not None:
        odd[name, "wrong_type"] += 1
    return ""


def login(raw: Raw, name: str, odd: Counter[tuple[str, str]]) -> str:
    """The name of an account. A user who was deleted is null."""
    account = within(_ACCOUNT, raw, name, odd)
    return "" if account is None else text_of(account.login, name, odd)


def installation_of(payload: str) -> int:
    """The number of the App's installation by which a body came; 0 when it does not say."""
    try:
        found = _INSTALLED.decode(payload).installation
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return 0
    return 0 if found is None else identity(found.id) or 0


def pull_request(value: Any, odd: Counter[tuple[str, str]]) -> int:
    """The smallest number of those a run names. GitHub names none for a fork's: then 0."""
    if not value and (value is None or isinstance(value, list)):
        return 0
    known = []
    if isinstance(value, list):
        for one in value:
            number = identity(one.get("number")) if isinstance(one, dict) else None
            if number is not None:
                known.append(number)
    if not isinstance(value, list) or len(known) < len(value):
        odd["pull_requests", "unusable"] += 1
    return min(known, default=0)


_DIGITS: Final = re.compile(r"[0-9]{1,18}")


def identity(value: Any) -> int | None:
    """A number that names something, also when it came as text or with a fraction of 0."""
    whole = isinstance(value, float) and value.is_integer()
    if whole or (isinstance(value, str) and _DIGITS.fullmatch(value)):
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 < value < 2**63 else None


def number_of(value: Any, name: str, below: int, odd: Counter[tuple[str, str]]) -> int:
    """A number that may be missing: then 0."""
    if value is None or value == 0:
        return 0
    known = identity(value)
    if known is None or known >= below:
        odd[name, "unusable"] += 1
        return 0
    return known


def runner_id_of(value: Any, odd: Counter[tuple[str, str]]) -> tuple[int | None, bool]:
    """The runner's id, and whether the body says that there is none: null, 0 or "" (Q17)."""
    if value is UNSET:
        return None, False
    if value is None or value in (0, "", "0"):
        return None, True
    known = identity(value)
    if known is None:
        odd["runner_id", "unusable"] += 1
    return known, False


def labels_of(value: Any, odd: Counter[tuple[str, str]]) -> list[str]:
    """The labels that are text."""
    if value is None:
        return []
    if not isinstance(value, list):
        odd["labels", "wrong_type"] += 1
        return []
    known = [label for label in value if isinstance(label, str)]
    if len(known) < len(value):
        odd["labels", "wrong_type"] += len(value) - len(known)
    return known


def steps_listed(
    raw: Raw | msgspec.UnsetType, odd: Counter[tuple[str, str]]
) -> list[ListedStep] | None:
    """The steps; None when the body does not say."""
    if raw is UNSET or is_null(raw):
        return None
    try:
        return _STEPS.decode(raw)
    except msgspec.ValidationError:
        odd["steps", "wrong_type"] += 1
    found = _ANYTHING.decode(raw)
    if not isinstance(found, list):
        return None
    names = ListedStep.__struct_fields__
    return [ListedStep(*map(step.get, names)) for step in found if isinstance(step, dict)] or None


def steps_told(
    listed: list[ListedStep], latest: int, odd: Counter[tuple[str, str]]
) -> tuple[Step, ...]:
    """The steps that can be told apart, those with the smallest numbers, in their order."""
    known: dict[int, Step] = {}
    for step in listed:
        number = identity(step.number)
        if number is None or number > 1_000_000:
            if step.number is not None:
                odd["steps", "unusable"] += 1
            continue
        said = text_of(step.conclusion, "steps", odd)
        # An odd start was counted when the job's own times were read: a step counts once.
        counted: Counter[tuple[str, str]] = Counter()
        started = time_of(step.started_at, "steps", latest, counted)
        known[number] = Step(
            number=number,
            name=text_of(step.name, "steps", odd)[:_STEP_NAME_LIMIT],
            conclusion=CONCLUSIONS.get(said, Conclusion.UNKNOWN) if said else None,
            started_at=started,
            completed_at=time_of(step.completed_at, "steps", latest, counted if counted else odd),
        )
    return tuple(known[number] for number in sorted(known)[:MAX_STEPS])


def none_began(steps: list[ListedStep]) -> bool:
    """Whether no step says that it started."""
    return all(step.started_at is None for step in steps)


def time_of(value: Any, name: str, latest: int, odd: Counter[tuple[str, str]]) -> int | None:
    """Milliseconds since the epoch; None for a missing, zero or impossible time. No zone means
    UTC; a number is in seconds, or in milliseconds when it is too large for seconds."""
    if value is None:
        return None
    ms: int | None = None
    if isinstance(value, str):
        try:
            moment = datetime.fromisoformat(value)
            if 2015 <= moment.year <= 2099:
                moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
                ms = round(moment.timestamp() * 1000)
            elif moment.year < 2015:
                return None
        except (ValueError, OverflowError):
            value = (
                int(value) if value.isascii() and value.isdecimal() and len(value) < 15 else None
            )
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        ms = round(value * 1000 if abs(value) < 20_000_000_000 else value)
        if ms < EARLIEST_MS:
            return None
    if ms is None or ms > LATEST_MS:
        odd[name, "unusable"] += 1
        return None
    if ms > latest:
        odd[name, "future"] += 1
        return None
    return ms if ms >= EARLIEST_MS else None
