"""The queue: what managers see of it, change in it, and undo."""

import re
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from django.db import connections
from django.test import Client
from django.urls import reverse

from labeling import waiting
from labeling.models import Comparison, Lease, Project, QueueChange, Role, Split, User
from labeling.services import assigning, queueing
from labeling.services.assigning import next_assignment
from labeling.services.queueing import CannotUndo, Filters, Outcome
from labeling.waiting import match_of, queue_of
from tests.builders import (
    judge,
    make_comparison,
    make_policy,
    make_project,
    make_prompt,
    make_user,
)

pytestmark = pytest.mark.django_db
Action = QueueChange.Action
States = Comparison.State


@pytest.fixture
def project() -> Project:
    return make_project(overlap=2)


@pytest.fixture
def manager(project: Project, client: Client) -> User:
    user = make_user(role=Role.MANAGER, project=project, username="dana")
    client.force_login(user)
    return user


def many(project: Project, number: int) -> list[Comparison]:
    return [make_comparison(project=project) for _ in range(number)]


def do(manager: User, action: Action, priority: int | None = None, **filters: Any) -> Outcome:
    project = manager.memberships.get().project
    return queueing.change(
        project=project,
        filters=Filters(**filters),
        action=action,
        actor=manager,
        priority=priority,
    )


def states(project: Project) -> list[str]:
    return list(project.comparisons.order_by("pk").values_list("state", flat=True))


def test_what_is_held_back_is_not_offered_until_it_is_released(
    project: Project, manager: User
) -> None:
    (held,) = many(project, 1)
    annotator = make_user(role=Role.ANNOTATOR, project=project)
    assert do(manager, Action.HOLD).changed == 1
    assert next_assignment(project=project, annotator=annotator) is None
    assert do(manager, Action.RELEASE).changed == 1
    offered = next_assignment(project=project, annotator=annotator)
    assert offered is not None
    assert offered.comparison == held


@pytest.mark.parametrize("action", [Action.HOLD, Action.RETIRE])
def test_what_is_judged_or_in_hand_is_neither_held_back_nor_retired(
    action: Action, project: Project, manager: User
) -> None:
    begun, judged, taken, free = many(project, 4)
    judge(comparison=begun)
    for _ in range(2):
        judge(comparison=judged)
    assert assigning.lease_again(comparison=taken, annotator=manager)
    assert do(manager, action).changed == 1
    free.refresh_from_db()
    assert states(project) == ["open", "judged", "open", free.state]
    Lease.objects.all().delete()
    assert do(manager, action).changed == 1


def test_retiring_takes_held_ones_too_and_releasing_brings_none_back(
    project: Project, manager: User
) -> None:
    many(project, 2)
    do(manager, Action.HOLD)
    assert do(manager, Action.RETIRE).changed == 2
    assert do(manager, Action.RELEASE).changed == 0
    assert states(project) == ["retired", "retired"]


def test_a_priority_is_offered_first_and_counts_only_what_it_changed(
    project: Project, manager: User
) -> None:
    many(project, 3)
    urgent = make_comparison(prompt=make_prompt(project=project, text="Urgent soup"))
    assert do(manager, Action.PRIORITY, priority=9, text="urgent").changed == 1
    assert do(manager, Action.PRIORITY, priority=9).changed == 3
    assert do(manager, Action.PRIORITY, priority=0).changed == 4
    assert do(manager, Action.PRIORITY, priority=5, text="urgent").changed == 1
    offered = next_assignment(project=project, annotator=manager)
    assert offered is not None
    assert offered.comparison == urgent


@pytest.mark.parametrize(
    ("action", "priority"), [(Action.PRIORITY, 10), (Action.PRIORITY, None), (Action.HOLD, 1)]
)
def test_a_priority_is_given_from_minus_nine_to_nine_and_only_to_be_set(
    action: Action, priority: int | None, manager: User
) -> None:
    with pytest.raises(ValueError, match="priorit"):
        do(manager, action, priority=priority)


def test_filters_leave_what_they_say(project: Project) -> None:
    policy = make_policy(project=project)
    soup = make_comparison(
        prompt=make_prompt(project=project, text="Sopa del 100%_día", split=Split.TRAIN),
        policy=policy,
    )
    bread = make_comparison(
        prompt=make_prompt(
            project=project, text="Bread", split=Split.HELD_OUT, external_id="row-7"
        ),
        k=4,
        purpose=Comparison.Purpose.EVALUATION,
    )
    Comparison.objects.filter(pk=bread.pk).update(pairing="random")
    judge(comparison=bread)
    make_comparison()  # of another project
    for filters, left in (
        ({}, {soup, bread}),
        ({"policy": policy.pk}, {soup}),
        ({"split": "held_out"}, {bread}),
        ({"purpose": "evaluation"}, {bread}),
        ({"pairing": "random"}, {bread}),
        ({"pairing": "people"}, {soup}),
        ({"answers": 2}, {soup}),
        ({"answers": 4}, {bread}),
        ({"answers": 3}, set()),
        ({"state": "untouched"}, {soup}),
        ({"state": "started"}, {bread}),
        ({"state": "held"}, set()),
        ({"text": "sopa DEL"}, {soup}),
        ({"text": "día"}, {soup}),
        ({"text": "100%_"}, {soup}),
        ({"text": "1%"}, set()),
        ({"text": "row-7"}, {bread}),
        ({"text": "row-"}, set()),
        ({"text": "content"}, set()),
        ({"split": "held_out", "answers": 2}, set()),
    ):
        match = match_of(project, Filters(**filters))
        assert {one.pk for one in match.sample} == {one.pk for one in left}, filters
        assert match.tally.number == len(left), filters


def test_a_change_is_recorded_with_who_what_and_how_many(project: Project, manager: User) -> None:
    many(project, 3)
    do(manager, Action.PRIORITY, priority=3, state="untouched", answers=2)
    change = QueueChange.objects.get()
    assert (change.action, change.priority, change.changed) == (Action.PRIORITY, 3, 3)
    assert change.filters == {"state": "untouched", "answers": 2}
    assert (change.actor, change.project) == (manager, project)
    do(manager, Action.PRIORITY, priority=3)
    assert QueueChange.objects.count() == 1, "nothing changed, nothing recorded"


def test_chunks_go_through_everything_once(
    project: Project, manager: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queueing, "CHUNK", 3)
    many(project, 11)
    outcome = do(manager, Action.HOLD)
    assert (outcome.changed, outcome.finished) == (11, True)
    assert QueueChange.objects.get().changed == 11
    assert states(project) == ["held"] * 11


def test_time_that_runs_out_leaves_a_true_record_and_asking_again_goes_on(
    project: Project, manager: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queueing, "CHUNK", 4)
    many(project, 10)
    ticks = iter([0.0, 0.0, 1.0, 30.0])
    with monkeypatch.context() as patch:
        patch.setattr(queueing, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
        outcome = do(manager, Action.HOLD)
    assert (outcome.changed, outcome.finished) == (8, False)
    assert QueueChange.objects.get().changed == states(project).count("held") == 8
    outcome = do(manager, Action.HOLD)
    assert (outcome.changed, outcome.finished) == (2, True)


def test_a_failure_half_way_leaves_a_true_record(
    project: Project, manager: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queueing, "CHUNK", 4)
    many(project, 10)
    record, calls = queueing._record, iter(range(9))

    def fail_at_the_second(*args: Any) -> None:
        if next(calls):
            raise RuntimeError
        record(*args)

    monkeypatch.setattr(queueing, "_record", fail_at_the_second)
    with pytest.raises(RuntimeError):
        do(manager, Action.HOLD)
    assert QueueChange.objects.get().changed == states(project).count("held") == 4


def test_undoing_a_hold_releases_what_it_held_and_nothing_else(
    project: Project, manager: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queueing, "CHUNK", 2)
    comparisons = many(project, 9)
    before = [comparisons[place] for place in (3, 4)]
    Comparison.objects.filter(pk__in=[one.pk for one in before]).update(state=States.HELD)
    judge(comparison=comparisons[6])
    hold = do(manager, Action.HOLD).change
    assert hold is not None
    assert len(hold.filters["ids"]) == 2, "what could not be held back splits no range"
    monkeypatch.setattr(queueing, "SECONDS", -1.0)
    outcome = queueing.undo(change=hold, actor=manager)
    assert (outcome.changed, outcome.finished) == (6, True)
    assert [place for place, state in enumerate(states(project)) if state == "held"] == [3, 4]


def test_undoing_a_release_holds_back_only_what_was_held(project: Project, manager: User) -> None:
    one, two, three, _four = many(project, 4)
    Comparison.objects.filter(pk__in=[one.pk, three.pk]).update(state=States.HELD)
    release = do(manager, Action.RELEASE).change
    assert release is not None
    again = queueing.undo(change=release, actor=manager).change
    assert states(project) == ["held", "open", "held", "open"]
    assert again is not None
    queueing.undo(change=again, actor=manager)
    assert states(project) == ["open"] * 4


def test_only_the_last_hold_or_release_can_be_undone(
    project: Project, manager: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    many(project, 3)
    hold = do(manager, Action.HOLD).change
    last = do(manager, Action.PRIORITY, priority=1).change
    assert hold is not None
    assert last is not None
    for change in (hold, last):
        with pytest.raises(CannotUndo):
            queueing.undo(change=change, actor=manager)
    do(manager, Action.RELEASE)
    monkeypatch.setattr(queueing, "MOST_RANGES", 1)
    Comparison.objects.filter(pk=project.comparisons.order_by("pk")[1].pk).update(state=States.HELD)
    do(manager, Action.HOLD)
    Comparison.objects.filter(pk=project.comparisons.order_by("pk")[1].pk).update(state=States.OPEN)
    scattered = do(manager, Action.RELEASE).change
    assert scattered is not None
    assert not queueing.can_undo(scattered)


@pytest.mark.django_db(transaction=True)
def test_nobody_loses_what_they_took_while_it_was_held_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queueing, "CHUNK", 2)
    project = make_project()
    manager = make_user(role=Role.MANAGER, project=project)
    many(project, 30)
    people = [make_user(role=Role.ANNOTATOR, project=project) for _ in range(8)]
    barrier = threading.Barrier(len(people) + 1)

    def take(annotator: User) -> None:
        try:
            barrier.wait()
            next_assignment(project=project, annotator=annotator)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=take, args=(one,)) for one in people]
    for thread in threads:
        thread.start()
    barrier.wait()
    do(manager, Action.HOLD)
    for thread in threads:
        thread.join()
    do(manager, Action.HOLD)
    in_hand = set(Lease.objects.values_list("comparison", flat=True))
    still_open = set(project.comparisons.filter(state=States.OPEN).values_list("pk", flat=True))
    assert in_hand == still_open
    assert states(project).count("held") == 30 - len(in_hand)


def test_the_queue_is_told_by_priority_and_state(project: Project) -> None:
    many(project, 3)
    begun = make_comparison(project=project, priority=2)
    judge(comparison=begun)
    Comparison.objects.filter(pk=make_comparison(project=project, priority=-1).pk).update(
        state=States.HELD
    )
    make_comparison(priority=7)  # of another project
    queue = queue_of(project)
    assert [
        (level.priority, level.untouched.number, level.started.number) for level in queue.levels
    ] == [(2, 0, 1), (0, 3, 0)]
    assert {name: str(tally) for name, tally in queue.states.items()} == {
        "untouched": "3",
        "started": "1",
        "held": "1",
        "judged": "0",
        "retired": "0",
    }


def test_counts_stop_where_they_are_many(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "MOST", 2)
    many(project, 4)
    assert str(queue_of(project).states["untouched"]) == "2+"
    match = match_of(project, Filters())
    assert not match.cut
    assert (str(match.tally), len(match.sample)) == ("2+", 3)


def page(client: Client, project: Project, **filters: object) -> str:
    answer = client.get(reverse("labeling:queue", args=[project.slug]), filters)
    assert answer.status_code == 200
    return answer.content.decode()


def send(client: Client, project: Project, **data: object) -> str:
    answer = client.post(reverse("labeling:change_queue", args=[project.slug]), data, follow=True)
    assert answer.status_code == 200
    return answer.content.decode()


def test_the_page_shows_what_matches_changes_it_and_undoes_it(
    project: Project, manager: User, client: Client
) -> None:
    many(project, 2)
    make_comparison(prompt=make_prompt(project=project, text="<b>Soup</b>"))
    html = page(client, project, text="soup")
    assert "1 comparison matches" in html
    assert "&lt;b&gt;Soup&lt;/b&gt;" in html
    assert '<input type="hidden" name="text" value="soup">' in html
    html = send(client, project, text="soup", action="hold")
    assert "Held back: 1 comparison." in html
    assert 'value="soup"' in html, "the filter stays"
    html = page(client, project)
    assert "<bdi>Prompt says, or its id: soup</bdi>" in html
    (undo,) = re.findall(r'name="undo" value="(\d+)"', html)
    assert "Released: 1 comparison." in send(client, project, undo=undo)
    assert "Only the last change" in send(client, project, undo=undo)
    assert "none of these is held back" in send(client, project, action="release")
    html = send(client, project, action="priority", priority="-3")
    assert "Priority set: 3 comparisons." in html


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"state": "lost"}, "State:"),
        ({"policy": "999999"}, "With an answer by:"),
        ({"answers": "many"}, "Answers:"),
        ({"text": "x" * 201}, "Prompt says, or its id:"),
        ({"text": "\x00"}, "Prompt says, or its id:"),
    ],
)
def test_a_filter_that_cannot_be_is_told_and_nothing_is_changed(
    wrong: dict[str, str], said: str, project: Project, manager: User, client: Client
) -> None:
    many(project, 2)
    shown = client.get(reverse("labeling:queue", args=[project.slug]), wrong)
    sent = client.post(
        reverse("labeling:change_queue", args=[project.slug]), {"action": "retire"} | wrong
    )
    for answer in (shown, sent):
        assert answer.status_code == 422
        assert said in answer.content.decode()
        assert 'value="retire"' not in answer.content.decode()
    assert states(project) == ["open", "open"]


@pytest.mark.parametrize(
    "wrong",
    [{}, {"action": "delete"}, {"action": "priority"}, {"action": "priority", "priority": "10"}],
)
def test_an_action_that_cannot_be_changes_nothing(
    wrong: dict[str, str], project: Project, manager: User, client: Client
) -> None:
    many(project, 1)
    answer = client.post(reverse("labeling:change_queue", args=[project.slug]), wrong)
    assert answer.status_code == 422
    assert not QueueChange.objects.exists()


def test_htmx_gets_the_matches_alone_and_the_page_costs_few_queries(
    project: Project, manager: User, client: Client, django_assert_max_num_queries
) -> None:
    address = reverse("labeling:queue", args=[project.slug])
    for _ in range(2):
        many(project, 4)
        do(manager, Action.PRIORITY, priority=1)
        with django_assert_max_num_queries(12):
            page(client, project)
        answer = client.get(address, {"state": "held"}, headers={"HX-Request": "true"})
        assert answer.content.decode().strip().startswith('<div class="stack" id="match">')


def test_only_managers_see_and_change_the_queue(project: Project, client: Client) -> None:
    client.force_login(make_user(role=Role.ANNOTATOR, project=project))
    assert client.get(reverse("labeling:queue", args=[project.slug])).status_code == 404
    change = reverse("labeling:change_queue", args=[project.slug])
    assert client.post(change, {"action": "retire"}).status_code == 404


def test_filters_look_through_so_many_comparisons_and_say_so(
    project: Project, manager: User, client: Client, monkeypatch
) -> None:
    many(project, 4)
    policy = make_policy(project=project)
    for _ in range(2):
        make_comparison(project=project, policy=policy)
    monkeypatch.setattr(waiting, "LOOKED_THROUGH", 5)
    assert not match_of(project, Filters(state="untouched")).cut
    match = match_of(project, Filters(policy=policy.pk))
    assert (match.tally.number, match.cut) == (1, True)
    assert not match_of(project, Filters(policy=policy.pk, state="judged")).cut
    monkeypatch.setattr(waiting, "LOOKED_THROUGH", 3)
    client.force_login(manager)
    html = client.get(reverse("labeling:queue", args=[project.slug]), {"policy": policy.pk})
    assert "which were not looked through; what you do concerns all" in html.content.decode()
    assert 'name="action" value="hold"' in html.content.decode()
    assert do(manager, Action.HOLD, policy=policy.pk).changed == 2
