"""Policies by descent."""

from labeling.models import Policy


def initial_policy(policy: Policy) -> Policy:
    """The policy at the root of this one's line; two queries, however long the line is."""
    parents = dict(policy.project.policies.values_list("pk", "parent"))
    root = policy.pk
    while (parent := parents[root]) is not None:
        root = parent
    return policy if root == policy.pk else policy.project.policies.get(pk=root)
