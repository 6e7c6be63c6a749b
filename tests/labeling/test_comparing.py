import pytest

from labeling.models import Comparison
from labeling.services.comparing import (
    CannotCompare,
    NewComparison,
    create_comparisons,
    reopen_retired,
)
from tests.builders import make_policy, make_project, make_prompt, make_responses

pytestmark = pytest.mark.django_db


def test_identical_responses_are_never_compared_with_each_other() -> None:
    project = make_project()
    prompt = make_prompt(project=project)
    (one,) = make_responses(prompt=prompt, texts=["the same"])
    policy_one = make_responses(prompt=make_prompt(project=project), texts=["the same"])[0]
    policy_one.prompt = prompt
    with pytest.raises(CannotCompare, match="identical"):
        create_comparisons(project=project, wanted=[NewComparison(responses=[one, policy_one])])


def test_one_bad_comparison_leaves_none() -> None:
    project = make_project()
    good = make_responses(prompt=make_prompt(project=project))
    strangers = [
        make_responses(prompt=make_prompt(project=project), k=1)[0],
        make_responses(prompt=make_prompt(project=project), k=1)[0],
    ]
    for bad in (strangers, good[:1]):
        wanted = [NewComparison(responses=good), NewComparison(responses=bad)]
        with pytest.raises(CannotCompare):
            create_comparisons(project=project, wanted=wanted)
    assert not Comparison.objects.exists()


def test_what_is_made_retired_is_opened_when_its_policy_serves_again() -> None:
    project = make_project()
    policy = make_policy(project=project)
    responses = make_responses(prompt=make_prompt(project=project), policy=policy)
    wanted = [NewComparison(responses=responses)]
    (made,) = create_comparisons(project=project, wanted=wanted, retired=True)
    assert made.state == Comparison.State.RETIRED
    assert reopen_retired(policy=make_policy(project=project)) == 0
    assert reopen_retired(policy=policy) == 1
    made.refresh_from_db()
    assert made.state == Comparison.State.OPEN


def test_slots_keep_the_order_that_was_given() -> None:
    project = make_project(overlap=3)
    responses = make_responses(prompt=make_prompt(project=project), k=4)
    (made,) = create_comparisons(project=project, wanted=[NewComparison(responses=responses)])
    assert [slot.response for slot in made.slots.all()] == responses
    assert made.overlap == 3
