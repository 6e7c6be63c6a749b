"""Members of a project: how much each may do, and their going. Their coming: inviting.py."""

from django.db import transaction

from labeling.models import Membership, Role
from labeling.services.assigning import give_all_back


class LastManager(Exception):
    """A project is never without a manager."""


@transaction.atomic
def set_daily_limit(*, membership: Membership, limit: int | None) -> None:
    """How many verdicts a day the member may give; None: as many as they like."""
    membership.daily_limit = limit
    membership.save(update_fields=["daily_limit"])


@transaction.atomic
def remove(*, membership: Membership) -> None:
    """Take a person out of a project, and what they hold there from them.

    Their judgments stay and count. LastManager, with nothing changed, where nobody would be left
    to manage: two managers who remove each other at once are one after the other here.
    """
    managers = Membership.objects.filter(project=membership.project_id, role=Role.MANAGER)
    # By key and locked: whoever is removed by another meanwhile is not in the list any more.
    locked = list(managers.select_for_update().order_by("pk").values_list("pk", flat=True))
    if locked == [membership.pk]:
        raise LastManager
    membership.delete()
    give_all_back(project=membership.project, annotator=membership.user)
