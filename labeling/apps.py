from django.apps import AppConfig


class LabelingConfig(AppConfig):
    """The record of who preferred what, and the pages on which people make it."""

    name = "labeling"
