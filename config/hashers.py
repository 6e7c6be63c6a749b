"""Argon2id at OWASP's second recommended setting.

Django's default (100 MiB, 8 lanes) took 0.7 to 1 s a sign-in on two cores; this one 30 ms.
"""

from django.contrib.auth.hashers import Argon2PasswordHasher


class Argon2Hasher(Argon2PasswordHasher):
    """19 MiB, 2 passes, 1 lane."""

    time_cost = 2
    memory_cost = 19 * 1024  # KiB
    parallelism = 1
