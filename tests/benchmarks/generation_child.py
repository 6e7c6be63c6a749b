"""An engine that runs what standard input names, once a line, and says how long it took."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from generation.samplers.policy import load_tokenizer
from generation.samplers.protocol import SCHEMA, SamplerSpec, response_seed
from generation.samplers.record import Record
from generation.samplers.run import Engines, write_responses
from jobs.run_dir import check_spec, write_json, write_jsonl
from labeling.chat import prompt_ids
from labeling.policy_files import policy_digest

K, NEW_TOKENS, LONGEST = 2, 64, 512
PAD, END = 0, 1  # of tests.benchmarks.models

Run = Callable[[int], int]  # given a batch size, runs once; returns the tokens written


def spec_for(folder: Path, sampler: str) -> SamplerSpec:
    """What the batch asks."""
    model = folder / "model"
    policy = {"id": "p", "model": str(model), "adapter": None, "digest": policy_digest(model)}
    policy["base_digest"] = None
    spec = {
        "schema": SCHEMA,
        "sampler": sampler,
        "policies": [policy],
        "draw": {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": NEW_TOKENS, "stop": []},
        "seed": 7,
        "system": None,
        "score_under": [],
        "server": None,
        "batch_prompts": 32,
        "dtype": "float32",
    }
    return check_spec(SamplerSpec, spec)


def vllm_runs(folder: Path) -> tuple[str, dict[str, Run]]:
    """The batch path and direct calls, on one engine."""
    from vllm import SamplingParams

    spec = spec_for(folder, "vllm")
    tokenizer = load_tokenizer(spec.policies[0])
    conversations = json.loads((folder / "prompts.json").read_text())
    rows = [
        {"id": f"p{n}", "messages": messages, "policies": ["p"] * K}
        for n, messages in enumerate(conversations)
    ]
    engines = Engines(folder, spec, {"p": tokenizer}, LONGEST)
    sampler: Any = engines.open(spec.policies)
    llm = sampler._llm
    bare_prompts = [{"prompt_token_ids": prompt_ids(tokenizer, m)} for m in conversations]
    numbers = count()

    def batch(_size: int) -> int:
        llm.reset_prefix_cache()
        run_dir = folder / f"run-{next(numbers)}"
        run_dir.mkdir()
        write_json(run_dir / "spec.json", {})
        write_jsonl(run_dir / "prompts.jsonl", rows)
        record = Record(run_dir, spec, {"p": tokenizer})
        write_responses(engines, record, record.requests(), lambda: False)
        shutil.rmtree(run_dir)
        return record.tokens

    def bare(params: Any) -> int:
        llm.reset_prefix_cache()
        made = llm.generate(bare_prompts, params, use_tqdm=False)
        return sum(len(output.token_ids) for answer in made for output in answer.outputs)

    def plain(_size: int) -> int:
        return bare(SamplingParams(n=K, max_tokens=NEW_TOKENS))

    def seeded(_size: int) -> int:
        wishes = {"n": K, "max_tokens": NEW_TOKENS, "logprobs": 0}
        seeds = (response_seed(7, row["id"], 0) for row in rows)
        return bare([SamplingParams(**wishes, seed=seed) for seed in seeds])

    return sampler.engine, {"batch": batch, "bare": seeded, "bare_plain": plain}


def transformers_runs(folder: Path) -> tuple[str, dict[str, Run]]:
    """`generate`, padded on the left, prompts of like length together."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM

    spec = spec_for(folder, "transformers")
    tokenizer = load_tokenizer(spec.policies[0])
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "model").eval()
    conversations = json.loads((folder / "prompts.json").read_text())
    ids = sorted((prompt_ids(tokenizer, messages) for messages in conversations), key=len)

    @torch.inference_mode()
    def generate(size: int) -> int:
        tokens = 0
        for start in range(0, len(ids), size):
            part = ids[start : start + size]
            width = max(map(len, part))
            padded = torch.tensor([[PAD] * (width - len(row)) + row for row in part])
            mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in part])
            made = model.generate(
                input_ids=padded,
                attention_mask=mask,
                do_sample=True,
                top_k=0,
                num_return_sequences=K,
                max_new_tokens=NEW_TOKENS,
                pad_token_id=PAD,
            )
            tokens += sum(_length(row) for row in made[:, width:].tolist())
        return tokens

    version = f"transformers {transformers.__version__} / torch {torch.__version__}"
    return version, {"generate": generate}


def _length(row: list[int]) -> int:
    """Tokens up to the end token, which counts."""
    return row.index(END) + 1 if END in row else len(row)


def main(engine: str, folder: str) -> None:
    """Answer each line of standard input with {"seconds", "tokens"}."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries and the engine's processes print
    name, runs = (vllm_runs if engine == "vllm" else transformers_runs)(Path(folder))
    print(json.dumps({"engine": name}), file=answers, flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        began = time.perf_counter()
        tokens = runs[asked["what"]](asked["size"])
        told = {"seconds": time.perf_counter() - began, "tokens": tokens}
        print(json.dumps(told), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
