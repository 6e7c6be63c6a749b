"""What each way of choosing comparisons brings, against chance."""

from collections.abc import Sequence

import pytest
from django.test import Client
from django.urls import reverse

from generation.models import Plan
from labeling.models import Comparison, Project, Role, User
from labeling.pairing_worth import Estimate, Report, Way, estimate, report
from labeling.services.comparing import NewComparison, create_comparisons
from labeling.services.judging import undo
from tests.builders import judge, make_project, make_prompt, make_responses, make_user

pytestmark = pytest.mark.django_db
Pairing = Comparison.Pairing
Tiers = list[list[int]]
FIRST, SECOND, TIE = [[0], [1]], [[1], [0]], [[0, 1]]
BAD: Tiers = []


def chosen(project: Project, pairing: str, *, k: int = 2, **more) -> Comparison:
    """A comparison as a batch makes it."""
    responses = make_responses(prompt=make_prompt(project=project), k=k)
    wanted = NewComparison(responses=responses, pairing=pairing, **more)
    return create_comparisons(project=project, wanted=[wanted])[0]


def judged(
    project: Project,
    pairing: str,
    *verdicts: Tiers,
    annotators: Sequence[User],
    k: int = 2,
) -> Comparison:
    """One with a verdict of each of these annotators, as far as they go."""
    comparison = chosen(project, pairing, k=k)
    for verdict, annotator in zip(verdicts, annotators, strict=False):
        tiers = verdict or [list(range(k))]  # as the page writes all bad
        judge(comparison=comparison, annotator=annotator, tiers=tiers, all_bad=verdict == BAD)
    return comparison


def annotators_of(project: Project, number: int = 1) -> list[User]:
    return [make_user(role=Role.ANNOTATOR, project=project) for _ in range(number)]


def way(found: Report | None, pairing: str) -> Way:
    assert found is not None
    return next(one for one in found.ways if one.pairing == pairing)


def value(estimate: Estimate | None) -> float:
    assert estimate is not None
    return round(estimate.value, 6)


def decided_of(project: Project, pairing: str, decided: int, number: int) -> None:
    """`number` judged comparisons, so many of them decided and the others tied."""
    people = annotators_of(project)
    for at in range(number):
        judged(project, pairing, FIRST if at < decided else TIE, annotators=people)


@pytest.mark.parametrize(
    ("share", "number", "low", "high"),
    [
        (0.8, 10, 0.4902, 0.9433),
        (0.0, 10, 0.0, 0.2775),
        (1.0, 5, 0.5655, 1.0),
        (0.5, 1000, 0.4691, 0.5309),
    ],
)
def test_the_interval_is_wilsons(share, number, low, high) -> None:
    found = estimate(share, number)
    assert found.value == share
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def test_a_judgment_between_two_queries_breaks_nothing() -> None:
    assert estimate(2 / 1, 1) == estimate(1.0, 1)


def test_there_is_nothing_to_tell_where_all_is_left_to_chance_or_people() -> None:
    project = make_project()
    assert report(project) is None
    judged(project, Pairing.RANDOM, FIRST, annotators=annotators_of(project))
    judged(project, "", FIRST, annotators=annotators_of(project))
    assert report(project) is None


def test_a_way_that_nobody_has_judged_has_counts_and_no_estimates() -> None:
    project = make_project()
    chosen(project, Pairing.ACROSS)
    found = report(project)
    assert found is not None
    assert not found.judged
    assert [one.pairing for one in found.ways] == [Pairing.RANDOM, Pairing.ACROSS]
    across = way(found, Pairing.ACROSS)
    assert (across.made, across.judged, across.judgments) == (1, 0, 0)
    assert across.shares == [None] * 4
    assert across.brings is None
    assert across.bar is None
    assert across.verdict == "not judged yet"


def test_a_way_that_is_planned_is_told_of_before_anything_is_made() -> None:
    project = make_project()
    plan = Plan.objects.create(project=project, pairing=Pairing.DIFFERENT, ready=0)
    assert report(Project.objects.get()) is None
    Plan.objects.filter(pk=plan.pk).update(ready=50)
    assert way(report(Project.objects.get()), Pairing.DIFFERENT).made == 0
    Plan.objects.filter(pk=plan.pk).update(pairing=Pairing.RANDOM)
    assert report(Project.objects.get()) is None


def test_judged_comparisons_are_decided_tied_or_all_bad() -> None:
    project = make_project(overlap=3)
    people = annotators_of(project, 3)
    for verdicts in (
        [FIRST],
        [FIRST, SECOND, SECOND],
        [BAD, BAD, FIRST],  # a round learns from it
        [TIE],
        [FIRST, SECOND],
        [BAD, TIE],
        [BAD],
        [BAD, BAD],
        [],
    ):
        judged(project, Pairing.DIFFERENT, *verdicts, annotators=people)
    found = way(report(project), Pairing.DIFFERENT)
    assert (found.made, found.judged, found.judgments) == (9, 8, 15)
    assert value(found.decided) == 3 / 8
    assert value(found.tied) == 3 / 8
    assert value(found.all_bad) == 2 / 8


def test_only_judgments_that_count_are_counted() -> None:
    project = make_project(overlap=2)
    comparison = judged(project, Pairing.DIFFERENT, BAD, annotators=annotators_of(project))
    undo(judgment=comparison.judgments.get())
    judge(comparison=comparison, tiers=SECOND)
    found = way(report(project), Pairing.DIFFERENT)
    assert (found.judged, found.judgments, value(found.decided)) == (1, 1, 1.0)


def test_other_projects_and_purposes_have_no_part_in_it() -> None:
    project = make_project()
    for other in (Comparison.Purpose.GOLD, Comparison.Purpose.EVALUATION):
        judge(comparison=chosen(project, Pairing.DIFFERENT, purpose=other))
    judged(other_one := make_project(), Pairing.ACROSS, BAD, annotators=annotators_of(other_one))
    assert report(project) is None
    judged(project, Pairing.ACROSS, FIRST, annotators=annotators_of(project))
    found = way(report(project), Pairing.ACROSS)
    assert (found.made, found.judged, value(found.decided)) == (1, 1, 1.0)


def test_agreement_is_how_often_two_annotators_order_two_responses_alike() -> None:
    project = make_project(overlap=3)
    people = annotators_of(project, 3)
    judged(project, Pairing.DIFFERENT, FIRST, annotators=people)
    assert way(report(project), Pairing.DIFFERENT).agreement is None
    judged(project, Pairing.DIFFERENT, FIRST, FIRST, SECOND, annotators=people)  # 1 couple of 3
    judged(project, Pairing.DIFFERENT, TIE, TIE, annotators=people)  # 1 of 1
    agreement = way(report(project), Pairing.DIFFERENT).agreement
    assert agreement == estimate(2 / 4, 2)  # over the two comparisons that were judged twice


def test_brings_is_decided_pairs_for_each_judgment() -> None:
    project = make_project(overlap=3)
    people = annotators_of(project, 3)
    judged(project, Pairing.ACROSS, FIRST, FIRST, FIRST, annotators=people)
    judged(project, Pairing.ACROSS, TIE, annotators=people)
    judged(project, Pairing.DIFFERENT, [[2], [0, 1]], annotators=people, k=3)
    found = report(project)
    assert way(found, Pairing.ACROSS).brings == estimate(1 / 2, 2).times(2 / 4)
    assert way(found, Pairing.DIFFERENT).brings == estimate(2 / 3, 1).times(3)
    assert found is not None
    assert found.top == 3.0


def test_better_or_worse_is_said_only_where_the_intervals_have_nothing_in_common() -> None:
    project = make_project()
    decided_of(project, Pairing.RANDOM, 8, 20)
    decided_of(project, Pairing.DIFFERENT, 14, 20)
    decided_of(project, Pairing.LARGEST_MARGIN, 19, 20)
    decided_of(project, Pairing.SMALLEST_MARGIN, 0, 20)
    found = report(project)
    assert way(found, Pairing.RANDOM).verdict == ""
    assert way(found, Pairing.DIFFERENT).verdict == "no difference seen yet"
    largest = way(found, Pairing.LARGEST_MARGIN)
    assert largest.verdict == "better than random"
    assert [one and one.against for one in largest.shares] == ["higher", "lower", "", None]
    assert way(found, Pairing.SMALLEST_MARGIN).verdict == "worse than random"


def test_without_chance_there_is_nothing_to_measure_against() -> None:
    project = make_project()
    decided_of(project, Pairing.DIFFERENT, 1, 1)
    found = way(report(project), Pairing.DIFFERENT)
    assert found.verdict == "nothing at random judged yet"
    assert found.bar is not None
    assert found.bar.random is None


def test_what_could_not_be_chosen_as_asked_counts_for_no_way() -> None:
    project = make_project()
    decided_of(project, Pairing.RANDOM, 2, 4)
    decided_of(project, Pairing.ACROSS, 3, 4)
    before = report(project)
    decided_of(project, "", 0, 12)
    assert report(project) == before
    assert way(before, Pairing.RANDOM).judged == 4


def test_it_takes_as_many_queries_however_much_there_is(django_assert_num_queries) -> None:
    project = make_project(overlap=2)
    people = annotators_of(project, 2)
    for number in (1, 4):
        for pairing in Pairing:
            for _ in range(number):
                judged(project, pairing, FIRST, BAD, annotators=people)
        fresh = Project.objects.get()
        with django_assert_num_queries(5):  # what is kept, and each of four tables
            assert report(fresh) is not None


def page(client: Client, project: Project, **headers: str) -> str:
    client.force_login(make_user(role=Role.MANAGER, project=project))
    answer = client.get(reverse("labeling:project", args=[project.slug]), headers=headers)
    return answer.content.decode()


def test_the_page_is_silent_where_all_is_left_to_chance(client: Client) -> None:
    project = make_project()
    decided_of(project, Pairing.RANDOM, 1, 2)
    assert "How comparisons are chosen" not in page(client, project)


def test_the_page_says_that_nothing_has_been_judged(client: Client) -> None:
    project = make_project()
    decided_of(project, Pairing.RANDOM, 1, 2)
    chosen(project, Pairing.ACROSS)
    html = page(client, project)
    assert "nobody has judged any of the others" in html
    assert "<table" not in html


def test_the_page_shows_each_way_with_its_intervals(client: Client) -> None:
    project = make_project()
    decided_of(project, Pairing.RANDOM, 2, 4)
    decided_of(project, Pairing.LARGEST_MARGIN, 3, 4)
    chosen(project, Pairing.LARGEST_MARGIN)
    html = page(client, project)
    assert '<th scope="row">Largest reward margin</th>' in html
    assert '4 of 5<div class="muted wide-only">4 judgments</div>' in html
    assert '0.75 <span class="muted nowrap interval">0.30 to 0.95</span>' in html
    assert "No difference seen yet" in html
    assert html.count('stroke-dasharray="2 2"') == 2
    assert "style=" not in html


def test_what_the_loop_polls_for_leaves_it_out(client: Client) -> None:
    project = make_project()
    decided_of(project, Pairing.ACROSS, 1, 1)
    assert "How comparisons are chosen" not in page(client, project, hx_request="true")


def test_annotators_do_not_see_it(client: Client) -> None:
    project = make_project()
    decided_of(project, Pairing.ACROSS, 1, 1)
    client.force_login(make_user(role=Role.ANNOTATOR, project=project))
    answer = client.get(reverse("labeling:project", args=[project.slug]), follow=True)
    assert "How comparisons are chosen" not in answer.content.decode()
