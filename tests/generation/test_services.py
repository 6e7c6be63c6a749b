"""Starting batches, what they ask, and taking in what was written."""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext
from hypothesis import given
from hypothesis import strategies as st

from generation.lineage import UnknownPolicy, by_name, by_word, standing
from generation.models import Batch, BatchPolicy, BatchState
from generation.samplers.protocol import Draw, SamplerSpec
from generation.selecting import Selection, least_answered, select_prompts
from generation.services import (
    KIND,
    SERVER_ATTEMPTS,
    BatchLive,
    CannotGenerate,
    end_batch,
    prepare,
    resumable,
    resume_batch,
    start_batch,
    take_in,
)
from generation.sharing import share_out
from jobs.models import Job
from jobs.run_dir import RunDirError, check_spec, read_json, read_jsonl, write_jsonl
from labeling.lineage import initial_policy
from labeling.models import Comparison, Policy, PolicyState, Project, Prompt, Response, Split
from labeling.services.promoting import promote, roll_back, serving_policy
from tests.builders import (
    make_batch,
    make_policy,
    make_project,
    make_prompt,
    make_responses,
    make_user,
    write_output,
)

pytestmark = pytest.mark.django_db
Pairing = Comparison.Pairing


@pytest.fixture(autouse=True)
def _own_place(settings, tmp_path: Path) -> None:
    settings.RUNS_DIR = tmp_path / "runs"  # tests reuse the ids of batches
    settings.SAMPLER = "transformers"


@pytest.fixture
def project() -> Project:
    """Three generations of policies; the youngest serves."""
    project = make_project()
    base = make_policy(project=project, name="Starter", state=PolicyState.SERVING)
    first = make_policy(project=project, name="Round 1", parent=base)
    second = make_policy(project=project, name="Round 2", parent=first)
    promote(policy=first, actor=None)
    promote(policy=second, actor=None)
    return project


def named(project: Project, name: str) -> Policy:
    return project.policies.get(name=name)


def start(project: Project, **options: Any) -> Batch:
    serving = serving_policy(project)
    assert serving is not None
    return start_batch(project=project, actor=None, **{"policies": {serving: 1}, **options})


def taken_in(batch: Batch) -> int | None:
    """The comparisons made in all."""
    take_in(batch=batch)
    batch.refresh_from_db()
    return batch.comparisons


def selected(project: Project, selection: Selection, *names: str) -> list[int]:
    policies = [named(project, name) for name in names or ("Round 2",)]
    leading = named(project, "Round 2")
    asked = select_prompts(project, selection, leading=leading, policies=policies)
    return [prompt.pk for prompt in asked]


# Who writes


def test_the_words_name_the_policies_of_the_line(project: Project) -> None:
    found = {word: policy.name for word, policy in standing(project).items()}
    assert found == {"current": "Round 2", "previous": "Round 1", "base": "Starter"}
    assert standing(make_project()) == {}


def test_the_weight_of_what_is_absent_is_dropped_and_of_what_is_the_same_added() -> None:
    project = make_project()
    alone = make_policy(project=project, state=PolicyState.SERVING)
    assert by_word(project, {"current": 2, "previous": 5, "base": 1}) == {alone: 3}
    assert initial_policy(alone) == alone


def test_policies_are_found_by_name_before_the_words(project: Project) -> None:
    assert by_name(project, {"Starter": 2, "current": 3}) == {
        named(project, "Starter"): 2,
        named(project, "Round 2"): 3,
    }
    called = make_policy(project=project, name="base")
    assert by_name(project, {"base": 1}) == {called: 1}
    with pytest.raises(UnknownPolicy, match="no policy named Nobody"):
        by_name(project, {"Nobody": 1})


def test_a_line_of_any_length_is_followed_in_few_queries(
    project: Project, django_assert_max_num_queries
) -> None:
    policy = named(project, "Round 2")
    for number in range(3, 40):
        policy = make_policy(project=project, name=f"Round {number}", parent=policy)
    with django_assert_max_num_queries(2):
        assert initial_policy(policy).name == "Starter"


weights = st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 9), min_size=1)


@given(weights=weights, k=st.integers(2, 16), seed=st.integers(0, 2**31 - 1))
def test_responses_are_shared_out_exactly_by_weight(
    weights: dict[str, int], k: int, seed: int
) -> None:
    lowest = math.gcd(*weights.values())
    cycle = sum(weights.values()) // lowest
    written: Counter[str] = Counter()
    for turn in range(3 * cycle, 4 * cycle):
        writers = share_out(weights, k=k, turn=turn, seed=seed)
        assert len(writers) == k
        assert writers == share_out(weights, k=k, turn=turn, seed=seed)
        for one, weight in weights.items():
            fair = k * weight / sum(weights.values())
            assert math.floor(fair) <= writers.count(one) <= math.ceil(fair)
        written.update(writers)
    assert written == {one: k * weight // lowest for one, weight in weights.items()}


def test_each_pair_of_policies_comes_to_be_compared() -> None:
    weights = dict.fromkeys("abcd", 1)
    met: Counter[frozenset[str]] = Counter()
    for turn in range(2000):
        met[frozenset(share_out(weights, k=2, turn=turn, seed=7))] += 1
    assert met.keys() == {frozenset(pair) for pair in combinations("abcd", 2)}
    assert min(met.values()) > 200


# Which prompts


def test_prompts_are_asked_that_the_leading_policy_has_not_answered(project: Project) -> None:
    prompts = [make_prompt(project=project) for _ in range(4)]
    make_responses(prompt=prompts[1], policy=named(project, "Round 2"))
    make_responses(prompt=prompts[2], policy=named(project, "Round 1"))
    make_prompt()
    expected = [prompts[0].pk, prompts[2].pk, prompts[3].pk]
    assert selected(project, Selection()) == expected
    assert selected(project, Selection(limit=2)) == expected[:2]


def test_prompts_with_too_few_responses_are_counted_by_the_batch_s_policies(
    project: Project,
) -> None:
    prompts = [make_prompt(project=project) for _ in range(3)]
    make_responses(prompt=prompts[0], k=2, policy=named(project, "Round 2"))
    make_responses(prompt=prompts[0], k=2, policy=named(project, "Round 1"))
    make_responses(prompt=prompts[1], k=4, policy=named(project, "Round 2"))
    make_responses(prompt=prompts[2], k=6)
    few = Selection(fewer_than=3)
    assert selected(project, few) == [prompts[0].pk, prompts[2].pk]
    assert selected(project, few, "Round 2", "Round 1") == [prompts[2].pk]
    ids = Selection(ids=(prompts[0].pk, prompts[1].pk))
    assert selected(project, ids) == [prompts[0].pk, prompts[1].pk], "answered or not"
    assert selected(project, Selection(ids=ids.ids, fewer_than=3)) == [prompts[0].pk]


def test_prompts_are_found_by_split_and_by_what_is_said_in_them(project: Project) -> None:
    train = make_prompt(project=project, text="Was kostet Käse?", split=Split.TRAIN)
    held = make_prompt(project=project, text='Say "100%_\\ sure"', split=Split.HELD_OUT)
    talk = make_prompt(
        project=project,
        split=Split.TRAIN,
        messages=[
            {"role": "user", "content": "A recipe?"},
            {"role": "assistant", "content": "Bake it."},
            {"role": "user", "content": "Shorter."},
        ],
    )
    assert selected(project, Selection(split="held_out")) == [held.pk]
    found = {
        text: selected(project, Selection(search=text))
        for text in ("Käse", "BAKE", '"100%_\\', "%", "_", "\\", "user", "role", "x' OR 1=1 --")
    }
    assert found["Käse"] == [train.pk]
    assert found["BAKE"] == [talk.pk]
    assert found['"100%_\\'] == found["%"] == found["_"] == found["\\"] == [held.pk]
    assert found["user"] == found["role"] == found["x' OR 1=1 --"] == []


def test_the_least_answered_come_first_and_some_are_left_out(project: Project) -> None:
    prompts = [make_prompt(project=project) for _ in range(4)]
    policy = named(project, "Round 2")
    make_responses(prompt=prompts[0], k=3, policy=policy)
    make_responses(prompt=prompts[1], k=1, policy=policy)
    order = [prompts[2].pk, prompts[3].pk, prompts[1].pk, prompts[0].pk]
    assert least_answered(policy, number=9, without=()) == order
    assert least_answered(policy, number=2, without={prompts[2].pk}) == [order[1], order[2]]


@pytest.mark.parametrize(
    ("part", "selection"),
    [
        ("split", Selection(split="both")),
        ("ids", Selection(ids=(0,))),
        ("ids", Selection(ids=(10**30,))),
        ("ids", Selection(ids=(987654321,))),
        ("search", Selection(search="x" * 500)),
        ("search", Selection(search="a\x00b")),
        ("fewer_than", Selection(fewer_than=0)),
        ("limit", Selection(limit=-1)),
    ],
)
def test_impossible_selections_are_refused_by_name(
    project: Project, part: str, selection: Selection
) -> None:
    make_prompt(project=project)
    with pytest.raises(CannotGenerate) as refusal:
        start(project, selection=selection)
    assert list(refusal.value.errors) == [part]
    assert not Batch.objects.exists()


# Starting


def test_a_batch_is_queued_with_all_it_was_asked(project: Project) -> None:
    prompt = make_prompt(project=project)
    batch = start(
        project,
        policies={named(project, "Round 2"): 3, named(project, "Starter"): 1},
        selection=Selection(fewer_than=2, limit=5),
        seed=11,
        stop=["\n\n"],
        system="Be brief.",
        pairing=Pairing.ACROSS,
        random_percent=50,
        origin=Batch.Origin.COMMAND,
    )
    batch = Batch.objects.get(pk=batch.pk)
    assert [(share.policy.name, share.weight) for share in batch.shares.all()] == [
        ("Round 2", 3),
        ("Starter", 1),
    ]
    assert batch.leading.name == "Round 2"
    assert Selection.from_json(batch.selection) == Selection(fewer_than=2, limit=5)
    assert (batch.seed, batch.stop, batch.system, batch.total) == (11, ["\n\n"], "Be brief.", 1)
    job = Job.objects.get(pk=batch.job_id)
    assert (job.lane, job.payload) == ("gpu", {"batch": batch.pk})
    with pytest.raises(BatchLive):
        start(project, selection=Selection(ids=(prompt.pk,)))


def test_a_batch_without_a_seed_has_one_of_its_own(project: Project) -> None:
    make_prompt(project=project)
    first = start(project)
    Batch.objects.update(state=BatchState.CANCELLED)
    assert start(project).seed != first.seed


def test_a_batch_that_servers_write_takes_no_place_of_the_gpu(project: Project, settings) -> None:
    settings.SAMPLER, settings.SERVER_URLS = "auto", ["http://127.0.0.1:9"]
    make_prompt(project=project)
    job = Job.objects.get(pk=start(project).job_id)
    assert job.lane == "light"
    assert job.max_attempts > 5


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("k", 1),
        ("k", 17),
        ("temperature", -0.1),
        ("temperature", math.nan),
        ("temperature", math.inf),
        ("top_p", 0.0),
        ("max_new_tokens", 0),
        ("stop", [""]),
        ("stop", ["a", "b", "c", "d", "e"]),
        ("stop", [7]),
        ("system", "x" * 20_000),
        ("system", "half \ud800"),
        ("seed", -1),
        ("seed", 2**40),
        ("pairing", "astrology"),
        ("random_percent", 9),
        ("policies", {}),
    ],
)
def test_what_cannot_be_is_refused_by_name(project: Project, name: str, value: Any) -> None:
    make_prompt(project=project)
    with pytest.raises(CannotGenerate) as refusal:
        start(project, **{name: value})
    assert list(refusal.value.errors) == [name]
    assert not Batch.objects.exists()
    assert not Job.objects.filter(kind="generation.batch").exists()


def test_everything_wrong_is_told_at_once(project: Project) -> None:
    with pytest.raises(CannotGenerate) as refusal:
        start(project, k=1, top_p=2.0, selection=Selection(limit=0))
    assert refusal.value.errors.keys() == {"k", "top_p", "limit"}


def test_policies_of_other_projects_and_odd_weights_are_refused(project: Project) -> None:
    make_prompt(project=project)
    for policies in ({make_policy(): 1}, {named(project, "Round 2"): 0}):
        with pytest.raises(CannotGenerate) as refusal:
            start(project, policies=policies)
        assert list(refusal.value.errors) == ["policies"]


def test_nothing_is_started_where_nothing_is_to_be_asked(project: Project) -> None:
    with pytest.raises(CannotGenerate, match="Round 2 has answered every prompt"):
        start(project)
    with pytest.raises(CannotGenerate, match="No prompt is left"):
        start(project, selection=Selection(search="nowhere"))
    with pytest.raises(CannotGenerate, match="No policy serves"):
        start_batch(project=make_project(), policies={}, actor=None)


def test_the_database_itself_lets_one_batch_of_a_project_live(project: Project) -> None:
    make_prompt(project=project)
    batch = start(project)
    with pytest.raises(IntegrityError), transaction.atomic():
        make_batch(project=project, state=BatchState.RUNNING)
    share = {"batch": batch, "policy": named(project, "Starter")}
    with pytest.raises(IntegrityError), transaction.atomic():
        BatchPolicy.objects.create(**share, weight=0)


# The run directory


def test_the_run_directory_holds_what_a_sampler_is_asked(project: Project) -> None:
    prompts = [make_prompt(project=project) for _ in range(4)]
    ours, theirs = named(project, "Round 2"), named(project, "Starter")
    batch = start(project, policies={ours: 3, theirs: 1}, stop=["END"], system="Be brief.", seed=5)
    run_dir = prepare(batch)
    spec = check_spec(SamplerSpec, read_json(run_dir / "spec.json"))
    assert [(one.id, one.digest) for one in spec.policies] == [
        (str(ours.pk), ours.digest),
        (str(theirs.pk), theirs.digest),
    ]
    assert spec.draw == Draw(temperature=1.0, top_p=1.0, max_new_tokens=160, stop=["END"])
    assert (spec.seed, spec.system, spec.score_under, spec.server) == (5, "Be brief.", [], None)
    rows = list(read_jsonl(run_dir / "prompts.jsonl"))
    assert [row["id"] for row in rows] == [str(prompt.pk) for prompt in prompts]
    assert rows[0]["messages"] == prompts[0].messages
    assert Counter(one for row in rows for one in row["policies"]) == {
        str(ours.pk): 12,
        str(theirs.pk): 4,
    }
    assert not {"draw", "system"} & rows[0].keys()


def test_a_prompt_s_own_wishes_go_with_it_and_odd_ones_where_the_sampler_refuses_them(
    project: Project,
) -> None:
    wishes: list[dict[str, Any]] = [
        {"sampling": {"temperature": 0.2, "stop": ["."]}, "system": "Rhyme."},
        {"sampling": None, "system": ""},
        {"sampling": "hot"},
        {"system": 5, "sampling": {"top_p": 0.5}},
    ]
    for metadata in wishes:
        prompt = make_prompt(project=project)
        Prompt.objects.filter(pk=prompt.pk).update(metadata=metadata)
    run_dir = prepare(start(project))
    rows = list(read_jsonl(run_dir / "prompts.jsonl"))
    own = [{key: row[key] for key in ("draw", "system") if key in row} for row in rows]
    assert own[0] == {"draw": wishes[0]["sampling"], "system": "Rhyme."}
    assert own[1] == {}
    draw = Draw(temperature=1.0, top_p=1.0, max_new_tokens=9, stop=[])
    for odd in own[2:]:
        with pytest.raises(ValueError, match="cannot be set for a prompt"):
            draw.but(odd["draw"])


def test_rewards_are_asked_for_only_where_a_pairing_needs_them(project: Project) -> None:
    make_prompt(project=project)
    ours, base = named(project, "Round 2"), named(project, "Starter")
    spec = read_json(prepare(start(project, pairing=Pairing.LARGEST_MARGIN)) / "spec.json")
    assert spec["score_under"] == [str(ours.pk), str(base.pk)]
    assert [one["id"] for one in spec["policies"]] == [str(ours.pk), str(base.pk)]
    Batch.objects.update(state=BatchState.CANCELLED)
    promote(policy=base, actor=None)
    spec = read_json(prepare(start(project, pairing=Pairing.BEST_OF_N)) / "spec.json")
    assert spec["score_under"] == [], "the initial policy has no reward"


def test_a_later_attempt_keeps_the_sampler_and_the_run_directory(
    project: Project, settings
) -> None:
    make_prompt(project=project)
    settings.SAMPLER = "transformers"
    batch = start(project)
    run_dir = prepare(batch)
    before = {path.name: path.read_bytes() for path in run_dir.iterdir()}
    settings.SAMPLER, settings.SERVER_URLS = "server", ["http://127.0.0.1:9"]
    make_prompt(project=project)
    again = Batch.objects.get(pk=batch.pk)
    assert prepare(again) == run_dir
    assert again.sampler == "transformers"
    assert before == {path.name: path.read_bytes() for path in run_dir.iterdir()}


def test_an_adapter_s_base_is_named_by_the_digest_it_was_registered_with(
    project: Project,
) -> None:
    make_prompt(project=project)
    root = named(project, "Starter")
    onto = {"model_path": root.model_path, "adapter_path": "/nowhere/adapter"}
    first = make_policy(project=project, parent=root, **onto)
    second = make_policy(project=project, parent=first, **onto)
    moved = make_policy(project=project, parent=first, **onto | {"model_path": "/nowhere/else"})
    orphan = make_policy(project=project, **onto)
    policies = dict.fromkeys([root, second, moved, orphan], 1)
    spec = read_json(prepare(start(project, policies=policies, k=4)) / "spec.json")
    digests = {one["id"]: one["base_digest"] for one in spec["policies"]}
    assert digests == {
        str(root.pk): None,
        str(second.pk): root.digest,
        str(moved.pk): None,
        str(orphan.pk): None,
    }


def test_servers_are_named_to_the_sampler_and_their_key_is_not(
    project: Project, settings, tmp_path: Path
) -> None:
    settings.SAMPLER, settings.SERVER_URLS = "server", ["http://127.0.0.1:9"]
    settings.SERVER_KEY_FILE = str(tmp_path / "key")
    (tmp_path / "key").write_text("tell-nobody")
    make_prompt(project=project)
    run_dir = prepare(start(project))
    spec = check_spec(SamplerSpec, read_json(run_dir / "spec.json"))
    assert spec.server is not None
    assert (spec.server.urls, spec.server.key_file) == (
        ["http://127.0.0.1:9"],
        str(tmp_path / "key"),
    )
    assert all("tell-nobody" not in path.read_text() for path in run_dir.iterdir())


# Taking in


def test_responses_are_stored_with_where_they_came_from(project: Project) -> None:
    prompt = make_prompt(project=project)
    batch = start(project, k=2, stop=["END"], system="Be brief.", seed=3)
    write_output(batch)
    assert taken_in(batch) == 1
    response = Response.objects.order_by("pk")[0]
    assert (response.prompt, response.policy) == (prompt, named(project, "Round 2"))
    assert (response.token_ids, response.logp, response.finish_reason) == ([4, 0, 5], -2.5, "stop")
    assert response.sampling == {
        "batch": 1,
        "engine": "pen and paper 1.0",
        "sampler": "transformers",
        "policy_digest": named(project, "Round 2").digest,
        "index": 0,
        "seed": 0,
        "temperature": 1.0,
        "top_p": 1.0,
        "max_new_tokens": 160,
        "stop": ["END"],
        "system": "Be brief.",
        "prompt_token_ids": [1, 2, 3],
    }
    batch.refresh_from_db()
    assert (batch.state, batch.done, batch.comparisons) == (BatchState.SUCCEEDED, 1, 1)
    assert (batch.engine, batch.barren) == ("pen and paper 1.0", [])
    comparison = Comparison.objects.get()
    assert (comparison.pairing, comparison.project) == (Pairing.RANDOM, project)


def test_each_response_names_the_engine_that_wrote_it(project: Project) -> None:
    make_prompt(project=project)
    batch = start(project, k=2)
    write_output(batch)
    path = Path(batch.run_dir) / "responses.jsonl"
    first, second = read_jsonl(path)
    write_jsonl(path, [first | {"engine": "chalk 0.9"}, second])
    take_in(batch=batch)
    engines = [response.sampling["engine"] for response in Response.objects.order_by("pk")]
    assert engines == ["chalk 0.9", "pen and paper 1.0"]
    batch.refresh_from_db()
    assert batch.engine == "pen and paper 1.0"


def test_the_sampling_of_a_response_is_its_prompt_s_own(project: Project) -> None:
    wishes = {"sampling": {"temperature": 0.2, "stop": ["."]}, "system": "Rhyme."}
    own = make_prompt(project=project)
    Prompt.objects.filter(pk=own.pk).update(metadata=wishes)
    begun = make_prompt(
        project=project,
        messages=[
            {"role": "system", "content": "You are a ship."},
            {"role": "user", "content": "Sail."},
        ],
    )
    batch = start(project, system="Be brief.")
    write_output(batch)
    take_in(batch=batch)
    found = own.responses.all()[0].sampling
    assert (found["temperature"], found["stop"], found["system"]) == (0.2, ["."], "Rhyme.")
    found = begun.responses.all()[0].sampling
    assert (found["temperature"], found["system"]) == (1.0, None)


def test_equal_texts_are_one_response_and_empty_ones_none(project: Project) -> None:
    prompt = make_prompt(project=project)
    batch = start(project, k=4)
    texts = ["Boil it.", "Boil it.", " \n", "Fry it."]
    write_output(batch, say=lambda row, index: texts[index])
    assert taken_in(batch) == 1
    found = dict(prompt.responses.values_list("text", "times_sampled"))
    assert found == {"Boil it.": 2, "Fry it.": 1}


def test_what_was_said_before_is_counted_and_compared_only_with_something_new(
    project: Project,
) -> None:
    prompts = [make_prompt(project=project) for _ in range(2)]
    first = start(project, k=2)
    write_output(first, say=lambda row, index: "ab"[index])
    take_in(batch=first)
    automatic = Batch.Origin.TOP_UP
    again = start(project, k=4, selection=Selection(fewer_than=9), origin=automatic)
    texts = {str(prompts[0].pk): "aabb", str(prompts[1].pk): "abxx"}
    write_output(again, say=lambda row, index: texts[row["id"]][index])
    take_in(batch=again)
    counted = set(Response.objects.values_list("prompt", "text", "times_sampled"))
    here, there = prompts[0].pk, prompts[1].pk
    assert counted == {
        (here, "a", 3),
        (here, "b", 3),
        (there, "a", 2),
        (there, "b", 2),
        (there, "x", 2),
    }
    assert prompts[0].comparisons.count() == 1, "the one from before"
    assert prompts[1].comparisons.count() == 2
    again.refresh_from_db()
    assert (again.comparisons, again.barren) == (1, [prompts[0].pk])


def test_policies_are_compared_with_each_other(project: Project) -> None:
    for _ in range(12):
        make_prompt(project=project)
    ours, theirs = named(project, "Round 2"), named(project, "Starter")
    batch = start(
        project, k=2, policies={ours: 1, theirs: 1}, pairing=Pairing.ACROSS, random_percent=10
    )
    write_output(batch)
    assert taken_in(batch) == 12
    for comparison in Comparison.objects.prefetch_related("slots__response"):
        assert {slot.response.policy_id for slot in comparison.slots.all()} == {ours.pk, theirs.pk}
    assert Comparison.objects.filter(pairing=Pairing.ACROSS).count() >= 6


def test_the_same_words_of_two_policies_are_two_responses_never_compared(project: Project) -> None:
    prompt = make_prompt(project=project)
    ours, theirs = named(project, "Round 2"), named(project, "Starter")
    batch = start(project, k=2, policies={ours: 1, theirs: 1})
    write_output(batch, say=lambda row, index: "The same.")
    assert taken_in(batch) == 0
    assert prompt.responses.count() == 2


def test_rewards_choose_what_is_compared(project: Project) -> None:
    for _ in range(20):
        make_prompt(project=project)
    base = str(named(project, "Starter").pk)
    batch = start(project, k=4, pairing=Pairing.LARGEST_MARGIN, random_percent=10)

    def score(row: dict[str, Any]) -> list[dict[str, Any]]:
        key = {"prompt_id": row["prompt_id"], "index": row["index"], "policy": base}
        return [{**key, "logp": row["logp"] - row["index"] ** 2}]  # rewards 0, 1, 4, 9

    write_output(batch, scores=score)
    take_in(batch=batch)
    chosen = Comparison.objects.filter(pairing=Pairing.LARGEST_MARGIN)
    assert chosen.count() >= 20
    pairs = Counter(
        frozenset(slot.response.sampling["index"] for slot in comparison.slots.all())
        for comparison in chosen.prefetch_related("slots__response")
    )
    assert pairs.keys() == {frozenset({0, 3}), frozenset({1, 2})}


def test_without_rewards_such_a_pairing_is_left_to_chance_and_says_so(project: Project) -> None:
    make_prompt(project=project)
    batch = start(project, pairing=Pairing.SMALLEST_MARGIN)
    write_output(batch)
    take_in(batch=batch)
    assert set(Comparison.objects.values_list("pairing", flat=True)) == {""}


def test_what_a_replaced_policy_wrote_is_compared_once_it_serves_again(project: Project) -> None:
    make_prompt(project=project)
    batch = start(project, origin=Batch.Origin.TOP_UP)
    write_output(batch)
    Policy.objects.filter(name="Round 2").update(state=PolicyState.RETIRED)
    Policy.objects.filter(name="Round 1").update(state=PolicyState.SERVING)
    assert taken_in(batch) == 0
    assert batch.barren == []
    assert Response.objects.count() == 4
    states = Comparison.objects.values_list("state", flat=True)
    assert list(states) == ["retired", "retired"]
    promote(policy=named(project, "Round 2"), actor=None)
    assert list(states.all()) == ["open", "open"]


def cut_off_after(steps: int) -> Callable[[], AbstractContextManager[None]]:
    """Transactions for `take_in`; the one after so many ends as a killed worker's does."""
    begun = 0

    @contextmanager
    def fenced() -> Iterator[None]:
        nonlocal begun
        begun += 1
        with transaction.atomic():
            yield
            if begun > steps:
                raise KeyboardInterrupt

    return fenced


@pytest.fixture
def _two_at_a_time(monkeypatch) -> None:
    monkeypatch.setattr("generation.run_dirs.CHUNK", 2)


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
@pytest.mark.usefixtures("_two_at_a_time")
def test_a_batch_cut_off_anywhere_is_taken_in_once(project: Project, steps: int) -> None:
    for _ in range(6):
        make_prompt(project=project)
    batch = start(project)
    write_output(batch)
    with pytest.raises(KeyboardInterrupt):
        take_in(batch=batch, fenced=cut_off_after(steps))
    kept = Batch.objects.get(pk=batch.pk)
    assert (kept.live, kept.taken, kept.comparisons or 0) == (True, 2 * steps, 4 * steps)
    assert Response.objects.count() == 8 * steps
    for _ in range(2):
        assert taken_in(Batch.objects.get(pk=batch.pk)) == 12
    assert Response.objects.count() == 24
    assert set(Response.objects.values_list("times_sampled", flat=True)) == {1}
    assert Comparison.objects.count() == 12


@pytest.mark.usefixtures("_two_at_a_time")
def test_a_policy_replaced_while_its_batch_is_taken_in_leaves_no_comparison_open(
    project: Project,
) -> None:
    for _ in range(6):
        make_prompt(project=project)
    batch = start(project)
    write_output(batch)
    with pytest.raises(KeyboardInterrupt):
        take_in(batch=batch, fenced=cut_off_after(2))
    promote(policy=named(project, "Round 1"), actor=None)
    assert taken_in(batch) == 8
    states = Comparison.objects.values_list("state", flat=True)
    assert list(states) == [Comparison.State.RETIRED] * 12
    assert Response.objects.count() == 24
    roll_back(project=project, actor=None)
    assert list(states.all()) == [Comparison.State.OPEN] * 12


def test_what_follows_a_batch_happens_with_its_end_or_not_at_all(project: Project) -> None:
    make_prompt(project=project)
    batch = start(project)
    write_output(batch)

    def fail(batch: Batch) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        take_in(batch=batch, ended=fail)
    assert Batch.objects.get(pk=batch.pk).live


@pytest.mark.parametrize(
    "line",
    [
        '{"prompt_id": "1", "ind',
        "[1]",
        '{"text": "and nothing else"}',
        '{"policy": "999"}',
        '{"prompt_id": "999"}',
    ],
)
def test_nothing_is_stored_of_output_that_is_not_sound(project: Project, line: str) -> None:
    for _ in range(3):
        make_prompt(project=project)
    batch = start(project)
    write_output(batch)
    path = Path(batch.run_dir) / "responses.jsonl"
    if '"999"' in line:
        line = json.dumps(json.loads(path.read_text().splitlines()[0]) | json.loads(line))
    with path.open("a") as file:
        file.write(line + "\n")
    with pytest.raises(RunDirError, match="Nothing was taken in"):
        take_in(batch=batch)
    batch.refresh_from_db()
    assert (batch.state, batch.taken) == (BatchState.RUNNING, 0)
    assert not Response.objects.exists()


def test_prompts_that_failed_are_counted_once_and_the_rest_is_taken_in(project: Project) -> None:
    prompts = [make_prompt(project=project) for _ in range(3)]
    batch = start(project, origin=Batch.Origin.PROMOTION)

    def say(row: dict[str, Any], index: int) -> str | None:
        whole, half = str(prompts[0].pk), str(prompts[1].pk)
        if row["id"] == whole or (row["id"] == half and index % 2):
            return None
        return f"{index} of {row['id']}"

    write_output(batch, say=say)
    take_in(batch=batch)
    batch.refresh_from_db()
    assert (batch.done, batch.failures, batch.comparisons) == (2, 2, 3)
    assert batch.barren == [prompts[0].pk]


def test_responses_may_come_in_any_order(project: Project) -> None:
    prompts = [make_prompt(project=project) for _ in range(5)]
    batch = start(project, k=3)
    write_output(batch)
    path = Path(batch.run_dir) / "responses.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    take_in(batch=batch)
    for prompt in prompts:
        indexes = [r.sampling["index"] for r in prompt.responses.order_by("pk")]
        assert indexes == [0, 1, 2]


def test_the_user_goes_on_after_the_first_turn(project: Project) -> None:
    prompt = make_prompt(project=project)
    Prompt.objects.filter(pk=prompt.pk).update(metadata={"turns": ["Now shorter."]})
    batch = start(project)
    write_output(batch)
    take_in(batch=batch)
    following = Prompt.objects.exclude(pk=prompt.pk).get()
    assert following.messages[-1] == {"role": "user", "content": "Now shorter."}
    assert start(project).total == 1, "the second turn is not answered yet"


def test_taking_in_takes_few_queries_a_prompt(project: Project) -> None:
    def queries(prompts: int) -> int:
        for _ in range(prompts):
            make_prompt(project=project)
        batch = start(project)
        write_output(batch)
        with CaptureQueriesContext(
            connection,
        ) as found:
            take_in(batch=batch)
        return len(found)

    few, many = queries(40), queries(160)
    assert many - few <= 120 / 4


def test_the_record_holds_after_all_that(project: Project) -> None:
    make_prompt(project=project)
    batch = start(project)
    write_output(batch)
    take_in(batch=batch)
    call_command("check_record")


# The migration


def test_batches_of_one_policy_are_carried_over(project: Project) -> None:
    begun = make_batch(project=project)
    BatchPolicy.objects.all().delete()
    Batch.objects.filter(pk=begun.pk).update(started_at=begun.created_at)
    waiting = make_batch(project=project, state=BatchState.QUEUED)
    waiting.shares.all().delete()
    share = import_module("generation.migrations.0004_first_shares").share
    share(apps, None)
    share(apps, None)
    assert list(BatchPolicy.objects.values_list("batch", "policy", "weight")) == [
        (begun.pk, begun.leading_id, 1),
        (waiting.pk, waiting.leading_id, 1),
    ]
    samplers = list(Batch.objects.order_by("pk").values_list("sampler", flat=True))
    assert samplers == ["transformers", ""]


def test_a_selection_is_stored_as_json_and_read_again() -> None:
    selection = Selection(split="train", ids=(3, 1), search="ä", fewer_than=2, limit=9)
    assert Selection.from_json(json.loads(json.dumps(selection.as_json()))) == selection
    assert Selection.from_json({}) == Selection()


# Going on


@pytest.mark.parametrize("state", [BatchState.FAILED, BatchState.CANCELLED])
@pytest.mark.usefixtures("_two_at_a_time")
def test_a_batch_that_ended_too_early_goes_on_where_it_stopped(
    project: Project, state: BatchState
) -> None:
    for _ in range(6):
        make_prompt(project=project)
    actor = make_user()
    batch = start(project)
    write_output(batch)
    with pytest.raises(KeyboardInterrupt):
        take_in(batch=batch, fenced=cut_off_after(2))
    end_batch(batch=batch, state=state, error="The disk was full.")
    first = batch.job_id
    resume_batch(batch=batch, actor=actor)
    found = Batch.objects.get()
    assert (found.state, found.error, found.finished_at) == (BatchState.QUEUED, "", None)
    assert (found.resumed_by, found.taken) == (actor, 4)
    job = Job.objects.get(pk=found.job_id)
    assert (job.kind, job.payload, job.lane) == (KIND, {"batch": batch.pk}, "gpu")
    assert (job.pk != first, job.attempts) == (True, 0)
    before = (Path(batch.run_dir) / "spec.json").stat().st_mtime_ns
    prepare(found)
    assert (Path(batch.run_dir) / "spec.json").stat().st_mtime_ns == before
    assert taken_in(Batch.objects.get()) == 12
    assert Response.objects.count() == 24


def test_a_batch_goes_on_in_the_lane_of_its_own_sampler(project: Project, settings) -> None:
    settings.SAMPLER, settings.SERVER_URLS = "server", ["http://127.0.0.1:9"]
    make_prompt(project=project)
    batch = start(project)
    prepare(batch)
    end_batch(batch=batch, state=BatchState.FAILED)
    settings.SAMPLER = "transformers"
    resume_batch(batch=batch, actor=None)
    job = Job.objects.get(pk=batch.job_id)
    assert (job.lane, job.max_attempts) == ("light", SERVER_ATTEMPTS)


def test_what_cannot_go_on_is_refused_in_words(project: Project) -> None:
    make_prompt(project=project)
    batch = start(project)
    with pytest.raises(BatchLive):
        resume_batch(batch=batch, actor=None)
    end_batch(batch=batch, state=BatchState.CANCELLED)
    with pytest.raises(CannotGenerate, match="Batch 1 had not begun"):
        resume_batch(batch=batch, actor=None)
    following = start(project)
    write_output(following)
    write_output(batch)
    with pytest.raises(BatchLive):
        resume_batch(batch=batch, actor=None)
    take_in(batch=following)
    with pytest.raises(CannotGenerate, match="Batch 2 has succeeded"):
        resume_batch(batch=following, actor=None)
    assert not project.batches.filter(state=BatchState.QUEUED).exists()
    assert resume_batch(batch=batch, actor=None).live


def test_a_batch_without_a_place_is_not_taken_to_have_begun() -> None:
    assert not resumable(make_batch(state=BatchState.FAILED))
