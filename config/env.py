"""Strict readers of environment variables: what cannot be meant is an error, not a guess."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

PREFIX = "PREFLOOP_"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class SettingError(Exception):
    """A setting in the environment cannot be understood. The message names it and what it takes."""


def text(name: str, default: str = "") -> str:
    """The variable's value, or what the file named by NAME_FILE holds (for secrets)."""
    path = os.environ.get(f"{PREFIX}{name}_FILE")
    if path is None:
        return os.environ.get(f"{PREFIX}{name}", default)
    try:
        return Path(path).read_text().strip()
    except OSError as error:
        raise SettingError(f"{PREFIX}{name}_FILE: cannot read {path}: {error.strerror}") from None


def secret_file(name: str) -> str:
    """The file named by NAME_FILE, "" without one; what it holds is not read here."""
    if f"{PREFIX}{name}" in os.environ:
        raise SettingError(f"{PREFIX}{name} is not read: write it to a file, {PREFIX}{name}_FILE")
    path = os.environ.get(f"{PREFIX}{name}_FILE", "")
    if path and not os.access(path, os.R_OK):
        raise SettingError(f"{PREFIX}{name}_FILE: cannot read {path}")
    return path


def flag(name: str, default: bool) -> bool:
    """true or false, nothing else."""
    value = text(name, "true" if default else "false")
    if value not in ("true", "false"):
        raise SettingError(f"{PREFIX}{name} must be true or false, not {value!r}")
    return value == "true"


def number(name: str, default: int, *, minimum: int = 0) -> int:
    """A whole number, at least `minimum`."""
    value = text(name, str(default))
    if not re.fullmatch(r"\d+", value) or int(value) < minimum:
        raise SettingError(
            f"{PREFIX}{name} must be a whole number from {minimum} on, not {value!r}"
        )
    return int(value)


def one_of(name: str, default: str, allowed: Sequence[str]) -> str:
    """One of these words."""
    value = text(name, default)
    if value not in allowed:
        raise SettingError(f"{PREFIX}{name} must be one of {', '.join(allowed)}, not {value!r}")
    return value


def web_addresses(name: str) -> list[str]:
    """A list of http or https addresses, without a user name and without a slash at the end."""
    found = [address.rstrip("/") for address in words(name)]
    for address in found:
        parts = urlsplit(address)
        plain = not (parts.query or parts.fragment or parts.username)
        if parts.scheme not in ("http", "https") or not parts.hostname or not plain:
            raise SettingError(
                f"{PREFIX}{name} must be addresses such as http://127.0.0.1:8001, separated by "
                "commas; a key goes into a file of its own"
            )
    return found


def web_address(name: str) -> str:
    """One such address, "" without one."""
    found = web_addresses(name)
    if len(found) > 1:
        raise SettingError(f"{PREFIX}{name} must be one address, not {len(found)}")
    return found[0] if found else ""


def mail_server(name: str) -> dict[str, Any]:
    """Django's settings of a mail server from smtp+tls://user:password@host:587; host "" if none.

    smtp+tls turns to TLS after the greeting, smtps speaks it from the start, smtp does not.
    """
    value = text(name)
    ports = {"smtp": 25, "smtp+tls": 587, "smtps": 465}
    try:
        parts = urlsplit(value)
        port = parts.port or ports.get(parts.scheme, 0)
    except ValueError:
        parts, port = urlsplit(""), 0
    bare = not (parts.path.strip("/") or parts.query or parts.fragment)
    if value and not (parts.scheme in ports and port and parts.hostname and bare):
        raise SettingError(  # without the value: it may hold a password
            f"{PREFIX}{name} must look like smtp+tls://user:password@host:587, smtps:// or smtp://"
        )
    return {
        "EMAIL_HOST": parts.hostname or "",
        "EMAIL_PORT": port,
        "EMAIL_HOST_USER": unquote(parts.username or ""),
        "EMAIL_HOST_PASSWORD": unquote(parts.password or ""),
        "EMAIL_USE_TLS": parts.scheme == "smtp+tls",
        "EMAIL_USE_SSL": parts.scheme == "smtps",
    }


def check_key_is_hidden(name: str, addresses: Sequence[str], key_file: str) -> None:
    """A key goes to other machines over https only."""
    open_ones = [
        address
        for address in addresses
        if address.startswith("http:") and urlsplit(address).hostname not in LOOPBACK
    ]
    if key_file and open_ones:
        raise SettingError(
            f"{PREFIX}{name}: a key would go to {open_ones[0]} in the open; use https, or a tunnel "
            "to this machine"
        )


def words(name: str, default: str = "") -> list[str]:
    """A list separated by commas; spaces around items are dropped."""
    return [item.strip() for item in text(name, default).split(",") if item.strip()]


def database(name: str, default_path: Path) -> dict[str, Any]:
    """Django's database settings from postgres://user:password@host:port/name, or SQLite."""
    value = text(name)
    if not value:
        return sqlite(default_path)
    parts = urlsplit(value)
    if parts.scheme == "sqlite":
        return sqlite(Path(unquote(parts.path)))
    if parts.scheme not in ("postgres", "postgresql") or not parts.path.strip("/"):
        raise SettingError(
            f"{PREFIX}{name} must look like postgres://user:password@host:5432/name "
            "or sqlite:///path/to/file"
        )
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": unquote(parts.path.strip("/")),
        "USER": unquote(parts.username or ""),
        "PASSWORD": unquote(parts.password or ""),
        "HOST": unquote(parts.hostname or ""),
        "PORT": str(parts.port or ""),
        "CONN_MAX_AGE": 300,
        "CONN_HEALTH_CHECKS": True,
        "OPTIONS": {
            "options": "-c lock_timeout=5s -c idle_in_transaction_session_timeout=60s",
        },
    }


def sqlite(path: Path) -> dict[str, Any]:
    """SQLite as it holds up under many writers.

    IMMEDIATE transactions serialise writers at BEGIN (deferred ones lost 495 of 2,000 writes to
    "database is locked" in a trial with 50 writers); synchronous=FULL keeps what was
    acknowledged through a power cut. The file is mapped into memory, because a connection's own
    cache of 2 MB is small for a record of a million comparisons.
    """
    pragmas = (
        "journal_mode=WAL",
        "synchronous=FULL",
        "journal_size_limit=67108864",
        "wal_autocheckpoint=8000",
        "mmap_size=1073741824",
    )
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": path,
        "CONN_MAX_AGE": 300,
        "OPTIONS": {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "".join(f"PRAGMA {pragma};" for pragma in pragmas),
        },
    }
