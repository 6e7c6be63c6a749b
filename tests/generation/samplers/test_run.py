"""A batch's run directory: nothing lost, nothing doubled, and every failure says why."""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import pytest

pytest.importorskip("torch")

from generation.samplers.__main__ import main  # noqa: E402
from generation.samplers.policy import load_tokenizer  # noqa: E402
from generation.samplers.protocol import SamplerSpec  # noqa: E402
from generation.samplers.run import run  # noqa: E402
from jobs.run_dir import check_spec, sha256_file  # noqa: E402
from labeling.chat import prompt_ids  # noqa: E402
from labeling.policy_files import policy_digest  # noqa: E402
from tests.generation.samplers.conftest import (  # noqa: E402
    make_run,
    policy_spec,
    rows,
    some_prompts,
    spec_for,
    start_program,
    user,
)

MANY = [{"id": f"p{n}", "messages": user("start " * (n % 9 + 1))} for n in range(60)]
SLOW = {"max_new_tokens": 40, "batch_prompts": 2}


def never() -> bool:
    return False


def written(run_dir: Path) -> int:
    """Responses written so far."""
    path = run_dir / "responses.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def keyed(run_dir: Path) -> dict[tuple[str, int], dict]:
    responses = rows(run_dir / "responses.jsonl")
    made = {(row["prompt_id"], row["index"]): row for row in responses}
    assert len(made) == len(responses)
    return made


def exact(run_dir: Path) -> dict[tuple[str, int], tuple]:
    return {key: (row["token_ids"], row["text"]) for key, row in keyed(run_dir).items()}


def tokenizer_of(policy: Path):
    return load_tokenizer(check_spec(SamplerSpec, spec_for(policy)).policies[0])


def test_a_batch_writes_every_response_with_its_provenance(policy, tmp_path):
    prompts = some_prompts()
    run_dir = make_run(tmp_path, spec_for(policy), prompts)
    assert main(["run", str(run_dir)]) == 0
    made = keyed(run_dir)
    assert set(made) == {(prompt["id"], index) for prompt in prompts for index in range(3)}
    tokenizer = tokenizer_of(policy)
    for prompt in prompts:
        row = made[prompt["id"], 1]
        assert set(row) == {
            "prompt_id",
            "index",
            "policy",
            "text",
            "prompt_token_ids",
            "token_ids",
            "logp",
            "finish_reason",
            "seed",
            "engine",
        }
        assert row["prompt_token_ids"] == prompt_ids(tokenizer, prompt["messages"])
        ended = row["finish_reason"] == "stop"
        said = row["token_ids"][:-1] if ended else row["token_ids"]
        text = tokenizer.decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert row["text"] == text.replace("\x00", "\ufffd")
    manifest = json.loads((run_dir / "manifest.json").read_text())
    assert manifest["policies"] == {"p": policy_digest(policy)}
    assert manifest["engine"].startswith("transformers ")
    assert manifest["inputs"]["prompts.jsonl"] == sha256_file(run_dir / "prompts.jsonl")
    assert manifest["outputs"]["responses.jsonl"] == sha256_file(run_dir / "responses.jsonl")
    assert manifest["counts"]["responses"] == 18
    assert manifest["counts"]["tokens"] == sum(len(row["token_ids"]) for row in made.values())
    metrics = rows(run_dir / "metrics.jsonl")
    assert (metrics[0]["done"], metrics[-1]["done"]) == (0, 6)
    assert {line["total"] for line in metrics} == {6}


def test_a_complete_batch_is_left_as_it_is(llama, tmp_path):
    run_dir = make_run(tmp_path, spec_for(llama), some_prompts())
    assert run(run_dir, never) == 0
    before = {path.name: path.read_bytes() for path in run_dir.iterdir()}
    assert run(run_dir, never) == 0
    del before["events.jsonl"]
    assert {name: (run_dir / name).read_bytes() for name in before} == before


def test_a_rerun_fills_only_the_gaps(llama, tmp_path):
    whole = make_run(tmp_path / "whole", spec_for(llama), some_prompts())
    assert run(whole, never) == 0
    gaps = make_run(tmp_path / "gaps", spec_for(llama), some_prompts())
    lines = (whole / "responses.jsonl").read_text().splitlines(keepends=True)
    kept = [line.replace('"text": "', '"text": "KEPT ') for line in lines[2::4]]
    (gaps / "responses.jsonl").write_text("".join(kept) + lines[0][:40])  # and a torn line
    assert run(gaps, never) == 0
    made = keyed(gaps)
    assert sum(row["text"].startswith("KEPT ") for row in made.values()) == len(kept)
    assert {key: row["token_ids"] for key, row in made.items()} == {
        key: row["token_ids"] for key, row in keyed(whole).items()
    }


def test_a_prompt_that_cannot_be_one_fails_alone(llama, tmp_path):
    prompts = [
        *some_prompts(2),
        {"id": "long", "messages": user("white wine " * 60)},
        {"id": "answered", "messages": [*user("hi"), {"role": "assistant", "content": "yes"}]},
        {"id": "empty", "messages": []},
        {"id": "no-list", "messages": "hi"},
    ]
    run_dir = make_run(tmp_path, spec_for(llama), prompts)
    assert run(run_dir, never) == 0
    reasons = {row["prompt_id"]: row["reason"] for row in rows(run_dir / "failures.jsonl")}
    assert set(reasons) == {"long", "answered", "empty", "no-list"}
    assert reasons["long"].startswith("too long: ")
    assert "last message must be the user's" in reasons["answered"]
    assert {key[0] for key in keyed(run_dir)} == {"p0", "p1"}
    counts = json.loads((run_dir / "manifest.json").read_text())["counts"]
    assert (counts["prompts"], counts["failed"]) == (6, 4)
    assert rows(run_dir / "metrics.jsonl")[-1]["done"] == 6


def test_a_template_that_refuses_a_prompt_fails_it_alone(llama, tmp_path):
    policy = shutil.copytree(llama, tmp_path / "policy")
    template = policy / "chat_template.jinja"
    template.write_text(
        "{% if 'tea' in messages[0]['content'] %}{{ raise_exception('no tea here') }}{% endif %}"
        + template.read_text()
    )
    prompts = [{"id": "tea", "messages": user("tea?")}, {"id": "wine", "messages": user("wine?")}]
    run_dir = make_run(tmp_path / "run", spec_for(policy), prompts)
    assert run(run_dir, never) == 0
    (failure,) = rows(run_dir / "failures.jsonl")
    assert failure["prompt_id"] == "tea"
    assert "no tea here" in failure["reason"]
    assert {key[0] for key in keyed(run_dir)} == {"wine"}


def test_special_tokens_in_a_person_s_text_fail_that_prompt_alone(llama, tmp_path):
    texts = ["</s><s><|assistant|>", "\x07 \u202e ~~~ \U0001f9ff", "<|endoftext|>", "{{ x }}"]
    prompts = [{"id": str(n), "messages": user(text)} for n, text in enumerate(texts)]
    run_dir = make_run(tmp_path, spec_for(llama), prompts)
    assert run(run_dir, never) == 0
    (failure,) = rows(run_dir / "failures.jsonl")
    assert failure["prompt_id"] == "0"
    assert "special token" in failure["reason"]
    assert {key[0] for key in keyed(run_dir)} == {"1", "2", "3"}


def test_the_batch_s_system_message_yields_to_the_prompt_s_own(llama, tmp_path):
    own = [{"role": "system", "content": "run"}, *user("tea")]
    prompts = [{"id": "plain", "messages": user("tea")}, {"id": "own", "messages": own}]
    run_dir = make_run(tmp_path, spec_for(llama, system="help me"), prompts, k=1)
    assert run(run_dir, never) == 0
    tokenizer = tokenizer_of(llama)
    given = {"role": "system", "content": "help me"}
    made = keyed(run_dir)
    fed = prompt_ids(tokenizer, [given, *user("tea")])
    assert made["plain", 0]["prompt_token_ids"] == fed
    assert made["own", 0]["prompt_token_ids"] == prompt_ids(tokenizer, own)


def test_a_stop_between_groups_keeps_what_was_written(llama, tmp_path):
    spec = spec_for(llama, batch_prompts=2)
    whole = make_run(tmp_path / "whole", spec, some_prompts())
    assert run(whole, never) == 0
    stopped = make_run(tmp_path / "stopped", spec, some_prompts())
    assert run(stopped, lambda: written(stopped) >= 12) == 75
    assert len(keyed(stopped)) == 12
    assert not (stopped / "manifest.json").exists()
    assert run(stopped, never) == 0
    assert keyed(stopped) == keyed(whole)  # batches fall alike, so even the logps are the same


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temprature": 1}, "unknown key temprature"),
        (
            {"draw": {"temperature": -1, "top_p": 0.0, "max_new_tokens": 1, "stop": []}},
            "temperature must be 0 (greedy) or more; top_p must be above 0",
        ),
        (
            {"draw": {"temperature": 1, "top_p": 1, "max_new_tokens": 1, "stop": [3]}},
            "draw.stop[0]",
        ),
        ({"sampler": "magic"}, "sampler must be one of vllm, server, transformers"),
        ({"sampler": "server"}, "server goes with its sampler"),
        ({"policies": []}, "policies must name a policy"),
        ({"score_under": ["q"]}, "score_under names a policy that is not there"),
        (
            {"policies": [policy_spec(Path(__file__).parent) | {"model": "/nowhere"}]},
            "/nowhere is not",
        ),
    ],
)
def test_a_bad_spec_exits_2_and_says_what_is_wrong(llama, tmp_path, capsys, change, message):
    run_dir = make_run(tmp_path, spec_for(llama) | change, some_prompts())
    assert main(["run", str(run_dir)]) == 2
    assert message in capsys.readouterr().err
    (error,) = [row for row in rows(run_dir / "events.jsonl") if row["kind"] == "error"]
    assert message in error["message"]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            2 * '{"id": "a", "messages": [], "policies": ["p"]}\n',
            "line 2: the id 'a' is used twice",
        ),
        ('{"id": 3, "messages": []}\n', "line 1: a prompt has an id (text), messages"),
        ('{"id": "a", "messages": [], "policies": ["q"]}\n', "line 1: policies must list"),
        ('{"id": "a", "messages": [], "policies": ["p"], "k": 2}\n', "line 1: unknown key k"),
        ('{"id": "a", "mess\n', "line 1: not JSON"),
    ],
)
def test_a_prompts_file_that_is_damaged_exits_2(llama, tmp_path, capsys, lines, message):
    run_dir = make_run(tmp_path, spec_for(llama), [])
    (run_dir / "prompts.jsonl").write_text(lines)
    assert main(["run", str(run_dir)]) == 2
    assert message in capsys.readouterr().err


def test_a_wrong_digest_exits_2_before_anything_is_written(llama, tmp_path, capsys):
    spec = spec_for(llama)
    spec["policies"][0]["digest"] = "0" * 64
    run_dir = make_run(tmp_path, spec, some_prompts())
    assert main(["run", str(run_dir)]) == 2
    assert "is not the policy that was asked for" in capsys.readouterr().err
    assert not (run_dir / "responses.jsonl").exists()


def test_inputs_that_change_under_a_begun_batch_exit_2(llama, tmp_path, capsys):
    run_dir = make_run(tmp_path, spec_for(llama, batch_prompts=2), some_prompts())
    assert run(run_dir, lambda: written(run_dir) >= 6) == 75
    make_run(tmp_path, spec_for(llama, batch_prompts=2, temperature=0.3), some_prompts())
    assert main(["run", str(run_dir)]) == 2
    assert "changed after the batch had begun" in capsys.readouterr().err
    assert len(keyed(run_dir)) == 6


def test_no_run_directory_exits_2(tmp_path, capsys):
    assert main(["run", str(tmp_path / "absent")]) == 2
    assert "is not a run directory" in capsys.readouterr().err


@pytest.fixture(scope="module")
def undisturbed(llama, tmp_path_factory) -> Path:
    """What the many prompts give when nothing disturbs them."""
    run_dir = make_run(tmp_path_factory.mktemp("whole"), spec_for(llama, **SLOW), MANY, k=2)
    assert run(run_dir, never) == 0
    return run_dir


def disturb(run_dir: Path, sent: signal.Signals) -> int:
    """Run the real program and send it a signal in the middle; its exit code."""
    program = start_program(run_dir)
    responses, end = run_dir / "responses.jsonl", time.monotonic() + 60
    while time.monotonic() < end and not (responses.exists() and responses.stat().st_size):
        time.sleep(0.002)
    os.kill(program.pid, sent)
    program.communicate(timeout=60)
    return program.returncode


def test_sigterm_exits_75_and_a_rerun_gives_what_an_undisturbed_run_gives(
    llama, tmp_path, undisturbed
):
    run_dir = make_run(tmp_path, spec_for(llama, **SLOW), MANY, k=2)
    assert disturb(run_dir, signal.SIGTERM) == 75
    assert 0 < len(keyed(run_dir)) < 120
    assert run(run_dir, never) == 0
    assert exact(run_dir) == exact(undisturbed)


def test_a_killed_batch_loses_and_doubles_nothing(llama, tmp_path, undisturbed):
    run_dir = make_run(tmp_path, spec_for(llama, **SLOW), MANY, k=2)
    assert disturb(run_dir, signal.SIGKILL) == -signal.SIGKILL
    assert not (run_dir / "manifest.json").exists()
    assert run(run_dir, never) == 0
    assert exact(run_dir) == exact(undisturbed)


def test_two_processes_never_work_on_one_batch(llama, tmp_path):
    run_dir = make_run(tmp_path, spec_for(llama, batch_prompts=1), some_prompts())
    inner: list[int] = []

    def try_again() -> bool:
        inner.append(run(run_dir, never))
        return False

    assert run(run_dir, try_again) == 0
    assert set(inner) == {75}
    assert len(keyed(run_dir)) == 18
