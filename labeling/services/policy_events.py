"""The one writer of what happened to policies."""

from labeling.models import Policy, PolicyEvent, User


def note_event(
    *,
    policy: Policy,
    kind: PolicyEvent.Kind,
    actor: User | None,
    replaced: Policy | None = None,
    reason: str = "",
) -> None:
    """Record that something happened; in the transaction that makes it true."""
    PolicyEvent.objects.create(
        policy=policy, kind=kind, actor=actor, replaced=replaced, reason=reason
    )
