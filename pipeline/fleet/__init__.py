"""Everything one partition of ``runners.fleets`` knows, and what it decides. Pure.

Jobs propose, fleets dispose. :class:`FleetLedger` takes the records, keeps the partition's clock
and acts; ``state`` is what is known of a fleet, ``runners`` of a runner; ``budget`` and ``breaker``
say whether a command may go, under a ``policy``; ``records`` are the words for all that, and
``rows`` the table.
"""

from pipeline.fleet.ledger import ACT_WITHIN_MS, FleetLedger
from pipeline.fleet.policy import FleetPolicy, Policies
from pipeline.fleet.records import everywhere, switch
from pipeline.fleet.rows import clock_key

__all__ = [
    "ACT_WITHIN_MS",
    "FleetLedger",
    "FleetPolicy",
    "Policies",
    "clock_key",
    "everywhere",
    "switch",
]
