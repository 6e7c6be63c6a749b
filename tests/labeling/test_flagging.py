"""Flags: what a manager sees of them, and does about them."""

import pytest
from django.test import Client
from django.urls import reverse

from labeling.models import Comparison, Flag, Judgment, Project, Role, User
from labeling.services import judging
from labeling.services.assigning import lease_again
from labeling.services.flagging import resolve_flag
from labeling.services.verdicts import FlagGiven, Verdict
from labeling.views.flags import PAGE
from tests.builders import make_comparison, make_project, make_user

pytestmark = pytest.mark.django_db
States = Comparison.State


@pytest.fixture
def project() -> Project:
    return make_project()


@pytest.fixture
def manager(project: Project, client: Client) -> User:
    user = make_user(role=Role.MANAGER, project=project, username="dana")
    client.force_login(user)
    return user


def flagged(
    project: Project, *, verdict: bool = False, reasons: int = 1, note: str = "", text: str = ""
) -> list[Flag]:
    """Flags of one new comparison, about its first slot; with a verdict or else with a skip."""
    texts = [text or "Stir it.", "Do not."]
    comparison = make_comparison(project=project, texts=texts)
    annotator = make_user(role=Role.ANNOTATOR, project=project)
    given = [FlagGiven(reason=one, slot=0, note=note) for one in Flag.Reason.values[:reasons]]
    lease = lease_again(comparison=comparison, annotator=annotator)
    assert lease is not None
    token = lease.token
    if verdict:
        judging.record_judgment(
            project=project,
            annotator=annotator,
            token=token,
            verdict=Verdict(tiers=[[0], [1]], flags=given),
            key=str(token),
        )
    else:
        judging.skip(project=project, annotator=annotator, token=token, flags=given)
    return list(comparison.flags.order_by("pk"))


def page(client: Client, project: Project, query: str = "") -> str:
    answer = client.get(reverse("labeling:flags", args=[project.slug]) + query)
    assert answer.status_code == 200
    return answer.content.decode()


@pytest.mark.parametrize("verdict", [True, False])
def test_retiring_takes_the_comparison_out_and_keeps_what_was_judged(
    verdict: bool, project: Project, manager: User
) -> None:
    first, second = flagged(project, verdict=verdict, reasons=2)
    (other,) = flagged(project)
    assert resolve_flag(flag=first, retire=True, actor=manager)
    for flag in (first, second, other):
        flag.refresh_from_db()
    assert first.comparison.state == States.RETIRED
    assert first.resolved_by == second.resolved_by == manager
    assert other.resolved_at is None
    assert Judgment.objects.counted().count() == verdict


def test_leaving_it_settles_only_this_flag(project: Project, manager: User) -> None:
    first, second = flagged(project, reasons=2)
    assert resolve_flag(flag=first, retire=False, actor=manager)
    assert list(Flag.objects.open()) == [second]
    assert Comparison.objects.get().state == States.OPEN


def test_a_settled_flag_is_not_settled_again(project: Project, manager: User) -> None:
    (flag,) = flagged(project)
    assert resolve_flag(flag=flag, retire=False, actor=manager)
    assert not resolve_flag(flag=flag, retire=True, actor=make_user())
    flag.refresh_from_db()
    assert flag.resolved_by == manager
    assert Comparison.objects.get().state == States.OPEN


def test_the_page_tells_what_is_wrong_and_settles_it(
    project: Project, manager: User, client: Client
) -> None:
    (flag,) = flagged(
        project, note="It says <b>who</b>.", text="I am **Example**. <script>x</script>"
    )
    html = page(client, project)
    assert "1 is open" in html
    assert "It says &lt;b&gt;who&lt;/b&gt;." in html
    assert "<strong>Example</strong>" in html
    assert "<script>x" not in html
    assert "Do not." not in html, "only the answer that it is about"
    address = reverse("labeling:resolve_flag", args=[project.slug, flag.pk])
    assert "Say what to do" in client.post(address, follow=True).content.decode()
    assert "retired" in client.post(address, {"action": "retire"}, follow=True).content.decode()
    html = page(client, project)
    assert "Nothing to look at" in html
    assert "Settled by <bdi>dana</bdi>" in html


def test_flags_of_verdicts_that_were_taken_back_are_gone(
    project: Project, manager: User, client: Client
) -> None:
    flagged(project, verdict=True)
    judging.undo(judgment=Judgment.objects.get())
    assert "Nothing to look at" in page(client, project)


def test_pages_go_through_all_flags_in_few_queries(
    project: Project, manager: User, client: Client, django_assert_max_num_queries
) -> None:
    flags = [flagged(project)[0] for _ in range(PAGE + 2)]
    with django_assert_max_num_queries(9):
        first = page(client, project)
    assert first.count('<li class="card') == PAGE
    second = page(client, project, f"?before={flags[2].pk}")
    assert f"before={flags[2].pk}" in first
    assert second.count('<li class="card') == 2
    assert page(client, project, "?before=nonsense").count('<li class="card') == PAGE


def test_other_projects_and_other_roles_see_and_do_nothing(
    project: Project, manager: User, client: Client
) -> None:
    (flag,) = flagged(make_project())
    address = reverse("labeling:resolve_flag", args=[project.slug, flag.pk])
    assert client.post(address, {"action": "leave"}).status_code == 404
    client.force_login(make_user(role=Role.ANNOTATOR, project=project))
    assert client.get(reverse("labeling:flags", args=[project.slug])).status_code == 404
