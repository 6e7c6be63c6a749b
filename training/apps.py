from django.apps import AppConfig


class TrainingConfig(AppConfig):
    """Preferences in, a new policy out."""

    name = "training"
