import pytest
from django.core.management import CommandError, call_command

from labeling.models import Comparison, Judgment, Preference, Prompt, Response
from labeling.services.checking import breaches
from tests.builders import judge, make_comparison

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


def test_a_breach_makes_the_command_fail(comparison) -> None:
    Comparison.objects.update(judged=2)
    with pytest.raises(CommandError, match="breaches"):
        call_command("check_record")
