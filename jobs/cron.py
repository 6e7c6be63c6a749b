"""Cron expressions, as pure functions."""

from datetime import UTC, datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError


class CronError(ValueError):
    """A schedule that cannot be meant. The message is for the user."""


def next_time(cron: str, time_zone: str, after: datetime) -> datetime:
    """The first time after `after` at which `cron` is due by the clocks of `time_zone`, in UTC.

    Where clocks are put forward over a due time it comes right after the gap; where they are put
    back it comes once. Raises CronError.
    """
    if len(cron.split()) != 5:
        # CronSim would read six fields as seconds first: a trailing field became the weekday.
        raise CronError(
            f"{cron!r} must have five fields: minute, hour, day of the month, month, weekday. "
            "For example, 30 2 * * 1 means Mondays at 02:30."
        )
    try:
        local: datetime = next(CronSim(cron, after.astimezone(ZoneInfo(time_zone))))
        return local.astimezone(UTC)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise CronError(f"{time_zone!r} is not a known time zone, such as Europe/Berlin") from None
    except CronSimError as error:
        raise CronError(f"{cron!r} is not a schedule: {error}") from None
    except StopIteration:
        raise CronError(f"{cron!r} never comes: no such day exists") from None
