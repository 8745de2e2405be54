"""The role ``gateway``: takes webhooks by HTTP and writes them to Kafka.

The command of the same name is a program of its own, with options beside the settings.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import logging.config
import ssl
import threading
from ipaddress import ip_network
from typing import TYPE_CHECKING, Final

from pipeline.addresses import check_file, host_and_port, secret_files
from pipeline.roles.role import Role, RoleFailed, http
from pipeline.roles.supervisor import Supervisor
from pipeline.settings import PREFIX, Settings
from pipeline.text import version

if TYPE_CHECKING:
    from pipeline.gateway import Gateway, Keyring

log = logging.getLogger(__name__)

#: After how many new objects the collector of cycles runs, and how often over older ones.
_GC_THRESHOLDS: Final = (20_000, 20, 50)


def run(settings: Settings, stop: threading.Event, beside: Supervisor) -> int:
    """Run the gateway in this process until ``stop`` is set; the exit code.

    Raises :class:`RoleFailed` for settings that do not do, OSError when a port is taken.
    """
    import uvloop

    from pipeline.faust_safe.app import logging_config
    from sinks.http import HealthServer

    logging.config.dictConfig(logging_config(settings))
    # What matters of it is told once, and stands in /readyz.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    gateway = gateway_of(settings)
    about = GATEWAY.deployment(settings)
    health = HealthServer(gateway, settings.web_bind, settings.gateway_port, about, version())

    def listening(port: int) -> None:
        scheme = "https" if settings.gateway_cert_file else "http"
        log.info(
            "runnerstream %s, gateway: Kafka %s, webhooks at %s/webhooks/, health at %s/readyz",
            version(), settings.kafka,
            http(gateway.config.host, port).replace("http", scheme, 1),
            http(settings.web_bind, health.port),
        )  # fmt: skip

    # What is imported stays: without this each full collection looks at all of it again. What a
    # delivery leaves behind is freed by reference counts, nearly all of it.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    try:
        beside.start()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(gateway.run(stop, listening))
    finally:
        beside.stop()
        health.close()
    return 0


def gateway_of(settings: Settings) -> Gateway:
    """The gateway that the settings describe. Raises :class:`RoleFailed` unless they do."""
    from pipeline.gateway import Gateway, GatewayConfig
    from pipeline.worker import client_options

    if not settings.gateway_listen:
        raise RoleFailed("gateway_listen is not set: it says where webhooks are taken "
                         "(RUNNERSTREAM_GATEWAY_LISTEN)")  # fmt: skip
    host, port = host_and_port(settings.gateway_listen)
    networks = filter(None, (each.strip() for each in settings.gateway_allow.split(",")))
    config = GatewayConfig(
        {**client_options(settings), "client_id": f"{settings.app_id}-gateway"},
        host, port,
        deadline_s=settings.gateway_deadline,
        body_time_s=settings.gateway_body_time,
        in_flight=settings.gateway_in_flight,
        memory=settings.gateway_memory,
        connections=settings.gateway_connections,
        allowed=tuple(map(ip_network, networks)),
        tls=_tls(settings),
        json_log=settings.log_format == "json",
    )  # fmt: skip
    return Gateway(config, keyring_of(settings), version())


def keyring_of(settings: Settings) -> Keyring:
    """The secrets that the settings name. Raises :class:`RoleFailed` when there are none, or for a
    provider that does not exist."""
    from pipeline.gateway import Keyring
    from pipeline.providers.registry import PROVIDERS

    general, own = settings.named_secrets(), dict[tuple[str, str], tuple[bytes, ...]]()
    for (provider, sender), secrets in secret_files(settings.webhook_secrets_dir).items():
        if provider not in PROVIDERS:
            raise RoleFailed(
                f"webhook_secrets_dir: there is no provider {provider}, only "
                f"{', '.join(PROVIDERS)} (RUNNERSTREAM_WEBHOOK_SECRETS_DIR)"
            )
        if sender:
            own[provider, sender] = secrets
        else:
            general[provider] = (*general.get(provider, ()), *secrets)
    keyring = Keyring(general, own)
    if not any(map(keyring.knows, PROVIDERS)):
        raise RoleFailed(
            "no secret is set, so nothing that comes could be authentic: name some in files "
            "(RUNNERSTREAM_WEBHOOK_SECRETS_DIR), or in RUNNERSTREAM_GITHUB_SECRETS, "
            "..._GITEA_SECRETS or ..._GITLAB_SECRETS"
        )
    return keyring


def _tls(settings: Settings) -> ssl.SSLContext | None:
    certificate, key = settings.gateway_cert_file, settings.gateway_key_file
    if not certificate:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        for name in ("gateway_cert_file", "gateway_key_file"):
            check_file(name, getattr(settings, name), f"{PREFIX}{name.upper()}")
        # Without an answer to the question for a passphrase, OpenSSL asks the terminal.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except ssl.SSLError as error:
        raise RoleFailed(
            f"gateway_cert_file: {certificate} and {key} are not a certificate and its key, in PEM "
            f"form and without a passphrase ({error.reason or 'no PEM'})"
        ) from None
    except ValueError as error:
        raise RoleFailed(str(error)) from None
    return context


GATEWAY: Final = Role(
    "gateway",
    "takes webhooks by HTTP and writes them to Kafka, when the setting gateway_listen says where",
    run,
    port="gateway_port",
    needs_topics=True,
    optional=True,
    setting="gateway_listen",
)
