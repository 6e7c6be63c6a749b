"""Evaluations by people: into the queue, blind, through the gate, and out again."""

from collections import Counter
from datetime import timedelta
from functools import partial

import pytest
from django.utils import timezone

from jobs.models import Schedule
from labeling.evaluation_tasks import look_at_evaluation
from labeling.models import (
    Comparison,
    Delivery,
    Evaluation,
    Lease,
    Policy,
    PolicyEvent,
    Project,
    Prompt,
    Response,
    Subscription,
    User,
)
from labeling.services.assigning import left_for, next_assignment
from labeling.services.checking import breaches
from labeling.services.configuring import configure
from labeling.services.evaluating import (
    CannotEvaluate,
    end_evaluation,
    note_problem,
    start_evaluation,
    stop_evaluation,
    sweep,
)
from labeling.services.exporting import ranked_groups
from labeling.services.gating import look
from labeling.services.judging import undo
from labeling.services.notifying import subscribe
from labeling.services.promoting import ReasonNeeded, promote, roll_back, serving_policy
from labeling.win_rates import win_rate
from tests.builders import (
    judge_evaluation,
    make_comparison,
    make_evaluation,
    make_policy,
    make_project,
    make_prompt,
    make_user,
)

pytestmark = pytest.mark.django_db
State = Evaluation.State


def fresh(evaluation: Evaluation) -> Evaluation:
    return Evaluation.objects.select_related("project", "policy", "against").get(pk=evaluation.pk)


# Starting


def test_what_cannot_be_evaluated_is_refused_with_the_reason() -> None:
    project = make_project()
    serving = make_policy(project=project, state="serving")
    new = make_policy(project=project, parent=serving)
    with pytest.raises(CannotEvaluate, match="held out"):
        start_evaluation(policy=new, actor=None)
    make_prompt(project=project, split="held_out")
    with pytest.raises(CannotEvaluate, match="serves already"):
        start_evaluation(policy=serving, actor=None)
    with pytest.raises(CannotEvaluate, match="10 to 5000"):
        start_evaluation(policy=new, actor=None, wanted=9)
    start_evaluation(policy=new, actor=None)
    with pytest.raises(CannotEvaluate, match="One at a time"):
        start_evaluation(policy=make_policy(project=project), actor=None)
    assert project.evaluations.count() == 1
    gone = make_policy(project=project)
    Policy.objects.filter(pk=gone.pk).update(deleted_at=timezone.now())
    with pytest.raises(CannotEvaluate, match="deleted"):
        start_evaluation(policy=gone, actor=None)


def test_the_worker_looks_every_minute_for_as_long_as_it_lives() -> None:
    evaluation = make_evaluation(pairs=1)
    schedule = Schedule.objects.get(name=f"labeling.evaluation:{evaluation.project_id}")
    assert not schedule.paused
    stop_evaluation(evaluation=evaluation)
    schedule.refresh_from_db()
    assert schedule.paused


def test_pairs_that_say_the_same_are_counted_and_not_judged() -> None:
    evaluation = make_evaluation(pairs=0)
    assert (evaluation.state, evaluation.problem) == (
        State.ENDED,
        "The two policies said the same to every prompt: nothing to judge.",
    )


# In the queue


def served(project: Project, annotator: User, number: int) -> Counter[str]:
    """The purposes of so many assignments in a row, each taken and given back."""
    found: Counter[str] = Counter()
    for _ in range(number):
        given = next_assignment(project=project, annotator=annotator)
        if given is None:
            break
        found[Comparison.objects.get(pk=given.comparison.pk).purpose] += 1
        Lease.objects.all().delete()
    return found


@pytest.mark.parametrize("percent", [5, 50, 100])
def test_evaluations_are_mixed_in_at_the_rate_that_the_manager_sets(percent: int) -> None:
    project = make_project()
    project.evaluation_percent = percent
    project.save()
    make_evaluation(project=project, pairs=2)
    make_comparison(project=project, priority=5)
    make_comparison(project=project)
    annotator = make_user(role="annotator", project=project)
    found = served(project, annotator, 120)
    assert 120 * percent / 100 == pytest.approx(found["evaluation"], abs=26)
    assert (found["standard"] == 0) == (percent == 100)


def test_either_kind_fills_in_where_the_other_has_run_out() -> None:
    project = make_project()
    project.evaluation_percent = 1
    project.save()
    evaluation = make_evaluation(project=project, pairs=1)
    annotator = make_user(role="annotator", project=project)
    assert served(project, annotator, 3) == {"evaluation": 3}
    judge_evaluation(evaluation, "w", annotator)
    make_comparison(project=project)
    project.evaluation_percent = 100
    project.save()
    assert served(project, annotator, 3) == {"standard": 3}


def test_a_turn_of_evaluation_costs_no_more_queries(django_assert_max_num_queries) -> None:
    project = make_project()
    project.evaluation_percent = 100
    project.save()
    make_comparison(project=project)
    evaluation = make_evaluation(project=project, pairs=1)
    annotator = make_user(role="annotator", project=project)
    for outcome in ("w", ""):  # one is left; none is left for this annotator
        with django_assert_max_num_queries(6):
            assert next_assignment(project=project, annotator=annotator) is not None
        Lease.objects.all().delete()
        judge_evaluation(evaluation, outcome, annotator)


def test_each_pair_is_judged_once_whatever_the_overlap() -> None:
    evaluation = make_evaluation(project=make_project(overlap=3), pairs=2)
    assert set(evaluation.comparisons.values_list("overlap", flat=True)) == {1}


def test_those_of_an_evaluation_that_waits_or_has_ended_are_not_given_out() -> None:
    evaluation = make_evaluation(pairs=2)
    annotator = make_user(role="annotator", project=evaluation.project)
    Evaluation.objects.filter(pk=evaluation.pk).update(state=State.WAITING)
    assert next_assignment(project=evaluation.project, annotator=annotator) is None


# Through the gate


def test_outcomes_are_counted_from_the_new_policy_s_side_and_undone_ones_are_not() -> None:
    evaluation = make_evaluation(pairs=6)
    annotator = make_user(role="annotator", project=evaluation.project)
    judge_evaluation(evaluation, "wwltb", annotator)
    rate = win_rate(evaluation)
    assert (rate.tally.wins, rate.tally.ties, rate.tally.losses) == (2, 2, 1)
    assert (rate.both_bad, rate.rate) == (1, 0.6)
    undo(judgment=annotator.judgments.current().earliest("id"))
    assert win_rate(evaluation).tally.wins == 1


def test_a_better_policy_passes_the_gate_and_is_promoted_where_that_was_asked_for() -> None:
    evaluation = make_evaluation(pairs=12, promote_if_better=True)
    project = evaluation.project
    channel = Subscription.Channel.WEBHOOK
    subscribe(
        project=project,
        channel=channel,
        target="https://example.org/",
        events=["gate_passed", "promoted"],
        actor=None,
    )
    judge_evaluation(evaluation, "wwwwww")
    look(evaluation)
    assert fresh(evaluation).passed_at is None, "six wins are luck"
    judge_evaluation(evaluation, "wwww")
    look(evaluation)
    assert fresh(evaluation).passed_at is not None
    assert serving_policy(evaluation.project) == evaluation.policy
    event = PolicyEvent.objects.latest("id")
    assert (event.kind, event.actor) == ("promoted", None)
    assert event.reason.startswith("Won 100% of 10 judgments")
    told = Delivery.objects.order_by("pk")
    assert [one.event for one in told] == ["gate_passed", "promoted"]
    assert told[0].payload["facts"]["judgments"] == 10
    assert told[1].payload["facts"]["by_hand"] is False
    look(evaluation)
    assert told.count() == 2, "told once"


def test_without_that_wish_it_waits_for_a_manager_who_then_needs_no_reason() -> None:
    evaluation = make_evaluation(pairs=12)
    manager = make_user(role="manager", project=evaluation.project)
    with pytest.raises(ReasonNeeded):
        promote(policy=evaluation.policy, actor=manager, reason="  ")
    judge_evaluation(evaluation, "w" * 10)
    look(evaluation)
    assert serving_policy(evaluation.project) == evaluation.against
    promote(policy=evaluation.policy, actor=manager)
    assert PolicyEvent.objects.latest("id").reason.startswith("Won 100%")


def test_by_hand_with_a_reason_at_any_time_and_back_without_one() -> None:
    evaluation = make_evaluation(pairs=1)
    manager = make_user(role="manager", project=evaluation.project)
    promote(policy=evaluation.policy, actor=manager, reason="The old one leaks addresses.")
    assert PolicyEvent.objects.latest("id").reason == "The old one leaks addresses."
    roll_back(project=evaluation.project, actor=manager)
    assert serving_policy(evaluation.project) == evaluation.against


def test_after_a_roll_back_what_was_said_before_is_void() -> None:
    evaluation = make_evaluation(pairs=12, promote_if_better=True)
    manager = make_user(role="manager", project=evaluation.project)
    judge_evaluation(evaluation, "w" * 10)
    look(evaluation)
    assert serving_policy(evaluation.project) == evaluation.policy
    roll_back(project=evaluation.project, actor=manager)
    end_evaluation(evaluation=evaluation, problem="")
    with pytest.raises(ReasonNeeded):
        promote(policy=evaluation.policy, actor=manager)
    with pytest.raises(CannotEvaluate, match="passed the gate"):
        start_evaluation(policy=evaluation.policy, actor=manager)


def test_the_event_tells_the_figures_of_the_moment_when_the_gate_was_passed() -> None:
    evaluation = make_evaluation(pairs=12)
    annotator = make_user(role="annotator", project=evaluation.project)
    judge_evaluation(evaluation, "w" * 10, annotator)
    look(evaluation)
    for judgment in annotator.judgments.current():
        undo(judgment=judgment)
    promote(policy=evaluation.policy, actor=make_user(role="manager", project=evaluation.project))
    assert PolicyEvent.objects.latest("id").reason.startswith("Won 100% of 10 judgments")


def test_a_higher_gate_wants_more() -> None:
    evaluation = make_evaluation(pairs=12)
    manager = make_user(role="manager", project=evaluation.project)
    configure(project=evaluation.project, actor=manager, gate_percent=90)
    judge_evaluation(evaluation, "w" * 10)
    look(fresh(evaluation))
    assert fresh(evaluation).passed_at is None


def test_a_worse_policy_ends_its_evaluation_early_and_leaves_the_queue() -> None:
    evaluation = make_evaluation(pairs=14, promote_if_better=True)
    judge_evaluation(evaluation, "l" * 11)
    look(evaluation)
    ended = fresh(evaluation)
    assert (ended.state, ended.passed_at) == (State.ENDED, None)
    assert ended.result["losses"] == 11
    assert not evaluation.comparisons.filter(state="open").exists()
    assert serving_policy(evaluation.project) == evaluation.against


def test_once_passed_it_stays_passed() -> None:
    evaluation = make_evaluation(pairs=30)
    judge_evaluation(evaluation, "w" * 10)
    look(evaluation)
    judge_evaluation(evaluation, "l" * 8)
    look(evaluation)
    assert fresh(evaluation).passed_at is not None, "the bound holds at all moments together"


def test_a_second_evaluation_of_the_same_two_goes_on_with_the_first_one_s_judgments() -> None:
    first = make_evaluation(pairs=4)
    judge_evaluation(first, "wwll")
    look(first)
    assert fresh(first).state == State.ENDED
    second = start_evaluation(policy=first.policy, actor=None)
    rate = win_rate(second)
    assert (rate.tally.wins, rate.tally.losses) == (2, 2)


def test_what_a_manager_holds_back_does_not_end_it_and_leaves_with_it() -> None:
    evaluation = make_evaluation(pairs=3)
    evaluation.comparisons.update(state="held")
    look(evaluation)
    assert fresh(evaluation).state == State.JUDGING
    stop_evaluation(evaluation=evaluation)
    assert set(evaluation.comparisons.values_list("state", flat=True)) == {"retired"}


def test_what_nobody_is_given_any_more_is_not_promised() -> None:
    evaluation = make_evaluation(pairs=2)
    annotator = make_user(role="annotator", project=evaluation.project)
    left = partial(left_for, project=evaluation.project, annotator=annotator, at_most=9)
    assert left() == 2
    judge_evaluation(evaluation, "wl", annotator)
    stop_evaluation(evaluation=evaluation)
    undo(judgment=annotator.judgments.current().earliest("id"))
    another = make_user(role="annotator", project=evaluation.project)
    assert left_for(project=evaluation.project, annotator=another, at_most=9) == 0


def test_it_ends_when_all_is_judged() -> None:
    evaluation = make_evaluation(pairs=3)
    judge_evaluation(evaluation, "wlt")
    look(evaluation)
    assert fresh(evaluation).state == State.ENDED


# Out again


def test_what_somebody_looks_at_when_it_ends_stays_until_they_are_done() -> None:
    evaluation = make_evaluation(pairs=2)
    annotator = make_user(role="annotator", project=evaluation.project)
    assert next_assignment(project=evaluation.project, annotator=annotator) is not None
    stop_evaluation(evaluation=evaluation)
    assert evaluation.comparisons.filter(state="open").count() == 1
    schedule = Schedule.objects.get(name=f"labeling.evaluation:{evaluation.project_id}")
    assert not schedule.paused
    Lease.objects.update(expires_at=timezone.now() - timedelta(seconds=1))
    assert next_assignment(project=evaluation.project, annotator=annotator) is None
    sweep(project=evaluation.project)
    assert not evaluation.comparisons.filter(state="open").exists()


def test_promotion_of_another_policy_ends_it_and_says_so(django_capture_on_commit_callbacks):
    evaluation = make_evaluation(pairs=2)
    other = make_policy(project=evaluation.project, name="Another")
    with django_capture_on_commit_callbacks(execute=True):
        promote(policy=other, actor=None)
    assert fresh(evaluation).problem == "Another came to serve meanwhile."
    assert fresh(evaluation).state == State.ENDED


def test_the_record_is_checked_for_pairs_of_other_policies_or_sides() -> None:
    def told() -> list[str]:
        return [one.split(":")[0] for one in breaches() if "evaluation" in one]

    evaluation = make_evaluation(pairs=3)
    assert told() == []
    first, second = evaluation.comparisons.order_by("pk")[:2]
    Prompt.objects.filter(pk=first.prompt_id).update(split="train", messages=[])
    other = make_policy(project=evaluation.project)
    Response.objects.filter(slots__comparison=second, slots__index=0).update(policy=other)
    assert told() == [f"comparison {one.pk}" for one in (first, second)]


def test_its_judgments_are_no_preferences_to_train_on() -> None:
    evaluation = make_evaluation(pairs=3)
    judge_evaluation(evaluation, "www")
    assert list(ranked_groups(evaluation.project)) == []


def test_the_worker_s_look_is_harmless_where_nothing_lives() -> None:
    evaluation = make_evaluation(pairs=1)

    class Job:
        payload = {"project": evaluation.project_id}

    judge_evaluation(evaluation, "w")
    for _ in range(2):
        look_at_evaluation(Job())  # type: ignore[arg-type]
    assert fresh(evaluation).state == State.ENDED


def test_a_problem_is_kept_while_it_waits_and_gone_when_it_is_judged() -> None:
    project = make_project()
    make_policy(project=project, state="serving")
    make_prompt(project=project, split="held_out")
    evaluation = start_evaluation(policy=make_policy(project=project), actor=None)
    note_problem(evaluation=evaluation, problem="Another batch is being written.")
    assert fresh(evaluation).problem == "Another batch is being written."
    note_problem(evaluation=evaluation, problem="")
    assert fresh(evaluation).problem == ""


def test_the_circle_of_evaluations_starts_elsewhere_for_each() -> None:
    evaluation = make_evaluation(pairs=40)
    people = [make_user(role="annotator", project=evaluation.project) for _ in range(6)]
    first = set()
    for person in people:
        given = next_assignment(project=evaluation.project, annotator=person)
        assert given is not None
        first.add(given.comparison.pk)
        Lease.objects.all().delete()
    assert len(first) > 1
