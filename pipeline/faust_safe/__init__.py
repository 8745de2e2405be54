"""Faust, made safe: each remedy in one place, each naming the failure it prevents.

What Faust is kept for: consumer groups, co-partitioned assignment, table recovery, web server.
What is replaced, and why, is said where it is replaced:

* :mod:`pipeline.faust_safe.transport`: the recovery race, offsets committed past unfinished
  work, per-message task churn; hands whole record batches to the agents.
* :mod:`pipeline.faust_safe.table`: windowed tables that leak and never tombstone.
* :mod:`pipeline.faust_safe.outbox`: changelog and output writes that are awaited, idempotent and
  batched, instead of fire-and-forget per key.
* :mod:`pipeline.faust_safe.app`: the settings that make the rest hold.

``tests/test_faust_safe.py`` has a test per remedy, and one that fails when an internal that is
overridden here has changed in a new version of Faust.
"""

from pipeline.faust_safe.app import create_app
from pipeline.faust_safe.outbox import Outbox
from pipeline.faust_safe.transport import Batch, BatchSchema

__all__ = ["Batch", "BatchSchema", "Outbox", "create_app"]
