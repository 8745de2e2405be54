"""The role ``prober``: asks providers about jobs that may be stuck."""

from __future__ import annotations

import logging
import logging.config
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipeline.roles.role import Role, RoleFailed, http
from pipeline.roles.supervisor import Supervisor
from pipeline.settings import Settings
from pipeline.text import version
from topics.catalogue import PROBES

if TYPE_CHECKING:
    from pipeline.prober.metrics import ProberMetrics
    from pipeline.providers.api import Client

log = logging.getLogger(__name__)


def run(settings: Settings, stop: threading.Event, beside: Supervisor) -> int:
    """Run the prober in this process until ``stop`` is set; the exit code.

    Raises :class:`RoleFailed` for a key of an App that is none, OSError when its port is taken.
    """
    from pipeline.faust_safe.app import logging_config
    from pipeline.prober.metrics import ProberMetrics
    from pipeline.prober.prober import Prober, ProberConfig
    from pipeline.providers.api import Unsupported
    from sinks.http import HealthServer

    logging.config.dictConfig(logging_config(settings))
    # It has a line for every request, and names what was asked.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    metrics = ProberMetrics()
    clients = clients_of(settings, metrics)
    nobody = Unsupported(
        "asks nobody: neither github_token nor github_app_id is set, so every answer is unknown"
    )
    kafka = {
        **settings.kafka_options(),
        "session_timeout_ms": int(settings.session_timeout * 1000),
        "heartbeat_interval_ms": max(500, int(settings.session_timeout * 100)),
        "max_poll_interval_ms": int(max(settings.rebalance_timeout, 1) * 1000),
    }
    prober = Prober(ProberConfig(kafka, PROBER.group(settings)), clients, nobody, metrics)
    about = PROBER.deployment(settings)
    health = HealthServer(prober, settings.web_bind, settings.prober_port, about)
    log.info(
        "runnerstream %s, prober of group %s: Kafka %s, health at %s/readyz",
        version(), PROBER.group(settings), settings.kafka, http(settings.web_bind, health.port),
    )  # fmt: skip
    for client in clients.values():
        log.info("it %s", client.about)
    if not clients:
        log.warning("it %s", nobody.about)
    try:
        beside.start()
        prober.run(stop)
    finally:
        beside.stop()
        health.close()
    return 0


def clients_of(settings: Settings, metrics: ProberMetrics) -> dict[str, Client]:
    """The clients that the settings have credentials for, by provider."""
    from pipeline.providers.github_api import GitHubApi
    from pipeline.providers.github_calls import App

    credentials: App | str = settings.github_token.get_secret_value()
    if settings.github_app_id:
        file = settings.github_app_key_file
        try:
            credentials = App.from_pem(settings.github_app_id, Path(file).read_bytes())
        except (OSError, ValueError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            raise RoleFailed(
                f"github_app_key_file: {file} {why} (RUNNERSTREAM_GITHUB_APP_KEY_FILE)"
            ) from None
    if not credentials:
        return {}
    github = GitHubApi(
        settings.github_host,
        credentials,
        base=settings.github_api_url,
        per_minute=settings.probes_per_minute,
        count=metrics.request,
    )
    return {"github": github}


PROBER: Final = Role(
    "prober",
    "asks GitHub about jobs that may be stuck",
    run,
    suffix="-prober",
    reads=(PROBES,),
    port="prober_port",
    optional=True,
)
