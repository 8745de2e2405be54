"""The role ``redeliver``: finds what no webhook told, and has it sent again or tells it.

The command of the same name is a program of its own, which may also make one pass and end.
"""

from __future__ import annotations

import logging
import logging.config
import threading
from typing import TYPE_CHECKING, Final

from pipeline.roles.prober import github_credentials
from pipeline.roles.role import Role, RoleFailed, http
from pipeline.roles.supervisor import Supervisor
from pipeline.settings import Settings
from pipeline.text import version

if TYPE_CHECKING:
    from pipeline.providers.deliveries import HookLog
    from pipeline.providers.github_calls import GitHubCalls
    from pipeline.providers.runs import RunLog
    from pipeline.redeliver.metrics import RedeliverMetrics
    from pipeline.redeliver.service import Redeliver

log = logging.getLogger(__name__)

#: What a repository of Gitea's begins with in the settings.
_GITEA: Final = "gitea:"
#: Requests of one pass, whatever the settings say of minutes.
_LEAST_CALLS: Final = 10


def run(settings: Settings, stop: threading.Event, beside: Supervisor) -> int:
    """Run it in this process until ``stop`` is set; the exit code.

    Raises :class:`RoleFailed` for settings that do not do, OSError when its port is taken.
    """
    from pipeline.faust_safe.app import logging_config
    from sinks.http import HealthServer

    service = redeliver_of(settings)
    logging.config.dictConfig(logging_config(settings))
    # It has a line for every request, and names what was asked.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    about = REDELIVER.deployment(settings)
    health = HealthServer(service, settings.web_bind, settings.redeliver_port, about, version())
    log.info(
        "runnerstream %s, redeliver of group %s: Kafka %s, health at %s/readyz",
        version(), REDELIVER.group(settings), settings.kafka, http(settings.web_bind, health.port),
    )  # fmt: skip
    try:
        beside.start()
        service.run(stop)
    finally:
        beside.stop()
        health.close()
    return 0


def redeliver_of(settings: Settings) -> Redeliver:
    """What the settings describe. Raises :class:`RoleFailed` unless they do."""
    from pipeline.providers.registry import PROVIDERS
    from pipeline.redeliver.metrics import RedeliverMetrics
    from pipeline.redeliver.missed import Policy
    from pipeline.redeliver.service import Redeliver, RedeliverConfig
    from pipeline.redeliver.store import StoreConfig

    metrics = RedeliverMetrics()
    hooks, repos = _asked(settings, metrics)
    per_pass = int(settings.redeliver_per_minute * settings.redeliver_every / 60)
    config = RedeliverConfig(
        StoreConfig(settings.member_options(), REDELIVER.group(settings)),
        # What only the API says is in no list of deliveries.
        tuple(event for event in PROVIDERS["github"].events if not event.startswith("api_")),
        Policy(
            lookback=int(settings.redeliver_lookback * 1000),
            pause=int(2 * settings.redeliver_every * 1000),
            pass_calls=max(_LEAST_CALLS, per_pass),
        ),
        runs_lookback=int(settings.reconcile_lookback * 1000),
        every_s=settings.redeliver_every,
    )
    return Redeliver(config, hooks, repos, metrics)


def _asked(settings: Settings, metrics: RedeliverMetrics) -> tuple[list[HookLog], list[RunLog]]:
    """The hooks and repositories that the settings name."""
    hooks, repos = _several(settings.redeliver_hooks), _several(settings.reconcile_repos)
    if not hooks and not repos:
        raise RoleFailed(
            "neither redeliver_hooks nor reconcile_repos is set: they say whose deliveries and "
            "runs are looked through (RUNNERSTREAM_REDELIVER_HOOKS, ..._RECONCILE_REPOS)"
        )
    calls = _calls(settings, metrics)
    return (
        [_hook(settings, each, calls) for each in hooks],
        [_repo(settings, each, calls, metrics) for each in repos],
    )


def _hook(settings: Settings, told: str, calls: GitHubCalls | None) -> HookLog:
    from pipeline.providers.github_hooks import GitHubHook

    if calls is None or (told == "app" and not settings.github_app_id):
        needed = "github_app_id" if told == "app" else "github_app_id or github_token"
        raise RoleFailed(f"redeliver_hooks names {told}, and {needed} is not set: GitHub is asked "
                         "with it")  # fmt: skip
    try:
        return GitHubHook(settings.github_host, told, calls)
    except ValueError as error:
        raise RoleFailed(f"redeliver_hooks {error} (RUNNERSTREAM_REDELIVER_HOOKS)") from None


def _repo(
    settings: Settings, told: str, calls: GitHubCalls | None, metrics: RedeliverMetrics
) -> RunLog:
    from pipeline.providers.gitea_api import GiteaApi, gitea_calls
    from pipeline.providers.gitea_runs import GiteaRuns
    from pipeline.providers.github_api import GitHubApi
    from pipeline.providers.github_runs import GitHubRuns

    of_gitea = told.removeprefix(_GITEA)
    if of_gitea != told and GiteaApi.repos.fullmatch(of_gitea):
        url, token = settings.gitea_url, settings.gitea_token.get_secret_value()
        if not url:
            raise RoleFailed(f"reconcile_repos names {told}, and gitea_url is not set")
        each = gitea_calls(url, token, settings.redeliver_per_minute, metrics.request)
        return GiteaRuns(url, of_gitea, each)
    if not GitHubApi.repos.fullmatch(told):
        raise RoleFailed("reconcile_repos names what is no repository: write owner/repo or "
                         "gitea:owner/repo "
                         "(RUNNERSTREAM_RECONCILE_REPOS)")  # fmt: skip
    if calls is None:
        raise RoleFailed(f"reconcile_repos names {told}, and github_app_id or github_token is not "
                         "set: GitHub is asked with it")  # fmt: skip
    return GitHubRuns(settings.github_host, told, calls)


def _calls(settings: Settings, metrics: RedeliverMetrics) -> GitHubCalls | None:
    from pipeline.providers.github_api import api_base
    from pipeline.providers.github_calls import GitHubCalls

    credentials = github_credentials(settings)
    if not credentials:
        return None
    base = settings.github_api_url or api_base(settings.github_host)
    return GitHubCalls(base, credentials, settings.redeliver_per_minute, metrics.request)


def _several(told: str) -> list[str]:
    return list(dict.fromkeys(filter(None, (each.strip() for each in told.split(",")))))


class _RedeliverRole(Role):
    """It is wanted for either of its two tasks."""

    def wanted(self, settings: Settings) -> bool:
        return bool(settings.redeliver_hooks or settings.reconcile_repos)


REDELIVER: Final = _RedeliverRole(
    "redeliver",
    "has webhooks sent again that never came, and tells what none told, when the setting "
    "redeliver_hooks or reconcile_repos names some",
    run,
    suffix="-redeliver",
    port="redeliver_port",
    needs_topics=True,
    optional=True,
    setting="redeliver_hooks",
)
