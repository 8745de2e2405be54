"""A Job as bytes: the value in the table, its changelog and on ``runners.job-states``.

One encoding serves all three, so it is made once per changed job. Equal Jobs encode to equal
bytes (keys are sorted), which is what makes a replay after a crash byte-identical. The shape is
:class:`topics.models.JobState`; a test holds the two together. orjson writes and reads it,
because this is the hottest code of the fold and both ends are ours.
"""

from __future__ import annotations

from typing import Any

import orjson

from pipeline.jobs.facts import Attributes, Claim, Ending, Job, RunAttempt, Runner
from pipeline.jobs.runs import Run
from pipeline.jobs.status import View
from pipeline.jobs.timings import Measured
from topics.models import VERSION

_ATTRIBUTES = Attributes._fields
_OPTIONS = orjson.OPT_SORT_KEYS


def state_record(job: Job, v: View) -> dict[str, Any]:
    """The JobState record of a job as a plain dict."""
    provider, _, rest = job.key.partition(":")
    host, _, job_id = rest.rpartition(":")
    at = v.at
    a = job.attributes
    record: dict[str, Any] = {
        "id": f"{job.key}@{job.rev}",
        "kind": "job.state",
        "version": VERSION,
        "source": "runnerstream",
        "occurred_at": v.since or job.first_seen,
        "received_at": job.first_seen,
        "key": job.key,
        "rev": job.rev,
        "provider": provider,
        "host": host,
        "job_id": job_id,
        "status": v.status,
        "since": v.since,
        "fleet": v.fleet,
        "job": {name: value for name, value in zip(_ATTRIBUTES, a, strict=True) if value},
        "timings": {family: _timing(t) for family, t in v.timings.items()},
        "times": job.times,
        "marks": sorted(job.marks),
        "facts": sorted(job.facts),
        "causes": sorted(job.causes),
    }
    if at.queued is not None:
        record["queued_at"] = at.queued.ms
    if at.started is not None:
        record["started_at"] = at.started.ms
    if at.completed is not None:
        record["completed_at"] = at.completed.ms
    if at.waiting is not None:
        record["waiting_at"] = at.waiting
    if at.claimed is not None:
        record["claimed_at"] = at.claimed
    if at.minted is not None:
        record["minted_at"] = at.minted
    if at.gated_ms:
        record["gated_ms"] = at.gated_ms
    if at.copied:
        record["copied"] = True
    if v.abandoned_ms is not None:
        record["abandoned_ms"] = v.abandoned_ms
    if job.ending is not None:
        record["conclusion"] = job.ending.conclusion
        record["ending"] = list(job.ending)
    if job.runner is not None:
        record["runner"] = {"name": job.runner.name, "id": job.runner.id, "group": job.runner.group}
    if job.claims:
        record["claims"] = {handle: claim._asdict() for handle, claim in job.claims.items()}
    if job.run is not None:
        record["run"] = job.run._asdict()
    return record


def _timing(t: Measured) -> dict[str, Any]:
    if t.ms is None:
        return {"missing": t.missing}
    said = {"ms": t.ms, "start_clock": t.start_clock, "end_clock": t.end_clock}
    if t.clamped_ms:
        said["clamped_ms"] = t.clamped_ms
    return said


def fitted(value: bytes) -> bytes:
    """The same bytes in no more memory than they need: for what is kept.

    orjson (3.12 and later) never gives back the room it had reserved for its output: a state of
    1.1 kB held 8 to 16 kB for as long as it was in the table, and ``sys.getsizeof`` does not tell.
    """
    # Joining a single value would return that value itself.
    return b"".join((value, b""))


def encode(job: Job, v: View) -> bytes:
    """The bytes of a job. Never empty: an empty value would read as a deletion."""
    return fitted(orjson.dumps(state_record(job, v), option=_OPTIONS))


def decode(value: bytes) -> Job:
    """The Job that was encoded. Raises orjson.JSONDecodeError or KeyError on foreign bytes."""
    return from_record(orjson.loads(value))


def from_record(record: dict[str, Any]) -> Job:
    """The Job a parsed state record was made from."""
    attributes = record["job"]
    if "labels" in attributes:
        attributes["labels"] = tuple(attributes["labels"])
    runner = record.get("runner")
    ending = record.get("ending")
    run = record.get("run")
    return Job(
        key=record["key"],
        facts=frozenset(record["facts"]),
        first_seen=record["received_at"],
        times=record["times"],
        marks=frozenset((at, kind) for at, kind in record["marks"]),
        attributes=Attributes(**attributes),
        runner=Runner(**runner) if runner else None,
        claims={h: Claim(**claim) for h, claim in record.get("claims", {}).items()},
        ending=Ending(*ending) if ending else None,
        run=RunAttempt(**run) if run else None,
        causes=frozenset(record["causes"]),
    )


def encode_run(run: Run) -> bytes:
    """The bytes of a run in the table."""
    return fitted(
        orjson.dumps(
            {
                "kind": "run.state",
                "key": run.key,
                "first_seen": run.first_seen,
                "attempts": {str(n): list(run.attempts[n]) for n in sorted(run.attempts)},
                "jobs": run.jobs,
            },
            option=_OPTIONS,
        )
    )


def decode_run(value: bytes) -> Run:
    """The Run that was encoded."""
    return run_from_record(orjson.loads(value))


def run_from_record(record: dict[str, Any]) -> Run:
    """The Run a parsed run record was made from."""
    return Run(
        record["key"],
        record["first_seen"],
        {int(n): RunAttempt(*attempt) for n, attempt in record["attempts"].items()},
        record["jobs"],
    )
