"""What recovery makes of a job, in words: what is suspected, asked, done, and what comes next.

Pure, like :mod:`pipeline.jobs.explain`, whose sections it adds to.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from pipeline.jobs.explain import Section
from pipeline.jobs.facts import Job
from pipeline.jobs.stalls import Stall
from pipeline.jobs.status import View
from pipeline.recovery.judge import next_look
from pipeline.recovery.policy import RecoveryPolicy
from pipeline.recovery.rules import suspect
from pipeline.text import duration
from topics.recovery import StallKind

#: What each kind of stall is, said of a job.
SUSPICIONS: Final = {
    StallKind.STALE_CLAIM: "it is claimed and no runner is made for it",
    StallKind.ORPHAN: "a runner was made for it and the provider does not see it start",
    StallKind.DISPLACED: "the runner made for it executes another job",
    StallKind.RUNNER_LOST: "the runner that held it is gone",
    StallKind.STALE_QUEUE: "it is queued for so long that the queue may be wrong",
    StallKind.MISSED_COMPLETION: "it runs for so long that its end may have been missed",
    StallKind.FLAPPING: "it was recovered again and again",
    StallKind.STARVED: "its fleet has idle runners",
}
_ANSWERS: Final = {
    "queued": "that it is queued",
    "in_progress": "that it runs",
    "completed": "that it is completed",
    "ghost": "that it is queued though its run is over",
    "gone": "that it does not know it",
    "unknown": "nothing that can be relied on",
}
_COMMANDS: Final = {
    "release_claim": "to release its claim",
    "requeue": "to requeue it",
    "close": "to close it",
    "wake_fleet": "to wake its fleet",
    "quarantine": "to leave it to a person",
}
_WHYS: Final = {
    "paused": "recovery is paused",
    "dry_run": "it is a dry run",
    "budget_tick": "other jobs came first in that tick",
    "budget_hour": "its fleet's budget of the hour is spent",
    "breaker": "the fleet's commands mostly failed, so its breaker is open",
    "cooling": "the command before it was too short a while ago",
}
_RESULTS: Final = {
    "done": "It was done",
    "refused": "It was refused, because the job had moved on,",
    "cannot": "It cannot be done",
    "failed": "It failed",
    "expired": "Nobody did it in time: it expired",
}
#: Stalls that are told of, the last ones.
_MOST: Final = 5


def explain_recovery(job: Job, v: View, now: int, policy: RecoveryPolicy) -> tuple[Section, ...]:
    """What is suspected, what was done, what happens next; nothing for a job nobody suspects."""
    said = []
    stalls = list(job.recovery.stalls.items())[-_MOST:] if job.recovery is not None else []
    for n, stall in stalls:
        said += _stall(n, stall)
    said += _next(job, v, now, policy)
    return (Section("What recovery makes of it", tuple(said)),) if said else ()


def last_event(stall: Stall, now: int) -> tuple[str, int, str]:
    """What happened last in a stall: a word, when (ms), and what more is to be said of it."""
    # Each is told by a clock of its own: what answers something comes after it all the same.
    found = [(stall.head.opened_at, 0, "opened", stall.head.opened_at, "")]

    def add(at: int, after: int, word: str, *text: str) -> int:
        when = max(at, after)
        found.append((when, len(found), word, at, " ".join(filter(None, text))))
        return when

    asked, answered = stall.asked, stall.answered
    if asked is not None:
        add(asked.at, 0, "asked", f"question {asked.k}")
    if answered is not None:
        after = asked.at if asked is not None and answered.k >= asked.k else 0
        add(answered.at, after, "answered", answered.answer, answered.detail)
    proposed, withheld = stall.proposed, stall.withheld
    if proposed is not None:
        add(proposed.at, 0, "proposed", proposed.command)
    if withheld is not None:
        after = proposed.at if proposed is not None and withheld.k >= proposed.k else 0
        add(withheld.at, after, "withheld", withheld.why)
    for attempt, issued in stall.issued.items():
        mine = proposed is not None and int(attempt) >= proposed.attempt
        word = "in flight" if now < issued.expires_at else "overdue"
        after = proposed.at if proposed is not None and mine else 0
        after = add(issued.at, after, word, issued.command)
        ended = stall.ended.get(attempt)
        if ended is not None:
            add(ended.at, after, "ended", issued.command, ended.result, ended.reason)
    _, _, word, at, text = max(found)
    return word, at, text


def _stall(n: str, stall: Stall) -> list[str]:
    head = stall.head
    late = duration(max(0, head.opened_at - head.since))
    said = [
        f"Stall {n}: at {_at(head.opened_at)} it was found that "
        f"{SUSPICIONS[StallKind(head.kind)]}, for {late} then."
    ]
    if stall.asked is not None:
        times = "once" if stall.asked.k == 1 else f"{stall.asked.k} times"
        said.append(f"Its provider was asked {times}, last at {_at(stall.asked.at)}.")
    answered = stall.answered
    if answered is not None:
        detail = f" ({answered.detail})" if answered.detail else ""
        said.append(f"At {_at(answered.at)} the answer was {_ANSWERS[answered.answer]}{detail}.")
    proposed, withheld = stall.proposed, stall.withheld
    if proposed is not None and str(proposed.attempt) not in stall.issued:
        text = f"At {_at(proposed.at)} it was proposed {_COMMANDS[proposed.command]}"
        if withheld is not None and withheld.k >= proposed.k - 1:
            text += f"; at {_at(withheld.at)} that was withheld: {_WHYS[withheld.why]}"
        said.append(f"{text}.")
    for attempt, issued in stall.issued.items():
        what = _COMMANDS.get(issued.command, "to act")
        text = f"Command {attempt}, {what}, was issued at {_at(issued.at)}."
        ended = stall.ended.get(attempt)
        if ended is not None:
            reason = f" ({ended.reason})" if ended.reason else ""
            text += f" {_RESULTS[ended.result]} at {_at(ended.at)}{reason}."
        said.append(text)
    return said


def _next(job: Job, v: View, now: int, policy: RecoveryPolicy) -> list[str]:
    due = next_look(job, v, policy)
    if due is None:
        if job.recovery is not None and v.status != "completed":
            return ["Nothing further is tried: it is left to a person."]
        return []
    when = f"at {_at(due)}" if due > now else "at the next tick"
    found = suspect(job, v, policy)
    if found is None or (job.recovery is not None and job.recovery.stalls):
        return [f"It is looked at again {when}."]
    return [
        f"If nothing is heard until then, it is suspected {when} that {SUSPICIONS[found.kind]}."
    ]


def _at(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
