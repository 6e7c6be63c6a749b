"""Loaded by pytest before Django's settings (pyproject: `-p tests.environment`).

Tests never touch the installation's own data folder or environment.
"""

import atexit
import os
import shutil
import tempfile

for name in [name for name in os.environ if name.startswith("PREFLOOP_")]:
    if not name.startswith(("PREFLOOP_TEST_", "PREFLOOP_DATABASE_URL")):
        del os.environ[name]
os.environ["PREFLOOP_DATA"] = tempfile.mkdtemp(prefix="prefloop-test-")
os.environ["PREFLOOP_SAMPLER"] = "transformers"  # loads at once; tests of others say so
os.environ["DJANGO_ALLOW_ASYNC_UNSAFE"] = "true"  # Playwright runs an event loop in this thread
os.environ.setdefault("OMP_NUM_THREADS", "1")  # several test processes share the cores
atexit.register(shutil.rmtree, os.environ["PREFLOOP_DATA"], ignore_errors=True)
