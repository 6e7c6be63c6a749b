"""Builders of the record for tests: keyword-only, with a domain default for everything.

They go through the services that the product uses wherever there is one, so what they make could
have come about in the product.
"""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from labeling.chat import Message
from labeling.models import (
    Comparison,
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
from labeling.services.judging import Verdict, record_judgment

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
) -> Policy:
    """A policy's row; there are no files behind it."""
    number = next(_numbers)
    return Policy.objects.create(
        project=project or make_project(),
        name=name or f"policy-{number}",
        model_path=f"/nowhere/policy-{number}",
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
    judgment = record_judgment(lease=lease, verdict=verdict, key=key or f"key-{next(_numbers)}")
    comparison.refresh_from_db()
    return judgment


def real_data(name: str) -> Path:
    """A file of real data, from PREFLOOP_TEST_DATA or beside the checkout; skips without it."""
    folder = Path(os.environ.get("PREFLOOP_TEST_DATA") or ROOT.parent / "shared" / "data")
    if not (folder / name).is_file():
        pytest.skip(f"{name} is not here: PREFLOOP_TEST_DATA names the folder of real data")
    return folder / name
