"""Every page of a filled project, opened again and again.

`python -m tests.benchmarks.workbench.visiting SLUG TIMES` prints JSON. In one process through
Django's test client: all middleware, the view, its queries and templates; no socket.
"""

import json
import sys
import time
from collections.abc import Iterator
from typing import Any

import config.wsgi  # noqa: F401  # as the site's own processes begin

# isort: split
from django.db import connection
from django.db.models import Max, Min
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import (
    NoReverseMatch,
    URLPattern,
    URLResolver,
    get_resolver,
    reverse,
)

from labeling.models import Judgment, Project, Role

# Beyond the plain address: what people ask of these pages most.
ASKED = {
    "labeling:preferences": (
        "?split=held_out",
        "?decided=no",
        "?policy={policy}",
        "?votes=2",
        "?votes=50",
        "?before={preference}",
    ),
    "labeling:queue": ("?state=untouched", "?state=judged&split=held_out", "?policy={policy}"),
    "labeling:history": ("?show=skips",),
    "labeling:flags": ("?before=1000",),
    "training:rounds": ("?page=20",),
    "generation:batches": ("?page=20",),
}
DOWNLOADS = {"labeling:export_preferences"}  # streamed, however long that takes
SEARCHES = {"labeling:queue": ("?text=kitchen", "?text=nowhere-to-be-found")}


def visit(slug: str, times: int) -> list[dict[str, Any]]:
    """Each page's seconds, the first visit apart. Pages take turns: none is warm from its last.

    `cpu_s` is what this process computed meanwhile: on SQLite all of a page, and what a machine
    that does other work too would take if it did not.
    """
    project = Project.objects.get(slug=slug)
    clients = {role: _client(project, role) for role in (Role.MANAGER, Role.ANNOTATOR)}
    pages = {
        f"{name}{query}": (clients[role], address + query, {"seconds": [], "cpu_s": []})
        for role, name, address, query in _pages(project)
    }
    for client, address, told in pages.values():
        with CaptureQueriesContext(connection) as queries:
            started = time.perf_counter()
            answer = client.get(address)
            told["first_s"] = time.perf_counter() - started
        told |= {"status": answer.status_code, "queries": len(queries)}
        slowest = max(queries, key=lambda one: float(one["time"]), default=None)
        told["slowest_query"] = f"{slowest['time']} s: {slowest['sql'][:2000]}" if slowest else ""
    shown = {name: page for name, page in pages.items() if page[2]["status"] == 200}
    for _ in range(times):
        for client, address, told in shown.values():
            started, computed = time.perf_counter(), time.process_time()
            client.get(address)
            told["seconds"].append(time.perf_counter() - started)
            told["cpu_s"].append(time.process_time() - computed)
    return [{"page": name} | told for name, (_, _, told) in pages.items()]


def _client(project: Project, role: Role) -> Client:
    # Not as in tests, where each template's context is copied: that alone takes a third as long.
    client = Client(raise_request_exception=False, SERVER_NAME="localhost")
    client.force_login(project.memberships.filter(role=role).order_by("pk")[0].user)
    return client


def _pages(project: Project) -> Iterator[tuple[Role, str, str, str]]:
    """Every route that can be opened with what the project has; by a manager, or who judges."""
    parts = _parts(project)
    for name, pattern in _routes(get_resolver().url_patterns):
        if name in DOWNLOADS:
            continue
        role = Role.ANNOTATOR if _judging(name) else Role.MANAGER
        wanted = pattern.pattern.converters
        given = parts.get(name.split("_")[0], {}) | parts.get(name, {}) | parts[""]
        try:
            address = reverse(name, kwargs={part: given[part] for part in wanted})
        except (KeyError, NoReverseMatch):
            continue
        for query in ("", *ASKED.get(name, ()), *SEARCHES.get(name, ())):
            yield role, name, address, query.format(**given)


def _routes(
    patterns: list[URLPattern | URLResolver], namespace: str = ""
) -> Iterator[tuple[str, URLPattern]]:
    for pattern in patterns:
        if isinstance(pattern, URLResolver):
            inner = f"{pattern.namespace}:" if pattern.namespace else ""
            yield from _routes(pattern.url_patterns, namespace + inner)
        else:
            yield f"{namespace}{pattern.name}", pattern


def _judging(name: str) -> bool:
    return name in ("labeling:history", "labeling:practice") or name.startswith("labeling:judge")


def _parts(project: Project) -> dict[str, dict[str, Any]]:
    """What fills the addresses: by route, and for all under ""."""
    ids = project.preferences.aggregate(first=Min("pk"), last=Max("pk"))
    annotator = project.memberships.filter(role=Role.ANNOTATOR).order_by("pk")[0].user
    newest = Judgment.objects.filter(annotator=annotator).order_by("-pk")[0]
    return {
        "": {
            "slug": project.slug,
            "policy": project.policies.order_by("-pk")[0].pk,
            "evaluation": project.evaluations.order_by("-pk")[0].pk,
            "preference": (ids["first"] + ids["last"]) // 2,
            "judgment": newest.pk,
            "number": project.rounds.order_by("-number")[0].number,
        },
    }


if __name__ == "__main__":
    print(json.dumps(visit(sys.argv[1], int(sys.argv[2]))))
