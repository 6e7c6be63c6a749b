"""Rewritten answers: an annotator's own response, preferred to the one it was made from."""

import hashlib

from django.utils import timezone

from labeling.models import Comparison, Judgment, Response
from labeling.models.prompts import text_digest
from labeling.services.comparing import NewComparison, create_comparisons
from labeling.services.standing import Standing, lock, settle


def prefer_rewrite(*, judgment: Judgment, original: int, text: str) -> None:
    """Write the text, and that its annotator prefers it to the response `original`.

    The two make a comparison of their own that nobody else is asked about. A text that is the
    original's is no rewrite. Called in the transaction that writes the judgment.
    """
    before = Response.objects.get(pk=original)
    digest = text_digest(text)
    if digest == before.text_digest:
        return
    response, _new = Response.objects.get_or_create(
        prompt_id=before.prompt_id,
        annotator_id=judgment.annotator_id,
        text_digest=digest,
        defaults={"text": text},
    )
    wanted = NewComparison(responses=[response, before], purpose=Comparison.Purpose.REWRITE)
    project = judgment.comparison.project
    (comparison,) = create_comparisons(project=project, wanted=[wanted], overlap=1)
    preferred = Judgment.objects.create(
        comparison=comparison,
        annotator_id=judgment.annotator_id,
        tiers=[[0], [1]],
        shown_order=[0, 1],
        guidelines_id=judgment.guidelines_id,
        rewrite_of=judgment,
        key=hashlib.sha256(f"rewrite:{judgment.pk}".encode()).hexdigest(),
    )
    responses = [response.pk, before.pk]
    settle(Standing(comparison=comparison, judgments=[preferred], responses=responses))


def drop_rewrites(*, judgment: Judgment) -> None:
    """Take back the rewrites that came with a verdict; their comparisons go out of use."""
    for rewrite in Judgment.objects.current().filter(rewrite_of=judgment):
        Judgment.objects.filter(pk=rewrite.pk).update(superseded_at=timezone.now())
        comparison = lock(rewrite.comparison_id)
        comparison.state = Comparison.State.RETIRED  # nobody else is to judge it
        settle(Standing(comparison=comparison, judgments=[], responses=[]))
