"""Batches: start one, take in what it wrote. The only writer of Batch rows."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import Max
from django.utils import timezone
from django.utils.translation import gettext as _

from generation.choosing import by_server, choose
from generation.models import (
    AUTOMATIC,
    ENDED_EARLY,
    LIVE_BATCH_STATES,
    MOST_WEIGHT,
    SAMPLING,
    Batch,
    BatchPolicy,
    BatchState,
    check_storable,
)
from generation.run_dirs import Output, Written, prompt_rows, spec_of
from generation.selecting import NOT_ANSWERED, Selection, missing_ids, select_prompts
from generation.storing import comparisons_of, pairs_of, store
from jobs import queue
from jobs.run_dir import write_json, write_jsonl
from labeling.models import Comparison, Evaluation, Policy, Project, User
from labeling.services.comparing import create_comparisons
from labeling.services.continuing import continue_conversations
from labeling.services.deleting import FilesDeleted, ensure_files
from labeling.services.evaluating import take_pairs
from labeling.services.promoting import serving_policy

KIND = "generation.batch"
ATTEMPTS = 5
# A server that is down is waited for over an hour (tasks.WAIT): it keeps no GPU from others.
SERVER_ATTEMPTS = 10
CHECKED = {"seed", *SAMPLING}

Errors = dict[str, list[str]]
Fenced = Callable[[], AbstractContextManager[None]]


class CannotGenerate(Exception):
    """Why no batch was started; the message is for the user.

    `errors` has the messages by the argument of `start_batch`, or the part of its selection, that
    is at fault; "" where none is.
    """

    def __init__(self, errors: Errors) -> None:
        super().__init__(" ".join(message for found in errors.values() for message in found))
        self.errors = errors


class BatchLive(CannotGenerate):
    """Another batch of the project waits or runs."""

    def __init__(self) -> None:
        super().__init__(
            {"": [_("A batch of this project is waiting or running; wait for it, or cancel it.")]}
        )


def start_batch(
    *,
    project: Project,
    policies: Mapping[Policy, int],
    actor: User | None,
    origin: Batch.Origin = Batch.Origin.MANUAL,
    selection: Selection = NOT_ANSWERED,
    evaluation: Evaluation | None = None,
    seed: int | None = None,
    k: int = 4,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = 160,
    stop: Sequence[str] = (),
    system: str = "",
    pairing: str = Comparison.Pairing.RANDOM,
    random_percent: int = 20,
) -> Batch:
    """Have policies, by weight, answer the selected prompts k times each, and compare these.

    With an evaluation the comparisons are its own, each of one response of either policy.

    CannotGenerate where something asked for cannot be or no prompt is left by the selection;
    BatchLive where a batch of the project is live already.
    """
    leading = serving_policy(project)
    if leading is None:
        raise CannotGenerate({"": [_("No policy serves yet, so nobody can answer.")]})
    batch = Batch(
        project=project,
        leading=leading,
        origin=origin,
        evaluation=evaluation,
        selection=selection.as_json(),
        seed=0 if seed is None else seed,
        k=k,
        temperature=temperature,
        top_p=top_p,
        max_new_tokens=max_new_tokens,
        stop=list(stop),
        system=system,
        pairing=pairing,
        random_percent=random_percent,
        started_by=actor,
    )
    _check(batch, policies, selection)
    asked = select_prompts(project, selection, leading=leading, policies=policies.keys())
    batch.total = asked.count()
    if not batch.total:
        raise CannotGenerate({"": [_nothing_to_ask(selection, leading)]})
    _queue(batch, policies, derive_seed=seed is None)
    return batch


def _check(batch: Batch, policies: Mapping[Policy, int], selection: Selection) -> None:
    """Everything that is wrong at once, each at its name."""
    errors: Errors = {part: [words] for part, words in selection.problems().items()}
    try:
        check_storable(selection.search)
    except ValidationError as error:
        errors["search"] = error.messages
    if not errors and (missing := missing_ids(batch.project, selection)):
        words = (
            _("The project has no prompt %(numbers)s.")
            if len(missing) <= 5
            else _("The project has no prompt %(numbers)s and more.")
        )
        errors["ids"] = [words % {"numbers": ", ".join(map(str, missing[:5]))}]
    try:
        batch.clean_fields({field.name for field in batch._meta.fields} - CHECKED)
    except ValidationError as error:
        errors |= error.message_dict
    if problem := _wrong_policies(batch.project, policies):
        errors["policies"] = [problem]
    if errors:
        raise CannotGenerate(errors)


def _wrong_policies(project: Project, policies: Mapping[Policy, int]) -> str:
    if not policies:
        return _("Name a policy that answers.")
    if any(policy.project_id != project.pk for policy in policies):
        return _("A policy answers the prompts of its own project only.")
    if problem := _deleted(policies):
        return problem
    if not all(1 <= weight <= MOST_WEIGHT for weight in policies.values()):
        return _("Weights are whole numbers from 1 to %(most)s.") % {"most": MOST_WEIGHT}
    return ""


def _deleted(policies: Iterable[Policy]) -> str:
    try:
        for policy in policies:
            ensure_files(policy)
    except FilesDeleted as reason:
        return str(reason)
    return ""


def _nothing_to_ask(selection: Selection, leading: Policy) -> str:
    if selection == NOT_ANSWERED:
        words = _("%(policy)s has answered every prompt; import more prompts.")
        return words % {"policy": leading.name}
    return _("No prompt is left by this selection.")


def _queue(batch: Batch, policies: Mapping[Policy, int], *, derive_seed: bool) -> None:
    """Write the batch, its shares and its job, in one transaction."""
    project, waits = batch.project, by_server()
    if project.batches.filter(state__in=LIVE_BATCH_STATES).exists():
        raise BatchLive
    try:
        with transaction.atomic():
            batch.number = _next_number(project)
            batch.save()
            BatchPolicy.objects.bulk_create(
                BatchPolicy(batch=batch, policy=policy, weight=weight)
                for policy, weight in policies.items()
            )
            if derive_seed:
                batch.seed = batch.pk
            batch.run_dir = str(settings.RUNS_DIR / f"batch-{batch.pk:06d}")
            batch.job_id = _enqueue(batch, waits=waits)
            batch.save(update_fields=["seed", "run_dir", "job_id"])
    except IntegrityError:
        raise BatchLive from None


def _enqueue(batch: Batch, *, waits: bool) -> int:
    return queue.enqueue(
        kind=KIND,
        payload={"batch": batch.pk},
        # A server needs none of this machine's GPU: waiting for it must not hold the lane.
        lane="light" if waits else "gpu",
        max_attempts=SERVER_ATTEMPTS if waits else ATTEMPTS,
    ).pk


def _next_number(project: Project) -> int:
    Project.objects.select_for_update(no_key=True).get(pk=project.pk)
    return (project.batches.aggregate(last=Max("number"))["last"] or 0) + 1


def cancel_batch(*, batch: Batch) -> None:
    """Ask for the batch to stop; what it has written stays in its run directory."""
    if batch.job_id is not None:
        queue.request_cancel(batch.job_id)


def resumable(batch: Batch) -> bool:
    """Whether a batch that ended too early had begun, so that it can go on where it stopped."""
    begun = bool(batch.run_dir) and (Path(batch.run_dir) / "spec.json").exists()
    return batch.state in ENDED_EARLY and begun


def resume_batch(*, batch: Batch, actor: User | None) -> Batch:
    """Have a batch that failed or was cancelled go on: only what it lacks is asked and taken in.

    CannotGenerate where it cannot; BatchLive where it, or another one of the project, is live.
    """
    try:
        with transaction.atomic():
            Project.objects.select_for_update(no_key=True).get(pk=batch.project_id)
            batch.refresh_from_db()
            if batch.live:
                raise BatchLive
            if batch.state not in ENDED_EARLY:
                words = _("Batch %(number)s has succeeded: it lacks nothing.")
                raise CannotGenerate({"": [words % {"number": batch.number}]})
            if not resumable(batch):
                words = _(
                    "Batch %(number)s had not begun, or its run directory is gone. Start another "
                    "one."
                )
                raise CannotGenerate({"": [words % {"number": batch.number}]})
            if problem := _deleted(batch.policies.all()):
                raise CannotGenerate({"": [problem]})
            batch.state, batch.error, batch.resumed_by = BatchState.QUEUED, "", actor
            batch.started_at = batch.finished_at = None
            batch.save(update_fields=["state", "error", "resumed_by", "started_at", "finished_at"])
            batch.job_id = _enqueue(batch, waits=batch.sampler == "server")
            batch.save(update_fields=["job_id"])
    except IntegrityError:
        raise BatchLive from None
    return batch


def prepare(batch: Batch) -> Path:
    """Choose the sampler and write the run directory, unless an earlier attempt did."""
    if not batch.sampler:
        choice = choose()
        batch.sampler, batch.sampler_why = choice.sampler, choice.why[:500]
        batch.save(update_fields=["sampler", "sampler_why"])
    run_dir = Path(batch.run_dir)
    if not (run_dir / "spec.json").exists():
        run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        batch.total = write_jsonl(run_dir / "prompts.jsonl", prompt_rows(batch))
        batch.save(update_fields=["total"])
        write_json(run_dir / "spec.json", spec_of(batch))
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


def take_in(
    *,
    batch: Batch,
    fenced: Fenced = transaction.atomic,
    ended: Callable[[Batch], None] = lambda batch: None,
) -> None:
    """Store the batch's responses and compare them, some prompts at a time, each once only.

    Nothing is stored unless the whole output is sound. Each step is a short `fenced` transaction
    that notes how far it came: whoever judges meanwhile hardly waits for it, and a rerun goes on
    from there. `ended` is called in the last one. Comparisons of what a policy that was replaced
    wrote are made retired, and not counted. A batch that has ended is left as it is.
    """
    batch.refresh_from_db()
    if not batch.live:
        return
    output = Output(Path(batch.run_dir))
    for chunk in output.chunks(after=batch.taken):
        with fenced():
            _take_in(batch, output, chunk)
    with fenced():
        _lock(batch)
        batch.done, batch.failures = output.answered, output.failed
        batch.comparisons = batch.comparisons or 0
        batch.engine = output.engine
        batch.state = BatchState.SUCCEEDED
        batch.finished_at = timezone.now()
        names = ["done", "failures", "comparisons", "engine", "state", "finished_at"]
        batch.save(update_fields=names)
        ended(batch)


def _take_in(batch: Batch, output: Output, chunk: Sequence[Written]) -> None:
    _lock(batch)
    stored = store(batch, output, chunk)
    serves = serving_policy(batch.project) == batch.leading
    if batch.evaluation is not None:
        made = take_pairs(evaluation=batch.evaluation, pairs=pairs_of(batch.evaluation, stored))
    else:
        made = create_comparisons(
            project=batch.project, wanted=comparisons_of(batch, stored), retired=not serves
        )
    if serves and batch.evaluation is None:
        continue_conversations(responses=[one.response for one in stored if one.new])
    batch.taken += len(chunk)
    batch.comparisons = (batch.comparisons or 0) + (len(made) if serves else 0)
    if batch.origin in AUTOMATIC:
        compared = {comparison.prompt_id for comparison in made}
        batch.barren += [one.prompt for one in chunk if one.prompt not in compared]
    batch.save(update_fields=["taken", "comparisons", "barren"])


def _lock(batch: Batch) -> None:
    """Whoever promotes another policy waits, and then finds the comparisons made here.

    RuntimeError where somebody else has ended the batch, or takes it in.
    """
    Project.objects.select_for_update(no_key=True).get(pk=batch.project_id)
    now = Batch.objects.select_for_update(of=("self",)).get(pk=batch.pk)
    if not now.live or now.taken != batch.taken:
        raise RuntimeError(f"{batch} is {now.state}, with {now.taken} prompts taken in already")
