"""An adapter merged into the model that it is on: a policy of its own, which says the same.

Merged in fp32 and stored as the model was. Before it counts, the merged policy has scored a few
texts as the adapter did, both in fp32: what differs is what storing rounds away.
"""

import re
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from jobs.run_dir import append_jsonl, check_spec, replace_dir, write_json
from labeling.policy_files import check_policy_dir, policy_digest
from training.trainer.card import architecture_of
from training.trainer.config import PolicySource, Spec, resolve_spec
from training.trainer.model import SAFELY, load_reference, load_tokenizer, source_digest
from training.trainer.probes import TEXTS, logps, text_ids
from training.trainer.run_dir import BadInput, Refused, RoundFiles, library_versions

PHASES = ("loading", "merging", "writing", "comparing")
# Nats a token: what the order of sums explains, and what half precision rounds away.
EXACT, ROUNDED = 1e-3, 0.1
LONGEST_CARD = 60_000  # characters of the adapter's own card
FRONT = re.compile(r"\A---[ \t]*\n.*?\n---[ \t]*(?:\n|\Z)", re.DOTALL)
CARD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- prefloop
---
# A policy whose adapter was merged into its model

{architecture}. It says what the adapter said: the log-probability of each of {texts} texts differs
by at most {difference:.2g} nats a token. Weights are stored as {dtype}.

## Made from

| | |
| --- | --- |
| model, digest of its files | `{model}` |
| adapter, digest of its files | `{adapter}` |

{card}"""


def merge(source: PolicySource, run_dir: Path) -> None:
    """Write `run_dir`/policy and the manifest that says it is done; nothing where it is already."""
    files = RoundFiles(run_dir)
    if files.manifest.exists():
        return
    if source.adapter is None:
        raise BadInput("there is no adapter to merge")
    beside = run_dir / ".policy"
    shutil.rmtree(beside, ignore_errors=True)
    try:
        stored = _write(source, beside, files)
        _tell(files, "comparing")
        difference = largest_difference(source, beside)
        tolerance = EXACT if stored == torch.float32 else ROUNDED
        if not difference <= tolerance:  # NaN is no agreement either
            raise Refused(
                f"the merged policy does not say what the adapter said: the log-probability of a "
                f"token differs by up to {difference:.3g} nats, and rounding explains "
                f"{tolerance:g}. Nothing was registered; the adapter stays as it is"
            )
        card = merged_card(source, difference, stored)
        (beside / "README.md").write_text(card, encoding="utf-8")
        check_policy_dir(beside)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    replace_dir(beside, files.policy)
    manifest = {
        "schema": 1,
        "policy_digest": policy_digest(files.policy),
        "start_digest": source_digest(source),
        "largest_difference": difference,
        "versions": library_versions(),
    }
    write_json(files.manifest, manifest)


def _write(source: PolicySource, folder: Path, files: RoundFiles) -> torch.dtype:
    """The merged model and its tokenizer; returns the dtype in which it is stored."""
    _tell(files, "loading")
    tokenizer = load_tokenizer(source)
    stored = stored_dtype(source)
    model = load_reference(check_spec(Spec, resolve_spec(source, ["method=lora"]))).model
    _tell(files, "merging")
    try:
        merged = model.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise BadInput(f"the adapter cannot be merged: {error}") from error
    _tell(files, "writing")
    merged.to(stored).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return stored


def stored_dtype(source: PolicySource) -> torch.dtype:
    """What the model's weights are stored as; float32 where its configuration does not say."""
    named: Any = AutoConfig.from_pretrained(source.model, **SAFELY).dtype
    return named if isinstance(named, torch.dtype) else torch.float32


def largest_difference(source: PolicySource, merged: Path) -> float:
    """Between the two policies' log-probabilities, in nats a token."""
    texts = text_ids(load_tokenizer(source))
    before = logps(source, "float32", texts)
    after = logps(PolicySource(model=str(merged), adapter=None), "float32", texts)
    return max(
        abs(new - old) / len(response)
        for new, old, (_prompt, response) in zip(after, before, texts, strict=True)
    )


def merged_card(source: PolicySource, difference: float, stored: torch.dtype) -> str:
    """What it was made from; then the adapter's own card, if it has one."""
    return CARD.format(
        architecture=architecture_of(source),
        texts=len(TEXTS),
        difference=difference,
        dtype=str(stored).removeprefix("torch."),
        model=policy_digest(Path(source.model)),
        adapter=policy_digest(Path(source.adapter or "")),
        card=_card_of(Path(source.adapter or "")),
    )


def _card_of(folder: Path) -> str:
    path = folder / "README.md"
    if path.is_symlink() or not path.is_file():
        return ""
    with path.open(encoding="utf-8", errors="replace") as file:
        text = FRONT.sub("", file.read(LONGEST_CARD), count=1).strip()
    return f"## The adapter's card\n\n{text}\n" if text else ""


def _tell(files: RoundFiles, phase: str) -> None:
    row = {"done": PHASES.index(phase), "total": len(PHASES), "note": phase}
    append_jsonl(files.metrics, row)
