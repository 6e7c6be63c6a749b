"""The curves of a round: reading what is being written, thinning, laying out."""

import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labeling.intervals import wilson
from training.curves import (
    HEIGHT,
    MOST_STRIPS,
    WIDTH,
    charts,
    nice_ticks,
    number,
    running_mean,
)
from training.guides import FEW_STEPS, KL_CLAMP, LN_2, Aim, Course, advise, aim_of
from training.heldout import comparison
from training.metrics import (
    MOST_POINTS,
    Metrics,
    numbers_in,
    read_metrics,
    read_tail,
    seconds_left,
    thin,
)

REWARDS = ("chosen_reward", "rejected_reward", "chosen_logratio", "rejected_logratio")
KEYS = ("loss", "margin", "accuracy", *REWARDS, "chosen_fell", "kl")
AIMS = [
    Aim(),
    Aim(objective="ipo", beta=0.01),
    Aim(objective="hinge"),
    Aim(objective="robust"),
    Aim(objective="simpo", beta=2.0),
    Aim(shifted=True),
]
TOLD = ("loss", "margin", "accuracy", "rewards", "logratios", "chosen_fell", "kl", "length")
CHARTS = (*TOLD, "speed", "memory")
finite = st.floats(min_value=-1e6, max_value=1e6)
logged = st.dictionaries(st.sampled_from([*KEYS, "chosen_tokens", "rejected_tokens"]), finite)


def steps(number: int, total: int = 0, **values: float) -> list[dict[str, float]]:
    return [
        {"step": step, "total": total or number, "seconds": 2.0 * step, **values}
        for step in range(1, number + 1)
    ]


def metrics(number: int, held_out: list[dict[str, float]] | None = None, **values) -> Metrics:
    return Metrics(steps=steps(number, **values), held_out=held_out or [])


def test_a_file_that_is_absent_torn_or_odd_is_read_as_far_as_it_makes_sense(
    tmp_path: Path,
) -> None:
    assert read_tail(tmp_path / "nowhere.jsonl") == []
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\nnot json\n[1]\n\xff\xfe\n{"step": 2}\n{"step": 3')
    assert read_tail(path) == [{"step": 1}, {"step": 2}]


def test_only_the_end_of_a_long_file_is_read_and_its_cut_line_left_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in range(1000)))
    rows = read_tail(path, limit=100)
    assert 5 <= len(rows) <= 100 // 12 + 1
    assert rows[-1] == {"step": 999}


def test_values_are_finite_numbers_or_dropped() -> None:
    row = json.loads('{"a": 1, "b": NaN, "c": Infinity, "d": "1", "e": true, "f": null, "g": [2]}')
    assert numbers_in(row | {"h": 10**400}) == {"a": 1.0}


def test_training_steps_and_evaluations_are_told_apart(tmp_path: Path) -> None:
    rows = [
        {"step": 0, "total": 9, "held_out": {"loss": 0.7, "pairs": 4}},
        {"step": 1, "total": 9, "loss": 0.6},
        {"loss": 0.5},
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_metrics(tmp_path)
    assert read.steps == [{"step": 1.0, "total": 9.0, "loss": 0.6}]
    assert read.held_out == [{"step": 0.0, "total": 9.0, "loss": 0.7, "pairs": 4.0}]
    assert (read.step, read.total) == (1, 9)


@given(st.integers(0, 2000), st.integers(1, 400))
def test_thinning_keeps_the_last_step_the_order_and_the_limit(rows: int, most: int) -> None:
    thinned = thin(steps(rows, loss=1.0), ["loss"], most)
    assert len(thinned) == min(rows, most)
    assert [row["step"] for row in thinned] == sorted({row["step"] for row in thinned})
    if rows:
        assert thinned[-1]["step"] == rows
    assert all(row["loss"] == 1.0 for row in thinned)


def test_thinning_takes_means() -> None:
    rows = [{"step": step, "loss": float(step)} for step in range(1, 9)]
    assert [row["loss"] for row in thin(rows, ["loss"], 4)] == [1.5, 3.5, 5.5, 7.5]


def test_the_running_mean_looks_back_only() -> None:
    assert running_mean([1, 2, 3, 4], 2) == [1, 1.5, 2.5, 3.5]
    assert running_mean([], 5) == []


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_cover_the_range_and_are_few(low: float, span: float) -> None:
    ticks = nice_ticks(low, low + span)
    assert ticks[0] <= low + span * 1e-6
    assert ticks[-1] >= low + span * (1 - 1e-6)
    assert 2 <= len(ticks) <= 7


def course(trained, held_out=(), total: int = 30, **aim) -> Course:
    return Course(steps=trained, held_out=list(held_out), total=total, aim=Aim(**aim))


@given(
    st.lists(logged, max_size=40),
    st.lists(logged, max_size=5),
    st.integers(0, 60),
    st.sampled_from(AIMS),
)
def test_whatever_is_logged_every_chart_is_drawn_inside_its_frame(
    trained: list[dict[str, float]], evaluated: list[dict[str, float]], total: int, aim: Aim
) -> None:
    drawn = charts(
        Metrics(
            steps=[{"step": i + 1, "total": total} | row for i, row in enumerate(trained)],
            held_out=[{"step": i, "total": total} | row for i, row in enumerate(evaluated)],
        ),
        aim,
    )
    assert tuple(chart.key for chart in drawn) == CHARTS
    for chart in drawn:
        places = [place for line in chart.lines for place in re.findall(r"-?[\d.e+]+", line.path)]
        assert all(0 <= float(place) <= max(WIDTH, HEIGHT) for place in places)
        assert all(0 <= dot.y <= HEIGHT for dot in chart.dots)
        assert all(0 <= mark.at <= WIDTH for mark in chart.x_marks)


def test_long_rounds_stay_small_on_the_page() -> None:
    for chart in charts(metrics(5000, loss=0.5, kl=1.0)):
        assert len(chart.strips) <= MOST_STRIPS
        assert all(line.path.count("L") < MOST_POINTS for line in chart.lines)


def test_the_loss_chart_shows_ln_2_and_the_early_warning() -> None:
    loss = charts(metrics(20, loss=0.6))[0]
    assert [(line.text, line.warns, line.short) for line in loss.drawn] == [
        ("ln 2", False, False),
        ("0.05", True, True),
    ]
    assert loss.summary == "Loss: train 0.600"


def test_a_far_warning_line_is_drawn_once_the_curve_comes_near() -> None:
    assert [chart.drawn for chart in charts(metrics(9, kl=1.0)) if chart.key == "kl"] == [[]]
    near = next(chart for chart in charts(metrics(9, kl=50.0)) if chart.key == "kl")
    assert near.drawn[0].text == "80 nats"


def test_hovering_tells_the_values_of_a_step() -> None:
    chart = next(c for c in charts(metrics(3, chosen_reward=-0.5, rejected_reward=-1)) if c.strips)
    assert chart.strips[-1].text == "Step 3: chosen \u22120.50, rejected \u22121.00"


def test_numbers_have_a_true_minus_and_no_minus_zero() -> None:
    assert number(-1.234, 2) == "\u22121.23"
    assert number(-0.001, 2) == "0.00"


def test_time_left_follows_the_pace_of_the_last_steps() -> None:
    assert seconds_left(Metrics(steps=steps(10, total=60), held_out=[])) == pytest.approx(100)
    assert seconds_left(Metrics(steps=steps(1, total=60), held_out=[])) is None
    assert seconds_left(Metrics(steps=[], held_out=[])) is None


@pytest.mark.parametrize(
    ("key", "values", "words"),
    [
        ("loss", {"loss": 0.01}, "learning rate is too high"),
        ("margin", {"margin": -0.2}, "prefer what people rejected"),
        ("rewards", {"chosen_reward": -3.0}, "less likely"),
        ("logratios", {"chosen_logratio": -8.0, "rejected_logratio": -12.0}, "nobody has read"),
        ("chosen_fell", {"chosen_fell": 0.9}, "less likely"),
        ("kl", {"kl": 96.0}, "left the reference"),
        ("length", {"chosen_tokens": 60.0, "rejected_tokens": 40.0}, "50% longer"),
    ],
)
def test_each_known_fault_is_said_in_words(key: str, values: dict, words: str) -> None:
    bad = steps(30, **values)
    assert words in advise(key, course(bad))[0]
    assert advise(key, course(bad[: FEW_STEPS - 1])) == []


def test_a_sound_round_is_not_warned_about() -> None:
    sound = steps(
        30, loss=0.4, margin=1.0, accuracy=0.8, chosen_reward=0.2, rejected_reward=-0.8,
        kl=50.0, chosen_tokens=30, rejected_tokens=35,
        chosen_logratio=-1.0, rejected_logratio=-16.0, chosen_fell=0.5,
    )  # fmt: skip
    held_out = [
        {"step": 0, "accuracy": 0.5, "chosen_logratio": 0.0, "chosen_fell": 0.0},
        {"step": 30, "accuracy": 0.75, "chosen_logratio": -4.7, "chosen_fell": 0.7},
    ]  # the last figures of the demo's second round
    for key in CHARTS:
        assert advise(key, course(sound, held_out)) == []


def test_held_out_accuracy_below_a_coin_toss_and_memorizing_are_warned_about() -> None:
    held_out = [{"step": 0, "accuracy": 0.5}, {"step": 30, "accuracy": 0.45}]
    found = advise("accuracy", course(steps(30, accuracy=0.95), held_out))
    assert "do not promote" in found[0]
    assert "memorized" in found[1]
    assert advise("accuracy", course(steps(30, accuracy=0.95), held_out[:1])) == []
    few = [held_out[0], held_out[1] | {"pairs": 11}]
    assert advise("accuracy", course(steps(30, accuracy=0.5), few)) == [], "that may be chance"
    many = [held_out[0], held_out[1] | {"pairs": 1100}]
    assert "do not promote" in advise("accuracy", course(steps(30, accuracy=0.5), many))[0]


def test_what_chosen_did_on_held_out_pairs_counts_more_than_on_train() -> None:
    trained = steps(30, chosen_fell=0.3, chosen_logratio=0.0, rejected_logratio=-9.0)
    before = {"step": 0, "chosen_fell": 0.0, "chosen_logratio": 0.0}
    fallen = {"step": 30, "chosen_fell": 0.8, "chosen_logratio": -6.0}
    for key in ("chosen_fell", "logratios"):
        assert advise(key, course(trained, [before])) == []
        assert len(advise(key, course(trained, [before, fallen]))) == 1


@pytest.mark.parametrize(
    ("options", "level"),
    [
        ({}, LN_2),
        ({"objective": "robust", "label_noise": 0.1}, LN_2),
        ({"objective": "hinge"}, 1.0),
        ({"objective": "ipo", "beta": 0.5}, 1.0),
        ({"objective": "simpo", "beta": 2.0}, None),
        ({"ties": "rao_kupper"}, None),
        ({"length_penalty": 0.01}, None),
        ({"chosen_floor": 5.0}, LN_2),
    ],
)
def test_the_level_a_loss_falls_from_is_the_objectives(options: dict, level: float | None) -> None:
    aim = aim_of(options)
    assert (aim.first_loss or (None,))[0] == level
    loss = charts(metrics(20, loss=0.6), aim)[0]
    assert ("falls from the line" in loss.reading) == (level is not None)


def test_the_levels_are_those_that_the_losses_show_at_margin_0() -> None:
    torch = pytest.importorskip("torch")
    from training.trainer.objectives import Objective, Outcome, PairLogps, pair_losses

    nought, one = torch.zeros(1), torch.ones(1)
    logps, tokens = PairLogps(nought, nought), PairLogps(9 * one, 5 * one)
    for name in ("dpo", "ipo", "hinge", "robust"):
        objective = Objective(name=name, beta=0.3, label_noise=0.1 if name == "robust" else 0.0)
        found = pair_losses(objective, logps, logps, tokens, Outcome(one, nought, nought))
        level = Aim(objective=name, beta=0.3).first_loss
        assert level is not None
        assert float(found.loss[0]) == pytest.approx(level[0], rel=1e-5)


def test_a_reward_without_a_reference_has_no_level_at_which_it_warns() -> None:
    low = course(steps(30, chosen_reward=-3.0), objective="simpo")
    assert advise("rewards", low) == []
    chart = next(c for c in charts(metrics(30, chosen_reward=-3.0), low.aim) if c.key == "rewards")
    assert "SimPO" in chart.reading
    assert not any(line.warns for line in chart.drawn)


def test_the_estimate_of_kl_is_clamped_where_the_page_says() -> None:
    pytest.importorskip("torch")
    from training.trainer import evaluate

    assert evaluate.KL_CLAMP == KL_CLAMP


def test_held_out_figures_before_and_after() -> None:
    before = {"accuracy": 0.5, "loss": LN_2, "margin": 0.0, "kl": 0.0, "pairs": 40}
    after = {"accuracy": 0.8, "loss": 0.5, "margin": 1.25, "kl": 2.0, "pairs": 40}
    found = comparison({"held_out_before": before, "held_out_after": after})
    assert found is not None
    assert found.pairs == 40
    told = {row.title: (row.change_text, row.verdict) for row in found.rows}
    assert told["Reward accuracy"] == ("+0.30", "better")
    assert told["Loss"] == ("\u22120.193", "better")
    assert told["KL to the reference, nats"] == ("+2.00", "")
    assert comparison({"held_out_before": None, "held_out_after": None}) is None
    assert comparison({}) is None


def test_the_interval_is_wilsons() -> None:
    low, high = wilson(0.8, 40)  # worked by hand: (0.8 + z²/80 ± ...) / (1 + z²/40)
    assert (round(low, 3), round(high, 3)) == (0.652, 0.895)


@given(st.floats(0, 1), st.integers(1, 10_000))
def test_the_interval_holds_the_share_and_stays_a_share(share: float, number: int) -> None:
    low, high = wilson(share, number)
    assert 0 <= low <= share + 1e-9
    assert share - 1e-9 <= high <= 1
    assert math.isfinite(high - low)
