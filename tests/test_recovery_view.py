"""What an operator sees of recovery and throws: the page, the gauges, the switches, on a real
worker and broker. The stalls are claims that are never minted, which need nobody to be asked."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest
from aiokafka.errors import KafkaConnectionError
from click.testing import CliRunner, Result
from kafka import KafkaProducer
from markupsafe import escape
from pydantic import SecretStr

from pipeline.cli import main
from pipeline.effects import Output
from pipeline.faust_safe.outbox import partition_of
from pipeline.fleet import switch
from pipeline.ledger import Ledger
from pipeline.local.process import free_port
from tests.support import PATIENCE, evidence
from tests.support.brokers import broker
from tests.support.house import House
from tests.support.worker import WorkerProcess
from topics.apply import apply
from topics.catalogue import COMMANDS, FLEETS, LIFECYCLE, catalogue
from topics.keys import job_key
from topics.recovery import Mode, Switch

PARTITIONS: Final = 2
TICK_S: Final = 0.5
TOKEN: Final = "a-token-of-this-test"
EVIL: Final = "<script>alert(1)</script>\u202e"
#: One fleet in each partition, and one with a name of a stranger's.
FLEET_OF: Final = {
    partition: next(
        name for n in range(99) if partition_of((name := f"fleet-{n}").encode(), 2) == partition
    )
    for partition in range(PARTITIONS)
}
POLICIES: Final = {"*": {"stale_claim": 1, "propose_again": 1, "cool_down": 600}}


@dataclass
class World:
    """A worker with a token and one without, on one broker."""

    kafka: str
    worker: WorkerProcess
    without: WorkerProcess
    jobs: int = 0

    def stuck(self, fleet: str) -> str:
        """A job that is claimed and stays so; its key."""
        self.jobs += 1
        number = 8_000 + self.jobs
        key = job_key("github", "github.com", number)
        now = int(time.time() * 1000)
        producer = KafkaProducer(bootstrap_servers=self.kafka)
        for n, kind in enumerate(("job.queued", "job.claimed")):
            told: dict[str, Any] = {
                "id": f"{number}-{n}", "kind": kind, "source": "test", "occurred_at": now + n,
                "received_at": now + n, "key": key, "job_id": str(number), "fleet": fleet,
                "repo": f"acme/{EVIL}",
            }  # fmt: skip
            if kind == "job.claimed":
                told |= {"claim": f"h-{number}", "runner": {"name": f"vm-{number}"}}
            producer.send(LIFECYCLE, key=key.encode(), value=json.dumps(told).encode())
        producer.flush()
        producer.close()
        return key

    def seen(self, query: str = "") -> dict[str, Any]:
        """The view, whole."""
        status, answer = self.worker.get(f"/recovery{query}")
        assert status == 200, answer
        return dict(answer)

    def stall(self, key: str) -> dict[str, Any]:
        """A job's stall as it is shown; empty when it is not."""
        return next((one for one in self.seen()["stalls"] if one["job"] == key), {})

    def last(self, key: str) -> tuple[str, str]:
        """What is shown to have happened last."""
        last = self.stall(key).get("last", {})
        return last.get("what", ""), last.get("detail", "")

    def run(self, *words: str, **settings: str) -> Result:
        """The command ``recovery``."""
        env = {
            "RUNNERSTREAM_KAFKA": self.kafka,
            "RUNNERSTREAM_PARTITIONS": str(PARTITIONS),
            "RUNNERSTREAM_WEB_PORT": str(self.worker.port),
            **settings,
        }
        return CliRunner().invoke(main, ["recovery", *words], env=env)

    def post(
        self, said: object, worker: WorkerProcess | None = None, **headers: str
    ) -> tuple[int, dict[str, Any], dict[str, str]]:
        """POST the switch: status, answer, headers."""
        body = said if isinstance(said, bytes) else json.dumps(said).encode()
        url = (worker or self.worker).url + "/recovery/switch"
        request = urllib.request.Request(url, body, headers, method="POST")
        try:
            with urllib.request.urlopen(request, timeout=15) as response:
                return response.status, json.load(response), dict(response.headers)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error), dict(error.headers)

    def modes(self) -> set[str]:
        """Of all fleets."""
        return {one["mode"] for one in self.seen()["fleets"] if "mode" in one}


def wait(until: Callable[[], bool], what: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE * 30
    while not until():
        assert time.monotonic() < end, what()
        time.sleep(0.1)


def commanded(kafka: str) -> set[str]:
    return {json.loads(each.value)["job_key"] for each in evidence.read_topic(kafka, COMMANDS)}


def switches(kafka: str) -> list[tuple[int, dict[str, Any]]]:
    read = evidence.read_topic(kafka, FLEETS)
    found = [(each.partition, json.loads(each.value)) for each in read]
    return [(partition, record) for partition, record in found if record["kind"] == "switch"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder: Path = tmp_path_factory.mktemp("view")
    with broker(folder) as kafka:
        for app_id in ("runnerstream", "mute"):
            apply(
                {"bootstrap_servers": kafka.bootstrap},
                catalogue(partitions=PARTITIONS, app_id=app_id),
            )
        common: dict[str, Any] = {"partitions": PARTITIONS, "tick_interval": TICK_S}
        without = WorkerProcess(kafka.bootstrap, app_id="mute", **common)
        with WorkerProcess(
            kafka.bootstrap, recovery="live", recovery_policies=json.dumps(POLICIES),
            web_token=TOKEN, **common,
        ) as worker:  # fmt: skip
            worker.wait_ready(60)
            try:
                yield World(kafka.bootstrap, worker, without)
            finally:
                without.stop()


def test_a_pause_stops_commands_in_every_partition(world: World) -> None:
    before = [world.stuck(fleet) for fleet in FLEET_OF.values()]
    wait(lambda: set(before) <= commanded(world.kafka), world.seen)
    wait(lambda: world.last(before[0]) == ("in flight", "release_claim"), world.seen)

    done = world.run("pause", "--reason", "maintenance")
    assert done.exit_code == 0, done.output
    assert "all fleets: paused" in done.output
    assert "within one tick (5 s)" in done.output
    assert sorted(partition for partition, _ in switches(world.kafka)) == [0, 1]
    wait(lambda: world.modes() == {"paused"}, world.seen)
    after = [world.stuck(fleet) for fleet in FLEET_OF.values()]
    wait(
        lambda: all(world.last(key) == ("withheld", "paused") for key in after),
        lambda: [world.stall(key) for key in after],
    )
    assert not set(after) & commanded(world.kafka)
    (one,) = world.seen()["switches"]
    assert (one["fleet"], one["mode"], one["reason"]) == ("", "paused", "maintenance")
    assert "@" in one["who"]
    assert one["not_heeded_by"] == []

    # The owner of one fleet thinks otherwise, later; then the switches are taken back.
    assert world.run("resume", "--fleet", FLEET_OF[1]).exit_code == 0
    wait(lambda: after[1] in commanded(world.kafka), world.seen)
    assert after[0] not in commanded(world.kafka)
    modes = {one["fleet"]: one["mode"] for one in world.seen()["fleets"]}
    assert (modes[FLEET_OF[0]], modes[FLEET_OF[1]]) == ("paused", "live")
    assert world.run("reset").exit_code == 0
    assert world.run("reset", "--fleet", FLEET_OF[1]).exit_code == 0
    wait(lambda: world.modes() == {"live"}, world.seen)
    wait(lambda: after[0] in commanded(world.kafka), world.seen)


def test_the_view_lists_counts_and_pages(world: World) -> None:
    keys = [world.stuck(FLEET_OF[0]) for _ in range(3)]
    wait(lambda: all(world.stall(key) for key in keys), world.seen)
    whole = world.seen()
    listed = [(one["since"], one["job"]) for one in whole["stalls"]]
    assert listed == sorted(listed)
    assert whole["matched"] == len(listed) == whole["kinds"]["stale_claim"]["jobs"]
    assert whole["kinds"]["orphan"] == {"jobs": 0, "oldest_ms": None}
    paged: list[str] = []
    cursor = ""
    while True:
        page = world.seen(f"?limit=2&cursor={cursor}")
        assert len(page["stalls"]) <= 2
        paged += [one["job"] for one in page["stalls"]]
        if page["next"] is None:
            break
        cursor = page["next"]
    assert paged == [job for _, job in listed]
    mine = world.seen(f"?fleet={FLEET_OF[0]}")
    assert {one["fleet"] for one in mine["stalls"]} == {FLEET_OF[0]}
    (fleet,) = mine["fleets"]
    assert fleet["stalls"] == mine["matched"]
    assert fleet["issued_hour"] >= 1
    assert world.seen("?kind=orphan")["matched"] == 0
    for wrong in ("?kind=none", "?cursor=x", "?limit=0", "?what=1"):
        assert world.worker.get(f"/recovery{wrong}")[0] == 400
    text = str(world.worker.get("/metrics")[1])
    assert f'runnerstream_stalls_open{{stall="stale_claim"}} {len(listed)}.0' in text
    assert 'runnerstream_stalls_open{stall="orphan"} 0.0' in text
    assert 'runnerstream_stalls_oldest_seconds{stall="orphan"} 0.0' in text
    told = world.run("status", "--fleet", FLEET_OF[0])
    assert told.exit_code == 0, told.output
    assert "configured: live" in told.output
    assert FLEET_OF[0] in told.output


def test_a_stall_that_has_ended_is_not_listed(world: World) -> None:
    key = world.stuck(FLEET_OF[1])
    wait(lambda: bool(world.stall(key)), world.seen)
    now = int(time.time() * 1000)
    number = key.rpartition(":")[2]
    producer = KafkaProducer(bootstrap_servers=world.kafka)
    started = {
        "id": f"{number}-started", "kind": "job.started", "source": "test", "occurred_at": now,
        "received_at": now, "key": key, "job_id": number, "runner": {"name": f"vm-{number}"},
    }  # fmt: skip
    producer.send(LIFECYCLE, key=key.encode(), value=json.dumps(started).encode())
    producer.flush()
    producer.close()
    wait(lambda: not world.stall(key), lambda: world.stall(key))
    assert world.worker.get(f"/jobs/{key}")[1]["recovery"]


def test_pages_escape_what_strangers_say(world: World) -> None:
    key = world.stuck(EVIL)
    wait(lambda: bool(world.stall(key)), world.seen)
    assert world.run("pause", "--fleet", EVIL, "--reason", EVIL).exit_code == 0
    wait(lambda: bool(world.seen()["switches"]), world.seen)
    wait(lambda: any(one["fleet"] == EVIL for one in world.seen()["switches"]), world.seen)
    _, page = world.worker.get("/recovery?format=html")
    assert EVIL not in page
    assert page.count(str(escape(EVIL))) >= 4
    assert "stale claim" in page
    _, job = world.worker.get(f"/jobs/{key}?format=html")
    assert "What recovery makes of it" in job
    assert "it is claimed and no runner is made for it" in job
    assert EVIL not in job


def test_the_web_call_needs_the_token(world: World) -> None:
    before = len(switches(world.kafka))
    said = {"mode": "dry_run", "fleet": FLEET_OF[0], "reason": "by HTTP"}
    status, answer, headers = world.post(said)
    assert status == 401
    assert "RUNNERSTREAM_WEB_TOKEN" in answer["error"]
    assert headers["WWW-Authenticate"].startswith("Bearer")
    for wrong in (f"Bearer {TOKEN}x", f"Basic {TOKEN}", "Bearer", TOKEN):
        assert world.post(said, Authorization=wrong)[0] == 401
    right = f"Bearer {TOKEN}"
    for bad in (
        b"{", b"[]", {}, {"mode": "stopped"}, {"mode": "paused"}, {"mode": "live", "flet": "x"},
        {"mode": "live", "reason": "x" * 2_000},
    ):  # fmt: skip
        status, answer, _ = world.post(bad, Authorization=right)
        assert status == 400, answer
    assert len(switches(world.kafka)) == before

    status, answer, _ = world.post(said, Authorization=right)
    assert status == 202, answer
    thrown = [record for _, record in switches(world.kafka) if record["id"] == answer["id"]]
    assert len(thrown) == PARTITIONS
    assert {each["key"] for each in thrown} == {f"switch:{FLEET_OF[0]}"}

    def shown() -> dict[str, Any]:
        found = world.seen()["switches"]
        return next((one for one in found if one["id"] == answer["id"]), {})

    wait(lambda: bool(shown()) and shown()["not_heeded_by"] == [], world.seen)
    assert shown()["who"] == "web@127.0.0.1"
    assert world.post({"mode": None, "fleet": FLEET_OF[0]}, Authorization=right)[0] == 202
    assert world.worker.get("/recovery/switch")[0] == 405


def test_without_a_token_nobody_is_let_in(world: World) -> None:
    world.without.start()
    for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": f"Bearer {TOKEN}"}):
        status, answer, _ = world.post({"mode": "live"}, world.without, **headers)
        assert status == 403
        assert "RUNNERSTREAM_WEB_TOKEN" in answer["error"]


def test_a_switch_that_may_be_misspelt_is_told(world: World) -> None:
    told = world.run("dry-run", "--fleet", "no-such-fleet")
    assert told.exit_code == 0
    assert "warning: no fleet no-such-fleet is known" in told.output
    assert world.run("pause").exit_code == 2
    assert world.run("pause", "--reason", " ").exit_code == 2
    nobody = world.run(
        "pause", "--reason", "x", RUNNERSTREAM_KAFKA=f"127.0.0.1:{free_port()}",
        RUNNERSTREAM_WEB_PORT=str(free_port()),
    )  # fmt: skip
    assert nobody.exit_code == 3, nobody.output


class Outbox:
    """Takes records, unless it is told to fail."""

    def __init__(self) -> None:
        self.taken: list[Output] = []
        self.error: Exception | None = None

    async def publish(self, outputs: Iterable[Output]) -> object:
        if self.error is not None:
            raise self.error
        self.taken += outputs
        return {}


def test_a_switch_counts_whatever_the_clocks_and_a_broker_that_refuses_is_told() -> None:
    ledgers = {partition: Ledger(partition, lambda key: None) for partition in range(3)}
    outbox = Outbox()
    with House(ledgers) as house:
        worker = house.worker
        worker.outbox = outbox
        worker.settings = worker.settings.model_copy(update={"web_token": SecretStr(TOKEN)})
        # Thrown by somebody whose clock is a day ahead: one partition knows of it.
        ahead = int(time.time() * 1000) + 86_400_000
        worker.fleet_ledgers[1].apply(0, switch("old", "", Mode.LIVE, "her", "", ahead))

        def throw() -> tuple[int, dict[str, Any]]:
            body = b'{"mode": "paused", "reason": "r"}'
            status, _, answer = house.raw(
                b"/recovery/switch", f"Authorization: bearer {TOKEN}",
                f"Content-Length: {len(body)}\r\n\r\n{body.decode()}", method=b"POST",
            )  # fmt: skip
            return status, json.loads(answer)

        status, answer = throw()
        assert status == 202
        assert answer["at"] == ahead + 1
        assert [each.partition for each in outbox.taken] == [0, 1, 2]
        for each in outbox.taken[:2]:
            assert each.partition is not None
            thrown = Switch.model_validate_json(each.value or b"")
            worker.fleet_ledgers[each.partition].apply(1, thrown)
        (shown,) = house.get("/recovery")[1]["switches"]
        assert (shown["mode"], shown["not_heeded_by"]) == ("paused", [2])
        assert "not yet heeded by partitions 2" in house.get("/recovery?format=html")[1]

        outbox.error = KafkaConnectionError("nobody is there")
        status, answer = throw()
        assert status == 503
        assert "throw it again" in answer["error"]
