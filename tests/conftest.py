"""Fixtures every test may use."""

import os
from pathlib import Path

import pytest
from django.db import connection

ROOT = Path(__file__).resolve().parent.parent


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where everything is said to be installed (CI), a test that skips has failed to look.

    Tests on data that is not the project's own may skip all the same.
    """
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or not os.environ.get("PREFLOOP_TEST_REQUIRE_ALL"):
        return
    reasons = [str(report.longrepr) for report in reporter.stats.get("skipped", [])]
    unexpected = [reason for reason in reasons if "real data" not in reason]
    if unexpected:
        print("\nSkipped, though nothing may skip here:", *unexpected, sep="\n  ")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.fixture(autouse=True)
def _quick_passwords(settings) -> None:
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture(autouse=True)
def _exact_figures(monkeypatch) -> None:
    """However slow the machine is just now, what a page counts is what is there."""
    monkeypatch.setattr("labeling.figures.CHEAP_S", float("inf"))


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
