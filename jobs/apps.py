from django.apps import AppConfig


class JobsConfig(AppConfig):
    """Work that outlives a request: one table, one worker command."""

    name = "jobs"
