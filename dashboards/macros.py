"""What Grafana's ClickHouse datasource makes of a query before ClickHouse sees it.

Written after the documentation and the behaviour of grafana-clickhouse-datasource 4.20, so that a
query can be asked, drawn and tested without a Grafana. Only the macros that we use are known; any
other is an error here, while the datasource would send it as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

#: What is chosen of a variable with several values when all are.
ALL: Final = "$__all"


class UnknownMacro(ValueError):
    """A query asks for what the datasource, or this port of it, does not know."""


@dataclass(frozen=True)
class Range:
    """What a panel looks at.

    Attributes:
        start_ms, end_ms: since the epoch.
        interval_s: seconds between two points of a series, as Grafana tells from width and range.
        chosen: values of variables; an empty sequence: all.
    """

    start_ms: int
    end_ms: int
    interval_s: int = 60
    chosen: Mapping[str, Sequence[str]] = field(default_factory=dict)


def expand(sql: str, over: Range) -> str:
    """The query as ClickHouse gets it. Raises :class:`UnknownMacro`."""
    sql = re.sub(r"--[^\n]*", "", sql)
    # The frontend goes first, as in Grafana: it alone knows what was chosen.
    sql = _frontend(sql, over)
    return _backend(sql, over)


def _frontend(sql: str, over: Range) -> str:
    def all_or(arguments: list[str]) -> str:
        if len(arguments) != 2:
            raise UnknownMacro("$__conditionalAll takes a condition and a variable")
        name = re.fullmatch(r"\$\{?(\w+)\}?", arguments[1].strip())
        if name is None:
            raise UnknownMacro(f"{arguments[1]!r} is not a plain variable")
        # As the datasource asks: an empty text is as good as all.
        return arguments[0] if ",".join(_values(name[1], over)) else "1=1"

    sql = _calls(sql, {"conditionalAll": all_or})

    def value(found: re.Match[str]) -> str:
        name = found["braced"] or found["plain"]
        if name.startswith("__"):
            return found[0]
        values = _values(name, over)
        form = found["form"]
        if form == "singlequote":
            return ",".join(_quoted(each) for each in values)
        if form in (None, "raw") and len(values) == 1:
            return values[0]
        if form in (None, "raw"):
            return ALL if not values else "{" + ",".join(values) + "}"
        raise UnknownMacro(f"the format {form!r} of ${{{name}}} is not one that is used here")

    return re.sub(r"\$(?:\{(?P<braced>\w+)(?::(?P<form>\w+))?\}|(?P<plain>\w+))", value, sql)


def _values(name: str, over: Range) -> Sequence[str]:
    try:
        return over.chosen[name]
    except KeyError:
        raise UnknownMacro(f"nothing is chosen for the variable ${name}") from None


def _quoted(value: str) -> str:
    # As Grafana's :singlequote does.
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _backend(sql: str, over: Range) -> str:
    start_s, end_s = over.start_ms // 1000, over.end_ms // 1000
    step = max(over.interval_s, 1)

    def time_filter(arguments: list[str]) -> str:
        [column] = arguments
        return f"{column} >= toDateTime({start_s}) AND {column} <= toDateTime({end_s})"

    def time_filter_ms(arguments: list[str]) -> str:
        [column] = arguments
        return (
            f"{column} >= fromUnixTimestamp64Milli({over.start_ms}) AND "
            f"{column} <= fromUnixTimestamp64Milli({over.end_ms})"
        )

    def time_interval(arguments: list[str]) -> str:
        [column] = arguments
        return f"toStartOfInterval(toDateTime({column}), INTERVAL {step} second)"

    known: dict[str, Callable[[list[str]], str]] = {
        "timeFilter": time_filter,
        "timeFilter_ms": time_filter_ms,
        "timeInterval": time_interval,
        "fromTime": lambda _: f"toDateTime({start_s})",
        "toTime": lambda _: f"toDateTime({end_s})",
        "fromTime_ms": lambda _: f"fromUnixTimestamp64Milli({over.start_ms})",
        "toTime_ms": lambda _: f"fromUnixTimestamp64Milli({over.end_ms})",
        "interval_s": lambda _: str(step),
    }
    sql = _calls(sql, known)
    left = re.search(r"\$[\w{][\w}:]*", sql)
    if left is not None:
        raise UnknownMacro(f"{left[0]} is left in the query")
    return sql.strip()


def _calls(sql: str, known: Mapping[str, Callable[[list[str]], str]]) -> str:
    """The query with its macros replaced, the outermost first; arguments may have parentheses."""
    found: list[str] = []
    rest = sql
    while (macro := re.search(r"\$__(\w+)", rest)) is not None:
        found.append(rest[: macro.start()])
        rest = rest[macro.end() :]
        make = known.get(macro[1])
        if make is None:
            found.append(macro[0])
            continue
        arguments: list[str] = []
        if rest.startswith("("):
            arguments, rest = _arguments(rest)
        try:
            found.append(make(arguments))
        except ValueError as error:
            if isinstance(error, UnknownMacro):
                raise
            raise UnknownMacro(f"{macro[0]} has the wrong number of arguments") from None
    return "".join(found) + rest


def _arguments(text: str) -> tuple[list[str], str]:
    """What stands in the parentheses that a text begins with, and what follows them."""
    depth, start, quoted = 0, 1, False
    arguments: list[str] = []
    for place, character in enumerate(text):
        if character == "'":
            quoted = not quoted
        if quoted:
            continue
        if character == "(":
            depth += 1
        elif character == ")":
            depth -= 1
            if depth == 0:
                last = text[start:place].strip()
                return [*arguments, *([last] if last or arguments else [])], text[place + 1 :]
        elif character == "," and depth == 1:
            arguments.append(text[start:place].strip())
            start = place + 1
    raise UnknownMacro("a parenthesis of a macro is not closed")
