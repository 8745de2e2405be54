"""Probes, as the fold asks them."""

from __future__ import annotations

import time
from typing import Any

from topics.recovery import Fence, Probe, StallKind


def probe(job: int, **differs: Any) -> Probe:
    now = int(time.time() * 1000)
    key = f"github:github.com:{job}"
    told: dict[str, Any] = {
        "id": f"probe|{key}|1|{differs.get('k', 1)}", "source": "runnerstream", "key": key,
        "occurred_at": now, "received_at": now, "fleet": "linux", "n": 1, "k": 1,
        "stall": StallKind.ORPHAN, "since": now - 400_000, "opened_at": now - 1_000,
        "fence": Fence(claim="lease-1", rev=3), "expires_at": now + 600_000,
        "repo": "octo/repo", "run_id": job * 10, "attempt": 1,
    }  # fmt: skip
    return Probe(**{**told, **differs})
