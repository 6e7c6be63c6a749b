"""Policies in and out of service. The only writer of Policy rows, but for what `deleting` notes."""

from pathlib import Path

from django.db import transaction
from django.dispatch import Signal
from django.urls import reverse
from django.utils.translation import gettext as _

from labeling.models import Event, Policy, PolicyEvent, PolicyState, Project, User
from labeling.policy_files import check_policy_dir, folder_bytes, policy_digest
from labeling.services.comparing import reopen_retired, retire_unjudged
from labeling.services.deleting import FilesDeleted, ensure_files
from labeling.services.notifying import notify
from labeling.services.policy_events import note_event
from labeling.win_rates import evidence

# Sent after the commit, with policy and actor: generation answers by writing new candidates.
policy_promoted = Signal()


class CannotPromote(Exception):
    """The policy is not of this kind of state; the message says what to do."""


class ReasonNeeded(CannotPromote):
    """A person promotes a policy that has not passed the gate, and does not say why."""


def register_policy(
    *,
    project: Project,
    name: str,
    model_path: Path,
    adapter_path: Path | None = None,
    digest: str = "",
    parent: Policy | None = None,
    actor: User | None = None,
) -> Policy:
    """Take a policy's folder into the record, after looking at what it holds.

    UnsafePolicy where the folder could run code or holds no weights. A caller that holds a lock
    gives the digest, from `inspect_policy`. The first policy of a project serves at once.
    Registering the same files under the same name again is harmless.
    """
    digest = digest or inspect_policy(model_path, adapter_path)
    with transaction.atomic():
        Project.objects.select_for_update(no_key=True).get(pk=project.pk)
        registered = project.policies.filter(name=name, digest=digest, deleted_at=None).first()
        if registered is not None:
            return registered
        first = not project.policies.exists()
        policy = Policy.objects.create(
            project=project,
            name=name,
            model_path=str(model_path),
            adapter_path=str(adapter_path or ""),
            digest=digest,
            size_bytes=folder_bytes(adapter_path or model_path),
            parent=parent,
        )
        note_event(policy=policy, kind=PolicyEvent.Kind.REGISTERED, actor=actor)
        if first:
            _serve(policy, PolicyEvent.Kind.PROMOTED, actor)
    return policy


def inspect_policy(model_path: Path, adapter_path: Path | None) -> str:
    """The digest of what was trained, after looking at both folders; UnsafePolicy otherwise.

    Reads every weight: never to be called in a transaction.
    """
    for folder in filter(None, (model_path, adapter_path)):
        check_policy_dir(folder)
    return policy_digest(adapter_path or model_path)


def serving_policy(project: Project) -> Policy | None:
    """The policy that writes this project's candidates now."""
    return project.policies.filter(state=PolicyState.SERVING).first()


def replaced_policy(policy: Policy) -> Policy | None:
    """The policy in whose place this one came into service when it was last promoted."""
    promotions = policy.events.filter(kind=PolicyEvent.Kind.PROMOTED).select_related("replaced")
    last = promotions.order_by("-id").first()
    return last.replaced if last else None


@transaction.atomic
def promote(*, policy: Policy, actor: User | None, reason: str = "") -> Policy:
    """Put a policy into service in place of the one that serves.

    Unjudged comparisons of the replaced policy are retired. CannotPromote if it serves already or
    its files were deleted; ReasonNeeded where a person gives no reason and people's judgments
    give none either.
    """
    Project.objects.select_for_update(no_key=True).get(pk=policy.project_id)
    serving = serving_policy(policy.project)
    found = evidence(policy, serving) if serving and serving != policy else ""
    reason = reason.strip() or found
    if actor is not None and not reason and serving != policy:
        raise ReasonNeeded(
            _("%(policy)s has not passed the gate. Say why it shall serve all the same.")
            % {"policy": policy.name}
        )
    return _replace_serving(policy, PolicyEvent.Kind.PROMOTED, actor, reason)


@transaction.atomic
def roll_back(*, project: Project, actor: User | None, reason: str = "") -> Policy:
    """Put the policy back into service that the serving one replaced; nobody must say why."""
    current = serving_policy(project)
    previous = replaced_policy(current) if current else None
    if previous is None:
        raise CannotPromote(_("The first policy serves: there is none to go back to."))
    return _replace_serving(previous, PolicyEvent.Kind.ROLLED_BACK, actor, reason.strip())


def _replace_serving(
    policy: Policy, kind: PolicyEvent.Kind, actor: User | None, reason: str
) -> Policy:
    Project.objects.select_for_update(no_key=True).get(pk=policy.project_id)
    policy.refresh_from_db()
    if policy.state == PolicyState.SERVING:
        raise CannotPromote(_("%(policy)s serves already.") % {"policy": policy.name})
    try:
        ensure_files(policy)
    except FilesDeleted as gone:
        raise CannotPromote(str(gone)) from None
    replaced = _serve(policy, kind, actor, reason)
    facts = {
        "policy": policy.name,
        "replaced": replaced.name if replaced else "",
        "by_hand": actor is not None,
        "rolled_back": kind == PolicyEvent.Kind.ROLLED_BACK,
    }
    notify(
        project=policy.project,
        event=Event.PROMOTED,
        facts=facts,
        url=reverse("labeling:policies", args=[policy.project.slug]),
    )
    retire_unjudged(project=policy.project, keep_policy=policy.pk)
    reopen_retired(policy=policy)
    transaction.on_commit(
        lambda: policy_promoted.send(sender=Policy, policy=policy, actor=actor), robust=False
    )
    return policy


def _serve(
    policy: Policy, kind: PolicyEvent.Kind, actor: User | None, reason: str = ""
) -> Policy | None:
    """Put it in the place of the policy that serves, which is returned."""
    serving = policy.project.policies.select_for_update().filter(state=PolicyState.SERVING)
    replaced = serving.first()
    if replaced is not None:
        replaced.state = PolicyState.RETIRED
        replaced.save(update_fields=["state"])
    policy.state = PolicyState.SERVING
    policy.save(update_fields=["state"])
    note_event(policy=policy, kind=kind, actor=actor, replaced=replaced, reason=reason)
    return replaced
