"""A broker and a ClickHouse on this machine, without Docker: see `LocalStack`."""

from pipeline.local.broker import EmbeddedBroker
from pipeline.local.clickhouse import EmbeddedClickHouse
from pipeline.local.process import LocalError, MissingServer, PortTaken, ServerFailed
from pipeline.local.stack import (
    LocalStack,
    StackRunning,
    StackStatus,
    default_data_dir,
    down,
    status,
    unavailable,
    up,
)

__all__ = [
    "EmbeddedBroker",
    "EmbeddedClickHouse",
    "LocalError",
    "LocalStack",
    "MissingServer",
    "PortTaken",
    "ServerFailed",
    "StackRunning",
    "StackStatus",
    "default_data_dir",
    "down",
    "status",
    "unavailable",
    "up",
]
