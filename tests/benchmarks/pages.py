"""`python -m tests.benchmarks pages`: how long the server takes for each page of a large project.

1,000 rounds with a policy each, 100,000 judged comparisons of five responses, 1,000,000
preferences: filled straight into the tables, on SQLite and on a PostgreSQL server of its own. Then
every route that answers a GET is opened by a manager (the judging pages by an annotator), with the
filters people use most; all pages once, then in turns. A worker of the light lane runs beside, as
it does in an installation: it counts again what the pages found to be old.

The figure is the 95th percentile of the visits after the first. The first visit of a page whose
counts were never made waits for them; it is told apart, as `first_ms`. A streamed export is no
page. `--data FOLDER` keeps the filled SQLite database there for the next time.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.benchmarks.environment import ROOT
from tests.benchmarks.report import Figure, Options, Report
from tests.benchmarks.workbench.crowd import percentile
from tests.postgres import cluster, find_server

COMPARISONS, ROUNDS = 100_000, 1_000
QUICK_SHARE = 20  # --quick: so much smaller
TIMES = 40
BOUND_MS = 150


def measure(options: Options) -> Report:
    """Both databases where there is a PostgreSQL server, else SQLite alone."""
    figures, runs = [], []
    for name in ("sqlite", "postgres") if find_server() else ("sqlite",):
        run = _database(name, options)
        runs.append(run)
        figures += _figures(name, run["pages"])
    share = QUICK_SHARE if options.quick else 1
    settings = {
        "comparisons": COMPARISONS // share,
        "preferences": 10 * COMPARISONS // share,
        "rounds": ROUNDS // share,
        "visits_of_each_page": TIMES,
        "beside": "a worker of the light lane",
        "load_average_before": os.getloadavg()[0],
    }
    return Report(
        title="Every page of a project with 1,000 rounds and 1,000,000 preferences",
        figures=figures,
        settings=settings,
        runs=runs,
    )


def _database(name: str, options: Options) -> dict[str, Any]:
    with ExitStack() as stack:
        kept = options.data if name == "sqlite" else None
        made = kept or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prefloop-")))
        url = stack.enter_context(cluster(durable=True)) if name == "postgres" else ""
        share = QUICK_SHARE if options.quick else 1
        environment = _environment(made, url)
        started = time.monotonic()
        if not (made / "slug").exists():
            made.mkdir(parents=True, exist_ok=True)
            size = (str(made), str(COMPARISONS // share), str(ROUNDS // share))
            slug = _python(environment, "tests.benchmarks.workbench.managed", *size)
            (made / "slug").write_text(slug)
        filled = time.monotonic() - started
        slug = (made / "slug").read_text().strip()
        with _worker(environment, made):
            told = _python(environment, "tests.benchmarks.workbench.visiting", slug, str(TIMES))
    return {"database": name, "filled_s": round(filled), "pages": json.loads(told)}


def _environment(folder: Path, url: str) -> dict[str, str]:
    others = {key: value for key, value in os.environ.items() if not key.startswith("PREFLOOP_")}
    return others | {
        "PREFLOOP_DATA": str(folder),
        "PREFLOOP_DATABASE_URL": url or f"sqlite://{folder}/prefloop.sqlite3",
        "PREFLOOP_LOG_LEVEL": "CRITICAL",
        "DJANGO_SETTINGS_MODULE": "config.settings",
        "PYTHONPATH": str(ROOT),
    }


def _python(environment: dict[str, str], module: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=environment,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout


@contextmanager
def _worker(environment: dict[str, str], folder: Path) -> Iterator[None]:
    subprocess.run(
        [sys.executable, "manage.py", "migrate", "-v", "0"], cwd=ROOT, env=environment, check=True
    )
    with (folder / "worker.log").open("ab") as log:
        worker = subprocess.Popen(
            [sys.executable, "manage.py", "worker", "--lanes", "light"],
            cwd=ROOT,
            env=environment,
            stdout=log,
            stderr=log,
        )
        try:
            yield
        finally:
            worker.terminate()
            worker.wait()


def _figures(database: str, pages: list[dict[str, Any]]) -> list[Figure]:
    """A figure a page; the slowest; and pages that broke, which must be none."""
    shown = [page for page in pages if page["seconds"]]
    figures = [_figure(database, page) for page in shown]
    broken = sum(page["status"] >= 500 for page in pages)
    busiest = max(1000 * percentile(page["cpu_s"], 0.95) for page in shown)
    return [
        *figures,
        Figure(
            f"{database}_slowest_p95_ms",
            max(figure.value for figure in figures),
            f"<={BOUND_MS}",
            f"{len(shown)} pages, {TIMES} visits each",
            "",
        ),
        Figure(f"{database}_slowest_cpu_ms", round(busiest, 1), "", "p95, of the web process", ""),
        Figure(f"{database}_broken_pages", broken, "<=0", "answered with 500", ""),
    ]


def _figure(database: str, page: dict[str, Any]) -> Figure:
    p95 = round(1000 * percentile(page["seconds"], 0.95), 1)
    median, cpu = (1000 * statistics.median(page[name]) for name in ("seconds", "cpu_s"))
    first = 1000 * page["first_s"]
    ours = f"median {median:.0f} ms, CPU {cpu:.0f}, first {first:.0f}; {page['queries']} queries"
    return Figure(f"{database}_p95_ms {page['page']}", p95, f"<={BOUND_MS}", ours, "")
