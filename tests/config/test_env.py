import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from config import env

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("value", ["yes", "1", "True", ""])
def test_a_flag_is_true_or_false_and_nothing_else(monkeypatch, value) -> None:
    monkeypatch.setenv("PREFLOOP_HTTPS", value)
    with pytest.raises(env.SettingError, match="PREFLOOP_HTTPS"):
        env.flag("HTTPS", False)


@pytest.mark.parametrize("value", ["-1", "1.5", "ten", "", "0"])
def test_a_number_in_range_or_an_error(monkeypatch, value) -> None:
    monkeypatch.setenv("PREFLOOP_N", value)
    with pytest.raises(env.SettingError, match="PREFLOOP_N"):
        env.number("N", 5, minimum=1)


def test_a_secret_can_come_from_a_file(monkeypatch, tmp_path) -> None:
    (tmp_path / "key").write_text("from the file\n")
    monkeypatch.setenv("PREFLOOP_SECRET_KEY_FILE", str(tmp_path / "key"))
    assert env.text("SECRET_KEY") == "from the file"
    monkeypatch.setenv("PREFLOOP_SECRET_KEY_FILE", str(tmp_path / "absent"))
    with pytest.raises(env.SettingError, match="absent"):
        env.text("SECRET_KEY")


def test_a_secret_that_programs_read_comes_from_a_file_only(monkeypatch, tmp_path) -> None:
    assert env.secret_file("SERVER_KEY") == ""
    key = tmp_path / "key"
    monkeypatch.setenv("PREFLOOP_SERVER_KEY_FILE", str(key))
    with pytest.raises(env.SettingError, match="cannot read"):
        env.secret_file("SERVER_KEY")
    key.write_text("hidden")
    assert env.secret_file("SERVER_KEY") == str(key)
    monkeypatch.setenv("PREFLOOP_SERVER_KEY", "hidden")
    with pytest.raises(env.SettingError, match="PREFLOOP_SERVER_KEY_FILE") as error:
        env.secret_file("SERVER_KEY")
    assert "hidden" not in str(error.value)


@pytest.mark.parametrize(
    "value", ["localhost:8001", "ftp://x/", "http://", "http://key@host/", "http://h/?q=1"]
)
def test_a_server_s_address_is_one_or_an_error(monkeypatch, value) -> None:
    monkeypatch.setenv("PREFLOOP_SERVER_URLS", f"http://127.0.0.1:8001/,{value}")
    with pytest.raises(env.SettingError, match="PREFLOOP_SERVER_URLS"):
        env.web_addresses("SERVER_URLS")


def test_servers_are_listed_without_a_slash_at_the_end(monkeypatch) -> None:
    monkeypatch.setenv("PREFLOOP_SERVER_URLS", "http://127.0.0.1:8001/, https://gpu.example/v")
    assert env.web_addresses("SERVER_URLS") == ["http://127.0.0.1:8001", "https://gpu.example/v"]


def test_a_key_goes_to_other_machines_over_https_only() -> None:
    env.check_key_is_hidden("SERVER_URLS", ["http://127.0.0.1:1", "https://gpu.example"], "/key")
    env.check_key_is_hidden("SERVER_URLS", ["http://gpu.example"], "")
    with pytest.raises(env.SettingError, match="in the open"):
        env.check_key_is_hidden("SERVER_URLS", ["http://gpu.example"], "/key")


def test_a_choice_is_one_of_its_words(monkeypatch) -> None:
    monkeypatch.setenv("PREFLOOP_SAMPLER", "vlm")
    with pytest.raises(env.SettingError, match="auto, vllm"):
        env.one_of("SAMPLER", "auto", ("auto", "vllm"))


def test_postgres_addresses_are_read_whole(monkeypatch) -> None:
    monkeypatch.setenv("PREFLOOP_DATABASE_URL", "postgres://ann:p%40ss@db.example:5433/pref")
    made = env.database("DATABASE_URL", Path("unused"))
    assert (made["USER"], made["PASSWORD"], made["HOST"]) == ("ann", "p@ss", "db.example")
    assert (made["PORT"], made["NAME"]) == ("5433", "pref")


@pytest.mark.parametrize("url", ["mysql://x/y", "postgres://host", "nonsense"])
def test_an_address_of_no_database_we_know_is_an_error(monkeypatch, url) -> None:
    monkeypatch.setenv("PREFLOOP_DATABASE_URL", url)
    with pytest.raises(env.SettingError, match="PREFLOOP_DATABASE_URL"):
        env.database("DATABASE_URL", Path("unused"))


@pytest.mark.django_db
def test_sqlite_is_durable_and_lets_one_writer_in_at_a_time() -> None:
    from django.db import connection

    if connection.vendor != "sqlite":
        assert connection.settings_dict["CONN_HEALTH_CHECKS"]
        return
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA synchronous")
        assert cursor.fetchone() == (2,), "FULL"
        cursor.execute("PRAGMA journal_mode")
        assert cursor.fetchone() == ("wal",)
        cursor.execute("PRAGMA foreign_keys")
        assert cursor.fetchone() == (1,)
    assert connection.settings_dict["OPTIONS"]["transaction_mode"] == "IMMEDIATE"


def site(tmp_path: Path, code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run code under the settings of a fresh installation in tmp_path."""
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PREFLOOP_")}
    return subprocess.run(
        [sys.executable, "-c", f"from django.conf import settings\n{code}"],
        cwd=ROOT,
        env=inherited
        | {"DJANGO_SETTINGS_MODULE": "config.settings", "PREFLOOP_DATA": str(tmp_path / "data")}
        | variables,
        capture_output=True,
        text=True,
    )


def test_each_installation_makes_its_own_private_key_once(tmp_path) -> None:
    first = site(tmp_path, "print(settings.SECRET_KEY)")
    again = site(tmp_path, "print(settings.SECRET_KEY)")
    assert first.stdout == again.stdout
    assert len(first.stdout.strip()) >= 50
    key = tmp_path / "data" / "secret_key"
    assert stat.S_IMODE(key.stat().st_mode) == 0o600
    assert stat.S_IMODE(key.parent.stat().st_mode) == 0o700
    other = site(tmp_path / "elsewhere", "print(settings.SECRET_KEY)")
    assert other.stdout != first.stdout


def test_beyond_loopback_everything_is_https_unless_said_otherwise(tmp_path) -> None:
    code = "print(settings.SECURE_SSL_REDIRECT, settings.SESSION_COOKIE_NAME, settings.DEBUG)"
    assert site(tmp_path, code).stdout.split() == ["False", "sid", "False"]
    public = site(tmp_path, code, PREFLOOP_HOSTS="prefs.example.org")
    assert public.stdout.split() == ["True", "__Host-sid", "False"]


def test_a_setting_that_cannot_be_meant_stops_the_start_and_is_named(tmp_path) -> None:
    done = site(tmp_path, "settings.DEBUG", PREFLOOP_DEBUG="maybe")
    assert done.returncode != 0
    assert "PREFLOOP_DEBUG must be true or false" in done.stderr


def test_the_site_boots_without_the_heavy_libraries(tmp_path) -> None:
    code = """
import sys
for name in ("torch", "transformers", "peft", "tokenizers", "safetensors"):
    sys.modules[name] = None
import django; django.setup()
import config.urls
from django.urls import get_resolver
get_resolver().url_patterns
print("up")
"""
    done = site(tmp_path, code)
    assert done.stdout.strip() == "up", done.stderr


@pytest.mark.parametrize(
    ("value", "port", "tls", "ssl"),
    [
        ("smtp+tls://ada%40x:p%2Fw@mail.example", 587, True, False),
        ("smtps://ada%40x:p%2Fw@mail.example", 465, False, True),
        ("smtp://ada%40x:p%2Fw@mail.example:2525", 2525, False, False),
    ],
)
def test_a_mail_server_is_an_address(monkeypatch, value, port, tls, ssl) -> None:
    monkeypatch.setenv("PREFLOOP_EMAIL_URL", value)
    found = env.mail_server("EMAIL_URL")
    assert (found["EMAIL_HOST"], found["EMAIL_PORT"]) == ("mail.example", port)
    assert (found["EMAIL_HOST_USER"], found["EMAIL_HOST_PASSWORD"]) == ("ada@x", "p/w")
    assert (found["EMAIL_USE_TLS"], found["EMAIL_USE_SSL"]) == (tls, ssl)


@pytest.mark.parametrize(
    "value", ["mail.example", "http://a:hidden@h:80", "smtp://", "smtp://h:no", "smtp://[::1"]
)
def test_what_is_no_mail_server_is_an_error_that_keeps_the_password(monkeypatch, value) -> None:
    monkeypatch.setenv("PREFLOOP_EMAIL_URL", value)
    with pytest.raises(env.SettingError, match="PREFLOOP_EMAIL_URL") as error:
        env.mail_server("EMAIL_URL")
    assert "hidden" not in str(error.value)


def test_without_a_mail_server_there_is_no_host(monkeypatch) -> None:
    monkeypatch.delenv("PREFLOOP_EMAIL_URL", raising=False)
    assert env.mail_server("EMAIL_URL")["EMAIL_HOST"] == ""


def test_the_site_has_one_address(monkeypatch) -> None:
    monkeypatch.setenv("PREFLOOP_SITE_URL", "https://prefloop.example/")
    assert env.web_address("SITE_URL") == "https://prefloop.example"
    monkeypatch.setenv("PREFLOOP_SITE_URL", "https://a.example, https://b.example")
    with pytest.raises(env.SettingError, match="one address"):
        env.web_address("SITE_URL")
