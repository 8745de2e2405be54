"""``python -m benchmarks``: the table on standard output, progress on standard error."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks import (
    gateway,
    insert,
    latency,
    machine,
    memory,
    panels,
    report,
    stall,
    throughput,
    tick,
)
from benchmarks.bench import Options, say
from tests.support import brokers

PARTS: Final[dict[str, Callable[[Options], dict[str, Any]]]] = {
    "throughput": throughput.measure,
    "insert": insert.measure,
    "memory": memory.measure,
    "latency": latency.measure,
    "tick": tick.measure,
    "stall": stall.measure,
    "gateway": gateway.measure,
    "panels": panels.measure,
}
#: Takes as long as all others, and needs neither worker nor broker.
APART: Final = frozenset({"panels"})


def main(arguments: list[str] | None = None) -> int:
    """Run the parts that are asked for; the exit code."""
    given = _parser().parse_args(arguments)
    # A new topic has no leader for some milliseconds, and the client says so on every retry.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    kind = brokers.kind()
    options = Options(
        facts=given.facts,
        jobs_live=given.jobs_live,
        latency_seconds=given.latency_seconds,
        rate=given.rate,
        rounds=given.rounds,
        runners=given.runners,
        ticks=given.ticks,
        stall_seconds=given.stall_seconds,
        tick_seconds=given.tick_seconds,
        gateway_seconds=given.gateway_seconds,
        panel_jobs=given.panel_jobs,
        panel_days=given.panel_days,
        kind=kind,
    )
    if kind == "embedded":
        say("note: Apache Kafka cannot run here, so this is the embedded broker (in memory): "
            "ratios hold roughly, absolute figures do not")  # fmt: skip
    result: dict[str, Any] = {
        "made_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": machine.describe(),
        "broker": brokers.describe(),
        "floor": report.FLOOR,
        "options": vars(options),
        "parts": {},
    }
    began = time.monotonic()
    for name in given.parts:
        result["parts"][name] = PARTS[name](options)
    result["seconds"] = time.monotonic() - began
    result["machine"]["load_after"] = machine.load()
    print(report.text(result))
    if given.json:
        given.json.write_text(json.dumps(result, indent=2) + "\n")
        say(f"written to {given.json}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="The worker against a floor, in one run. How to read it: benchmarks/README.md.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--facts", type=_positive, default=200_000, help="facts preloaded per round"
    )
    parser.add_argument(
        "--jobs-live",
        type=_positive,
        default=200_000,
        help="live jobs in the memory part, and in the one partition of the tick part",
    )
    parser.add_argument(
        "--runners", type=_positive, default=20_000, help="runners in the tick part"
    )
    parser.add_argument("--ticks", type=_positive, default=100, help="ticks timed in each case")
    parser.add_argument(
        "--latency-seconds", type=float, default=30.0, help="how long events are offered"
    )
    parser.add_argument("--rate", type=_positive, default=1_000, help="events offered per second")
    parser.add_argument("--rounds", type=_positive, default=3, help="floor and worker, how often")
    parser.add_argument("--stall-seconds", type=float, default=60.0, help="how long jobs get stuck")
    parser.add_argument(
        "--tick-seconds", type=float, default=5.0, help="the worker's tick in the stall part"
    )
    parser.add_argument(
        "--gateway-seconds", type=float, default=10.0, help="how long deliveries are posted"
    )
    parser.add_argument(
        "--panel-jobs", type=_positive, default=5_000_000, help="jobs in the panels part"
    )
    parser.add_argument(
        "--panel-days", type=_positive, default=30, help="days they are spread over"
    )
    parser.add_argument("--json", type=Path, help="file for the whole result", metavar="FILE")
    parser.add_argument(
        "--parts",
        type=_parts,
        default=[name for name in PARTS if name not in APART],
        help=f"some of {','.join(PARTS)}",
    )
    return parser


def _positive(text: str) -> int:
    number = int(text.replace("_", ""))
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _parts(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = sorted(set(names) - PARTS.keys())
    if unknown or not names:
        raise argparse.ArgumentTypeError(f"choose some of {', '.join(PARTS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
