"""What people choose for themselves. The only writer of a user's own settings."""

from collections.abc import Mapping

from labeling import keys
from labeling.models import TextSize, User


def set_reading(*, user: User, language: str, text_size: TextSize) -> None:
    """The language of the interface ("": what the browser asks for) and how large text is."""
    user.language = language
    user.text_size = text_size
    user.save(update_fields=["language", "text_size"])


def set_keys(*, user: User, changed: Mapping[str, str]) -> None:
    """The person's keys; what is as it was made is not stored. keys.BadKeys, nothing written."""
    user.keys = keys.check(changed)
    user.save(update_fields=["keys"])
