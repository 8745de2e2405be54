"""Providers: what GitHub and the fleet itself say, turned into facts about jobs.

Everything here is pure: a record in, facts out, no I/O and no clock. A provider does not decide
what a job's status or timings are. It says what each clock reports and what was observed; the
merge in ``pipeline.jobs`` decides.
"""

from __future__ import annotations

from pipeline.providers.github import facts
from pipeline.providers.github_bodies import canonical_labels
from pipeline.providers.lifecycle import lifecycle_fact
from topics.bridge import guid_time_ms

__all__ = ["canonical_labels", "facts", "guid_time_ms", "lifecycle_fact"]
