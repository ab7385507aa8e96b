"""Protocols: counts by hand, sets inside one another, the same choice on every machine."""

from __future__ import annotations

import numpy as np
import pytest

from rebalance.data import labels
from rebalance.data.protocols import PROTOCOLS, Withhold, share, uses_rate
from rebalance.errors import ConfigError
from rebalance.settings import SparsifyFlags, settings_of

# images of 1, 2, 3, 4 and 7 boxes; classes so that an image has several of one kind
SIZES = (1, 2, 3, 4, 7)
IMAGE = np.repeat(np.arange(5), SIZES)
LABEL = np.array([0, 0, 0, 0, 1, 1, 0, 1, 2, 2, 0, 0, 0, 0, 1, 1, 2])


def gone(protocol: str, rate: float = 0.5, seed: int = 0, keep_one: bool = False) -> np.ndarray:
    return Withhold(protocol=protocol, rate=rate, keep_one=keep_one, seed=seed).gone(IMAGE, LABEL)


def per_image(mask: np.ndarray) -> list[int]:
    return np.bincount(IMAGE[mask], minlength=5).tolist()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    ("protocol", "expected"),
    [
        ("normal", [0, 0, 0, 0, 0]),
        ("easy", [0, 1, 1, 1, 1]),
        ("hard", [0, 1, 1, 2, 3]),  # floor(n / 2)
        ("extreme", [0, 1, 2, 3, 6]),
        ("keep_one_per_class", [0, 1, 1, 1, 4]),  # classes: 1, 1, 2, 3 and 3 of them
    ],
)
def test_boxes_withheld_of_each_image(protocol: str, expected: list[int], seed: int) -> None:
    assert per_image(gone(protocol, seed=seed)) == expected


@pytest.mark.parametrize("seed", range(4))
def test_keep_one_per_class_leaves_every_pair(seed: int) -> None:
    stay = ~gone("keep_one_per_class", seed=seed)
    pairs = sorted(zip(IMAGE[stay].tolist(), LABEL[stay].tolist(), strict=True))
    assert pairs == sorted(set(zip(IMAGE.tolist(), LABEL.tolist(), strict=True)))


def test_of_some_classes_alone_boxes_go_and_the_others_do_not_count() -> None:
    for protocol, rate, count in (("percent", 0.5, 7), ("per_class", 0.5, 6), ("hard", 0.5, 6), ("extreme", 0.5, 9)):
        mask = Withhold(protocol=protocol, rate=rate, classes=(0, 1), seed=3).gone(IMAGE, LABEL)
        assert not mask[LABEL == 2].any()
        assert mask.sum() == count, protocol
    assert (Withhold(protocol="extreme", classes=(0, 1, 2)).gone(IMAGE, LABEL) == gone("extreme")).all()


@pytest.mark.parametrize(("rate", "count"), [(0, 0), (0.05, 0), (0.1, 1), (0.5, 8), (0.75, 12), (0.99, 16), (1, 17)])
def test_percent_is_exact_and_rounds_down(rate: float, count: int) -> None:
    assert gone("percent", rate).sum() == count  # 17 boxes


@pytest.mark.parametrize(("rate", "counts"), [(0, [0, 0, 0]), (0.4, [3, 2, 1]), (0.5, [4, 2, 1]), (1, [9, 5, 3])])
def test_per_class_is_exact_in_every_class(rate: float, counts: list[int]) -> None:
    assert np.bincount(LABEL).tolist() == [9, 5, 3]
    assert np.bincount(LABEL[gone("per_class", rate)], minlength=3).tolist() == counts


def test_share_takes_the_rate_as_written() -> None:
    assert [share(0.29, 100), share(0.1, 30), share(0.7, 10), share(1, 3), share(0.0, 3)] == [29, 3, 7, 3, 0]
    assert int(0.29 * 100) == 28  # what it guards against
    assert share(1e-7, 10_000_000) == 1


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("protocol", "keep_one"), [("percent", False), ("percent", True), ("per_class", False)])
def test_a_lower_rate_lies_inside_a_higher_one(protocol: str, keep_one: bool, seed: int) -> None:
    before = gone(protocol, 0.0, seed, keep_one)
    for rate in np.linspace(0, 1, 21):
        now = gone(protocol, float(rate), seed, keep_one)
        assert not (before & ~now).any(), rate
        before = now
    assert before.sum() == (12 if keep_one else 17)  # keep_one leaves one box to each of the 5 images


@pytest.mark.parametrize("seed", range(4))
def test_protocols_lie_inside_one_another(seed: int) -> None:
    for inner, outer in (("easy", "hard"), ("hard", "extreme"), ("keep_one_per_class", "extreme")):
        assert not (gone(inner, seed=seed) & ~gone(outer, seed=seed)).any(), (inner, outer)
    assert (gone("percent", 1.0, seed, keep_one=True) == gone("extreme", seed=seed)).all()


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("rate", [0.3, 0.6, 0.7, 0.9, 1.0])
def test_keep_one_leaves_every_image_a_box(seed: int, rate: float) -> None:
    mask = gone("percent", rate, seed, keep_one=True)
    assert (np.bincount(IMAGE[~mask], minlength=5) >= 1).all()
    assert mask.sum() == min(int(rate * 17), 12)  # asked, as far as 5 of 17 boxes stay


def test_the_choice_is_fixed_for_all_machines() -> None:
    """The numbers are NumPy's PCG64 of seed 0; a change here changes published label sets."""
    assert np.flatnonzero(gone("hard")).tolist() == GOLDEN["hard"]
    assert np.flatnonzero(gone("percent", 0.25)).tolist() == GOLDEN["percent"]
    assert np.flatnonzero(gone("per_class", 0.4)).tolist() == GOLDEN["per_class"]


# seed 0 draws .637 .270 .041 .017 .813 .913 .607 .729 .544 .935 .816 .003 .857 .034 .730 .176 .863
GOLDEN = {
    "hard": [2, 3, 6, 8, 11, 13, 15],  # the smaller half of each image
    "percent": [2, 3, 11, 13],  # the 4 smallest of all
    "per_class": [3, 7, 8, 11, 13, 15],  # the 3, 2 and 1 smallest of each class
}


@pytest.mark.parametrize("protocol", ["easy", "hard", "extreme", "percent", "per_class", "keep_one_per_class"])
def test_seeds_differ_and_repeat(protocol: str) -> None:
    masks = [gone(protocol, seed=seed).tobytes() for seed in range(8)]
    assert len(set(masks)) > 3
    assert masks[5] == gone(protocol, seed=5).tobytes()


def test_every_box_of_an_image_is_equally_likely_to_stay() -> None:
    one = np.zeros(4, np.int64)
    stays = sum((~Withhold(protocol="extreme", seed=seed).gone(one, one)).astype(int) for seed in range(2000))
    assert (abs(stays - 500) < 80).all()  # 500 ± 19 (one standard deviation); 80 is four of them


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_boxes_one_box_and_odd_ids(protocol: str) -> None:
    rule, empty = Withhold(protocol=protocol, rate=0.9), np.zeros(0, np.int64)
    assert rule.gone(empty, empty).shape == (0,)
    assert rule.gone(np.array([7]), np.array([3])).tolist() == [False]
    scattered = np.array([9, -2, 9, -2, 9])  # boxes of an image need not be neighbours
    mask = rule.gone(scattered, np.zeros(5, np.int64))
    assert mask.dtype == bool
    if protocol in ("extreme", "keep_one_per_class"):
        assert sorted(scattered[~mask].tolist()) == [-2, 9]


def test_labels_stay_or_go_with_their_lines() -> None:
    files = [labels.parse(data, classes=2) for data in (b"0 .1 .5 .1 .1\n1 .2 .5 .1 .1\n", b"", b"1 .3 .5 .1 .1")]
    (first, second), empty, (third, none) = Withhold(protocol="extreme")(files)
    assert first.data + second.data in (files[0].data, b"1 .2 .5 .1 .1\n0 .1 .5 .1 .1\n")
    assert len(first) == len(second) == 1
    assert empty == (files[1], files[1])
    assert third is files[2]  # what loses nothing comes back itself
    assert len(none) == 0


def test_a_rule_says_what_it_is() -> None:
    assert Withhold(protocol="percent", rate=0.3, keep_one=True, seed=4).facts == {
        "protocol": "percent", "asked": 0.3, "keep_one": True, "seed": 4,
    }  # fmt: skip
    assert Withhold(protocol="hard", rate=0.3).facts["asked"] is None  # has no rate


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match=r"did you mean extreme\?"):
        gone("extrem")
    with pytest.raises(ConfigError, match="keep_one=True goes with protocol=percent, not with protocol=easy"):
        gone("easy", keep_one=True)
    with pytest.raises(ConfigError, match="out of range"):
        gone("percent", 1.5)
    with pytest.raises(ConfigError, match="out of range"):
        gone("percent", float("nan"))


def test_flags_and_table_name_the_same_protocols() -> None:
    assert tuple(PROTOCOLS) == settings_of(SparsifyFlags)["protocol"].metadata["choices"]
    assert [p for p in PROTOCOLS if uses_rate(p)] == ["percent", "per_class"]
