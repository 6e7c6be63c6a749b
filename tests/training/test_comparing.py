"""Several rounds held against each other."""

import json
from pathlib import Path
from typing import Any

from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from hypothesis import given
from hypothesis import strategies as st

from labeling.models import Project
from tests.builders import make_project
from tests.training.rounds import RESULTS, make_round
from training.comparing import LABEL_APART, LABEL_WIDTH, MOST_ROUNDS, apart, compare_rounds
from training.curves import BOTTOM, HEIGHT, LEFT, TOP, WIDTH
from training.models import Round, RoundState


def logged(folder: Path, steps: int, **values: float) -> Path:
    folder.mkdir()
    rows: list[dict[str, Any]] = [
        {"step": step, "total": steps, "tokens_per_s": 100.0, "memory_mb": 512.0, **values}
        for step in range(1, steps + 1)
    ]
    rows += [{"step": 0, "total": steps, "held_out": values}]
    rows += [{"step": steps, "total": steps, "held_out": values}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def page(client: Client, project: Project, *numbers: object) -> str:
    query = "&".join(f"rounds={number}" for number in numbers)
    address = reverse("training:compare_rounds", args=[project.slug])
    answer = client.get(f"{address}?{query}")
    assert answer.status_code == 200
    return answer.content.decode()


def two(project: Project, folder: Path) -> list[Round]:
    quick = logged(folder / "one", 10, loss=0.5, margin=1.0, kl=3.0)
    slow = logged(folder / "two", 40, loss=0.7, margin=-0.5, kl=30.0)
    first = {"beta": 0.1, "epochs": 1, "method": "full"}
    return [
        make_round(project, RoundState.SUCCEEDED, quick, options=first, results=RESULTS),
        make_round(
            project,
            RoundState.FAILED,
            slow,
            options=first | {"beta": 0.5},
            filters={"agreement": 80},
        ),
    ]


def test_one_table_tells_what_differs_and_what_came_of_it(
    project: Project, manager: Client, tmp_path: Path
) -> None:
    found = compare_rounds(two(project, tmp_path))
    different = {line.title: line.values for line in found.different}
    assert different == {"β": ["0.1", "0.5"], "Least agreement, %": ["", "80"]}
    assert {"Method", "Epochs", "From", "Held to"} <= {line.title for line in found.alike}
    results = {line.title: line.values for line in found.results}
    assert results["Reward accuracy, held-out"] == ["0.50 → 0.80", ""]
    assert results["Loss, held-out"] == ["0.693 → 0.500", "0.700 → 0.700"]
    assert results["Memory, MiB"] == ["512", "512"]
    assert results["Tokens a second"] == ["100", "100"]
    assert results["Steps"] == ["10 / 10", "40 / 40"]
    html = page(manager, project, 1, 2)
    for words in ("What differs", "Least agreement", "Reward accuracy, held-out"):
        assert words in html


def test_curves_lie_over_one_another_on_one_axis_each_with_its_number_and_mark(
    project: Project, manager: Client, tmp_path: Path
) -> None:
    found = compare_rounds(two(project, tmp_path))
    assert [chart.key for chart in found.overlays] == ["loss", "margin", "accuracy", "kl", "length"]
    loss = found.overlays[0]
    assert [mark.text for mark in loss.x_marks][-1] == "40"
    short, long = loss.lines
    assert short.end
    assert long.end
    assert short.end[0] < long.end[0] < WIDTH
    assert all(TOP <= y <= HEIGHT - BOTTOM for _x, y, _text in [*short.dots, *long.dots])
    assert all(LEFT <= x <= WIDTH for x, _y, _text in [*short.dots, *long.dots])
    assert short.dots[-1][0] < long.dots[-1][0], "ten steps are a quarter of forty"
    html = page(manager, project, 1, 2)
    assert html.count('href="#mark-0"') > 1
    assert html.count('href="#mark-1"') > 1
    assert "Loss: Round 1 0.500, Round 2 0.700" in html


@given(st.dictionaries(st.integers(0, 5), st.tuples(st.floats(40, 320), st.floats(0, 150))))
def test_numbers_at_the_ends_of_lines_can_be_read(ends: dict[int, tuple[float, float]]) -> None:
    moved = apart(ends)
    for one, (x, y) in moved.items():
        assert x == ends[one][0]
        assert y >= ends[one][1] - 0.1
        for other, (far, high) in moved.items():
            near = one != other and abs(x - far) < LABEL_WIDTH
            assert not near or abs(y - high) >= LABEL_APART - 0.2


def test_fewer_than_two_say_how_and_what_is_none_of_theirs_is_passed_over(
    project: Project, manager: Client, tmp_path: Path
) -> None:
    make_round(project, RoundState.SUCCEEDED)
    other = make_project()
    for wanted in ((), (1,), (1, 99), ("x", -1, "9" * 30)):
        assert "Mark two rounds or more" in page(manager, project, *wanted)
    address = reverse("training:compare_rounds", args=[other.slug])
    assert manager.get(f"{address}?rounds=1").status_code == 404


def test_many_rounds_are_cut_and_cost_no_more_queries(
    project: Project, manager: Client, tmp_path: Path
) -> None:
    for number in range(MOST_ROUNDS + 1):
        folder = logged(tmp_path / str(number), 5, loss=0.5)
        make_round(project, RoundState.SUCCEEDED, folder, filters={"agreement": 60 + number})
    with CaptureQueriesContext(
        connection,
    ) as few:
        page(manager, project, 1, 2)
    with CaptureQueriesContext(connection) as many:
        html = page(manager, project, *range(1, MOST_ROUNDS + 2))
    assert len(many) == len(few)
    assert f"the first {MOST_ROUNDS} are shown" in html


def test_the_list_has_a_box_for_each_round(project: Project, manager: Client) -> None:
    address = reverse("training:rounds", args=[project.slug])
    make_round(project, RoundState.SUCCEEDED)
    assert "Compare the marked" not in manager.get(address).content.decode()
    make_round(project, RoundState.FAILED)
    html = manager.get(address).content.decode()
    assert "Compare the marked" in html
    assert html.count('name="rounds"') == 2
