"""One's own history: what is listed, in what state, and changing a verdict while that is open."""

import json
import re
from datetime import timedelta

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from labeling.models import Comparison, Flag, Judgment, Lease, Project, Role, Skip, User
from labeling.services.assigning import lease_again
from labeling.services.configuring import configure
from labeling.services.judging import rejudge, skip, undo
from labeling.services.verdicts import FlagGiven, Rewrite, Verdict
from labeling.views.history import PAGE
from tests.builders import judge, make_comparison, make_project, make_prompt, make_user
from tests.labeling.hostile import HOSTILE

pytestmark = pytest.mark.django_db


@pytest.fixture
def project() -> Project:
    return make_project()


@pytest.fixture
def ada(project: Project) -> User:
    return make_user(role=Role.ANNOTATOR, project=project, username="ada")


@pytest.fixture
def address(project: Project, ada: User, client: Client) -> str:
    client.force_login(ada)
    return reverse("labeling:history", args=[project.slug])


def judged(project: Project, user: User, text: str = "", k: int = 2) -> Judgment:
    comparison = make_comparison(prompt=make_prompt(project=project, text=text), k=k)
    return judge(comparison=comparison, annotator=user)


def rows(client: Client, address: str, query: str = "") -> list[str]:
    """Each row's words."""
    answer = client.get(f"{address}?{query}")
    assert answer.status_code == 200
    found = re.findall(r'<li class="history-row">(.*?)</li>', answer.content.decode(), re.S)
    return [" ".join(re.sub(r"<[^>]+>", " ", row).split()) for row in found]


def again(project: Project, judgment: Judgment) -> str:
    return reverse("labeling:judge_again", args=[project.slug, judgment.pk])


def draft(page: str) -> dict[str, str]:
    """What the script fills in."""
    found = re.search(r'<script id="judge-draft"[^>]*>(.*?)</script>', page, re.S)
    assert found is not None
    filled_in: dict[str, str] = json.loads(found[1])
    return filled_in


def test_verdicts_are_listed_newest_first_with_what_became_of_them(
    project: Project, ada: User, client: Client, address: str
) -> None:
    verdicts = {
        name: judged(project, ada, f"\n  {name}\nsecond line")
        for name in ("counted", "undone", "changed", "retired")
    }
    undo(judgment=verdicts["undone"])
    flags = [FlagGiven(reason=Flag.Reason.BROKEN, slot=1)]
    better = Rewrite(slot=0, text="Better.")
    verdict = Verdict(tiers=[[0, 1]], rationale="Why", flags=flags, rewrite=better, active_ms=65000)
    rejudge(judgment=verdicts["changed"], verdict=verdict, key="new")
    retired = Comparison.objects.filter(pk=verdicts["retired"].comparison_id)
    retired.update(state=Comparison.State.RETIRED)
    judged(project, make_user(role=Role.ANNOTATOR, project=project), "somebody else's")

    found = rows(client, address)
    assert [row.split()[0] for row in found] == [
        "changed",
        "retired",
        "changed",
        "undone",
        "counted",
    ]
    assert "second line" not in "".join(found)
    assert "1 min 5 s · reason · rewrite · flagged Tie Counts Judge again" in found[0]
    assert "Comparison retired" in found[1]
    assert "Changed later" in found[2]
    assert "Taken back" in found[3]
    assert ["Judge again" in row for row in found] == [True, False, False, False, True]
    assert "example" not in "".join(found)


def test_managers_may_use_a_present_verdict_as_an_example(project: Project, client: Client) -> None:
    maya = make_user(role=Role.MANAGER, project=project)
    client.force_login(maya)
    undo(judgment=judged(project, maya))
    judged(project, maya)
    found = rows(client, reverse("labeling:history", args=[project.slug]))
    assert ["Use as an example" in row for row in found] == [True, False]


def test_pages_are_walked_both_ways_in_as_many_queries_whatever_they_hold(
    project: Project, ada: User, client: Client, address: str
) -> None:
    def queries() -> int:
        with CaptureQueriesContext(connection) as captured:
            client.get(address)
        return len(captured)

    for number in range(PAGE + 2):
        judged(project, ada, f"Number {number}")
        if number == 1:
            few = queries()
    assert queries() == few
    newest = Judgment.objects.latest("pk").pk
    assert len(rows(client, address)) == PAGE
    older = f"before={newest - PAGE + 1}"
    assert f"{older}" in client.get(address).content.decode()
    assert [row.split()[1] for row in rows(client, address, older)] == ["1", "0"]
    newer = re.search(r"after=\d+", client.get(f"{address}?{older}").content.decode())
    assert newer is not None
    assert rows(client, address, newer[0]) == rows(client, address)
    assert rows(client, address, "before=x&after=-1") == rows(client, address)


@pytest.mark.parametrize(
    ("hours", "said"),
    [(0, "stays as it was"), (1, "for 1 hour."), (24, "for 24 hours."), (72, "for 3 days.")],
)
def test_the_page_says_for_how_long_a_verdict_can_be_changed(
    project: Project, client: Client, address: str, hours: int, said: str
) -> None:
    configure(
        project=project, actor=make_user(role=Role.MANAGER, project=project), rejudge_hours=hours
    )
    page = client.get(address).content.decode()
    assert said in page
    assert "No verdicts yet" in page


def test_a_skipped_comparison_is_offered_again_on_request(
    project: Project, ada: User, client: Client, address: str
) -> None:
    assert rows(client, address, "show=skips") == []
    for text in ("wanted", "done"):
        comparison = make_comparison(prompt=make_prompt(project=project, text=text))
        lease = lease_again(comparison=comparison, annotator=ada)
        assert lease is not None
        skip(project=project, annotator=ada, token=lease.token)
        if text == "done":
            judge(comparison=comparison)
    done, wanted = rows(client, address, "show=skips")
    assert "No verdict is wanted any more" in done
    assert "Offer it to me again" in wanted
    own = Skip.objects.get(comparison__prompt__messages__0__content="wanted")
    answer = client.post(address, {"skip": own.pk})
    assert answer["Location"].endswith(f"/judge/?lease={Lease.objects.get().token}")
    assert len(rows(client, address, "show=skips")) == 1
    assert client.post(address, {"skip": own.pk}).status_code == 404
    client.force_login(make_user(role=Role.ANNOTATOR, project=project))
    assert client.post(address, {"skip": Skip.objects.latest("pk").pk}).status_code == 404


# Judging again


def test_the_earlier_verdict_is_filled_in_with_all_that_came_with_it(
    project: Project, ada: User, client: Client, address: str
) -> None:
    names = [{"key": "", "name": "Clear", "help": ""}]
    configure(project=project, actor=make_user(role=Role.MANAGER, project=project), criteria=names)
    old = judged(project, ada, k=3)
    verdict = Verdict(
        tiers=[[2], [0, 1]],
        rationale="Why",
        ratings={"clear": {2: 5}},
        flags=[FlagGiven(reason=Flag.Reason.UNSAFE, slot=1, note="see")],
        rewrite=Rewrite(slot=0, text="Better."),
    )
    new = rejudge(judgment=old, verdict=verdict, key="new")
    letters = {slot: "ABC"[place] for place, slot in enumerate(new.shown_order)}
    page = client.get(again(project, new)).content.decode()
    assert draft(page) == {
        "choice": "ranking",
        "rationale": "Why",
        f"place_{letters[2]}": "1",
        f"place_{letters[0]}": "2",
        f"place_{letters[1]}": "2",
        f"rating_clear_{letters[2]}": "5",
        "flag_reason": "unsafe",
        "flag_place": letters[1],
        "flag_note": "see",
        "rewrite_place": letters[0],
        "rewrite_text": "Better.",
    }
    assert "What you choose now takes its place" in page
    assert not Lease.objects.exists()


def test_another_verdict_takes_the_place_of_the_earlier_one(
    project: Project, ada: User, client: Client, address: str
) -> None:
    old = judged(project, ada)
    page = client.get(again(project, old)).content.decode()
    lease, key = (
        re.search(rf'name="{name}" value="([^"]+)"', page)[1]  # type: ignore[index]
        for name in ("lease", "key")
    )
    given = {"lease": lease, "key": key, "choice": "4", "active_ms": "900"}
    page = client.post(again(project, old), given, follow=True).content.decode()
    assert "Changed: Tie." in page
    new = Judgment.objects.current().get()
    assert (new.tiers, new.surplus) == ([[0, 1]], False)
    client.post(again(project, old), given)
    assert Judgment.objects.count() == 2
    other = client.post(again(project, old), given | {"choice": "1", "key": "other"}, follow=True)
    assert "already changed or taken back" in other.content.decode()
    assert Judgment.objects.current().get() == new


def test_what_cannot_be_read_is_told_and_stays_filled_in(
    project: Project, ada: User, client: Client, address: str
) -> None:
    old = judged(project, ada, k=3)
    given = {"lease": "6" * 32, "key": "k", "choice": "ranking", "rationale": "Long thoughts"}
    answer = client.post(again(project, old), given | {"place_B": "1"})
    page = answer.content.decode()
    assert answer.status_code == 422
    assert "not complete" in page
    assert draft(page)["rationale"] == "Long thoughts"
    in_order = given | {"place_A": "1", "place_B": "2", "place_C": "3"}
    assert client.post(again(project, old), in_order).status_code == 422
    assert client.post(again(project, old), given | {"choice": "1"}).status_code == 422
    assert Judgment.objects.get() == old
    assert client.post(again(project, old), in_order | {"confirmed": "1"}).status_code == 302
    assert Judgment.objects.count() == 2


@pytest.mark.parametrize("closed_by", ["window", "retired"])
def test_once_it_is_too_late_that_is_said_and_nothing_changes(
    project: Project, ada: User, client: Client, address: str, closed_by: str
) -> None:
    old = judged(project, ada)
    if closed_by == "window":
        Judgment.objects.update(created_at=timezone.now() - timedelta(hours=25))
    else:
        Comparison.objects.update(state=Comparison.State.RETIRED)
    page = client.get(again(project, old), follow=True).content.decode()
    assert "can no longer be changed" in page
    given = {"lease": "6" * 32, "key": "k", "choice": "7"}
    page = client.post(again(project, old), given, follow=True).content.decode()
    assert "older" in page or "can no longer be changed" in page
    assert Judgment.objects.get() == old


def test_only_ones_own_verdicts_can_be_opened(
    project: Project, ada: User, client: Client, address: str
) -> None:
    theirs = judged(project, make_user(role=Role.MANAGER, project=project))
    elsewhere = make_project()
    mine = judged(elsewhere, ada)
    for judgment in (theirs, mine):
        assert client.get(again(project, judgment)).status_code == 404
        assert client.post(again(project, judgment), {"choice": "1"}).status_code == 404


def test_hostile_prompts_are_harmless_in_the_list(
    project: Project, ada: User, client: Client, address: str
) -> None:
    for number, text in enumerate(HOSTILE):
        judged(project, ada, f"{text.replace(chr(0), '')} {number}")
    middle = Judgment.objects.order_by("pk")[len(HOSTILE) // 2].pk
    page = "".join(
        client.get(address, {way: str(middle)}).content.decode() for way in ("before", "after")
    )
    assert page.count('class="history-row"') == len(HOSTILE) - 1
    assert all("nonce=" in script for script in re.findall(r"<script[^>]*>", page))
    assert not re.search(r"<(iframe|object|embed|base|math|img|style|svg onload)\b", page)
    assert not re.search(r"<[^>]*\son(error|load|mouseover)\s*=", page)
