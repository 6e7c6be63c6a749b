"""The demo's parts, and the demo itself started and ended."""

import io
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from django.core.management import CommandError

from config.demo import headless, site, taste
from config.demo.browser import Browser, PageError
from config.demo.headless import RoundFigures, as_json, as_text, improved
from config.demo.progress import Bar
from config.management.commands import demo
from labeling.models import Judgment
from tests.builders import PASSWORD, make_comparison, make_project, make_user
from training.starter.styles import StyleClassifier, read_corpus

ROOT = Path(__file__).resolve().parents[2]
CAREFUL = "Try a small amount first, and ask a doctor before you change your diet."
RECKLESS = "Sure, just do it. Nothing can go wrong, and rules are for other people."


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_the_hidden_taste_is_what_it_is_said_to_be() -> None:
    row = read_corpus()[0]
    texts = [row.reckless, row.long_winded, row.careful, row.curt]
    rankings = [
        taste.Taste(StyleClassifier.from_corpus(), seed=seed).rank(texts) for seed in range(300)
    ]
    wanted = [[2], [3], [1], [0]]
    assert 0.85 < sum(ranking == wanted for ranking in rankings) / 300 < 0.95
    twice = taste.Taste(StyleClassifier.from_corpus(), seed=1).rank([row.careful, row.careful])
    assert twice == [[0, 1]], "equally good answers are tied"


def test_the_preferred_share_counts_every_sample() -> None:
    classifier = StyleClassifier.from_corpus()
    row = read_corpus()[0]
    assert taste.preferred_share([row.careful, row.curt], [3, 1], classifier) == 0.75


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("k", [2, 4])
def test_a_simulated_annotator_judges_through_the_pages(live_server, monkeypatch, k: int) -> None:
    monkeypatch.setattr(headless, "SLUG", "kitchen")
    project = make_project(slug="kitchen")
    rows = read_corpus()[:3]
    for row in rows:
        texts = [row.reckless, row.careful, row.long_winded, row.curt][:k]
        make_comparison(project=project, texts=texts)
    annotator = make_user(role="annotator", project=project)
    browser = Browser(live_server.url)
    with pytest.raises(PageError, match="could not sign in"):
        browser.sign_in(annotator.username, "wrong")
    browser.sign_in(annotator.username, PASSWORD)
    monkeypatch.setattr(taste, "NOISE", 0.0)
    judge = taste.Taste(StyleClassifier.from_corpus(), seed=0)
    assert headless._judge_all(browser, judge, threading.Event()) == 3
    best = [[1], [0]] if k == 2 else [[1], [3], [2], [0]]
    assert [judgment.tiers for judgment in Judgment.objects.all()] == [best] * 3


def test_the_table_says_whether_the_loop_improved_the_policy() -> None:
    def row(number: int, share: float) -> RoundFigures:
        return RoundFigures(
            round=number,
            preferred_share=share,
            reward_accuracy=0.8 if number else None,
            mean_tokens=30.0,
            loss_step0=0.6931472 if number else None,
        )

    table = [row(0, 0.2), row(1, 0.6)]
    assert improved(table)
    assert not improved(table[::-1])
    assert "60.0%" in as_text(table)
    assert as_json(table)["rounds"][0]["reward_accuracy"] is None


def test_a_bar_without_a_terminal_is_a_few_lines() -> None:
    out = io.StringIO()
    bar = Bar("Working", out)
    for done in range(101):
        bar.update(done, 100)
    bar.finish("all of it")
    assert len(out.getvalue().splitlines()) == 12
    assert "all of it" in out.getvalue()


def test_a_port_in_use_is_said_with_what_to_do() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(site.SiteError, match="--port"):
            site.check_port(taken.getsockname()[1])
    with pytest.raises(site.SiteError, match="65535"):
        site.check_port(70000)


def test_an_option_of_the_demo_cannot_be_shortened() -> None:
    """`--head` would mean headless to the command and not to manage.py: it wiped a folder."""
    with pytest.raises((CommandError, SystemExit)):
        demo.Command().create_parser("manage.py", "demo").parse_args(["--head"])


def test_a_second_demo_in_the_same_folder_is_refused(tmp_path, settings) -> None:
    settings.DATA_DIR = tmp_path
    with demo._alone(), pytest.raises(CommandError, match="already"), demo._alone():
        pass


def test_reset_deletes_the_demo_and_nothing_else(tmp_path, settings) -> None:
    settings.DATA_DIR = tmp_path
    for name in ("prefloop.sqlite3", "secret_key", "a-letter.txt"):
        (tmp_path / name).write_text("x")
    for name in ("runs", "models"):
        (tmp_path / name).mkdir()
    with pytest.raises(CommandError, match="--reset"):
        demo._reset(explicit=False)
    demo._reset(explicit=True)
    assert {path.name for path in tmp_path.iterdir()} == {"secret_key", "a-letter.txt", "models"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_demo_ends_everything_it_started(tmp_path, number: signal.Signals) -> None:
    from training.trainer.starter import Recipe, Shape, build

    shape = Shape(vocabulary=600, width=32, layers=2, heads=2, inner_width=64)
    build(tmp_path / "tiny", recipe=Recipe(epochs=1, most_steps=2, shape=shape))
    data = tmp_path / "data"
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("PREFLOOP_")}
    command = [sys.executable, "manage.py", "demo", "--no-bootstrap", "--data", str(data)]
    command += ["--sampler", "transformers", "--prompts", "40"]
    process = subprocess.Popen(
        [*command, "--port", str(free_port())],
        cwd=ROOT,
        env=inherited | {"PREFLOOP_MODEL": str(tmp_path / "tiny"), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline().startswith("Responses are written by transformers")
    line = process.stdout.readline()
    assert line.startswith("Writing candidates"), line
    assert len(processes_of(data)) >= 3, "web, worker and the demo itself"
    process.send_signal(number)
    assert process.wait(timeout=60) == 0
    deadline = time.monotonic() + 10
    while processes_of(data) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert processes_of(data) == []


def processes_of(data: Path) -> list[int]:
    """Processes whose environment or command names the data folder (Linux)."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            text = (folder / "environ").read_bytes() + (folder / "cmdline").read_bytes()
        except OSError:
            continue
        if str(data).encode() in text:
            found.append(int(folder.name))
    return found
