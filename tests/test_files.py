"""Files that are whole or not there, and what is said when the disk is full."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

import pytest

from rebalance.cli import main as cli
from rebalance.errors import RunError
from rebalance.files import beside, clear, moved, replaced, unfinished, unwritable_told, whole, write_whole


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_file_takes_the_place_of_the_earlier_one_when_it_is_written(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("old", "utf-8")
    with whole(file) as opened:
        opened.write(b"new")
        opened.flush()
        assert file.read_text("utf-8") == "old"
        (part,) = set(tmp_path.iterdir()) - {file}
        assert unfinished(part)
    assert file.read_text("utf-8") == "new"
    assert write_whole(file, b"newer") == file
    assert file.read_text("utf-8") == "newer"
    assert list(tmp_path.iterdir()) == [file]


def test_what_cannot_be_written_leaves_the_earlier_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.json"
    file.write_text("old", "utf-8")
    with contextlib.suppress(KeyboardInterrupt), whole(file) as opened:
        opened.write(b"half")
        raise KeyboardInterrupt
    assert (file.read_text("utf-8"), list(tmp_path.iterdir())) == ("old", [file])
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(RunError) as caught:
        write_whole(file, b"new")
    assert str(caught.value) == f"{file} cannot be written: No space left on device"
    assert (file.read_text("utf-8"), list(tmp_path.iterdir())) == ("old", [file])
    with pytest.raises(RunError, match=r"none/b cannot be written: No such file"):
        write_whole(tmp_path / "none" / "b", b"")


def test_several_files_are_moved_together_and_one_of_them_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    replace = Path.replace
    monkeypatch.setattr(Path, "replace", lambda self, to: (order.append(Path(to).name), replace(self, to))[1])
    with moved(tmp_path, last="b") as folder:
        for name in "cba":
            (folder / name).write_text(name, "utf-8")
        assert list(tmp_path.iterdir()) == [folder]
    assert sorted(order) == ["a", "b", "c"]
    assert order[-1] == "b"
    assert {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()} == {"a": "a", "b": "b", "c": "c"}
    with contextlib.suppress(KeyboardInterrupt), moved(tmp_path) as folder:
        (folder / "a").write_text("half", "utf-8")
        raise KeyboardInterrupt
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space"), moved(tmp_path) as folder:
        (folder / "a").write_text("new", "utf-8")
    assert {path.name: path.read_text("utf-8") for path in tmp_path.iterdir()} == {"a": "a", "b": "b", "c": "c"}


def test_what_a_kill_left_is_cleared_and_nothing_else(tmp_path: Path) -> None:
    gone = [".record.json.4711", ".set.0123456789ab.partial"]
    stays = ["record.json", ".lock", ".gitignore", "a.1", ".partial", "last.pt"]
    for name in (*gone, *stays):
        (tmp_path / name).touch()
    (tmp_path / ".files.12").mkdir()
    (tmp_path / ".files.12" / "last.pt").touch()
    clear(tmp_path)
    clear(tmp_path / "none")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(stays)


def test_a_full_disk_is_an_error_of_one_line_and_other_errors_stay(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"^there cannot be written: No space left on device$"), unwritable_told("there"):
        full()
    with pytest.raises(FileNotFoundError), unwritable_told("there"):
        (tmp_path / "none").read_bytes()


def test_a_file_where_a_folder_belongs_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "runs").touch()
    for ask in (lambda path: path.mkdir(parents=True, exist_ok=True), lambda path: [*path.iterdir()]):
        with pytest.raises(RunError, match=r"runs/mine: Not a directory$"), unwritable_told("there"):
            ask(tmp_path / "runs" / "mine")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_command_that_fills_the_disk_ends_with_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "dispatch", lambda _: Path("/dev/full").write_text("x", "utf-8"))
    assert cli.main(["report", "here"]) == 2
    assert capsys.readouterr().err == "rebalance: error: the output cannot be written: No space left on device\n"


# What a killed process left -------------------------------------------------------------------------------------------


def test_a_folder_beside_goes_with_the_next_one_for_the_same_path_unless_somebody_works_in_it(tmp_path: Path) -> None:
    killed, other = tmp_path / ".set.0123456789ab", tmp_path / ".sets.0123456789ab"
    for name in (killed, other):
        (name.with_suffix(name.suffix + ".partial") / "images").mkdir(parents=True)
        name.with_suffix(name.suffix + ".lock").touch()
    with beside(tmp_path / "set") as first:
        assert not killed.with_suffix(f"{killed.suffix}.partial").exists()
        (first / "file").touch()
        with beside(tmp_path / "set") as second:
            assert (first / "file").exists()
            assert second != first
        assert (first / "file").exists()
        first.rename(tmp_path / "set")
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{other.name}.lock", f"{other.name}.partial", "set"]


def test_a_failure_leaves_nothing_beside(tmp_path: Path) -> None:
    def fail() -> None:
        with beside(tmp_path / "new" / "set") as made:
            (made / "images").mkdir()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize("number", [errno.EROFS, errno.EFBIG])
def test_a_disk_that_takes_nothing_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "x")

    with pytest.raises(RunError, match=r"^x cannot be written: "), unwritable_told("there"):
        refuse()
    monkeypatch.setattr(Path, "unlink", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    with pytest.raises(RunError, match=r"a\.txt cannot be written: "):
        write_whole(tmp_path / "a.txt", b"")


def test_what_is_written_by_path_takes_the_place_at_the_end_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    path.write_text("old", "utf-8")

    def write(then: type[BaseException] | None) -> None:
        with replaced(path) as part:
            part.write_text("new", "utf-8")
            assert path.read_text("utf-8") == "old"
            if then:
                raise then

    with pytest.raises(KeyboardInterrupt):
        write(KeyboardInterrupt)
    assert (path.read_text("utf-8"), list(tmp_path.iterdir())) == ("old", [path])
    write(None)
    assert (path.read_text("utf-8"), list(tmp_path.iterdir())) == ("new", [path])
    with replaced(path):
        pass  # who writes nothing takes nothing
    assert path.read_text("utf-8") == "new"
