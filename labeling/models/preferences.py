"""The preference table: what training and consumers read."""

from django.db import models
from django.db.models import F, Q

from labeling.models.comparisons import Comparison
from labeling.models.projects import Project
from labeling.models.prompts import Response


class Preference(models.Model):
    """The outcome over a comparison's judgments for one unordered pair of its responses.

    Rewritten in the transaction that writes a judgment (labeling.services.aggregating), so it is
    never stale. `chosen` is y+, `rejected` y-; where votes are even the lower slot stands as
    chosen and `votes_for == votes_against` says that nothing was decided.
    """

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="preferences")
    comparison = models.ForeignKey(Comparison, on_delete=models.CASCADE, related_name="preferences")
    low_slot = models.PositiveSmallIntegerField()
    high_slot = models.PositiveSmallIntegerField()
    chosen = models.ForeignKey(Response, on_delete=models.PROTECT, related_name="chosen_in")
    rejected = models.ForeignKey(Response, on_delete=models.PROTECT, related_name="rejected_in")
    votes_for = models.PositiveIntegerField()
    votes_against = models.PositiveIntegerField()
    votes_tied = models.PositiveIntegerField()
    probability = models.FloatField(help_text="That chosen is better, given the votes.")
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["comparison", "low_slot", "high_slot"], name="preference_once_per_pair"
            ),
            models.CheckConstraint(
                condition=Q(low_slot__lt=F("high_slot")), name="preference_slots_ordered"
            ),
            models.CheckConstraint(
                condition=Q(votes_for__gte=F("votes_against")), name="preference_chosen_has_more"
            ),
        ]
        indexes = [models.Index(fields=["project", "id"], name="preference_by_project")]

    def __str__(self) -> str:
        return f"{self.chosen_id} over {self.rejected_id}"

    @property
    def decided(self) -> bool:
        """Whether more votes were for than against."""
        return self.votes_for > self.votes_against
