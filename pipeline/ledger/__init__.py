"""Everything one partition of ``runners.jobs`` knows, and what follows from the next record. Pure.

:class:`Ledger` takes the records, keeps the partition's clock and says when a stretch of records
ends. Its parts keep a subject each: `entries` the decoded jobs, `index` what is counted and
listed of all of them, `runs` the workflow runs, `windows` the panes, `depth` the samples of what
lives; `pending` gathers what they lead to. A part knows the parts below it that it was given, and
none knows the ledger.
"""

from pipeline.ledger.depth import LIVE, QUIET_MS
from pipeline.ledger.index import Known
from pipeline.ledger.ledger import FACT_AHEAD_MS, TICK_AHEAD_MS, Ledger, clock_key
from pipeline.ledger.limits import MAX_FLEETS, OTHER_FLEET, Retention

__all__ = [
    "FACT_AHEAD_MS",
    "LIVE",
    "MAX_FLEETS",
    "OTHER_FLEET",
    "QUIET_MS",
    "TICK_AHEAD_MS",
    "Known",
    "Ledger",
    "Retention",
    "clock_key",
]
