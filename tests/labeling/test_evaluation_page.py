"""The pages of evaluations: asking for one, seeing how it stands, stopping it, promoting."""

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from labeling.models import Evaluation, PolicyEvent, Project, User
from labeling.services.promoting import serving_policy
from tests.builders import (
    judge_evaluation,
    make_evaluation,
    make_policy,
    make_project,
    make_prompt,
    make_user,
)
from tests.training.rounds import RESULTS, SAMPLES, make_round
from training.models import RoundState

pytestmark = pytest.mark.django_db


@pytest.fixture
def project() -> Project:
    return make_project()


@pytest.fixture
def manager(project: Project, client: Client) -> User:
    manager = make_user(role="manager", project=project)
    client.force_login(manager)
    return manager


def page_of(evaluation: Evaluation) -> str:
    return reverse("labeling:evaluation", args=[evaluation.project.slug, evaluation.pk])


def seen(client: Client, address: str, **headers: Any) -> str:
    answer = client.get(address, headers=headers)
    assert answer.status_code == 200
    return " ".join(answer.content.decode().split())


def test_it_is_asked_for_watched_and_stopped(project, manager, client: Client) -> None:
    make_policy(project=project, state="serving", name="Starter")
    policy = make_policy(project=project, name="Round 1")
    address = reverse("labeling:new_evaluation", args=[project.slug, policy.pk])
    given = {"wanted": "50", "promote_if_better": "on"}
    refused = client.post(address, given)
    assert refused.status_code == 422
    assert "No prompt is held out" in refused.content.decode()
    make_prompt(project=project, split="held_out")
    answer = client.post(address, given)
    evaluation = project.evaluations.get()
    assert answer.url == page_of(evaluation)
    assert (evaluation.wanted, evaluation.promote_if_better) == (50, True)
    assert evaluation.started_by == manager
    page = seen(client, page_of(evaluation))
    assert "Waiting for the two policies" in page
    assert 'hx-trigger="every 5s"' in page
    again = client.post(address, given).content.decode()
    assert "One at a time" in again
    assert page_of(evaluation) in again
    stopped = client.post(
        reverse("labeling:stop_evaluation", args=[project.slug, evaluation.pk]), follow=True
    )
    assert "What was judged stays and counts." in stopped.content.decode()
    assert "hx-trigger" not in seen(client, page_of(evaluation))


def test_the_rate_its_interval_and_what_stands_beside(project, manager, client: Client) -> None:
    evaluation = make_evaluation(project=project, pairs=30)
    round_ = make_round(project, RoundState.SUCCEEDED)
    round_.policy = evaluation.policy
    round_.results = RESULTS | {
        "samples_before": SAMPLES,
        "samples_after": SAMPLES | {"repetition": 0.4, "tokens": 52.0},
    }
    round_.save()
    assert "Nobody has judged it yet." in seen(client, page_of(evaluation))
    judge_evaluation(evaluation, "wwwwwwwwwwwwlltbwwwwww")
    page = seen(client, page_of(evaluation))
    assert '<span class="win-rate-number">86' in page
    assert "Passed the gate of 50 %." in page
    assert "People prefer the new policy" in page
    for outcome, number in (("Won", 18), ("Tied", 2), ("Lost", 2)):
        assert f"{outcome}</dt><dd>{number}</dd>" in page
    assert "both called bad</dt><dd>1</dd>" in page
    assert "with the advantage of longer responses taken out" in page
    assert 'class="rate-band"' in page
    assert "Reward accuracy on held-out pairs" in page
    assert "80% (65% to 90%)" in page
    assert "Answers repeat themselves." in page
    live = seen(client, page_of(evaluation), **{"HX-Request": "true"})
    assert "<html" not in live


def test_promotion_says_why_it_was_refused_and_keeps_the_reason(project, manager, client) -> None:
    evaluation = make_evaluation(project=project, pairs=3)
    address = reverse("labeling:promote", args=[project.slug, evaluation.policy_id])
    refused = client.post(address, follow=True).content.decode()
    assert "has not passed the gate" in refused
    assert serving_policy(project) == evaluation.against
    client.post(address, {"reason": "It knows the new menu."})
    assert serving_policy(project) == evaluation.policy
    event = PolicyEvent.objects.latest("id")
    assert (event.reason, event.actor) == ("It knows the new menu.", manager)


def test_the_page_needs_few_queries_however_much_is_judged(
    project, manager, client, django_assert_max_num_queries
) -> None:
    evaluation = make_evaluation(project=project, pairs=60)
    judge_evaluation(evaluation, "wlt" * 19)
    with django_assert_max_num_queries(24):
        client.get(page_of(evaluation))
