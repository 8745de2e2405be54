"""GitHub and GHES: a webhook body becomes facts.

Rules and where they come from (Qn: the quirk list, tested by name in ``tests/test_quirks.py``):

* **Status, conclusion and steps are the truth, the action is evidence.** GitHub writes the body
  after the event, from the job as it is by then, so action and status may disagree (the published
  ``queued.with-deployment`` says action ``queued``, status ``waiting``). The action only tells
  which moment the delivery id's clock belongs to, and stands in for a status that is missing or
  not in our list.
* **Queued and waiting.** The mark takes the *status*: at the time the body was written the job was
  there. For action ``queued`` with status ``waiting`` this says that the gate closed at once: the
  body was written after the event, so it shows the first ``queued`` of a gated job
  (queued, waiting, queued: runs-on#539), overtaken by the gate. The second ``queued``, after the
  approval, says status ``queued`` and ends the gate. ``requested`` counts as queued and
  ``pending`` (held by a concurrency group) as waiting: no runner may take such a job.
* **Started** (Q3-Q7, Q15) needs proof: status ``in_progress``, a step that started, or a completed
  job that names a runner. A completed job with neither runner nor steps never started if it was
  cancelled, skipped, or gives no run time (started at its completion).
* **Completed** needs the status, or a conclusion that a completion time or the action confirms.
  A conclusion on an ``in_progress`` job alone (the schema allows it) ends nothing: terminal is
  terminal, so a wrong end could never be taken back.
* **The runner** counts as observed only on a job that started: GitHub's own example of ``queued``
  shows one (Q17), and 0, "" and null all mean nobody.
* **Times** before 2015 are Go's or .NET's zero time: missing (Q26).
* **Runs.** ``action_required`` on a run means that somebody must approve it first; its jobs come
  afterwards. So it is not the end of the run, although GitHub calls it completed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Annotated, Final, Literal, Required

from pydantic import Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from topics.models import (
    EARLIEST_MS,
    LATEST_MS,
    Clock,
    Conclusion,
    Delivery,
    JobAttributes,
    JobFact,
    Milestone,
    ParentRun,
    Reason,
    RunFact,
    RunLink,
    RunnerRef,
    Unreadable,
    job_key,
    run_key,
)

#: How far a delivery id's clock may be ahead of ours before we stop believing it.
GUID_AHEAD_MS: Final = 86_400_000

_GUID: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-1[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
#: 100 ns intervals between 1582-10-15, where UUID version 1 counts from, and 1970-01-01.
_GUID_EPOCH: Final = 0x01B2_1DD2_1381_4000

_TEXT_LIMIT: Final = 1024
_WORD_LIMIT: Final = 256
_LABEL_LIMIT: Final = 100

Phase = Literal["waiting", "queued", "started", "completed"]

_PHASES: Final[dict[str, Phase]] = {
    "queued": "queued",
    "requested": "queued",
    "waiting": "waiting",
    "pending": "waiting",
    "in_progress": "started",
    "completed": "completed",
}
_ACTIONS: Final = frozenset({"queued", "waiting", "in_progress", "completed", "requested"})
_CONCLUSIONS: Final[dict[str, Conclusion]] = {c.value: c for c in Conclusion}
#: Conclusions of a job that no runner and no step vouches for and that therefore never ran.
_NEVER_RAN: Final = frozenset(
    {
        Conclusion.CANCELLED,
        Conclusion.SKIPPED,
        Conclusion.ACTION_REQUIRED,
        Conclusion.STALE,
        Conclusion.STARTUP_FAILURE,
    }
)

_Id = Annotated[int, Field(gt=0, lt=2**63)]
_Count = Annotated[int, Field(ge=0, lt=2**31)]
#: An id GitHub leaves out by sending null, 0 or "" (Q17).
_LooseId = Annotated[int, Field(ge=0, lt=2**63)] | str | None
_Text = str | None
_Time = datetime | None


# The part of the bodies we read. All else is skipped by the parser, unvalidated.


class _Step(TypedDict, total=False):
    started_at: _Time


class _Repository(TypedDict, total=False):
    full_name: _Text


class _Job(TypedDict, total=False):
    id: Required[_Id]
    run_id: _Id | None
    run_attempt: _Count | None
    status: _Text
    conclusion: _Text
    created_at: _Time
    started_at: _Time
    completed_at: _Time
    name: _Text
    workflow_name: _Text
    head_branch: _Text
    head_sha: _Text
    html_url: _Text
    labels: list[str] | None
    steps: list[_Step] | None
    runner_id: _LooseId
    runner_name: _Text
    runner_group_name: _Text


class _JobBody(TypedDict, total=False):
    action: _Text
    workflow_job: _Job | None
    repository: _Repository | None


class _Run(TypedDict, total=False):
    id: Required[_Id]
    run_attempt: _Count | None
    status: _Text
    conclusion: _Text
    run_started_at: _Time
    updated_at: _Time


class _RunBody(TypedDict):
    workflow_run: _Run


_JOB_BODY: Final = TypeAdapter(_JobBody)
_RUN_BODY: Final = TypeAdapter(_RunBody)


def facts(delivery: Delivery) -> list[JobFact | RunFact | RunLink]:
    """What a GitHub delivery says: facts for ``runners.jobs``, in a fixed order.

    ``github.workflow_job`` gives one :class:`JobFact` and, when the body names the run, one
    :class:`RunLink`; ``github.workflow_run`` gives one :class:`RunFact`. The same delivery gives
    byte-identical facts. The fact's id is the delivery id with a digest of the body, because
    two hooks may share a delivery id (github/docs#32822) and a body may differ between them.

    Raises :class:`Unreadable`: ``not_json``; ``no_job`` when ``workflow_job`` is null or absent
    (Q18); ``bad_payload`` with the place in the body; ``unknown_kind`` for another event.
    """
    try:
        if delivery.kind == "github.workflow_job":
            return _job_facts(delivery, _JOB_BODY.validate_json(delivery.payload))
        if delivery.kind == "github.workflow_run":
            return [_run_fact(delivery, _RUN_BODY.validate_json(delivery.payload))]
    except ValidationError as error:
        raise _unreadable(error) from error
    raise Unreadable(Reason.UNKNOWN_KIND, f"no facts in a {delivery.kind!r} delivery")


def canonical_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """A label set in the form that names a fleet: lower-case, sorted, without ``self-hosted``.

    GitHub matches labels without regard to case and adds ``self-hosted`` to every runner of
    yours, so neither tells fleets apart.
    """
    known = {label.strip().lower()[:_WORD_LIMIT] for label in labels}
    return tuple(sorted(known - {"", "self-hosted"})[:_LABEL_LIMIT])


def guid_time_ms(guid: str) -> int | None:
    """The time inside a delivery id, in milliseconds, or None.

    GitHub's delivery ids are UUIDs of version 1, which carry a 100 ns clock; it agreed with the
    event in every sample taken (not documented by GitHub). Other versions, and times that cannot
    be a delivery's (before 2015, after 2100), give None.
    """
    guid = guid.lower()
    if _GUID.fullmatch(guid) is None:
        return None
    ticks = int(guid[15:18] + guid[9:13] + guid[:8], 16)
    ms = (ticks - _GUID_EPOCH) // 10_000
    return ms if EARLIEST_MS <= ms <= LATEST_MS else None


def _job_facts(delivery: Delivery, body: _JobBody) -> list[JobFact | RunFact | RunLink]:
    job = body.get("workflow_job")
    if job is None:
        raise Unreadable(Reason.NO_JOB, "workflow_job is null or missing")
    action = body.get("action") or ""
    status = job.get("status") or ""
    occurred = _delivery_ms(delivery)
    created, begun, ended = (
        _ms(job.get("created_at")),
        _ms(job.get("started_at")),
        _ms(job.get("completed_at")),
    )
    steps = [ms for s in job.get("steps") or () if (ms := _ms(s.get("started_at"))) is not None]
    runner_name = (job.get("runner_name") or "").strip()
    runner_id = _runner_id(job.get("runner_id"))
    raw_conclusion = job.get("conclusion") or ""

    phase = _PHASES.get(status) or _PHASES.get(action)
    if raw_conclusion and phase != "completed" and (action == "completed" or ended is not None):
        phase = "completed"
    conclusion = None
    if phase == "completed":
        conclusion = _CONCLUSIONS.get(raw_conclusion, Conclusion.UNKNOWN)

    started = bool(steps) or phase == "started"
    if conclusion is not None and not started:
        started = bool(runner_name or runner_id) or not (
            conclusion in _NEVER_RAN or (begun is not None and begun == ended)
        )

    # What this event announces, for the clocks that belong to the event and not to the body.
    announced = _PHASES.get(action) or phase
    times: dict[Milestone, dict[Clock, int]] = {}

    def note(milestone: Milestone, clock: Clock, ms: int | None) -> None:
        if ms is not None:
            times.setdefault(milestone, {})[clock] = ms

    def witness(milestone: Milestone) -> None:
        note(milestone, Clock.DELIVERY, occurred)
        note(milestone, Clock.RECEIVED, delivery.received_at)

    note(Milestone.QUEUED, Clock.PROVIDER, created)
    if announced == "queued":
        witness(Milestone.QUEUED)
    if announced == "waiting" or phase == "waiting":
        witness(Milestone.WAITING)
    if started:
        if phase in ("started", "completed"):  # Q3: elsewhere started_at repeats created_at
            note(Milestone.STARTED, Clock.PROVIDER, begun)
        note(Milestone.STARTED, Clock.STEP, min(steps, default=None))
        if announced == "started":
            witness(Milestone.STARTED)
    if conclusion is not None:
        note(Milestone.COMPLETED, Clock.PROVIDER, ended)
        if announced == "completed":
            note(Milestone.COMPLETED, Clock.DELIVERY, occurred)
        note(Milestone.COMPLETED, Clock.RECEIVED, delivery.received_at)

    marks: tuple[tuple[int, Literal["queued", "waiting"]], ...] = ()
    if not started and phase in ("queued", "waiting"):
        marks = ((occurred, phase),)

    key = job_key("github", delivery.host, job["id"])
    run_id = job.get("run_id") or 0
    attempt = job.get("run_attempt") or 0
    result: list[JobFact | RunFact | RunLink] = [
        JobFact(
            id=_fact_id(delivery),
            source=delivery.source,
            occurred_at=occurred,
            received_at=delivery.received_at,
            key=key,
            trace=delivery.trace,
            cause=f"workflow_job.{action if action in _ACTIONS else 'other'}",
            times=times,
            marks=marks,
            conclusion=conclusion,
            job=JobAttributes(
                run_id=run_id,
                run_attempt=attempt,
                repo=_text((body.get("repository") or {}).get("full_name")),
                workflow=_text(job.get("workflow_name")),
                name=_text(job.get("name")),
                branch=_text(job.get("head_branch")),
                sha=_text(job.get("head_sha")),
                url=_text(job.get("html_url")),
                labels=canonical_labels(job.get("labels") or ()),
                runner_group=_text(job.get("runner_group_name")) if started else "",
            ),
            runner=(
                RunnerRef(
                    id=runner_id,
                    name=_text(runner_name)[:_WORD_LIMIT],
                    group=_text(job.get("runner_group_name"))[:_WORD_LIMIT],
                )
                if started and (runner_name or runner_id)
                else None
            ),
        )
    ]
    if run_id:
        parent = run_key("github", delivery.host, run_id)
        result.append(
            RunLink(
                id=f"link-{_digest(parent, key)}",
                source=delivery.source,
                occurred_at=occurred,
                received_at=delivery.received_at,
                key=parent,
                trace=delivery.trace,
                job_key=key,
                attempt=attempt,
            )
        )
    return result


def _run_fact(delivery: Delivery, body: _RunBody) -> RunFact:
    run = body["workflow_run"]
    ended = None
    conclusion = None
    if run.get("status") == "completed" and run.get("conclusion") != "action_required":
        conclusion = _CONCLUSIONS.get(run.get("conclusion") or "", Conclusion.UNKNOWN)
        # A run has no completion time of its own; its last update is the completion.
        ended = _ms(run.get("updated_at")) or _delivery_ms(delivery)
    return RunFact(
        id=_fact_id(delivery),
        source=delivery.source,
        occurred_at=_delivery_ms(delivery),
        received_at=delivery.received_at,
        key=run_key("github", delivery.host, run["id"]),
        trace=delivery.trace,
        run=ParentRun(
            attempt=run.get("run_attempt") or 0,
            started_at=_ms(run.get("run_started_at")),
            completed_at=ended,
            conclusion=conclusion,
        ),
    )


def _delivery_ms(delivery: Delivery) -> int:
    """When GitHub made the event: the delivery id's clock, else the record's own time."""
    ms = guid_time_ms(delivery.id)
    if ms is None or ms > delivery.received_at + GUID_AHEAD_MS:
        return delivery.occurred_at
    return ms


def _ms(time: datetime | None) -> int | None:
    """Milliseconds since the epoch; None for a missing or zero time. No zone means UTC."""
    if time is None or time.year < 2015 or time.year > 2099:
        return None
    return round((time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp() * 1000)


def _runner_id(value: int | str | None) -> int | None:
    if isinstance(value, str):
        return int(value) if value.isdecimal() and len(value) < 19 and int(value) else None
    return value or None


def _text(value: str | None) -> str:
    return value[:_TEXT_LIMIT] if value else ""


def _fact_id(delivery: Delivery) -> str:
    # An over-long delivery id would not fit the id of a fact.
    return f"{delivery.id[:256]}-{_digest(delivery.payload)}"


def _digest(*parts: str) -> str:
    return blake2b("\0".join(parts).encode(), digest_size=8).hexdigest()


def _unreadable(error: ValidationError) -> Unreadable:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return Unreadable(Reason.NOT_JSON, first["msg"])
    where = _place(first["loc"])
    more = error.error_count() - 1
    return Unreadable(
        Reason.BAD_PAYLOAD,
        f"{where}: {first['msg']}" + (f" (and {more} more)" if more else ""),
    )


def _place(location: Sequence[int | str]) -> str:
    return ".".join(str(part) for part in location) or "body"
