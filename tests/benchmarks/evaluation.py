"""Does the gate work? Rounds trained on inverted preferences, rounds trained on true ones, luck.

Every round is real: a small starter policy writes candidates, simulated annotators rank them by
their taste (one judgment in ten is random), a worker trains. Half of the rounds get every ranking
upside down. Then each policy is evaluated as the product does it: both policies answer held-out
prompts, the pairs go through the queue, annotators judge them by their true taste, and the gate
is looked at after every single judgment.
"""

import os
import tempfile
from pathlib import Path

import numpy as np

from tests.benchmarks.report import Figure, Options, Report

SEEDS = 20
LOOKS = 300  # judgments of a simulated evaluation, each looked at


def measure(options: Options) -> Report:
    """The three figures, and how often two policies that are the same would be told apart."""
    seeds = 3 if options.quick else SEEDS
    with tempfile.TemporaryDirectory(prefix="prefloop-evaluation-") as folder:
        os.environ |= {
            "PREFLOOP_DATA": folder,
            "PREFLOOP_DATABASE_URL": f"sqlite://{folder}/prefloop.sqlite3",
            "PREFLOOP_SAMPLER": "transformers",
            "DJANGO_SETTINGS_MODULE": "config.settings",
        }
        import django

        django.setup()
        from tests.benchmarks.rounds import judged_rounds

        runs = judged_rounds(Path(folder), seeds)
    promoted = {
        arm: sum(run["promoted"] for run in runs if run["arm"] == arm)
        for arm in ("inverted", "true")
    }
    covered, alike = coverage(100), coverage(2000)
    crowd = "annotators of one taste, a tenth of their judgments random"
    return Report(
        title="The gate",
        figures=[
            Figure(f"worse_promoted_of_{seeds}", promoted["inverted"], "<=0", crowd, "inverted"),
            Figure(
                f"better_promoted_of_{seeds}",
                promoted["true"],
                f">={0.9 * seeds:g}",
                crowd,
                "true preferences",
            ),
            Figure("coverage_of_100", covered, ">=94", f"{LOOKS} looks each", "the true win rate"),
            Figure("coverage_of_2000", alike, ">=1900", f"{LOOKS} looks each", "the same"),
        ],
        settings={"looks": LOOKS, "seeds": seeds},
        runs=runs,
    )


def coverage(runs: int, seed: int = 20) -> int:
    """In how many simulated evaluations the true win rate was inside the interval at every look.

    Win rates from 20 to 80 %, ties from none to half of the judgments.
    """
    from labeling.sequential import ALPHA, log_capital

    luck = np.random.default_rng(seed)
    covered = 0
    for _ in range(runs):
        ties = luck.uniform(0, 0.5)
        rate = luck.uniform(max(0.2, ties / 2), min(0.8, 1 - ties / 2))
        draws = luck.random(LOOKS)
        wins = np.cumsum(draws < rate - ties / 2).astype(float)
        tied = np.cumsum((draws >= rate - ties / 2) & (draws < rate + ties / 2)).astype(float)
        losses = np.arange(1, LOOKS + 1) - wins - tied
        counts = np.column_stack([wins, tied, losses])
        scores = np.tile([1.0, 0.5, 0.0], (LOOKS, 1))
        capital = log_capital(scores, counts, np.full(LOOKS, rate))
        covered += bool((capital < -np.log(ALPHA)).all())
    return covered
