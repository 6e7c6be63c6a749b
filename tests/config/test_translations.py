"""The catalogues: complete, sound and compiled, and pages that speak their languages.

After a text has changed, with GNU gettext installed:
    manage.py makemessages -l es -l zh_Hans --no-location --no-wrap --no-obsolete \
        --ignore '.venv*' --ignore var --ignore tests
then translate what is new in locale/, and `manage.py compilemessages --ignore '.venv*'`.
"""

import ast
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from zoneinfo import available_timezones

import polib
import pytest
from django.conf import settings
from django.test import Client
from django.urls import reverse
from django.utils import timezone, translation
from django.utils.html import strip_tags
from django.utils.translation import gettext
from django.utils.translation.template import templatize

from generation.models import Plan
from generation.plans import NOTHING_LEFT, save_plan, top_up
from labeling.models import Policy, PolicyState, Project, Prompt, Response, Role, User
from labeling.templatetags.prefloop import ago, duration
from tests.builders import (
    judge,
    judge_evaluation,
    make_batch,
    make_comparison,
    make_evaluation,
    make_policy,
    make_project,
    make_prompt,
    make_user,
)
from tests.training.rounds import RESULTS, log_steps, make_round, page_of
from training.models import RoundState

ROOT = Path(settings.BASE_DIR)
APPS = ("config", "generation", "jobs", "labeling", "training")
LANGUAGES = [code for code, _ in settings.LANGUAGES if code != settings.LANGUAGE_CODE]
# By function: how many strings it takes, and whether the first is a context.
MARKS = {
    "_": (1, False),
    "gettext": (1, False),
    "gettext_lazy": (1, False),
    "gettext_noop": (1, False),
    "ngettext": (2, False),
    "ngettext_lazy": (2, False),
    "pgettext": (2, True),
    "pgettext_lazy": (2, True),
    "npgettext": (3, True),
    "npgettext_lazy": (3, True),
}
LITERAL = r"""u?(?:"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')"""
CALL = re.compile(rf" (n?p?gettext|_)\(({LITERAL}(?:, {LITERAL})*)(?:, ?count)?\) ")
PLACEHOLDER = re.compile(r"%%n|%%|%\(\w+\)[sd]|%[sd]|\{\w*\}")
TAG = re.compile(r"</?\w+[^>]*>|&\w+;")

Key = tuple[str, str]  # context and text, as a catalogue knows a message


def in_python(path: Path) -> Iterator[Key]:
    """The messages that a module marks."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "id", getattr(node.func, "attr", ""))
        if name in MARKS:
            number, context = MARKS[name]
            texts = [one.value for one in node.args[:number] if isinstance(one, ast.Constant)]
            if len(texts) == number:
                yield (texts[0], texts[1]) if context else ("", texts[0])


def in_template(path: Path) -> Iterator[Key]:
    """The messages that a template marks, as Django itself hands them to gettext."""
    for name, literals in CALL.findall(templatize(path.read_text())):
        texts = [ast.literal_eval(one) for one in re.findall(LITERAL, literals)]
        yield (texts[0], texts[1]) if MARKS[name][1] else ("", texts[0])


@pytest.fixture(scope="module")
def marked() -> set[Key]:
    """Every message of the project."""
    modules = (path for app in APPS for path in (ROOT / app).rglob("*.py"))
    found = {key for path in modules for key in in_python(path)}
    return found | {
        key for path in (ROOT / "templates").rglob("*.html") for key in in_template(path)
    }


def folder(language: str) -> Path:
    """Where a language's catalogue lies."""
    return ROOT / "locale" / translation.to_locale(language) / "LC_MESSAGES"


@pytest.fixture(params=LANGUAGES)
def catalogue(request) -> polib.POFile:
    """Each catalogue in turn."""
    return polib.pofile(str(folder(request.param) / "django.po"))


def key(entry: polib.POEntry) -> Key:
    return entry.msgctxt or "", entry.msgid


def texts(entry: polib.POEntry) -> list[str]:
    """A message's translations, one a plural form."""
    forms = [entry.msgstr_plural[form] for form in sorted(entry.msgstr_plural)]
    return forms if entry.msgid_plural else [entry.msgstr]


def named(entries: list[polib.POEntry]) -> list[str]:
    return [entry.msgid for entry in entries]


def test_the_scan_finds_what_is_marked_in_each_way(marked):
    assert ("", "Judge") in marked  # {% translate %} and gettext
    assert ("", "%(shown)s prompt") in marked  # {% blocktranslate count %}
    assert ("page", "Next") in marked  # a context
    assert ("", "Waiting for the worker") in marked  # _() in a tag's argument
    assert ("", "the system") in marked  # _() in a filter's argument
    assert ("", "%(number)s judgment wanted.") in marked  # ngettext
    assert ("round", "Cancelled") in marked  # pgettext_lazy


def test_each_message_is_in_each_catalogue_and_nothing_else_is(catalogue, marked):
    known = {key(entry) for entry in catalogue if not entry.obsolete}
    assert sorted(marked - known) == []  # to be translated: the command is above
    assert sorted(known - marked) == []  # nothing says these any more


def test_each_message_is_translated(catalogue):
    empty = [entry for entry in catalogue if not all(texts(entry))]
    assert named(empty) == []
    assert named(catalogue.fuzzy_entries()) == []
    assert named(catalogue.obsolete_entries()) == []


def test_translations_fill_in_the_same_values_and_keep_the_same_tags(catalogue):
    for pattern in (PLACEHOLDER, TAG):
        wrong = []
        for entry in catalogue:
            sources = [entry.msgid, entry.msgid_plural or entry.msgid]
            allowed = [sorted(pattern.findall(source)) for source in sources]
            forms = [sorted(pattern.findall(text)) for text in texts(entry)]
            if not (all(form in allowed for form in forms) and forms[-1] == allowed[-1]):
                wrong.append(entry)
        assert named(wrong) == []


def test_each_plural_has_the_forms_that_its_language_has(catalogue):
    forms = int(re.search(r"nplurals=(\d)", catalogue.metadata["Plural-Forms"])[1])
    plurals = [entry for entry in catalogue if entry.msgid_plural]
    assert plurals
    assert named([entry for entry in plurals if len(entry.msgstr_plural) != forms]) == []


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_is_compiled_is_what_is_written(language):
    written = polib.pofile(str(folder(language) / "django.po"))
    compiled = polib.mofile(str(folder(language) / "django.mo"))
    assert {key(entry): texts(entry) for entry in compiled} == {
        key(entry): texts(entry) for entry in written
    }
    assert compiled.metadata["Plural-Forms"] == written.metadata["Plural-Forms"]


# --- pages ------------------------------------------------------------------------------------


@pytest.fixture
def project(db) -> Project:
    project = make_project(name="Kitchen helper")
    policy = make_policy(project=project, name="Starter", state=PolicyState.SERVING)
    for _ in range(3):
        judge(comparison=make_comparison(project=project, policy=policy), strength=2)
    return project


def reader(project: Project, role: Role, language: str) -> Client:
    """Somebody who has chosen a language."""
    user = make_user(role=role, project=project)
    User.objects.filter(pk=user.pk).update(language=language)
    client = Client()
    client.force_login(user)
    return client


WORDS = {
    "es": {
        "labeling:judge": ("¿Cuál es mejor?", "Saltar", "Señalar"),
        "labeling:history": ("Historial", "Juzgar"),
        "own_settings": ("Tus ajustes", "Idioma", "Guardar"),
    },
    "zh-hans": {
        "labeling:judge": ("哪个更好？", "跳过", "标记"),
        "labeling:history": ("历史", "评判"),
        "own_settings": ("您的设置", "语言", "保存"),
    },
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_annotators_pages_speak_their_language(project, language):
    make_comparison(project=project)
    annotator = reader(project, Role.ANNOTATOR, language)
    for route, words in WORDS[language].items():
        slug = {"slug": project.slug} if ":" in route else {}
        response = annotator.get(reverse(route, kwargs=slug))
        html = response.content.decode()
        assert response.status_code == 200
        assert f'<html lang="{language}"' in html
        assert [word for word in words if word not in html] == []


def manager_pages(project: Project, run_dir: Path) -> list[str]:
    """Addresses of a manager's pages, with something on each."""
    policy = project.policies.get()
    batch = make_batch(project=project, policies={policy: 1}, temperature=0.7)
    (run_dir / "metrics.jsonl").write_text("")
    log_steps(run_dir, 20, 40)
    round_ = make_round(project, RoundState.SUCCEEDED, run_dir, policy=policy, results=RESULTS)
    routes = ["labeling:project", "labeling:preferences", "labeling:policies", "training:rounds"]
    routes += ["generation:batches", "generation:add_policy", "training:new_round"]
    routes += ["labeling:people", "labeling:queue", "labeling:flags", "labeling:project_settings"]
    routes += ["labeling:notifications", "training:schedule", "training:disk"]
    evaluation = make_evaluation(project=project, pairs=24)
    annotator = make_user(project=project, role=Role.ANNOTATOR, username="12")
    judge_evaluation(evaluation, "wwltbw" * 3, annotator)
    asked = Prompt.objects.filter(comparisons__evaluation=evaluation)
    asked.update(messages=[{"role": "user", "content": "9"}])
    Response.objects.filter(prompt__in=asked).update(text="10")
    Policy.objects.filter(pk=evaluation.policy_id).update(name="11")
    named = {"labeling:evaluation": evaluation.pk, "labeling:new_evaluation": policy.pk}
    named["labeling:policy"] = policy.pk
    return [
        *(reverse(route, args=[project.slug]) for route in routes),
        *(reverse(route, args=[project.slug, pk]) for route, pk in named.items()),
        f"{reverse('training:compare_rounds', args=[project.slug])}?rounds={round_.number}",
        reverse("generation:batch", args=[project.slug, batch.number]),
        page_of(round_),
    ]


OPENED, CLOSED = "\u27e6", "\u27e7"  # around what has gone through a catalogue
# Names, and what is said the same in every language.
AS_IT_IS = re.compile(
    r"Prefloop|English|Español|Esc|Ctrl|float32|bfloat16|IPO|DPO|SimPO|Hinge|SHA-256|"
    r"[0-9a-f]{10,}|transformers|vllm|ln 2|/\S+|UTC"
)
ZONES = available_timezones()


class Unmarked(HTMLParser):
    """What a page says, in texts and attributes, that no catalogue was asked about."""

    SILENT = ("script", "style", "code", "pre", "kbd")
    ATTRIBUTES = ("aria-label", "title", "placeholder", "alt")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.depth = self.silent = 0

    def handle_starttag(self, tag, attrs):
        self.silent += tag in self.SILENT
        for name, value in attrs:
            if name in self.ATTRIBUTES and value and self._outside(value, 0):
                self.found.append(value)

    def handle_endtag(self, tag):
        self.silent -= tag in self.SILENT

    def handle_data(self, data):
        if data.strip() in ZONES:
            return
        if not self.silent and self._outside(data, self.depth):
            self.found.append(data.strip())
        self.depth += data.count(OPENED) - data.count(CLOSED)

    @staticmethod
    def _outside(text: str, depth: int) -> bool:
        """Whether there are words outside the marks, of which so many are open before it."""
        outside = ""
        for sign in text:
            depth += (sign == OPENED) - (sign == CLOSED)
            outside += sign if depth == 0 else " "
        return bool(re.search(r"[A-Za-z]{2,}", AS_IT_IS.sub("", outside)))


def mark_translations(monkeypatch) -> None:
    """Have every catalogue answer with the text that it was asked about, between marks."""

    def marked(text: str) -> str:
        return f"{OPENED}{text}{CLOSED}" if text else ""

    catalogues = translation._trans
    answers = {
        "gettext": marked,
        "pgettext": lambda context, text: marked(text),
        "ngettext": lambda one, more, number: marked(one if number == 1 else more),
        "npgettext": lambda context, one, more, number: marked(one if number == 1 else more),
    }
    for name, answer in answers.items():
        monkeypatch.setattr(catalogues, name, answer, raising=False)


def test_every_word_of_a_page_goes_through_the_catalogues(db, tmp_path, monkeypatch):
    """The record is without letters here: whatever is in letters is the page's own."""
    project = make_project(slug="1", name="1")
    policy = make_policy(project=project, name="2", state=PolicyState.SERVING)
    make_comparison(project=project, prompt=make_prompt(project=project, text="3"), texts="45")
    people = {role: make_user(project=project, role=role, username=role[0]) for role in Role}
    judged = make_comparison(
        project=project, prompt=make_prompt(project=project, text="6"), texts="78", policy=policy
    )
    judge(comparison=judged, annotator=people[Role.MANAGER], strength=2)
    addresses = [*manager_pages(project, tmp_path), reverse("home"), reverse("own_settings")]
    for route in ("judge", "history", "guide", "practice"):
        addresses.append(reverse(f"labeling:{route}", args=[project.slug]))
    mark_translations(monkeypatch)
    for person in people.values():
        client = Client()
        client.force_login(person)
        for address in addresses:
            response = client.get(address, follow=True)
            page = Unmarked()
            page.feed(response.content.decode())
            assert (address, page.found) == (address, [])
            assert (address, page.depth) == (address, 0)


def test_drawings_keep_their_numbers_where_a_comma_is_the_decimal_sign(project, tmp_path):
    manager = reader(project, Role.MANAGER, "es")
    manager_pages(project, tmp_path)
    html = manager.get(page_of(project.rounds.get())).content.decode()
    drawn = re.findall(r'\s(?:x|y|x1|y1|cx|cy|d|dx|dy|width|height|viewBox)="([^"]*)"', html)
    assert len(drawn) > 50
    assert [value for value in drawn if "," in value] == []
    assert "0,693147" in html  # and the figures beside them have it


@pytest.mark.parametrize(
    ("language", "told"),
    [("en", "3 h ago 2 min 5 s"), ("es", "hace 3 h 2 min 5 s"), ("zh-hans", "3 小时前 2 分 5 秒")],
)
def test_times_are_told_in_the_words_of_the_language(language, told):
    with translation.override(language):
        when = ago(timezone.now() - timedelta(hours=3, minutes=2))
        assert f"{strip_tags(when)} {duration(125)}" == told


@pytest.mark.parametrize(
    ("language", "told"),
    [("en", "12 May 2024"), ("es", "el 12 may 2024"), ("zh-hans", "2024年5月12日")],
)
def test_days_are_told_in_the_order_of_the_language(language, told):
    with translation.override(language):
        assert strip_tags(ago(datetime(2024, 5, 12, 12, tzinfo=UTC))) == told


def test_why_a_plan_stopped_is_kept_in_english_and_told_in_the_readers_language(db):
    """Somebody's own language must not stand in the record for everybody."""
    project = make_project()
    make_policy(project=project, state=PolicyState.SERVING)
    with translation.override("es"):
        save_plan(project=project, actor=None, ready=5, weights={"current": 1})
        top_up(project=project)
    plan = Plan.objects.get(project=project)
    assert plan.stopped == NOTHING_LEFT
    html = reader(project, Role.MANAGER, "zh-hans").get(
        reverse("generation:batches", args=[project.slug])
    )
    with translation.override("zh-hans"):
        assert gettext(NOTHING_LEFT) != NOTHING_LEFT
        assert gettext(NOTHING_LEFT) in html.content.decode()
