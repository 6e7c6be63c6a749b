"""Figures over whole tables, kept from one page to the next."""

from django.db import models

from labeling.models.projects import Project


class Figure(models.Model):
    """What a count over a project came to, and when. A cache: may be deleted at any time."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="figures")
    name = models.CharField(max_length=60)
    value = models.JSONField()
    as_of = models.DateTimeField()
    took_ms = models.PositiveIntegerField(help_text="Milliseconds that counting took.")

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["project", "name"], name="figure_name_unique")
        ]

    def __str__(self) -> str:
        return f"{self.name} of {self.project}"
