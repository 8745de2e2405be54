"""What people and programs ask a worker over HTTP: jobs, fleets, windows, workers, health.

``part`` is what this worker knows itself, ``group`` asks the others. ``watch`` asks broker and
ClickHouse, ``health`` knows from it whether the answers can be trusted. ``jobs``, ``fleets``,
``windows``, ``recovery`` and ``views`` make JSON and HTML of it all, with what ``site`` and
``answers`` hold for them. Views only read; the switch of recovery is put into the log.
"""

from pipeline.web.views import mount

__all__ = ["mount"]
