"""Real instructions with the answers of four models: imported, rendered, compared."""

import json
import time
from itertools import combinations

import pytest

from labeling.differences import differences
from labeling.models import Comparison, Project
from labeling.rendering import rendered
from labeling.services.comparing import NewComparison, create_comparisons
from tests.builders import make_project, make_prompt, make_responses, real_data
from tests.labeling.test_rendering import assert_harmless


@pytest.fixture(scope="module")
def rows() -> list[tuple[str, list[str]]]:
    """Each instruction with its answers that differ."""
    with real_data("alpaca_eval_responses.jsonl").open() as lines:
        found = [json.loads(line) for line in lines]
    answers = [[one["text"] for one in row["responses"]] for row in found]
    assert sum(map(len, answers)) == 4 * 403
    return [
        (row["prompt"], list(dict.fromkeys(texts)))
        for row, texts in zip(found, answers, strict=True)
    ]


@pytest.mark.django_db
def test_all_instructions_become_comparisons_of_four_and_all_pairs(
    rows: list[tuple[str, list[str]]],
) -> None:
    def compare(project: Project, *, most: int) -> list[Comparison]:
        wanted = []
        for prompt, texts in rows:
            responses = make_responses(
                prompt=make_prompt(project=project, text=prompt), texts=texts
            )
            together = [responses] if most > 2 else combinations(responses, 2)
            wanted += [NewComparison(responses=group) for group in together]
        return create_comparisons(project=project, wanted=wanted)

    # Two models gave one instruction the same answer, and equal answers are never compared: that
    # one is a comparison of three, and has 3 pairs where the others have 6.
    assert len(compare(make_project(), most=4)) == 403
    assert len(compare(make_project(), most=2)) == 402 * 6 + 3


def test_every_answer_is_rendered_quickly_and_safely(rows: list[tuple[str, list[str]]]) -> None:
    texts = [text for prompt, answers in rows for text in (prompt, *answers)]
    began = time.thread_time()
    pages = [rendered(text) for text in texts]
    assert (time.thread_time() - began) / len(texts) < 0.05
    for text, html in zip(texts, pages, strict=True):
        assert html is not None, text
        assert_harmless(html)


def test_differences_of_all_answers_keep_their_texts(rows: list[tuple[str, list[str]]]) -> None:
    for _prompt, texts in rows:
        found = differences(texts[0], texts[-1])
        assert found is not None
        assert "".join(piece.text for piece in found.first) == texts[0]
        assert "".join(piece.text for piece in found.second) == texts[-1]
