"""What the machine is, and what a process has used: read from ``/proc``, without a package."""

from __future__ import annotations

import os
import platform
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")
_KIB = 1024


def rss(pid: int) -> int:
    """Resident memory of a process, in bytes."""
    return _status(pid, "VmRSS")


def peak_rss(pid: int) -> int:
    """The most resident memory the process ever had, in bytes."""
    return _status(pid, "VmHWM")


def cpu_seconds(pid: int) -> float:
    """Processor time of all threads of a process, user and system, in seconds."""
    # The name in parentheses may hold spaces, so count from behind it.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def describe() -> dict[str, object]:
    """What must be known of the machine to compare two results."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    return {
        "cores": len(os.sched_getaffinity(0)),
        "cpu": model,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "load_before": load(),
    }


def load() -> list[float]:
    """The load averages of 1, 5 and 15 minutes: what else this machine was doing."""
    return [round(average, 2) for average in os.getloadavg()]


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * _KIB
    raise ProcessLookupError(f"process {pid} has no {name}")
