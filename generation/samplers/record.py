"""What a batch has written so far, and writing more of it."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from generation.samplers.protocol import (
    PromptFailure,
    PromptRequest,
    PromptResult,
    PromptSamples,
    SampledResponse,
    SamplerSpec,
)
from jobs.run_dir import (
    RunDirError,
    append_event,
    append_jsonl,
    read_jsonl,
    sha256_file,
    write_json,
    write_jsonl,
)
from labeling.chat import ChatError, Message, check_prompt_messages, prompt_ids

OUTPUTS = ("responses.jsonl", "failures.jsonl")


class Record:
    """The responses and failures of one run directory; each (prompt, index) is there once.

    Opening it clears a line that a killed run left torn. Failures are found anew by each run.
    """

    def __init__(self, run_dir: Path, spec: SamplerSpec, tokenizer: Any) -> None:
        self.run_dir, self.spec, self.tokenizer = run_dir, spec, tokenizer
        self.prompts = read_prompts(run_dir / "prompts.jsonl")
        self.prompt_token_ids: dict[str, tuple[int, ...]] = {}
        self.written = _clean_responses(run_dir / "responses.jsonl")
        self.failed: set[str] = set()
        write_jsonl(run_dir / "failures.jsonl", [])
        self.tokens = 0
        self.began = time.monotonic()

    @property
    def done(self) -> int:
        """Prompts with all their responses, or with a reason why not."""
        wanted = set(range(self.spec.k))
        answered = {p for p, indexes in self.written.items() if indexes >= wanted}
        return len(answered | self.failed)

    def requests(self) -> list[PromptRequest]:
        """What is still missing; prompts that cannot be one are written to the failures."""
        requests = []
        for prompt in self.prompts:
            missing = set(range(self.spec.k)) - self.written.get(prompt["id"], set())
            if not missing:
                continue
            try:
                ids = tuple(self._prompt_ids(prompt["messages"]))
            except ChatError as error:
                self._fail(PromptFailure(prompt_id=prompt["id"], reason=str(error)))
                continue
            self.prompt_token_ids[prompt["id"]] = ids
            requests.append(
                PromptRequest(prompt_id=prompt["id"], token_ids=ids, indexes=tuple(sorted(missing)))
            )
        self._write_metrics()
        return requests

    def _prompt_ids(self, messages: Any) -> list[int]:
        checked = check_prompt_messages(messages)
        if self.spec.system is not None and checked[0]["role"] != "system":
            checked = [Message(role="system", content=self.spec.system), *checked]
        ids = prompt_ids(self.tokenizer, checked)
        if not ids:
            raise ChatError("the chat template rendered nothing")
        return ids

    def write(self, results: Sequence[PromptResult]) -> None:
        """Append what a sampler answered, then a line of metrics."""
        for result in results:
            if isinstance(result, PromptFailure):
                self._fail(result)
            else:
                self._write_samples(result)
        self._write_metrics()

    def _write_samples(self, samples: PromptSamples) -> None:
        for response in samples.responses:
            append_jsonl(
                self.run_dir / "responses.jsonl",
                {
                    "prompt_id": samples.prompt_id,
                    "index": response.index,
                    "text": self._text(response),
                    "prompt_token_ids": self.prompt_token_ids[samples.prompt_id],
                    "token_ids": response.token_ids,
                    "logp": response.logp,
                    "finish_reason": response.finish_reason,
                    "seed": response.seed,
                },
            )
            self.written.setdefault(samples.prompt_id, set()).add(response.index)
            self.tokens += len(response.token_ids)

    def _text(self, response: SampledResponse) -> str:
        ended = response.finish_reason == "stop"
        text: str = self.tokenizer.decode(
            response.token_ids[:-1] if ended else response.token_ids,
            skip_special_tokens=True,
            clean_up_tokenization_spaces=False,
        )
        return text.replace("\x00", "\ufffd")  # databases cannot keep a NUL; token_ids stay exact

    def _fail(self, failure: PromptFailure) -> None:
        row = {"prompt_id": failure.prompt_id, "reason": failure.reason}
        append_jsonl(self.run_dir / "failures.jsonl", row)
        self.failed.add(failure.prompt_id)

    def _write_metrics(self) -> None:
        """Prompts done count earlier runs too; tokens and seconds are this run's, for a rate."""
        append_jsonl(
            self.run_dir / "metrics.jsonl",
            {
                "done": self.done,
                "total": len(self.prompts),
                "tokens": self.tokens,
                "seconds": round(time.monotonic() - self.began, 3),
            },
        )

    def close(self, inputs: dict[str, str]) -> None:
        """Write manifest.json, which says that the batch is complete."""
        responses = self.run_dir / "responses.jsonl"
        responses.touch(mode=0o600)
        engines = [
            row["engine"] for row in read_jsonl(self.run_dir / "events.jsonl") if "engine" in row
        ]
        counts = {
            "prompts": len(self.prompts),
            "failed": len(self.failed),
            "responses": 0,
            "stopped": 0,
            "tokens": 0,
        }
        for row in read_jsonl(responses, torn=False):
            counts["responses"] += 1
            counts["stopped"] += row["finish_reason"] == "stop"
            counts["tokens"] += len(row["token_ids"])
        write_json(
            self.run_dir / "manifest.json",
            {
                "schema": 1,
                "policy_digest": self.spec.policy.digest,
                "engine": engines[-1] if engines else None,
                "inputs": inputs,
                "outputs": {name: sha256_file(self.run_dir / name) for name in OUTPUTS},
                "counts": counts,
            },
        )
        append_event(self.run_dir, "done", **counts)


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """The prompts' rows; RunDirError names a line that is no prompt or repeats an id."""
    prompts = list(read_jsonl(path, torn=False))
    seen: set[str] = set()
    for number, prompt in enumerate(prompts, start=1):
        if not isinstance(prompt.get("id"), str) or "messages" not in prompt:
            raise RunDirError(f"{path.name}, line {number}: a prompt has an id (text) and messages")
        if prompt["id"] in seen:
            raise RunDirError(f"{path.name}, line {number}: the id {prompt['id']!r} is used twice")
        seen.add(prompt["id"])
    return prompts


def _clean_responses(path: Path) -> dict[str, set[int]]:
    """The indexes written for each prompt; rewrites the file without a torn line."""
    written: dict[str, set[int]] = {}
    if path.exists():
        write_jsonl(path, read_jsonl(path))
        for row in read_jsonl(path):
            written.setdefault(row["prompt_id"], set()).add(row["index"])
    return written
