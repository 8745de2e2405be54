"""Programs that are not ours: kcat, kafkajs on Node, Prometheus. Fetched once where absent."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.cache import cached

_KAFKAJS = Path(__file__).with_name("kafkajs")
_FETCH_SECONDS = 300.0
#: Schemas of Kubernetes' own OpenAPI document (Apache-2.0).
_SCHEMAS = "kubernetes-validate==1.37.0"

#: A webhook: HTTP headers and body.
Webhook = tuple[dict[str, str], bytes]


class ClientUnavailable(RuntimeError):
    """The client is not here and cannot be fetched; the message says why."""


def _run(*command: str | Path, cwd: Path | None = None) -> str:
    """What a command prints. Raises ClientUnavailable."""
    try:
        done = subprocess.run(
            command, cwd=cwd, capture_output=True, text=True, timeout=_FETCH_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ClientUnavailable(f"{command[0]}: {error}") from error
    if done.returncode != 0:
        raise ClientUnavailable(f"{command[0]} fails: {(done.stdout + done.stderr)[-1000:]}")
    return done.stdout


def kcat() -> tuple[str, dict[str, str]]:
    """kcat's program, and the environment that it needs.

    Where it is not installed its packages are fetched with apt and unpacked beside the other
    things that tests keep: nothing is installed. Raises ClientUnavailable.
    """
    found = shutil.which("kcat")
    if found:
        return found, dict(os.environ)
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise ClientUnavailable("kcat is not on the PATH, and there is no apt to fetch it")
    system = Path("/etc/os-release").read_bytes()
    root = cached("kcat", system, _unpack_kcat)
    libraries = os.pathsep.join(sorted({str(file.parent) for file in root.rglob("*.so*")}))
    return str(root / "usr/bin/kcat"), {**os.environ, "LD_LIBRARY_PATH": libraries}


def _unpack_kcat(work: Path) -> Path:
    planned = _run("apt-get", "install", "-y", "-qq", "--no-install-recommends", "--print-uris",
                   "-o", "Debug::NoLocking=1", "kcat")  # fmt: skip
    # 'http://.../kcat_1.7.1-2_amd64.deb' kcat_1.7.1-2_amd64.deb 33792 MD5Sum:...
    names = [line.split()[1].partition("_")[0] for line in planned.splitlines() if "'" in line]
    _run("apt-get", "download", "-qq", *names, cwd=work)
    for package in work.glob("*.deb"):
        _run("dpkg", "-x", package, work / "root")
    return work / "root"


def prometheus(name: str) -> str:
    """``prometheus``, ``promtool`` or ``amtool``. Fetched and unpacked as kcat is; raises as that.

    They need no library; what their packages depend on is their pages.
    """
    found = shutil.which(name)
    if found:
        return found
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise ClientUnavailable(f"{name} is not on the PATH, and there is no apt to fetch it")
    package = "prometheus-alertmanager" if name == "amtool" else "prometheus"
    told = Path("/etc/os-release").read_bytes()
    return str(cached(package, told, lambda work: _unpack(work, package)) / "usr/bin" / name)


def _unpack(work: Path, package: str) -> Path:
    _run("apt-get", "download", "-qq", package, cwd=work)
    for file in work.glob("*.deb"):
        _run("dpkg", "-x", file, work / "root")
    return work / "root"


def kubernetes_schemas() -> Path:
    """A wheel, which is a zip, with the JSON schemas of Kubernetes' objects, in
    ``kubernetes_validate/kubernetes-json-schema/v1.37.0-local-strict``. Fetched and not installed:
    unpacked it has 140 MB. Raises ClientUnavailable."""
    (wheel,) = cached("kubernetes-schemas", _SCHEMAS.encode(), _download_schemas).glob("*.whl")
    return wheel


def _download_schemas(work: Path) -> Path:
    _run(sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check",
         "--no-deps", "--dest", work / "wheel", _SCHEMAS)  # fmt: skip
    return work / "wheel"


def post_with_kcat(bootstrap: str, topic: str, work: Path, webhooks: Sequence[Webhook]) -> None:
    """Post each from a file, as docs/producers.md shows it. Raises ClientUnavailable."""
    program, env = kcat()
    file = work / "body.json"
    for headers, body in webhooks:
        file.write_bytes(body)
        named = [part for name, value in headers.items() for part in ("-H", f"{name}={value}")]
        subprocess.run(
            [program, "-P", "-b", bootstrap, "-t", topic, *named, file],
            env=env, timeout=60, check=True,
        )  # fmt: skip


def kafkajs() -> Path:
    """The directory of kafkajs and the script that posts with it. Raises ClientUnavailable."""
    absent = [tool for tool in ("node", "npm") if shutil.which(tool) is None]
    if absent:
        raise ClientUnavailable(f"kafkajs needs Node and npm; not on the PATH: {', '.join(absent)}")
    told = b"".join(file.read_bytes() for file in sorted(_KAFKAJS.iterdir()))
    return cached("kafkajs", told, _install_kafkajs)


def _install_kafkajs(work: Path) -> Path:
    made = work / "kafkajs"
    shutil.copytree(_KAFKAJS, made)
    _run("npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=made)
    return made


def post_with_kafkajs(bootstrap: str, topic: str, webhooks: Sequence[Webhook]) -> None:
    """Post all in one batch. Raises ClientUnavailable."""
    records = [
        {"value": base64.b64encode(body).decode(), "headers": headers} for headers, body in webhooks
    ]
    told = json.dumps({"bootstrap": bootstrap, "topic": topic, "records": records})
    subprocess.run(
        ["node", kafkajs() / "post.js"], input=told, text=True, timeout=60, check=True
    )  # fmt: skip
