"""A job in words: what is known of it, why it is where it is, what contradicts. Pure.

For a person on call, who knows neither the rules nor these pages. Everything is told from the
facts and the view of them, and a ``now`` that comes in; equal jobs get equal words.
"""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import pairwise
from typing import Final

from msgspec import Struct

from pipeline.jobs.facts import MAX_FACTS, UNKNOWN_CONCLUSION, Claim, Job
from pipeline.jobs.status import View
from pipeline.jobs.timings import CLOCK_GRAIN_MS, FROZEN_START_MS, At, Measured, live_claim
from pipeline.text import duration
from topics.models import LifecycleKind

#: Why a timing has no value, as a person reads it.
MISSING: Final = {
    "not_started": "it never started",
    "pending": "it is not over yet",
    "no_queued": "nobody told when it was queued",
    "no_started": "nobody told when it started",
    "no_completed": "nobody told when it completed",
    "no_claim": "nobody told of a claim",
    "gate_unknown": "the end of an approval gate is not known",
    "negative": "the clocks contradict each other",
    "copied": "it was copied from an earlier attempt",
}

#: Whose word a time is.
_BY: Final = {
    "provider": "by the provider's clock",
    "delivery": "by the time of the delivery",
    "step": "by the start of its first step",
    "runner": "by the dispatcher's or runner's clock",
    "received": "by its arrival here",
}
#: Each milestone, as what happened.
_MILESTONES: Final = {
    "waiting": "it began to wait",
    "queued": "it was queued",
    "started": "it started",
    "completed": "it completed",
}
#: Two clocks that differ by more than this are worth a word.
_APART_MS: Final = FROZEN_START_MS
#: What reaches us later than this after it happened is late.
_LATE_MS: Final = 60_000
#: Claims that are told of one by one, and of those that are odd.
_MOST_CLAIMS: Final = 20
_MOST_ODD_CLAIMS: Final = 3
#: Names are cut to this many characters.
_MOST_NAME: Final = 120
_FAILED: Final = frozenset({"failure", "timed_out", "startup_failure", "action_required"})
_BY_DISPATCHER: Final = frozenset(kind.value for kind in LifecycleKind)


class Section(Struct, frozen=True, gc=False):
    """Some sentences about one thing."""

    heading: str
    sentences: tuple[str, ...]


def explain(job: Job, v: View, now: int) -> tuple[Section, ...]:
    """The job in words; sections without a sentence are left out.

    ``v`` is the view of the job, ``now`` the time of the asking in Unix milliseconds. Names from
    outside stand in quotes, without characters that cannot be printed. They are not escaped for
    HTML.
    """
    odd = _odd(job, v, now) or ["Nothing contradicts itself, and nothing is missing so far."]
    sections = {
        "In short": _in_short(job, v, now),
        f"Why it is {v.status}": _why(job, v),
        "What is odd or missing": odd,
        "When": _when(job, v),
        "How long": _how_long(job, v),
        "Its run": _run(job),
        "Its claims": _claims(job, v),
        "Its steps": _steps(job),
        "What this is known from": _sources(job),
    }
    return tuple(
        Section(heading, tuple(sentences)) for heading, sentences in sections.items() if sentences
    )


def _in_short(job: Job, v: View, now: int) -> list[str]:
    a = job.attributes
    who = f"The job {_name(a.name)}" if a.name else "This job, whose name nobody told,"
    of = f" of {_name(a.repo)}" if a.repo else ""
    state = {
        "waiting": "waits for an approval",
        "queued": "waits in the queue",
        "claimed": "is claimed",
        "starting": "is about to start",
        "running": "runs",
    }.get(v.status, v.status)
    if v.status == "completed":
        state = _ended(v.conclusion)
        since = "" if v.since is None else f" {duration(max(0, now - v.since))} ago"
        if v.conclusion in (None, UNKNOWN_CONCLUSION):
            since += ", and nobody told how"
    elif v.since is None:
        since = "; nobody told since when"
    else:
        since = f", for {duration(max(0, now - v.since))} now"
    named = {
        "pool": "the pool that its dispatcher names",
        "labels": f"its labels ({_list([_name(label) for label in a.labels])})",
        "group": "its runner's group",
    }.get(v.fleet_from)
    fleet = (
        f"It belongs to the fleet {_name(v.fleet)}, by {named}."
        if named
        else "Nobody told its pool, its labels or its runner's group, so its fleet is unknown."
    )
    said = [f"{who}{of} {state}{since}.", f"Its key is {_printable(job.key)}.", fleet]
    if job.runner is not None:
        verb = "ran" if v.status == "completed" else "runs"
        said.append(f"It {verb} on {_runner(job)}.")
    return said


def _why(job: Job, v: View) -> list[str]:
    at = v.at
    if at.completed is not None:
        said = [f"Its completion was told: {_told(at.completed)}. A completed job never reopens."]
        if v.conclusion not in (None, UNKNOWN_CONCLUSION):
            said.append(f"Its conclusion is {_word(v.conclusion or '')}.")
        return said + (_failed_steps(job)[:1] if v.conclusion in _FAILED else [])
    if at.started is not None:
        return [f"Its start was told: {_told(at.started)}. No completion was told."]
    if job.runner is not None:
        return [f"It was seen executing on {_runner(job)}. No completion was told."]
    claim = live_claim(job)
    if claim is not None:
        return _why_claimed(job, claim)
    said = _why_queued(job, v)
    if job.claims:
        which = (
            "Its only claim was"
            if len(job.claims) == 1
            else f"All its {len(job.claims)} claims were"
        )
        said.append(f"{which} released, and what was released does not count.")
    if job.run is not None and job.run.completed_at is not None:
        said.append("Its run is over, so it waits for nothing any more.")
    elif v.status == "waiting":
        said.append("No runner may take it before somebody, or a rule, lets it through.")
    else:
        said.append("No claim holds it and no start was told: it waits for a runner of its fleet.")
    return said


def _why_claimed(job: Job, claim: Claim) -> list[str]:
    handle = next(h for h, c in job.claims.items() if c is claim)
    runner = f" ({_name(claim.runner)})" if claim.runner else ""
    if claim.minted_at is not None:
        return [
            f"Claim {_name(handle)} holds it, and a runner{runner} was minted (made ready) for it:"
            f" {_at(claim.minted_at)}. No start was told.",
            "It waits until a runner has come up and taken it.",
        ]
    since = "" if claim.claimed_at is None else f" since {_at(claim.claimed_at)}"
    return [
        f"Claim {_name(handle)}{runner} holds it{since}. No runner was minted (made ready) for it,"
        " and no start was told.",
        "It waits until its dispatcher mints a runner.",
    ]


def _why_queued(job: Job, v: View) -> list[str]:
    at = v.at
    if v.status == "waiting":
        when = "" if v.since is None else f": {_at(v.since)}"
        return [f"The provider last called it waiting{when}. It is behind an approval gate."]
    if at.waiting is not None and job.marks:
        return [
            f"It was behind an approval gate, and the provider called it queued again: "
            f"{_at(v.since or 0)}."
        ]
    if at.queued is not None:
        return [f"It was queued: {_told(at.queued)}."]
    return ["Nothing is known of it that would make it more than queued."]


def _when(job: Job, v: View) -> list[str]:
    at = v.at
    chosen = {"queued": at.queued, "started": at.started, "completed": at.completed}
    said = []
    if at.waiting is not None:
        said.append(f"Waiting, for the first time: {_at(at.waiting)}.")
    for what in _MILESTONES:
        one = chosen.get(what)
        if one is None:
            continue
        clocks = job.times.get(what, {})
        others = [
            f"{_at(ms)} {_BY[clock]}" for clock, ms in sorted(clocks.items()) if clock != one.clock
        ]
        more = f" Told too: {'; '.join(others)}." if others else ""
        said.append(f"{what.capitalize()}: {_told(one)}.{more}")
        if what == "queued":
            said += _claimed(v)
    if at.queued is None:
        said += _claimed(v)
    said.append(f"First heard of: {_at(job.first_seen)}, by our clock.")
    return said


def _claimed(v: View) -> list[str]:
    at = v.at
    return [
        f"{what}: {_at(ms)}, {_BY['runner']}."
        for what, ms in (("Claimed", at.claimed), ("Minted", at.minted))
        if ms is not None
    ]


#: Each timing's name, and its bounds.
_FAMILIES: Final = {
    "queue": ("Queue", "queued", "started"),
    "claim_to_start": ("Claim to start", "claimed", "started"),
    "run": ("Run", "started", "completed"),
    "total": ("Total", "queued", "completed"),
}


def _how_long(job: Job, v: View) -> list[str]:
    said = []
    measured = [(family, t) for family, t in v.timings.items() if t.ms is not None]
    for family, t in measured:
        what, start, end = _FAMILIES[family]
        gated = ""
        if family == "queue" and v.at.gated_ms:
            gated = f" Not counted: {duration(v.at.gated_ms)} behind approval gates."
        clamped = ""
        if t.clamped_ms:
            clamped = f" The clocks crossed by {duration(t.clamped_ms)}, which counts as 0."
        said.append(f"{what}: {duration(t.ms)}, {_bounds(start, end, t)}.{gated}{clamped}")

    reasons: dict[str, list[str]] = {}
    for family, t in v.timings.items():
        if t.missing is not None:
            reasons.setdefault(t.missing, []).append(_FAMILIES[family][0].lower())
    for missing, names in reasons.items():
        why = MISSING.get(missing, missing)
        if missing == "no_claim" and job.claims:
            why = (
                "no claim is of the runner that executed it"
                if v.at.claim is None
                else "nobody told when it was claimed"
            )
        said.append(f"No time for {_list(names)}: {why}.")
    if v.abandoned_ms is not None:
        said.append(f"It waited {duration(v.abandoned_ms)} before it ended without a start.")
    return said


def _bounds(start: str, end: str, t: Measured) -> str:
    first, last = _BY.get(t.start_clock or ""), _BY.get(t.end_clock or "")
    if first == last:
        return f"from {start} to {end}, both {last}"
    return f"from {start} ({first}) to {end} ({last})"


def _odd(job: Job, v: View, now: int) -> list[str]:
    return [
        *_odd_ending(job, v),
        *_odd_start(job, v),
        *_odd_clocks(job, v, now),
        *_odd_claims(job, v),
        *_odd_sources(job, v),
    ]


def _odd_ending(job: Job, v: View) -> list[str]:
    at, run, said = v.at, job.run, []
    if at.completed is not None and v.conclusion in (None, UNKNOWN_CONCLUSION):
        said.append("It completed, but nobody told how: its conclusion is unknown.")
    if run is not None and run.completed_at is not None and at.completed is None:
        how = f" with {_word(run.conclusion)}" if run.conclusion else ""
        why = (
            "a run that fails at start-up tells nothing of its jobs"
            if run.conclusion == "startup_failure"
            else "word of it was lost, or is on its way"
        )
        said.append(
            f"Its run is over since {_at(run.completed_at)}{how}, but nobody told that this job"
            f" ended: {why}."
        )
    if at.copied:
        said.append(
            "It was copied into a re-run from an earlier attempt, with its old times: it counts"
            " nowhere."
        )
    return said


def _odd_start(job: Job, v: View) -> list[str]:
    at, said = v.at, []
    if at.started is None and job.runner is not None:
        said.append(f"It was seen executing on {_runner(job)}, but nobody told when it started.")
    elif at.started is None and at.completed is not None and v.conclusion != "skipped":
        said.append(
            "It was cancelled before any runner took it."
            if v.conclusion == "cancelled"
            else "It completed, but nobody saw it start. It counts as never started; word of the"
            " start may be lost."
        )
    if at.queued is None:
        said.append("Nobody told when it was queued.")
    if at.gated_ms is None:
        said.append("It was behind an approval gate, and nobody told when the gate's wait ended.")
    elif at.gated_ms:
        said.append(f"It spent {duration(at.gated_ms)} behind approval gates.")
    chosen = (("queued", at.queued), ("started", at.started), ("completed", at.completed))
    for what, one in chosen:
        if one is not None and one.clock == "received":
            said.append(
                f"Only its arrival here tells that {_MILESTONES[what]}: it had happened by then,"
                " and no timing is measured with it."
            )
    return said


def _odd_clocks(job: Job, v: View, now: int) -> list[str]:
    at, said = v.at, []
    provider = job.times.get("started", {}).get("provider")
    frozen = at.started is not None and provider is not None and at.started.clock != "provider"
    for what, happened in _MILESTONES.items():
        clocks = job.times.get(what, {})
        own = sorted((ms, clock) for clock, ms in clocks.items() if clock not in _PASSED_ON)
        if frozen and what == "started":
            own = [one for one in own if one[1] != "provider"]
        if own and own[-1][0] - own[0][0] > _APART_MS:
            said.append(
                f"Two clocks are {duration(own[-1][0] - own[0][0])} apart about when {happened}:"
                f" {_at(own[0][0])} {_BY[own[0][1]]}, {_at(own[-1][0])} {_BY[own[-1][1]]}."
            )
        received = clocks.get("received")
        disbelieved = {"provider"} if frozen and what == "started" else set()
        others = [ms for clock, ms in clocks.items() if clock not in {"received", *disbelieved}]
        if received is not None and others and received - min(others) > _LATE_MS:
            said.append(f"Word that {happened} reached us {duration(received - min(others))} late.")
        if received is not None and others and min(others) - received > _APART_MS:
            said.append(
                f"Word of it reached us {duration(min(others) - received)} before {happened}:"
                " a clock is wrong."
            )
    if frozen and at.started is not None:
        said.append(
            "The provider's start is not later than its queueing, so it is not believed: it is"
            f" dated {_BY[at.started.clock]}."
        )
    order = [("queued", at.queued), ("started", at.started), ("completed", at.completed)]
    known = [(what, one) for what, one in order if one is not None]
    for (first, a), (second, b) in pairwise(known):
        if a.ms - b.ms > CLOCK_GRAIN_MS:
            said.append(
                f"As they tell it, {_MILESTONES[second]} {duration(a.ms - b.ms)} before"
                f" {_MILESTONES[first]}: the clocks contradict each other."
            )
    if v.since is not None and v.since - now > CLOCK_GRAIN_MS:
        said.append(
            f"It is {v.status} since {_at(v.since)}, which is {duration(v.since - now)} ahead of"
            " our clock."
        )
    return said


#: Clocks of those who pass on what happened: later by nature.
_PASSED_ON: Final = frozenset({"delivery", "received"})


def _odd_claims(job: Job, v: View) -> list[str]:
    said = []
    seen = job.runner.name if job.runner else ""
    claims = _in_order(job)
    alive = [handle for handle, claim in claims if claim.released_at is None]
    if len(alive) > 1 and v.status != "completed":
        said.append(f"{_count(len(alive), 'claim')} hold it at once.")
    others = [one for one in claims if seen and one[1].runner not in ("", seen)]
    for handle, claim in others[-_MOST_ODD_CLAIMS:]:
        said.append(
            f"Claim {_name(handle)} is with runner {_name(claim.runner)}, but runner"
            f" {_name(seen)} was seen executing it."
        )
    if v.status == "completed":
        return said
    released = [
        (claim.released_at, handle, claim.reason)
        for handle, claim in claims
        if claim.released_at is not None and (handle, claim) not in others
    ]
    released.sort()
    if len(released) > _MOST_ODD_CLAIMS:
        said.append(f"{_count(len(released), 'claim')} were released. The last ones:")
    for released_at, handle, reason in released[-_MOST_ODD_CLAIMS:]:
        why = f" ({_name(reason)})" if reason else ""
        said.append(f"Claim {_name(handle)} was released{why}: {_at(released_at)}.")
    return said


def _odd_sources(job: Job, v: View) -> list[str]:
    said = []
    if job.causes and all(cause in _BY_DISPATCHER for cause in job.causes):
        said.append(
            "Only its dispatcher or runner told of it; the provider has not: its webhooks are late,"
            " lost or not set up."
        )
    if job.rev >= MAX_FACTS:
        said.append(f"Its facts are a flood: {job.rev:,} of them, about which some detail is lost.")
    return said


def _run(job: Job) -> list[str]:
    a, run = job.attributes, job.run
    said = []
    if a.run_id:
        number = f"run {a.run_id}" + (f", attempt {a.run_attempt}" if a.run_attempt else "")
        workflow = f", of the workflow {_name(a.workflow)}" if a.workflow else ""
        branch = f" on {_name(a.branch)}" if a.branch else ""
        said.append(f"It belongs to {number}{workflow}{branch}.")
    who = f" by {_name(a.actor)}" if a.actor else ""
    by = f" ({_name(a.trigger)})" if a.trigger else ""
    if who or by:
        said.append(f"The run was started{who}{by}.")
    if a.pull_request:
        said.append(f"It is for pull request {a.pull_request}.")
    if a.head_repo and a.repo and a.head_repo.lower() != a.repo.lower():
        said.append(f"Its code comes from a fork, {_name(a.head_repo)}.")
    if run is None:
        return said
    if run.started_at is not None:
        said.append(f"The run started: {_at(run.started_at)}.")
    if run.completed_at is not None:
        how = f", with {_word(run.conclusion)}" if run.conclusion else ""
        said.append(f"The run ended: {_at(run.completed_at)}{how}.")
    return said


def _claims(job: Job, v: View) -> list[str]:
    said = []
    for number, (handle, claim) in enumerate(_in_order(job), 1):
        parts = [
            f"{what} {_at(ms)}"
            for what, ms in (("claimed", claim.claimed_at), ("minted", claim.minted_at))
            if ms is not None
        ]
        if claim.released_at is not None:
            why = f" ({_name(claim.reason)})" if claim.reason else ""
            parts.append(f"released {_at(claim.released_at)}{why}")
        runner = f" with runner {_name(claim.runner)}" if claim.runner else ""
        counts = " This one counts." if handle == v.at.claim and len(job.claims) > 1 else ""
        told = ", ".join(parts) or "nobody told when"
        said.append(f"{number}. Claim {_name(handle)}{runner}: {told}.{counts}")
    if len(said) > _MOST_CLAIMS:
        # The last ones matter: one of them holds it.
        left = len(said) - _MOST_CLAIMS
        said = [f"{_count(left, 'earlier claim')} left out.", *said[left:]]
    return said


def _steps(job: Job) -> list[str]:
    if not job.steps:
        return []
    said = [f"{_count(len(job.steps), 'step')} known."]
    said += _failed_steps(job)
    took = [
        (step.completed_at - step.started_at, -step.number, step)
        for step in job.steps
        if step.started_at is not None and step.completed_at is not None
    ]
    ms, _, slowest = max(took, key=lambda one: one[:2], default=(-1, 0, job.steps[0]))
    if ms >= 0:
        name = f", {_name(slowest.name)}," if slowest.name else ""
        said.append(f"Step {slowest.number}{name} took longest: {duration(ms)}.")
    return said


def _failed_steps(job: Job) -> list[str]:
    return [
        f"Step {step.number}, {_name(step.name)}, {_ended(step.conclusion)}."
        if step.name
        else f"Step {step.number} {_ended(step.conclusion)}."
        for step in job.steps
        if step.conclusion in _FAILED
    ]


def _sources(job: Job) -> list[str]:
    return [f"{_count(job.rev, 'fact')}, made from {_list([_plain(c) for c in job.causes])}."]


def _in_order(job: Job) -> list[tuple[str, Claim]]:
    return sorted(job.claims.items(), key=lambda item: (item[1].claimed_at or 0, item[0]))


def _runner(job: Job) -> str:
    runner = job.runner
    if runner is None:
        return "a runner"
    return f"runner {_name(runner.name)}" if runner.name else f"runner {runner.id}"


def _ended(conclusion: str | None) -> str:
    if conclusion in (None, UNKNOWN_CONCLUSION):
        return "ended"
    said = {"skipped": "was skipped", "cancelled": "was cancelled", "timed_out": "timed out"}
    return said.get(conclusion or "") or f"ended with {_word(conclusion or '')}"


def _told(at: At) -> str:
    if at.clock == "received":
        return f"{_at(at.ms)} at the latest, {_BY[at.clock]}"
    return f"{_at(at.ms)}, {_BY[at.clock]}"


def _at(ms: int) -> str:
    """Date and time to the second, UTC."""
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _printable(text: str) -> str:
    """Without what could hide or turn around the words beside it."""
    return "".join(c if c.isprintable() else "�" for c in text)


def _plain(text: str) -> str:
    text = _printable(text)
    return text if len(text) <= _MOST_NAME else text[: _MOST_NAME - 1] + "…"


def _name(text: str) -> str:
    return '"' + _plain(text).replace('"', "'") + '"'


def _word(word: str) -> str:
    return word.replace("_", " ")


def _count(n: int, what: str) -> str:
    return f"{n:,} {what}" + ("" if n == 1 else "s")


def _list(words: list[str] | tuple[str, ...]) -> str:
    """``a, b and c``."""
    if len(words) < 2:
        return "".join(words)
    return f"{', '.join(words[:-1])} and {words[-1]}"
