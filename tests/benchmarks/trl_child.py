"""TRL's DPOTrainer over given rows, in an environment of its own: `… trl_child JOB.json`.

Nothing of the project is used but the meters. The job: `model` and `reference` (folders;
reference null = the model itself), `rows` (a JSON-lines file with texts and the token ids they
must become), `config` (DPOConfig's arguments), `warmup` (steps), `gradient` (null, or a file for
the first batch's gradient: then nothing is trained, the losses are those of the model as it is),
`result` (a file).
"""

import json
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset  # type: ignore[import-not-found]
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.models.llama import modeling_llama  # noqa: F401 (imported before memory counts)
from trl import DPOConfig, DPOTrainer  # type: ignore[import-not-found]

from tests.benchmarks.meters import Meter

IDS = ("prompt_ids", "chosen_ids", "rejected_ids")


def main(job: dict[str, Any]) -> None:
    """Do the job and write its result."""
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in Path(job["rows"]).read_text().splitlines()]
    meter = Meter()
    began = time.process_time()
    trainer = make_trainer(job, rows, meter)
    check_ids(trainer, rows)
    result = {"start_cpu_s": time.process_time() - began, "versions": versions()}
    if job["gradient"]:
        result |= {"losses": losses(trainer, Path(job["gradient"]))}
    else:
        trainer.train()
        result |= meter.result(job["warmup"])
        result["losses"] = [line["loss"] for line in trainer.state.log_history if "loss" in line]
    Path(job["result"]).write_text(json.dumps(result))


def make_trainer(job: dict[str, Any], rows: list[dict[str, Any]], meter: Meter) -> Any:
    """The trainer as its documentation makes one, with an explicit prompt."""
    texts = [{key: row[key] for key in ("prompt", "chosen", "rejected")} for row in rows]
    reference = job["reference"] and AutoModelForCausalLM.from_pretrained(
        job["reference"], dtype=torch.float32
    )
    return DPOTrainer(
        model=job["model"],
        ref_model=reference,
        args=DPOConfig(**job["config"]),
        train_dataset=Dataset.from_list(texts),
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        callbacks=[Steps(meter)],
    )


class Steps(TrainerCallback):  # type: ignore[misc]
    """Tells the meter where training starts and where each optimizer step ends."""

    def __init__(self, meter: Meter) -> None:
        self.meter = meter

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.meter.start()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.meter.mark()


def check_ids(trainer: Any, rows: list[dict[str, Any]]) -> None:
    """Refuse to compare anything unless TRL reads every text as our trainer does."""
    theirs = [tuple(row[key] for key in IDS) for row in trainer.train_dataset]
    ours = [tuple(row[key] for key in IDS) for row in rows]
    if theirs != ours:
        sys.exit("TRL's token ids are not ours: the two would not train on the same")


def losses(trainer: Any, gradient: Path) -> list[float]:
    """Of all batches by TRL's own compute_loss; the first one's gradient goes to a file."""
    trainer.model.train()
    found: list[float] = []
    for batch in trainer.get_train_dataloader():
        with torch.set_grad_enabled(not found), trainer.compute_loss_context_manager():
            loss = trainer.compute_loss(trainer.model, trainer._prepare_inputs(batch))
        if not found:
            loss.backward()
            parameters = trainer.model.named_parameters()
            save_file({name: p.grad for name, p in parameters if p.requires_grad}, gradient)
        found.append(float(loss))
    return found


def versions() -> dict[str, str]:
    """Of what decides their numbers."""
    return {name: version(name) for name in ("trl", "torch", "transformers", "accelerate")}


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
