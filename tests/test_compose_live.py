"""The files of `compose/`, read by the programs that they are for: Kafka, ClickHouse, every role,
promtool, amtool, kubectl, and Compose's published schema. No container is needed for that."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import ClassVar
from urllib.parse import urlsplit

import pytest
import yaml
from clickhouse_driver import Client
from clickhouse_driver.errors import ServerException
from jsonschema import Draft202012Validator
from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

from pipeline.local import EmbeddedClickHouse, unavailable
from pipeline.local.process import LOOPBACK, free_port
from sinks import schema
from tests.support import PATIENCE, deployment
from tests.support import kafka as apache
from tests.support.clients import ClientUnavailable, kubernetes_schemas, prometheus
from tests.support.deployment import COMPOSE, KUBERNETES, ROOT, services
from tests.support.prometheus import promtool

#: The second worker has the same command as the first, and would only cost time here.
ROLES = ("worker-1", "sink", "prober", "executor", "gateway")


def make_secrets(directory: Path, *clickhouse: str) -> str:
    """Run make-secrets; what it says."""
    return subprocess.run(
        ["sh", COMPOSE / "make-secrets", directory, *clickhouse],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


# --- secrets ----------------------------------------------------------------------------------


def test_secrets_are_made_once_and_their_directory_is_closed(tmp_path: Path) -> None:
    made = tmp_path / "secrets"
    told = make_secrets(made)
    files = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    assert len(told.splitlines()) == len(files)
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    # A container reads its own as a user that this machine does not know.
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o644}
    assert {each["file"] for each in deployment.stack()["secrets"].values()} <= {
        f"./secrets/{path.relative_to(made)}" for path in files
    }
    assert all(files.values())
    words = [files[made / name] for name in ("webhooks/github", "executor", "clickhouse_reader")]
    assert all(re.fullmatch(rb"[0-9a-f]{48}", word) for word in words)
    assert len(set(words)) == len(words)
    assert not make_secrets(made)
    assert {path: path.read_bytes() for path in files} == files


# --- schemas, and what other programs say -----------------------------------------------------


def test_compose_has_the_published_form() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec",
         COMPOSE / "compose.yaml"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_reads_it() -> None:
    docker = shutil.which("docker")
    if (
        docker is None
        or subprocess.run(
            [docker, "compose", "version"], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("no docker client with compose is here")
    done = subprocess.run(
        [docker, "compose", "--file", COMPOSE / "compose.yaml", "--profile", "*", "config", "-q"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_kustomize_builds_the_manifests(tmp_path: Path) -> None:
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not on the PATH")
    base = tmp_path / "base"
    shutil.copytree(KUBERNETES, base, ignore=shutil.ignore_patterns("secrets"))
    make_secrets(base / "secrets")
    done = subprocess.run([kubectl, "kustomize", base], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    assert len(built) == len(deployment.manifests()) + 5
    assert {each["metadata"].get("namespace") for each in built if each["kind"] != "Namespace"} == {
        "runnerstream"
    }
    names = {each["metadata"]["name"] for each in built if each["kind"] == "Secret"}
    assert all(re.fullmatch(r"[a-z]+-[a-z0-9]{10}", name) for name in names)
    mounted = {
        volume["secret"]["secretName"]
        for each in built
        if each["kind"] in ("Deployment", "StatefulSet", "Job")
        for volume in each["spec"]["template"]["spec"]["volumes"]
        if "secret" in volume
    }
    assert mounted == names


def test_manifests_are_objects_as_kubernetes_has_them() -> None:
    try:
        wheel = kubernetes_schemas()
    except ClientUnavailable as error:
        pytest.skip(str(error))
    folder = "kubernetes_validate/kubernetes-json-schema/v1.37.0-local-strict"
    with zipfile.ZipFile(wheel) as packed:
        known = json.loads(packed.read(f"{folder}/_definitions.json"))
        resource = Resource.from_contents(known, default_specification=DRAFT202012)
        registry = resource @ Registry().with_resource("/api/_definitions.json", resource)
        for each in deployment.manifests():
            group, _, version = each["apiVersion"].rpartition("/")
            parts = filter(None, (each["kind"].lower(), group.partition(".")[0], version))
            told = json.loads(packed.read(f"{folder}/{'-'.join(parts)}.json"))
            found = Draft202012Validator(told, registry=registry).iter_errors(each)
            wrong = [f"{error.json_path}: {error.message}" for error in found]
            assert not wrong, f"{each['kind']} {each['metadata']['name']}"


def test_promtool_takes_the_configuration_with_all_rules(tmp_path: Path) -> None:
    shutil.copy(COMPOSE / "prometheus/prometheus.yaml", tmp_path)
    rules = shutil.copytree(ROOT / "dashboards/prometheus", tmp_path / "rules")
    try:
        code, said = promtool("check", "config", str(tmp_path / "prometheus.yaml"))
    except ClientUnavailable as error:
        pytest.skip(str(error))
    assert code == 0, said
    assert f"{len(list(rules.glob('*.yaml')))} rule files found" in said
    program, *asked = services()["prometheus"]["healthcheck"]["test"][1:]
    assert program == "promtool"
    code, said = promtool(*asked)
    # Nothing listens, and the question is one that it knows.
    assert code == 1
    assert "usage" not in said.lower()


def test_amtool_takes_the_configuration() -> None:
    try:
        amtool = prometheus("amtool")
    except ClientUnavailable as error:
        pytest.skip(str(error))
    done = subprocess.run(
        [amtool, "check-config", COMPOSE / "prometheus/alertmanager.yaml"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


# --- the stack, without containers ------------------------------------------------------------


class _ClickHouse(EmbeddedClickHouse):
    """A server with the users and the configuration that compose mounts."""

    def __init__(self, directory: Path, secrets: Path, port: int) -> None:
        super().__init__(directory, port)
        self._secrets = secrets

    def _write_configuration(self) -> None:
        super()._write_configuration()
        for name in ("config", "users"):
            (self.directory / f"{name}.d").mkdir(exist_ok=True)
            text = (COMPOSE / f"clickhouse/{name}.xml").read_text()
            text = text.replace("/run/secrets", str(self._secrets))
            (self.directory / f"{name}.d/runnerstream.xml").write_text(text)


class _Stack:
    """The services of compose as processes on loopback, which share its ports."""

    MORE: ClassVar = {"simulator": ("--fast", "--duration", "30s", "--seed", "7")}

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.secrets = directory / "secrets"
        self.clickhouse_port = free_port()
        make_secrets(self.secrets, f"{LOOPBACK}:{self.clickhouse_port}")
        told = deployment.environment(services()["kafka"])
        self.ports = {port: free_port() for port in (9092, 9093, 19092)}
        self.properties = {
            name: self._here(value) for name, value in deployment.kafka_properties(told).items()
        } | {"log.dirs": str(directory / "kafka/data")}
        self.kafka = apache.ApacheKafka(directory / "kafka", self.ports[9092], self.properties)
        self.clickhouse = _ClickHouse(directory / "clickhouse", self.secrets, self.clickhouse_port)
        self.urls: dict[str, str] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def _here(self, value: str) -> str:
        value = value.replace("://:", f"://{LOOPBACK}:").replace("kafka:", f"{LOOPBACK}:")
        return re.sub(r":(19092|9092|9093)\b", lambda match: f":{self.ports[int(match[1])]}", value)

    def environment(self, name: str) -> dict[str, str]:
        """That of a service, with what is elsewhere here."""
        told = deployment.environment(services()[name])
        ours = {
            key: self._here(value).replace("/run/secrets", str(self.secrets))
            for key, value in told.items()
            if key.startswith("RUNNERSTREAM_")
        }
        if "RUNNERSTREAM_WEB_HOST" in ours:
            ours["RUNNERSTREAM_WEB_HOST"] = LOOPBACK
        if "RUNNERSTREAM_GATEWAY_LISTEN" in ours:
            self.urls["webhooks"] = f"{LOOPBACK}:{free_port()}"
            ours["RUNNERSTREAM_GATEWAY_LISTEN"] = self.urls["webhooks"]
        ours["RUNNERSTREAM_DATA_DIR"] = str(self.directory / name)
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RUNNERSTREAM_")}
        return {**inherited, **ours, "PYTHONPATH": str(ROOT)}

    def start(self, name: str) -> None:
        """Start a service's own command; the simulator's for half a minute, at once."""
        service = services()[name]
        env = self.environment(name)
        role = deployment.role(service["command"])
        if role is not None:
            assert role.port is not None
            port = free_port()
            env[f"RUNNERSTREAM_{role.port.upper()}"] = str(port)
            asked = urlsplit(service["healthcheck"]["test"][2])
            self.urls[name] = asked._replace(netloc=f"{LOOPBACK}:{port}").geturl()
        command = [*service["command"], *self.MORE.get(name, ())]
        with (self.directory / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, "-m", "pipeline.cli", *command],
                env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.directory,
            )  # fmt: skip

    def ended(self, name: str) -> None:
        """Wait for the end of a service that ends, and for a good one."""
        assert self.processes[name].wait(60 * PATIENCE) == 0, self.log(name)

    def ready(self, name: str) -> bool:
        """Whether its health check passes, asked by the image's own program."""
        assert self.processes[name].poll() is None, self.log(name)
        done = subprocess.run(
            [sys.executable, COMPOSE / "ready", self.urls[name]], capture_output=True, check=False
        )
        return done.returncode == 0

    def log(self, name: str) -> str:
        """The end of what it has said."""
        return f"{name}: {(self.directory / f'{name}.log').read_text()[-3000:]}"

    def reader(self) -> Client:
        """Grafana's user, with its password."""
        told = yaml.safe_load((COMPOSE / "grafana/datasources.yaml").read_text())
        user = told["datasources"][0]["jsonData"]["username"]
        password = (self.secrets / "clickhouse_reader").read_text()
        return Client(
            LOOPBACK, self.clickhouse_port, told["datasources"][0]["jsonData"]["defaultDatabase"],
            user, password,
        )  # fmt: skip


def _wait(holds: Callable[[], object], said: Callable[[], str]) -> None:
    """Until something holds; what is said when it never does."""
    deadline = time.monotonic() + 30 * PATIENCE
    while not holds():
        assert time.monotonic() < deadline, said()
        time.sleep(0.2)


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[_Stack]:
    if reason := apache.missing() or unavailable():
        pytest.skip(reason)
    made = _Stack(tmp_path_factory.mktemp("stack"))
    with ExitStack() as running, ThreadPoolExecutor() as pool:
        running.callback(made.kafka.stop)
        running.callback(made.clickhouse.stop)
        starting = [pool.submit(made.kafka.start), pool.submit(made.clickhouse.start)]
        for each in starting:
            each.result()
        # So that the writer has to make it.
        made.clickhouse.query("DROP DATABASE runnerstream")
        yield made
        for process in made.processes.values():
            if process.poll() is None:
                process.kill()
                process.wait()


@pytest.mark.kafka
def test_kafka_knows_every_property(stack: _Stack) -> None:
    broker = ConfigResource(ConfigResourceType.BROKER, stack.properties["node.id"])
    admin = KafkaAdminClient(bootstrap_servers=stack.kafka.bootstrap)
    try:
        told = admin.describe_configs([broker], config_filter="all")
    finally:
        admin.close()
    (known,) = told["broker"].values()
    for name, value in stack.properties.items():
        assert known[name]["value"] == value, name
        assert known[name]["config_source"] == "STATIC_BROKER_CONFIG", name
        assert known[name]["config_type"] != "UNKNOWN", name


@pytest.mark.kafka
def test_a_fleet_is_told_of_from_webhook_to_reader(stack: _Stack) -> None:
    for name in ("topics", "schema"):
        stack.start(name)
    for name in ("topics", "schema"):
        stack.ended(name)
    for name in (*ROLES, "simulator"):
        stack.start(name)
    stack.ended("simulator")
    for name in ROLES:
        _wait(partial(stack.ready, name), partial(stack.log, name))
    _post_webhook(stack)
    with stack.reader() as reader:
        sql = "SELECT count() FROM jobs_latest WHERE key = 'github:github.com:4711'"
        _wait(lambda: reader.execute(sql) == [(1,)], partial(stack.log, "sink"))
        assert reader.execute("SELECT count() FROM jobs_latest")[0][0] > 20
    for name in ROLES:
        stack.processes[name].send_signal(signal.SIGTERM)
    for name in ROLES:
        grace = int(services()[name]["stop_grace_period"].removesuffix("s"))
        assert stack.processes[name].wait(grace) == 0, stack.log(name)


def _post_webhook(stack: _Stack) -> None:
    job = {"id": 4711, "status": "queued", "labels": ["linux"]}
    body = json.dumps({"action": "queued", "workflow_job": job}).encode()
    secret = (stack.secrets / "webhooks/github").read_bytes()
    headers = {
        "Content-Type": "application/json",
        "X-GitHub-Event": "workflow_job",
        "X-GitHub-Delivery": "a8d8f6a0-0000-11f0-8000-000000000001",
        "X-Hub-Signature-256": "sha256=" + hmac.new(secret, body, hashlib.sha256).hexdigest(),
    }
    url = f"http://{stack.urls['webhooks']}/webhooks/github"
    with urllib.request.urlopen(urllib.request.Request(url, body, headers), timeout=30) as answer:
        assert answer.status == 202


def test_the_reader_reads_within_bounds_and_changes_nothing(stack: _Stack) -> None:
    writer = (stack.secrets / "clickhouse.env").read_text().partition("=")[2].strip()
    schema.apply(writer)
    with Client.from_url(writer) as client:
        client.execute("INSERT INTO jobs (key, rev, received_at) SELECT 'a', 1, now64(3)")
        for refused in ("CREATE USER somebody", "SELECT * FROM system.users"):
            with pytest.raises(ServerException):
                client.execute(refused)
    with stack.reader() as client:
        assert client.execute("SELECT count() FROM jobs_latest WHERE key = 'a'") == [(1,)]
        # What Grafana's datasource sends with each query.
        bounded = {"max_execution_time": 25}
        assert client.execute("SELECT getSetting('max_execution_time')", settings=bounded) == [
            (25,)
        ]
        for refused in (
            "INSERT INTO jobs (key, rev) SELECT 'b', 1",
            "TRUNCATE TABLE jobs",
            "SET max_execution_time = 3600",
            "SET max_memory_usage = 100000000000",
            "SET readonly = 0",
            "SELECT number FROM numbers(200000)",
        ):
            with pytest.raises(ServerException):
                client.execute(refused)
    with (
        pytest.raises(ServerException),
        Client(LOOPBACK, stack.clickhouse_port, user="runnerstream_reader", password="") as client,
    ):
        client.execute("SELECT 1")
