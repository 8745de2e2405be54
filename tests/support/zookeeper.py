"""Apache ZooKeeper for tests: one server on loopback, from the artifacts on Maven Central.

ClickHouse speaks to it as to its own Keeper, which the embedded server does not have.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Final

from pipeline.local.process import LOOPBACK, LocalServer, ServerProcess
from tests.support import maven

_POM: Final = Path(__file__).with_name("zookeeper") / "pom.xml"
_READY_SECONDS: Final = 60.0

_CONFIG: Final = """\
dataDir={data}
clientPortAddress={host}
clientPort={port}
admin.enableServer=false
4lw.commands.whitelist=ruok
maxClientCnxns=0
"""


class ZooKeeper(LocalServer):
    """One server, with its data in ``directory``.

    Raises, when it is started, :class:`tests.support.maven.JarsUnavailable`.
    """

    NAME = "Apache ZooKeeper"

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, {"clients": 0})

    @property
    def port(self) -> int:
        """The port; 0 while none is chosen."""
        return self._ports["clients"]

    def _require(self) -> None:
        self._jars()

    def _jars(self) -> Path:
        return maven.jars(self.NAME, "zookeeper", _POM)

    def _launch(self) -> None:
        config = self.directory / "zoo.cfg"
        config.write_text(
            _CONFIG.format(data=self.directory / "data", host=LOOPBACK, port=self.port)
        )
        self._process = ServerProcess(
            self.NAME,
            [
                "java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xmx128m",
                "-cp", f"{self._jars()}/*",
                "org.apache.zookeeper.server.ZooKeeperServerMain", str(config),
            ],
            directory=self.directory,
            log=self.directory / "zookeeper.log",
            grace=5.0,
        )  # fmt: skip
        self._process.start()
        self._process.wait_ready(self._ready, _READY_SECONDS)

    def _ready(self) -> bool:
        try:
            with socket.create_connection((LOOPBACK, self.port), timeout=2.0) as asking:
                asking.sendall(b"ruok")
                return asking.recv(8) == b"imok"
        except OSError:
            return False
