"""Makes a cluster agree with the catalogue: creates what is missing, refuses what contradicts it.

    report = apply({"bootstrap_servers": "localhost:9092"}, catalogue())

Applying twice changes nothing. A topic that exists with another number of partitions, another
cleanup policy or too few replicas is never touched: mending it needs a decision and a plan. All
such mismatches are found first and told at once, and then nothing is created either. Settings
that merely differ (retention and the like) may be somebody's choice: they are reported, and set
only on request. What a broker does not tell (some tell nothing about settings) counts as unknown,
not as a mismatch.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from kafka.admin import ConfigResource, ConfigResourceType, KafkaAdminClient
from kafka.errors import (
    KafkaError,
    TopicAlreadyExistsError,
    UnknownTopicOrPartitionError,
    for_code,
)

from topics.catalogue import TopicSpec

#: Options of kafka-python's admin client: `bootstrap_servers`, `security_protocol`, `sasl_*`, ...
ClientOptions = Mapping[str, Any]

_CLEANUP = "cleanup.policy"
_BOOTSTRAP_MS = 15_000
_VISIBLE_MS = 30_000
_RETRY_SECONDS = 0.2


class TopicsError(RuntimeError):
    """The cluster cannot be asked, or cannot be made to agree with the catalogue."""


class TopicsMismatch(TopicsError):
    """Topics exist otherwise than described; `mismatches` lists all of them."""

    def __init__(self, mismatches: Sequence[Difference]) -> None:
        self.mismatches = tuple(mismatches)
        lines = "".join(f"\n  - {found}" for found in self.mismatches)
        super().__init__(
            f"{len(self.mismatches)} setting(s) of existing topics contradict the catalogue; "
            f"nothing was changed:{lines}"
        )


@dataclass(frozen=True)
class Difference:
    """One setting of one topic that is not as described."""

    topic: str
    setting: str
    wanted: str
    found: str
    remedy: str = ""

    def __str__(self) -> str:
        told = f"{self.topic}: {self.setting} is {self.found}, should be {self.wanted}"
        return f"{told} ({self.remedy})" if self.remedy else told


@dataclass(frozen=True)
class Plan:
    """What applying would do.

    Attributes:
        create: topics that do not exist.
        unchanged: names of topics that are as described, as far as the broker tells.
        mismatches: contradictions that forbid applying.
        drift: settings that differ and could be set.
        unknown: names of existing topics whose cleanup policy the broker does not tell.
    """

    create: tuple[TopicSpec, ...]
    unchanged: tuple[str, ...]
    mismatches: tuple[Difference, ...]
    drift: tuple[Difference, ...]
    unknown: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What applying did.

    Attributes:
        created: names of new topics.
        unchanged: names of topics that were as described already.
        mended: settings that were set.
        drift: settings that still differ.
        unknown: names of topics whose cleanup policy the broker does not tell.
    """

    created: tuple[str, ...]
    unchanged: tuple[str, ...]
    mended: tuple[Difference, ...]
    drift: tuple[Difference, ...]
    unknown: tuple[str, ...]


def plan(options: ClientOptions, specs: Sequence[TopicSpec]) -> Plan:
    """Compare a cluster with `specs`; changes nothing.

    Raises:
        TopicsError: when the cluster cannot be reached or asked.
    """
    with _admin(options) as admin:
        return _compare(admin, specs)


def apply(
    options: ClientOptions,
    specs: Sequence[TopicSpec],
    *,
    mend: bool = False,
) -> Report:
    """Create the topics that are missing, and wait until they can be used.

    Args:
        options: of kafka-python's admin client.
        specs: the topics.
        mend: whether to set settings that differ, too.

    Raises:
        TopicsMismatch: when topics exist otherwise than described; nothing is changed then.
        TopicsError: when the cluster cannot be reached, or refuses; every refusal is named.
    """
    with _admin(options) as admin:
        found = _compare(admin, specs)
        if found.mismatches:
            raise TopicsMismatch(found.mismatches)
        created = _create(admin, found.create)
        if len(created) < len(found.create):
            # Somebody else created the rest meanwhile, maybe from another catalogue.
            again = _compare(admin, specs)
            if again.mismatches:
                raise TopicsMismatch(again.mismatches)
        mended = _mend(admin, found.drift) if mend else ()
    return Report(
        created=created,
        unchanged=found.unchanged,
        mended=mended,
        drift=() if mend else found.drift,
        unknown=found.unknown,
    )


@contextmanager
def _admin(options: ClientOptions) -> Iterator[Any]:
    where = options.get("bootstrap_servers", "no bootstrap_servers given")
    defaults = {"client_id": "runnerstream-topics", "bootstrap_timeout_ms": _BOOTSTRAP_MS}
    try:
        admin = KafkaAdminClient(**{**defaults, **options})
    except (KafkaError, OSError, AssertionError, ValueError) as error:
        raise TopicsError(f"no Kafka broker can be asked at {where}: {_told(error)}") from error
    try:
        yield admin
    except KafkaError as error:
        raise TopicsError(f"the Kafka cluster at {where} failed: {_told(error)}") from error
    finally:
        admin.close()


def _compare(admin: Any, specs: Sequence[TopicSpec]) -> Plan:
    described = _describe(admin, {spec.name for spec in specs})
    present = [spec for spec in specs if spec.name in described]
    settings = _settings(admin, [spec.name for spec in present])
    mismatches: list[Difference] = []
    drift: list[Difference] = []
    unchanged: list[str] = []
    unknown: list[str] = []
    for spec in present:
        contradictions = list(_contradictions(spec, described[spec.name], settings[spec.name]))
        differences = list(_differences(spec, settings[spec.name]))
        mismatches += contradictions
        drift += differences
        if _CLEANUP not in settings[spec.name]:
            unknown.append(spec.name)
        if not contradictions and not differences:
            unchanged.append(spec.name)
    return Plan(
        create=tuple(spec for spec in specs if spec.name not in described),
        unchanged=tuple(unchanged),
        mismatches=tuple(mismatches),
        drift=tuple(drift),
        unknown=tuple(unknown),
    )


def _describe(admin: Any, names: set[str]) -> dict[str, list[dict[str, Any]]]:
    """The partitions of those of `names` that exist."""
    deadline = time.monotonic() + _VISIBLE_MS / 1000
    while True:
        found = {}
        unsettled = []
        # The client forbids the broker to create what it is asked about.
        for topic in admin.describe_topics(sorted(names)):
            error = for_code(topic["error_code"])
            if error is UnknownTopicOrPartitionError:
                continue
            if topic["error_code"]:
                unsettled.append(f"{topic['name']}: {error.__name__}")
            found[topic["name"]] = topic["partitions"]
        if not unsettled:
            return found
        if time.monotonic() > deadline or any("Authorization" in each for each in unsettled):
            raise TopicsError(f"topics that cannot be described: {'; '.join(unsettled)}")
        time.sleep(_RETRY_SECONDS)


def _settings(admin: Any, names: Sequence[str]) -> dict[str, dict[str, str]]:
    """What the broker tells of each topic's settings, which may be nothing."""
    if not names:
        return {}
    # Neither by key nor only those modified: Tansu drops the connection at the one and calls
    # every setting a default in answer to the other.
    resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
    try:
        answer = admin.describe_configs(resources, config_filter="all").get("topic", {})
    except KafkaError:
        # Not implemented, or not allowed to us: unknown. A broker that is gone fails later.
        answer = {}
    return {
        name: {
            key: entry["value"]
            for key, entry in answer.get(name, {}).items()
            if entry.get("value") is not None
        }
        for name in names
    }


def _contradictions(
    spec: TopicSpec, partitions: Sequence[Mapping[str, Any]], settings: Mapping[str, str]
) -> Iterator[Difference]:
    if len(partitions) != spec.partitions:
        yield Difference(
            spec.name,
            "partitions",
            str(spec.partitions),
            str(len(partitions)),
            "keys would change their partition: set the program to the number that exists, or "
            "move to a new topic",
        )
    replicas = min((len(each["replica_nodes"]) for each in partitions), default=0)
    if partitions and replicas < spec.replication_factor:
        yield Difference(
            spec.name,
            "replication factor",
            str(spec.replication_factor),
            str(replicas),
            "reassign its partitions with Kafka's tools, or set the program to less",
        )
    cleanup = settings.get(_CLEANUP)
    if cleanup is not None and _words(cleanup) != _words(spec.cleanup):
        yield Difference(
            spec.name,
            _CLEANUP,
            spec.cleanup,
            cleanup,
            "changing it deletes or keeps other records than before: change it by hand if that "
            "is meant",
        )


def _differences(spec: TopicSpec, settings: Mapping[str, str]) -> Iterator[Difference]:
    for key, wanted in spec.settings().items():
        found = settings.get(key)
        if key != _CLEANUP and found is not None and not _same(found, wanted):
            yield Difference(spec.name, key, wanted, found)


def _create(admin: Any, specs: Sequence[TopicSpec]) -> tuple[str, ...]:
    """Create topics; the names of those that nobody else created first."""
    if not specs:
        return ()
    wanted = {
        spec.name: {
            "num_partitions": spec.partitions,
            "replication_factor": spec.replication_factor,
            "configs": spec.settings(),
        }
        for spec in specs
    }
    created = []
    refused = []
    for answer in admin.create_topics(wanted, raise_errors=False)["topics"]:
        error = for_code(answer["error_code"])
        if answer["error_code"] == 0:
            created.append(answer["name"])
        elif error is not TopicAlreadyExistsError:
            why = answer.get("error_message") or error.description
            refused.append(f"{answer['name']}: {error.__name__}: {why}")
    if refused:
        also = f"; created: {', '.join(created)}" if created else ""
        raise TopicsError(f"the cluster refused to create topics: {'; '.join(refused)}{also}")
    admin.wait_for_topics([spec.name for spec in specs], timeout_ms=_VISIBLE_MS)
    return tuple(created)


def _mend(admin: Any, drift: Iterable[Difference]) -> tuple[Difference, ...]:
    by_topic: dict[str, list[Difference]] = {}
    for each in drift:
        by_topic.setdefault(each.topic, []).append(each)
    if not by_topic:
        return ()
    answer = admin.alter_configs(
        [
            ConfigResource(
                ConfigResourceType.TOPIC,
                topic,
                configs={each.setting: each.wanted for each in differences},
            )
            for topic, differences in by_topic.items()
        ],
        # That check asks for keys that some brokers do not list.
        raise_on_unknown=False,
    ).get("topic", {})
    refused = [f"{topic}: {answer[topic]}" for topic in by_topic if answer.get(topic) != "OK"]
    if refused:
        raise TopicsError(f"the cluster refused to change settings: {'; '.join(refused)}")
    return tuple(each for differences in by_topic.values() for each in differences)


def _words(policy: str) -> set[str]:
    return {word.strip() for word in policy.split(",") if word.strip()}


def _same(found: str, wanted: str) -> bool:
    if found == wanted:
        return True
    try:
        return float(found) == float(wanted)
    except ValueError:
        return False


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
