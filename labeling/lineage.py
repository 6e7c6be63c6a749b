"""Policies by descent."""

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from labeling.models import Policy

MOST_LANES = 8  # side branches of side branches that are drawn further in


@dataclass(frozen=True, kw_only=True)
class Member:
    """A policy's row in the family tree. `rails` draw the lanes to its left, outermost first."""

    policy: Policy
    rails: tuple[str, ...]
    root: bool
    continued: bool


@dataclass(frozen=True, kw_only=True)
class Fold:
    """So many members in a row that are not shown."""

    number: int


def initial_policy(policy: Policy) -> Policy:
    """The policy at the root of this one's line; two queries, however long the line is."""
    parents = dict(policy.project.policies.values_list("pk", "parent"))
    root = policy.pk
    while (parent := parents[root]) is not None:
        root = parent
    return policy if root == policy.pk else policy.project.policies.get(pk=root)


def line_of(policy: Policy) -> list[Policy]:
    """The policies that this one descends from, the initial one first, and itself last."""
    parents = dict(policy.project.policies.values_list("pk", "parent"))
    keys = [policy.pk]
    while (parent := parents[keys[-1]]) is not None:
        keys.append(parent)
    found = policy.project.policies.only("name", "state", "deleted_at", "project").in_bulk(keys)
    return [found[key] for key in reversed(keys)]


def family(policies: Sequence[Policy], serving: Policy | None) -> Iterator[Member]:
    """The tree, depth first. A line stays in one lane: only side branches are indented.

    The heir that stays in the lane is on the way to the serving policy, else the youngest child.
    """
    children: dict[int | None, list[Policy]] = defaultdict(list)
    by_id = {policy.pk: policy for policy in policies}
    for policy in policies:
        children[policy.parent_id].append(policy)
    line = set()
    ancestor = serving
    while ancestor is not None:
        line.add(ancestor.pk)
        ancestor = by_id.get(ancestor.parent_id) if ancestor.parent_id else None
    # Each with the rails to the left of its own row, and of those that come after it in its lane.
    ahead: list[tuple[Policy, tuple[str, ...], tuple[str, ...]]]
    ahead = [(root, (), ()) for root in reversed(children[None])]
    while ahead:
        policy, rails, later = ahead.pop()
        born = children[policy.pk]
        yield Member(
            policy=policy, rails=rails, root=policy.parent_id is None, continued=bool(born)
        )
        heir = next((one for one in born if one.pk in line), born[-1] if born else None)
        if heir is not None:
            ahead.append((heir, later, later))
        outer = later[: MOST_LANES - 1]
        sides = [one for one in born if one is not heir]
        ahead += [(one, (*outer, "branch"), (*outer, "pass")) for one in reversed(sides)]


def folded(members: Sequence[Member], shown: Collection[int]) -> Iterator[Member | Fold]:
    """The tree with only these policies, by id; what is left out between them is counted."""
    left_out = 0
    for member in members:
        if member.policy.pk in shown:
            if left_out:
                yield Fold(number=left_out)
            left_out = 0
            yield member
        else:
            left_out += 1
    if left_out:
        yield Fold(number=left_out)
