"""What a role is, to be declared."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from pipeline.roles.supervisor import Supervisor
from pipeline.settings import Settings

#: Settings, the event that tells it to stop, and the roles that run beside it as processes.
#: Returns the exit code. Raises :class:`RoleFailed` for what only an operator can mend.
Run = Callable[[Settings, threading.Event, Supervisor], int]


class RoleFailed(Exception):
    """A role cannot go on, in a sentence for people."""


@dataclass(frozen=True)
class Role:
    """Something that a worker can be, in a process of its own or as the first of several.

    Attributes:
        name: as ``--role`` takes it.
        does: what it does, in a few words.
        run: runs it in this process until it is told to stop. It imports late what is heavy:
            roles are listed by commands that run none of them.
        suffix: of its consumer group's name, behind the setting ``app_id``.
        reads: the topics that its group reads.
        port: the setting with the port of its views or its health; None when it listens nowhere.
        needs_clickhouse: whether it cannot do without one.
        optional: whether all others do their work without it.
        setting: the setting without which it is not among all roles; empty: it always is.
        needs_topics: whether all topics have to exist before it starts.
        own_signals: whether what it runs installs its own handlers of SIGTERM and SIGINT, which
            others before it would get in the way of.
    """

    name: str
    does: str
    run: Run
    suffix: str = ""
    reads: tuple[str, ...] = ()
    port: str | None = None
    needs_clickhouse: bool = False
    optional: bool = False
    setting: str = ""
    needs_topics: bool = False
    own_signals: bool = False

    def wanted(self, settings: Settings) -> bool:
        """Whether the settings want it when all roles are asked for."""
        return not self.setting or bool(getattr(settings, self.setting))

    @property
    def option(self) -> str:
        """The option for its port; empty when it has none."""
        return f"--{self.port.replace('_', '-')}" if self.port else ""

    def port_of(self, settings: Settings) -> int:
        """The port that the settings give it; 0 picks one. 0 too for a role without any."""
        return int(getattr(settings, self.port)) if self.port else 0

    def url(self, settings: Settings) -> str:
        """Where others reach its views or its health."""
        return http(settings.web_host, self.port_of(settings))

    def group(self, settings: Settings) -> str:
        """Its consumer group."""
        return settings.app_id + self.suffix

    def deployment(self, settings: Settings) -> dict[str, str]:
        """Whose process it is, for who finds one at an address: group, Kafka, and the database."""
        url = settings.clickhouse.get_secret_value()
        parts = urlsplit(url)
        where = f"{parts.hostname or '?'}{f':{parts.port}' if parts.port else ''}"
        return {
            "group": self.group(settings),
            "kafka": ",".join(sorted(settings.bootstrap)),
            "clickhouse": f"{where}/{parts.path.strip('/')}" if url else "",
        }


def http(host: str, port: int) -> str:
    """The URL of a host and a port."""
    return f"http://[{host}]:{port}" if ":" in host and host[0] != "[" else f"http://{host}:{port}"
