"""Judgments: one annotator's verdict on one comparison."""

from django.conf import settings
from django.db import models
from django.db.models import Q

from labeling.models.comparisons import Comparison


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
    flags = models.JSONField(default=list, blank=True)
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
