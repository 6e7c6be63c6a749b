"""The judging page, as a browser without scripts and as the page's own script see it."""

import re
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from labeling.models import Comparison, Flag, Judgment, Lease, Preference, Project, Role, Skip, User
from labeling.services.assigning import shown_order
from labeling.services.checking import breaches
from labeling.services.configuring import publish_guidelines
from labeling.wording import SCALE
from tests.builders import judge, make_comparison, make_policy, make_project, make_user

JSON = {"Accept": "application/json"}
# Session, user, membership; own leases, the best in the queue, the first from one's own place on,
# the lease, the slots.
NEXT = 8
# Session, user, membership; lease and comparison, judgments, slots; then the lease goes, and the
# judgment, the comparison and the preferences are written.
SUBMIT = 10
pytestmark = pytest.mark.django_db


@pytest.fixture
def project() -> Project:
    return make_project(slug="kitchen", name="Kitchen helper")


@pytest.fixture
def annotator(project: Project, client: Client) -> User:
    user = make_user(role=Role.ANNOTATOR, project=project, username="ada")
    client.force_login(user)
    return user


def url(route: str, project: Project) -> str:
    return reverse(f"labeling:{route}", kwargs={"slug": project.slug})


def page(client: Client, project: Project) -> str:
    answer = client.get(url("judge", project))
    assert answer.status_code == 200
    return answer.content.decode()


def hidden(html: str, name: str) -> str:
    found = re.search(rf'name="{name}" value="([^"]*)"', html)
    assert found is not None, name
    return found[1]


def send(client: Client, project: Project, html: str, **fields: object) -> Any:
    data = {name: hidden(html, name) for name in ("lease", "key", "active_ms")} | fields
    return client.post(url("judge", project), data, headers=JSON)


def fetch(client: Client, project: Project, *has: str) -> dict[str, Any]:
    """The next card, besides those that the page has."""
    answer = client.post(url("judge_next", project), {"lease": has}, headers=JSON)
    assert answer.status_code == 200
    found: dict[str, Any] = answer.json()
    return found


def ranking(letters: str) -> dict[str, object]:
    return {"choice": "ranking"} | {f"place_{one}": n for n, one in enumerate(letters, start=1)}


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
    wanted = {"A": [[first], [second]], "B": [[second], [first]], "T": [[0, 1]]}[str(words)[0]]
    judgment = Judgment.objects.get()
    assert judgment.tiers == wanted or [sorted(t) for t in judgment.tiers] == wanted
    assert judgment.strength == strength
    assert answer.json() == {"state": "saved", "said": f"Saved: {words}."}


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


def test_neither_the_page_nor_a_card_tells_whose_a_response_is(
    client: Client, project: Project, annotator: User
) -> None:
    comparison = make_comparison(project=project, policy=make_policy(project=project))
    before = _without_tokens(page(client, project) + fetch(client, project)["card"])
    slot = comparison.slots.get(index=0)
    slot.response.policy = make_policy(project=project, name="zebra")
    slot.response.logp, slot.response.times_sampled = -12.5, 7
    slot.response.save()
    assert _without_tokens(page(client, project) + fetch(client, project)["card"]) == before
    assert "zebra" not in before


def test_a_ranking_with_ties_is_mapped_to_slots(
    client: Client, project: Project, annotator: User
) -> None:
    comparison = make_comparison(project=project, k=4)
    places = {"place_C": 1, "place_A": 2, "place_B": 2, "place_D": 4}
    answer = send(client, project, page(client, project), choice="ranking", **places)
    a, b, c, d = slots_shown(comparison, annotator)
    assert [sorted(tier) for tier in Judgment.objects.get().tiers] == [[c], sorted([a, b]), [d]]
    assert answer.json()["said"] == "Saved: C over A = B over D."


def test_an_incomplete_ranking_is_refused_and_nothing_is_written(
    client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project, k=3)
    html = page(client, project)
    for incomplete in ({"place_B": 1}, {"place_B": 1, "place_A": 2}, {"place_C": 1}):
        answer = send(client, project, html, choice="ranking", **incomplete)
        assert answer.status_code == 422
        assert answer.json()["state"] == "invalid"
    assert not Judgment.objects.exists()
    assert send(client, project, html, **ranking("BAC")).status_code == 200


def test_a_ranking_in_the_order_shown_has_to_be_meant(
    client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project, k=3)
    html = page(client, project)
    answer = send(client, project, html, **ranking("ABC"))
    assert answer.status_code == 422
    assert list(answer.json()["errors"]) == ["confirmed"]
    assert send(client, project, html, **ranking("ABC"), confirmed="1").status_code == 200


@pytest.mark.parametrize("choice", ["", "8", "ranking", "<script>"])
def test_a_choice_that_is_none_keeps_the_page(
    choice: str, client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project)
    html = page(client, project)
    assert send(client, project, html, choice=choice).status_code == 422
    data = {name: hidden(html, name) for name in ("lease", "key")} | {"choice": choice}
    answer = client.post(url("judge", project), data | {"rationale": "because"})
    assert answer.status_code == 422
    assert hidden(answer.content.decode(), "lease") == hidden(html, "lease")
    assert "because" in answer.content.decode(), "what was filled in stays"
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


def test_a_verdict_sent_twice_is_one_judgment_with_the_same_answer(
    client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project)
    html = page(client, project)
    first, again = (send(client, project, html, choice="1") for _ in range(2))
    assert first.json() == again.json()
    assert Judgment.objects.count() == 1
    other = send(client, project, html, choice="7")
    assert (other.status_code, other.json()["state"]) == (409, "conflict")


def test_a_form_from_another_tab_changes_nothing_and_is_told(
    client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project)
    first, second = page(client, project), page(client, project)
    send(client, project, first, choice="1")
    answer = send(client, project, second, choice="7")
    assert Judgment.objects.get().strength == 3
    assert (answer.status_code, answer.json()["state"]) == (410, "gone")
    assert "already dealt with" in answer.json()["said"]


def test_a_verdict_after_the_lease_ran_out_is_kept_as_surplus(
    client: Client, project: Project, annotator: User
) -> None:
    comparison = make_comparison(project=project)
    html = page(client, project)
    Lease.objects.update(expires_at="2020-01-01T00:00Z")
    judge(comparison=comparison)
    answer = send(client, project, html, choice="1").json()
    assert answer["state"] == "surplus"
    assert "Kept as surplus: A much." in answer["said"]
    assert Judgment.objects.get(annotator=annotator).surplus


def test_the_next_comparison_is_leased_ahead_once_and_can_be_given_back(
    client: Client, project: Project, annotator: User
) -> None:
    for _ in range(3):
        make_comparison(project=project)
    now = hidden(page(client, project), "lease")
    ahead = fetch(client, project, now)
    assert ahead["lease"] != now
    assert hidden(ahead["card"], "lease") == ahead["lease"]
    assert fetch(client, project, now)["lease"] == ahead["lease"], "not a third one"
    assert fetch(client, project, now, ahead["lease"])["card"] is None
    assert Lease.objects.count() == 2
    other = colleague(project)
    taken = fetch(other, project)["lease"]
    assert fetch(other, project, taken)["card"] is None
    back = {"lease": [ahead["lease"]]}
    assert client.post(url("judge_give_back", project), back, headers=JSON).status_code == 204
    assert fetch(other, project, taken)["card"] is not None


def test_undo_brings_the_last_comparison_back_before_any_other(
    client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project)
    make_comparison(project=project)
    send(client, project, page(client, project), choice="1")
    judged = Judgment.objects.get().comparison
    answer = client.post(url("judge_undo", project), headers=JSON).json()
    assert answer["state"] == "undone"
    assert Lease.objects.get(token=answer["lease"]).comparison == judged
    assert not Judgment.objects.current().exists()
    assert not Preference.objects.exists()
    assert client.post(url("judge_undo", project), headers=JSON).json()["card"] is None
    followed = client.post(url("judge_undo", project), follow=True)
    assert "nothing to take back" in followed.content.decode()


def test_undo_is_refused_once_the_managers_window_has_closed(
    client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project)
    send(client, project, page(client, project), choice="1")
    Judgment.objects.update(created_at=timezone.now() - timedelta(hours=25))
    answer = client.post(url("judge_undo", project), headers=JSON).json()
    assert (answer["state"], answer["card"]) == ("nothing", None)
    assert "24 hours" in answer["said"]
    assert Judgment.objects.current().exists()


def test_skip_offers_another_and_undo_takes_it_back(
    client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project)
    token = hidden(page(client, project), "lease")
    answer = client.post(url("judge_skip", project), {"lease": token}, headers=JSON)
    assert answer.json() == {"state": "skipped", "said": "Skipped."}
    assert "Nothing left to judge" in page(client, project)
    assert client.post(url("judge_undo", project), headers=JSON).json()["card"] is not None
    assert not Skip.objects.filter(undone_at=None).exists()


@pytest.mark.parametrize("route", ["judge", "judge_skip"])
def test_a_flag_goes_with_the_verdict_or_the_skip_and_names_the_slot(
    route: str, client: Client, project: Project, annotator: User
) -> None:
    comparison = make_comparison(project=project, k=2)
    html = page(client, project)
    flag = {"flag_reason": "personal", "flag_place": "B", "flag_note": "a phone number"}
    data = {name: hidden(html, name) for name in ("lease", "key")} | {"choice": "1"} | flag
    assert client.post(url(route, project), data, headers=JSON).status_code == 200
    found = Flag.objects.open().get()
    assert (found.reason, found.note) == ("personal", "a phone number")
    assert found.slot == slots_shown(comparison, annotator)[1]
    client.post(url("judge_undo", project), headers=JSON)
    assert not Flag.objects.open().exists(), "what was taken back is not flagged"


def test_a_flag_for_no_reason_or_for_no_answer_is_refused(
    client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project)
    token = hidden(page(client, project), "lease")
    for flag in ({"flag_reason": "boring"}, {"flag_reason": "unsafe", "flag_place": "Z"}):
        answer = client.post(url("judge_skip", project), {"lease": token} | flag, headers=JSON)
        assert answer.status_code == 422
    beyond = {"lease": token, "flag_reason": "unsafe", "flag_place": "C"}
    assert client.post(url("judge_skip", project), beyond, headers=JSON).status_code == 410
    assert not Skip.objects.exists()


def test_ratings_and_the_rationale_are_stored_by_slot(
    client: Client, project: Project, annotator: User
) -> None:
    project.criteria = [{"key": "tone", "name": "Tone", "help": ""}]
    project.rationale = "required"
    project.save()
    comparison = make_comparison(project=project)
    html = page(client, project)
    assert send(client, project, html, choice="1").status_code == 422
    assert (
        send(client, project, html, choice="1", rationale="x", rating_tone_A=9).status_code == 422
    )
    send(client, project, html, choice="1", rationale="Kinder.", rating_tone_A=5, rating_tone_B=2)
    first, second = slots_shown(comparison, annotator)
    judgment = Judgment.objects.get()
    assert judgment.ratings == {"tone": {str(first): 5, str(second): 2}}
    assert judgment.rationale == "Kinder."


def test_a_rewrite_is_the_annotators_response_and_preferred_to_the_original(
    client: Client, project: Project, annotator: User
) -> None:
    comparison = make_comparison(project=project)
    html = page(client, project)
    send(client, project, html, choice="1", rewrite_place="A", rewrite_text="Better \U0001f600.")
    slots = list(comparison.slots.select_related("response"))
    original = slots[slots_shown(comparison, annotator)[0]].response
    row = Preference.objects.exclude(comparison=comparison).get()
    assert (row.chosen.text, row.chosen.annotator) == ("Better \U0001f600.", annotator)
    assert row.rejected == original
    client.post(url("judge_undo", project), headers=JSON)
    assert not Preference.objects.exists()
    Lease.objects.all().delete()
    fetch(colleague(project), project)
    assert Lease.objects.get().comparison == comparison, "nobody is asked about the rewrite"
    assert not list(breaches())


def colleague(project: Project) -> Client:
    other = Client()
    other.force_login(make_user(role=Role.ANNOTATOR, project=project))
    return other


def test_without_scripts_a_verdict_is_a_redirect_to_the_next_page(
    client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project)
    html = page(client, project)
    data = {name: hidden(html, name) for name in ("lease", "key")} | {"choice": "4"}
    answer = client.post(url("judge", project), data, follow=True)
    assert answer.redirect_chain == [(url("judge", project), 302)]
    assert "Saved: Tie." in answer.content.decode()
    assert "<html" in answer.content.decode()


def test_the_lease_of_another_annotator_is_worth_nothing(
    client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project, overlap=2)
    theirs = page(colleague(project), project)
    assert send(client, project, theirs, choice="1").status_code == 410
    assert not Judgment.objects.exists()


def test_holding_tells_which_comparisons_are_still_held_and_keeps_a_draft(
    client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project)
    token = hidden(page(client, project), "lease")
    before = Lease.objects.get().expires_at
    draft = '{"rationale": "half a thou"}'
    held = {"lease": [token, str(uuid.uuid4())], "draft": draft}
    assert client.post(url("judge_hold", project), held).json() == {"held": [token]}
    assert Lease.objects.get().expires_at > before
    assert "half a thou" in page(client, project)
    Lease.objects.update(expires_at="2020-01-01T00:00Z")
    assert client.post(url("judge_hold", project), {"lease": [token]}).json() == {"held": []}
    assert "half a thou" in page(client, project), "the draft outlives its lease"
    for nonsense in ({"lease": ["x"]}, {"lease": [token], "draft": "[1]"}):
        assert client.post(url("judge_hold", project), nonsense).status_code == 422


def test_time_and_the_version_of_the_guidelines_are_stored(
    client: Client, project: Project, annotator: User
) -> None:
    publish_guidelines(project=project, text="Be kind.", author=None)
    for _ in range(2):
        make_comparison(project=project)
    for number in range(2):
        send(client, project, page(client, project), choice="1", active_ms="4321")
        judgment = Judgment.objects.latest("pk")
        assert (judgment.active_ms, judgment.sitting_place) == (4321, number)
        assert judgment.guidelines == project.versions.get()


def test_a_judgment_names_the_guidelines_that_its_page_showed(
    client: Client, project: Project, annotator: User
) -> None:
    shown = publish_guidelines(project=project, text="Be kind.", author=None)
    make_comparison(project=project)
    make_comparison(project=project)
    html = page(client, project)
    publish_guidelines(project=project, text="Be brief.", author=None)
    send(client, project, html, choice="1", guidelines=hidden(html, "guidelines"))
    assert Judgment.objects.get().guidelines == shown
    other = publish_guidelines(project=make_project(), text="Be odd.", author=None)
    html = page(client, project)
    send(client, project, html, choice="1", guidelines=other.pk)  # type: ignore[union-attr]
    assert Judgment.objects.latest("pk").guidelines.text == "Be brief."


def test_an_undone_verdict_comes_back_with_what_was_written(
    client: Client, project: Project, annotator: User
) -> None:
    make_comparison(project=project)
    html = page(client, project)
    rewrite = {"rewrite_place": "A", "rewrite_text": "Much better."}
    send(client, project, html, choice="1", rationale="It is kinder.", **rewrite)
    card = client.post(url("judge_undo", project), headers=JSON).json()["card"]
    assert "It is kinder." in card
    assert "Much better." in card
    assert "Much better." in page(client, project), "a reload keeps it"


def test_counts_are_of_today_of_all_and_of_what_is_left(
    client: Client, project: Project, annotator: User
) -> None:
    for _ in range(4):
        make_comparison(project=project)
    judge(comparison=Comparison.objects.earliest("pk"), annotator=annotator)
    Judgment.objects.update(created_at=timezone.now() - timedelta(days=2))
    send(client, project, page(client, project), choice="1")
    html = client.get(url("judge_counts", project)).content.decode()
    assert re.findall(r'class="count"[^>]*>([^<]*)<', html) == ["1", "2", "2"]


def test_a_full_day_ends_with_thanks_and_not_with_a_comparison(
    client: Client, project: Project, annotator: User
) -> None:
    annotator.memberships.update(daily_limit=1)
    for _ in range(3):
        make_comparison(project=project)
    html = page(client, project)
    assert "until tomorrow" in fetch(client, project, hidden(html, "lease"))["said"]
    send(client, project, html, choice="1")
    assert "until tomorrow" in page(client, project)
    assert Lease.objects.count() == 0


def test_guidelines_are_shown_rendered(client: Client, project: Project, annotator: User) -> None:
    text = "Prefer **careful** answers. <script>alert(1)</script>"
    publish_guidelines(project=project, text=text, author=None)
    make_comparison(project=project)
    html = page(client, project)
    assert "<strong>careful</strong>" in html
    assert "<script>alert" not in html


@pytest.mark.parametrize("k", [2, 4])
@pytest.mark.parametrize("overlap", [1, 3])
def test_next_and_submit_need_few_queries(
    k: int,
    overlap: int,
    client: Client,
    project: Project,
    annotator: User,
    django_assert_max_num_queries,
) -> None:
    for _ in range(6):
        begun = make_comparison(project=project, k=k, overlap=overlap)
    if overlap > 1:
        judge(comparison=begun)
    current = fetch(client, project)
    while current["card"]:
        with django_assert_max_num_queries(NEXT):
            ahead = fetch(client, project, current["lease"])
        fields = {"choice": "1"} if k == 2 else ranking("DCBA")
        with django_assert_max_num_queries(SUBMIT):
            assert send(client, project, current["card"], **fields).status_code == 200
        current = ahead
    assert Judgment.objects.filter(annotator=annotator).count() == 6
