"""A project with a serving policy, one that is ready for a round, and its manager at a client."""

import pytest
from django.test import Client

from labeling.models import PolicyState, Project, Role, Split
from labeling.overview import ROUND_PAIRS
from tests.builders import (
    judge,
    make_comparison,
    make_policy,
    make_project,
    make_prompt,
    make_user,
)


@pytest.fixture
def project(db) -> Project:
    project = make_project()
    make_policy(project=project, name="Starter", state=PolicyState.SERVING)
    return project


@pytest.fixture
def ready(project: Project) -> Project:
    annotator = make_user(role=Role.ANNOTATOR, project=project)
    for _ in range(ROUND_PAIRS):
        prompt = make_prompt(project=project, split=Split.TRAIN)
        judge(comparison=make_comparison(prompt=prompt), annotator=annotator)
    return project


@pytest.fixture
def held_out(ready: Project) -> Project:
    """A ready project with a held-out pair."""
    prompt = make_prompt(project=ready, split=Split.HELD_OUT)
    judge(comparison=make_comparison(prompt=prompt))
    return ready


@pytest.fixture
def manager(project: Project, client: Client) -> Client:
    client.force_login(make_user(role=Role.MANAGER, project=project))
    return client
