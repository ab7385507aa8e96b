"""Region files: what a line means, and what is wrong with one is said in a line."""

from __future__ import annotations

import numpy as np
import pytest

from rebalance.data import regions
from rebalance.data.regions import Regions
from rebalance.errors import DataError


def test_a_file_by_hand() -> None:
    data = b"\xef\xbb\xbfunknown 0,3 0.25 0.5 0.5 1\r\n\n  background * .5 .5 1 1\nunknown 2,2 0.1 0.1 1e-1 0.1"
    found = regions.parse(data, classes=4)
    assert found.unknown.tolist() == [True, False, True]
    assert found.classes.tolist() == [[True, False, False, True], [True] * 4, [False, False, True, False]]
    assert found.boxes_xywh_norm.dtype == np.float32
    assert found.boxes_xywh_norm.tolist() == np.float32([[0.25, 0.5, 0.5, 1], [0.5, 0.5, 1, 1], [0.1] * 4]).tolist()


@pytest.mark.parametrize("data", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file_has_no_regions(data: bytes) -> None:
    found = regions.parse(data, classes=3)
    assert (len(found), found.classes.shape, found.boxes_xywh_norm.shape) == (0, (0, 3), (0, 4))


MALFORMED = [
    (b"unkown 0 .5 .5 1 1", "'unkown' is not one of unknown, background (did you mean unknown?)"),
    (b"ignore * .5 .5 1 1", "'ignore' is not one of unknown, background"),
    (b"0 .5 .5 1 1", "'0' is not one of"),  # a label
    (b"Unknown 0 .5 .5 1 1", "'Unknown' is not one of unknown, background (did you mean unknown?)"),
    (b"unknown 0, 3 .5 .5 1 1", "7 columns; a region has 6: unknown or background, classes (* or 0,3 without blanks)"),
    (b"unknown .5 .5 1 1", "5 columns"),
    (b"unknown", "1 columns"),
    (b"unknown 0,3, .5 .5 1 1", "classes '0,3,' are neither * nor class numbers"),
    (b"unknown 0,* .5 .5 1 1", "classes '0,*' are neither"),
    (b"unknown -1 .5 .5 1 1", "classes '-1' are neither"),
    (b"unknown 1.0 .5 .5 1 1", "classes '1.0' are neither"),
    (b"unknown 1_0 .5 .5 1 1", "classes '1_0' are neither"),
    (b"unknown fish .5 .5 1 1", "classes 'fish' are neither"),
    (b"background 0,4 .5 .5 1 1", "class 4 is not one of 0 to 3"),
    (b"background " + b"9" * 5000 + b" .5 .5 1 1", "is not one of 0 to 3"),
    (b"unknown 0 .5 .5 x 1", "not a number in '.5 .5 x 1'"),
    (b"unknown 0 .5 .5 nan 1", "is not finite"),
    (b"unknown 0 .5 .5 1e99 1", "is not finite"),
    (b"unknown 0 32 32 64 64", "a value of box 32 32 64 64 is not within 0 to 1; boxes are fractions of the image"),
    (b"unknown 0 -.5 .5 1 1", "is not within 0 to 1"),
    (b"unknown 0 .5 .5 0 1", "box 0.5 0.5 0 1 has no area"),
    (b"unknown 0 .5 .5 1 -.001", "has no area"),
]


@pytest.mark.parametrize(("line", "message"), MALFORMED)
def test_what_is_wrong_with_a_file_is_one_line(line: bytes, message: str) -> None:
    with pytest.raises(DataError) as caught:
        regions.parse(b"unknown 0 .5 .5 1 1\n\n" + line + b"\n", classes=4, name="regions/train/a.txt")
    assert str(caught.value).startswith("regions/train/a.txt, line 3: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_text() -> None:
    with pytest.raises(DataError, match=r"^a\.txt: not UTF-8 text \(byte 8\)$"):
        regions.parse(b"unknown \xff", classes=4, name="a.txt")


def test_what_is_written_is_read_again_to_the_last_bit() -> None:
    rng = np.random.default_rng(0)
    some = Regions(rng.random(40) < 0.5, rng.random((40, 3)) < 0.6, rng.random((40, 4), np.float32) + np.float32(1e-7))
    some = some.pick(some.classes.any(1))
    again = regions.parse(regions.text(some), classes=3)
    assert (again.unknown == some.unknown).all()
    assert (again.classes == some.classes).all()
    assert (again.boxes_xywh_norm == some.boxes_xywh_norm).all()
    assert {line.split()[0] for line in regions.text(some).splitlines()} == {b"unknown", b"background"}


def test_how_a_file_is_written() -> None:
    few = np.array([True, False, True])
    made = Regions.whole(~few, unknown=False) + Regions.whole(np.ones(3, np.bool_)) + Regions.none(3)
    made += Regions(np.ones(1, np.bool_), few[None], np.float32([[0.1, 0.2, 0.00001, 1]]))
    nothing = Regions(np.ones(1, np.bool_), np.zeros((1, 3), np.bool_), np.float32([[0.5] * 4]))
    expected = b"background 1 0.5 0.5 1 1\nunknown * 0.5 0.5 1 1\nunknown 0,2 0.1 0.2 0.00001 1\n"
    assert regions.text(made + nothing) == expected
    assert len(Regions.whole(np.zeros(3, np.bool_))) == 0


# ---- labels that are where a region says that they are not


def contradicted(file: str, *boxes: tuple[int, float, float, float, float]) -> list[list[int]]:
    """By region the numbers of the labels that it denies."""
    table = np.array(boxes, np.float32).reshape(-1, 5)
    given = regions.parse(file.encode(), classes=3)
    found = regions.contradicted(given, table[:, 0].astype(np.int64), table[:, 1:])
    return [np.flatnonzero(row).tolist() for row in found]


def test_a_label_of_which_half_is_in_a_background_region_of_its_class_is_denied() -> None:
    left = "background 0,1 0.25 0.5 0.5 1\n"
    labels = [(0, 0.49, 0.5, 0.2, 0.2), (2, 0.2, 0.5, 0.2, 0.2), (1, 0.52, 0.5, 0.2, 0.2), (1, 0.1, 0.1, 0, 0)]
    assert contradicted(left, *labels) == [[0, 3]]
    assert contradicted(left.replace("background", "unknown"), *labels) == [[]]
    assert contradicted(left) == [[]]
    assert contradicted("", *labels) == []
    # of a box across the border of the image, what is in the image
    assert contradicted("background * 0.05 0.5 0.1 1", (0, 0, 0.5, 0.3, 0.2)) == [[0]]
    assert contradicted("background * 0.05 0.5 0.1 1", (0, 0.15, 0.5, 0.3, 0.2)) == [[]]


def test_the_later_region_counts() -> None:
    box = (0, 0.5, 0.5, 0.1, 0.1)
    sure, unknown, other = "background * .5 .5 1 1\n", "unknown 0 .5 .5 .5 .5\n", "unknown 1 .5 .5 .5 .5\n"
    assert contradicted(sure + unknown, box) == [[], []]
    assert contradicted(unknown + sure, box) == [[], [0]]
    assert contradicted(sure + unknown + sure, box) == [[0], [], [0]]
    assert contradicted(sure + other, box) == [[0], []]


def test_of_what_share_of_an_image_nothing_is_said() -> None:
    text = b"unknown 0 0.25 0.5 0.5 1\nbackground 0,1 0.5 0.25 1 0.5\n"
    assert regions.unsaid(regions.parse(text, classes=3)).tolist() == [0.25, 0.5, 1.0]
    assert regions.unsaid(regions.parse(b"", classes=2)).tolist() == [1.0, 1.0]
