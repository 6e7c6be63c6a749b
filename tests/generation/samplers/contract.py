"""What every sampler must do, as one play: the same requests for each, and what came back.

Runs in any environment that has an engine, so only the standard library and the samplers are
imported; test_contract.py looks at what came back. As a program it plays with the `vllm` sampler:
`python -m tests.generation.samplers.contract SPEC.json ANSWERS.json`.
"""

import json
import random
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from generation.samplers.protocol import (
    Draw,
    PolicySpec,
    PromptRequest,
    Sampler,
    SamplerSpec,
    ScoreRequest,
)
from jobs.run_dir import check_spec

CONTEXT = 96
ENDS = (1, *range(0, 320, 4))  # a quarter of the vocabulary, so that responses do end
LONGEST = CONTEXT
ASSISTANT = 4  # the special token that begins an answer

Answers = dict[str, Any]
Samplers = Callable[[PolicySpec], Sampler]


def prompt(number: int) -> tuple[int, ...]:
    """Token ids of a prompt; they differ in length and content, and end as a template does.

    Plain letters: vLLM decodes what follows together with the prompt, and random bytes would
    join the answer's first ones.
    """
    draw = random.Random(number)
    return (*(draw.randrange(5, 99) for _ in range(3 + 5 * (number % 4))), ASSISTANT)


def requests(
    name: str,
    policies: Iterable[str],
    *,
    prompts: int = 4,
    indexes: tuple[int, ...] = (0, 1),
    **draw: Any,
) -> list[PromptRequest]:
    """The same prompts for each policy."""
    values = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 12, "stop": []} | draw
    return [
        PromptRequest(
            prompt_id=f"{name} {number}",
            policy=policy,
            token_ids=prompt(number),
            indexes=indexes,
            draw=Draw(**values),
        )
        for number in range(prompts)
        for policy in policies
    ]


def scenes(ids: list[str]) -> dict[str, list[PromptRequest]]:
    """Requests by what they show; each scene is one call of `sample`."""
    mixed = requests("mixed", ids)
    long = requests("long", ids, prompts=2)
    long += requests("too long", ids, prompts=1, max_new_tokens=CONTEXT - 2)
    return {
        "mixed": mixed,
        "gap": [gap for gap in requests("mixed", ids, indexes=(1,)) if gap.prompt_id == "mixed 2"],
        "greedy": requests("greedy", ids, indexes=(0,), temperature=0.0),
        "cool": requests("cool", ids, temperature=0.5, top_p=0.9),
        "stop": requests("stop", ids, indexes=tuple(range(6)), max_new_tokens=40, stop=["e", "t "]),
        "long": long,
        "beyond": requests("good", ids, prompts=1) + [_beyond(policy) for policy in ids],
    }


def _beyond(policy: str) -> PromptRequest:
    """A prompt with a token that the vocabulary does not have."""
    draw = Draw(temperature=1.0, top_p=1.0, max_new_tokens=4, stop=[])
    return PromptRequest(
        prompt_id="beyond 0", policy=policy, token_ids=(5, 10_000, 6), indexes=(0, 1), draw=draw
    )


def play(samplers: Samplers, policies: list[PolicySpec]) -> Answers:
    """What each scene gave, and scores of what was sampled. `samplers` may give one for all."""
    ids = [policy.id for policy in policies]
    told: Answers = {"engine": samplers(policies[0]).engine}
    for scene, asked in scenes(ids).items():
        told[scene] = []
        for sampler, mine in _by_sampler(samplers, policies, asked):
            for group in sampler.sample(mine):
                told[scene] += [asdict(result) for result in group]
    texts = [
        ScoreRequest(policy=row["policy"], prompt=prompt(number), response=tuple(ids_))
        for row in told["mixed"]
        for number in [int(row["prompt_id"].split()[1])]
        for ids_ in [row["responses"][0]["token_ids"]]
    ]
    whole = prompt(0)
    texts += [  # a text that fills the context: scored, or said not to be, and nothing breaks
        ScoreRequest(policy=id, prompt=whole, response=(7,) * (CONTEXT - len(whole))) for id in ids
    ]
    told["texts"] = [asdict(text) for text in texts]
    told["scores"] = [
        next(iter(samplers(_named(policies, text.policy)).score([text]))) for text in texts
    ]
    return told


def _by_sampler(
    samplers: Samplers, policies: list[PolicySpec], asked: list[PromptRequest]
) -> list[tuple[Sampler, list[PromptRequest]]]:
    found: dict[int, tuple[Sampler, list[PromptRequest]]] = {}
    for request in asked:
        sampler = samplers(_named(policies, request.policy))
        found.setdefault(id(sampler), (sampler, []))[1].append(request)
    return list(found.values())


def _named(policies: list[PolicySpec], id: str) -> PolicySpec:
    return next(policy for policy in policies if policy.id == id)


def main(spec_file: str, answers_file: str) -> None:
    """Play with the offline engine of vLLM, in whose environment this runs."""
    from generation.samplers.vllm import VllmSampler

    spec = check_spec(SamplerSpec, json.loads(Path(spec_file).read_text()))
    ends = {policy.id: ENDS for policy in spec.policies}
    sampler = VllmSampler(spec, spec.policies, ends, LONGEST)
    answers = play(lambda _policy: sampler, spec.policies)
    sampler.close()
    Path(answers_file).write_text(json.dumps(answers))


if __name__ == "__main__":
    main(*sys.argv[1:])
