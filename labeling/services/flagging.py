"""What a manager does about flags. Raising them: judging.py."""

from django.db import transaction
from django.utils import timezone

from labeling.models import Comparison, Flag, User


@transaction.atomic
def resolve_flag(*, flag: Flag, retire: bool, actor: User) -> bool:
    """Deal with a flag; whether it was still open.

    `retire` takes its comparison out, judged or not: a flag mostly comes with a verdict, and what
    is broken, personal or unsafe must not be trained on because somebody judged it. The verdicts
    stay in the record; nobody is asked again, and no round or export reads them. All open flags
    of the comparison are settled with it. Otherwise only this flag is, and nothing else changes.
    """
    comparison = Comparison.objects.select_for_update().get(pk=flag.comparison_id)
    still_open = Flag.objects.filter(comparison=comparison, resolved_at__isnull=True)
    if not still_open.filter(pk=flag.pk).exists():
        return False
    settled = still_open if retire else still_open.filter(pk=flag.pk)
    settled.update(resolved_at=timezone.now(), resolved_by=actor)
    if retire:
        comparison.state = Comparison.State.RETIRED
        comparison.withdrawn = True
        comparison.save(update_fields=["state", "withdrawn"])
    return True
