"""The trainer's program with a fault in it, which the first argument names. Run by test_faults.

The fault is put under the real program where a machine would have it: in a step, or in a write.
"""

import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, os.getcwd())

from training.trainer import __main__ as program

AT_STEP = 3
FEW_BYTES = 30_000  # checkpoints are larger, events and the log are not

run_dir = Path(sys.argv[-1])


def out_of_memory(_round: Any) -> None:
    import torch

    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")


def killed(_round: Any) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def not_finite(round_: Any) -> None:
    import torch

    with torch.no_grad():
        next(iter(round_.policy.trainable().values())).fill_(float("nan"))


def disk_full(_round: Any) -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (FEW_BYTES, resource.RLIM_INFINITY))


def hangs(_round: Any) -> None:
    os.kill(breathing[0], signal.SIGKILL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # else the test waits as long as a person would
    time.sleep(600)


def sound(_round: Any) -> None:
    pass


breathing: list[int] = []  # the process that does


def breathe() -> None:
    """Show life until the fault: starting takes longer than the silence that the test allows.

    A process of its own, for imports hold threads up; it goes with the program's group.
    """
    trainer = os.getpid()
    child = os.fork()
    if child:
        breathing.append(child)
        return
    while os.getppid() == trainer:
        (run_dir / "alive").write_text(str(time.monotonic()))
        time.sleep(0.1)
    os._exit(0)


def main() -> int:
    fault = globals()[sys.argv.pop(1)]
    if sys.argv[1] == "run":
        breathe()
        from training.trainer import loop

        whole = loop.take_step

        def take_step(round_: Any, step: int, batch: Any) -> None:
            if step == AT_STEP:
                fault(round_)
            whole(round_, step, batch)

        loop.take_step = take_step
    return program.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
