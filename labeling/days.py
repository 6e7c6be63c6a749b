"""Days as people at work count them."""

from datetime import datetime

from django.utils import timezone


def midnight() -> datetime:
    """When today began, in the site's time zone."""
    return timezone.localtime().replace(hour=0, minute=0, second=0, microsecond=0)
