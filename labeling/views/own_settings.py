"""A person's own settings: the language, the size of the text, the keys of the judging page."""

from collections.abc import Mapping

from django.conf import settings
from django.contrib import messages
from django.http import HttpResponse
from django.shortcuts import redirect, render
from django.utils import translation
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods

from labeling import keys
from labeling.models import TextSize
from labeling.personal_forms import ReadingForm, key_groups, sent_keys
from labeling.requests import PageRequest
from labeling.services import personalizing


@require_http_methods(["GET", "POST"])
def own_settings(request: PageRequest) -> HttpResponse:
    """Two forms on one page; `what` tells which was sent, or that keys shall be as at first."""
    if request.method != "POST":
        return _page(request)
    match request.POST.get("what"):
        case "reading":
            return _set_reading(request)
        case "keys":
            return _set_keys(request, sent_keys(request.POST))
        case "default_keys":
            return _set_keys(request, {})
        case _:
            return _page(request, status=422)


def _set_reading(request: PageRequest) -> HttpResponse:
    form = ReadingForm(request.POST)
    if not form.is_valid():
        return _page(request, form, status=422)
    language = form.cleaned_data["language"]
    size = TextSize(form.cleaned_data["text_size"])
    personalizing.set_reading(user=request.user, language=language, text_size=size)
    response = redirect("own_settings")
    # What was chosen on the way in must not outlive a choice that is the person's own.
    request.COOKIES.pop(settings.LANGUAGE_COOKIE_NAME, None)
    response.delete_cookie(settings.LANGUAGE_COOKIE_NAME, samesite="Lax")
    with translation.override(language or translation.get_language_from_request(request)):
        messages.success(request, _("Saved. This is how your pages look from now on."))
    return response


def _set_keys(request: PageRequest, changed: Mapping[str, str]) -> HttpResponse:
    try:
        personalizing.set_keys(user=request.user, changed=changed)
    except keys.BadKeys as error:
        return _page(request, sent=changed, errors=error.problems, status=422)
    messages.success(request, _("Saved: these are your keys on the judging page."))
    return redirect("own_settings")


def _page(
    request: PageRequest,
    form: ReadingForm | None = None,
    sent: Mapping[str, str] | None = None,
    errors: Mapping[str, str] | None = None,
    status: int = 200,
) -> HttpResponse:
    user = request.user
    current = {"language": user.language, "text_size": user.text_size}
    context = {
        "form": form or ReadingForm(initial=current),
        "groups": key_groups(user, sent or {}, errors or {}),
        "errors": errors,
        "named": keys.NAMED,
        "changed": bool(user.keys),
    }
    return render(request, "labeling/own_settings.html", context, status=status)
