"""Data set YAMLs: what they mean to Ultralytics they mean here, and what is wrong with one is said in a line."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from rebalance.data import dataset
from rebalance.errors import DataError

NAMES = "names: [fish, crab]\n"


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Image files (empty) in several layouts; the current folder is another one."""
    for name in (
        "images/train/a.jpg", "images/train/b.PNG", "images/train/deep/er/a.jpg", "images/train/notes.txt",
        "images/train/.hidden.jpg", "images/train/.cache/x.jpg", "images/train/noext", "images/val/v.jpg",
        "images/train/folder.jpg/inside.jpg", "more/images/a.jpg", "flat/c.jpg", "od[d] na*me/images/e.jpg",
    ):  # fmt: skip
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).touch()
    (tmp_path / "cwd/here/images").mkdir(parents=True)
    (tmp_path / "cwd/here/images/h.jpg").touch()
    (tmp_path / "stored/known/images").mkdir(parents=True)
    (tmp_path / "stored/known/images/k.jpg").touch()
    (tmp_path / "config/Ultralytics").mkdir(parents=True)
    settings = {"datasets_dir": str(tmp_path / "stored")}
    (tmp_path / "config/Ultralytics/settings.json").write_text(json.dumps(settings))
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.chdir(tmp_path / "cwd")
    lists = tmp_path / "set/lists"
    lists.mkdir()
    (lists / "dots.txt").write_text("\ufeff./../images/train/b.PNG\n./../images/train/a.jpg\nreadme.md\n\n", "utf-8")
    (lists / "full.txt").write_text(f"{tmp_path}/set/more/images/a.jpg\n{tmp_path}/set/flat/c.jpg\r\n", "utf-8")
    (lists / "cwd.txt").write_text("here/images/h.jpg\n", "utf-8")
    return tmp_path / "set"


def write(folder: Path, text: str, name: str = "data.yaml") -> Path:
    (folder / name).write_text(text, "utf-8")
    return folder / name


LAYOUTS: dict[str, tuple[str, list[str]]] = {
    # YAML without names; images below the test's folder, sorted
    "folder": (
        "train: images/train\nval: images/val",
        ["set/images/train/a.jpg", "set/images/train/b.PNG", "set/images/train/deep/er/a.jpg",
         "set/images/train/folder.jpg/inside.jpg"],
    ),
    "folders": ("train: [more/images, flat]\nval: images/val", ["set/flat/c.jpg", "set/more/images/a.jpg"]),
    "twice": ("train: [flat, flat/]\nval: images/val", ["set/flat/c.jpg"] * 2),
    "list with ./": (
        "train: lists/dots.txt\nval: images/val",
        ["set/lists/../images/train/a.jpg", "set/lists/../images/train/b.PNG"],
    ),
    "full paths": ("train: lists/full.txt\nval: images/val", ["set/flat/c.jpg", "set/more/images/a.jpg"]),
    "current folder": ("train: [lists/cwd.txt]\nval: images/val", ["here/images/h.jpg"]),
    "mixed": ("train: [flat, lists/full.txt]\nval: images/val", ["set/flat/c.jpg"] * 2 + ["set/more/images/a.jpg"]),
    "roboflow": ("train: ../flat\nval: ../images/val", ["set/flat/c.jpg"]),
    "path in the current folder": ("path: here\ntrain: images\nval: images", ["cwd/here/images/h.jpg"]),
    "path in datasets_dir": ("path: known\ntrain: images\nval: images", ["stored/known/images/k.jpg"]),
    "path is None": ("path: None\ntrain: flat\nval: images/val\ntest:", ["set/flat/c.jpg"]),
    "validation": ("train: flat\nvalidation: images/val", ["set/flat/c.jpg"]),
    "globbing characters": ("train: od[d] na*me/images\nval: images/val", ["set/od[d] na*me/images/e.jpg"]),
    "upwards": ("train: more/../flat\nval: images/val\ntest: nowhere", ["set/flat/c.jpg"]),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_by_hand(tree: Path, layout: str) -> None:
    text, expected = LAYOUTS[layout]
    found = dataset.load(write(tree, f"{text}\n{NAMES}")).images("train")
    base = tree.parent
    assert found == [image if image.startswith("here") else str(base / image) for image in expected]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_as_ultralytics(tree: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    utils = pytest.importorskip("ultralytics.data.utils")
    base = pytest.importorskip("ultralytics.data.base")
    monkeypatch.setattr(utils, "check_font", lambda font: None)
    monkeypatch.setattr(utils, "DATASETS_DIR", tree.parent / "stored")
    monkeypatch.setattr(base, "check_file_speeds", lambda *args, **kwargs: None)
    file = write(tree, f"{LAYOUTS[layout][0]}\n{NAMES}")
    ours, theirs = dataset.load(file), utils.check_det_dataset(str(file))
    reader = SimpleNamespace(prefix="", fraction=1.0)
    for split in ("train", "val"):
        images = base.BaseDataset.get_img_files(reader, theirs[split])
        images = [image for image in images if not os.path.isdir(image)]  # folder.jpg: to it a corrupt image
        assert ours.images(split) == images
        assert [dataset.label_path(image) for image in images] == utils.img2label_paths(images)
        assert list(ours.splits[split]) == ([theirs[split]] if isinstance(theirs[split], str) else theirs[split])
    assert dict(ours.names) == theirs["names"]
    assert (ours.splits.get("test") or (None,))[0] == (theirs.get("test") or None)


def test_label_path_takes_the_last_images() -> None:
    assert dataset.label_path("/a/images/b/images/c.d.jpg") == "/a/images/b/labels/c.d.txt"
    assert dataset.label_path("/a/b/c.jpg") == "/a/b/c.txt"
    assert dataset.label_path("images/c.jpg") == "images/c.txt"  # no slash before it: Ultralytics' rule
    assert dataset.withheld_path("/a/images/train/c.jpg") == "/a/withheld/train/c.txt"
    assert dataset.withheld_path("/a/b/c.jpg") is None


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("names: [a, 1, true]", {0: "a", 1: "1", 2: "True"}),
        ("names: {1: b, 0: a}", {0: "a", 1: "b"}),
        ("names: {'0': a}\nnc: 1.0", {0: "a"}),
        ("nc: 2", {0: "class_0", 1: "class_1"}),
    ],
)
def test_names(tree: Path, names: str, expected: dict[int, str]) -> None:
    assert dataset.load(write(tree, f"train: flat\nval: flat\n{names}\n")).names == expected


BROKEN = [
    ("train: flat\n" + NAMES, "has no 'val:'"),
    ("trian: flat\nval: flat\n" + NAMES, r"has no 'train:' (did you mean trian?)"),
    ("train:\nval: flat\n" + NAMES, "has no 'train:'"),
    ("train: nowhere\nval: flat\n" + NAMES, "train images not found"),
    ("train: flat\nval: [flat, nowhere]\n" + NAMES, "val images not found"),
    ("path: nowhere\ntrain: flat\nval: flat\n" + NAMES, "stored/nowhere"),
    ("train: {a: b}\nval: flat\n" + NAMES, "'train' is of type dict, not str or list"),
    ("train: [1]\nval: flat\n" + NAMES, "'train' is a list with something else"),
    ("train: flat\nval: flat\n", "neither 'names:' nor 'nc:'"),
    ("train: flat\nval: flat\nnc: 3\n" + NAMES, "2 names, but nc=3"),
    ("train: flat\nval: flat\nnc: 1.5\n" + NAMES, "nc=1.5 is not a whole number"),
    ("train: flat\nval: flat\nnc:\n" + NAMES, "nc=None is not a whole number"),
    ("train: flat\nval: flat\nnames: []\n", "'names' has the classes []"),
    ("train: flat\nval: flat\nnames: {1: a, 2: b}\n", "'names' has the classes [1, 2]"),
    ("train: flat\nval: flat\nnames: {a: b}\n", "keys of 'names'"),
    ("train: flat\nval: flat\nkpt_shape: [3]\n" + NAMES, "kpt_shape=[3]"),
    ("- train\n- val\n", "not a mapping"),
    ("", "not a mapping"),
    ("train: [flat\n", "not valid YAML"),
    ("a: " + "[" * 3000, "not valid YAML: maximum recursion depth"),
    ("train: flat\nval: flat\na: 2024-13-01\n" + NAMES, "not valid YAML: month must be in 1..12"),
    ("train: flat\nval: flat\nnc: 99999999999\n", "nc=99999999999 is more than 1000000 classes"),
    ("train: flat\nval: " + "x" * 5000 + "\n" + NAMES, "a path that cannot be one: File name too long"),
    ('train: flat\nval: "a\\0"\n' + NAMES, "a path that cannot be one: embedded null"),
    ('path: "a\\nb"\ntrain: flat\nval: flat\n' + NAMES, "a\\nb"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_what_is_wrong_with_a_yaml_is_one_line(tree: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        dataset.load(write(tree, text))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_splits_without_images(tree: Path) -> None:
    (tree / "empty").mkdir()
    loaded = dataset.load(write(tree, f"train: empty\nval: images/train/a.jpg\ntest: nowhere\n{NAMES}"))
    with pytest.raises(DataError, match="no images in train"):
        loaded.images("train")
    (tree / "images/train/a.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(DataError, match="neither a folder nor a text file"):
        loaded.images("val")
    with pytest.raises(DataError, match="nowhere does not exist"):
        loaded.images("test")
    with pytest.raises(DataError, match="no 'extra:'; it has train, val, test"):
        loaded.images("extra")


def test_finding_the_yaml(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = f"train: flat\nval: flat\n{NAMES}"
    write(tree, good, "reef.yaml")
    monkeypatch.chdir(tree)
    assert dataset.find("reef") == dataset.find("reef.yaml") == Path("reef.yaml")
    assert dataset.find(tree) == tree / "reef.yaml"
    write(tree, good, "set.yaml")  # as the folder is called
    assert dataset.find(tree) == tree / "set.yaml"
    assert dataset.load("reef.yaml").images("train") == [str(tree / "flat/c.jpg")]  # relative YAML, absolute images
    for name, message in [
        ("ref.yaml", r"does not exist \(did you mean reef.yaml\?\)"),
        ("flat", "without exactly one YAML"),
        ("lists/full.txt", "not a YAML"),
        ("https://example.org/a.yaml", "download"),
        ("a.ndjson", "download"),
    ]:
        with pytest.raises(DataError, match=message):
            dataset.find(name)


def test_a_yaml_that_comes_with_ultralytics(tree: Path) -> None:
    checks = pytest.importorskip("ultralytics.utils.checks")
    assert dataset.find("coco8.yaml") == dataset.find("coco8") == Path(checks.check_file("coco8.yaml"))
    with pytest.raises(DataError, match=r"coco8.*datasets_dir is .*stored"):
        dataset.load("coco8.yaml")  # not on this machine


def test_datasets_dir_of_the_settings(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert dataset.datasets_dir() == tree.parent / "stored"
    settings = tree.parent / "config/Ultralytics/settings.json"
    for content in ("{", "[]", "{}", '{"datasets_dir": 3}'):
        settings.write_text(content)
        assert dataset.datasets_dir().name == "datasets"
    monkeypatch.delenv("YOLO_CONFIG_DIR")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tree.parent / "xdg"))
    if os.name == "posix" and os.uname().sysname == "Linux":
        (tree.parent / "xdg/Ultralytics").mkdir(parents=True)
        (tree.parent / "xdg/Ultralytics/settings.json").write_text('{"datasets_dir": "/somewhere"}')
        assert dataset.datasets_dir() == Path("/somewhere")


def test_default_datasets_dir_as_ultralytics(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    utils = pytest.importorskip("ultralytics.utils")
    monkeypatch.setenv("YOLO_CONFIG_DIR", str(tmp_path))
    fresh = utils.SettingsManager(tmp_path / "fresh.json")
    assert dataset.datasets_dir() == Path(fresh["datasets_dir"])


def test_labels_and_withheld_of_an_image(tree: Path) -> None:
    loaded = dataset.load(write(tree, f"train: images/train\nval: images/val\n{NAMES}"))
    image = loaded.images("train")[0]
    assert len(loaded.labels(image)) == len(loaded.withheld(image)) == 0
    for folder, line in (("labels", "1 .5 .5 .1 .1"), ("withheld", "0 .5 .5 .1 .1")):
        (tree / folder / "train").mkdir(parents=True)
        (tree / folder / "train/a.txt").write_text(line)
    assert loaded.labels(image).classes.tolist() == [1]
    assert loaded.withheld(image).classes.tolist() == [0]
    (tree / "labels/train/a.txt").write_text("2 .5 .5 .1 .1")
    with pytest.raises(DataError, match=r"labels/train/a\.txt, line 1: class 2"):
        loaded.labels(image)


@pytest.mark.parametrize("folder", ["aquarium", "coco_mini", "deeppcb"])
def test_real_data(shared_data: Path, folder: str) -> None:
    file = shared_data / folder / "data.yaml"
    loaded = dataset.load(file)
    assert list(loaded.names.values()) == yaml.safe_load(file.read_text())["names"]
    images = loaded.images("train")
    assert len(images) == {"aquarium": 448, "coco_mini": 178, "deeppcb": 850}[folder]
    assert sum(len(loaded.labels(image)) for image in images) > 1000
