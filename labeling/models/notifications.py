"""Who is told what happens in a project, and what became of each message."""

from django.conf import settings
from django.db import models
from django.utils.translation import gettext_lazy

from labeling.models.projects import Project


class Event(models.TextChoices):
    """What a project tells others."""

    ROUND_FINISHED = "round_finished", gettext_lazy("A round finished")
    ROUND_FAILED = "round_failed", gettext_lazy("A round failed")
    GATE_PASSED = "gate_passed", gettext_lazy("A policy passed the gate")
    PROMOTED = "promoted", gettext_lazy("Another policy serves")
    QUEUE_LOW = "queue_low", gettext_lazy("Few comparisons are left to judge")
    AGREEMENT_LOW = "agreement_low", gettext_lazy("Annotators disagree often")


class Subscription(models.Model):
    """An address that is told of a project's events. Only labeling.services.notifying writes it."""

    class Channel(models.TextChoices):
        WEBHOOK = "webhook", gettext_lazy("Webhook")
        EMAIL = "email", gettext_lazy("E-mail")

    project = models.ForeignKey(Project, on_delete=models.CASCADE, related_name="subscriptions")
    channel = models.CharField(max_length=8, choices=Channel)
    target = models.CharField(max_length=500, help_text="A URL or an e-mail address.")
    secret = models.CharField(max_length=64, blank=True, help_text="Signs a webhook's messages.")
    events = models.JSONField(default=list, help_text="Of labeling.models.Event.")
    paused = models.BooleanField(default=False)
    created_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, blank=True, on_delete=models.PROTECT, related_name="+"
    )
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["project", "channel", "target"], name="subscription_once"
            )
        ]

    def __str__(self) -> str:
        return f"{self.get_channel_display()} to {self.target}"


class Delivery(models.Model):
    """One message to one address, with what became of it."""

    class State(models.TextChoices):
        WAITING = "waiting", gettext_lazy("Waiting")
        DELIVERED = "delivered", gettext_lazy("Delivered")
        FAILED = "failed", gettext_lazy("Failed")

    subscription = models.ForeignKey(
        Subscription, on_delete=models.CASCADE, related_name="deliveries"
    )
    key = models.UUIDField(unique=True, help_text="The same in every try: for the receiver.")
    event = models.CharField(max_length=20, choices=Event)
    payload = models.JSONField(default=dict)
    state = models.CharField(max_length=10, choices=State, default=State.WAITING)
    attempts = models.PositiveSmallIntegerField(default=0)
    status = models.PositiveSmallIntegerField(null=True, blank=True, help_text="HTTP status.")
    problem = models.CharField(max_length=500, blank=True)
    took_ms = models.PositiveIntegerField(null=True, blank=True)
    created_at = models.DateTimeField(auto_now_add=True)
    tried_at = models.DateTimeField(null=True, blank=True)

    class Meta:
        indexes = [models.Index(fields=["subscription", "-id"], name="delivery_newest")]

    def __str__(self) -> str:
        return f"{self.event} to {self.subscription}"
