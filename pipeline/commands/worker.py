"""``runnerstream worker``: the roles that are asked for, each in a process.

Of several the first runs here and every other in a child process that the supervisor keeps running.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

import click

from pipeline.commands.connections import clickhouse_url, local_url, topics_plan
from pipeline.commands.context import Context, Duration
from pipeline.commands.failure import FAILED, UNREACHABLE, USAGE, Failure
from pipeline.commands.worker_ready import tell_when_ready
from pipeline.compat.names import NAMES
from pipeline.roles import ROLES, Role, RoleFailed, first, wanted
from pipeline.roles.supervisor import Supervisor, command
from pipeline.settings import Settings

#: From SIGTERM to the end when whoever started us is gone: the servers may be gone with it.
#: Seconds.
_ORPHAN_GRACE_S: Final = 1.5


def _port_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """An option for the port of each role."""
    for role in reversed(ROLES.values()):
        if role.port:
            what = "views" if role is first() else f"{role.name}'s health"
            function = click.option(
                role.option,
                role.port,
                type=click.IntRange(0, 65535),
                help=f"Port of the {what}; 0 picks one.",
            )(function)
    return function


class _Roles(click.Choice[str]):
    """One of the roles, several with commas between them, or all."""

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        names = [super(_Roles, self).convert(each.strip(), param, ctx)
                 for each in str(value).split(",")]  # fmt: skip
        return "all" if "all" in names else ",".join(name for name in ROLES if name in names)


@click.command()
@click.option(
    "--role",
    "asked",
    type=_Roles(["all", *ROLES]),
    default="all",
    show_default=True,
    help=" ".join(f"{role.name}: {role.does}." for role in ROLES.values())
    + " all: those that the settings want. Several with commas between them: each in a process.",
)
@_port_options
@click.option(
    "--wait",
    "patience",
    type=Duration(),
    default="30s",
    show_default=True,
    help="How long to wait for Kafka at the start.",
)
@click.option(
    "--compat",
    help="Systems by whose names /metrics/compat serves metrics, comma-separated: some of "
    f"{', '.join(NAMES)}.",
)
@click.option("--until-stdin-closes", is_flag=True, hidden=True)
@click.pass_obj
def worker(
    context: Context,
    /,
    asked: str,
    patience: float,
    until_stdin_closes: bool,
    compat: str | None,
    **ports: int | None,
) -> None:
    """Run a worker until it is told to stop (Ctrl-C or SIGTERM).

    Several workers with the same settings share the work; each needs a port of its own.
    """
    settings = context.with_overrides(compat=compat, **ports)
    if until_stdin_closes:
        end_with_stdin()
    role, *others = (
        wanted(settings) if asked == "all" else [ROLES[name] for name in asked.split(",")]
    )
    stop = threading.Event()
    if not role.own_signals:
        # Faust's would not come after ours: it keeps handlers that it finds.
        _set_on_signals(stop)
    if any(each.needs_clickhouse for each in (role, *others)):
        clickhouse_url(settings)
    if role.needs_topics:
        when_reachable(lambda: require_topics(settings), patience)
    if role.port and role.port_of(settings) == 0:
        ports[role.port] = _free_port(settings.web_bind)
        settings = context.with_overrides(compat=compat, **ports)
    if role.port:
        _require_free(settings.web_bind, role.port_of(settings), role)
    sys.exit(_run(role, settings, stop, _supervisor(context, settings, others)))


def _run(role: Role, settings: Settings, stop: threading.Event, supervisor: Supervisor) -> int:
    """Run a role here, and say when it is ready."""
    over = threading.Event()
    if role.port:
        here = local_url(settings.web_bind, role.port_of(settings))
        tell_when_ready(here, role.url(settings), over)
    try:
        return role.run(settings, stop, supervisor)
    except RoleFailed as error:
        raise Failure(str(error)) from None
    finally:
        over.set()


def _supervisor(context: Context, settings: Settings, roles: list[Role]) -> Supervisor:
    """What runs the roles beside this process."""
    options = ["-v"] * context.verbose
    if context.config is not None:
        options += ["--config", str(context.config)]
    return Supervisor(
        {
            role.name: command(
                role.name,
                options,
                # The first's as well: it may be known from an option of ours only.
                [(each.option, each.port_of(settings)) for each in (first(), role) if each.port],
            )
            for role in roles
        }
    )


def _set_on_signals(stop: threading.Event) -> None:
    """Have SIGTERM and SIGINT set the event."""

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)


def require_topics(settings: Settings) -> None:
    """Raise :class:`Failure` unless every topic exists as the settings want it."""
    found = topics_plan(settings)
    if found.mismatches:
        raise Failure(
            "topics contradict the settings:\n  " + "\n  ".join(map(str, found.mismatches))
        )
    if found.create:
        raise Failure(
            f"topics are missing: {', '.join(spec.name for spec in found.create)}",
            "create them with `runnerstream topics apply`",
        )


def when_reachable(check: Callable[[], None], patience: float) -> None:
    """Run ``check``, again and again while what it needs cannot be reached.

    SIGTERM and Ctrl-C end the program meanwhile.
    """
    deadline = time.monotonic() + patience
    told = False
    with _ended_by_signals():
        while True:
            try:
                return check()
            except Failure as failure:
                if failure.exit_code != UNREACHABLE or time.monotonic() >= deadline:
                    raise
                if not told:
                    click.echo(f"waiting up to {patience:g} s: {failure.message}", err=True)
                    told = True
                time.sleep(0.5)


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGINT end the program, with the code that shells give it.

    Without a handler the first process of a container does not hear SIGTERM at all; and those of
    roles only note it, for later.
    """

    def end(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    ours = threading.current_thread() is threading.main_thread()
    numbers = (signal.SIGTERM, signal.SIGINT) if ours else ()
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_stdin() -> None:
    """End this process when its standard input closes: then the process that started it is gone."""

    def watch() -> None:
        with contextlib.suppress(OSError, ValueError):
            while os.read(0, 4096):
                pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_ORPHAN_GRACE_S)
        os._exit(FAILED)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def _free_port(host: str) -> int:
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _require_free(host: str, port: int, role: Role) -> None:
    try:
        with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise Failure(
            f"setting {role.port}: cannot listen on {host}:{port}: {error.strerror or error}",
            f"choose another with {role.option} (0 picks one) "
            f"or RUNNERSTREAM_{str(role.port).upper()}",
            USAGE if isinstance(error, socket.gaierror) else FAILED,
        ) from None


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
