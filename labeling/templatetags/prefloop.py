"""Template tags and filters of the site."""

from datetime import datetime
from typing import Any

from django import template
from django.template import Context
from django.urls import NoReverseMatch, reverse
from django.utils import formats, timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import pgettext

from labeling.access import memberships_of
from labeling.excerpts import SPEAKERS
from labeling.models import Membership, Role, User
from labeling.rendering import to_html, visible

register = template.Library()

THIN_SPACE = "\u2009"
MINUTE, HOUR, DAY = 60, 3600, 86400  # seconds
# A member's own front page of a project, by role; the first that exists.
FRONT_PAGES = {
    Role.MANAGER: ("labeling:project", "labeling:judge"),
    Role.ANNOTATOR: ("labeling:judge",),
    Role.CONSUMER: ("labeling:preferences",),
}


@register.filter
def thin(value: float | None) -> str:
    """A count with thin spaces between its thousands; nothing for None."""
    return "" if value is None else f"{int(value):,}".replace(",", THIN_SPACE)


@register.filter
def percent(share: float | None) -> str:
    """A share of 1 as whole per cent; a dash where there is none."""
    return "\u2013" if share is None else f"{round(100 * share)}{THIN_SPACE}%"


@register.filter
def duration(seconds: float | None) -> str:
    """Seconds in the two largest units that matter: "2 min 5 s"; a dash for None."""
    if seconds is None:
        return "\u2013"
    whole = round(seconds)
    if whole < MINUTE:
        return _("%(seconds)s s") % {"seconds": whole}
    if whole < HOUR:
        parts = {"minutes": whole // MINUTE, "seconds": whole % MINUTE}
        return _("%(minutes)s min %(seconds)s s") % parts
    return _("%(hours)s h %(minutes)s min") % {
        "hours": whole // HOUR,
        "minutes": whole % HOUR // MINUTE,
    }


@register.filter
def ago(when: datetime | None) -> str | SafeString:
    """How long ago, in a <time> element that tells the exact time on hover."""
    if when is None:
        return _("never")
    local = timezone.localtime(when)
    return format_html(
        '<time datetime="{}" title="{}">{}</time>',
        local.isoformat(timespec="seconds"),
        formats.date_format(local, pgettext("format of an exact time", "j F Y, H:i:s T")),
        _ago_in_words(local),
    )


@register.filter
def initials(user: User) -> str:
    """Up to two letters that stand for a person."""
    words = user.get_full_name().split()
    letters = "".join(word[0] for word in words[:2]) if len(words) > 1 else user.get_username()[:2]
    return letters.upper()


@register.filter
def speaker(role: str) -> str:
    """Who speaks in a turn of a conversation; roles without a word go by their own names."""
    return str(SPEAKERS.get(role, role.capitalize()))


@register.filter
def markdown(text: str) -> SafeString:
    """Hostile Markdown as sanitized HTML, for an element of class "prose"."""
    return to_html(text)


@register.filter
def as_written(text: str) -> str:
    """The text itself, with what could hide or turn it around spelled out."""
    return visible(text)


@register.simple_tag
def project_home(membership: Membership) -> str:
    """Where this member begins in the project."""
    return first_url(FRONT_PAGES[Role(membership.role)], membership.project.slug)


@register.inclusion_tag("components/project_menu.html", takes_context=True)
def project_menu(context: Context) -> dict[str, Any]:
    """The project's name, opening a menu of all the user's projects."""
    return {"project": context["project"], "memberships": memberships_of(context["user"])}


@register.inclusion_tag("components/nav_link.html", takes_context=True)
def nav_link(context: Context, route: str, label: str) -> dict[str, Any]:
    """A link of the project navigation, marked where the page is at or below it."""
    url = first_url((route,), context["project"].slug, missing="")
    front = route == FRONT_PAGES[Role.MANAGER][0]
    path = context["request"].path
    return {
        "url": url,
        "label": label,
        "current": path == url if front else bool(url) and path.startswith(url),
    }


def first_url(routes: tuple[str, ...], slug: str, missing: str = "/") -> str:
    """The first of the routes that this installation has, for the project; else `missing`."""
    for route in routes:
        try:
            return reverse(route, kwargs={"slug": slug})
        except NoReverseMatch:
            continue
    return missing


def _ago_in_words(when: datetime) -> str:
    seconds = (timezone.now() - when).total_seconds()
    if seconds < MINUTE:
        return _("just now")
    if seconds < HOUR:
        return _("%(number)s min ago") % {"number": int(seconds // MINUTE)}
    if seconds < DAY:
        return _("%(number)s h ago") % {"number": int(seconds // HOUR)}
    if seconds < 7 * DAY:
        return _("%(number)s d ago") % {"number": int(seconds // DAY)}
    return formats.date_format(when, pgettext("format of a day", "j M Y"))
