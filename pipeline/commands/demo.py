"""``runnerstream demo``: all of it on this machine, with a CI fleet to watch.

::

    this process ─┬─ broker, ClickHouse         (children, LocalStack)
                  ├─ worker: fold and views     (child) ── sink, prober (its children)
                  ├─ executor: does what recovery commands          (child)
                  ├─ GitHub's API and a dispatcher, over HTTP  (threads, demo_recovery)
                  ├─ feeder thread: recorded payloads, then a simulated fleet
                  └─ summary on the terminal, read from the views and from ClickHouse

Children hold the other end of a pipe of ours, so whatever ends this process ends them.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, Final

import click
from clickhouse_driver import Client
from rich.console import Group

from pipeline.commands import demo_recovery
from pipeline.commands.connections import ask
from pipeline.commands.context import Context, Duration
from pipeline.commands.demo_check import Check, compare, compare_recovery, renamed
from pipeline.commands.demo_recorded import recorded
from pipeline.commands.demo_recovery import BOUND_S, Other
from pipeline.commands.demo_screen import STUCK_MS, Snapshot, display, status_line, summary
from pipeline.commands.failure import FAILED, USAGE, Failure, short
from pipeline.commands.output import cell, print_table, say
from pipeline.ledger import LIVE
from pipeline.local import LocalError, LocalStack, PortTaken, default_data_dir, unavailable
from pipeline.local.process import LOOPBACK, free_port, require_free_port, resident_mib
from pipeline.local.stack import CLICKHOUSE_HTTP_PORT, CLICKHOUSE_PORT, KAFKA_PORT
from pipeline.providers.sending import Signer
from pipeline.settings import Settings, load
from pipeline.simulate import Faults, Simulation
from pipeline.simulate.produce import live
from pipeline.text import duration
from sinks import schema
from topics.apply import TopicsError, apply
from topics.catalogue import WEBHOOKS, catalogue
from topics.producer import Producer

#: The clock of the demo: often enough to watch. Seconds.
TICK_S: Final = 2.0
#: How long it runs unless told otherwise. The embedded broker forgets nothing until it ends, and a
#: demo that somebody forgot must not take the machine's memory. Seconds.
USUAL_S: Final = 1800.0
#: At how many MiB of memory of the broker it ends, however long it was to run. Half an hour at the
#: usual rate takes about 1,000.
MEMORY_MIB: Final = 1536
#: How often the broker's memory is looked at. Seconds.
_WEIGH_S: Final = 5.0
#: What happens on the way: everything that happens to webhooks, within a minute or two.
FAULTS: Final = Faults(
    duplicates=0.02,
    drops=0.003,
    reordered=0.03,
    reorder_s=8.0,
    redelivered=0.005,
    redeliver_s=(20.0, 90.0),
    malformed=0.004,
)
#: Whose rows are counted, without the superseded ones.
TABLES: Final = ("jobs", "job_transitions", "job_timings", "windows", "dead_letters")
#: How long the pipeline may take to drain before differences count. Seconds.
DRAIN_S: Final = 60.0

#: Canonical label set -> pool, for the fleets of the simulation that have a dispatcher.
ALIASES: Final = {
    ",".join(sorted({label.lower() for label in fleet.labels} - {"self-hosted"})): fleet.name
    for fleet in demo_recovery.fleets(1, 1.0)
    if fleet.dispatcher
}


@click.command()
@click.option("--duration", "lasts", type=Duration(),
              help="End after this time: 90s, 3h.  [default: 30m; with --check 1m]")  # fmt: skip
@click.option("--memory", "memory_mib", type=click.IntRange(32), default=MEMORY_MIB,
              show_default=True,
              help="End when the embedded broker, which keeps all records in memory, holds so many "
              "MiB.")  # fmt: skip
@click.option("--check", "checked", is_flag=True,
              help="At the end compare views, windows and ClickHouse with the truth.")  # fmt: skip
@click.option("--seed", type=int, help="The same seed gives the same fleet.  [default: random]")
@click.option("--rate", type=click.FloatRange(1, 100_000), default=300.0, show_default=True,
              help="Jobs a minute.")  # fmt: skip
@click.option("--dir", "directory", type=click.Path(path_type=Path, file_okay=False),
              help="Where it keeps its files.  [default: the user's state directory]")  # fmt: skip
@click.pass_obj
def demo(
    context: Context,
    lasts: float | None,
    checked: bool,
    seed: int | None,
    rate: float,
    directory: Path | None,
    memory_mib: int,
) -> None:
    """Everything on this machine, without Docker: a broker, ClickHouse, a worker, a CI fleet that
    misbehaves and whose jobs get stuck, recovery, and a live summary. Settings of the environment
    are not used.

    It ends by itself after half an hour, or when the embedded broker, which forgets nothing, has
    grown to --memory. Nothing of it runs on when it ends, however that happens.
    """
    reason = unavailable()
    if reason is not None:
        raise Failure(reason)
    if lasts is None:
        lasts = 60.0 if checked else USUAL_S
    if lasts <= 0:
        raise Failure("--duration must be more than 0", exit_code=USAGE)
    chosen = random.randrange(1_000_000) if seed is None else seed
    stop = threading.Event()

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt  # asked twice: leave now, the children end with us
        stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, on_signal)
    run = Demo(directory or default_data_dir("demo"), chosen, rate, lasts, memory_mib, checked)
    try:
        with run:
            run.start(stop)
            if not stop.is_set():
                run.watch(stop)
            result = run.check(stop) if checked and run.fed else None
            run.farewell(result)
    except LocalError as error:
        raise Failure(str(error)) from None
    except TopicsError as error:
        raise Failure(f"the embedded broker: {error}") from None
    if result is not None and not result.equal:
        raise SystemExit(FAILED)


class Demo:
    """The parts of the demo, as a context: whatever happens inside, all of it is stopped."""

    def __init__(
        self,
        directory: Path,
        seed: int,
        rate: float,
        lasts: float,
        memory_mib: int = MEMORY_MIB,
        checked: bool = False,
    ) -> None:
        self.directory = directory
        self.seed = seed
        self.rate = rate
        self.lasts = lasts
        self.memory_mib = memory_mib
        self.checked = checked
        self._weighed = 0.0
        self._broker_mib = 0
        self._ended = ""
        self.began = time.monotonic()
        self.sent = 0
        self.recorded = 0
        self.simulation: Simulation | None = None
        self.snapshot = Snapshot()
        self._stack: LocalStack | None = None
        self._other: Other | None = None
        #: By name: worker, executor.
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._told: set[tuple[str, int]] = set()
        self._feeder: threading.Thread | None = None
        self._feeding = threading.Event()
        self._feed_error: BaseException | None = None
        self._client: Client | None = None
        self._settings: Settings | None = None

    def __enter__(self) -> Demo:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def settings(self) -> Settings:
        """What the worker runs with."""
        assert self._settings is not None
        return self._settings

    @property
    def url(self) -> str:
        """Where the views are."""
        return f"http://{LOOPBACK}:{self.settings.web_port}"

    @property
    def fed(self) -> bool:
        """Whether the simulated fleet has begun."""
        return self.simulation is not None

    # -- start ---------------------------------------------------------------------------------

    def start(self, stop: threading.Event) -> None:
        """Servers, topics, tables, worker; returns when the worker is ready or ``stop`` is set."""
        self._say(f"runnerstream demo, seed {self.seed}, {self.rate:g} jobs a minute")
        ports = {
            name: self._port(name, wanted)
            for name, wanted in (
                ("Kafka", KAFKA_PORT),
                ("ClickHouse", CLICKHOUSE_PORT),
                ("ClickHouse HTTP", CLICKHOUSE_HTTP_PORT),
                ("views", 6066),
                ("sink", 6067),
                ("prober", 6068),
            )
        }
        self._stack = stack = LocalStack(
            self.directory, ports["Kafka"], ports["ClickHouse"], ports["ClickHouse HTTP"]
        )
        stack.start(self._say)
        self._other = Other()
        values = {
            "kafka": stack.kafka_bootstrap,
            "clickhouse": stack.clickhouse_url,
            "web_port": str(ports["views"] or free_port()),
            "sink_port": str(ports["sink"]),
            "prober_port": str(ports["prober"]),
            "tick_interval": f"{TICK_S:g}",
            # A queued job is known by its labels until a dispatcher names its pool.
            "fleets": json.dumps(ALIASES),
            "data_dir": str(self.directory / "worker"),
            # The embedded broker lets a group wait for half of the rebalance time-out.
            "session_timeout": "6",
            "rebalance_timeout": "3",
            **self._other.settings(),
        }
        env = {f"RUNNERSTREAM_{name.upper()}": value for name, value in values.items()}
        self._write_env(env)
        self._settings = load(environment=False, **values)
        self._say("creating topics and tables")
        apply(self.settings.kafka_options(), catalogue(self.settings.partitions))
        schema.apply(stack.clickhouse_url)
        self._start_child("worker", env, ["worker", "--until-stdin-closes"])
        self._start_child("executor", env, self._other.command(self.directory))
        self._feed()
        self._say("worker started; waiting until it is ready")
        deadline = time.monotonic() + 60
        while not stop.wait(0.2):
            self._still_alive()
            with contextlib.suppress(Failure):
                self.snapshot.ready = ask(self.url, "/readyz", timeout=2.0)
                if self.snapshot.ready.get("ready"):
                    break
            if time.monotonic() > deadline:
                why = "; ".join(r["text"] for r in self.snapshot.ready.get("reasons", ()))
                raise Failure(
                    f"the worker is not ready after 60 s: {why}", self._log_hint("worker")
                )
        else:
            return
        self._say(f"ready after {time.monotonic() - self.began:.0f} s: {self.url}/")

    def _port(self, name: str, wanted: int) -> int:
        """The usual port, or 0 for any when another program has it."""
        try:
            # A demo that was killed a moment ago may still be letting go of it.
            require_free_port(wanted, name, "", 1.0)
        except PortTaken:
            self._say(f"port {wanted} ({name}) is taken: picking another")
            return 0
        return wanted

    def _write_env(self, env: dict[str, str]) -> None:
        """Settings for other commands to use the demo: ``--config``. It holds a password."""
        file = self.directory / "env"
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as out:
            out.writelines(f"{name}={value}\n" for name, value in env.items())

    def _start_child(self, name: str, settings: dict[str, str], arguments: list[str]) -> None:
        root = str(Path(__file__).resolve().parents[2])
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("RUNNERSTREAM_")}
        paths = os.pathsep.join(filter(None, [root, inherited.get("PYTHONPATH", "")]))
        with self._log(name).open("wb") as output:
            self._children[name] = subprocess.Popen(
                [sys.executable, "-m", "pipeline.cli", *arguments],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                env={**inherited, **settings, "PYTHONPATH": paths},
                start_new_session=True,
            )

    def _log(self, name: str) -> Path:
        return self.directory / f"{name}.log"

    def _log_hint(self, name: str) -> str:
        lines = self._log(name).read_text(errors="replace").splitlines()[-8:]
        return "\n  ".join([f"the end of {self._log(name)}:", *lines])

    def _still_alive(self) -> None:
        """Raise :class:`Failure` when a part has ended by itself."""
        if self._feed_error is not None:
            raise Failure(f"the events cannot be sent: {short(self._feed_error)}")
        for name, child in self._children.items():
            if child.poll() is not None:
                raise Failure(
                    f"the {name} ended with code {child.returncode}", self._log_hint(name)
                )
        if self._stack is not None and not self._stack.status().running:
            raise Failure(f"a server ended by itself: see the logs in {self.directory}")

    # -- events --------------------------------------------------------------------------------

    def _feed(self) -> None:
        self._feeder = threading.Thread(target=self._send, name="feeder", daemon=True)
        self._feeder.start()

    def _send(self) -> None:
        try:
            with Producer(self.settings.kafka, client_id="runnerstream-demo") as producer:
                signer = Signer()
                for delivery in recorded():
                    sent = signer.record(delivery)
                    producer.send(WEBHOOKS, sent.key, sent.value, sent.headers)
                    self.recorded += 1
                producer.flush(10)
                # What is stuck at the end may take a while, and life goes on meanwhile.
                minutes = (self.lasts + (BOUND_S if self.checked else 0)) / 60
                simulation = live(
                    self.seed,
                    self.rate,
                    minutes,
                    start_ms=int(time.time() * 1000),
                    fleets=demo_recovery.fleets(max(1, round(self.rate * minutes)), minutes * 60),
                    faults=FAULTS,
                    stalls=demo_recovery.stalls(self.lasts, self.checked),
                )
                self.simulation = simulation
                for record in simulation.records():
                    if self._other is not None and self._other.asked is None:
                        assert simulation.asked is not None
                        self._other.open(simulation.asked)
                    while (ahead := record.send_at_ms / 1000 - time.time()) > 0:
                        if self._feeding.wait(min(ahead, 0.25)):
                            break
                    # The truth counts every record that was taken: so the last one is sent, too.
                    producer.send(record.topic, record.key, record.value, record.headers)
                    self.sent += 1
                    if self._feeding.is_set():
                        break
        except BaseException as error:
            self._feed_error = error

    def _end_feed(self) -> None:
        self._feeding.set()
        if self._feeder is not None:
            self._feeder.join(20)

    # -- summary -------------------------------------------------------------------------------

    def watch(self, stop: threading.Event) -> None:
        """Show the summary until ``stop`` is set or the time is over."""
        ends = time.monotonic() + self.lasts
        with display(self._say_status, self._summary) as show:
            while not stop.is_set() and not self._ended:
                self._still_alive()
                self._weigh()
                self._look()
                self._say_stalls()
                show()
                if time.monotonic() >= ends:
                    self._ended = (
                        f"ended after {duration(self.lasts * 1000)}, as it was to: the embedded "
                        f"broker keeps every record in memory ({self._broker_mib:,} MiB by now); "
                        "--duration makes it longer"
                    )
                stop.wait(min(1.0, max(0.0, ends - time.monotonic())))

    def _weigh(self) -> None:
        """End when the broker has grown to the limit."""
        if time.monotonic() - self._weighed < _WEIGH_S or self._stack is None:
            return
        self._weighed = time.monotonic()
        self._broker_mib = resident_mib(self._stack.broker.pid)
        if self._broker_mib >= self.memory_mib:
            self._ended = (
                f"ended, because the embedded broker holds {self._broker_mib:,} MiB of memory: it "
                "keeps every record. --memory lets it hold more, --rate posts less, and an Apache "
                "Kafka of yours keeps records on disk"
            )

    def _say_stalls(self) -> None:
        """Where no terminal is: a line for each stall that is over."""
        if sys.stdout.isatty():
            return
        for line in self.snapshot.recovery.lines:
            if line.over and (line.key, line.n) not in self._told:
                self._told.add((line.key, line.n))
                self._say(line.text())

    def _say_status(self) -> None:
        self._say(status_line(self.snapshot, self._elapsed_ms(), self.sent))

    def _summary(self) -> Group:
        return summary(
            self.snapshot,
            self._elapsed_ms(),
            self.sent,
            self.lasts,
            self.url,
            self.directory / "env",
            shutil.get_terminal_size(),
        )

    def _elapsed_ms(self) -> float:
        return (time.monotonic() - self.began) * 1000

    def _look(self) -> None:
        """Refresh the snapshot; what does not answer now stays as it was."""
        snapshot = self.snapshot
        with contextlib.suppress(Failure):
            snapshot.fleets = ask(self.url, "/fleets", {"span": 300}, 3.0).get("fleets", [])
            found = ask(self.url, "/jobs", {"age": STUCK_MS // 1000, "limit": 200}, 3.0)
            snapshot.stuck = _oldest_per_state(found.get("jobs", []))
            snapshot.ready = ask(self.url, "/readyz", timeout=3.0)
        try:
            client = self._clickhouse()
            counts = ", ".join(f"(SELECT count() FROM {name} FINAL)" for name in TABLES)
            snapshot.rows = dict(zip(TABLES, client.execute(f"SELECT {counts}")[0], strict=True))
            if self._other is not None and self.simulation is not None:
                began = self.simulation.start_ms
                snapshot.recovery = demo_recovery.look(self._other, self.url, client, began)
        except Exception:  # it may be starting or stopping; the next look asks again
            self._disconnect()

    def _clickhouse(self) -> Client:
        if self._client is None:
            self._client = Client.from_url(self.settings.clickhouse.get_secret_value())
        return self._client

    def _disconnect(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with contextlib.suppress(Exception):
                client.disconnect()

    # -- end -----------------------------------------------------------------------------------

    def check(self, stop: threading.Event) -> Check | None:
        """Compare with the simulator's truth, until equal or the pipeline had time to drain."""
        simulation, other = self.simulation, self._other
        assert simulation is not None
        assert other is not None
        assert other.asked is not None
        if not stop.is_set():
            self._settle(other, stop)
        self._end_feed()
        self._still_alive()
        # The world stands still from here on: nothing more may be done to it.
        self._end_child("executor")
        ended = int(time.time() * 1000)
        truth = renamed(simulation.truth(), ALIASES)
        self._say(
            f"sent {self.sent:,} events of {len(truth.jobs):,} jobs; waiting for the pipeline to "
            "drain, then comparing"
        )
        stop.clear()  # Ctrl-C ended the watching; the next one ends the waiting
        deadline = time.monotonic() + DRAIN_S
        while True:
            self._still_alive()
            # GitHub is still asked, and what it answers is true as well.
            truth = simulation.truth(demo_recovery.closed(other, self.url))
            client = self._clickhouse()
            found = compare(renamed(truth, ALIASES), self.url, client, simulation.start_ms)
            compare_recovery(found, other, client, simulation.start_ms, ended)
            if found.equal or time.monotonic() > deadline or stop.wait(1.0):
                return found

    def _settle(self, other: Other, stop: threading.Event) -> None:
        """Go on until what is stuck is recovered, or might have been."""
        told = False
        while (left := other.unsettled(int(time.time() * 1000))) and not stop.wait(0.5):
            self._still_alive()
            self._look()
            self._say_stalls()
            if not told:
                told = True
                self._say(f"{left} stuck jobs are not recovered yet: waiting up to {BOUND_S:g} s")

    def farewell(self, checked: Check | None) -> None:
        """The last words: what was seen, what was compared."""
        self._end_feed()
        if self._settings is None:
            return
        self._look()
        depth = self.snapshot.depth()
        alive = sum(depth[status] for status in LIVE)
        rows = sum(self.snapshot.rows.values())
        self._say("")
        self._say(
            f"{duration(self._elapsed_ms())}: {self.recorded} recorded "
            f"deliveries and {self.sent:,} simulated events; {depth['completed']:,} jobs "
            f"completed, {alive:,} live; {rows:,} rows in ClickHouse"
        )
        seen = self.snapshot.recovery
        self._say(
            f"{seen.injected} jobs got stuck, {seen.found} were found, {seen.recovered} recovered; "
            f"{seen.hits} commands hit a job that lived"
        )
        if self._ended:
            self._say(self._ended)
        if checked is not None:
            self._say("")
            columns = ("compared", "with the truth", "expected", "found", "different")
            print_table(columns, checked.lines(), right=(2, 3, 4))
            for difference in checked.differences[:10]:
                self._say(f"  {difference}")
            left = len(checked.differences) - 10
            if left > 0:
                self._say(f"  and {left} more")
            self._say("all equal" if checked.equal else "DIFFERENT from the truth")

    def stop(self) -> None:
        """Stop everything that runs, in order: feeder, executor, worker with its sink, servers."""
        self._feeding.set()
        self._disconnect()
        if self._children or self._stack is not None:
            self._say("stopping")
        for child in self._children.values():
            child.terminate()
        for name in list(self._children):
            self._end_child(name)
        if self._feeder is not None:
            self._feeder.join(5)
        if self._other is not None:
            self._other.close()
            self._other = None
        if self._stack is not None:
            self._stack.stop()
            self._stack = None
            # It names servers that are gone, and a password.
            for name in ("env", demo_recovery.SECRET_FILE):
                (self.directory / name).unlink(missing_ok=True)

    def _end_child(self, name: str) -> None:
        child = self._children.pop(name)
        child.terminate()
        try:
            child.wait(15)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        finally:
            if child.stdin is not None:
                child.stdin.close()

    def _say(self, text: str) -> None:
        say(cell(text))


def _oldest_per_state(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first job of each state; rows come oldest first."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(row["status"], row)
    return list(found.values())
