"""The page after signing in: one's projects, each with a line of how it stands."""

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from generation.models import BatchState
from labeling.models import Evaluation, PolicyState, Project, Role, User
from labeling.overview.lines import Line, at_rest, lines_of
from tests.builders import make_batch, make_comparison, make_policy, make_project, make_user
from training.models import Round, RoundState

pytestmark = pytest.mark.django_db


@pytest.fixture
def project() -> Project:
    made = make_project(name="Kitchen")
    make_policy(project=made, name="Starter", state=PolicyState.SERVING)
    return made


def make_round(project: Project, state: RoundState, **more) -> Round:
    policy = project.policies.order_by("pk")[0]
    number = project.rounds.count() + 1
    return Round.objects.create(
        project=project, number=number, start=policy, reference=policy, state=state, **more
    )


def line(project: Project) -> Line | None:
    return lines_of([project.pk]).get(project.pk)


def test_where_nothing_runs_or_waits_there_is_no_line(project: Project) -> None:
    assert line(project) is None
    make_round(project, RoundState.CANCELLED)
    make_batch(project=project)
    assert line(project) is None


def test_a_batch_is_told_and_a_round_comes_first(project: Project) -> None:
    batch = make_batch(project=project, state=BatchState.RUNNING)
    assert line(project) == Line(text="Batch 1 is being written", state="running")
    type(batch).objects.update(state=BatchState.FAILED)
    assert line(project) == Line(text="Batch 1 failed", state="warning")
    round_ = make_round(project, RoundState.RUNNING)
    assert line(project) == Line(text="Round 1 is about to begin", state="running")
    Round.objects.filter(pk=round_.pk).update(step=3, total_steps=60)
    assert line(project) == Line(text="Round 1 trains: 3 of 60 steps", state="running")
    Round.objects.filter(pk=round_.pk).update(state=RoundState.FAILED)
    assert line(project) == Line(text="Round 1 failed", state="warning")


def test_what_a_round_made_waits_until_people_were_asked(project: Project) -> None:
    made = make_policy(project=project, name="Better")
    make_round(project, RoundState.SUCCEEDED, policy=made)
    assert line(project) == Line(text="Better waits to be put into service", state="open")
    against = project.policies.get(state=PolicyState.SERVING)
    asked = Evaluation.objects.create(project=project, policy=made, against=against)
    assert line(project) == Line(text="Better is being evaluated", state="running")
    Evaluation.objects.update(problem="No prompt is left.")
    said = "The evaluation of Better has no responses yet"
    assert line(project) == Line(text=said, state="warning")
    Evaluation.objects.filter(pk=asked.pk).update(state="ended", passed_at=timezone.now())
    assert line(project) == Line(text="Better passed the gate: promote it", state="open")
    Evaluation.objects.filter(pk=asked.pk).update(passed_at=None)
    assert line(project) is None


def test_a_project_at_rest_says_what_there_is_to_do() -> None:
    assert at_rest(prompts=0, open_ones=0).text == "There are no prompts yet"
    assert at_rest(prompts=1, open_ones=0).text == "Nothing is left to judge"
    assert at_rest(prompts=1, open_ones=1).text == "Comparisons wait to be judged"


def home(client: Client, user: User) -> str:
    client.force_login(user)
    return client.get(reverse("home")).content.decode()


def test_managers_see_the_line_and_annotators_do_not(client: Client, project: Project) -> None:
    make_round(project, RoundState.FAILED)
    for role, seen in ((Role.MANAGER, True), (Role.ANNOTATOR, False)):
        user = make_user(role=role, project=project)
        user.memberships.create(project=make_project(), role=role)
        html = home(client, user)
        assert ("There are no prompts yet" in html) is seen
        assert ("Round 1 failed" in html) is seen
        assert "Kitchen" in html


def test_queries_do_not_grow_with_projects(client: Client, django_assert_max_num_queries) -> None:
    user = make_user()
    client.force_login(user)
    for _ in range(2):
        for _ in range(4):
            project = make_project()
            policy = make_policy(project=project, state=PolicyState.SERVING)
            made = make_policy(project=project)
            make_round(project, RoundState.SUCCEEDED, policy=made)
            Evaluation.objects.create(project=project, policy=made, against=policy)
            make_batch(project=project)
            make_comparison(project=project)
            user.memberships.create(project=project, role=Role.MANAGER)
        with django_assert_max_num_queries(13):
            client.get(reverse("home"))
