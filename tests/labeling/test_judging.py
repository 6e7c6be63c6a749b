import itertools
from datetime import timedelta

import pytest
from django.utils import timezone

from labeling.models import Comparison, Judgment, Lease, Preference, Response, Skip
from labeling.services import assigning, judging
from labeling.services.checking import breaches
from labeling.services.judging import Conflict, NotHeld, TooLate
from labeling.services.verdicts import FlagGiven, Rewrite, Verdict
from labeling.votes import BadTiers
from tests.builders import judge, make_comparison, make_project, make_user

pytestmark = pytest.mark.django_db
numbers = itertools.count()


def send(lease, tiers, key="") -> Judgment:
    verdict = Verdict(tiers=tiers)
    return judging.record_judgment(
        project=lease.comparison.project,
        annotator=lease.annotator,
        token=lease.token,
        verdict=verdict,
        key=key or f"k{next(numbers)}",
    )


def take(comparison, annotator) -> Lease:
    assignment = assigning.next_assignment(project=comparison.project, annotator=annotator)
    assert assignment is not None
    return assignment.lease


def test_a_verdict_becomes_a_preference_at_once() -> None:
    comparison = make_comparison(k=2)
    judge(comparison=comparison, tiers=[[1], [0]])
    row = Preference.objects.get()
    slots = list(comparison.slots.all())
    assert (row.chosen, row.rejected) == (slots[1].response, slots[0].response)
    assert (row.votes_for, row.votes_against, row.votes_tied) == (1, 0, 0)
    assert comparison.state == Comparison.State.JUDGED


def test_a_four_way_ranking_gives_six_preferences() -> None:
    judge(comparison=make_comparison(k=4), tiers=[[2], [0, 3], [1]])
    assert Preference.objects.count() == 6
    assert Preference.objects.filter(votes_tied=1).count() == 1


def test_the_same_key_is_the_same_judgment() -> None:
    comparison = make_comparison(overlap=2)
    lease = take(comparison, make_user(role="annotator", project=comparison.project))
    first = send(lease, [[0], [1]], "again")
    assert send(lease, [[0], [1]], "again") == first
    with pytest.raises(Conflict):
        send(lease, [[1], [0]], "again")
    assert Judgment.objects.count() == 1


def test_an_old_page_changes_nothing_when_the_comparison_was_dealt_with_in_another_tab() -> None:
    comparison = make_comparison(overlap=2)
    lease = take(comparison, make_user(role="annotator", project=comparison.project))
    send(lease, [[0], [1]])
    with pytest.raises(NotHeld):
        send(lease, [[1], [0]])
    assert Judgment.objects.get().tiers == [[0], [1]]


def test_judging_again_after_an_undo_keeps_the_first_in_history() -> None:
    comparison = make_comparison(overlap=2)
    annotator = make_user(role="annotator", project=comparison.project)
    lease = judging.undo(judgment=send(take(comparison, annotator), [[0], [1]]))
    assert lease is not None
    send(lease, [[1], [0]])
    assert Judgment.objects.count() == 2
    assert Judgment.objects.current().get().tiers == [[1], [0]]
    assert Preference.objects.get().votes_for == 1
    assert not list(breaches())


def test_undo_takes_the_preference_back_and_the_comparison_returns() -> None:
    comparison = make_comparison()
    annotator = make_user(role="annotator", project=comparison.project)
    judgment = send(take(comparison, annotator), [[0], [1]])
    lease = judging.undo(judgment=judgment)
    assert lease is not None
    assert lease.comparison == comparison
    assert not Preference.objects.exists()
    assert Judgment.objects.count() == 1, "history is kept"
    comparison.refresh_from_db()
    assert (comparison.judged, comparison.state) == (0, Comparison.State.OPEN)
    assert judging.undo(judgment=judgment) is None, "undoing twice does nothing"


def test_an_expired_lease_still_counts_where_a_place_is_free() -> None:
    comparison = make_comparison()
    lease = take(comparison, make_user(role="annotator", project=comparison.project))
    Lease.objects.update(expires_at=lease.taken_at)
    assert not send(lease, [[0], [1]]).surplus


def test_work_after_an_expired_lease_is_kept_as_surplus_where_others_filled_the_overlap() -> None:
    comparison = make_comparison()
    late = make_user(role="annotator", project=comparison.project)
    lease = take(comparison, late)
    Lease.objects.update(expires_at=lease.taken_at)
    judge(comparison=comparison, tiers=[[1], [0]])
    assert send(lease, [[0], [1]]).surplus
    assert Preference.objects.get().votes_against == 0, "surplus does not vote"
    assert not list(breaches())


def test_a_retired_comparison_takes_no_verdict() -> None:
    comparison = make_comparison()
    lease = take(comparison, make_user(role="annotator", project=comparison.project))
    Comparison.objects.update(state=Comparison.State.RETIRED)
    with pytest.raises(NotHeld):
        send(lease, [[0], [1]])


def test_a_verdict_that_leaves_a_response_out_changes_nothing() -> None:
    comparison = make_comparison(k=3)
    lease = take(comparison, make_user(role="annotator", project=comparison.project))
    with pytest.raises(BadTiers):
        send(lease, [[0], [1]])
    assert not Judgment.objects.exists()
    assert Lease.objects.live().exists()


def test_skipped_comparisons_are_not_offered_again_until_undone() -> None:
    comparison = make_comparison()
    annotator = make_user(role="annotator", project=comparison.project)
    judging.skip(
        project=comparison.project, annotator=annotator, token=take(comparison, annotator).token
    )
    assert assigning.next_assignment(project=comparison.project, annotator=annotator) is None
    other = make_user(role="annotator", project=comparison.project)
    assert assigning.next_assignment(project=comparison.project, annotator=other) is not None
    Lease.objects.all().delete()
    assert judging.undo_skip(skip=Skip.objects.get()) is not None


def test_undo_takes_back_the_latest_of_judgments_and_skips() -> None:
    project = make_project()
    for _ in range(2):
        make_comparison(project=project)
    annotator = make_user(role="annotator", project=project)

    def following() -> Lease:
        assignment = assigning.next_assignment(project=project, annotator=annotator)
        assert assignment is not None
        return assignment.lease

    judgment = send(following(), [[0], [1]])
    assert judging.last_action(annotator=annotator, project=project) == judgment
    judging.skip(project=project, annotator=annotator, token=following().token)
    assert isinstance(judging.last_action(annotator=annotator, project=project), Skip)


def test_judging_again_counts_in_the_place_of_the_first_even_where_the_overlap_is_full() -> None:
    comparison = make_comparison(overlap=2)
    first = judge(comparison=comparison, tiers=[[0], [1]])
    judge(comparison=comparison, tiers=[[0], [1]])
    again = judging.rejudge(judgment=first, verdict=Verdict(tiers=[[1], [0]]), key="again")
    assert not again.surplus
    row = Preference.objects.get()
    assert (row.votes_for, row.votes_against) == (1, 1)
    first.refresh_from_db()
    assert first.superseded_at is not None
    same = judging.rejudge(judgment=first, verdict=Verdict(tiers=[[1], [0]]), key="again")
    assert same == again, "sent twice it is the same"
    assert not list(breaches())


def test_judging_again_is_refused_for_what_is_no_longer_there_to_change() -> None:
    comparison = make_comparison()
    judgment = judge(comparison=comparison)
    verdict = Verdict(tiers=[[1], [0]])
    assert judging.changeable(judgment)
    Comparison.objects.update(state=Comparison.State.RETIRED)
    comparison.refresh_from_db()
    with pytest.raises(TooLate, match="retired"):
        judging.rejudge(judgment=judgment, verdict=verdict, key="a")
    Comparison.objects.update(state=Comparison.State.JUDGED)
    comparison.project.rejudge_hours = 0
    comparison.project.save()
    judgment = Judgment.objects.get()
    assert not judging.changeable(judgment)
    with pytest.raises(TooLate):
        judging.rejudge(judgment=judgment, verdict=verdict, key="b")
    with pytest.raises(TooLate):
        judging.undo(judgment=judgment)
    assert Judgment.objects.get() == judgment


def test_a_rewrite_goes_with_the_verdict_it_came_with() -> None:
    comparison = make_comparison(k=3)
    annotator = make_user(role="annotator", project=comparison.project)
    rewrite = Rewrite(slot=1, text="Much better")
    sent = judging.record_judgment(
        project=comparison.project,
        annotator=annotator,
        token=take(comparison, annotator).token,
        verdict=Verdict(tiers=[[1], [0], [2]], rewrite=rewrite),
        key="first",
    )
    made = Response.objects.get(annotator=annotator)
    preferred = Preference.objects.get(chosen=made)
    assert preferred.rejected == comparison.slots.get(index=1).response
    assert preferred.comparison.purpose == Comparison.Purpose.REWRITE
    judging.rejudge(judgment=sent, verdict=Verdict(tiers=[[2], [0], [1]]), key="second")
    assert not Preference.objects.filter(chosen=made).exists()
    preferred.comparison.refresh_from_db()
    assert preferred.comparison.state == Comparison.State.RETIRED
    assert not list(breaches())


def test_a_rewrite_that_changes_nothing_is_none() -> None:
    comparison = make_comparison()
    annotator = make_user(role="annotator", project=comparison.project)
    text = comparison.slots.get(index=0).response.text
    judging.record_judgment(
        project=comparison.project,
        annotator=annotator,
        token=take(comparison, annotator).token,
        verdict=Verdict(tiers=[[0], [1]], rewrite=Rewrite(slot=0, text=text)),
        key="same",
    )
    assert Preference.objects.count() == 1


def test_a_sitting_ends_with_a_long_pause() -> None:
    project = make_project()
    for _ in range(3):
        make_comparison(project=project)
    annotator = make_user(role="annotator", project=project)
    places = []
    for number in range(3):
        lease = assigning.next_assignment(project=project, annotator=annotator).lease  # type: ignore[union-attr]
        places.append(send(lease, [[0], [1]]).sitting_place)
        if number == 1:
            Judgment.objects.update(created_at=timezone.now() - timedelta(minutes=31))
    assert places == [0, 1, 0]
    last = Judgment.objects.latest("pk")
    again = judging.rejudge(judgment=last, verdict=Verdict(tiers=[[1], [0]]), key="again")
    assert again.sitting_place == 1, "judging again is one more verdict of the sitting"


def test_judging_again_opens_no_new_window() -> None:
    comparison = make_comparison()
    first = judge(comparison=comparison)
    again = judging.rejudge(judgment=first, verdict=Verdict(tiers=[[1], [0]]), key="again")
    begun = timezone.now() - timedelta(hours=comparison.project.rejudge_hours + 1)
    Judgment.objects.filter(pk=first.pk).update(created_at=begun)
    with pytest.raises(TooLate):
        judging.rejudge(judgment=again, verdict=Verdict(tiers=[[0], [1]]), key="third")
    with pytest.raises(TooLate):
        judging.undo(judgment=again)


def test_a_lease_is_worth_nothing_in_another_project() -> None:
    comparison, elsewhere = make_comparison(), make_project()
    annotator = make_user(role="annotator", project=comparison.project)
    token = take(comparison, annotator).token
    with pytest.raises(NotHeld):
        judging.skip(project=elsewhere, annotator=annotator, token=token)
    with pytest.raises(NotHeld):
        judging.record_judgment(
            project=elsewhere,
            annotator=annotator,
            token=token,
            verdict=Verdict(tiers=[[0], [1]]),
            key="k",
        )
    assert Lease.objects.live().exists()


def test_places_are_turned_into_slots_wherever_a_verdict_names_them() -> None:
    verdict = Verdict(
        tiers=[[0], [1, 2]],
        ratings={"tone": {0: 5}},
        flags=[FlagGiven(reason="broken", slot=2), FlagGiven(reason="unsafe")],
        rewrite=Rewrite(slot=1, text="x"),
    ).moved([2, 0, 1])
    assert verdict.tiers == [[2], [0, 1]]
    assert verdict.ratings == {"tone": {2: 5}}
    assert [flag.slot for flag in verdict.flags] == [1, None]
    assert verdict.rewrite == Rewrite(slot=0, text="x")
    with pytest.raises(BadTiers):
        Verdict(tiers=[[0], [1]], flags=[FlagGiven(reason="broken", slot=2)]).moved([1, 0])
