"""What leaves the record: decided pairs for others, ranked groups for the trainer."""

import json
import stat

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext

from labeling.chat import Message
from labeling.formats import preference_row
from labeling.models import Comparison, Response, Split
from labeling.services import exporting
from labeling.services.exporting import left_out, preference_rows, ranked_groups
from tests.builders import judge, make_comparison, make_project, make_prompt, make_user

pytestmark = pytest.mark.django_db
STANDARD = Comparison.Purpose.STANDARD


def read(path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_row_tells_both_responses_and_the_votes():
    comparison = make_comparison(texts=["Left", "Right"], overlap=3)
    for tiers in ([[1], [0]], [[1], [0]], [[0, 1]]):
        judge(comparison=comparison, tiers=tiers)
    assert list(preference_rows(comparison.project, None)) == [
        {
            "prompt": comparison.prompt.messages,
            "chosen": [{"role": "assistant", "content": "Right"}],
            "rejected": [{"role": "assistant", "content": "Left"}],
            "votes_for": 2,
            "votes_against": 0,
            "votes_tied": 1,
            "probability": pytest.approx(0.75),
            "split": comparison.prompt.split,
            "comparison": comparison.pk,
        }
    ]


def test_undecided_and_withdrawn_pairs_are_left_out_and_counted():
    project = make_project(overlap=2)
    even, tied, retired, gold, decided = (
        make_comparison(project=project, purpose=purpose)
        for purpose in [STANDARD, STANDARD, STANDARD, Comparison.Purpose.GOLD, STANDARD]
    )
    judge(comparison=even, tiers=[[0], [1]])
    judge(comparison=even, tiers=[[1], [0]])
    judge(comparison=tied, tiers=[[0, 1]])
    for comparison in (retired, gold, decided):
        judge(comparison=comparison)
    Comparison.objects.filter(pk=retired.pk).update(state=Comparison.State.RETIRED)
    assert [row["comparison"] for row in preference_rows(project, None)] == [decided.pk]
    assert left_out(project, None) == {
        "votes even": 1,
        "only ties": 1,
        "comparison retired": 1,
        "gold or evaluation": 1,
    }


def test_a_split_exports_only_its_own_prompts():
    project = make_project()
    for split in Split:
        judge(comparison=make_comparison(prompt=make_prompt(project=project, split=split)))
    (row,) = preference_rows(project, Split.HELD_OUT)
    assert row["split"] == "held_out"
    assert len(list(preference_rows(project, None))) == 2


def test_rows_of_other_projects_stay_there():
    judge(comparison=make_comparison())
    assert list(preference_rows(make_project(), None)) == []


def test_every_row_comes_once_over_many_pages(monkeypatch):
    monkeypatch.setattr(exporting, "PAGE", 4)
    comparison = make_comparison(k=5)
    judge(comparison=comparison)
    rows = list(preference_rows(comparison.project, None))
    assert len(rows) == 10
    assert len({(row["chosen"][0]["content"], row["rejected"][0]["content"]) for row in rows}) == 10


def test_nobody_who_judged_is_named():
    project = make_project()
    comparison = make_comparison(project=project)
    person = make_user(username="zebedee", role="annotator", project=project)
    judge(comparison=comparison, annotator=person, rationale="secretly")
    everything = json.dumps([*preference_rows(project, None), *ranked_groups(project)])
    assert "zebedee" not in everything
    assert "secretly" not in everything


def test_a_ranked_group_holds_all_responses_and_all_pairs():
    comparison = make_comparison(k=3, texts=["A", "B", "C"], overlap=2)
    judge(comparison=comparison, tiers=[[2], [0, 1]])
    judge(comparison=comparison, tiers=[[2], [0], [1]])
    Response.objects.filter(text="C").update(token_ids=[5, 6, 2])
    (group,) = ranked_groups(comparison.project)
    ids = list(comparison.slots.values_list("response_id", flat=True))
    assert group["id"] == f"comparison-{comparison.pk}"
    assert (group["prompt"], group["split"]) == (
        comparison.prompt.messages,
        comparison.prompt.split,
    )
    assert group["responses"] == [
        {"id": f"response-{ids[0]}", "text": "A", "token_ids": None},
        {"id": f"response-{ids[1]}", "text": "B", "token_ids": None},
        {"id": f"response-{ids[2]}", "text": "C", "token_ids": [5, 6, 2]},
    ]
    names = ("chosen", "rejected", "votes_for", "votes_against", "votes_tied")
    assert [tuple(pair[name] for name in names) for pair in group["pairs"]] == [
        (0, 1, 1, 0, 1),
        (2, 0, 2, 0, 0),
        (2, 1, 2, 0, 0),
    ]


def test_ranked_groups_keep_undecided_pairs_and_leave_out_what_is_not_for_training():
    project = make_project(overlap=2)
    even = make_comparison(project=project)
    judge(comparison=even, tiers=[[0], [1]])
    judge(comparison=even, tiers=[[1], [0]])
    judge(comparison=make_comparison(project=project, purpose=Comparison.Purpose.EVALUATION))
    make_comparison(project=project)
    (group,) = ranked_groups(project)
    assert group["id"] == f"comparison-{even.pk}"
    assert group["pairs"] == [
        {"chosen": 0, "rejected": 1, "votes_for": 1, "votes_against": 1, "votes_tied": 0}
    ]


def test_more_comparisons_need_no_more_queries():
    def queries(project) -> int:
        with CaptureQueriesContext(connection) as captured:
            rows = [*preference_rows(project, None), *ranked_groups(project)]
        assert rows
        return len(captured)

    few, many = make_project(), make_project()
    for project, count in ((few, 2), (many, 6)):
        for _ in range(count):
            judge(comparison=make_comparison(project=project))
    assert queries(few) == queries(many)


def test_the_command_writes_a_private_file_that_imports_again(tmp_path, capsys):
    comparison = make_comparison(texts=["Räksmörgås \u2028 🙂", "שלום\r\n\tworld "])
    judge(comparison=comparison)
    out = tmp_path / "rows.jsonl"
    call_command("export_preferences", project=comparison.project.slug, format="trl", out=out)
    assert stat.S_IMODE(out.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    (line,) = out.read_bytes().removesuffix(b"\n").split(b"\n")
    row = preference_row(json.loads(line))
    assert (row.chosen, row.rejected) == ("Räksmörgås \u2028 🙂", "שלום\r\n\tworld ")
    assert "1 preferences (all) written" in capsys.readouterr().out


def test_plain_rows_are_texts_and_longer_conversations_are_counted(tmp_path, capsys):
    project = make_project()
    turns = [
        Message(role="user", content="Hello"),
        Message(role="assistant", content="Hi"),
        Message(role="user", content="Why?"),
    ]
    judge(comparison=make_comparison(prompt=make_prompt(project=project, messages=turns)))
    short = make_prompt(project=project, text="Why?")
    judge(comparison=make_comparison(prompt=short, texts=["Because", "No"]))
    out = tmp_path / "rows.jsonl"
    call_command("export_preferences", project=project.slug, out=out, plain=True)
    (row,) = read(out)
    assert (row["prompt"], row["chosen"], row["rejected"]) == ("Why?", "Because", "No")
    assert "Left out: 1 (several turns)." in capsys.readouterr().out


def test_an_export_that_fails_leaves_the_earlier_file_as_it_was(tmp_path, monkeypatch):
    comparison = make_comparison()
    judge(comparison=comparison)
    out = tmp_path / "rows.jsonl"
    out.write_text("earlier")

    def torn(*_args):
        yield {"row": 1}
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("labeling.management.commands.export_preferences.preference_rows", torn)
    with pytest.raises(CommandError, match="No space left on device"):
        call_command("export_preferences", project=comparison.project.slug, out=out)
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
    assert out.read_text() == "earlier"


def test_the_command_refuses_what_it_cannot_do(tmp_path):
    with pytest.raises(CommandError, match="There is no project 'nowhere'"):
        call_command("export_preferences", project="nowhere", out=tmp_path / "x")
    with pytest.raises(CommandError, match="No such file or directory"):
        call_command("export_preferences", project=make_project().slug, out=tmp_path / "no" / "x")
