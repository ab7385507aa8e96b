"""Completed sets: what becomes of each suggestion, what somebody's word changes, and that the source is as it was."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import rebalance
from rebalance.audit import table
from rebalance.audit.complete import Completed, complete, summary
from rebalance.audit.table import Near, Suggestion
from rebalance.data import completed, dataset
from rebalance.data.derive import sparsify
from rebalance.data.items import labels_sha256
from rebalance.errors import ConfigError, DataError
from rebalance.settings import CompleteFlags, SparsifyFlags

ROOT = Path(__file__).resolve().parents[2]
SIZE = (100, 200)  # width and height of all images
GIVEN = b"0 0.2 0.2 0.2 0.1\n1 0.7 0.7 0.2 0.2"  # in pixels 10 30 30 50 and 60 120 80 160
NAMES = ("fish", "crab")


def make(folder: Path, labels: Mapping[str, bytes | None], more: str = "") -> Path:
    """A data set with these label files; its images are 0 bytes long."""
    for name, data in {**labels, "../val/v": GIVEN}.items():
        for kind, content in (("images", b""), ("labels", data)):
            path = folder / kind / "train" / f"{name}{'.jpg' if kind == 'images' else '.txt'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            if content is not None:
                path.write_bytes(content)
    (folder / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames: {list(NAMES)}\n{more}")
    return folder / "data.yaml"


def missing(image: str, number: int, box: Sequence[float], p: float | None, score: float = 0.5) -> Suggestion:
    x1, y1, x2, y2 = map(float, box)
    return Suggestion(f"{image}.jpg", "missing", number, NAMES[number], (x1, y1, x2, y2), score, p)


def of_label(kind: str, image: str, number: int, box: Sequence[float], index: int = 0) -> Suggestion:
    """About a label of GIVEN."""
    near = (Near(0, 0, (10, 30, 30, 50), 0.8), Near(1, 1, (60, 120, 80, 160), 0.8))[index]
    return replace(missing(image, number, box, None), kind=kind, label=near)


@dataclass
class Bench:
    """A data set and an audit of it, both written by hand."""

    folder: Path
    data: Path
    rows: Sequence[Suggestion] = ()

    def audit(
        self, *rows: Suggestion, how: Mapping[int, Any] | None = None, right: Mapping[int, float] | None = None
    ) -> Path:
        folder = self.folder / "audit"
        folder.mkdir(exist_ok=True)
        self.rows = rows
        path = table.write(folder / "suggestions.csv", rows)
        source = dataset.load(self.data)
        classes = [
            {"id": i, "name": name, "how": "threshold" if i in (how or {}) else "probability",
             "threshold": (how or {}).get(i), **({"right": right[i]} if i in (right or {}) else {})}
            for i, name in source.names.items()
        ]  # fmt: skip
        about = {
            "schema": 1,
            "data": str(self.data),
            "data_sha256": labels_sha256(source),
            "images_root": str(self.data.parent / "images" / "train"),
            "classes": classes,
            "suggestions_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "sizes": {row.image: list(SIZE) for row in rows},
        }
        (folder / "audit.json").write_text(json.dumps(about), "utf-8")
        return folder

    def decide(self, words: Mapping[str, str]) -> str:
        """By the ids of suggestions."""
        decisions = [
            {"id": row.id, "image": row.image, "kind": row.kind, "class": row.number, "box": list(row.box),
             "decision": words[row.id]}
            for row in self.rows if row.id in words
        ]  # fmt: skip
        path = self.folder / "decisions.json"
        path.write_text(json.dumps({"schema": 1, "suggestions_sha256": "", "decisions": decisions}), "utf-8")
        return str(path)

    def complete(self, out: str = "out", data: Path | None = None, **given: Any) -> Completed:
        flags = {
            "data": str(data or self.data),
            "audit": str(self.folder / "audit"),
            "out": out and str(self.folder / out),
        }
        return complete(CompleteFlags(**{**flags, **given}))

    def label(self, image: str, out: str = "out", kind: str = "labels") -> str | None:
        path = self.folder / out / kind / "train" / f"{image}.txt"
        return path.read_text("utf-8") if path.exists() else None


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path, make(tmp_path / "set", {"a": GIVEN, "b": b"", "none": None}))


def tree(folder: Path) -> dict[str, Any]:
    """Everything below a folder: path to time of change and content."""
    return {
        str(p.relative_to(folder)): (p.lstat().st_mtime_ns, p.read_bytes() if p.is_file() else None)
        for p in sorted(folder.rglob("*"))
    }


def hashes(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*.txt"))}


def test_a_sure_suggestion_is_a_box_an_unsure_one_a_region_and_an_unlikely_one_nothing(bench: Bench) -> None:
    bench.audit(
        missing("a", 0, (50, 20, 70, 60), 0.7),
        missing("a", 1, (0, 0, 20, 20), 0.6999),
        missing("b", 1, (0, 100, 50, 200), 0.2),
        missing("b", 0, (0, 0, 20, 20), 0.1999),
        missing("none", 1, (20, 40, 40, 80), 0.9),
    )
    before = tree(bench.data.parent)
    made = bench.complete()
    assert bench.label("a") == GIVEN.decode() + "\n0 0.6 0.2 0.2 0.2\n"
    assert bench.label("a", kind="regions") == "unknown 1 0.1 0.05 0.2 0.1\n"
    assert (bench.label("b"), bench.label("b", kind="regions")) == ("", "unknown 1 0.25 0.75 0.5 0.5\n")
    assert (bench.label("none"), bench.label("none", kind="regions")) == ("1 0.3 0.3 0.2 0.2\n", None)
    assert tree(bench.data.parent) == before
    total = made.manifest["total"]
    assert (total["boxes"], total["added"], total["unknown"], total["background"]) == (2, 2, 2, 0)
    assert made.manifest["completed"]["add"] == 0.7
    assert f"{made.data}: boxes added: 2 (2 by their probability)" in summary(made)
    source = dataset.load(made.data)
    assert [len(source.labels(image)) for image in source.images("train")] == [3, 0, 1]
    assert os.readlink(source.images("train")[0]) == str((bench.data.parent / "images/train/a.jpg").resolve())


def test_the_limits_are_flags(bench: Bench) -> None:
    bench.audit(missing("b", 0, (0, 0, 20, 20), 0.5), missing("b", 1, (50, 50, 80, 80), 0.1))
    made = bench.complete(complete_add=0.5, complete_ignore=0.05)
    assert (made.manifest["total"]["added"], made.manifest["total"]["unknown"]) == (1, 1)
    with pytest.raises(ConfigError, match=r"complete_ignore=0.8 is above complete_add=0.7"):
        bench.complete("other", complete_ignore=0.8)
    assert not (bench.folder / "other").exists()


def test_what_a_person_said_counts_more_than_probabilities(bench: Bench) -> None:
    likely, unlikely, unsure = (
        missing("b", 0, (0, 0, 20, 20), 0.99),
        missing("b", 1, (50, 50, 80, 80), 0.01),
        missing("b", 1, (0, 100, 50, 200), 0.4),
    )
    bench.audit(likely, unlikely, unsure)
    words = {likely.id: "reject", unlikely.id: "accept", unsure.id: "reject"}
    made = bench.complete(decisions=bench.decide(words))
    assert bench.label("b") == "1 0.65 0.325 0.3 0.15\n"
    assert bench.label("b", kind="regions") == "background 0 0.1 0.05 0.2 0.1\nbackground 1 0.25 0.75 0.5 0.5\n"
    changes = {one["id"]: one for file in made.manifest["files"] for one in file["changes"]}
    assert changes[unlikely.id] == {
        "kind": "added", "by": "person", "id": unlikely.id, "probability": 0.01, "score": 0.5,
        "was": None, "now": "1 0.65 0.325 0.3 0.15",
    }  # fmt: skip
    assert [changes[one.id]["kind"] for one in (likely, unsure)] == ["background", "background"]


def test_accepted_corrections_change_the_label_and_rejected_ones_nothing(bench: Bench) -> None:
    other = of_label("wrong_class", "a", 1, (10, 30, 30, 50))
    place = of_label("badly_placed", "a", 1, (60, 100, 90, 160), 1)
    bench.audit(other, place)
    made = bench.complete(decisions=bench.decide({other.id: "accept", place.id: "accept"}))
    assert bench.label("a") == "1 0.2 0.2 0.2 0.1\n1 0.75 0.65 0.3 0.3"
    assert [made.manifest["total"][kind] for kind in ("class", "box", "removed")] == [1, 1, 0]
    rows = made.manifest["files"][0]["changes"]
    assert [(row["kind"], row["by"], row["was"].split()[0], row["now"].split()[0]) for row in rows] == [
        ("class", "person", "0", "1"),
        ("box", "person", "1", "1"),
    ]
    bench.complete("same", decisions=bench.decide({other.id: "reject", place.id: "reject"}))
    assert (bench.label("a", "same"), bench.label("a", "same", "regions")) == (GIVEN.decode(), None)
    bench.complete("silent")
    assert bench.label("a", "silent") == GIVEN.decode()


def test_an_accepted_spurious_label_is_taken_away(bench: Bench) -> None:
    row = of_label("spurious", "a", 0, (10, 30, 30, 50))
    bench.audit(row)
    bench.complete(decisions=bench.decide({row.id: "accept"}))
    assert bench.label("a") == "1 0.7 0.7 0.2 0.2"


def test_two_accepted_changes_of_one_label_are_one_and_said(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    first = of_label("badly_placed", "a", 0, (10, 20, 30, 50))
    second = of_label("badly_placed", "a", 0, (10, 40, 30, 60))
    bench.audit(first, second)
    made = bench.complete(decisions=bench.decide({first.id: "accept", second.id: "accept"}))
    assert made.manifest["total"]["box"] == 1
    assert "note: 1 accepted ones would change a label that another accepted one changes" in capsys.readouterr().err


def test_a_label_file_of_polygons_stays_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    triangle = "0 0.1 0.2 0.3 0.2 0.3 0.3\n"
    bench = Bench(tmp_path, make(tmp_path / "set", {"a": triangle.encode(), "b": b""}))
    near = Near(0, 0, (10, 40, 30, 60), 0.5)
    moved = replace(missing("a", 0, (20, 40, 60, 80), None), kind="badly_placed", label=near)
    bench.audit(missing("a", 1, (50, 100, 100, 200), 0.9), missing("b", 1, (0, 0, 50, 100), 0.9), moved)
    made = bench.complete(decisions=bench.decide({moved.id: "accept"}))
    stretched, added = (bench.label("a") or "").splitlines()
    np.testing.assert_allclose(np.array(stretched.split(), float), [0, 0.2, 0.2, 0.6, 0.2, 0.6, 0.4], atol=1e-6)
    assert added == "1 0.5 0.5 1 0.5 1 1 0.5 1"
    assert bench.label("b") == "1 0 0 0.5 0 0.5 0.5 0 0.5\n"
    assert len(dataset.load(made.data).labels(str(made.out.resolve() / "images/train/a.jpg"))) == 2
    assert "note: 2 boxes were added among polygons, as polygons of four corners" in capsys.readouterr().err


def test_a_label_file_of_poses_gets_keypoints_that_nobody_saw(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pose = b"0 0.2 0.2 0.2 0.2 0.2 0.2 2 0.1 0.1 1\n"
    bench = Bench(tmp_path, make(tmp_path / "set", {"a": pose, "b": None}, "kpt_shape: [2, 3]\n"))
    bench.audit(missing("a", 1, (50, 100, 100, 200), 0.9), missing("b", 0, (50, 100, 100, 200), 0.9))
    bench.complete()
    assert bench.label("a") == pose.decode() + "1 0.75 0.75 0.5 0.5 0 0 0 0 0 0\n"
    assert bench.label("b") == "0 0.75 0.75 0.5 0.5 0 0 0 0 0 0\n"
    assert "note: 2 boxes were added among poses, with keypoints that nobody saw" in capsys.readouterr().err


def test_a_class_without_probabilities_has_its_threshold_and_says_so(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.audit(
        missing("b", 0, (0, 0, 20, 20), None, 0.5),
        missing("b", 0, (40, 40, 60, 60), None, 0.49),
        missing("b", 1, (0, 100, 50, 200), None, 0.99),
        how={0: 0.5, 1: None},
    )
    made = bench.complete()
    assert bench.label("b") == "0 0.1 0.05 0.2 0.1\n"
    assert (made.manifest["total"]["unknown"], bench.label("b", kind="regions")) == (0, None)
    told = capsys.readouterr().err
    assert "class fish has no probabilities: a score of 0.5 and more counts as confident, nothing as unsure" in told
    assert "class crab has no probabilities: nothing of it counts as confident" in told


def test_a_threshold_counts_only_where_val_says_that_enough_of_what_reaches_it_is_right(
    bench: Bench, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [missing("b", number, (0, 100 * number, 50, 100 * number + 50), None, 0.5) for number in (0, 1)]
    bench.audit(*rows, how={0: 0.5, 1: 0.5}, right={0: 0.71, 1: 0.69})
    bench.complete()
    assert [line.split()[0] for line in (bench.label("b") or "").splitlines()] == ["0"]
    told = capsys.readouterr().err
    assert "class fish has no probabilities: a score of 0.5 and more counts as confident, nothing as unsure" in told
    assert "class crab has no probabilities: nothing of it counts as confident, nothing as unsure (by val 69%" in told
    bench.complete("all", complete_add=0.6)
    assert len((bench.label("b", "all") or "").splitlines()) == 2


def test_what_an_added_box_explains_does_not_come_in_again(bench: Bench) -> None:
    bench.audit(
        missing("b", 0, (0, 0, 40, 40), 0.9),
        missing("b", 0, (0, 0, 40, 50), 0.8),  # IoU 0.8
        missing("b", 0, (0, 0, 10, 10), 0.75),  # inside
        missing("b", 1, (0, 0, 40, 41), 0.74),  # as well a crab
        missing("b", 0, (60, 100, 100, 200), 0.3),
    )
    made = bench.complete()
    assert bench.label("b") == "0 0.2 0.1 0.4 0.2\n"
    assert bench.label("b", kind="regions") == "unknown 1 0.2 0.1025 0.4 0.205\nunknown 0 0.8 0.75 0.4 0.5\n"
    assert made.manifest["completed"]["left"] == {"explained": 2, "two_classes": 1}


def test_a_rejected_box_that_holds_a_label_says_nothing(bench: Bench) -> None:
    row, other = missing("a", 0, (5, 25, 30, 60), 0.9), missing("a", 1, (5, 25, 30, 60), 0.9)
    bench.audit(row, other)
    made = bench.complete(decisions=bench.decide({row.id: "reject", other.id: "reject"}))
    assert bench.label("a", kind="regions") == "background 1 0.175 0.2125 0.25 0.175\n"
    assert made.manifest["completed"]["left"] == {"holds": 1}


def test_regions_of_the_source_stay_and_count_by_who_said_them(tmp_path: Path) -> None:
    bench = Bench(tmp_path, make(tmp_path / "set", {"a": GIVEN}))
    regions = bench.data.parent / "regions" / "train" / "a.txt"
    regions.parent.mkdir(parents=True)
    regions.write_bytes(b"background * 0.25 0.75 0.5 0.5\r\nunknown 1 0.5 0.1 0.2 0.2")
    nobody, somebody = missing("a", 0, (0, 100, 40, 200), 0.9), missing("a", 1, (0, 120, 40, 200), 0.1)
    unsure, no = missing("a", 0, (60, 0, 100, 20), 0.5), missing("a", 1, (60, 0, 100, 40), 0.5)
    bench.audit(nobody, somebody, unsure, no)
    bench.complete(decisions=bench.decide({somebody.id: "accept", no.id: "reject"}))
    assert bench.label("a") == GIVEN.decode() + "\n1 0.2 0.8 0.4 0.4\n"
    assert (bench.label("a", kind="regions") or "").splitlines() == [
        "unknown 0 0.8 0.05 0.4 0.1",  # what is there already counts more
        "background 0 0.25 0.75 0.5 0.5",  # a crab is there: somebody said so later
        "unknown 1 0.5 0.1 0.2 0.2",
        "background 1 0.8 0.1 0.4 0.2",
    ]


@pytest.mark.parametrize("meaning", ["unknown", "skip"])
def test_an_image_that_nobody_looked_at_is_unknown_but_for_what_was_added(tmp_path: Path, meaning: str) -> None:
    bench = Bench(tmp_path, make(tmp_path / "set", {"a": GIVEN, "b": None, "c": None}, f"unlabelled: {meaning}\n"))
    bench.audit(missing("b", 0, (0, 0, 20, 20), 0.9), missing("c", 0, (0, 0, 20, 20), 0.3))
    made = bench.complete()
    assert bench.label("b", kind="regions") == "unknown * 0.5 0.5 1 1\n"
    known = dataset.load(made.data).knowledge.of(str(made.out.resolve() / "images/train/b.jpg"))
    assert known.unknown.all()
    assert known.classes.all()
    assert bench.label("c") is None


def test_withheld_boxes_that_are_found_are_withheld_no_more(tmp_path: Path) -> None:
    lines = ["0 0.2 0.2 0.2 0.1\n", "1 0.7 0.7 0.2 0.2\n", "1 0.2 0.7 0.2 0.2\n"]
    whole = make(tmp_path / "whole", {"a": "".join(lines).encode()})
    sparsify(SparsifyFlags(data=str(whole), out=str(tmp_path / "set"), protocol="extreme", seed=1))
    bench = Bench(tmp_path, tmp_path / "set" / "data.yaml")
    (stays,) = [line for line in lines if line == bench.label("a", "set")]
    gone = [line for line in lines if line != stays]
    assert bench.label("a", "set", "withheld") == "".join(gone)
    x, y, w, h = (float(v) * side for v, side in zip(gone[0].split()[1:], (*SIZE, *SIZE), strict=True))
    number = int(gone[0][0])
    near = (x - w / 2, y - h / 2, x + w / 2 + 1, y + h / 2)
    bench.audit(missing("a", number, near, 0.9), missing("a", 1 - number, near, 0.8))
    made = bench.complete()
    assert bench.label("a", kind="withheld") == gone[1]
    total = made.manifest["total"]
    assert (total["withheld"], total["recovered"], made.manifest["reached"]) == (1, 1, 1 / 3)
    whole_again = completed.restored(dataset.load(bench.data), tmp_path / "restored")
    restored = (bench.label("a", "restored") or "").splitlines(keepends=True)
    assert sorted(restored) == sorted(lines)
    assert (whole_again["total"]["withheld"], bench.label("a", "restored", "withheld")) == (0, None)


def test_a_completed_set_is_completed_from_the_labels_that_were_given(tmp_path: Path) -> None:
    whole = make(tmp_path / "whole", {"a": GIVEN + b"\n1 0.2 0.7 0.2 0.2\n", "b": b"", "none": None})
    sparsify(SparsifyFlags(data=str(whole), out=str(tmp_path / "set"), protocol="extreme", seed=0))
    bench = Bench(tmp_path, tmp_path / "set" / "data.yaml")
    wrong = replace(missing("b", 0, (0, 0, 20, 20), 0.9))
    bench.audit(wrong, missing("none", 1, (20, 40, 40, 80), 0.9), missing("a", 1, (0, 0, 50, 50), 0.3))
    first = bench.complete("first")
    given = completed.given(dataset.load(first.data))
    assert labels_sha256(given) == labels_sha256(dataset.load(bench.data)) != labels_sha256(dataset.load(first.data))
    images = {Path(image).stem: image for image in given.images("train")}
    assert [given.has_labels(images[name]) for name in ("a", "b", "none")] == [True, True, False]
    assert [len(given.regions(images[name])[1]) for name in ("a", "b", "none")] == [0, 0, 0]

    right = missing("a", 0, (60, 20, 90, 60), 0.9)
    bench.audit(right)
    second = bench.complete("second", data=first.data)
    again = bench.complete("again")
    assert hashes(second.out) == hashes(again.out)
    assert second.manifest["sha256"] == again.manifest["sha256"]
    assert (bench.label("none", "second"), bench.label("b", "second")) == (None, "")
    assert "added" in str(second.manifest["files"][0]["changes"])


def test_a_completed_file_that_was_changed_cannot_be_taken_back(bench: Bench) -> None:
    bench.audit(missing("b", 0, (0, 0, 20, 20), 0.9))
    made = bench.complete()
    (made.out / "labels/train/b.txt").write_text("")
    with pytest.raises(DataError, match=r"b.txt was changed after the set was completed.* data=.*set.data.yaml"):
        bench.complete("second", data=made.data)


def test_the_same_labels_and_audit_give_the_same_set_anywhere(bench: Bench, tmp_path: Path) -> None:
    rows = missing("a", 0, (50, 20, 70, 60), 0.7), missing("b", 1, (0, 100, 50, 200), 0.2)
    bench.audit(*rows)
    made = bench.complete()
    elsewhere = Bench(tmp_path / "x", make(tmp_path / "x" / "other", {"a": GIVEN, "b": b"", "none": None}))
    elsewhere.audit(*rows)
    assert elsewhere.complete().manifest["sha256"] == made.manifest["sha256"]
    assert bench.complete("again").manifest["sha256"] == made.manifest["sha256"]
    bench.data.parent.rename(tmp_path / "moved")
    assert bench.complete("later", data=tmp_path / "moved" / "data.yaml").manifest["sha256"] == made.manifest["sha256"]


def test_an_audit_of_other_labels_is_refused(bench: Bench) -> None:
    bench.audit(missing("b", 0, (0, 0, 20, 20), 0.9))
    (bench.data.parent / "labels/train/b.txt").write_bytes(b"0 0.5 0.5 0.1 0.1\n")
    with pytest.raises(DataError, match=r"labels of .*data.yaml are not those that were audited in .*audit"):
        bench.complete()
    assert not (bench.folder / "out").exists()


def test_what_cannot_be_is_one_line_and_no_set(bench: Bench) -> None:
    folder = bench.audit(missing("b", 0, (0, 0, 20, 20), 0.9))
    about = json.loads((folder / "audit.json").read_text("utf-8"))

    def changed(**values: Any) -> None:
        (folder / "audit.json").write_text(json.dumps({**about, **values}), "utf-8")

    for given, error, message in (
        ({"audit": str(bench.folder)}, DataError, "is not the folder of a finished audit: it has no audit.json"),
        ({"audit": ""}, ConfigError, "audit= is missing"),
        ({"out": str(bench.data.parent / "in")}, DataError, "is inside the source data set"),
        ({"out": str(bench.folder)}, DataError, "exists; nothing is overwritten"),
        ({"complete_add": 1.5}, ConfigError, "complete_add=1.5 is out of range: 0 to 1"),
        ({"decisions": str(bench.folder / "no.json")}, DataError, "no.json"),
    ):
        with pytest.raises(error, match=message):  # type: ignore[arg-type]
            bench.complete(**given)  # type: ignore[arg-type]
    for values, message in (
        ({"schema": 2}, "schema is 2, this version reads 1"),
        ({"sizes": {}}, "no width and height of b.jpg"),
        ({"suggestions_sha256": "0"}, "suggestions.csv was changed after the audit"),
        ({"classes": None}, "audit.json is not that of an audit"),
        (
            {"classes": [{"id": 0, "how": "threshold", "threshold": "0.5"}]},
            "is not that of an audit: ValueError: a class",
        ),
        ({"classes": [{"id": "0", "how": "threshold"}]}, "a class is"),
        ({"sizes": []}, "is not that of an audit"),
        ({"sizes": {"b.jpg": [0, 5]}}, "the size of b.jpg is 0, 5"),
        ({"sizes": {"b.jpg": 5}}, "is not that of an audit"),
        ({"images_root": "a\0b"}, "images_root is not a text"),
        ({"images_root": str(bench.folder / "set" / "images")}, ""),
    ):
        changed(**values)
        if not message:
            bench.complete("fine")  # found by the common folder of the images
            continue
        with pytest.raises(DataError, match=message):
            bench.complete()
    changed()
    bench.audit(missing("c", 0, (0, 0, 20, 20), 0.9))
    with pytest.raises(DataError, match=r"c.jpg is no training image of"):
        bench.complete()
    lost = replace(of_label("spurious", "a", 0, (10, 30, 30, 50)), label=Near(5, 0, (10, 30, 30, 50), 1))
    bench.audit(lost)
    with pytest.raises(DataError, match=r"its label is not in .*a.txt"):
        bench.complete(decisions=bench.decide({lost.id: "accept"}))
    assert not (bench.folder / "out").exists()
    assert not list(bench.folder.glob(".*"))


def test_what_nobody_named_lies_beside_the_data_set(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    bench.audit(missing("b", 0, (0, 0, 20, 20), 0.9))
    first = bench.complete("")
    assert first.out == bench.folder.resolve() / "set-complete"
    assert str(first.data) in summary(first)
    with pytest.raises(DataError, match="set-complete exists"):
        bench.complete(out="")
    assert bench.complete(data=first.data, out="").out == bench.folder.resolve() / "set-complete-2"


def test_what_nobody_named_lies_neither_in_the_data_set_nor_in_the_hosts_package(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.audit(missing("b", 0, (0, 0, 20, 20), 0.9))
    mine = shutil.copy(bench.data, bench.data.with_name("mine.yaml"))
    assert bench.complete("", Path(mine)).out == bench.folder.resolve() / "mine-complete"
    package = bench.folder / "host"
    package.mkdir()
    text = yaml.safe_load(bench.data.read_text("utf-8"))
    (package / "theirs.yaml").write_text(yaml.safe_dump({**text, "path": str(bench.data.parent)}), "utf-8")
    monkeypatch.setattr(dataset, "_ultralytics", lambda: package)
    assert bench.complete("", package / "theirs.yaml").out == bench.folder.resolve() / "theirs-complete"


def test_killed_in_the_middle_nothing_is_there_and_the_next_one_makes_it(bench: Bench) -> None:
    bench.audit(missing("a", 0, (50, 20, 70, 60), 0.7))
    before = tree(bench.data.parent)
    code = (
        "import os, signal, sys\n"
        "from rebalance.data import completed\n"
        "real = completed.put\n"
        "def put(path, data):\n"
        "    os.kill(os.getpid(), signal.SIGKILL) if path.name == sys.argv[1] else None\n"
        "    return real(path, data)\n"
        "completed.put = put\n"
        "import rebalance.data.folder; rebalance.data.folder.put = put\n"
        "from rebalance.cli.main import main\n"
        "main(sys.argv[2:])"
    )
    arguments = ["complete", f"data={bench.data}", f"audit={bench.folder / 'audit'}", f"out={bench.folder / 'out'}"]
    for file in ("a.txt", "b.txt", "data.yaml", "manifest.json"):
        done = subprocess.run([sys.executable, "-c", code, file, *arguments], cwd=ROOT, check=False)
        assert done.returncode == -signal.SIGKILL
        assert not (bench.folder / "out").exists()
    assert tree(bench.data.parent) == before
    assert bench.complete().manifest["total"]["added"] == 1


def test_boxes_at_the_edge_of_an_image_stay_within_it(bench: Bench) -> None:
    bench.audit(missing("b", 0, (90, 190, 120, 220), 0.9), missing("b", 1, (100, 10, 130, 20), 0.9))
    made = bench.complete()
    assert bench.label("b") == "0 0.95 0.975 0.1 0.05\n"
    assert made.manifest["completed"]["left"] == {"outside": 1}


def test_an_unreadable_label_file_is_copied_and_gets_nothing(tmp_path: Path) -> None:
    bench = Bench(tmp_path, make(tmp_path / "set", {"a": GIVEN, "bad": b"7 1 1 1 1\n"}))
    bench.audit(missing("bad", 0, (0, 0, 20, 20), 0.9))
    made = bench.complete()
    assert bench.label("bad") == "7 1 1 1 1\n"
    assert made.manifest["completed"]["left"] == {"unreadable": 1}


def test_nothing_to_do_is_the_set_itself(bench: Bench) -> None:
    bench.audit()
    made = bench.complete()
    assert hashes(bench.data.parent / "labels/train") == hashes(made.out / "labels/train")
    assert not (made.out / "given").exists()
    assert np.sum([len(file["changes"]) for file in made.manifest["files"]]) == 0


def test_in_python_the_command_is_a_function_with_the_same_flags(bench: Bench) -> None:
    folder = bench.audit(missing("b", 0, (0, 0, 20, 20), 0.9))
    made = rebalance.complete(data=bench.data, audit=folder, out=bench.folder / "out", complete_add=0.95)
    assert (made.data, made.manifest["total"]["unknown"]) == (bench.folder / "out" / "data.yaml", 1)
    with pytest.raises(ConfigError, match=r"unknown flag complete_ad=1 \(did you mean complete_add\?\)"):
        rebalance.complete(data=bench.data, audit=folder, complete_ad=1)


def test_completing_loads_no_torch(bench: Bench) -> None:
    folder = bench.audit(missing("b", 0, (0, 0, 20, 20), 0.9))
    code = "import sys; from rebalance.cli.main import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    arguments = ["complete", f"data={bench.data}", f"audit={folder}", f"out={bench.folder / 'out'}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "False"
    assert "boxes added: 1 (1 by their probability)" in done.stdout
