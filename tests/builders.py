"""Builders of the record for tests: keyword-only, with a domain default for everything.

They go through the services that the product uses wherever there is one, so what they make could
have come about in the product.
"""

import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from generation.models import Batch, BatchPolicy, BatchState
from generation.services import prepare
from jobs.run_dir import read_jsonl, write_json, write_jsonl
from labeling.chat import Message
from labeling.models import (
    Comparison,
    Evaluation,
    Judgment,
    Membership,
    Policy,
    PolicyState,
    Project,
    Prompt,
    Response,
    Role,
    Split,
    User,
)
from labeling.models.prompts import prompt_digest, split_of, text_digest
from labeling.services.assigning import lease_again
from labeling.services.comparing import NewComparison, create_comparisons
from labeling.services.evaluating import begin_judging, start_evaluation, take_pairs
from labeling.services.judging import record_judgment
from labeling.services.verdicts import Verdict

ROOT = Path(__file__).resolve().parent.parent
PASSWORD = "correct horse battery staple"
_numbers = itertools.count(1)


def make_project(
    *, slug: str = "", name: str = "", overlap: int = 1, held_out_percent: int = 15
) -> Project:
    """A project of its own slug."""
    slug = slug or f"project-{next(_numbers)}"
    return Project.objects.create(
        slug=slug,
        name=name or slug.replace("-", " ").capitalize(),
        overlap=overlap,
        held_out_percent=held_out_percent,
    )


def make_user(
    *,
    role: Role | str | None = None,
    project: Project | None = None,
    username: str = "",
    password: str = PASSWORD,
) -> User:
    """A person who can sign in; with a role, a member of the project (made if not given)."""
    number = next(_numbers)
    user = User.objects.create_user(
        username=username or f"{role or 'person'}-{number}", password=password
    )
    if role is not None or project is not None:
        Membership.objects.create(
            user=user, project=project or make_project(), role=role or Role.ANNOTATOR
        )
    return user


def make_policy(
    *,
    project: Project | None = None,
    name: str = "",
    state: PolicyState = PolicyState.CANDIDATE,
    parent: Policy | None = None,
    model_path: str = "",
    adapter_path: str = "",
) -> Policy:
    """A policy's row; there are no files behind it."""
    number = next(_numbers)
    return Policy.objects.create(
        project=project or make_project(),
        name=name or f"policy-{number}",
        model_path=model_path or f"/nowhere/policy-{number}",
        adapter_path=adapter_path,
        digest=f"{number:064x}",
        parent=parent,
        state=state,
    )


def make_prompt(
    *,
    project: Project | None = None,
    text: str = "",
    messages: Sequence[Message] | None = None,
    split: Split | None = None,
    external_id: str = "",
) -> Prompt:
    """A prompt of one user turn unless `messages` are given; its split by hash unless given."""
    project = project or make_project()
    text = text or f"What shall I cook on day {next(_numbers)}?"
    messages = list(messages or [Message(role="user", content=text)])
    digest = prompt_digest(messages)
    return Prompt.objects.create(
        project=project,
        external_id=external_id,
        messages=messages,
        digest=digest,
        split=split or split_of(digest, project.held_out_percent),
    )


def make_responses(
    *,
    prompt: Prompt | None = None,
    k: int = 2,
    texts: Sequence[str] | None = None,
    policy: Policy | None = None,
) -> list[Response]:
    """`k` distinct responses to one prompt (imported ones where no policy is given)."""
    prompt = prompt or make_prompt()
    texts = texts or [f"Answer {next(_numbers)} to that." for _ in range(k)]
    return Response.objects.bulk_create(
        Response(prompt=prompt, text=text, text_digest=text_digest(text), policy=policy)
        for text in texts
    )


def make_comparison(
    *,
    k: int = 2,
    project: Project | None = None,
    prompt: Prompt | None = None,
    texts: Sequence[str] | None = None,
    policy: Policy | None = None,
    overlap: int | None = None,
    purpose: Comparison.Purpose = Comparison.Purpose.STANDARD,
    priority: int = 0,
) -> Comparison:
    """An open comparison of `k` responses; overlap from the project unless given."""
    prompt = prompt or make_prompt(project=project)
    responses = make_responses(prompt=prompt, k=k, texts=texts, policy=policy)
    wanted = NewComparison(responses=responses, purpose=purpose, priority=priority)
    return create_comparisons(project=prompt.project, wanted=[wanted], overlap=overlap)[0]


def judge(
    *,
    comparison: Comparison,
    annotator: User | None = None,
    tiers: Sequence[Sequence[int]] | None = None,
    all_bad: bool = False,
    strength: int | None = None,
    rationale: str = "",
    active_ms: int = 4000,
    key: str = "",
) -> Judgment:
    """A judgment as the page would write it; by default slots are ranked in their order.

    ValueError where the comparison's overlap is full already.
    """
    annotator = annotator or make_user(role=Role.ANNOTATOR, project=comparison.project)
    lease = lease_again(comparison=comparison, annotator=annotator)
    if lease is None:
        raise ValueError(f"{comparison} has no free place for {annotator}")
    tiers = tiers or [[index] for index in range(comparison.slots.count())]
    verdict = Verdict(
        tiers=tiers,
        all_bad=all_bad,
        strength=strength,
        rationale=rationale,
        active_ms=active_ms,
    )
    judgment = record_judgment(
        project=comparison.project,
        annotator=annotator,
        token=lease.token,
        verdict=verdict,
        key=key or f"key-{next(_numbers)}",
    )
    comparison.refresh_from_db()
    return judgment


def make_batch(
    *,
    project: Project | None = None,
    policies: Mapping[Policy, int] | None = None,
    state: BatchState = BatchState.SUCCEEDED,
    **more: Any,
) -> Batch:
    """A batch's row with its shares; it has no job. By default one policy wrote it."""
    project = project or make_project()
    serving = project.policies.filter(state=PolicyState.SERVING).first()
    leading = serving or make_policy(project=project, state=PolicyState.SERVING)
    number = project.batches.count() + 1
    batch = Batch.objects.create(
        project=project, number=number, leading=leading, state=state, **more
    )
    for policy, weight in (policies or {leading: 1}).items():
        BatchPolicy.objects.create(batch=batch, policy=policy, weight=weight)
    return batch


def write_output(
    batch: Batch,
    *,
    say: Callable[[dict[str, Any], int], str | None] | None = None,
    scores: Callable[[dict[str, Any]], Sequence[dict[str, Any]]] = lambda row: (),
) -> None:
    """Fill a batch's run directory as a sampler does, which is not run.

    `say` gives the text for a prompt's row and an index, None where that fails; by default all
    texts differ. `scores` gives rows of scores.jsonl for one of responses.jsonl.
    """
    run_dir = prepare(batch)
    rows, failures = [], []
    for prompt in read_jsonl(run_dir / "prompts.jsonl"):
        for index, policy in enumerate(prompt["policies"]):
            text = say(prompt, index) if say else f"Answer {next(_numbers)} to that."
            place = {"prompt_id": prompt["id"], "index": index, "policy": policy}
            if text is None:
                failures.append({"prompt_id": prompt["id"], "indexes": [index], "reason": "no"})
                continue
            ids = {"prompt_token_ids": [1, 2, 3], "token_ids": [4, index, 5]}
            rest = {"logp": -2.5 - index, "finish_reason": "stop", "seed": index}
            rows.append({**place, "text": text, **ids, **rest})
    write_jsonl(run_dir / "responses.jsonl", rows)
    write_jsonl(run_dir / "scores.jsonl", [score for row in rows for score in scores(row)])
    write_jsonl(run_dir / "failures.jsonl", failures)
    digests = {str(share.policy_id): share.policy.digest for share in batch.shares.all()}
    write_json(run_dir / "manifest.json", {"policies": digests, "engine": "pen and paper 1.0"})


def real_data(name: str) -> Path:
    """A file of real data, from PREFLOOP_TEST_DATA or beside the checkout; skips without it."""
    folder = Path(os.environ.get("PREFLOOP_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / name).is_file():
        pytest.skip(f"{name} is not here: PREFLOOP_TEST_DATA names the folder of real data")
    return folder / name


def make_evaluation(
    *, project: Project | None = None, pairs: int = 10, wanted: int = 200, **options: Any
) -> Evaluation:
    """An evaluation that people judge: a pair of responses to each of so many held-out prompts."""
    project = project or make_project()
    serving = project.policies.filter(state=PolicyState.SERVING).first()
    serving = serving or make_policy(project=project, state=PolicyState.SERVING)
    new = make_policy(project=project, parent=serving)
    prompts = [make_prompt(project=project, split=Split.HELD_OUT) for _ in range(pairs)]
    if not pairs:
        make_prompt(project=project, split=Split.HELD_OUT)
    evaluation = start_evaluation(
        policy=new, actor=options.pop("actor", None), wanted=wanted, **options
    )
    answered = [
        (
            make_responses(prompt=prompt, k=1, policy=new)[0],
            make_responses(prompt=prompt, k=1, policy=serving)[0],
        )
        for prompt in prompts
    ]
    take_pairs(evaluation=evaluation, pairs=answered)
    begin_judging(evaluation=evaluation)
    evaluation.refresh_from_db()
    return evaluation


def judge_evaluation(evaluation: Evaluation, outcomes: str, annotator: User | None = None) -> None:
    """Judge its open comparisons in turn: "w" the new policy wins, "t" a tie, "b" both bad, "l"."""
    tiers = {"w": [[0], [1]], "l": [[1], [0]], "t": [[0, 1]], "b": [[0, 1]]}
    annotator = annotator or make_user(role=Role.ANNOTATOR, project=evaluation.project)
    left = evaluation.comparisons.filter(state=Comparison.State.OPEN).order_by("pk")
    for comparison, outcome in zip(list(left), outcomes, strict=False):
        judge(
            comparison=comparison,
            annotator=annotator,
            tiers=tiers[outcome],
            all_bad=outcome == "b",
        )
