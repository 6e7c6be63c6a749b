"""`python -m generation.samplers.fetch REPO --run-dir DIR FOLDER`: bring a model from the hub.

The model comes to lie in FOLDER/owner--name-REVISION, complete or not at all, and DIR/manifest.json
says where. Only weights as safetensors, configuration and tokenizer are fetched, never code or
pickled files; no access token is ever sent. Run again after it was killed, it goes on where it was.

Exit codes: 0 done; 2 no such model, or no way to the hub; 3 refused as unsafe; 5 disk full;
75 orphaned: run it again.
"""

import argparse
import errno
import fcntl
import os
import re
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jobs.run_dir import (
    EXIT_BAD_INPUT,
    EXIT_DISK_FULL,
    EXIT_DONE,
    EXIT_REFUSED,
    append_event,
    append_jsonl,
    replace_dir,
    stop_on_orphaned,
    write_json,
)
from labeling.policy_files import UnsafePolicy, check_policy_dir

HUB_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}/[A-Za-z0-9][A-Za-z0-9._-]{0,95}")
REVISION = re.compile(r"[0-9a-f]{40}")
WANTED = ["*.safetensors", "*.json", "tokenizer.model", "*.jinja", "*.txt"]
UNWANTED = ["*/*", "*.py", "*.bin"]  # what lies in subfolders is another format of the same weights
NOTHING_KEPT = "nothing was kept"


class CannotFetch(Exception):
    """Why there is no model now; the message is for the user. `code` is the exit code."""

    def __init__(self, reason: str, code: int = EXIT_BAD_INPUT) -> None:
        super().__init__(reason)
        self.code = code


def folder_name(repo: str, revision: str) -> str:
    """The name of the folder that holds this model (hub ids never hold two dashes in a row)."""
    return f"{repo.replace('/', '--')}-{revision}"


def fetch(*, repo: str, revision: str, folder: Path, run_dir: Path) -> Path:
    """The model's folder below `folder`; fetched unless it is there. No revision is the newest.

    CannotFetch, after which nothing is left of an incomplete download.
    """
    if not HUB_ID.fullmatch(repo) or ".." in repo or "--" in repo:
        raise CannotFetch(f"{repo!r} is not a hub id; they look like owner/name")
    if revision and not REVISION.fullmatch(revision):
        raise CannotFetch(f"{revision!r} is not a revision of 40 hex digits")
    target = folder / folder_name(repo, revision)
    if revision and target.exists():
        return target
    revision = revision or _newest(repo)
    target = folder / folder_name(repo, revision)
    part = folder / f".{target.name}.part"
    with _alone(folder / f".{target.name}.lock", repo):
        if not target.exists():
            try:
                _download(repo, revision, part, run_dir)
                replace_dir(part, target)
            except Exception:
                shutil.rmtree(part, ignore_errors=True)
                raise
    return target


def _newest(repo: str) -> str:
    from huggingface_hub import HfApi

    with _hub_errors(repo):
        return str(HfApi().model_info(repo, token=False).sha)


def _download(repo: str, revision: str, part: Path, run_dir: Path) -> None:
    from huggingface_hub import snapshot_download

    options: dict[str, Any] = {
        "repo_id": repo,
        "revision": revision,
        "local_dir": part,
        "allow_patterns": WANTED,
        "ignore_patterns": UNWANTED,
        "token": False,
    }
    with _hub_errors(repo):
        files = snapshot_download(dry_run=True, **options)
    _check_list(repo, {file.filename for file in files})
    total = sum(file.file_size or 0 for file in files)
    missing = sum(file.file_size or 0 for file in files if file.will_download)
    if missing > shutil.disk_usage(part.parent).free:
        raise _disk_full(part.parent, f"{repo} needs {missing // 10**6} MB")
    with _hub_errors(repo), _progress(part, total, run_dir):
        snapshot_download(**options)
    shutil.rmtree(part / ".cache", ignore_errors=True)  # the library's own notes
    check_policy_dir(part)
    fetched = datetime.now(UTC).isoformat(timespec="seconds")
    (part / "SOURCE.md").write_text(f"{repo} at revision {revision}, fetched {fetched}\n")


def _check_list(repo: str, names: set[str]) -> None:
    """Refuse what cannot become a policy before gigabytes of it are here."""
    if "config.json" not in names:
        raise UnsafePolicy(f"{repo} holds no config.json: it is not a whole model")
    if not any(name.endswith(".safetensors") for name in names):
        raise UnsafePolicy(f"{repo} holds no .safetensors weights; other formats are refused")


@contextmanager
def _alone(path: Path, repo: str) -> Iterator[None]:
    """One process at a time fetches this model."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CannotFetch(
                f"{repo} is being fetched already; add it again when that has ended"
            ) from None
        yield
    finally:
        os.close(descriptor)


@contextmanager
def _progress(part: Path, total: int, run_dir: Path) -> Iterator[None]:
    """Each second that brought something, a line in metrics.jsonl: bytes here, bytes in all."""
    ended = threading.Event()

    def watch() -> None:
        seen = -1
        while not ended.wait(1.0):
            done = min(total, _bytes_in(part))
            if done != seen:
                append_jsonl(run_dir / "metrics.jsonl", {"done": done, "total": total})
                seen = done

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()


def _bytes_in(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.lstat().st_size
    return total


@contextmanager
def _hub_errors(repo: str) -> Iterator[None]:
    """Put what the hub's library raises into words. It raises of many kinds, so all are caught."""
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        reason = f"{repo} is gated: fetch it with your own account and give its folder"
        raise CannotFetch(f"{reason}; {NOTHING_KEPT}") from None
    except errors.RevisionNotFoundError:
        raise CannotFetch(f"{repo} has no such revision; {NOTHING_KEPT}") from None
    except errors.RepositoryNotFoundError:
        raise CannotFetch(f"the hub has no public model {repo}; {NOTHING_KEPT}") from None
    except errors.HfHubHTTPError as error:
        answer = str(error).strip().splitlines()[0]
        raise CannotFetch(f"the hub did not give {repo}: {answer}; {NOTHING_KEPT}") from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise _disk_full(Path(error.filename or "."), repo) from None
        # The library wraps a lost connection in general advice; the cause says what happened.
        words = str(error.__cause__ or error).strip() or type(error).__name__
        raise CannotFetch(
            f"could not reach the hub: {words.splitlines()[0]}; {NOTHING_KEPT}; use a local folder"
        ) from None


def _disk_full(path: Path, what: str) -> CannotFetch:
    return CannotFetch(
        f"the disk of {path} is full ({what}); {NOTHING_KEPT}; make room and try again",
        EXIT_DISK_FULL,
    )


def main(arguments: list[str] | None = None) -> int:
    """Fetch one model; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m generation.samplers.fetch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("repo", help="owner/name")
    parser.add_argument("folder", type=Path, help="where models from the hub lie")
    parser.add_argument("--revision", default="", help="40 hex digits; the newest if empty")
    parser.add_argument("--run-dir", type=Path, required=True, help="for progress and the result")
    options = parser.parse_args(arguments)
    folder, run_dir = options.folder.resolve(), options.run_dir.resolve()
    for path in (folder, run_dir):
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    stop_on_orphaned()
    # Read when the library is imported: nothing of the user's own set-up is used or written to.
    os.environ["HF_HOME"] = str(run_dir / "hub")
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    try:
        target = fetch(repo=options.repo, revision=options.revision, folder=folder, run_dir=run_dir)
    except CannotFetch as error:
        return _report(run_dir, str(error), error.code)
    except UnsafePolicy as error:
        return _report(run_dir, f"{error}; {NOTHING_KEPT}", EXIT_REFUSED)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        full = _disk_full(folder, options.repo)
        return _report(run_dir, str(full), full.code)
    write_json(run_dir / "manifest.json", {"schema": 1, "folder": str(target)})
    return EXIT_DONE


def _report(run_dir: Path, message: str, code: int) -> int:
    sys.stderr.write(f"{message}\n")
    with suppress(OSError):  # a full disk: the log has it
        append_event(run_dir, "error", message=message)
    return code


if __name__ == "__main__":
    sys.exit(main())
