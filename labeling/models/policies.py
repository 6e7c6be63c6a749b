"""Policies: the models that write responses."""

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy

from labeling.models.projects import Project


class PolicyState(models.TextChoices):
    """Where a policy is in its life."""

    CANDIDATE = "candidate", gettext_lazy("Candidate")
    SERVING = "serving", gettext_lazy("Serving")
    RETIRED = "retired", gettext_lazy("Retired")


class Policy(models.Model):
    """A model folder on disk, perhaps with an adapter on it, known by the digest of its files."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="policies")
    name = models.CharField(max_length=120)
    model_path = models.CharField(max_length=500, help_text="Folder of the base model.")
    adapter_path = models.CharField(
        max_length=500, blank=True, help_text="Folder of a LoRA adapter on it, if any."
    )
    digest = models.CharField(max_length=64, help_text="SHA-256 of the files that were trained.")
    parent = models.ForeignKey(
        "self", null=True, blank=True, on_delete=models.PROTECT, related_name="children"
    )
    state = models.CharField(
        max_length=16, choices=PolicyState, default=PolicyState.CANDIDATE, db_index=False
    )
    size_bytes = models.PositiveBigIntegerField(
        null=True, blank=True, help_text="Of the files that are its own, when last looked at."
    )
    deleted_at = models.DateTimeField(
        null=True, blank=True, help_text="When its files were deleted; the row stays as a record."
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["project", "name"], name="policy_name_unique"),
            models.UniqueConstraint(
                fields=["project"],
                condition=Q(state=PolicyState.SERVING),
                name="one_serving_policy_per_project",
            ),
            models.CheckConstraint(
                condition=Q(state__in=PolicyState.values), name="policy_state_known"
            ),
        ]

    def __str__(self) -> str:
        return self.name


class PolicyEvent(models.Model):
    """What happened to a policy, and who did it. Never changed; no actor means the system."""

    class Kind(models.TextChoices):
        REGISTERED = "registered", gettext_lazy("Registered")
        PROMOTED = "promoted", gettext_lazy("Promoted")
        ROLLED_BACK = "rolled_back", gettext_lazy("Rolled back to")
        MERGED = "merged", gettext_lazy("Adapter merged")
        DELETED = "deleted", gettext_lazy("Files deleted")

    policy = models.ForeignKey(Policy, on_delete=models.CASCADE, related_name="events")
    replaced = models.ForeignKey(
        Policy, null=True, blank=True, on_delete=models.CASCADE, related_name="+"
    )
    kind = models.CharField(max_length=16, choices=Kind)
    reason = models.TextField(blank=True, help_text="Why, in the actor's words or the gate's.")
    actor = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.policy} {self.get_kind_display()}"
