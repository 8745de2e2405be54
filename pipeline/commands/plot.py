"""``plot``: dashboards and panels drawn from their own queries, where there is no Grafana."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import click
from clickhouse_driver import Client
from clickhouse_driver.errors import Error as ClickHouseError
from rich.console import Console

from dashboards.ask import ask
from dashboards.boards import BOARDS
from dashboards.drawing import text
from dashboards.drawing.answers import Answer, answered, board_named, panel_named, promql
from dashboards.macros import Range
from dashboards.model import Dashboard, Panel, Promql, Query
from pipeline.commands.connections import clickhouse, clickhouse_failure
from pipeline.commands.context import Context, Duration, seconds_of
from pipeline.commands.failure import UNREACHABLE, USAGE, Failure, short
from pipeline.commands.output import say

#: Seconds between two points of a series: the first that is long enough for the range.
_STEPS: Final = (1, 5, 10, 15, 30, 60, 300, 600, 900, 1_800, 3_600, 10_800, 43_200, 86_400)
#: About so many points has a series.
_POINTS: Final = 360
#: The least width of what is written where there is no terminal.
_WIDTH: Final = 120
_PROMETHEUS_S: Final = 15.0


@click.command()
@click.argument("board", required=False)
@click.argument("panel", required=False)
@click.option("--from", "back", type=Duration(),
              help="How far back it looks, such as 6h; else as the dashboard says.")  # fmt: skip
@click.option("--set", "chosen", multiple=True, metavar="VARIABLE=VALUE",
              help="What is chosen at the top, else all; again for one more value.")  # fmt: skip
@click.option("--fleet", "fleets", multiple=True, help="The same as --set fleet=…")
@click.option("--out", type=click.Path(path_type=Path, dir_okay=False),
              help="Write a picture (PNG) instead of text; needs runnerstream[plot].")  # fmt: skip
@click.option("--prometheus", metavar="URL",
              help="Where panels about the processes themselves are asked.")  # fmt: skip
@click.option("--width", type=click.IntRange(40, 400), help="Of the text, in characters.")
@click.pass_obj
def plot(
    context: Context,
    board: str | None,
    panel: str | None,
    back: float | None,
    chosen: tuple[str, ...],
    fleets: tuple[str, ...],
    out: Path | None,
    prometheus: str | None,
    width: int | None,
) -> None:
    """Draw a dashboard, or one PANEL of it, as text or as a picture. Without BOARD: list them.

    BOARD is a title, PANEL a title or a part of one. Each panel is drawn from its own query, asked
    of the ClickHouse that is set.

    Example: runnerstream plot runners --from 6h --out runners.png
    """
    if board is None:
        for each in BOARDS:
            say(f"{each.uid.removeprefix('runnerstream-'):<16} {each.title}: {each.description}")
        return
    try:
        found = board_named(BOARDS, board)
    except KeyError as error:
        raise Failure(f"no dashboard is called {board!r}", f"these are: {error.args[0]}",
                      USAGE) from None  # fmt: skip
    try:
        one = None if panel is None else panel_named(found, panel)
    except KeyError as error:
        raise Failure(f"{found.title} has no single panel {panel!r}", f"these are: {error.args[0]}",
                      USAGE) from None  # fmt: skip
    if out is not None and find_spec("matplotlib") is None:
        raise Failure("pictures need matplotlib, which is not installed",
                      "pip install 'runnerstream[plot]', or leave --out out", USAGE)  # fmt: skip
    span = seconds_of(found.range.removeprefix("now-")) if back is None else back
    if span < 60:
        raise Failure("--from must be at least a minute", exit_code=USAGE)
    wanted = [*chosen, *(f"fleet={each}" for each in fleets)]
    with clickhouse(context.settings) as client:
        try:
            asking = _Asking(client, found, span, wanted, prometheus)
            if out is not None:
                _picture(out, found, one, asking)
            else:
                _text(found, one, asking, width)
        except (ClickHouseError, EOFError) as error:
            raise clickhouse_failure(context.settings, error) from None


def _text(board: Dashboard, one: Panel | None, asking: _Asking, width: int | None) -> None:
    console = Console(width=width)
    if width is None and not console.is_terminal:
        console = Console(width=max(_WIDTH, console.width))
    if one is not None:
        console.print(text.box(asking.answer(one), console.width))
    else:
        console.print(text.board(board, asking.answer, console.width))
    console.print(f"[dim]{asking.told}[/]", highlight=False)


def _picture(out: Path, board: Dashboard, one: Panel | None, asking: _Asking) -> None:
    # Here, because it takes a second that text need not pay.
    from dashboards.drawing import png

    try:
        if one is not None:
            png.save(out, "", [("", [asking.answer(one)])])
        else:
            png.board(out, board, asking.answer, f"{board.title}   {asking.told}")
    except OSError as error:
        raise Failure(f"{out} cannot be written: {error.strerror}", exit_code=1) from None
    say(str(out))


class _Asking:
    """Asks what panels ask, about one range and choice."""

    def __init__(
        self,
        client: Client,
        board: Dashboard,
        span_s: float,
        wanted: Sequence[str],
        prometheus: str | None,
    ) -> None:
        self._client, self._prometheus = client, prometheus
        end = now_ms()
        step = next((each for each in _STEPS if span_s / each <= _POINTS), _STEPS[-1])
        self._values: dict[str, list[str]] = {}
        self.over = Range(end - int(span_s * 1000), end, step, self._chosen(board, wanted, end))
        self.told = _told(self.over, wanted)

    def _chosen(
        self, board: Dashboard, wanted: Sequence[str], end: int
    ) -> Mapping[str, Sequence[str]]:
        names = {each.name for each in board.variables}
        given: dict[str, list[str]] = {}
        for each in wanted:
            name, mark, value = each.partition("=")
            if not mark or name not in names:
                raise Failure(f"{board.title} has nothing to choose as {each!r}",
                              f"there is: {', '.join(sorted(names))}", USAGE)  # fmt: skip
            given.setdefault(name, []).append(value)
        chosen: dict[str, Sequence[str]] = {}
        for variable in board.variables:
            if not variable.sql:
                chosen[variable.name] = given.get(variable.name, [variable.text])
                continue
            if variable.multi:
                chosen[variable.name] = given.get(variable.name, [])
            elif variable.name in given:
                chosen[variable.name] = given[variable.name][:1]
            if variable.multi and self._prometheus is None:
                continue
            _, rows = ask(self._client, variable.sql, Range(end - 2_592_000_000, end, 60, chosen))
            self._values[variable.name] = [str(row[0]) for row in rows]
            # As in Grafana: of what cannot be all, the first.
            chosen.setdefault(variable.name, self._values[variable.name][:1] or [""])
        return chosen

    def answer(self, panel: Panel) -> Answer:
        """What a panel shows. Raises clickhouse-driver's errors and :class:`Failure`."""
        if self._prometheus is None and any(isinstance(q, Promql) for q in panel.queries):
            return Answer(panel, self.over, why_not="Prometheus knows this; name it with "
                          "--prometheus URL.")  # fmt: skip
        return answered(panel, self.over, self._ask)

    def _ask(self, query: Query) -> Any:
        if isinstance(query, Promql):
            assert self._prometheus is not None
            return _prometheus(self._prometheus, query, self.over, self._values)
        return ask(self._client, query.text, self.over)


def now_ms() -> int:
    """The time, in ms."""
    return int(time.time() * 1000)


def _told(over: Range, wanted: Sequence[str]) -> str:
    start, end = (datetime.fromtimestamp(each / 1000) for each in (over.start_ms, over.end_ms))
    return " · ".join([f"{start:%Y-%m-%d %H:%M} to {end:%Y-%m-%d %H:%M}", *wanted])


def _prometheus(
    base: str, query: Query, over: Range, values: Mapping[str, Sequence[str]]
) -> tuple[Sequence[tuple[str, str]], Sequence[Sequence[Any]]]:
    """An answer of Prometheus as columns and rows. Raises :class:`Failure`."""
    assert isinstance(query, Promql)
    asked: dict[str, object] = {"query": promql(query, over, values)}
    if query.instant:
        path, asked["time"] = "query", over.end_ms / 1000
    else:
        path = "query_range"
        asked |= {"start": over.start_ms / 1000, "end": over.end_ms / 1000, "step": over.interval_s}
    url = f"{base.rstrip('/')}/api/v1/{path}?{urllib.parse.urlencode(asked)}"
    try:
        with urllib.request.urlopen(url, timeout=_PROMETHEUS_S) as answer:
            result = json.load(answer)["data"]["result"]
    except urllib.error.HTTPError as error:
        said = error.read(2_000).decode("utf-8", "replace")
        raise Failure(f"Prometheus at {base} refuses: {said}") from None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Failure(f"Prometheus does not answer at {base}: {short(error)}",
                      "is --prometheus its address, as in http://host:9090?",
                      UNREACHABLE) from None  # fmt: skip
    rows = [
        (datetime.fromtimestamp(float(at), UTC), _legend(query, series["metric"]), float(value))
        for series in result
        for at, value in (series.get("values") or [series["value"]])
    ]
    rows.sort(key=lambda row: row[0])
    columns = [("time", "DateTime"), ("series", "String"), ("value", "Float64")]
    if query.instant:
        return columns[1:], [row[1:] for row in rows]
    return columns, rows


def _legend(query: Promql, labels: Mapping[str, str]) -> str:
    written = query.legend
    for name, value in labels.items():
        written = written.replace(f"{{{{{name}}}}}", value)
    return written or ", ".join(
        f"{name}={value}" for name, value in labels.items() if name != "__name__"
    )
