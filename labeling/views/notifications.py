"""Notifications: who is told what, and what became of each message."""

from dataclasses import dataclass

from django.contrib import messages
from django.core.paginator import Paginator
from django.http import HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_POST

from labeling.access import MANAGERS, project_for
from labeling.delivering import email_configured, event_name
from labeling.models import Delivery, Event, Project, Subscription
from labeling.notification_forms import EventsForm, SubscriptionForm
from labeling.requests import PageRequest
from labeling.services import notifying

PAGE = 25


@dataclass(frozen=True, kw_only=True)
class Made:
    """A subscription just made; its secret is in this one answer and nowhere else."""

    subscription: Subscription
    secret: str


@dataclass(frozen=True, kw_only=True)
class Told:
    """A subscription in the list, with what it is told of, and the form to change that."""

    subscription: Subscription
    events: list[str]
    form: EventsForm


def notifications(request: PageRequest, slug: str) -> HttpResponse:
    """The subscriptions, the form for another one, and the log of deliveries."""
    return _page(request, project_for(request.user, slug, MANAGERS), SubscriptionForm())


def subscribe(request: PageRequest, slug: str) -> HttpResponse:
    """Add an address. The secret stands in this one answer, so no redirect."""
    project = project_for(request.user, slug, MANAGERS)
    if request.method != "POST":
        return redirect("labeling:notifications", slug=slug)
    form = SubscriptionForm(request.POST)
    if not form.is_valid():
        return _page(request, project, form)
    try:
        subscription, secret = notifying.subscribe(
            project=project,
            channel=Subscription.Channel(form.cleaned_data["channel"]),
            target=form.cleaned_data["target"],
            events=form.cleaned_data["events"],
            actor=request.user,
        )
    except notifying.CannotSubscribe as reason:
        form.add_error("target", str(reason))
        return _page(request, project, form)
    return _page(
        request, project, SubscriptionForm(), Made(subscription=subscription, secret=secret)
    )


@require_POST
def change(request: PageRequest, slug: str, subscription: int) -> HttpResponse:
    """Choose what an address is told of."""
    found = _subscription(project_for(request.user, slug, MANAGERS), subscription)
    form = EventsForm(request.POST)
    if form.is_valid():
        notifying.change_events(subscription=found, events=form.cleaned_data["events"])
        messages.success(request, _("%(address)s is told of other things now.") % _named(found))
    else:
        messages.error(request, _("Nothing was changed: choose at least one event, or pause."))
    return redirect("labeling:notifications", slug=slug)


@require_POST
def pause(request: PageRequest, slug: str, subscription: int) -> HttpResponse:
    """Pause what goes on, resume what is paused."""
    found = _subscription(project_for(request.user, slug, MANAGERS), subscription)
    paused = request.POST.get("paused") == "yes"
    notifying.set_paused(subscription=found, paused=paused)
    words = (
        _("%(address)s is told nothing until you resume.")
        if paused
        else _("%(address)s is told again. What happened meanwhile is not told later.")
    )
    messages.success(request, words % _named(found))
    return redirect("labeling:notifications", slug=slug)


@require_POST
def unsubscribe(request: PageRequest, slug: str, subscription: int) -> HttpResponse:
    """Forget an address and its log."""
    found = _subscription(project_for(request.user, slug, MANAGERS), subscription)
    named = _named(found)
    notifying.unsubscribe(subscription=found)
    messages.success(request, _("%(address)s is told nothing any more.") % named)
    return redirect("labeling:notifications", slug=slug)


@require_POST
def test(request: PageRequest, slug: str, subscription: int) -> HttpResponse:
    """Send a message that says nothing."""
    found = _subscription(project_for(request.user, slug, MANAGERS), subscription)
    if found.paused:
        messages.warning(request, _("The subscription is paused: resume it first."))
    else:
        notifying.send_test(subscription=found)
        words = _("A test message is on its way to %(address)s. Reload the page to see it arrive.")
        messages.success(request, words % _named(found))
    return redirect("labeling:notifications", slug=slug)


@require_POST
def again(request: PageRequest, slug: str, delivery: int) -> HttpResponse:
    """Send a message once more."""
    project = project_for(request.user, slug, MANAGERS)
    found = get_object_or_404(Delivery, pk=delivery, subscription__project=project)
    if notifying.send_again(delivery=found):
        messages.success(request, _("It is sent again. Reload the page to see it arrive."))
    else:
        messages.info(request, _("That message is on its way already."))
    return redirect("labeling:notifications", slug=slug)


def _subscription(project: Project, number: int) -> Subscription:
    return get_object_or_404(project.subscriptions, pk=number)


def _named(subscription: Subscription) -> dict[str, str]:
    return {"address": subscription.target}


def _page(
    request: PageRequest, project: Project, form: SubscriptionForm, made: Made | None = None
) -> HttpResponse:
    subscriptions = project.subscriptions.order_by("pk").defer("secret")
    deliveries = Delivery.objects.filter(subscription__project=project)
    log = deliveries.select_related("subscription").defer("subscription__secret")
    page = Paginator(log.order_by("-pk"), PAGE).get_page(request.GET.get("page"))
    context = {
        "project": project,
        "form": form,
        "made": made,
        "subscriptions": [_told(one) for one in subscriptions],
        "email": email_configured(),
        "page": page,
        "log": [(one, event_name(one.event)) for one in page],
    }
    status = 422 if form.is_bound else 200
    return render(request, "labeling/notifications.html", context, status=status)


def _told(subscription: Subscription) -> Told:
    labels = [str(Event(name).label) for name in subscription.events]
    form = EventsForm(initial={"events": subscription.events}, auto_id=f"id_{subscription.pk}_%s")
    return Told(subscription=subscription, events=labels, form=form)
