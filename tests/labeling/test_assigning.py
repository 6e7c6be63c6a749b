import threading
from datetime import timedelta

import pytest
from django.db import connection, connections
from django.utils import timezone

from labeling.models import Comparison, Lease, Project, User
from labeling.services import assigning, judging
from labeling.services.assigning import next_assignment, shown_order
from labeling.services.judging import Verdict
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
            lease=assignment.lease, verdict=Verdict(tiers=[[0], [1]]), key=f"k{len(order)}"
        )
    assert order == [urgent, begun]


def test_renewing_keeps_only_ones_own_live_lease() -> None:
    comparison = make_comparison()
    one, two = annotators(comparison.project, 2)
    assignment = next_assignment(project=comparison.project, annotator=one)
    assert assignment is not None
    assert assigning.renew(annotator=one, token=assignment.lease.token)
    assert not assigning.renew(annotator=two, token=assignment.lease.token)
    Lease.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert not assigning.renew(annotator=one, token=assignment.lease.token)


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


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("attempt", range(5))
def test_of_many_who_want_the_last_place_exactly_one_gets_it(attempt: int) -> None:
    comparison = make_comparison()
    people = annotators(comparison.project, 12)
    barrier = threading.Barrier(len(people))
    got: list[Lease] = []

    def want(annotator: User) -> None:
        try:
            barrier.wait()
            assignment = next_assignment(project=comparison.project, annotator=annotator)
            if assignment is not None:
                got.append(assignment.lease)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=want, args=(person,)) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == Lease.objects.count() == 1, connection.vendor
