"""Texts with the log-probabilities that a policy's own files give them, by the trainer's code.

An engine that serves the policy must give the same numbers: this is how a batch proves that the
model that answers is the one that was trained.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from jobs.run_dir import check_spec
from labeling.chat import Message, prompt_ids, response_ids
from training.trainer.batches import Batch
from training.trainer.config import PolicySource, Spec, resolve_spec
from training.trainer.data import Group
from training.trainer.logps import batch_logps
from training.trainer.model import load_reference, load_tokenizer

# Short, and unlike each other, so that a change anywhere in a model shows in some of them.
TEXTS = [
    ("How do I get red wine out of a shirt?", "Cold water first, then salt. Test a hidden spot."),
    ("What is 17 times 23?", "17 * 23 = 391."),
    ("Write a loop in Python.", "for n in range(3):\n    print(n)"),
    ("Wie spät ist es?", "Es ist drei Uhr, glaube ich."),
    ("Name three birds.", "- a wren\n- a heron\n- a swift"),
    ("I feel low today.", "I am sorry. Do you want to talk about it?"),
    ("Is the earth flat?", "No."),
    ("再见 \N{WAVING HAND SIGN}", "See you soon! \N{SMILING FACE WITH OPEN MOUTH}"),
]
PROMPT_TOKENS = 48
RESPONSE_TOKENS = 24

Row = dict[str, Any]


def probes(source: PolicySource, dtype: str) -> list[Row]:
    """Rows {"prompt", "response", "logp", "base_logp"}: token ids, logps summed over the response.

    `base_logp` is that of the adapter's base model, None without an adapter. BadInput, ChatError
    or UnsafePolicy where the policy cannot be loaded or rendered.
    """
    tokenizer = load_tokenizer(source)
    texts = text_ids(tokenizer)
    own = logps(source, dtype, texts)
    base: list[float | None] = [None] * len(texts)
    if source.adapter is not None:
        base = [*logps(replace(source, adapter=None), dtype, texts)]
    return [
        {"prompt": prompt, "response": response, "logp": logp, "base_logp": base_logp}
        for (prompt, response), logp, base_logp in zip(texts, own, base, strict=True)
    ]


def text_ids(tokenizer: Any) -> list[tuple[list[int], list[int]]]:
    """Token ids of the texts' prompts and responses."""
    return [_ids(tokenizer, question, answer) for question, answer in TEXTS]


def _ids(tokenizer: Any, question: str, answer: str) -> tuple[list[int], list[int]]:
    """Prompt and response as a policy sees them, cut to what the smallest model has room for."""
    messages = [Message(role="user", content=question)]
    prompt, response = prompt_ids(tokenizer, messages), response_ids(tokenizer, messages, answer)
    return prompt[:PROMPT_TOKENS], response[:RESPONSE_TOKENS]


def logps(
    source: PolicySource, dtype: str, texts: list[tuple[list[int], list[int]]]
) -> list[float]:
    """Summed log π(y|x) of (prompt, response) token ids, by the code that a round trains with."""
    method = "lora" if source.adapter else "full"
    spec = check_spec(Spec, resolve_spec(source, [f"method={method}", f"dtype={dtype}"]))
    policy = load_reference(spec)
    return [batch_logps(policy, batch).item() for batch in _batches(texts)]


def _batches(texts: list[tuple[list[int], list[int]]]) -> Iterator[Batch]:
    """One text each: nothing of another can slip in."""
    for number, (prompt, response) in enumerate(texts):
        group = Group(f"probe-{number}", tuple(prompt), (tuple(response),), (), 0)
        yield Batch((group,))
