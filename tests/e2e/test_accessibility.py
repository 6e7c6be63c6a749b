"""What axe-core finds wrong with the pages, for those who hear them or need contrast: nothing."""

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.template.loader import render_to_string
from django.test import Client

from labeling.models import User
from tests.everything import everything

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]
VENDOR = Path(__file__).parent / "vendor"
DESK = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
BROKEN = ("400.html", "500.html")  # rendered by Django without a request
# What opens on the judging page, by the keys that open it.
PANELS = {"help": "?", "guide": "g", "flag": "f", "reason": "r", "rewrite": "w", "differences": "d"}
FRAMES = "() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))"
RUN = """async (only) => {
  const found = await axe.run(document, only ? { runOnly: [only] } : {});
  return found.violations.flatMap(({ id, nodes }) =>
    nodes.map(({ target, failureSummary }) => `${id}: ${target.join(" ")}: ${failureSummary}`));
}"""


def session_cookie(user: User, url: str) -> dict[str, str]:
    client = Client()
    client.force_login(user)
    name = settings.SESSION_COOKIE_NAME
    return {"name": name, "value": client.cookies[name].value, "url": url}


def test_the_vendored_axe_is_what_its_manifest_says() -> None:
    (axe,) = json.loads((VENDOR / "manifest.json").read_text()).values()
    files = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in VENDOR.iterdir()
        if path.name != "manifest.json"
    }
    assert files == axe["sha256"]


def test_axe_finds_nothing_on_any_page(
    open_page: Callable[..., Any], live_server: Any, tmp_path: Path
) -> None:
    wrong: list[str] = []
    page = open_page(None, "/sign-in/", viewport=DESK, reduced_motion="reduce")
    page.context.add_init_script(path=VENDOR / "axe.min.js")

    def look(name: str, only: str | None = None) -> None:
        wrong.extend(f"{name}: {one}" for one in page.evaluate(RUN, only))

    def look_every_way(name: str) -> None:
        look(name)
        page.emulate_media(color_scheme="dark")
        look(f"{name}, dark", "color-contrast")
        page.set_viewport_size(PHONE)
        page.evaluate(FRAMES)  # the page's own answer to it comes with the next frame
        look(f"{name}, phone")
        page.emulate_media(color_scheme="light")
        page.set_viewport_size(DESK)

    def become(user: User | None) -> None:
        page.context.clear_cookies()
        if user is not None:
            page.context.add_cookies([session_cookie(user, live_server.url)])

    pages = everything(tmp_path)
    for name, one in pages.items():
        become(one.user)
        answer = page.goto(one.path)
        assert answer.status == one.status, name
        look_every_way(name)
    become(pages["judge a pair"].user)
    page.goto(pages["judge a pair"].path)
    for panel, key in PANELS.items():
        page.keyboard.press(key)
        page.wait_for_timeout(200)
        look_every_way(f"judge a pair, {panel}")
        page.keyboard.press("Escape")
    for template in BROKEN:
        html = render_to_string(template)
        page.route(f"**/{template}", partial(_fulfill, html))
        page.goto(f"/{template}")
        look_every_way(template)
    assert not wrong, "\n".join(wrong)


def _fulfill(html: str, route: Any) -> None:
    route.fulfill(body=html, content_type="text/html")
