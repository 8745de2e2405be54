"""``relay``: post webhooks on by HTTP."""

from __future__ import annotations

import signal
import sys
import threading

import click

from pipeline.commands.context import Context, Duration
from pipeline.commands.failure import FAILED, Failure
from pipeline.commands.worker import end_with_stdin, require_topics, when_reachable
from pipeline.roles import RoleFailed
from pipeline.roles.relay import relay_of, run
from pipeline.roles.supervisor import Supervisor


@click.command()
@click.option("--to", "relay_to", help="Where: http(s)://host/path.")
@click.option("--group", "relay_group",
              help="Consumer group, one for each target.  [default: APP_ID-relay]")  # fmt: skip
@click.option("--event", "relay_events", multiple=True,
              help="Only this event (workflow_job); may be repeated.")  # fmt: skip
@click.option("--action", "relay_actions", multiple=True,
              help="Only this action (queued); may be repeated.")  # fmt: skip
@click.option("--label", "relay_labels", multiple=True,
              help="Only jobs that ask for this label, or one of several.")  # fmt: skip
@click.option("--from", "relay_from",
              help="Where a new group begins: latest, earliest, or a time.")  # fmt: skip
@click.option("--max-age", "relay_max_age", type=Duration(),
              help="Older deliveries become dead letters.")  # fmt: skip
@click.option("--unverified", "relay_unverified", is_flag=True, default=None,
              help="Pass on without a look at signatures.")  # fmt: skip
@click.option("--secrets", "webhook_secrets_dir", help="Directory with the secrets of webhooks.")
@click.option("--port", "relay_port", type=click.IntRange(0, 65535),
              help="Port of health and metrics; 0 picks one.")  # fmt: skip
@click.option("--wait", "patience", type=Duration(), default="30s", show_default=True,
              help="How long to wait for Kafka at the start.")  # fmt: skip
@click.option("--until-stdin-closes", is_flag=True, hidden=True)
@click.pass_obj
def relay(
    context: Context,
    /,
    patience: float,
    until_stdin_closes: bool,
    relay_events: tuple[str, ...],
    relay_actions: tuple[str, ...],
    relay_labels: tuple[str, ...],
    **options: str | int | float | bool | None,
) -> None:
    """Post webhooks on by HTTP until told to stop (Ctrl-C or SIGTERM).

    What its provider signed, with headers and body as they came, in order per job, until the target
    answers 2xx: to a program that takes webhooks itself, also those sent while it was down.
    """
    filters = {
        "relay_events": relay_events, "relay_actions": relay_actions, "relay_labels": relay_labels,
    }  # fmt: skip
    settings = context.with_overrides(
        **options, **{name: ",".join(each) or None for name, each in filters.items()}
    )
    if until_stdin_closes:
        end_with_stdin()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        # What is missing or wrong is told before Kafka is waited for.
        relay_of(settings)
        when_reachable(lambda: require_topics(settings), patience)
        sys.exit(run(settings, stop, Supervisor({})))
    except RoleFailed as error:
        raise Failure(str(error)) from None
    except OSError as error:
        raise Failure(
            f"cannot listen for health at port {settings.relay_port}: {error.strerror or error}",
            "choose another with --port (0 picks one)",
            FAILED,
        ) from None
