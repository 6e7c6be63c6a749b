"""The record: what is stored, and the constraints that the database itself keeps."""

from labeling.models.comparisons import Comparison, Lease, Skip, Slot
from labeling.models.evaluations import Evaluation
from labeling.models.examples import Example, PracticeAnswer
from labeling.models.figures import Figure
from labeling.models.judgments import Flag, Judgment
from labeling.models.notifications import Delivery, Event, Subscription
from labeling.models.people import Invitation, Membership, Role, TextSize, User
from labeling.models.policies import Policy, PolicyEvent, PolicyState
from labeling.models.preferences import Preference
from labeling.models.projects import Guidelines, Project, Rationale
from labeling.models.prompts import Prompt, Response, Split
from labeling.models.queue import QueueChange

__all__ = [
    "Comparison",
    "Delivery",
    "Evaluation",
    "Event",
    "Example",
    "Figure",
    "Flag",
    "Guidelines",
    "Invitation",
    "Judgment",
    "Lease",
    "Membership",
    "Policy",
    "PolicyEvent",
    "PolicyState",
    "PracticeAnswer",
    "Preference",
    "Project",
    "Prompt",
    "QueueChange",
    "Rationale",
    "Response",
    "Role",
    "Skip",
    "Slot",
    "Split",
    "Subscription",
    "TextSize",
    "User",
]
