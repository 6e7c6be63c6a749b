"""Rounds: a frozen snapshot of preferences in, a new policy out."""

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy, pgettext_lazy

from labeling.models import Policy, Project


class RoundState(models.TextChoices):
    """Where a round is."""

    QUEUED = "queued", gettext_lazy("Queued")
    RUNNING = "running", gettext_lazy("Running")
    SUCCEEDED = "succeeded", gettext_lazy("Succeeded")
    FAILED = "failed", gettext_lazy("Failed")
    CANCELLED = "cancelled", pgettext_lazy("round", "Cancelled")


LIVE_ROUND_STATES = (RoundState.QUEUED, RoundState.RUNNING)


class Snapshot(models.Model):
    """The preferences a round trains on, frozen in a file and known by its digest."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="snapshots")
    path = models.CharField(max_length=500)
    digest = models.CharField(max_length=64, help_text="SHA-256 of the file.")
    groups = models.PositiveIntegerField(help_text="Comparisons.")
    pairs = models.PositiveIntegerField(help_text="Decided pairs on the train side.")
    held_out_pairs = models.PositiveIntegerField()
    left_out = models.JSONField(default=dict, help_text="Pairs left out, counted by reason.")
    created_at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"Snapshot {self.digest[:12]}"


class Round(models.Model):
    """One run of DPO over a snapshot, from a start policy, held to a reference policy."""

    class Reference(models.TextChoices):
        INITIAL = "initial", gettext_lazy("The initial policy")
        START = "start", gettext_lazy("Its own start")

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="rounds")
    number = models.PositiveIntegerField(help_text="Counts up within the project.")
    state = models.CharField(max_length=16, choices=RoundState, default=RoundState.QUEUED)
    start = models.ForeignKey(Policy, on_delete=models.PROTECT, related_name="rounds_from")
    reference = models.ForeignKey(Policy, on_delete=models.PROTECT, related_name="rounds_held_to")
    options = models.JSONField(default=dict, help_text="Trainer options that were chosen.")
    snapshot = models.ForeignKey(
        Snapshot, null=True, blank=True, on_delete=models.PROTECT, related_name="rounds"
    )
    policy = models.OneToOneField(
        Policy,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="made_by_round",
        help_text="What the round made.",
    )
    results = models.JSONField(default=dict, blank=True)
    error = models.TextField(blank=True)
    step = models.PositiveIntegerField(default=0)
    total_steps = models.PositiveIntegerField(default=0)
    run_dir = models.CharField(max_length=500, blank=True)
    job_id = models.PositiveBigIntegerField(null=True, blank=True)
    started_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)
    started_at = models.DateTimeField(null=True, blank=True)
    finished_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["project", "number"], name="round_number_unique"),
            models.UniqueConstraint(
                fields=["project"],
                condition=Q(state__in=["queued", "running"]),
                name="one_live_round_per_project",
            ),
        ]

    def __str__(self) -> str:
        return f"Round {self.number}"

    @property
    def live(self) -> bool:
        """Whether it is waiting or running."""
        return self.state in LIVE_ROUND_STATES
