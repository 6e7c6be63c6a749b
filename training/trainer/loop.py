"""A round of preference training, read from top to bottom: `run` is the story, the rest its parts.

What one step does is in step.py.
"""

import math
import shutil
from pathlib import Path
from typing import Any

from jobs.run_dir import RunDirError, StopRequest, read_jsonl, replace_dir
from labeling.policy_files import policy_digest
from training.trainer import checkpoint as checkpoints
from training.trainer import parallel
from training.trainer.batches import all_batches
from training.trainer.card import model_card
from training.trainer.checkpoint import Checkpoint
from training.trainer.config import Spec, load_spec
from training.trainer.data import Dataset, prepare
from training.trainer.evaluate import evaluate
from training.trainer.model import (
    Policy,
    check_fits,
    check_source,
    decoder_layers,
    export,
    load_policy,
    load_tokenizer,
    source_digest,
)
from training.trainer.objectives import objective_of
from training.trainer.reference import (
    Reference,
    ReferencePass,
    held_out_batches,
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
from training.trainer.samples import report_samples, sample_prompts
from training.trainer.state import Round, note
from training.trainer.step import build_optimizer, take_step
from training.trainer.stopping import Best


def run(run_dir: Path, stop: StopRequest) -> None:
    """Train the round in `run_dir`, or go on with it; returns when its manifest is written."""
    files = RoundFiles(run_dir)
    if files.manifest.exists():
        return
    parallel.join()
    round_ = start(files, stop)
    if round_.step == 0:
        round_.results["held_out_before"] = log_held_out(round_)
        round_.results["samples_before"] = sample(round_, "before")
    train(round_, stop)
    finish(round_)
    parallel.leave()


def start(files: RoundFiles, stop: StopRequest) -> Round:
    """Everything before the first step: data, reference logps, policy, newest checkpoint."""
    spec = load_spec(files.spec)
    note(files, "start", versions=library_versions(), processes=parallel.world())
    for source in (spec.policy, spec.reference):
        check_source(source)
    origin = {
        "inputs": input_digests(files),
        "start_digest": source_digest(spec.policy),
        "reference_digest": source_digest(spec.reference),
    }
    tokenizer = load_tokenizer(spec.policy)
    dataset = prepare(tokenizer, read_groups(files.preferences), spec)
    note(files, "data_report", **dataset.report)
    check_held_out(spec, dataset)
    saved = find_checkpoint(files, origin)
    scoring = ReferencePass(files, spec, dataset, objective_of(spec, tie_nu=dataset.tie_nu), stop)
    policy, reference = models(scoring, tokenizer, saved)
    round_ = Round(
        files=files,
        spec=spec,
        origin=origin,
        tokenizer=tokenizer,
        dataset=dataset,
        objective=scoring.objective,
        policy=policy,
        reference=reference,
        optimizer=build_optimizer(spec, policy),
    )
    say_early(round_)
    if saved is not None:
        resume(round_, saved)
    if parallel.leads():
        drop_metrics_after(files, round_.step if saved else -1)
    return round_


def check_held_out(spec: Spec, dataset: Dataset) -> None:
    """BadInput where the spec asks for what only held-out pairs can tell."""
    asked = ["early_stopping"] if spec.early_stopping is not None else []
    asked += ["keep=best"] if spec.keep == "best" else []
    if asked and not dataset.held_out:
        raise BadInput(
            f"{' and '.join(asked)} need held-out pairs, and there are none: raise "
            "held_out_share, or mark rows with the split held_out"
        )


def find_checkpoint(files: RoundFiles, origin: dict[str, Any]) -> Checkpoint | None:
    """The newest whole checkpoint; BadInput if it was made from other inputs."""
    saved = None
    if parallel.leads():
        checkpoints.clean(files.checkpoints)
        saved = checkpoints.newest(files.root, files.checkpoints)
    step = parallel.from_leader(None if saved is None else saved.step)
    if step is None:
        return None
    saved = saved or checkpoints.of_step(files.checkpoints, step)
    if saved.state["origin"] != origin:
        changed = sorted(key for key in origin if saved.state["origin"].get(key) != origin[key])
        raise BadInput(
            f"{', '.join(changed)} changed since the checkpoint of step {saved.step}; put the "
            "files back as they were, or make a new run directory"
        )
    return saved


def models(
    scoring: ReferencePass, tokenizer: Any, saved: Checkpoint | None
) -> tuple[Policy, Reference]:
    """The policy at its start, and the reference logps; the two models never share memory."""
    spec, dataset, other = scoring.spec, scoring.dataset, None
    if saved is None and not spec.starts_as_reference:
        other = scoring.of_frozen(tokenizer)
    policy = load_policy(spec)
    check_fits(policy, tokenizer, dataset.report["longest"])
    check_runs(spec, policy)
    if saved is not None:
        return policy, saved_reference(saved.reference, dataset)
    if other is None:
        return policy, scoring.of_start(policy)
    return policy, scoring.of_other(policy, *other)


def check_runs(spec: Spec, policy: Policy) -> None:
    """BadInput where the model cannot be run in the way that was asked for."""
    if policy.padded_because and parallel.world() > 1:
        raise BadInput(
            f"several processes cannot train this model together: {policy.padded_because}; run "
            "it in one process"
        )
    idle = [name for name in ("activation_checkpointing", "compile") if getattr(spec, name)]
    if idle and not decoder_layers(policy.base):
        raise BadInput(
            f"{' and '.join(idle)} would do nothing: {policy.base.config.model_type} models have "
            "no layers that this trainer can tell apart"
        )


def say_early(round_: Round) -> None:
    """What needs no step to be known: how the model is run, and settings without effect."""
    if round_.policy.padded_because:
        round_.event(
            "warning",
            message="prompts are not shared between responses and rows are padded, which is "
            f"slower: {round_.policy.padded_because}",
        )
    if not round_.dataset.held_out:
        round_.event("warning", message="no prompt is held out, so there is no held-out accuracy")
    if round_.spec.ties == "rao_kupper" and round_.dataset.tie_nu == 1:
        round_.event("warning", message="no vote to train on is a tie: modelling ties does nothing")
    evaluations = math.ceil(round_.total / round_.spec.eval_every)
    if round_.spec.early_stopping is not None and evaluations <= round_.spec.early_stopping:
        round_.event(
            "warning",
            message=f"early_stopping {round_.spec.early_stopping} is never reached in "
            f"{evaluations} evaluations: lower eval_every",
        )
    if round_.spec.warmup_steps >= round_.total:
        round_.event(
            "warning",
            message=f"warmup_steps {round_.spec.warmup_steps} is not below the {round_.total} "
            "steps of this round: its full learning rate is never reached",
        )


def resume(round_: Round, saved: Checkpoint) -> None:
    """Go on exactly where the checkpoint was made."""
    checkpoints.restore(saved, round_.optimizer, round_.policy.trainable())
    round_.step = saved.step
    round_.best = Best.from_json(saved.state["best"])
    round_.results = saved.state["results"]
    round_.seconds = saved.state["seconds"]
    round_.event("resume", step=saved.step)


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
        if round_.best.stops(spec.early_stopping):
            break
        take_step(round_, step, batch)
        last = step == round_.total
        is_best = (last or step % spec.eval_every == 0) and look(round_)
        last = last or round_.best.stops(spec.early_stopping)
        stopping = parallel.anyone(stop.requested) and not last
        if last or stopping or step % spec.checkpoint_every == 0 or (is_best and keeps(round_)):
            save(round_)
        if stopping:
            raise Stopped(f"stopped after step {step}, which is saved; run it again to go on")


def look(round_: Round) -> bool:
    """Evaluate the held-out pairs; True where the policy has never agreed with more of them."""
    held_out = log_held_out(round_)
    round_.results["held_out_after"] = held_out
    if held_out is None:
        return False
    round_.best = round_.best.after(round_.step, held_out["accuracy"])
    if round_.best.step == round_.step:
        round_.results["held_out_best"] = held_out
    return round_.best.step == round_.step


def keeps(round_: Round) -> bool:
    """Whether the round's policy is its best, not its last."""
    return round_.spec.keep == "best"


def log_held_out(round_: Round) -> dict[str, float] | None:
    """Evaluate the held-out pairs as the policy stands, and log it; None without any."""
    batches = held_out_batches(round_.dataset, round_.spec)
    held_out = evaluate(round_.policy, batches, round_.reference.logps, round_.objective)
    if held_out is not None:
        bad = [name for name, value in held_out.items() if not math.isfinite(value)]
        if bad:
            raise Refused(
                f"held-out {bad[0]} after step {round_.step} is not finite: the policy has "
                "diverged. Lower learning_rate; earlier checkpoints are kept",
                step=round_.step,
            )
        round_.log({"held_out": held_out})
    return held_out


def sample(round_: Round, when: str) -> dict[str, float] | None:
    """Let the policy answer held-out prompts; None where there are none."""
    rows = list(read_jsonl(round_.files.preferences))
    report = report_samples(
        round_.policy,
        round_.tokenizer,
        sample_prompts(round_.dataset.held_out, rows, round_.spec.sample_prompts),
        max_tokens=round_.spec.sample_tokens,
        seed=round_.spec.seed,
    )
    if report is None:
        return None
    round_.event("samples", when=when, metrics=report.metrics, texts=report.texts)
    return report.metrics


def save(round_: Round) -> None:
    """A checkpoint of the round as it stands."""
    parameters = round_.policy.trainable()
    saved = Checkpoint(
        step=round_.step,
        weights=checkpoints.in_one_piece(parameters),
        optimizer=checkpoints.in_one_piece(
            checkpoints.optimizer_tensors(round_.optimizer, parameters)
        ),
        reference=round_.reference.logps,
        state={
            "origin": round_.origin,
            "best": round_.best.to_json(),
            "results": round_.results,
            "seconds": round_.elapsed,
        },
    )
    if parallel.leads():
        path = checkpoints.save(
            round_.files.checkpoints,
            saved,
            keep=round_.spec.keep_checkpoints,
            best=round_.best.step if keeps(round_) else None,
        )
        round_.event("checkpoint", step=round_.step, path=path.name)


def finish(round_: Round) -> None:
    """The policy's folder, and the manifest that says the round is done."""
    files, results = round_.files, round_.results
    results |= {"steps": round_.step, "stopped_early": round_.step < round_.total}
    if keeps(round_) and round_.best.step is not None:
        take_best(round_, round_.best.step)
    results["samples_after"] = sample(round_, "after")
    results["seconds"] = round(round_.elapsed, 3)
    beside = files.root / ".policy"
    card = model_card(
        round_.spec,
        round_.origin,
        round_.dataset.report,
        results,
        metrics=read_jsonl(files.metrics),
        events=read_jsonl(files.root / "events.jsonl"),
    )
    if parallel.leads():
        shutil.rmtree(beside, ignore_errors=True)
    try:
        export(round_.policy, round_.spec, round_.tokenizer, beside, card)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)  # its space is needed to record the error
        raise
    if not parallel.leads():
        return
    replace_dir(beside, files.policy)
    digests = {key: value for key, value in round_.origin.items() if key != "inputs"}
    write_manifest(
        files,
        policy_digest=policy_digest(files.policy),
        **digests,
        seed=round_.spec.seed,
        results=results,
    )
    round_.event("done", steps=round_.step)


def take_best(round_: Round, step: int) -> None:
    """Put the weights back that agreed with most held-out pairs, unless they were lost."""
    if step != round_.step:
        try:
            saved = checkpoints.of_step(round_.files.checkpoints, step)
        except RunDirError as error:
            round_.event("warning", message=f"the last step is kept, not the best: {error}")
            return
        checkpoints.restore(saved, round_.optimizer, round_.policy.trainable())
    round_.results["best_step"] = step
    round_.results["held_out_after"] = round_.results["held_out_best"]
