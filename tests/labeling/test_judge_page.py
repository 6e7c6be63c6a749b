"""The judging page, as a browser without scripts and as htmx see it."""

import re
import uuid
from collections.abc import Sequence
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from labeling.forms import SCALE
from labeling.models import Comparison, Judgment, Lease, Preference, Project, Role, Skip, User
from labeling.services.assigning import shown_order
from tests.builders import judge, make_comparison, make_policy, make_project, make_user

HTMX = {"HX-Request": "true"}
# Session, user, membership; own lease, slots, today, left, held.
NEXT_WITH_OWN_LEASE = 8
# Taking a lease is a transaction of its own; so is writing a judgment and its preferences.
NEXT_WITH_NEW_LEASE = 16
SUBMIT_AND_NEXT = 38
pytestmark = pytest.mark.django_db


@pytest.fixture
def project() -> Project:
    return make_project(slug="kitchen", name="Kitchen helper")


@pytest.fixture
def annotator(project: Project, client: Client) -> User:
    user = make_user(role=Role.ANNOTATOR, project=project, username="ada")
    client.force_login(user)
    return user


def page(client: Client, project: Project) -> str:
    answer = client.get(reverse("labeling:judge", kwargs={"slug": project.slug}))
    assert answer.status_code == 200
    return answer.content.decode()


def hidden(html: str, name: str) -> str:
    found = re.search(rf'name="{name}" value="([^"]*)"', html)
    assert found is not None, name
    return found[1]


def send(client: Client, project: Project, html: str, **fields: object) -> Any:
    data = {name: hidden(html, name) for name in ("lease", "key", "active_ms")} | fields
    url = reverse("labeling:judge", kwargs={"slug": project.slug})
    return client.post(url, data, headers=HTMX)


def slots_shown(comparison: Comparison, annotator: User) -> Sequence[int]:
    return shown_order(comparison.pk, annotator.pk, comparison.slots.count())


def _without_tokens(html: str) -> str:
    """The page without what is random in every answer."""
    html = re.sub(r'nonce="[^"]*"', "", html)
    return re.sub(r'name="(csrfmiddlewaretoken|key)" value="[^"]*"', "", html)


@pytest.mark.parametrize(("key", "words", "strength"), SCALE)
def test_each_step_of_the_scale_prefers_what_was_shown_there(
    key: str, words: str, strength: int | None, client: Client, project: Project, annotator: User
) -> None:
    comparison = make_comparison(project=project)
    answer = send(client, project, page(client, project), choice=key)
    first, second = slots_shown(comparison, annotator)
    wanted = {"A": [[first], [second]], "B": [[second], [first]], "T": [[0, 1]]}[words[0]]
    judgment = Judgment.objects.get()
    assert judgment.tiers == wanted or [sorted(t) for t in judgment.tiers] == wanted
    assert judgment.strength == strength
    assert f"Saved: {words}." in answer.content.decode()


def test_places_follow_the_annotators_own_shuffle_and_stay_on_reload(
    client: Client, project: Project, annotator: User
) -> None:
    comparison = make_comparison(project=project, k=4)
    texts = [slot.response.text for slot in comparison.slots.select_related("response")]
    first, again = page(client, project), page(client, project)
    order = [texts[index] for index in slots_shown(comparison, annotator)]
    for html in (first, again):
        assert sorted(order, key=html.index) == order
    assert Lease.objects.count() == 1


def test_the_page_never_tells_whose_a_response_is(
    client: Client, project: Project, annotator: User
) -> None:
    comparison = make_comparison(project=project, policy=make_policy(project=project))
    before = _without_tokens(page(client, project))
    slot = comparison.slots.get(index=0)
    slot.response.policy = make_policy(project=project, name="zebra")
    slot.response.logp, slot.response.times_sampled = -12.5, 7
    slot.response.save()
    assert _without_tokens(page(client, project)) == before
    assert "zebra" not in before


def test_a_ranking_with_ties_is_mapped_to_slots(
    client: Client, project: Project, annotator: User
) -> None:
    comparison = make_comparison(project=project, k=4)
    places = {"place_C": 1, "place_A": 2, "place_B": 2, "place_D": 4}
    answer = send(client, project, page(client, project), choice="ranking", **places)
    a, b, c, d = slots_shown(comparison, annotator)
    assert [sorted(tier) for tier in Judgment.objects.get().tiers] == [[c], sorted([a, b]), [d]]
    assert "Saved: C over A = B over D." in answer.content.decode()


def test_an_incomplete_ranking_is_refused_and_nothing_is_written(
    client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project, k=3)
    answer = send(client, project, page(client, project), choice="ranking", place_A=1)
    assert answer.status_code == 422
    assert "not complete" in answer.content.decode()
    assert not Judgment.objects.exists()


@pytest.mark.parametrize("choice", ["", "8", "ranking", "<script>"])
def test_a_choice_that_is_none_keeps_the_page(
    choice: str, client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project)
    html = page(client, project)
    answer = send(client, project, html, choice=choice)
    assert answer.status_code == 422
    assert hidden(answer.content.decode(), "lease") == hidden(html, "lease")
    assert not Judgment.objects.exists()


@pytest.mark.parametrize("k", [2, 4])
def test_all_bad_ties_everything_and_says_so(
    k: int, client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project, k=k)
    send(client, project, page(client, project), choice="0")
    judgment = Judgment.objects.get()
    assert judgment.all_bad
    assert [sorted(tier) for tier in judgment.tiers] == [list(range(k))]


def test_a_double_click_writes_one_judgment_and_says_nothing(
    client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project)
    make_comparison(project=project)
    html = page(client, project)
    send(client, project, html, choice="1")
    again = send(client, project, html, choice="1").content.decode()
    assert Judgment.objects.count() == 1
    assert "already dealt with" not in again
    assert 'name="lease"' in again


def test_a_form_from_another_tab_changes_nothing_and_is_told(
    client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project)
    first, second = page(client, project), page(client, project)
    send(client, project, first, choice="1")
    answer = send(client, project, second, choice="7").content.decode()
    assert Judgment.objects.get().strength == 3
    assert "already dealt with" in answer


def test_a_verdict_after_the_lease_ran_out_is_kept_as_surplus(
    client: Client, project: Project, annotator: User
) -> None:
    comparison = make_comparison(project=project)
    html = page(client, project)
    Lease.objects.update(expires_at="2020-01-01T00:00Z")
    judge(comparison=comparison)
    answer = send(client, project, html, choice="1").content.decode()
    assert "Kept as surplus: A much." in answer
    assert Judgment.objects.get(annotator=annotator).surplus


def test_undo_brings_the_last_comparison_back_before_any_other(
    client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project)
    make_comparison(project=project)
    first = page(client, project)
    send(client, project, first, choice="1")
    judged = Judgment.objects.get().comparison
    url = reverse("labeling:judge_undo", kwargs={"slug": project.slug})
    html = client.post(url, headers=HTMX).content.decode()
    assert Lease.objects.get(token=hidden(html, "lease")).comparison == judged
    assert not Judgment.objects.current().exists()
    assert not Preference.objects.exists()
    followed = client.post(url, follow=True)
    assert "nothing to take back" in followed.content.decode()


def test_skip_offers_another_and_undo_takes_it_back(
    client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project)
    html = page(client, project)
    skip = reverse("labeling:judge_skip", kwargs={"slug": project.slug})
    answer = client.post(skip, {"lease": hidden(html, "lease")}, headers=HTMX)
    assert "Nothing left to judge" in answer.content.decode()
    undo = reverse("labeling:judge_undo", kwargs={"slug": project.slug})
    assert 'name="lease"' in client.post(undo, headers=HTMX).content.decode()
    assert not Skip.objects.filter(undone_at=None).exists()


def test_without_htmx_a_verdict_is_a_redirect_to_the_next_page(
    client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project)
    html = page(client, project)
    data = {name: hidden(html, name) for name in ("lease", "key")} | {"choice": "4"}
    url = reverse("labeling:judge", kwargs={"slug": project.slug})
    answer = client.post(url, data, follow=True)
    assert answer.redirect_chain == [(url, 302)]
    assert "Saved: Tie." in answer.content.decode()
    assert "<html" in answer.content.decode()


def test_the_lease_of_another_annotator_is_worth_nothing(
    client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project, overlap=2)
    other = Client()
    other.force_login(make_user(role=Role.ANNOTATOR, project=project))
    theirs = page(other, project)
    send(client, project, theirs, choice="1")
    assert not Judgment.objects.exists()


def test_renewing_tells_whether_the_comparison_is_still_held(
    client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project)
    token = hidden(page(client, project), "lease")
    url = reverse("labeling:judge_renew", kwargs={"slug": project.slug})
    before = Lease.objects.get().expires_at
    assert client.post(url, {"lease": token}).status_code == 204
    assert Lease.objects.get().expires_at > before
    assert client.post(url, {"lease": uuid.uuid4()}).status_code == 410
    assert client.post(url, {"lease": "x"}).status_code == 410


def test_time_is_stored_and_nonsense_is_not(
    client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project)
    send(client, project, page(client, project), choice="1", active_ms="4321")
    assert Judgment.objects.get().active_ms == 4321


def test_counts_are_of_today_and_of_what_is_left(
    client: Client, project: Project, annotator: User
) -> None:
    for _ in range(3):
        make_comparison(project=project)
    html = send(client, project, page(client, project), choice="1").content.decode()
    counts = re.findall(r'class="count">([^<]*)<', html)
    assert counts == ["1", "2"]


def test_guidelines_are_shown_rendered(client: Client, project: Project, annotator: User) -> None:
    project.guidelines = "Prefer **careful** answers. <script>alert(1)</script>"
    project.save()
    make_comparison(project=project)
    html = page(client, project)
    assert "<strong>careful</strong>" in html
    assert "<script>alert" not in html


@pytest.mark.parametrize("k", [2, 4])
def test_the_page_needs_few_queries(
    k: int,
    client: Client,
    project: Project,
    annotator: User,
    django_assert_max_num_queries,
) -> None:
    for _ in range(3):
        make_comparison(project=project, k=k)
    url = reverse("labeling:judge", kwargs={"slug": project.slug})
    with django_assert_max_num_queries(NEXT_WITH_NEW_LEASE):
        html = client.get(url, headers=HTMX).content.decode()
    with django_assert_max_num_queries(NEXT_WITH_OWN_LEASE):
        client.get(url, headers=HTMX)
    fields = {"choice": "1"} if k == 2 else {"choice": "ranking"}
    if k > 2:
        fields |= {f"place_{letter}": str(n) for n, letter in enumerate("ABCD", start=1)}
    with django_assert_max_num_queries(SUBMIT_AND_NEXT):
        send(client, project, html, **fields)
