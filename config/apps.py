from django.apps import AppConfig


class ConfigConfig(AppConfig):
    """The site itself: the commands and system checks that see every app."""

    name = "config"
    verbose_name = "Site"
