"""A promoted policy writes the next candidates: this closes the loop."""

import logging
from typing import Any

from django.dispatch import receiver

from generation.services import CannotGenerate, start_batch
from labeling.models import Policy, User
from labeling.services.promoting import policy_promoted

SAMPLING = ("k", "temperature", "top_p", "max_new_tokens")

logger = logging.getLogger("generation")


@receiver(policy_promoted)
def write_candidates(*, policy: Policy, actor: User | None, **_kwargs: Any) -> None:
    """Start a batch of the policy that serves now, unless it has answered every prompt.

    Sampled as the project's last batch was.
    """
    last = policy.project.batches.order_by("-number").first()
    sampling = {name: getattr(last, name) for name in SAMPLING} if last else {}
    try:
        start_batch(policy=policy, actor=actor, **sampling)
    except CannotGenerate as reason:
        logger.info("no batch after the promotion of %s: %s", policy, reason)
