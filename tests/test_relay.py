"""A relay on a real broker, and a target by real HTTP: away, slow, refusing; killed, doubled."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from pipeline.cli import main
from pipeline.local.process import LOOPBACK, free_port
from pipeline.relay import Relay
from tests.support.brokers import Broker, broker, kind
from tests.support.evidence import lag, read_topic
from tests.support.gateways import SECRET, queued, serve, until
from tests.support.receivers import Answer, Got, answer
from tests.support.relays import (
    PARTITIONS,
    Autoscaler,
    RelayProcess,
    deliveries,
    group,
    metric,
    orders,
    post,
    relaying,
)
from topics.apply import apply
from topics.bridge import RELAYED_BY
from topics.catalogue import DEAD_LETTERS, WEBHOOKS, catalogue
from topics.models import DEAD_LETTER
from topics.reading import read


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    with broker(tmp_path_factory.mktemp("broker")) as made:
        apply({"bootstrap_servers": made.bootstrap}, catalogue(partitions=PARTITIONS))
        yield made


def ready(relay: Relay) -> None:
    """Return once it has its partitions, whatever the target is like."""
    until(lambda: relay.status().lag is not None)


def in_order(taken: Iterable[bytes], told: list[tuple[int, bytes]]) -> None:
    """Each came at least once, the first time and the last time in the order of its job."""
    got = orders(taken)
    for job, wanted in orders(body for _, body in told).items():
        assert list(dict.fromkeys(got[job])) == wanted
        assert list(dict.fromkeys(reversed(got[job]))) == wanted[::-1]


def test_each_goes_on_as_it_came_and_those_of_a_job_in_order(running: Broker) -> None:
    told = deliveries(jobs=10, each=6)
    post(running.bootstrap, told)
    came = {record.value: record for record in read_topic(running.bootstrap, WEBHOOKS)}
    with (
        Autoscaler(told) as target,
        relaying(running.bootstrap, f"{target.url}/hook", begin="earliest") as relay,
    ):
        until(lambda: len(target.taken) == len(told))
        until(lambda: relay.status().ready and relay.status().lag == 0)
        assert metric(relay, "delivered_total", provider="github") == len(came)
    assert target.forged == 0
    assert sorted(target.taken) == sorted(body for _, body in told)
    in_order(target.taken, told)
    for each in target.got:
        assert each.path == "/hook"
        assert each.headers[RELAYED_BY].isalnum()
        sent = {name: value.encode() for name, value in each.headers.items()}
        for own in ("host", "content-length", RELAYED_BY):
            del sent[own]
        assert sent == dict(came[each.body].headers)


class Moods:
    """What a target says, and how many it is asked at a time."""

    def __init__(self) -> None:
        self.well = threading.Event()
        self.asked: list[int] = []
        self._now = 0
        self._lock = threading.Lock()

    def says(self, got: Got) -> Answer:
        with self._lock:
            self._now += 1
            self.asked.append(self._now)
        time.sleep(0.01)
        with self._lock:
            self._now -= 1
        return answer(202 if self.well.is_set() else 503)


def test_a_target_that_is_away_gets_one_at_a_time_and_then_all(running: Broker) -> None:
    moods, told, at_once = Moods(), deliveries(jobs=20, each=3), 8
    with (
        Autoscaler(told, moods.says) as target,
        relaying(running.bootstrap, target.url, at_once=at_once) as relay,
    ):
        ready(relay)
        post(running.bootstrap, told)
        until(lambda: len(moods.asked) > at_once and relay.status().paused)
        assert not relay.status().ready
        # Those that were under way when it went away end; from then on it is one by one.
        until(lambda: relay.status().in_flight == 0)
        so_far = len(moods.asked)
        until(lambda: len(moods.asked) > so_far + at_once)
        assert set(moods.asked[so_far:]) == {1}
        assert "http_503" in relay.status().reason
        assert metric(relay, "paused")
        assert target.taken == []
        moods.well.set()
        until(lambda: len(target.taken) >= len(told))
        until(lambda: relay.status().lag == 0)
        assert not relay.status().paused
    in_order(target.taken, told)
    assert len(target.taken) == len(told)


def test_one_that_nobody_listens_at_is_waited_for(running: Broker) -> None:
    told, port = deliveries(jobs=3, each=2), free_port()
    with relaying(running.bootstrap, f"http://{LOOPBACK}:{port}") as relay:
        ready(relay)
        post(running.bootstrap, told)
        until(lambda: metric(relay, "attempts_total", answer="unreachable") > 3)
        assert "unreachable" in relay.status().reason
        assert relay.status().alive
        with Autoscaler(told).at(port) as target:
            until(lambda: len(target.taken) == len(told))
    in_order(target.taken, told)


def test_one_job_that_fails_or_hangs_holds_up_nobody_else(running: Broker) -> None:
    told = deliveries(jobs=6, each=3)
    slow, odd, refused, denied, *others = dict.fromkeys(job for job, _ in told)
    release, asked = threading.Event(), Counter[bytes]()

    def says(got: Got) -> Answer:
        job = json.loads(got.body)["workflow_job"]["id"]
        asked[got.body] += 1
        if job == slow:
            release.wait(60)
        if job == odd and asked[got.body] < 4:
            # 500, no answer at all, and 429.
            return (answer(500), None, answer(429, Retry_After="0"))[asked[got.body] - 1]
        if job == denied and not release.is_set():
            return answer(404)
        return answer(400 if job == refused else 204)

    name = group()
    with (
        Autoscaler(told, says) as target,
        relaying(running.bootstrap, target.url, group_id=name, timeout_s=60) as relay,
    ):
        ready(relay)
        post(running.bootstrap, told)
        until(lambda: set(orders(target.taken)) == {odd, *others}
              and len(target.taken) == 3 * (1 + len(others)))  # fmt: skip
        until(lambda: metric(relay, "dead_letters_total", reason="refused") == 3)
        until(lambda: relay.status().lag == 6)
        release.set()
        until(lambda: relay.status().lag == 0)
    in_order(target.taken, [each for each in told if each[0] != refused])
    assert len(target.taken) == 15
    assert all(asked[body] == 1 for job, body in told if job in (refused, slow, *others))
    letters = {letter.record_value: letter for letter in letters_of(running, name)}
    assert set(letters) == {body for job, body in told if job == refused}
    assert all("http_400" in letter.error for letter in letters.values())
    assert lag(running.bootstrap, name, [WEBHOOKS]) <= 0


def letters_of(running: Broker, name: str) -> list[Any]:
    """The dead letters of a group."""
    found = [read(DEAD_LETTER, r.value) for r in read_topic(running.bootstrap, DEAD_LETTERS)]
    return [letter for letter in found if letter.id.endswith(f":{name}")]


def test_what_is_too_old_is_set_aside_and_can_be_replayed_to_this_relay(running: Broker) -> None:
    told, name = deliveries(jobs=2, each=1), group()
    with (
        Autoscaler(told) as target,
        relaying(running.bootstrap, target.url, group_id=name, max_age_s=3_600) as relay,
        Autoscaler(told) as second,
        relaying(running.bootstrap, second.url, max_age_s=1e9) as other,
    ):
        ready(relay)
        ready(other)
        post(running.bootstrap, told, at_ms=int(time.time() * 1000) - 7_200_000)
        until(lambda: metric(relay, "dead_letters_total", reason="expired") == 2)
        until(lambda: len(second.taken) == 2)
        assert target.taken == []
        wanted = letters_of(running, name)
        assert [letter.stage for letter in wanted] == ["relay"] * 2
        ids = [option for letter in wanted for option in ("--id", letter.id)]
        done = CliRunner().invoke(
            main, ["dead-letters", "replay", *ids], env={"RUNNERSTREAM_KAFKA": running.bootstrap}
        )
        assert done.exit_code == 0, done.output
        until(lambda: len(target.taken) == 2)
        until(lambda: metric(other, "skipped_total", reason="not_ours") == 2)
        assert target.forged == 0
        assert sorted(target.taken) == sorted(body for _, body in told)
        assert len(second.taken) == 2


def test_what_came_while_it_was_down_is_sent_and_nothing_twice(running: Broker) -> None:
    first, second, name = deliveries(jobs=1, each=2), deliveries(jobs=8, each=2), group()
    told = [*first, *second]
    with Autoscaler(told) as target:
        with relaying(running.bootstrap, target.url, group_id=name) as relay:
            ready(relay)
            # One partition gets nothing, and would have nothing to commit.
            post(running.bootstrap, first)
            until(lambda: len(target.taken) == len(first))
        post(running.bootstrap, second)
        with relaying(running.bootstrap, target.url, group_id=name) as relay:
            until(lambda: len(target.taken) >= len(told))
            until(lambda: relay.status().lag == 0)
        assert Counter(target.taken) == Counter(body for _, body in told)


def test_a_target_that_is_our_own_gateway_gets_each_once(running: Broker) -> None:
    body = queued()
    with (
        serve(running.bootstrap) as gateway,
        relaying(running.bootstrap, f"http://{LOOPBACK}:{gateway.port}/webhooks/github") as relay,
    ):
        ready(relay)
        until(lambda: gateway.gateway.status().ready)
        assert gateway.deliver(body).status == 202
        until(lambda: metric(relay, "skipped_total", reason="loop") >= 1)
        until(lambda: relay.status().lag == 0)
    written = [r for r in read_topic(running.bootstrap, WEBHOOKS) if r.value == body]
    assert len(written) == 2


def test_partitions_move_also_from_one_that_stands_still_and_each_job_stays_in_order(
    running: Broker,
) -> None:
    told, name = deliveries(jobs=12, each=45), group()
    first, second, third = told[:180], told[180:360], told[360:]

    def says(got: Got) -> Answer:
        time.sleep(0.02)
        return answer(202)

    with Autoscaler(told, says) as target:
        with relaying(running.bootstrap, target.url, group_id=name, at_once=4) as relay:
            ready(relay)
            post(running.bootstrap, first)
            until(lambda: len(target.taken) > 50)
            with relaying(running.bootstrap, target.url, group_id=name, at_once=4) as other:
                post(running.bootstrap, second)
                until(lambda: metric(other, "delivered_total", provider="github") > 10)
                # What is done is committed before partitions go.
                assert len(target.taken) == len(set(target.taken))
                post(running.bootstrap, third)
                until(lambda: relay.status().waiting > 20)
                # Longer than its session, as if it were frozen: its loop has its heartbeats, too.
                relay._consumer._loop.call_soon_threadsafe(time.sleep, 8)
                until(lambda: len(set(target.taken)) == len(told))
                until(lambda: relay._rebalances > 4)
            until(lambda: relay.status().lag == 0)
        assert target.forged == 0
    in_order(target.taken, told)


@pytest.mark.crash
def test_killed_it_sends_each_and_those_of_a_job_in_order(running: Broker, tmp_path: Path) -> None:
    told, name = deliveries(jobs=12, each=50), group()
    stuck, away = told[0][0], threading.Event()

    def says(got: Got) -> Answer:
        time.sleep(0.005)
        job = json.loads(got.body)["workflow_job"]["id"]
        return answer(500 if job == stuck and not away.is_set() else 202)

    with Autoscaler(told, says) as target:
        process = RelayProcess(running.bootstrap, tmp_path, target.url, "--group", name)
        process.start().wait_ready()
        post(running.bootstrap, told)
        process.wait(lambda: len(target.taken) > 100, 60, "send")
        process.kill()
        process.start()
        process.wait(lambda: len(set(target.taken)) == len(told) - 50, 60, "send all but one job's")
        assert process.stop() == 0, process.tail()
        # What one job holds up is committed all the same: none of the others is sent again.
        taken = len(target.taken)
        with relaying(running.bootstrap, target.url, group_id=name) as relay:
            ready(relay)
            until(lambda: metric(relay, "attempts_total", answer="failing") > 1)
            until(lambda: relay.status().lag == 50)
            # The embedded broker forgets what is beside the offset.
            assert len(target.taken) == taken or kind() != "kafka"
            away.set()
            until(lambda: len(set(target.taken)) == len(told))
            until(lambda: relay.status().lag == 0)
    assert target.forged == 0
    in_order(target.taken, told)
    assert lag(running.bootstrap, name, [WEBHOOKS]) <= 0
    log = process.log.read_text()
    assert "taking no more deliveries" in log
    assert SECRET.decode() not in log


def test_a_relay_without_secrets_says_so(running: Broker) -> None:
    settings = {"RUNNERSTREAM_KAFKA": running.bootstrap, "RUNNERSTREAM_PARTITIONS": "2"}
    told = CliRunner().invoke(main, ["relay", "--to", "http://127.0.0.1:1/"], env=settings)
    assert told.exit_code == 1
    assert "no secret is set" in told.output
    told = CliRunner().invoke(main, ["relay", "--from", "yesterday"], env=settings)
    assert told.exit_code == 2
    assert "relay_from" in told.output
    told = CliRunner().invoke(main, ["relay"], env=settings)
    assert told.exit_code == 1
    assert "relay_to is not set" in told.output
