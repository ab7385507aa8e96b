"""Sparsified sets: what survives, what is kept beside it, and that the source and a half-written set are safe."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from rebalance.data import dataset
from rebalance.data.derive import sparsify, summary
from rebalance.data.folder import Manifest, load_manifest
from rebalance.errors import ConfigError, DataError
from rebalance.settings import SparsifyFlags

ROOT = Path(__file__).resolve().parents[2]
POLYGON = b"1 0.1 0.1 0.4 0.1 0.4 0.4\r\n"


def box(label: int, x: float) -> bytes:
    return f"{label} {x} 0.5 0.1 0.1\n".encode()


LABELS: dict[str, bytes | None] = {  # 1 + 2 + 3 + 5 + 4 = 15 boxes; fish 7, crab 8
    "one": box(0, 0.1),
    "two": box(0, 0.1) + box(1, 0.2).strip(),
    "three": box(1, 0.1) + b"\n" + box(1, 0.2) + box(0, 0.3),
    "five": b"\xef\xbb\xbf" + b"".join(box(i % 2, i / 10) for i in range(1, 6)),
    "deep/polygons": POLYGON + b" 0  .1 .2 .3 .2 .3 .4\n" + POLYGON.replace(b"0.4", b"0.5") + b"0 .2 .2 .3 .2 .3 .4",
    "empty": b"",
    "missing": None,
}
PER_IMAGE = {"one": 1, "two": 2, "three": 3, "five": 5, "deep/polygons": 4, "empty": 0, "missing": 0}


def make(folder: Path, labels: Mapping[str, bytes | None] = LABELS, images: str = "images/train") -> Path:
    """A data set with these label files; its images are 0 bytes long."""
    for name, data in {**labels, "../val/v": box(0, 0.5)}.items():
        image = folder / images / f"{name}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.touch()
        label = Path(dataset.label_path(str(image)))
        label.parent.mkdir(parents=True, exist_ok=True)
        if data is not None:
            label.write_bytes(data)
    val = Path(images).parent / "val"
    (folder / "data.yaml").write_text(f"train: {images}\nval: {val}\ntest: {val}\nnames: {{0: fish, 1: crab}}\n")
    return folder / "data.yaml"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make(tmp_path / "set")


def run(source: Path, out: Path, protocol: str = "percent", **more: Any) -> Manifest:
    return sparsify(SparsifyFlags(data=str(source), out=str(out), protocol=protocol, **more))


def tree(folder: Path) -> dict[str, tuple[int, str]]:
    """Everything below a folder: path to time of change and content."""
    return {
        str(p.relative_to(folder)): (p.lstat().st_mtime_ns, os.readlink(p) if p.is_symlink() else _hash(p))
        for p in sorted(folder.rglob("*"))
    }


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "folder"


def lines(path: Path) -> list[bytes]:
    data = path.read_bytes() if path.exists() else b""
    return [line for line in data.removeprefix(b"\xef\xbb\xbf").splitlines(keepends=True) if line.strip()]


def gone(out: Path) -> set[tuple[str, bytes]]:
    folder = out / "withheld"
    return {(str(p.relative_to(folder)), line) for p in folder.rglob("*.txt") for line in lines(p)}


def test_layout(source: Path, tmp_path: Path) -> None:
    manifest = run(source, tmp_path / "out", "hard")
    out = tmp_path / "out"
    assert sorted(p.name for p in out.iterdir()) == ["data.yaml", "images", "labels", "manifest.json", "withheld"]
    for name in LABELS:
        image = out / f"images/train/{name}.jpg"
        assert os.readlink(image) == str(source.parent / f"images/train/{name}.jpg")  # absolute, file by file
    assert not [p for p in out.rglob("*") if p.is_dir() and p.is_symlink()]
    assert not (out / "labels/train/missing.txt").exists()
    assert (out / "labels/train/empty.txt").read_bytes() == b""
    val = str(source.parent / "images/val")
    assert yaml.safe_load((out / "data.yaml").read_text()) == {
        "train": "images/train", "val": val, "test": val, "names": {0: "fish", 1: "crab"},
    }  # fmt: skip
    assert json.loads((out / "manifest.json").read_text()) == manifest == load_manifest(out)
    assert os.listdir(tmp_path) in (["set", "out"], ["out", "set"])  # nothing left beside it
    umask = os.umask(0)
    os.umask(umask)
    assert out.stat().st_mode & 0o777 == 0o777 & ~umask


@pytest.mark.parametrize(
    ("protocol", "per_image"),
    [
        ("normal", {}),
        ("easy", {"two": 1, "three": 1, "five": 1, "deep/polygons": 1}),
        ("hard", {"two": 1, "three": 1, "five": 2, "deep/polygons": 2}),
        ("extreme", {"two": 1, "three": 2, "five": 4, "deep/polygons": 3}),
        ("keep_one_per_class", {"three": 1, "five": 3, "deep/polygons": 2}),
    ],
)
def test_counts_of_each_image(source: Path, tmp_path: Path, protocol: str, per_image: dict[str, int]) -> None:
    manifest = run(source, tmp_path / "out", protocol)
    for name in LABELS:
        assert len(lines(tmp_path / f"out/withheld/train/{name}.txt")) == per_image.get(name, 0), name
    by_file = {entry["label"]: entry for entry in manifest["files"]}
    for name, boxes in PER_IMAGE.items():
        entry = by_file[f"train/{name}.txt"]
        assert (entry["boxes"], entry["withheld"]) == (boxes, per_image.get(name, 0))
    assert manifest["asked"] is None
    assert manifest["total"] == {
        "boxes": 15, "withheld": sum(per_image.values()), "reached": sum(per_image.values()) / 15,
    }  # fmt: skip


def test_counts_of_rates(source: Path, tmp_path: Path) -> None:
    percent = run(source, tmp_path / "a", "percent", rate=0.5)
    assert (percent["asked"], percent["reached"], percent["total"]["withheld"]) == (0.5, 7 / 15, 7)  # floor(7.5)
    each = run(source, tmp_path / "b", "per_class", rate=0.5)
    assert [(c["name"], c["boxes"], c["withheld"], c["reached"]) for c in each["classes"]] == [
        ("fish", 7, 3, 3 / 7), ("crab", 8, 4, 0.5),
    ]  # fmt: skip
    kept = run(source, tmp_path / "c", "percent", rate=1.0, keep_one=True)
    assert (kept["asked"], kept["total"]["withheld"]) == (1.0, 10)  # 15 boxes, 5 images with boxes
    assert kept["images"] == {"total": 7, "labelled_before": 5, "labelled": 5, "unreadable": 0}
    everything = run(source, tmp_path / "d", "percent", rate=1.0)
    assert everything["images"]["labelled"] == 0
    assert (tmp_path / "d/labels/train/one.txt").read_bytes() == b""  # there and empty, as an image without objects


@pytest.mark.parametrize("protocol", ["normal", "easy", "hard", "extreme", "percent", "per_class"])
@pytest.mark.parametrize("seed", [0, 1])
def test_lines_stay_or_go_byte_for_byte(source: Path, tmp_path: Path, protocol: str, seed: int) -> None:
    before = tree(source.parent)
    manifest = run(source, tmp_path / "out", protocol, seed=seed)
    assert tree(source.parent) == before
    for name, data in LABELS.items():
        stay = lines(tmp_path / f"out/labels/train/{name}.txt")
        went = lines(tmp_path / f"out/withheld/train/{name}.txt")
        original = lines(source.parent / f"labels/train/{name}.txt")
        assert [line for line in original if line in stay] == stay  # order too
        assert sorted(stay + went) == sorted(original)
        if not went and data is not None:
            assert (tmp_path / f"out/labels/train/{name}.txt").read_bytes() == data
    for entry in manifest["files"]:
        for kind, folder in (("source", source.parent / "labels"), ("label", tmp_path / "out/labels"),
                             ("withheld", tmp_path / "out/withheld")):  # fmt: skip
            file = folder / entry["label"]
            assert entry["sha256"][kind] == (_hash(file) if file.exists() else None)


@pytest.mark.parametrize(("protocol", "keep_one"), [("percent", False), ("percent", True), ("per_class", False)])
def test_rates_lie_inside_one_another(source: Path, tmp_path: Path, protocol: str, keep_one: bool) -> None:
    sets = []
    for rate in (0.1, 0.2, 0.35, 0.5, 1.0):
        run(source, tmp_path / str(rate), protocol, rate=rate, keep_one=keep_one, seed=3)
        sets.append(gone(tmp_path / str(rate)))
    assert all(small < large for small, large in pairwise(sets))


def test_same_seed_same_set_wherever_and_in_whatever_order_it_lies(source: Path, tmp_path: Path) -> None:
    first = run(source, tmp_path / "a", rate=0.4)
    again = run(source, tmp_path / "b", rate=0.4)
    assert first == again
    shuffled = list(LABELS.items())
    random.Random(1).shuffle(shuffled)
    other = run(make(tmp_path / "far/away", dict(shuffled)), tmp_path / "c", rate=0.4)
    assert gone(tmp_path / "a") == gone(tmp_path / "b") == gone(tmp_path / "c")
    assert other["sha256"] == first["sha256"]
    assert other["origin"] != first["origin"]
    assert run(source, tmp_path / "d", rate=0.4, seed=1)["sha256"] != first["sha256"]


def test_equal_lines_are_one_box(tmp_path: Path) -> None:
    source = make(tmp_path / "set", {"a": box(0, 0.1) * 3 + box(0, 0.2)})
    manifest = run(source, tmp_path / "out", "extreme")
    assert manifest["total"] == {"boxes": 2, "withheld": 1, "reached": 0.5}
    stay, went = (set(lines(tmp_path / f"out/{folder}/train/a.txt")) for folder in ("labels", "withheld"))
    assert not stay & went


def test_bad_label_files_are_copied_and_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = {"bad": box(0, 0.1) + b"0 320 240 20 20\n", "binary": b"\xff\xfe\x00", "good": box(0, 0.1) + box(1, 0.2)}
    source = make(tmp_path / "set", bad)
    manifest = run(source, tmp_path / "out", "percent", rate=1.0)
    assert manifest["total"]["boxes"] == 2
    assert manifest["images"] == {"total": 3, "labelled_before": 1, "labelled": 0, "unreadable": 2}
    assert (tmp_path / "out/labels/train/bad.txt").read_bytes() == bad["bad"]
    said = capsys.readouterr().err
    assert f"warning: {source.parent}/labels/train/bad.txt, line 2: a value of box 320 240 20 20 is above 1" in said
    assert "binary.txt, not UTF-8" in said
    reasons = [entry["unreadable"] for entry in manifest["files"]]
    assert reasons[0] is not None
    assert reasons[0].startswith("line 2: ")  # no path: the same on every machine
    assert reasons[2] is None
    assert "2 with an unreadable label file" in summary(manifest)


def test_sets_that_cannot_be_used(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match=r"no label file of train can be used: .*bad.txt, line 1: 2 columns"):
        run(make(tmp_path / "a", {"bad": b"0 1\n"}), out)
    with pytest.raises(DataError, match=r"no image of train has a label file; looked for .*labels/train/a.txt"):
        run(make(tmp_path / "b", {"a": None, "c": None}), out)
    source = make(tmp_path / "c")
    (source.parent / "list.txt").write_text("./images/train/one.jpg\n./images/train/lost.jpg\n")
    source.write_text(source.read_text().replace("train: images/train", "train: list.txt"))
    with pytest.raises(DataError, match=r"1 images of train do not exist, the first is .*lost.jpg"):
        run(source, out)
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "c"]


def test_one_image_one_class(tmp_path: Path) -> None:
    source = make(tmp_path / "set", {"a": box(0, 0.1)})
    source.write_text("train: images/train\nval: images/val\nnc: 1\n")
    manifest = run(source, tmp_path / "out", "extreme")
    assert manifest["total"] == {"boxes": 1, "withheld": 0, "reached": 0.0}
    assert yaml.safe_load((tmp_path / "out/data.yaml").read_text())["nc"] == 1
    assert not (tmp_path / "out/withheld").exists()


def test_other_keys_of_the_yaml(source: Path, tmp_path: Path) -> None:
    more = f"channels: 4\ndownload: print(1)\npath: {source.parent}\nmasks_dir: masks\nauthor: me\n"
    source.write_text(source.read_text() + more)
    run(source, tmp_path / "out")
    content = yaml.safe_load((tmp_path / "out/data.yaml").read_text())
    assert content["channels"] == 4
    assert content["author"] == "me"
    assert not {"path", "download", "masks_dir"} & set(content)  # they name places of the source


# ---- several folders, lists, equal names


def several(folder: Path) -> Path:
    """Two folders with files of the same names, one of them below a further `images`, and a list."""
    (folder / "south").mkdir(parents=True)
    for index, place in enumerate(("north/images/a", "north/images/b", "south/a", "south/images/deep/a")):
        image = folder / f"{place}.jpg"
        image.parent.mkdir(parents=True, exist_ok=True)
        image.touch()
        label = Path(dataset.label_path(str(image)))
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_bytes(box(0, index / 10) + box(1, index / 10))
    (folder / "list.txt").write_text("./north/images/b.jpg\n./south/a.jpg\n")
    (folder / "data.yaml").write_text(
        "train: [north/images, south, list.txt]\nval: [south, north/images]\nnames: [fish, crab]\n"
    )
    return folder / "data.yaml"


def test_folders_with_equal_names(tmp_path: Path) -> None:
    manifest = run(several(tmp_path / "set"), tmp_path / "out", "extreme")
    assert manifest["total"]["boxes"] == 8
    assert [entry["label"] for entry in manifest["files"]] == [
        "train/north/a.txt", "train/north/b.txt", "train/south/a.txt", "train/south/deep/a.txt",
    ]  # fmt: skip
    content = yaml.safe_load((tmp_path / "out/data.yaml").read_text())
    assert content["train"] == "train.txt"  # b and south/a are named twice, by a folder and by the list
    assert (tmp_path / "out/train.txt").read_text().splitlines() == [
        "./images/train/north/a.jpg", *["./images/train/north/b.jpg"] * 2, *["./images/train/south/a.jpg"] * 2,
        "./images/train/south/deep/a.jpg",
    ]  # fmt: skip
    assert content["val"] == [str(tmp_path / "set/south"), str(tmp_path / "set/north/images")]
    new = dataset.load(tmp_path / "out/data.yaml")
    assert len(new.images("train")) == 6
    for image in new.images("train"):
        assert len(new.labels(image)) == len(new.withheld(image)) == 1


def test_names_that_would_be_equal_or_hidden(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for index, name in enumerate(("x/images/a.jpg", "x/a.jpg", ".h/.a.jpg", "x/images/a.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
        label = Path(dataset.label_path(str(folder / name)))
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_bytes(box(0, index / 10))
    (folder / "all.txt").write_text("./x/images/a.jpg\n./x/a.jpg\n./.h/.a.jpg\n./x/images/a.png\n./x/a.jpg\n")
    (folder / "data.yaml").write_text("train: all.txt\nval: x\nnames: [fish]\n")
    manifest = run(folder / "data.yaml", tmp_path / "out", "normal")
    assert [(entry["label"], entry["images"]) for entry in manifest["files"]] == [
        ("train/_.h/_.a.txt", ["train/_.h/_.a.jpg"]),
        ("train/x/a.txt", ["train/x/a.jpg"]),
        ("train/x/a-2.txt", ["train/x/a-2.jpg", "train/x/a-2.png"]),
    ]
    assert (tmp_path / "out/labels/train/x/a.txt").read_bytes() == box(0, 0.1)  # that of x/a.jpg, not x/images/a.jpg
    assert manifest["images"]["total"] == 4


def test_the_order_of_folders_on_a_machine_does_not_matter(tmp_path: Path) -> None:
    data = {str(i): box(0, i / 10) + box(1, i / 10) for i in range(8)}
    sets = []
    for name, places in (("here", ("1/north", "2/south")), ("there", ("2/north", "1/south"))):
        for place in places:
            make(tmp_path / name / place, data, "images")
        yaml_file = tmp_path / name / "data.yaml"
        yaml_file.write_text(
            f"train: [{places[0]}/images, {places[1]}/images]\nval: {places[0]}/images\nnames: [a, b]\n"
        )
        manifest = run(yaml_file, tmp_path / f"{name}-half")
        sets.append((manifest["sha256"], gone(tmp_path / f"{name}-half")))
    assert sets[0] == sets[1]


def test_two_images_that_would_get_one_name(tmp_path: Path) -> None:
    source = make(tmp_path / "set", {"a": box(0, 0.1)})
    (source.parent / "labels/train/a.jpg").write_bytes(b"beside its label")  # the label file of both is a.txt
    (source.parent / "all.txt").write_text("./images/train/a.jpg\n./labels/train/a.jpg\n")
    source.write_text(source.read_text().replace("train: images/train", "train: all.txt"))
    before = tree(source.parent)
    with pytest.raises(DataError, match="File exists"):
        run(source, tmp_path / "out")
    assert tree(source.parent) == before
    assert os.listdir(tmp_path) == ["set"]


def test_a_sparsified_set_can_be_sparsified(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "once", "easy")
    before = tree(tmp_path / "once")
    manifest = run(tmp_path / "once/data.yaml", tmp_path / "twice", "extreme")
    assert tree(tmp_path / "once") == before
    assert manifest["total"]["boxes"] == 11
    # links go to the images themselves, and no withheld box is lost
    assert os.readlink(tmp_path / "twice/images/train/one.jpg") == str(source.parent / "images/train/one.jpg")
    for name in LABELS:
        folders = (tmp_path / "twice/labels", tmp_path / "twice/withheld")
        both = [line.strip() for folder in folders for line in lines(folder / f"train/{name}.txt")]
        assert sorted(both) == sorted(line.strip() for line in lines(source.parent / f"labels/train/{name}.txt"))
    assert sum(entry["carried"] for entry in manifest["files"]) == 4
    new = dataset.load(tmp_path / "twice/data.yaml")
    assert sum(len(new.withheld(image)) for image in new.images("train")) == 10  # 15 boxes, 5 stay
    with pytest.raises(DataError, match="inside the source data set"):  # the first source counts, through the links
        run(tmp_path / "once/data.yaml", source.parent / "third")


# ---- what the source says of its labels


def regions_of(folder: Path, text: Mapping[str, str]) -> None:
    for name, lines_of in text.items():
        file = folder / f"regions/train/{name}.txt"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(lines_of.encode())


def told(source: dataset.DataSet, image: str) -> tuple[bytes, bool]:
    """All that is known of an image."""
    found, skipped = source.knowledge.of(image), source.knowledge.skips(image)
    return b" ".join(part.tobytes() for part in (found.unknown, found.classes, found.boxes_xywh_norm)), skipped


def say(yaml_file: Path, text: str) -> Path:
    yaml_file.write_text(yaml_file.read_text() + text)
    return yaml_file


def test_region_files_and_keys_go_with_the_labels(source: Path, tmp_path: Path) -> None:
    files = {
        "two": "unknown 1 .1 .1 .2 .2\r\n\n",
        "deep/polygons": "background 0 .9 .9 .1 .1",
        "missing": "unknown * .5 .5 1 1",
    }
    regions_of(source.parent, files)
    say(source, "annotated: {images/train: [fish], images/train/deep: [crab]}\nunlabelled: skip\nunknown_below: 12\n")
    manifest = run(source, tmp_path / "out", "extreme")
    for name, data in files.items():
        assert (tmp_path / f"out/regions/train/{name}.txt").read_bytes() == data.encode()
    assert len([*(tmp_path / "out/regions").rglob("*.txt")]) == 3
    content = yaml.safe_load((tmp_path / "out/data.yaml").read_text())
    assert content["annotated"] == {"images/train": ["fish"], "images/train/deep": ["crab"]}
    assert (content["unlabelled"], content["unknown_below"]) == ("skip", 12)
    assert (manifest["unlabelled"], manifest["unknown_below"]) == ("skip", 12)
    by_label = {file["label"]: file for file in manifest["files"]}
    for name, data in files.items():
        hashes = by_label[f"train/{name}.txt"]["sha256"]
        assert hashes["regions"] == hashes["source_regions"] == hashlib.sha256(data.encode()).hexdigest()
    assert "regions" not in by_label["train/one.txt"]["sha256"]
    assert by_label["train/deep/polygons.txt"]["annotated"] == [[0, 1]]
    assert by_label["train/one.txt"]["annotated"] == [[0]]
    hashes = {manifest["sha256"]}
    for other in (("unknown_below: 12", ""), ("[crab]", "[fish]"), ("unlabelled: skip", "unlabelled: unknown")):
        text = source.read_text()
        source.write_text(text.replace(*other))
        hashes.add(run(source, tmp_path / f"out{len(hashes)}", "extreme")["sha256"])
        source.write_text(text)
    regions_of(source.parent, {"one": ""})
    hashes.add(run(source, tmp_path / "out-last", "extreme")["sha256"])
    assert len(hashes) == 5  # each is in the hash


def test_without_regions_and_keys_a_manifest_is_as_it_was(source: Path, tmp_path: Path) -> None:
    manifest = run(source, tmp_path / "out", "extreme")
    assert not {"unlabelled", "unknown_below"} & {*manifest}
    for file in manifest["files"]:
        assert not {"annotated", "withdrawn"} & {*file}
        assert [*file["sha256"]] == ["source", "label", "withheld"]
    assert not (tmp_path / "out/regions").exists()


PATTERNS = [
    "south", "north/images/b.jpg", "north/images/*", "'**/a.*'", "south/images/deep", ".", "'{root}/so*'",
    "'**/images'", "list.txt/../south", "'[ns]o*/a.jpg'",
]  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS)
def test_annotated_means_the_same_images_in_a_derived_set(tmp_path: Path, pattern: str) -> None:
    given = several(tmp_path / "set")
    others = "'south/images/../**/a.jpg': [], north/images/a.jpg: [fish]"
    say(given, f"annotated: {{{pattern.format(root=given.parent)}: [crab], {others}}}\n")
    manifest = run(given, tmp_path / "out", "hard")
    again = run(tmp_path / "out/data.yaml", tmp_path / "again", "normal")
    old = dataset.load(given)
    assert any(old.knowledge.matched(image) for image in old.images("val"))  # which stay where they are
    for folder, made in (("out", manifest), ("again", again)):
        new = dataset.load(tmp_path / folder / "data.yaml")
        assert new.knowledge.any
        by_target: dict[str, set[Any]] = {}
        for image in new.images("train"):
            by_target.setdefault(os.path.realpath(image), set()).add(told(new, image))
        for image in old.images("train"):
            assert by_target[os.path.realpath(image)] == {told(old, image)}, image
        assert [told(new, image) for image in new.images("val")] == [told(old, image) for image in old.images("val")]
        assert len(made["files"]) == 4


def test_a_glob_stays_one_where_it_can(tmp_path: Path) -> None:
    names = [f"coco_{i}" for i in range(4)] + [f"own_{i}" for i in range(8)]
    given = make(tmp_path / "set", {f"{folder}/{name}": box(0, 0.5) for folder in ("a", "b[1]") for name in names})
    say(given, "annotated: {'images/train/*/coco_*.jpg': [fish], 'images/train/b[[]1]/own_[0-3].jpg': [crab]}\n")
    run(given, tmp_path / "out", "normal")
    assert yaml.safe_load((tmp_path / "out/data.yaml").read_text())["annotated"] == {
        "images/train/a/coco_*.jpg": ["fish"],
        "images/train/b[[]1]/coco_*.jpg": ["fish"],
        "images/train/b[[]1]/own_[0-3].jpg": ["crab"],
    }
    new = dataset.load(tmp_path / "out/data.yaml")
    assert sum(len(new.knowledge.of(image)) for image in new.images("train")) == 8 + 4


def test_a_glob_that_would_mean_more_becomes_the_images_themselves(tmp_path: Path) -> None:
    for name in ("x/images/coco_1", "x/images/own_2", "x/coco_3", "x/b[1]/coco_4", "x/b[1]/coco_5"):
        (tmp_path / f"set/{name}.jpg").parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / f"set/{name}.jpg").touch()
        label = Path(dataset.label_path(str(tmp_path / f"set/{name}.jpg")))
        label.parent.mkdir(parents=True, exist_ok=True)
        label.write_bytes(box(0, 0.5))
    given = tmp_path / "set/data.yaml"
    given.write_text("train: .\nval: x\nnames: [fish, crab]\nannotated: {x/images/coco_*: [crab], 'x/b[1]': [crab]}\n")
    run(given, tmp_path / "out", "normal")
    content = yaml.safe_load((tmp_path / "out/data.yaml").read_text())
    assert [key for key in content["annotated"] if not key.startswith("/")] == [
        "images/train/x/coco_1.jpg", "images/train/x/b[1]",
    ]  # fmt: skip
    new = dataset.load(tmp_path / "out/data.yaml")
    assert sum(len(new.knowledge.of(image)) for image in new.images("train")) == 3


def test_a_withheld_box_is_in_no_region_that_denies_it(source: Path, tmp_path: Path, capsys: Any) -> None:
    # box(label, x): fish at 0.2 and 0.4, crab at 0.1, 0.3 and 0.5 of "five"; all at y = 0.5
    text = "background * 0.25 0.5 0.5 1\nbackground 1 0.9 0.5 0.1 1\nunknown 0 0.2 0.5 0.1 1\n"
    regions_of(source.parent, {"five": text})
    manifest = run(source, tmp_path / "none", "normal")
    assert (tmp_path / "none/regions/train/five.txt").read_text() == text
    assert capsys.readouterr().err == ""
    manifest = run(source, tmp_path / "out", "percent", rate=1)
    file = next(file for file in manifest["files"] if file["label"] == "train/five.txt")
    assert file["withdrawn"] == 1
    assert (tmp_path / "out/regions/train/five.txt").read_text().splitlines() == [
        "background 1 0.9 0.5 0.1 1", "unknown 0 0.2 0.5 0.1 1",
    ]  # fmt: skip
    assert file["sha256"]["regions"] == _hash(tmp_path / "out/regions/train/five.txt")
    assert file["sha256"]["source_regions"] == _hash(source.parent / "regions/train/five.txt")
    err = capsys.readouterr().err
    assert err.startswith("warning: regions that no longer say that there is nothing of a class: 1; a box of it was")
    # by what was withheld before, too
    regions_of(tmp_path / "none", {})
    regions_of(tmp_path / "out", {"five": "background 0 0.4 0.5 0.2 1\n"})
    run(tmp_path / "out/data.yaml", tmp_path / "twice", "normal")
    assert (tmp_path / "twice/regions/train/five.txt").read_text() == ""


def test_a_region_file_or_a_pattern_that_is_wrong_ends_it(source: Path, tmp_path: Path) -> None:
    regions_of(source.parent, {"five": "unknown 7 .5 .5 1 1"})
    with pytest.raises(DataError, match=r"regions/train/five\.txt \(five\.jpg\), line 1: class 7 is not one of 0 to 1"):
        run(source, tmp_path / "out")
    (source.parent / "regions/train/five.txt").unlink()
    say(source, "annotated: {images/trian: [fish]}\n")
    with pytest.raises(DataError, match=r"'images/trian' means no image.*did you mean images/train\?"):
        run(source, tmp_path / "out")
    assert not (tmp_path / "out").exists()


# ---- what it refuses, and what an end in the middle leaves


def test_it_refuses_to_overwrite(source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    before = tree(tmp_path)
    for name in ("file", "folder", "dangling", "set", "."):
        with pytest.raises(DataError, match="exists; nothing is overwritten"):
            run(source, tmp_path / name)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "out", ["new", "images/new", "images/train/new", "labels/new", "labels/train/a/b", "images/val/x"]
)
def test_it_refuses_to_write_into_the_source(source: Path, tmp_path: Path, out: str) -> None:
    before = tree(tmp_path)
    with pytest.raises(DataError, match="is inside the source data set"):
        run(source, source.parent / out)
    (tmp_path / "link").symlink_to(source.parent)
    with pytest.raises(DataError, match="is inside the source data set"):
        run(source, tmp_path / "link" / out)
    (tmp_path / "link").unlink()
    assert tree(source.parent) == {k.removeprefix("set/"): v for k, v in before.items() if k.startswith("set/")}


def test_folders_of_a_split_each(tmp_path: Path) -> None:
    source = make(tmp_path / "set", images="train/images")  # train/images, train/labels: as Roboflow exports
    with pytest.raises(DataError, match="is inside the source data set"):
        run(source, tmp_path / "set/new")


def test_out_may_lie_beside_the_data_below_the_yaml(tmp_path: Path) -> None:
    make(tmp_path / "data/my")
    project = tmp_path / "my.yaml"
    project.write_text("train: data/my/images/train\nval: data/my/images/val\nnames: [fish, crab]\n")
    run(project, tmp_path / "data/my-extreme", "extreme")
    assert (tmp_path / "data/my-extreme/manifest.json").exists()


def test_flags_are_checked_first(source: Path, tmp_path: Path) -> None:
    for flags, message in [
        ({"data": ""}, "data= is missing"),
        ({"out": ""}, "out= is missing"),
        ({"protocol": "hrad"}, r"did you mean hard\?"),
        ({"rate": 1.5}, "out of range"),
        ({"seed": -1}, "out of range"),
        ({"protocol": "easy", "keep_one": True}, "keep_one=True goes with protocol=percent"),
        ({"classes": "fsh"}, r"'fsh' is not a class.*did you mean fish\?"),
        ({"classes": "fish, fish"}, "names a class twice"),
        ({"classes": ","}, "classes=, names no class"),
    ]:
        with pytest.raises(ConfigError, match=message):
            sparsify(SparsifyFlags(**{"data": str(source), "out": str(tmp_path / "out"), **flags}))
    assert os.listdir(tmp_path) == ["set"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt, OSError(errno.ENOSPC, "No space left on device"), RuntimeError])
def test_an_end_in_the_middle_leaves_nothing(
    source: Path, tmp_path: Path, stop: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    write_bytes = Path.write_bytes

    def fail(self: Path, data: bytes) -> int:
        calls.append(self)
        if len(calls) == 4:
            raise stop
        return write_bytes(self, data)

    monkeypatch.setattr(Path, "write_bytes", fail)
    before = tree(tmp_path)
    expected = DataError if isinstance(stop, OSError) else stop
    with pytest.raises(expected, match="No space left" if isinstance(stop, OSError) else None):
        run(source, tmp_path / "out")
    assert len(calls) == 4
    assert tree(tmp_path) == before


def test_a_kill_in_the_middle_leaves_nothing_at_out(source: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, rebalance.data.derive as s; from rebalance.settings import SparsifyFlags\n"
        "link, left = os.symlink, [3]\n"
        "def die(*args):\n"
        "    left[0] -= 1\n"
        "    if not left[0]: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return link(*args)\n"
        "os.symlink = die\n"
        f"s.sparsify(SparsifyFlags(data={str(source)!r}, out={str(tmp_path / 'out')!r}))\n"
    )
    before = tree(source.parent)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (tmp_path / "out").exists()
    assert tree(source.parent) == before
    run(source, tmp_path / "out")  # and the same command then works
    load_manifest(tmp_path / "out")


def test_somebody_else_made_out_meanwhile(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def late(old: Path, new: Path) -> None:
        new.mkdir()
        (new / "theirs").touch()
        rename(old, new)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(DataError, match="cannot be written"):
        run(source, tmp_path / "out")
    assert os.listdir(tmp_path / "out") == ["theirs"]
    assert sorted(os.listdir(tmp_path)) == ["out", "set"]


@pytest.mark.parametrize("hard", [True, False])
def test_without_symbolic_links(source: Path, tmp_path: Path, hard: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    (source.parent / "images/train/one.jpg").write_bytes(b"pixels")
    monkeypatch.setattr(os, "symlink", refuse)
    if not hard:
        monkeypatch.setattr(os, "link", refuse)
    manifest = run(source, tmp_path / "out")
    image = tmp_path / "out/images/train/one.jpg"
    assert not image.is_symlink()
    assert image.read_bytes() == b"pixels"
    assert image.samefile(source.parent / "images/train/one.jpg") == hard
    assert manifest["origin"]["images"] == {"hard link" if hard else "copy": 7}


# ---- the manifest


def test_manifest_shows_changes(source: Path, tmp_path: Path) -> None:
    run(source, tmp_path / "out")
    file = tmp_path / "out/manifest.json"
    text = file.read_text()
    file.write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(DataError, match="was changed"):
        load_manifest(tmp_path / "out")
    for broken in ("{", "[]", "{}"):
        file.write_text(broken)
        with pytest.raises(DataError, match="not a manifest"):
            load_manifest(tmp_path / "out")
    with pytest.raises(DataError, match="not a manifest"):
        load_manifest(tmp_path / "set")


def test_summary_by_hand(source: Path, tmp_path: Path) -> None:
    manifest = run(source, tmp_path / "out", "per_class", rate=0.5, seed=7)
    text = summary(manifest).splitlines()
    assert text[0] == "per_class, seed 7: 7 of 15 boxes withheld (46.7%, asked 50.0%)"
    assert text[1].startswith("7 images, ")
    assert text[1].endswith("with boxes (5 before)")
    assert [line.split() for line in text[2:-1]] == [
        ["class", "boxes", "withheld", "reached"],
        ["fish", "7", "3", "42.9%"],
        ["crab", "8", "4", "50.0%"],
        ["all", "15", "7", "46.7%"],
    ]
    assert text[-1] == f"sha256 {manifest['sha256']}"


def test_progress_on_long_sets(capsys: pytest.CaptureFixture[str]) -> None:
    from rebalance.data.progress import progress

    assert list(progress([1, 2, 3], "counting", every=-1)) == [1, 2, 3]
    assert "counting 2/3" in capsys.readouterr().err
    assert list(progress([1, 2, 3], "counting")) == [1, 2, 3]
    assert capsys.readouterr().err == ""


# ---- what Ultralytics sees


def seen(file: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[float]]]:
    """Labels of the training split as Ultralytics' own data set class finds them: image to its sorted rows."""
    utils = pytest.importorskip("ultralytics.data.utils")
    module = pytest.importorskip("ultralytics.data.dataset")
    monkeypatch.setattr(utils, "check_font", lambda font: None)
    data = utils.check_det_dataset(str(file))
    found = module.YOLODataset(img_path=data["train"], data=data, task="detect", augment=False, imgsz=32)
    rows: dict[str, list[list[float]]] = {}
    for entry in found.labels:
        table = np.concatenate((entry["cls"], entry["bboxes"]), axis=1)
        rows.setdefault(os.path.relpath(entry["im_file"], file.parent), []).extend(table.tolist())
    return {image: sorted(table) for image, table in rows.items()}


def ours(file: Path) -> dict[str, list[list[float]]]:
    """The same through our own reader."""
    data = dataset.load(file)
    rows: dict[str, list[list[float]]] = {}
    for image in data.images("train"):
        found = data.labels(image)
        table = np.concatenate((found.classes[:, None].astype(np.float32), found.boxes_xywh_norm), axis=1)
        rows.setdefault(os.path.relpath(image, file.parent), []).extend(table.tolist())
    return {image: sorted(table) for image, table in rows.items()}


def paint(folder: Path) -> None:
    for image in folder.rglob("*.jpg"):
        cv2.imwrite(str(image), np.zeros((16, 16, 3), np.uint8))


def test_ultralytics_sees_the_surviving_labels(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paint(source.parent)
    before = tree(source.parent)
    manifest = run(source, tmp_path / "out", "extreme")
    found = seen(tmp_path / "out/data.yaml", monkeypatch)
    assert found == ours(tmp_path / "out/data.yaml")
    assert {image: len(rows) for image, rows in found.items()} == {
        f"images/train/{name}.jpg": min(count, 1) for name, count in PER_IMAGE.items()
    }
    assert sum(map(len, found.values())) == manifest["total"]["boxes"] - manifest["total"]["withheld"]
    assert tree(source.parent) == before  # its cache file went to the new set
    assert list((tmp_path / "out/labels").rglob("*.cache"))


def test_ultralytics_sees_several_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = several(tmp_path / "set")
    paint(source.parent)
    full = seen(source, monkeypatch)
    run(source, tmp_path / "out", "extreme")
    found = seen(tmp_path / "out/data.yaml", monkeypatch)
    assert found == ours(tmp_path / "out/data.yaml")
    # b and south/a are trained on twice, with the same one box of their two
    assert sorted(len(rows) for rows in full.values()) == [2, 2, 4, 4]
    assert sorted(len(rows) for rows in found.values()) == [1, 1, 2, 2]
    run(source, tmp_path / "same", "normal")
    same = seen(tmp_path / "same/data.yaml", monkeypatch)
    assert sorted(same.values()) == sorted(full.values())


def test_ultralytics_sees_real_labels(shared_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = shared_data / "aquarium/data.yaml"
    before = {str(p): p.stat().st_mtime_ns for p in file.parent.rglob("*")}
    manifest = run(file, tmp_path / "out", "percent", rate=0.5)
    assert manifest["total"] == {"boxes": 3324, "withheld": 1662, "reached": 0.5}
    assert manifest["images"]["total"] == 448
    found = seen(tmp_path / "out/data.yaml", monkeypatch)
    assert found == ours(tmp_path / "out/data.yaml")
    assert sum(map(len, found.values())) == 1662
    extreme = run(file, tmp_path / "extreme", "extreme")
    assert extreme["total"]["withheld"] == 3324 - extreme["images"]["labelled_before"]
    assert {str(p): p.stat().st_mtime_ns for p in file.parent.rglob("*")} == before


def test_the_built_in_set_goes_by_its_name(tmp_path: Path) -> None:
    named = tmp_path / "frames.yaml"
    named.write_text("seafloor: {train: 4, val: 1, test: 1, size: 64}\n", "utf-8")
    manifest = run(named, tmp_path / "out", "extreme")
    assert manifest["images"]["total"] == 4
