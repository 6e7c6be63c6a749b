"""Rankings to train on, as word numbers: made by a seed, or read from real transcripts.

Speed depends on lengths alone, so a word is a number and a row says nothing: real texts are
measured without being shown.
"""

import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean as mean
from typing import Any, TypeVar

WORDS = 3995  # with the tokenizer's five special tokens, 4,000
SAMPLES = 1000
ROLE_TOKENS = 2  # the template puts one before the user's turn and one before the answer
_WORD = re.compile(r"\w+|[^\w\s]")
_ANSWER = "\n\nAssistant:"

T = TypeVar("T")
Words = tuple[int, ...]


@dataclass(frozen=True)
class Ranking:
    """A prompt and its responses, best first."""

    prompt: Words
    responses: tuple[Words, ...]


@dataclass(frozen=True, kw_only=True)
class Lengths:
    """Mean lengths in tokens before anything is cut, and how they vary.

    A length is its mean times two gamma variables of mean 1, right-skewed like real lengths:
    one of its own, and one that all of a row share, for long prompts get long responses. The
    larger the shape, the closer to the mean.
    """

    prompt: int
    responses: tuple[int, ...]
    own_shape: float = 1.5
    row_shape: float = 5.0


# With these shapes random batches are padded like those of 2,300 rows of hh-rlhf: padded over real
# tokens is 1.1, 1.5, 1.9 and 2.3 at batches of 1, 2, 4 and 8.
HH_LIKE = Lengths(prompt=134, responses=(45, 57))
LONG_PROMPTS = Lengths(prompt=134, responses=(50, 50, 50, 50))
LONG_ANSWERS = Lengths(prompt=30, responses=(350,) * 4)


def made_rankings(lengths: Lengths, count: int, *, max_length: int, seed: int = 0) -> list[Ranking]:
    """`count` rankings of random words that fit max_length tokens; a seed decides all of them."""
    rng = random.Random(f"{seed} {lengths}")
    made: list[Ranking] = []
    while len(made) < count:
        made += fitting([_made(lengths, rng)], max_length)
    return made


def _made(lengths: Lengths, rng: random.Random) -> Ranking:
    own, shared = lengths.own_shape, rng.gammavariate(lengths.row_shape, 1 / lengths.row_shape)

    def words(mean: int) -> Words:
        length = round(mean * shared * rng.gammavariate(own, 1 / own))
        return tuple(rng.choices(range(WORDS), k=max(1, length)))

    return Ranking(words(lengths.prompt), tuple(words(mean) for mean in lengths.responses))


def read_rankings(path: Path, *, max_length: int) -> list[Ranking]:
    r"""Pairs from JSON lines with the transcripts `chosen` and `rejected`, in a fixed shuffle.

    A transcript is "\n\nHuman: … \n\nAssistant: …" and so on; its last answer is the response,
    all before it the prompt. Rows whose prompts differ are left out.
    """
    numbers: dict[str, int] = {}

    def words(text: str) -> Words:
        return tuple(numbers.setdefault(w, len(numbers)) % WORDS for w in _WORD.findall(text))

    read = []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        prompt, best = row["chosen"].rsplit(_ANSWER, 1)
        other, worst = row["rejected"].rsplit(_ANSWER, 1)
        if prompt == other:
            read.append(Ranking(words(prompt), (words(best), words(worst))))
    random.Random(0).shuffle(read)
    return list(fitting(read, max_length))


def fitting(rankings: Iterable[Ranking], max_length: int) -> Iterator[Ranking]:
    """Rankings of at most max_length tokens, the way TRL's keep_start cuts them.

    Responses lose what is over; a prompt that leaves no room is dropped with its row, and so are
    empty responses and equal ones. Cut here, so that both trainers are given the same.
    """
    for ranking in rankings:
        room = max_length - len(ranking.prompt) - ROLE_TOKENS - 1  # 1: the end token
        cut = tuple(response[: max(room, 0)] for response in ranking.responses)
        if all(cut) and len(set(cut)) == len(cut):
            yield Ranking(ranking.prompt, cut)


def token_lengths(ranking: Ranking) -> tuple[int, list[int]]:
    """Tokens of the prompt and of each response, with what the template and the end add."""
    return len(ranking.prompt) + ROLE_TOKENS, [len(words) + 1 for words in ranking.responses]


def text(words: Words) -> str:
    """The words as the tokenizer knows them."""
    return " ".join(f"w{word}" for word in words)


def group_row(name: str, ranking: Ranking) -> dict[str, Any]:
    """A ranking as a row of the trainer's preferences.jsonl, with all its pairs."""
    places = range(len(ranking.responses))
    return {
        "id": name,
        "prompt": [{"role": "user", "content": text(ranking.prompt)}],
        "split": None,
        "responses": [
            {"id": f"{name}-{place}", "text": text(ranking.responses[place]), "token_ids": None}
            for place in places
        ],
        "pairs": [
            {"chosen": a, "rejected": b, "votes_for": 1, "votes_against": 0, "votes_tied": 0}
            for a in places
            for b in places[a + 1 :]
        ],
    }


def longest(ranking: Ranking) -> int:
    """Tokens of the prompt with its longest response."""
    prompt, responses = token_lengths(ranking)
    return prompt + max(responses)


def shortest(pool: Sequence[Ranking], count: int) -> list[Ranking]:
    """The `count` shortest."""
    return sorted(pool, key=longest)[:count]


def fair_sample(pool: Sequence[Ranking], *, size: int, count: int) -> list[Ranking]:
    """`count` batches of `size` rows at random that stand for the pool: of SAMPLES such samples
    the one whose batches have most nearly the pool's prompts, responses and padding.

    Few batches at random would favour one side or the other by a tenth.
    """
    if not count:
        return []
    truth = _sizes(pool, size)

    def distance(sample: Sequence[Ranking]) -> float:
        return sum(abs(a / b - 1) for a, b in zip(_sizes(sample, size), truth, strict=True))

    rng = random.Random(0)
    return min((rng.sample(pool, size * count) for _ in range(SAMPLES)), key=distance)


def _sizes(rows: Sequence[Ranking], size: int) -> tuple[float, float, float]:
    """Mean tokens of a row's prompt, of its responses, and of its batch's longest sequence."""
    lengths = [token_lengths(row) for row in rows]
    batches = [rows[at : at + size] for at in range(0, len(rows) - size + 1, size)]
    return (
        mean(prompt for prompt, _ in lengths),
        mean(sum(responses) for _, responses in lengths),
        mean(max(map(longest, batch)) for batch in batches),
    )


def by_length(pool: Sequence[Ranking], *, size: int, count: int) -> list[Ranking]:
    """`count` batches of `size` rows of alike length: evenly spaced ones of the sorted pool.

    What a length-grouping sampler gives over a large set, without training on all of it.
    """
    ordered = sorted(pool, key=longest)
    batches = [ordered[at : at + size] for at in range(0, len(ordered) - size + 1, size)]
    return [ranking for batch in _spaced(batches, count) for ranking in batch]


def _spaced(items: Sequence[T], count: int) -> list[T]:
    return [items[int((place + 0.5) * len(items) / count)] for place in range(count)]
