"""The program with vLLM's real engine: proven, killed, taken up again; a wrong adapter refused."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from jobs.run_dir import write_jsonl  # noqa: E402
from tests.generation.samplers.conftest import (  # noqa: E402
    ROOT,
    make_run,
    policy_spec,
    rows,
    save_adapter,
    spec_for,
    start_program,
    user,
)
from tests.generation.samplers.vllm_env import vllm_python  # noqa: E402

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("vllm offline")]
LIMIT_S = 300
TOLERANCE = 1e-3  # nats a token, fp32
PROMPTS = [{"id": f"p{n}", "messages": user("start " * (n % 9 + 1))} for n in range(80)]
PREFERENCES = [
    {"prompt": f"how do i fix {word}?", "chosen": "start with soap", "rejected": "run, run!"}
    for word in ("my old bike", "the red wine", "bread", "tea", "my shirt", "it")
]


def program(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def trained(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The adapter that a real round made."""
    folder = tmp_path_factory.mktemp("round")
    write_jsonl(folder / "rows.jsonl", PREFERENCES)
    run_dir = str(folder / "run")
    given = ["--policy", str(llama), "--preferences", str(folder / "rows.jsonl")]
    settings = ["method=lora", "lora_rank=4", "lora_alpha=16", "learning_rate=0.005", "epochs=6"]
    settings += ["max_length=96", "sample_prompts=0", "held_out_share=0.0"]
    program("training.trainer", "init", run_dir, *given, "--set", *settings)
    program("training.trainer", "run", run_dir)
    return folder / "run" / "policy"


def probes_of(folder: Path, id: str, model: Path, adapter: Path | None) -> list[dict[str, Any]]:
    """What the trainer's program says of a policy."""
    path = folder / f"probes-{id}.jsonl"
    given = ["--adapter", str(adapter)] if adapter else []
    program("training.trainer", "probe", str(path), "--policy", str(model), *given)
    return [{"policy": id, **row} for row in rows(path)]


def save_second(llama: Path, folder: Path) -> Path:
    """The same model with other weights, as a round that trains all of them leaves it."""
    shutil.copytree(llama, folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(llama)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def run_dir(llama: Path, trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A batch of four policies with probes; each prompt is answered by all of them.

    The last is a whole model of its own: a second engine, loaded after the first.
    """
    folder = tmp_path_factory.mktemp("batch")
    other = save_adapter(llama, folder / "other")
    second = save_second(llama, folder / "second")
    named = {
        "base": (llama, None),
        "trained": (llama, trained),
        "other": (llama, other),
        "second": (second, None),
    }
    policies = [policy_spec(model, adapter, id=id) for id, (model, adapter) in named.items()]
    spec = spec_for(
        llama,
        sampler="vllm",
        policies=policies,
        max_new_tokens=24,
        score_under=["trained", "base"],
    )
    asked = [{**prompt, "policies": [*named, "trained"]} for prompt in PROMPTS]
    asked.append({"id": "long", "messages": user("white wine " * 60), "policies": ["base"]})
    made = make_run(folder / "run", spec, asked)
    probes = [row for id, files in named.items() for row in probes_of(folder, id, *files)]
    write_jsonl(made / "probes.jsonl", probes)
    return made


def run(run_dir: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [vllm_python(), "-m", "generation.samplers", "run", str(run_dir)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
    )


@pytest.fixture(scope="module")
def refused(run_dir: Path) -> subprocess.CompletedProcess[str]:
    """A first run whose engine holds another adapter than the one whose probes were written."""
    true = rows(run_dir / "probes.jsonl")
    mixed = {"trained": "other", "other": "trained"}
    swapped = [row | {"policy": mixed.get(row["policy"], row["policy"])} for row in true]
    write_jsonl(run_dir / "probes.jsonl", swapped)
    done = run(run_dir)
    # The other base model's engine may have had its turn before; it is who it says it is.
    assert {row["policy"] for row in rows(run_dir / "responses.jsonl")} <= {"second"}
    write_jsonl(run_dir / "probes.jsonl", true)
    return done


@pytest.fixture(scope="module")
def killed(run_dir: Path, refused: object) -> bytes:
    """What a second run had written when it was killed."""
    path, end = run_dir / "responses.jsonl", time.monotonic() + LIMIT_S
    before = path.stat().st_size
    program = start_program(run_dir, vllm_python(), start_new_session=True)
    while time.monotonic() < end and path.stat().st_size == before:
        time.sleep(0.005)
    os.killpg(program.pid, signal.SIGKILL)
    program.communicate(timeout=60)
    return path.read_bytes()


@pytest.fixture(scope="module")
def finished(run_dir: Path, killed: bytes) -> Path:
    """The run directory after a third run, to its end."""
    done = run(run_dir)
    assert done.returncode == 0, done.stderr[-3000:]
    return run_dir


def test_an_adapter_that_is_not_the_policy_is_refused(
    refused: subprocess.CompletedProcess[str],
) -> None:
    assert refused.returncode == 2, refused.stderr[-3000:]
    assert "this is not the policy you think" in refused.stderr


def test_a_killed_batch_goes_on_and_loses_and_doubles_nothing(
    killed: bytes, finished: Path
) -> None:
    kept = killed[: killed.rindex(b"\n") + 1]
    assert 0 < kept.count(b"\n") < 5 * len(PROMPTS)
    path = finished / "responses.jsonl"
    assert path.read_bytes().startswith(kept)
    made = [(row["prompt_id"], row["index"]) for row in rows(path)]
    assert len(made) == len(set(made))
    assert set(made) == {(prompt["id"], index) for prompt in PROMPTS for index in range(5)}
    (failure,) = rows(finished / "failures.jsonl")
    assert failure["prompt_id"] == "long"
    assert failure["reason"].startswith("too long: ")


def test_the_trained_policy_s_logps_are_the_trainer_s(
    finished: Path, llama: Path, trained: Path
) -> None:
    """The same token ids, by the trainer's own code, for what vLLM sampled and what it scored."""
    from training.trainer.config import PolicySource
    from training.trainer.probes import logps

    made = {(row["prompt_id"], row["index"]): row for row in rows(finished / "responses.jsonl")}
    told = [(row["policy"], row, row["logp"]) for row in made.values()]
    scores = rows(finished / "scores.jsonl")
    assert len(scores) == 80 * (3 + 4)  # trained scores three of five responses, base four
    told += [(row["policy"], made[row["prompt_id"], row["index"]], row["logp"]) for row in scores]
    second = str(finished.parent / "second")
    for policy, model, adapter in (
        ("base", str(llama), None),
        ("trained", str(llama), str(trained)),
        ("second", second, None),
    ):
        mine = [(row, logp) for name, row, logp in told if name == policy]
        source = PolicySource(model=model, adapter=adapter)
        texts = [(row["prompt_token_ids"], row["token_ids"]) for row, _ in mine]
        expected = logps(source, "float32", texts)
        worst = max(
            abs(logp - by_trainer) / len(row["token_ids"])
            for (row, logp), by_trainer in zip(mine, expected, strict=True)
        )
        assert worst < TOLERANCE, policy


def test_the_run_says_how_well_it_was_proven(finished: Path) -> None:
    loaded = [row for row in rows(finished / "events.jsonl") if row["kind"] == "loaded"]
    proven = {id: worst for row in loaded for id, worst in row["proven"].items()}
    assert set(proven) == {"base", "trained", "other", "second"}
    assert max(proven.values()) < TOLERANCE
    assert all(row["engine"].startswith("vllm ") for row in loaded)
    manifest = json.loads((finished / "manifest.json").read_text())
    assert set(manifest["policies"]) == set(proven)
