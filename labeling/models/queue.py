"""What managers did to the queue."""

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy

from labeling.models.projects import Project


class QueueChange(models.Model):
    """A manager changed the order of the queue, or held part of it back. Never changed."""

    class Action(models.TextChoices):
        PRIORITY = "priority", gettext_lazy("Priority set")
        HOLD = "hold", gettext_lazy("Held back")
        RELEASE = "release", gettext_lazy("Released")
        RETIRE = "retire", gettext_lazy("Retired")

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="queue_changes")
    action = models.CharField(max_length=16, choices=Action)
    priority = models.SmallIntegerField(null=True, blank=True)
    filters = models.JSONField(
        default=dict, help_text="Which comparisons: labeling.services.queueing."
    )
    changed = models.PositiveIntegerField(help_text="How many comparisons.")
    actor = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT, related_name="+")
    at = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return f"{self.get_action_display()}: {self.changed}"
