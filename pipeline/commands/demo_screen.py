"""What ``runnerstream demo`` shows while it runs: a summary that is drawn again, or a line now and
then where standard output is no terminal."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.console import Console, Group
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from pipeline.commands.demo_gateway import Answered
from pipeline.commands.demo_recovery import Line, Seen
from pipeline.commands.output import cell
from pipeline.ledger import LIVE
from pipeline.text import duration
from topics.models import Status

#: Columns and lines from which on there is room for everything.
_WIDE: Final = 110
_HIGH: Final = 32
#: A job longer than this in one state is shown as stuck. ms.
STUCK_MS: Final = 60_000


@dataclass(slots=True)
class Snapshot:
    """What the summary shows. Gaps stay as they were."""

    fleets: list[dict[str, Any]] = field(default_factory=list)
    stuck: list[dict[str, Any]] = field(default_factory=list)
    ready: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, int] = field(default_factory=dict)
    recovery: Seen = field(default_factory=Seen)
    webhooks: Answered = field(default_factory=Answered)
    #: What the fleets say of themselves, in words.
    pools: str = ""
    runners: str = ""
    schedulers: str = ""
    reconcilers: str = ""
    #: Stalls that were told of in a line of their own, by job and number.
    told: set[tuple[str, int]] = field(default_factory=set)

    def depth(self) -> dict[str, int]:
        """Jobs by status, over all fleets."""
        depth = dict.fromkeys((status.value for status in Status), 0)
        for fleet in self.fleets:
            for status, count in fleet["jobs"].items():
                depth[status] += count
        return depth

    def lag(self) -> str:
        """How far worker and sink are behind, for people."""
        if not self.ready:
            return "–"
        waiting = sum((self.ready.get("consumer_lag") or {}).values())
        told = f"fold {self.ready.get('tick_lag_s', 0):.1f} s, {waiting:,} records waiting"
        sink = self.ready.get("sink")
        return f"{told}; sink {sink['lag_records']:,} records" if sink else told


@contextmanager
def display(
    say_line: Callable[[], None], draw_summary: Callable[[], Group]
) -> Iterator[Callable[[], None]]:
    """What to call for the summary to be shown as it is now."""
    if not sys.stdout.isatty():
        last = [0.0]

        def line() -> None:
            if time.monotonic() - last[0] >= 5:
                last[0] = time.monotonic()
                say_line()

        yield line
        return
    # Literal: job names come from strangers, and are neither markup nor names of emoji.
    console = Console(markup=False, emoji=False, highlight=False)
    with Live(console=console, auto_refresh=False, transient=True) as screen:
        yield lambda: screen.update(draw_summary(), refresh=True)


def status_line(snapshot: Snapshot, elapsed_ms: float, sent: int) -> str:
    """The summary in one line, where no terminal is."""
    depth = snapshot.depth()
    jobs = ", ".join(f"{depth[status]} {status}" for status in (*LIVE, "completed"))
    rows = snapshot.rows.get("jobs", 0)
    state = "" if snapshot.ready.get("ready") else " NOT READY:"
    why = "".join(f" {r['text']};" for r in snapshot.ready.get("reasons", ()))
    return (
        f"{duration(elapsed_ms):>9}  {sent:,} events; {snapshot.webhooks.taken:,} webhooks taken, "
        f"{snapshot.webhooks.refused:,} refused; {jobs}; "
        f"{rows:,} rows of jobs in ClickHouse; lag: {snapshot.lag()}{state}{why}"
    )


def summary(
    snapshot: Snapshot, elapsed_ms: float, sent: int, lasts_s: float, url: str, hooks_url: str,
    env_file: Path, size: tuple[int, int],
) -> Group:  # fmt: skip
    """The summary as it stands on a terminal of ``size`` (columns, lines): the lower it is, the
    fewer fleets and stalls. ``hooks_url``: where webhooks go; ``env_file``: the settings for other
    commands."""
    columns, height = size
    head = Text.assemble(
        ("runnerstream demo", "bold"),
        f"   {duration(elapsed_ms)}   {sent:,} events sent",
        (f"   ends after {duration(lasts_s * 1000)}", "dim"),
    )
    depth = snapshot.depth()
    states = Text()
    for status in (*LIVE, "completed"):
        states.append(f"{status} ", "dim")
        states.append(f"{depth[status]:,}    ", "bold" if depth[status] else "dim")
    rows = "   ".join(f"{name} {number:,}" for name, number in snapshot.rows.items())
    foot = [
        Text.assemble(("gateway     ", "dim"), *_gateway(snapshot.webhooks)),
        Text.assemble(("pools       ", "dim"), snapshot.pools or "–"),
        Text.assemble(("runners     ", "dim"), snapshot.runners or "–"),
        Text.assemble(("schedulers  ", "dim"), snapshot.schedulers or "–"),
        Text.assemble(("reconcilers ", "dim"), snapshot.reconcilers or "–"),
        Text.assemble(("ClickHouse  ", "dim"), rows or "–"),
        Text.assemble(("lag         ", "dim"), snapshot.lag()),
        *(
            Text.assemble(("not ready   ", "yellow"), cell(reason["text"]))
            for reason in snapshot.ready.get("reasons", ())
        ),
        *_pointers(url, hooks_url, env_file),
    ]
    for text in (states, *foot[:-1]):
        text.no_wrap, text.overflow = True, "ellipsis"
    low = height < _HIGH
    gap = () if low else (Text(),)
    # Head, states, two headings, the last line and one to spare (the SQL may need two): what is
    # left is shared out.
    left = height - len(foot) - (7 if low else 12)
    fleets = max(3, min(8, left // 2))
    longest = [] if low else snapshot.stuck
    left -= fleets + (len(longest) + 2 if longest else 0)
    table = _fleets(snapshot, fleets, "oldest queued" if columns >= _WIDE else "oldest")
    parts: list[Any] = [*gap, head, states, *gap, table, *gap]
    parts += _recovery(snapshot.recovery, max(3, left), columns)
    if longest:
        parts += [*gap, *_longest(longest)]
    return Group(*parts, *gap, *foot, Text("Ctrl-C stops everything", "dim"))


def _fleets(snapshot: Snapshot, most: int, oldest: str) -> Table:
    """The busiest fleets. ``oldest``: what the age of the job queued for longest is headed."""
    fleets = _table()
    fleets.show_header = True
    for number, name in enumerate(
        ("fleet", "queued", "running", oldest, "queue p50", "p95", "run p50", "p95")
    ):
        fleets.add_column(name, justify="right" if number else "left", no_wrap=True)
    busiest = sorted(snapshot.fleets, key=lambda f: -sum(f["jobs"].values()))[:most]
    for fleet in sorted(busiest, key=lambda f: str(f["fleet"])):
        queue = fleet["families"].get("queue", {})
        run = fleet["families"].get("run", {})
        fleets.add_row(
            cell(fleet["fleet"]),
            str(fleet["jobs"]["queued"]),
            str(fleet["jobs"]["running"]),
            duration(fleet["oldest_ms"]["queued"]),
            *(duration(each.get(q)) for each in (queue, run) for q in ("p50_ms", "p95_ms")),
        )
    return fleets


def _longest(rows: list[dict[str, Any]]) -> list[Any]:
    """Jobs that are longest in their state, one of each."""
    stuck = _table()
    for row in rows:
        stuck.add_row(
            row["status"],
            duration(row["age_ms"]),
            cell(row["name"] or row["key"]),
            cell(row["repo"]),
            Text(row["key"], "dim"),
        )
    over = f"longest in their state, over {duration(STUCK_MS)}"
    return [Text(over, "dim"), Padding(stuck, (0, 0, 0, 2))]


def _recovery(seen: Seen, most: int, columns: int) -> list[Any]:
    """What got stuck and became of it: counts, and a line per stall, the newest last."""
    head = Text("recovery  ", "dim", no_wrap=True, overflow="ellipsis")
    for name, number in (
        ("stuck", seen.injected), ("found", seen.found), ("recovered", seen.recovered),
    ):  # fmt: skip
        head.append(f"{name} ", "dim").append(f"{number:,}   ", "bold")
    head.append("against living jobs ", "dim")
    head.append(f"{seen.hits}", "bold red" if seen.hits else "bold green")
    now = ", ".join(f"{number} {kind}" for kind, number in sorted(seen.open.items()))
    if now:
        head.append(f"   open now: {now}", "dim")
    rows = [_cells(line, columns >= _WIDE) for line in seen.lines[-most:]]
    widths = [max(each.cell_len for each in column) for column in zip(*rows, strict=True)]
    # The evidence is what may be cut short.
    over = 2 + sum(widths) + 2 * (len(widths) - 1) - columns
    place = 4 if columns >= _WIDE else 1
    stalls = _table()
    for row in rows:
        if over > 0:
            row[place].truncate(max(12, widths[place] - over), overflow="ellipsis")
        stalls.add_row(*row)
    return [head, Padding(stalls, (0, 0, 0, 2))]


def _cells(line: Line, wide: bool) -> list[Text]:
    """A stall; of its seven parts three where there is no room."""
    done = Text(line.done, "green" if line.over else "yellow")
    short = [Text(line.cause), Text(line.evidence), done]
    if not wide:
        return short
    lay = duration(line.stranded_ms) if line.stranded_ms else ""
    which = [Text(line.clock, "dim"), Text(cell(line.fleet)), Text(f"…{line.key[-6:]}", "dim")]
    return [*which, *short, Text(lay, justify="right")]


def _table() -> Table:
    return Table(box=None, pad_edge=False, show_header=False, header_style="dim")


def _gateway(webhooks: Answered) -> Iterator[str | tuple[str, str]]:
    """How webhooks were answered."""
    counts = webhooks.outcomes
    for name, number in (
        ("accepted", counts.get("accepted", 0) + counts.get("malformed", 0)),
        ("duplicate", counts.get("duplicate", 0)),
        ("refused", webhooks.refused),
        ("unavailable", counts.get("unavailable", 0)),
    ):
        if number or name != "unavailable":
            yield f"{name} ", "dim"
            yield f"{number:,}   "
    # How long answers take.
    yield "p50 ", "dim"
    yield f"{duration(webhooks.p50_ms)}   "
    yield "p99 ", "dim"
    yield duration(webhooks.p99_ms)


def _pointers(url: str, hooks_url: str, env_file: Path) -> list[Text]:
    return [
        Text.assemble(("webhooks    ", "dim"), hooks_url),
        Text.assemble(("views       ", "dim"), f"{url}/  and  {url}/jobs/KEY"),
        Text.assemble(("SQL         ", "dim"), _example(env_file)),
    ]


def _example(env_file: Path) -> str:
    file = str(env_file)
    home = f"{Path.home()}{os.sep}"
    if file.startswith(home):
        file = f"~/{file.removeprefix(home)}"
    return f'runnerstream --config {file} sql "SELECT * FROM queue_now"'
