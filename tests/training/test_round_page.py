"""A round's page: what became of its data, what the policy writes, how the round ended."""

import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from hypothesis import given
from hypothesis import strategies as st

from jobs.run_dir import append_event
from labeling.differences import Piece
from labeling.models import Comparison, Preference, Project
from tests.builders import judge, make_comparison, make_policy, make_project
from tests.labeling.hostile import HOSTILE
from tests.training.rounds import (
    REPORT,
    RESULTS,
    SAMPLES,
    log_samples,
    log_steps,
    make_round,
    page_of,
)
from training.events import Events, read_events
from training.models import Round, RoundState
from training.writing import Answers, Writing, writing


def page(client: Client, round_: Round) -> str:
    return client.get(page_of(round_)).content.decode()


def section(html: str, title: str) -> str:
    """The part of a page below a heading, as it reads; all spaces are plain."""
    part = html.partition(f'id="{title}-title"')[2].partition("</section>")[0]
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", part)))


def succeeded(project: Project, run_dir: Path, **results: Any) -> Round:
    policy = make_policy(project=project, parent=project.policies.order_by("id")[0])
    return make_round(
        project, RoundState.SUCCEEDED, run_dir, policy=policy, results=RESULTS | results
    )


def judged(project: Project) -> Comparison:
    comparison = make_comparison(project=project)
    judge(comparison=comparison)
    return comparison


def test_the_data_report_is_told_before_the_first_step_and_after(
    project: Project, manager: Client, tmp_path: Path
) -> None:
    append_event(tmp_path, "data_report", **REPORT)
    for state in (RoundState.RUNNING, RoundState.SUCCEEDED):
        round_ = make_round(project, state, tmp_path)
        told = section(page(manager, round_), "data")
        assert "Trained on 1 980 30 95" in told
        assert "Held out 110 6 20" in told
        assert "Left out 15" in told
        assert "12 pairs left out: only tied votes" in told
        assert "3 pairs left out: longer than the most tokens" in told
        assert "2 prompts too long: their oldest turns were left out" in told
        assert "31 pairs, modelled with ν = 1.27" in told
        assert "4 of these pairs" in told
        assert "prompt 16, chosen 36, rejected 41 tokens" in told
        assert "100 as they were sampled, 3 cut off" in told
        assert "12 encoded from the text" in told
        assert "1 020 tokens" in told
    live = manager.get(page_of(project.rounds.get(number=1)), headers={"hx-request": "true"})
    assert "only tied votes" in live.content.decode(), "it comes with the polling"


def test_the_bar_shows_each_sides_share_of_all_pairs(
    project: Project, manager: Client, tmp_path: Path
) -> None:
    pairs = {"pairs": {"train": 60, "held_out": 20}, "dropped": {"empty": 20}}
    append_event(tmp_path, "data_report", **(REPORT | pairs))
    html = page(manager, make_round(project, RoundState.SUCCEEDED, tmp_path))
    bars = re.findall(r'<rect data-side="(\w+)" x="([\d.]+)" width="([\d.]+)"', html)
    assert bars == [
        ("train", "0.0", "60.0"),
        ("held_out", "60.0", "20.0"),
        ("dropped", "80.0", "20.0"),
    ]
    assert "Of 100 pairs: 60 trained on, 20 held out, 20 left out" in html


def test_what_was_left_out_links_to_the_comparisons_it_was_in(
    project: Project, manager: Client, tmp_path: Path
) -> None:
    tied, elsewhere = judged(project), judged(make_project())
    names = [
        f"comparison-{tied.pk}: response-1 > response-2",
        f"comparison-{tied.pk}: response-3 > response-4",
        f"comparison-{elsewhere.pk}: response-1 > response-2",
        "row 7 <b>of a file</b>",
    ]
    examples = {
        "dropped_examples": {"tied": names},
        "shortened_examples": [f"comparison-{tied.pk}"],
    }
    append_event(tmp_path, "data_report", **(REPORT | examples))
    html = page(manager, make_round(project, RoundState.FAILED, tmp_path))
    place = Preference.objects.filter(comparison=tied).latest("pk").pk + 1
    address = f"{reverse('labeling:preferences', args=[project.slug])}?before={place}"
    assert html.count(f'href="{address}">comparison {tied.pk}</a>') == 2
    assert "row 7 &lt;b&gt;of a file" in html
    assert f"comparison-{elsewhere.pk}: response-1" in html, "named, but not linked"
    assert (
        f"?before={Preference.objects.filter(comparison=elsewhere).latest('pk').pk + 1}" not in html
    )
    there = manager.get(address).content.decode()
    assert there.index(f"comparison {tied.pk}<") < there.index("skim-facts") + 400


def test_how_many_reference_numbers_came_from_the_cache_is_a_fact(
    project: Project, manager: Client, tmp_path: Path
) -> None:
    append_event(tmp_path, "data_report", **REPORT)
    round_ = make_round(project, RoundState.RUNNING, tmp_path)
    assert "cache" not in section(page(manager, round_), "data")
    append_event(tmp_path, "reference_cache", found=1080, of=1210, checked_groups=1)
    html = page(manager, round_)
    words = "log-probabilities came from the cache; 1 comparison computed again agreed"
    assert f"1 080 of 1 210 {words}" in section(html, "data")
    assert "Measuring the policy before the first step" in html


def test_a_round_with_nothing_to_train_on_still_shows_its_report(
    project: Project, manager: Client, tmp_path: Path
) -> None:
    empty = {"pairs": {"train": 0, "held_out": 0}, "template_errors": ["comparison-1: <system>"]}
    append_event(tmp_path, "error", message="nothing", exit=2, data_report=REPORT | empty)
    told = section(page(manager, make_round(project, RoundState.FAILED, tmp_path)), "data")
    assert "12 pairs left out: only tied votes" in told
    assert "The chat template: comparison-1: <system>" in told


def test_samples_stand_side_by_side_with_what_changed(
    project: Project, manager: Client, tmp_path: Path
) -> None:
    asked = "How do I dry wet shoes?"
    log_samples(tmp_path, "before", (asked, "Put them in the sun."), ("Hi", "Hello."))
    running = make_round(project, RoundState.RUNNING, tmp_path)
    html = page(manager, running)
    assert "answered again after the last step" in html
    assert "Put them in the sun." in section(html, "writing")
    log_samples(
        tmp_path, "after", (asked, "Put them in a warm room."), ("Hi", "Hello."), tokens=52.0
    )
    Round.objects.update(state=RoundState.CANCELLED)
    results = {"samples_before": SAMPLES, "samples_after": SAMPLES | {"tokens": 52.0}}
    html = page(manager, succeeded(project, tmp_path, **results))
    assert "Put them in <mark>the sun</mark>." in html
    assert "Put them in <mark>a warm room</mark>." in html
    told = section(html, "writing")
    assert "16 held-out prompts" in told
    assert "Mean length, tokens 40 52 +12" in told
    assert "have become 30% longer" in told
    assert "Hello. After The same, word for word." in told


def test_texts_of_a_model_never_run(project: Project, manager: Client, tmp_path: Path) -> None:
    texts = [(one, f"{one} {number}") for number, one in enumerate(HOSTILE)]
    log_samples(tmp_path, "before", *texts)
    log_samples(tmp_path, "after", *[(prompt, f"x{text}") for prompt, text in texts])
    append_event(tmp_path, "warning", message="<script>alert(1)</script>")
    append_event(tmp_path, "data_report", **(REPORT | {"dropped": {"<script>alert(2)": 1}}))
    html = page(manager, succeeded(project, tmp_path))
    bare = page(manager, make_round(project, RoundState.SUCCEEDED, Path("/nowhere")))
    for tag in ("script", "img", "iframe", "form", "style", "base", "link", "math", "object"):
        assert html.lower().count(f"<{tag}") - bare.lower().count(f"<{tag}") == (
            1 if tag == "form" else 0  # the one that promotes the policy
        ), tag
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html
    assert "\u202e" not in html
    assert "[U+202E]" in html


def test_a_round_without_samples_or_held_out_pairs_says_nothing_of_them(
    project: Project, manager: Client, tmp_path: Path
) -> None:
    append_event(tmp_path, "data_report", **(REPORT | {"dropped": {}, "shortened": 0}))
    none = {"samples_before": None, "samples_after": None}
    none |= {"held_out_before": None, "held_out_after": None, "best_step": None}
    html = page(manager, succeeded(project, tmp_path, **none, stopped_early=False))
    assert "What it writes" not in html
    assert "Held-out pairs, before and after" not in html
    assert "No pair was left out." in html
    assert "Stopped early" not in html
    assert "best" not in section(html, "held-out")


def test_a_waiting_round_says_that_its_data_is_not_frozen_yet(
    project: Project, manager: Client
) -> None:
    html = page(manager, make_round(project, RoundState.QUEUED))
    assert "The preferences are frozen when the round begins." in section(html, "data")


def test_a_round_that_stopped_early_says_when_and_which_step_it_kept(
    project: Project, manager: Client, tmp_path: Path
) -> None:
    log_steps(tmp_path, 60, 300)
    round_ = succeeded(project, tmp_path, steps=60, stopped_early=True, best_step=20)
    round_.options = {"early_stopping": 2, "keep": "best"}
    round_.save()
    html = page(manager, round_)
    assert "Stopped early, after step 60 of 300" in html
    assert "for 2 looks in a row" in html
    assert "The policy is the one of step 20" in html
    assert "after is step 20, the best" in html


def test_the_best_step_is_named_where_it_is_not_the_last(
    project: Project, manager: Client, tmp_path: Path
) -> None:
    html = page(manager, succeeded(project, tmp_path, stopped_early=False, best_step=15))
    assert "The policy is the one of step 15 of 20" in html
    html = page(manager, succeeded(project, tmp_path, stopped_early=False, best_step=20))
    assert "The policy is the one of" not in html


def test_after_the_last_step_the_page_says_what_is_still_done(
    project: Project, manager: Client, tmp_path: Path
) -> None:
    log_steps(tmp_path, 40, 40)
    html = page(manager, make_round(project, RoundState.RUNNING, tmp_path))
    assert "Answering held-out prompts and writing the policy" in html


def test_resumed_rounds_count_their_newest_events_and_each_warning_once(tmp_path: Path) -> None:
    for step in (10, 20):
        append_event(tmp_path, "start")
        append_event(tmp_path, "warning", message="slow")
        append_event(tmp_path, "data_report", longest=step)
        append_event(tmp_path, "checkpoint", step=step)
        append_event(tmp_path, "resume", step=step)
    events = read_events(tmp_path)
    assert events.warnings == ["slow"]
    assert events.report["longest"] == 20
    assert events.checkpoint == 20
    assert events.phase == "Going on from the last checkpoint"


def of(results: dict[str, Any]) -> Writing:
    found = writing(results, Events())
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("after", "words"),
    [
        ({"tokens": 51.0}, "longer"),
        ({"tokens": 49.0}, ""),
        ({"tokens": 10.0}, ""),
        ({"repetition": 0.12}, "repeat themselves"),
        ({"repetition": 0.1}, ""),
        ({"ended": 0.7}, "come to an end"),
        ({"ended": 0.9}, ""),
    ],
)
def test_answers_that_grow_loop_or_do_not_end_are_warned_about(
    after: dict[str, float], words: str
) -> None:
    found = of({"samples_before": SAMPLES, "samples_after": SAMPLES | after}).warnings
    assert len(found) == bool(words)
    assert not words or words in found[0]


def test_figures_that_are_missing_or_odd_are_left_out() -> None:
    odd = {"prompts": 4, "tokens": float("nan"), "ended": "all"}
    assert of({"samples_before": SAMPLES, "samples_after": odd}).rows == []
    assert not of({"samples_before": SAMPLES}).done
    assert writing({"samples_before": None}, Events()) is None


texts = st.text(alphabet="ab \n", max_size=12)


@given(texts, texts)
def test_answers_are_told_whole_and_what_differs_is_marked(first: str, last: str) -> None:
    events = Events()
    for when, text in (("before", first), ("after", last)):
        told = [{"prompt": "p", "response": text}]
        events.add({"kind": "samples", "when": when, "metrics": SAMPLES, "texts": told})
    found = writing({}, events)
    assert found is not None
    [answers] = found.answers
    assert "".join(piece.text for piece in answers.before) == first
    assert "".join(piece.text for piece in answers.after) == last
    assert answers.same == (first == last)
    differ = any(piece.differs for piece in [*answers.before, *answers.after])
    assert differ == (first.split() != last.split())


def test_other_prompts_after_than_before_are_not_compared() -> None:
    events = Events()
    for when in ("before", "after"):
        told = [{"prompt": when, "response": "text"}, "not a row"]
        events.add({"kind": "samples", "when": when, "metrics": SAMPLES, "texts": told})
    found = writing({}, events)
    assert found is not None
    assert found.answers == [
        Answers(prompt="before", before=[Piece("text", differs=False)], after=[])
    ]
