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
    from pipeline.providers.github_calls import App

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
    others = Unsupported(unasked(settings))
    config = ProberConfig(settings.member_options(), PROBER.group(settings))
    prober = Prober(config, clients, others, metrics)
    about = PROBER.deployment(settings)
    health = HealthServer(prober, settings.web_bind, settings.prober_port, about, version())
    log.info(
        "runnerstream %s, prober of group %s: Kafka %s, health at %s/readyz",
        version(), PROBER.group(settings), settings.kafka, http(settings.web_bind, health.port),
    )  # fmt: skip
    for client in clients.values():
        log.info("it %s", client.about)
    log.log(logging.INFO if clients else logging.WARNING, "it %s", others.about)
    try:
        beside.start()
        prober.run(stop)
    finally:
        beside.stop()
        health.close()
    return 0


def clients_of(settings: Settings, metrics: ProberMetrics) -> dict[str, Client]:
    """The clients that the settings have credentials for, by where jobs live.

    Raises :class:`RoleFailed` for a key of an App that is none.
    """
    from pipeline.providers.gitea_api import GiteaApi
    from pipeline.providers.github_api import GitHubApi
    from pipeline.providers.gitlab_api import GitLabApi
    from pipeline.providers.rest import RestClient

    found: list[RestClient] = []
    per_minute, count = settings.probes_per_minute, metrics.request
    credentials = github_credentials(settings)
    if credentials:
        found.append(
            GitHubApi(
                settings.github_host, credentials, base=settings.github_api_url,
                per_minute=per_minute, count=count,
            )
        )  # fmt: skip
    if settings.gitea_url:
        token = settings.gitea_token.get_secret_value()
        found.append(GiteaApi(settings.gitea_url, token, per_minute=per_minute, count=count))
    if settings.gitlab_url:
        token = settings.gitlab_token.get_secret_value()
        found.append(GitLabApi(settings.gitlab_url, token, per_minute=per_minute, count=count))
    return {client.place: client for client in found}


def unasked(settings: Settings) -> str:
    """What is not asked, and which settings would change that."""
    missing = {
        "GitHub (github_token, or github_app_id)": (
            settings.github_token.get_secret_value() or settings.github_app_id
        ),
        "Gitea (gitea_url)": settings.gitea_url,
        "GitLab (gitlab_url)": settings.gitlab_url,
    }
    named = [name for name, given in missing.items() if not given]
    others = "" if len(named) == len(missing) else "other hosts"
    return "does not ask about jobs of " + ", ".join(filter(None, (*named, others)))


def github_credentials(settings: Settings) -> App | str:
    """The App or the token for GitHub; empty for neither.

    Raises :class:`RoleFailed` for a key of an App that is none.
    """
    from pipeline.providers.github_calls import App

    if not settings.github_app_id:
        return settings.github_token.get_secret_value()
    file = settings.github_app_key_file
    try:
        return App.from_pem(settings.github_app_id, Path(file).read_bytes())
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise RoleFailed(
            f"github_app_key_file: {file} {why} (RUNNERSTREAM_GITHUB_APP_KEY_FILE)"
        ) from None


PROBER: Final = Role(
    "prober",
    "asks providers about jobs that may be stuck",
    run,
    suffix="-prober",
    reads=(PROBES,),
    port="prober_port",
    optional=True,
)
