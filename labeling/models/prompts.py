"""Prompts, and the responses written for them."""

import hashlib
import json
from collections.abc import Sequence

from django.conf import settings
from django.db import models
from django.db.models import Q
from django.utils.translation import gettext_lazy

from labeling.chat import Message
from labeling.models.policies import Policy
from labeling.models.projects import Project


class Split(models.TextChoices):
    """Which side of the evaluation a prompt is on."""

    TRAIN = "train", gettext_lazy("Train")
    HELD_OUT = "held_out", gettext_lazy("Held out")


def prompt_digest(messages: Sequence[Message]) -> str:
    """Hex SHA-256 of the conversation: what makes two prompts the same prompt."""
    canonical = json.dumps(list(messages), ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def text_digest(text: str) -> str:
    """Hex SHA-256 of a response's text: what makes two responses identical."""
    return hashlib.sha256(text.encode()).hexdigest()


def split_of(digest: str, held_out_percent: int) -> Split:
    """The side a prompt is on, from its digest alone: the same prompt never changes sides."""
    bucket = int(hashlib.sha256(f"split:{digest}".encode()).hexdigest()[:8], 16) % 100
    return Split.HELD_OUT if bucket < held_out_percent else Split.TRAIN


class Prompt(models.Model):
    """A conversation up to the assistant's turn."""

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="prompts")
    external_id = models.CharField(max_length=200, blank=True)
    messages = models.JSONField()
    digest = models.CharField(max_length=64)
    split = models.CharField(max_length=8, choices=Split)
    metadata = models.JSONField(default=dict, blank=True)
    continues = models.OneToOneField(
        "Response",
        null=True,
        blank=True,
        on_delete=models.CASCADE,
        related_name="continuation",
        help_text="The response after which the user goes on, where this is a later turn.",
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["project", "digest"], name="prompt_unique"),
            models.CheckConstraint(condition=Q(split__in=Split.values), name="prompt_split_known"),
        ]
        indexes = [models.Index(fields=["project", "split", "id"], name="prompt_by_split")]

    def __str__(self) -> str:
        return self.last_turn[:80]

    @property
    def last_turn(self) -> str:
        """The text of the user's last message."""
        return str(self.messages[-1]["content"])

    @property
    def earlier_turns(self) -> list[Message]:
        """Everything before the last message."""
        return list(self.messages[:-1])


class Response(models.Model):
    """One answer to a prompt, with where it came from.

    A response has one author: a policy, an annotator, or neither where it was imported. The same
    text sampled again from the same policy is the same response, sampled once more.
    """

    prompt = models.ForeignKey(Prompt, on_delete=models.CASCADE, related_name="responses")
    text = models.TextField()
    text_digest = models.CharField(max_length=64)
    policy = models.ForeignKey(
        Policy, null=True, blank=True, on_delete=models.PROTECT, related_name="responses"
    )
    annotator = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        null=True,
        blank=True,
        on_delete=models.PROTECT,
        related_name="responses",
    )
    times_sampled = models.PositiveIntegerField(default=1)
    sampling = models.JSONField(default=dict, blank=True, help_text="Parameters and seed.")
    token_ids = models.JSONField(null=True, blank=True, help_text="Exactly what was sampled.")
    logp = models.FloatField(null=True, blank=True, help_text="Summed over token_ids, in nats.")
    finish_reason = models.CharField(max_length=16, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(policy__isnull=True) | Q(annotator__isnull=True),
                name="response_one_author",
            ),
            models.UniqueConstraint(
                fields=["prompt", "policy", "text_digest"],
                condition=Q(policy__isnull=False),
                name="response_unique_per_policy",
            ),
            models.UniqueConstraint(
                fields=["prompt", "annotator", "text_digest"],
                condition=Q(annotator__isnull=False),
                name="response_unique_per_annotator",
            ),
            models.UniqueConstraint(
                fields=["prompt", "text_digest"],
                condition=Q(policy__isnull=True, annotator__isnull=True),
                name="response_unique_imported",
            ),
        ]

    def __str__(self) -> str:
        return self.text[:80]

    @property
    def words(self) -> int:
        """Length as annotators see it."""
        return len(self.text.split())
