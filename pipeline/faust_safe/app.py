"""The Faust app with the settings that its guarantees rest on."""

from __future__ import annotations

import gc
import json
import logging
import re
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import faust
from faust.auth import SASLCredentials
from faust.types.auth import SASLMechanism

from pipeline.faust_safe.recovery import BatchRecovery
from pipeline.faust_safe.sensor import Count, GroupSensor, nobody
from pipeline.faust_safe.table import SafeTable
from pipeline.faust_safe.transport import SafeTransport
from pipeline.settings import Settings

#: A worker with nothing to fetch for this long would leave the group and never rejoin
#: (aiokafka#1187), so the limit is a day.
MAX_POLL_INTERVAL_S = 86_400.0

#: When the cyclic garbage collector runs: after so many new objects, and every so many runs over
#: older ones. What the fold makes and drops has no cycles and is freed by reference counts, but
#: what it keeps made the defaults (700, 10, 10) look at all of it again and again: a third of the
#: fold's time. The first threshold is several batches of 5,000 facts: a collection in the middle of
#: one finds everything alive. Cycles do occur, in asyncio and in clients, so it stays on.
GC_THRESHOLDS = (500_000, 20, 100)


def create_app(settings: Settings, *, web_port: int, count: Count = nobody) -> faust.App:
    """A Faust app on our transport and table, without agents yet. What it does is counted by
    the metrics of :mod:`pipeline.faust_safe.sensor`."""
    gc.set_threshold(*GC_THRESHOLDS)
    context = settings.ssl_context()
    credentials: Any = context
    if settings.kafka_security.startswith("SASL"):
        credentials = SASLCredentials(
            username=settings.kafka_user,
            password=settings.kafka_password.get_secret_value(),
            mechanism=SASLMechanism(settings.kafka_sasl_mechanism),
            ssl_context=context,
        )
    data_dir = settings.data_dir / f"worker-{settings.group_instance_id or web_port}"
    data_dir.mkdir(parents=True, exist_ok=True)
    app = faust.App(
        settings.app_id,
        broker=[f"kafka://{quote(server, safe=':[]')}" for server in settings.bootstrap],
        broker_credentials=credentials,
        store="memory://" if settings.store == "memory" else "rocksdb://",
        datadir=str(data_dir),
        Table=SafeTable,
        # Faust restarts a failed agent and loses what was in flight; end the process instead.
        agent_supervisor="mode.CrashingSupervisor",
        # Earliest: a new group must not skip what was posted before it first started.
        consumer_auto_offset_reset="earliest",
        consumer_group_instance_id=settings.group_instance_id or None,
        broker_commit_interval=settings.commit_interval,
        broker_max_poll_records=settings.batch_records,
        broker_max_poll_interval=MAX_POLL_INTERVAL_S,
        broker_session_timeout=settings.session_timeout,
        broker_rebalance_timeout=settings.rebalance_timeout,
        broker_heartbeat_interval=max(0.5, settings.session_timeout / 10),
        broker_request_timeout=max(60.0, settings.session_timeout * 2),
        # In batches, not records: enough to keep the fold busy during one fetch.
        stream_buffer_maxsize=32,
        stream_wait_empty=True,
        # Standby replicas of a memory store replay from the start anyway.
        table_standby_replicas=0 if settings.store == "memory" else 1,
        # Topics are made by `runnerstream topics apply`, with the right settings.
        topic_allow_declare=False,
        topic_partitions=settings.partitions,
        topic_replication_factor=settings.replication_factor,
        topic_disable_leader=True,
        web_enabled=True,
        web_bind=settings.web_bind,
        web_port=web_port,
        web_host=settings.web_host,
        # Faust's own table and debug pages would serve raw state to anybody.
        web_tables_enabled=False,
        web_router_enabled=False,
        web_graph_enabled=False,
        web_stats_enabled=False,
        worker_redirect_stdouts=False,
        logging_config=logging_config(settings),
    )
    app.on_before_shutdown.connect(_stops, weak=False)
    app.sensors.add(GroupSensor(count))
    app.transport = SafeTransport(app.conf.broker_consumer, app)
    app.transport.count = count
    app.tables._recovery = BatchRecovery(app, app.tables, beacon=app.tables.beacon, loop=app.loop)
    app.tables.recovery.count = count
    return app


def _stops(*args: Any, **kwargs: Any) -> None:
    Calm.stopping = True


def logging_config(settings: Settings) -> dict[str, Any]:
    """Log lines on standard error. Faust's default turns the root logger to DEBUG, which costs
    a quarter of the throughput; the chatty libraries stay at WARNING."""
    formatter: dict[str, Any] = {
        "format": "%(asctime)s %(levelname)-7s %(name)s: %(message)s",
        "datefmt": "%Y-%m-%dT%H:%M:%S%z",
    }
    if settings.log_format == "json":
        formatter = {"()": "pipeline.faust_safe.app.JsonFormatter"}
    quiet = ("faust", "mode", "aiokafka", "kafka", "aiohttp", "asyncio")
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": formatter},
        "filters": {"calm": {"()": "pipeline.faust_safe.app.Calm"}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": "line",
                "filters": [] if settings.log_level == "DEBUG" else ["calm"],
            }
        },
        "root": {"level": settings.log_level, "handlers": ["stderr"]},
        "loggers": {
            name: {"level": "DEBUG" if settings.log_level == "DEBUG" else "WARNING"}
            for name in quiet
        },
    }


class Calm(logging.Filter):
    """Keeps back what Faust's parts say at every start and stop, and nobody can use; and, once
    the worker stops, what aiokafka says of requests that its own end has cut short."""

    #: Whether the worker of this process has begun to stop.
    stopping = False

    #: What its parts say of themselves begins so; what this program says does not.
    _PART = re.compile(r"^\[\^-*[^\]]*\]: ")

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether a record is written."""
        if record.name.startswith("aiokafka.") and (
            # A new cluster makes the place of its groups when it is first asked for it. aiokafka
            # asks again, and a coordinator that stays away is a reason in /readyz.
            Calm.stopping or "GroupCoordinatorNotAvailableError" in record.getMessage()
        ):
            return False
        return record.levelno > logging.INFO or not self._PART.match(record.getMessage())


class JsonFormatter(logging.Formatter):
    """One JSON object per log line."""

    def format(self, record: logging.LogRecord) -> str:
        """Render the record."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
