"""A Job as bytes: the value in the table, its changelog and on ``runners.job-states``.

One encoding serves all three, so it is made once per changed job. Equal Jobs encode to equal
bytes (fields in one order, keys sorted), which is what makes a replay after a crash
byte-identical. The shape is :class:`topics.models.JobState`; a test holds the two together.
msgspec writes and reads it, because this is the hottest code of the fold and both ends are ours.
"""

from __future__ import annotations

from typing import Final

from msgspec import Struct
from msgspec.json import Decoder, Encoder

from pipeline.jobs.attributes import BLANK, Attributes
from pipeline.jobs.facts import Claim, Ending, Job, RunAttempt, Runner, Step
from pipeline.jobs.runs import Run
from pipeline.jobs.stalls import Recovery
from pipeline.jobs.status import View
from pipeline.jobs.timings import Measured
from topics.envelope import VERSION
from topics.keys import parse_job_key

_encoder: Final = Encoder(order="deterministic")


class StateRecord(Struct, omit_defaults=True, gc=False):
    """:class:`topics.models.JobState` as it is written. Absent means unknown, zero or empty."""

    kind: str
    version: int
    source: str
    id: str
    occurred_at: int
    received_at: int
    key: str
    rev: int
    provider: str
    host: str
    job_id: str
    status: str
    since: int | None
    fleet: str
    fleet_from: str
    last_seen: int
    job: Attributes
    timings: dict[str, Measured]
    times: dict[str, dict[str, int]]
    marks: tuple[tuple[int, str], ...]
    facts: tuple[int, ...]
    causes: tuple[str, ...]
    queued_at: int | None = None
    started_at: int | None = None
    completed_at: int | None = None
    waiting_at: int | None = None
    claimed_at: int | None = None
    minted_at: int | None = None
    gated_ms: int | None = 0
    copied: bool = False
    abandoned_ms: int | None = None
    conclusion: str | None = None
    ending: Ending | None = None
    runner: Runner | None = None
    claims: dict[str, Claim] = {}
    run: RunAttempt | None = None
    steps: tuple[Step, ...] = ()
    lost_at: int | None = None
    recovery: Recovery | None = None
    #: Whether its next look by recovery depends on more than its status and since when.
    watched: bool = False
    found_at: int | None = None


def state_record(job: Job, v: View) -> StateRecord:
    """The JobState record of a job."""
    key = job.key
    provider, host, job_id = parse_job_key(key)
    at = v.at
    rev = job.rev
    return StateRecord(
        "job.state",
        VERSION,
        "runnerstream",
        f"{key}@{rev}",
        v.since or job.first_seen,
        job.first_seen,
        key,
        rev,
        provider,
        host,
        job_id,
        v.status,
        v.since,
        v.fleet,
        v.fleet_from,
        job.last_seen,
        job.attributes,
        v.timings,
        job.times,
        job.marks,
        job.facts,
        job.causes,
        at.queued.ms if at.queued is not None else None,
        at.started.ms if at.started is not None else None,
        at.completed.ms if at.completed is not None else None,
        at.waiting,
        at.claimed,
        at.minted,
        # Not known is not zero, but the contract has no word for it: the timing says why.
        at.gated_ms or 0,
        at.copied,
        v.abandoned_ms,
        v.conclusion,
        job.ending,
        job.runner,
        job.claims,
        job.run,
        job.steps,
        job.lost_at,
        job.recovery,
        is_watched(job),
        job.found_at,
    )


def is_watched(job: Job) -> bool:
    """Whether anything was told that recovery goes by, beside the job's milestones."""
    if job.recovery is not None or job.lost_at is not None:
        return True
    for claim in job.claims.values():
        if claim.displaced_at is not None or claim.lost_at is not None:
            return True
    return False


def encode(job: Job, v: View) -> bytes:
    """The bytes of a job. Never empty: an empty value would read as a deletion."""
    return _encoder.encode(state_record(job, v))


_job_decoder: Final = Decoder(Job)


def decode(value: bytes) -> Job:
    """The Job that was encoded; what is derived is skipped.

    Raises msgspec.DecodeError on foreign bytes.
    """
    return _job_decoder.decode(value)


class Summary(Struct, gc=False):
    """What an index needs of any record in the table: a fifth of the time of reading it all.

    ``kind`` is ``job.state``, ``run.state`` or ``clock``; each has its own of these fields.
    """

    kind: str
    status: str = ""
    fleet: str = ""
    since: int | None = None
    received_at: int = 0
    completed_at: int | None = None
    last_seen: int = 0
    watched: bool = False
    #: The time a clock stands at.
    at: int = 0


_summary_decoder: Final = Decoder(Summary)


def summary(value: bytes) -> Summary:
    """The index entry of a stored record. Raises msgspec.DecodeError on foreign bytes."""
    return _summary_decoder.decode(value)


class _StoredRun(Struct, gc=False):
    kind: str
    key: str
    first_seen: int
    attempts: dict[str, RunAttempt]
    jobs: dict[str, int]
    last_seen: int = 0
    said: Attributes = BLANK


_run_decoder: Final = Decoder(_StoredRun)


def encode_run(run: Run) -> bytes:
    """The bytes of a run in the table."""
    attempts = {str(number): said for number, said in run.attempts.items()}
    return _encoder.encode(
        _StoredRun(
            "run.state", run.key, run.first_seen, attempts, run.jobs, run.last_seen, run.said
        )
    )


def decode_run(value: bytes) -> Run:
    """The Run that was encoded. Raises msgspec.DecodeError on foreign bytes."""
    s = _run_decoder.decode(value)
    attempts = {int(n): said for n, said in s.attempts.items()}
    return Run(s.key, s.first_seen, attempts, s.jobs, s.last_seen, s.said)


def encode_clock(at: int) -> bytes:
    """The bytes of a partition's clock, in ms."""
    return _encoder.encode({"kind": "clock", "at": at})
