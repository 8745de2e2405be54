"""Keys of jobs and runs: making them and taking them apart, side by side.

``provider:host:job_id``, for instance ``github:ghe.corp.example:8443:41000000001``. The host may
have a port, so a key is split at its first and its last colon. There is one key for one job: hosts
are compared without regard to case, a default port or a final dot, and so are made canonical here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Any, Final

#: Where a job of GitHub lives unless somebody says otherwise.
GITHUB_HOST: Final = "github.com"
#: Ports that a URL leaves out.
_DEFAULT_PORTS: Final = frozenset({80, 443})


@lru_cache(maxsize=4_096)
def canonical_host(host: str) -> str:
    """A host in the one form it has in keys: lower-case, without scheme, path or default port.

    ``https://GHE.corp:443/`` is ``ghe.corp``; ``ghe.corp:8443`` stays. May be empty.
    """
    for _ in range(8):
        before, host = host, _stripped(host)
        if host == before:
            break
    return host


def job_key(provider: str, host: str, job_id: str | int) -> str:
    """Key of a job everywhere: ``github:github.com:4567``. A re-run attempt has its own job id.

    Raises ValueError when a part is empty, or would not come back from :func:`parse_job_key`.
    """
    provider = provider.strip().lower()
    host = canonical_host(host)
    last = str(job_id)
    if not provider or ":" in provider:
        raise ValueError(f"a key needs a provider without a colon, not {provider!r}")
    if not host:
        raise ValueError("a key needs a host")
    if not last or ":" in last:
        raise ValueError(f"a key needs a job id without a colon, not {last!r}")
    return f"{provider}:{host}:{last}"


def run_key(provider: str, host: str, run_id: int) -> str:
    """Key of a workflow run on ``runners.jobs``: ``github:github.com:run/99``.

    Raises ValueError like :func:`job_key`.
    """
    return job_key(provider, host, f"run/{run_id}")


def parse_job_key(key: str) -> tuple[str, str, str]:
    """Provider, host (with its port) and job id of a key. Raises ValueError when it is none."""
    provider, _, rest = key.partition(":")
    host, _, job_id = rest.rpartition(":")
    if not (provider and host and job_id):
        raise ValueError(f"{key!r} is not a job key: provider:host:job_id")
    return provider, host, job_id


def canonical_key(key: str) -> str:
    """The key under which a job is kept, from one that a person typed. Raises ValueError."""
    return job_key(*parse_job_key(key.strip()))


def github_host(told: str, headers: Mapping[str, str], urls: Iterable[Any]) -> str:
    """The host whose job ids a delivery's are. May be empty.

    What the producer says, unless that is only the default; else ``X-GitHub-Enterprise-Host``;
    else ``X-GitHub-Tenant`` (GHE.com gives each tenant a host and ids of its own); else the host
    of the URLs in the body. Names of headers are lower-case.
    """
    host = canonical_host(told)
    if host and host != GITHUB_HOST:
        return host
    enterprise = canonical_host(headers.get("x-github-enterprise-host", ""))
    if enterprise:
        return enterprise
    tenant = headers.get("x-github-tenant", "").strip().lower()
    if _TENANT.fullmatch(tenant):
        return tenant if "." in tenant else f"{tenant}.ghe.com"
    return host_of(urls) or host


def host_of(urls: Iterable[Any]) -> str:
    """The host of the first that is a URL with one; empty when none is."""
    for url in urls:
        if isinstance(url, str) and url.startswith(("https://", "http://")):
            # Up to the path only: there are few of these, and many URLs.
            end = url.find("/", 8)
            named = canonical_host(url if end < 0 else url[:end])
            if named:
                return named
    return ""


_TENANT: Final = re.compile(r"[a-z0-9][a-z0-9.-]{0,252}")


def _stripped(host: str) -> str:
    host = host.strip().lower()
    if "://" in host:
        host = host.partition("://")[2]
    for end in "/?#":
        host = host.partition(end)[0]
    host = host.rpartition("@")[2].strip()
    if host.startswith("["):
        name, bracket, port = host.partition("]")
        name += bracket
        port = port.removeprefix(":")
    elif host.count(":") == 1:
        name, _, port = host.partition(":")
        name = name.rstrip(".")
    elif ":" in host:
        return f"[{host}]"
    else:
        return host.rstrip(".")
    if not port:
        return name
    if port.isascii() and port.isdecimal() and len(port) <= 9:
        number = int(port)
        return name if number in _DEFAULT_PORTS else f"{name}:{number}"
    return f"{name}:{port}"
