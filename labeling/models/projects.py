"""A project: one body of prompts, one serving policy, one preference table."""

from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models


class Project(models.Model):
    """What one team judges and trains on."""

    slug = models.SlugField(unique=True)
    name = models.CharField(max_length=120)
    guidelines = models.TextField(blank=True, help_text="Markdown, shown beside the comparisons.")
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
