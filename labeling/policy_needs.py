"""Who needs a policy's files: what must end, or go, before they may be deleted.

Rounds, batches and their jobs belong to apps above this one; their rows are read through reverse
relations, and what their jobs are about through the payload.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from django.db.models import Q
from django.urls import NoReverseMatch, reverse
from django.utils.translation import gettext as _

from jobs.models import Job
from labeling.lineage import initial_policy
from labeling.models import Evaluation, Policy, PolicyState, Project

LIVE = ("queued", "running")  # of rounds and batches alike


@dataclass(frozen=True, kw_only=True)
class Need:
    """One thing that needs the files. `url` leads to it, where the reader may go there."""

    text: str
    url: str = ""


def own_folder(policy: Policy) -> Path:
    """The folder that holds what was trained: an adapter's own, else the model's."""
    return Path(policy.adapter_path or policy.model_path)


def twins(policy: Policy) -> list[Policy]:
    """Other policies, of any project, that are the very same files."""
    folder = str(own_folder(policy))
    same = Q(adapter_path=folder) | Q(adapter_path="", model_path=folder)
    return list(Policy.objects.filter(same, deleted_at=None).exclude(pk=policy.pk))


def adapters_on(policy: Policy) -> list[Policy]:
    """Policies, of any project, that are an adapter on this one's model."""
    if policy.adapter_path:
        return []
    sitting = Policy.objects.filter(model_path=policy.model_path, deleted_at=None)
    return list(sitting.exclude(pk=policy.pk).exclude(adapter_path="").order_by("pk"))


def needs(policy: Policy) -> list[Need]:
    """Everything that stands in the way of deleting the policy's files."""
    return [
        *_service(policy),
        *_adapters(policy),
        *_rounds(policy),
        *_batches(policy),
        *_evaluations(policy),
        *_jobs(policy),
    ]


def _service(policy: Policy) -> Iterator[Need]:
    project = policy.project
    url = _url("labeling:policies", project)
    if policy.state == PolicyState.SERVING:
        yield Need(text=_("It serves: promote another policy first."), url=url)
        return
    serving = project.policies.filter(state=PolicyState.SERVING).first()
    if serving is not None and initial_policy(serving) == policy:
        words = _("It is the initial policy of %(policy)s, which serves: rounds are held to it.")
        yield Need(
            text=words % {"policy": serving.name},
            url=_url("labeling:policy", project, policy=serving.pk),
        )


def _adapters(policy: Policy) -> Iterator[Need]:
    elsewhere = 0
    for one in adapters_on(policy):
        if one.project_id != policy.project_id:
            elsewhere += 1
            continue
        yield Need(
            text=_("%(policy)s is an adapter on its files.") % {"policy": one.name},
            url=_url("labeling:policy", policy.project, policy=one.pk),
        )
    if elsewhere:
        yield Need(text=_("A policy of another project is an adapter on its files."))


def _rounds(policy: Policy) -> Iterator[Need]:
    live = policy.project.rounds.filter(state__in=LIVE)
    for one in live.filter(Q(start=policy) | Q(reference=policy)):
        yield Need(
            text=_("Round %(number)s trains from it or is held to it.") % {"number": one.number},
            url=_url("training:round", policy.project, number=one.number),
        )


def _batches(policy: Policy) -> Iterator[Need]:
    live = policy.project.batches.filter(state__in=LIVE)
    for one in live.filter(policies=policy):
        yield Need(
            text=_("Batch %(number)s is written by it.") % {"number": one.number},
            url=_url("generation:batch", policy.project, number=one.number),
        )


def _evaluations(policy: Policy) -> Iterator[Need]:
    live = policy.project.evaluations.exclude(state=Evaluation.State.ENDED)
    for one in live.filter(Q(policy=policy) | Q(against=policy)).select_related(
        "policy", "against"
    ):
        names = {"policy": one.policy.name, "against": one.against.name}
        yield Need(
            text=_("People are comparing %(policy)s with %(against)s.") % names,
            url=_url("labeling:evaluation", policy.project, evaluation=one.pk),
        )


def _jobs(policy: Policy) -> Iterator[Need]:
    if Job.objects.live().filter(payload__policy=policy.pk).exists():
        yield Need(
            text=_("The worker is busy with it."),
            url=_url("labeling:policy", policy.project, policy=policy.pk),
        )


def _url(route: str, project: Project, **parts: object) -> str:
    try:
        return reverse(route, kwargs={"slug": project.slug, **parts})
    except NoReverseMatch:
        return ""
