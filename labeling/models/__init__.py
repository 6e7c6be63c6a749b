"""The record: what is stored, and the constraints that the database itself keeps."""

from labeling.models.comparisons import Comparison, Lease, Skip, Slot
from labeling.models.judgments import Judgment
from labeling.models.people import Membership, Role, User
from labeling.models.policies import Policy, PolicyEvent, PolicyState
from labeling.models.preferences import Preference
from labeling.models.projects import Project
from labeling.models.prompts import Prompt, Response, Split

__all__ = [
    "Comparison",
    "Judgment",
    "Lease",
    "Membership",
    "Policy",
    "PolicyEvent",
    "PolicyState",
    "Preference",
    "Project",
    "Prompt",
    "Response",
    "Role",
    "Skip",
    "Slot",
    "Split",
    "User",
]
