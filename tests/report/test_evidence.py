"""Intervals, tests and ratios of a few paired values, by hand and against published tables."""

from __future__ import annotations

import math

import pytest

from rebalance.report.evidence import ALPHA, Gap, Stat, compare, gap_closed, seeds_needed, stat


def test_stat_by_hand() -> None:
    three = stat([0.40, 0.42, 0.44])
    assert three.mean == pytest.approx(0.42)
    assert three.std == pytest.approx(0.02)
    assert three.half == pytest.approx(4.302653 * 0.02 / 3**0.5, rel=1e-6)  # 0.049683
    assert not stat([0.3]).evidence
    assert (stat([0.3]).std, stat([0.3]).half) == (None, None)
    assert stat([0.1, 0.101]).evidence
    assert not stat([-0.1, 0.1]).evidence


def of_t(t: float) -> Stat:
    """A difference of two seeds with this t, whose p is 1 - 2·atan(|t|)/pi."""
    return stat([t - 1, t + 1])


def test_holm_by_hand() -> None:
    """p = 0.005, 0.01, 0.03 and 0.04: times 4, 3, 2 and 1, and no smaller than the one before."""
    wanted = (0.01, 0.04, 0.03, 0.005)
    family = compare([of_t(1 / math.tan(p * math.pi / 2)) for p in wanted])
    assert [one.p for one in family] == pytest.approx(wanted)
    assert [one.corrected for one in family] == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert [one.holds for one in family] == [True, False, False, True]
    assert {one.count for one in family} == {4}


def test_one_comparison_alone_is_not_corrected() -> None:
    (one,) = compare([stat([0.1, 0.2, 0.4])])
    assert one.corrected == one.p
    assert one.half == pytest.approx(stat([0.1, 0.2, 0.4]).half)


def test_a_corrected_p_is_at_most_1() -> None:
    assert [one.corrected for one in compare([of_t(0.1), of_t(0.2)])] == [1.0, 1.0]


def test_seeds_that_agree_to_the_last_digit() -> None:
    same, none = compare([Stat(3, 0.1, 0.0, 0.0), Stat(3, 0.0, 0.0, 0.0)])
    assert (same.p, same.half, same.holds) == (0.0, 0.0, True)
    assert (none.p, none.holds, none.seeds) == (1.0, False, None)


@pytest.mark.parametrize("seed", range(20))
def test_the_corrected_interval_leaves_out_0_exactly_where_the_difference_holds(seed: int) -> None:
    # of two degrees of freedom, about what Holm's steps ask for: 4.3, 6.2, 7.6, 8.9, 9.9 and 10.9
    parts = [((seed * 7919 + i * 104729) % 977) / 977 for i in range(6)]
    ts = [least + 2 * part for least, part in zip((2, 5, 7, 8, 9, 11), parts, strict=True)]
    family = [stat([t - 3**0.5, t, t + 3**0.5]) for t in ts]
    tested = compare(family)
    for change, one in zip(family, tested, strict=True):
        assert (abs(change.mean) > one.half) == one.holds == (one.corrected < ALPHA)
    assert {one.holds for one in tested} == {True, False}


def test_after_a_step_that_fails_no_later_one_holds() -> None:
    """p = 0.03 and 0.04: 2·0.03 is too much, so 0.04, which would hold alone, does not."""
    first, later = (of_t(1 / math.tan(p * math.pi / 2)) for p in (0.03, 0.04))
    assert later.evidence
    assert [one.corrected for one in compare([first, later])] == pytest.approx([0.06, 0.06])
    assert compare([first, later])[1].half > later.mean


@pytest.mark.parametrize(("effect", "seeds"), [(0.5, 34), (0.8, 15), (1.0, 10), (1.5, 6), (2.0, 5)])
def test_seeds_needed_are_those_of_published_tables_of_power(effect: float, seeds: int) -> None:
    """Paired t-test, two-sided, alpha 0.05, power 0.8."""
    assert seeds_needed(Stat(3, effect, 1.0, 1.0)) == seeds
    assert seeds_needed(Stat(3, -effect, 1.0, 1.0)) == seeds
    assert (seeds_needed(Stat(3, effect, 1.0, 1.0), 1 - 0.05 / 3) or 0) > seeds


def test_seeds_needed_are_counted_up_to_a_limit() -> None:
    assert seeds_needed(Stat(3, 0.2, 1.0, 1.0)) is None  # 199
    assert seeds_needed(Stat(3, 0.0, 1.0, 1.0)) is None
    assert seeds_needed(Stat(3, 0.1, 0.0, 0.0)) == 2


def test_gap_closed_with_fiellers_interval_by_hand() -> None:
    """Gained 1, 2, 3 (mean 2, variance 1), gap 10, 12, 11 (mean 11, variance 1), covariance 1/2; t²/n = 6.17094."""
    gap = gap_closed([0.01, 0.02, 0.03], [0.10, 0.12, 0.11])
    factor = 4.30265272991**2 / 3
    a, b, c = 121 - factor, 22 - factor / 2, 4 - factor
    root = math.sqrt(b * b - a * c)
    assert gap is not None
    assert gap.share == pytest.approx(2 / 11)
    assert (gap.low, gap.high) == (pytest.approx((b - root) / a), pytest.approx((b + root) / a))


def test_the_interval_ends_where_the_rest_of_the_gap_ends_its_own() -> None:
    gained, whole = [0.02, 0.05, 0.04, 0.07], [0.2, 0.24, 0.18, 0.21]
    gap = gap_closed(gained, whole)
    assert gap is not None
    for end in (gap.low, gap.high):
        rest = stat([g - float(end or 0) * d for g, d in zip(gained, whole, strict=True)])
        assert abs(rest.mean) == pytest.approx(rest.half)


@pytest.mark.parametrize(
    ("gap", "closed"),
    [
        ([0.0009], None),  # 0.09 points: it would be shown as 11 times the gap
        ([0.0011], 0.01 / 0.0011),
        ([0.01, 0.03], None),  # 2 ± 12.7 points
        ([-0.1, -0.1], None),  # complete labels are worse
        ([0.01, 0.01], 1.0),
    ],
)
def test_no_gap_where_it_is_smaller_than_what_is_shown_or_than_its_interval(
    gap: list[float], closed: float | None
) -> None:
    found = gap_closed([0.01] * len(gap), gap)
    assert (found and found.share) == (closed and pytest.approx(closed))


def test_a_single_run_has_no_interval_of_its_gap() -> None:
    assert gap_closed([0.1], [0.2]) == Gap(0.5)
