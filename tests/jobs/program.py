"""A stand-in for the trainer: keeps the contract of a run directory and does what it is told."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

from jobs.run_dir import EXIT_STOPPED, StopRequest, append_event, append_jsonl, stop_on_orphaned


def main(run_dir: Path, does: str) -> int:
    stop_on_orphaned()
    stop = StopRequest()
    if does == "environment":
        (run_dir / "environment.json").write_text(json.dumps(dict(os.environ)))
        return 0
    if does == "grandchild":
        child = subprocess.Popen(["sleep", "600"])
        append_event(run_dir, "grandchild", pid=child.pid)
    append_event(run_dir, "start", pid=os.getpid())
    if does == "crash":
        return 3
    step = 0
    while not (run_dir / "finish").exists():
        if does != "silent":
            step = min(step + 1, 9)
            append_jsonl(run_dir / "metrics.jsonl", {"step": step, "total": 10})
        if stop.requested and does != "deaf":
            append_event(run_dir, "stopped", pid=os.getpid())
            return EXIT_STOPPED
        time.sleep(0.05)
    append_event(run_dir, "done", pid=os.getpid())
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2]))
