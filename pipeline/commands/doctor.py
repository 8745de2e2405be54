"""``doctor``: what works, what does not, and what to do about it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC
from functools import partial
from typing import Any, Final, Literal

import click
from clickhouse_driver.errors import Error as ClickHouseError
from kafka import TopicPartition
from kafka.admin import OffsetSpec
from kafka.errors import (
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    KafkaError,
)

from pipeline.commands.connections import (
    Answer,
    ask,
    beside_a_demo,
    bounded,
    clickhouse,
    clickhouse_failure,
    elsewhere,
    kafka_admin,
    require_clickhouse,
    specs,
    topics_plan,
    within,
    worker_url,
)
from pipeline.commands.context import Context
from pipeline.commands.failure import FAILED, UNREACHABLE, Failure, place, short
from pipeline.commands.output import cell, on_terminal, print_json, say
from pipeline.roles import Role, first, wanted
from pipeline.settings import Settings
from pipeline.text import duration
from sinks import schema
from sinks.config import target
from topics.apply import Difference, Plan
from topics.catalogue import DEAD_LETTERS

State = Literal["ok", "look", "bad", "skipped"]

#: Clocks further apart than this make ages and lateness wrong. Seconds.
SKEW_S: Final = 2.0
_WORDS: Final = {"ok": "ok", "look": "look", "bad": "BAD", "skipped": "–"}
_STYLES: Final[dict[State, dict[str, Any]]] = {
    "ok": {"fg": "green"},
    "look": {"fg": "yellow"},
    "bad": {"fg": "red", "bold": True},
    "skipped": {"dim": True},
}
#: The longest name of what is looked at.
_WIDTH: Final = len("clock of ClickHouse")
#: How long one part of the looking may take, whatever it waits for. Seconds.
PART_S: Final = 45.0
#: How long to wait before each further question to a broker that has no coordinator yet. Seconds.
_UNTIL_COORDINATED_S: Final = (0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
#: Where the documentation says how to go on.
_PARTITIONS_SAID: Final = 'docs/operators.md, "A topic has another number of partitions"'


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at. ``todo`` says what to do when it is not ok."""

    what: str
    state: State
    told: str
    todo: str = ""
    unreachable: bool = False


@click.command()
@click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")
@click.pass_obj
def doctor(context: Context, as_json: bool) -> None:
    """Look at everything the program needs, and say what to do.

    Exit code 0 when nothing is bad, 1 when something is, 3 when something cannot be reached.
    """
    findings = []
    for each in examine(context.settings):
        findings.append(each)
        if not as_json:
            _tell(each)
    if as_json:
        print_json(
            [{"what": f.what, "state": f.state, "told": f.told, "todo": f.todo} for f in findings]
        )
    if any(f.unreachable for f in findings):
        raise SystemExit(UNREACHABLE)
    if any(f.state == "bad" for f in findings):
        raise SystemExit(FAILED)


def _tell(finding: Finding) -> None:
    """Write one finding, at once: what is slow to answer must not hold back what is known."""
    word = f"{_WORDS[finding.state]:<4}"
    if on_terminal():
        word = click.style(word, **_STYLES[finding.state])
    say(f"{word}  {finding.what:<{_WIDTH}}  {cell(finding.told)}")
    if finding.todo:
        say(f"{' ' * (_WIDTH + 8)}do: {cell(finding.todo)}")


def examine(settings: Settings) -> Iterator[Finding]:
    """All findings, one after another. Never raises, and ends whatever is silent."""
    broker = next(iter(_guarded("Kafka", lambda: iter([_broker(settings)]))))
    yield broker
    if broker.state == "ok":
        yield from _guarded("fencing", lambda: _fencing(settings))
        yield from _guarded("topics", lambda: _topics(settings))
        # The others have no group of their own.
        for role in (each for each in _wanted(settings) if each is first() or each.suffix):
            yield from _guarded(f"{_who(role)} group", partial(_lags, settings, role))
        yield from _guarded("dead letters", lambda: _letters(settings))
    yield from _guarded("ClickHouse", lambda: _clickhouse(settings))
    yield from _guarded("worker", lambda: _worker(settings))
    for role in _wanted(settings):
        if role is not first() and role.port:
            yield from _guarded(role.name, partial(_beside, settings, role))


def _wanted(settings: Settings) -> list[Role]:
    """The roles that the settings let run."""
    configured = bool(settings.clickhouse.get_secret_value())
    return [role for role in wanted(settings) if configured or not role.needs_clickhouse]


def _guarded(what: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    found: list[Finding] = []

    def all_of_it() -> None:
        for each in look():
            found.append(each)

    failed = None
    try:
        within(PART_S, f"what there is to say about {what}", all_of_it)
    except Failure as error:
        failed = Finding(what, "bad", error.message, error.remedy, error.exit_code == UNREACHABLE)
    except TimeoutError as error:
        failed = Finding(what, "bad", str(error), unreachable=True)
    except Exception as error:  # whatever it is, the other findings are wanted all the more
        failed = Finding(what, "bad", short(error))
    yield from list(found)
    if failed is not None:
        yield failed


def _broker(settings: Settings) -> Finding:
    began = time.monotonic()
    try:
        with kafka_admin(settings) as admin:
            brokers = admin.describe_cluster()["brokers"]
    except Failure as error:
        return Finding("Kafka", "bad", error.message, error.remedy, unreachable=True)
    except KafkaError as error:
        return Finding("Kafka", "bad", f"{settings.kafka} refuses: {short(error)}",
                       "are RUNNERSTREAM_KAFKA_USER, RUNNERSTREAM_KAFKA_PASSWORD and "
                       "RUNNERSTREAM_KAFKA_SECURITY right?")  # fmt: skip
    took = duration((time.monotonic() - began) * 1000)
    count = len(brokers)
    told = f"{settings.kafka} answers in {took}, {count} broker{'' if count == 1 else 's'}"
    return Finding("Kafka", "ok", told)


def _fencing(settings: Settings) -> Iterator[Finding]:
    # Late: Faust takes half a second to import.
    from pipeline.faust_safe.fencing import can_fence

    with kafka_admin(settings) as admin:
        fenced = can_fence(admin.describe_cluster()["cluster_id"])
    if fenced:
        yield Finding("fencing", "ok", "the broker refuses a worker that was replaced")
    else:
        yield Finding(
            "fencing",
            "look",
            "the embedded broker has no working transactions: a worker that was replaced while it "
            "slept is not refused",
            "use Apache Kafka for more than a trial",
        )


def _topics(settings: Settings) -> Iterator[Finding]:
    found = topics_plan(settings)
    if found.create:
        names = ", ".join(spec.name for spec in found.create)
        yield Finding("topics", "bad", f"missing: {names}", "`runnerstream topics apply`")
    yield from _counts(settings, found)
    for mismatch in found.mismatches:
        if mismatch.setting != "partitions":
            yield Finding("topics", "bad", _said(mismatch), mismatch.remedy)
    for drift in found.drift:
        yield Finding("topics", "look", _said(drift), "`runnerstream topics apply --mend`")
    if not (found.create or found.mismatches or found.drift):
        note = f", settings of {len(found.unknown)} not told" if found.unknown else ""
        yield Finding("topics", "ok", f"{len(found.unchanged)} as they should be{note}")


def _said(difference: Difference) -> str:
    return (
        f"{difference.topic}: {difference.setting} is {difference.found}, should be "
        f"{difference.wanted}"
    )


def _counts(settings: Settings, found: Plan) -> Iterator[Finding]:
    """Topics with another number of partitions than the settings say."""
    wrong = {d.topic: int(d.found) for d in found.mismatches if d.setting == "partitions"}
    if not wrong:
        return
    known = {spec.name for spec in specs(settings) if spec.partitions == settings.partitions}
    right = known - wrong.keys() - {spec.name for spec in found.create}
    names = ", ".join(f"{topic} has {count}" for topic, count in sorted(wrong.items()))
    told = f"partitions: {names}; the settings say {settings.partitions}"
    if not right and len(set(wrong.values())) == 1 and wrong.keys() <= known:
        (count,) = set(wrong.values())
        yield Finding("topics", "bad", told,
                      f"set RUNNERSTREAM_PARTITIONS={count}, as the topics have it")  # fmt: skip
        return
    more = sorted(t for t, count in wrong.items() if count > settings.partitions)
    if more:
        told += f": records on the further partitions of {', '.join(more)} are not read"
    yield Finding(
        "topics", "bad", told,
        f"partitions cannot be taken away: {_PARTITIONS_SAID}, says how to go on",
    )  # fmt: skip


def _who(role: Role) -> str:
    return "worker" if role is first() else role.name


def _lags(settings: Settings, role: Role) -> Iterator[Finding]:
    group = role.group(settings)
    with kafka_admin(settings) as admin:
        lag = _lag(admin, group, role.reads, settings.partitions)
        members = _members(admin, group)
    told = f"group {group}: {lag:,} records behind"
    if members is not None:
        told += f", {len(members)} member{'' if len(members) == 1 else 's'}"
        if hosts := sorted({host for host, _ in members if host}):
            told += f" on {', '.join(hosts)}"
    state: State = "ok" if members != [] else "look" if role.optional else "bad"
    todo = "" if members != [] else f"`runnerstream worker --role {role.name}`"
    yield Finding(f"{_who(role)} group", state, told, todo)
    if role.needs_clickhouse and members:
        ours = target(settings.clickhouse.get_secret_value())
        yield from _apart(group, ours, [client for _, client in members])


def _apart(group: str, ours: str, clients: list[str]) -> Iterator[Finding]:
    """Whether all members of the sinks' group write to where the settings say."""
    found = {client.partition("@")[2] for client in clients} - {""}
    if found - {ours}:
        yield Finding(
            "sinks", "look",
            f"members of group {group} write to {', '.join(sorted(found))}; the settings say "
            f"{ours}: unless these are names of one database, each gets a part of the rows",
            "give each deployment an app_id of its own: RUNNERSTREAM_APP_ID",
        )  # fmt: skip


def _lag(admin: Any, group: str, topics: tuple[str, ...], partitions: int) -> int:
    existing = set(admin.list_topics())
    wanted = [TopicPartition(t, p) for t in topics if t in existing for p in range(partitions)]
    if not wanted:
        return 0
    found = _coordinated(lambda: admin.list_group_offsets({group: wanted})).get(group, {})
    done = {where: at.offset for where, at in found.items() if at.offset >= 0}
    missing = [where for where in wanted if where not in done]
    if missing:
        first = admin.list_partition_offsets(dict.fromkeys(missing, OffsetSpec.EARLIEST))
        done |= {where: at.offset for where, at in first.items()}
    ends = admin.list_partition_offsets(dict.fromkeys(wanted, OffsetSpec.LATEST))
    return sum(max(0, ends[where].offset - done[where]) for where in wanted)


def _coordinated(ask: Callable[[], Any]) -> Any:
    """Ask for a group. A broker that never had any makes its topic of groups at the first
    question, and meanwhile has no coordinator."""
    for pause in _UNTIL_COORDINATED_S:
        try:
            return ask()
        except (CoordinatorNotAvailableError, CoordinatorLoadInProgressError):
            time.sleep(pause)
    return ask()


def _members(admin: Any, group: str) -> list[tuple[str, str]] | None:
    """Host and client id of each member; ``None`` when the broker does not say."""
    try:
        members = _coordinated(lambda: admin.describe_groups([group]))[group]["members"]
        return [
            (str(each.get("client_host", "")).lstrip("/"), str(each.get("client_id", "")))
            for each in members
        ]
    except (KafkaError, LookupError, TypeError, ValueError, AttributeError):
        return None  # Tansu answers in a way the client cannot read


def _letters(settings: Settings) -> Iterator[Finding]:
    with kafka_admin(settings) as admin:
        if DEAD_LETTERS not in admin.list_topics():
            yield Finding("dead letters", "skipped", "their topic does not exist")
            return
        (topic,) = admin.describe_topics([DEAD_LETTERS])
        where = [TopicPartition(DEAD_LETTERS, p["partition_index"]) for p in topic["partitions"]]
        first = admin.list_partition_offsets(dict.fromkeys(where, OffsetSpec.EARLIEST))
        ends = admin.list_partition_offsets(dict.fromkeys(where, OffsetSpec.LATEST))
        hour_ago = int((time.time() - 3600) * 1000)
        recent = admin.list_partition_offsets(dict.fromkeys(where, hour_ago))
    total = sum(ends[w].offset - first[w].offset for w in where)
    late = sum(
        ends[w].offset - recent[w].offset for w in where if w in recent and recent[w].offset >= 0
    )
    told = f"{total:,} kept, {late:,} of the last hour"
    if late:
        yield Finding("dead letters", "look", told, "`runnerstream dead-letters list --since 1h`")
    else:
        yield Finding("dead letters", "ok", told)


def _clickhouse(settings: Settings) -> Iterator[Finding]:
    url = settings.clickhouse.get_secret_value()
    if not url:
        yield Finding("ClickHouse", "skipped", "none is configured")
        return
    require_clickhouse(settings)  # the database may be what is missing
    with clickhouse(elsewhere(settings)) as client:
        began = time.time()
        (version, theirs), *_ = client.execute("SELECT version(), now64(3, 'UTC')")
        ended = time.time()
    yield Finding(
        "ClickHouse",
        "ok",
        f"{place(url)} answers in {duration((ended - began) * 1000)}, version {version}",
    )
    if theirs.tzinfo is None:
        theirs = theirs.replace(tzinfo=UTC)
    yield _skew("clock of ClickHouse", theirs.timestamp() - (began + ended) / 2)
    try:
        pending = schema.pending(bounded(url), settings.clickhouse_cluster)
        gone = () if pending else schema.absent(bounded(url), settings.clickhouse_cluster)
    except schema.NodesAway as error:
        todo = "start it; then `runnerstream schema apply`, if it is behind"
        yield Finding("tables", "bad", str(error), todo)
        return
    except schema.WrongCluster as error:
        todo = "set RUNNERSTREAM_CLICKHOUSE_CLUSTER to the cluster that has the tables, or to none"
        yield Finding("tables", "bad", str(error), todo)
        return
    except schema.SchemaError as error:
        yield Finding("tables", "bad", str(error), "run the release that made them, or a newer one")
        return
    except (ClickHouseError, OSError, EOFError) as error:
        raise clickhouse_failure(settings, error) from None
    if pending:
        names = ", ".join(f"{m.version:04d}_{m.name}" for m in pending)
        todo = beside_a_demo(settings) or "`runnerstream schema apply`"
        yield Finding("tables", "bad", f"not applied: {names}", todo)
    elif gone:
        yield Finding("tables", "bad", f"missing: {', '.join(gone)}", "`runnerstream schema apply`")
    else:
        yield Finding("tables", "ok", f"{len(schema.migrations())} migrations applied")


def _skew(what: str, seconds: float) -> Finding:
    told = f"{abs(seconds):.2f} s {'ahead of' if seconds > 0 else 'behind'} this machine's"
    if abs(seconds) > SKEW_S:
        return Finding(what, "bad", told, "let NTP set both clocks: ages and lateness are wrong")
    return Finding(what, "ok", told)


def _worker(settings: Settings) -> Iterator[Finding]:
    base = worker_url(settings)
    named = "set RUNNERSTREAM_WEB_HOST and RUNNERSTREAM_WEB_PORT to those of the worker"
    try:
        ready = ask(base, "/readyz", timeout=5.0)
    except Failure as error:
        # It may run elsewhere; the group's members tell whether one runs at all.
        todo = f"start one with `runnerstream worker`, or {named}"
        yield Finding("worker", "look", error.message, todo)
        return
    if "reasons" not in ready:
        yield Finding("worker", "bad", f"what listens at {base} is not a worker", named)
        return
    began = time.time()
    group = ask(base, "/workers", timeout=10.0)
    theirs = group.get("group")
    if theirs is not None and theirs != settings.app_id:
        yield Finding(
            "worker", "bad",
            f"{base} is a worker of another deployment: its app_id is {theirs}, ours "
            f"{settings.app_id}",
            named,
        )  # fmt: skip
        return
    if ready["ready"]:
        yield Finding("worker", "ok", f"{base} is ready, {ready['tick_lag_s']:.1f} s behind")
    for reason in ready["reasons"]:
        yield Finding("worker", "bad", reason["text"], _REMEDIES.get(reason["code"], ""))
    yield _skew("clock of the worker", group["now"] / 1000 - (began + time.time()) / 2)
    for gap in group.get("incomplete", ()):
        yield Finding(
            "group", "bad", gap["reason"],
            "is that worker reachable from the others by its RUNNERSTREAM_WEB_HOST?",
        )  # fmt: skip


_REMEDIES: Final = {
    "starting": "wait some seconds",
    "rebalancing": "wait some seconds; if it lasts, look for a worker that keeps restarting",
    "recovering": "wait; RUNNERSTREAM_STORE=rocksdb makes it shorter",
    "lagging": "add workers, or look for a broker that is slow",
    "sink": "is `runnerstream worker --role sink` running, here or elsewhere? see its log",
    "clickhouse": "start ClickHouse; nothing is lost meanwhile",
    "process": "see the worker's log, which says why its process ends",
    "broker": "start Kafka; nothing is lost meanwhile",
}


def _beside(settings: Settings, role: Role) -> Iterator[Finding]:
    """The process of a role that runs beside the worker, by its health."""
    base, name, port = role.url(settings), role.name, str(role.port).upper()
    try:
        status = ask(base, "/readyz", timeout=5.0)
    except Failure:
        yield Finding(name, "look", f"nothing answers at {base}",
                      f"fine when it runs elsewhere: see the {name} group above")  # fmt: skip
        return
    if "ready" not in status:
        yield Finding(name, "bad", f"what listens at {base} is not a {name}",
                      f"set RUNNERSTREAM_{port} to the one of the {name}")  # fmt: skip
        return
    other = _other_deployment(settings, role, status)
    if other:
        yield Finding(
            name, "bad", f"{base} is a {name} of another deployment: {other}",
            f"set RUNNERSTREAM_{port} to the one of ours; `runnerstream worker --role {name}` "
            "starts one",
        )  # fmt: skip
    elif status["ready"]:
        told = f"{base} is ready"
        if "partitions" in status:
            told += f", works on {status['partitions']} partitions"
        for what in ("asks", "asks_not"):
            if status.get(what):
                told += f"; {status[what]}"
        yield Finding(name, "ok", told)
    else:
        reason = str(status.get("reason"))
        todo = (
            _REMEDIES["clickhouse"] if "ClickHouse" in reason else "it may be starting; see its log"
        )
        yield Finding(name, "bad", reason, todo)


def _other_deployment(settings: Settings, role: Role, status: Answer) -> str:
    """How the process that answers differs from that of these settings; empty when it is ours."""
    about = status.get("deployment")
    if not isinstance(about, dict):
        return "it does not say whose it is"
    ours = role.deployment(settings)
    names = {"group": "its group", "kafka": "its Kafka", "clickhouse": "its ClickHouse"}
    differs = [
        f"{name} is {about.get(key)}, ours {ours[key]}"
        for key, name in names.items()
        if about.get(key) != ours[key]
    ]
    return "; ".join(differs)
