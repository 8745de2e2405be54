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
#: From this age on of a job that waits somebody is called. Seconds.
OLDEST_S: Final = 1_800
AGE_S: Final[tuple[Threshold, ...]] = ((None, "green"), (300, "yellow"), (OLDEST_S, "red"))
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

#: Where your Grafana is, for links in alerts.
GRAFANA: Final = "https://grafana.example.com"
#: The ClickHouse datasource that alerts ask: its uid, since they cannot choose one.
CLICKHOUSE_UID: Final = "runnerstream-clickhouse"
#: Labels that tell deployments apart where your Prometheus sees several. Those that no series has
#: do no harm.
SCOPE: Final = ("cluster", "env")
#: What your Prometheus calls the jobs that scrape us.
SCRAPE_JOBS: Final = "runnerstream.*"

#: Alerts. Of shares: fewer events than this say nothing.
FEW: Final = 20
#: Multi-window burn rates of the budget that QUEUE_SLO leaves: how many times too fast, over the
#: long and the short window. A 30-day budget would be gone in 2 days, 5 days, 10 days, 30 days.
BURNS: Final[tuple[tuple[float, str, str], ...]] = (
    (14.4, "1h", "5m"), (6, "6h", "30m"), (3, "1d", "2h"), (1, "3d", "6h"),
)  # fmt: skip
#: Jobs that wait may be cancelled, this share of them; work may be asked for, this much of what
#: can be done.
CANCELLED: Final = 0.2
OVERLOAD: Final = 1.0
#: A machine boots for no longer; a job runs for no longer. Seconds.
BOOT_S: Final = 1_800
RUN_S: Final = 6 * 3_600
#: Runners ask for work at least so often while jobs wait. Seconds.
ASKED_S: Final = 900
#: Share of calls, tries, runs that may fail before it is said.
FAILING: Final = 0.5
#: Calls of runners that fail, a second.
RPC_ERRORS: Final = 0.1
REPORT_S: Final = 2
BUFFER_ROWS: Final = 500
#: Orphans among the jobs that were claimed, of more than this many an hour.
ORPHANS: Final = 0.05
ORPHANS_AN_HOUR: Final = 5
#: What is in a wrong state is freed by then; with a signal 90 s, an orphan 6 min. Seconds.
FREED_S: Final = 1_800
PROBE_S: Final = 300
API_ERRORS: Final = 0.2
API_BUDGET: Final = 200
#: A run is planned within so many seconds; this share may take longer.
PLANNED_S: Final = (45, 120)
PLANNED_SHARE: Final = 0.05
PLAN_FAILURES: Final = 0.1
BACKLOG: Final = 500
RUN_OPEN_S: Final = 3_600
#: Of a reconciler: a tick, an open violation, open and reviewed work, events that wait.
TICK_S: Final = (0.5, 5)
VIOLATION_S: Final = 300
WORK_S: Final[Mapping[str, int]] = {"open": 300, "in_review": 900}
PENDING: Final = 50
TICKS_FAILING: Final = 0.2
#: Of the pipeline: how far behind, in seconds and records.
TICK_LAG_S: Final = 60
LAG_RECORDS: Final = 10_000
LOOP_LAG_S: Final = 1
LATE: Final = 0.05
RESTARTS_AN_HOUR: Final = 2
#: Of webhooks: how late, which share may be dropped or refused, deliveries that make a habit.
WEBHOOK_LAG_S: Final = 60
DROPPED: Final = 0.05
WEBHOOKS_EXPECTED: Final = 10
PASS_S: Final = 3_600
#: Of a repository: how much more fails than before.
FAILURES_RISE: Final = 0.25
#: Nothing new in ClickHouse for so long. Seconds.
FRESH_S: Final = 300
