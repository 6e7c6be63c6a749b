"""`manage.py screenshots`: the pictures of the documentation, from a demo that has gone round."""

import os
import shutil
from argparse import ArgumentParser
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from django.conf import settings
from django.core.management.base import BaseCommand, CommandError
from django.db import connections
from django.urls import reverse

from config.demo import preparing
from config.demo.site import Site
from config.demo.taste import Taste
from labeling.models import Evaluation, PolicyState, Project, Response, Role, Split
from labeling.services.assigning import lease_again
from labeling.services.evaluating import begin_judging, start_evaluation, take_pairs
from labeling.services.judging import record_judgment
from labeling.services.verdicts import Verdict
from training.starter.styles import StyleClassifier

if TYPE_CHECKING:
    from playwright.sync_api import BrowserContext

SLUG = preparing.SLUG
DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}
ANNOTATORS = ("judge", "guide", "history", "own-settings")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


class Command(BaseCommand):
    """Signs in as the demo's annotator and manager, and looks at every page."""

    help = "Take docs/images anew. Needs a Chromium, and the data of `demo --headless`."
    requires_system_checks = ()

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The command's options."""
        parser.add_argument("--port", type=int, default=8765)
        parser.add_argument("--out", type=Path, default=settings.BASE_DIR / "docs" / "images")

    def handle(self, *args: Any, **options: Any) -> None:
        """Both themes on a desk, and the light one on a phone."""
        project = Project.objects.filter(slug=SLUG).first()
        if project is None:
            raise CommandError("Run `manage.py demo --headless` first, on the same data.")
        manager, annotator = preparing.people(project)
        pages = _pages(project)
        connections.close_all()
        options["out"].mkdir(parents=True, exist_ok=True)
        os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"
        with Site(options["port"]) as site:
            for theme in ("light", "dark"):
                for person, paths in (
                    (annotator, ANNOTATORS),
                    (manager, [name for name in pages if name not in ANNOTATORS]),
                ):
                    with _signed_in(site, person, theme, DESKTOP) as context:
                        for name in paths:
                            self._shoot(context, site, pages[name], options["out"], name, theme)
            for person, paths in ((annotator, ["judge"]), (manager, ["project", "round"])):
                with _signed_in(site, person, "light", PHONE) as context:
                    for name in paths:
                        self._shoot(context, site, pages[name], options["out"], name, "phone")

    def _shoot(
        self, context: "BrowserContext", site: Site, path: str, out: Path, name: str, suffix: str
    ) -> None:
        page = context.new_page()
        page.goto(site.address + path)
        page.wait_for_load_state("networkidle")
        page.screenshot(path=out / f"{name}-{suffix}.png")
        page.close()
        self.stdout.write(f"{name}-{suffix}.png")


def _pages(project: Project) -> dict[str, str]:
    """Path of each page that is shown in the documentation, by the picture's name."""
    last = project.rounds.order_by("-number").first()
    number = last.number if last else 1
    policy = last.policy if last else None
    shown = policy or project.policies.earliest("pk")
    return {
        "evaluation": reverse("labeling:evaluation", args=[SLUG, _evaluation(project).pk]),
        "policy": reverse("labeling:policy", args=[SLUG, shown.pk]),
        "disk": reverse("training:disk", args=[SLUG]),
        "schedule": reverse("training:schedule", args=[SLUG]),
        "compare": reverse("training:compare_rounds", args=[SLUG]) + "?rounds=1&rounds=2",
        "notifications": reverse("labeling:notifications", args=[SLUG]),
        "judge": reverse("labeling:judge", args=[SLUG]),
        "project": reverse("labeling:project", args=[SLUG]),
        "rounds": reverse("training:rounds", args=[SLUG]),
        "new-round": reverse("training:new_round", args=[SLUG]),
        "round": reverse("training:round", args=[SLUG, number]),
        "policies": reverse("labeling:policies", args=[SLUG]),
        "preferences": reverse("labeling:preferences", args=[SLUG]),
        "batches": reverse("generation:batches", args=[SLUG]),
        "people": reverse("labeling:people", args=[SLUG]),
        "queue": reverse("labeling:queue", args=[SLUG]),
        "flags": reverse("labeling:flags", args=[SLUG]),
        "settings": reverse("labeling:project_settings", args=[SLUG]),
        "guide": reverse("labeling:guide", args=[SLUG]),
        "history": reverse("labeling:history", args=[SLUG]),
        "own-settings": reverse("own_settings"),
    }


def _evaluation(project: Project) -> Evaluation:
    """Of the first round's policy, judged by the demo's taste; made where there is none yet.

    Its pairs are of responses that the record holds already, so that no worker is needed.
    """
    made = project.evaluations.order_by("-pk").first()
    if made is not None:
        return made
    other = project.policies.exclude(state=PolicyState.SERVING).order_by("-pk")[0]
    made = start_evaluation(policy=other, actor=None)
    by_prompt: dict[int, dict[int, Response]] = {}
    written = Response.objects.filter(
        prompt__split=Split.HELD_OUT, policy__in=[made.policy_id, made.against_id]
    )
    for response in written.order_by("-pk"):
        by_prompt.setdefault(response.prompt_id, {})[response.policy_id or 0] = response
    pairs = [
        (found[made.policy_id], found[made.against_id])
        for found in by_prompt.values()
        if len(found) == 2
    ]
    comparisons = take_pairs(evaluation=made, pairs=pairs)
    begin_judging(evaluation=made)
    taste = Taste(StyleClassifier.from_corpus(), seed=11)
    annotator = project.memberships.filter(role=Role.ANNOTATOR)[0].user
    for comparison in comparisons:
        lease = lease_again(comparison=comparison, annotator=annotator)
        if lease is not None:
            texts = [slot.response.text for slot in comparison.slots.select_related("response")]
            record_judgment(
                project=project,
                annotator=annotator,
                token=lease.token,
                verdict=Verdict(tiers=taste.rank(texts)),
                key=f"screenshots-{comparison.pk:06}",
            )
    return made


@contextmanager
def _signed_in(
    site: Site, person: preparing.SignIn, theme: str, size: dict[str, int]
) -> Iterator["BrowserContext"]:
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        raise CommandError("No Chromium is installed here.")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        context = browser.new_context(
            viewport=size,  # type: ignore[arg-type]
            color_scheme=theme,  # type: ignore[arg-type]
            has_touch=size == PHONE,
        )
        page = context.new_page()
        page.goto(site.address + reverse("login"))
        page.fill("input[name=username]", person.username)
        page.fill("input[name=password]", person.password)
        page.click("button[type=submit]")
        page.wait_for_load_state("networkidle")
        page.close()
        yield context
        browser.close()
