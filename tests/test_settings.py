"""Settings: what is wrong is found when they are read, told with its remedy, and never with what
may be a secret."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest

from pipeline.addresses import check_clickhouse_url
from pipeline.commands.context import read_settings
from pipeline.commands.failure import USAGE, Failure
from pipeline.settings import Settings, environment_problems, load

SECRET = "s3cr3t"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith("RUNNERSTREAM_"):
            monkeypatch.delenv(name)


def refused(config: Path | None = None) -> str:
    """What is said about the settings, which are wrong."""
    with pytest.raises(Failure) as told:
        read_settings(config)
    assert told.value.exit_code == USAGE
    text = f"{told.value.message} {told.value.remedy}"
    assert SECRET not in text
    for part in ("s3", "cr3t", "3cr"):
        assert part not in text
    return text


@pytest.mark.parametrize(
    ("url", "says"),
    [
        # Each character that ends a password in a URL, at its beginning, middle and end.
        *[
            (f"clickhouse://writer:{password}@db:9000/runnerstream", "percent-encode")
            for character in "#/?@[]%"
            for password in (f"s3{character}cr3t", f"{character}s3cr3t", f"s3cr3t{character}")
        ],
        ("clickhouse://writer:s3 cr3t@db:9000/runnerstream", "a space as %20"),
        ("clickhouse://wri/ter:s3cr3t@db:9000/runnerstream", "percent-encode"),
        ("clickhouse://writer:9000#s3cr3t@db/runnerstream", "# as %23"),
        ("clickhouse://writer:s3cr3t@db:9000/runnerstream#s3", "# as %23"),
        ("clickhouse://writer:s3cr3t#", "# as %23"),
        ("http://writer:s3cr3t@db:8123/runnerstream", "usually 9000 instead of 8123"),
        ("HTTPS://writer:s3cr3t@db:8443/runnerstream", "usually 9440 instead of 8443"),
        ("tcp://writer:s3cr3t@db:9000/x", "write clickhouse:// instead of tcp://"),
        ("jdbc:clickhouse://writer:s3cr3t@db/x", "clickhouse://user:password@host:9000/database"),
        ("postgres://writer:s3cr3t@db/x", "clickhouse://user:password@host:9000/database"),
        ("s3cr3t://db:9000", "another scheme"),
        ("writer:s3cr3t@db:9000/x", "does not begin with clickhouse://"),
        ("db:9000", "does not begin with clickhouse://"),
        ("clickhouse:/writer:s3cr3t@db/x", "does not begin with clickhouse://"),
        ("clickhouse://", "names no host"),
        ("clickhouse:///x", "names no host"),
        ("clickhouse://writer:s3cr3t@/x", "names no host"),
        ("clickhouse://writer:s3cr3t@:9000/x", "names no host"),
        ("clickhouse://db:s3cr3t/x", "the port is no number"),
        ("clickhouse://db:70000/x", "from 1 to 65535"),
        ("clickhouse://db:0/x", "from 1 to 65535"),
        ("clickhouse://:s3cr3t@db/x", "a password and no user"),
        ("clickhouse://db/x/y", "not the name of a database"),
        ("clickhouse://db/x-y", "not the name of a database"),
        ("clickhouse://db/x?connect_timeout=s3cr3t", "option connect_timeout"),
        ("clickhouse://db/x?secure=s3cr3t", "option secure"),
        ("clickhouses://db/x?ca_certs=/nowhere/ca.pem", "cannot read /nowhere/ca.pem"),
    ],
)
def test_a_clickhouse_url_that_means_something_else_is_refused(
    url: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNERSTREAM_CLICKHOUSE", url)
    text = refused()
    assert "setting clickhouse (RUNNERSTREAM_CLICKHOUSE)" in text
    assert says in text


@pytest.mark.parametrize(
    "url",
    [
        "",
        "clickhouse://db",
        "clickhouse://default@127.0.0.1:19000/runnerstream",
        "clickhouse://writer:a%23b%2Fc%40d%3Fe%25f%5Bg%5Dh%20i@db:9000/runnerstream",
        "clickhouse://writer:a:b!$&'()*+,;=-._~@db:9000/runnerstream",
        "clickhouses://writer:x@[::1]:9440/runnerstream?verify=false&connect_timeout=3",
        "clickhouse://writer:x@db:9000/",
    ],
)
def test_a_clickhouse_url_that_is_right_is_taken(url: str) -> None:
    check_clickhouse_url(url)


def test_a_password_of_any_characters_arrives_when_it_is_encoded() -> None:
    from urllib.parse import quote

    from clickhouse_driver.util.helpers import parse_url

    password = "".join(map(chr, range(33, 127))) + " ü"
    url = f"clickhouse://writer:{quote(password, safe='')}@db:9000/runnerstream"
    check_clickhouse_url(url)
    host, options = parse_url(url)
    assert (host, options["password"], options["database"]) == ("db", password, "runnerstream")


@pytest.mark.parametrize(
    ("servers", "says"),
    [
        ("", "names no broker"),
        (" , ", "names no broker"),
        ("kafka://db:9092", "holds a scheme"),
        ("SASL_SSL://db:9092", "holds a scheme"),
        ("me:s3cr3t@db:9092", "RUNNERSTREAM_KAFKA_PASSWORD"),
        ("db:", "from 1 to 65535"),
        ("db:kafka", "from 1 to 65535"),
        ("db:9092,other:0", "from 1 to 65535"),
        ("db:99999", "from 1 to 65535"),
        ("db:٩٠٩٢", "from 1 to 65535"),
        (":9092", "a host is missing"),
        ("db 9092", "a host is missing"),
        ("db/9092", "a host is missing"),
    ],
)
def test_brokers_are_host_and_port(
    servers: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RUNNERSTREAM_KAFKA", servers)
    assert says in refused()


def test_brokers_as_they_may_be_written() -> None:
    for servers in ("db", "db:9092", "a_b.c-d:1, e:65535,", "127.0.0.1:9092", "[::1]:9092"):
        assert Settings(kafka=servers).kafka == servers


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("RUNNERSTREAM_KAFAK", "the nearest is RUNNERSTREAM_KAFKA"),
        ("RUNNERSTREAM_CLICKHOUSE_URL", "the nearest is RUNNERSTREAM_CLICKHOUSE"),
        ("runnerstream_partition", "the nearest is RUNNERSTREAM_PARTITIONS"),
        ("RUNNERSTREAM_CONFIGS", "the nearest is RUNNERSTREAM_CONFIG"),
        ("RUNNERSTREAM_", "there is no such setting"),
        ("RUNNERSTREAM_QQQQQQQQ", "see the settings in docs/operators.md"),
        ("RUNNERSTREAM_PORT", "there is no such setting"),
    ],
)
def test_an_unknown_name_in_the_environment_is_refused(
    name: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, SECRET)
    text = refused()
    assert f"{name} is set" in text
    assert says in text


def test_names_that_are_no_settings_and_no_mistakes_are_left_alone() -> None:
    assert not environment_problems(
        {
            "RUNNERSTREAM_CONFIG": "x",
            "RUNNERSTREAM_TEST_BROKER": "kafka",
            "PATH": "x",
            # Kubernetes sets these in every pod for Services called runnerstream and so on.
            "RUNNERSTREAM_SERVICE_HOST": "10.0.0.1",
            "RUNNERSTREAM_SERVICE_PORT": "6066",
            "RUNNERSTREAM_SERVICE_PORT_HTTP": "6066",
            "RUNNERSTREAM_PORT": "tcp://10.0.0.1:6066",
            "RUNNERSTREAM_PORT_6066_TCP": "tcp://10.0.0.1:6066",
            "RUNNERSTREAM_PORT_6066_TCP_PROTO": "tcp",
            "RUNNERSTREAM_PORT_6066_TCP_ADDR": "10.0.0.1",
            "RUNNERSTREAM_KAFKA_SERVICE_HOST": "10.0.0.1",
        }
    )


def test_a_service_with_the_name_of_a_setting_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNERSTREAM_WEB_PORT", "tcp://10.0.0.1:6066")
    assert "enableServiceLinks: false" in refused()


def test_the_file_is_checked_line_by_line(tmp_path: Path) -> None:
    file = tmp_path / "env"
    file.write_text(
        "# settings\n\n"
        "RUNNERSTREAM_KAFKA=db:9092\n"
        "RUNNERSTREAM_CLICKHOSE=clickhouse://u:s3cr3t@db\n"
        "\n\nKAFKA_PASSWORD=s3cr3t\n"
        "RUNERSTREAM_STORE=memory\n"
        "export runnerstream_app_id=other\n"
        "UNRELATED=1\n"
        "s3cr3t with words\n"
        "s3cr3t\n"
    )
    text = refused(file)
    assert f"{file}, line 4: there is no setting RUNNERSTREAM_CLICKHOSE; the nearest is " \
        "RUNNERSTREAM_CLICKHOUSE" in text  # fmt: skip
    assert f"{file}, line 7: KAFKA_PASSWORD is not read; write RUNNERSTREAM_KAFKA_PASSWORD" in text
    assert f"{file}, line 8: RUNERSTREAM_STORE is not read; the nearest is RUNNERSTREAM_STORE" \
        in text  # fmt: skip
    assert f"{file}, line 11, is not NAME=value" in text
    assert f"{file}, line 12: a name has no value" in text
    assert "UNRELATED" not in text
    file.write_text("RUNNERSTREAM_KAFKA=db:9092\nUNRELATED=1\nexport runnerstream_app_id=other\n")
    settings = read_settings(file)
    assert (settings.kafka, settings.app_id) == ("db:9092", "other")
    file.write_bytes(b"RUNNERSTREAM_KAFKA=\xff")
    assert "is not UTF-8 text" in refused(file)


def test_files_for_tls_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNERSTREAM_KAFKA_SECURITY", "SSL")
    for name in ("CA", "CERT"):
        monkeypatch.setenv(f"RUNNERSTREAM_KAFKA_{name}_FILE", str(tmp_path / "none.pem"))
        text = refused()
        assert f"cannot read {tmp_path / 'none.pem'}: No such file or directory" in text
        assert f"RUNNERSTREAM_KAFKA_{name}_FILE" in text
        file = tmp_path / "text.pem"
        file.write_text("no certificate\n")
        monkeypatch.setenv(f"RUNNERSTREAM_KAFKA_{name}_FILE", str(file))
        assert str(file) in refused()
        monkeypatch.delenv(f"RUNNERSTREAM_KAFKA_{name}_FILE")
    monkeypatch.setenv("RUNNERSTREAM_KAFKA_KEY_FILE", str(tmp_path / "text.pem"))
    assert "RUNNERSTREAM_KAFKA_CERT_FILE" in refused()
    # Of a connection without TLS nobody reads them.
    monkeypatch.setenv("RUNNERSTREAM_KAFKA_KEY_FILE", "")
    monkeypatch.setenv("RUNNERSTREAM_KAFKA_CA_FILE", str(tmp_path / "none.pem"))
    monkeypatch.setenv("RUNNERSTREAM_KAFKA_SECURITY", "PLAINTEXT")
    assert read_settings().ssl_context() is None


def test_tls_without_files_uses_the_trust_of_the_system() -> None:
    context = Settings(kafka_security="SSL").ssl_context()
    assert context is not None
    assert context.verify_mode == ssl.CERT_REQUIRED


def test_the_environment_can_be_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNERSTREAM_PARTITIONS", "many")
    monkeypatch.setenv("RUNNERSTREAM_NONE", "1")
    assert load(environment=False, kafka="db:1").partitions == 8


@pytest.mark.parametrize("value", ["inf", "-inf", "nan"])
def test_times_are_finite(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNNERSTREAM_SESSION_TIMEOUT", value)
    assert "finite" in refused()
