"""A round of DPO, read from top to bottom: `run` is the story, the rest are its steps."""

import math
import resource
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from jobs.run_dir import StopRequest, append_event, append_jsonl, replace_dir
from labeling.policy_files import policy_digest
from training.trainer import checkpoint as checkpoints
from training.trainer.batches import Batch, all_batches, micro_batches, steps_of
from training.trainer.card import model_card
from training.trainer.checkpoint import Checkpoint
from training.trainer.config import Spec, load_spec
from training.trainer.data import Dataset, pair_ids, prepare
from training.trainer.evaluate import Scored, evaluate, score, summary
from training.trainer.model import (
    Policy,
    check_fits,
    check_source,
    export,
    load_policy,
    load_tokenizer,
    source_digest,
)
from training.trainer.reference import (
    Reference,
    check_first_loss,
    first_batches,
    frozen_reference,
    held_out_batches,
    reference_of_other,
    reference_of_start,
    saved_reference,
)
from training.trainer.rows import read_groups
from training.trainer.run_dir import (
    BadInput,
    Refused,
    RoundFiles,
    Stopped,
    drop_metrics_after,
    input_digests,
    library_versions,
    write_manifest,
)


@dataclass
class Round:
    """A round in progress."""

    files: RoundFiles
    spec: Spec
    origin: dict[str, Any]  # digests of all inputs; a checkpoint of other inputs is refused
    tokenizer: Any
    dataset: Dataset
    policy: Policy
    reference: Reference
    optimizer: torch.optim.Optimizer
    step: int = 0
    results: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0  # spent by earlier runs of this directory
    started: float = field(default_factory=time.monotonic)

    @property
    def total(self) -> int:
        """Optimizer steps of the whole round."""
        spec = self.spec
        return steps_of(self.dataset.train, size=spec.batch_groups, epochs=spec.epochs)

    @property
    def elapsed(self) -> float:
        """Seconds in all runs of this directory."""
        return self.seconds + time.monotonic() - self.started


def run(run_dir: Path, stop: StopRequest) -> None:
    """Train the round in `run_dir`, or go on with it; returns when its manifest is written."""
    files = RoundFiles(run_dir)
    if files.manifest.exists():
        return
    round_ = start(files, stop)
    if round_.step == 0:
        round_.results["held_out_before"] = log_held_out(round_)
    train(round_, stop)
    finish(round_)


def start(files: RoundFiles, stop: StopRequest) -> Round:
    """Everything before the first step: data, reference logps, policy, newest checkpoint."""
    spec = load_spec(files.spec)
    append_event(files.root, "start", versions=library_versions())
    for source in (spec.policy, spec.reference):
        check_source(source)
    origin = {
        "inputs": input_digests(files),
        "start_digest": source_digest(spec.policy),
        "reference_digest": source_digest(spec.reference),
    }
    tokenizer = load_tokenizer(spec.policy)
    dataset = prepare(tokenizer, read_groups(files.preferences), spec)
    append_event(files.root, "data_report", **dataset.report)
    saved = find_checkpoint(files, origin)
    policy, reference = models(spec, dataset, tokenizer, saved, stop)
    round_ = Round(
        files=files,
        spec=spec,
        origin=origin,
        tokenizer=tokenizer,
        dataset=dataset,
        policy=policy,
        reference=reference,
        optimizer=build_optimizer(spec, policy),
    )
    warn_early(round_)
    if saved is not None:
        resume(round_, saved)
    drop_metrics_after(files, round_.step if saved else -1)
    return round_


def find_checkpoint(files: RoundFiles, origin: dict[str, Any]) -> Checkpoint | None:
    """The newest whole checkpoint; BadInput if it was made from other inputs."""
    checkpoints.clean(files.checkpoints)
    saved = checkpoints.newest(files.root, files.checkpoints)
    if saved is not None and saved.state["origin"] != origin:
        changed = sorted(key for key in origin if saved.state["origin"].get(key) != origin[key])
        raise BadInput(
            f"{', '.join(changed)} changed since the checkpoint of step {saved.step}; put the "
            "files back as they were, or make a new run directory"
        )
    return saved


def models(
    spec: Spec, dataset: Dataset, tokenizer: Any, saved: Checkpoint | None, stop: StopRequest
) -> tuple[Policy, Reference]:
    """The policy at its start, and the reference logps; the two models never share memory."""
    other = None
    if saved is None and not spec.starts_as_reference:
        other = frozen_reference(spec, dataset, tokenizer, stop)
    policy = load_policy(spec)
    check_fits(policy, tokenizer, dataset.report["longest"])
    if saved is not None:
        return policy, saved_reference(saved.reference, dataset)
    if other is None:
        return policy, reference_of_start(spec, dataset, policy, stop)
    return policy, reference_of_other(spec, first_batches(dataset, spec)[0], policy, *other)


def build_optimizer(spec: Spec, policy: Policy) -> torch.optim.Optimizer:
    """AdamW; weight decay is for matrices, not for biases and norms."""
    parameters = list(policy.trainable().values())
    matrices = [p for p in parameters if p.ndim >= 2]
    vectors = [p for p in parameters if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": spec.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=spec.learning_rate)


def warn_early(round_: Round) -> None:
    """Warnings that need no step: settings that this data leaves without effect."""
    if not round_.dataset.held_out:
        append_event(
            round_.files.root,
            "warning",
            message="no prompt is held out, so there is no held-out accuracy",
        )
    if round_.spec.warmup_steps >= round_.total:
        append_event(
            round_.files.root,
            "warning",
            message=f"warmup_steps {round_.spec.warmup_steps} is not below the {round_.total} "
            "steps of this round: its full learning rate is never reached",
        )


def resume(round_: Round, saved: Checkpoint) -> None:
    """Go on exactly where the checkpoint was made."""
    checkpoints.restore(saved, round_.optimizer, round_.policy.trainable())
    round_.step = saved.step
    round_.results = saved.state["results"]
    round_.seconds = saved.state["seconds"]
    append_event(round_.files.root, "resume", step=saved.step)


def train(round_: Round, stop: StopRequest) -> None:
    """All steps that are left. Each step's numbers are on disk before the next begins."""
    spec = round_.spec
    batches = all_batches(
        round_.dataset.train,
        size=spec.batch_groups,
        seed=spec.seed,
        epochs=spec.epochs,
        start=round_.step,
    )
    for step, batch in batches:
        take_step(round_, step, batch)
        if step == round_.total:
            round_.results["held_out_after"] = log_held_out(round_)
        elif step % spec.eval_every == 0:
            log_held_out(round_)
        stopping = stop.requested and step < round_.total
        if step % spec.checkpoint_every == 0 or step == round_.total or stopping:
            save(round_)
        if stopping:
            raise Stopped(f"stopped after step {step}, which is saved; run it again to go on")


def take_step(round_: Round, step: int, batch: Batch) -> None:
    """One optimizer step: gradients, the checks that come before it, the update, its metrics."""
    spec = round_.spec
    began = time.monotonic()
    round_.optimizer.zero_grad(set_to_none=True)
    scored = accumulate(round_, batch)
    numbers = summary(scored)
    check_finite_losses(step, batch, scored)
    if step == 1:
        check_first_loss(numbers["loss"], round_.reference)
        round_.results["loss_step0"] = numbers["loss"]
    parameters = list(round_.policy.trainable().values())
    norm = float(torch.nn.utils.clip_grad_norm_(parameters, spec.max_grad_norm))
    if not math.isfinite(norm):
        raise non_finite("gradient", step, pair_ids(batch.groups))
    rate = learning_rate(step, round_.total, spec)
    for group in round_.optimizer.param_groups:
        group["lr"] = rate
    round_.optimizer.step()
    round_.step = step
    if step % spec.log_every == 0 or step == round_.total:
        speed = batch.tokens / (time.monotonic() - began)
        log(
            round_,
            numbers
            | {"grad_norm": norm, "learning_rate": rate, "tokens_per_s": speed}
            | {"memory_mb": peak_memory_mb(round_.policy.device)},
        )


def accumulate(round_: Round, batch: Batch) -> list[Scored]:
    """Gradients of the batch's mean pair loss, micro-batch by micro-batch.

    Each is divided by the number of pairs in the whole batch, so how the batch is cut changes
    nothing.
    """
    scored = []
    for micro in micro_batches(batch):
        losses, part = score(round_.policy, micro, round_.reference.logps, beta=round_.spec.beta)
        (losses.sum() / len(batch.pairs)).backward()
        scored.append(part)
    return scored


def check_finite_losses(step: int, batch: Batch, scored: Sequence[Scored]) -> None:
    """Refused, before the update, if any pair's loss is not finite."""
    losses = torch.cat([part.pairs.loss for part in scored]).isfinite().tolist()
    bad = [name for name, fine in zip(pair_ids(batch.groups), losses, strict=True) if not fine]
    if bad:
        raise non_finite("loss", step, bad)


def non_finite(what: str, step: int, pairs: list[str]) -> Refused:
    """The refusal for a number that is NaN or infinite."""
    return Refused(
        f"the {what} of step {step} is not finite (pairs {', '.join(pairs[:5])}); the step was "
        "not taken. Lower learning_rate, or look at these pairs; earlier checkpoints are kept",
        step=step,
        pairs=pairs,
    )


def learning_rate(step: int, total: int, spec: Spec) -> float:
    """Linear warmup to `learning_rate`, then linear decay that would reach 0 after the end."""
    if step <= spec.warmup_steps:
        return spec.learning_rate * step / spec.warmup_steps
    return spec.learning_rate * (total - step + 1) / (total - spec.warmup_steps)


def log(round_: Round, numbers: dict[str, Any]) -> None:
    """One line of metrics.jsonl."""
    head = {"step": round_.step, "total": round_.total}
    append_jsonl(round_.files.metrics, head | numbers | {"seconds": round(round_.elapsed, 3)})


def log_held_out(round_: Round) -> dict[str, float] | None:
    """Evaluate the held-out pairs as the policy stands, and log it; None without any."""
    batches = held_out_batches(round_.dataset, round_.spec)
    held_out = evaluate(round_.policy, batches, round_.reference.logps, beta=round_.spec.beta)
    if held_out is not None:
        log(round_, {"held_out": held_out})
    return held_out


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory so far, in MiB: the GPU's where there is one, else the process's."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10  # Linux counts KiB


def save(round_: Round) -> None:
    """A checkpoint of the round as it stands."""
    parameters = round_.policy.trainable()
    path = checkpoints.save(
        round_.files.checkpoints,
        Checkpoint(
            step=round_.step,
            weights=dict(parameters),
            optimizer=checkpoints.optimizer_tensors(round_.optimizer, parameters),
            reference=round_.reference.logps,
            state={
                "origin": round_.origin,
                "results": round_.results,
                "seconds": round_.elapsed,
            },
        ),
        keep=round_.spec.keep_checkpoints,
    )
    append_event(round_.files.root, "checkpoint", step=round_.step, path=path.name)


def finish(round_: Round) -> None:
    """The policy's folder, and the manifest that says the round is done."""
    files, results = round_.files, round_.results
    results |= {"steps": round_.step, "seconds": round(round_.elapsed, 3)}
    beside = files.root / ".policy"
    shutil.rmtree(beside, ignore_errors=True)
    card = model_card(round_.spec, round_.origin, round_.dataset.report, results)
    export(round_.policy, round_.tokenizer, beside, card)
    replace_dir(beside, files.policy)
    digests = {key: value for key, value in round_.origin.items() if key != "inputs"}
    write_manifest(
        files,
        policy_digest=policy_digest(files.policy),
        **digests,
        seed=round_.spec.seed,
        results=results,
    )
    append_event(files.root, "done", steps=round_.step)
