"""Completed sets by themselves: what was given before, and what there was before labels were withheld or falsified."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_data import make_dataset

from rebalance.data import completed, dataset, items
from rebalance.data.completed import Change
from rebalance.data.derive import noise, sparsify
from rebalance.errors import DataError
from rebalance.settings import NoiseFlags, SparsifyFlags


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.txt"))}


def lines(folder: Path) -> dict[str, list[bytes]]:
    return {name: sorted(data.splitlines()) for name, data in files(folder).items()}


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    return make_dataset(tmp_path / "whole", seed=21)


def test_a_set_with_withheld_and_then_falsified_labels_is_restored(whole: Path, tmp_path: Path) -> None:
    sparsify(SparsifyFlags(data=str(whole), out=str(tmp_path / "less"), protocol="hard"))
    asked = {"missing": 0.3, "class_flip": 0.4, "jitter": 0.4, "extra": 0.3}
    noise(NoiseFlags(data=str(tmp_path / "less/data.yaml"), out=str(tmp_path / "noisy"), **asked))
    for source in ("less", "noisy"):
        made = completed.restored(dataset.load(tmp_path / source / "data.yaml"), tmp_path / f"{source}-whole")
        assert lines(tmp_path / f"{source}-whole/labels/train") == lines(whole.parent / "labels/train")
        assert made["total"]["withheld"] == 0
        assert not (tmp_path / f"{source}-whole/withheld").exists()
        assert not (tmp_path / f"{source}-whole/true").exists()


def test_what_was_falsified_and_then_withheld_is_not_taken_for_true(whole: Path, tmp_path: Path) -> None:
    noise(NoiseFlags(data=str(whole), out=str(tmp_path / "noisy"), class_flip=0.5))
    sparsify(SparsifyFlags(data=str(tmp_path / "noisy/data.yaml"), out=str(tmp_path / "less"), protocol="hard"))
    with pytest.raises(DataError, match="withheld after noise had falsified them"):
        completed.restored(dataset.load(tmp_path / "less" / "data.yaml"), tmp_path / "out")


def test_a_set_from_which_nothing_is_missing_has_nothing_to_restore(whole: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="nothing was withheld from its labels"):
        completed.restored(dataset.load(whole), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_true_labels_go_along_and_what_was_given_comes_back_byte_for_byte(whole: Path, tmp_path: Path) -> None:
    noise(NoiseFlags(data=str(whole), out=str(tmp_path / "noisy"), class_flip=0.5, missing=0.3))
    source = dataset.load(tmp_path / "noisy/data.yaml")
    found = items.read(source)
    box = (0.1, 0.1, 0.2, 0.2)
    changes = [
        [Change("added", "person", 1, box), *[Change("removed", "person", 0, box, label=0)] * bool(len(item.labels))]
        for item in found
    ]
    completed.complete(source, found, changes, tmp_path / "more", {})
    assert files(tmp_path / "more/true/train") == files(tmp_path / "noisy/true/train") != {}
    given = completed.given(dataset.load(tmp_path / "more/data.yaml"))
    old = {Path(image).name: image for image in source.images("train")}
    for image in given.images("train"):
        path, was = dataset.label_path(image), old[Path(image).name]
        assert given.file_bytes(path) == Path(dataset.label_path(was)).read_bytes() != Path(path).read_bytes()
        assert given.withheld(image).data == source.withheld(was).data


def test_an_added_box_is_one_withheld_box_at_most(tmp_path: Path) -> None:
    near = "0 0.5 0.5 0.4 0.4\n0 0.52 0.5 0.4 0.4\n"  # IoU 0.9
    whole = make_dataset(tmp_path / "whole", train=1)
    (tmp_path / "whole/labels/train/00.txt").write_text(f"{near}1 0.1 0.1 0.1 0.1\n", "utf-8")
    sparsify(SparsifyFlags(data=str(whole), out=str(tmp_path / "less"), rate=1))
    source = dataset.load(tmp_path / "less/data.yaml")
    found = items.read(source)
    change = Change("added", "person", 0, (0.32, 0.3, 0.72, 0.7))
    made = completed.complete(source, found, [[change]], tmp_path / "out", {})
    assert (made["total"]["recovered"], made["total"]["withheld"]) == (1, 2)
    left = (tmp_path / "out/withheld/train/00.txt").read_text("utf-8")
    assert left == "0 0.5 0.5 0.4 0.4\n1 0.1 0.1 0.1 0.1\n"  # the nearer one came back


def test_only_a_completed_set_was_completed(whole: Path) -> None:
    source = dataset.load(whole)
    assert completed.given(source) is source
    assert not completed.is_completed(whole.parent)
