"""Queries for series as dashboards draw them: a value in every interval, explicit zeros.

What did not happen in an interval is 0 there, not a gap, so each label that occurs at all has a
value everywhere. That is right for what is counted, and for nothing else.
"""

from __future__ import annotations

from typing import Final

from dashboards.model import Promql

#: True where somebody has written to ClickHouse lately: else a count of 0 says nothing.
FRESH: Final = """(SELECT count() FROM gauges
  WHERE occurred_at > $__toTime - INTERVAL 5 MINUTE AND occurred_at <= $__toTime) > 0"""
#: What is rare is counted in intervals of so many seconds at least.
RARE_S: Final = 300
#: Processes of ours among all that Prometheus knows.
OURS: Final = "and on (job, instance) runnerstream_build_info"


def interval(at: str, least_s: int = 1) -> str:
    """SQL: the beginning of the interval that a time lies in, as ``$__timeInterval`` gives it.

    Unlike that it takes any expression, macros as well.

    Args:
        least_s: an interval has at least so many seconds. For quantiles of what is rare, where a
            minute has one or two values.
    """
    size = _size(least_s)
    return f"toDateTime(intDiv(toUnixTimestamp({at}), {size}) * {size})"


def _size(least_s: int) -> str:
    return "$__interval_s" if least_s <= 1 else f"greatest({least_s}, $__interval_s)"


def _grid(least_s: int = 1) -> str:
    size = _size(least_s)
    begun = f"toUnixTimestamp({interval('$__fromTime', least_s)})"
    return f"toDateTime(arrayJoin(range({begun}, toUnixTimestamp($__toTime) + 1, {size})))"


def counted(events: str, at: str, label: str, name: str) -> str:
    """SQL: how many events each interval has, by label; of 5 minutes at least, for what is rare.

    Args:
        events: SQL whose rows have the columns ``at`` (within the range) and ``label``.
        name: of the values.
    """
    return f"""WITH events AS (
{events}
)
SELECT time, {label}, sum(number) AS {name}
FROM (
  SELECT {interval(f"assumeNotNull({at})", RARE_S)} AS time, {label}, count() AS number
  FROM events GROUP BY ALL
  UNION ALL
  SELECT {_grid(RARE_S)}, {label}, 0
  FROM (SELECT DISTINCT {label} FROM events)
)
GROUP BY time, {label}
ORDER BY time, {label}"""


def level(spells: str, begun: str, ended: str, label: str, name: str) -> str:
    """SQL: how many spells are on at the end of each interval, by label.

    Args:
        spells: SQL whose rows have the columns ``begun``, ``ended`` (NULL: not yet) and ``label``,
            of spells that were on at some time within the range. One that ended before it began
            never was.
        name: of the values.
    """
    return f"""WITH spells AS (
{spells}
)
SELECT time, {label}, sum(sum(change)) OVER (PARTITION BY {label} ORDER BY time) AS {name}
FROM (
  SELECT step.1 AS time, {label}, step.2 AS change
  FROM spells
  ARRAY JOIN arrayConcat(
    [({interval(f"greatest({begun}, $__fromTime)")}, 1)],
    if(ifNull({ended} <= $__toTime, 0),
      [({interval(f"assumeNotNull({ended})")}, -1)], [])) AS step
  WHERE {ended} IS NULL OR {ended} > {begun}
  UNION ALL
  SELECT {_grid()}, {label}, 0 FROM (SELECT DISTINCT {label} FROM spells)
)
GROUP BY time, {label}
ORDER BY time, {label}"""


def rate(metric: str, *labels: str, where: str = "") -> Promql:
    """How often something happens, a second, by labels."""
    return _over("rate", metric, labels, where)


def times(metric: str, *labels: str, where: str = "") -> Promql:
    """How often something rare happened within the interval, by labels."""
    return _over("increase", metric, labels, where)


def _over(function: str, metric: str, labels: tuple[str, ...], where: str) -> Promql:
    text = f"sum{_by(labels)} ({function}({metric}{_chosen(where)}[$__rate_interval]))"
    return Promql(text, " ".join(f"{{{{{label}}}}}" for label in labels) or metric)


def quantiles(histogram: str, where: str = "") -> tuple[Promql, ...]:
    """p50, p95 and p99 of a histogram over all processes."""
    return tuple(quantile(histogram, of, where=where) for of in (0.5, 0.95, 0.99))


def quantile(histogram: str, of: float, *labels: str, where: str = "") -> Promql:
    """One quantile of a histogram, by labels."""
    by = ", ".join(("le", *labels))
    inner = f"sum by ({by}) (rate({histogram}_bucket{_chosen(where)}[$__rate_interval]))"
    legend = " ".join(f"{{{{{label}}}}}" for label in labels) or f"p{of * 100:.0f}"
    return Promql(f"histogram_quantile({of}, {inner})", legend)


def _by(labels: tuple[str, ...]) -> str:
    return f" by ({', '.join(labels)})" if labels else ""


def _chosen(where: str) -> str:
    return f"{{{where}}}" if where else ""
