"""Faust, made safe: each remedy in one place, each naming the failure it prevents.

What Faust is kept for: consumer groups, co-partitioned assignment, table recovery, web server.
What is replaced, and why, is said where it is replaced:

* :mod:`pipeline.faust_safe.transport`: the recovery race, offsets committed past unfinished
  work, per-message task churn; hands whole record batches to the agents.
* :mod:`pipeline.faust_safe.undecodable`: batches that end the process whenever they are fetched.
* :mod:`pipeline.faust_safe.reconnect`: clients that end, or wait for ever, when a connection
  breaks.
* :mod:`pipeline.faust_safe.table`, :mod:`pipeline.faust_safe.store`: windowed tables that leak and
  never tombstone; state that does not know which log it was made from, and how far.
* :mod:`pipeline.faust_safe.recovery`: tables recovered record by record, and with gaps when a
  rebalance comes in between.
* :mod:`pipeline.faust_safe.fencing`: writes of a worker that has been replaced.
* :mod:`pipeline.faust_safe.outbox`: changelog and output writes that are awaited, idempotent and
  batched, instead of fire-and-forget per key.
* :mod:`pipeline.faust_safe.sensor`: metrics of what goes past Faust, which its own never see.
* :mod:`pipeline.faust_safe.app`: the settings that make the rest hold.

``tests/test_faust_safe.py`` has a test per remedy, and one that fails when an internal that is
overridden here has changed in a new version of Faust.
"""

from pipeline.faust_safe.app import create_app
from pipeline.faust_safe.fencing import Fenced, FencedOutbox
from pipeline.faust_safe.outbox import Outbox
from pipeline.faust_safe.transport import Batch, BatchSchema

__all__ = ["Batch", "BatchSchema", "Fenced", "FencedOutbox", "Outbox", "create_app"]
