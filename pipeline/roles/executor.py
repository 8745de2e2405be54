"""The role ``executor``: does what recovery commands, in the way that the settings say.

The command of the same name is a program of its own, with options instead of settings, and is made
of the same parts. Whichever ways run, each has a consumer group.
"""

from __future__ import annotations

import logging
import logging.config
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipeline.roles.role import Role, RoleFailed, http
from pipeline.roles.supervisor import Supervisor
from pipeline.settings import Settings
from pipeline.text import version
from topics.catalogue import COMMANDS
from topics.recovery import Command, CommandKind

if TYPE_CHECKING:
    from pipeline.executor import Executor, Via

log = logging.getLogger(__name__)

#: Stands for the way in a name of a consumer group.
_WAY: Final = "VIA"


@dataclass(frozen=True)
class Way:
    """How commands are executed.

    Attributes:
        name: as ``--via`` takes it.
        url: where ``hook`` and ``redeliver`` post.
        secret: what they sign with.
        allow: what ``github`` may do.
        token: gives its token for a repository.
        host: whose jobs it acts on.
        api: where that host's API is; empty: where GitHub has it.
    """

    name: str
    url: str = ""
    secret: bytes = field(default=b"", repr=False)
    allow: tuple[str, ...] = ()
    token: Callable[[str], str] = lambda repo: ""
    host: str = ""
    api: str = ""


def via_of(way: Way, settings: Settings, stop: threading.Event) -> Via | None:
    """What executes in that way; None for ``print``, which only shows."""
    from pipeline.executor import GitHub, Hook, Redeliver
    from pipeline.executor.deliveries import Deliveries

    if way.name == "print":
        return None
    if way.name == "github":
        return GitHub(way.allow, way.token, way.host, way.api)
    if way.name == "hook":
        return Hook(way.url, way.secret)
    client = f"{settings.app_id}-executor-search"
    secrets, trusted = settings.webhook_secrets(), settings.trust_envelopes
    deliveries = Deliveries(settings.member_options(), client, secrets, trusted, stop)
    return Redeliver(way.url, way.secret, deliveries)


def run(settings: Settings, stop: threading.Event, beside: Supervisor) -> int:
    """Run the executor in this process until ``stop`` is set; the exit code.

    Raises :class:`RoleFailed` for settings that do not do, OSError when its port is taken.
    """
    from pipeline.faust_safe.app import logging_config
    from sinks.http import HealthServer

    executor = executor_of(settings, stop)
    logging.config.dictConfig(logging_config(settings))
    # It has a line for every request, and names what was asked.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    group = EXECUTOR.group(settings)
    about = EXECUTOR.deployment(settings)
    health = HealthServer(executor, settings.web_bind, settings.executor_port, about, version())
    log.info(
        "runnerstream %s, executor of group %s: Kafka %s, health at %s/readyz",
        version(), group, settings.kafka, http(settings.web_bind, health.port),
    )  # fmt: skip
    try:
        beside.start()
        executor.run()
    finally:
        beside.stop()
        health.close()
    return 0


def executor_of(settings: Settings, stop: threading.Event) -> Executor:
    """The executor that the settings describe. Raises :class:`RoleFailed` unless they do."""
    from pipeline.executor import Executor, ExecutorConfig, States
    from pipeline.roles.fold import FOLD

    via = via_of(way_of(settings), settings, stop)
    config = ExecutorConfig(settings.member_options(), EXECUTOR.group(settings), _only(settings))
    if via is None:
        return Executor(config, stop, show=_show)
    return Executor(config, stop, via, States(FOLD.url(settings)))


def way_of(settings: Settings) -> Way:
    """How the settings want commands executed. Raises :class:`RoleFailed` for what is missing."""
    name = settings.executor_via
    if not name:
        raise RoleFailed("executor_via is not set: it says in which way commands are executed "
                         "(RUNNERSTREAM_EXECUTOR_VIA)")  # fmt: skip
    if name == "print":
        return Way(name)
    if name == "github":
        from pipeline.executor.github import ACTIONS

        allow = _named("executor_allow", settings.executor_allow, ACTIONS)
        if not allow:
            raise RoleFailed("executor_allow is empty: name what it may do, some of "
                             f"{', '.join(ACTIONS)} (RUNNERSTREAM_EXECUTOR_ALLOW)")  # fmt: skip
        file = settings.executor_token_file
        _secret("executor_token_file", file)
        return Way(
            name, allow=allow, token=lambda repo: Path(file).read_text("utf-8").strip(),
            host=settings.github_host, api=settings.github_api_url,
        )  # fmt: skip
    if not settings.executor_to:
        raise RoleFailed(f"executor_via is {name}, and executor_to is not set: the address that it "
                         "posts to (RUNNERSTREAM_EXECUTOR_TO)")  # fmt: skip
    secret = _secret("executor_secret_file", settings.executor_secret_file)
    return Way(name, settings.executor_to, secret)


def _only(settings: Settings) -> frozenset[CommandKind]:
    known = [each.value for each in CommandKind]
    named = _named("executor_only", settings.executor_only, known) or known
    return frozenset(map(CommandKind, named))


def _named(setting: str, told: str, known: Iterable[str]) -> tuple[str, ...]:
    names = tuple(each.strip() for each in told.split(",") if each.strip())
    if not set(names) <= set(known):
        raise RoleFailed(f"{setting} names what there is not: name some of {', '.join(known)}, "
                         f"comma-separated (RUNNERSTREAM_{setting.upper()})")  # fmt: skip
    return names


def _secret(setting: str, file: str) -> bytes:
    """What a file holds. No message shows any of it."""
    variable = f"(RUNNERSTREAM_{setting.upper()})"
    try:
        secret = Path(file).read_bytes().strip() if file else b""
    except OSError as error:
        raise RoleFailed(f"{setting}: {file}: {error.strerror} {variable}") from None
    if not secret:
        told = f"{file} is empty" if file else "is not set"
        raise RoleFailed(f"{setting}: {told} {variable}")
    return secret


def _show(command: Command, note: str) -> None:
    from pipeline.executor import parts

    log.info("%s", "  ".join(each for each in parts(command, note) if each))


class _ExecutorRole(Role):
    """Its group is that of its way, as it is of the command of the same name."""

    def group(self, settings: Settings) -> str:
        return super().group(settings).replace(_WAY, settings.executor_via or _WAY)


EXECUTOR: Final = _ExecutorRole(
    "executor",
    "does what recovery commands, when the setting executor_via says in which way",
    run,
    suffix=f"-executor-{_WAY}",
    reads=(COMMANDS,),
    port="executor_port",
    optional=True,
    setting="executor_via",
)
