"""Rounds that start by themselves while the worker is killed: each runs once, to the same bytes."""

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from generation.signals import answer_promotion
from jobs.models import Job, JobState, Schedule
from jobs.run_dir import last_line, read_jsonl, sha256_file
from labeling.models import Comparison, Event, Project, Role, Split, Subscription, User
from labeling.services import assigning, judging
from labeling.services.notifying import subscribe
from labeling.services.promoting import policy_promoted, promote, register_policy
from labeling.services.verdicts import Verdict
from tests.builders import ROOT, make_comparison, make_project, make_prompt, make_user
from tests.jobs.conftest import eventually
from tests.labeling.receiver import Receiver, receiving
from training.models import AfterSuccess, Round, RoundSchedule, RoundState
from training.new_pairs import new_pairs
from training.schedules import save_schedule
from training.spec import init_arguments

EVERY = 40
ROUNDS = 3
LONG_AGO = datetime(2026, 1, 1, tzinfo=UTC)
OPTIONS = {
    "method": "full",
    "epochs": 4,
    "batch_groups": 2,  # so that there are many steps, and time to be killed between two
    "learning_rate": 1e-3,
    "max_length": 128,
    "checkpoint_every": 5,
    "eval_every": 1000,
    "sample_prompts": 0,
    "dtype": "float32",
}

pytestmark = [pytest.mark.slow, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def project(tmp_path: Path) -> Iterator[Project]:
    """A project whose policy is as small as can be; promotions write no candidates."""
    from tests.training.trainer.builders import write_policy

    policy_promoted.disconnect(answer_promotion)
    project = make_project()
    folder = write_policy(tmp_path / "models" / "tiny")
    register_policy(project=project, name="Tiny", model_path=folder)
    yield project
    policy_promoted.connect(answer_promotion)


class Site:
    """A worker that can be killed and started again, and the crowd that judges meanwhile."""

    def __init__(self, project: Project, env: dict[str, str], log: Path) -> None:
        self.project, self._env, self._log = project, env, log
        self.crowd: list[User] = [make_user(role=Role.ANNOTATOR, project=project) for _ in range(3)]
        self.verdicts = 0
        self.worker = self._start()

    def kill_worker(self) -> None:
        """kill -9, then another one; the program that it left must end by itself."""
        self.worker.send_signal(signal.SIGKILL)
        self.worker.wait(10)
        self.worker = self._start()

    def stop(self) -> None:
        with suppress(ProcessLookupError):
            self.worker.kill()
        self.worker.wait(10)
        print(self._log.read_text())

    def ask(self, number: int) -> None:
        """Put so many comparisons before the crowd."""
        for place in range(number):
            text = f"Question {place} of {Comparison.objects.count()}?"
            prompt = make_prompt(project=self.project, text=text, split=Split.TRAIN)
            make_comparison(prompt=prompt, texts=[f"Yes, the {place}th.", f"No {place} at all, no"])

    def judge(self, number: int) -> None:
        """So many verdicts by whoever's turn it is: the shorter answer is better."""
        for _ in range(number):
            annotator = self.crowd[self.verdicts % len(self.crowd)]
            given = assigning.next_assignment(project=self.project, annotator=annotator)
            assert given is not None
            slots = sorted(given.slots, key=lambda slot: len(slot.response.text))
            judging.record_judgment(
                project=self.project,
                annotator=annotator,
                token=given.lease.token,
                verdict=Verdict(tiers=[[slot.index] for slot in slots]),
                key=f"verdict-{self.verdicts}",
            )
            self.verdicts += 1

    def minute(self) -> None:
        """A minute passes: the worker has looked once more."""
        schedule = Schedule.objects.get()
        schedule.next_run_at, before = LONG_AGO, schedule.last_job_id
        schedule.save(update_fields=["next_run_at"])

        def looked() -> bool:
            last, state = Schedule.objects.values_list("last_job", "last_job__state").get()
            return last != before and state == JobState.SUCCEEDED

        eventually(looked, "the worker looks at the schedule", 60)

    def round_after_a_minute(self, number: int) -> Round | None:
        """The round of this number, once it is there; a slow machine may need another look."""
        self.minute()
        return Round.objects.filter(number=number).first()

    def _start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "manage.py", "worker"],
                cwd=ROOT,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )


@pytest.fixture
def site(project: Project, site_env: dict[str, str], tmp_path: Path) -> Iterator[Site]:
    own = {
        "PREFLOOP_DATA": str(tmp_path / "data"),
        "PREFLOOP_JOB_LEASE_SECONDS": "4",
        "PREFLOOP_WEBHOOKS_PRIVATE": "true",  # who is told listens on this machine
    }
    site = Site(project, site_env | own, tmp_path / "worker.log")
    yield site
    site.stop()


def begun(run_dir: Path, steps: int) -> Callable[[], bool]:
    """Whether the trainer has made so many steps."""
    return lambda: int(last_line(run_dir / "metrics.jsonl").get("step", 0)) >= steps


def weights(run_dir: Path) -> str:
    return sha256_file(run_dir / "policy" / "model.safetensors")


def undisturbed(round_: Round, folder: Path) -> str:
    """The weights that the round's own snapshot gives where nothing is killed."""
    from tests.training.trainer.killing import run_in_child
    from training.trainer.__main__ import main

    assert round_.snapshot is not None
    arguments = init_arguments(round_, Path(round_.snapshot.path))
    again = folder / f"again-{round_.number}"
    assert arguments[1] == round_.run_dir
    arguments[1] = str(again)
    cache = [place for place, said in enumerate(arguments) if said.startswith("reference_cache=")]
    arguments[cache[0]] = f'reference_cache="{folder / "other-cache.sqlite3"}"'
    assert main(arguments) == 0
    assert run_in_child(again) == 0
    return weights(again)


@pytest.fixture
def told(project: Project, settings: Any) -> Iterator[Receiver]:
    """A program that is told of each round that finishes."""
    settings.WEBHOOKS_PRIVATE = True
    channel, events = Subscription.Channel.WEBHOOK, [Event.ROUND_FINISHED]
    with receiving() as receiver:
        subscribe(project=project, channel=channel, target=receiver.url, events=events, actor=None)
        yield receiver


def test_three_rounds_of_forty_preferences_survive_three_killed_workers(
    project: Project, site: Site, told: Receiver, tmp_path: Path
) -> None:
    save_schedule(
        project=project, actor=None, every=EVERY, after=AfterSuccess.NOTHING, options=OPTIONS
    )
    for number in range(1, ROUNDS + 1):
        site.ask(EVERY)
        site.judge(EVERY - 1)
        site.minute()
        assert Round.objects.count() == number - 1, "39 are not 40, and no round comes twice"
        site.judge(1)
        round_ = eventually(partial(site.round_after_a_minute, number), "a round starts", 120)
        run_dir = Path(round_.run_dir)
        eventually(begun(run_dir, 6), "the trainer begins, and has a checkpoint", 120)
        site.kill_worker()
        round_.refresh_from_db()
        assert round_.state == RoundState.RUNNING, "it was killed in the middle"

        def succeeded(wanted: Round = round_) -> bool:
            wanted.refresh_from_db()
            assert wanted.live or wanted.state == RoundState.SUCCEEDED, wanted.error
            return wanted.state == RoundState.SUCCEEDED

        eventually(succeeded, f"{round_} succeeds", 120)
        events = list(read_jsonl(run_dir / "events.jsonl"))
        assert [event["kind"] for event in events].count("resume") >= 1
        assert round_.policy is not None
        promote(policy=round_.policy, actor=None)
    site.minute()
    assert new_pairs(project).number == 0
    rounds = list(Round.objects.order_by("number"))
    assert [round_.origin for round_ in rounds] == [Round.Origin.SCHEDULE] * ROUNDS
    assert [round_.snapshot.pairs for round_ in rounds] == [EVERY, 2 * EVERY, 3 * EVERY]
    jobs = Job.objects.filter(kind="training.round").values_list("state", "attempts")
    assert [state for state, _attempts in jobs] == [JobState.SUCCEEDED] * ROUNDS
    assert min(attempts for _state, attempts in jobs) >= 2
    assert RoundSchedule.objects.get().held_up == ""
    eventually(lambda: len(told.taken) == ROUNDS, "all are told", 60)
    assert told.genuine(Subscription.objects.get().secret)
    assert [message["facts"]["round"] for message in told.messages] == [1, 2, 3]
    for round_ in rounds:
        assert weights(Path(round_.run_dir)) == undisturbed(round_, tmp_path)
    assert len({weights(Path(round_.run_dir)) for round_ in rounds}) == ROUNDS
