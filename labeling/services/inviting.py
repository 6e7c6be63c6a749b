"""Who is let in. The only writer of invitations, and of memberships that come from one.

An invitation is a link with 32 random bytes: nobody guesses one, and only its SHA-256 is stored.
"""

import hashlib
import secrets
from datetime import timedelta

from django.db import IntegrityError, transaction
from django.utils import timezone

from labeling.models import Invitation, Membership, Project, Role, User
from labeling.models.people import InvitationQuerySet

TOKEN_BYTES = 32
DAYS = range(1, 31)  # for so many days an invitation may be open
USUAL_DAYS = 7


class NoLongerWorks(Exception):
    """There is no such invitation, or it was used, was revoked, or has run out: all the same."""


class AlreadyMember(Exception):
    """The person is in the project, and stays what they are in it. The invitation stays open."""


class NameTaken(Exception):
    """Somebody else took the user name meanwhile; the invitation stays open."""


@transaction.atomic
def create(
    *, project: Project, role: Role, note: str, days: int, invited_by: User
) -> tuple[Invitation, str]:
    """An invitation, and the token of its link, which exists nowhere else from now on."""
    if days not in DAYS:
        raise ValueError(f"an invitation is open for {DAYS.start} to {DAYS.stop - 1} days")
    token = secrets.token_urlsafe(TOKEN_BYTES)
    invitation = Invitation.objects.create(
        project=project,
        role=Role(role),
        note=note,
        digest=_digest(token),
        invited_by=invited_by,
        expires_at=timezone.now() + timedelta(days=days),
    )
    return invitation, token


def find(token: str) -> Invitation:
    """The open invitation with this token, its project read with it; else NoLongerWorks."""
    found = _with_token(token).select_related("project").first()
    if found is None:
        raise NoLongerWorks
    return found


@transaction.atomic
def accept(*, token: str, user: User) -> Membership:
    """Let a person in. Of many who try at once with one invitation, one gets in.

    NoLongerWorks or AlreadyMember otherwise, with nothing changed.
    """
    return _let_in(_lock(token), user)


def accept_as_new(*, token: str, username: str, password: str) -> Membership:
    """Let a stranger in, with an account made for them: both, or neither.

    NoLongerWorks or NameTaken otherwise. The form has checked the name and the password.
    """
    user = User(username=username)
    user.set_password(password)  # takes long: not while the invitation is locked
    with transaction.atomic():
        invitation = _lock(token)
        try:
            with transaction.atomic():
                user.save(force_insert=True)
        except IntegrityError:
            raise NameTaken from None
        return _let_in(invitation, user)


@transaction.atomic
def revoke(*, invitation: Invitation) -> bool:
    """Close an open invitation; whether it was open."""
    still_open = Invitation.objects.open().filter(pk=invitation.pk)
    return bool(still_open.update(revoked_at=timezone.now()))


def _lock(token: str) -> Invitation:
    """The open invitation, nobody else's to accept or revoke until this transaction ends.

    PostgreSQL looks at the row once more after it has waited for it, so it finds a used one used.
    """
    found = _with_token(token).select_for_update().first()
    if found is None:
        raise NoLongerWorks
    return found


def _with_token(token: str) -> InvitationQuerySet:
    return Invitation.objects.open().filter(digest=_digest(token))


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()


def _let_in(invitation: Invitation, user: User) -> Membership:
    membership, new = Membership.objects.get_or_create(
        user=user, project=invitation.project, defaults={"role": invitation.role}
    )
    if not new:
        raise AlreadyMember
    invitation.used_at = timezone.now()
    invitation.used_by = user
    invitation.save(update_fields=["used_at", "used_by"])
    return membership
