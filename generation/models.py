"""Batches: prompts in, candidate responses out."""

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q

from labeling.models import Policy, Project


class BatchState(models.TextChoices):
    """Where a batch is."""

    QUEUED = "queued", "Queued"
    RUNNING = "running", "Running"
    SUCCEEDED = "succeeded", "Succeeded"
    FAILED = "failed", "Failed"
    CANCELLED = "cancelled", "Cancelled"


LIVE_BATCH_STATES = (BatchState.QUEUED, BatchState.RUNNING)


class Batch(models.Model):
    """One run of a policy over prompts: k responses each, then comparisons of them."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="batches")
    number = models.PositiveIntegerField(help_text="Counts up within the project.")
    policy = models.ForeignKey(Policy, on_delete=models.PROTECT, related_name="batches")
    k = models.PositiveSmallIntegerField(
        default=4, validators=[MinValueValidator(2), MaxValueValidator(16)]
    )
    temperature = models.FloatField(default=1.0, validators=[MinValueValidator(0.0)])
    top_p = models.FloatField(
        default=1.0, validators=[MinValueValidator(0.01), MaxValueValidator(1.0)]
    )
    max_new_tokens = models.PositiveIntegerField(
        default=160, validators=[MinValueValidator(1), MaxValueValidator(4096)]
    )
    seed = models.PositiveIntegerField(default=0)
    state = models.CharField(max_length=16, choices=BatchState, default=BatchState.QUEUED)
    error = models.TextField(blank=True)
    done = models.PositiveIntegerField(default=0, help_text="Prompts answered.")
    total = models.PositiveIntegerField(default=0, help_text="Prompts asked.")
    failures = models.PositiveIntegerField(default=0, help_text="Prompts that failed alone.")
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
            models.UniqueConstraint(fields=["project", "number"], name="batch_number_unique"),
            models.UniqueConstraint(
                fields=["project"],
                condition=Q(state__in=["queued", "running"]),
                name="one_live_batch_per_project",
            ),
        ]

    def __str__(self) -> str:
        return f"Batch {self.number}"

    @property
    def live(self) -> bool:
        """Whether it is waiting or running."""
        return self.state in LIVE_BATCH_STATES
