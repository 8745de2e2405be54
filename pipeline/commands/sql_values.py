"""Values from ClickHouse without loss, and the formats in which ``sql`` writes them.

clickhouse-driver makes Python's values, and some of them hold less: a ``datetime`` ends at
microseconds and is made through a float, and a ``Float32`` becomes the double next to it, with
eleven digits that nobody stored. Inside of :func:`exactly` these columns are read as what
ClickHouse itself would write.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from decimal import Decimal
from typing import Any, Final

from clickhouse_driver.columns import service
from clickhouse_driver.columns.datetimecolumn import DateTime64Column, DateTimeColumn
from clickhouse_driver.columns.floatcolumn import Float32Column

from pipeline.commands.output import cell, print_table, say, text_of, to_json, width_of

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@contextmanager
def exactly() -> Iterator[None]:
    """Have the driver read times and single floats without loss, as long as this lasts. Times are
    text then, as ClickHouse writes them in the time zone of their column."""
    made, single = service.create_datetime_column, service.column_by_type["Float32"]
    exact: dict[type, Any] = {kind: _exact(kind) for kind in (DateTimeColumn, DateTime64Column)}

    def create(spec: str, options: dict[str, Any]) -> Any:
        column = made(spec, options)
        zone = column.timezone or _zone(options["context"].server_info.get_timezone())
        return exact[type(column)](column, zone, options)

    service.create_datetime_column = create
    service.column_by_type["Float32"] = _Float32
    try:
        yield
    finally:
        service.create_datetime_column = made
        service.column_by_type["Float32"] = single


def _zone(name: str | None) -> tzinfo:
    from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

    try:
        return ZoneInfo(name) if name else UTC
    except (ZoneInfoNotFoundError, ValueError):
        return UTC


class _Float32(Float32Column):  # type: ignore[misc]
    def after_read_items(self, items: Sequence[float], nulls_map: Any = None) -> tuple[Any, ...]:
        return tuple(
            None if nulls_map is not None and nulls_map[i] else shortest(value)
            for i, value in enumerate(items)
        )


def shortest(single: float) -> float:
    """The double with the fewest digits that is the same single-precision number."""
    if not math.isfinite(single):
        return single
    raw = struct.pack("f", single)
    for digits in range(1, 10):
        found = float(f"{single:.{digits}g}")
        try:
            if struct.pack("f", found) == raw:
                return found
        except OverflowError:
            continue
    return single


def _exact(kind: type) -> Callable[[Any, tzinfo, dict[str, Any]], Any]:
    scaled = issubclass(kind, DateTime64Column)
    base: Any = DateTime64Column if scaled else DateTimeColumn

    class Exact(base):  # type: ignore[misc]
        def __init__(self, like: Any, zone: tzinfo, options: dict[str, Any]) -> None:
            more = {"scale": like.scale} if scaled else {}
            own = {k: v for k, v in options.items() if k != "scale"}
            super().__init__(timezone=like.timezone, **more, **own)
            self.zone = zone
            self.digits = like.scale if scaled else 0

        def after_read_items(self, items: Sequence[int], nulls_map: Any = None) -> tuple[Any, ...]:
            return tuple(
                None
                if nulls_map is not None and nulls_map[i]
                else moment(item, self.digits, self.zone)
                for i, item in enumerate(items)
            )

    return Exact


def moment(number: int, digits: int, zone: tzinfo) -> str:
    """A count of ``10**-digits`` seconds since 1970 as ClickHouse writes it."""
    seconds, fraction = divmod(number, 10**digits)
    at = (_EPOCH + timedelta(seconds=seconds)).astimezone(zone)
    text = at.replace(tzinfo=None).isoformat(sep=" ", timespec="seconds")
    return f"{text}.{fraction:0{digits}d}" if digits else text


# -- as text ---------------------------------------------------------------------------------------


def shown(value: Any, nested: bool = False) -> str:
    """A value as ClickHouse writes it, all its digits included."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return number(value)
    if isinstance(value, Decimal):
        return f"{value:f}"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, Mapping):
        pairs = (f"{shown(k, True)}:{shown(v, True)}" for k, v in value.items())
        return f"{{{','.join(pairs)}}}"
    if isinstance(value, tuple):
        return f"({','.join(shown(each, True) for each in value)})"
    if isinstance(value, list):
        return f"[{','.join(shown(each, True) for each in value)}]"
    text = text_of(value) if isinstance(value, bytes) else str(value)
    if not nested:
        return text
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def number(value: float) -> str:
    """The shortest text that is this double again; whole ones without ``.0``."""
    if math.isnan(value):
        return "nan"
    if math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return repr(value).removesuffix(".0")


# -- formats ---------------------------------------------------------------------------------------

Columns = Sequence[tuple[str, str]]
Rows = Iterable[Sequence[Any]]
Format = Callable[[Columns, Rows], int]


def _is_number(kind: str) -> bool:
    while kind.startswith(("Nullable(", "LowCardinality(")):
        kind = kind.partition("(")[2]
    return kind.startswith(("Int", "UInt", "Float", "Decimal"))


def _each(rows: Rows, write: Callable[[Sequence[Any]], None]) -> int:
    """Write every row; how many they were."""
    count = 0
    for row in rows:
        write(row)
        count += 1
    return count


def as_table(columns: Columns, rows: Rows) -> int:
    """Aligned columns, a line a row."""
    kept = [[shown(value) for value in row] for row in rows]
    right = [i for i, (_, kind) in enumerate(columns) if _is_number(kind)]
    print_table([name for name, _ in columns], kept, right=right)
    return len(kept)


def as_vertical(columns: Columns, rows: Rows) -> int:
    """A line a value: for rows that are wider than the terminal."""
    widest = max((width_of(cell(name)) for name, _ in columns), default=0)
    count = 0
    for count, row in enumerate(rows, 1):
        if count > 1:
            say()
        say(f"Row {count}:\n──────")
        for (name, _), value in zip(columns, row, strict=True):
            label = f"{cell(name)}:"
            # Only what would steer the terminal is escaped: lines stay lines.
            text = "\n".join(cell(line) for line in shown(value).split("\n"))
            say(f"{label}{' ' * (widest + 2 - width_of(label))}{text}")
    return count


def _names(columns: Columns) -> list[str]:
    """Names of columns, each one once: an object cannot hold two of a name."""
    found: list[str] = []
    for name, _ in columns:
        unique, n = name, 1
        while unique in found:
            n += 1
            unique = f"{name}_{n}"
        found.append(unique)
    return found


def as_json_lines(columns: Columns, rows: Rows) -> int:
    """A JSON object a row."""
    names = _names(columns)
    return _each(rows, lambda row: say(to_json(dict(zip(names, row, strict=True)))))


def as_json_compact(columns: Columns, rows: Rows) -> int:
    """A JSON array a row."""
    return _each(rows, lambda row: say(to_json(list(row))))


def as_json(columns: Columns, rows: Rows) -> int:
    """One JSON object with the columns, the rows and how many they are."""
    names = _names(columns)
    data = [dict(zip(names, row, strict=True)) for row in rows]
    meta = [{"name": name, "type": kind} for name, kind in columns]
    say(to_json({"meta": meta, "data": data, "rows": len(data)}, indent=1))
    return len(data)


_TSV: Final = str.maketrans(
    {"\\": "\\\\", "\t": "\\t", "\n": "\\n", "\r": "\\r", "\b": "\\b", "\f": "\\f", "\0": "\\0"}
)


def _tsv(value: Any) -> str:
    return "\\N" if value is None else shown(value).translate(_TSV)


def _csv(value: Any) -> str:
    if value is None:
        return "\\N"
    text = shown(value)
    if isinstance(value, (bool, int, float, Decimal)):
        return text
    return '"' + text.replace('"', '""') + '"'


def _raw(value: Any) -> str:
    return shown(value)


def _separated(write: Callable[[Any], str], between: str, names: bool) -> Format:
    def run(columns: Columns, rows: Rows) -> int:
        if names:
            say(between.join(write(name) for name, _ in columns))
        return _each(rows, lambda row: say(between.join(write(value) for value in row)))

    return run


def as_markdown(columns: Columns, rows: Rows) -> int:
    """A table of Markdown."""

    def line(values: Iterable[Any]) -> str:
        return f"| {' | '.join(cell(shown(v)).replace('|', chr(92) + '|') for v in values)} |"

    say(line(name for name, _ in columns))
    say(f"|{'|'.join('-:' if _is_number(kind) else ':-' for _, kind in columns)}|")
    return _each(rows, lambda row: say(line(row)))


def as_null(columns: Columns, rows: Rows) -> int:
    """Nothing: for how long a query takes."""
    return sum(1 for _ in rows)


#: The formats of ``FORMAT``, by their names in small letters.
FORMATS: Final[Mapping[str, Format]] = {
    **dict.fromkeys(("pretty", "prettycompact", "prettyspace", "prettymonoblock",
                     "prettycompactmonoblock", "prettynoescapes"), as_table),
    "vertical": as_vertical,
    **dict.fromkeys(("jsoneachrow", "ndjson", "jsonlines"), as_json_lines),
    "jsoncompacteachrow": as_json_compact,
    "json": as_json,
    **dict.fromkeys(("tsv", "tabseparated"), _separated(_tsv, "\t", False)),
    **dict.fromkeys(("tsvwithnames", "tabseparatedwithnames"), _separated(_tsv, "\t", True)),
    **dict.fromkeys(("tsvraw", "tabseparatedraw", "lineasstring"), _separated(_raw, "\t", False)),
    "csv": _separated(_csv, ",", False),
    "csvwithnames": _separated(_csv, ",", True),
    "markdown": as_markdown,
    "null": as_null,
}  # fmt: skip
#: The same for people.
FORMAT_NAMES: Final = (
    "Pretty", "Vertical", "JSONEachRow", "JSONCompactEachRow", "JSON", "TSV", "TSVWithNames",
    "TSVRaw", "CSV", "CSVWithNames", "Markdown", "Null",
)  # fmt: skip
