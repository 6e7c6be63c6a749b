"""The page on which a round is put together: what is asked for, and what that would come to."""

from dataclasses import dataclass
from typing import Any

from django import forms
from django.http import QueryDict
from django.utils.translation import gettext_lazy as _

from jobs.run_dir import RunDirError
from labeling.lineage import initial_policy
from labeling.models import Policy, Project
from labeling.requests import number_in
from labeling.services.promoting import serving_policy
from training.estimate import Estimate, estimate
from training.filter_form import FilterForm
from training.filters import BadFilters, Filters
from training.forms import RoundForm
from training.material import PairCounts, Sample, count_pairs, count_prompts, sample_of
from training.models import AfterSuccess, Reference, Round
from training.options import OptionFields
from training.pictures import MaterialReport, material_report
from training.presets import Preset, preset, suiting
from training.readiness import Problem, readiness
from training.spec import Setting, in_lines, resolved
from training.trainer.config import DEFAULTS, ONLY_WITH


class AfterForm(forms.Form):
    """What comes after success."""

    after = forms.ChoiceField(
        required=False,
        choices=AfterSuccess.choices,
        widget=forms.RadioSelect,
        label=_("When it has made a policy"),
        help_text=_(
            "People then compare it, blind, with the one that serves; whether it is better is what "
            "the project's gate asks."
        ),
    )


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A round as it is put together: from a preset or another round, changed by its manager."""

    project: Project
    serving: Policy | None
    like: Round | None
    preset: Preset | None
    suits: Preset | None  # the one for the policy's size and the number of pairs
    options: RoundForm
    filters: FilterForm
    after: AfterForm

    @property
    def valid(self) -> bool:
        """Whether it could be started like this, all forms looked at."""
        wrong = [f for f in (self.options, self.filters, self.after) if not f.is_valid()]
        return not wrong

    @property
    def wanted(self) -> Filters:
        """The filters as far as they make sense."""
        if self.filters.is_bound:
            return self.filters.filters if self.filters.is_valid() else Filters()
        return _filters_of(self.like)

    @property
    def chosen(self) -> dict[str, Any]:
        """The options as far as they make sense, by the trainer's names.

        What suits the policy and was switched off is said: else it would be switched on again.
        """
        sound = self.options.is_bound and self.options.is_valid()
        said = self.options.options if sound else self.options.as_it_begins()
        suits = self.suits.options if self.suits else {}
        off = {name: False for name, value in suits.items() if value is True}
        return off | _without_field(self.like, said) | said

    @property
    def success(self) -> AfterSuccess:
        """What comes after success; the form has been found valid."""
        return AfterSuccess(self.after.cleaned_data["after"] or AfterSuccess.NOTHING)

    def as_round(self) -> Round | None:
        """The round, not saved; None as long as no policy serves."""
        if self.serving is None:
            return None
        asked = self.options.data if self.options.is_bound else self.options.initial
        own = asked.get("reference") == Reference.START
        return Round(
            project=self.project,
            start=self.serving,
            reference=self.serving if own else initial_policy(self.serving),
            options=self.chosen,
        )


@dataclass(frozen=True, kw_only=True)
class Outlook:
    """What a round as it is asked for would come to."""

    problems: list[Problem]
    pairs: PairCounts
    estimate: Estimate | None
    report: MaterialReport
    settings: list[Setting]

    @property
    def blocked(self) -> bool:
        """Whether it cannot be started."""
        return any(problem.blocks for problem in self.problems)


def asked(project: Project, address: QueryDict, sent: QueryDict | None = None) -> Asked:
    """The forms: as they were sent, or as the preset or the round in the address has them."""
    serving = serving_policy(project)
    like = _like(project, (sent or address).get("like"))
    pairs = count_pairs(project)
    suits = suiting(serving, pairs.train) if serving else None
    chosen = preset(address.get("preset", "")) or (None if like else suits)
    start: dict[str, Any] = dict(chosen.options) if chosen else {}
    if like is not None:
        start = like.options | {"reference": _reference(like)} | start
    filters, after = _filters_of(like), like.after if like else AfterSuccess.NOTHING
    return Asked(
        project=project,
        serving=serving,
        like=like,
        preset=chosen,
        suits=suits,
        options=RoundForm(sent, defaults=start, held_out=pairs.held_out),
        filters=FilterForm(project, sent, initial=filters),
        after=AfterForm(sent, initial={"after": after}),
    )


def outlook(asked: Asked) -> Outlook:
    """What stands in the way, the data, the time and the memory."""
    project, filters = asked.project, asked.wanted
    pairs, sample = count_pairs(project, filters), sample_of(project, filters)
    return Outlook(
        problems=readiness(project, pairs, sample),
        pairs=pairs,
        estimate=_estimate(asked, pairs, sample),
        report=material_report(project, pairs, sample, count_prompts(project)),
        settings=_settings(asked),
    )


def _estimate(asked: Asked, pairs: PairCounts, sample: Sample) -> Estimate | None:
    if asked.serving is None:
        return None
    return estimate(asked.project, asked.serving, asked.chosen, pairs=pairs, sample=sample)


def _settings(asked: Asked) -> list[Setting]:
    """The spec; nothing where the trainer would refuse it, which the form says at its fields."""
    round_ = asked.as_round()
    try:
        return in_lines(resolved(round_)) if round_ else []
    except RunDirError:
        return []


def _like(project: Project, number: str | None) -> Round | None:
    """The round that another one is to be like; none of that number is as if none were named."""
    wanted = number_in(number)
    found = project.rounds.select_related("start", "reference")
    return found.filter(number=wanted).first() if wanted is not None else None


def _without_field(like: Round | None, said: dict[str, Any]) -> dict[str, Any]:
    """Options of another round that no form has, as far as they still mean anything."""
    kept = {}
    for name, value in like.options.items() if like else ():
        other, values = ONLY_WITH.get(name, ("", ()))
        idle = other and said.get(other, DEFAULTS[other]) not in values
        if name not in OptionFields.base_fields and not idle:
            kept[name] = value
    return kept


def _filters_of(like: Round | None) -> Filters:
    try:
        return Filters.from_json(like.filters) if like else Filters()
    except BadFilters:
        return Filters()


def _reference(like: Round) -> str:
    own = like.reference_id == like.start_id and initial_policy(like.start).pk != like.start_id
    return Reference.START if own else Reference.INITIAL
