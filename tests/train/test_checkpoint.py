"""The state beside a checkpoint: found where it is whole and belongs to it; and results.csv as its epochs left it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rebalance.train.checkpoint import cut_csv, find_state, remove_states, state_of, write_state


def test_a_state_is_found_with_its_checkpoint_and_with_no_other(tmp_path: Path) -> None:
    last = tmp_path / "last.pt"
    last.write_bytes(b"weights")
    file = state_of(last, 3)
    assert not file.match("last*.pt")  # the host takes such a file for the run to resume
    assert find_state(last, 3) == (None, f"there is no {file}")
    write_state(file, last, {"a": torch.ones(2), "b": (1, 2.5, "c", None)})
    state, missing = find_state(last, 3)
    assert state is not None
    assert missing == ""
    assert torch.equal(state["a"], torch.ones(2))
    assert state["b"] == (1, 2.5, "c", None)
    assert find_state(last, 2)[0] is None
    copied = tmp_path / "copy" / "other.pt"
    copied.parent.mkdir()
    copied.write_bytes(b"weights")
    file.rename(state_of(copied, 3))
    assert find_state(copied, 3)[0] is not None
    copied.write_bytes(b"Weights")
    assert find_state(copied, 3) == (None, f"{state_of(copied, 3)} is of another checkpoint")


def test_a_damaged_state_is_said_to_be_one(tmp_path: Path) -> None:
    last = tmp_path / "last.pt"
    last.write_bytes(b"weights")
    file = state_of(last, 0)
    write_state(file, last, {"a": torch.ones(1000)})
    for damaged in (file.read_bytes()[:-500], b"", b"text"):
        file.write_bytes(damaged)
        assert find_state(last, 0) == (None, f"{file} is damaged")
    torch.save({"a": 1}, file)
    assert find_state(last, 0) == (None, f"{file} is damaged")


def test_states_are_removed_but_for_one_and_nothing_else_is(tmp_path: Path) -> None:
    for name in ("state0.pt", "state12.pt", "state3.pt", "state.pt", "states1.pt", "last.pt", "epoch3.pt"):
        (tmp_path / name).touch()
    remove_states(tmp_path, keep=tmp_path / "state3.pt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch3.pt", "last.pt", "state.pt", "state3.pt", "states1.pt"]
    remove_states(tmp_path)
    remove_states(tmp_path / "none")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["epoch3.pt", "last.pt", "state.pt", "states1.pt"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("epoch,a\n1,2\n2,", "epoch,a\n1,2\n"),
        ("epoch,a\n1,2\n2,3\n", "epoch,a\n1,2\n2,3\n"),
        ("epoch,a\n1,2\n2,3\n3,4\n", "epoch,a\n1,2\n2,3\n"),
        ("epoch,a\n1,2\n2,3\n2,4\n", "epoch,a\n1,2\n2,4\n"),
        ("epoch,", ""),
        ("", ""),
        ("epoch,\xe9\n1,\xff\n3,4\n", "epoch,\xe9\n1,\xff\n"),  # in an encoding of its own
    ],
)
def test_results_are_cut_to_the_epochs_that_were_saved(tmp_path: Path, before: str, after: str) -> None:
    path = tmp_path / "results.csv"
    path.write_text(before, "latin-1")
    cut_csv(path, 2)
    assert path.read_text("latin-1") == after
    cut_csv(tmp_path / "none.csv", 2)
    assert list(tmp_path.iterdir()) == [path]
