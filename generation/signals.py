"""A promoted policy writes the next candidates: this closes the loop."""

import logging
from typing import Any

from django.dispatch import receiver

from generation.models import LIVE_BATCH_STATES
from generation.services import CannotGenerate, cancel_batch, sampling_of, start_batch
from labeling.models import Policy, User
from labeling.services.promoting import policy_promoted

logger = logging.getLogger("generation")


@receiver(policy_promoted)
def write_candidates(*, policy: Policy, actor: User | None, **_kwargs: Any) -> None:
    """Start a batch of the policy that serves now, unless it has answered every prompt.

    Sampled as the project's last batch was.
    """
    for other in policy.project.batches.filter(state__in=LIVE_BATCH_STATES):
        cancel_batch(batch=other)  # what the replaced policy still writes is not wanted
    last = policy.project.batches.order_by("-number").first()
    sampling = sampling_of(last) if last else {}
    try:
        start_batch(policy=policy, actor=actor, **sampling)
    except CannotGenerate as reason:
        logger.info("no batch after the promotion of %s: %s", policy, reason)
