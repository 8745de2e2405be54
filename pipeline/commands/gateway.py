"""``gateway``: take webhooks by HTTP."""

from __future__ import annotations

import signal
import sys
import threading

import click

from pipeline.commands.context import Context, Duration
from pipeline.commands.failure import FAILED, Failure
from pipeline.commands.worker import end_with_stdin, require_topics, when_reachable
from pipeline.roles import RoleFailed
from pipeline.roles.gateway import gateway_of, run
from pipeline.roles.supervisor import Supervisor


@click.command()
@click.option("--listen", "gateway_listen", help="Where: HOST:PORT; port 0 picks one.")
@click.option("--cert-file", "gateway_cert_file", help="Certificate for HTTPS (PEM).")
@click.option("--key-file", "gateway_key_file", help="Its key (PEM).")
@click.option("--secrets", "webhook_secrets_dir", help="Directory with the secrets of webhooks.")
@click.option("--allow", "gateway_allow", help="Networks that may connect.")
@click.option("--port", "gateway_port", type=click.IntRange(0, 65535),
              help="Port of health and metrics; 0 picks one.")  # fmt: skip
@click.option("--wait", "patience", type=Duration(), default="30s", show_default=True,
              help="How long to wait for Kafka at the start.")  # fmt: skip
@click.option("--until-stdin-closes", is_flag=True, hidden=True)
@click.pass_obj
def gateway(
    context: Context, /, patience: float, until_stdin_closes: bool, **options: str | int | None
) -> None:
    """Take webhooks by HTTP and write them to Kafka until told to stop (Ctrl-C or SIGTERM).

    POST /webhooks/PROVIDER. What is signed with a known secret is answered 2xx once Kafka has it.
    """
    settings = context.with_overrides(**options)
    if until_stdin_closes:
        end_with_stdin()
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        # What is missing or wrong is told before Kafka is waited for.
        gateway_of(settings)
        when_reachable(lambda: require_topics(settings), patience)
        sys.exit(run(settings, stop, Supervisor({})))
    except RoleFailed as error:
        raise Failure(str(error)) from None
    except OSError as error:
        told = f"cannot listen at {settings.gateway_listen}, or for health at port "
        raise Failure(
            f"{told}{settings.gateway_port}: {error.strerror or error}",
            "choose others with --listen and --port (0 picks one)",
            FAILED,
        ) from None
