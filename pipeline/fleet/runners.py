"""A runner: what was seen of it, whether it is gone, and what that means for the job it held.

What was seen is joined: the later statement wins, by time and then by id, so their order of
arrival does not matter (L1). A claim is a guess: the runner made for job A may execute B.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from topics.recovery import RunnerSeen, RunnerState

#: States in which it holds a job under a claim, and those in which it holds any.
_CLAIMS: Final = (RunnerState.CLAIMED.value, RunnerState.STARTING.value)
_HOLDS: Final = (*_CLAIMS, RunnerState.BUSY.value)
#: Jobs that it was seen to execute, the latest kept.
_MAX_BUSY: Final = 8


class Said(Struct, frozen=True, omit_defaults=True, order=True):
    """One statement. ``order``: the later one, by time, then by id."""

    at: int
    id: str
    state: str = ""
    job: str = ""
    claim: str = ""
    host: str = ""


class Runner(Struct, frozen=True, omit_defaults=True):
    """What is known of one runner.

    Attributes:
        seen: when it was last seen alive.
        beat: whether it ever sent a mere sign of life: only then silence says something.
        live: the latest state in which it lived.
        gone: the latest word that it is gone.
        held: the latest claim it was made for.
        busy: the first sight of each job it executed, by time.
        at_host: where it was last said to be.
    """

    seen: int = 0
    beat: bool = False
    live: Said | None = None
    gone: Said | None = None
    held: Said | None = None
    busy: tuple[Said, ...] = ()
    at_host: Said | None = None

    @property
    def host(self) -> str:
        """Its host, empty when nobody knows."""
        return self.at_host.host if self.at_host else ""


class Loss(Struct, frozen=True):
    """A job whose runner is gone since ``at``. ``claim`` may be empty; ``busy``: it executed it."""

    job: str
    claim: str
    busy: bool
    at: int


class Displaced(Struct, frozen=True):
    """Job ``job`` had claim ``claim`` on a runner that executed ``by`` at ``at`` instead."""

    job: str
    claim: str
    by: str
    at: int


def merge(runner: Runner | None, record: RunnerSeen) -> Runner:
    """The runner with one more statement; the same object when that says nothing new."""
    before = runner or Runner()
    state = record.state.value if record.state else ""
    said = Said(record.occurred_at, record.id, state, record.job_key, record.claim)
    after = before
    if record.state is RunnerState.GONE:
        after = replace(after, gone=_later(before.gone, said))
    else:
        after = replace(after, seen=max(before.seen, said.at), beat=before.beat or not state)
        if state:
            after = replace(after, live=_later(before.live, said))
        if state in _CLAIMS and said.job and said.claim:
            after = replace(after, held=_later(before.held, said))
        if state == RunnerState.BUSY and said.job:
            after = replace(after, busy=_with(before.busy, said))
    if record.host:
        place = Said(said.at, said.id, host=record.host)
        after = replace(after, at_host=_later(before.at_host, place))
    after = replace(after, busy=_bounded(after))
    return before if runner is not None and after == before else after


def gone_since(runner: Runner, host_gone: int | None) -> int | None:
    """Since when it is gone, by its own host's word or another's; None while it lives.

    Whoever was seen afterwards lives.
    """
    told = [runner.gone.at] if runner.gone and runner.gone.at >= runner.seen else []
    if host_gone is not None and host_gone >= runner.seen:
        told.append(host_gone)
    return min(told, default=None)


def state_of(runner: Runner, host_gone: int | None) -> RunnerState:
    """Where it is."""
    if gone_since(runner, host_gone) is not None:
        return RunnerState.GONE
    return RunnerState(runner.live.state) if runner.live else RunnerState.REGISTERED


def held_job(runner: Runner) -> Said | None:
    """The job it holds, or held when it was last seen alive."""
    last = runner.live or runner.gone
    if last is None or not last.job or last.state not in (*_HOLDS, RunnerState.GONE.value):
        return None
    if not last.claim and runner.held and runner.held.job == last.job:
        return replace(last, claim=runner.held.claim)
    return last


def loss(runner: Runner | None, host_gone: int | None) -> Loss | None:
    """The job that is lost with the runner."""
    if runner is None:
        return None
    at, job = gone_since(runner, host_gone), held_job(runner)
    if at is None or job is None:
        return None
    return Loss(job.job, job.claim, job.state == RunnerState.BUSY, at)


def is_back(runner: Runner, host_gone: int | None, was: Loss) -> bool:
    """Whether it was seen alive after it was lost, and still holds the job it was lost with."""
    held = held_job(runner)
    return (
        held is not None
        and gone_since(runner, host_gone) is None
        and (held.job, held.claim) == (was.job, was.claim)
    )


def displaced(runner: Runner | None) -> Displaced | None:
    """The job it was made for, when it was since seen to execute others and never that one."""
    if runner is None or runner.held is None:
        return None
    held = runner.held
    since = [each for each in runner.busy if each.at >= held.at]
    if not since or any(each.job == held.job for each in runner.busy):
        return None
    return Displaced(held.job, held.claim, since[0].job, since[0].at)


def is_silent(runner: Runner, clock: int, silent_after_ms: int) -> bool:
    """Whether it holds a job and is not heard of any more, though it used to be."""
    return runner.beat and clock - runner.seen > silent_after_ms and held_job(runner) is not None


def _later(one: Said | None, other: Said) -> Said:
    return other if one is None or other > one else one


def _with(busy: tuple[Said, ...], said: Said) -> tuple[Said, ...]:
    """The first sight of each job, by time."""
    first = {each.job: each for each in busy}
    known = first.get(said.job)
    if known is None or said < known:
        first[said.job] = said
    return tuple(sorted(first.values()))


def _bounded(runner: Runner) -> tuple[Said, ...]:
    """Of many the latest, and what tells whether it was displaced: the first since the claim."""
    busy = runner.busy
    if len(busy) <= _MAX_BUSY:
        return busy
    held = runner.held
    latest = busy[-_MAX_BUSY + 2 :]
    kept = [each for each in busy if held and each.at >= held.at][:1]
    kept += [each for each in busy if held and each.job == held.job][:1]
    return tuple(sorted({*kept, *latest}))
