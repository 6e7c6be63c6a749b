"""`manage.py worker`, with the tests' handlers and a short lease."""

import os
import sys

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
django.setup()

from django.conf import settings  # noqa: E402
from django.core.management import execute_from_command_line  # noqa: E402

import tests.jobs.handlers  # noqa: E402, F401

settings.JOB_LEASE_SECONDS = 2
execute_from_command_line(["manage.py", "worker", *sys.argv[1:]])
