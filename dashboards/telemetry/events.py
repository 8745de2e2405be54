"""SQL that the dashboards of runners, schedulers and reconcilers share, with Grafana's macros.

Three things hold in all of it. What is counted or added up is read with FINAL, since who sends an
event again writes it again; the latest, the first and the last of something are the same however
often it was said, and FINAL would read all of a fleet to find the rows of an hour. An end that is
told under two ids counts once. A level at a time is that of the latest word
of each key before it, for as long as such a word holds; then nothing is known.

Levels are told at marks, each full minute, as they are at that instant, and of several marks in one
point of a series the largest counts: so a sum over keys is never a sum over minutes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from dashboards.config import OF_FLEET
from dashboards.model import Sql, Variable

#: The end of what is looked at. To look back is to ask how it was then.
NOW: Final = "$__toTime_ms"
#: An instant that never comes.
NEVER: Final = "toDateTime64('2200-01-01', 3, 'UTC')"
#: Events within the range, and with what was before it and still is.
WITHIN: Final = f"$__timeFilter_ms(occurred_at) AND {OF_FLEET}"


def latest(value: str) -> str:
    """What the latest event of a group says, NULL included; of numbers that are not negative.

    ``argMax`` leaves NULL out, and of a tuple it costs five times as much.
    """
    return f"toUInt64(nullIf(argMax(ifNull(toInt64({value}), -1), occurred_at), -1))"


def latest_time(value: str, where: str = "1") -> str:
    """The same of a time, of the events for which a condition holds; NULL when of none."""
    ms = f"argMaxIf(ifNull(toUnixTimestamp64Milli({value}), 0), occurred_at, {where})"
    return f"fromUnixTimestamp64Milli(nullIf({ms}, 0), 'UTC')"


def series(*texts: str) -> tuple[Sql, ...]:
    """Queries of a panel over time."""
    return tuple(Sql(text) for text in texts)


def rows(text: str) -> tuple[Sql, ...]:
    """The query of a table, or of a number as it is at the end of the range."""
    return (Sql(text, "table"),)


def variable(name: str, label: str, table: str, where: str = "1") -> Variable:
    """What is chosen at the top: the values of a column within the range."""
    return Variable(
        name,
        label,
        f"SELECT DISTINCT {name} FROM {table} WHERE {where} AND $__timeFilter(occurred_at) "
        f"ORDER BY {name}",
    )


def before(end: str = NOW, back: str = "6 HOUR") -> str:
    """The events of so long before an instant of the range, and up to its end."""
    return f"occurred_at >= {end} - INTERVAL {back} AND occurred_at <= $__toTime_ms AND {OF_FLEET}"


def one_by(columns: str) -> str:
    """The clause that leaves one row for each value of the columns; none without columns.

    By a hash of them: ClickHouse keeps what it has seen, and texts of a month are more than a
    reader may have in memory. Of a tuple, which has a hash also where one of them is NULL.
    """
    return f" LIMIT 1 BY cityHash64((fleet, {columns}))" if columns else ""


def once_each(limit: str) -> str:
    """How a table is read so that each event counts once, given a LIMIT BY that may see to it."""
    return "" if limit else " FINAL"


def told(
    table: str, kind: str, once: str = "", where: str = "1", columns: str = "*", seen: str = ""
) -> str:
    """Events of a kind within the range; ``once``: what ends and counts once, by columns.

    ``seen``: see :func:`witness`.
    """
    limit = one_by(once)
    source = (
        f"(SELECT {columns} FROM {table}{once_each(limit)} WHERE kind = '{kind}' AND {where}"
        f" AND {WITHIN}"
        f"{limit})"
    )
    return either(source, witness(table, seen)) if seen else source


def witness(table: str, kind: str) -> str:
    """An event a minute of a kind that the same programs tell all the time.

    Where there is one and none of what is asked for, there was none, which is known: then a series
    is at 0, and not left out. Without FINAL: that it is there is all that it says.
    """
    return (
        f"(SELECT * FROM {table} WHERE kind = '{kind}' AND {WITHIN} "
        "LIMIT 1 BY toStartOfMinute(occurred_at))"
    )


def either(*sources: str) -> str:
    """The rows of all of these."""
    return f"({' UNION ALL '.join(sources)})"


def rates(source: str, values: Mapping[str, str], per: int = 1, where: str = "1") -> str:
    """How often something happened, by name of the series, in so many seconds.

    ``values`` are sums or counts. Nothing between two points is 0, and is drawn so.
    """
    each = ",\n  ".join(
        f"{what} * {per} / $__interval_s AS {name}" for name, what in values.items()
    )
    return f"""SELECT $__timeInterval(occurred_at) AS time,
  {each}
FROM {source}
WHERE {where}
GROUP BY time ORDER BY time WITH FILL STEP $__interval_s"""


def counts(column: str, values: Iterable[str]) -> dict[str, str]:
    """For :func:`rates`: rows by a value of a column."""
    return {value: f"countIf({column} = '{value}')" for value in values}


def quantiles(
    source: str, ms: str = "duration_ms", unit: float = 1, by: str = "", where: str = "1"
) -> str:
    """p50, p95 and p99 of raw durations in ms, each ``n`` times; by a column of strings."""
    label = f", {by}" if by else ""
    return f"""SELECT time{label}, p[1] AS p50, p[2] AS p95, p[3] AS p99
FROM (
  SELECT $__timeInterval(occurred_at) AS time{label},
    arrayMap(q -> q / {unit:g}, quantilesExactWeighted(0.5, 0.95, 0.99)({ms}, n)) AS p
  FROM {source} WHERE {ms} IS NOT NULL AND {where}
  GROUP BY time{label}
) ORDER BY time"""


#: From mark to mark, in ms: a minute; in long ranges some, six marks to a point of a series.
_MARK_MS: Final = "(greatest(1, intDiv($__interval_s, 360)) * 60000)"


def _next(at: str) -> str:
    return f"toUInt32(intDiv(toUnixTimestamp64Milli({at}) + {_MARK_MS} - 1, {_MARK_MS}))"


#: The instant of a mark, and the first one after an event, as its number.
AT: Final = f"fromUnixTimestamp64Milli(toInt64(mark) * {_MARK_MS}, 'UTC')"
NEXT_MARK: Final = _next("occurred_at")


def marks(begin: str, end: str) -> str:
    """The marks of the range, as numbers, at which something was that lasted that long."""
    end = f"least({end}, {NOW} + toIntervalMillisecond(1))"
    return f"range({_next(f'greatest({begin}, $__fromTime_ms)')}, {_next(end)})"


def recent(minutes: str) -> str:
    """Whether an event is believed for so long that it is at the mark ``m`` after it."""
    return f"m * {_MARK_MS} - toUnixTimestamp64Milli(occurred_at) <= {minutes} * 60000"


def held(samples: str, keys: str, minutes: str) -> str:
    """Rows of samples, one a key and mark, again at each ``mark`` at which they are believed.

    ``samples`` has a column ``m``: the first mark after the sample.
    """
    last = f"toUInt32(m + greatest(1, intDiv({minutes} * 60000, {_MARK_MS})))"
    return f"""(
  SELECT *, mark FROM (
    SELECT *, leadInFrame(m, 1, {last}) OVER (
      PARTITION BY {keys} ORDER BY m ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING) AS next
    FROM {samples}
  ) ARRAY JOIN range(m, least(next, {last})) AS mark
  WHERE {AT} >= $__fromTime_ms AND {AT} <= {NOW}
)"""


def over_time(source: str, values: Mapping[str, str], by: str = "") -> str:
    """Levels by mark as a series: ``source`` has a column ``mark``, one row a key and mark.

    Of several marks in a point the largest counts.
    """
    label = f", {by}" if by else ""
    inner = ", ".join(f"{value} AS {name}_" for name, value in values.items())
    outer = ", ".join(f"max({name}_) AS {name}" for name in values)
    return f"""SELECT $__timeInterval(at) AS time{label}, {outer}
FROM (
  SELECT mark, {AT} AS at{label}, {inner}
  FROM {source}
  GROUP BY mark{label}
)
GROUP BY time{label} ORDER BY time"""
