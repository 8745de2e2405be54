"""Every fold of the worker, declared: its log, its tables, its ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from pipeline.fleet import FleetLedger
from pipeline.fold_spec import FoldSpec, Lookup
from pipeline.jobs import FleetNames
from pipeline.jobs.attributes import Attributes
from pipeline.ledger import Ledger, Retention
from pipeline.policies import policies
from pipeline.routes import Routes
from pipeline.settings import Settings
from pipeline.telemetry import TelemetryLedger
from pipeline.windows import WindowPolicy
from topics.catalogue import FLEETS, JOBS, TELEMETRY
from topics.events import TELEMETRY_RECORD
from topics.models import FLEETS_RECORD, JOBS_RECORD
from topics.recovery import Mode
from topics.tables import FLEETS_TABLE, JOBS_TABLE, TELEMETRY_TABLE, WINDOWS_TABLE

#: Makes a fold's declaration under the settings of a worker.
Declare = Callable[[Settings], FoldSpec[Any]]


def fleet_names(settings: Settings) -> FleetNames:
    """How the jobs' fold calls fleets."""
    routes = Routes(settings.routes)
    return FleetNames(settings.fleets, routes.fleet if routes.fleets else None)


def pool_names(settings: Settings) -> Callable[[str], str]:
    """The fleet that a pool is called."""
    names = fleet_names(settings)
    return lambda pool: names(Attributes(pool=pool))


def retention(settings: Settings) -> Retention:
    """How long the jobs' fold keeps jobs and runs."""
    return Retention(
        int(settings.completed_retention * 1000), int(settings.unfinished_retention * 1000)
    )


def jobs(settings: Settings) -> FoldSpec[Ledger]:
    """``runners.jobs`` -> job states, windows, samples."""
    fleets = fleet_names(settings)
    policy = WindowPolicy(int(settings.lateness * 1000), int(settings.grace * 1000))
    kept = retention(settings)
    rules = policies(settings.recovery_policies)[0]

    def new_ledger(partition: int, tables: Mapping[str, Lookup]) -> Ledger:
        return Ledger(
            partition,
            tables[JOBS_TABLE.name],
            fleets=fleets,
            windows=policy,
            retention=kept,
            max_fleets=settings.max_fleet_labels,
            policies=rules,
        )

    return FoldSpec(
        stage="fold",
        log=JOBS,
        records=JOBS_RECORD,
        tables=(JOBS_TABLE, WINDOWS_TABLE),
        new_ledger=new_ledger,
        writer="",
    )


def fleets(settings: Settings) -> FoldSpec[FleetLedger]:
    """``runners.fleets`` -> commands, decisions, facts about jobs and runners, fleet states."""
    known = policies(settings.recovery_policies, Mode(settings.recovery))[1]

    def new_ledger(partition: int, tables: Mapping[str, Lookup]) -> FleetLedger:
        return FleetLedger(partition, known)

    return FoldSpec(
        stage="fleets",
        log=FLEETS,
        records=FLEETS_RECORD,
        tables=(FLEETS_TABLE,),
        new_ledger=new_ledger,
        writer="fleets",
    )


def telemetry(settings: Settings) -> FoldSpec[TelemetryLedger]:
    """``runners.telemetry`` -> what is known of dispatchers, pools, runners and the like."""
    return FoldSpec(
        stage="telemetry",
        log=TELEMETRY,
        records=TELEMETRY_RECORD,
        tables=(TELEMETRY_TABLE,),
        new_ledger=lambda partition, tables: TelemetryLedger(partition),
        writer="telemetry",
    )


#: What a worker runs beside the jobs' fold, whose ledgers the views read.
OTHERS: Final[tuple[Declare, ...]] = (fleets, telemetry)
