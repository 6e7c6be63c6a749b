"""Batches: start one, take in what it wrote. The only writer of Batch rows."""

from collections import defaultdict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from django.conf import settings
from django.db import IntegrityError, transaction
from django.db.models import Exists, Max, OuterRef, QuerySet
from django.utils import timezone

from generation.models import LIVE_BATCH_STATES, Batch, BatchState
from generation.pairing import groups
from jobs import queue
from jobs.run_dir import read_json, read_jsonl, write_json, write_jsonl
from labeling.models import Policy, PolicyState, Project, Prompt, Response, User
from labeling.models.prompts import text_digest
from labeling.policy_files import is_small
from labeling.services.comparing import NewComparison, create_comparisons
from labeling.services.promoting import serving_policy

KIND = "generation.batch"


class CannotGenerate(Exception):
    """Why no batch was started; the message is for the user."""


def unanswered(policy: Policy) -> QuerySet[Prompt]:
    """The project's prompts that this policy has not answered yet."""
    answered = Response.objects.filter(prompt=OuterRef("pk"), policy=policy)
    return policy.project.prompts.filter(~Exists(answered)).order_by("id")


def start_batch(
    *,
    policy: Policy,
    actor: User | None,
    k: int = 4,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 160,
) -> Batch:
    """Have a policy answer the prompts it has not answered, k times each, and compare these.

    CannotGenerate where a batch of the project is live already or nothing is unanswered.
    """
    total = unanswered(policy).count()
    if total == 0:
        raise CannotGenerate(f"{policy.name} has answered every prompt; import more prompts.")
    try:
        with transaction.atomic():
            batch = Batch.objects.create(
                project=policy.project,
                number=_next_number(policy.project),
                policy=policy,
                k=k,
                temperature=temperature,
                top_p=top_p,
                max_new_tokens=max_new_tokens,
                total=total,
                started_by=actor,
            )
            batch.seed = batch.pk
            batch.run_dir = str(settings.RUNS_DIR / f"batch-{batch.pk:06d}")
            job = queue.enqueue(kind=KIND, payload={"batch": batch.pk}, lane="gpu")
            batch.job_id = job.pk
            batch.save(update_fields=["seed", "run_dir", "job_id"])
    except IntegrityError:
        raise CannotGenerate(
            "A batch of this project is waiting or running; wait for it, or cancel it."
        ) from None
    return batch


def sampling_of(batch: Batch) -> dict[str, Any]:
    """How a batch samples, as arguments of `start_batch`."""
    return {name: getattr(batch, name) for name in ("k", "temperature", "top_p", "max_new_tokens")}


def follow_up(*, batch: Batch) -> None:
    """Where another policy came to serve while this batch ran, have that one write candidates."""
    serving = serving_policy(batch.project)
    if serving is not None and serving != batch.policy:
        with suppress(CannotGenerate):
            start_batch(policy=serving, actor=None, **sampling_of(batch))


def cancel_batch(*, batch: Batch) -> None:
    """Ask for the batch to stop; what it has written stays in its run directory."""
    if batch.job_id is not None:
        queue.request_cancel(batch.job_id)


def prepare(batch: Batch) -> Path:
    """Write the batch's run directory, unless an earlier attempt did."""
    run_dir = Path(batch.run_dir)
    if not (run_dir / "spec.json").exists():
        run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        total = write_jsonl(run_dir / "prompts.jsonl", _prompt_rows(batch))
        Batch.objects.filter(pk=batch.pk).update(total=total)
        write_json(run_dir / "spec.json", _spec(batch))
    Batch.objects.filter(pk=batch.pk, state=BatchState.QUEUED).update(
        state=BatchState.RUNNING, started_at=timezone.now()
    )
    return run_dir


def note_progress(*, batch: Batch, done: int) -> None:
    """How many prompts have been answered so far."""
    Batch.objects.filter(pk=batch.pk, state=BatchState.RUNNING).update(done=done)


def end_batch(*, batch: Batch, state: BatchState, error: str = "") -> None:
    """Bring a live batch to an end that is not success."""
    Batch.objects.filter(pk=batch.pk, state__in=LIVE_BATCH_STATES).update(
        state=state, error=error, finished_at=timezone.now()
    )


@transaction.atomic
def take_in(*, batch: Batch) -> int:
    """Store the batch's responses and compare them; returns the number of comparisons.

    Those of a policy that was replaced meanwhile are stored and not compared. All or nothing,
    and once only: a batch that has ended is left as it is.
    """
    batch = Batch.objects.select_for_update().select_related("policy", "project").get(pk=batch.pk)
    if not batch.live:
        return 0
    run_dir = Path(batch.run_dir)
    engine = _engine(run_dir)
    samples: dict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in read_jsonl(run_dir / "responses.jsonl"):
        samples[int(row["prompt_id"])].append(row)
    comparisons = []
    compare = batch.policy.state == PolicyState.SERVING
    for responses in _store(batch, samples, engine):
        if not compare:
            continue
        for group in groups(
            responses, size=batch.project.comparison_size, seed=responses[0].prompt_id
        ):
            comparisons.append(NewComparison(responses=group))
    create_comparisons(project=batch.project, wanted=comparisons)
    batch.state = BatchState.SUCCEEDED
    batch.done = len(samples)
    batch.failures = _failures(run_dir)
    batch.finished_at = timezone.now()
    batch.save(update_fields=["state", "done", "failures", "finished_at"])
    return len(comparisons)


def _store(
    batch: Batch, samples: dict[int, list[dict[str, Any]]], engine: str
) -> Iterator[list[Response]]:
    """One prompt's responses at a time, identical ones merged, empty ones left out."""
    rows: dict[tuple[int, str], Response] = {}
    for prompt, written in sorted(samples.items()):
        for row in sorted(written, key=lambda row: int(row["index"])):
            key = (prompt, text_digest(row["text"]))
            if key in rows:
                rows[key].times_sampled += 1
            elif row["text"].strip():
                rows[key] = _response(batch, prompt, row, engine)
    stored = Response.objects.bulk_create(list(rows.values()), batch_size=500)
    by_prompt: dict[int, list[Response]] = defaultdict(list)
    for response in stored:
        by_prompt[response.prompt_id].append(response)
    yield from by_prompt.values()


def _response(batch: Batch, prompt: int, row: dict[str, Any], engine: str) -> Response:
    return Response(
        prompt_id=prompt,
        text=row["text"],
        text_digest=text_digest(row["text"]),
        policy=batch.policy,
        sampling={
            "batch": batch.number,
            "engine": engine,
            "index": row["index"],
            "seed": row["seed"],
            "temperature": batch.temperature,
            "top_p": batch.top_p,
            "max_new_tokens": batch.max_new_tokens,
        },
        token_ids=row["token_ids"],
        logp=row["logp"],
        finish_reason=row["finish_reason"],
    )


def _next_number(project: Project) -> int:
    Project.objects.select_for_update().get(pk=project.pk)
    return (project.batches.aggregate(last=Max("number"))["last"] or 0) + 1


def _prompt_rows(batch: Batch) -> Iterator[dict[str, Any]]:
    for pk, messages in unanswered(batch.policy).values_list("pk", "messages").iterator():
        yield {"id": str(pk), "messages": messages}


def _spec(batch: Batch) -> dict[str, Any]:
    policy = batch.policy
    return {
        "schema": 1,
        "sampler": "transformers",
        "policy": {
            "model": policy.model_path,
            "adapter": policy.adapter_path or None,
            "digest": policy.digest,
        },
        "k": batch.k,
        "temperature": batch.temperature,
        "top_p": batch.top_p,
        "max_new_tokens": batch.max_new_tokens,
        "seed": batch.seed,
        "batch_prompts": 32,
        "system": None,
        "dtype": "float32" if is_small(Path(policy.model_path)) else "bfloat16",
    }


def _engine(run_dir: Path) -> str:
    return str(read_json(run_dir / "manifest.json")["engine"])


def _failures(run_dir: Path) -> int:
    path = run_dir / "failures.jsonl"
    return sum(1 for _ in read_jsonl(path)) if path.exists() else 0
