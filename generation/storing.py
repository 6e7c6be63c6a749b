"""A batch's responses into the record, and which of them are compared."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from django.db.models import F

from generation.models import Batch
from generation.pairing import Candidate, pair
from generation.run_dirs import Output, Row, Written
from labeling.models import Evaluation, Response
from labeling.models.prompts import text_digest
from labeling.services.comparing import NewComparison

Key = tuple[int, int, str]  # prompt, policy, digest of the text: what makes a response


@dataclass(kw_only=True)
class Stored:
    """A response that the batch sampled, this often; `new` where the record had not held it."""

    response: Response
    reward: float | None
    times: int = 1
    new: bool = True


def store(batch: Batch, output: Output, chunk: Sequence[Written]) -> list[Stored]:
    """Write a chunk's responses, identical ones as one, empty ones not at all.

    What a policy has said before is counted as sampled once more.
    """
    found: dict[Key, Stored] = {}
    for written in chunk:
        for row in written.rows:
            key = (written.prompt, int(row["policy"]), text_digest(row["text"]))
            if key in found:
                found[key].times += 1
            elif row["text"].strip():
                response = _response(batch, output, written, row)
                found[key] = Stored(response=response, reward=output.reward(row))
    _recognise(found)
    new = [stored for stored in found.values() if stored.new]
    for stored in new:
        stored.response.times_sampled = stored.times
    Response.objects.bulk_create([stored.response for stored in new], batch_size=500)
    _count_again(stored for stored in found.values() if not stored.new)
    return list(found.values())


def _recognise(found: dict[Key, Stored]) -> None:
    """Put the record's own rows in place of what it holds already."""
    held = Response.objects.filter(
        prompt__in={prompt for prompt, _, _ in found},
        policy__in={policy for _, policy, _ in found},
    ).only("prompt", "policy", "text_digest", "text")
    for response in held:
        key = (response.prompt_id, response.policy_id, response.text_digest)
        if response.policy_id is not None and key in found:
            found[key].response, found[key].new = response, False


def _count_again(seen: Iterable[Stored]) -> None:
    by_times = defaultdict(list)
    for stored in seen:
        by_times[stored.times].append(stored.response.pk)
    for times, keys in by_times.items():
        Response.objects.filter(pk__in=keys).update(times_sampled=F("times_sampled") + times)


def _response(batch: Batch, output: Output, written: Written, row: Row) -> Response:
    asked = written.asked
    own_system = asked["messages"][0]["role"] == "system"
    sampling = {
        "batch": batch.number,
        "engine": row.get("engine") or output.engine,  # old batches have one in all
        "sampler": batch.sampler,
        "policy_digest": output.digests[row["policy"]],
        "index": row["index"],
        "seed": row["seed"],
        "temperature": batch.temperature,
        "top_p": batch.top_p,
        "max_new_tokens": batch.max_new_tokens,
        "stop": batch.stop,
        "system": None if own_system else asked.get("system") or batch.system or None,
        "prompt_token_ids": row["prompt_token_ids"],
    }
    return Response(
        prompt_id=written.prompt,
        policy_id=int(row["policy"]),
        text=row["text"],
        text_digest=text_digest(row["text"]),
        sampling=sampling | asked.get("draw", {}),
        token_ids=row["token_ids"],
        logp=row["logp"],
        finish_reason=row["finish_reason"],
    )


def comparisons_of(batch: Batch, stored: Sequence[Stored]) -> list[NewComparison]:
    """What to compare, prompt by prompt, across all policies of the batch.

    Every comparison holds a new response; what was said before only fills the last one up.
    """
    by_prompt: dict[int, list[Stored]] = defaultdict(list)
    for one in stored:
        by_prompt[one.response.prompt_id].append(one)
    return [
        comparison
        for prompt, sampled in by_prompt.items()
        for comparison in _of_prompt(batch, prompt, sampled)
    ]


def pairs_of(evaluation: Evaluation, stored: Sequence[Stored]) -> list[tuple[Response, Response]]:
    """The two policies' responses to each prompt side by side, the new policy's first."""
    by_prompt: dict[int, dict[int, list[Response]]] = defaultdict(lambda: defaultdict(list))
    for one in stored:
        if one.response.policy_id is not None:
            by_prompt[one.response.prompt_id][one.response.policy_id].append(one.response)
    return [
        pair
        for written in by_prompt.values()
        for pair in zip(written[evaluation.policy_id], written[evaluation.against_id], strict=False)
    ]


def _of_prompt(batch: Batch, prompt: int, sampled: Sequence[Stored]) -> list[NewComparison]:
    size = batch.project.comparison_size
    new = [one for one in sampled if one.new]
    known = [one for one in sampled if not one.new]
    by_id = {one.response.pk: one for one in [*new, *known[: -len(new) % size]]}
    groups = pair(
        [_candidate(one) for one in by_id.values()],
        size=size,
        strategy=batch.pairing,
        random_percent=batch.random_percent,
        seed=_seed(batch, prompt),
    )
    return [
        NewComparison(responses=[by_id[pk].response for pk in group.ids], pairing=group.pairing)
        for group in groups
        if any(by_id[pk].new for pk in group.ids)
    ]


def _candidate(one: Stored) -> Candidate:
    response = one.response
    return Candidate(
        id=response.pk, text=response.text, policy=response.policy_id or 0, reward=one.reward
    )


def _seed(batch: Batch, prompt: int) -> int:
    digest = hashlib.sha256(f"pair:{batch.seed}:{prompt}".encode()).digest()
    return int.from_bytes(digest[:8])
