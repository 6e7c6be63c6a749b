"""What the benchmarks' figures rest on, and that they can still drive the trainer."""

import json
import random
from itertools import chain
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.benchmarks import pages, rows
from tests.benchmarks.__main__ import BENCHMARKS, main
from tests.benchmarks.encoding import write_rows
from tests.benchmarks.flops import attended, layer_weights, pair_tokens, step_flops
from tests.benchmarks.models import Shape, word_tokenizer, write_model
from tests.benchmarks.parity import differences, relative_difference
from tests.benchmarks.report import Figure, Report, store, table
from tests.benchmarks.suite import make_suite
from tests.benchmarks.variants import ACCUMULATED, DEFAULT, PREFLOOP, arguments

TINY = Shape(width=16, layers=1, heads=2, key_heads=1, inner_width=24)


def a_report() -> Report:
    figures = [
        Figure("faster", 7.25, ">=6", "ours so", "theirs so"),
        Figure("smaller", 0.5, "<=0.35", "ours", "theirs"),
        Figure("other", 3.0, "", "ours", "theirs"),
    ]
    return Report(title="A title", figures=figures, settings={"rows": "generated"})


def test_a_figure_knows_whether_it_keeps_its_bound():
    assert [figure.holds for figure in a_report().figures] == [True, False, True]


def test_the_table_shows_values_bounds_and_both_sides():
    lines = table(a_report()).splitlines()
    assert lines[0] == "A title"
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:]]
    assert cells[2] == ["faster", "7.25", ">=6", "", "ours so", "theirs so"]
    assert cells[3][:4] == ["smaller", "0.5", "<=0.35", "missed"]
    assert len({len(line) for line in lines[2:]}) == 1


def test_json_holds_figures_machine_settings_and_runs(tmp_path: Path):
    store(a_report(), tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert content["figures"] == {"faster": 7.25, "smaller": 0.5, "other": 3.0}
    assert content["bounds"] == {"faster": ">=6", "smaller": "<=0.35"}
    assert content["machine"]["cores"] >= 1
    assert content["machine"]["cpu"]
    assert content["settings"]["rows"] == "generated"
    assert content["settings"]["date"]
    assert content["runs"] == []


def test_the_command_runs_a_benchmark_and_stores_it(tmp_path: Path, monkeypatch, capsys):
    asked = []

    def measure(options):
        asked.append(options)
        return a_report()

    monkeypatch.setattr(
        "tests.benchmarks.__main__.import_module", lambda _name: SimpleNamespace(measure=measure)
    )
    assert main([next(iter(BENCHMARKS)), "--quick", "--json", str(tmp_path / "out.json")]) == 0
    assert asked[0].quick
    assert "missed" in capsys.readouterr().out
    assert (tmp_path / "out.json").exists()


def test_the_slowest_page_and_broken_ones_are_figures():
    def page(name: str, seconds: list[float], status: int = 200) -> dict[str, object]:
        more = {"status": status, "queries": 7, "first_s": 2.0}
        return {"page": name, "seconds": seconds, "cpu_s": seconds} | more

    found = pages._figures(
        "sqlite",
        [
            page("quick", [0.01] * 20),
            page("slow", [0.02] * 19 + [0.3]),
            page("broken", [], status=500),
            page("elsewhere", [], status=302),
        ],
    )
    values = {figure.name: figure.value for figure in found}
    assert values == {
        "sqlite_p95_ms quick": 10,
        "sqlite_p95_ms slow": 300,
        "sqlite_slowest_p95_ms": 300,
        "sqlite_slowest_cpu_ms": 300,
        "sqlite_broken_pages": 1,
    }
    assert [figure.holds for figure in found] == [True, False, False, True, False]


def test_flops_of_a_step_are_those_worked_by_hand():
    # Per token: q, o 16 x 16; k, v 16 x 8; MLP 3 x 16 x 24.
    assert layer_weights(TINY) == 2 * 256 + 2 * 128 + 3 * 384
    # A prompt of 2: 1 + 2 keys. Responses of 1 and 3: 3, and 3 + 4 + 5.
    assert attended(2, [1, 3]) == 3 + 3 + 12
    linear = 6 * layer_weights(TINY) * 6
    head = 6 * 4000 * 16 * 4
    attention = 12 * 16 * 18
    assert step_flops(TINY, [(2, [1, 3])]) == linear + head + attention


def test_pair_tokens_counts_every_pair_as_two_sequences():
    assert pair_tokens([(10, [3, 4])]) == 2 * 10 + 3 + 4
    pairs = [(a, b) for a in (1, 2, 3, 4) for b in (1, 2, 3, 4) if a < b]
    assert pair_tokens([(10, [1, 2, 3, 4])]) == sum(20 + a + b for a, b in pairs)


def test_made_rows_are_those_of_their_seed_and_fit():
    made = rows.made_rankings(rows.HH_LIKE, 500, max_length=512)
    assert made == rows.made_rankings(rows.HH_LIKE, 500, max_length=512)
    assert made != rows.made_rankings(rows.HH_LIKE, 500, max_length=512, seed=1)
    assert max(map(rows.longest, made)) == 512
    lengths = [rows.token_lengths(row) for row in made]
    assert 110 < sum(prompt for prompt, _ in lengths) / 500 < 150
    assert 40 < sum(chain(*(r for _, r in lengths))) / 1000 < 60


def test_long_answers_have_about_350_tokens():
    made = rows.made_rankings(rows.LONG_ANSWERS, 500, max_length=1024)
    lengths = [size for row in made for size in rows.token_lengths(row)[1]]
    assert 330 < sum(lengths) / len(lengths) < 370


def test_a_row_without_room_for_a_response_is_left_out():
    def ranking(prompt: int) -> rows.Ranking:
        return rows.Ranking(tuple(range(prompt)), ((1, 2, 3), (4, 5, 6)))

    fitted = list(rows.fitting([ranking(5), ranking(6), ranking(7)], max_length=10))
    assert [row.responses for row in fitted] == [((1, 2), (4, 5)), ((1,), (4,))]


def test_a_fair_sample_has_the_pools_lengths_and_padding():
    pool = rows.made_rankings(rows.HH_LIKE, 800, max_length=512)
    sample = rows.fair_sample(pool, size=8, count=2)
    assert len(set(sample)) == 16
    for ours, whole in zip(rows._sizes(sample, 8), rows._sizes(pool, 8), strict=True):
        assert ours == pytest.approx(whole, rel=0.1)
    assert rows.fair_sample(pool, size=8, count=0) == []


def test_batches_by_length_hold_rows_of_alike_length():
    pool = rows.made_rankings(rows.HH_LIKE, 400, max_length=512)
    batches = rows.by_length(pool, size=8, count=4)
    spans = [list(map(rows.longest, batches[at : at + 8])) for at in range(0, 32, 8)]
    assert all(max(span) - min(span) < 40 for span in spans)
    assert spans == sorted(spans)


def test_transcripts_are_read_as_prompt_and_last_answers(tmp_path: Path):
    start = "\n\nHuman: Hello there\n\nAssistant: Hi!\n\nHuman: Why?\n\nAssistant:"
    both = {"chosen": f"{start} So it is.", "rejected": f"{start} No idea"}
    other = {"chosen": "\n\nHuman: A\n\nAssistant: B", "rejected": "\n\nHuman: C\n\nAssistant: D"}
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in (both, other)))
    (read,) = rows.read_rankings(path, max_length=512)
    assert len(read.prompt) == 12  # Human : Hello there Assistant : Hi ! Human : Why ?
    assert [len(response) for response in read.responses] == [4, 2]


def test_words_and_token_ids_are_one_thing():
    tokenizer = word_tokenizer()
    assert len(tokenizer) == 4000
    words = tuple(random.Random(0).choices(range(rows.WORDS), k=50))
    ids = tokenizer.encode(rows.text(words))
    assert len(ids) == 50
    assert tokenizer.decode(ids) == rows.text(words)


def test_both_sides_train_on_the_rows_in_the_order_given(tmp_path: Path):
    write_model(TINY, tmp_path / "model")
    rankings = rows.made_rankings(rows.LONG_PROMPTS, 5, max_length=512)
    settings = arguments(PREFLOOP, groups=2, pairs=6)
    batches = write_rows(tmp_path, "rows", rankings, settings)
    assert [len(batch) for batch in batches] == [2, 2, 1]
    tokenizer = word_tokenizer()
    lines = (tmp_path / "rows.trl.jsonl").read_text().splitlines()
    pairs = [json.loads(line) for line in lines]
    assert len(pairs) == 5 * 6
    for at, ranking in enumerate(rankings):
        assert rows.text(ranking.prompt) in pairs[6 * at]["prompt"]
        assert pairs[6 * at]["chosen"] == " " + rows.text(ranking.responses[0])
        assert pairs[6 * at + 5]["rejected"] == " " + rows.text(ranking.responses[3])
    for pair in pairs:  # as TRL encodes them
        prompt = tokenizer(pair["prompt"])["input_ids"]
        whole = tokenizer(pair["prompt"] + pair["chosen"] + tokenizer.eos_token)["input_ids"]
        assert (prompt, whole) == (pair["prompt_ids"], pair["prompt_ids"] + pair["chosen_ids"])


def test_settings_of_a_variant_are_complete():
    assert arguments(PREFLOOP, groups=4, pairs=6)["batch_groups"] == 4
    assert arguments(DEFAULT, groups=4, pairs=6)["per_device_train_batch_size"] == 24
    assert "gradient_checkpointing" not in arguments(DEFAULT, groups=8, pairs=1)
    tuned = arguments(ACCUMULATED, groups=8, pairs=1)
    assert tuned["per_device_train_batch_size"] * tuned["gradient_accumulation_steps"] == 8


def test_gradients_are_compared_over_all_parameters_together():
    theirs = {"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}
    ours = {"a": torch.tensor([3.0]), "b": torch.tensor([4.5])}
    assert relative_difference(ours, theirs) == pytest.approx(0.1)
    with pytest.raises(SystemExit, match="b"):
        relative_difference({"a": theirs["a"]}, theirs)
    assert differences([1.0, 2.0], [1.5, 1.0]) == [0.5, 1.0]


@pytest.mark.slow
def test_the_trainer_is_driven_and_measured(tmp_path: Path):
    pool = rows.made_rankings(rows.HH_LIKE, 30, max_length=512)
    suite = make_suite("tiny", tmp_path / "tiny", pool, size=4, steps=2, shape=TINY)
    run = suite.measure(PREFLOOP)
    assert run["steps"] == 2
    assert len(run["losses"]) == 3
    assert run["tokens_per_s"] > 0
    assert run["memory_mb"] > run["memory_before_training_mb"] > 0
    assert 0 < run["peak_share"] < 1
    gradient = tmp_path / "gradient.safetensors"
    suite.result(PREFLOOP, gradient=gradient)
    assert gradient.exists()
