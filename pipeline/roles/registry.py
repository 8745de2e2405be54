"""Every role. One more is a file that declares it, and its place here."""

from __future__ import annotations

from typing import Final

from pipeline.roles.executor import EXECUTOR
from pipeline.roles.fold import FOLD
from pipeline.roles.gateway import GATEWAY
from pipeline.roles.prober import PROBER
from pipeline.roles.redeliver import REDELIVER
from pipeline.roles.relay import RELAY
from pipeline.roles.role import Role
from pipeline.roles.scrape import SCRAPE
from pipeline.roles.sink import SINK
from pipeline.settings import Settings

#: By name. The first runs in the worker's own process when all are wanted.
ROLES: Final[dict[str, Role]] = {
    role.name: role for role in (FOLD, SINK, PROBER, EXECUTOR, GATEWAY, RELAY, REDELIVER, SCRAPE)
}


def first() -> Role:
    """The role that runs in the worker's own process."""
    return next(iter(ROLES.values()))


def wanted(settings: Settings) -> list[Role]:
    """All roles that the settings want, the first of all first."""
    return [role for role in ROLES.values() if role.wanted(settings)]
