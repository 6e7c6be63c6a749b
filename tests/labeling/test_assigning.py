from datetime import timedelta

import pytest
from django.utils import timezone

from labeling.models import Comparison, Judgment, Lease, Project, User
from labeling.services import assigning, judging
from labeling.services.assigning import next_assignment, shown_order
from labeling.services.verdicts import Verdict
from tests.builders import judge, make_comparison, make_project, make_user

pytestmark = pytest.mark.django_db


def annotators(project: Project, number: int) -> list[User]:
    return [make_user(role="annotator", project=project) for _ in range(number)]


def test_a_reload_gives_the_same_comparison_in_the_same_order() -> None:
    project = make_project()
    for _ in range(3):
        make_comparison(project=project, k=4)
    (annotator,) = annotators(project, 1)
    first = next_assignment(project=project, annotator=annotator)
    again = next_assignment(project=project, annotator=annotator)
    assert first is not None
    assert again is not None
    assert first.lease == again.lease
    assert first.shown_order == again.shown_order


def test_annotators_see_different_orders() -> None:
    orders = {tuple(shown_order(comparison=1, annotator=a, slots=4)) for a in range(200)}
    assert len(orders) == 24, "every order of four occurs"


def test_both_orders_of_a_pair_are_equally_likely() -> None:
    first = sum(shown_order(comparison=c, annotator=7, slots=2)[0] for c in range(2000))
    assert 900 < first < 1100


def test_nobody_judges_a_comparison_twice() -> None:
    comparison = make_comparison(overlap=3)
    (annotator,) = annotators(comparison.project, 1)
    judge(comparison=comparison, annotator=annotator)
    assert next_assignment(project=comparison.project, annotator=annotator) is None


def test_live_leases_and_judgments_never_exceed_the_overlap() -> None:
    comparison = make_comparison(overlap=2)
    one, two, three = annotators(comparison.project, 3)
    assert next_assignment(project=comparison.project, annotator=one) is not None
    judge(comparison=comparison, annotator=two)
    assert next_assignment(project=comparison.project, annotator=three) is None


def test_a_lease_that_ran_out_frees_the_place() -> None:
    comparison = make_comparison()
    one, two = annotators(comparison.project, 2)
    assert next_assignment(project=comparison.project, annotator=one) is not None
    assert next_assignment(project=comparison.project, annotator=two) is None
    Lease.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert next_assignment(project=comparison.project, annotator=two) is not None


def test_priority_comes_first_then_what_others_began() -> None:
    project = make_project()
    make_comparison(project=project, overlap=2)
    begun = make_comparison(project=project, overlap=2)
    urgent = make_comparison(project=project, overlap=2, priority=5)
    one, two = annotators(project, 2)
    judge(comparison=begun, annotator=one)
    order = []
    for _ in range(2):
        assignment = next_assignment(project=project, annotator=two)
        assert assignment is not None
        order.append(assignment.comparison)
        judging.record_judgment(
            project=project,
            annotator=assignment.lease.annotator,
            token=assignment.lease.token,
            verdict=Verdict(tiers=[[0], [1]]),
            key=f"k{len(order)}",
        )
    assert order == [urgent, begun]


def test_renewing_keeps_only_ones_own_live_lease() -> None:
    comparison = make_comparison()
    one, two = annotators(comparison.project, 2)
    assignment = next_assignment(project=comparison.project, annotator=one)
    assert assignment is not None
    assert assigning.hold(annotator=one, tokens=[assignment.lease.token])
    assert not assigning.hold(annotator=two, tokens=[assignment.lease.token])
    Lease.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert not assigning.hold(annotator=one, tokens=[assignment.lease.token])


def test_other_projects_and_retired_comparisons_are_not_offered() -> None:
    project = make_project()
    make_comparison()
    retired = make_comparison(project=project)
    Comparison.objects.filter(pk=retired.pk).update(state=Comparison.State.RETIRED)
    (annotator,) = annotators(project, 1)
    assert next_assignment(project=project, annotator=annotator) is None


def test_taking_a_comparison_costs_the_same_however_many_there_are(
    django_assert_max_num_queries,
) -> None:
    project = make_project()
    for _ in range(30):
        make_comparison(project=project)
    (annotator,) = annotators(project, 1)
    with django_assert_max_num_queries(8):
        next_assignment(project=project, annotator=annotator)


def test_what_comes_next_follows_on_the_circle_and_no_more_than_one_is_held_ahead() -> None:
    project = make_project()
    keys = [make_comparison(project=project).shuffle_key for _ in range(6)]
    (annotator,) = annotators(project, 1)
    first = next_assignment(project=project, annotator=annotator)
    assert first is not None
    ahead = next_assignment(project=project, annotator=annotator, besides=[first.lease.token])
    assert ahead is not None
    rest = sorted(keys, key=lambda key: (key < first.comparison.shuffle_key, key))
    assert ahead.comparison.shuffle_key == rest[1]
    both = [first.lease.token, ahead.lease.token]
    assert next_assignment(project=project, annotator=annotator, besides=both) is None


def test_nobody_judges_an_answer_they_rewrote() -> None:
    comparison = make_comparison()
    one, two = annotators(comparison.project, 2)
    response = comparison.slots.get(index=0).response
    response.annotator = one
    response.save()
    assert next_assignment(project=comparison.project, annotator=one) is None
    assert next_assignment(project=comparison.project, annotator=two) is not None


def test_what_is_held_back_is_not_offered_and_still_takes_a_verdict_that_is_under_way() -> None:
    comparison = make_comparison(overlap=2)
    one, two = annotators(comparison.project, 2)
    assignment = next_assignment(project=comparison.project, annotator=one)
    assert assignment is not None
    Comparison.objects.update(state=Comparison.State.HELD)
    assert next_assignment(project=comparison.project, annotator=two) is None
    judging.record_judgment(
        project=comparison.project,
        annotator=one,
        token=assignment.lease.token,
        verdict=Verdict(tiers=[[0], [1]]),
        key="k",
    )
    comparison.refresh_from_db()
    assert (comparison.judged, comparison.state) == (1, Comparison.State.HELD)


def test_the_daily_limit_counts_what_is_held_and_starts_anew_the_next_day() -> None:
    project = make_project()
    for _ in range(4):
        make_comparison(project=project)
    (annotator,) = annotators(project, 1)

    def take(*besides: Lease) -> assigning.Assignment | None:
        tokens = [lease.token for lease in besides]
        return next_assignment(project=project, annotator=annotator, besides=tokens, daily_limit=2)

    first = take()
    assert first is not None
    judging.record_judgment(
        project=project,
        annotator=annotator,
        token=first.lease.token,
        verdict=Verdict(tiers=[[0], [1]]),
        key="k",
    )
    second = take()
    assert second is not None
    with pytest.raises(assigning.LimitReached):
        take(second.lease)
    Judgment.objects.update(created_at=timezone.now() - timedelta(days=1))
    assert take(second.lease) is not None


def test_how_many_are_left_is_counted_only_so_far() -> None:
    project = make_project()
    for _ in range(5):
        make_comparison(project=project)
    (annotator,) = annotators(project, 1)
    assert assigning.left_for(project=project, annotator=annotator, at_most=9) == 5
    assert assigning.left_for(project=project, annotator=annotator, at_most=3) == 3
