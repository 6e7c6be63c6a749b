"""What a batch has written so far, and writing more of it."""

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from generation.samplers.protocol import (
    SCHEMA,
    Ids,
    PromptFailure,
    PromptRequest,
    PromptResult,
    PromptSamples,
    SampledResponse,
    SamplerSpec,
    ScoreRequest,
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
from labeling.chat import ChatError, Message, check_prompt_messages, prompt_ids, response_text

OUTPUTS = ("responses.jsonl", "failures.jsonl", "scores.jsonl")
PROMPT_KEYS = {"id", "messages", "policies", "draw", "system"}
METRICS_EVERY_S = 0.5

Row = dict[str, Any]


class Record:
    """The responses and failures of one run directory; each (prompt, index) is there once.

    Opening it clears a line that a killed run left torn. Failures are found anew by each run.
    `tokenizers` has one for each policy's id.
    """

    def __init__(self, run_dir: Path, spec: SamplerSpec, tokenizers: Mapping[str, Any]) -> None:
        self.run_dir, self.spec, self.tokenizers = run_dir, spec, tokenizers
        self.prompts = read_prompts(run_dir / "prompts.jsonl", spec)
        self.missing = {row["id"]: set(range(len(row["policies"]))) for row in self.prompts}
        for row in _without_torn_line(run_dir / "responses.jsonl"):
            self.missing[row["prompt_id"]].discard(row["index"])
        write_jsonl(run_dir / "failures.jsonl", [])
        self.engine = ""
        self.failures: set[tuple[str, str]] = set()
        self.prompt_token_ids: dict[tuple[str, str], Ids] = {}
        self.done = sum(not indexes for indexes in self.missing.values())
        self.same_tokens: dict[tuple[str, str], bool] = {}
        self.tokens = 0
        self.began = self.told = time.monotonic()

    def requests(self) -> list[PromptRequest]:
        """What is still missing; prompts that cannot be asked are written to the failures."""
        return [request for row in self.prompts for request in self._requests(row)]

    def _requests(self, row: Row) -> Iterable[PromptRequest]:
        prompt_id, policies = row["id"], row["policies"]
        for policy in dict.fromkeys(policies):
            missing = self.missing[prompt_id]
            indexes = tuple(at for at, id in enumerate(policies) if id == policy and at in missing)
            if not indexes:
                continue
            try:
                ids = self._prompt_ids(row, policy)
                draw = self.spec.draw.but(row.get("draw") or {})
            except ValueError as error:  # ChatError is one
                self._fail(PromptFailure(prompt_id=prompt_id, indexes=indexes, reason=str(error)))
                continue
            self.prompt_token_ids[prompt_id, policy] = ids
            yield PromptRequest(
                prompt_id=prompt_id, policy=policy, token_ids=ids, indexes=indexes, draw=draw
            )

    def _prompt_ids(self, row: Row, policy: str) -> Ids:
        messages = check_prompt_messages(row["messages"])
        system = row.get("system") or self.spec.system
        if system is not None and messages[0]["role"] != "system":
            messages = [Message(role="system", content=system), *messages]
        ids = tuple(prompt_ids(self.tokenizers[policy], messages))
        if not ids:
            raise ChatError("the chat template rendered nothing")
        return ids

    def start_clock(self, engine: str) -> None:
        """An engine is loaded: what is written from now on is its own, and counts for its pace."""
        self.engine = engine
        self.began = time.monotonic()
        self._write_metrics()

    def write(self, results: Sequence[PromptResult]) -> None:
        """Append what a sampler answered, then, not too often, a line of metrics."""
        for result in results:
            if isinstance(result, PromptFailure):
                self._fail(result)
            else:
                self._write_samples(result)
        if time.monotonic() - self.told >= METRICS_EVERY_S or self.done == len(self.prompts):
            self._write_metrics()

    def _write_samples(self, samples: PromptSamples) -> None:
        prompt_id, policy = samples.prompt_id, samples.policy
        for response in samples.responses:
            append_jsonl(
                self.run_dir / "responses.jsonl",
                {
                    "prompt_id": prompt_id,
                    "index": response.index,
                    "policy": policy,
                    "text": self._text(response, policy),
                    "prompt_token_ids": self.prompt_token_ids[prompt_id, policy],
                    "token_ids": response.token_ids,
                    "logp": response.logp,
                    "finish_reason": response.finish_reason,
                    "seed": response.seed,
                    "engine": self.engine,
                },
            )
            self.tokens += len(response.token_ids or ())
        self._settle(prompt_id, {response.index for response in samples.responses})

    def _text(self, response: SampledResponse, policy: str) -> str:
        text = response.text
        if text is None:
            ids = response.token_ids or ()
            ended = response.finish_reason == "stop"
            return response_text(self.tokenizers[policy], ids[:-1] if ended else ids)
        return text.replace("\x00", "\ufffd")  # databases cannot keep a NUL; token_ids stay exact

    def _fail(self, failure: PromptFailure) -> None:
        """A prompt that fails for one reason with several policies is told once."""
        if (failure.prompt_id, failure.reason) not in self.failures:
            row = {"prompt_id": failure.prompt_id, "reason": failure.reason}
            append_jsonl(self.run_dir / "failures.jsonl", row)
            self.failures.add((failure.prompt_id, failure.reason))
        self._settle(failure.prompt_id, set(failure.indexes))

    def _settle(self, prompt_id: str, indexes: set[int]) -> None:
        """These responses are written, or will not be; `done` counts prompts that lack none."""
        missing = self.missing[prompt_id]
        before = bool(missing)
        missing -= indexes
        self.done += before and not missing

    def _write_metrics(self) -> None:
        """Prompts done count earlier runs too; tokens and seconds are this run's, for a rate."""
        self.told = time.monotonic()
        append_jsonl(
            self.run_dir / "metrics.jsonl",
            {
                "done": self.done,
                "total": len(self.prompts),
                "tokens": self.tokens,
                "seconds": round(self.told - self.began, 3),
            },
        )

    def unscored(self) -> list[tuple[Row, ScoreRequest]]:
        """Each response with each policy of `score_under` that has neither sampled it nor scored
        it yet."""
        scored = {
            (row["prompt_id"], row["index"], row["policy"])
            for row in _without_torn_line(self.run_dir / "scores.jsonl")
        }
        found = []
        for row in _rows(self.run_dir / "responses.jsonl") if self.spec.score_under else ():
            for policy in self.spec.score_under:
                key = {"prompt_id": row["prompt_id"], "index": row["index"], "policy": policy}
                known = policy == row["policy"] or tuple(key.values()) in scored
                if known or not row["token_ids"] or not self._same_tokens(policy, row["policy"]):
                    continue
                prompt, response = tuple(row["prompt_token_ids"]), tuple(row["token_ids"])
                found.append((key, ScoreRequest(policy=policy, prompt=prompt, response=response)))
        return found

    def _same_tokens(self, one: str, other: str) -> bool:
        """Whether token ids mean the same to two policies. Vocabularies are compared once."""
        if (one, other) not in self.same_tokens:
            first, second = self.tokenizers[one], self.tokenizers[other]
            same = first is second or first.get_vocab() == second.get_vocab()
            self.same_tokens[one, other] = same
        return self.same_tokens[one, other]

    def write_score(self, key: Row, logps: Sequence[float]) -> None:
        """Append what a response is worth under a policy that did not sample it, null where the
        engine could not tell."""
        logp = sum(logps) if logps else None
        append_jsonl(self.run_dir / "scores.jsonl", {**key, "logp": logp})

    def close(self, inputs: dict[str, str]) -> None:
        """Write manifest.json, which says that the batch is complete."""
        for name in OUTPUTS:
            (self.run_dir / name).touch(mode=0o600)
        engines = [
            row["engine"] for row in read_jsonl(self.run_dir / "events.jsonl") if "engine" in row
        ]
        counts = {
            "prompts": len(self.prompts),
            "failed": len({prompt_id for prompt_id, _ in self.failures}),
            "responses": 0,
            "stopped": 0,
            "tokens": 0,
        }
        for row in read_jsonl(self.run_dir / "responses.jsonl", torn=False):
            counts["responses"] += 1
            counts["stopped"] += row["finish_reason"] != "length"
            counts["tokens"] += len(row["token_ids"] or ())
        write_json(
            self.run_dir / "manifest.json",
            {
                "schema": SCHEMA,
                "policies": {policy.id: policy.digest for policy in self.spec.policies},
                "engine": engines[-1] if engines else None,
                "inputs": inputs,
                "outputs": {name: sha256_file(self.run_dir / name) for name in OUTPUTS},
                "counts": counts,
            },
        )
        append_event(self.run_dir, "done", **counts)


def read_prompts(path: Path, spec: SamplerSpec) -> list[Row]:
    """The prompts' rows; RunDirError names a line that is no prompt or repeats an id."""
    prompts = list(read_jsonl(path, torn=False))
    known = {policy.id for policy in spec.policies}
    seen: set[str] = set()
    for number, prompt in enumerate(prompts, start=1):
        problem = _problem(prompt, known)
        if not problem and prompt["id"] in seen:
            problem = f"the id {prompt['id']!r} is used twice"
        if problem:
            raise RunDirError(f"{path.name}, line {number}: {problem}")
        seen.add(prompt["id"])
    return prompts


def _problem(prompt: Row, known: set[str]) -> str:
    """Why a row is no prompt, "" where it is one. What it says is checked when it is asked."""
    if not isinstance(prompt.get("id"), str) or "messages" not in prompt:
        return "a prompt has an id (text), messages and policies"
    unknown = prompt.keys() - PROMPT_KEYS
    if unknown:
        return f"unknown key {', '.join(sorted(unknown))}"
    policies = prompt.get("policies")
    if not isinstance(policies, list) or not policies or not known.issuperset(policies):
        return "policies must list the id of one of the spec's policies for each response"
    return ""


def _rows(path: Path) -> Iterable[Row]:
    return read_jsonl(path) if path.exists() else ()


def _without_torn_line(path: Path) -> Iterable[Row]:
    """The rows of a file that a killed run may have torn; the torn line is taken out of it."""
    if path.exists():
        write_jsonl(path, read_jsonl(path))
    return _rows(path)
