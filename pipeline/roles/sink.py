"""The role ``sink``: states to ClickHouse."""

from __future__ import annotations

import logging
import logging.config
import threading
from typing import Final

from pipeline.roles.role import Role, RoleFailed, http
from pipeline.roles.supervisor import Supervisor
from pipeline.settings import Settings
from pipeline.text import version
from sinks.rows import TOPICS

log = logging.getLogger(__name__)


def run(settings: Settings, stop: threading.Event, beside: Supervisor) -> int:
    """Run the sink in this process until ``stop`` is set; the exit code.

    Raises :class:`RoleFailed` when the tables do not fit, OSError when its port is taken.
    """
    from pipeline.faust_safe.app import logging_config
    from sinks.config import SinkConfig, target
    from sinks.http import HealthServer
    from sinks.schema import SchemaError
    from sinks.sink import Sink

    logging.config.dictConfig(logging_config(settings))
    url = settings.clickhouse.get_secret_value()
    group = SINK.group(settings)
    cluster = settings.clickhouse_cluster
    sink = Sink(SinkConfig(settings.member_options(), url, group_id=group, cluster=cluster))
    about = SINK.deployment(settings)
    health = HealthServer(sink, settings.web_bind, settings.sink_port, about, version())
    log.info(
        "runnerstream %s, sink of group %s: Kafka %s to ClickHouse %s, health at %s/readyz",
        version(), group, settings.kafka, target(url).partition("/")[0],
        http(settings.web_bind, health.port),
    )  # fmt: skip
    try:
        beside.start()
        sink.run(stop)
    except SchemaError as error:
        raise RoleFailed(f"the tables do not fit this program: {error}") from None
    finally:
        beside.stop()
        health.close()
    return 0


SINK: Final = Role(
    "sink",
    "states to ClickHouse",
    run,
    suffix="-sink",
    reads=TOPICS,
    port="sink_port",
    needs_clickhouse=True,
)
