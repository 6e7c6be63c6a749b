"""A project with something of everything, and every page that shows it, for tests of all pages."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from django.urls import reverse

from generation.models import BatchState
from jobs.run_dir import append_event, write_json
from labeling.chat import Message
from labeling.models import (
    Comparison,
    Delivery,
    Evaluation,
    Flag,
    Judgment,
    Policy,
    PolicyState,
    PracticeAnswer,
    Project,
    QueueChange,
    Role,
    Split,
    Subscription,
    User,
)
from labeling.overview import ROUND_PAIRS
from labeling.services import examples, inviting, judging, notifying, queueing
from labeling.services.assigning import lease_again
from labeling.services.configuring import configure
from labeling.services.deleting import delete_files
from labeling.services.evaluating import end_evaluation
from labeling.services.verdicts import FlagGiven, Rewrite, Verdict
from tests.builders import (
    judge,
    judge_evaluation,
    make_batch,
    make_comparison,
    make_evaluation,
    make_policy,
    make_project,
    make_prompt,
    make_user,
)
from tests.training.rounds import REPORT, RESULTS, log_samples, log_steps, make_round
from training.models import RoundSchedule, RoundState
from training.schedules import save_schedule

Say = Callable[[str], str]
NAME = 80  # characters that any name may have
NOTE = 200


@dataclass(frozen=True, kw_only=True)
class Page:
    """Who opens which address; nobody is signed in where there is no user."""

    user: User | None
    path: str
    status: int = 200


def everything(folder: Path, say: Say = str) -> dict[str, Page]:
    """Each kind of page by name. `say` gives the words to put in the place of ordinary ones."""
    project = make_project(name=f"A {say('Kitchen helper')}"[:NAME])
    manager = make_user(role=Role.MANAGER, project=project, username=say("dana")[:NAME])
    ada = make_user(role=Role.ANNOTATOR, project=project, username=say("ada")[:NAME])
    policy = make_policy(project=project, name=say("Starter")[:NAME], state=PolicyState.SERVING)
    _configure(project, manager, say)
    pair, four, judged, skipped, shown = (
        make_comparison(
            prompt=make_prompt(project=project, messages=_talk(say, priority), split=Split.TRAIN),
            texts=[say(text) for text in ("**One**", "Two", "Three", "Four")[:answers]],
            policy=policy,
            priority=priority,
        )
        for answers, priority in ((2, 9), (4, 8), (2, 7), (2, 6), (2, 5))
    )
    mine = _judge_with_everything(judged, ada, say)
    _skip_with_a_flag(skipped, ada, say)
    for number in range(ROUND_PAIRS):
        text = f"{say('What now?')} {number}"
        prompt = make_prompt(project=project, text=text, split=Split.TRAIN)
        comparison = make_comparison(prompt=prompt, texts=[say("This"), say("That")], policy=policy)
        judge(comparison=comparison, annotator=manager, rationale=say("Kinder."))
    own = judge(comparison=shown, annotator=manager)
    examples.add_example(judgment=own, explanation=say("It is **kinder**."), author=manager)
    answer = _practise(project, make_user(role=Role.ANNOTATOR, project=project))
    filters = queueing.Filters(text=say("apples")[:NAME])
    QueueChange.objects.create(
        project=project,
        action=QueueChange.Action.HOLD,
        filters=filters.as_json(),
        changed=0,
        actor=manager,
    )
    _invitation, token = inviting.create(
        project=project,
        role=Role.ANNOTATOR,
        note=say("For Ben")[:NOTE],
        days=7,
        invited_by=manager,
    )
    finished = make_batch(project=project, policies={policy: 1}, started_by=manager)
    make_batch(
        project=project, policies={policy: 1}, error=say("It broke."), state=BatchState.FAILED
    )
    ended = _rounds(project, folder, say)
    brought = _bring_adapter(policy, manager, folder / "brought", say)
    _schedule_and_notifications(project, manager, say)
    over, judging_now = _evaluations(project, manager, say)

    def at(route: str, user: User | None = manager, query: str = "", **parts: object) -> Page:
        address = reverse(route, kwargs={"slug": project.slug} | parts)
        return Page(user=user, path=address + query)

    empty = make_project(name="Empty")
    for user, role in ((ada, Role.ANNOTATOR), (manager, Role.MANAGER)):
        user.memberships.create(project=empty, role=role)
    bare = make_comparison(project=empty)
    judge(comparison=bare, annotator=ada)

    def lease(comparison: Comparison, user: User) -> str:
        held = lease_again(comparison=comparison, annotator=user)
        assert held is not None
        return f"?lease={held.token}"

    return {
        "sign-in": Page(user=None, path="/sign-in/"),
        "join": Page(user=None, path=reverse("join", args=[token])),
        "join, gone": Page(user=None, path=reverse("join", args=["x" * 43]), status=404),
        "not there": Page(user=ada, path="/nowhere/", status=404),
        "home": Page(user=ada, path="/"),
        "home of a manager": Page(user=manager, path="/"),
        "own settings": Page(user=ada, path=reverse("own_settings")),
        "judge a pair": at("labeling:judge", ada, lease(pair, ada)),
        "judge four": at("labeling:judge", ada, lease(four, ada)),
        "nothing left": Page(user=ada, path=reverse("labeling:judge", kwargs={"slug": empty.slug})),
        "history": at("labeling:history", ada),
        "history, skipped": at("labeling:history", ada, "?show=skips"),
        "judge again": at("labeling:judge_again", ada, judgment=mine.pk),
        "guide": at("labeling:guide", ada),
        "practice": at("labeling:practice", ada),
        "practice, told": at("labeling:practice", answer.annotator, f"?answer={answer.pk}"),
        "practice, done": at("labeling:practice", answer.annotator),
        "add an example": at(
            "labeling:add_example",
            judgment=Judgment.objects.filter(annotator=manager).exclude(pk=own.pk)[0].pk,
        ),
        "people": at("labeling:people"),
        "queue": at("labeling:queue"),
        "queue, filtered": at("labeling:queue", query="?state=untouched"),
        "flags": at("labeling:flags"),
        "notifications": at("labeling:notifications"),
        "notifications, none": Page(
            user=manager, path=reverse("labeling:notifications", kwargs={"slug": empty.slug})
        ),
        "schedule": at("training:schedule"),
        "schedule, none": Page(
            user=manager, path=reverse("training:schedule", kwargs={"slug": empty.slug})
        ),
        "project settings": at("labeling:project_settings"),
        "overview": at("labeling:project"),
        "preferences": at("labeling:preferences"),
        "preferences, none": at("labeling:preferences", query="?votes=99"),
        "policies": at("labeling:policies"),
        "policies, whole tree": at("labeling:policies", query="?page=1"),
        "policy": at("labeling:policy", policy=brought.pk),
        "policy, asked why": at("labeling:policy", policy=brought.pk, query="?why=1"),
        "policy to be deleted": at("labeling:delete_policy", policy=brought.pk),
        "policy that is needed": at("labeling:delete_policy", policy=policy.pk),
        "merge an adapter": at("training:merge_policy", policy=brought.pk),
        "disk": at("training:disk"),
        "add a policy": at("generation:add_policy"),
        "evaluation": at("labeling:evaluation", evaluation=over.pk),
        "evaluation under way": at("labeling:evaluation", evaluation=judging_now.pk),
        "new evaluation": at("labeling:new_evaluation", policy=over.policy_id),
        "batches": at("generation:batches"),
        "batch": at("generation:batch", number=finished.number),
        "batch that failed": at("generation:batch", number=finished.number + 1),
        "rounds": at("training:rounds"),
        "new round": at("training:new_round"),
        "new round like another": at("training:new_round", query=f"?like={ended}"),
        "rounds compared": at(
            "training:compare_rounds", query=f"?rounds={ended}&rounds={ended + 1}"
        ),
        "rounds compared, none": at("training:compare_rounds"),
        "round": at("training:round", number=ended),
        "round under way": at("training:round", number=ended + 1),
        "round that failed": at("training:round", number=ended + 2),
        "overview, empty": Page(
            user=manager, path=reverse("labeling:project", kwargs={"slug": empty.slug})
        ),
        "flags, none": Page(
            user=manager, path=reverse("labeling:flags", kwargs={"slug": empty.slug})
        ),
        "rounds, none": Page(
            user=manager, path=reverse("training:rounds", kwargs={"slug": empty.slug})
        ),
    }


def _configure(project: Project, manager: User, say: Say) -> None:
    criteria = [
        {"key": "", "name": say("Honesty")[:40], "help": say("Is it true?")[:NOTE]},
        {"key": "", "name": f"2 {say('Tone')}"[:40], "help": ""},
    ]
    for text in ("Old.", "Prefer **careful** answers.\n\n- one\n- two\n\n$x^2$"):
        configure(project=project, actor=manager, guidelines=say(text), criteria=criteria)
        project.refresh_from_db()
        criteria = project.criteria


def _talk(say: Say, number: int) -> list[Message]:
    return [
        Message(role="system", content=say("You are a cook. " * 40)),
        Message(role="user", content=say("Hello")),
        Message(role="assistant", content=say("**Hello.**")),
        Message(role="user", content=say("What shall I cook? " * 60) + f" {number}"),
    ]


def _judge_with_everything(comparison: Comparison, annotator: User, say: Say) -> Judgment:
    lease = lease_again(comparison=comparison, annotator=annotator)
    assert lease is not None
    flags = [
        FlagGiven(reason=reason, slot=slot, note=say("See there.")[:NOTE])
        for reason, slot in ((Flag.Reason.IDENTITY, 0), (Flag.Reason.UNSAFE, None))
    ]
    verdict = Verdict(
        tiers=[[1], [0]],
        strength=2,
        rationale=say("It is **kinder**."),
        flags=flags,
        rewrite=Rewrite(slot=1, text=say("Better still.")),
        active_ms=7000,
    )
    return judging.record_judgment(
        project=comparison.project,
        annotator=annotator,
        token=lease.token,
        verdict=verdict,
        key="everything",
    )


def _skip_with_a_flag(comparison: Comparison, annotator: User, say: Say) -> None:
    lease = lease_again(comparison=comparison, annotator=annotator)
    assert lease is not None
    flag = FlagGiven(reason=Flag.Reason.CANNOT_JUDGE, note=say("I know no French.")[:NOTE])
    judging.skip(project=comparison.project, annotator=annotator, token=lease.token, flags=[flag])


def _practise(project: Project, annotator: User) -> PracticeAnswer:
    (example,) = examples.shown_examples(project)
    verdict = Verdict(tiers=[[0], [1]], strength=2)
    return examples.answer_example(example=example, annotator=annotator, verdict=verdict)


def _rounds(project: Project, folder: Path, say: Say) -> int:
    """The number of a round that has ended; one that runs and one that failed come after it."""
    append_event(folder, "data_report", **REPORT)
    log_steps(folder, 12, 20)
    for when in ("before", "after"):
        log_samples(folder, when, (say("And now?"), say("Cook.")), (say("Why?"), say("Hunger.")))
    start = project.policies.order_by("id")[0]
    trained = make_policy(project=project, name=say("Round one")[:NAME], parent=start)
    (folder / "program.log").write_text(say("Loaded.") + "\n")
    write_json(folder / "spec.json", {"beta": 0.1, "policy": {"model": say("/models/starter")}})
    ended = make_round(
        project,
        RoundState.SUCCEEDED,
        folder,
        policy=trained,
        results=RESULTS | {"not_evaluated": say("No prompt is held out.")},
        filters={"agreement": 60, "policies": [0, start.pk], "ratings": {"tone": 3}},
        after="evaluate",
    )
    make_round(project, RoundState.RUNNING, folder)
    make_round(project, RoundState.FAILED, folder, error=say("Out of memory."))
    return int(ended.number)


def _evaluations(project: Project, manager: User, say: Say) -> tuple[Evaluation, Evaluation]:
    """One that was judged and has ended with a problem, and one under way."""
    over = make_evaluation(project=project, pairs=24, actor=manager)
    judge_evaluation(over, "wwltbw" * 4)
    end_evaluation(evaluation=over, problem=say("Another policy serves."))
    Policy.objects.filter(pk=over.policy_id).update(name=say("Round two")[:NAME])
    return over, make_evaluation(project=project, pairs=2, actor=manager)


def _schedule_and_notifications(project: Project, manager: User, say: Say) -> None:
    save_schedule(
        project=project, actor=manager, every=40, cron="30 2 * * *", options={"beta": 0.2}
    )
    RoundSchedule.objects.update(held_up=say("Round 2 was not done yet."))
    channel = Subscription.Channel.WEBHOOK
    for target in ("https://example.org/hook", "https://example.com/"):
        made, _secret = notifying.subscribe(
            project=project, channel=channel, target=target, events=["promoted"], actor=manager
        )
        notifying.send_test(subscription=made)
    Subscription.objects.filter(pk=made.pk).update(
        target=say("https://example.com/")[:500], paused=True
    )
    Delivery.objects.filter(subscription=made).update(
        state=Delivery.State.FAILED, problem=say("It answered with an error.")[:500], status=500
    )


def _bring_adapter(start: Policy, manager: User, folder: Path, say: Say) -> Policy:
    """A policy with files whose card and configuration somebody wrote, and a twin without any."""
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_bytes(b"weights")
    (folder / "README.md").write_text(f"# {say('A card')}\n\n{say('Made **kindly**.')}")
    here = {"project": start.project, "parent": start, "model_path": start.model_path}
    brought = make_policy(name=say("Brought")[:NAME], adapter_path=str(folder), **here)
    gone = make_policy(name=say("Gone")[:NAME], adapter_path="/nowhere/gone", **here)
    delete_files(policy=gone, actor=manager, reason=say("No room."))
    return brought
