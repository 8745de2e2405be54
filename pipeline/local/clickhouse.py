"""The embedded ClickHouse: a real server, native protocol and HTTP, from the wheel `chdb-core`.

It is ClickHouse's own code, with tables on disk that survive kill -9. What it lacks beside an
installed server: ON CLUSTER, replication, CREATE USER and the system logs (query_log and others).
"""

from __future__ import annotations

import hashlib
import http.client
import importlib.util
import os
import secrets
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import escape

from pipeline.local.process import (
    LOOPBACK,
    LocalError,
    LocalServer,
    MissingServer,
    ServerFailed,
    ServerProcess,
    accepts_connections,
)

DATABASE = "runnerstream"
PROGRAM_USER = "runnerstream"
READER_USER = "grafana"

_PACKAGE = "chdb-core"
_SERVER = Path(__file__).with_name("clickhouse_server.py")
_READY_SECONDS = 60.0
_MEBIBYTE = 1 << 20

# Sized for a laptop that does other work too. The pool of merges must stay larger than the
# thresholds under merge_tree, or the server refuses to start.
_CONFIG = """\
<clickhouse>
  <logger>
    <level>warning</level>
    <log>{log}</log>
    <size>10M</size>
    <count>2</count>
  </logger>
  <listen_host>{host}</listen_host>
  <tcp_port>{port}</tcp_port>
  <http_port>{http_port}</http_port>
  <users_config>users.xml</users_config>
  <max_connections>200</max_connections>
  <max_server_memory_usage>{server_memory}</max_server_memory_usage>
  <mark_cache_size>{mark_cache}</mark_cache_size>
  <uncompressed_cache_size>0</uncompressed_cache_size>
  <background_pool_size>4</background_pool_size>
  <background_common_pool_size>2</background_common_pool_size>
  <background_schedule_pool_size>8</background_schedule_pool_size>
  <background_fetches_pool_size>1</background_fetches_pool_size>
  <background_move_pool_size>1</background_move_pool_size>
  <merge_tree>
    <number_of_free_entries_in_pool_to_execute_mutation>2</number_of_free_entries_in_pool_to_execute_mutation>
    <number_of_free_entries_in_pool_to_lower_max_size_of_merge>2</number_of_free_entries_in_pool_to_lower_max_size_of_merge>
    <number_of_free_entries_in_pool_to_execute_optimize_entire_partition>2</number_of_free_entries_in_pool_to_execute_optimize_entire_partition>
  </merge_tree>
</clickhouse>
"""

# `default` is who the engine itself is: without password, because it logs in so, and therefore
# with the grants that opening the ports needs and no others.
_USERS = """\
<clickhouse>
  <profiles>
    <default>
      <max_memory_usage>{query_memory}</max_memory_usage>
    </default>
    <reader>
      <readonly>1</readonly>
      <max_execution_time>30</max_execution_time>
      <max_memory_usage>{reader_memory}</max_memory_usage>
      <max_threads_min_free_memory_per_thread>{thread_memory}</max_threads_min_free_memory_per_thread>
      <max_result_rows>1000000</max_result_rows>
      <result_overflow_mode>throw</result_overflow_mode>
      <constraints>
        <max_execution_time><changeable_in_readonly/><min>1</min><max>60</max></max_execution_time>
      </constraints>
    </reader>
  </profiles>
  <quotas><default/></quotas>
  <users>
    <default>
      <password/>
      <networks><ip>{host}</ip></networks>
      <profile>default</profile>
      <quota>default</quota>
      <grants>
        <query>GRANT SYSTEM LISTEN ON *.*</query>
        <query>GRANT SELECT ON system.numbers</query>
      </grants>
    </default>
    <{program}>
      <password_sha256_hex>{program_hash}</password_sha256_hex>
      <networks><ip>{host}</ip></networks>
      <profile>default</profile>
      <quota>default</quota>
    </{program}>
    <{reader}>
      <password_sha256_hex>{reader_hash}</password_sha256_hex>
      <networks><ip>{host}</ip></networks>
      <profile>reader</profile>
      <quota>default</quota>
      <grants>
        <query>GRANT SELECT ON {database}.*</query>
      </grants>
    </{reader}>
  </users>
</clickhouse>
"""


@dataclass(frozen=True)
class Passwords:
    """Passwords of the two users; random ones keep other people of the machine out."""

    program: str
    reader: str

    @classmethod
    def kept_in(cls, file: Path) -> Passwords:
        """Those of `file` (mode 0600), made and written at the first call."""
        try:
            program, reader = file.read_text().split()
        except FileNotFoundError:
            program, reader = secrets.token_urlsafe(18), secrets.token_urlsafe(18)
            with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
                out.write(f"{program}\n{reader}\n")
        except ValueError as error:
            raise LocalError(
                f"{file} should hold two words, the passwords of {PROGRAM_USER} and of "
                f"{READER_USER}: delete it to have new ones made"
            ) from error
        return cls(program, reader)


def require_clickhouse() -> None:
    """Check that the embedded server can be had here.

    Raises:
        MissingServer: when `chdb-core` is not installed or has no engine for this platform.
    """
    instead = "or point the program at a ClickHouse server"
    if sys.platform == "win32":
        raise MissingServer(f"the embedded ClickHouse does not run on Windows: use WSL, {instead}")
    found = importlib.util.find_spec("chdb")
    if found is None or not found.submodule_search_locations:
        raise MissingServer(
            f"the embedded ClickHouse needs the package {_PACKAGE}: install runnerstream[local], "
            f"{instead}"
        )
    if not list(Path(found.submodule_search_locations[0]).glob("_chdb.*so")):
        raise MissingServer(f"{_PACKAGE} has no engine for this platform: {instead}")


class EmbeddedClickHouse(LocalServer):
    """A ClickHouse server on loopback as a child process, with its data in `directory`.

    Two users: `runnerstream` may do everything, `grafana` only SELECT from the database
    `runnerstream`, bounded in time, memory and rows. The database exists once `start` returns.

    Args:
        directory: configuration, logs, passwords and data; created when absent, private.
        port: the port of the native protocol; 0 picks a free one at the first start and keeps it.
        http_port: the same for HTTP.
        memory_mib: the most memory the server takes, in MiB; one query gets half of it.
    """

    NAME = "the embedded ClickHouse"
    REMEDIES = {
        "native": "choose another with --clickhouse-port",
        "http": "choose another with --clickhouse-http-port",
    }
    MODE = 0o700

    def __init__(
        self, directory: Path, port: int = 0, http_port: int = 0, memory_mib: int = 2048
    ) -> None:
        super().__init__(directory, {"native": port, "http": http_port})
        self._memory_mib = memory_mib
        self._passwords = Passwords("", "")

    @property
    def port(self) -> int:
        """The port of the native protocol; 0 while none is chosen."""
        return self._ports["native"]

    @property
    def http_port(self) -> int:
        """The port of HTTP; 0 while none is chosen."""
        return self._ports["http"]

    @property
    def url(self) -> str:
        """For the program: `clickhouse://user:password@host:port/database`."""
        return self._url(PROGRAM_USER, self._passwords.program)

    @property
    def reader_url(self) -> str:
        """For dashboards: the same with the read-only user."""
        return self._url(READER_USER, self._passwords.reader)

    @property
    def http_url(self) -> str:
        """The HTTP interface, without credentials."""
        return f"http://{LOOPBACK}:{self.http_port}"

    def _require(self) -> None:
        require_clickhouse()

    def _launch(self) -> None:
        self._passwords = Passwords.kept_in(self.directory / "passwords")
        self._write_configuration()
        self._process = ServerProcess(
            self.NAME,
            # Isolated: nothing of the caller's environment decides what the engine loads.
            [sys.executable, "-I", str(_SERVER), str(self.directory.resolve())],
            directory=self.directory,
            log=self.directory / "server.out",
            grace=3.0,
        )
        self._process.start()
        self._process.wait_ready(
            lambda: accepts_connections(self.port) and self._ping(), _READY_SECONDS
        )
        try:
            self.query(f"CREATE DATABASE IF NOT EXISTS {DATABASE} ENGINE = Atomic")
        except LocalError:
            self._process.kill()
            raise

    def query(self, sql: str) -> str:
        """Run one statement over HTTP as the program's user; the answer as text.

        Made for setting up and for looking; the program itself uses the native protocol.

        Raises:
            ServerFailed: when the server refuses the statement or cannot be reached.
        """
        headers = {
            "X-ClickHouse-User": PROGRAM_USER,
            "X-ClickHouse-Key": self._passwords.program,
        }
        status, body = self._http("POST", "/", sql, headers)
        if status != 200:
            raise ServerFailed(f"the embedded ClickHouse refused {sql!r}: {body.strip()}")
        return body

    def _url(self, user: str, password: str) -> str:
        return f"clickhouse://{user}:{quote(password, safe='')}@{LOOPBACK}:{self.port}/{DATABASE}"

    def _ping(self) -> bool:
        try:
            return self._http("GET", "/ping", None, {})[0] == 200
        except LocalError:
            return False

    def _http(
        self, method: str, path: str, body: str | None, headers: Mapping[str, str]
    ) -> tuple[int, str]:
        connection = http.client.HTTPConnection(LOOPBACK, self.http_port, timeout=30.0)
        try:
            connection.request(method, path, body, dict(headers))
            response = connection.getresponse()
            return response.status, response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            raise ServerFailed(
                f"the embedded ClickHouse cannot be reached at {self.http_url}: {error}"
            ) from error
        finally:
            connection.close()

    def _write_configuration(self) -> None:
        memory = self._memory_mib * _MEBIBYTE
        config = _CONFIG.format(
            log=escape(str(self.directory.resolve() / "clickhouse.log")),
            host=LOOPBACK,
            port=self.port,
            http_port=self.http_port,
            server_memory=memory,
            mark_cache=memory // 16,
        )
        users = _USERS.format(
            host=LOOPBACK,
            query_memory=memory // 2,
            reader_memory=memory // 4,
            # ClickHouse's own 1 GiB would leave one thread to each question.
            thread_memory=memory // 16,
            program=PROGRAM_USER,
            program_hash=hashlib.sha256(self._passwords.program.encode()).hexdigest(),
            reader=READER_USER,
            reader_hash=hashlib.sha256(self._passwords.reader.encode()).hexdigest(),
            database=DATABASE,
        )
        (self.directory / "config.xml").write_text(config)
        (self.directory / "users.xml").write_text(users)
