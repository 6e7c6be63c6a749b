"""Any order of taking, sending, replaying, undoing and expiring keeps the record whole."""

import random
from datetime import timedelta

import pytest
from django.db import transaction
from django.utils import timezone
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from labeling.models import Judgment, Lease, Skip
from labeling.services import assigning, judging
from labeling.services.checking import breaches
from labeling.services.judging import Verdict
from tests.builders import make_comparison, make_project, make_user


class Record(RuleBasedStateMachine):
    """Three annotators at a project of pairs and three-way comparisons, overlap 1 or 2."""

    def __init__(self) -> None:
        super().__init__()
        self.transaction = transaction.atomic()
        self.transaction.__enter__()
        self.project = make_project()
        self.people = [make_user(role="annotator", project=self.project) for _ in range(3)]
        self.sent: list[tuple[Lease, Verdict, str]] = []

    def teardown(self) -> None:
        transaction.set_rollback(True)
        self.transaction.__exit__(None, None, None)

    @rule(k=st.integers(2, 3), overlap=st.integers(1, 2))
    def compare(self, k: int, overlap: int) -> None:
        make_comparison(project=self.project, k=k, overlap=overlap)

    @rule(who=st.integers(0, 2), seed=st.integers(0, 999))
    def judge(self, who: int, seed: int) -> None:
        assignment = assigning.next_assignment(project=self.project, annotator=self.people[who])
        if assignment is None:
            return
        # Which comparison came is the database's doing: draws must not depend on it.
        pick = random.Random(seed)
        order = [slot.index for slot in assignment.slots]
        pick.shuffle(order)
        tiers = [[slot] for slot in order] if pick.random() < 0.7 else [order]
        verdict, key = Verdict(tiers=tiers), f"key-{len(self.sent)}"
        judging.record_judgment(lease=assignment.lease, verdict=verdict, key=key)
        self.sent.append((assignment.lease, verdict, key))

    @rule(which=st.integers(0, 1000))
    def replay(self, which: int) -> None:
        if not self.sent:
            return
        lease, verdict, key = self.sent[which % len(self.sent)]
        before = Judgment.objects.count()
        judging.record_judgment(lease=lease, verdict=verdict, key=key)
        assert Judgment.objects.count() == before

    @rule(which=st.integers(0, 1000))
    def judge_again_from_an_old_page(self, which: int) -> None:
        if not self.sent:
            return
        lease, verdict, _ = self.sent[which % len(self.sent)]
        key = f"key-{len(self.sent)}"
        try:
            judging.record_judgment(lease=lease, verdict=verdict, key=key)
        except judging.NotHeld:
            return
        self.sent.append((lease, verdict, key))

    @rule(who=st.integers(0, 2))
    def undo(self, who: int) -> None:
        last = judging.last_action(annotator=self.people[who], project=self.project.pk)
        if isinstance(last, Judgment):
            judging.undo(judgment=last)
        elif last is not None:
            judging.undo_skip(skip=last)

    @rule(who=st.integers(0, 2))
    def skip(self, who: int) -> None:
        assignment = assigning.next_assignment(project=self.project, annotator=self.people[who])
        if assignment is not None:
            judging.skip(lease=assignment.lease)
            assert Skip.objects.filter(annotator=self.people[who]).exists()

    @rule(who=st.integers(0, 2))
    def look_and_leave(self, who: int) -> None:
        assigning.next_assignment(project=self.project, annotator=self.people[who])

    @rule()
    def time_passes(self) -> None:
        Lease.objects.update(expires_at=timezone.now() - timedelta(seconds=1))

    @invariant()
    def the_record_is_whole(self) -> None:
        assert list(breaches()) == []


@pytest.mark.slow
@pytest.mark.django_db
def test_the_record_survives_any_order_of_events() -> None:
    run_state_machine_as_test(
        Record,
        settings=settings(
            max_examples=15,
            stateful_step_count=20,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
