"""Audits of data sets on disk, with an oracle in the place of a detector: it knows the withheld boxes."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
from small_data import make_dataset

from rebalance.audit import run, table
from rebalance.audit.complete import complete, remaining
from rebalance.audit.detect import Detector, Seen, _load, _save, detect_all
from rebalance.audit.explain import Detections
from rebalance.audit.run import audit
from rebalance.cli.main import main
from rebalance.data import dataset
from rebalance.data.derive import sparsify
from rebalance.errors import ConfigError, DataError, ModelError, RunError
from rebalance.experiments.grid import read_grid
from rebalance.experiments.sweep import locked
from rebalance.settings import AuditFlags, CompleteFlags, SparsifyFlags

FAKE = Path(__file__).parents[1] / "experiments" / "fake_run.py"


class Oracle:
    """Finds every object, labelled or withheld, with a score of 0.4 to 0.9, and three that are none, below 0.3."""

    setting: dict[str, Any] = {"conf": 0.001, "iou": 0.7, "max_det": 300}  # noqa: RUF012
    known = frozenset({0, 1})

    def __init__(self, source: dataset.DataSet, model: str = "") -> None:
        self.source, self.model, self.asked = source, model, list[str]()

    def __call__(self, images: Sequence[str]) -> list[Seen | None]:
        return [self.look(image) for image in images]

    def look(self, image: str) -> Seen | None:
        self.asked.append(image)
        pixels = cv2.imread(image)
        if pixels is None:
            return None
        height, width = pixels.shape[:2]
        rng = np.random.default_rng(list("/".join(Path(image).parts[-2:]).encode()))
        there = self.source.labels(image) + self.source.withheld(image)
        false = rng.uniform(0, 0.9, (3, 2)) * (width, height)
        boxes = np.concatenate([there.boxes_xyxy(width, height), np.concatenate([false, false + 4], 1)])
        scores = np.concatenate([rng.uniform(0.4, 0.9, len(there)), rng.uniform(0.001, 0.3, 3)])
        classes = np.concatenate([there.classes, rng.integers(0, 2, 3)])
        order = np.argsort(-scores)
        return Seen((width, height), Detections(boxes[order], scores[order], classes[order]))


@pytest.fixture(scope="module")
def half_labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of which half of the training labels are withheld."""
    folder = tmp_path_factory.mktemp("audited")
    whole = make_dataset(folder / "whole", train=60, val=30, test=1, size=96)
    sparsify(SparsifyFlags(data=str(whole), protocol="percent", rate=0.5, out=str(folder / "half")))
    return folder / "half" / "data.yaml"


@pytest.fixture
def oracles(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Oracle]:
    """Oracles take the place of detectors, in a folder of the test's own; those that were made."""
    made = list[Oracle]()

    def make(given: Any, source: dataset.DataSet, model: str) -> Oracle:
        made.append(Oracle(source, model))
        return made[-1]

    monkeypatch.setattr(run, "_detector", make)
    monkeypatch.chdir(tmp_path)
    return made


def flags(data: Path, **more: Any) -> AuditFlags:
    return AuditFlags(**{"data": str(data), "model": "oracle", **more})


def about(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "audit.json").read_text("utf-8"))  # type: ignore[no-any-return]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_withheld_boxes_are_suggested_first_and_their_number_is_estimated(
    half_labelled: Path, oracles: list[Oracle]
) -> None:
    before = tree(half_labelled.parent)
    folder = audit(flags(half_labelled))
    assert folder == Path("runs/audit/half")  # named after the folder: data.yaml says nothing
    assert tree(half_labelled.parent) == before
    rows, found = table.read(folder / "suggestions.csv"), about(folder)
    source = dataset.load(half_labelled)
    root, withheld, hits = Path(found["images_root"]), 0, 0
    for image in source.images("train"):
        name, lost = Path(image).relative_to(root).as_posix(), source.withheld(image)
        withheld += len(lost)
        width, height = found["sizes"].get(name, (96, 96))
        boxes = {(round(x, 1), round(y, 1)) for x, y in lost.boxes_xyxy(width, height)[:, :2].tolist()}
        hits += sum((round(r.box[0], 1), round(r.box[1], 1)) in boxes and r.probability >= 0.8 for r in rows
                    if r.image == name and r.kind == "missing")  # fmt: skip
    assert hits >= 0.85 * withheld  # not all: some lie in a label of their class
    assert found["total"]["low"] <= withheld <= found["total"]["high"]
    assert found["total"]["missing"] == pytest.approx(withheld, rel=0.35)
    chances = [row.probability for row in rows if row.kind == "missing"]
    assert sum(chances) == pytest.approx(found["total"]["missing"], abs=0.5)
    assert chances == sorted(chances, reverse=True)
    assert [(row["how"], row["labels"]) for row in found["classes"]] == [("probability", n) for n in labels_of(source)]
    with open(folder / "estimate.csv", encoding="utf-8") as file:
        rows_of = list(csv.DictReader(file))
    assert [row["name"] for row in rows_of] == ["kind0", "kind1", "all"]
    whole = sum(row["missing"] / row["recall"] for row in found["classes"])
    assert found["total"]["with_unfound"] == pytest.approx(whole, rel=1e-3)
    assert float(rows_of[2]["with_unfound"]) == found["total"]["with_unfound"]
    for row in found["classes"]:
        assert row["with_unfound"] == pytest.approx(row["missing"] / row["recall"], rel=1e-3)
    known = found["truth"]
    assert known["withheld"] == withheld
    assert known["found"] >= 0.9 * withheld
    assert sum(row["withheld"] for row in known["classes"]) == withheld
    assert sum(row["withheld"] for row in known["sizes"]) == withheld
    assert sum(row["withheld"] for row in known["overlaps"]) == withheld
    assert known["orders"]["probability"][4]["precision"] == 1
    assert "of the first 50 suggestions 100% are right" in run.summary(folder)
    assert (folder / "truth.md").read_text("utf-8").startswith("# The audit against the truth")
    assert (folder / "truth.png").stat().st_size > 10_000
    digest = hashlib.sha256((folder / "suggestions.csv").read_bytes()).hexdigest()
    assert found["suggestions_sha256"] == digest


def labels_of(source: dataset.DataSet) -> list[int]:
    classes = np.concatenate([source.labels(image).classes for image in source.images("train")])
    return np.bincount(classes, minlength=len(source.names)).tolist()  # type: ignore[no-any-return]


def test_the_same_audit_again_is_the_same_and_another_one_is_refused(
    half_labelled: Path, oracles: list[Oracle]
) -> None:
    folder = audit(flags(half_labelled))
    before = tree(folder)
    asked = sum(len(oracle.asked) for oracle in oracles)
    assert audit(flags(half_labelled)) == folder
    assert sum(len(oracle.asked) for oracle in oracles) == asked  # nothing was looked at again
    assert tree(folder) == before
    with pytest.raises(RunError, match=r"holds another audit: seed was 0, is 1; choose another name="):
        audit(flags(half_labelled, seed=1))
    (Path("runs/audit") / "mine").mkdir()
    (Path("runs/audit") / "mine" / "x").write_text("", "utf-8")
    with pytest.raises(RunError, match=r"mine exists and is not an audit's"):
        audit(flags(half_labelled, name="mine"))
    assert tree(folder) == before


def test_an_audit_that_works_is_left_alone(half_labelled: Path, oracles: list[Oracle]) -> None:
    folder = audit(flags(half_labelled))
    with (
        locked(folder, "audit"),
        pytest.raises(RunError, match=rf"another audit works in .*process {os.getpid()}"),
    ):
        audit(flags(half_labelled))
    assert audit(flags(half_labelled)) == folder  # what is left of holding it is no obstacle


def test_an_audit_that_was_killed_before_its_question_was_written_goes_on(
    half_labelled: Path, oracles: list[Oracle]
) -> None:
    folder = Path("runs/audit/half")
    folder.mkdir(parents=True)
    (folder / ".question.json.4711").write_text("{", "utf-8")
    (folder / ".lock").touch()
    assert audit(flags(half_labelled, name="half")) == folder
    assert not (folder / ".question.json.4711").exists()


def test_labels_that_changed_make_it_another_audit(tmp_path: Path, oracles: list[Oracle]) -> None:
    data = make_dataset(tmp_path / "own", train=4, val=2, test=1)
    audit(flags(data))
    label = tmp_path / "own/labels/train/00.txt"
    label.write_text(label.read_text("utf-8") + "1 0.5 0.5 0.1 0.1\n", "utf-8")
    with pytest.raises(RunError, match="holds another audit: data_sha256 was"):
        audit(flags(data))


def test_an_audit_of_a_completed_set_asks_about_the_labels_that_were_given(
    half_labelled: Path, oracles: list[Oracle], tmp_path: Path
) -> None:
    first = audit(flags(half_labelled))
    made = complete(CompleteFlags(data=str(half_labelled), audit=str(first), out=str(tmp_path / "one")))
    assert made.manifest["total"]["recovered"] >= 0.8 * made.manifest["total"]["added"] > 0
    second = audit(flags(made.data, name="second"))
    assert (second / "suggestions.csv").read_bytes() == (first / "suggestions.csv").read_bytes()
    assert about(second)["data_sha256"] == about(first)["data_sha256"]
    again = complete(CompleteFlags(data=str(made.data), audit=str(second), out=str(tmp_path / "two")))
    assert again.manifest["sha256"] == made.manifest["sha256"]
    missing = about(first)["total"]["missing"]
    assert remaining(first, half_labelled, 0.7) == pytest.approx(missing, abs=0.1)
    assert 0 <= remaining(second, made.data, 0.7) < 0.5 * missing


def dataset_boxes(file: Path) -> int:
    source = dataset.load(file)
    return sum(len(source.labels(image)) for image in source.images("train"))


@pytest.fixture
def cells(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """The trainings of folds, which are stood in for."""
    cells = list[dict[str, str]]()

    def trained(given: Sequence[dict[str, str]], root: Path) -> Path:
        cells.extend(given)
        return root / "folds"

    def records(folder: Path) -> Any:
        paths = [str(run.host["data"]) for cell in cells for run in read_grid(cell).runs]  # as a sweep reads them
        made = [
            SimpleNamespace(host={"data": os.path.relpath(path)}, folder=Path(path).parent, weights="last.pt")
            for path in paths
        ]
        return SimpleNamespace(finished=made, failed=[])

    monkeypatch.setattr(run, "sweep", trained)
    monkeypatch.setattr(run, "check", lambda runner, runs: [{}])
    monkeypatch.setattr(run, "load", records)
    return cells


def test_folds_ask_about_an_image_only_a_model_that_was_not_trained_on_it(
    half_labelled: Path, oracles: list[Oracle], cells: list[dict[str, str]]
) -> None:
    folder = audit(flags(half_labelled, folds=3, imgsz=64, name="round=1,seed=0"), {"epochs": "2"})
    assert len(cells) == 3
    assert {(cell["epochs"], cell["imgsz"], cell["val"], cell["seeds"]) for cell in cells} == {
        ("2", "64", "False", "0")
    }
    looked = list[str]()
    for oracle in oracles:
        trained_on = {os.path.realpath(p) for p in (Path(oracle.model).parents[2] / "images" / "train").iterdir()}
        mine = {os.path.realpath(image) for image in oracle.asked if "/train/" in image}
        assert 15 <= len(mine) <= 25
        assert not mine & trained_on
        assert len(mine | trained_on) == 60
        looked += mine
    assert len(looked) == len(set(looked)) == 60
    assert about(folder)["lower_bound"] is False
    assert about(folder)["folds"] == 3


def test_folds_of_a_completed_set_are_trained_on_what_was_added_and_asked_about_what_was_given(
    half_labelled: Path, oracles: list[Oracle], cells: list[dict[str, str]]
) -> None:
    made = complete(CompleteFlags(data=str(half_labelled), audit=str(audit(flags(half_labelled))), out="completed"))
    assert made.manifest["total"]["added"] > 20
    folder = audit(flags(made.data, folds=2))
    seen = [tree(folder / "data" / fold / "labels" / "train") for fold in "01"]
    assert {**seen[0], **seen[1]} == tree(Path("completed/labels/train")) != tree(half_labelled.parent / "labels/train")
    assert len(seen[0]) == len(seen[1]) == 30
    assert about(folder)["total"]["labels"] == dataset_boxes(half_labelled)


def test_an_unlabelled_place_and_a_verified_one_have_no_suggestions(tmp_path: Path, oracles: list[Oracle]) -> None:
    data = make_dataset(tmp_path / "whole", train=30, val=25, test=1, size=96)
    sparsify(SparsifyFlags(data=str(data), protocol="percent", rate=1.0, out=str(tmp_path / "none")))
    for split, count in (("train", 30),):
        (tmp_path / "none/regions" / split).mkdir(parents=True)
        for i in range(count):
            says = "unknown" if i % 2 else "background"
            (tmp_path / f"none/regions/{split}/{i:02d}.txt").write_text(f"{says} 0 0.5 0.5 1 1\n", "utf-8")
    folder = audit(flags(tmp_path / "none/data.yaml"))
    rows = [row for row in table.read(folder / "suggestions.csv") if row.kind == "missing"]
    assert {row.number for row in rows} == {1}
    assert any("regions" in note for note in about(folder)["notes"])


def test_an_image_counts_by_what_of_it_a_class_is_asked_for(tmp_path: Path, oracles: list[Oracle]) -> None:
    data = make_dataset(tmp_path / "whole", train=60, val=60, test=1, size=96)
    sparsify(SparsifyFlags(data=str(data), protocol="percent", rate=0.5, out=str(tmp_path / "half")))
    plain = about(audit(flags(tmp_path / "half/data.yaml")))["classes"][0]
    val = tmp_path / "whole/regions/val"  # of two thirds of val nothing follows for the first class
    val.mkdir(parents=True)
    for i in range(40):
        (val / f"{i:02d}.txt").write_text("unknown 0 0.5 0.5 1 1\n", "utf-8")
    found = about(audit(flags(tmp_path / "half/data.yaml", name="regions")))
    some = found["classes"][0]
    assert some["missing"] == pytest.approx(plain["missing"], rel=0.1)
    assert some["low"] <= plain["missing"] <= some["high"]
    for i in range(45):
        (val / f"{i:02d}.txt").write_text("unknown 0 0.5 0.5 1 1\n", "utf-8")
    found = about(audit(flags(tmp_path / "half/data.yaml", name="few")))
    assert (found["classes"][0]["how"], found["classes"][1]["how"]) == ("threshold", "probability")
    assert any("kind0: regions leave fewer than 20 images of val" in note for note in found["notes"])


def test_of_a_class_that_no_model_finds_and_of_a_val_that_was_trained_on_nothing_is_claimed(
    tmp_path: Path, oracles: list[Oracle], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_dataset(tmp_path / "whole", train=30, val=25, test=1)
    look = Oracle.look

    def blind(self: Oracle, image: str) -> Seen | None:
        seen = look(self, image)
        return seen and Seen(seen.size, Detections(*(part[seen.found.classes == 0] for part in seen.found)))

    monkeypatch.setattr(Oracle, "look", blind)
    found = about(audit(flags(data)))
    assert (found["classes"][1]["missing"], found["classes"][1]["how"]) == (None, "threshold")
    assert any("kind1: no model finds any of val's labels of them" in note for note in found["notes"])
    text = data.read_text("utf-8").replace("val: images/val", "val: images/train")
    data.with_name("same.yaml").write_text(text, "utf-8")
    found = about(audit(flags(data.with_name("same.yaml"))))
    assert any(note.startswith("30 of 30 images of val are training images: ") for note in found["notes"])


def test_too_small_a_val_gives_no_probability_but_a_threshold(tmp_path: Path, oracles: list[Oracle]) -> None:
    data = make_dataset(tmp_path / "whole", train=30, val=19, test=1)
    sparsify(SparsifyFlags(data=str(data), protocol="percent", rate=0.5, out=str(tmp_path / "half")))
    folder = audit(flags(tmp_path / "half/data.yaml"))
    found = about(folder)
    assert {row["how"] for row in found["classes"]} == {"threshold"}
    assert {row["missing"] for row in found["classes"]} == {None}
    assert all(0.4 < row["threshold"] < 0.9 for row in found["classes"])
    rows = table.read(folder / "suggestions.csv")
    assert {row.probability for row in rows} == {None}
    assert min(row.score for row in rows if row.kind == "missing") >= 0.1
    assert "no probability and no estimate for kind0, kind1: val has 19 images" in run.summary(folder)


def test_what_cannot_be_read_is_said_and_passed_over(
    tmp_path: Path, oracles: list[Oracle], capsys: pytest.CaptureFixture[str]
) -> None:
    data = make_dataset(tmp_path / "own", train=6, val=2, test=1)
    (tmp_path / "own/images/train/00.jpg").write_bytes(b"no image")
    (tmp_path / "own/labels/train/01.txt").write_text("0 0.5\n", "utf-8")
    folder = audit(flags(data))
    assert about(folder)["images"] == 4
    assert "00.jpg cannot be read; it is passed over" in capsys.readouterr().err
    assert "1 images with a label file that cannot be read are passed over" in about(folder)["notes"]


def test_an_audit_goes_on_and_is_completed_with_the_regions_that_it_began_with_alone(
    half_labelled: Path, oracles: list[Oracle], tmp_path: Path
) -> None:
    shutil.copytree(half_labelled.parent, tmp_path / "own", symlinks=True)
    data, regions = tmp_path / "own" / "data.yaml", tmp_path / "own" / "regions" / "train"
    folder = audit(flags(data))
    regions.mkdir(parents=True)
    (regions / "00.txt").write_text("unknown * 0.5 0.5 1 1\n", "utf-8")
    with pytest.raises(RunError, match=r"holds another audit: regions_sha256 was , is [0-9a-f]+; choose another name="):
        audit(flags(data))
    with pytest.raises(DataError, match=r"the regions of .* are not those that were audited in .*: audit them"):
        complete(CompleteFlags(data=str(data), audit=str(folder), out="completed"))
    again = audit(flags(data, name="again"))
    data.write_text(data.read_text("utf-8") + "unknown_below: 3\n", "utf-8")
    with pytest.raises(RunError, match="holds another audit: regions_sha256 was "):
        audit(flags(data, name="again"))
    for path in (again / "question.json", folder / "audit.json"):  # an earlier version did not say
        text = json.loads(path.read_text("utf-8"))
        del text["regions_sha256"]
        path.write_text(json.dumps(text), "utf-8")
    audit(flags(data, name="again"))
    complete(CompleteFlags(data=str(data), audit=str(folder), out="completed"))


def test_flags_without_effect_and_bad_ones_are_refused(
    half_labelled: Path, oracles: list[Oracle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=r"fold=3 is no flag of data, model, .* \(did you mean folds\?\)"):
        audit(flags(half_labelled), {"fold": "3"})
    with pytest.raises(ConfigError, match=r"protocol=easy is no flag; it belongs to rebalance sweep"):
        audit(flags(half_labelled, folds=2), {"protocol": "easy"})
    with pytest.raises(ConfigError, match=r"loss=brl,drop: an audit trains one setting, and takes no list of them"):
        audit(flags(half_labelled, folds=2), {"loss": "brl,drop"})
    monkeypatch.setattr(run, "RUNNER", (sys.executable, str(FAKE), str(tmp_path / "plan.json")))
    (tmp_path / "plan.json").write_text("{}", "utf-8")
    with pytest.raises(ConfigError, match=r"single_cls=True trains all classes as one"):
        audit(flags(half_labelled, folds=2), {"single_cls": "True"})
    told = {"check": {"kind": "ConfigError", "error": "epochs=x is no number"}}
    (tmp_path / "plan.json").write_text(json.dumps(told), "utf-8")
    with pytest.raises(ConfigError, match=r"epochs=x is no number"):
        audit(flags(half_labelled, folds=2), {"epochs": "x"})
    with pytest.raises(ConfigError, match=r"folds=1: 0, or 2 to 60"):
        audit(flags(half_labelled, folds=1))
    with pytest.raises(ConfigError, match=r"model= is missing"):
        audit(AuditFlags(data=str(half_labelled)))
    with pytest.raises(DataError, match=r"does not exist"):
        audit(flags(Path("none.yaml")))
    assert not Path("runs").exists()


def test_a_killed_detection_goes_on_where_it_was(half_labelled: Path, tmp_path: Path) -> None:
    source = dataset.load(half_labelled)
    images = source.images("train") * 3  # three files of 64 images at most

    class Killed(Oracle):
        def look(self, image: str) -> Seen | None:
            if len(self.asked) == 100:
                raise KeyboardInterrupt
            return super().look(image)

    with pytest.raises(KeyboardInterrupt):
        detect_all(Killed(source), images, tmp_path / "d", "train")
    (tmp_path / "d" / "0000064.npz").write_bytes(b"PK cut")  # as if killed in the middle of writing in place
    (tmp_path / "d" / ".0000128.npz.4711").write_bytes(b"PK cut")  # as it is when killed in the middle of writing
    again = Oracle(source)
    found = detect_all(again, images, tmp_path / "d", "train")
    assert (
        sorted(path.name for path in (tmp_path / "d").iterdir())
        == ["0000000.npz", "0000064.npz", "0000128.npz"][: -(-len(images) // 64)]
    )
    assert len(again.asked) == len(images) - 64
    whole = detect_all(Oracle(source), images, tmp_path / "e", "train")
    for one, other in zip(found, whole, strict=True):
        assert one is not None
        assert other is not None
        assert one.size == other.size
        assert all(map(np.array_equal, one.found, other.found))


def test_detections_are_kept_as_they_are(tmp_path: Path) -> None:
    none = Detections(np.zeros((0, 4)), np.zeros(0), np.zeros(0, np.int64))
    some = Detections(np.array([[1, 2, 3, 4.5]]), np.array([0.25]), np.array([3]))
    _save(tmp_path / "x.npz", [None, Seen((5, 6), some), Seen((7, 8), none)])
    unread, one, two = _load(tmp_path / "x.npz", 3) or []
    assert unread is None
    assert one is not None
    assert one.size == (5, 6)
    assert all(map(np.array_equal, one.found, some))
    assert two
    assert two.found.boxes.shape == (0, 4)
    assert _load(tmp_path / "x.npz", 2) is None


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of a detector of two classes, hardly trained."""
    from small_training import train

    folder = tmp_path_factory.mktemp("trained")
    train("yolov8n.yaml", make_dataset(folder / "data"), folder, epochs=1, val=False)
    return folder / "run/weights/last.pt"


def detector(model: Path | str, names: dict[int, str], **more: Any) -> Detector:
    return Detector(str(model), names, **{"channels": 3, "imgsz": 64, "batch": 3, "device": "cpu", **more})


def test_a_detector_finds_the_same_whatever_the_batch_and_takes_classes_by_name(trained: Path, tmp_path: Path) -> None:
    source = dataset.load(make_dataset(tmp_path / "own", val=7))
    images = source.images("val")
    cv2.imwrite(images[1], cv2.resize(cv2.imread(images[1]), (80, 40)))
    (tmp_path / "cut.jpg").write_bytes(b"no image")
    own = detector(trained, {0: "kind0", 1: "kind1"})
    found = own([*images, str(tmp_path / "cut.jpg")])
    assert found[-1] is None
    assert found[1] is not None
    assert found[1].size == (80, 40)
    assert own.known == {0, 1}
    one = detector(trained, {0: "other", 1: "kind0"}, batch=1)  # kind0 is its second class, kind1 it has not
    assert one.known == {1}
    total = 0
    for both, single in zip(found[:-1], one(images), strict=True):
        assert both is not None
        assert single is not None
        total += len(both.found.scores)
        of_kind0 = both.found.classes == 0
        np.testing.assert_allclose(both.found.scores[of_kind0], single.found.scores, atol=1e-5)
        np.testing.assert_allclose(both.found.boxes[of_kind0], single.found.boxes, atol=0.05)
        assert (single.found.classes == 1).all()
        assert (np.diff(both.found.scores) <= 0).all()
    assert total > 20


def test_models_that_are_none_for_it_are_refused(trained: Path) -> None:
    with pytest.raises(ModelError, match=r"knows none of the classes fish: it has kind0, kind1; train one"):
        detector(trained, {0: "fish"})
    with pytest.raises(ModelError, match=r"is for the task classify; an audit needs a detector"):
        detector("yolov8n-cls.yaml", {0: "fish"})
    with pytest.raises(ModelError, match=r"model=no\.pt: no such file"):
        detector("no.pt", {0: "fish"})


def test_the_command_audits_with_a_real_detector(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = make_dataset(tmp_path / "own", train=5, val=3)
    assert main(["audit", f"data={data}", f"model={trained}", "imgsz=64", "name=mine"]) == 0
    said = capsys.readouterr().out
    assert "kind1" in said
    assert "runs/audit/mine/suggestions.csv" in said
    assert about(Path("runs/audit/mine"))["settings"] == {"conf": 0.001, "iou": 0.7, "max_det": 300}
    assert main(["audit", f"data={data}", "model=no.pt"]) == 2
    assert "model=no.pt: no such file" in capsys.readouterr().err
