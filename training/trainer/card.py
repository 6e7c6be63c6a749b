"""The README.md that travels with a trained policy: what it was made from, how, what was measured.

No path of the machine is in it, and no text of a prompt or a response.
"""

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from jobs.run_dir import read_json
from training.trainer.config import PolicySource, Spec

CARD = """---
library_name: {library}
pipeline_tag: text-generation
tags:
- {objective}
- prefloop
---
# A policy trained from preferences

{architecture}, trained by Prefloop with {paper} for {steps} steps.{ending}

## Made from

{sources}

## Configuration

{configuration}

## Held-out prompts, before and after training

{held_out}

Reward accuracy says how often the policy's implicit reward agrees with the annotators on
prompts it has not been trained on. It is not a measure of truth or safety.

## What it writes, before and after training

{samples}

Responses to held-out prompts, drawn at temperature 1. Repetition is the share of 4-grams that
occur earlier in the same response.

## Training

The loss before the first step was {loss_step0:.6f}. Means over the pairs of a step's batch;
logratios are log π(y|x) − log π_ref(y|x) in nats.

{curve}

## Warnings

{warnings}
"""
PAPERS = {
    "dpo": "Direct Preference Optimization (Rafailov et al. 2023, arXiv:2305.18290)",
    "ipo": "Identity Preference Optimization (Azar et al. 2023, arXiv:2310.12036)",
    "hinge": "the hinge loss of SLiC and RSO (Liu et al. 2023, arXiv:2309.06657)",
    "robust": "robust DPO (Chowdhury et al. 2024, arXiv:2403.00409)",
    "simpo": "SimPO (Meng et al. 2024, arXiv:2405.14734)",
}
PATHS = ("policy", "reference", "reference_cache")  # of the spec: they mean nothing elsewhere
HELD_OUT = ["pairs", "loss", "accuracy", "margin", "kl", "chosen_logp", "rejected_logp"]
HELD_OUT += ["chosen_logratio", "rejected_logratio", "chosen_fell"]
SAMPLES = ["prompts", "tokens", "tokens_p95", "ended", "repetition"]
CURVE = ["loss", "accuracy", "margin", "kl", "chosen_logratio", "rejected_logratio"]
CURVE += ["chosen_tokens", "rejected_tokens"]
CURVE_ROWS = 10
NO_FIGURES = {
    "held_out": "No figures: nothing was held out.",
    "samples": "No figures: no responses were drawn.",
}
FOLDERS = re.compile(r"(?<![\w.])/(?:[^\s/]+/)+")  # the folders in an absolute path


def model_card(
    spec: Spec,
    origin: dict[str, Any],
    report: dict[str, Any],
    results: dict[str, Any],
    *,
    metrics: Iterable[dict[str, Any]] = (),
    events: Iterable[dict[str, Any]] = (),
) -> str:
    """Markdown with YAML front matter. `metrics` and `events` are the lines of those files."""
    adapter = spec.method == "lora" and spec.lora_export != "merged"
    messages = [FOLDERS.sub("", e["message"]) for e in events if e["kind"] == "warning"]
    return CARD.format(
        library="peft" if adapter else "transformers",
        objective=spec.objective,
        architecture=architecture_of(spec.policy),
        paper=PAPERS[spec.objective],
        steps=results["steps"],
        ending=_ending(results),
        sources=_table(("", ""), _sources(origin, report)),
        configuration=_table(("key", "value"), _configuration(spec)),
        held_out=_before_after(results, "held_out", HELD_OUT),
        samples=_before_after(results, "samples", SAMPLES),
        loss_step0=results["loss_step0"],
        curve=_curve([row for row in metrics if "loss" in row]),
        warnings="\n".join(f"- {message}" for message in dict.fromkeys(messages)) or "None.",
    )


def architecture_of(source: PolicySource) -> str:
    """The model's architecture as its config names it."""
    config = read_json(Path(source.model) / "config.json")
    return ", ".join(config.get("architectures") or ["a causal language model"])


def _ending(results: dict[str, Any]) -> str:
    said = ""
    if results.get("stopped_early"):
        said += " It stopped early: held-out accuracy rose no more."
    if results.get("best_step") is not None:
        said += f" Its weights are those of step {results['best_step']},"
        said += " where held-out accuracy was highest."
    return said


def _sources(origin: dict[str, Any], report: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("preferences, SHA-256", f"`{origin['inputs']['preferences.jsonl']}`"),
        ("start, digest of its files", f"`{origin['start_digest']}`"),
        ("reference, digest of its files", f"`{origin['reference_digest']}`"),
    ]
    rows += [
        (f"{what} (trained on / held out)", f"{report[what]['train']} / {report[what]['held_out']}")
        for what in ("groups", "pairs", "responses")
    ]
    for reason, count in sorted(report["dropped"].items()):
        rows.append((f"pairs dropped: {reason}", str(count)))
    if not report["dropped"]:
        rows.append(("pairs dropped", "0"))
    shown = (("shortened", "prompts without their oldest turns"), ("tied", "pairs with tied votes"))
    return rows + [(words, str(report[key])) for key, words in shown if report.get(key)]


def _configuration(spec: Spec) -> list[tuple[str, str]]:
    names = [field.name for field in fields(spec) if field.name not in PATHS]
    return [(name, f"`{json.dumps(getattr(spec, name))}`") for name in names]


def _before_after(results: dict[str, Any], what: str, names: Sequence[str]) -> str:
    before, after = results.get(f"{what}_before"), results.get(f"{what}_after")
    if not before or not after:
        return NO_FIGURES[what]
    return _table(
        ("", "before", "after"),
        [(name, _figure(before, name), _figure(after, name)) for name in names],
    )


def _curve(steps: Sequence[dict[str, Any]]) -> str:
    """About ten of the logged steps, evenly spread, with the first and the last."""
    count = min(CURVE_ROWS, len(steps))
    chosen = [steps[round(at * (len(steps) - 1) / max(count - 1, 1))] for at in range(count)]
    rows = [(str(row["step"]), *(_figure(row, name) for name in CURVE)) for row in chosen]
    return _table(("step", *CURVE), rows)


def _figure(row: dict[str, Any], name: str) -> str:
    value = row.get(name)
    return "–" if value is None else str(value) if isinstance(value, int) else f"{value:.4g}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
