"""A promoted policy writes the next candidates: this closes the loop."""

import logging
from typing import Any

from django.dispatch import receiver

from generation.models import LIVE_BATCH_STATES
from generation.plans import write_candidates
from generation.services import CannotGenerate, cancel_batch
from labeling.models import Policy, User
from labeling.services.promoting import policy_promoted

logger = logging.getLogger("generation")


@receiver(policy_promoted)
def answer_promotion(*, policy: Policy, actor: User | None, **_kwargs: Any) -> None:
    """Start a batch of the policy that serves now, if it has something to write."""
    for other in policy.project.batches.filter(state__in=LIVE_BATCH_STATES):
        cancel_batch(batch=other)  # what the replaced policy still writes is not wanted
    try:
        write_candidates(project=policy.project, actor=actor)
    except CannotGenerate as reason:
        logger.info("no batch after the promotion of %s: %s", policy, reason)
