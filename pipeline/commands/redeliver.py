"""``redeliver``: have webhooks sent again that never came."""

from __future__ import annotations

import signal
import sys
import threading

import click

from pipeline.commands.context import Context, Duration
from pipeline.commands.failure import FAILED, Failure
from pipeline.commands.worker import end_with_stdin, require_topics, when_reachable
from pipeline.roles import RoleFailed
from pipeline.roles.redeliver import redeliver_of, run
from pipeline.roles.supervisor import Supervisor
from pipeline.settings import Settings


@click.command()
@click.option("--hooks", "redeliver_hooks", help="Hooks: app, owner/repo:ID, organisation:ID.")
@click.option("--repos", "reconcile_repos", help="Repositories whose runs are looked through.")
@click.option("--once", is_flag=True, help="Make one pass, say what it came to, and end.")
@click.option("--port", "redeliver_port", type=click.IntRange(0, 65535),
              help="Port of health and metrics; 0 picks one.")  # fmt: skip
@click.option("--wait", "patience", type=Duration(), default="30s", show_default=True,
              help="How long to wait for Kafka at the start.")  # fmt: skip
@click.option("--until-stdin-closes", is_flag=True, hidden=True)
@click.pass_obj
def redeliver(
    context: Context,
    /,
    once: bool,
    patience: float,
    until_stdin_closes: bool,
    **options: str | int | None,
) -> None:
    """Find webhooks that never came, and ask the provider to send them again.

    Looks through lists of deliveries and of runs until told to stop (Ctrl-C or SIGTERM).
    """
    settings = context.with_overrides(**options)
    if until_stdin_closes:
        end_with_stdin()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        # What is missing or wrong is told before Kafka is waited for.
        redeliver_of(settings)
        when_reachable(lambda: require_topics(settings), patience)
        sys.exit(_once(settings, stop) if once else run(settings, stop, Supervisor({})))
    except RoleFailed as error:
        raise Failure(str(error)) from None
    except OSError as error:
        raise Failure(
            f"cannot listen for health at port {settings.redeliver_port}: "
            f"{error.strerror or error}",
            "choose another with --port (0 picks one)",
            FAILED,
        ) from None


def _once(settings: Settings, stop: threading.Event) -> int:
    """One pass over each; 1 when one did not come to its end."""
    from pipeline.redeliver.fill import Pass

    service = redeliver_of(settings)
    service.run(stop, once=True)
    for name, done in sorted(service.passes.items()):
        if isinstance(done, Pass):
            news = done.news
            told = (f"{done.looked} attempts looked at; {len(news.found)} found that never came, "
                    f"{sum(done.asked.values())} asked for, {len(news.filled)} came, "
                    f"{len(news.given_up)} given up")  # fmt: skip
        else:
            told = f"{done.runs} runs had something new, {done.facts} facts posted"
        click.echo(f"{name}: {told}{f'; {done.trouble}' if done.trouble else ''}")
    for name in service.left_to_others:
        click.echo(f"{name}: another process looks after it")
    return int(any(done.trouble for done in service.passes.values()))
