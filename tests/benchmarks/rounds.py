"""Real rounds and their evaluations for the benchmark of the gate; Django is set up already."""

import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from django.core.management import call_command
from django.db import transaction

from config.demo.taste import Taste
from generation.services import start_batch
from labeling.formats import Parsed, prompt_row
from labeling.models import Evaluation, Membership, Policy, Project, Role, Slot, User
from labeling.services.assigning import next_assignment
from labeling.services.comparing import NewComparison, create_comparisons
from labeling.services.evaluating import start_evaluation
from labeling.services.gating import look
from labeling.services.importing import import_prompts
from labeling.services.judging import record_judgment
from labeling.services.promoting import register_policy, serving_policy
from labeling.services.verdicts import Verdict
from tests.benchmarks.environment import ROOT
from training.models import RoundState
from training.services import start_round
from training.starter.styles import StyleClassifier, bundled_prompts
from training.trainer.starter import Recipe, Shape, build

PROMPTS = 160
HELD_OUT_PERCENT = 30
K = 4
TOKENS = 60
WANTED = 300
SHAPE = Shape(vocabulary=2000, width=192, layers=2, heads=3, inner_width=512)
OPTIONS = {"epochs": 2, "batch_groups": 8, "learning_rate": 2e-4, "sample_prompts": 0}

Rank = Callable[[Sequence[str]], list[list[int]]]
Run = dict[str, Any]


def judged_rounds(folder: Path, seeds: int) -> list[Run]:
    """One line for each round: its arm, what its evaluation showed, and whether it was promoted.

    All projects share the starter policy's candidates; what people said of them differs.
    """
    call_command("migrate", verbosity=0, interactive=False)
    began = time.monotonic()
    starter = folder / "starter"
    build(starter, recipe=replace(Recipe(), shape=SHAPE))
    source = _project("source", starter)
    start_batch(
        project=source, policies={_serving(source): 1}, actor=None, k=K, max_new_tokens=TOKENS
    )
    _work()
    _say(f"candidates after {time.monotonic() - began:.0f} s")
    arms = [
        (seed, arm, _trained(source, starter, seed, inverted=arm == "inverted"))
        for seed in range(seeds)
        for arm in ("inverted", "true")
    ]
    _work()
    _say(f"{len(arms)} rounds after {time.monotonic() - began:.0f} s")
    for _seed, _arm, project in arms:
        round_ = project.rounds.get()
        if round_.state != RoundState.SUCCEEDED or round_.policy is None:
            raise SystemExit(f"{project}: {round_} {round_.state}: {round_.error}")
        start_evaluation(policy=round_.policy, actor=None, wanted=WANTED, promote_if_better=True)
    _work()
    _say(f"responses after {time.monotonic() - began:.0f} s")
    return [{"seed": seed, "arm": arm, **_evaluated(project, seed)} for seed, arm, project in arms]


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _work() -> None:
    command = [sys.executable, "manage.py", "worker", "--until-idle"]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)


def _serving(project: Project) -> Policy:
    policy = serving_policy(project)
    if policy is None:
        raise SystemExit(f"Nothing serves {project}.")
    return policy


def _project(slug: str, starter: Path) -> Project:
    project = Project.objects.create(
        slug=slug,
        name=slug,
        comparison_size=K,
        held_out_percent=HELD_OUT_PERCENT,
        evaluation_percent=100,
    )
    bundled = bundled_prompts()
    taken = [bundled[place * len(bundled) // PROMPTS] for place in range(PROMPTS)]
    rows = [prompt_row(asdict(row)) for row in taken]
    import_prompts(slug=slug, parsed=Parsed(rows=rows), skip_bad=False)
    register_policy(project=project, name="Starter", model_path=starter)
    return project


def _trained(source: Project, starter: Path, seed: int, *, inverted: bool) -> Project:
    """A project with the source's candidates, judged; its round is queued."""
    project = _project(f"{'inverted' if inverted else 'true'}-{seed}", starter)
    _copy_candidates(source, project)
    taste = Taste(StyleClassifier.from_corpus(), seed=seed)

    def rank(texts: Sequence[str]) -> list[list[int]]:
        tiers = taste.rank(texts)
        return tiers[::-1] if inverted else tiers

    _judge(project, rank)
    start_round(project=project, actor=None, options=OPTIONS | {"seed": seed})
    return project


@transaction.atomic
def _copy_candidates(source: Project, project: Project) -> None:
    prompts = {prompt.digest: prompt for prompt in project.prompts.all()}
    policy, wanted = _serving(project), []
    for comparison in source.comparisons.select_related("prompt"):
        slots = Slot.objects.filter(comparison=comparison).select_related("response")
        responses = []
        for slot in slots:
            response = slot.response
            response.pk, response.policy = None, policy
            response.prompt = prompts[comparison.prompt.digest]
            response.save(force_insert=True)
            responses.append(response)
        wanted.append(NewComparison(responses=responses))
    create_comparisons(project=project, wanted=wanted)


def _judge(project: Project, rank: Rank, after: Callable[[], bool] = lambda: True) -> int:
    """Judge what the queue gives until it gives nothing or `after` says stop; how many."""
    user = User.objects.create(username=f"{project.slug}-{User.objects.count()}")
    Membership.objects.create(user=user, project=project, role=Role.ANNOTATOR)
    judged = 0
    while given := next_assignment(project=project, annotator=user):
        tiers = rank([slot.response.text for slot in given.slots])
        record_judgment(
            project=project,
            annotator=user,
            token=given.lease.token,
            verdict=Verdict(tiers=tiers),
            key=f"{project.slug}-{user.pk}-{judged:06}",
            placed=True,
        )
        judged += 1
        if not after():
            break
    return judged


def _evaluated(project: Project, seed: int) -> Run:
    """Judge an evaluation, looking after every judgment as the impatient do."""
    evaluation = project.evaluations.select_related("project", "policy", "against").get()

    def look_again() -> bool:
        look(evaluation)
        evaluation.refresh_from_db()
        return evaluation.state == Evaluation.State.JUDGING

    taste = Taste(StyleClassifier.from_corpus(), seed=1000 + seed)
    luck = random.Random(seed)

    def rank(texts: Sequence[str]) -> list[list[int]]:
        order = luck.sample(range(len(texts)), len(texts))
        tiers = taste.rank([texts[place] for place in order])
        return [[order[place] for place in tier] for tier in tiers]

    judged = _judge(project, rank, look_again)
    evaluation.refresh_from_db()
    result = evaluation.result
    return {
        "judged": judged,
        "promoted": serving_policy(project) == evaluation.policy,
        "win_rate": result.get("rate"),
        "interval": [result.get("low"), result.get("high")],
        "problem": evaluation.problem,
    }
