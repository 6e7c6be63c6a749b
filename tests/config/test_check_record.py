import pytest
from django.core.management import CommandError, call_command

from labeling.models import Comparison, Judgment, Preference, Prompt, Response
from labeling.models.prompts import split_of
from labeling.services.checking import breaches
from labeling.services.continuing import continue_conversations
from tests.builders import judge, make_comparison, make_project, make_prompt, make_responses

pytestmark = pytest.mark.django_db


@pytest.fixture
def comparison() -> Comparison:
    comparison = make_comparison(k=3, overlap=2)
    judge(comparison=comparison)
    return comparison


def test_a_whole_record_passes(comparison, capsys) -> None:
    call_command("check_record")
    assert "whole" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda: Preference.objects.filter(low_slot=0, high_slot=1).delete(), "slots 0 and 1"),
        (lambda: Preference.objects.update(votes_tied=3), "not what its judgments say"),
        (lambda: Comparison.objects.update(judged=2), "says 2 judgments"),
        (lambda: Comparison.objects.update(state="judged"), "its state"),
        (lambda: Judgment.objects.update(tiers=[[0], [1]]), "each of the 3"),
        (lambda: Judgment.objects.update(shown_order=[0, 0, 1]), "shown order"),
        (lambda: Response.objects.update(text="changed"), "digest"),
        (lambda: Prompt.objects.update(messages=[]), "digest"),
    ],
)
def test_every_kind_of_damage_is_found_and_named(comparison, harm, words) -> None:
    harm()
    assert any(words in breach for breach in breaches()), list(breaches())


@pytest.fixture
def continuation() -> Prompt:
    prompt = make_prompt()
    Prompt.objects.filter(pk=prompt.pk).update(metadata={"turns": ["And then?"]})
    (made,) = continue_conversations(responses=make_responses(prompt=prompt))
    return made


def test_a_continuation_may_be_where_its_own_digest_would_not_put_it() -> None:
    project = make_project(held_out_percent=50)
    prompts = [make_prompt(project=project) for _ in range(20)]
    Prompt.objects.update(metadata={"turns": ["And then?"]})
    responses = [response for prompt in prompts for response in make_responses(prompt=prompt)]
    made = continue_conversations(responses=responses)
    assert any(prompt.split != split_of(prompt.digest, 50) for prompt in made)
    assert list(breaches()) == []


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (lambda made: {"split": "train" if made.split == "held_out" else "held_out"}, "on side"),
        (lambda made: {"messages": made.messages[-1:]}, "does not go on from"),
        (lambda made: {"digest": "0" * 64}, "digest"),
    ],
)
def test_damage_to_a_continuation_is_found(continuation, harm, words) -> None:
    Prompt.objects.filter(pk=continuation.pk).update(**harm(continuation))
    assert any(words in breach for breach in breaches()), list(breaches())


def test_a_breach_makes_the_command_fail(comparison) -> None:
    Comparison.objects.update(judged=2)
    with pytest.raises(CommandError, match="breaches"):
        call_command("check_record")
