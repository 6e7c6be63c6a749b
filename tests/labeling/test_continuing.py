"""Later turns: the next prompt after an answer, made once, on the side of the first."""

import io
import json
from typing import Any

import pytest
from django.db import IntegrityError, connection
from django.test.utils import CaptureQueriesContext

from labeling.chat import Message, check_prompt_messages
from labeling.formats import parse_file, prompt_row
from labeling.models import Project, Prompt, Response, Split
from labeling.models.prompts import prompt_digest
from labeling.services import continuing
from labeling.services.checking import breaches
from labeling.services.continuing import continue_conversations
from labeling.services.importing import import_prompts
from tests.builders import make_project, make_prompt, make_responses, real_data

pytestmark = pytest.mark.django_db


def asked(*turns: Any, project: Project | None = None, **changes: Any) -> Prompt:
    """A prompt as the import leaves it: the first turn asked, the others in the metadata."""
    first, *later = turns
    prompt = make_prompt(project=project, text=first, external_id=changes.pop("external_id", ""))
    prompt.metadata = {"turns": later} if later else {}
    for name, value in changes.items():
        setattr(prompt, name, value)
    prompt.save()
    return prompt


def talk(question: str, answer: str, turn: str) -> list[Message]:
    return [
        Message(role="user", content=question),
        Message(role="assistant", content=answer),
        Message(role="user", content=turn),
    ]


def answered(prompt: Prompt, *texts: str, reasons: tuple[str, ...] = ()) -> list[Response]:
    responses = make_responses(prompt=prompt, texts=texts)
    for response, reason in zip(responses, reasons, strict=False):
        response.finish_reason = reason
        response.save()
    return responses


def test_the_next_prompt_is_the_answer_and_the_users_next_turn():
    prompt = asked("How?", "And then?", external_id="81")
    prompt.metadata["category"] = "food"
    prompt.save()
    (response,) = answered(prompt, "So.")
    (made,) = continue_conversations(responses=[response])
    made.refresh_from_db()
    assert made.messages == talk("How?", "So.", "And then?")
    assert made.messages == check_prompt_messages(made.messages)
    assert made.digest == prompt_digest(made.messages)
    assert made.metadata == {"category": "food"}
    assert (made.external_id, made.continues) == ("81/2", response)
    assert response.continuation == made


def test_turns_are_taken_one_after_the_other():
    prompt = asked("one", "two", "three", external_id="m/7")
    (second,) = continue_conversations(responses=answered(prompt, "1"))
    assert second.metadata == {"turns": ["three"]}
    (third,) = continue_conversations(responses=answered(second, "2"))
    assert [message["content"] for message in third.messages] == ["one", "1", "two", "2", "three"]
    assert (second.external_id, third.external_id) == ("m/7/2", "m/7/3")
    assert third.metadata == {}
    assert continue_conversations(responses=answered(third, "3")) == []


def test_the_split_is_the_first_prompts():
    for split in Split:
        prompt = asked("one", "two", "three", split=split)
        for _ in range(2):
            (prompt,) = continue_conversations(responses=answered(prompt, "Yes."))
            assert prompt.split == split


@pytest.mark.parametrize(
    ("reasons", "place"),
    [
        (("length", "stop", "stop"), 1),
        (("length", "stop_text", "length"), 0),
        (("", "", ""), 0),
    ],
)
def test_it_goes_on_after_the_first_response_that_ended_by_itself(reasons, place):
    responses = answered(asked("How?", "Then?"), "a", "b", "c", reasons=reasons)
    (made,) = continue_conversations(responses=responses[::-1])
    assert made.continues == responses[place]


def test_a_prompt_goes_on_once():
    responses = answered(asked("How?", "Then?"), "a", "b")
    (made,) = continue_conversations(responses=responses)
    assert continue_conversations(responses=responses) == []
    assert continue_conversations(responses=responses[1:]) == []
    assert Prompt.objects.filter(continues__isnull=False).get() == made


@pytest.mark.parametrize("text", ["", " ", "\n\t"])
def test_a_blank_response_is_not_gone_on_from(text):
    prompt = asked("How?", "Then?")
    (blank,) = answered(prompt, text, reasons=("stop",))
    assert continue_conversations(responses=[blank]) == []
    (said,) = answered(prompt, "So.", reasons=("length",))
    (made,) = continue_conversations(responses=[blank, said])
    assert made.continues == said


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"turns": []},
        {"turns": None},
        {"turns": "Then?"},
        {"turns": 2},
        {"turns": [3]},
        {"turns": ["  "]},
        {"turns": {"0": "Then?"}},
        {"turns": [None, "Then?"]},
    ],
)
def test_metadata_that_holds_no_turn_is_no_turn(metadata):
    prompt = asked("How?", metadata=metadata)
    assert continue_conversations(responses=answered(prompt, "So.")) == []


def test_a_conversation_that_is_there_already_is_left_as_it_is():
    prompt = asked("How?", "Then?")
    responses = answered(prompt, "So.")
    imported = make_prompt(project=prompt.project, messages=talk("How?", "So.", "Then?"))
    assert continue_conversations(responses=responses) == []
    imported.refresh_from_db()
    assert imported.continues is None


def test_the_same_conversation_may_go_on_in_two_projects():
    prompts = [asked("How?", "Then?", project=make_project()) for _ in range(2)]
    responses = [response for prompt in prompts for response in answered(prompt, "So.")]
    made = continue_conversations(responses=responses)
    assert [one.project for one in made] == [prompt.project for prompt in prompts]
    assert len({one.digest for one in made}) == 1


@pytest.mark.parametrize(
    ("before", "after"),
    [("", ""), ("x" * 200, "x" * 198 + "/2"), ("a/9", "a/9/2"), ("a\nb", "a\nb/2")],
)
def test_ids_count_turns_and_stay_within_their_length(before, after):
    prompt = asked("How?", "Then?", "And?", external_id=before)
    (second,) = continue_conversations(responses=answered(prompt, "So."))
    (third,) = continue_conversations(responses=answered(second, "So."))
    assert second.external_id == after
    assert third.external_id == (after[:-1] + "3" if after else "")


def test_more_conversations_need_no_more_queries():
    def queries(count: int) -> int:
        project = make_project()
        prompts = [asked(f"How {n}?", "Then?", project=project) for n in range(count)]
        responses = [response for prompt in prompts for response in answered(prompt, "a", "b")]
        with CaptureQueriesContext(connection) as captured:
            assert len(continue_conversations(responses=responses)) == count
        return len(captured)

    assert queries(3) == queries(30) <= 8


def test_thousands_of_responses_are_continued_in_pieces():
    prompts = [{"prompt": None, "turns": [f"Question {n}?", "Why?"], "id": n} for n in range(1200)]
    import_rows(prompts)
    responses = Response.objects.bulk_create(
        Response(prompt=prompt, text="Yes.", text_digest=str(prompt.pk), finish_reason="stop")
        for prompt in Prompt.objects.all()
    )
    made = continue_conversations(responses=responses)
    assert len(made) == 1200
    assert {prompt.external_id for prompt in made} == {f"{n}/2" for n in range(1200)}


def import_rows(rows: list[dict[str, Any]]) -> None:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    import_prompts(slug="mt", parsed=parse_file(io.BytesIO(data), prompt_row), skip_bad=False)


def test_nothing_is_left_of_a_call_that_fails(monkeypatch):
    """A writer that takes no lock, and is seen too late, costs the call, not the record."""
    prompts = [asked("Why?", "Then?"), asked("How?", "Then?")]
    responses = [response for prompt in prompts for response in answered(prompt, "So.")]
    make_prompt(project=prompts[1].project, messages=talk("How?", "So.", "Then?"))
    monkeypatch.setattr(continuing, "_held", lambda keys: set())
    monkeypatch.setattr(continuing, "CHUNK", 1)
    with pytest.raises(IntegrityError):
        continue_conversations(responses=responses)
    assert not Prompt.objects.filter(continues__isnull=False).exists()


def test_every_mt_bench_question_gets_its_second_turn():
    with real_data("mt_bench_questions.jsonl").open("rb") as file:
        parsed = parse_file(file, prompt_row)
    import_prompts(slug="mt", parsed=parsed, skip_bad=False)
    firsts = list(Prompt.objects.order_by("pk"))
    responses = [answer for prompt in firsts for answer in answered(prompt, "One.", "Two.")]
    made = continue_conversations(responses=responses)
    assert len(made) == len(firsts) == 80
    for first, second in zip(firsts, made, strict=True):
        assert second.external_id == f"{first.external_id}/2"
        assert second.messages[-1]["content"] == first.metadata["turns"][0]
        assert (second.split, second.metadata["category"]) == (
            first.split,
            first.metadata["category"],
        )
    assert list(breaches()) == []
