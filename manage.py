#!/usr/bin/env python3
"""Every command of Prefloop. On a fresh machine it makes its own environment first.

`python3 manage.py demo` and `python3 manage.py test` need only Python 3.11: outside a virtual
environment, this file makes `.venv` beside itself, installs what the command needs and runs the
command there. Inside an environment of yours it installs nothing. Standard library only.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
EXTRAS = {"test": ("train", "postgres", "test", "browser")}
EXTRAS["check_all"] = EXTRAS["test"]
USUAL = ("train",)
# Commands a stranger may begin with: the embedded database is made for them.
FIRST = {"import_prompts", "import_preferences", "register_policy", "worker", "runserver"}


def main() -> None:
    """Run the command named in argv, in an environment that can."""
    if sys.version_info < (3, 11):
        sys.exit(f"Prefloop needs Python 3.11 or newer; this is {sys.version.split()[0]}.")
    command = sys.argv[1] if len(sys.argv) > 1 else "help"
    bootstrap(command)
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")
    if command == "demo":
        # The demo has a database of its own in its data folder, whatever the site here uses.
        for name in ("DATABASE_URL", "DATABASE_URL_FILE", "DATA_FILE"):
            os.environ.pop(f"PREFLOOP_{name}", None)
        os.environ["PREFLOOP_DATA"] = str(demo_data(sys.argv[2:]))
        sampler = option(sys.argv[2:], "--sampler")
        if sampler is not None:
            os.environ["PREFLOOP_SAMPLER"] = sampler
    data = Path(os.environ.get("PREFLOOP_DATA", ROOT / "var"))
    embedded = not os.environ.get("PREFLOOP_DATABASE_URL")
    new = embedded and command in FIRST and not (data / "prefloop.sqlite3").exists()
    try:
        from django.core.management import execute_from_command_line
    except ImportError:
        sys.exit("Django is not installed here: pip install -e '.[train]', or leave this venv.")
    if new:
        execute_from_command_line([sys.argv[0], "migrate", "--verbosity", "0"])
    execute_from_command_line(sys.argv)


def bootstrap(command: str) -> None:
    """Make the environments that a command needs, and go on in the site's; in others, nothing."""
    from config import environments

    if "--no-bootstrap" in sys.argv:
        sys.argv.remove("--no-bootstrap")
        return
    if Path(sys.prefix) != environments.SITE and sys.prefix != sys.base_prefix:
        return
    environments.enter_site(EXTRAS.get(command, USUAL))
    with_vllm = command == "demo" and option(sys.argv[2:], "--sampler") == "vllm"
    if command in ("test", "check_all") or with_vllm:
        environments.make_vllm()


def demo_data(arguments: list[str]) -> Path:
    """The demo's data folder. It is needed before settings are read: they open it."""
    named = option(arguments, "--data")
    if named is not None:
        return Path(named).resolve()
    if "--headless" in arguments:
        return ROOT / "var" / "headless"
    return Path(os.environ.get("PREFLOOP_DATA", ROOT / "var")).resolve()


def option(arguments: list[str], name: str) -> str | None:
    """The value of an option, as `--name value` or `--name=value`; None where it is not given."""
    for position, argument in enumerate(arguments):
        if argument.startswith(f"{name}="):
            return argument.removeprefix(f"{name}=")
        if argument == name and position + 1 < len(arguments):
            return arguments[position + 1]
    return None


if __name__ == "__main__":
    main()
