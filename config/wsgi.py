"""The WSGI application that gunicorn serves."""

import gc
import os
from importlib import import_module

from django.conf import settings
from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
application = get_wsgi_application()
# All views are here before the first request, and nothing of them ever becomes garbage: looking
# through them for some would hold up a page for as long as three others take, now and then.
import_module(settings.ROOT_URLCONF)
gc.collect()
gc.freeze()
