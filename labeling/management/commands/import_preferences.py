"""manage.py import_preferences FILE --project SLUG"""

from labeling.formats import preference_row
from labeling.management.commands.import_prompts import ImportCommand
from labeling.services.importing import import_preferences


class Command(ImportCommand):
    """Import preferences that were judged elsewhere."""

    help = "Import preferences: prompt, chosen and rejected; or hh-rlhf transcripts."
    what = "preferences"
    row_of = preference_row
    import_rows = import_preferences
