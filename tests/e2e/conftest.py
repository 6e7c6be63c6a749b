"""A real Chromium for the pages. Every page counts what its security policy blocked: nothing."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.test import Client

from labeling.models import User

sync_api = pytest.importorskip("playwright.sync_api")

PLACES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
COUNT_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) =>
  console.error(`policy: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""


def _chromium() -> str | None:
    named = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, PLACES)), None)
    if named:
        return named
    with sync_api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    return own if Path(own).exists() else None


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """One browser for all tests; skips where there is none and none is required."""
    found = _chromium()
    if found is None:
        if os.environ.get("PREFLOOP_TEST_REQUIRE_BROWSER"):
            pytest.fail("No Chromium was found, and PREFLOOP_TEST_REQUIRE_BROWSER is set.")
        pytest.skip("No Chromium was found: install one, or name it in CHROMIUM.")
    arguments = ["--no-sandbox", "--disable-dev-shm-usage"]
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=found, args=arguments)
        yield chromium
        chromium.close()


@pytest.fixture
def open_page(browser: Any, live_server: Any) -> Iterator[Callable[..., Any]]:
    """`open_page(user, path, **context options)`: a signed-in page in a context of its own.

    At the end: no script failed, nothing was blocked, nothing was asked of another host.
    """
    opened: list[Any] = []
    wrong: list[str] = []

    def watch(page: Any) -> None:
        page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
        page.on("dialog", lambda dialog: _refuse(dialog, wrong))
        page.on("console", lambda line: wrong.append(line.text) if "policy" in line.text else None)
        page.on("request", lambda request: _note_foreign(request.url, live_server.url, wrong))

    def _open(user: User | None, path: str, **options: Any) -> Any:
        context = browser.new_context(base_url=live_server.url, **options)
        context.add_init_script(COUNT_VIOLATIONS)
        if user is not None:
            context.add_cookies([_session_cookie(user, live_server.url)])
        page = context.new_page()
        watch(page)
        opened.append(page)
        page.goto(path)
        return page

    yield _open
    for page in opened:
        page.goto("about:blank")  # no request outlives the test's database
        page.context.close()
    assert wrong == []


def _refuse(dialog: Any, wrong: list[str]) -> None:
    wrong.append(f"dialog: {dialog.message}")
    dialog.dismiss()


def _note_foreign(url: str, own: str, wrong: list[str]) -> None:
    if not url.startswith((own, "about:", "data:")):
        wrong.append(f"asked for {url}")


def _session_cookie(user: User, url: str) -> dict[str, str]:
    client = Client()
    client.force_login(user)
    name = settings.SESSION_COOKIE_NAME
    return {"name": name, "value": client.cookies[name].value, "url": url}
