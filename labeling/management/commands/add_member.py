"""`manage.py add_member NAME --project SLUG --role ROLE`: let a person in."""

import secrets
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from labeling.models import Membership, Project, Role, User


class Command(BaseCommand):
    """There is no sign-up: people come in here."""

    help = "Make a user if need be, and give them a role in a project."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The command's options."""
        parser.add_argument("username")
        parser.add_argument("--project", required=True, help="the project's slug")
        parser.add_argument("--role", required=True, choices=Role.values)

    def handle(self, *args: Any, **options: Any) -> None:
        """A new user's password is printed once; an old user keeps theirs."""
        project = Project.objects.filter(slug=options["project"]).first()
        if project is None:
            raise CommandError(f"There is no project {options['project']}; an import makes one.")
        user, created = User.objects.get_or_create(username=options["username"])
        Membership.objects.update_or_create(
            user=user, project=project, defaults={"role": options["role"]}
        )
        self.stdout.write(f"{user} is now {options['role']} in {project.slug}.")
        if created:
            password = secrets.token_urlsafe(12)
            user.set_password(password)
            user.save(update_fields=["password"])
            self.stdout.write(f"Password, shown only now: {password}")
