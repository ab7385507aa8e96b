"""The hook in throw-away environments: `yolo` gets our entry point, every other program gets nothing."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path
from types import SimpleNamespace

import pytest

from rebalance.cli import hook
from rebalance.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
YOLO = "import sys\nfrom ultralytics.cfg import entrypoint\nsys.exit(entrypoint())\n"
STOCK = "import sys\ndef entrypoint(debug=''):\n    print('stock', debug or sys.argv[1:])\n"
OURS = "def entrypoint():\n    from ultralytics.cfg import entrypoint\n    print('ours')\n    entrypoint()\n"
FAILS = "from rebalance.errors import ConfigError\ndef entrypoint():\n    raise ConfigError('obj_drop=2')\n"


class Environment:
    """A virtual environment with a stand-in for Ultralytics and a copy of this package's top level."""

    def __init__(self, folder: Path) -> None:
        venv.EnvBuilder(symlinks=True).create(folder)
        self.folder = folder
        self.site = next(folder.glob("lib/python3*/site-packages"))
        self.write("ultralytics/__init__.py", "")
        self.write("ultralytics/cfg/__init__.py", STOCK)
        for source in [*(ROOT / "rebalance").glob("*.py"), *(ROOT / "rebalance" / "cli").glob("*.py")]:
            self.write(str(source.relative_to(ROOT)), source.read_text("utf-8"))
        self.write("rebalance/cli/host_command.py", OURS)

    def write(self, name: str, text: str) -> None:
        file = self.site / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")

    def python(self, *args: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.folder / "bin" / "python"), *args]
        return subprocess.run(command, capture_output=True, text=True, env={}, cwd=self.folder)

    def script(self, name: str, text: str, *args: str) -> subprocess.CompletedProcess[str]:
        (self.folder / "bin" / name).write_text(text, "utf-8")
        return self.python(f"bin/{name}", *args)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "environment")


@pytest.mark.parametrize("name", ["yolo", "ultralytics"])
def test_yolo_runs_our_entry_point_which_finds_the_stock_one(environment: Environment, name: str) -> None:
    environment.write(hook.NAME, hook.LINE)
    done = environment.script(name, YOLO, "train", "obj_drop=0.5")
    assert (done.stdout, done.stderr, done.returncode) == ("ours\nstock ['train', 'obj_drop=0.5']\n", "", 0)


def test_yolo_is_stock_without_the_hook(environment: Environment) -> None:
    assert environment.script("yolo", YOLO, "train").stdout == "stock ['train']\n"


def test_a_command_line_given_from_python_stays_stock(environment: Environment) -> None:
    environment.write(hook.NAME, hook.LINE)
    text = "from ultralytics.cfg import entrypoint\nentrypoint('yolo version')\n"
    assert environment.script("yolo", text).stdout == "stock yolo version\n"


def test_errors_of_the_user_are_one_line(environment: Environment) -> None:
    environment.write(hook.NAME, hook.LINE)
    environment.write("rebalance/cli/host_command.py", FAILS)
    done = environment.script("yolo", YOLO, "train", "obj_drop=2")
    assert (done.stdout, done.stderr, done.returncode) == ("", "rebalance: error: obj_drop=2\n", 2)


@pytest.mark.parametrize("name", ["yolo.py", "train", "yolov5"])
def test_other_programs_load_nothing_of_ours(environment: Environment, name: str) -> None:
    environment.write(hook.NAME, hook.LINE)
    text = "import sys\nprint([m for m in sys.modules if m.startswith('rebalance')], len(sys.meta_path))\n" + YOLO
    plain = environment.python("-c", "import sys; print(len(sys.meta_path))").stdout.strip()
    assert environment.script(name, text, "x").stdout == f"[] {plain}\nstock ['x']\n"


def test_the_line_of_an_earlier_version_still_works(environment: Environment) -> None:
    environment.write(hook.NAME, hook.LINE.replace("rebalance.cli.hook", "rebalance.hook"))
    assert environment.script("yolo", YOLO).stdout == "ours\nstock []\n"


def test_the_line_does_nothing_where_the_package_is_gone(environment: Environment) -> None:
    environment.write(hook.NAME, hook.LINE)
    (environment.site / "rebalance").rename(environment.site / "gone")
    done = environment.script("yolo", YOLO, "train")
    assert (done.stdout, done.stderr, done.returncode) == ("stock ['train']\n", "", 0)


def test_install_and_remove_leave_no_trace(environment: Environment) -> None:
    def files() -> set[Path]:
        return {file for file in environment.site.rglob("*") if "__pycache__" not in file.parts}

    before, file = files(), environment.site / hook.NAME
    assert environment.python("-m", "rebalance", "hook", "status").stdout.startswith("not installed")
    for _ in range(2):  # twice is the same as once
        done = environment.python("-m", "rebalance", "hook", "install")
        assert (done.returncode, str(file) in done.stdout) == (0, True)
        assert files() - before == {file}
    assert file.read_text("utf-8") == hook.LINE
    assert environment.python("-m", "rebalance", "hook", "status").stdout == f"installed: {file}\n"
    assert environment.script("yolo", YOLO).stdout == "ours\nstock []\n"
    assert str(file) in environment.python("-m", "rebalance", "hook", "remove").stdout
    assert files() == before
    assert environment.script("yolo", YOLO).stdout == "stock []\n"
    assert environment.python("-m", "rebalance", "hook", "remove").stdout == "no hook was installed\n"


def test_the_line_is_one_line_that_site_runs() -> None:
    assert hook.LINE.startswith("import ")
    assert hook.LINE.count("\n") == 1
    assert hook.LINE.endswith("\n")


def test_an_environment_that_cannot_be_written_is_a_clear_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(hook, "place", lambda: tmp_path / "absent" / hook.NAME)
    with pytest.raises(ConfigError, match=r"cannot be written to .*absent.* use a virtual environment"):
        hook.install()
    monkeypatch.setattr(hook, "place", lambda: tmp_path)
    with pytest.raises(ConfigError, match="cannot be removed"):
        hook.remove()


def test_activate_changes_a_host_that_is_loaded_already(monkeypatch: pytest.MonkeyPatch) -> None:
    def entrypoint(debug: str = "") -> None:
        raise AssertionError("the stock entry point ran")

    entrypoint.__module__ = hook.HOST
    loaded = SimpleNamespace(entrypoint=entrypoint)
    monkeypatch.setitem(sys.modules, hook.HOST, loaded)
    hook.activate()
    replaced = loaded.entrypoint
    assert replaced is not entrypoint
    hook.activate()
    assert loaded.entrypoint is replaced
