"""Policies: the family tree, promotion and rolling back."""

import math
import re
from itertools import pairwise

import pytest
from django.test import Client
from django.urls import reverse

from generation.models import Batch
from labeling.lineage import Fold, family, folded
from labeling.models import Comparison, Policy, PolicyState, Project, Role
from labeling.services.aggregating import rewrite_preferences
from labeling.services.comparing import NewComparison, create_comparisons
from labeling.services.promoting import promote, serving_policy
from labeling.win_votes import ratings_of, votes_between
from tests.builders import (
    judge,
    judge_evaluation,
    make_comparison,
    make_evaluation,
    make_policy,
    make_project,
    make_prompt,
    make_responses,
    make_user,
)

pytestmark = pytest.mark.django_db


@pytest.fixture
def project() -> Project:
    project = make_project()
    make_policy(project=project, name="Starter", state=PolicyState.SERVING)
    return project


@pytest.fixture
def manager(project: Project, client: Client) -> Client:
    client.force_login(make_user(role=Role.MANAGER, project=project, username="dana"))
    return client


def child(project: Project, name: str, parent: str) -> Policy:
    return make_policy(project=project, name=name, parent=project.policies.get(name=parent))


def drawn(project: Project) -> list[tuple[str, tuple[str, ...]]]:
    found = list(project.policies.order_by("id"))
    return [(one.policy.name, one.rails) for one in family(found, serving_policy(project))]


def test_a_line_of_policies_stays_in_one_lane(project: Project) -> None:
    child(project, "Round 1", "Starter")
    child(project, "Round 2", "Round 1")
    assert drawn(project) == [("Starter", ()), ("Round 1", ()), ("Round 2", ())]


def test_side_branches_are_indented_and_the_line_to_the_serving_policy_is_not(
    project: Project,
) -> None:
    child(project, "Round 1", "Starter")
    promote(policy=child(project, "Round 2", "Starter"), actor=None)
    child(project, "Round 3", "Round 1")
    child(project, "Round 4", "Starter")
    assert drawn(project) == [
        ("Starter", ()),
        ("Round 1", ("branch",)),
        ("Round 3", ("pass",)),
        ("Round 4", ("branch",)),
        ("Round 2", ()),
    ]


def test_every_policy_is_drawn_once_in_a_long_line(project: Project) -> None:
    last = "Starter"
    for number in range(300):
        child(project, f"Round {number}", last)
        last = f"Round {number}"
    assert len({name for name, _ in drawn(project)}) == len(drawn(project)) == 301


def test_promoting_replaces_the_serving_policy_and_names_who_did_it(
    project: Project, manager: Client
) -> None:
    better = child(project, "Round 1", "Starter")
    address = reverse("labeling:promote", args=[project.slug, better.pk])
    html = manager.post(address, {"reason": "<b>Kinder</b>"}, follow=True).content.decode()
    assert serving_policy(project) == better
    assert "Round 1 serves now" in html
    assert "in place of Starter" in html
    assert "by dana" in html
    assert "&lt;b&gt;Kinder" in html


def test_promoting_without_evidence_asks_for_a_reason(project: Project, manager: Client) -> None:
    better = child(project, "Round 1", "Starter")
    answer = manager.post(reverse("labeling:promote", args=[project.slug, better.pk]), follow=True)
    html = answer.content.decode()
    assert answer.redirect_chain[0][0].endswith(f"/policies/{better.pk}/?why=1")
    assert "Say why" in html
    assert 'aria-labelledby="why-title"' in html
    assert str(serving_policy(project)) == "Starter"


def test_promoting_what_serves_already_is_told_and_changes_nothing(
    project: Project, manager: Client
) -> None:
    serving = serving_policy(project)
    assert serving is not None
    answer = manager.post(reverse("labeling:promote", args=[project.slug, serving.pk]), follow=True)
    assert "serves already" in answer.content.decode()


def test_rolling_back_restores_the_one_before(project: Project, manager: Client) -> None:
    promote(policy=child(project, "Round 1", "Starter"), actor=None)
    answer = manager.post(reverse("labeling:roll_back", args=[project.slug]), follow=True)
    assert "Starter serves again" in answer.content.decode()
    assert str(serving_policy(project)) == "Starter"


def test_the_first_policy_cannot_be_rolled_back(project: Project, manager: Client) -> None:
    assert "Roll back" not in page(project, manager)
    answer = manager.post(reverse("labeling:roll_back", args=[project.slug]), follow=True)
    assert "none to go back to" in answer.content.decode()


def test_a_policy_of_another_project_cannot_be_promoted(project: Project, manager: Client) -> None:
    foreign = make_policy()
    address = reverse("labeling:promote", args=[project.slug, foreign.pk])
    assert manager.post(address).status_code == 404


def test_reading_never_promotes(project: Project, manager: Client) -> None:
    better = child(project, "Round 1", "Starter")
    address = reverse("labeling:promote", args=[project.slug, better.pk])
    assert manager.get(address).status_code == 405


def test_only_managers_see_or_change_policies(project: Project, client: Client) -> None:
    better = child(project, "Round 1", "Starter")
    for role in (Role.ANNOTATOR, Role.CONSUMER):
        client.force_login(make_user(role=role, project=project))
        assert client.get(reverse("labeling:policies", args=[project.slug])).status_code == 404
        for address in (
            reverse("labeling:promote", args=[project.slug, better.pk]),
            reverse("labeling:roll_back", args=[project.slug]),
        ):
            assert client.post(address).status_code == 404
    assert str(serving_policy(project)) == "Starter"


def test_a_project_without_policies_is_told_what_one_is(client: Client) -> None:
    project = make_project()
    client.force_login(make_user(role=Role.MANAGER, project=project))
    assert "No policies yet" in page(project, client)


def page(project: Project, client: Client) -> str:
    answer = client.get(reverse("labeling:policies", args=[project.slug]))
    assert answer.status_code == 200
    return answer.content.decode()


def test_responses_are_counted_and_queries_do_not_grow_with_policies(
    project: Project, manager: Client, django_assert_max_num_queries
) -> None:
    make_responses(prompt=make_prompt(project=project), k=7, policy=serving_policy(project))
    assert '<td class="num wide-only">7</td>' in page(project, manager)
    for start in (0, 5):
        for number in range(start, start + 5):
            promote(policy=child(project, f"Round {number}", "Starter"), actor=None)
            Batch.objects.all().delete()
        with django_assert_max_num_queries(16):
            page(project, manager)


def test_a_long_tree_is_folded_and_its_pages_hold_everyone(
    project: Project, manager: Client, django_assert_max_num_queries
) -> None:
    rows = [Policy(project=project, name=f"Old {n}", digest="0" * 64) for n in range(200)]
    made = Policy.objects.bulk_create(rows)
    for before, after in pairwise([serving_policy(project), *made]):
        after.parent = before
    Policy.objects.bulk_update(made, ["parent"])
    with django_assert_max_num_queries(16):
        html = page(project, manager)
    assert "170 more policies" in html
    for name in ("Starter", "Old 170", "Old 199"):
        assert f">{name}</a>" in html
    assert ">Old 100</a>" not in html
    seen = set()
    for number in range(1, 5):
        answer = manager.get(reverse("labeling:policies", args=[project.slug]), {"page": number})
        seen |= set(re.findall(r">(Starter|Old \d+)</a>", answer.content.decode()))
    assert len(seen) == 201


def test_folding_counts_whom_it_leaves_out(project: Project) -> None:
    child(project, "Round 1", "Starter")
    child(project, "Round 2", "Round 1")
    last = child(project, "Round 3", "Round 2")
    tree = list(family(list(project.policies.order_by("id")), last))
    shown = [row if isinstance(row, Fold) else row.policy.name for row in folded(tree, {last.pk})]
    assert shown == [Fold(number=3), "Round 3"]


def test_lanes_of_lanes_are_drawn_up_to_a_width(project: Project) -> None:
    parent = "Starter"
    for depth in range(12):
        child(project, f"Side {depth}", parent)
        child(project, f"Heir {depth}", parent)
        parent = f"Side {depth}"
    assert len(drawn(project)) == 25
    assert max(len(rails) for _, rails in drawn(project)) == 8


def test_ratings_are_drawn_beside_policies_that_people_compared(
    project: Project, manager: Client
) -> None:
    starter = serving_policy(project)
    better = child(project, "Round 1", "Starter")
    child(project, "Round 2", "Round 1")
    for purpose, winner in [(Comparison.Purpose.STANDARD, 1)] * 3 + [
        (Comparison.Purpose.EVALUATION, 0),
        (Comparison.Purpose.GOLD, 0),
    ]:
        between(project, starter, better, winner, purpose)
    found, _kept = ratings_of(project)
    assert found[better.pk].votes == 4
    assert found[starter.pk].value == pytest.approx(1000)
    assert found[better.pk].value == pytest.approx(1000 + 400 * math.log10(3), abs=2)
    html = page(project, manager)
    assert html.count('class="ladder"') == 2
    assert "4 votes" in html
    assert html.count("not compared with the others yet") == 1


def between(
    project: Project, first: Policy, second: Policy, winner: int, purpose: Comparison.Purpose
) -> Comparison:
    """One judged comparison between responses of two policies."""
    prompt = make_prompt(project=project)
    pair = [make_responses(prompt=prompt, k=1, policy=one)[0] for one in (first, second)]
    wanted = NewComparison(responses=pair, purpose=purpose)
    (made,) = create_comparisons(project=project, wanted=[wanted], overlap=1)
    judge(comparison=made, tiers=[[winner], [1 - winner]])
    return made


def test_ties_are_votes_and_withdrawn_comparisons_are_none(project: Project) -> None:
    starter, other = serving_policy(project), child(project, "Round 1", "Starter")
    made = between(project, starter, other, 0, Comparison.Purpose.STANDARD)
    tied = between(project, starter, other, 0, Comparison.Purpose.STANDARD)
    judge_again = tied.judgments.get()
    judge_again.tiers = [[0, 1]]
    judge_again.save()
    rewrite_preferences([tied])
    votes = votes_between(project)
    assert sorted(zip(votes.wins, votes.losses, strict=True)) == [(0.5, 0.5), (1, 0)]
    made.state = Comparison.State.RETIRED
    made.save()
    assert list(votes_between(project).wins) == [0.5]


def test_responses_of_one_policy_alone_rate_nothing(project: Project) -> None:
    judge(comparison=make_comparison(project=project, policy=serving_policy(project)))
    assert ratings_of(project)[0] == {}


def test_policies_that_were_never_compared_with_the_initial_one_are_rated_all_the_same() -> None:
    evaluation = make_evaluation(project=make_project(), pairs=12)
    judge_evaluation(evaluation, "wwwwwwwwwwll")
    Policy.objects.filter(pk=evaluation.against_id).update(
        parent=make_policy(project=evaluation.project, name="Initial")
    )
    found, _kept = ratings_of(evaluation.project)
    assert found[evaluation.against_id].value == 1000
    assert found[evaluation.policy_id].value > 1000
