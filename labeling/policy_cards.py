"""The model card in a policy's folder: a README.md that anybody may have written."""

import json
import os
import re
import stat
from pathlib import Path

from labeling.policy_files import folder_bytes
from labeling.rendering import MAX_MARKDOWN

CARD = "README.md"
# Of YAML front matter, which speaks to programs.
_FRONT = re.compile(r"\A---[ \t]*\n.*?\n---[ \t]*(?:\n|\Z)", re.DOTALL)
LONGEST_CONFIG = 1_000_000  # bytes
LONGEST_NAME = 80


def read_card(folder: Path) -> str:
    """The card's Markdown without its front matter; "" where there is none. To be rendered."""
    text = _read(folder / CARD, 4 * MAX_MARKDOWN).decode(errors="replace").replace("\r\n", "\n")
    return _FRONT.sub("", text, count=1).strip()


def read_architecture(folder: Path) -> str:
    """What the model's configuration calls it; "" where it does not say."""
    try:
        config = json.loads(_read(folder / "config.json", LONGEST_CONFIG))
        named = config["architectures"][0]
    except (ValueError, LookupError, TypeError, RecursionError):
        return ""
    return str(named)[:LONGEST_NAME]


def has_files(folder: Path) -> bool:
    """Whether anything is there."""
    return folder_bytes(folder) > 0


def _read(path: Path, most: int) -> bytes:
    """The beginning of a plain file, whose last part is no link; b"" where there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except (OSError, ValueError):
        return b""
    with os.fdopen(descriptor, "rb") as file:
        return file.read(most) if stat.S_ISREG(os.fstat(descriptor).st_mode) else b""
