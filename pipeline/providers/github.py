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
  job that names a runner. A completed job never started when the body itself says that nobody ran
  it: an empty list of steps, and a runner of null, 0 and "". That is how a billing stop ends jobs,
  as ``failure``, ``timed_out`` or ``neutral``; so the evidence counts and not the conclusion. A
  body that lacks those keys (old GHES) proves nothing: then the job ran, unless it was cancelled,
  skipped, or gives no run time (started at its completion).
* **Completed** needs the status, or a conclusion that a completion time or the action confirms.
  A conclusion on an ``in_progress`` job alone (the schema allows it) ends nothing: terminal is
  terminal, so a wrong end could never be taken back.
* **The runner** counts as observed only on a job that started: GitHub's own example of ``queued``
  shows one (Q17), and 0, "" and null all mean nobody.
* **Only the id can refuse a body.** Any other field with a value that it cannot have counts as
  missing, and is reported as odd. What we do not read is skipped unseen.
* **Times** before 2015 are Go's or .NET's zero time: missing (Q26). So is what lies more than a day
  after the delivery's arrival: nobody knows what will have happened.
* **The host** that is part of a job's key: what the producer says when it is not the default, else
  ``X-GitHub-Enterprise-Host``, else ``X-GitHub-Tenant`` (GHE.com: the tenant's own host, which has
  job ids of its own), else the host of the URLs in the body.
* **Events that are not ours** (``ping``, which GitHub sends to every new hook, ``push`` and so on)
  say nothing about jobs and are known: they are no failure.
* **Runs.** ``action_required`` on a run means that somebody must approve it first; its jobs come
  afterwards. So it is not the end of the run, although GitHub calls it completed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET
from pydantic import ValidationError

from pipeline.providers.base import (
    AHEAD_MS,
    Fact,
    Facts,
    Glance,
    Receiving,
    sign_sha256,
    verify_sha256,
)
from pipeline.providers.github_bodies import (
    BODY,
    CONCLUSIONS,
    JOB,
    REPOSITORY,
    RUN,
    WORD_LIMIT,
    Body,
    Job,
    Repository,
    Run,
    canonical_labels,
    identity,
    inner,
    is_null,
    labels_of,
    login,
    none_began,
    number_of,
    pull_request,
    runner_id_of,
    steps_listed,
    steps_told,
    text_of,
    time_of,
    within,
)
from pipeline.providers.github_glance import glance, labels, senders, setup
from topics.bridge import guid_time_ms
from topics.keys import github_host, job_key, run_key
from topics.models import (
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
)
from topics.reading import mend_surrogates

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

#: Names under which odd fields are counted, because a name is a metric label.
ODD_FIELDS: Final = (
    "actor", "completed_at", "conclusion", "created_at", "event", "head", "head_repository",
    "labels", "name", "occurred_at", "pull_requests", "repository", "run_attempt", "run_id",
    "runner_id", "runner_name", "sender", "started_at", "status", "steps", "updated_at", "envelope",
)  # fmt: skip
#: What GitHub signs with, lower-case.
SIGNATURE: Final = "x-hub-signature-256"


class GitHub(Receiving):
    """GitHub.com, GHE.com and GHES behind the protocol of all providers."""

    name: Final = "github"
    events: Final = ("workflow_job", "workflow_run", "api_job")
    other_events: Final = Delivery.OTHER_EVENTS
    odd_fields: Final = ODD_FIELDS
    actions = tuple(sorted(_ACTIONS))
    content_types = ("application/json", "application/x-www-form-urlencoded")
    kept_headers = ("x-github-", "x-hub-signature")
    signatures = (SIGNATURE,)

    def verify(self, headers: Mapping[str, str], body: bytes, secrets: Sequence[bytes]) -> None:
        """Check ``X-Hub-Signature-256``. The older header with SHA-1 alone is not enough."""
        verify_sha256(headers.get(SIGNATURE), SIGNATURE, body, secrets)

    def sign(self, body: bytes, secret: bytes) -> Mapping[str, str]:
        """``X-Hub-Signature-256``."""
        return {SIGNATURE: sign_sha256(body, secret)}

    def facts(self, delivery: Delivery) -> Facts:
        """See :func:`facts`."""
        return facts(delivery)

    def senders(self, headers: Mapping[str, str], body: bytes) -> Sequence[str]:
        """The hook, the App, and the installation."""
        return senders(headers, body)

    def glance(self, event: str, headers: Mapping[str, str], payload: bytes) -> Glance:
        """The key is that of the facts."""
        return glance(self, event, headers, payload)

    def labels(self, event: str, payload: bytes) -> Sequence[str] | None:
        """Those of a job, as it asks for them."""
        return labels(event, payload)

    def setup(self, event: str, payload: bytes) -> Mapping[str, bool]:
        """Of a ping: the events that the new hook sends."""
        return setup(event, payload)


def facts(delivery: Delivery, named: str = "github") -> Facts:
    """What a GitHub delivery says: facts for ``runners.jobs``, in a fixed order.

    ``named`` is another provider whose API says it in GitHub's words: the facts are of its jobs,
    and the kinds begin with its name.

    ``github.workflow_job`` and ``github.api_job`` give one :class:`JobFact` and, when the body
    names the run, one :class:`RunLink`; ``github.workflow_run`` gives one :class:`RunFact`. The
    same delivery gives byte-identical facts. The fact's id is the delivery id with a digest of the
    body, because two hooks may share a delivery id (github/docs#32822) and a body may differ
    between them.

    An authentic event that is not ours gives none, and says so in ``ignored``.

    Raises :class:`Unreadable`: ``not_json``; ``no_job`` when ``workflow_job`` is null or absent
    (Q18); ``bad_payload`` with the place in the body; ``unknown_kind`` for another event.
    """
    provider, _, event = delivery.kind.partition(".")
    if provider != named:
        raise Unreadable(Reason.UNKNOWN_KIND, f"no facts in a {delivery.kind!r} delivery")
    headers = {name.lower(): value for name, value in delivery.headers.items()}
    told = headers.get("x-github-event", event)
    if event in Delivery.OTHER_EVENTS or (told != event and told in Delivery.OTHER_EVENTS):
        # A receiver that files everything under one kind still keeps the header.
        name = event if event in Delivery.OTHER_EVENTS else told
        return Facts(ignored="ping" if name == "ping" else "other")
    if event not in GitHub.events:
        raise Unreadable(Reason.UNKNOWN_KIND, f"no facts in a {delivery.kind!r} delivery")
    payload = delivery.payload
    try:
        return _understand(delivery, event, headers, payload)
    except msgspec.DecodeError as error:
        mended = mend_surrogates(payload.encode("utf-8", "surrogatepass")).decode(
            "utf-8", "replace"
        )
        if mended == payload:
            raise _refused(error) from error
    except RecursionError as error:
        raise Unreadable(Reason.NOT_JSON, "the body is nested too deeply") from error
    try:
        return _understand(delivery, event, headers, mended)
    except msgspec.DecodeError as error:
        raise _refused(error) from error


def _understand(delivery: Delivery, event: str, headers: Mapping[str, str], payload: str) -> Facts:
    odd: Counter[tuple[str, str]] = Counter()
    try:
        if event == "api_job":
            job = JOB.decode(payload)
            return Facts(_job_facts(delivery, headers, Body(), job, odd, hook=False), odd)
        body = BODY.decode(payload)
        if event == "workflow_run":
            if is_null(body.workflow_run):
                raise Unreadable(Reason.BAD_PAYLOAD, "workflow_run: is null or missing")
            run = inner(RUN, body.workflow_run, "workflow_run")
            return Facts([_run_fact(delivery, headers, body, run, odd)], odd)
        if is_null(body.workflow_job):
            if not is_null(body.zen) and not is_null(body.hook_id):
                return Facts(ignored="ping")
            raise Unreadable(Reason.NO_JOB, "workflow_job is null or missing")
        job = inner(JOB, body.workflow_job, "workflow_job")
        return Facts(_job_facts(delivery, headers, body, job, odd, hook=True), odd)
    except ValidationError as error:  # host and id too long for one key, or no host at all
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(map(str, first["loc"]))
        raise Unreadable(Reason.BAD_PAYLOAD, f"{place}: {first['msg']}") from error
    except ValueError as error:
        if isinstance(error, (Unreadable, msgspec.DecodeError)):
            raise
        raise Unreadable(Reason.BAD_PAYLOAD, str(error)) from error


def _job_facts(
    delivery: Delivery,
    headers: Mapping[str, str],
    body: Body,
    job: Job,
    odd: Counter[tuple[str, str]],
    *,
    hook: bool,
) -> list[Fact]:
    """The facts of a job in a webhook's body, or (``hook`` False) as the API returns it."""
    number = identity(job.id)
    if number is None:
        place = "workflow_job.id" if hook else "id"
        raise Unreadable(Reason.BAD_PAYLOAD, f"{place}: a job has a whole number above 0 as id")
    latest = delivery.received_at + AHEAD_MS

    def time(value: Any, name: str) -> int | None:
        return None if value is None else time_of(value, name, latest, odd)

    def text(value: Any, name: str) -> str:
        return "" if value is None else text_of(value, name, odd)

    repository = within(REPOSITORY, body.repository, "repository", odd) or Repository()
    url = text(job.html_url, "head")
    provider = delivery.kind.partition(".")[0]
    host = github_host(delivery.host, headers, (url, repository.html_url))
    action = text(body.action, "status")
    status = text(job.status, "status")
    occurred = _delivery_ms(delivery)
    created = time(job.created_at, "created_at")
    begun = time(job.started_at, "started_at")
    ended = time(job.completed_at, "completed_at")
    listed = steps_listed(job.steps, odd)
    steps = [ms for s in listed or () if (ms := time(s.started_at, "steps")) is not None]
    runner_name = "" if job.runner_name is UNSET else text(job.runner_name, "runner_name").strip()
    unnamed = not runner_name and (job.runner_name is None or isinstance(job.runner_name, str))
    runner_id, nobody = runner_id_of(job.runner_id, odd)
    raw_conclusion = text(job.conclusion, "conclusion")

    phase = _PHASES.get(status) or _PHASES.get(action)
    if raw_conclusion and phase != "completed" and (action == "completed" or ended is not None):
        phase = "completed"
    conclusion = None
    if phase == "completed":
        conclusion = CONCLUSIONS.get(raw_conclusion, Conclusion.UNKNOWN)

    started = bool(steps) or phase == "started"
    if conclusion is not None and not started:
        if runner_name or runner_id:
            started = True
        elif nobody and unnamed and listed is not None and none_began(listed):
            # The body lists what ran and who ran it, and that is nothing and nobody.
            started = False
        else:
            started = not (conclusion in _NEVER_RAN or (begun is not None and begun == ended))

    # What this event announces, for the clocks that belong to the event and not to the body.
    announced = (_PHASES.get(action) or phase) if hook else None
    times: dict[Milestone, dict[Clock, int]] = {}

    def note(milestone: Milestone, clock: Clock, ms: int | None) -> None:
        if ms is not None:
            times.setdefault(milestone, {})[clock] = ms

    def witness(milestone: Milestone) -> None:
        note(milestone, Clock.DELIVERY, occurred)
        note(milestone, Clock.RECEIVED, delivery.received_at)

    # Without a time of its own an event that was read from a file is dated by the latest time in
    # its body. That is no clock: an end read from it would be the start.
    before = max((created or 0, begun or 0, *steps))
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
            if begun is not None or occurred > before:
                note(Milestone.STARTED, Clock.DELIVERY, occurred)
            note(Milestone.STARTED, Clock.RECEIVED, delivery.received_at)
    if conclusion is not None:
        note(Milestone.COMPLETED, Clock.PROVIDER, ended)
        if announced == "completed" and (ended is not None or occurred > before):
            note(Milestone.COMPLETED, Clock.DELIVERY, occurred)
        note(Milestone.COMPLETED, Clock.RECEIVED, delivery.received_at)

    marks: tuple[tuple[int, Literal["queued", "waiting"]], ...] = ()
    if not started and phase in ("queued", "waiting"):
        marks = ((occurred, phase),)

    key = job_key(provider, host, number)
    run_id = number_of(job.run_id, "run_id", 2**63, odd)
    attempt = number_of(job.run_attempt, "run_attempt", 1_000_001, odd)
    group = text(job.runner_group_name, "runner_name")
    what = action if action in _ACTIONS else "other"
    result: list[Fact] = [
        JobFact(
            id=_fact_id(delivery),
            source=delivery.source,
            occurred_at=occurred,
            received_at=delivery.received_at,
            key=key,
            trace=delivery.trace,
            cause=f"workflow_job.{what}" if hook else "api.job",
            times=times,
            marks=marks,
            conclusion=conclusion,
            job=JobAttributes(
                run_id=run_id,
                run_attempt=attempt,
                repo=text(repository.full_name, "repository"),
                workflow=text(job.workflow_name, "name"),
                name=text(job.name, "name"),
                branch=text(job.head_branch, "head"),
                sha=text(job.head_sha, "head"),
                url=url,
                labels=canonical_labels(labels_of(job.labels, odd)),
                runner_group=group if started else "",
                # Who caused this event: mostly who started the run, but it may be an approver.
                actor=login(body.sender, "sender", odd),
            ),
            steps=steps_told(listed, latest, odd) if listed else (),
            runner=(
                RunnerRef(id=runner_id, name=runner_name[:WORD_LIMIT], group=group[:WORD_LIMIT])
                if started and (runner_name or runner_id)
                else None
            ),
        )
    ]
    if run_id:
        parent = run_key(provider, host, run_id)
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


def _run_fact(
    delivery: Delivery,
    headers: Mapping[str, str],
    body: Body,
    run: Run,
    odd: Counter[tuple[str, str]],
) -> RunFact:
    number = identity(run.id)
    if number is None:
        raise Unreadable(
            Reason.BAD_PAYLOAD, "workflow_run.id: a run has a whole number above 0 as id"
        )
    latest = delivery.received_at + AHEAD_MS
    repository = inner(REPOSITORY, body.repository) or Repository()
    host = github_host(delivery.host, headers, (run.html_url, repository.html_url))
    ended = None
    conclusion = None
    if run.status == "completed" and run.conclusion != "action_required":
        said = run.conclusion if isinstance(run.conclusion, str) else ""
        conclusion = CONCLUSIONS.get(said, Conclusion.UNKNOWN)
        # A run has no completion time of its own; its last update is the completion.
        ended = time_of(run.updated_at, "updated_at", latest, odd) or _delivery_ms(delivery)
    return RunFact(
        id=_fact_id(delivery),
        source=delivery.source,
        occurred_at=_delivery_ms(delivery),
        received_at=delivery.received_at,
        key=run_key(delivery.kind.partition(".")[0], host, number),
        trace=delivery.trace,
        run=ParentRun(
            attempt=number_of(run.run_attempt, "run_attempt", 1_000_001, odd),
            started_at=time_of(run.run_started_at, "started_at", latest, odd),
            completed_at=ended,
            conclusion=conclusion,
        ),
        job=JobAttributes(
            run_id=number,
            # Who re-runs it is not who started it: `actor` is the same in all attempts.
            actor=login(run.actor, "actor", odd) or login(run.triggering_actor, "actor", odd),
            trigger=text_of(run.event, "event", odd),
            pull_request=pull_request(run.pull_requests, odd),
            head_repo=text_of(
                (
                    within(REPOSITORY, run.head_repository, "head_repository", odd) or Repository()
                ).full_name,
                "head_repository",
                odd,
            ),
        ),
    )


def _delivery_ms(delivery: Delivery) -> int:
    """When GitHub made the event: the delivery id's clock, else the record's own time, else ours.

    A clock that is more than a day ahead of the arrival is not believed.
    """
    latest = delivery.received_at + AHEAD_MS
    ms = guid_time_ms(delivery.id)
    if ms is not None and ms <= latest:
        return ms
    return delivery.occurred_at if delivery.occurred_at <= latest else delivery.received_at


def _fact_id(delivery: Delivery) -> str:
    # An over-long delivery id would not fit the id of a fact.
    return f"{delivery.id[:256]}-{_digest(delivery.payload)}"


def _digest(*parts: str) -> str:
    return blake2b("\0".join(parts).encode("utf-8", "surrogatepass"), digest_size=8).hexdigest()


def _refused(error: msgspec.DecodeError) -> Unreadable:
    """What the parser says: the body is no JSON, or no object."""
    if isinstance(error, msgspec.ValidationError):
        return Unreadable(Reason.BAD_PAYLOAD, f"body: {error}")
    return Unreadable(Reason.NOT_JSON, f"Invalid JSON: {error}")
