"""``runnerstream worker``: the fold, the sink, or both in two processes.

With ``--role all`` the fold runs here and the sink in a child process, because each keeps a core
busy and a crash of one must not take the other's memory with it. The child ends with this
process, however that ends: it reads its standard input, whose other end only we hold.
"""

from __future__ import annotations

import contextlib
import logging
import logging.config
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Final
from urllib.parse import urlsplit

import click

from pipeline.commands.connections import clickhouse_url, local_url, topics_plan, worker_url
from pipeline.commands.context import Context, Duration
from pipeline.commands.failure import FAILED, UNREACHABLE, USAGE, Failure, place
from pipeline.settings import Settings
from pipeline.text import version

log = logging.getLogger(__name__)

#: Restart of a crashed sink: the pause doubles up to the longest, and starts again at the first
#: once a sink has lived as long as ``_HEALTHY_S``. Seconds.
_FIRST_PAUSE_S: Final = 1.0
_LONGEST_PAUSE_S: Final = 30.0
_HEALTHY_S: Final = 60.0
#: From SIGTERM to SIGKILL. The sink writes what it has read in the meantime.
_GRACE_S: Final = 20.0
#: The same when whoever started us is gone: the servers may be gone with it. Seconds.
_ORPHAN_GRACE_S: Final = 1.5


@click.command()
@click.option(
    "--role",
    type=click.Choice(["all", "fold", "sink"]),
    default="all",
    show_default=True,
    help="fold: events to states, tables and views. sink: states to ClickHouse. all: both.",
)
@click.option("--web-port", type=click.IntRange(0, 65535), help="Port of the views; 0 picks one.")
@click.option(
    "--sink-port", type=click.IntRange(0, 65535), help="Port of the sink's health; 0 picks one."
)
@click.option(
    "--wait",
    "patience",
    type=Duration(),
    default="30s",
    show_default=True,
    help="How long to wait for Kafka at the start.",
)
@click.option("--until-stdin-closes", is_flag=True, hidden=True)
@click.pass_obj
def worker(
    context: Context,
    role: str,
    web_port: int | None,
    sink_port: int | None,
    patience: float,
    until_stdin_closes: bool,
) -> None:
    """Run a worker until it is told to stop (Ctrl-C or SIGTERM).

    Several workers with the same settings share the work; each needs a port of its own.
    """
    settings = context.with_overrides(web_port=web_port, sink_port=sink_port)
    if until_stdin_closes:
        _end_with_stdin()
    if role == "sink":
        sys.exit(run_sink(settings))
    if role == "all":
        clickhouse_url(settings)
    _when_reachable(lambda: require_topics(settings), patience)
    if settings.web_port == 0:
        port = _free_port(settings.web_bind)
        settings = context.with_overrides(web_port=port, sink_port=sink_port)
    _require_free(settings.web_bind, settings.web_port, "web_port")
    supervisor = SinkSupervisor(context, settings) if role == "all" else None
    sys.exit(run_fold(settings, supervisor))


def run_fold(settings: Settings, supervisor: SinkSupervisor | None = None) -> int:
    """Run the fold in this process, with the sink beside it; the exit code."""
    # Late: Faust takes half a second to import, which the other commands need not pay.
    from pipeline.commands.worker_ready import tell_when_ready
    from pipeline.faust_safe.app import logging_config
    from pipeline.worker import Worker, is_fenced

    logging.config.dictConfig(logging_config(settings))
    views = worker_url(settings)
    log.info(
        "runnerstream %s, worker of group %s: Kafka %s, %d partitions, state in %s, views at %s/",
        version(), settings.app_id, settings.kafka, settings.partitions,
        "memory" if settings.store == "memory" else settings.data_dir, views,
    )  # fmt: skip
    fenced = is_fenced(settings)
    if not fenced:
        log.warning(
            "the embedded broker has no working transactions: a worker that was replaced while it "
            "slept is not refused. Use Apache Kafka for more than a trial"
        )
    try:
        made = Worker(settings, fenced=fenced)
        if supervisor is not None:
            supervisor.start()
        over = tell_when_ready(local_url(settings.web_bind, settings.web_port), views)
        try:
            return made.run()
        finally:
            over.set()
    finally:
        if supervisor is not None:
            supervisor.stop()


def run_sink(settings: Settings) -> int:
    """Run the sink in this process until a signal; the exit code."""
    from pipeline.faust_safe.app import logging_config
    from sinks.config import SinkConfig
    from sinks.http import HealthServer
    from sinks.schema import SchemaError
    from sinks.sink import Sink

    logging.config.dictConfig(logging_config(settings))
    url = clickhouse_url(settings)
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, on_signal)
    kafka = {
        **settings.kafka_options(),
        "session_timeout_ms": int(settings.session_timeout * 1000),
        "heartbeat_interval_ms": max(500, int(settings.session_timeout * 100)),
        # Also how long a group waits for members to join again.
        "max_poll_interval_ms": int(max(settings.rebalance_timeout, 1) * 1000),
    }
    sink = Sink(SinkConfig(kafka, url, group_id=sink_group(settings)))
    try:
        health = HealthServer(
            sink, settings.web_bind, settings.sink_port, about=deployment(settings)
        )
    except OSError as error:
        raise _port_failure(settings.web_bind, settings.sink_port, "sink_port", error) from None
    log.info(
        "runnerstream %s, sink of group %s: Kafka %s to ClickHouse %s, health at %s/readyz",
        version(), sink_group(settings), settings.kafka, place(url),
        local_url(settings.web_bind, health.port),
    )  # fmt: skip
    try:
        sink.run(stop)
    except SchemaError as error:
        raise Failure(f"the tables do not fit this program: {error}") from None
    finally:
        health.close()
    return 0


def sink_group(settings: Settings) -> str:
    """Consumer group of the sink."""
    return f"{settings.app_id}-sink"


def deployment(settings: Settings) -> dict[str, str]:
    """Whose sink it is, for who finds one at an address: group, Kafka, and the database."""
    url = settings.clickhouse.get_secret_value()
    database = urlsplit(url).path.strip("/")
    return {
        "group": sink_group(settings),
        "kafka": ",".join(sorted(settings.bootstrap)),
        "clickhouse": f"{place(url)}/{database}" if url else "",
    }


def require_topics(settings: Settings) -> None:
    """Raise :class:`Failure` unless every topic exists as the settings want it."""
    found = topics_plan(settings)
    if found.mismatches:
        raise Failure(
            "topics contradict the settings:\n  " + "\n  ".join(map(str, found.mismatches))
        )
    if found.create:
        raise Failure(
            f"topics are missing: {', '.join(spec.name for spec in found.create)}",
            "create them with `runnerstream topics apply`",
        )


def _when_reachable(check: Callable[[], None], patience: float) -> None:
    """Run ``check``, again and again while what it needs cannot be reached."""
    deadline = time.monotonic() + patience
    told = False
    while True:
        try:
            return check()
        except Failure as failure:
            if failure.exit_code != UNREACHABLE or time.monotonic() >= deadline:
                raise
            if not told:
                click.echo(f"waiting up to {patience:g} s: {failure.message}", err=True)
                told = True
            time.sleep(0.5)


class SinkSupervisor:
    """Keeps a sink process running beside this one: restarts a crashed one, with backoff.

    ``start`` and ``stop`` are for the main thread; a thread of its own watches.
    """

    def __init__(self, context: Context, settings: Settings) -> None:
        self._command = [sys.executable, "-m", "pipeline.cli"]
        if context.config is not None:
            self._command += ["--config", str(context.config)]
        self._command += ["-v"] * context.verbose
        self._command += ["worker", "--role", "sink", "--until-stdin-closes"]
        self._command += ["--sink-port", str(settings.sink_port)]
        self._stopping = threading.Event()
        self._child: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._watch, name="sink-supervisor", daemon=True)

    def start(self) -> None:
        """Start the sink and watch it."""
        self._thread.start()

    def stop(self) -> None:
        """SIGTERM to the sink, which writes what it has read; SIGKILL after a grace."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(_GRACE_S + 5)

    def _watch(self) -> None:
        pause = _FIRST_PAUSE_S
        while not self._stopping.is_set():
            began = time.monotonic()
            self._child = child = self._launch()
            while child.poll() is None and not self._stopping.wait(0.2):
                pass
            if self._stopping.is_set():
                break
            if time.monotonic() - began > _HEALTHY_S:
                pause = _FIRST_PAUSE_S
            log.error("the sink ended with code %s; starting it again in %.0f s",
                      child.returncode, pause)  # fmt: skip
            self._stopping.wait(pause)
            pause = min(_LONGEST_PAUSE_S, pause * 2)
        self._end()

    def _launch(self) -> subprocess.Popen[bytes]:
        paths = [str(_source()), os.environ.get("PYTHONPATH", "")]
        return subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            # A session of its own: Ctrl-C reaches us only, and the sink ends after the fold.
            start_new_session=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        )

    def _end(self) -> None:
        child = self._child
        if child is None:
            return
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        try:
            child.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            log.warning("the sink did not end within %.0f s and is killed", _GRACE_S)
            child.kill()
            child.wait()
        if child.stdin is not None:
            child.stdin.close()


def _source() -> os.PathLike[str]:
    """The directory this package was imported from, so that a child imports the same."""
    from pathlib import Path

    return Path(__file__).resolve().parents[2]


def _end_with_stdin() -> None:
    """End this process when its standard input closes: then the process that started it is gone."""

    def watch() -> None:
        with contextlib.suppress(OSError, ValueError):
            while os.read(0, 4096):
                pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_ORPHAN_GRACE_S)
        os._exit(FAILED)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()


def _free_port(host: str) -> int:
    with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _require_free(host: str, port: int, setting: str) -> None:
    try:
        with socket.socket(_family(host), socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise _port_failure(host, port, setting, error) from None


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _port_failure(host: str, port: int, setting: str, error: OSError) -> Failure:
    return Failure(
        f"setting {setting}: cannot listen on {host}:{port}: {error.strerror or error}",
        f"choose another with --{setting.replace('_', '-')} (0 picks one) "
        f"or RUNNERSTREAM_{setting.upper()}",
        USAGE if isinstance(error, socket.gaierror) else FAILED,
    )
