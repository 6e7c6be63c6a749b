"""The only way a view gets an object: missing and forbidden are the same 404."""

from django.http import Http404

from labeling.models import Membership, Project, Role, User

EVERYONE = (Role.ANNOTATOR, Role.MANAGER, Role.CONSUMER)
JUDGES = (Role.ANNOTATOR, Role.MANAGER)
MANAGERS = (Role.MANAGER,)
EXPORTERS = (Role.MANAGER, Role.CONSUMER)


def project_for(user: User, slug: str, roles: tuple[Role, ...]) -> Project:
    """The project if the user has one of these roles in it; else 404.

    `project.role` and `project.membership` are set.
    """
    membership = (
        Membership.objects.filter(user=user, project__slug=slug, role__in=roles)
        .select_related("project")
        .first()
    )
    if membership is None:
        raise Http404("There is no such project, or you are not a member of it.")
    membership.project.role = membership.role  # type: ignore[attr-defined]
    membership.project.membership = membership  # type: ignore[attr-defined]
    return membership.project


def memberships_of(user: User) -> list[Membership]:
    """The user's projects and roles, by name."""
    return list(user.memberships.select_related("project").order_by("project__name"))
