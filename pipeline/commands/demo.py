"""``runnerstream demo``: all of it on this machine, with a CI fleet to watch.

::

    this process ─┬─ broker, ClickHouse         (children, LocalStack)
                  ├─ worker: fold and views     (child) ── sink, prober (its children)
                  ├─ executor: does what recovery commands          (child)
                  ├─ gateway: takes webhooks by HTTP                (child)
                  ├─ GitHub's API and a dispatcher, over HTTP  (threads, demo_recovery)
                  ├─ feeder thread: recorded payloads, then a simulated fleet; webhooks to the
                  │  gateway as GitHub posts them, the rest to Kafka
                  └─ summary on the terminal, read from the views and from ClickHouse

Children hold the other end of a pipe of ours, so whatever ends this process ends them.
"""

from __future__ import annotations

import contextlib
import json
import random
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Any, Final

import click
from clickhouse_driver import Client
from rich.console import Group

from pipeline.commands import demo_gateway, demo_recovery, demo_telemetry
from pipeline.commands.connections import ask
from pipeline.commands.context import Context, Duration
from pipeline.commands.demo_check import (
    Check,
    compare,
    compare_gateway,
    compare_recovery,
    renamed,
)
from pipeline.commands.demo_children import Children, write_private
from pipeline.commands.demo_feed import Feed
from pipeline.commands.demo_gateway import Answered, Gateway, Landed
from pipeline.commands.demo_recovery import BOUND_S, Other
from pipeline.commands.demo_screen import STUCK_MS, Snapshot, display, status_line, summary
from pipeline.commands.demo_telemetry import Telemetry
from pipeline.commands.failure import FAILED, USAGE, Failure
from pipeline.commands.output import cell, print_table, say
from pipeline.ledger import LIVE
from pipeline.local import LocalError, LocalStack, PortTaken, default_data_dir, unavailable
from pipeline.local.process import LOOPBACK, free_port, require_free_port, resident_mib
from pipeline.local.stack import CLICKHOUSE_HTTP_PORT, CLICKHOUSE_PORT, KAFKA_PORT
from pipeline.settings import Settings, load
from pipeline.text import duration
from sinks import schema
from topics.apply import TopicsError, apply
from topics.catalogue import catalogue

#: The clock of the demo: often enough to watch. Seconds.
TICK_S: Final = 2.0
#: How long it runs unless told otherwise. The embedded broker forgets nothing until it ends, and a
#: demo that somebody forgot must not take the machine's memory. Seconds.
USUAL_S: Final = 1800.0
#: At how many MiB of memory of the broker it ends, however long it was to run. Half an hour at the
#: usual rate takes about 1,400.
MEMORY_MIB: Final = 1536
#: How often the broker's memory is looked at. Seconds.
_WEIGH_S: Final = 5.0
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
    """Everything on this machine, without Docker: a broker, ClickHouse, a worker, a gateway, a CI
    fleet that misbehaves and whose jobs get stuck, recovery, and a live summary. Settings of the
    environment are not used.

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
        self.snapshot = Snapshot()
        self._stack: LocalStack | None = None
        self._other: Other | None = None
        self._gateway: Gateway | None = None
        self._children = Children(directory)
        self._feed: Feed | None = None
        self._telemetry: Telemetry | None = None
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
        return self._other is not None and self._other.asked is not None

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
                ("gateway", 6070),
                ("webhooks", demo_gateway.PORT),
            )
        }
        self._stack = stack = LocalStack(
            self.directory, ports["Kafka"], ports["ClickHouse"], ports["ClickHouse HTTP"]
        )
        stack.start(self._say)
        self._other = Other()
        secrets = self.directory / demo_gateway.SECRETS
        self._gateway = Gateway(
            ports["webhooks"] or free_port(),
            ports["gateway"] or free_port(),
            demo_gateway.secret_in(secrets),
        )
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
            "webhook_secrets_dir": str(secrets),
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
        self._children.start(
            "gateway", env | self._gateway.settings(), ["gateway", "--until-stdin-closes"]
        )
        schema.apply(stack.clickhouse_url)
        self._children.start("worker", env, ["worker", "--until-stdin-closes"])
        self._children.start("executor", env, self._other.command(self.directory))
        self._feed = Feed(
            self.settings.kafka, self.seed, self.rate, self.lasts, self.checked, self._other,
            self._gateway,
        )  # fmt: skip
        self._telemetry = Telemetry(
            self.settings.kafka, tuple(ALIASES.values()), self.seed, self.lasts + BOUND_S
        )
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
                    f"the worker is not ready after 60 s: {why}", self._children.hint("worker")
                )
        else:
            return
        took = time.monotonic() - self.began
        self._say(f"ready after {took:.0f} s: {self.url}/; webhooks go to {self._gateway.url}")

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
        text = "".join(f"{name}={value}\n" for name, value in env.items())
        write_private(self.directory / "env", text)

    def _still_alive(self) -> None:
        """Raise :class:`Failure` when a part has ended by itself."""
        if self._feed is not None:
            self._feed.check()
        if self._telemetry is not None:
            self._telemetry.check()
        self._children.check()
        if self._stack is not None and not self._stack.status().running:
            raise Failure(f"a server ended by itself: see the logs in {self.directory}")

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
            if line.over and (line.key, line.n) not in self.snapshot.told:
                self.snapshot.told.add((line.key, line.n))
                self._say(line.text())

    def _say_status(self) -> None:
        self._say(status_line(self.snapshot, self._elapsed_ms(), self._sent()))

    def _summary(self) -> Group:
        return summary(
            self.snapshot,
            self._elapsed_ms(),
            self._sent(),
            self.lasts,
            self.url,
            "" if self._gateway is None else self._gateway.url,
            self.directory / "env",
            shutil.get_terminal_size(),
        )

    def _sent(self) -> int:
        return sum(each.sent for each in (self._feed, self._telemetry) if each is not None)

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
            snapshot.pools = demo_telemetry.pools(self.url)
            snapshot.runners = demo_telemetry.runners(self.url)
            shown = demo_telemetry.scrape(self.url)
            snapshot.schedulers = demo_telemetry.schedulers(shown)
            snapshot.reconcilers = demo_telemetry.reconcilers(shown)
        if self._gateway is not None and self._feed is not None:
            with contextlib.suppress(OSError):
                outcomes = self._gateway.outcomes()
                snapshot.webhooks = Answered(outcomes, *self._feed.hooks.percentiles())
        try:
            client = self._clickhouse()
            counts = ", ".join(f"(SELECT count() FROM {name} FINAL)" for name in TABLES)
            snapshot.rows = dict(zip(TABLES, client.execute(f"SELECT {counts}")[0], strict=True))
            if self._other is not None and self._feed is not None and self._feed.simulation:
                began = self._feed.simulation.start_ms
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
        feed, other = self._feed, self._other
        assert feed is not None
        assert other is not None
        simulation = feed.simulation
        assert simulation is not None
        if not stop.is_set():
            self._settle(other, stop)
        feed.end()
        telemetry = self._telemetry
        assert telemetry is not None
        telemetry.end()
        self._still_alive()
        # The world stands still from here on: nothing more may be done to it.
        self._children.end("executor")
        ended = int(time.time() * 1000)
        truth = renamed(simulation.truth(), ALIASES)
        self._say(
            f"sent {feed.sent:,} events of {len(truth.jobs):,} jobs; waiting for the pipeline to "
            "drain, then comparing"
        )
        stop.clear()  # Ctrl-C ended the watching; the next one ends the waiting
        deadline = time.monotonic() + DRAIN_S
        with contextlib.closing(Landed(self.settings.kafka)) as landed:
            while True:
                self._still_alive()
                # GitHub is still asked, and what it answers is true as well.
                truth = simulation.truth(demo_recovery.closed(other, self.url))
                client = self._clickhouse()
                found = compare(renamed(truth, ALIASES), self.url, client, simulation.start_ms)
                compare_recovery(found, other, client, simulation.start_ms, ended)
                landed.read()
                compare_gateway(found, feed.hooks.tally, landed)
                demo_telemetry.compare(found, telemetry, self.url, client)
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
        if self._feed is None:
            return
        self._feed.end()
        self._look()
        depth = self.snapshot.depth()
        alive = sum(depth[status] for status in LIVE)
        rows = sum(self.snapshot.rows.values())
        self._say("")
        self._say(
            f"{duration(self._elapsed_ms())}: {self._feed.recorded} recorded "
            f"deliveries and {self._feed.sent:,} simulated events; {depth['completed']:,} jobs "
            f"completed, {alive:,} live; {rows:,} rows in ClickHouse"
        )
        seen = self.snapshot.recovery
        self._say(
            f"{seen.injected} jobs got stuck, {seen.found} were found, {seen.recovered} recovered; "
            f"{seen.hits} commands hit a job that lived"
        )
        webhooks = self.snapshot.webhooks
        self._say(
            f"the gateway took {webhooks.taken:,} webhooks and refused {webhooks.refused:,} forged "
            "ones"
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
        """Stop everything that runs, in order: feeder, the programs, servers."""
        self._disconnect()
        if self._children or self._stack is not None:
            self._say("stopping")
        if self._feed is not None:
            self._feed.end(5)
        if self._telemetry is not None:
            self._telemetry.end(5)
        self._children.end_all()
        if self._other is not None:
            self._other.close()
            self._other = None
        if self._stack is not None:
            self._stack.stop()
            self._stack = None
            # It names servers that are gone, and a password.
            for name in ("env", demo_recovery.SECRET_FILE):
                (self.directory / name).unlink(missing_ok=True)
            demo_gateway.forget_secrets(self.directory / demo_gateway.SECRETS)

    def _say(self, text: str) -> None:
        say(cell(text))


def _oldest_per_state(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The first job of each state; rows come oldest first."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        found.setdefault(row["status"], row)
    return list(found.values())
