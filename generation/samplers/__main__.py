"""`python -m generation.samplers run RUN_DIR`: write the responses that a batch still lacks.

Exit codes: 0 done; 2 bad spec, inputs or policy; 4 out of memory; 5 disk full; 69 no server
answers; 75 stopped by SIGTERM, orphaned, or another process is at work on the directory. After 69
and 75, run it again to go on.
"""

import argparse
import errno
import os
import sys
from pathlib import Path

from generation.samplers.protocol import ServerAway
from generation.samplers.run import run
from jobs.run_dir import (
    EXIT_BAD_INPUT,
    EXIT_DISK_FULL,
    EXIT_OUT_OF_MEMORY,
    EXIT_UNAVAILABLE,
    RunDirError,
    StopRequest,
    append_event,
    stop_on_orphaned,
)
from labeling.chat import ChatError
from labeling.policy_files import UnsafePolicy


def main(arguments: list[str] | None = None) -> int:
    """Run one batch; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m generation.samplers", description=__doc__)
    parser.add_argument("command", choices=["run"])
    parser.add_argument("run_dir", type=Path)
    run_dir: Path = parser.parse_args(arguments).run_dir
    if not run_dir.is_dir():
        print(f"{run_dir} is not a run directory", file=sys.stderr)
        return EXIT_BAD_INPUT
    stop = StopRequest()
    stop_on_orphaned()
    os.environ["HF_HUB_OFFLINE"] = "1"  # a policy is a folder; nothing is ever fetched
    try:
        return run(run_dir, lambda: stop.requested)
    except (RunDirError, UnsafePolicy, ChatError) as error:
        return _report(run_dir, str(error), EXIT_BAD_INPUT)
    except ServerAway as error:
        return _report(run_dir, str(error), EXIT_UNAVAILABLE)
    except MemoryError as error:
        return _report(run_dir, f"out of memory: {error}", EXIT_OUT_OF_MEMORY)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        print(
            f"the disk of {run_dir} is full. What was written is kept; make room and run again",
            file=sys.stderr,
        )
        return EXIT_DISK_FULL


def _report(run_dir: Path, message: str, code: int) -> int:
    print(message, file=sys.stderr)
    append_event(run_dir, "error", message=message)
    return code


if __name__ == "__main__":
    sys.exit(main())
