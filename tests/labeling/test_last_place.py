"""Fifty people want the last place of a comparison at the same moment: exactly one gets it."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from django.db import connections

from labeling.models import Lease, Project, User
from labeling.services.assigning import next_assignment
from labeling.services.checking import breaches
from tests.builders import judge, make_comparison, make_user

PEOPLE = 50
# A thousand take minutes; the default keeps the suite quick.
TIMES = int(os.environ.get("PREFLOOP_TEST_RACES", "20"))


@pytest.mark.django_db(transaction=True)
def test_of_fifty_who_want_the_last_place_exactly_one_gets_it_every_time() -> None:
    comparison = make_comparison(overlap=2)
    judge(comparison=comparison)
    people = [make_user(role="annotator", project=comparison.project) for _ in range(PEOPLE)]
    start, end = threading.Barrier(PEOPLE + 1), threading.Barrier(PEOPLE + 1)
    got: list[int] = []

    def want(person: User, project: Project) -> None:
        try:
            for _ in range(TIMES):
                start.wait(60)
                if next_assignment(project=project, annotator=person) is not None:
                    got.append(person.pk)
                end.wait(60)
        finally:
            connections.close_all()

    with ThreadPoolExecutor(PEOPLE) as pool:
        waiting = [pool.submit(want, person, comparison.project) for person in people]
        for _ in range(TIMES):
            got.clear()
            start.wait(60)
            end.wait(60)
            leases = list(Lease.objects.live().values_list("annotator", flat=True))
            assert leases == got
            assert len(got) == 1
            Lease.objects.all().delete()
        for one in waiting:
            one.result()
    assert not list(breaches())
