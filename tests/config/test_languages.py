"""Which language a page is in, and which way it runs."""

import pytest
from django.conf import settings
from django.test import Client
from django.urls import reverse
from django.utils import translation

from labeling.models import User
from tests.builders import PASSWORD, make_user

pytestmark = pytest.mark.django_db
SIGN_IN = reverse("login")
OWN = reverse("own_settings")


def language(client: Client, path: str = SIGN_IN, accept: str = "", **query: str) -> str:
    """The language of a page, which header and page agree on."""
    answer = client.get(path, query, headers={"Accept-Language": accept} if accept else {})
    assert answer.status_code == 200
    assert f'<html lang="{answer["Content-Language"]}" dir="ltr"' in answer.content.decode()
    assert "Accept-Language" in answer["Vary"]
    return str(answer["Content-Language"])


def person(client: Client, **own: str) -> User:
    user = make_user(username="ada")
    User.objects.filter(pk=user.pk).update(**own)
    client.force_login(user)
    return user


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        ("", "en"),
        ("es", "es"),
        ("es-MX,es;q=0.9,en;q=0.8", "es"),
        ("zh-CN", "zh-hans"),
        ("tlh, fr;q=0.9", "en"),
        ("fr, es;q=0.1", "es"),
        ("\x00;q=nonsense,,,", "en"),
    ],
)
def test_a_stranger_gets_what_the_browser_asks_for(
    accept: str, wanted: str, client: Client
) -> None:
    assert language(client, accept=accept) == wanted


def test_what_a_stranger_chooses_stays_chosen(client: Client) -> None:
    assert language(client, accept="zh-CN", language="es", next="/settings/") == "es"
    assert client.cookies[settings.LANGUAGE_COOKIE_NAME]["httponly"]
    assert language(client, accept="zh-CN") == "es"
    assert language(client, accept="zh-CN", language="tlh") == "es"


def test_the_choice_of_a_language_keeps_where_one_was_going(client: Client) -> None:
    html = client.get(SIGN_IN, {"next": "/settings/", "language": "es"}).content.decode()
    assert html.count('<input type="hidden" name="next" value="/settings/">') == 2
    for code, name in settings.LANGUAGES:
        assert f'value="{code}" lang="{code}"' in html
        assert f">{name}</button>" in html


def test_a_persons_own_language_comes_before_everything_else(client: Client) -> None:
    language(client, language="zh-hans")
    person(client, language="es")
    assert language(client, OWN, accept="zh-CN") == "es"
    assert language(client, OWN, accept="zh-CN", language="en") == "es"


def test_without_one_of_their_own_people_get_what_the_browser_asks_for(client: Client) -> None:
    person(client, language="")
    assert language(client, OWN, accept="zh-CN") == "zh-hans"


def test_a_language_that_is_offered_no_more_is_as_none(client: Client) -> None:
    person(client, language="tlh")
    assert language(client, OWN, accept="es") == "es"


def test_what_was_chosen_on_the_way_in_ends_with_a_choice_of_ones_own(client: Client) -> None:
    language(client, language="zh-hans")
    make_user(username="ada")
    client.post(SIGN_IN, {"username": "ada", "password": PASSWORD})
    assert language(client, OWN) == "zh-hans"
    client.post(OWN, {"what": "reading", "language": "", "text_size": ""})
    assert language(client, OWN, accept="es") == "es"


def test_no_language_outlives_its_request(client: Client) -> None:
    with translation.override("en"):
        language(client, accept="es")
        assert translation.get_language() == "en"


def test_pages_run_from_right_to_left_where_their_language_does(client: Client, settings) -> None:
    settings.LANGUAGES = [*settings.LANGUAGES, ("ar", "العربيّة")]
    html = client.get(SIGN_IN, headers={"Accept-Language": "ar"}).content.decode()
    assert '<html lang="ar" dir="rtl"' in html


def test_health_and_the_api_need_no_language(client: Client, django_assert_num_queries) -> None:
    with django_assert_num_queries(1):
        assert client.get(reverse("healthz")).content == b"ok\n"
