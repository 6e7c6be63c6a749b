"""Comparisons: responses to one prompt put before people, and who holds which."""

import secrets
import uuid

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.utils import timezone
from django.utils.translation import gettext_lazy, pgettext_lazy

from labeling.models.evaluations import Evaluation
from labeling.models.projects import Project
from labeling.models.prompts import Prompt, Response

SHUFFLE_RANGE = 2**31
# What people prefer, of themselves or by rewriting; not what checks them or the policies.
TRAINED_ON = ("standard", "rewrite")


def _shuffle_key() -> int:
    return secrets.randbelow(SHUFFLE_RANGE)


class Comparison(models.Model):
    """One prompt and two or more of its responses in slots. A pair is k = 2.

    `judged` counts current judgments that count towards the overlap; the judging service keeps
    it in the judgment's own transaction, and `check_record` recounts it.
    """

    class State(models.TextChoices):
        OPEN = "open", pgettext_lazy("comparison", "Open")
        JUDGED = "judged", pgettext_lazy("comparison", "Judged")
        RETIRED = "retired", gettext_lazy("Retired")
        HELD = "held", gettext_lazy("Held back")

    class Purpose(models.TextChoices):
        STANDARD = "standard", gettext_lazy("Standard")
        GOLD = "gold", gettext_lazy("Gold")
        EVALUATION = "evaluation", gettext_lazy("Evaluation")
        PRACTICE = "practice", gettext_lazy("Practice")
        REWRITE = "rewrite", gettext_lazy("A person's rewrite against the original")

    class Pairing(models.TextChoices):
        """How generation chose the responses that stand side by side."""

        RANDOM = "random", gettext_lazy("Random")
        ACROSS = "across", gettext_lazy("Across policies")
        DIFFERENT = "different", gettext_lazy("Most different texts")
        SMALLEST_MARGIN = "smallest_margin", gettext_lazy("Smallest reward margin")
        LARGEST_MARGIN = "largest_margin", gettext_lazy("Largest reward margin")
        BEST_OF_N = "best_of_n", gettext_lazy("Best of n against random")

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="comparisons")
    prompt = models.ForeignKey(Prompt, on_delete=models.CASCADE, related_name="comparisons")
    purpose = models.CharField(max_length=16, choices=Purpose, default=Purpose.STANDARD)
    state = models.CharField(max_length=16, choices=State, default=State.OPEN)
    pairing = models.CharField(
        max_length=16,
        choices=Pairing,
        blank=True,
        help_text="Empty where people chose, or the way that was asked for could not be followed.",
    )
    overlap = models.PositiveSmallIntegerField()
    judged = models.PositiveSmallIntegerField(default=0)
    priority = models.SmallIntegerField(default=0)
    withdrawn = models.BooleanField(
        default=False, help_text="Retired by a manager: no roll-back opens it again."
    )
    shuffle_key = models.PositiveIntegerField(
        default=_shuffle_key, help_text="Each annotator starts elsewhere on this circle."
    )
    evaluation = models.ForeignKey(
        Evaluation,
        null=True,
        blank=True,
        on_delete=models.CASCADE,
        db_index=False,
        related_name="comparisons",
        help_text="Which evaluation it is for.",
    )
    gold_tiers = models.JSONField(null=True, blank=True, help_text="The known answer, as tiers.")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(judged__lte=F("overlap")), name="comparison_judged_within_overlap"
            ),
            models.CheckConstraint(condition=Q(overlap__gte=1), name="comparison_overlap_min"),
        ]
        indexes = [
            models.Index(
                fields=["project", "-priority", "-judged", "shuffle_key"],
                condition=Q(state="open"),
                name="comparison_queue",
            ),
            models.Index(fields=["project", "state"], name="comparison_by_state"),
            models.Index(
                fields=["evaluation", "state", "shuffle_key"],
                condition=Q(evaluation__isnull=False),
                name="comparison_by_evaluation",
            ),
        ]

    def __str__(self) -> str:
        return f"Comparison {self.pk}"


class Slot(models.Model):
    """A response's place in a comparison. Slots are storage: each annotator sees them shuffled."""

    comparison = models.ForeignKey(Comparison, on_delete=models.CASCADE, related_name="slots")
    index = models.PositiveSmallIntegerField()
    response = models.ForeignKey(Response, on_delete=models.PROTECT, related_name="slots")

    class Meta:
        ordering = ["index"]
        constraints = [
            models.UniqueConstraint(fields=["comparison", "index"], name="slot_index_unique"),
            models.UniqueConstraint(fields=["comparison", "response"], name="slot_response_once"),
        ]

    def __str__(self) -> str:
        return f"{self.comparison}, slot {self.index}"


class LeaseQuerySet(models.QuerySet["Lease"]):
    """Leases."""

    def live(self) -> "LeaseQuerySet":
        """Leases that have not run out."""
        return self.filter(expires_at__gt=timezone.now())


class Lease(models.Model):
    """This annotator holds this comparison until then, under this token.

    Live leases + counted judgments never exceed the comparison's overlap.
    """

    comparison = models.ForeignKey(Comparison, on_delete=models.CASCADE, related_name="leases")
    annotator = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="leases"
    )
    token = models.UUIDField(default=uuid.uuid4, unique=True)
    taken_at = models.DateTimeField(auto_now_add=True)
    expires_at = models.DateTimeField()
    draft = models.JSONField(
        default=dict, blank=True, help_text="What the annotator has filled in and not sent yet."
    )

    objects = LeaseQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["comparison", "annotator"], name="one_lease_per_annotator"
            )
        ]
        indexes = [models.Index(fields=["annotator", "expires_at"], name="lease_by_annotator")]

    def __str__(self) -> str:
        return f"{self.annotator} holds {self.comparison}"


class Skip(models.Model):
    """An annotator passed a comparison over: it is not offered to them again."""

    comparison = models.ForeignKey(Comparison, on_delete=models.CASCADE, related_name="skips")
    annotator = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="skips"
    )
    at = models.DateTimeField(auto_now_add=True)
    undone_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["comparison", "annotator"],
                condition=Q(undone_at__isnull=True),
                name="one_skip_per_annotator",
            )
        ]
        indexes = [models.Index(fields=["annotator", "-at"], name="skip_by_annotator")]

    def __str__(self) -> str:
        return f"{self.annotator} skipped {self.comparison}"
