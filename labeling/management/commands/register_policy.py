"""`manage.py register_policy --project SLUG --name NAME --model DIR`: bring a model in."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import IntegrityError

from labeling.models import Project
from labeling.policy_files import UnsafePolicy
from labeling.services.promoting import register_policy


class Command(BaseCommand):
    """The operator's way, from any folder on this machine."""

    help = "Register a model's folder as a policy. The first policy of a project serves at once."

    def add_arguments(self, parser: ArgumentParser) -> None:
        """The command's options."""
        parser.add_argument("--project", required=True, help="the project's slug")
        parser.add_argument("--name", required=True, help="what people will call it")
        parser.add_argument("--model", required=True, type=Path, help="folder of the base model")
        parser.add_argument("--adapter", type=Path, help="folder of a LoRA adapter on it")

    def handle(self, *args: Any, **options: Any) -> None:
        """CommandError says what is wrong; nothing is registered then."""
        project = Project.objects.filter(slug=options["project"]).first()
        if project is None:
            raise CommandError(f"There is no project {options['project']}; an import makes one.")
        adapter: Path | None = options["adapter"]
        try:
            policy = register_policy(
                project=project,
                name=options["name"],
                model_path=options["model"].resolve(),
                adapter_path=adapter.resolve() if adapter else None,
            )
        except UnsafePolicy as error:
            raise CommandError(str(error)) from None
        except IntegrityError:
            raise CommandError(
                f"{project.slug} has another policy named {options['name']}; choose a new name."
            ) from None
        state = policy.get_state_display().lower()
        self.stdout.write(f"{policy.name} is registered ({state}), digest {policy.digest[:12]}.")
