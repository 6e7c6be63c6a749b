"""What to do next: one thing. Rules in order; the first that applies."""

from dataclasses import dataclass

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from labeling.models import Evaluation, PolicyState
from labeling.overview.counts import Counts, is_live
from labeling.overview.saying import evaluation_url, number, url

ROUND_PAIRS = 10  # new decided pairs before a round may start; training.readiness reads it
GOOD_ROUND_PAIRS = 100  # with so many, a round is worth more than further judging first


@dataclass(frozen=True, kw_only=True)
class NextStep:
    """The one thing to do. Without `url` it is done elsewhere, as `command` says."""

    station: str
    text: str
    why: str
    url: str = ""
    command: str = ""
    waiting: bool = False


def next_step(counts: Counts) -> NextStep:
    """The one thing to do now."""
    return (
        _import_prompts(counts)
        or _register_policy(counts)
        or _watch_round(counts)
        or _promote(counts)
        or _start_round(counts)
        or _judge(counts)
        or _generate(counts)
        or _more_prompts(counts)
    )


def _import_prompts(counts: Counts) -> NextStep | None:
    if counts.prompts:
        return None
    return NextStep(
        station="prompts",
        text=_("Import prompts"),
        why=_("The loop begins with prompts, and there are none yet."),
        command=_import_command(counts),
    )


def _import_command(counts: Counts) -> str:
    return f"python3 manage.py import_prompts FILE --project {counts.project.slug}"


def _register_policy(counts: Counts) -> NextStep | None:
    if counts.serving is not None:
        return None
    return NextStep(
        station="policies",
        text=_("Register a policy"),
        why=_("No policy serves yet, so nobody can answer the prompts."),
        url=url("labeling:policies", counts.project),
    )


def _watch_round(counts: Counts) -> NextStep | None:
    if not is_live(counts.round):
        return None
    return NextStep(
        station="rounds",
        text=_("Watch round %(number)s") % {"number": counts.round.number},
        why=_("A round is training. Nothing else needs you until it ends."),
        url=url("training:round", counts.project, number=counts.round.number),
        waiting=True,
    )


def _promote(counts: Counts) -> NextStep | None:
    """A policy that passed the gate; else the last round's, unless people have been asked."""
    judging = counts.judging
    asked = judging.evaluation if judging else None
    if asked and judging and judging.passed and asked.policy.state == PolicyState.CANDIDATE:
        return NextStep(
            station="policies",
            text=_("Promote %(policy)s") % {"policy": asked.policy},
            why=_("%(policy)s passed the gate: promote it.") % {"policy": asked.policy},
            url=evaluation_url(asked),
        )
    made = counts.round.policy if counts.round else None
    if made is None or made.state != PolicyState.CANDIDATE or made.deleted_at:
        return None
    if asked and asked.policy_id == made.pk:
        return _judge_evaluation(counts, asked)
    return NextStep(
        station="policies",
        text=_("Review and promote round %(number)s") % {"number": counts.round.number},
        why=_("%(policy)s has been trained and waits to be put into service.")
        % {"policy": made.name},
        url=url("training:round", counts.project, number=counts.round.number),
    )


def _judge_evaluation(counts: Counts, asked: Evaluation) -> NextStep | None:
    wanted = counts.judging.wanted if counts.judging else 0
    if asked.state != Evaluation.State.JUDGING or not wanted:
        return None
    words = ngettext(
        "The evaluation of %(policy)s wants %(number)s more judgment. It comes among the others.",
        "The evaluation of %(policy)s wants %(number)s more judgments. They come among the others.",
        wanted,
    )
    return NextStep(
        station="judgments",
        text=_("Judge"),
        why=words % ({"policy": asked.policy} | number(wanted)),
        url=url("labeling:judge", counts.project),
    )


def _start_round(counts: Counts) -> NextStep | None:
    wanted = GOOD_ROUND_PAIRS if counts.open else ROUND_PAIRS
    if counts.fresh < wanted or _left_to_schedule(counts):
        return None
    why = (
        ngettext(
            "%(number)s new decided pair is there since the last round.",
            "%(number)s new decided pairs are there since the last round.",
            counts.fresh,
        )
        if counts.round
        else ngettext(
            "%(number)s new decided pair is there to train on.",
            "%(number)s new decided pairs are there to train on.",
            counts.fresh,
        )
    )
    return NextStep(
        station="rounds",
        text=_("Start a round"),
        why=why % number(counts.fresh),
        url=url("training:new_round", counts.project),
    )


def _left_to_schedule(counts: Counts) -> bool:
    """Whether rounds start by themselves."""
    schedule = counts.schedule
    return bool(schedule and not schedule.paused and (schedule.every or schedule.cron))


def _judge(counts: Counts) -> NextStep | None:
    if not counts.open:
        return None
    wanted = ngettext("%(number)s judgment wanted.", "%(number)s judgments wanted.", counts.wanted)
    return NextStep(
        station="judgments",
        text=_("Judge"),
        why=f"{wanted % number(counts.wanted)} {_until_round(counts)}",
        url=url("labeling:judge", counts.project),
    )


def _until_round(counts: Counts) -> str:
    """How far it is to the next round."""
    if _left_to_schedule(counts):
        return _until_scheduled(counts)
    missing = ROUND_PAIRS - counts.fresh
    if missing > 0:
        words = ngettext(
            "After %(number)s more decided pair a round can start.",
            "After %(number)s more decided pairs a round can start.",
            missing,
        )
        return words % number(missing)
    words = ngettext(
        "A round could start with %(number)s new pair; more make it better.",
        "A round could start with %(number)s new pairs; more make it better.",
        counts.fresh,
    )
    return words % number(counts.fresh)


def _until_scheduled(counts: Counts) -> str:
    missing = max(ROUND_PAIRS, counts.schedule.every) - counts.fresh
    if missing <= 0:
        return _("The next round starts by itself when it is due.")
    words = ngettext(
        "After %(number)s more decided pair the next round may start by itself.",
        "After %(number)s more decided pairs the next round may start by itself.",
        missing,
    )
    return words % number(missing)


def _generate(counts: Counts) -> NextStep | None:
    if is_live(counts.batch):
        return NextStep(
            station="candidates",
            text=_("Watch batch %(number)s") % {"number": counts.batch.number},
            why=_("Candidates are being written. People can judge as soon as it ends."),
            url=url("generation:batch", counts.project, number=counts.batch.number),
            waiting=True,
        )
    if not counts.unanswered:
        return None
    words = ngettext(
        "%(policy)s has not answered %(number)s prompt yet.",
        "%(policy)s has not answered %(number)s prompts yet.",
        counts.unanswered,
    )
    return NextStep(
        station="candidates",
        text=_("Generate candidates"),
        why=words % ({"policy": counts.serving} | number(counts.unanswered)),
        url=url("generation:batches", counts.project),
    )


def _more_prompts(counts: Counts) -> NextStep:
    missing = max(1, ROUND_PAIRS - counts.fresh)
    words = ngettext(
        "Every prompt is answered and every comparison judged, but %(number)s more decided "
        "pair is needed for a round.",
        "Every prompt is answered and every comparison judged, but %(number)s more decided "
        "pairs are needed for a round.",
        missing,
    )
    if counts.fresh >= ROUND_PAIRS:
        words = _("Every prompt is answered and every comparison judged.")
    return NextStep(
        station="prompts",
        text=_("Import more prompts"),
        why=words % number(missing),
        command=_import_command(counts),
    )
