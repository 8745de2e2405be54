"""Configuration: every setting, its unit, its default and why.

Read from the environment (``RUNNERSTREAM_`` + upper-case name), else from a file named by
``--config`` or ``RUNNERSTREAM_CONFIG`` (``KEY=value`` lines, same names), else the default.
Secrets are pydantic ``SecretStr``: they are never printed.
"""

from __future__ import annotations

import json
import os
import ssl
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


def default_data_dir() -> Path:
    """Where local state goes: the XDG state directory, else ``~/.local/state``."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "runnerstream"


class Settings(BaseSettings):
    """All settings of the program. Times in seconds unless the name says otherwise."""

    model_config = SettingsConfigDict(
        env_prefix="RUNNERSTREAM_", env_file=None, extra="ignore", frozen=True
    )

    # -- identity ------------------------------------------------------------------------------
    #: Consumer group of the worker, and prefix of its changelog topics.
    app_id: str = Field("runnerstream", pattern=r"^[a-zA-Z0-9._\-]+$")

    # -- Kafka ---------------------------------------------------------------------------------
    #: ``host:port``, comma-separated for several.
    kafka: str = "127.0.0.1:19092"
    kafka_security: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    kafka_sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    kafka_user: str = ""
    kafka_password: SecretStr = SecretStr("")
    #: PEM files; empty means the system's trust store and no client certificate.
    kafka_ca_file: str = ""
    kafka_cert_file: str = ""
    kafka_key_file: str = ""
    #: Partitions of every keyed topic. All must be equal, for co-partitioning: change it only
    #: with new topics.
    partitions: int = Field(8, ge=1, le=1024)
    replication_factor: int = Field(1, ge=1)
    min_insync_replicas: int = Field(1, ge=1)
    #: Group timeouts. A dead worker's partitions move after ``session_timeout``.
    session_timeout: float = Field(30.0, ge=1)
    rebalance_timeout: float = Field(30.0, ge=1)
    #: Set one stable id per worker to restart it without a rebalance (KIP-345).
    group_instance_id: str = ""

    # -- ClickHouse ----------------------------------------------------------------------------
    #: ``clickhouse://user:password@host:port/database`` (``clickhouses://`` for TLS).
    clickhouse: SecretStr = SecretStr("clickhouse://default@127.0.0.1:19000/runnerstream")

    # -- worker --------------------------------------------------------------------------------
    #: Where the worker listens, and the URL under which other workers reach it. Port 0 picks one.
    web_bind: str = "127.0.0.1"
    web_port: int = Field(6066, ge=0, le=65535)
    web_host: str = "127.0.0.1"
    #: Health and metrics of the sink process. 0 picks a port.
    sink_port: int = Field(6067, ge=0, le=65535)
    #: ``memory`` replays the changelog at start; ``rocksdb`` keeps it on disk.
    store: Literal["memory", "rocksdb"] = "memory"
    data_dir: Path = Field(default_factory=default_data_dir)
    #: Interval of the clock: ticks per partition. What windows, samples and expiry run on.
    tick_interval: float = Field(5.0, gt=0)
    #: Records taken at a time. Fewer cost throughput; more only make the first of them wait longer.
    batch_records: int = Field(3_000, ge=1)
    #: How often offsets are committed.
    commit_interval: float = Field(1.0, gt=0)
    #: Lateness of windows, grace after closing, retention of jobs. See docs/how-it-works.md.
    lateness: float = Field(3_600.0, ge=0)
    grace: float = Field(600.0, ge=0)
    completed_retention: float = Field(8 * 86_400.0, ge=60)
    unfinished_retention: float = Field(70 * 86_400.0, ge=60)
    #: Pool or canonical label set -> the fleet's name: JSON, ``{"linux,x64": "linux-small"}``.
    fleets: Annotated[dict[str, str], NoDecode] = {}
    #: Fleets that get a metric label of their own; the rest are ``other``.
    max_fleet_labels: int = Field(100, ge=1)
    #: /readyz says not ready beyond these.
    max_lag: float = Field(60.0, gt=0)

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["text", "json"] = "text"

    @field_validator("fleets", mode="before")
    @classmethod
    def _fleets(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value or "{}")
        except ValueError as exc:
            raise ValueError(
                f'expected a JSON object such as {{"linux,x64": "linux-small"}}: {exc}'
            ) from None

    @field_validator("data_dir")
    @classmethod
    def _home(cls, value: Path) -> Path:
        return value.expanduser()

    @model_validator(mode="after")
    def _credentials(self) -> Settings:
        if self.kafka_security.startswith("SASL") and not self.kafka_user:
            raise ValueError(
                f"kafka_security is {self.kafka_security}, so kafka_user and kafka_password are "
                "needed (RUNNERSTREAM_KAFKA_USER, RUNNERSTREAM_KAFKA_PASSWORD)"
            )
        return self

    @property
    def bootstrap(self) -> list[str]:
        """The brokers as a list of ``host:port``."""
        return [server.strip() for server in self.kafka.split(",") if server.strip()]

    def ssl_context(self) -> ssl.SSLContext | None:
        """TLS for Kafka, or ``None`` for a plain connection."""
        if "SSL" not in self.kafka_security:
            return None
        context = ssl.create_default_context(cafile=self.kafka_ca_file or None)
        if self.kafka_cert_file:
            context.load_cert_chain(self.kafka_cert_file, self.kafka_key_file or None)
        return context

    def kafka_options(self) -> dict[str, Any]:
        """Connection options as kafka-python takes them."""
        options: dict[str, Any] = {
            "bootstrap_servers": self.bootstrap,
            "security_protocol": self.kafka_security,
        }
        context = self.ssl_context()
        if context is not None:
            options["ssl_context"] = context
        if self.kafka_security.startswith("SASL"):
            options["sasl_mechanism"] = self.kafka_sasl_mechanism
            options["sasl_plain_username"] = self.kafka_user
            options["sasl_plain_password"] = self.kafka_password.get_secret_value()
        return options


def load(config: str | os.PathLike[str] | None = None, **overrides: Any) -> Settings:
    """Read the settings. ``overrides`` win, then the environment, then the file.

    Raises pydantic.ValidationError naming each wrong setting, FileNotFoundError when ``config``
    is named and missing.
    """
    path = config or os.environ.get("RUNNERSTREAM_CONFIG")
    if path and not Path(path).is_file():
        raise FileNotFoundError(f"configuration file {path} does not exist")
    given = {name: value for name, value in overrides.items() if value is not None}
    return Settings(_env_file=path or None, **given)  # type: ignore[call-arg]
