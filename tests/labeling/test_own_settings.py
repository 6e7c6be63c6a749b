"""A person's own settings: language, text size and keys."""

import pytest
from django.test import Client
from django.urls import reverse

from labeling.keys import DEFAULTS
from labeling.models import User
from tests.builders import make_user

pytestmark = pytest.mark.django_db
ADDRESS = reverse("own_settings")
AS_MADE = {f"key_{action}": key for action, key in DEFAULTS.items()}


@pytest.fixture
def user(client: Client) -> User:
    made = make_user(username="ada")
    client.force_login(made)
    return made


def save_keys(client: Client, **changed: str) -> tuple[int, str]:
    answer = client.post(ADDRESS, {"what": "keys"} | AS_MADE | changed)
    return answer.status_code, answer.content.decode()


def test_language_and_text_size_are_kept_and_shown(client: Client, user: User) -> None:
    sent = {"what": "reading", "language": "es", "text_size": "larger"}
    answer = client.post(ADDRESS, sent, follow=True)
    user.refresh_from_db()
    assert (user.language, user.text_size) == ("es", "larger")
    html = answer.content.decode()
    assert '<html lang="es" dir="ltr" data-text-size="larger">' in html
    assert '<option value="es" selected>Español</option>' in html


@pytest.mark.parametrize("wrong", [{"language": "tlh"}, {"text_size": "huge"}, {"what": "all"}])
def test_what_is_not_offered_is_refused(wrong: dict[str, str], client: Client, user: User) -> None:
    sent = {"what": "reading", "language": "es", "text_size": "large"} | wrong
    assert client.post(ADDRESS, sent).status_code == 422
    user.refresh_from_db()
    assert (user.language, user.text_size) == ("", "")


def test_only_keys_that_were_changed_are_kept(client: Client, user: User) -> None:
    status, _ = save_keys(client, key_skip="x", key_send="Space")
    user.refresh_from_db()
    assert (status, user.keys) == (302, {"skip": "x", "send": "space"})
    html = client.get(ADDRESS).content.decode()
    assert 'name="key_skip" value="x"' in html
    client.post(ADDRESS, {"what": "default_keys"})
    user.refresh_from_db()
    assert user.keys == {}


@pytest.mark.parametrize(
    "wrong",
    [
        {"key_skip": "f"},
        {"key_skip": ""},
        {"key_skip": "</script><script>alert(1)</script>"},
        {'key_"><script>': "x"},
    ],
)
def test_bad_keys_are_told_and_nothing_is_kept(
    wrong: dict[str, str], client: Client, user: User
) -> None:
    status, html = save_keys(client, key_undo="y", **wrong)
    assert status == 422
    assert "Nothing was saved" in html
    assert 'name="key_undo" value="y"' in html, "what was typed is still there"
    assert "<script>alert" not in html
    assert '"><script>' not in html
    user.refresh_from_db()
    assert user.keys == {}


def test_both_actions_that_want_one_key_say_so(client: Client, user: User) -> None:
    _, html = save_keys(client, key_skip="f")
    assert html.count('aria-invalid="true"') == 2
    assert "already the key for: Flag" in html
