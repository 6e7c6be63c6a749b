"""Any order of importing, taking, sending, replaying, undoing, flagging, rewriting and expiring
keeps the record whole."""

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

from labeling.chat import Message
from labeling.formats import Parsed, PreferenceRow
from labeling.models import Flag, Judgment, Lease, Preference, Response, Skip, User
from labeling.services import assigning, judging
from labeling.services.assigning import Assignment
from labeling.services.checking import breaches
from labeling.services.importing import import_preferences
from labeling.services.verdicts import FlagGiven, Rewrite, Verdict
from tests.builders import make_comparison, make_project, make_user

PEOPLE = st.integers(0, 2)
SEEDS = st.integers(0, 999)  # which comparison comes is the database's doing: draws follow it


class Record(RuleBasedStateMachine):
    """Three annotators at a project of pairs and three-way comparisons, overlap 1 or 2."""

    def __init__(self) -> None:
        super().__init__()
        self.transaction = transaction.atomic()
        self.transaction.__enter__()
        self.project = make_project()
        self.people = [make_user(role="annotator", project=self.project) for _ in range(3)]
        self.sent: list[tuple[User, Lease, Verdict, str]] = []
        self.left: list[tuple[User, Assignment]] = []
        self.acknowledged: set[int] = set()

    def teardown(self) -> None:
        transaction.set_rollback(True)
        self.transaction.__exit__(None, None, None)

    @rule(k=st.integers(2, 3), overlap=st.integers(1, 2))
    def compare(self, k: int, overlap: int) -> None:
        make_comparison(project=self.project, k=k, overlap=overlap)

    @rule(number=st.integers(0, 3))
    def import_again(self, number: int) -> None:
        messages = [Message(role="user", content=f"Question {number}")]
        row = PreferenceRow(
            messages=messages, chosen="yes", rejected="no", external_id="", unread=frozenset()
        )
        parsed = Parsed(rows=[row])
        import_preferences(slug=self.project.slug, parsed=parsed, skip_bad=False)
        again = import_preferences(slug=self.project.slug, parsed=parsed, skip_bad=False)
        assert again.imported == 0

    @rule(who=PEOPLE, seed=SEEDS)
    def judge(self, who: int, seed: int) -> None:
        assignment = self._next(who)
        if assignment is not None:
            verdict = _verdict(assignment, random.Random(seed))
            self._send(self.people[who], assignment.lease, verdict, f"key-{len(self.sent)}")

    @rule(which=st.integers(0, 1000))
    def replay(self, which: int) -> None:
        if self.sent:
            before = Judgment.objects.count()
            self._send(*self.sent[which % len(self.sent)])
            assert Judgment.objects.count() == before

    @rule(which=st.integers(0, 1000))
    def send_from_a_page_that_was_left(self, which: int) -> None:
        """Given back, run out, perhaps taken again: what was on a screen can still be judged."""
        if not self.left:
            return
        person, assignment = self.left.pop(which % len(self.left))
        if not Lease.objects.filter(token=assignment.lease.token).exists():
            return  # judged or skipped from another page
        verdict = _verdict(assignment, random.Random(which))
        self._send(person, assignment.lease, verdict, f"key-{len(self.sent)}")

    @rule(which=st.integers(0, 1000))
    def send_another_verdict_from_an_old_page(self, which: int) -> None:
        if self.sent:
            person, lease, verdict, _ = self.sent[which % len(self.sent)]
            try:
                self._send(person, lease, verdict, f"key-{len(self.sent)}")
            except judging.NotHeld:
                return

    @rule(who=PEOPLE, seed=SEEDS)
    def judge_again(self, who: int, seed: int) -> None:
        last = self._last(who)
        if isinstance(last, Judgment):
            pick = random.Random(seed)
            order = pick.sample(last.shown_order, len(last.shown_order))
            verdict = Verdict(tiers=[[slot] for slot in order])
            new = judging.rejudge(judgment=last, verdict=verdict, key=f"again-{last.pk}")
            assert new.surplus == last.surplus

    @rule(who=PEOPLE)
    def undo(self, who: int) -> None:
        last = self._last(who)
        if isinstance(last, Judgment):
            judging.undo(judgment=last)
        elif last is not None:
            judging.undo_skip(skip=last)
            assert not Flag.objects.standing().filter(skip=last).exists()

    @rule(who=PEOPLE, flagged=st.booleans())
    def skip(self, who: int, flagged: bool) -> None:
        assignment = self._next(who)
        if assignment is not None:
            flags = [FlagGiven(reason="broken", slot=0)] if flagged else []
            judging.skip(
                project=self.project,
                annotator=self.people[who],
                token=assignment.lease.token,
                flags=flags,
            )
            assert Skip.objects.filter(annotator=self.people[who], undone_at=None).exists()

    @rule(who=PEOPLE)
    def look_ahead_and_leave(self, who: int) -> None:
        first = self._next(who)
        if first is not None:
            self.left.append((self.people[who], first))
            self._next(who, besides=first)
        own = Lease.objects.live().filter(annotator=self.people[who])
        assert own.count() <= assigning.AT_ONCE

    @rule(who=PEOPLE)
    def give_back(self, who: int) -> None:
        own = Lease.objects.filter(annotator=self.people[who])
        assigning.give_back(
            annotator=self.people[who], tokens=list(own.values_list("token", flat=True))
        )

    @rule()
    def time_passes(self) -> None:
        Lease.objects.update(expires_at=timezone.now() - timedelta(seconds=1))

    @invariant()
    def the_record_is_whole(self) -> None:
        assert list(breaches()) == []
        assert set(Judgment.objects.values_list("pk", flat=True)) >= self.acknowledged

    @invariant()
    def a_rewrite_is_preferred_as_long_as_its_verdict_stands(self) -> None:
        for response in Response.objects.exclude(annotator=None):
            standing = Judgment.objects.current().filter(
                rewrite_of__isnull=False, comparison__slots__response=response
            )
            chosen = Preference.objects.filter(chosen=response)
            assert chosen.count() == standing.count()

    def _next(self, who: int, besides: Assignment | None = None) -> Assignment | None:
        return assigning.next_assignment(
            project=self.project,
            annotator=self.people[who],
            besides=[besides.lease.token] if besides else (),
        )

    def _last(self, who: int) -> Judgment | Skip | None:
        return judging.last_action(annotator=self.people[who], project=self.project)

    def _send(self, person: User, lease: Lease, verdict: Verdict, key: str) -> None:
        judgment = judging.record_judgment(
            project=self.project, annotator=person, token=lease.token, verdict=verdict, key=key
        )
        self.acknowledged.add(judgment.pk)
        if (person, lease, verdict, key) not in self.sent:
            self.sent.append((person, lease, verdict, key))


def _verdict(assignment: Assignment, pick: random.Random) -> Verdict:
    order = pick.sample(assignment.shown_order, len(assignment.slots))
    kind = pick.random()
    if kind < 0.2:
        return Verdict(tiers=[], all_bad=True, flags=[FlagGiven(reason="broken")])
    if kind < 0.4:
        return Verdict(tiers=[order])
    rewrite = Rewrite(slot=order[0], text=f"Better {pick.random()}") if kind < 0.7 else None
    return Verdict(tiers=[[slot] for slot in order], rewrite=rewrite)


@pytest.mark.slow
@pytest.mark.django_db
def test_the_record_survives_any_order_of_events() -> None:
    run_state_machine_as_test(
        Record,
        settings=settings(
            max_examples=20,
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
