"""``scrape``: look at the metrics of runners that cannot publish events."""

from __future__ import annotations

import signal
import sys
import threading

import click

from pipeline.commands.context import Context, Duration
from pipeline.commands.failure import FAILED, Failure
from pipeline.commands.worker import end_with_stdin, require_topics, when_reachable
from pipeline.roles import RoleFailed
from pipeline.roles.scrape import run, scrape_of
from pipeline.roles.supervisor import Supervisor
from pipeline.settings import Settings


@click.command()
@click.argument("what", type=click.Choice(["act-runner"]))
@click.argument("urls", nargs=-1)
@click.option("--fleet", "scrape_fleet", help="The fleet of URLs that name none (FLEET=URL).")
@click.option("--interval", "scrape_interval", type=Duration(),
              help="From one look at a page to the next.")  # fmt: skip
@click.option("--once", is_flag=True, help="Look once, say what was seen, and end.")
@click.option("--port", "scrape_port", type=click.IntRange(0, 65535),
              help="Port of health and metrics; 0 picks one.")  # fmt: skip
@click.option("--wait", "patience", type=Duration(), default="30s", show_default=True,
              help="How long to wait for Kafka at the start.")  # fmt: skip
@click.option("--until-stdin-closes", is_flag=True, hidden=True)
@click.pass_obj
def scrape(
    context: Context,
    /,
    what: str,
    urls: tuple[str, ...],
    once: bool,
    patience: float,
    until_stdin_closes: bool,
    **options: str | float | int | None,
) -> None:
    """Look at the /metrics of act_runner or gitea_runner, and tell what it says as events.

    Goes on until told to stop (Ctrl-C or SIGTERM). Let one process look at a page: two count what
    it says twice. Without URLs those of the setting scrape_act_runners.
    """
    settings = context.with_overrides(scrape_act_runners=",".join(urls) or None, **options)
    if until_stdin_closes:
        end_with_stdin()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        # What is missing or wrong is told before Kafka is waited for.
        scrape_of(settings)
        when_reachable(lambda: require_topics(settings), patience)
        sys.exit(_once(settings, stop) if once else run(settings, stop, Supervisor({})))
    except RoleFailed as error:
        raise Failure(str(error)) from None
    except OSError as error:
        raise Failure(
            f"cannot listen for health at port {settings.scrape_port}: {error.strerror or error}",
            "choose another with --port (0 picks one)",
            FAILED,
        ) from None


def _once(settings: Settings, stop: threading.Event) -> int:
    """One look at each page; 1 when one could not be read."""
    service = scrape_of(settings)
    service.run(stop, once=True)
    blind = service.status().blind
    for each in service.config.targets:
        said = f"not read: {blind[each.url]}" if each.url in blind else "read"
        click.echo(f"{each.url}: {said}; runner {each.runner} of fleet {each.fleet}")
    return int(bool(blind))
