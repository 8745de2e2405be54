"""``executor``: do what recovery commands, in one way or another."""

from __future__ import annotations

import logging
import logging.config
import os
import signal
import threading
from pathlib import Path
from typing import Any

import click

from pipeline.commands.connections import kafka_admin, web_url, worker_url
from pipeline.commands.context import Context, Duration
from pipeline.commands.failure import FAILED, USAGE, Failure
from pipeline.commands.output import cell, on_terminal, say
from pipeline.commands.worker import end_with_stdin
from pipeline.executor import Executor, ExecutorConfig, Print, States, Via, parts
from pipeline.executor.github import ACTIONS
from pipeline.faust_safe.app import logging_config
from pipeline.roles.executor import Way, via_of
from pipeline.settings import Settings
from pipeline.text import version
from sinks.http import HealthServer
from topics.keys import GITHUB_HOST
from topics.recovery import Command, CommandKind

log = logging.getLogger(__name__)

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option(
    "--via",
    "way",
    type=click.Choice(["print", "hook", "redeliver", "github"]),
    required=True,
    help="print: show them. hook: a signed HTTP call to a program of yours. redeliver: the job's"
    " first webhook once more, to your autoscaler. github: GitHub's API.",
)
@click.option("--to", "url", help="Where hook and redeliver post.")
@click.option("--secret-file", type=_FILE, help="What hook and redeliver sign with.")
@click.option("--allow", default="", help=f"What github may do: {', '.join(ACTIONS)}.")
@click.option("--token-file", type=_FILE, envvar="GITHUB_TOKEN_FILE",
              help="Token for github.  [default: the variable GITHUB_TOKEN]")  # fmt: skip
@click.option("--host", default=GITHUB_HOST, show_default=True, help="Whose jobs github acts on.")
@click.option("--api-url", help="GitHub's API.  [default: where GitHub has that of the host]")
@click.option("--report", type=click.Choice(["done"]), help="print reports commands as this.")
@click.option("--only", multiple=True, type=click.Choice([each.value for each in CommandKind]),
              help="Only these commands; may be repeated.  [default: all]")  # fmt: skip
@click.option("--check", help="The worker that knows jobs.  [default: the one of the settings]")
@click.option("--group", help="Consumer group.  [default: APP_ID-executor-VIA]")
@click.option("--lease", type=Duration(), default="45s", show_default=True,
              help="Silence after which whoever began a command counts as dead.")  # fmt: skip
@click.option("--port", type=click.IntRange(0, 65535),
              help="Port of health and metrics; 0 picks one.  [default: none]")  # fmt: skip
@click.option("--until-stdin-closes", is_flag=True, hidden=True)
@click.pass_obj
def executor(
    context: Context,
    /,
    way: str,
    only: tuple[str, ...],
    check: str | None,
    group: str | None,
    lease: float,
    port: int | None,
    until_stdin_closes: bool,
    **options: Any,
) -> None:
    """Execute recovery's commands until told to stop (Ctrl-C or SIGTERM).

    Each once: a command is checked against the job as a worker knows it, and written down before it
    is done. Several executors in different ways share the commands with --only.
    """
    settings = context.settings
    if until_stdin_closes:
        end_with_stdin()
    stop = threading.Event()
    via = _via(settings, way, options, stop)
    config = ExecutorConfig(
        settings.member_options(),
        group or f"{settings.app_id}-executor-{way}",
        frozenset(map(CommandKind, only)) or frozenset(CommandKind),
        lease_s=lease,
    )
    states = States(worker_url(settings) if check is None else web_url(check))
    made = Executor(config, stop, *((via, states) if via is not None else (None, None, show)))
    logging.config.dictConfig(logging_config(settings))
    logging.getLogger("httpx").setLevel(logging.WARNING)
    if context.verbose < 2:
        # It logs each attempt to connect; what matters of that is told once.
        logging.getLogger("kafka").setLevel(logging.CRITICAL)
    with kafka_admin(settings):
        pass
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    health = None if port is None else _health(made, settings, port, config.group_id)
    told = "" if health is None else f", health on port {health.port}"
    log.info(
        "runnerstream %s, executor of group %s: Kafka %s%s",
        version(), config.group_id, settings.kafka, told,
    )  # fmt: skip
    try:
        made.run()
    finally:
        if health is not None:
            health.close()


def show(command: Command, note: str) -> None:
    """A command as a line. On a terminal its parts are told apart by colour."""
    told = [cell(each) for each in parts(command, note) if each]
    if on_terminal():
        styles: tuple[dict[str, Any], ...] = (
            {"dim": True}, {"bold": True, "fg": "yellow"}, {"bold": True}, {}, {"dim": True},
            {"fg": "cyan"}, {"fg": "magenta"},
        )  # fmt: skip
        told = [click.style(each, **style) for each, style in zip(told, styles, strict=False)]
    say("  ".join(told))


def _via(
    settings: Settings, way: str, options: dict[str, Any], stop: threading.Event
) -> Via | None:
    """What executes; None only shows. Raises :class:`Failure` with code 2 for what is missing."""
    if way == "print":
        return Print(show) if options["report"] else None
    if way == "github":
        allow = [each.strip() for each in options["allow"].split(",") if each.strip()]
        wrong = sorted(set(allow) - set(ACTIONS))
        if wrong or not allow:
            raise Failure(
                f"--allow names {', '.join(map(cell, wrong)) or 'nothing'}",
                f"name what it may do, comma-separated: {', '.join(ACTIONS)}",
                USAGE,
            )
        api, token = _url(options["api_url"], "--api-url"), _token(options["token_file"])
        made = Way(way, allow=tuple(allow), token=token, host=options["host"], api=api)
        return via_of(made, settings, stop)
    if options["url"] is None or options["secret_file"] is None:
        raise Failure(
            f"--via {way} needs --to and --secret-file",
            "the address that it posts to, and a file with the secret that the receiver checks",
            USAGE,
        )
    url, secret = _url(options["url"], "--to"), _secret(options["secret_file"])
    return via_of(Way(way, url, secret), settings, stop)


def _url(given: str | None, option: str) -> str:
    if given is None:
        return ""
    try:
        return web_url(given)
    except Failure:
        raise Failure(f"{option} is no address", "write http(s)://host/path", USAGE) from None


def _secret(file: Path) -> bytes:
    try:
        secret = file.read_bytes().strip()
    except OSError as error:
        raise Failure(f"--secret-file {file}: {error.strerror}", exit_code=USAGE) from None
    if not secret:
        raise Failure(f"--secret-file {file} is empty: anybody could sign", exit_code=USAGE)
    return secret


def _token(file: Path | None) -> Any:
    """Gives the token, read anew each time so that it can be renewed in place."""
    if file is None:
        token = os.environ.get("GITHUB_TOKEN", "").strip()
        if not token:
            raise Failure("there is no token for GitHub", "set GITHUB_TOKEN, or --token-file",
                          USAGE)  # fmt: skip
        return lambda repo: token
    _secret(file)
    return lambda repo: file.read_text().strip()


def _health(made: Executor, settings: Settings, port: int, group: str) -> HealthServer:
    about = {"group": group, "kafka": ",".join(sorted(settings.bootstrap))}
    try:
        return HealthServer(made, settings.web_bind, port, about, version())
    except OSError as error:
        raise Failure(
            f"cannot listen on {settings.web_bind}:{port}: {error.strerror or error}",
            "choose another with --port (0 picks one)",
            FAILED,
        ) from None
