"""`python -m tests.benchmarks labeling`: annotators over HTTP on a record of a million comparisons.

The site as an operator runs it (gunicorn, 4 workers of 2 threads) and the crowd share the machine.
On SQLite and on a PostgreSQL server of its own (fsync on), each in turn:

- 100 annotators who think 3 to 10 s, the next comparison fetched ahead: p95 of next and submit;
- 50 who do not think at all: judgments a second;
- one at a time on 10,000 and on 1,000,000 comparisons, in turns: p95 of next against each other.

Afterwards the tables are read: every acknowledged verdict is there once, and no comparison has more
live leases and judgments than its overlap.

The floor: a verdict is one commit that reaches the disk, and a lease another; `fsync_ms` in the
settings is what such a commit costs here.
"""

import asyncio
import os
import statistics
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.benchmarks.report import Figure, Options, Report
from tests.benchmarks.workbench.crowd import Tally, crowd, in_ms, percentile, write_keys
from tests.benchmarks.workbench.site import THREADS, WORKERS, Bench
from tests.postgres import cluster, find_server

LARGE, SMALL = 1_000_000, 10_000
THINK = (3.0, 10.0)  # seconds
ANNOTATORS, SATURATING = 100, 50
QUICK_SHARE = 20  # --quick: so much smaller a table, and a fifth of the time


def measure(options: Options) -> Report:
    """Both databases, one after the other; `--data` is not used."""
    figures, runs = [], []
    for name in ("sqlite", "postgres"):
        run = _database(name, options.quick)
        runs.append(run)
        figures += _figures(name, run)
    settings = {
        "comparisons": LARGE // (QUICK_SHARE if options.quick else 1),
        "annotators": ANNOTATORS,
        "think_s": THINK,
        "saturating_connections": SATURATING,
        "gunicorn": f"{WORKERS} workers, {THREADS} threads",
        "fsync_ms": round(fsync_ms(), 2),
        "also_running": "the crowd itself, on the same cores; nothing else was started",
        "load_average_before": os.getloadavg()[0],
    }
    return Report(
        title="Labeling over HTTP: latency, throughput, nothing lost, nothing assigned twice",
        figures=figures,
        settings=settings,
        runs=runs,
    )


def _database(name: str, quick: bool) -> dict[str, Any]:
    """All of it on one database."""
    scale = QUICK_SHARE if quick else 1
    seconds = 20 if quick else 90
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prefloop-bench-")))
        urls = ["", ""]
        if name == "postgres":
            if find_server() is None:
                raise SystemExit("PostgreSQL's server is not installed here.")
            urls = [stack.enter_context(cluster(durable=True)) for _ in range(2)]
        started = time.monotonic()
        large = Bench(folder / "large", urls[0], LARGE // scale, ANNOTATORS)
        small = Bench(folder / "small", urls[1], SMALL, ANNOTATORS)
        filled = time.monotonic() - started
        with large, small:
            flat = _flatness(small, large, rounds=4 if quick else 10)
            thinking = _crowd(large, ANNOTATORS, seconds, THINK)
            saturated = [_crowd(large, SATURATING, seconds / 5, (0, 0)) for _ in range(3)]
            keys = folder / "keys"
            write_keys([thinking, *saturated, *flat["tallies"]], keys)
            audit = large.audit(keys)
    everybody = [thinking, *saturated, *flat["tallies"]]
    return {
        "database": name,
        "filled_s": round(filled, 1),
        "next": in_ms(thinking.next_s),
        "submit": in_ms(thinking.submit_s),
        "judgments_per_s": [round(len(one.keys) / (seconds / 5), 1) for one in saturated],
        "saturated_next": in_ms([s for one in saturated for s in one.next_s]),
        "saturated_submit": in_ms([s for one in saturated for s in one.submit_s]),
        "next_small": in_ms(flat["small"]),
        "next_large": in_ms(flat["large"]),
        "errors": [error for one in everybody for error in one.errors],
        **audit,
    }


def _crowd(bench: Bench, people: int, seconds: float, think: tuple[float, float]) -> Tally:
    return asyncio.run(
        crowd(bench.address, bench.path, bench.sessions[:people], seconds=seconds, think=think)
    )


def _flatness(small: Bench, large: Bench, rounds: int) -> dict[str, Any]:
    """Seconds that next takes on either, in alternating rounds of one annotator each."""
    seconds: dict[str, list[float]] = {"small": [], "large": []}
    tallies = []
    for number in range(rounds + 1):
        for name, bench in (("small", small), ("large", large)):
            session = bench.sessions[number]
            one = asyncio.run(crowd(bench.address, bench.path, [session], seconds=3, think=(0, 0)))
            if number:  # the first round warms both up
                seconds[name] += one.next_s
            if name == "large":
                tallies.append(one)
    return {**seconds, "tallies": tallies}


def _figures(name: str, run: dict[str, Any]) -> list[Figure]:
    table = f"{LARGE:,} comparisons"
    flatness = run["next_large"]["p95"] / run["next_small"]["p95"]
    ours = {
        "p95_next_ms": (run["next"]["p95"], "<=100", f"{ANNOTATORS} annotators, {table}"),
        "p95_submit_ms": (run["submit"]["p95"], "<=100", f"{ANNOTATORS} annotators, {table}"),
        "judgments_per_s": (
            statistics.median(run["judgments_per_s"]),
            ">=150" if name == "sqlite" else ">=100",
            f"{SATURATING} connections, no thinking",
        ),
        "errors": (len(run["errors"]), "<=0", "of all requests"),
        "double_assigned": (run["double_assigned"], "<=0", "read from the tables"),
        "lost": (run["lost"], "<=0", f"of {run['acknowledged']} acknowledged"),
        "flatness_1m_vs_10k": (flatness, "<=1.3", f"next p95 {run['next_large']['p95']} ms"),
    }
    peer = {
        "judgments_per_s": "Label Studio 1.23, as published with the task: 9 to 12",
        "flatness_1m_vs_10k": f"{run['next_small']['p95']} ms at {SMALL:,}",
    }
    return [
        Figure(f"{name}_{figure}", value, bound, words, peer.get(figure, ""))
        for figure, (value, bound, words) in ours.items()
    ]


def fsync_ms() -> float:
    """The median of writing a page and making it reach the disk, in milliseconds."""
    with tempfile.NamedTemporaryFile() as file:
        times = []
        for _ in range(50):
            started = time.perf_counter()
            os.pwrite(file.fileno(), os.urandom(4096), 0)
            os.fsync(file.fileno())
            times.append(time.perf_counter() - started)
    return 1000 * percentile(times, 0.5)
