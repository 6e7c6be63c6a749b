"""What managers send about who is told."""

from typing import Any

from django import forms
from django.utils.translation import gettext_lazy as _

from labeling.delivering import email_configured
from labeling.models import Event, Subscription


class EventsForm(forms.Form):
    """What an address is told of."""

    events = forms.MultipleChoiceField(
        label=_("Tell of"),
        choices=Event.choices,
        widget=forms.CheckboxSelectMultiple,
        error_messages={"required": _("Choose at least one event.")},
    )


class SubscriptionForm(EventsForm):
    """A further address. labeling.services.notifying looks at what is in it."""

    field_order = ("channel", "target", "events")

    channel = forms.ChoiceField(label=_("By"), choices=Subscription.Channel.choices)
    target = forms.CharField(
        label=_("Address"),
        max_length=500,
        help_text=_("Of the program that takes the messages, as https://example.org/hook."),
    )

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["events"].initial = [Event.ROUND_FINISHED, Event.ROUND_FAILED]
        self.fields["target"].widget.attrs |= {"autocapitalize": "none", "spellcheck": "false"}
        if email_configured():
            self.fields["target"].help_text = _(
                "Of the program that takes the messages, as https://example.org/hook; or a "
                "person's e-mail address."
            )
