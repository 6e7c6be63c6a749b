"""Guidelines that were a text of the project become their first version."""

from typing import Any

from django.db import migrations


def keep_texts(apps: Any, schema_editor: Any) -> None:
    """Each project's text as version 1, in force."""
    versions = apps.get_model("labeling", "Guidelines")
    for project in apps.get_model("labeling", "Project").objects.exclude(guidelines_text=""):
        project.guidelines = versions.objects.create(
            project=project, number=1, text=project.guidelines_text
        )
        project.save(update_fields=["guidelines"])


def restore_texts(apps: Any, schema_editor: Any) -> None:
    """The version in force as the project's text."""
    projects = apps.get_model("labeling", "Project").objects.exclude(guidelines=None)
    for project in projects.select_related("guidelines"):
        project.guidelines_text = project.guidelines.text
        project.save(update_fields=["guidelines_text"])


class Migration(migrations.Migration):
    dependencies = [("labeling", "0004_workbench")]

    operations = [migrations.RunPython(keep_texts, restore_texts)]
