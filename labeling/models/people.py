"""People, and what each may do in a project."""

from django.contrib.auth.models import AbstractUser
from django.db import models

from labeling.models.projects import Project


class User(AbstractUser):
    """A person who signs in. Rights come from memberships, not from the person."""


class Role(models.TextChoices):
    """What a member does in a project."""

    ANNOTATOR = "annotator", "Annotator"
    MANAGER = "manager", "Manager"
    CONSUMER = "consumer", "Consumer"


class Membership(models.Model):
    """A person's one role in a project. A manager may also judge and export."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="memberships")
    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="memberships")
    role = models.CharField(max_length=16, choices=Role)
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
