"""Every route has made a decision about who may open it."""

import uuid
from collections.abc import Iterator

import pytest
from django.test import Client
from django.urls import URLPattern, URLResolver, get_resolver, reverse
from rest_framework.permissions import IsAuthenticated

from tests.builders import PASSWORD, make_project, make_user

PUBLIC = {"login", "logout", "healthz", "join"}
# Any value does for the parts of a route besides the project: the gate comes first.
ANY = {"int": "1", "slug": "any", "str": "any", "uuid": str(uuid.UUID(int=1)), "path": "any"}


def _routes(
    patterns: list[URLPattern | URLResolver], namespace: str = ""
) -> Iterator[tuple[str, URLPattern]]:
    for pattern in patterns:
        if isinstance(pattern, URLResolver):
            inner = f"{pattern.namespace}:" if pattern.namespace else ""
            yield from _routes(pattern.url_patterns, namespace + inner)
        else:
            yield f"{namespace}{pattern.name}", pattern


ROUTES = list(_routes(get_resolver().url_patterns))


def _address(name: str, pattern: URLPattern, slug: str) -> str:
    kinds = {
        part: type(converter).__name__.removesuffix("Converter").lower().replace("string", "str")
        for part, converter in pattern.pattern.converters.items()
    }
    kwargs = {part: ANY[kind] for part, kind in kinds.items()}
    return reverse(name, kwargs=kwargs | ({"slug": slug} if "slug" in kinds else {}))


def _project_routes() -> list[tuple[str, URLPattern]]:
    return [(name, one) for name, one in ROUTES if "slug" in one.pattern.converters]


def test_routes_are_found() -> None:
    assert {"home", "login", "labeling:judge", "api:batches"} <= {name for name, _ in ROUTES}
    assert all(not name.endswith("None") for name, _ in ROUTES), "every route has a name"


@pytest.mark.parametrize(("name", "pattern"), ROUTES, ids=[name for name, _ in ROUTES])
def test_every_route_needs_a_sign_in_or_is_listed_as_public(name: str, pattern: URLPattern) -> None:
    needs_login = getattr(pattern.callback, "login_required", True)
    if name.startswith("api:"):  # the framework answers strangers itself: no page to sign in on
        needs_login = pattern.callback.cls.permission_classes == [IsAuthenticated]
    assert needs_login != (name in PUBLIC)


@pytest.mark.django_db
@pytest.mark.parametrize("method", ["get", "post"])
def test_strangers_are_sent_to_sign_in_and_learn_nothing(method: str, client: Client) -> None:
    project = make_project()
    for name, pattern in ROUTES:
        if name in PUBLIC:
            continue
        for slug in (project.slug, "no-such-project"):
            answer = getattr(client, method)(_address(name, pattern, slug))
            assert answer.status_code in (302, 401, 403), name
            assert answer.status_code != 302 or answer.url.startswith("/sign-in/"), name
            assert project.name not in answer.content.decode(), name


@pytest.mark.django_db
@pytest.mark.parametrize("method", ["get", "post"])
def test_no_project_route_opens_to_a_non_member(method: str, client: Client) -> None:
    project = make_project()
    client.force_login(make_user(role="manager"))
    for name, pattern in _project_routes():
        answer = getattr(client, method)(_address(name, pattern, project.slug))
        assert answer.status_code in (404, 405), name
        assert project.name not in answer.content.decode(), name


@pytest.mark.django_db
def test_every_form_is_protected_against_other_sites(client: Client) -> None:
    project = make_project()
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(make_user(role="manager", project=project))
    for name, pattern in _project_routes():
        if name.startswith("api"):
            continue
        answer = strict.post(_address(name, pattern, project.slug))
        assert answer.status_code in (403, 405), name


@pytest.mark.django_db
def test_the_api_too_is_protected_against_other_sites(client: Client) -> None:
    project = make_project()
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(make_user(role="manager", project=project))
    routes = [(name, one) for name, one in _project_routes() if name.startswith("api:")]
    assert routes
    for name, pattern in routes:
        answer = strict.post(_address(name, pattern, project.slug), {}, "application/json")
        assert answer.status_code in (403, 405), name
        assert answer["Content-Type"] == "application/json", name


@pytest.mark.django_db
def test_signing_in_and_out_works_and_sign_out_is_a_post(client: Client) -> None:
    user = make_user(role="annotator", username="ada")
    answer = client.post(reverse("login"), {"username": "ada", "password": PASSWORD})
    assert answer["Location"] == "/"
    assert client.session["_auth_user_id"] == str(user.pk)
    assert client.get(reverse("logout")).status_code == 405
    client.post(reverse("logout"))
    assert "_auth_user_id" not in client.session


@pytest.mark.django_db
def test_sign_in_never_leads_to_another_site(client: Client) -> None:
    make_user(username="ada")
    for evil in ("https://evil.example/", "//evil.example/", "/\\evil.example/"):
        answer = client.post(
            reverse("login"), {"username": "ada", "password": PASSWORD, "next": evil}
        )
        assert answer["Location"] == "/"
        client.post(reverse("logout"))


@pytest.mark.django_db
def test_a_wrong_password_is_told_without_telling_whether_the_name_exists(client: Client) -> None:
    make_user(username="ada")
    pages = [
        client.post(reverse("login"), {"username": name, "password": "wrong"}).content.decode()
        for name in ("ada", "nobody")
    ]
    assert all("do not go together" in page for page in pages)


@pytest.mark.django_db
def test_five_wrong_passwords_lock_the_name_for_a_while(client: Client) -> None:
    make_user(username="ada")
    for _ in range(5):
        answer = client.post(reverse("login"), {"username": "ada", "password": "wrong"})
    assert answer.status_code == 429
    assert "Locked for a quarter of an hour" in answer.content.decode()
    answer = client.post(reverse("login"), {"username": "ada", "password": PASSWORD})
    assert answer.status_code == 429


@pytest.mark.django_db
def test_a_fragment_request_after_the_session_ended_reloads_the_page(client: Client) -> None:
    headers = {"HX-Request": "true", "HX-Current-URL": "http://testserver/p/kitchen/judge/"}
    answer = client.get(reverse("login"), headers=headers)
    assert answer["HX-Redirect"] == "/p/kitchen/judge/"


@pytest.mark.django_db
def test_healthz_answers_anybody(client: Client) -> None:
    answer = client.get("/healthz")
    assert (answer.status_code, answer.content) == (200, b"ok\n")
