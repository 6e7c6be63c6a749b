"""A policy's folder as a tar archive, written file by file while it is read.

Only plain files of a model that lie in the folder itself are in it. Each is opened without
following links, below a folder that is held open, so no name in the folder leads out of it.
"""

import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from labeling.policy_files import DIGESTED

CHUNK = 1024 * 1024  # bytes
BLOCK = tarfile.BLOCKSIZE
END = b"\0" * (2 * BLOCK)
LEGAL = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY")


class NotThere(Exception):
    """The folder cannot be read, or holds nothing to give."""


class Changed(Exception):
    """A file is no longer what it was when the download began: the archive ends here, torn."""


@dataclass(frozen=True, kw_only=True)
class _Member:
    name: str
    size: int
    stamp: tuple[int, int]
    header: bytes


class Archive:
    """What the archive of a folder will hold; `size` is exact, to the byte."""

    def __init__(self, folder: Path, name: str) -> None:
        """`name` is the folder that the files come to lie in when they are unpacked."""
        self._folder = folder
        try:
            with _opened_folder(folder) as root:
                found = sorted(entry for entry in os.listdir(root) if _wanted(entry))
                self._members = list(_members(root, found, name))
        except OSError as error:
            raise NotThere(str(error)) from None
        if not self._members:
            raise NotThere(f"{folder} holds no files of a policy")
        self.names = [member.name for member in self._members]
        self.size = len(END) + sum(
            len(member.header) + _padded(member.size) for member in self._members
        )

    def __iter__(self) -> Iterator[bytes]:
        with _opened_folder(self._folder) as root:
            for member in self._members:
                yield member.header
                yield from _content(root, member)
        yield END


def _wanted(name: str) -> bool:
    return not name.startswith(".") and (
        name.endswith((*DIGESTED, ".md")) or name.upper().startswith(LEGAL)
    )


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


@contextmanager
def _opened_folder(folder: Path) -> Iterator[int]:
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield root
    finally:
        os.close(root)


def _open(root: int, name: str) -> int:
    # A pipe in the folder must not make us wait for somebody to write into it.
    return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=root)


def _members(root: int, names: list[str], folder: str) -> Iterator[_Member]:
    for name in names:
        status = os.stat(name, dir_fd=root, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode):
            continue
        info = tarfile.TarInfo(f"{folder}/{name}")
        info.size, info.mtime, info.mode = status.st_size, int(status.st_mtime), 0o644
        yield _Member(
            name=name,
            size=status.st_size,
            stamp=(status.st_size, status.st_mtime_ns),
            header=info.tobuf(tarfile.GNU_FORMAT, errors="surrogateescape"),
        )


def _content(root: int, member: _Member) -> Iterator[bytes]:
    try:
        descriptor = _open(root, member.name)
    except OSError as error:
        raise Changed(f"{member.name}: {error.strerror}") from None
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        status = os.fstat(descriptor)
        plain = stat.S_ISREG(status.st_mode)
        if not plain or (status.st_size, status.st_mtime_ns) != member.stamp:
            raise Changed(f"{member.name} was written to meanwhile")
        left = member.size
        while left:
            part = file.read(min(CHUNK, left))
            if not part:
                raise Changed(f"{member.name} was cut meanwhile")
            left -= len(part)
            yield part
    yield b"\0" * (_padded(member.size) - member.size)
