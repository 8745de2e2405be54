"""What addresses and files look like, checked without asking a server: for the settings.

No message holds a part of an address that may be secret.
"""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import Final
from urllib.parse import SplitResult, parse_qs, urlsplit

_CLICKHOUSE_LIKE: Final = "clickhouse://user:password@host:9000/database"
#: The schemes of ClickHouse's other protocols, and of other drivers: what is meant by them.
_OTHER_SCHEMES: Final = {
    "http": "http is ClickHouse's other protocol; this program speaks the native one: write "
    "clickhouse:// and the native port, usually 9000 instead of 8123",
    "https": "https is ClickHouse's other protocol; this program speaks the native one: write "
    "clickhouses:// and the native port for TLS, usually 9440 instead of 8443",
    "tcp": "write clickhouse:// instead of tcp://",
    "native": "write clickhouse:// instead of native://",
    "clickhouse+native": "write clickhouse:// instead of clickhouse+native://",
    "clickhouse+http": "this program speaks the native protocol: write clickhouse:// and the "
    "native port, usually 9000 instead of 8123",
    "jdbc": "this is a JDBC URL: write clickhouse:// and the native port, usually 9000",
}
_ENCODE: Final = (
    "percent-encode such characters in user and password: # as %23, / as %2F, @ as %40, ? as %3F, "
    "% as %25, [ as %5B, ] as %5D, a space as %20"
)
_HOST = re.compile(r"^[\w.-]+$|^[0-9a-fA-F:.]+(%\w+)?$")
_DATABASE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")
_BAD_PERCENT = re.compile(r"%(?![0-9a-fA-F]{2})")
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.-]*)://")


def check_clickhouse_url(url: str) -> None:
    """Raise ValueError, without any part of what is secret, unless the URL is one that the driver
    takes to mean what it looks like. An empty one is none, and right."""
    if not url:
        return
    if re.search(r"[\s\x00-\x1f\x7f]", url):
        raise ValueError(f"holds a space, a line end or a control character: {_ENCODE}")
    scheme = _SCHEME.match(url)
    if scheme is None:
        raise ValueError(f"does not begin with clickhouse:// : write {_CLICKHOUSE_LIKE}")
    name = scheme.group(1).lower()
    if name not in ("clickhouse", "clickhouses"):
        # An unknown scheme is not shown: it may be the beginning of a password.
        other = _OTHER_SCHEMES.get(name, "it begins with another scheme")
        raise ValueError(f"{other} ({_CLICKHOUSE_LIKE}, clickhouses:// for TLS)")
    try:
        parts = urlsplit(url)
        # Reading the port is what finds a wrong one.
        port = parts.port
    except ValueError:
        _check_misplaced(url)
        raise ValueError(f"the port is no number from 1 to 65535: write {_CLICKHOUSE_LIKE}; and "
                         f"{_ENCODE}") from None  # fmt: skip
    _check_misplaced(url)
    if port == 0:
        raise ValueError(f"the port is no number from 1 to 65535: write {_CLICKHOUSE_LIKE}")
    if not parts.hostname:
        raise ValueError(f"names no host: write {_CLICKHOUSE_LIKE}")
    if not _HOST.match(parts.hostname):
        raise ValueError(f"the host holds characters that no host name has: {_ENCODE}")
    if parts.username == "" and parts.password:
        raise ValueError(f"has a password and no user: write {_CLICKHOUSE_LIKE}")
    if _BAD_PERCENT.search(parts.netloc):
        raise ValueError(f"has a % that two hexadecimal digits do not follow: {_ENCODE}")
    database = parts.path.removeprefix("/").removesuffix("/")
    if database and not _DATABASE.match(database):
        raise ValueError("what follows the host is not the name of a database (letters, digits, "
                         f"_): write {_CLICKHOUSE_LIKE}; and {_ENCODE}")  # fmt: skip
    if parts.query:
        _check_options(parts)


def _check_misplaced(url: str) -> None:
    """Raise ValueError when user or password hold a character that ends them."""
    rest = url.partition("://")[2]
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    beyond = rest[len(authority) :]
    if "@" in beyond or authority.count("@") > 1 or "#" in beyond:
        raise ValueError(f"user or password hold one of # / ? @, which ends them there: {_ENCODE}")
    if "[" in authority.rpartition("@")[0] or "]" in authority.rpartition("@")[0]:
        raise ValueError(f"user or password hold a bracket: {_ENCODE}")


def _check_options(parts: SplitResult) -> None:
    """Raise ValueError for options after ``?`` that the driver cannot read."""
    from clickhouse_driver.util.helpers import parse_url

    options = parse_qs(parts.query)
    for name in ("ca_certs", "certfile", "keyfile"):
        for file in options.get(name, ())[:1]:
            check_file(f"option {name} of the URL", file)
    for name in options:
        try:
            parse_url(f"clickhouse://host?{name}={options[name][0]}")
        except (ValueError, AttributeError, IndexError):
            raise ValueError(f"option {name} after the ? has a value that cannot be read") from None


def check_file(what: str, path: str, variable: str = "") -> None:
    """Raise ValueError unless the file can be read. An empty path is none, and right."""
    if not path:
        return
    told = f" ({variable})" if variable else ""
    try:
        with Path(path).open("rb"):
            pass
    except OSError as error:
        raise ValueError(f"{what}: cannot read {path}: {error.strerror}{told}") from None


def check_server(server: str) -> None:
    """Raise ValueError, without what may be a password, unless it is ``host:port``."""
    like = "write host:port, comma-separated for several, such as kafka-1:9092,kafka-2:9092"
    if "@" in server:
        raise ValueError(f"holds an @: {like}; user and password are settings of their own "
                         "(RUNNERSTREAM_KAFKA_USER, RUNNERSTREAM_KAFKA_PASSWORD)")  # fmt: skip
    if "://" in server:
        raise ValueError(f"holds a scheme: {like}; how to connect is a setting of its own "
                         "(RUNNERSTREAM_KAFKA_SECURITY)")  # fmt: skip
    bracketed = re.fullmatch(r"\[([0-9a-fA-F:.%\w]+)\](?::(.*))?", server)
    if bracketed:
        port = bracketed.group(2)
    else:
        host, colon, rest = server.partition(":")
        port = rest if colon else None
        if not re.fullmatch(r"[\w.-]+", host):
            raise ValueError(f"a host is missing or is none: {like}")
        if port is not None and ":" in port:
            raise ValueError(f"an IPv6 address stands in brackets, [::1]:9092: {like}")
    # isdecimal alone takes digits of every script.
    if port is not None and not (
        port.isascii() and port.isdecimal() and 0 < int(port[:6]) < 65_536
    ):
        raise ValueError(f"a port is no number from 1 to 65535: {like}")


def host_and_port(value: str) -> tuple[str, int]:
    """Where to listen, from ``host:port``; port 0 picks one. Raises ValueError."""
    host, colon, port = value.strip().rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    right = colon and host and port.isascii() and port.isdecimal() and len(port) <= 5
    if not right or int(port) > 65_535:
        raise ValueError("is no address to listen at: write host:port, such as 0.0.0.0:8080")
    return host, int(port)


def beginning(value: str) -> str | int:
    """Where to begin in a log: ``earliest``, ``latest``, or a time in ms since 1970, from one in
    ISO 8601 with its zone. Raises ValueError."""
    if value in ("earliest", "latest"):
        return value
    try:
        at = datetime.fromisoformat(value)
    except ValueError:
        at = None
    if at is None or at.tzinfo is None or at.timestamp() < 0:
        raise ValueError("is no place to begin at: write latest, earliest, or a time with its "
                         "zone, such as 2026-11-30T08:00Z")  # fmt: skip
    return int(at.timestamp() * 1000)


def secret_files(directory: str) -> dict[tuple[str, str], tuple[bytes, ...]]:
    """Secrets of webhooks by provider and sender, one a line; for all senders: ``""``.

    The name of a file is ``<provider>`` or ``<provider>.<id>``. What begins with a dot is passed
    over, as Kubernetes keeps such links there. Raises ValueError, without a secret, for what is no
    such directory, and for a file without a secret: with an empty one anybody could sign.
    """
    if not directory:
        return {}
    found = {}
    try:
        for path in sorted(Path(directory).iterdir()):
            provider, _, sender = path.name.partition(".")
            if not provider:
                continue
            lines = [line.strip() for line in path.read_bytes().splitlines()]
            if not re.fullmatch(r"[a-z]+(\.[A-Za-z0-9_-]{1,128})?", path.name) or not any(lines):
                raise ValueError(
                    f"{path}: a file of secrets is called after a provider, or after it and the id "
                    "of a sender (github.12345), and has a secret on each line"
                )
            found[provider, sender] = tuple(filter(None, lines))
    except OSError as error:
        raise ValueError(f"{error.filename}: {error.strerror}") from None
    return found
