"""Putting a round together: presets, what it would come to, another round as its beginning."""

import json
import struct
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from django.conf import settings
from django.http import QueryDict
from django.test import Client
from django.urls import reverse

from jobs.run_dir import append_event
from labeling.models import Evaluation, Policy, Project, Role, Split
from tests.builders import judge, make_comparison, make_policy, make_prompt, make_user
from tests.training.rounds import OPTIONS, REPORT, RESULTS, make_round, new_round, page_of
from training.estimate import Estimate, estimate
from training.filters import Filters
from training.forms import RoundForm
from training.material import Sample, count_pairs, look
from training.models import AfterSuccess, Round, RoundState
from training.presets import default_options, presets, suiting
from training.services import NotReady, follow_up, resume_round, start_round
from training.sizes import ModelSize, model_size
from training.spec import resolved
from training.starting import asked
from training.trainer.config import DEFAULTS

PARAMETERS = 1_000_000


def write_model(folder: Path, parameters: int = PARAMETERS, **config: Any) -> Path:
    """A model's folder with the headers of its files alone."""
    folder.mkdir(parents=True, exist_ok=True)
    told = {"num_hidden_layers": 2, "hidden_size": 64} | config
    (folder / "config.json").write_text(json.dumps(told))
    shape = {"dtype": "F32", "shape": [parameters // 1000, 1000], "data_offsets": [0, 0]}
    header = json.dumps({"weight": shape, "__metadata__": {"format": "pt"}}).encode()
    data = struct.pack("<Q", len(header)) + header
    (folder / "model.safetensors").write_bytes(data)
    return folder


@pytest.fixture
def model(ready: Project, tmp_path: Path) -> Policy:
    """The serving policy of a ready project, with files behind it."""
    [policy] = Policy.objects.filter(project=ready)
    policy.model_path = str(write_model(tmp_path / "model"))
    policy.save()
    return policy


def estimated(policy: Policy, **options: Any) -> Estimate:
    project = policy.project
    chosen = default_options(policy) | options
    pairs, sample = count_pairs(project), look(project, Filters())
    found = estimate(project, policy, chosen, pairs=pairs, sample=sample)
    assert found is not None
    return found


def logged(folder: Path, speed: float = 1000.0, steps: int = 5) -> Path:
    rows = [
        {"step": step, "total": steps, "loss": 0.6, "tokens_per_s": speed, "memory_mb": 700.0}
        for step in range(1, steps + 1)
    ]
    folder.mkdir(exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_a_models_size_is_read_from_its_headers_alone(tmp_path: Path) -> None:
    size = model_size(write_model(tmp_path / "one"))
    assert size == ModelSize(parameters=PARAMETERS, layers=2, width=64)
    gpt2 = write_model(tmp_path / "two", n_layer=4, n_embd=32)
    (gpt2 / "config.json").write_text(json.dumps({"n_layer": 4, "n_embd": 32}))
    assert model_size(gpt2) == ModelSize(parameters=PARAMETERS, layers=4, width=32)
    inner = write_model(tmp_path / "three")
    (inner / "config.json").write_text(
        json.dumps({"text_config": {"num_hidden_layers": 3, "hidden_size": 8}})
    )
    assert model_size(inner) == ModelSize(parameters=PARAMETERS, layers=3, width=8)


@pytest.mark.parametrize("text", ["", "[]", "{", '{"num_hidden_layers": "many"}', "{}"])
def test_files_that_make_no_sense_have_no_size(tmp_path: Path, text: str) -> None:
    folder = write_model(tmp_path / "model")
    (folder / "config.json").write_text(text)
    assert model_size(folder) is None
    write_model(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").write_bytes(b"\xff" * 16)
    assert model_size(tmp_path / "other") is None
    assert model_size(tmp_path / "nowhere") is None


def test_every_preset_is_one_that_the_trainer_takes_and_says_why(project: Project) -> None:
    [policy] = Policy.objects.filter(project=project)
    assert len({one.name for one in presets()}) == len(presets())
    for one in presets():
        form = RoundForm(OPTIONS, defaults=one.options)
        round_ = Round(project=project, start=policy, reference=policy, options=one.options)
        assert resolved(round_).items() >= one.options.items()
        assert (
            form.as_it_begins().items()
            >= {name: value for name, value in one.options.items() if value is not False}.items()
        )
        assert one.why


def test_what_suits_follows_the_models_size_and_the_number_of_pairs(
    project: Project, monkeypatch
) -> None:
    [policy] = Policy.objects.filter(project=project)
    assert [suiting(policy, n).key for n in (0, 2_000, 20_000)] == [
        "small-few",
        "small-some",
        "small-many",
    ]
    for size, key in ((1e9, "middle-few"), (2e10, "large-few")):
        monkeypatch.setattr("training.presets.model_bytes", lambda path, size=size: size)
        assert suiting(policy).key == key
    assert default_options(policy)["activation_checkpointing"] is True


def test_an_estimate_from_sizes_alone_is_a_wide_range_that_grows_with_the_work(
    model: Policy,
) -> None:
    once, twice = estimated(model, epochs=1), estimated(model, epochs=2)
    assert once.like is None
    assert once.parameters == PARAMETERS
    assert once.seconds.low < once.seconds.high
    assert twice.tokens == pytest.approx(2 * once.tokens, abs=1)
    assert twice.seconds.high > once.seconds.high
    assert once.memory.low > 16 * PARAMETERS
    assert estimated(model, method="lora").memory.high < once.memory.high
    larger = estimated(model, dtype="bfloat16", activation_checkpointing=True)
    assert larger.memory.low <= once.memory.low


def test_an_estimate_stands_on_the_last_round_of_the_same_kind(
    model: Policy, tmp_path: Path
) -> None:
    make_round(model.project, RoundState.SUCCEEDED, logged(tmp_path / "old", 10.0), options=FULL)
    last = make_round(model.project, RoundState.FAILED, logged(tmp_path / "run"), options=FULL)
    found = estimated(model)
    assert (found.like, found.tokens_known) == (last, False)
    assert found.memory.low < 700 * 2**20 < found.memory.high
    assert estimated(model, method="lora").like is None, "adapters are another kind"
    slower = logged(tmp_path / "run", 100.0) and estimated(model)
    assert slower.seconds.low > found.seconds.low
    append_event(tmp_path / "run", "data_report", **REPORT)
    assert estimated(model).tokens_known


FULL = {"method": "full"}


def test_without_files_or_pairs_nothing_is_told(ready: Project) -> None:
    [policy] = Policy.objects.filter(project=ready)
    pairs = count_pairs(ready)
    assert estimate(ready, policy, {}, pairs=pairs, sample=look(ready, Filters())) is None
    assert estimate(ready, policy, {}, pairs=pairs, sample=Sample()) is None


def test_the_data_is_told_before_the_start(held_out: Project, manager: Client) -> None:
    policy = make_policy(project=held_out, name="Writer")
    prompt = make_prompt(project=held_out, split=Split.TRAIN)
    for _ in range(2):
        texts = ["x" * 900, "y" * 100]
        judge(comparison=make_comparison(prompt=prompt, texts=texts, policy=policy))
        policy = make_policy(project=held_out)
    sample = look(held_out, Filters())
    assert (sample.train, sample.held_out, sample.repeated) == (12, 1, 1)
    assert sum(sample.differences) == 12
    assert sample.policies[0] == [0, 20]
    html = manager.get(new_round(held_out)).content.decode()
    for words in ("11 to train on, 1 held out", "Pairs judged before", "Writer", "chosen longer"):
        assert words in html
    assert "chosen longer by 500 to 1" in html


def test_much_longer_chosen_responses_and_little_agreement_are_worth_knowing(
    ready: Project, manager: Client
) -> None:
    people = [make_user(role=Role.ANNOTATOR, project=ready) for _ in range(2)]
    for _ in range(30):
        prompt = make_prompt(project=ready, split=Split.TRAIN)
        long = make_comparison(prompt=prompt, texts=["x" * 90, "y"], overlap=3)
        judge(comparison=long, annotator=people[0])
        judge(comparison=long, annotator=people[1], tiers=[[1], [0]])
        judge(comparison=long)
    html = manager.get(new_round(ready)).content.decode()
    assert "is the longer one in" in html
    assert "only 67" in html


def test_looking_again_starts_nothing_and_tells_what_was_filled_in(
    ready: Project, manager: Client
) -> None:
    address = reverse("training:preview_round", args=[ready.slug])
    sent = OPTIONS | {"beta": "0.7", "until": "2001-01-01"}
    answer = manager.post(address, sent, headers={"hx-request": "true"})
    html = answer.content.decode()
    assert html.lstrip().startswith("<aside")
    assert "judged on other days" in html
    assert 'data-blocked="yes"' in html
    assert '<dd class="mono"><code>0.7</code></dd>' in html
    whole = manager.post(address, sent)
    assert whole.status_code == 200
    assert 'value="2001-01-01"' in whole.content.decode()
    assert manager.post(address, sent | {"beta": "-1"}).status_code == 422
    assert manager.get(address).status_code == 405
    assert not ready.rounds.exists()


def test_a_round_like_another_begins_with_all_that_one_had(ready: Project, manager: Client) -> None:
    before = make_round(
        ready,
        RoundState.FAILED,
        options={
            "beta": 0.7,
            "objective": "simpo",
            "target_margin": 1.0,
            "warmup_steps": 9,
            "lora_rank": 4,
        },
        filters={"agreement": 80},
        after=AfterSuccess.EVALUATE,
    )
    assert f"?like={before.number}" in manager.get(page_of(before)).content.decode()
    html = manager.get(f"{new_round(ready)}?like={before.number}").content.decode()
    assert 'name="beta" value="0.7"' in html
    assert 'name="agreement" value="80"' in html
    assert f'name="like" value="{before.number}"' in html
    assert '<option value="simpo" selected>' in html
    sent = OPTIONS | {"like": str(before.number), "after": "nothing"}
    assert manager.post(new_round(ready), sent).status_code == 302
    made = ready.rounds.get(state=RoundState.QUEUED)
    assert made.like == before
    assert made.options["warmup_steps"] == 9, "what no form has comes along"
    assert "lora_rank" not in made.options, "unless it means nothing any more"
    assert "Begun like" in manager.get(page_of(made)).content.decode()


def test_a_preset_changes_the_options_and_keeps_the_rest(ready: Project, manager: Client) -> None:
    before = make_round(ready, RoundState.FAILED, filters={"agreement": 80})
    query = f"?like={before.number}&preset=large-many"
    html = manager.get(new_round(ready) + query).content.decode()
    assert '<option value="lora" selected>' in html
    assert 'name="agreement" value="80"' in html
    assert "activations are computed twice" in html
    for odd in ("?preset=none", "?like=x", "?like=99"):
        assert manager.get(new_round(ready) + odd).status_code == 200


def test_what_suits_and_was_switched_off_stays_off(
    ready: Project, manager: Client, monkeypatch
) -> None:
    monkeypatch.setattr("training.presets.model_bytes", lambda path: 10**11)
    assert manager.post(new_round(ready), OPTIONS).status_code == 302
    assert ready.rounds.get().options["activation_checkpointing"] is False


def test_the_resolved_configuration_names_every_key_of_the_spec(
    ready: Project, manager: Client
) -> None:
    html = manager.get(new_round(ready)).content.decode()
    assert all(f">{key}</code></dt>" in html for key in DEFAULTS)


def test_a_round_that_had_begun_goes_on_and_one_that_had_not_does_not(
    ready: Project, manager: Client, tmp_path: Path
) -> None:
    settings.RUNS_DIR.mkdir(parents=True, exist_ok=True)
    round_ = start_round(project=ready, actor=None)
    Round.objects.update(state=RoundState.FAILED, error="It broke.")
    round_.refresh_from_db()
    address = reverse("training:resume_round", args=[ready.slug, round_.number])
    assert address not in manager.get(page_of(round_)).content.decode()
    answer = manager.post(address, follow=True)
    assert "had not begun" in answer.content.decode()
    from training.snapshots import freeze

    round_.snapshot = freeze(project=ready, path=tmp_path / "frozen.jsonl")
    round_.save()
    assert address in manager.get(page_of(round_)).content.decode()
    assert "goes on where it stopped" in manager.post(address, follow=True).content.decode()
    was = round_.job_id
    round_.refresh_from_db()
    assert (round_.state, round_.error) == (RoundState.QUEUED, "")
    assert round_.job_id != was
    with pytest.raises(NotReady):
        resume_round(round_=round_, actor=None)


def test_of_two_rounds_that_would_go_on_one_does(ready: Project, tmp_path: Path) -> None:
    from training.snapshots import freeze

    frozen = freeze(project=ready, path=tmp_path / "frozen.jsonl")
    first, second = (
        make_round(ready, RoundState.CANCELLED, snapshot=frozen),
        make_round(ready, RoundState.FAILED, snapshot=frozen),
    )
    resume_round(round_=first, actor=None)
    with pytest.raises(NotReady, match="started just now"):
        resume_round(round_=second, actor=None)
    second.refresh_from_db()
    assert second.state == RoundState.FAILED


def succeeded(project: Project, after: AfterSuccess) -> Round:
    made = make_policy(project=project, name="Made")
    return make_round(
        project, RoundState.SUCCEEDED, policy=made, after=after, results=dict(RESULTS)
    )


def test_success_puts_the_policy_before_people_once(held_out: Project, manager: Client) -> None:
    round_ = succeeded(held_out, AfterSuccess.PROMOTE)
    for _ in range(2):
        follow_up(round_=round_)
    evaluation = Evaluation.objects.get(policy=round_.policy)
    assert evaluation.promote_if_better
    html = manager.get(page_of(round_)).content.decode()
    assert reverse("labeling:evaluation", args=[held_out.slug, evaluation.pk]) in html


def test_where_it_cannot_the_page_says_why(ready: Project, manager: Client) -> None:
    ready.prompts.filter(split=Split.HELD_OUT).delete()
    round_ = succeeded(ready, AfterSuccess.EVALUATE)
    follow_up(round_=round_)
    assert not Evaluation.objects.exists()
    round_.refresh_from_db()
    assert round_.state == RoundState.SUCCEEDED
    assert "No prompt is held out" in manager.get(page_of(round_)).content.decode()
    follow_up(round_=succeeded_like_nothing(ready))
    assert not Evaluation.objects.exists()


def succeeded_like_nothing(project: Project) -> Round:
    made = make_policy(project=project, name="Other")
    return make_round(project, RoundState.SUCCEEDED, policy=made, results=dict(RESULTS))


def test_a_clone_keeps_to_people_who_have_left_and_criteria_that_are_gone(
    ready: Project, manager: Client
) -> None:
    gone = make_user()
    filters = Filters(annotators=(gone.pk,), ratings={"tone": 4})
    make_round(ready, RoundState.FAILED, filters=filters.as_json())
    html = manager.get(f"{new_round(ready)}?like=1").content.decode()
    assert gone.username in html
    sent = OPTIONS | {"like": "1", "annotators": str(gone.pk), "rating_tone": "4"}
    preview = reverse("training:preview_round", args=[ready.slug])
    assert manager.post(preview, sent).status_code == 200
    asked_for = asked(ready, QueryDict(), QueryDict(urlencode(sent)))
    assert asked_for.filters.is_valid()
    assert asked_for.filters.filters == filters
