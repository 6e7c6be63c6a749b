"""A project: one body of prompts, one serving policy, one preference table."""

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.utils.translation import gettext_lazy


class Rationale(models.TextChoices):
    """Whether annotators are asked for their reasons."""

    NEVER = "never", gettext_lazy("Never")
    OPTIONAL = "optional", gettext_lazy("If they like")
    REQUIRED = "required", gettext_lazy("Always")


class Project(models.Model):
    """What one team judges and trains on."""

    slug = models.SlugField(unique=True)
    name = models.CharField(max_length=120)
    guidelines = models.ForeignKey(
        "Guidelines",
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
        help_text="The version in force; written by labeling.services.configuring.",
    )
    criteria = models.JSONField(
        default=list,
        blank=True,
        help_text="What each answer is rated on besides: [{key, name, help}].",
    )
    rationale = models.CharField(
        max_length=8,
        choices=Rationale,
        default=Rationale.OPTIONAL,
        help_text="Whether annotators write down why.",
    )
    rejudge_hours = models.PositiveSmallIntegerField(
        default=24,
        help_text="For how long annotators may undo or change their own verdicts; 0: never.",
    )
    practice = models.BooleanField(
        default=False, help_text="Annotators go through the examples before their first verdict."
    )
    overlap = models.PositiveSmallIntegerField(
        default=1,
        validators=[MinValueValidator(1), MaxValueValidator(50)],
        help_text="How many annotators judge each new comparison.",
    )
    comparison_size = models.PositiveSmallIntegerField(
        default=2,
        validators=[MinValueValidator(2), MaxValueValidator(8)],
        help_text="How many responses each new comparison shows.",
    )
    held_out_percent = models.PositiveSmallIntegerField(
        default=15,
        validators=[MaxValueValidator(90)],
        help_text="Share of prompts that rounds never train on. Fixed once prompts are there.",
    )
    evaluation_percent = models.PositiveSmallIntegerField(
        default=25,
        validators=[MinValueValidator(1), MaxValueValidator(100)],
        help_text="Share of what annotators are given that evaluates a new policy, while one is.",
    )
    gate_percent = models.PositiveSmallIntegerField(
        default=50,
        validators=[MinValueValidator(50), MaxValueValidator(90)],
        help_text="A policy passes the gate once the lower bound of its win rate exceeds this.",
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.CheckConstraint(condition=models.Q(overlap__gte=1), name="project_overlap_min"),
            models.CheckConstraint(
                condition=models.Q(comparison_size__gte=2), name="project_comparison_size_min"
            ),
            models.CheckConstraint(
                condition=models.Q(held_out_percent__lte=90), name="project_held_out_max"
            ),
        ]

    def __str__(self) -> str:
        return self.name


class Guidelines(models.Model):
    """One version of a project's guidelines. Never changed: each judgment names the one it saw."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="versions")
    number = models.PositiveIntegerField()
    text = models.TextField(blank=True, help_text="Markdown, shown beside the comparisons.")
    author = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        verbose_name_plural = "guidelines"
        constraints = [
            models.UniqueConstraint(fields=["project", "number"], name="guidelines_number_once")
        ]

    def __str__(self) -> str:
        return f"{self.project}, version {self.number}"
