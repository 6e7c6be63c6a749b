"""Judgments: one annotator's verdict on one comparison."""

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy

from labeling.models.comparisons import Comparison, Skip
from labeling.models.projects import Guidelines


class JudgmentQuerySet(models.QuerySet["Judgment"]):
    """Judgments."""

    def current(self) -> "JudgmentQuerySet":
        """Those that were neither undone nor replaced."""
        return self.filter(superseded_at__isnull=True)

    def counted(self) -> "JudgmentQuerySet":
        """Current ones that fill a place of the overlap."""
        return self.current().filter(surplus=False)


class Judgment(models.Model):
    """A verdict. Append-only: undo and re-judging supersede, nothing is edited or lost."""

    comparison = models.ForeignKey(Comparison, on_delete=models.CASCADE, related_name="judgments")
    annotator = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="judgments"
    )
    tiers = models.JSONField(help_text="Tiers of slot indexes, best first: [[0], [1, 2]].")
    all_bad = models.BooleanField(default=False)
    strength = models.PositiveSmallIntegerField(
        null=True, blank=True, help_text="1 slightly, 2 better, 3 much better; pairs only."
    )
    ratings = models.JSONField(default=dict, blank=True, help_text="Per criterion and slot.")
    rationale = models.TextField(blank=True)
    guidelines = models.ForeignKey(
        Guidelines,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="+",
        help_text="The version that was in force.",
    )
    rewrite_of = models.ForeignKey(
        "self",
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="rewrites",
        help_text="The verdict with which the annotator sent the rewrite that this one prefers.",
    )
    sitting_place = models.PositiveIntegerField(
        default=0, help_text="How many verdicts came before in the same sitting."
    )
    shown_order = models.JSONField(help_text="Slot indexes in the order they were shown.")
    active_ms = models.PositiveIntegerField(default=0)
    surplus = models.BooleanField(
        default=False, help_text="Came after its lease ran out and the overlap was full."
    )
    key = models.CharField(max_length=64, help_text="Makes a repeated submission the same one.")
    created_at = models.DateTimeField(auto_now_add=True)
    superseded_at = models.DateTimeField(null=True, blank=True)

    objects = JudgmentQuerySet.as_manager()

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["comparison", "annotator"],
                condition=Q(superseded_at__isnull=True),
                name="one_current_judgment_per_annotator",
            ),
            models.UniqueConstraint(fields=["annotator", "key"], name="judgment_key_once"),
            models.CheckConstraint(
                condition=Q(strength__isnull=True) | Q(strength__range=(1, 3)),
                name="judgment_strength_range",
            ),
        ]
        indexes = [models.Index(fields=["annotator", "-created_at"], name="judgment_history")]

    def __str__(self) -> str:
        return f"{self.annotator} on {self.comparison}: {self.tiers}"


class FlagQuerySet(models.QuerySet["Flag"]):
    """Flags."""

    def standing(self) -> "FlagQuerySet":
        """Those whose verdict or skip was not taken back."""
        return self.filter(judgment__superseded_at__isnull=True, skip__undone_at__isnull=True)

    def open(self) -> "FlagQuerySet":
        """Standing ones that no manager has dealt with."""
        return self.standing().filter(resolved_at__isnull=True)


class Flag(models.Model):
    """Something wrong with a comparison or one of its responses, told with a verdict or a skip."""

    class Reason(models.TextChoices):
        IDENTITY = "identity", gettext_lazy("It tells who wrote it")
        BROKEN = "broken", gettext_lazy("Broken output")
        PERSONAL = "personal", gettext_lazy("Personal data")
        UNSAFE = "unsafe", gettext_lazy("Unsafe")
        CANNOT_JUDGE = "cannot_judge", gettext_lazy("I cannot judge this")

    comparison = models.ForeignKey(Comparison, on_delete=models.CASCADE, related_name="flags")
    annotator = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="flags"
    )
    judgment = models.ForeignKey(
        Judgment, null=True, blank=True, on_delete=models.CASCADE, related_name="flags"
    )
    skip = models.ForeignKey(
        Skip, null=True, blank=True, on_delete=models.CASCADE, related_name="flags"
    )
    reason = models.CharField(max_length=16, choices=Reason)
    slot = models.PositiveSmallIntegerField(
        null=True, blank=True, help_text="Which response; empty: the comparison as a whole."
    )
    note = models.CharField(max_length=500, blank=True)
    at = models.DateTimeField(auto_now_add=True)
    resolved_at = models.DateTimeField(null=True, blank=True)
    resolved_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )

    objects = FlagQuerySet.as_manager()

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(judgment__isnull=True) ^ Q(skip__isnull=True), name="flag_has_one_cause"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.comparison}: {self.get_reason_display()}"
