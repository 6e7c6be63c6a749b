"""What holds for every page: the policy on scripts, and no text that runs."""

import hashlib
import json
import re
from pathlib import Path

import pytest
from django.conf import settings
from django.db import connection
from django.template.loader import render_to_string
from django.test import Client, RequestFactory
from django.urls import reverse

from config.views import csrf_failure
from labeling.chat import Message
from labeling.models import Role, User
from tests.builders import make_comparison, make_project, make_prompt, make_user
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


@pytest.mark.django_db
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_prompts_responses_and_guidelines_are_harmless_on_the_judging_page(
    text: str, client: Client
) -> None:
    if connection.vendor == "postgresql":
        text = text.replace("\x00", "")  # its text cannot hold NUL; imports refuse it
    project = make_project(name=f"Kitchen {text[:80]}")
    project.guidelines = text
    project.save()
    prompt = make_prompt(
        project=project,
        messages=[
            Message(role="user", content=text),
            Message(role="assistant", content=text),
            Message(role="user", content=text),
        ],
    )
    make_comparison(prompt=prompt, texts=[text, f"{text} again"])
    client.force_login(make_user(role=Role.ANNOTATOR, project=project))
    html = client.get(reverse("labeling:judge", kwargs={"slug": project.slug})).content.decode()
    scripts = re.findall(r"<script[^>]*>", html)
    assert all("nonce=" in script for script in scripts)
    assert "evil.example" not in "".join(re.findall(r'(?:src|href|action)="([^"]*)"', html))
    assert not re.search(r"<(iframe|object|embed|base|math|img|style)\b", html)
    assert not re.search(r"<[^>]*\son(error|load|mouseover)\s*=", html)
    assert not re.search(r'href="\s*(javascript|data|vbscript|file):', html, re.I)
    assert len(re.findall(r"<form", html)) == 4  # verdict, skip, undo, sign out
    assert '"/sign-out/"' not in re.sub(r'<form method="post" action="/sign-out/">', "", html)


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
