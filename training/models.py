"""Rounds: a frozen snapshot of preferences in, a new policy out."""

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils import timezone
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
ENDED_EARLY = (RoundState.FAILED, RoundState.CANCELLED)


class Snapshot(models.Model):
    """The preferences a round trains on, frozen in a file and known by its digest."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="snapshots")
    path = models.CharField(max_length=500)
    digest = models.CharField(max_length=64, help_text="SHA-256 of the file.")
    groups = models.PositiveIntegerField(help_text="Comparisons.")
    pairs = models.PositiveIntegerField(help_text="Decided pairs on the train side.")
    held_out_pairs = models.PositiveIntegerField()
    filters = models.JSONField(default=dict, blank=True, help_text="training.filters.")
    left_out = models.JSONField(default=dict, help_text="Pairs left out, counted by reason.")
    created_at = models.DateTimeField(
        default=timezone.now, help_text="When it was begun: what came later is new."
    )

    def __str__(self) -> str:
        return f"Snapshot {self.digest[:12]}"


class AfterSuccess(models.TextChoices):
    """What a round sets off when it has made a policy."""

    NOTHING = "nothing", gettext_lazy("Nothing")
    EVALUATE = "evaluate", gettext_lazy("Put it before people")
    PROMOTE = "promote", gettext_lazy("Put it before people, and promote it if it is better")


class Reference(models.TextChoices):
    """What a round is held to."""

    INITIAL = "initial", gettext_lazy("The initial policy")
    START = "start", gettext_lazy("Its own start")


class RoundSchedule(models.Model):
    """When a project's rounds start by themselves. Only training.schedules writes it."""

    project = models.OneToOneField(Project, on_delete=models.CASCADE, related_name="schedule")
    every = models.PositiveIntegerField(
        default=0, help_text="New decided pairs that start a round; 0: however many there are."
    )
    cron = models.CharField(max_length=100, blank=True, help_text="Five fields; empty: at no time.")
    time_zone = models.CharField(max_length=64, default="UTC")
    paused = models.BooleanField(default=False)
    options = models.JSONField(default=dict, blank=True, help_text="Trainer options.")
    filters = models.JSONField(default=dict, blank=True, help_text="training.filters.")
    reference = models.CharField(max_length=8, choices=Reference, default=Reference.INITIAL)
    after = models.CharField(max_length=8, choices=AfterSuccess, default=AfterSuccess.EVALUATE)
    next_at = models.DateTimeField(null=True, blank=True, help_text="When cron is next due.")
    held_up = models.TextField(blank=True, help_text="Why no round was started when it was due.")
    saved_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    saved_at = models.DateTimeField(auto_now=True)

    def __str__(self) -> str:
        return f"Schedule of {self.project}"


class Round(models.Model):
    """One run of DPO over a snapshot, from a start policy, held to a reference policy."""

    class Origin(models.TextChoices):
        """Who or what asked for it."""

        MANUAL = "manual", gettext_lazy("by hand")
        SCHEDULE = "schedule", gettext_lazy("by the schedule")
        COMMAND = "command", gettext_lazy("by a command")

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="rounds")
    number = models.PositiveIntegerField(help_text="Counts up within the project.")
    state = models.CharField(max_length=16, choices=RoundState, default=RoundState.QUEUED)
    start = models.ForeignKey(Policy, on_delete=models.PROTECT, related_name="rounds_from")
    reference = models.ForeignKey(Policy, on_delete=models.PROTECT, related_name="rounds_held_to")
    origin = models.CharField(max_length=16, choices=Origin, default=Origin.MANUAL)
    options = models.JSONField(default=dict, help_text="Trainer options that were chosen.")
    filters = models.JSONField(default=dict, blank=True, help_text="training.filters.")
    after = models.CharField(max_length=8, choices=AfterSuccess, default=AfterSuccess.NOTHING)
    like = models.ForeignKey(
        "self",
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
        help_text="The round whose options it began with: a retry or a clone.",
    )
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
    resumed_by = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="+",
        help_text="Who last let it go on after it had ended too early.",
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
