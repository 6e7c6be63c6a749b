"""What this machine has. Standard library only."""

import shutil


def has_gpu() -> bool:
    """Whether there is an NVIDIA GPU, judged without importing anything."""
    return shutil.which("nvidia-smi") is not None
