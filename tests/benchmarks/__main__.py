"""`python -m tests.benchmarks NAME [--json FILE] [--quick] [--data FILE]`: measure, print, store.

Each benchmark is a module of this package with `measure(options) -> Report`; it is named here.
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path

from tests.benchmarks.report import Options, store, table

BENCHMARKS = {
    "evaluation": "the gate: rounds on inverted and on true preferences, and coverage",
    "generation": "the batch path against vLLM itself and transformers",
    "labeling": "annotators over HTTP on a million comparisons, SQLite and PostgreSQL",
    "pages": "every page of a project with 1,000 rounds and 1,000,000 preferences",
    "trainer": "the DPO trainer against TRL's DPOTrainer",
    "turns": "generation and training on one GPU, one after the other",
}


def main(argv: list[str] | None = None) -> int:
    """0 when everything was measured, whatever came out."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("benchmark", choices=BENCHMARKS)
    parser.add_argument("--json", type=Path, help="store figures, machine and settings here")
    parser.add_argument("--quick", action="store_true", help="fewer steps and repeats, rougher")
    parser.add_argument("--data", type=Path, help="real rows in place of generated ones")
    arguments = parser.parse_args(argv)
    options = Options(quick=arguments.quick, data=arguments.data)
    report = import_module(f"tests.benchmarks.{arguments.benchmark}").measure(options)
    print(table(report))
    if arguments.json:
        store(report, arguments.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
