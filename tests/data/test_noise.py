"""Noisy labels: how many errors of each kind, sets inside one another, and that the true labels are kept."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rebalance.data import dataset, labels
from rebalance.data.boxes import iou
from rebalance.data.derive import noise, sparsify, summary
from rebalance.data.folder import Manifest, load_manifest
from rebalance.data.noise import File, Noise, Noisy
from rebalance.errors import ConfigError, DataError
from rebalance.settings import NoiseFlags, SparsifyFlags

NONE = labels.parse(b"", classes=3)
ALL = {"missing": 0.3, "extra": 0.2, "jitter": 0.25, "class_flip": 0.2}


def row(label: int, *box: float) -> bytes:
    return f"{label} {' '.join(map(str, box))}\n".encode()


def boxes(generator: np.random.Generator, count: int) -> bytes:
    size = generator.uniform(0.05, 0.3, (count, 2))
    centre = size / 2 + generator.random((count, 2)) * (1 - size)
    return b"".join(row(i % 3, *c.round(4), *s.round(4)) for i, (c, s) in enumerate(zip(centre, size, strict=True)))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 images with 5 boxes each, one with none, one without a label file, one that cannot be read."""
    folder, generator = tmp_path_factory.mktemp("noise") / "set", np.random.default_rng(0)
    files: dict[str, bytes | None] = {f"train/{i:02}": boxes(generator, 5) for i in range(20)}
    files |= {"train/empty": b"", "train/missing": None, "train/bad": b"0 1\n", "val/v": row(0, 0.5, 0.5, 0.1, 0.1)}
    for name, data in files.items():
        for kind, suffix, content in (("images", "jpg", b""), ("labels", "txt", data)):
            file = folder / kind / f"{name}.{suffix}"
            file.parent.mkdir(parents=True, exist_ok=True)
            if content is not None:
                file.write_bytes(content)
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [a, b, c]\n")
    return folder / "data.yaml"


def run(source: Path, out: Path, **given: Any) -> Manifest:
    return noise(NoiseFlags(data=str(source), out=str(out), **given))


def lines(folder: Path) -> dict[str, list[bytes]]:
    return {str(p.relative_to(folder)): p.read_bytes().splitlines() for p in sorted(folder.rglob("*.txt"))}


def as_labels(text: str) -> labels.Labels:
    return labels.parse(text.encode(), classes=3)


def numbers(text: str) -> tuple[int, np.ndarray]:
    found = as_labels(text)
    return int(found.classes[0]), found.boxes_xyxy(1, 1)


def changed(manifest: Manifest) -> dict[str, set[tuple[str, Any, Any]]]:
    """Kind -> (file, what a box was, what it is) for all that happened."""
    found: dict[str, set[tuple[str, Any, Any]]] = {}
    for file in manifest["files"]:
        for change in file["noise"]:
            for kind in change["kind"].split("+"):
                found.setdefault(kind, set()).add((file["label"], change["was"], change["now"]))
    return found


def test_each_kind_happens_to_as_many_boxes_as_asked(source: Path, tmp_path: Path) -> None:
    for kind, rate, count in (("missing", 0.3, 30), ("extra", 0.17, 17), ("jitter", 0.29, 29), ("class_flip", 0.1, 10)):
        manifest = run(source, tmp_path / kind, **{kind: rate})
        told = manifest.get("noise", {"missing": {"boxes": manifest["total"]["withheld"]}})
        assert told[kind]["boxes"] == count
        if kind != "missing":
            assert told[kind] == {"asked": rate, "boxes": count, "reached": count / 100}
            assert sum(c["noise"][kind]["boxes"] for c in manifest["classes"]) == count
            assert {k: len(v) for k, v in changed(manifest).items()} == {kind: count}
            others = {name for name in told if name != kind}
            assert all(told[name]["boxes"] == 0 for name in others)


def test_a_missing_box_alone_is_one_that_sparsify_withholds(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "noise", missing=0.3, seed=5)
    sparsify(SparsifyFlags(data=str(source), out=str(tmp_path / "sparse"), protocol="percent", rate=0.3, seed=5))
    assert lines(tmp_path / "noise/labels") == lines(tmp_path / "sparse/labels")
    assert lines(tmp_path / "noise/withheld") == lines(tmp_path / "sparse/withheld")
    joined = run(source, tmp_path / "joined", **ALL, seed=5)
    assert lines(tmp_path / "joined/withheld") == lines(tmp_path / "sparse/withheld")
    assert joined["noise"]["missing"] == {"asked": 0.3, "boxes": 30, "reached": 0.3}


def test_every_box_can_be_told_from_what_it_was(source: Path, tmp_path: Path) -> None:
    manifest = run(source, tmp_path / "out", **ALL)
    assert manifest == load_manifest(tmp_path / "out")
    data, before = dataset.load(tmp_path / "out/data.yaml"), dataset.load(source)
    for image in before.images("train"):
        name = Path(image).stem
        if name == "bad":
            continue
        new = str(tmp_path / f"out/images/train/{name}.jpg")
        entry = next(file for file in manifest["files"] if file["label"] == f"train/{name}.txt")
        true, now, withheld = before.labels(image), data.labels(new), data.withheld(new)
        rows = {line.rstrip() for line in now.lines}
        after = {(int(c), *b.tolist()) for c, b in zip(now.classes, now.boxes_xywh_norm, strict=True)}
        for change in entry["noise"]:
            found = as_labels(change["now"])
            assert (int(found.classes[0]), *found.boxes_xywh_norm[0].tolist()) in after
        unchanged = [line for line in true.lines if line.rstrip() in rows]
        was = [change for change in entry["noise"] if change["was"]]
        assert len(true) == len(unchanged) + len(was) + len(withheld)
        assert len(now) == len(unchanged) + len(entry["noise"])
        file = tmp_path / f"out/true/train/{name}.txt"
        assert file.exists() == bool(entry["noise"])
        if file.exists():
            assert file.read_bytes() == Path(dataset.label_path(image)).read_bytes()
            assert entry["sha256"]["true"] == entry["sha256"]["source"]
    assert (tmp_path / "out/labels/train/bad.txt").read_bytes() == b"0 1\n"  # nothing may make it readable
    assert not (tmp_path / "out/labels/train/missing.txt").exists()  # nobody looked at it, so nobody erred


@pytest.mark.parametrize("kind", ["missing", "extra", "jitter", "class_flip"])
def test_sets_of_one_seed_lie_inside_one_another(source: Path, tmp_path: Path, kind: str) -> None:
    found, withheld = [], []
    for rate in (0.1, 0.2, 0.45, 1.0):
        others = {name: 0.2 for name in ALL if name not in (kind, "missing")}
        found.append(run(source, tmp_path / str(rate), **others, **{kind: rate}, seed=3))
        gone = lines(tmp_path / f"{rate}/withheld") if kind == "missing" else {}
        withheld.append({(name, line) for name, own in gone.items() for line in own})
    assert all(few < many for few, many in pairwise(withheld)) or kind != "missing"
    for less, more in pairwise(found):
        if kind == "missing":
            for name in ("jitter", "class_flip"):  # what is left of them is the same
                assert changed(more).get(name, set()) <= changed(less)[name]
        else:
            few, many = changed(less)[kind], changed(more)[kind]
            key = 2 if kind == "extra" else 1  # a box that is displaced too has other numbers
            assert {(x[0], x[key]) for x in few} < {(x[0], x[key]) for x in many}
        assert changed(less)["extra"] <= changed(more)["extra"]


def test_a_displaced_box_has_an_iou_in_the_range_and_stays_in_the_image(source: Path, tmp_path: Path) -> None:
    for low, high in ((0.5, 0.9), (0.1, 0.15), (0.7, 0.7), (0.95, 1.0)):
        out = tmp_path / f"{low}"
        manifest = run(source, out, jitter=1.0, class_flip=0.3, jitter_iou=f"[{low},{high}]")
        assert manifest["jitter_iou"] == f"[{low},{high}]"
        pairs = [
            (numbers(change["was"]), numbers(change["now"]))
            for file in manifest["files"] for change in file["noise"] if "jitter" in change["kind"]
        ]  # fmt: skip
        assert len(pairs) == 100
        true, now = (np.concatenate([pair[i][1] for pair in pairs]) for i in (0, 1))
        found = iou(true, now)
        assert low - 1e-4 <= found.min() <= found.max() <= high + 1e-4
        assert now.min() >= -1e-6
        assert now.max() <= 1 + 1e-6
        assert np.ptp(found) > 0.7 * (high - low)  # all of the range
    grown = (now[:, 2:] - now[:, :2]).prod(1) > (true[:, 2:] - true[:, :2]).prod(1)
    assert 0.2 < grown.mean() < 0.8


def one(data: bytes, **given: Any) -> Noisy:
    keypoints = given.pop("keypoints", (0, 0))
    found = labels.parse(data, classes=3, keypoints=keypoints)
    return Noise(**given)([File(found, NONE, True)], classes=3, keypoints=keypoints)[0]


def test_a_box_as_large_as_the_image_is_displaced_too() -> None:
    for seed in range(20):
        made = one(row(0, 0.5, 0.5, 1, 1), jitter=1.0, seed=seed, jitter_iou="[0.6,0.7]")
        assert 0.6 - 1e-6 <= iou(np.array([[0.0, 0, 1, 1]]), made.labels.boxes_xyxy(1, 1))[0] <= 0.7 + 1e-6


def test_a_class_is_flipped_to_any_other_and_never_to_its_own(source: Path, tmp_path: Path) -> None:
    manifest = run(source, tmp_path / "out", class_flip=1.0)
    pairs = [(change["was"].split(" "), change["now"].split(" ")) for f in manifest["files"] for change in f["noise"]]
    assert all(was[1:] == now[1:] for was, now in pairs)
    counts = np.zeros((3, 3), int)
    for was, now in pairs:
        counts[int(was[0]), int(now[0])] += 1
    assert np.diag(counts).tolist() == [0, 0, 0]
    assert (counts[~np.eye(3, dtype=bool)] > 8).all()  # 16 or 17 each, but for chance
    told = {c["name"]: c["noise"]["class_flip"]["boxes"] for c in manifest["classes"]}
    assert told == {"a": 40, "b": 40, "c": 20}  # by the true class
    line = one(b" 1   .5 0.50 .2 .2  \r\n", class_flip=1.0).labels.lines[0]
    assert line in (b" 0   .5 0.50 .2 .2  \r\n", b" 2   .5 0.50 .2 .2  \r\n")  # all else byte for byte


def test_an_extra_box_touches_nothing(source: Path, tmp_path: Path) -> None:
    manifest = run(source, tmp_path / "out", extra=1.0, jitter=0.5, missing=0.5)
    data, before = dataset.load(tmp_path / "out/data.yaml"), dataset.load(source)
    sizes = {
        (int(c), round(float(w), 4), round(float(h), 4))
        for image in before.images("train") if Path(image).stem != "bad"
        for c, (_, _, w, h) in zip(before.labels(image).classes, before.labels(image).boxes_xywh_norm, strict=True)
    }  # fmt: skip
    images = 0
    for file in manifest["files"]:
        extra = [numbers(change["now"]) for change in file["noise"] if change["kind"] == "extra"]
        images += bool(extra)
        if not extra:
            continue
        image = str(tmp_path / "out/images" / file["images"][0])
        now = data.labels(image).boxes_xyxy(1, 1)
        every = np.concatenate([now, before.labels(str(source.parent / "images" / file["images"][0])).boxes_xyxy(1, 1)])
        for label, box in extra:
            assert ((iou(np.repeat(box, len(every), 0), every) < 1e-6) | (abs(every - box).max(1) < 1e-6)).all()
            assert (label, *(float(x) for x in (box[0, 2:] - box[0, :2]).round(4))) in sizes
            assert box.min() >= -1e-6
            assert box.max() <= 1 + 1e-6
    assert images > 15
    assert manifest["noise"]["extra"]["boxes"] > 80


def test_where_nothing_fits_the_rate_is_not_reached_and_said_so(source: Path, tmp_path: Path) -> None:
    full = one(row(0, 0.5, 0.5, 1, 1) + row(1, 0.5, 0.5, 0.9, 0.9), extra=1.0)
    assert len(full.extra) == 0
    manifest = run(source, tmp_path / "out", extra=0.1)
    manifest["noise"]["extra"]["boxes"] = 7
    manifest["noise"]["extra"]["reached"] = 0.07
    assert "extra: 7 boxes (7.0%, asked 10.0%)" in summary(manifest)


def test_polygons_go_with_their_box_and_extra_boxes_are_polygons_beside_them() -> None:
    data = b"0 0.2 0.2 0.4 0.2 0.4 0.5 0.3 0.6\n1 0.6 0.6 0.8 0.6 0.8 0.8"
    made = one(data, jitter=1.0, extra=1.0)
    text = (made.labels + made.extra).data
    again = labels.parse(text, classes=3)
    assert len(again) == 2 + len(made.extra) > 2
    assert np.allclose(again.boxes_xywh_norm[:2], made.labels.boxes_xywh_norm, atol=1e-6)
    assert len(text.splitlines()[0].split()) == 9
    true = labels.parse(data, classes=3).boxes_xyxy(1, 1)
    assert (
        (iou(true, made.labels.boxes_xyxy(1, 1)) < 0.9 + 1e-6) & (iou(true, made.labels.boxes_xyxy(1, 1)) > 0.5)
    ).all()


def test_keypoints_stay_where_a_box_is_displaced() -> None:
    data = b"0 0.3 0.3 0.2 0.2 0.31 0.32 2 0.33 0.34 2\n"
    made = one(data, jitter=1.0, extra=1.0, keypoints=(2, 3))
    first, second = (made.labels + made.extra).data.split(b"\n")[:2]
    assert first.split()[5:] == data.split()[5:]
    assert first.split()[1:5] != data.split()[1:5]
    assert second.split()[5:] == [b"0"] * 6
    assert len(labels.parse(first + b"\n" + second, classes=3, keypoints=(2, 3))) == 2


def test_equal_lines_stay_equal() -> None:
    made = one(row(0, 0.3, 0.3, 0.2, 0.2) * 3, jitter=1.0, class_flip=1.0)
    assert len(set(made.labels.lines)) == 1
    assert len(labels.parse(made.labels.data, classes=3)) == 1


def test_boxes_without_area_are_not_displaced() -> None:
    made = one(row(0, 0.3, 0.3, 0, 0.2) + row(0, 0.6, 0.6, 0.1, 0.1), jitter=1.0)
    assert made.jitter.tolist() == [False, True]


def test_only_the_training_split_changes_and_the_source_is_only_read(source: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in source.parent.rglob("*") if p.is_file()}
    run(source, tmp_path / "out", **ALL)
    assert {p: p.read_bytes() for p in source.parent.rglob("*") if p.is_file()} == before
    new = dataset.load(tmp_path / "out/data.yaml")
    assert new.splits["val"] == (str(source.parent / "images/val"),)


def test_the_true_labels_outlive_a_further_change(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "first", **ALL)
    sparsify(SparsifyFlags(data=str(tmp_path / "first/data.yaml"), out=str(tmp_path / "second"), protocol="extreme"))
    run(tmp_path / "second/data.yaml", tmp_path / "third", jitter=1.0)
    first = lines(tmp_path / "first/true")
    assert first == lines(tmp_path / "second/true") != {}
    third = lines(tmp_path / "third/true")
    assert {name: third[name] for name in first} == first


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "there is no noise: give a rate above 0 to one of missing, extra, jitter, class_flip"),
        ({"jitter": 1.2}, "jitter=1.2 is out of range: 0 to 1"),
        ({"extra": 0.1, "jitter_iou": "[0.3,0.4]"}, "has no effect without jitter="),
        *(
            ({"jitter": 0.1, "jitter_iou": text}, "is not a range of IoU such as")
            for text in ("0.5", "[0.9,0.5]", "[0,0.5]", "[a,b]", "[0.5,1.1]", "[0.1,0.2,0.3]", "[nan,nan]")
        ),
    ],
)
def test_flags_without_a_meaning(source: Path, tmp_path: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        run(source, tmp_path / "out", **given)
    assert not (tmp_path / "out").exists()


def test_one_class_has_no_other(source: Path, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for name in ("images/train/a.jpg", "labels/train/a.txt"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_bytes(row(0, 0.5, 0.5, 0.2, 0.2) if name.endswith("txt") else b"")
    (folder / "data.yaml").write_text("train: images/train\nval: images/train\nnames: [a]\n")
    with pytest.raises(DataError, match=r"class_flip=0.5 has no meaning in a data set of one class"):
        run(folder / "data.yaml", tmp_path / "out", class_flip=0.5)
    assert not (tmp_path / "out").exists()


def test_summary_has_a_line_a_kind(source: Path, tmp_path: Path) -> None:
    told = summary(run(source, tmp_path / "out", missing=0.1, jitter=0.2)).splitlines()
    assert told[0] == "percent, seed 0: 10 of 100 boxes withheld (10.0%, asked 10.0%)"
    assert told[2].startswith("jitter: ")
    assert told[2].endswith("asked 20.0%)")
    assert told[3].split() == ["class", "boxes", "withheld", "reached", "jitter"]
    assert not any("class_flip" in line for line in told)
