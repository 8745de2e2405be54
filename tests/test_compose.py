"""What `compose/` says holds together: its services, its image, its manifests, and the program's
settings, commands and ports. Real programs read the same files in tests/test_compose_live.py."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any
from unittest.mock import patch
from urllib.parse import urlsplit

import pytest
import yaml

from dashboards import config
from pipeline.roles import ROLES
from pipeline.settings import Settings, load
from tests.support import deployment
from tests.support.deployment import COMPOSE, KUBERNETES, ROOT, services

ONCE = "service_completed_successfully"
HEALTHY = "service_healthy"
#: What a container may be asked for, of which role.
HEALTH = {name: "/readyz?part=fold" if name == "fold" else "/readyz" for name in ROLES}


def runs_once(service: deployment.Service) -> bool:
    return bool(service["restart"] == "no")


@contextmanager
def settings_of(environment: dict[str, str], secrets: Path) -> Iterator[Settings]:
    """The settings of a process with this environment, and its secrets in a directory."""
    moved = {name: value.replace("/run/secrets", str(secrets)) for name, value in
             environment.items()}  # fmt: skip
    with patch.dict("os.environ", moved, clear=True):
        yield load()


@pytest.fixture
def secrets(tmp_path: Path) -> Path:
    """What settings look at of what make-secrets makes, where Compose and Kubernetes have it."""
    for name in ("webhooks/github", "clickhouse.env", "providers.env",
                 "clickhouse/clickhouse.env", "providers/providers.env"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("word" if name.endswith("github") else "# NAME=value\n")
    return tmp_path


# --- services ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", services())
def test_a_service_is_bounded_pinned_and_not_root(name: str) -> None:
    service = services()[name]
    image, _, tag = service["image"].rpartition(":")
    assert image
    assert re.match(r"v?\d+\.\d+", tag), "a tag that says which release"
    user, _, group = service["user"].partition(":")
    assert user.isdecimal()
    assert group.isdecimal()
    assert int(user) > 0
    assert service["restart"] in ("no", "unless-stopped")
    limits = service["deploy"]["resources"]["limits"]
    assert limits.keys() == {"cpus", "memory", "pids"}
    assert re.fullmatch(r"\d+[MG]", limits["memory"])
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert not service.keys() & {"privileged", "network_mode", "pid", "ipc", "cap_add"}
    checked = service["healthcheck"]
    if runs_once(service):
        assert checked == {"disable": True}
    else:
        assert checked["test"][0] == "CMD"
        assert {"interval", "timeout", "retries", "start_period"} <= checked.keys()
    if name in deployment.ours():
        assert service["read_only"]
        assert service["tmpfs"] == ["/tmp"]
        assert service["init"]


def test_what_services_name_exists_and_nothing_more() -> None:
    told = deployment.stack()
    used: dict[str, set[str]] = {"secrets": set(), "volumes": set(), "networks": set()}
    for name, service in services().items():
        used["secrets"] |= set(service.get("secrets", ()))
        used["networks"] |= set(service["networks"])
        targets = [target for _, target in deployment.mounts(service)]
        assert len(set(targets)) == len(targets), name
        for source, _ in deployment.mounts(service):
            if not source.startswith("."):
                used["volumes"].add(source)
            elif not source.startswith("./secrets/"):
                assert (COMPOSE / source).exists(), f"{name}: {source}"
        for other, how in service.get("depends_on", {}).items():
            wanted = ONCE if runs_once(services()[other]) else HEALTHY
            assert how == {"condition": wanted}, f"{name}: {other}"
    assert {kind: told[kind].keys() for kind in used} == used
    assert told["networks"]["inside"] == {"internal": True}


def test_services_wait_for_each_other_in_an_order() -> None:
    waits = {name: set(each.get("depends_on", ())) for name, each in services().items()}
    order = list(TopologicalSorter(waits).static_order())
    assert set(order) == services().keys()
    for name, service in deployment.ours().items():
        if not runs_once(service):
            assert "topics" in waits[name], name
    assert "schema" in waits["sink"]
    assert deployment.command(services()["topics"]["command"]).command_path.endswith("topics apply")
    assert deployment.command(services()["schema"]["command"]).command_path.endswith("schema apply")


def test_only_this_machine_reaches_its_ports_and_each_is_one_services() -> None:
    ports = [port for each in services().values() for port in each.get("ports", ())]
    found = [re.fullmatch(r"127\.0\.0\.1:(\d+):(\d+)", port) for port in ports]
    assert all(found), ports
    assert max(Counter(match[1] for match in found if match).values()) == 1
    for name, service in services().items():
        if service.get("ports"):
            # A port of a service that is inside only would be published in vain.
            assert "outside" in service["networks"], name


def test_secrets_are_files_and_nothing_secret_stands_in_a_variable() -> None:
    for name, told in deployment.stack()["secrets"].items():
        assert told == {"file": f"./secrets/{name}"}
    for name, service in services().items():
        for variable in deployment.environment(service):
            if re.search(r"PASSWORD|TOKEN|SECRETS?$|_KEY", variable):
                assert variable.endswith(("_FILE", "_DIR")), f"{name}: {variable}"
    ignored = (COMPOSE / ".gitignore").read_text().split()
    assert ignored == ["/secrets/", "/kubernetes/secrets/"]


def test_two_workers_are_told_apart_and_stay_who_they_are() -> None:
    workers = {
        name: deployment.environment(each)
        for name, each in deployment.ours().items()
        if deployment.role(each["command"]) is ROLES["fold"]
    }
    assert len(workers) == 2
    for name, told in workers.items():
        assert told["RUNNERSTREAM_WEB_HOST"] == told["RUNNERSTREAM_GROUP_INSTANCE_ID"] == name
    volumes = [list(deployment.mounts(services()[name])) for name in workers]
    assert not {source for source, _ in volumes[0][1:]} & {source for source, _ in volumes[1][1:]}


@pytest.mark.parametrize("name", deployment.ours())
def test_settings_commands_and_ports_are_those_of_the_program(name: str, secrets: Path) -> None:
    service = services()[name]
    deployment.command(service["command"])
    role = deployment.role(service["command"])
    with settings_of(deployment.environment(service), secrets) as settings:
        assert settings.kafka == "kafka:9092"
        if role is None:
            assert runs_once(service)
            return
        assert role.wanted(settings)
        port = role.port_of(settings)
        program, url = service["healthcheck"]["test"][1:]
        assert (program, url) == ("ready", f"http://127.0.0.1:{port}{HEALTH[role.name]}")
        if settings.gateway_listen:
            (published,) = service["ports"]
            assert settings.gateway_listen == f"0.0.0.0:{published.rpartition(':')[2]}"
        if role.name == "executor":
            assert settings.web_host in services()


def test_settings_that_roles_share_are_the_same(secrets: Path) -> None:
    shared = ("app_id", "partitions", "replication_factor", "min_insync_replicas", "lateness",
              "fleets", "routes", "recovery", "max_fleet_labels")  # fmt: skip
    told = set()
    for service in deployment.ours().values():
        with settings_of(deployment.environment(service), secrets) as settings:
            told.add(json.dumps([getattr(settings, name) for name in shared]))
    assert len(told) == 1


def test_every_variable_of_env_is_used() -> None:
    text = (COMPOSE / "compose.yaml").read_text()
    for name in deployment.dotenv(COMPOSE / ".env"):
        if not name.startswith("RUNNERSTREAM_"):
            assert f"${{{name}}}" in text, name


# --- what people look at ----------------------------------------------------------------------


def test_prometheus_looks_at_every_role_where_it_is() -> None:
    told = yaml.safe_load((COMPOSE / "prometheus/prometheus.yaml").read_text())
    looked = {}
    for job in told["scrape_configs"]:
        assert job.keys() == {"job_name", "static_configs"}
        for target in job["static_configs"][0]["targets"]:
            looked[target] = job["job_name"]
    wanted = {}
    for name, service in deployment.ours().items():
        role = deployment.role(service["command"])
        if role:
            port = urlsplit(service["healthcheck"]["test"][2]).port
            wanted[f"{name}:{port}"] = f"runnerstream-{role.name}"
    assert wanted.items() <= looked.items()
    others = {target.rpartition(":")[0] for target in looked.keys() - wanted.keys()}
    assert others <= services().keys() | {"127.0.0.1"}
    mounted = dict(map(reversed, deployment.mounts(services()["prometheus"])))
    (rules,) = told["rule_files"]
    assert mounted[f"/etc/prometheus/{rules.rpartition('/')[0]}"] == "../dashboards/prometheus"


def test_alerts_are_grouped_and_have_a_receiver() -> None:
    told = yaml.safe_load((COMPOSE / "prometheus/alertmanager.yaml").read_text())
    assert told["route"]["group_by"] == ["alertname", "fleet"]
    assert told["route"]["receiver"] in [each["name"] for each in told["receivers"]]


def test_grafana_finds_its_datasources_dashboards_and_alerts() -> None:
    service = services()["grafana"]
    told = yaml.safe_load((COMPOSE / "grafana/datasources.yaml").read_text())
    sources = {each["type"]: each for each in told["datasources"]}
    assert {config.CLICKHOUSE, config.PROMETHEUS} <= sources.keys()
    ours = sources[config.CLICKHOUSE]
    users = (COMPOSE / "clickhouse/users.xml").read_text()
    assert f"<{ours['jsonData']['username']}>" in users
    assert ours["jsonData"]["host"] in services()
    (most,) = re.findall(r"<max>(\d+)</max>", users)
    assert int(ours["jsonData"]["queryTimeout"]) <= int(most)
    (file,) = re.findall(r"\$__file\{/run/secrets/(\w+)\}", ours["secureJsonData"]["password"])
    assert file in service["secrets"]
    assert urlsplit(sources[config.PROMETHEUS]["url"]).hostname in services()
    told = deployment.environment(service)
    assert told["GF_PLUGINS_PREINSTALL_SYNC"] == f"{config.CLICKHOUSE}@{config.PLUGIN_VERSION}"
    mounted = dict(map(reversed, deployment.mounts(service)))
    (provider,) = yaml.safe_load((COMPOSE / "grafana/dashboards.yaml").read_text())["providers"]
    assert not provider["allowUiUpdates"]
    assert mounted[provider["options"]["path"]] == "../dashboards/grafana"
    assert list((ROOT / "dashboards/grafana").glob("*.json"))
    assert mounted["/etc/grafana/provisioning/alerting"] == "../dashboards/grafana-alerts"
    uids = {each["uid"] for each in sources.values()} | {"__expr__"}
    alerts = list((ROOT / "dashboards/grafana-alerts").glob("*.yaml"))
    assert alerts
    for path in alerts:
        assert set(re.findall(r"datasourceUid: (\S+)", path.read_text())) <= uids, path.name


# --- the image --------------------------------------------------------------------------------


def instructions() -> list[tuple[str, str]]:
    """Of the Dockerfile, with continued lines made one."""
    text = re.sub(r"^\s*#.*\n", "", (COMPOSE / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], " ".join(line.split()[1:])) for line in lines if line.strip()]


def test_the_image_is_built_of_what_is_there_and_runs_as_nobody_special() -> None:
    found = instructions()
    names = [name for name, _ in found]
    assert set(names) <= {"ARG", "FROM", "ENV", "WORKDIR", "COPY", "RUN", "USER", "EXPOSE",
                          "ENTRYPOINT", "CMD"}  # fmt: skip
    assert names.count("FROM") == 2
    default = dict(each.split("=", 1) for name, each in found if name == "ARG")
    assert default == {"PYTHON": deployment.dotenv(COMPOSE / ".env")["IMAGE_PYTHON"]}
    last = found[len(names) - names[::-1].index("FROM") :]
    (user,) = [each for name, each in last if name == "USER"]
    assert {user} == {each["user"] for each in deployment.ours().values()}
    assert last.index(("USER", user)) > max(
        number for number, (name, _) in enumerate(last) if name in ("COPY", "RUN")
    )
    (entry,) = [json.loads(each) for name, each in last if name == "ENTRYPOINT"]
    (default_command,) = [json.loads(each) for name, each in last if name == "CMD"]
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert entry == ["runnerstream"]
    assert entry[0] in scripts
    assert default_command == ["--help"]
    exposed = next(each for name, each in last if name == "EXPOSE").split()
    assert set(map(int, exposed)) == {8080} | {role.port_of(Settings()) for role in ROLES.values()}


def test_what_is_copied_exists_is_let_through_and_is_all_of_the_package() -> None:
    copied = set()
    for name, told in instructions():
        if name == "COPY" and "--from=" not in told:
            *sources, _ = [word for word in told.split() if not word.startswith("--")]
            copied |= set(sources)
    let = {line[1:] for line in (ROOT / ".dockerignore").read_text().split("\n") if line[:1] == "!"}
    assert copied == let
    for source in copied:
        assert (ROOT / source).exists(), source
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    wanted = {each.removesuffix("*") for each in packages["packages"]["find"]["include"]}
    assert wanted <= copied
    for service in deployment.ours().values():
        build = service["build"]
        assert (COMPOSE / build["context"]).resolve() == ROOT
        assert (ROOT / build["dockerfile"]) == COMPOSE / "Dockerfile"


# --- Kubernetes -------------------------------------------------------------------------------


def labels_of(workload: dict[str, Any]) -> dict[str, str]:
    found: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return found


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a selector takes a pod with these labels."""
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    for each in selector.get("matchExpressions", ()):
        assert each["operator"] == "In"
        if labels.get(each["key"]) not in each["values"]:
            return False
    return selector.get("matchLabels", {}).items() <= labels.items()


def test_kustomize_lists_every_file_and_each_object_once() -> None:
    told = deployment.kustomization()
    files = {path.name for path in KUBERNETES.glob("*.yaml")} - {"kustomization.yaml"}
    assert set(told["resources"]) == files
    assert len(told["resources"]) == len(files)
    seen = Counter((each["kind"], each["metadata"]["name"]) for each in deployment.manifests())
    assert max(seen.values()) == 1
    assert all(each["apiVersion"] for each in deployment.manifests())
    assert ("Namespace", told["namespace"]) in seen
    (image,) = told["images"]
    assert {deployment.container(each)["image"] for each in deployment.workloads().values()} == {
        image["name"]
    }


@pytest.mark.parametrize("name", deployment.workloads())
def test_a_pod_runs_a_role_within_bounds(name: str, secrets: Path) -> None:
    workload = deployment.workloads()[name]
    pod = workload["spec"]["template"]["spec"]
    container = deployment.container(workload)
    if workload["kind"] != "Job":
        assert selects(workload["spec"]["selector"], labels_of(workload))
    assert pod["serviceAccountName"] in deployment.of_kind("ServiceAccount")
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"]["runAsNonRoot"]
    assert {f"{pod['securityContext']['runAsUser']}:{pod['securityContext']['runAsGroup']}"} == {
        each["user"] for each in deployment.ours().values()
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert container["resources"].keys() == {"requests", "limits"}

    deployment.command(container["args"])
    role = deployment.role(container["args"])
    known = {f"RUNNERSTREAM_{field.upper()}" for field in Settings.model_fields}
    told = deployment.pod_environment(workload)
    assert {each for each in told if each.startswith("RUNNERSTREAM_")} <= known | {
        "RUNNERSTREAM_CONFIG"
    }
    with settings_of(told, secrets) as settings:
        if role is None:
            assert workload["kind"] == "Job"
            return
        assert workload["kind"] != "Job"
        assert role.wanted(settings)
        ports = {each["name"]: each["containerPort"] for each in container["ports"]}
        assert ports["health"] == role.port_of(settings)
        if settings.gateway_listen:
            assert settings.gateway_listen == f"0.0.0.0:{ports['webhooks']}"
    for probe, path in (("startup", "/healthz"), ("liveness", "/healthz"),
                        ("readiness", HEALTH[role.name])):  # fmt: skip
        assert container[f"{probe}Probe"]["httpGet"] == {"path": path, "port": "health"}


def test_what_pods_mount_is_there() -> None:
    told = deployment.kustomization()
    generated = {each["name"]: each["files"] for each in told["secretGenerator"]}
    mounted = set()
    for name, workload in deployment.workloads().items():
        pod = workload["spec"]["template"]["spec"]
        claims = {each["metadata"]["name"] for each in
                  workload["spec"].get("volumeClaimTemplates", ())}  # fmt: skip
        volumes = {each["name"] for each in pod["volumes"]} | claims
        mounts = {each["name"]: each["mountPath"] for each in
                  deployment.container(workload)["volumeMounts"]}  # fmt: skip
        assert mounts.keys() == volumes, name
        files = set()
        for each in pod["volumes"]:
            if "secret" in each:
                mounted.add(each["secret"]["secretName"])
                for file in generated[each["secret"]["secretName"]]:
                    files.add(f"{mounts[each['name']]}/{file.partition('=')[0]}")
        named = [value for value in deployment.pod_environment(workload).values()
                 if value.startswith("/run/secrets/")]  # fmt: skip
        for path in named:
            assert any(file == path or file.startswith(f"{path}/") for file in files), path
    assert mounted == generated.keys()
    script = (COMPOSE / "make-secrets").read_text()
    for files in generated.values():
        for file in files:
            assert f"$secrets/{file.partition('=secrets/')[2]}" in script or (
                f"new {file.partition('=secrets/')[2]};" in script
            ), file


def test_services_budgets_and_policies_select_pods_that_are_there() -> None:
    pods = [labels_of(each) for each in deployment.workloads().values()]
    ports = {port["name"] for each in deployment.workloads().values()
             for port in deployment.container(each).get("ports", ())}  # fmt: skip
    for name, service in deployment.of_kind("Service").items():
        wanted = service["spec"]["selector"].items()
        (workload,) = [each for each in deployment.workloads().values()
                       if wanted <= labels_of(each).items()]  # fmt: skip
        named = {port["name"] for port in deployment.container(workload)["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= named, name
    for name, budget in deployment.of_kind("PodDisruptionBudget").items():
        assert sum(selects(budget["spec"]["selector"], labels) for labels in pods) == 1, name
    for name, policy in deployment.of_kind("NetworkPolicy").items():
        told = policy["spec"]
        assert any(selects(told["podSelector"], labels) for labels in pods), name
        for rule in (*told.get("ingress", ()), *told.get("egress", ())):
            for each in (*rule.get("from", ()), *rule.get("to", ())):
                if "podSelector" in each:
                    assert any(selects(each["podSelector"], labels) for labels in pods), name
            for port in rule["ports"]:
                assert isinstance(port["port"], int) or port["port"] in ports, name
    assert deployment.of_kind("NetworkPolicy")["nothing"]["spec"] == {
        "podSelector": {},
        "policyTypes": ["Ingress", "Egress"],
    }


def test_workers_keep_name_and_address_and_their_number_is_left_to_the_scaling() -> None:
    worker = deployment.of_kind("StatefulSet")["worker"]
    headless = deployment.of_kind("Service")[worker["spec"]["serviceName"]]
    assert headless["spec"]["clusterIP"] == "None"
    assert headless["spec"]["publishNotReadyAddresses"]
    told = deployment.pod_environment(worker)
    assert told["RUNNERSTREAM_GROUP_INSTANCE_ID"] == "worker-0"
    assert told["RUNNERSTREAM_WEB_HOST"] == f"worker-0.{headless['metadata']['name']}"
    executor = deployment.pod_environment(deployment.workloads()["executor"])
    assert executor["RUNNERSTREAM_WEB_HOST"] in deployment.of_kind("Service")
    assert "replicas" not in worker["spec"]
    (scaling,) = deployment.of_kind("HorizontalPodAutoscaler").values()
    target = scaling["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("StatefulSet", "worker")
    assert scaling["spec"]["maxReplicas"] <= int(told["RUNNERSTREAM_PARTITIONS"])
    (metric,) = scaling["spec"]["metrics"]
    name = metric["external"]["metric"]["name"]
    exposition = (ROOT / "tests/data/exposition.txt").read_text()
    assert re.search(rf"^# TYPE {name} gauge$", exposition, re.MULTILINE)
    assert name in (ROOT / "docs/deploy.md").read_text()


# --- the page ---------------------------------------------------------------------------------


def test_commands_of_the_page_are_about_what_is_there() -> None:
    page = (ROOT / "docs/deploy.md").read_text()
    lines = [line for block in re.findall(r"^```sh\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
             for line in block.splitlines()]  # fmt: skip
    asked = 0
    for line in lines:
        words = shlex.split(line, comments=True)
        for word in words:
            if word.startswith("compose/") and "secrets/" not in word:
                assert (ROOT / word).exists(), line
        if words[:2] == ["docker", "compose"]:
            assert words[2:4] == ["--file", "compose/compose.yaml"], line
            rest = words[4:]
            while rest[0] == "--profile":
                assert any(rest[1] in each.get("profiles", ()) for each in services().values())
                rest = rest[2:]
            verb, *rest = rest
            named = [word for word in rest if not word.startswith("-")]
            if verb == "run":
                name, *arguments = named[0], *rest[rest.index(named[0]) + 1 :]
                assert name in deployment.ours(), line
                deployment.command(arguments)
                asked += 1
            else:
                assert set(named) <= services().keys(), line
    assert asked
