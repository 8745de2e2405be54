"""The role ``relay``: posts webhooks on to a program that takes them by HTTP.

The command of the same name is a program of its own, with options beside the settings.
"""

from __future__ import annotations

import asyncio
import logging
import logging.config
import threading
from typing import TYPE_CHECKING, Final

from pipeline.addresses import beginning
from pipeline.roles.gateway import keyring_of
from pipeline.roles.role import Role, RoleFailed, http
from pipeline.roles.supervisor import Supervisor
from pipeline.settings import Settings
from pipeline.text import version
from topics.catalogue import WEBHOOKS

if TYPE_CHECKING:
    from pipeline.relay import Relay

log = logging.getLogger(__name__)


def run(settings: Settings, stop: threading.Event, beside: Supervisor) -> int:
    """Run the relay in this process until ``stop`` is set; the exit code.

    Raises :class:`RoleFailed` for settings that do not do, OSError when its port is taken.
    """
    import uvloop

    from pipeline.faust_safe.app import logging_config
    from sinks.http import HealthServer

    logging.config.dictConfig(logging_config(settings))
    # What matters of them is told once, and stands in /readyz.
    for name in ("aiokafka", "kafka"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    relay = relay_of(settings)
    about = RELAY.deployment(settings)
    health = HealthServer(relay, settings.web_bind, settings.relay_port, about, version())
    log.info(
        "runnerstream %s, relay of group %s: Kafka %s, to %s, health at %s/readyz",
        version(), relay.config.group_id, settings.kafka, relay.config.url,
        http(settings.web_bind, health.port),
    )  # fmt: skip
    try:
        beside.start()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(relay.run(stop))
    finally:
        beside.stop()
        health.close()
    return 0


def relay_of(settings: Settings) -> Relay:
    """The relay that the settings describe. Raises :class:`RoleFailed` unless they do."""
    from pipeline.relay import Filters, Relay, RelayConfig, Screen

    if not settings.relay_to:
        raise RoleFailed("relay_to is not set: it says where deliveries are posted "
                         "(RUNNERSTREAM_RELAY_TO)")  # fmt: skip
    group = RELAY.group(settings)
    config = RelayConfig(
        settings.kafka_options(),
        group,
        settings.relay_to,
        begin=beginning(settings.relay_from),
        max_age_s=settings.relay_max_age,
        timeout_s=settings.relay_timeout,
        at_once=settings.relay_at_once,
        refusals=frozenset(map(int, _named(settings.relay_refusals))),
        session_s=settings.session_timeout,
        rebalance_s=settings.rebalance_timeout,
    )
    filters = Filters(
        _named(settings.relay_events),
        _named(settings.relay_actions),
        frozenset(each.lower() for each in _named(settings.relay_labels)),
    )
    keys = None if settings.relay_unverified else keyring_of(settings)
    return Relay(config, Screen(keys, filters, group))


def _named(told: str) -> frozenset[str]:
    return frozenset(filter(None, (each.strip() for each in told.split(","))))


class _RelayRole(Role):
    """Its group is one of its own for each target."""

    def group(self, settings: Settings) -> str:
        """The setting ``relay_group``, if it is set."""
        return settings.relay_group or super().group(settings)


RELAY: Final = _RelayRole(
    "relay",
    "posts webhooks on by HTTP, when the setting relay_to says where",
    run,
    suffix="-relay",
    reads=(WEBHOOKS,),
    port="relay_port",
    needs_topics=True,
    optional=True,
    setting="relay_to",
)
