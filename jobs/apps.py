from django.apps import AppConfig
from django.utils.module_loading import autodiscover_modules


class JobsConfig(AppConfig):
    """Work that outlives a request: one table, one worker command."""

    name = "jobs"

    def ready(self) -> None:
        """Let every app's tasks.py register its handlers."""
        autodiscover_modules("tasks")
