"""A record of many comparisons, made straight in the tables; and what a crowd did to it.

`python -m tests.benchmarks.workbench.record fill COMPARISONS ANNOTATORS`, then `audit KEYS_FILE`,
each printing JSON. A process of its own: Django has one database per process.
"""

import hashlib
import json
import random
import sys
import uuid
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import django

django.setup()

from django.contrib.auth import BACKEND_SESSION_KEY, HASH_SESSION_KEY, SESSION_KEY  # noqa: E402
from django.contrib.sessions.backends.db import SessionStore  # noqa: E402
from django.core.management import call_command  # noqa: E402
from django.db import connection, transaction  # noqa: E402
from django.db.models import Count, F, Q  # noqa: E402
from django.utils import timezone  # noqa: E402

from labeling.models import (  # noqa: E402
    Comparison,
    Judgment,
    Lease,
    Membership,
    Preference,
    Project,
    Prompt,
    Response,
    Role,
    Slot,
    User,
)
from labeling.models.comparisons import SHUFFLE_RANGE  # noqa: E402

SLUG = "bench"
PER_PROMPT = 4  # comparisons of each prompt
JUDGED_SHARE = 5  # one in so many is judged already, by people who have left
PAST = 20  # of these people
CHUNK = 5000  # comparisons written together
SENTENCES = 4000
WORDS = ("answer", "bread", "careful", "day", "even", "fair", "good", "help", "idea", "kitchen")


def fill(comparisons: int, annotators: int) -> dict[str, Any]:
    """Comparisons of two answers of 40 to 160 words; sessions of annotators who are signed in."""
    call_command("migrate", verbosity=0)
    project = Project.objects.create(slug=SLUG, name="Bench", overlap=1)
    past = [_member(project, f"past-{number}") for number in range(PAST)]
    pick = random.Random(0)
    sentences = [" ".join(pick.choices(WORDS, k=8)).capitalize() + "." for _ in range(SENTENCES)]
    for start in range(0, comparisons, CHUNK):
        with transaction.atomic():
            _write(project, past, sentences, pick, range(start, min(start + CHUNK, comparisons)))
    settle((Prompt, Response, Comparison, Slot, Judgment, Preference))
    crowd = [_member(project, f"annotator-{number}") for number in range(annotators)]
    return {"slug": SLUG, "sessions": [session_of(person) for person in crowd]}


def _member(project: Project, name: str) -> User:
    user = User.objects.create(username=name, password="!")
    Membership.objects.create(user=user, project=project, role=Role.ANNOTATOR)
    return user


def session_of(user: User) -> str:
    """The key of a session as signing in makes one; hashing passwords is not what is measured."""
    session = SessionStore()
    session[SESSION_KEY] = str(user.pk)
    session[BACKEND_SESSION_KEY] = "django.contrib.auth.backends.ModelBackend"
    session[HASH_SESSION_KEY] = user.get_session_auth_hash()
    session.create()
    return str(session.session_key)


def _write(
    project: Project,
    past: Sequence[User],
    sentences: Sequence[str],
    pick: random.Random,
    ids: range,
) -> None:
    """Rows whose ids are known before: one pass, no look-ups."""
    now = timezone.now() - timedelta(days=30)
    prompts = sorted({number // PER_PROMPT for number in ids})
    insert(Prompt, (_prompt(project, number, sentences, pick, now) for number in prompts))
    insert(Response, (row for number in ids for row in _responses(number, sentences, pick, now)))
    insert(Comparison, (_comparison(project, number, pick, now) for number in ids))
    insert(Slot, (row for number in ids for row in _slots(number)))
    judged = [number for number in ids if _is_judged(number)]
    insert(Judgment, (_judgment(number, past, now) for number in judged))
    insert(Preference, (_preference(project, number, now) for number in judged))


def _is_judged(number: int) -> bool:
    return number % JUDGED_SHARE == 0


def _prompt(
    project: Project, number: int, sentences: Sequence[str], pick: random.Random, now: Any
) -> Prompt:
    text = f"Question {number}: {pick.choice(sentences)}"
    return Prompt(
        pk=number + 1,
        project=project,
        messages=[{"role": "user", "content": text}],
        digest=hashlib.sha256(text.encode()).hexdigest(),
        split="train",
        created_at=now,
    )


def _responses(
    number: int, sentences: Sequence[str], pick: random.Random, now: Any
) -> Iterator[Response]:
    for side in (0, 1):
        lines = pick.choices(sentences, k=pick.randint(5, 20))
        text = f"{lines[0]}\n\n- **{lines[1]}**\n- {lines[2]}\n\n{' '.join(lines[3:])} {number}"
        yield Response(
            pk=2 * number + side + 1,
            prompt_id=number // PER_PROMPT + 1,
            text=text,
            text_digest=hashlib.sha256(f"{side}{text}".encode()).hexdigest(),
            created_at=now,
        )


def _comparison(project: Project, number: int, pick: random.Random, now: Any) -> Comparison:
    return Comparison(
        pk=number + 1,
        project=project,
        prompt_id=number // PER_PROMPT + 1,
        overlap=1 if _is_judged(number) else 1 + number % 3,
        judged=int(_is_judged(number)),
        state=Comparison.State.JUDGED if _is_judged(number) else Comparison.State.OPEN,
        shuffle_key=pick.randrange(SHUFFLE_RANGE),
        created_at=now,
    )


def _slots(number: int) -> Iterator[Slot]:
    for side in (0, 1):
        yield Slot(
            pk=2 * number + side + 1,
            comparison_id=number + 1,
            index=side,
            response_id=2 * number + side + 1,
        )


def _judgment(number: int, past: Sequence[User], now: Any) -> Judgment:
    return Judgment(
        pk=number + 1,
        comparison_id=number + 1,
        annotator=past[number % PAST],
        tiers=[[0], [1]],
        shown_order=[0, 1],
        key=uuid.uuid4().hex,
        created_at=now,
    )


def _preference(project: Project, number: int, now: Any) -> Preference:
    return Preference(
        pk=number + 1,
        project=project,
        comparison_id=number + 1,
        low_slot=0,
        high_slot=1,
        chosen_id=2 * number + 1,
        rejected_id=2 * number + 2,
        votes_for=1,
        votes_against=0,
        votes_tied=0,
        probability=0.75,
        updated_at=now,
    )


def insert(model: Any, rows: Iterable[Any]) -> None:
    """As fast as the database takes rows: COPY on PostgreSQL, executemany on SQLite."""
    fields = model._meta.concrete_fields
    columns = ", ".join(f'"{field.column}"' for field in fields)
    table = model._meta.db_table
    with connection.cursor() as cursor:
        values = (
            [field.get_db_prep_save(getattr(row, field.attname), connection) for field in fields]
            for row in rows
        )
        if connection.vendor == "postgresql":
            with cursor.copy(f'COPY "{table}" ({columns}) FROM STDIN') as copy:  # noqa: S608
                for row in values:
                    copy.write_row(row)
            return
        marks = ", ".join(["%s"] * len(fields))
        cursor.executemany(f'INSERT INTO "{table}" ({columns}) VALUES ({marks})', values)  # noqa: S608


def settle(models: Iterable[Any]) -> None:
    """PostgreSQL goes on counting after the ids that were given; both look at what there is.

    Its cleaning of a table that was just filled would else go on beside what is measured.
    """
    with connection.cursor() as cursor:
        for model in models if connection.vendor == "postgresql" else ():
            table = model._meta.db_table
            cursor.execute(
                f"SELECT setval(pg_get_serial_sequence('{table}', 'id'),"  # noqa: S608
                f" (SELECT max(id) FROM {table}))"
            )
        cursor.execute("VACUUM ANALYZE" if connection.vendor == "postgresql" else "ANALYZE")


def audit(keys_file: Path) -> dict[str, int]:
    """Acknowledged verdicts that are not there, and comparisons with more than their overlap."""
    keys = keys_file.read_text().split()
    there = set(
        Judgment.objects.filter(annotator__username__startswith="annotator-").values_list(
            "key", flat=True
        )
    )
    touched = Comparison.objects.filter(
        Q(judgments__annotator__username__startswith="annotator-")
        | Q(pk__in=Lease.objects.live().values("comparison"))
    ).distinct()
    counted = touched.annotate(
        counted=Count("judgments", distinct=True, filter=Q(judgments__superseded_at=None)),
        live=Count("leases", distinct=True, filter=Q(leases__expires_at__gt=timezone.now())),
    )
    return {
        "acknowledged": len(keys),
        "lost": len(set(keys) - there),
        "doubled": len(keys) - len(set(keys)),
        "double_assigned": counted.filter(overlap__lt=F("counted") + F("live")).count(),
    }


if __name__ == "__main__":
    if sys.argv[1] == "fill":
        print(json.dumps(fill(int(sys.argv[2]), int(sys.argv[3]))))
    else:
        print(json.dumps(audit(Path(sys.argv[2]))))
