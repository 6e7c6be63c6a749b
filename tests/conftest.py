"""Fixtures every test may use."""

import os
from pathlib import Path

import pytest
from django.db import connection

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _quick_passwords(settings) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture
def site_env(transactional_db, settings) -> dict[str, str]:
    """The environment in which another process sees this test's database and data folder."""
    if connection.vendor == "sqlite":
        url = f"sqlite://{connection.settings_dict['NAME']}"
    else:
        made = connection.settings_dict
        user = f"{made['USER']}:{made['PASSWORD']}@" if made["USER"] else ""
        url = f"postgres://{user}{made['HOST'].replace('/', '%2F')}:{made['PORT']}/{made['NAME']}"
    env = {name: value for name, value in os.environ.items() if name != "PYTEST_CURRENT_TEST"}
    return env | {
        "PREFLOOP_DATABASE_URL": url,
        "PREFLOOP_DATA": str(settings.DATA_DIR),
        "PYTHONPATH": str(ROOT),
    }
