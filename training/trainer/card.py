"""The README.md that travels with a trained policy."""

from pathlib import Path
from typing import Any

from jobs.run_dir import read_json
from training.trainer.config import PolicySource, Spec

CARD = """---
library_name: {library}
tags: [dpo, prefloop]
base_model: {model}
---
# A policy trained from preferences

{architecture}, trained by Prefloop with Direct Preference Optimization (Rafailov et al. 2023)
for {steps} steps on {pairs} pairs of {groups} prompts; {held_out} pairs were held out.

| | |
|---|---|
| start | `{start_digest}` |
| reference | `{reference_digest}` |
| preferences | `{preferences}` |
| method | {method}, {dtype}, seed {seed} |
| beta | {beta} |
| learning rate | {learning_rate}, {epochs} epochs of batches of {batch_groups} prompts |
| loss before the first step | {loss_step0:.6f} |

| held out | before | after |
|---|---|---|
{rows}

Reward accuracy says how often the policy's implicit reward agrees with the annotators on
prompts it has not been trained on. It is not a measure of truth or safety.
"""
SHOWN = ("loss", "accuracy", "margin", "kl", "chosen_logp", "rejected_logp")


def model_card(
    spec: Spec, origin: dict[str, Any], report: dict[str, Any], results: dict[str, Any]
) -> str:
    """Markdown: what the policy was made from, how, and what was measured."""
    return CARD.format(
        library="peft" if spec.method == "lora" else "transformers",
        model=spec.policy.model,
        architecture=architecture_of(spec.policy),
        steps=results["steps"],
        pairs=report["pairs"]["train"],
        groups=report["groups"]["train"],
        held_out=report["pairs"]["held_out"],
        start_digest=origin["start_digest"],
        reference_digest=origin["reference_digest"],
        preferences=origin["inputs"]["preferences.jsonl"],
        method=spec.method,
        dtype=spec.dtype,
        seed=spec.seed,
        beta=spec.beta,
        learning_rate=spec.learning_rate,
        epochs=spec.epochs,
        batch_groups=spec.batch_groups,
        loss_step0=results["loss_step0"],
        rows="\n".join(_rows(results)),
    )


def architecture_of(source: PolicySource) -> str:
    """The model's architecture as its config names it."""
    config = read_json(Path(source.model) / "config.json")
    return ", ".join(config.get("architectures") or ["a causal language model"])


def _rows(results: dict[str, Any]) -> list[str]:
    before, after = results["held_out_before"], results["held_out_after"]
    if before is None or after is None:
        return ["| nothing was held out | | |"]
    return [f"| {name} | {before[name]:.4f} | {after[name]:.4f} |" for name in SHOWN]
