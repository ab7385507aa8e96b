"""Pascal VOC: boxes from 1, difficult ones, lists of splits, and files that other tools write."""

from __future__ import annotations

from pathlib import Path

import pytest
from converting import convert, picture, refused, write

OBJECT = """
  <object><name>{name}</name><pose>Left</pose><truncated>0</truncated>{difficult}
    <bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox>
    <part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>
  </object>"""


def thing(name: str, *box: float, difficult: str = "<difficult>0</difficult>") -> str:
    return OBJECT.format(*box, name=name, difficult=difficult)


def xml(name: str, *objects: str, width: int = 200, height: int = 100) -> str:
    head = f"<annotation>\n  <folder>VOC2007</folder>\n  <filename>{name}.jpg</filename>\n"
    size = f"<size><width>{width}</width><height>{height}</height><depth>3</depth></size>"
    return f"{head}  {size}{''.join(objects)}\n</annotation>\n"


@pytest.fixture
def devkit(tmp_path: Path) -> Path:
    """VOC2007 with an annotated test list, and VOC2012 without one."""
    folder = tmp_path / "VOCdevkit"
    for year, names in {"VOC2007": ("000001", "000002", "000003", "000004"), "VOC2012": ("2008_000001",)}.items():
        for name in names:
            picture(folder / year / "JPEGImages" / f"{name}.jpg")
    seven = folder / "VOC2007"
    hard = "<difficult>1</difficult>"
    write(
        seven / "Annotations/000001.xml",
        xml("000001", thing("dog", 1, 1, 200, 100), thing("cat", 11, 21, 30, 40, difficult=hard)),
    )
    write(seven / "Annotations/000002.xml", xml("000002", thing("person", 10.5, 20.25, 30.5, 40.25, difficult="")))
    write(seven / "Annotations/000004.xml", xml("000004"))
    for name, text in {
        "train": "000001\n",
        "val": "000003 \n",
        "trainval": "000001\n000003\n",
        "test": "000002\n000004\n",
    }.items():
        write(seven / f"ImageSets/Main/{name}.txt", text)
    write(folder / "VOC2012/Annotations/2008_000001.xml", xml("2008_000001", thing("dog", 5, 5, 14, 14)))
    write(folder / "VOC2012/ImageSets/Main/trainval.txt", "2008_000001\n")
    write(folder / "VOC2012/ImageSets/Main/train.txt", "2008_000001\n")
    return folder


def test_both_years_train_on_trainval_and_are_tested_on_the_test_list(devkit: Path, tmp_path: Path) -> None:
    made = convert("voc", tmp_path, source=devkit)
    assert made.images() == [
        "test/VOC2007/000002.jpg", "test/VOC2007/000004.jpg",
        "train/VOC2007/000001.jpg", "train/VOC2007/000003.jpg", "train/VOC2012/2008_000001.jpg",
    ]  # fmt: skip
    assert (made.yaml["val"], made.yaml["test"], len(made.names)) == ("images/test", "images/test", 20)


def test_pixels_count_from_one_and_the_last_is_inside(devkit: Path, tmp_path: Path) -> None:
    made = convert("voc", tmp_path, source=devkit)
    assert made.boxes("train/VOC2007/000001.jpg") == [("dog", 0, 0, 200, 100), ("cat", 10, 20, 30, 40)]
    assert made.boxes("test/VOC2007/000002.jpg") == [("person", 9.5, 19.25, 30.5, 40.25)]


def test_a_file_without_objects_is_empty_and_no_file_is_no_label_file(devkit: Path, tmp_path: Path) -> None:
    made = convert("voc", tmp_path, source=devkit)
    assert made.boxes("test/VOC2007/000004.jpg") == []
    assert made.boxes("train/VOC2007/000003.jpg") is None
    assert made.yaml["unlabelled"] == "unknown"


@pytest.mark.parametrize("way", ["keep", "unknown", "drop"])
def test_difficult_objects(devkit: Path, tmp_path: Path, way: str) -> None:
    made = convert("voc", tmp_path, source=devkit, difficult=way)
    assert [name for name, *_ in made.boxes("train/VOC2007/000001.jpg") or ()] == (
        ["dog", "cat"] if way == "keep" else ["dog"]
    )
    expected = [("unknown", "cat", 10, 20, 30, 40)] if way == "unknown" else []
    assert made.regions("train/VOC2007/000001.jpg") == expected
    assert made.manifest["left_out"] == ({"difficult objects": 1} if way == "drop" else {})


def test_images_of_another_suffix_are_found(devkit: Path, tmp_path: Path) -> None:
    folder = devkit / "VOC2007/JPEGImages"
    (folder / "000001.jpg").unlink()
    picture(folder / "000001.png")
    made = convert("voc", tmp_path, source=devkit)
    assert made.boxes("train/VOC2007/000001.png") == [("dog", 0, 0, 200, 100), ("cat", 10, 20, 30, 40)]
    assert made.manifest["missing"] == []


def test_xml_beside_images_in_folders_named_after_splits(tmp_path: Path) -> None:
    source = tmp_path / "export"
    for split in ("train", "valid"):
        picture(source / split / "a_jpg.rf.1.jpg")
        write(source / split / "a_jpg.rf.1.xml", xml("a_jpg.rf.1", thing("buoy", 0, 10, 50, 60)))
    made = convert("voc", tmp_path, source=source)
    assert made.images() == ["train/train/a_jpg.rf.1.jpg", "val/valid/a_jpg.rf.1.jpg"]
    assert made.names == ["buoy"]
    assert made.boxes("val/valid/a_jpg.rf.1.jpg") == [("buoy", 0, 10, 50, 60)]  # begins at 0: pixels count from 0
    assert "first_pixel" in made.manifest["notes"][0]


def test_a_size_of_zero_is_read_from_the_image(tmp_path: Path) -> None:
    picture(tmp_path / "s/a.png")
    write(tmp_path / "s/a.xml", xml("a", thing("buoy", 1, 1, 100, 50), width=0, height=0).replace("a.jpg", "a.png"))
    made = convert("voc", tmp_path, source=tmp_path / "s", split="train")
    assert made.boxes("train/a.png") == [("buoy", 0, 0, 100, 50)]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (xml("a", thing("dog", 1, 2, 3, "x")), 'a.xml, line 6: ymax "x" is not a number'),  # type: ignore[arg-type]
        (xml("a", thing("dog", 9, 2, 3, 8)), "a.xml, line 6: the box of dog ends before it begins"),
        (xml("a", thing("", 1, 2, 3, 8)), "a.xml, line 5: an object without <name>"),
        (xml("a")[:60], "a.xml: not well-formed XML: "),
        ("<html></html>", "a.xml, line 1: <html> is not <annotation>"),
        (xml("a", "<object><name>dog</name></object>"), "a.xml, line 4: dog has no <bndbox>"),
        (
            xml("a", thing("dog", 1, 2, 3, 8, difficult="<difficult>a bit</difficult>")),
            'a.xml, line 5: difficult is "a bit", not 0 or 1',
        ),
    ],
)
def test_a_malformed_file_is_named_with_its_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, says: str
) -> None:
    picture(tmp_path / "s/a.jpg")
    write(tmp_path / "s/a.xml", text)
    assert says in refused("voc", tmp_path, capsys, source=tmp_path / "s", split="train")


def test_xml_that_declares_entities_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bomb = '<!DOCTYPE a [<!ENTITY x "ha"><!ENTITY y "&x;&x;&x;&x;&x;&x;&x;&x;">]>\n'
    for declared in (bomb, '<!DOCTYPE a SYSTEM "file:///etc/passwd">\n'):
        write(tmp_path / "s/a.xml", declared + xml("&y;"))
        told = refused("voc", tmp_path, capsys, source=tmp_path / "s", split="train")
        assert "a.xml, line 1: a document type (<!DOCTYPE) is not read" in told


def test_an_image_that_was_turned_is_left_out_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture(tmp_path / "s/a.jpg")
    picture(tmp_path / "s/b.jpg", 100, 200)
    picture(tmp_path / "s/c.jpg", 100, 50)  # smaller, of the same shape
    for name in "abc":
        write(tmp_path / f"s/{name}.xml", xml(name, thing("dog", 1, 1, 100, 50)))
    made = convert("voc", tmp_path, source=tmp_path / "s", split="train")
    assert made.images() == ["train/a.jpg", "train/c.jpg"]
    assert made.boxes("train/c.jpg", 100, 50) == [("dog", 0, 0, 50, 25)]
    assert made.manifest["left_out"] == {"images of another shape than their annotations": 1}
    assert "b.jpg is 100×200 pixels, not 200×100" in capsys.readouterr().err


def lists(folder: Path, **names: str) -> Path:
    """A folder with Annotations, JPEGImages and lists; `a b` is one image whose name has a space."""
    for name in sorted({name for text in names.values() for name in text.split(",")}):
        picture(folder / f"JPEGImages/{name}.jpg")
        write(folder / f"Annotations/{name}.xml", xml(name, thing("cell", 1, 1, 100, 50)))
    for which, text in names.items():
        write(folder / f"ImageSets/Main/{which}.txt", text.replace(",", "\n") + "\n")
    return folder


def test_a_set_that_is_not_the_challenges_keeps_its_val(tmp_path: Path) -> None:
    source = lists(tmp_path / "BCCD", train="a,a b", val="c", test="d", trainval="a,a b,c")
    made = convert("voc", tmp_path, source=source)
    assert made.images() == ["test/BCCD/d.jpg", "train/BCCD/a b.jpg", "train/BCCD/a.jpg", "val/BCCD/c.jpg"]
    assert made.manifest["missing"] == []


def test_the_challenges_years_train_on_trainval(tmp_path: Path) -> None:
    source = lists(tmp_path / "VOC2007", train="a,b", val="c", test="d", trainval="a,b,c")
    assert convert("voc", tmp_path, source=source).manifest["splits"].keys() == {"train", "test"}


def test_trainval_alone_says_no_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = lists(tmp_path / "s", trainval="a,b,c,d,e")
    made = convert("voc", tmp_path, source=source)
    assert {name: split["images"] for name, split in made.manifest["splits"].items()} == {"train": 4, "val": 1}
    assert "the source says no splits" in capsys.readouterr().err


def test_what_two_lists_name_stays_held_out(tmp_path: Path) -> None:
    made = convert("voc", tmp_path, source=lists(tmp_path / "s", train="a,b,c", val="b", test="c"))
    assert made.images() == ["test/s/c.jpg", "train/s/a.jpg", "val/s/b.jpg"]
    assert made.manifest["left_out"] == {"images of the list train.txt that another list has, too": 2}


def test_marks_of_a_list_of_one_class_are_no_part_of_a_name(tmp_path: Path) -> None:
    source = lists(tmp_path / "s", train="a,b", val="c 1")
    write(source / "ImageSets/Main/train.txt", "a  1\nb -1\n")
    made = convert("voc", tmp_path, source=source)
    assert made.images() == ["train/s/a.jpg", "train/s/b.jpg", "val/s/c 1.jpg"]


def test_turned_boxes_and_names_without_a_suffix(tmp_path: Path) -> None:
    picture(tmp_path / "s/a.png")
    angle = "1.570796"  # a quarter
    turned = f"<robndbox><cx>100</cx><cy>50</cy><w>40</w><h>20</h><angle>{angle}</angle></robndbox>"
    text = xml("a", f"<object><type>robndbox</type><name>ship</name>{turned}</object>", thing("dog", 1, 1, 100, 50))
    write(tmp_path / "s/a.xml", text.replace("<filename>a.jpg", "<filename>a"))
    made = convert("voc", tmp_path, source=tmp_path / "s", split="train")
    # such a tool counts from 0, in its plain boxes, too
    assert made.boxes("train/a.png") == [("ship", 90, 30, 110, 70), ("dog", 1, 1, 100, 50)]


@pytest.mark.parametrize(("spelled", "kept"), [("true", 0), ("False", 1), ("1", 0), ("", 1)])
def test_difficult_however_it_is_spelled(tmp_path: Path, spelled: str, kept: int) -> None:
    picture(tmp_path / "s/a.jpg")
    write(
        tmp_path / "s/a.xml",
        xml("a", thing("dog", 1, 1, 9, 9, difficult=f"<difficult>{spelled}</difficult>"), thing("cat", 2, 2, 9, 9)),
    )
    made = convert("voc", tmp_path, source=tmp_path / "s", split="train", difficult="drop")
    assert made.manifest["total"]["boxes"] == 1 + kept
