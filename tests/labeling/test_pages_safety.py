"""What holds for every page: the policy on scripts, and no text that runs."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import cycle
from pathlib import Path

import pytest
from django.conf import settings
from django.template.loader import render_to_string
from django.test import Client, RequestFactory

from config.views import csrf_failure
from labeling.models import User
from labeling.rendering import TAGS
from tests.everything import everything
from tests.labeling.hostile import HOSTILE

ROOT = Path(settings.BASE_DIR)
TEMPLATES = sorted((ROOT / "templates").rglob("*.html"))


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_no_template_needs_what_the_policy_forbids(path: Path) -> None:
    text = path.read_text()
    assert not re.search(r"\sstyle\s*=", text), "inline styles are blocked"
    assert not re.search(r"\son[a-z]+\s*=\s*[\"']", text), "inline handlers are blocked"
    assert "<style" not in text
    assert "|safe" not in text
    assert "hx-on" not in text
    assert "autoescape off" not in text
    for script in re.findall(r"<script[^>]*>[^<]*", text):
        assert 'nonce="{{ request.csp_nonce }}"' in script
        assert script.endswith(">"), "scripts live in files"
    for form in re.findall(r"<form[^>]*method=\"post\".*?</form>", text, re.S):
        assert "{% csrf_token %}" in form


def test_vendored_files_are_what_the_manifest_says() -> None:
    vendor = ROOT / "static" / "vendor"
    manifest = json.loads((vendor / "manifest.json").read_text())
    listed = {name: digest for one in manifest.values() for name, digest in one["sha256"].items()}
    present = {
        str(path.relative_to(vendor)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in vendor.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    assert present == listed
    assert all(one["version"] and one["licence"] for one in manifest.values())


def test_static_files_fetch_nothing_from_elsewhere() -> None:
    for path in (ROOT / "static").rglob("*"):
        if path.suffix in (".css", ".js") and "vendor" not in path.parts:
            text = path.read_text()
            assert "http://" not in text, path.name
            assert "https://" not in text, path.name
            assert "@import" not in text, path.name
            assert "innerHTML" not in text, path.name
            assert "eval(" not in text, path.name


VOID = {"br", "hr", "img", "input", "link", "meta", "source", "wbr", "path", "circle", "rect"}
ADDRESSES = ("href", "src", "action", "formaction", "hx-get", "hx-post", "xlink:href")


class _Frame(HTMLParser):
    """A page's elements with their attributes' names, those inside `hx-disable` apart."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[tuple[str, bool]] = []  # and whether texts of others are inside
        self.frame: list[tuple[str, tuple[str, ...]]] = []
        self.inside: list[tuple[str, tuple[str, ...]]] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        disabled = bool(self.open) and self.open[-1][1]
        names = tuple(sorted(name for name, _ in attrs))
        (self.inside if disabled else self.frame).append((tag, names))
        self.addresses += [value or "" for name, value in attrs if name in ADDRESSES]
        if tag not in VOID:
            self.open.append((tag, disabled or "hx-disable" in names))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        assert self.open, f"</{tag}> closes nothing"
        assert self.open[-1][0] == tag, f"</{tag}> where <{self.open[-1][0]}> is open"
        self.open.pop()


def _hostile() -> Callable[[str], str]:
    """Hostile texts one after the other, as one texts' writer would put them in everywhere."""
    texts = cycle(HOSTILE)
    return lambda _ordinary: next(texts).replace("\x00", "")  # which imports refuse


def _harmless() -> Callable[[str], str]:
    """Words of the same shape in the same places, and no two in a row the same."""
    say, letters = _hostile(), cycle("abcdefghijklm")
    return lambda ordinary: re.sub(r"[^\n]", next(letters), say(ordinary))


def _frames(folder: Path, say: Callable[[str], str]) -> dict[str, _Frame]:
    frames = {}
    for name, page in everything(folder, say).items():
        client = Client()
        if page.user:
            client.force_login(page.user)
        answer = client.get(page.path)
        assert answer.status_code == page.status, name
        frames[name] = _Frame(answer.content.decode())
    return frames


@pytest.mark.django_db
def test_hostile_texts_change_the_frame_of_no_page(tmp_path: Path) -> None:
    for name in ("hostile", "harmless"):
        (tmp_path / name).mkdir()
    hostile = _frames(tmp_path / "hostile", _hostile())
    harmless = _frames(tmp_path / "harmless", _harmless())
    shown = [name for name, page in hostile.items() if "alert(1)" in page.text]
    assert len(shown) > 20, shown
    for name, page in hostile.items():
        assert page.open == [], name
        # Not in order: which place is which depends on the shuffle.
        assert Counter(page.frame) == Counter(harmless[name].frame), name
        for tag, names in page.inside:
            assert tag in TAGS, (name, tag)
            assert set(names) <= {"class", "href", "rel", "dir", "start", "align"}, (name, names)
        for address in page.addresses:
            own = address.startswith(("/", "#", "?")) and not address.startswith("//")
            assert own or re.match("https?://(ok|evil)[.]example/|mailto:", address), (
                name,
                address,
            )


@pytest.mark.django_db
def test_every_answer_carries_the_policy_and_is_stored_nowhere(client: Client) -> None:
    for path in ("/sign-in/", "/nowhere/", "/healthz"):
        answer = client.get(path)
        policy = answer["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer["X-Frame-Options"] == "DENY"
    assert "no-store" in client.get("/sign-in/")["Cache-Control"]


@pytest.mark.django_db
def test_error_pages_say_what_happened_and_what_to_do(client: Client, rf: RequestFactory) -> None:
    missing = client.get("/nowhere/")
    assert missing.status_code == 404
    assert "not here" in missing.content.decode()
    request = rf.post("/")
    request.user = User()
    stale = csrf_failure(request)
    assert stale.status_code == 403
    assert "reload it" in stale.content.decode()
    for name in ("400.html", "500.html"):  # rendered by Django without a request
        assert "Go back" in render_to_string(name)
