"""Everything one partition of ``runners.telemetry`` knows of dispatchers, pools, runners,
schedulers and reconcilers. Pure.

:class:`TelemetryLedger` takes the events, keeps the partition's clock and counts. ``subject`` is
what is known of one thing and how a family is declared; ``panes`` which events have been counted;
then one module a family, and ``registry`` with all of them.
"""

from pipeline.telemetry.ledger import TelemetryLedger, clock_key
from pipeline.telemetry.registry import CATALOGUE, EVENTS, FAMILIES

__all__ = ["CATALOGUE", "EVENTS", "FAMILIES", "TelemetryLedger", "clock_key"]
