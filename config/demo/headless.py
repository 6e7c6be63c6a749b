"""The loop with simulated people: they judge and manage through the pages, over HTTP."""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from django.db import close_old_connections
from django.urls import reverse

from config.demo.browser import Browser, Page
from config.demo.preparing import SLUG, SignIn
from config.demo.progress import Bar
from config.demo.site import Site
from config.demo.taste import Taste, preferred_share
from generation.models import Batch
from labeling.models import Comparison, Policy, Project, Response, Split
from labeling.services.promoting import serving_policy
from training.models import Round, RoundState
from training.starter.styles import StyleClassifier

ROUNDS = 2
JOB_LIMIT_S = 30 * 60
POLL_S = 0.5
WHY_PROMOTED = "The demo promotes every round's policy, to show the loop."


class LoopError(Exception):
    """The loop did not close; the message says at which step."""


@dataclass(frozen=True, kw_only=True)
class RoundFigures:
    """One line of the table. Round 0 is the untrained policy."""

    round: int
    preferred_share: float  # of answers sampled for held-out prompts, by style
    reward_accuracy: float | None  # on held-out pairs, after training
    mean_tokens: float  # a response, for held-out prompts
    loss_step0: float | None


class Loop:
    """Simulated annotators and a manager at a running site."""

    def __init__(self, site: Site, project: Project, people: Sequence[SignIn]) -> None:
        self._site = site
        self._project = project
        self._manager = self._signed_in(people[0])
        self._annotators = [self._signed_in(person) for person in people[1:]]
        self._classifier = StyleClassifier.from_corpus()

    def run(self, rounds: int = ROUNDS) -> list[RoundFigures]:
        """So many times: judge, train, promote, write new candidates."""
        table = [self._figures(0, None)]
        for number in range(1, rounds + 1):
            self._judge_everything(number)
            round_ = self._train(number)
            self._promote(round_)
            table.append(self._figures(number, round_))
        return table

    def _signed_in(self, person: SignIn) -> Browser:
        browser = Browser(self._site.address)
        browser.sign_in(person.username, person.password)
        return browser

    def _judge_everything(self, number: int) -> None:
        total = self._open_comparisons()
        bar = Bar(f"Round {number}: judging")
        stop = threading.Event()
        with ThreadPoolExecutor(len(self._annotators)) as pool, _set_at_exit(stop):
            tastes = [
                Taste(self._classifier, seed=10 * number + place)
                for place in range(len(self._annotators))
            ]
            working = [
                pool.submit(_judge_all, browser, taste, stop)
                for browser, taste in zip(self._annotators, tastes, strict=True)
            ]
            while not all(one.done() for one in working):
                self._site.check()
                bar.update(total - self._open_comparisons(), total)
                time.sleep(POLL_S)
            judged = sum(one.result() for one in working)
        bar.finish(f"{judged} judgments")

    def _open_comparisons(self) -> int:
        close_old_connections()
        return self._project.comparisons.filter(state=Comparison.State.OPEN).count()

    def _train(self, number: int) -> Round:
        path = reverse("training:new_round", args=[SLUG])
        self._manager.send(self._manager.get(path).form(path))
        round_ = self._project.rounds.get(number=number)

        def progress() -> tuple[int, int]:
            round_.refresh_from_db()
            return round_.step, round_.total_steps

        self._follow(f"Round {number}: training", progress, lambda: not round_.live)
        if round_.state != RoundState.SUCCEEDED:
            raise LoopError(f"Round {number} {round_.state}: {round_.error}")
        return round_

    def _promote(self, round_: Round) -> None:
        policy = round_.policy
        if policy is None:
            raise LoopError(f"Round {round_.number} made no policy")
        policies = self._manager.get(reverse("labeling:policies", args=[SLUG]))
        promote = policies.form(reverse("labeling:promote", args=[SLUG, policy.pk]))
        self._manager.send(promote, {"reason": WHY_PROMOTED})
        if serving_policy(self._project) != policy:
            raise LoopError(f"{policy} was not promoted")
        self.wait_for_candidates(f"Round {round_.number}: new candidates")

    def wait_for_candidates(self, label: str) -> None:
        """Until the latest batch has been taken in."""
        batch = self._project.batches.order_by("-number")[0]
        follow_batch(self._site, batch, label)

    def _follow(
        self, label: str, progress: Callable[[], tuple[int, int]], ended: Callable[[], bool]
    ) -> None:
        follow(self._site, label, progress, ended)

    def _figures(self, number: int, round_: Round | None) -> RoundFigures:
        policy = serving_policy(self._project)
        if policy is None:
            raise LoopError("No policy serves.")
        texts, times, tokens = _held_out_samples(policy)
        results: dict[str, Any] = round_.results if round_ else {}
        after = results.get("held_out_after") or {}
        return RoundFigures(
            round=number,
            preferred_share=preferred_share(texts, times, self._classifier),
            reward_accuracy=after.get("accuracy"),
            mean_tokens=tokens / sum(times),
            loss_step0=results.get("loss_step0"),
        )


def follow_batch(site: Site, batch: Batch, label: str) -> None:
    """Show a batch's progress to its end; LoopError where it fails."""

    def progress() -> tuple[int, int]:
        batch.refresh_from_db()
        return batch.done, batch.total

    follow(site, label, progress, lambda: not batch.live)
    if batch.state != "succeeded":
        raise LoopError(f"{batch} {batch.state}: {batch.error}")


def follow(
    site: Site, label: str, progress: Callable[[], tuple[int, int]], ended: Callable[[], bool]
) -> None:
    """Show the progress of a job of the worker until it has ended."""
    bar = Bar(label)
    deadline = time.monotonic() + JOB_LIMIT_S
    while True:
        close_old_connections()
        bar.update(*progress())
        if ended():
            bar.finish()
            return
        site.check()
        if time.monotonic() > deadline:
            raise LoopError(f"{label} took longer than {JOB_LIMIT_S // 60} minutes")
        time.sleep(POLL_S)


@contextmanager
def _set_at_exit(stop: threading.Event) -> Iterator[None]:
    """Ctrl+C must not wait for people who are still judging."""
    try:
        yield
    finally:
        stop.set()


def _judge_all(browser: Browser, taste: Taste, stop: threading.Event) -> int:
    """Judge what the judging page offers until it offers nothing; returns how many."""
    judged = 0
    path = reverse("labeling:judge", args=[SLUG])
    page = browser.get(path)
    while page.has_form(path) and not stop.is_set():
        page = browser.send(page.form(path), _verdict(page, taste))
        judged += 1
    return judged


def _verdict(page: Page, taste: Taste) -> dict[str, str]:
    """What a person would press, for the answers on the page."""
    tiers = taste.rank(page.answers)
    if len(page.answers) == 2:
        choice = "4" if len(tiers) == 1 else ("2" if tiers[0] == [0] else "6")
        return {"choice": choice}
    places = {place: str(rank) for rank, tier in enumerate(tiers, start=1) for place in tier}
    fields = {f"place_{'ABCDEFGH'[place]}": rank for place, rank in places.items()}
    return {"choice": "ranking", "confirmed": "1", **fields}


def _held_out_samples(policy: Policy) -> tuple[list[str], list[int], int]:
    """Texts that the policy sampled for held-out prompts, how often each, and tokens in all."""
    rows = Response.objects.filter(policy=policy, prompt__split=Split.HELD_OUT)
    texts, times, tokens = [], [], 0
    for text, count, ids in rows.values_list("text", "times_sampled", "token_ids"):
        texts.append(text)
        times.append(count)
        tokens += count * len(ids or [])
    if not texts:
        raise LoopError(f"{policy} has answered no held-out prompt")
    return texts, times, tokens


def improved(table: Sequence[RoundFigures]) -> bool:
    """Whether the loop made the policy better at what its annotators prefer."""
    return table[-1].preferred_share > table[0].preferred_share


def as_text(table: Sequence[RoundFigures]) -> str:
    """The table for a terminal."""
    lines = ["Round  Preferred style  Reward accuracy  Mean tokens  Loss at step 0"]
    for row in table:
        accuracy = "-" if row.reward_accuracy is None else f"{row.reward_accuracy:.1%}"
        loss = "-" if row.loss_step0 is None else f"{row.loss_step0:.6f}"
        lines.append(
            f"{row.round:>5}  {row.preferred_share:>15.1%}  {accuracy:>15}  "
            f"{row.mean_tokens:>11.1f}  {loss:>14}"
        )
    return "\n".join(lines)


def as_json(table: Sequence[RoundFigures]) -> dict[str, Any]:
    """The table for a program."""
    return {"rounds": [asdict(row) for row in table]}
