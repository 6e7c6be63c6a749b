"""What all rows of a managed project share: its people, its texts, its days."""

import random
from datetime import datetime, timedelta

from tests.benchmarks.workbench.record import WORDS

# isort: split
from django.utils import timezone

from labeling.models import (
    Membership,
    Project,
    Role,
    User,
)

SLUG = "managed"
SIZE = 5  # responses of a comparison
PER_PROMPT = 4  # comparisons of a prompt
DAYS = 90  # the record's age
ANNOTATORS = 25
UNJUDGED = 20  # beside the judged comparisons, one in so many waits
EVALUATED = 25  # and one in so many is of two policies' responses, for an evaluation
EVALUATIONS = 40
STEPS = 2000  # of the round whose page is opened
PAIRINGS = ("random", "random", "different", "smallest_margin")


class Record:
    """What all rows share: the project, its people and policies, texts, and the dice."""

    def __init__(self, comparisons: int, rounds: int) -> None:
        self.comparisons, self.rounds = comparisons, rounds
        self.pick = random.Random(0)
        self.now = timezone.now()
        self.project = Project.objects.create(
            slug=SLUG, name="Kitchen helper", overlap=2, comparison_size=SIZE
        )
        self.manager = self.member("manager", Role.MANAGER)
        self.member("consumer", Role.CONSUMER)
        for slug in ("second", "third"):
            beside = Project.objects.create(slug=slug, name=slug.capitalize())
            Membership.objects.create(user=self.manager, project=beside, role=Role.MANAGER)
        self.annotators = [
            self.member(f"annotator-{number}", Role.ANNOTATOR) for number in range(ANNOTATORS)
        ]
        self.sentences = [" ".join(self.pick.choices(WORDS, k=8)) + "." for _ in range(4000)]
        self.rankings = [self.ranking() for _ in range(400)]

    def member(self, name: str, role: Role) -> User:
        user = User.objects.create(username=name, password="!")
        Membership.objects.create(user=user, project=self.project, role=role)
        return user

    def ranking(self) -> list[list[int]]:
        """Tiers; two in one of them now and then."""
        order = self.pick.sample(range(SIZE), SIZE)
        if self.pick.random() < 0.3:
            at = self.pick.randrange(SIZE - 1)
            return (
                [[slot] for slot in order[:at]]
                + [sorted(order[at : at + 2])]
                + [[slot] for slot in order[at + 2 :]]
            )
        return [[slot] for slot in order]

    def at(self, share: float) -> datetime:
        """A moment of the record's days; 1 is almost now."""
        return self.now - timedelta(days=DAYS) * (1 - share) - timedelta(minutes=1)

    def text(self, sentences: int, mark: int) -> str:
        return f"{' '.join(self.pick.choices(self.sentences, k=sentences))} {mark}"
