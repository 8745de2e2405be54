"""What `compose/` says, read as Compose and Kubernetes read it, without either."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

import click
import yaml

from pipeline.cli import main
from pipeline.roles import ROLES, Role

ROOT: Final = Path(__file__).resolve().parents[2]
COMPOSE: Final = ROOT / "compose"
KUBERNETES: Final = COMPOSE / "kubernetes"

Service = dict[str, Any]


def dotenv(path: Path) -> dict[str, str]:
    """The lines ``NAME=value`` of a file."""
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.strip() and not line.startswith("#"):
            name, _, value = line.partition("=")
            assert re.fullmatch(r"[A-Z][A-Z0-9_]*", name), line
            assert name not in found, line
            found[name] = value
    return found


@cache
def stack() -> dict[str, Any]:
    """compose.yaml with the values of .env in it; a name that is not there fails."""
    values = dotenv(COMPOSE / ".env")
    text = (COMPOSE / "compose.yaml").read_text(encoding="utf-8")
    told: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{(\w+)\}", lambda m: values[m[1]], text))
    return told


def services() -> dict[str, Service]:
    """Its services by name."""
    found: dict[str, Service] = stack()["services"]
    return found


def ours() -> dict[str, Service]:
    """Those that run the program."""
    return {name: each for name, each in services().items() if "build" in each}


def environment(service: Service) -> dict[str, str]:
    """The variables of its container: those of its files, then its own."""
    found: dict[str, str] = {}
    for file in service.get("env_file", ()):
        found |= dotenv(COMPOSE / file)
    found |= service.get("environment", {})
    assert all(isinstance(value, str) for value in found.values()), found
    return found


def mounts(service: Service) -> Iterator[tuple[str, str]]:
    """Where each volume of it comes from, and where it stands in the container."""
    for each in service.get("volumes", ()):
        if isinstance(each, dict):
            yield each["source"], each["target"]
        else:
            source, target, *_ = each.split(":")
            yield source, target


def kafka_properties(environment: Mapping[str, str]) -> dict[str, str]:
    """Kafka's own settings, as its image makes them of variables."""
    return {
        name.removeprefix("KAFKA_").lower().replace("_", "."): value
        for name, value in environment.items()
        if name.startswith("KAFKA_") and name != "KAFKA_HEAP_OPTS"
    }


def command(arguments: Iterable[str]) -> click.Context:
    """The command that the program would run, parsed by itself. Raises click.ClickException."""
    context = main.make_context(main.name, list(arguments))
    while isinstance(context.command, click.Group):
        rest = [*context._protected_args, *context.args]
        name, found, rest = context.command.resolve_command(context, rest)
        assert found is not None
        context = found.make_context(name, rest, parent=context)
    return context


def role(arguments: Iterable[str]) -> Role | None:
    """The role that a command runs, if it runs one."""
    parsed = command(arguments)
    return ROLES[parsed.params["asked"]] if parsed.info_name == "worker" else None


# --- Kubernetes -------------------------------------------------------------------------------


@cache
def kustomization() -> dict[str, Any]:
    """kustomization.yaml."""
    told: dict[str, Any] = yaml.safe_load((KUBERNETES / "kustomization.yaml").read_text("utf-8"))
    return told


@cache
def manifests() -> tuple[dict[str, Any], ...]:
    """Every object of the files that it lists."""
    return tuple(
        told
        for name in kustomization()["resources"]
        for told in yaml.safe_load_all((KUBERNETES / name).read_text("utf-8"))
    )


def of_kind(*kinds: str) -> dict[str, dict[str, Any]]:
    """Objects of these kinds by name."""
    return {each["metadata"]["name"]: each for each in manifests() if each["kind"] in kinds}


def workloads() -> dict[str, dict[str, Any]]:
    """What has pods."""
    return of_kind("Deployment", "StatefulSet", "Job")


def container(workload: dict[str, Any]) -> dict[str, Any]:
    """Its one container."""
    (found,) = workload["spec"]["template"]["spec"]["containers"]
    told: dict[str, Any] = found
    return told


def pod_environment(workload: dict[str, Any]) -> dict[str, str]:
    """The variables of its container; the pod is the first of its name."""
    told = container(workload)
    (source,) = told["envFrom"]
    assert source == {"configMapRef": {"name": "settings"}}
    found = dotenv(KUBERNETES / "settings.env")
    for each in told.get("env", ()):
        if "valueFrom" in each:
            assert each["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
            found[each["name"]] = f"{workload['metadata']['name']}-0"
        else:
            value = re.sub(r"\$\((\w+)\)", lambda m: found[m[1]], each["value"])
            found[each["name"]] = value
    return found
