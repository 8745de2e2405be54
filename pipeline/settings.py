"""Configuration: every setting, its unit, its default and why.

Read from the environment (``RUNNERSTREAM_`` + upper-case name), else from a file named by
``--config`` or ``RUNNERSTREAM_CONFIG`` (``KEY=value`` lines, same names), else the default.
What can be known to be wrong without asking a server is refused here, with what to write instead:
a name that does not exist, a URL that means something else than it looks like, a missing file.
Secrets are pydantic ``SecretStr``, and no message holds a value: a wrong value may be a secret in
the wrong place.
"""

from __future__ import annotations

import difflib
import io
import json
import os
import re
import ssl
from collections.abc import Iterable, Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from pipeline.addresses import (
    beginning,
    check_clickhouse_url,
    check_file,
    check_server,
    host_and_port,
    secret_files,
)
from pipeline.compat.names import Names
from pipeline.routes import Routes

PREFIX: Final = "RUNNERSTREAM_"
#: Variables that are ours and no setting.
CONFIG_VARIABLE: Final = "RUNNERSTREAM_CONFIG"
_TESTS: Final = "RUNNERSTREAM_TEST_"
#: What Kubernetes puts into every pod for a Service whose name begins with ours.
_SERVICE = re.compile(r"_SERVICE_(HOST|PORT(_\w+)?)$|_PORT(_\d+_(TCP|UDP|SCTP)(_\w+)?)?$")
_SERVICE_URL = re.compile(r"^(tcp|udp|sctp)://", re.IGNORECASE)


def default_data_dir() -> Path:
    """Where local state goes: the XDG state directory, else ``~/.local/state``."""
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "runnerstream"


class Settings(BaseSettings):
    """All settings of the program. Times in seconds unless the name says otherwise."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=None,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
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
    #: Name of the cluster in ``remote_servers`` on all of whose nodes the tables are, spread over
    #: its shards. Empty: one server has them.
    clickhouse_cluster: str = Field("", pattern=r"^[A-Za-z0-9_.\-]*$")

    # -- webhooks ------------------------------------------------------------------------------
    #: Secrets of GitHub webhooks in raw form, separated by commas, or a JSON array of them: each
    #: body must be signed by one. Several while you rotate. Where no provider has any, nothing is
    #: checked; else webhooks of a provider that has none are refused.
    github_secrets: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    #: The same of Gitea and Forgejo.
    gitea_secrets: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    #: The same of GitLab: secret tokens, and signing tokens (``whsec_...``).
    gitlab_secrets: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    #: Take webhooks in envelopes without a signature although secrets are set. For producers that
    #: check them before they post; never where a bridge posts what anybody sends it.
    trust_envelopes: bool = False
    #: Directory with further secrets, one a line: file ``github``, ``gitea`` or ``gitlab`` for all
    #: hooks of it, file ``github.12345`` for the one hook, App or installation with that id, which
    #: then has no other (docs/gateway.md). Workers and gateways read it when they start.
    webhook_secrets_dir: str = ""

    # -- the gateway ---------------------------------------------------------------------------
    #: ``host:port`` where the gateway takes webhooks by HTTP. Without it a worker starts none.
    gateway_listen: str = ""
    #: Certificate and key (PEM) for HTTPS; without them a proxy in front should do it.
    gateway_cert_file: str = ""
    gateway_key_file: str = ""
    #: Networks that may connect, comma-separated: ``192.30.252.0/22,185.199.108.0/22``. Empty: all.
    #: Behind a proxy it is the proxy that connects.
    gateway_allow: str = ""
    #: How long Kafka may take for a delivery before it is answered 503. GitHub waits 10 s.
    gateway_deadline: float = Field(8.0, gt=0, le=60)
    #: How long the body of a delivery may take to come.
    gateway_body_time: float = Field(8.0, gt=0, le=60)
    #: Deliveries that wait for Kafka; beyond it further ones are answered 503.
    gateway_in_flight: int = Field(1_000, ge=1)
    #: Bytes of bodies held at a time. Beyond it large ones are answered 503.
    gateway_memory: int = Field(256 << 20, ge=1 << 20)
    #: Connections at a time, as far as the limit of files allows; beyond it the slowest is closed.
    gateway_connections: int = Field(4_096, ge=8)

    # -- the relay -----------------------------------------------------------------------------
    #: Where the relay posts deliveries on. Without it a worker starts none.
    relay_to: str = ""
    #: Its consumer group, one for each target; empty: ``app_id-relay``.
    relay_group: str = Field("", pattern=r"^[a-zA-Z0-9._\-]*$")
    relay_events: str = ""
    relay_actions: str = ""
    relay_labels: str = ""
    #: Where a new group begins: ``latest``, ``earliest``, or a time such as ``2026-11-30T08:00Z``.
    relay_from: str = "latest"
    #: Older deliveries are not posted any more: they become dead letters.
    relay_max_age: float = Field(86_400.0, gt=0)
    #: How long the target may take for one delivery.
    relay_timeout: float = Field(10.0, gt=0, le=300)
    #: Deliveries under way at a time, each of another job.
    relay_at_once: int = Field(16, ge=1, le=1_000)
    #: Statuses by which the target refuses a delivery for good, comma-separated.
    relay_refusals: str = Field("400,413,415,422", pattern=r"^(4[0-9]{2}(,4[0-9]{2})*)?$")
    #: Pass on without a look at signatures. Else secrets are needed, as the gateway's.
    relay_unverified: bool = False
    # -- what no webhook told ------------------------------------------------------------------
    #: Hooks of GitHub whose deliveries are asked for again when they never came, comma-separated:
    #: ``app`` (the GitHub App's own), ``owner/repo:12345``, ``organisation:12345``, with the hook's
    #: id. With it, or with ``reconcile_repos``, a worker starts the role ``redeliver``.
    redeliver_hooks: str = ""
    #: How old such a delivery may be. GitHub keeps them for 3 days, a GHES for 7.
    redeliver_lookback: float = Field(3 * 86_400.0, ge=60)
    #: How often lists of deliveries, and of runs, are looked through.
    redeliver_every: float = Field(300.0, gt=0)
    #: Requests to a provider in any minute for both: in all with a token, of each account with a
    #: GitHub App, and as many of the App's own. A request shows 100 deliveries.
    redeliver_per_minute: int = Field(60, ge=3)
    #: Repositories whose latest runs and jobs are told as the API has them, for what no webhook
    #: told, comma-separated: ``owner/repo`` of GitHub, ``gitea:owner/repo``.
    reconcile_repos: str = ""
    #: How long ago such a run may have begun.
    reconcile_lookback: float = Field(86_400.0, ge=60)

    # -- runners that cannot publish -----------------------------------------------------------
    #: Pages with the metrics of act_runner or gitea_runner that the role ``scrape`` looks at,
    #: comma-separated: ``http://host:9101``, or ``fleet=http://host:9101``.
    scrape_act_runners: str = ""
    #: The fleet of those that name none.
    scrape_fleet: str = ""
    #: From one look at a page to the next.
    scrape_interval: float = Field(15.0, ge=1, le=240)

    # -- asking GitHub -------------------------------------------------------------------------
    #: How the prober asks GitHub about jobs that may be stuck: a token that may read Actions.
    #: Without it and without an App it does not ask GitHub, and recovery acts on nothing of its
    #: jobs that needs an answer.
    github_token: SecretStr = SecretStr("")
    #: Instead of a token: the id of a GitHub App that may read Actions.
    github_app_id: str = Field("", pattern=r"^[A-Za-z0-9.]*$")
    #: File of the App's private key (PEM), as GitHub gives it.
    github_app_key_file: str = ""
    #: The host whose jobs are asked about, and whom the credentials are for: github.com, or that
    #: of your GHES. Jobs of other hosts are not asked about.
    github_host: str = Field("github.com", pattern=r"^[A-Za-z0-9.-]+(:[0-9]{1,5})?$")
    #: Where its API is, when that is elsewhere than the host has it: a proxy's URL.
    github_api_url: str = ""
    # -- asking Gitea and GitLab ---------------------------------------------------------------
    #: Gitea's own URL, 1.25 or later, without ``/api/v1``. Its jobs' keys have its host:
    #: ``gitea:git.example.com:4567``. Jobs of other hosts are not asked about.
    gitea_url: str = ""
    #: A token that may read the repositories whose jobs are asked about.
    gitea_token: SecretStr = SecretStr("")
    #: GitLab's own URL, without ``/api/v4``. Its jobs' keys have its host:
    #: ``gitlab:gitlab.com:4567``. Jobs of other hosts are not asked about.
    gitlab_url: str = ""
    #: A token that may read the API (``read_api``) of the projects whose jobs are asked about.
    gitlab_token: SecretStr = SecretStr("")
    #: Requests to a provider in any minute: in all with a token, of each account with a GitHub App.
    probes_per_minute: int = Field(100, ge=3)

    # -- executing commands --------------------------------------------------------------------
    #: In which way the role ``executor`` does what recovery commands, as ``runnerstream executor
    #: --via`` describes them. Without it a worker starts no executor.
    executor_via: Literal["", "print", "hook", "redeliver", "github"] = ""
    #: Where ``hook`` and ``redeliver`` post.
    executor_to: str = ""
    #: File of the secret that they sign with.
    executor_secret_file: str = ""
    #: What ``github`` may do, each named, comma-separated. It acts on jobs of ``github_host``.
    executor_allow: str = ""
    #: File of its token, which is read anew for each call.
    executor_token_file: str = ""
    #: The commands that it takes, comma-separated; empty: all.
    executor_only: str = ""

    # -- worker --------------------------------------------------------------------------------
    #: Where the worker listens, and the URL under which other workers reach it. Port 0 picks one.
    web_bind: str = "127.0.0.1"
    web_port: int = Field(6066, ge=0, le=65535)
    web_host: str = "127.0.0.1"
    #: Who knows it may throw the switches of recovery by HTTP (``POST /recovery/switch``, header
    #: ``Authorization: Bearer``). Without it nobody may, and the command line does it.
    web_token: SecretStr = SecretStr("")
    #: Health and metrics of the sink process. 0 picks a port.
    sink_port: int = Field(6067, ge=0, le=65535)
    #: Health and metrics of the prober process. 0 picks a port.
    prober_port: int = Field(6068, ge=0, le=65535)
    #: Health and metrics of the executor process. 0 picks a port.
    executor_port: int = Field(6069, ge=0, le=65535)
    #: Health and metrics of the gateway process. 0 picks a port.
    gateway_port: int = Field(6070, ge=0, le=65535)
    #: Health and metrics of the relay process. 0 picks a port.
    relay_port: int = Field(6071, ge=0, le=65535)
    #: Health and metrics of the process of the role ``redeliver``. 0 picks a port.
    redeliver_port: int = Field(6072, ge=0, le=65535)
    #: Health and metrics of the process of the role ``scrape``. 0 picks a port.
    scrape_port: int = Field(6073, ge=0, le=65535)
    #: ``memory`` replays the changelog at start; ``rocksdb`` keeps it on disk.
    store: Literal["memory", "rocksdb"] = "memory"
    data_dir: Path = Field(default_factory=default_data_dir)
    #: Interval of the clock: ticks per partition. What windows, samples and expiry run on.
    tick_interval: float = Field(5.0, gt=0)
    #: Records taken at a time. Fewer cost throughput, because a transaction has its price whatever
    #: is in it; more only make the first of them wait longer.
    batch_records: int = Field(5_000, ge=1)
    #: How often offsets are committed.
    commit_interval: float = Field(1.0, gt=0)
    #: Lateness of windows, grace after closing, retention of jobs. See docs/how-it-works.md.
    lateness: float = Field(3_600.0, ge=0)
    grace: float = Field(600.0, ge=0)
    completed_retention: float = Field(8 * 86_400.0, ge=60)
    unfinished_retention: float = Field(70 * 86_400.0, ge=60)
    #: Pool or canonical label set -> the fleet's name: JSON, ``{"linux,x64": "linux-small"}``.
    fleets: Annotated[dict[str, str], NoDecode] = {}
    #: Accounts by installation and owner, fleets by repository and labels: JSON,
    #: ``{"accounts": {"acme": "acme"}, "fleets": [{"repo": "acme/*", "fleet": "linux"}]}``.
    routes: Annotated[dict[str, Any], NoDecode] = {}
    #: What recovery does about stuck jobs: command (``live``), say what it would command
    #: (``dry_run``), or nothing (``paused``). A switch thrown at run time wins over it.
    recovery: Literal["live", "dry_run", "paused"] = "dry_run"
    #: Rules of recovery per fleet, ``*`` for all others, times in seconds: JSON,
    #: ``{"*": {"orphan": 120}, "linux-large": {"stale_queue": 7200}}``.
    recovery_policies: Annotated[dict[str, Any], NoDecode] = {}
    #: Fleets that get a metric label of their own; the rest are ``other``.
    max_fleet_labels: int = Field(100, ge=1)
    #: Systems by whose own names ``/metrics/compat`` serves what they measure, comma-separated.
    #: Known are those of docs/parity.md, ``tuist`` for one.
    compat: Annotated[Names, NoDecode] = ()
    #: Series of metrics that a worker exports at most; fleets for which there is no room left are
    #: ``other``.
    max_series: int = Field(4_900, ge=1_000)
    #: /readyz says not ready beyond these.
    max_lag: float = Field(60.0, gt=0)

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: Literal["text", "json"] = "text"

    @field_validator("fleets", "routes", "recovery_policies", mode="before")
    @classmethod
    def _object(cls, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return json.loads(value or "{}")
        except ValueError as exc:
            like = {"fleets": '{"linux,x64": "linux-small"}', "routes": '{"accounts": {}}'}.get(
                str(info.field_name), '{"*": {"orphan": 120}}'
            )
            raise ValueError(f"expected a JSON object such as {like}: {exc}") from None

    @field_validator("recovery_policies", "routes")
    @classmethod
    def _rules(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        from pipeline.policies import policies

        (Routes if info.field_name == "routes" else policies)(value)
        return value

    @field_validator("github_secrets", "gitea_secrets", "gitlab_secrets", mode="before")
    @classmethod
    def _secrets(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        if not value.lstrip().startswith("["):
            return [part.strip() for part in value.split(",")] if value.strip() else []
        try:
            return json.loads(value)
        except ValueError:
            raise ValueError('begins with [ and is no JSON array such as ["new", "old"]') from None

    @field_validator("github_secrets", "gitea_secrets", "gitlab_secrets")
    @classmethod
    def _usable(cls, value: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        if not all(each.get_secret_value() for each in value):
            raise ValueError("has an empty secret, with which anybody could sign")
        return value

    @field_validator(
        "web_port", "sink_port", "prober_port", "executor_port", "gateway_port", "relay_port",
        "redeliver_port", "scrape_port",
        mode="before",
    )  # fmt: skip
    @classmethod
    def _port(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str) and _SERVICE_URL.match(value):
            raise ValueError(
                "is the address of a Service, which Kubernetes sets for one of this name: say "
                "enableServiceLinks: false in the pod, or call the Service something else"
            )
        return value

    @field_validator("kafka")
    @classmethod
    def _brokers(cls, value: str) -> str:
        servers = [server.strip() for server in value.split(",")]
        if not any(servers):
            raise ValueError("names no broker: write host:port, comma-separated for several")
        for server in filter(None, servers):
            check_server(server)
        return value

    @field_validator("clickhouse")
    @classmethod
    def _clickhouse(cls, value: SecretStr) -> SecretStr:
        check_clickhouse_url(value.get_secret_value())
        return value

    @field_validator("github_token", "gitea_token", "gitlab_token", "web_token")
    @classmethod
    def _token(cls, value: SecretStr) -> SecretStr:
        if not re.fullmatch(r"[\x21-\x7e]*", value.get_secret_value()):
            raise ValueError("holds a space, a line end or a character that no token has")
        return value

    @field_validator("github_api_url", "gitea_url", "gitlab_url", "executor_to", "relay_to")
    @classmethod
    def _api_url(cls, value: str, info: ValidationInfo) -> str:
        if value and not re.fullmatch(r"https?://[^\s/?#@]+(/[^\s?#]*)?", value):
            raise ValueError("is no URL of an API: write http(s)://host/path, without user, "
                             "query or fragment")  # fmt: skip
        if re.search(r"/api/v[0-9]+/*$", value) and str(info.field_name)[:4] in ("gite", "gitl"):
            raise ValueError("ends like an API's: write the URL of the site itself")
        return value

    @field_validator("gateway_listen")
    @classmethod
    def _listen(cls, value: str) -> str:
        if value:
            host_and_port(value)
        return value

    @field_validator("relay_from")
    @classmethod
    def _begin(cls, value: str) -> str:
        beginning(value)
        return value

    @field_validator("gateway_allow")
    @classmethod
    def _networks(cls, value: str) -> str:
        for each in filter(None, (part.strip() for part in value.split(","))):
            try:
                ip_network(each)
            except ValueError:
                raise ValueError("names what is no network: write 192.30.252.0/22, comma-separated "
                                 "for several") from None  # fmt: skip
        return value

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
        if self.kafka_key_file and not self.kafka_cert_file:
            raise ValueError("kafka_key_file is set and kafka_cert_file is not: a key needs its "
                             "certificate (RUNNERSTREAM_KAFKA_CERT_FILE)")  # fmt: skip
        if bool(self.github_app_id) != bool(self.github_app_key_file):
            raise ValueError("github_app_id and github_app_key_file are set together or not at "
                             "all (RUNNERSTREAM_GITHUB_APP_ID, ..._APP_KEY_FILE)")  # fmt: skip
        if self.github_app_id and self.github_token.get_secret_value():
            raise ValueError("github_token and github_app_id are both set: the prober asks with "
                             "one of them")  # fmt: skip
        if bool(self.gateway_cert_file) != bool(self.gateway_key_file):
            raise ValueError(
                "gateway_cert_file and gateway_key_file are set together or not at all "
                "(RUNNERSTREAM_GATEWAY_CERT_FILE, RUNNERSTREAM_GATEWAY_KEY_FILE)"
            )
        for name in ("gitea", "gitlab"):
            if bool(getattr(self, f"{name}_url")) != bool(
                getattr(self, f"{name}_token").get_secret_value()
            ):
                upper = f"{PREFIX}{name.upper()}"
                raise ValueError(f"{name}_url and {name}_token are set together or not at all "
                                 f"({upper}_URL, {upper}_TOKEN)")  # fmt: skip
        # So that a wrong file is told now, by its name.
        self.ssl_context()
        secret_files(self.webhook_secrets_dir)
        return self

    @property
    def bootstrap(self) -> list[str]:
        """The brokers as a list of ``host:port``."""
        return [server.strip() for server in self.kafka.split(",") if server.strip()]

    def webhook_secrets(self) -> dict[str, tuple[bytes, ...]]:
        """The secrets of each provider that has any: ``<provider>_secrets``, and all of the files
        in ``webhook_secrets_dir``. Raises ValueError for a file that is none of secrets."""
        found = self.named_secrets()
        for (provider, _), secrets in secret_files(self.webhook_secrets_dir).items():
            found[provider] = (*found.get(provider, ()), *secrets)
        return found

    def named_secrets(self) -> dict[str, tuple[bytes, ...]]:
        """Those of the settings ``<provider>_secrets`` alone."""
        found = {
            name.removesuffix("_secrets"): tuple(
                secret.get_secret_value().encode() for secret in getattr(self, name)
            )
            for name in type(self).model_fields
            if name.endswith("_secrets")
        }
        return {provider: secrets for provider, secrets in found.items() if secrets}

    def ssl_context(self) -> ssl.SSLContext | None:
        """TLS for Kafka, or ``None`` for a plain connection."""
        if "SSL" not in self.kafka_security:
            return None
        for name in ("kafka_ca_file", "kafka_cert_file", "kafka_key_file"):
            check_file(name, getattr(self, name), f"{PREFIX}{name.upper()}")
        try:
            context = ssl.create_default_context(cafile=self.kafka_ca_file or None)
        except ssl.SSLError:
            raise ValueError(f"kafka_ca_file: {self.kafka_ca_file} holds no certificate in PEM "
                             "form (RUNNERSTREAM_KAFKA_CA_FILE)") from None  # fmt: skip
        if self.kafka_cert_file:
            try:
                # Without an answer to the question for a passphrase, OpenSSL asks the terminal.
                context.load_cert_chain(
                    self.kafka_cert_file, self.kafka_key_file or None, password=lambda: ""
                )
            except ssl.SSLError as error:
                raise ValueError(
                    f"kafka_cert_file: {self.kafka_cert_file} and "
                    f"{self.kafka_key_file or 'the key in it'} are not a certificate and its key, "
                    f"in PEM form and without a passphrase ({error.reason or 'no PEM'})"
                ) from None
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

    def member_options(self) -> dict[str, Any]:
        """Those, and what kafka-python needs to know of a member of a consumer group."""
        return {
            **self.kafka_options(),
            "session_timeout_ms": int(self.session_timeout * 1000),
            "heartbeat_interval_ms": max(500, int(self.session_timeout * 100)),
            # Also how long a group waits for members to join again.
            "max_poll_interval_ms": int(max(self.rebalance_timeout, 1) * 1000),
        }


def load(
    config: str | os.PathLike[str] | None = None,
    *,
    environment: bool = True,
    **overrides: Any,
) -> Settings:
    """Read the settings. ``overrides`` win, then the environment, then the file.

    Without ``environment`` there are only the overrides and the defaults. Raises
    pydantic.ValidationError naming each wrong setting, :class:`SettingsError` for names that do not
    exist and lines that are none, FileNotFoundError when ``config`` is named and missing.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    if not environment:
        # A prefix that no variable can have.
        return Settings(_env_prefix="=", **given)  # type: ignore[call-arg]
    path = config or os.environ.get(CONFIG_VARIABLE)
    if path and not Path(path).is_file():
        raise FileNotFoundError(f"configuration file {path} does not exist")
    problems = [] if not path else list(_file_problems(Path(path)))
    problems += environment_problems(os.environ)
    if problems:
        raise SettingsError(problems)
    return Settings(_env_file=path or None, **given)  # type: ignore[call-arg]


class SettingsError(ValueError):
    """Names and lines that are no settings; ``problems`` has a sentence for each."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


def environment_problems(environ: Mapping[str, str]) -> list[str]:
    """A sentence for each ``RUNNERSTREAM_*`` variable that is no setting."""
    return [
        f"{name} is set, and there is no such setting{_nearest(name)}"
        for name in sorted(environ)
        if _unknown(name) and not _of_kubernetes(name.upper(), environ[name])
    ]


def _unknown(name: str) -> bool:
    upper = name.upper()
    return (
        upper.startswith(PREFIX)
        and upper != CONFIG_VARIABLE
        and not upper.startswith(_TESTS)
        and upper.removeprefix(PREFIX).lower() not in Settings.model_fields
    )


def _of_kubernetes(upper: str, value: str) -> bool:
    named = "_SERVICE_" in upper or "_PORT_" in upper or _SERVICE_URL.match(value)
    return bool(_SERVICE.search(upper) and named)


def _nearest(name: str) -> str:
    """The known name that is most like an unknown one, as the end of a sentence."""
    known = [*(field.upper() for field in Settings.model_fields), "CONFIG"]
    bare = name.upper().removeprefix(PREFIX)
    close = difflib.get_close_matches(bare, known, n=1, cutoff=0.5)
    told = (
        f"the nearest is {PREFIX}{close[0]}" if close else "see the settings in docs/operators.md"
    )
    return f"; {told}"


def _file_problems(path: Path) -> Iterable[str]:
    """What is wrong with the lines of a configuration file. Values are never shown."""
    from dotenv.parser import parse_stream

    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        yield f"{path} is not UTF-8 text"
        return
    known = {f"{PREFIX}{field.upper()}" for field in Settings.model_fields}
    for binding in parse_stream(io.StringIO(text)):
        name, line = binding.key, binding.original.line
        # A binding begins with the blank lines before it.
        line += len(binding.original.string) - len(binding.original.string.lstrip("\n"))
        if binding.error:
            yield f"{path}, line {line}, is not NAME=value (put quotes around a value with quotes)"
        elif name is None:
            continue
        elif binding.value is None:
            yield f"{path}, line {line}: {name if _named(name) else 'a name'} has no value"
        elif _unknown(name):
            yield f"{path}, line {line}: there is no setting {name}{_nearest(name)}"
        elif f"{PREFIX}{name.upper()}" in known:
            yield f"{path}, line {line}: {name} is not read; write {PREFIX}{name.upper()}"
        elif not name.upper().startswith(PREFIX):
            close = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.85)
            if close:
                yield f"{path}, line {line}: {name} is not read; the nearest is {close[0]}"


def _named(name: str) -> bool:
    """Whether what stands where a name stands is one, and no stray secret."""
    return name.upper().startswith(PREFIX)
