"""Examples: comparisons with a known answer and its reasons, to read and to practise on."""

from django.conf import settings
from django.db import models

from labeling.models.comparisons import Comparison


class ExampleQuerySet(models.QuerySet["Example"]):
    """Examples."""

    def shown(self) -> "ExampleQuerySet":
        """Those that were not taken away, in the order in which they are shown."""
        return self.filter(removed_at__isnull=True).order_by("position", "pk")


class Example(models.Model):
    """A comparison of purpose practice, whose `gold_tiers` are the answer, and why."""

    comparison = models.OneToOneField(Comparison, on_delete=models.CASCADE, related_name="example")
    explanation = models.TextField(help_text="Markdown: why this is the answer.")
    position = models.PositiveSmallIntegerField(default=0)
    author = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)
    removed_at = models.DateTimeField(null=True, blank=True)

    objects = ExampleQuerySet.as_manager()

    def __str__(self) -> str:
        return f"Example {self.pk}"


class PracticeAnswer(models.Model):
    """What an annotator said of an example, and whether that was right. Never changed."""

    example = models.ForeignKey(Example, on_delete=models.CASCADE, related_name="answers")
    annotator = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+"
    )
    tiers = models.JSONField(help_text="Tiers of slot indexes, best first.")
    right = models.BooleanField()
    at = models.DateTimeField(auto_now_add=True)

    class Meta:
        indexes = [models.Index(fields=["annotator", "example"], name="practice_by_annotator")]

    def __str__(self) -> str:
        return f"{self.annotator} on {self.example}"
