"""Batches: starting one, watching it, cancelling it, and keeping comparisons ready."""

from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from generation.forms import LinesField
from generation.models import Batch, BatchState, Plan
from generation.services import end_batch, prepare, start_batch
from generation.views import pace
from jobs import queue
from jobs.models import Job
from jobs.run_dir import append_event, append_jsonl
from labeling.models import PolicyState, Project, Prompt, Role
from labeling.services.promoting import promote
from tests.builders import (
    make_batch,
    make_comparison,
    make_policy,
    make_project,
    make_prompt,
    make_responses,
    make_user,
)

OPTIONS = {
    "k": 4,
    "temperature": "0.9",
    "top_p": "1",
    "max_new_tokens": 120,
    "pairing": "random",
    "random_percent": 20,
}
HOSTILE = "<script>alert(1)</script>"


@pytest.fixture(autouse=True)
def _own_place(settings, tmp_path: Path) -> None:
    settings.RUNS_DIR = tmp_path / "runs"  # tests reuse the ids of batches
    settings.SAMPLER = "transformers"


@pytest.fixture
def project(db) -> Project:
    project = make_project()
    make_policy(project=project, name="Starter", state=PolicyState.SERVING)
    make_prompt(project=project)
    return project


@pytest.fixture
def manager(project: Project, client: Client) -> Client:
    client.force_login(make_user(role=Role.MANAGER, project=project))
    return client


def batches(project: Project) -> str:
    return reverse("generation:batches", args=[project.slug])


def begun(project: Project, **more) -> Batch:
    serving = project.policies.get(state=PolicyState.SERVING)
    batch = start_batch(project=project, policies={serving: 1}, actor=None)
    for name, value in more.items():
        setattr(batch, name, value)
    batch.save()
    return batch


def page(client: Client, address: str) -> str:
    answer = client.get(address)
    assert answer.status_code == 200
    return answer.content.decode()


def page_of(batch: Batch) -> str:
    return reverse("generation:batch", args=[batch.project.slug, batch.number])


def test_a_batch_is_started_with_the_options_of_the_form(project: Project, manager: Client) -> None:
    answer = manager.post(batches(project), OPTIONS)
    batch = project.batches.get()
    assert answer["Location"] == page_of(batch)
    assert (batch.k, batch.temperature, batch.max_new_tokens) == (4, 0.9, 120)
    assert [(share.policy.name, share.weight) for share in batch.shares.all()] == [("Starter", 1)]
    assert batch.started_by is not None
    assert Job.objects.get(pk=batch.job_id).kind == "generation.batch"


@pytest.mark.parametrize(("name", "value"), [("k", "1"), ("top_p", "0"), ("max_new_tokens", "")])
def test_impossible_options_start_nothing_and_are_marked(
    project: Project, manager: Client, name: str, value: str
) -> None:
    answer = manager.post(batches(project), OPTIONS | {name: value})
    assert answer.status_code == 422
    assert "errorlist" in answer.content.decode()
    assert not project.batches.exists()


def test_a_second_batch_is_refused_in_words(project: Project, manager: Client) -> None:
    begun(project)
    answer = manager.post(batches(project), OPTIONS)
    assert answer.status_code == 422
    assert "waiting or running" in answer.content.decode()
    assert project.batches.count() == 1


def test_the_form_gives_way_to_a_reason_where_no_batch_can_start(
    project: Project, manager: Client
) -> None:
    assert "Generate candidates" in page(manager, batches(project))
    begun(project)
    html = page(manager, batches(project))
    assert "Batch 1</a> is waiting; one at a time" in html
    assert "Generate candidates" not in html
    Batch.objects.all().delete()
    Prompt.objects.all().delete()
    html = page(manager, batches(project))
    assert "import_prompts FILE" in html
    assert "Generate candidates" not in html
    project.policies.update(state=PolicyState.RETIRED)
    assert "No policy serves yet" in page(manager, batches(project))


def test_what_is_asked_is_counted_before_it_starts(project: Project, manager: Client) -> None:
    make_prompt(project=project)
    assert "2 prompts will be asked" in page(manager, batches(project))
    for prompt in project.prompts.all():
        make_responses(prompt=prompt, policy=project.policies.get())
    assert "Starter has answered every prompt" in page(manager, batches(project))
    refused = manager.post(batches(project), OPTIONS)
    assert refused.status_code == 422
    assert "Starter has answered every prompt; import more" in refused.content.decode()


def test_prompts_are_counted_as_the_form_changes(project: Project, manager: Client) -> None:
    make_prompt(project=project, text="Was kostet Käse?")
    address = reverse("generation:matching", args=[project.slug])

    def count(**fields: Any) -> str:
        answer = manager.get(address, fields, headers={"hx-request": "true"})
        assert answer.status_code == 200
        return answer.content.decode().strip()

    assert count() == "2 prompts will be asked."
    assert count(search="käse") == "1 prompt will be asked."
    assert count(search="nothing") == "No prompt is left by this selection."
    assert count(limit="1", split="") == "1 prompt will be asked."
    assert count(limit="x", ids="what", split="sideways") == "2 prompts will be asked."
    for prompt in project.prompts.all():
        make_responses(prompt=prompt, k=2, policy=project.policies.get())
    assert count(fewer_than="2") == "No prompt is left by this selection."
    assert count(fewer_than="3") == "2 prompts will be asked."


def test_a_batch_is_asked_with_everything_that_the_form_has(
    project: Project, manager: Client
) -> None:
    first, base = make_policy(project=project, name="Round 1"), project.policies.get(name="Starter")
    promote(policy=first, actor=None)
    other = make_policy(project=project, name="Loud one")
    prompt = make_prompt(project=project, text="Was kostet Käse?")
    form = OPTIONS | {
        "current": 3,
        "previous": 1,
        "other": other.pk,
        "other_weight": 2,
        "search": "Käse",
        "fewer_than": 9,
        "ids": f"{prompt.pk}, {prompt.pk}",
        "limit": 7,
        "stop": "END\r\n\\n\\n\r\n",
        "system": "Be brief.",
        "seed": 77,
        "pairing": "across",
        "random_percent": 40,
    }
    answer = manager.post(batches(project), form)
    assert answer.status_code == 302, answer.content.decode()
    batch = project.batches.get()
    assert {s.policy: s.weight for s in batch.shares.all()} == {first: 3, base: 1, other: 2}
    assert batch.selection == {
        "split": "",
        "ids": [prompt.pk],
        "search": "Käse",
        "fewer_than": 9,
        "limit": 7,
    }
    assert (batch.stop, batch.system, batch.seed) == (["END", "\n\n"], "Be brief.", 77)
    assert (batch.pairing, batch.random_percent, batch.total) == ("across", 40, 1)
    html = page(manager, page_of(batch))
    for words in (
        "Round 1, weight 3, served when it was started",
        "Loud one, weight 2",
        "with fewer than 9 responses",
        "\\n\\n",
        "Be brief.",
        "across policies; 40 % of the prompts at random",
        "seed 77",
    ):
        assert words in html


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("ids", "987654", "has no prompt 987654"),
        ("ids", "seven", "Enter numbers of prompts"),
        ("search", "x" * 300, "at most 200 characters"),
        ("stop", "a\nb\nc\nd\ne", "At most 4 stop texts"),
        ("current", "0", "Name a policy that answers"),
        ("seed", "-1", "greater than or equal to 0"),
        ("pairing", "astrology", "valid choice"),
        ("limit", "0", "greater than or equal to 1"),
    ],
)
def test_what_is_wrong_is_said_at_its_field_which_is_unfolded(
    project: Project, manager: Client, name: str, value: str, words: str
) -> None:
    make_policy(project=project, name="Other")
    answer = manager.post(batches(project), OPTIONS | {"current": 1, name: value})
    assert answer.status_code == 422
    field = answer.content.decode().split(f'for="id_{name}"')[1].split('<div class="field">')[0]
    assert words in field
    assert "errorlist" in field
    if name != "k":
        folded = answer.content.decode().split(f'for="id_{name}"')[0].rsplit("<details", 1)[1]
        assert folded.startswith(' class="more" open')
    assert not project.batches.exists()


def test_who_writes_is_asked_only_where_there_is_a_choice(
    project: Project, manager: Client
) -> None:
    assert "Who writes" not in page(manager, batches(project))
    make_policy(project=project, name="Candidate")
    html = page(manager, batches(project))
    assert "Who writes" in html
    assert "Candidate" in html


def test_hostile_texts_are_shown_as_they_are(project: Project, manager: Client) -> None:
    make_policy(project=project, name=HOSTILE)
    form = OPTIONS | {"system": HOSTILE, "stop": HOSTILE, "search": HOSTILE, "current": 1}
    assert HOSTILE not in manager.post(batches(project), form).content.decode()
    batch = begun(project, system=HOSTILE, stop=[HOSTILE], sampler_why=HOSTILE, engine=HOSTILE)
    batch.selection["search"] = HOSTILE
    batch.sampler = "vllm"
    batch.save()
    html = page(manager, page_of(batch))
    assert HOSTILE not in html
    assert html.count("&lt;script&gt;alert(1)") == 5
    assert HOSTILE not in page(manager, batches(project))


@pytest.mark.parametrize(
    ("lines", "texts"),
    [
        ("", []),
        ("\r\n\n", []),
        ("END\n###", ["END", "###"]),
        (r"\n\nUser:", ["\n\nUser:"]),
        (r"\\n\t", ["\\n\t"]),
        (" ", [" "]),
    ],
)
def test_stop_texts_are_lines_that_can_hold_line_breaks(lines: str, texts: list[str]) -> None:
    field = LinesField()
    assert field.clean(lines) == texts
    assert field.clean(field.prepare_value(texts)) == texts


# Keeping ready


def save(manager: Client, project: Project, **fields: Any) -> Any:
    form = OPTIONS | {"ready": 10, "current": 1, "previous": 0, "base": 0} | fields
    return manager.post(reverse("generation:plan", args=[project.slug]), form, follow=True)


def test_a_plan_is_saved_and_goes_to_work_at_once(project: Project, manager: Client) -> None:
    html = save(manager, project, temperature="0.7", stop="END").content.decode()
    plan = Plan.objects.get()
    assert (plan.ready, plan.temperature, plan.stop) == (10, 0.7, ["END"])
    assert plan.saved_by is not None
    assert "From now on 10 comparisons are kept ready" in html
    assert "Batch 1</a> is under way" in html
    assert 'max="10" value="0"' in html
    assert project.batches.get().origin == Batch.Origin.TOP_UP


def test_an_impossible_plan_is_marked_at_its_field(project: Project, manager: Client) -> None:
    for name in ("ready", "current", "k", "stop"):
        value = {"stop": "a\nb\nc\nd\ne"}.get(name, "-3")
        answer = save(manager, project, **{name: value})
        assert answer.status_code == 422
        assert "errorlist" in answer.content.decode()
    assert not Plan.objects.exists()


def test_the_page_says_how_the_plan_stands(project: Project, manager: Client) -> None:
    save(manager, project, ready=1)
    Batch.objects.all().delete()
    assert "No worker has ever run" in page(manager, batches(project))
    queue.saw_worker(name="here", lanes=["light"])
    assert "starts a batch within a minute" in page(manager, batches(project))
    Plan.objects.update(stopped=f"Batch 3 failed: {HOSTILE}")
    html = page(manager, batches(project))
    assert "Batch 3 failed" in html
    assert HOSTILE not in html
    make_comparison(project=project)
    html = page(manager, batches(project))
    assert "Enough for now" in html
    assert "Batch 3 failed" not in html
    save(manager, project, ready=0)
    assert "Off. Batches are started by hand" in page(manager, batches(project))


def test_a_running_batch_tells_how_far_it_is_and_polls(
    project: Project, manager: Client, tmp_path: Path
) -> None:
    batch = begun(
        project,
        state=BatchState.RUNNING,
        started_at=timezone.now(),
        total=96,
        run_dir=str(tmp_path),
    )
    for done in (0, 24):
        row = {"done": done, "total": 96, "tokens": done * 100, "seconds": done * 0.5}
        append_jsonl(tmp_path / "metrics.jsonl", row)
    html = manager.get(page_of(batch), headers={"hx-request": "true"}).content.decode()
    assert html.startswith('<section class="card stack" id="batch-progress"')
    assert 'hx-trigger="every 2s"' in html
    assert 'max="96" value="24"' in html
    assert "36 s left" in html
    assert "200 tokens a second" in html


def test_polling_a_batch_that_has_ended_reloads_the_page(project: Project, manager: Client) -> None:
    batch = begun(project, state=BatchState.SUCCEEDED, finished_at=timezone.now())
    assert manager.get(page_of(batch), headers={"hx-request": "true"})["HX-Refresh"] == "true"
    assert "hx-trigger" not in manager.get(page_of(batch)).content.decode()


def test_a_queued_batch_is_cancelled_at_once(project: Project, manager: Client) -> None:
    batch = begun(project)
    address = reverse("generation:cancel_batch", args=[project.slug, batch.number])
    html = manager.post(address, follow=True).content.decode()
    batch.refresh_from_db()
    assert batch.state == BatchState.CANCELLED
    assert "Cancelled" in html
    again = manager.post(address, follow=True).content.decode()
    assert "had ended already" in again


def test_a_running_batch_is_asked_to_stop(project: Project, manager: Client) -> None:
    batch = begun(project, state=BatchState.RUNNING, started_at=timezone.now())
    later = timezone.now() + timezone.timedelta(hours=1)
    job = Job.objects.filter(pk=batch.job_id)
    job.update(state="running", lease="0" * 32, lease_expires_at=later)
    address = reverse("generation:cancel_batch", args=[project.slug, batch.number])
    html = manager.post(address, follow=True).content.decode()
    assert "Stopping after the prompts in hand" in html
    assert "Cancel this batch?" not in html
    assert job.get().cancel_requested_at is not None


def test_a_failed_batch_says_why_what_was_kept_and_what_to_do(
    project: Project, manager: Client
) -> None:
    batch = begun(
        project,
        state=BatchState.FAILED,
        error="It ran <b>out</b> of memory.",
        done=3,
        total=9,
        finished_at=timezone.now(),
    )
    html = manager.get(page_of(batch)).content.decode()
    assert "It ran &lt;b&gt;out&lt;/b&gt; of memory." in html
    assert "3 of 9 prompts" in html
    assert "start another batch" in html
    assert "Go on" not in html


@pytest.mark.parametrize("state", [BatchState.FAILED, BatchState.CANCELLED])
def test_a_batch_that_ended_too_early_can_go_on(
    project: Project, manager: Client, state: BatchState
) -> None:
    batch = begun(project)
    prepare(batch)
    end_batch(batch=batch, state=state, error="It ran out of memory.")
    html = manager.get(page_of(batch)).content.decode()
    address = reverse("generation:resume_batch", args=[project.slug, batch.number])
    assert f'action="{address}"' in html
    assert "responses so far are kept" in html or "these responses are kept" in html
    assert manager.get(address).status_code == 405
    html = manager.post(address, follow=True).content.decode()
    assert "Waiting for the worker" in html
    assert "resumed by" in html
    again = manager.post(address, follow=True).content.decode()
    assert "is waiting or running" in again
    batch.refresh_from_db()
    assert batch.state == BatchState.QUEUED


@pytest.mark.parametrize(
    ("sampler", "proven", "words"),
    [
        ("vllm", [{"1": 1.21e-6}], "within 1.2e-06 nats a token of the trainer"),
        ("vllm", [{"1": 0.5}, {"2": 2e-4}, {"1": 1e-4}], "within 0.0002 nats a token"),
        ("transformers", [{}], "none: transformers loads the files itself"),
        ("server", [{}], "unproven: nothing tells"),
        ("vllm", [], ""),
    ],
)
def test_the_page_says_how_the_policies_were_proven(
    project: Project, manager: Client, tmp_path: Path, sampler: str, proven: list, words: str
) -> None:
    append_event(tmp_path, "start")
    for found in proven:
        append_event(tmp_path, "loaded", engine="vllm 1", proven=found)
    batch = make_batch(project=project, sampler=sampler, run_dir=str(tmp_path))
    html = manager.get(page_of(batch)).content.decode()
    assert words in html
    assert ("<dt>Proof</dt>" in html) == bool(words)


def test_prompts_that_failed_alone_are_listed(
    project: Project, manager: Client, tmp_path: Path
) -> None:
    append_jsonl(tmp_path / "failures.jsonl", {"prompt_id": "7", "reason": "it is too long"})
    batch = begun(
        project, state=BatchState.SUCCEEDED, failures=1, run_dir=str(tmp_path), done=1, total=2
    )
    html = manager.get(page_of(batch)).content.decode()
    assert "Prompt 7" in html
    assert "it is too long" in html


def test_only_managers_may_look_or_start(project: Project, client: Client) -> None:
    batch = begun(project)
    for role in (Role.ANNOTATOR, Role.CONSUMER):
        client.force_login(make_user(role=role, project=project))
        assert client.get(batches(project)).status_code == 404
        assert client.post(batches(project), OPTIONS).status_code == 404
        assert client.get(page_of(batch)).status_code == 404
        for route in ("cancel_batch", "resume_batch"):
            address = reverse(f"generation:{route}", args=[project.slug, batch.number])
            assert client.post(address).status_code == 404
        for route, ask in (("plan", client.post), ("matching", client.get)):
            assert ask(reverse(f"generation:{route}", args=[project.slug])).status_code == 404


def test_queries_do_not_grow_with_batches_policies_or_prompts(
    project: Project, manager: Client
) -> None:
    save(manager, project)
    Batch.objects.all().delete()
    counts = []
    for _ in range(2):
        for _ in range(6):
            policies = {make_policy(project=project): 1, make_policy(project=project): 2}
            make_batch(project=project, policies=policies, started_by=make_user())
            make_prompt(project=project)
        with CaptureQueriesContext(connection) as listed:
            page(manager, batches(project))
        with CaptureQueriesContext(connection) as shown:
            page(manager, page_of(project.batches.get(number=1)))
        counts.append((len(listed), len(shown)))
    assert counts[0] == counts[1]
    assert counts[0] <= (22, 8)


def test_the_pace_is_that_of_the_run_at_hand() -> None:
    rows = [
        {"done": 0, "tokens": 0, "seconds": 0.0},
        {"done": 40, "tokens": 4000, "seconds": 90.0},
        {"done": 40, "tokens": 0, "seconds": 1.0},  # started again
        {"done": 50, "tokens": 1000, "seconds": 6.0},
    ]
    assert pace(rows, 100) == {"done": 50, "tokens_per_s": 200.0, "seconds_left": 25.0}


@pytest.mark.parametrize(
    "rows", [[], [{"done": "x"}], [{"done": 3, "tokens": 1, "seconds": 2.0}], [{}]]
)
def test_the_pace_is_unknown_at_first(rows: list[dict]) -> None:
    assert pace(rows, 10)["seconds_left"] is None
