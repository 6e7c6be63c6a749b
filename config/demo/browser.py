"""A person with a browser and no script: follows the pages' own forms over HTTP.

Nothing here knows the product's insides: what it may do, the pages' forms say.
"""

import http.cookiejar
from dataclasses import dataclass, field
from html.parser import HTMLParser
from urllib.error import HTTPError
from urllib.parse import urlencode, urljoin, urlsplit
from urllib.request import HTTPCookieProcessor, Request, build_opener

from django.urls import reverse

TIMEOUT_S = 60


class PageError(Exception):
    """A page did not answer as a person would expect; the message names it."""


@dataclass
class Form:
    """A form as it would be sent: where to, and its fields with the values they hold."""

    action: str
    fields: dict[str, str] = field(default_factory=dict)


@dataclass
class Page:
    """What a person would see: where they are, the forms, and the answers as written."""

    url: str
    forms: list[Form] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)

    def form(self, path: str) -> Form:
        """The form that is sent to this path; PageError where the page has none."""
        for form in self.forms:
            if urlsplit(form.action).path == path:
                return form
        raise PageError(f"{self.url} has no form for {path}")

    def has_form(self, path: str) -> bool:
        """Whether the page offers this form."""
        return any(urlsplit(form.action).path == path for form in self.forms)


class _Reader(HTMLParser):
    """Collects forms, and the text of <pre class="as-written">: an answer as it was written."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.page = Page(url=url)
        self._form: Form | None = None
        self._select = self._area = ""
        self._in_answer = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag == "pre" and "as-written" in given.get("class", "").split():
            self._in_answer = True
            self.page.answers.append("")
        elif tag == "form" and given.get("method") == "post":
            self._form = Form(action=urljoin(self.page.url, given.get("action", "")))
            self.page.forms.append(self._form)
        elif self._form is not None:
            self._control(self._form, tag, given)

    def _control(self, form: Form, tag: str, given: dict[str, str]) -> None:
        name, value = given.get("name", ""), given.get("value", "")
        kind = given.get("type", "text")
        if tag == "input" and name and kind in ("checkbox", "radio"):
            if "checked" in given:
                form.fields[name] = given.get("value", "on")
        elif tag == "input" and name and kind not in ("submit", "button"):
            form.fields[name] = value
        elif tag == "select":
            self._select = name
        elif tag == "option" and self._select:
            if "selected" in given or self._select not in form.fields:
                form.fields[self._select] = value
        elif tag == "textarea" and name:
            self._area = name
            form.fields[name] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "pre":
            self._in_answer = False
        elif tag == "form":
            self._form = None
        elif tag == "select":
            self._select = ""
        elif tag == "textarea":
            self._area = ""

    def handle_data(self, data: str) -> None:
        if self._in_answer:
            # As in a browser: a line break right after <pre> is not part of the text.
            begins = not self.page.answers[-1]
            self.page.answers[-1] += data.removeprefix("\n") if begins else data
        if self._area and self._form is not None:
            self._form.fields[self._area] += data


class Browser:
    """Cookies and the page one is on."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._opener = build_opener(HTTPCookieProcessor(http.cookiejar.CookieJar()))

    def sign_in(self, username: str, password: str) -> Page:
        """Through the sign-in page; PageError where it refuses."""
        path = reverse("login")
        form = self.get(path).form(path)
        page = self.send(form, {"username": username, "password": password})
        if urlsplit(page.url).path == path:
            raise PageError(f"{username} could not sign in")
        return page

    def get(self, path: str) -> Page:
        """Open a page."""
        return self._open(Request(urljoin(self._address, path)))  # noqa: S310  our own address

    def send(self, form: Form, values: dict[str, str] | None = None) -> Page:
        """Send a form with some of its fields changed, and read the page it leads to."""
        body = urlencode(form.fields | (values or {})).encode()
        return self._open(Request(form.action, data=body))  # noqa: S310  a form of our own site

    def _open(self, request: Request) -> Page:
        if request.data is not None:
            request.add_header("Origin", self._address)
            request.add_header("Referer", request.full_url)
        try:
            with self._opener.open(request, timeout=TIMEOUT_S) as response:
                reader = _Reader(response.url)
                reader.feed(response.read().decode())
        except HTTPError as error:
            raise PageError(f"{request.full_url} answered {error.code}") from None
        return reader.page
