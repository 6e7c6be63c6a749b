"""People, and what each may do in a project."""

from django.conf import settings
from django.contrib.auth.models import AbstractUser
from django.db import models
from django.utils import timezone
from django.utils.translation import gettext_lazy, pgettext_lazy

from labeling.models.projects import Project


class TextSize(models.TextChoices):
    """How large a person wants text to be."""

    NORMAL = "", pgettext_lazy("text size", "Normal")
    LARGE = "large", pgettext_lazy("text size", "Large")
    LARGER = "larger", pgettext_lazy("text size", "Larger")


class User(AbstractUser):
    """A person who signs in. Rights come from memberships, not from the person."""

    language = models.CharField(
        max_length=10, blank=True, help_text="Of the interface; empty: what the browser asks for."
    )
    text_size = models.CharField(
        max_length=8, blank=True, choices=TextSize, default=TextSize.NORMAL
    )
    keys = models.JSONField(
        default=dict, blank=True, help_text="Changed keys of the judging page: {action: key}."
    )


class Role(models.TextChoices):
    """What a member does in a project."""

    ANNOTATOR = "annotator", gettext_lazy("Annotator")
    MANAGER = "manager", gettext_lazy("Manager")
    CONSUMER = "consumer", gettext_lazy("Consumer")


class Membership(models.Model):
    """A person's one role in a project. A manager may also judge and export."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="memberships")
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=16, choices=Role)
    daily_limit = models.PositiveIntegerField(
        null=True, blank=True, help_text="Most verdicts a day; empty: as many as they like."
    )
    practised_at = models.DateTimeField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["user", "project"], name="one_role_per_project"),
            models.CheckConstraint(
                condition=models.Q(role__in=Role.values), name="membership_role_known"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.user}: {self.role} in {self.project}"


class InvitationQuerySet(models.QuerySet["Invitation"]):
    """Invitations."""

    def open(self) -> "InvitationQuerySet":
        """Those that still let somebody in."""
        return self.filter(
            used_at__isnull=True, revoked_at__isnull=True, expires_at__gt=timezone.now()
        )


class Invitation(models.Model):
    """A link that makes whoever opens it first a member. The link itself is not stored."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="invitations")
    role = models.CharField(max_length=16, choices=Role)
    note = models.CharField(max_length=120, blank=True, help_text="For whom it is.")
    digest = models.CharField(max_length=64, unique=True, help_text="SHA-256 of the link's token.")
    invited_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    used_at = models.DateTimeField(null=True, blank=True)
    used_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    revoked_at = models.DateTimeField(null=True, blank=True)

    objects = InvitationQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(role__in=Role.values), name="invitation_role_known"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.role} in {self.project}"
