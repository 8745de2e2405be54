"""The job: what is known about it, where it is, how long things took. Pure.

Nothing in this package knows Kafka, Faust, ClickHouse or a clock. Everything is a function of
the facts, and facts are merged by a join, so order, duplicates and redelivery cannot matter.
"""

from pipeline.jobs.explain import MISSING, Section, explain
from pipeline.jobs.facts import Job, digest, join, merge
from pipeline.jobs.record import (
    decode,
    decode_run,
    encode,
    encode_clock,
    encode_run,
    summary,
)
from pipeline.jobs.runs import (
    Run,
    RunOutcome,
    encode_outcome,
    link_run,
    merge_run,
    run_outcomes,
)
from pipeline.jobs.status import FleetNames, View, view
from pipeline.jobs.timings import At, Measured, Milestones, milestones, timings

__all__ = [
    "MISSING",
    "At",
    "FleetNames",
    "Job",
    "Measured",
    "Milestones",
    "Run",
    "RunOutcome",
    "Section",
    "View",
    "decode",
    "decode_run",
    "digest",
    "encode",
    "encode_clock",
    "encode_outcome",
    "encode_run",
    "explain",
    "join",
    "link_run",
    "merge",
    "merge_run",
    "milestones",
    "run_outcomes",
    "summary",
    "timings",
    "view",
]
