"""A Faust table whose keys are expired by the fold, not by Faust.

Faust's windowed tables push one heap entry per update (300 updates, 300 entries), delete
expired keys locally without a tombstone (0 tombstones in 602 changelog records), and never
expire what was recovered. The fold deletes panes itself, at a tick, with a tombstone
(:meth:`pipeline.ledger.Ledger.apply`), so all of that is switched off here.
"""

from __future__ import annotations

from typing import Any

import faust


class SafeTable(faust.Table):
    """See the module docstring."""

    def _should_expire_keys(self) -> bool:
        return False

    def _maybe_set_key_ttl(self, key: Any, partition: int) -> None:
        return None

    def _maybe_del_key_ttl(self, key: Any, partition: int) -> None:
        return None
