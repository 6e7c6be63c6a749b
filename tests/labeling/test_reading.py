"""What the judging page gives to read: conversations, long texts piece by piece, differences."""

import re
import time
import uuid
from collections.abc import Mapping
from html import unescape
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from labeling.chat import Message
from labeling.excerpts import BEGINNING, PIECE, WHOLE, piece_end
from labeling.models import Comparison, Lease, Project, Role, User
from labeling.services import examples
from labeling.services.assigning import shown_order
from tests.builders import judge, make_comparison, make_project, make_prompt, make_user
from tests.labeling.hostile import HOSTILE

pytestmark = pytest.mark.django_db
MEGABYTE = 2**20


@pytest.fixture
def project() -> Project:
    return make_project(slug="kitchen", name="Kitchen helper")


@pytest.fixture
def annotator(project: Project, client: Client) -> User:
    user = make_user(role=Role.ANNOTATOR, project=project, username="ada")
    client.force_login(user)
    return user


def ask(client: Client, project: Project, route: str, **query: Any) -> Any:
    url = reverse(f"labeling:{route}", kwargs={"slug": project.slug})
    return client.get(url, query)


def page(client: Client, project: Project) -> str:
    return str(ask(client, project, "judge").content.decode())


def leased(client: Client, project: Project) -> uuid.UUID:
    """The token of the comparison that the page shows."""
    page(client, project)
    return Lease.objects.get().token


def in_places(comparison: Comparison, annotator: User) -> dict[str, str]:
    """The texts as this annotator sees them, by letter."""
    texts = list(comparison.slots.order_by("index").values_list("response__text", flat=True))
    order = shown_order(comparison.pk, annotator.pk, len(texts))
    return {"ABCDEFGH"[place]: texts[index] for place, index in enumerate(order)}


def long_text(word: str, length: int = MEGABYTE) -> str:
    line = f"This is a line of a very long answer about {word}, with <b>tags</b> & signs.\r\n"
    return (line * (length // len(line) + 1))[: length - 1] + "."


def sides_of(html: str) -> dict[str, str]:
    """Each place's differences: its text with [what differs] in brackets."""
    found = re.findall(r'data-of="(\w)".*?<pre class="raw">\n(.*?)</pre>', html, re.S)
    marks = {"<mark>": "[", "</mark>": "]"}
    return {one: unescape(re.sub("</?mark>", lambda m: marks[m[0]], text)) for one, text in found}


# --- Long texts --------------------------------------------------------------------------------
def test_a_page_with_two_answers_of_a_megabyte_is_small_and_quick(
    client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project, texts=[long_text("one"), long_text("two")])
    page(client, project)  # the lease is taken, templates are read
    began = time.thread_time()
    html = page(client, project)
    assert time.thread_time() - began < 2
    assert len(html) < 8 * BEGINNING
    assert html.count("Show all of it (1\u2009048\u2009576 characters)") == 2
    assert "prose rendered" not in html.split('class="places"')[1]


def test_the_beginning_and_the_pieces_are_the_text_itself(
    client: Client, project: Project, annotator: User
) -> None:
    comparison = make_comparison(project=project, texts=[long_text("one"), long_text("two")])
    html = page(client, project)
    for place, text in in_places(comparison, annotator).items():
        shown = html.split(f'id="place-{place}"')[1]
        beginning, href, rest = re.search(
            r'<pre class="raw">\n(.*?)</pre>.*?href="([^"]*)" data-rest="(\d+)"', shown, re.S
        ).groups()  # type: ignore[union-attr]
        pieces, start = [unescape(beginning)], rest
        while start:
            answer = client.get(f"{unescape(href)}&from={start}")
            assert len(answer.content) <= 2 * PIECE
            pieces.append(answer.content.decode())
            start = answer.headers.get("X-Next-From")
        assert "".join(pieces) == text.replace("\r\n", "\n")
        assert all(piece.endswith("\n") for piece in pieces[:-1])
        assert client.get(unescape(href)).content.decode() == text.replace("\r\n", "\n")


def test_a_piece_is_plain_text_that_no_browser_takes_for_anything_else(
    client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project, texts=["<script>alert(1)</script>\u202e", "other"])
    answer = ask(client, project, "judge_text", lease=leased(client, project), place="A")
    assert answer["Content-Type"] == "text/plain; charset=utf-8"
    assert answer["X-Content-Type-Options"] == "nosniff"
    assert answer["Cache-Control"] == "no-store"
    other = ask(client, project, "judge_text", lease=Lease.objects.get().token, place="B")
    assert {answer.content.decode(), other.content.decode()} == {
        "<script>alert(1)</script>[U+202E]",
        "other",
    }


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("short", 5),
        ("a\n" * 20, 10),
        ("aaaa\nbbbbbbbb", 5),
        ("aaaa bb cccc", 8),
        ("a" * 30, 10),
        ("aaaaaaaaa\nb", 10),
    ],
)
def test_a_piece_ends_after_a_line_else_after_a_word(text: str, end: int) -> None:
    assert piece_end(text, 0, 10) == end


def test_a_text_as_long_as_a_page_holds_is_rendered_and_whole(
    client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project, texts=[("**x** word word word " * WHOLE)[:WHOLE], "\n\nlate"])
    html = page(client, project)
    assert "characters)" not in html
    assert "<strong>x</strong>" in html
    assert '<pre class="raw as-written" hx-disable>\n\n\nlate</pre>' in html  # no line is lost


def test_an_answer_without_text_says_so(client: Client, project: Project, annotator: User) -> None:
    make_comparison(project=project, texts=["", "something"])
    assert page(client, project).count("There is no text here.") == 1


# --- Whose texts -------------------------------------------------------------------------------
def queries(token: uuid.UUID) -> list[Mapping[str, object]]:
    """Everything that the holder of the lease may ask for."""
    return [
        {"lease": token, "place": "A"},
        {"lease": token, "turn": 0},
        {"lease": token, "against": "A"},
    ]


def test_a_lease_opens_texts_to_nobody_but_its_holder_and_in_no_other_project(
    client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project)
    elsewhere = make_project()
    annotator.memberships.create(project=elsewhere, role=Role.ANNOTATOR)
    token = leased(client, project)
    others = {Role.ANNOTATOR: 404, Role.MANAGER: 404, Role.CONSUMER: 404}
    for query in queries(token):
        route = "judge_differences" if "against" in query else "judge_text"
        assert ask(client, project, route, **query).status_code == 200
        assert ask(client, elsewhere, route, **query).status_code == 404
        for role, status in others.items():
            stranger = Client()
            stranger.force_login(make_user(role=role, project=project))
            assert ask(stranger, project, route, **query).status_code == status
        assert ask(Client(), project, route, **query).status_code == 302


@pytest.mark.parametrize(
    "query",
    [
        {"place": "C"},
        {"place": "a"},
        {"place": ""},
        {},
        {"turn": 1},
        {"turn": -1},
        {"turn": "x"},
        {"turn": "²"},
        {"place": "A", "from": "-1"},
        {"place": "A", "from": "1e9"},
        {"place": "A", "from": "9" * 30},
        {"against": "Z"},
    ],
)
def test_what_is_not_there_is_not_found(
    query: dict[str, object], client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project)
    token = leased(client, project)
    route = "judge_differences" if "against" in query else "judge_text"
    assert ask(client, project, route, lease=token, **query).status_code == 404


@pytest.mark.parametrize("lease", ["", "x", uuid.uuid4()])
def test_no_lease_no_text(lease: object, client: Client, project: Project, annotator: User) -> None:
    make_comparison(project=project)
    page(client, project)
    for route in ("judge_text", "judge_differences"):
        query = {"lease": lease, "place": "A", "against": "A"}
        assert ask(client, project, route, **query).status_code == 404


def test_ones_own_judgment_opens_its_texts_as_they_were_shown_and_nobody_elses_does(
    client: Client, project: Project, annotator: User
) -> None:
    comparison = make_comparison(project=project, overlap=2)
    mine, other = judge(comparison=comparison, annotator=annotator), judge(comparison=comparison)
    for place, text in in_places(comparison, annotator).items():
        answer = ask(client, project, "judge_text", judgment=mine.pk, place=place)
        assert answer.content.decode() == text
        assert ask(client, project, "judge_text", judgment=other.pk, place=place).status_code == 404
    assert (
        ask(client, project, "judge_differences", judgment=mine.pk, against="A").status_code == 200
    )
    assert ask(client, project, "judge_text", judgment="x", place="A").status_code == 404


def test_an_example_opens_its_texts_to_everybody_who_judges_until_it_is_taken_away(
    client: Client, project: Project, annotator: User
) -> None:
    dana = make_user(role=Role.MANAGER, project=project)
    own = judge(comparison=make_comparison(project=project), annotator=dana)
    example = examples.add_example(judgment=own, explanation="Kinder.", author=dana)
    html = ask(client, project, "practice").content.decode()
    assert f"?example={example.pk}" in html
    first = example.comparison.slots.get(index=0).response.text
    query = {"example": example.pk, "place": "A"}
    assert ask(client, project, "judge_text", **query).content.decode() == first
    shown = {"example": example.pk, "against": "A"}
    assert ask(client, project, "judge_differences", **shown).status_code == 200
    elsewhere = make_project()
    annotator.memberships.create(project=elsewhere, role=Role.ANNOTATOR)
    assert ask(client, elsewhere, "judge_text", **query).status_code == 404
    examples.remove_example(example=example)
    assert ask(client, project, "judge_text", **query).status_code == 404


# --- Differences -------------------------------------------------------------------------------
def test_a_pair_has_both_sides_marked(client: Client, project: Project, annotator: User) -> None:
    texts = ["The cat  sat\non the mat.", "The dog  sat\non the mat."]
    comparison = make_comparison(project=project, texts=texts)
    answer = ask(
        client, project, "judge_differences", lease=leased(client, project), against="A"
    ).content.decode()
    expected = {
        one: re.sub("cat|dog", lambda word: f"[{word[0]}]", text)
        for one, text in in_places(comparison, annotator).items()
    }
    assert sides_of(answer) == expected
    assert "what B does not have. 86\u2009% of all words are shared" in answer


def test_of_several_each_is_held_against_the_one_that_was_chosen(
    client: Client, project: Project, annotator: User
) -> None:
    comparison = make_comparison(project=project, texts=[f"one {word}" for word in "wxyz"])
    places = in_places(comparison, annotator)
    answer = ask(
        client, project, "judge_differences", lease=leased(client, project), against="C"
    ).content.decode()
    assert sides_of(answer) == {
        one: text if one == "C" else f"one [{text[-1]}]" for one, text in places.items()
    }


def test_texts_too_long_to_compare_are_said_to_be_so(
    client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project, texts=["short", long_text("one")])
    answer = ask(
        client, project, "judge_differences", lease=leased(client, project), against="A"
    ).content.decode()
    assert "Too long to compare word by word with B." in answer
    assert sides_of(answer) == {}


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_texts_are_text_among_the_differences(
    text: str, client: Client, project: Project, annotator: User
) -> None:
    text = text.replace("\x00", "")
    make_comparison(project=project, texts=[f"{text} end", f"<i>{text}</i>"])
    answer = ask(
        client, project, "judge_differences", lease=leased(client, project), against="A"
    ).content.decode()
    tags = set(re.findall(r"<(/?[a-zA-Z][^\s>]*)", answer))
    assert tags <= {"div", "/div", "p", "/p", "pre", "/pre", "mark", "/mark"}


# --- Conversations -----------------------------------------------------------------------------
def talk(turns: int, length: int = 0) -> list[Message]:
    """A system message, pairs of turns, and a question."""
    messages = [Message(role="system", content="Speak like a **cook**.")]
    for number in range(turns // 2):
        messages.append(Message(role="user", content=f"Question {number} " + "q " * length))
        messages.append(Message(role="assistant", content=f"Reply **{number}** " + "a " * length))
    return [*messages, Message(role="user", content="What **now**?")]


def test_the_system_message_and_the_last_turn_are_seen_and_the_rest_is_folded(
    client: Client, project: Project, annotator: User
) -> None:
    make_comparison(prompt=make_prompt(project=project, messages=talk(6)))
    html = page(client, project)
    folded = re.search(r'<details class="earlier">.*?</details>', html, re.S)
    assert folded is not None
    assert "6 earlier turns" in folded[0]
    assert folded[0].index("Question 0") < folded[0].index("<strong>2</strong>")
    open_part = html.replace(folded[0], "")
    assert "Speak like a <strong>cook</strong>." in open_part
    assert "What <strong>now</strong>?" in open_part
    assert "Question 0" not in open_part


def test_a_conversation_of_five_hundred_turns_opens_quickly(
    client: Client, project: Project, annotator: User
) -> None:
    make_comparison(prompt=make_prompt(project=project, messages=talk(500, length=1000)))
    page(client, project)
    began = time.thread_time()
    html = page(client, project)
    assert time.thread_time() - began < 3
    assert len(html) < 700_000
    assert "500 earlier turns" in html
    assert "Reply <strong>249</strong>" in html  # the last ones are whole
    assert "Reply **0**" in html  # the first ones have a glimpse, and the way to the rest
    early = re.search(r'href="([^"]*turn=2)" data-rest="(\d+)"', html)
    assert early is not None
    rest = client.get(f"{unescape(early[1])}&from={early[2]}").content.decode()
    whole = client.get(unescape(early[1])).content.decode()
    assert whole == "Reply **0** " + "a " * 1000
    assert whole.endswith(rest)


def test_a_prompt_of_a_megabyte_is_shown_from_its_beginning(
    client: Client, project: Project, annotator: User
) -> None:
    make_comparison(prompt=make_prompt(project=project, text=long_text("one")))
    html = page(client, project)
    assert len(html) < 8 * BEGINNING
    href = re.search(r'href="([^"]*turn=0)" data-rest', html)
    assert href is not None
    whole = client.get(unescape(href[1])).content.decode()
    assert whole == long_text("one").replace("\r\n", "\n")
