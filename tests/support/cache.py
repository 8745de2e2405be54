"""What tests fetch once and keep: directories in the user's cache, by what they were made from."""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Callable
from pathlib import Path


def cached(name: str, told: bytes, fill: Callable[[Path], Path]) -> Path:
    """The directory of what ``told`` describes, filled at the first call and then kept.

    ``fill`` gets an empty directory to work in, and returns the one in it that is kept. What it
    raises is passed on, and nothing is kept.
    """
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "runnerstream"
    kept = base / f"{name}-{hashlib.sha256(told).hexdigest()[:12]}"
    if kept.is_dir():
        return kept
    base.mkdir(parents=True, exist_ok=True)
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.is_dir():
            # Filled beside its place and renamed: whoever sees the directory sees all of it.
            with tempfile.TemporaryDirectory(dir=base) as work:
                fill(Path(work)).rename(kept)
    return kept
