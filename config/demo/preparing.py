"""What the demo needs before its site starts: database, starter policy, project, people."""

import secrets
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from django.conf import settings
from django.core.management import call_command
from django.db import IntegrityError

from config.demo.progress import Bar
from generation.adding import fetch_command, fetch_environment
from jobs.process import program_environment
from jobs.run_dir import last_line, read_json
from labeling.formats import Parsed, prompt_row
from labeling.models import Membership, Policy, Project, Role, User
from labeling.policy_files import UnsafePolicy
from labeling.services.configuring import publish_guidelines
from labeling.services.importing import import_prompts
from labeling.services.promoting import register_policy
from training.starter.styles import bundled_prompts

SLUG = "everyday"
GUIDELINES = """\
Rank the answers by which one you would rather get from a thoughtful friend.

- **Careful beats reckless.** Good advice names the risk or the first safe step.
- **Short beats long**, as long as it still helps.
- Two answers that are equally good are a tie. If all are bad, say so.
"""


class PreparationError(Exception):
    """The demo cannot go on; the message says what to do."""


@dataclass(frozen=True, kw_only=True)
class SignIn:
    """A user name and a fresh password, to be shown once."""

    role: str
    username: str
    password: str


def migrate() -> None:
    """Bring the database up to date."""
    call_command("migrate", verbosity=0, interactive=False)


def first_policy() -> tuple[str, Path]:
    """Name and folder of the model the demo starts from: PREFLOOP_MODEL's, else the starter."""
    if not settings.MODEL:
        return "Starter", starter_policy()
    if settings.MODEL.startswith(("/", ".")):
        folder = Path(settings.MODEL).resolve()
        return folder.name, folder
    repo, _, revision = settings.MODEL.partition("@")
    run_dir: Path = settings.RUNS_DIR / "policy-demo"
    run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    command = fetch_command(repo=repo, revision=revision, run_dir=run_dir)
    _run_with_bar(f"Fetching {repo}", command, run_dir, fetch_environment())
    folder = Path(read_json(run_dir / "manifest.json")["folder"])
    return folder.name, folder


def starter_policy() -> Path:
    """The starter policy's folder; built where it is not there yet."""
    folder: Path = settings.MODELS_DIR / "starter"
    if not folder.exists():
        work = settings.MODELS_DIR / "starter.build"
        work.mkdir(parents=True, exist_ok=True, mode=0o700)
        progress = work / "metrics.jsonl"
        progress.unlink(missing_ok=True)
        command = [settings.TRAINER_PYTHON, "-m", "training.trainer.starter", str(folder)]
        command += ["--progress", str(progress)]
        _run_with_bar("Building the starter policy", command, work, {})
    return folder


def _run_with_bar(label: str, command: list[str], folder: Path, env: dict[str, str]) -> None:
    """Run a program that appends its progress to metrics.jsonl in `folder`, and show that."""
    bar, log = Bar(label), folder / "program.log"
    with log.open("wb") as out:
        program = subprocess.Popen(
            command,
            cwd=settings.BASE_DIR,
            env=program_environment({**env, "PREFLOOP_WATCH_STDIN": "0"}),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
        )
        try:
            while program.poll() is None:
                line = last_line(folder / "metrics.jsonl")
                bar.update(line.get("step", line.get("done", 0)), line.get("total", 0))
                time.sleep(0.5)
        finally:
            program.kill()
            program.wait()
    if program.returncode:
        tail = "\n".join(log.read_text().splitlines()[-6:])
        raise PreparationError(f"{label} failed. Its log, {log}, ends:\n{tail}")
    bar.finish()


def project(most: int | None = None) -> Project:
    """The demo's project with the bundled prompts, or so many of them, spread over the topics.

    Importing again adds nothing.
    """
    found, _ = Project.objects.get_or_create(
        slug=SLUG,
        defaults={"name": "Everyday advice", "comparison_size": 4},
    )
    publish_guidelines(project=found, text=GUIDELINES, author=None)
    bundled = bundled_prompts()
    count = min(most or len(bundled), len(bundled))
    taken = [bundled[place * len(bundled) // count] for place in range(count)]
    rows = [prompt_row(asdict(row)) for row in taken]
    import_prompts(slug=SLUG, parsed=Parsed(rows=rows), skip_bad=False)
    return found


def register_first(project: Project, name: str, folder: Path) -> Policy:
    """It serves until a round's policy is promoted."""
    try:
        return register_policy(project=project, name=name, model_path=folder)
    except UnsafePolicy as error:
        raise PreparationError(f"The model cannot be used: {error}") from None
    except IntegrityError:
        raise PreparationError(
            f"This demo has another policy named {name}. Rename the folder, or use --reset."
        ) from None


def people(project: Project, *, annotators: int = 1) -> list[SignIn]:
    """A manager and some annotators, each with a fresh password."""
    names = {"manager": Role.MANAGER, "annotator": Role.ANNOTATOR}
    names |= {f"annotator{number}": Role.ANNOTATOR for number in range(2, annotators + 1)}
    return [_sign_in(project, name, role) for name, role in names.items()]


def _sign_in(project: Project, username: str, role: Role) -> SignIn:
    password = secrets.token_urlsafe(9)
    user, _ = User.objects.get_or_create(username=username)
    user.set_password(password)
    user.save(update_fields=["password"])
    Membership.objects.get_or_create(user=user, project=project, defaults={"role": role})
    return SignIn(role=str(role.label), username=username, password=password)
