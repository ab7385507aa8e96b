"""What a data set says of its labels: which images a pattern means, and what follows for an image."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from small_data import make_dataset

from rebalance.data import dataset
from rebalance.data.dataset import region_path
from rebalance.data.knowledge import Knowledge
from rebalance.errors import DataError

NAMES = "names: [fish, crab, star]\n"
IMAGES = (
    "images/train/reef/1.jpg", "images/train/reef/deep/2.jpg", "images/train/reefs/3.jpg", "images/train/sand_4.jpg",
    "images/train/sand_5.jpg", "images/train/e[m]pty/6.jpg", "images/val/sand_7.jpg",
)  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Images (empty files) without labels."""
    for name in IMAGES:
        put(tmp_path / "set" / name)
    return tmp_path / "set"


def put(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def load(folder: Path, text: str = "", splits: str = "train: images/train\nval: images/val\n") -> dataset.DataSet:
    return dataset.load(put(folder / "data.yaml", splits + NAMES + text))


def known(folder: Path, text: str = "", **more: str) -> Knowledge:
    return load(folder, text, **more).knowledge


def meant(knowledge: Knowledge, root: Path) -> list[str]:
    """Numbers of the images that some pattern means."""
    return [name.rpartition("/")[2][-5] for name in IMAGES if knowledge.matched(str(root / name))]


def lines(knowledge: Knowledge, image: Path) -> list[tuple[bool, list[int], list[float]]]:
    found = knowledge.of(str(image))
    return [
        (bool(u), [i for i, c in enumerate(cs) if c], b.tolist())
        for u, cs, b in zip(found.unknown, found.classes, found.boxes_xywh_norm, strict=True)
    ]


WHOLE = [0.5, 0.5, 1.0, 1.0]


def test_region_path_is_beside_the_label_path() -> None:
    assert region_path("/a/images/b/images/c.d.jpg") == "/a/images/b/regions/c.d.txt"
    assert region_path("/a/b/c.jpg") is None  # it would be the label file


# ---- annotated


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("images/train/reef", "12"),
        ("images/train/reef/", "12"),
        ("./images/train/reef", "12"),
        ("images/train/../train/reef", "12"),
        ("../set/images/train/reef", "12"),
        ("images/train/reef/1.jpg", "1"),
        ("images/train/reef*", "123"),
        ("images/train/reef?", "3"),
        ("images/train/sand_*", "45"),
        ("images/train/sand_*.jpg", "45"),
        ("images/train/*.jpg", "45"),
        ("images/train/sand_[0-4]*", "4"),
        ("images/train/sand_[!0-4].jpg", "5"),
        ("images/*/sand_*", "457"),
        ("**/sand_*", "457"),
        ("**/*.jpg", "1234567"),
        ("**/deep", "2"),
        ("images/train/**/2.jpg", "2"),
        ("images", "1234567"),
        ("images/train", "123456"),
        ("images/train/e[m]pty", "6"),
        (".", "1234567"),
        ("reef", "12"),  # relative to the folder of a split
        ("sand_*", "457"),
        ("reef/*/2.jpg", "2"),
        ("{root}/images/train/reef", "12"),
        ("{root}/images/*/sand_7.jpg", "7"),
        ("../images/train/reef", "12"),  # as Roboflow writes the splits
    ],
)
def test_which_images_a_pattern_means(tree: Path, pattern: str, expected: str) -> None:
    knowledge = known(tree, f"annotated:\n  '{pattern.format(root=tree)}': [crab]\n")
    assert "".join(meant(knowledge, tree)) == expected
    assert knowledge.any
    for name in IMAGES:
        unknown = [(True, [0, 2], WHOLE)] if name[-5] in expected else []
        assert lines(knowledge, tree / name) == unknown


@pytest.mark.parametrize(
    ("pattern", "near"),
    [
        ("images/train/rief", " (did you mean images/train/reef?)"),
        ("images/train/sand", " (did you mean images/train/sand*?)"),  # whole names
        ("images/train/sand_?", " (did you mean images/train?)"),
        ("REEF", ""),
        ("labels/train/reef", " (did you mean images/train/reef?)"),
        ("ree", ""),
    ],
)
def test_a_pattern_that_means_no_image_is_an_error(tree: Path, pattern: str, near: str) -> None:
    knowledge = known(tree, f"annotated: {{images/train: [crab], '{pattern}': [crab]}}\n")
    with pytest.raises(DataError) as caught:
        _ = knowledge.any
    assert f"annotated: '{pattern}' means no image" in str(caught.value)
    assert str(caught.value).endswith(near or "of a split")


def test_it_may_mean_images_of_a_split_that_is_not_there(tree: Path) -> None:
    splits = "train: images/train\nval: images/val\ntest: images/test\n"
    assert known(tree, "annotated: {images/test: [crab]}\n", splits=splits).any


def test_classes_of_several_patterns_add_up(tree: Path) -> None:
    knowledge = known(tree, "annotated: {images/train: [fish], reef: [crab], '**/deep': [fish, star]}\n")
    assert knowledge.matched(str(tree / IMAGES[1])) == ["images/train", "reef", "**/deep"]
    assert lines(knowledge, tree / IMAGES[0]) == [(True, [2], WHOLE)]
    assert lines(knowledge, tree / IMAGES[1]) == []  # all of them
    assert lines(knowledge, tree / IMAGES[3]) == [(True, [1, 2], WHOLE)]
    assert lines(knowledge, tree / IMAGES[6]) == []  # no pattern means it


def test_no_class_and_a_name_that_two_classes_have(tree: Path) -> None:
    put(
        tree / "data.yaml",
        "train: images/train\nval: images/val\nnames: [a, b, a, 4]\nannotated: {reef: [], val: [a, 4]}",
    )
    source = dataset.load(tree / "data.yaml")
    put(tree / "images/val/val/v.jpg")
    assert lines(source.knowledge, tree / IMAGES[0]) == [(True, [0, 1, 2, 3], WHOLE)]
    assert lines(source.knowledge, tree / "images/val/val/v.jpg") == [(True, [1], WHOLE)]


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_links_are_followed_as_far_as_those_of_the_splits_are(tree: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    (made / "images").mkdir(parents=True)
    (made / "images/train").symlink_to(tree / "images/train")  # to Ultralytics its images are in the folder it links to
    (made / "images/val").mkdir()
    (made / "images/val/v.jpg").symlink_to(tree / IMAGES[3])  # this image is here
    source = load(
        made, "annotated: {images/train/reef: [fish], images/train/sand_*: [crab], images/val/v.jpg: [star]}\n"
    )
    assert source.knowledge.any
    by_image = {image: source.knowledge.matched(image) for split in ("train", "val") for image in source.images(split)}
    assert by_image[str(tree / IMAGES[0])] == ["images/train/reef"]
    assert by_image[str(tree / IMAGES[3])] == ["images/train/sand_*"]
    assert by_image[str(made / "images/val/v.jpg")] == ["images/val/v.jpg"]


@pytest.mark.skipif(os.name != "posix", reason="needs links")
def test_region_files_of_images_below_a_linked_folder_are_seen(tree: Path, tmp_path: Path) -> None:
    put(tmp_path / "elsewhere/8.jpg")
    (tree / "images/val/more").symlink_to(tmp_path / "elsewhere")
    assert not known(tree).any
    put(tree / "regions/val/more/8.txt", "unknown * .5 .5 1 1\n")
    source = load(tree)
    assert source.knowledge.any
    assert [len(source.knowledge.of(image)) for image in source.images("val")] == [1, 0]


def test_images_of_a_list(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = ("./../images/train/sand_4.jpg", "images/train/reef/1.jpg", f"{tree}/images/train/sand_5.jpg")
    put(tree / "lists/train.txt", "\n".join(listed))
    monkeypatch.chdir(tree)
    text = "annotated: {images/train/sand_*: [fish], images/train/reef: [crab]}\n"
    source = load(tree, text, splits="train: lists/train.txt\nval: images/val\n")
    assert {os.path.normpath(image)[-5]: source.knowledge.matched(image) for image in source.images("train")} == {
        "4": ["images/train/sand_*"], "1": ["images/train/reef"], "5": ["images/train/sand_*"],
    }  # fmt: skip


# ---- files: labels that are not there, regions


def test_an_empty_label_file_is_not_a_missing_one(tree: Path) -> None:
    put(tree / "labels/train/sand_4.txt")
    empty, missing = str(tree / IMAGES[3]), str(tree / IMAGES[4])
    for mode, of_missing, skipped in [("background", 0, False), ("unknown", 1, False), ("skip", 0, True)]:
        knowledge = known(tree, f"unlabelled: {mode}\n")
        assert len(knowledge.of(empty)) == 0
        assert len(knowledge.of(missing)) == of_missing
        assert not knowledge.skips(empty)
        assert knowledge.skips(missing) is skipped
        assert knowledge.any is (mode != "background")
    # nobody looked at it, whatever was looked for in images like it
    knowledge = known(tree, "unlabelled: unknown\nannotated: {images/train: [fish]}\n")
    assert lines(knowledge, tree / IMAGES[4]) == [(True, [0, 1, 2], WHOLE)]
    assert lines(knowledge, tree / IMAGES[3]) == [(True, [1, 2], WHOLE)]


def test_regions_of_a_file_come_after_what_is_said_of_the_whole_image(tree: Path) -> None:
    assert not known(tree).any
    put(tree / "regions/train/reef/1.txt", "background 1 .5 .5 1 1\nunknown 0 .25 .25 .5 .5\n")
    knowledge = known(tree)
    assert knowledge.any
    own = [(False, [1], WHOLE), (True, [0], [0.25, 0.25, 0.5, 0.5])]
    assert lines(knowledge, tree / IMAGES[0]) == own
    assert lines(knowledge, tree / IMAGES[1]) == []
    knowledge = known(tree, "annotated: {reef: [fish]}\n")
    assert lines(knowledge, tree / IMAGES[0]) == [(True, [1, 2], WHOLE), *own]
    assert len(pickle.loads(pickle.dumps(knowledge)).of(str(tree / IMAGES[0]))) == 3  # data loaders send it


def test_a_malformed_file_names_its_line_and_its_image(tree: Path) -> None:
    put(tree / "regions/train/reef/1.txt", "unknown 0 .5 .5 1 1\nunknown fish .5 .5 1 1\n")
    with pytest.raises(DataError) as caught:
        known(tree).of(str(tree / IMAGES[0]))
    assert str(caught.value).startswith(f"{tree}/regions/train/reef/1.txt (1.jpg), line 2: classes 'fish' are neither")


def test_images_outside_a_folder_images_have_no_region_file(tree: Path) -> None:
    put(tree / "flat/1.jpg")
    put(tree / "flat/1.txt", "0 .5 .5 .1 .1\n")  # the label file, at which a region file would be
    knowledge = known(tree, splits="train: flat\nval: flat\n")
    assert not knowledge.any
    assert len(knowledge.of(str(tree / "flat/1.jpg"))) == 0


def test_without_a_folder_of_regions_no_image_is_looked_up(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for name in ("isfile", "isdir", "exists"):
        real = getattr(os.path, name)
        monkeypatch.setattr(os.path, name, lambda path, real=real: asked.append(str(path)) or real(path))
    source = load(tree)
    images = source.images("train")
    asked.clear()
    for image in images * 3:
        source.knowledge.of(image)
        source.knowledge.skips(image)
    assert sorted(asked) == sorted({os.path.dirname(str(region_path(image))) for image in images})


# ---- keys


def test_stock_ultralytics_trains_on_such_a_set_without_a_word(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    utils = pytest.importorskip("ultralytics.data.utils")
    monkeypatch.setattr(utils, "check_font", lambda font: None)
    text = "annotated: {reef: [fish]}\nunlabelled: skip\nunknown_below: 12\n"
    put(tree / "regions/train/reef/1.txt", "unknown * .5 .5 1 1\n")
    found = utils.check_det_dataset(str(load(tree, text).file))
    assert (found["train"], found["val"]) == (str(tree / "images/train"), str(tree / "images/val"))
    assert found["names"] == {0: "fish", 1: "crab", 2: "star"}


def test_the_yaml_of_the_documentation(tree: Path) -> None:
    page = Path(__file__).resolve().parents[2] / "docs/regions.md"
    if not page.is_file():
        pytest.skip("no docs/ beside the package")
    text = next(
        part for part in page.read_text("utf-8").split("```yaml\n") if "unknown_below" in part and "path:" in part
    )
    put(tree / "data.yaml", text.partition("```")[0].replace("/data/sea", str(tree)))
    knowledge = dataset.load(tree / "data.yaml").knowledge
    assert knowledge.any
    assert (knowledge.unlabelled, knowledge.unknown_below) == ("unknown", 12)
    assert {name: knowledge.matched(str(tree / name)) for name in (IMAGES[0], IMAGES[2], IMAGES[3])} == {
        IMAGES[0]: ["images/train/reef"], IMAGES[2]: [], IMAGES[3]: ["images/train/sand_*"],
    }  # fmt: skip


def test_unknown_below(tree: Path) -> None:
    assert known(tree).unknown_below == 0
    knowledge = known(tree, "unknown_below: 12\n")
    assert knowledge.unknown_below == 12
    assert knowledge.any
    assert not known(tree, "unknown_below: 0\nannotated:\nunlabelled:\n").any  # as if they were not there


BROKEN = [
    ("annotated: [fish]", "annotated is of type list, not a mapping of images to lists of class names"),
    ("annotated: {reef: fish}", "annotated: reef: fish is not a list of class names"),
    ("annotated: {reef: }", "annotated: reef: None is not a list of class names ([] where no class was labelled)"),
    ("annotated: {reef: [fihs]}", "'fihs' is not a class (did you mean fish?); classes: fish, crab, star"),
    ("annotated: {reef: [1]}", "'1' is not a class (class 1 is 'crab')"),
    ("annotated: {'': [fish]}", "names no images"),
    ("annotated: {'sand_[9-0]': [fish]}", "annotated: sand_[9-0] is not a glob: bad character range"),
    ("unlabelled: unkown", "unlabelled: unkown is not one of background, unknown, skip (did you mean unknown?)"),
    ("unlabelled: true", "unlabelled: True is not one of"),
    ("unknown_below: -1", "unknown_below: -1 is not a whole number of pixels, 0 or more"),
    ("unknown_below: 12px", "unknown_below: 12px is not"),
    ("unknown_below: 1.5", "unknown_below: 1.5 is not"),
    ("unknown_below: .nan", "unknown_below: nan is not"),
    ("unknown_below: true", "unknown_below: True is not"),
    ("unlabeled: unknown", "unknown key 'unlabeled' (did you mean unlabelled?)"),
    ("anotated: {reef: [fish]}", "unknown key 'anotated' (did you mean annotated?)"),
    ("unknown-below: 12", "unknown key 'unknown-below' (did you mean unknown_below?)"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN)
def test_what_is_wrong_with_a_key_is_one_line(tree: Path, text: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        known(tree, text)
    assert str(caught.value).startswith(f"{tree}/data.yaml: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_keys_may_be_called_as_they_like(tree: Path) -> None:
    assert not known(tree, "labelled: 3\nannotations: {reef: x}\nannotate: yes\n").any


def test_regions_of_training_images_are_not_about_the_others(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "set")
    regions = tmp_path / "set" / "regions" / "train"
    regions.mkdir(parents=True)
    (regions / "00.txt").write_text("unknown 0 0.5 0.5 1 1\n", "utf-8")
    knowledge = dataset.load(data).knowledge
    assert knowledge.any
    assert knowledge.about(["train"])
    assert not knowledge.about(["val", "test"])
