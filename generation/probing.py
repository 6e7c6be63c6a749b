"""Probes of a batch's policies: what the trainer's program says of them, for the sampler to match.

A policy is scored once on this installation, from its own files; the numbers are kept by content.
"""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from django.conf import settings

from jobs.outcome import failure_words
from jobs.process import run_program
from jobs.run_dir import EXIT_DONE, EXIT_STOPPED, read_json, read_jsonl, write_jsonl
from jobs.running import JobFailed, RunningJob, TryAgain
from labeling.policy_files import policy_digest

SILENCE_S = 15 * 60.0
PROBES = "probes.jsonl"
PROVEN_SAMPLERS = ("vllm", "server")  # the transformers sampler loads the files themselves
PROBES_VERSION = 1  # counts up where the trainer's program comes to score other texts, or otherwise
ADVICE = "Free memory, then let the batch go on."


def write_probes(job: RunningJob, run_dir: Path) -> None:
    """Write probes.jsonl where the batch's sampler is to be proven; not again in a rerun.

    JobFailed where a policy cannot be read or scored; TryAgain where scoring was stopped.
    """
    spec = read_json(run_dir / "spec.json")
    unproven = spec["server"] is not None and spec["server"]["unproven"]
    if spec["sampler"] not in PROVEN_SAMPLERS or unproven or (run_dir / PROBES).exists():
        return
    rows = []
    base_digest = cache(policy_digest)
    for policy in spec["policies"]:
        job.progress(0, 0, "looking for what proves the policy")
        try:
            base = base_digest(Path(policy["model"])) if policy["adapter"] else None
        except OSError as error:
            raise JobFailed(f"{policy['model']} cannot be read: {error.strerror}.") from None
        path = _kept(policy, base, spec["dtype"])
        if not path.exists():
            _score(job, run_dir, policy, spec, path)
        rows += [{"policy": policy["id"], **row} for row in read_jsonl(path, torn=False)]
    write_jsonl(run_dir / PROBES, rows)


def _kept(policy: dict[str, Any], base: str | None, dtype: str) -> Path:
    """Where a policy's probes are kept. An adapter's digest does not cover its base model's."""
    key = repr((PROBES_VERSION, policy["digest"], policy["model"], base, dtype))
    folder: Path = settings.RUNS_DIR / "probes"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder / f"{hashlib.sha256(key.encode()).hexdigest()}.jsonl"


def _score(
    job: RunningJob, run_dir: Path, policy: dict[str, Any], spec: dict[str, Any], path: Path
) -> None:
    job.progress(0, 0, "scoring texts that prove the policy")
    adapter = ["--adapter", policy["adapter"]] if policy["adapter"] else []
    command = [settings.TRAINER_PYTHON, "-m", "training.trainer", "probe", str(path)]
    command += ["--policy", policy["model"], "--dtype", spec["dtype"], *adapter]
    code = run_program(
        job,
        command,
        cwd=settings.BASE_DIR,
        # A batch that servers write holds no GPU of this machine: a round may be training on it.
        env={"CUDA_VISIBLE_DEVICES": ""} if spec["sampler"] == "server" else {},
        on_tick=lambda: None,
        log_path=run_dir / "program.log",
        silence_s=SILENCE_S,
    )
    if code == EXIT_STOPPED:
        raise TryAgain("Scoring the policy was stopped from outside.")
    if code != EXIT_DONE:
        raise JobFailed(failure_words(run_dir, code, advice=ADVICE))
