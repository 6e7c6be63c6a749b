"""Batches: prompts in, candidate responses out; and the plan that keeps comparisons ready."""

import math
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.core.validators import MaxLengthValidator, MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from labeling.models import Comparison, Evaluation, Policy, Project

MOST_WEIGHT = 100
MOST_READY = 5000
MOST_STOPS = 4  # as many as servers with OpenAI's API take
LONGEST_STOP = 100
LONGEST_SYSTEM = 10_000
LARGEST_SEED = 2**31 - 1  # as the column holds
# What a batch and a plan say alike about sampling and comparing.
SAMPLING = (
    "k",
    "temperature",
    "top_p",
    "max_new_tokens",
    "stop",
    "system",
    "pairing",
    "random_percent",
)


class BatchState(models.TextChoices):
    """Where a batch is."""

    QUEUED = "queued", gettext_lazy("Queued")
    RUNNING = "running", gettext_lazy("Running")
    SUCCEEDED = "succeeded", gettext_lazy("Succeeded")
    FAILED = "failed", gettext_lazy("Failed")
    CANCELLED = "cancelled", gettext_lazy("Cancelled")


LIVE_BATCH_STATES = (BatchState.QUEUED, BatchState.RUNNING)


def check_finite(value: float) -> None:
    """Comparisons let NaN through every limit."""
    if not math.isfinite(value):
        raise ValidationError(_("Enter a number."))


def check_storable(text: str) -> None:
    """Databases hold no NUL and no half of a surrogate pair."""
    if "\x00" in text or not text.isascii() and any("\ud800" <= sign <= "\udfff" for sign in text):
        raise ValidationError(_("This holds a character that cannot be kept."))


def check_stop(stop: Any) -> None:
    """A few texts that are not empty."""
    if not isinstance(stop, list) or not all(isinstance(text, str) and text for text in stop):
        raise ValidationError(_("Stop texts are a list of texts that are not empty."))
    if len(stop) > MOST_STOPS or any(len(text) > LONGEST_STOP for text in stop):
        raise ValidationError(
            _("At most %(number)s stop texts, of at most %(length)s characters each.")
            % {"number": MOST_STOPS, "length": LONGEST_STOP}
        )
    for text in stop:
        check_storable(text)


class Sampling(models.Model):
    """How responses are sampled, and which of them are compared."""

    k = models.PositiveSmallIntegerField(
        default=4, validators=[MinValueValidator(2), MaxValueValidator(16)]
    )
    temperature = models.FloatField(
        default=1.0, validators=[check_finite, MinValueValidator(0.0), MaxValueValidator(2.0)]
    )
    top_p = models.FloatField(
        default=1.0, validators=[check_finite, MinValueValidator(0.01), MaxValueValidator(1.0)]
    )
    max_new_tokens = models.PositiveIntegerField(
        default=160, validators=[MinValueValidator(1), MaxValueValidator(4096)]
    )
    stop = models.JSONField(
        default=list, blank=True, validators=[check_stop], help_text="Texts that end a response."
    )
    system = models.TextField(
        blank=True,
        validators=[MaxLengthValidator(LONGEST_SYSTEM), check_storable],
        help_text="System message of prompts that have none of their own.",
    )
    pairing = models.CharField(
        max_length=16, choices=Comparison.Pairing, default=Comparison.Pairing.RANDOM
    )
    random_percent = models.PositiveSmallIntegerField(
        default=20,
        validators=[MinValueValidator(10), MaxValueValidator(100)],
        help_text="Share of prompts that are paired at random whatever the pairing.",
    )

    class Meta:
        abstract = True

    @property
    def sampling(self) -> dict[str, Any]:
        """These, as arguments of `start_batch`."""
        return {name: getattr(self, name) for name in SAMPLING}


class Batch(Sampling):
    """One run of policies over prompts: k responses each, then comparisons of them.

    Its policies share the responses by weight. `leading` is the policy that served when the batch
    was made: whether its comparisons are still wanted, and what a reward is, go by that one.
    """

    class Origin(models.TextChoices):
        """Who or what asked for it."""

        MANUAL = "manual", gettext_lazy("by hand")
        TOP_UP = "top_up", gettext_lazy("to keep comparisons ready")
        PROMOTION = "promotion", gettext_lazy("after a promotion")
        EVALUATION = "evaluation", gettext_lazy("to evaluate a policy")
        API = "api", gettext_lazy("through the API")
        COMMAND = "command", gettext_lazy("by the command")

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="batches")
    number = models.PositiveIntegerField(help_text="Counts up within the project.")
    origin = models.CharField(max_length=16, choices=Origin, default=Origin.MANUAL)
    evaluation = models.ForeignKey(
        Evaluation, null=True, blank=True, on_delete=models.SET_NULL, related_name="batches"
    )
    leading = models.ForeignKey(Policy, on_delete=models.PROTECT, related_name="led_batches")
    policies = models.ManyToManyField(Policy, through="BatchPolicy", related_name="batches")
    selection = models.JSONField(default=dict, blank=True, help_text="Which prompts are asked.")
    seed = models.PositiveIntegerField(default=0, validators=[MaxValueValidator(LARGEST_SEED)])
    state = models.CharField(max_length=16, choices=BatchState, default=BatchState.QUEUED)
    sampler = models.CharField(max_length=16, blank=True, help_text="Chosen by the worker.")
    sampler_why = models.CharField(max_length=500, blank=True)
    engine = models.CharField(max_length=200, blank=True, help_text="What wrote it, and version.")
    error = models.TextField(blank=True)
    done = models.PositiveIntegerField(default=0, help_text="Prompts answered.")
    total = models.PositiveIntegerField(default=0, help_text="Prompts asked.")
    taken = models.PositiveIntegerField(default=0, help_text="Prompts taken into the record.")
    failures = models.PositiveIntegerField(default=0, help_text="Prompts that failed alone.")
    comparisons = models.PositiveIntegerField(
        null=True,
        blank=True,
        help_text="Made of its responses so far, without those of a policy that had been "
        "replaced; unknown for old batches.",
    )
    barren = models.JSONField(
        default=list,
        blank=True,
        help_text="Of an automatic batch: prompts that gave nothing new to compare.",
    )
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


ENDED_EARLY = (BatchState.FAILED, BatchState.CANCELLED)
AUTOMATIC = (Batch.Origin.TOP_UP, Batch.Origin.PROMOTION)  # nobody asked for the very batch


class BatchPolicy(models.Model):
    """A policy's share of a batch: of the weights' sum, so much of the responses."""

    batch = models.ForeignKey(Batch, on_delete=models.CASCADE, related_name="shares")
    policy = models.ForeignKey(Policy, on_delete=models.PROTECT, related_name="batch_shares")
    weight = models.PositiveSmallIntegerField(
        default=1, validators=[MinValueValidator(1), MaxValueValidator(MOST_WEIGHT)]
    )

    class Meta:
        ordering = ["pk"]
        constraints = [
            models.UniqueConstraint(fields=["batch", "policy"], name="batch_policy_once"),
            models.CheckConstraint(condition=Q(weight__gte=1), name="batch_policy_weight_min"),
        ]

    def __str__(self) -> str:
        return f"{self.policy} in {self.batch}"


class Plan(Sampling):
    """How many comparisons a project keeps ready, and how the batches for that sample.

    Its weights go to the policy that serves when a batch is made, the one that it replaced, and
    the initial one.
    """

    project = models.OneToOneField(Project, on_delete=models.CASCADE, related_name="plan")
    ready = models.PositiveIntegerField(
        default=0, validators=[MaxValueValidator(MOST_READY)], help_text="0 turns it off."
    )
    current = models.PositiveSmallIntegerField(
        default=1, validators=[MinValueValidator(1), MaxValueValidator(MOST_WEIGHT)]
    )
    previous = models.PositiveSmallIntegerField(
        default=0, validators=[MaxValueValidator(MOST_WEIGHT)]
    )
    base = models.PositiveSmallIntegerField(default=0, validators=[MaxValueValidator(MOST_WEIGHT)])
    since = models.DateTimeField(
        default=timezone.now, help_text="Batches before this say nothing about going on."
    )
    stopped = models.TextField(blank=True, help_text="Why nothing more is written for now.")
    stopped_at = models.CharField(
        max_length=200, blank=True, help_text="What must change before it goes on."
    )
    saved_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )

    def __str__(self) -> str:
        return f"Plan of {self.project}"

    @property
    def weights(self) -> dict[str, int]:
        """By the words of `generation.lineage`."""
        return {"current": self.current, "previous": self.previous, "base": self.base}
