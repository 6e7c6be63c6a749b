"""The job table: what is to be done, who is doing it, and how it ended."""

from collections.abc import Collection
from uuid import UUID

from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy


class JobState(models.TextChoices):
    """Where a job is in its life."""

    QUEUED = "queued", gettext_lazy("Queued")
    RUNNING = "running", gettext_lazy("Running")
    SUCCEEDED = "succeeded", gettext_lazy("Succeeded")
    FAILED = "failed", gettext_lazy("Failed")
    CANCELLED = "cancelled", gettext_lazy("Cancelled")


LIVE_STATES = (JobState.QUEUED, JobState.RUNNING)
FINISHED_STATES = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED)


class Lane(models.TextChoices):
    """Jobs of one lane run one after the other in a worker; lanes run side by side."""

    GPU = "gpu", "GPU"
    LIGHT = "light", "Light"


class JobQuerySet(models.QuerySet["Job"]):
    def live(self) -> "JobQuerySet":
        return self.filter(state__in=LIVE_STATES)

    def due(self, lanes: Collection[str]) -> "JobQuerySet":
        """What a worker may take: queued jobs whose time has come, and abandoned ones."""
        queued = Q(state=JobState.QUEUED, run_after__lte=Now())
        abandoned = Q(state=JobState.RUNNING, lease_expires_at__lt=Now())
        return self.filter(queued | abandoned, lane__in=lanes)

    def owned(self, job_id: int, lease: UUID | None) -> "JobQuerySet":
        """The job while this lease owns it, else nothing. Every write of a worker starts here."""
        return self.filter(pk=job_id, lease=lease, state=JobState.RUNNING)


class Job(models.Model):
    """A piece of work that outlives a request. Only jobs.queue writes it.

    A running job belongs to the worker that knows its lease, until the lease runs out by the
    database's clock and another worker takes it under a new one.
    """

    kind = models.CharField(max_length=100, help_text="Names the handler, as in training.round.")
    payload = models.JSONField(default=dict)
    lane = models.CharField(max_length=16, choices=Lane)
    state = models.CharField(max_length=16, choices=JobState, default=JobState.QUEUED)
    once_key = models.CharField(
        max_length=200, blank=True, help_text="At most one live job has this key."
    )
    attempts = models.PositiveSmallIntegerField(default=0)
    max_attempts = models.PositiveSmallIntegerField(default=5)
    run_after = models.DateTimeField(db_default=Now())
    lease = models.UUIDField(null=True)
    lease_expires_at = models.DateTimeField(null=True)
    worker = models.CharField(max_length=200, blank=True)
    cancel_requested_at = models.DateTimeField(null=True)
    progress_done = models.PositiveBigIntegerField(default=0)
    progress_total = models.PositiveBigIntegerField(default=0)
    progress_note = models.CharField(max_length=200, blank=True)
    error = models.TextField(blank=True, help_text="Why it failed or waits, in words for people.")
    created_at = models.DateTimeField(db_default=Now())
    started_at = models.DateTimeField(null=True, help_text="When it was last taken by a worker.")
    finished_at = models.DateTimeField(null=True)

    objects = JobQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["once_key"],
                condition=Q(state__in=LIVE_STATES) & ~Q(once_key=""),
                name="one_live_job_per_once_key",
            ),
            models.CheckConstraint(condition=Q(state__in=JobState.values), name="job_state_known"),
            models.CheckConstraint(condition=Q(lane__in=Lane.values), name="job_lane_known"),
            models.CheckConstraint(
                condition=Q(
                    state=JobState.RUNNING, lease__isnull=False, lease_expires_at__isnull=False
                )
                | (
                    ~Q(state=JobState.RUNNING)
                    & Q(lease__isnull=True, lease_expires_at__isnull=True)
                ),
                name="job_leased_exactly_while_running",
            ),
        ]
        indexes = [
            models.Index(fields=["lane"], condition=Q(state__in=LIVE_STATES), name="job_live")
        ]

    def __str__(self) -> str:
        return f"{self.kind} job {self.pk}"

    @property
    def live(self) -> bool:
        return self.state in LIVE_STATES


class Schedule(models.Model):
    """A job to enqueue again and again. Only jobs.schedule writes it."""

    name = models.CharField(max_length=120, unique=True)
    kind = models.CharField(max_length=100)
    payload = models.JSONField(default=dict)
    lane = models.CharField(max_length=16, choices=Lane)
    cron = models.CharField(
        max_length=100, help_text="Five fields: minute, hour, day, month, weekday."
    )
    time_zone = models.CharField(max_length=64, default="UTC")
    next_run_at = models.DateTimeField()
    paused = models.BooleanField(default=False)
    last_job = models.ForeignKey(
        Job, null=True, blank=True, on_delete=models.SET_NULL, related_name="+"
    )

    class Meta:
        constraints = [
            models.CheckConstraint(condition=Q(lane__in=Lane.values), name="schedule_lane_known"),
        ]

    def __str__(self) -> str:
        return self.name


class WorkerSeen(models.Model):
    """When a worker process last said that it is alive."""

    name = models.CharField(max_length=200, unique=True)
    lanes = models.CharField(max_length=100)
    seen_at = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return self.name
