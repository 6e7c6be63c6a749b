"""Imports are whole or absent, and doing one twice adds nothing."""

import contextlib
import io
import json
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from labeling.formats import Parsed, parse_file, preference_row, prompt_row
from labeling.models import (
    Comparison,
    Judgment,
    Preference,
    Project,
    Prompt,
    Response,
    Split,
    User,
)
from labeling.models.prompts import split_of
from labeling.services.exporting import preference_rows
from labeling.services.importing import (
    BadRows,
    CannotImport,
    Imported,
    import_preferences,
    import_prompts,
)
from tests.builders import make_project, make_prompt, make_responses, make_user, real_data
from tests.labeling.test_formats import broken, texts

pytestmark = pytest.mark.django_db
BAD = {"prompt": "Why?", "chosen": "Same", "rejected": "Same"}


def pairs(count: int, start: int = 0) -> list[dict[str, Any]]:
    return [
        {"prompt": f"Question {n}", "chosen": f"Good {n}", "rejected": f"Bad {n}"}
        for n in range(start, start + count)
    ]


def parse(rows: Iterable[dict[str, Any]], row_of=preference_row) -> Parsed:
    data = "".join(json.dumps(row) + "\n" for row in rows)
    return parse_file(io.BytesIO(data.encode()), row_of)


def take_in(rows: Iterable[dict[str, Any]], *, slug: str = "eggs", skip_bad=False) -> Imported:
    return import_preferences(slug=slug, parsed=parse(rows), skip_bad=skip_bad)


def written() -> list[int]:
    tables = (Project, Prompt, Response, Comparison, Judgment, Preference, User)
    return [table.objects.count() for table in tables]


def save(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_a_row_becomes_a_judged_pair_of_imported_responses():
    assert take_in(pairs(1)) == Imported(read=1, imported=1, bad=0)
    preference = Preference.objects.get()
    comparison = preference.comparison
    assert preference.project.slug == "eggs"
    assert (preference.chosen.text, preference.rejected.text) == ("Good 0", "Bad 0")
    assert (preference.votes_for, preference.votes_against, preference.votes_tied) == (1, 0, 0)
    assert (comparison.state, comparison.judged, comparison.overlap) == ("judged", 1, 1)
    assert comparison.prompt.messages == [{"role": "user", "content": "Question 0"}]
    assert (preference.chosen.policy, preference.chosen.annotator) == (None, None)


def test_imported_judgments_belong_to_a_user_who_cannot_sign_in():
    take_in(pairs(1))
    importer = Judgment.objects.get().annotator
    assert (importer.username, importer.is_active) == ("imported", False)
    assert not importer.has_usable_password()


def test_no_real_person_is_made_the_author_of_imported_judgments():
    make_user(username="imported")
    before = written()
    with pytest.raises(CannotImport, match="somebody can sign in"):
        take_in(pairs(1))
    assert written() == before


def test_importing_twice_adds_nothing():
    take_in(pairs(3))
    before = written()
    assert take_in(pairs(3)).already_there == 3
    assert written() == before


def test_a_repeated_row_counts_as_already_there():
    outcome = take_in([*pairs(2), *pairs(2), *pairs(600)])
    assert (outcome.read, outcome.imported, outcome.already_there) == (604, 600, 4)
    assert Preference.objects.count() == 600


def test_the_same_row_may_be_in_two_projects():
    take_in(pairs(1), slug="one")
    assert take_in(pairs(1), slug="two").imported == 1


def test_rows_share_their_prompt_and_equal_responses():
    row = pairs(1)[0]
    take_in([row, {**row, "rejected": "Worse"}, {**row, "chosen": "Bad 0", "rejected": "Good 0"}])
    assert (Prompt.objects.count(), Response.objects.count()) == (1, 3)
    assert Comparison.objects.count() == 3


def test_an_imported_response_is_not_a_policys_even_with_the_same_text():
    project = make_project(slug="eggs")
    (response, _) = make_responses(prompt=make_prompt(project=project, text="Question 0"))
    Response.objects.filter(pk=response.pk).update(annotator=make_user())
    take_in([{"prompt": "Question 0", "chosen": response.text, "rejected": "No"}])
    assert Preference.objects.get().chosen_id != response.pk


def test_the_split_is_the_prompts_own():
    project = make_project(slug="eggs", held_out_percent=40)
    take_in(pairs(50))
    prompts = list(Prompt.objects.all())
    assert {prompt.split for prompt in prompts} == set(Split)
    assert all(prompt.split == split_of(prompt.digest, 40) for prompt in prompts)
    assert all(prompt.project_id == project.pk for prompt in prompts)


def test_one_bad_row_and_nothing_is_imported():
    before = written()
    with pytest.raises(BadRows) as refusal:
        take_in([*pairs(2), BAD])
    assert [problem.line for problem in refusal.value.problems] == [3]
    assert written() == before


def test_bad_rows_are_left_out_and_counted_where_that_was_asked_for():
    outcome = take_in([BAD, *pairs(2), BAD, *pairs(1)], skip_bad=True)
    assert outcome == Imported(read=5, imported=2, bad=2)
    assert outcome.already_there == 1


@pytest.mark.parametrize("slug", ["", "two words", "../up", "x" * 51, "ü"])
def test_a_project_that_cannot_be_made_is_refused(slug):
    before = written()
    with pytest.raises(CannotImport):
        take_in(pairs(1), slug=slug)
    assert written() == before


def test_an_error_in_the_middle_leaves_nothing():
    before = written()

    def fail(done: int, total: int) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"):
        import_preferences(slug="eggs", parsed=parse(pairs(600)), skip_bad=False, progress=fail)
    assert written() == before


KILLED = """
import io, json, os, signal, sys
import django
django.setup()
from labeling.formats import parse_file, preference_row
from labeling.services.importing import import_preferences
rows = parse_file(open(sys.argv[1], "rb"), preference_row)
def die(done, total):
    if done == total:
        os.kill(os.getpid(), signal.SIGKILL)
import_preferences(slug="eggs", parsed=rows, skip_bad=False, progress=die)
"""


@pytest.mark.django_db(transaction=True)
def test_a_killed_import_leaves_nothing_and_can_be_done_again(site_env, tmp_path):
    file = save(tmp_path / "rows.jsonl", *pairs(600))
    env = {**site_env, "DJANGO_SETTINGS_MODULE": "config.settings"}
    killed = subprocess.run([sys.executable, "-c", KILLED, str(file)], env=env)
    assert killed.returncode == -9
    assert sum(written()) == 0
    assert take_in(pairs(600)).imported == 600


def test_more_rows_need_no_more_queries():
    def queries(count: int, start: int) -> int:
        with CaptureQueriesContext(
            connection,
        ) as captured:
            take_in(pairs(count, start))
        return len(captured)

    take_in(pairs(1))
    assert queries(20, start=100) == queries(40, start=200)


def test_prompts_are_imported_once_with_their_metadata():
    rows: list[dict[str, Any]] = [
        {"question_id": 81, "category": "food", "turns": ["How?", "And then?"]},
        {"prompt": "Why?", "id": "w"},
        {"text": "Why?"},
    ]
    first = import_prompts(slug="eggs", parsed=parse(rows, prompt_row), skip_bad=False)
    again = import_prompts(slug="eggs", parsed=parse(rows, prompt_row), skip_bad=False)
    assert (first.imported, first.already_there, again.already_there) == (2, 1, 3)
    prompt = Prompt.objects.get(external_id="81")
    assert prompt.metadata == {"category": "food", "turns": ["And then?"]}
    assert prompt.messages == [{"role": "user", "content": "How?"}]


def test_the_command_lists_every_bad_row_and_imports_nothing(tmp_path, capsys):
    file = save(tmp_path / "rows.jsonl", *pairs(1), BAD, 5)
    with pytest.raises(CommandError, match="Nothing was imported: 2 of 3 rows") as refusal:
        call_command("import_preferences", file, project="eggs")
    assert refusal.value.returncode == 1
    assert capsys.readouterr().err.splitlines() == [
        "line 2: chosen and rejected are the same text",
        "line 3: not an object: expected {...}",
    ]
    assert not Project.objects.exists()


def test_the_command_reports_what_became_of_the_rows(tmp_path, capsys):
    file = save(tmp_path / "rows.jsonl", {**pairs(1)[0], "score": 3}, BAD)
    call_command("import_preferences", file, project="boiled-eggs", skip_bad=True)
    out = capsys.readouterr().out
    assert "2 rows read: 1 preferences imported into boiled-eggs, 0 already there, 1 bad." in out
    assert "Keys not kept: 'score'." in out
    assert Project.objects.get().name == "Boiled eggs"


@pytest.mark.parametrize("command", ["import_prompts", "import_preferences"])
def test_a_file_that_cannot_be_read_is_refused(command, tmp_path):
    (tmp_path / "utf16.jsonl").write_text('{"prompt": "x"}', encoding="utf-16")
    (tmp_path / "empty.jsonl").touch()
    for name, reason in [
        ("absent.jsonl", "No such file"),
        (".", "Is a directory"),
        ("utf16.jsonl", "save it as UTF-8"),
        ("empty.jsonl", "holds no rows"),
    ]:
        with pytest.raises(CommandError, match=reason):
            call_command(command, tmp_path / name, project="eggs")


quick = settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@quick
@given(st.lists(st.tuples(texts, texts, texts), min_size=1, max_size=20))
def test_any_texts_come_out_as_they_went_in(found):
    project = make_project()
    rows = [
        dict(zip(("prompt", "chosen", "rejected"), row, strict=True))
        for row in found
        if row[1] != row[2]
    ] or pairs(1)
    take_in(rows, slug=project.slug)
    exported = preference_rows(project, None)
    assert {
        (row["prompt"][0]["content"], row["chosen"][0]["content"], row["rejected"][0]["content"])
        for row in exported
    } == {tuple(row.values()) for row in rows}


@quick
@given(broken(), st.sampled_from(["import_prompts", "import_preferences"]), st.booleans())
def test_the_commands_meet_any_bytes_with_a_report_or_a_clean_refusal(
    tmp_path, data, command, skip_bad
):
    (tmp_path / "rows").write_bytes(data)
    with contextlib.suppress(CommandError):
        call_command(command, tmp_path / "rows", project="any", skip_bad=skip_bad)


def test_of_the_real_preferences_none_is_lost(tmp_path):
    with real_data("hh_rlhf_harmless.jsonl").open("rb") as file:
        parsed = parse_file(file, preference_row)
    outcome = import_preferences(slug="hh", parsed=parsed, skip_bad=True)
    assert outcome == Imported(read=1156, imported=1149, bad=7)
    assert outcome.already_there == 0
    assert Preference.objects.count() == 1149
    again = import_preferences(slug="hh", parsed=parsed, skip_bad=True)
    assert again.already_there == 1149
