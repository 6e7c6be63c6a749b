"""Evaluations: two policies before people, blind, among the comparisons they judge anyway."""

from django.conf import settings
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import F, Q
from django.utils.translation import gettext_lazy, pgettext_lazy

from labeling.models.policies import Policy
from labeling.models.projects import Project

WANTED = 200  # shows a win rate of 62 % to be above one half, more often than not
LEAST_WANTED, MOST_WANTED = 10, 5000


class Evaluation(models.Model):
    """A new policy against the one that serves, on held-out prompts, judged by people.

    Only labeling.services.evaluating writes it. Its comparisons are those that name it.
    """

    class State(models.TextChoices):
        WAITING = "waiting", gettext_lazy("Waiting for responses")
        JUDGING = "judging", gettext_lazy("Being judged")
        ENDED = "ended", pgettext_lazy("evaluation", "Ended")

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="evaluations")
    policy = models.ForeignKey(Policy, on_delete=models.CASCADE, related_name="evaluations")
    against = models.ForeignKey(Policy, on_delete=models.CASCADE, related_name="+")
    state = models.CharField(max_length=16, choices=State, default=State.WAITING)
    wanted = models.PositiveIntegerField(
        default=WANTED,
        validators=[MinValueValidator(LEAST_WANTED), MaxValueValidator(MOST_WANTED)],
        help_text="Judgments, at most.",
    )
    promote_if_better = models.BooleanField(
        default=False, help_text="The policy serves as soon as the gate is passed."
    )
    alike = models.PositiveIntegerField(
        default=0, help_text="Pairs of responses that were the same and so were not compared."
    )
    passed_at = models.DateTimeField(null=True, blank=True, help_text="When the gate was passed.")
    problem = models.TextField(blank=True, help_text="Why there are no responses yet, or never.")
    result = models.JSONField(
        default=dict, blank=True, help_text="The figures when it ended, as they stay."
    )
    started_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)
    ended_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["project"],
                condition=Q(state__in=["waiting", "judging"]),
                name="one_live_evaluation_per_project",
            ),
            models.CheckConstraint(
                condition=~Q(policy=F("against")), name="evaluation_of_two_policies"
            ),
        ]

    def __str__(self) -> str:
        return f"{self.policy} against {self.against}"

    @property
    def live(self) -> bool:
        """Whether people judge it, or will."""
        return self.state != self.State.ENDED
