"""What people send who invite others, come in, or manage members."""

from typing import Any

from django import forms
from django.contrib.auth.forms import UserCreationForm
from django.utils.translation import gettext_lazy as _

from labeling.models import Role, User
from labeling.services import inviting

ROLES = [
    (Role.ANNOTATOR, _("Annotator: judges")),
    (Role.MANAGER, _("Manager: judges, and runs the project")),
    (Role.CONSUMER, _("Consumer: exports preferences")),
]
MOST_A_DAY = 100_000


class InvitationForm(forms.Form):
    """Whom to let in, as what, and until when."""

    role = forms.ChoiceField(label=_("Role"), choices=ROLES, initial=Role.ANNOTATOR)
    note = forms.CharField(
        label=_("For whom"),
        max_length=120,
        required=False,
        help_text=_("Only managers see it: “Ada, from the kitchen”."),
    )
    days = forms.IntegerField(
        label=_("Open for, in days"),
        min_value=inviting.DAYS.start,
        max_value=inviting.DAYS.stop - 1,
        initial=inviting.USUAL_DAYS,
    )


class DailyLimitForm(forms.Form):
    """Empty: no limit."""

    daily_limit = forms.IntegerField(min_value=1, max_value=MOST_A_DAY, required=False)


class AccountForm(UserCreationForm):  # type: ignore[type-arg]  # no subscript at run time
    """A stranger's account: a name nobody has, and a password twice. Saved by inviting.py."""

    class Meta(UserCreationForm.Meta):
        model = User
        fields = ("username",)
        labels = {"username": _("Name")}
        help_texts = {"username": _("You sign in with it: letters, digits and @ . + - _ only.")}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fields["username"].widget.attrs |= {"autocapitalize": "none", "spellcheck": "false"}
        self.fields["password1"].help_text = _("At least 12 characters, and none that many use.")
        self.fields["password2"].label = _("The password again")
        self.fields["password2"].help_text = ""
