"""manage.py by itself: what it does on a machine with nothing but Python."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def manage(tmp_path, monkeypatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("manage_under_test", ROOT / "manage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    venv = tmp_path / ".venv"
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "VENV", venv)
    monkeypatch.setattr(module, "PYTHON", venv / "bin" / "python")
    return module


def test_an_environment_is_used_until_its_needs_change(manage) -> None:
    manage.make_venv()
    wanted = manage.state_of(("train",))
    assert not manage.up_to_date(wanted)
    import json

    (manage.VENV / "prefloop.json").write_text(json.dumps(manage.state_of(("test", "train"))))
    assert manage.up_to_date(wanted), "more than needed is enough"
    assert not manage.up_to_date(manage.state_of(("browser",)))
    (manage.ROOT / "pyproject.toml").write_text("[project]\n")
    assert not manage.up_to_date(manage.state_of(("train",)))


def test_a_torn_environment_is_made_again(manage) -> None:
    manage.VENV.mkdir()
    (manage.VENV / "prefloop.json").write_text('{"pyproj')
    assert not manage.up_to_date(manage.state_of(("train",)))


def test_where_venv_is_missing_the_message_says_what_to_install(manage, monkeypatch) -> None:
    failed = subprocess.CompletedProcess([], 1, stdout="ensurepip is not available", stderr="")
    monkeypatch.setattr(manage.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(SystemExit, match=r"apt-get install python3\.\d+-venv"):
        manage.make_venv()
    assert not manage.VENV.exists(), "nothing half made is left"


def test_a_full_disk_is_said_before_anything_is_installed(manage, monkeypatch) -> None:
    usage = manage.shutil.disk_usage(ROOT)
    monkeypatch.setattr(manage.shutil, "disk_usage", lambda _: usage._replace(free=1))
    with pytest.raises(SystemExit, match="3 GiB"):
        manage.make_venv()


def test_an_old_python_gets_a_clear_message(manage, monkeypatch) -> None:
    monkeypatch.setattr(manage.sys, "version_info", (3, 10, 4))
    with pytest.raises(SystemExit, match=r"3\.11 or newer"):
        manage.main()


@pytest.mark.parametrize(
    ("arguments", "folder"),
    [
        (["--data", "/tmp/x"], "/tmp/x"),
        (["--data=/tmp/y", "--headless"], "/tmp/y"),
        (["--headless"], str(ROOT / "var" / "headless")),
    ],
)
def test_the_demo_finds_its_data_folder(manage, monkeypatch, arguments, folder) -> None:
    monkeypatch.setattr(manage, "ROOT", ROOT)
    assert manage.demo_data(arguments) == Path(folder)


def test_commands_run_here_without_installing_anything() -> None:
    done = subprocess.run(
        [sys.executable, "manage.py", "check", "--no-bootstrap"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
