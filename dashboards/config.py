"""What dashboards and alerts share: datasources, thresholds, colours, prices, where runbooks are.

Whoever runs runnerstream changes it here and generates anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dashboards.model import Threshold, Variable

#: Kinds of datasources, and the variables that choose one of each.
CLICKHOUSE: Final = "grafana-clickhouse-datasource"
PROMETHEUS: Final = "prometheus"
CLICKHOUSE_VARIABLE: Final = "datasource"
PROMETHEUS_VARIABLE: Final = "prometheus"
#: The plugin whose macros the queries use.
PLUGIN_VERSION: Final = "4.20.0"

#: Where you publish docs/runbooks, one page an alert.
RUNBOOKS: Final = "https://example.com/runnerstream/runbooks"
#: Where your workers' pages are.
CONSOLE: Final = "https://example.com/runnerstream"

#: Jobs that have not ended are forgotten after so many days without news:
#: RUNNERSTREAM_UNFINISHED_RETENTION.
FORGOTTEN_D: Final = 70

#: Jobs should be claimed within so long, this share of them; per fleet. Seconds.
QUEUE_SLO_S: Final = 60
QUEUE_SLO: Final = 0.99

#: Thresholds that several panels have.
QUEUED: Final[tuple[Threshold, ...]] = ((None, "green"), (5, "yellow"), (25, "red"))
CLAIMED: Final[tuple[Threshold, ...]] = ((None, "green"), (3, "yellow"), (10, "red"))
AGE_S: Final[tuple[Threshold, ...]] = ((None, "green"), (300, "yellow"), (1_800, "red"))
UTILISATION: Final[tuple[Threshold, ...]] = ((None, "green"), (0.75, "yellow"), (0.95, "red"))
ANY_IS_BAD: Final[tuple[Threshold, ...]] = ((None, "green"), (1, "red"))
PLAIN: Final[tuple[Threshold, ...]] = ((None, "blue"),)

#: The same thing has the same colour everywhere.
COLOURS: Final[Mapping[str, str]] = {
    "success": "green", "failure": "red", "cancelled": "orange", "skipped": "text",
    "timed_out": "dark-red", "stale": "purple", "neutral": "blue", "action_required": "yellow",
    "unknown": "text", "p50": "green", "p95": "yellow", "p99": "red",
}  # fmt: skip

#: Cost of a minute by fleet, in the currency below; a fleet that is not named costs the last.
PRICES: Final[Mapping[str, float]] = {}
PRICE: Final = 0.008
CURRENCY: Final = "currencyUSD"

FLEET: Final = Variable("fleet", "Fleet", "SELECT DISTINCT fleet FROM jobs ORDER BY fleet")
#: Of whatever has a column ``fleet``.
OF_FLEET: Final = "$__conditionalAll(fleet IN (${fleet:singlequote}), $fleet)"
