"""Part 8: what every panel costs that asks ClickHouse, over a month of jobs.

The month is made by SQL, in the order of time and in pieces, so that tables have the parts that
they have in operation; a fiftieth of the jobs is written twice, as late facts do. It depends on the
number of jobs and on nothing else. Depth is sampled every 5 s in 8 partitions whatever the number.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any, Final

from clickhouse_driver import Client

from benchmarks import machine
from benchmarks.bench import Options, say
from benchmarks.panel_rows import DAY_S, fill
from dashboards.ask import ask
from dashboards.boards import BOARDS
from dashboards.macros import Range
from dashboards.model import Dashboard, Sql
from pipeline.local import EmbeddedClickHouse
from sinks import schema

#: What is looked at: a name, and days.
RANGES: Final = {"6 h": 0.25, "30 d": 30.0}
#: Points of a curve.
POINTS: Final = 720
#: Asked three times; the middle one counts.
TIMES: Final = 3


def measure(options: Options) -> dict[str, Any]:
    """Fill a server, then ask everything."""
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as made,
        EmbeddedClickHouse(Path(made)) as server,
    ):
        return _measure(server, options.panel_jobs, options.panel_days)


def _measure(server: EmbeddedClickHouse, jobs: int, days: int) -> dict[str, Any]:
    schema.apply(server.url)
    end_s = int(time.time()) // 60 * 60
    began = time.monotonic()
    with Client.from_url(server.url) as client:
        rows = fill(client, jobs, days, end_s)
        _settle(client)
    say(f"panels: {sum(rows.values()):,} rows of {jobs:,} jobs in {time.monotonic() - began:.0f} s")
    found = list(asked(server.reader_url, server.pid or 0, end_s, days))
    return {"jobs": jobs, "days": days, "rows": rows, "panels": found}


def asked(url: str, pid: int, end_s: int, days: int) -> Iterator[dict[str, Any]]:
    """What every query costs the server with this process id, over each range."""
    with Client.from_url(url) as client:
        for name, length in RANGES.items():
            span_ms = int(min(length, days) * DAY_S * 1000)
            step = max(60, span_ms // 1000 // POINTS)
            for board in BOARDS:
                over = Range(
                    end_s * 1000 - span_ms,
                    end_s * 1000,
                    step,
                    {variable.name: () for variable in board.variables},
                )
                for what, sql in _queries(board):
                    said = {"range": name, "board": board.title, "panel": what}
                    yield said | _time(client, pid, sql, over)


def _settle(client: Client) -> None:
    """Wait until merges are done, which would take the processor from queries."""
    deadline = time.monotonic() + 600
    while client.execute("SELECT count() FROM system.merges")[0][0]:
        if time.monotonic() > deadline:
            say("panels: merges go on")
            return
        time.sleep(1)


def _queries(board: Dashboard) -> Iterator[tuple[str, str]]:
    for variable in board.variables:
        if variable.sql:
            yield f"variable {variable.name}", variable.sql
    for panel in board.panels:
        for number, query in enumerate(panel.queries, 1):
            if isinstance(query, Sql):
                more = f" ({number})" if len(panel.queries) > 1 else ""
                yield f"{panel.title}{more}", query.text


def _time(client: Client, pid: int, sql: str, over: Range) -> dict[str, Any]:
    """Wall time and the server's processor time, in ms, and how much was answered."""
    wall, cpu, rows = [], [], 0
    for _ in range(TIMES):
        began, used = time.perf_counter(), machine.cpu_seconds(pid)
        try:
            rows = len(ask(client, sql, over)[1])
        except Exception as error:  # a panel that takes all memory is a result, too
            client.disconnect()
            return {"ms": None, "cpu_ms": None, "rows": 0, "error": str(error)[:200]}
        wall.append(time.perf_counter() - began)
        cpu.append(machine.cpu_seconds(pid) - used)
    return {"ms": median(wall) * 1000, "cpu_ms": median(cpu) * 1000, "rows": rows}
