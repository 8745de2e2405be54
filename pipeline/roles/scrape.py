"""The role ``scrape``: looks at the metrics of runners that cannot publish events.

The command of the same name is a program of its own, which may also look once and end.
"""

from __future__ import annotations

import logging
import logging.config
import threading
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit, urlunsplit

from pipeline.roles.role import Role, RoleFailed, http
from pipeline.roles.supervisor import Supervisor
from pipeline.settings import Settings
from pipeline.text import version

if TYPE_CHECKING:
    from pipeline.scrape import Scrape, Target

log = logging.getLogger(__name__)

#: An event's id holds the URL.
_LONGEST_URL: Final = 300


def run(settings: Settings, stop: threading.Event, beside: Supervisor) -> int:
    """Run it in this process until ``stop`` is set; the exit code.

    Raises :class:`RoleFailed` for settings that do not do, OSError when its port is taken.
    """
    from pipeline.faust_safe.app import logging_config
    from sinks.http import HealthServer

    service = scrape_of(settings)
    logging.config.dictConfig(logging_config(settings))
    # It has a line for every request.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    about = SCRAPE.deployment(settings)
    health = HealthServer(service, settings.web_bind, settings.scrape_port, about)
    log.info(
        "runnerstream %s, scrape of %d pages: Kafka %s, health at %s/readyz",
        version(), len(service.config.targets), settings.kafka,
        http(settings.web_bind, health.port),
    )  # fmt: skip
    try:
        beside.start()
        service.run(stop)
    finally:
        beside.stop()
        health.close()
    return 0


def scrape_of(settings: Settings) -> Scrape:
    """What the settings describe. Raises :class:`RoleFailed` unless they do."""
    from pipeline.scrape import Scrape, ScrapeConfig

    found = [each.strip() for each in settings.scrape_act_runners.split(",")]
    targets = tuple(dict.fromkeys(_target(each, settings) for each in found if each))
    if not targets:
        raise RoleFailed("no page is named: scrape_act_runners says which are looked at "
                         "(RUNNERSTREAM_SCRAPE_ACT_RUNNERS)")  # fmt: skip
    return Scrape(
        ScrapeConfig(
            targets=targets,
            kafka=settings.kafka_options(),
            client_id=SCRAPE.group(settings),
            interval_s=settings.scrape_interval,
        )
    )


def _target(told: str, settings: Settings) -> Target:
    from pipeline.scrape import Target

    fleet, url = settings.scrape_fleet, told
    if not told.startswith(("http://", "https://")) and "=" in told:
        fleet, _, url = told.partition("=")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise RoleFailed(f"{told[:100]} is no URL of a page") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or len(url) > _LONGEST_URL:
        raise RoleFailed(f"{told[:100]} is no URL of a page: write http://host:9101, or "
                         "fleet=http://host:9101")  # fmt: skip
    if parts.username is not None or parts.password is not None:
        raise RoleFailed(f"the page at {parts.hostname}:{port} has a login in its URL, which would "
                         "be part of every event's id")  # fmt: skip
    if not fleet:
        raise RoleFailed(f"{url} belongs to no fleet: say --fleet (scrape_fleet), or write "
                         f"FLEET={url}")  # fmt: skip
    path = parts.path if parts.path.strip("/") else "/metrics"
    found = Target(urlunsplit((parts.scheme, parts.netloc, path, parts.query, "")), fleet)
    if not all(0 < len(each) <= 200 and each.isprintable() for each in (fleet, found.runner)):
        raise RoleFailed(f"{told[:100]!r} has a name of more than 200 characters, or odd ones")
    return found


class _ScrapeRole(Role):
    """It is never among all roles: two that look at one page count twice what it says."""

    def wanted(self, settings: Settings) -> bool:
        return False


SCRAPE: Final = _ScrapeRole(
    "scrape",
    "looks at the metrics of runners that cannot publish, as the setting scrape_act_runners names "
    "them; only when asked for by name, because one process may look at a page",
    run,
    suffix="-scrape",
    port="scrape_port",
    needs_topics=True,
    optional=True,
    setting="scrape_act_runners",
)
