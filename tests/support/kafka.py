"""Apache Kafka for tests: one KRaft node on loopback, from the artifacts on Maven Central.

`tests/support/kafka/` holds what belongs to it: the pom that names the version, and its logging.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from pipeline.local.process import (
    LOOPBACK,
    LocalServer,
    ServerFailed,
    ServerProcess,
    accepts_connections,
)
from tests.support import maven

_HERE = Path(__file__).with_name("kafka")
_READY_SECONDS = 60.0

_CLUSTER_ID = "cnVubmVyc3RyZWFtLXRlcw"

# One compiler tier and the serial collector: a test broker lives for seconds. A short first heap,
# so that several brokers fit beside each other.
_JAVA = ("java", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", "-Xms64m", "-Xmx512m")

_PROPERTIES = """\
process.roles=broker,controller
node.id=1
controller.quorum.voters=1@{host}:{controller_port}
listeners=CLIENTS://{host}:{port},CONTROLLER://{host}:{controller_port}
advertised.listeners=CLIENTS://{host}:{port}
listener.security.protocol.map=CLIENTS:PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=CLIENTS
controller.listener.names=CONTROLLER
log.dirs={logs}
auto.create.topics.enable=false
default.replication.factor=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
group.min.session.timeout.ms=1000
broker.heartbeat.interval.ms=250
broker.session.timeout.ms=2000
num.network.threads=2
num.io.threads=4
log.cleaner.dedupe.buffer.size=16777216
"""


class KafkaUnavailable(RuntimeError):
    """Apache Kafka cannot be run here; the message says why."""


def missing() -> str | None:
    """Why Apache Kafka cannot be run here, in one sentence; None when the tools are there."""
    return maven.missing("Apache Kafka")


def class_path() -> Path:
    """The directory of the broker's jars, resolved by Maven at the first call and then kept.

    Raises:
        KafkaUnavailable: when the tools are missing or Maven cannot resolve the artifacts.
    """
    try:
        return maven.jars("Apache Kafka", "kafka", _HERE / "pom.xml")
    except maven.JarsUnavailable as error:
        raise KafkaUnavailable(str(error)) from error


class ApacheKafka(LocalServer):
    """One broker that is its own controller, with its log on disk in `directory`.

    Args:
        directory: configuration and data; created when absent. A second start takes them up.
        port: of the clients' listener; 0 picks a free one at the first start and keeps it.
        settings: further broker settings, by Kafka's names.
    """

    NAME = "Apache Kafka"

    def __init__(
        self, directory: Path, port: int = 0, settings: dict[str, str] | None = None
    ) -> None:
        super().__init__(directory, {"clients": port, "controller": 0})
        self._settings = settings or {}

    @property
    def port(self) -> int:
        """The port; 0 while none is chosen."""
        return self._ports["clients"]

    @property
    def bootstrap(self) -> str:
        """What Kafka clients take as `bootstrap_servers`."""
        return f"{LOOPBACK}:{self.port}"

    def start(self, patience: float = 5.0) -> None:
        """Start it; a killed broker takes a while to leave its ports."""
        super().start(patience)

    def _require(self) -> None:
        class_path()

    def _launch(self) -> None:
        jars = class_path()
        java = [
            *_JAVA,
            f"-Dlog4j2.configurationFile={_HERE / 'log4j2.properties'}",
            "-cp",
            f"{jars}/*",
        ]
        properties = self.directory / "server.properties"
        logs = self.directory / "data"
        text = _PROPERTIES.format(
            host=LOOPBACK, port=self.port, controller_port=self._ports["controller"], logs=logs
        )
        properties.write_text(text + "".join(f"{k}={v}\n" for k, v in self._settings.items()))
        if not (logs / "meta.properties").exists():
            command = [*java, "kafka.tools.StorageTool", "format", "-t", _CLUSTER_ID]
            result = subprocess.run(
                [*command, "-c", str(properties)], capture_output=True, text=True, check=False
            )
            if result.returncode != 0:
                raise ServerFailed(
                    f"Apache Kafka cannot format {logs}: {(result.stdout + result.stderr)[-2000:]}"
                )
        self._process = ServerProcess(
            self.NAME,
            [*java, "kafka.Kafka", str(properties)],
            directory=self.directory,
            log=self.directory / "broker.log",
            grace=10.0,
        )
        self._process.start()
        self._process.wait_ready(self._ready, _READY_SECONDS)

    def _ready(self) -> bool:
        # The port opens some time before the broker is let into its own cluster.
        if not accepts_connections(self.port):
            return False
        try:
            admin = KafkaAdminClient(bootstrap_servers=self.bootstrap, bootstrap_timeout_ms=1000)
        except KafkaError:
            return False
        try:
            return bool(admin.describe_cluster()["brokers"])
        except KafkaError:
            return False
        finally:
            admin.close()


@contextmanager
def apache_kafka(directory: Path) -> Iterator[ApacheKafka]:
    """A running broker with its data in `directory`, stopped at the end."""
    with ApacheKafka(directory) as broker:
        yield broker
