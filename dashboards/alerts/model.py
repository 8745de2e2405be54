"""What an alert consists of. Pure declarations: no Prometheus, no Grafana, no database.

An expression keeps ``fleet`` where there is one, and what tells deployments apart (the scope of
:mod:`dashboards.config`), or staging leaks into what wakes people. Gauges of several workers are
brought together as the catalogue of metrics says: depths are added, of ages the largest counts.
Where nothing is known an expression gives nothing, never 0: to be blind is an alert of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, Literal

from dashboards import config

#: ``critical`` wakes somebody; ``warning`` is a ticket.
Severity = Literal["critical", "warning"]
#: What Grafana is to make of a query without rows.
NoData = Literal["OK", "NoData", "Alerting"]

#: Dashboards that alerts lead to.
RUNNERS: Final = "runnerstream-runners"
JOBS: Final = "runnerstream-jobs"
ACT_RUNNER: Final = "runnerstream-act-runner"
SCHEDULER: Final = "runnerstream-scheduler"
RECONCILER: Final = "runnerstream-reconciler"
RECOVERY: Final = "runnerstream-recovery"
PIPELINE: Final = "runnerstream-pipeline"


def by(*labels: str) -> str:
    """``by (...)`` with the scope of deployments and these labels."""
    return f"by ({', '.join((*config.SCOPE, *labels))})"


@dataclass(frozen=True)
class Alert:
    """A rule over metrics.

    Attributes:
        expr: PromQL; true while it gives anything.
        pending: for how long it must be true, as Prometheus writes it; ``0m``: not at all.
        summary: what is wrong, without values.
        description: the same with what was measured, as a template of Prometheus.
        board: the dashboard that shows more.
    """

    name: str
    severity: Severity
    expr: str
    pending: str
    summary: str
    description: str
    board: str


@dataclass(frozen=True)
class Recording:
    """A series that alerts read. ``name``: level, metric, what was done to it."""

    name: str
    expr: str


@dataclass(frozen=True)
class SqlAlert:
    """A rule over ClickHouse, for Grafana.

    Its rows are the time, labels as strings, and one number. Of each label's the last number
    counts. Only macros that the datasource's backend knows.

    Attributes:
        uid: in Grafana, for ever.
        over_s: how far back the macros for time look.
        above: the rule fires where the number is larger.
        no_data: what no rows mean.
        description: a template of Grafana: ``$values.B.Value`` is the number.
    """

    name: str
    uid: str
    severity: Severity
    sql: str
    over_s: int
    above: float
    pending: str
    no_data: NoData
    summary: str
    description: str
    board: str


@dataclass(frozen=True)
class Group:
    """Rules that are evaluated together."""

    name: str
    alerts: tuple[Alert, ...]
    recordings: tuple[Recording, ...] = ()


@dataclass(frozen=True)
class SqlGroup:
    """The same for Grafana."""

    name: str
    alerts: tuple[SqlAlert, ...]


def one_of(parts: Iterable[str]) -> str:
    """Whichever of them gives something; of the same labels the first."""
    return "\nor\n".join(parts)
