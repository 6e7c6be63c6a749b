"""What the words current, previous and base mean among a project's policies."""

from collections.abc import Mapping

from labeling.lineage import initial_policy
from labeling.models import Policy, Project
from labeling.services.promoting import replaced_policy, serving_policy

WORDS = ("current", "previous", "base")


class UnknownPolicy(ValueError):
    """A name that no policy of the project has; the message is for the user."""


def base_of(policy: Policy) -> Policy | None:
    """The policy of this one's line that is the very model which this one's adapter is on.

    None where this one has no adapter, or the line does not say.
    """
    if not policy.adapter_path:
        return None
    line = policy.project.policies.in_bulk()
    one: Policy | None = line[policy.pk]
    while one is not None:
        if one.model_path == policy.model_path and not one.adapter_path:
            return one
        one = line.get(one.parent_id) if one.parent_id else None
    return None


def standing(project: Project) -> dict[str, Policy]:
    """The policies that the words mean now; what is absent is left out.

    The current policy serves, the previous one is what rolling back would put into service, and
    base is the initial policy of the current one's line.
    """
    current = serving_policy(project)
    if current is None:
        return {}
    found = {"current": current, "base": initial_policy(current)}
    previous = replaced_policy(current)
    if previous is not None and previous.deleted_at is None:
        found["previous"] = previous
    return found


def by_word(project: Project, weights: Mapping[str, int]) -> dict[Policy, int]:
    """Weights of policies from weights of words; the weight of what is absent is dropped."""
    found: dict[Policy, int] = {}
    policies = standing(project)
    for word in WORDS:
        if word in policies and weights.get(word):
            found[policies[word]] = found.get(policies[word], 0) + weights[word]
    return found


def by_name(project: Project, weights: Mapping[str, int]) -> dict[Policy, int]:
    """Weights of policies from weights of their names, or of words where no policy has that name.

    UnknownPolicy where there is none.
    """
    named = {one.name: one for one in project.policies.filter(name__in=weights)}
    words = standing(project) if weights.keys() - named.keys() else {}
    found: dict[Policy, int] = {}
    for name, weight in weights.items():
        policy = named.get(name) or words.get(name)
        if policy is None:
            raise UnknownPolicy(f"There is no policy named {name} in {project.name}.")
        found[policy] = found.get(policy, 0) + weight
    return found
