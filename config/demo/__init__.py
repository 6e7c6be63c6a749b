"""`manage.py demo`: the whole product on one machine, from nothing."""
