"""Every role. One more is a file that declares it, and its place here."""

from __future__ import annotations

from typing import Final

from pipeline.roles.fold import FOLD
from pipeline.roles.prober import PROBER
from pipeline.roles.role import Role
from pipeline.roles.sink import SINK

#: By name. The first runs in the worker's own process when all are wanted.
ROLES: Final[dict[str, Role]] = {role.name: role for role in (FOLD, SINK, PROBER)}


def first() -> Role:
    """The role that runs in the worker's own process."""
    return next(iter(ROLES.values()))


def beside() -> list[Role]:
    """The roles that run in processes beside it."""
    return list(ROLES.values())[1:]
