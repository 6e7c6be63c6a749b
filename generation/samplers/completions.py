"""What /v1/completions is asked, and whether what it answers can be true."""

import math
from collections.abc import Collection, Sequence
from typing import Any

from generation.samplers.http import Garbage
from generation.samplers.protocol import Draw, FinishReason, Ids, SampledResponse

LEAST_LOGP, MOST_LOGP = -1e6, 1e-3  # vLLM says -9999 for "impossible"; rounding may pass 0

Json = dict[str, Any]

# What vLLM would take from the model's own generation_config.json, were it left unsaid.
PLAIN = {
    "top_k": 0,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
}
TELL_ALL = {
    "logprobs": 0,  # of the tokens themselves only
    "return_token_ids": True,
    "skip_special_tokens": True,
    "add_special_tokens": False,
}


class Unproven(Exception):
    """The server does not say which tokens it sampled, or how probable they were."""


class Unscored(Exception):
    """The server cannot score this one text."""


def draw_body(
    model: str, prompt: Ids, draw: Draw, seed: int, ends: Sequence[int], *, standard: bool
) -> Json:
    """The question for one response; with `standard` only what every such server knows."""
    body: Json = {
        "model": model,
        "prompt": list(prompt),
        "n": 1,
        "max_tokens": draw.max_new_tokens,
        "temperature": draw.temperature,
        "top_p": draw.top_p,
        "seed": seed,
    }
    if draw.stop:
        body["stop"] = draw.stop
    if not standard:
        body |= {**PLAIN, **TELL_ALL, "stop_token_ids": list(ends)}
    return body


def score_body(model: str, whole: Ids, context: int | None) -> Json:
    """The question for the log-probabilities of these tokens.

    A server samples at least one more. Where there is no room for it, the last token is made the
    one that it samples; log-probabilities are taken before that choice is narrowed.
    """
    body: Json = {
        "model": model,
        "prompt": list(whole),
        "n": 1,
        "max_tokens": 1,
        "temperature": 0.0,
        "echo": True,
        **PLAIN,
        **TELL_ALL,
    }
    if context is not None and len(whole) >= context:
        body |= {"prompt": list(whole[:-1]), "allowed_token_ids": [whole[-1]]}
    return body


def read_choice(answer: Any, names: Collection[str], prompt: Sequence[int]) -> Json:
    """The one choice of an answer by one of these models to this prompt, else Garbage."""
    choices = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(choices, list) or len(choices) != 1 or not isinstance(choices[0], dict):
        found = f"{len(choices)} choices" if isinstance(choices, list) else "no choices"
        raise Garbage(f"it answered with {found} instead of 1")
    if answer.get("model") not in names:
        raise Garbage(f"another model answered: {str(answer.get('model'))[:100]!r}")
    choice: Json = choices[0]
    if choice.get("prompt_token_ids") not in (None, list(prompt)):
        raise Garbage("it answered to other tokens than it was sent")
    return choice


def read_response(
    choice: Json,
    draw: Draw,
    *,
    index: int,
    seed: int,
    ends: Collection[int],
    vocabulary: int | None,
) -> SampledResponse:
    """The response, with its tokens and their summed log-probability; Unproven without them."""
    reason = _finish_reason(choice, draw)
    ids = _token_ids(choice, vocabulary)
    if len(ids) > draw.max_new_tokens:
        raise Garbage(f"it sampled {len(ids)} tokens where {draw.max_new_tokens} were the most")
    logps = _logps(choice)
    if len(logps) != len(ids):
        raise Garbage(f"it gave {len(logps)} log-probabilities for {len(ids)} tokens")
    if reason == "stop" and ids[-1] not in (*ends, choice.get("stop_reason")):
        raise Garbage("its response ended without an end token")
    return SampledResponse(
        index=index,
        token_ids=ids,
        logp=math.fsum(map(_checked, logps)),
        finish_reason=reason,
        seed=seed,
        text=_text(choice) if reason == "stop_text" else None,
    )


def read_unproven(choice: Json, draw: Draw, *, index: int, seed: int) -> SampledResponse:
    """The response of a server that only says its text."""
    return SampledResponse(
        index=index,
        token_ids=None,
        logp=None,
        finish_reason=_finish_reason(choice, draw),
        seed=seed,
        text=_text(choice),
    )


def read_scores(choice: Json, whole: Ids, asked: int, response: int) -> tuple[float, ...]:
    """Log-probabilities of the last `response` of the tokens; Unproven where there are none,
    Unscored where only this text has none.

    `asked` of the tokens were the prompt, so that one more was sampled: a new one, or the last.
    """
    logps = _logps(choice)
    if len(logps) != asked + 1:
        raise Garbage(f"it gave {len(logps)} log-probabilities for {asked + 1} tokens")
    if asked < len(whole) and choice.get("token_ids") != [whole[-1]]:
        raise Unscored("it did not sample the token that it was told to")
    return tuple(_checked(logp) for logp in logps[len(whole) - response : len(whole)])


def _finish_reason(choice: Json, draw: Draw) -> FinishReason:
    said, stop = choice.get("finish_reason"), choice.get("stop_reason")
    if said == "length":
        return "length"
    if said != "stop" or (isinstance(stop, str) and stop not in draw.stop):
        raise Garbage(f"its response ended for a reason of its own: {str(stop or said)[:100]!r}")
    return "stop_text" if isinstance(stop, str) else "stop"


def _token_ids(choice: Json, vocabulary: int | None) -> Ids:
    ids = choice.get("token_ids")
    if ids is None:
        raise Unproven("it says no token ids")
    if not isinstance(ids, list) or not ids:
        raise Garbage("its token ids are no list of numbers")
    for token in ids:
        if type(token) is not int or not 0 <= token < (vocabulary or math.inf):
            raise Garbage(f"{str(token)[:50]} is no token of the policy")
    return tuple(ids)


def _logps(choice: Json) -> list[Any]:
    found = choice.get("logprobs")
    if isinstance(found, dict):
        found = found.get("token_logprobs")
    if found is None:
        raise Unproven("it says no log-probabilities")
    if not isinstance(found, list):
        raise Garbage("its log-probabilities are no list")
    return found


def _checked(logp: Any) -> float:
    number = isinstance(logp, (int, float)) and not isinstance(logp, bool)
    if not number or not LEAST_LOGP <= logp <= MOST_LOGP:  # NaN is neither
        raise Garbage(f"{str(logp)[:50]} is no log-probability")
    return min(float(logp), 0.0)


def _text(choice: Json) -> str:
    text = choice.get("text")
    if not isinstance(text, str):
        raise Garbage("it answered without a text")
    return "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in text)
