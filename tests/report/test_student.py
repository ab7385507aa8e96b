"""Quantiles against the published table of Student's t (two-sided)."""

from __future__ import annotations

import pytest

from rebalance.report.student import p_value, quantile


@pytest.mark.parametrize(
    ("freedom", "t95", "t99"),
    [
        (1, 12.706, 63.657),
        (2, 4.303, 9.925),
        (3, 3.182, 5.841),
        (4, 2.776, 4.604),
        (9, 2.262, 3.250),
        (30, 2.042, 2.750),
    ],
)
def test_published_table(freedom: int, t95: float, t99: float) -> None:
    assert quantile(freedom) == pytest.approx(t95, abs=5e-4)
    assert quantile(freedom, 0.99) == pytest.approx(t99, abs=5e-4)


def test_approaches_the_normal_distribution() -> None:
    assert quantile(5000) == pytest.approx(1.9604, abs=1e-4)


def test_closed_forms() -> None:
    # df 1 is Cauchy: tan(0.475 pi); df 2: p·sqrt(2 / (1 - p²))
    assert quantile(1) == pytest.approx(12.706204736174698, rel=1e-12)
    assert quantile(2) == pytest.approx(0.95 * (2 / (1 - 0.95**2)) ** 0.5, rel=1e-12)


@pytest.mark.parametrize(
    ("t", "freedom", "p"), [(12.706, 1, 0.05), (4.303, 2, 0.05), (5.841, 3, 0.01), (2.0423, 30, 0.05)]
)
def test_p_values_of_the_published_table(t: float, freedom: int, p: float) -> None:
    assert p_value(t, freedom) == pytest.approx(p, abs=2e-5)
    assert p_value(-t, freedom) == p_value(t, freedom)


def test_p_values_at_the_ends() -> None:
    assert p_value(0.0, 4) == 1.0
    assert p_value(float("inf"), 4) == pytest.approx(0.0, abs=1e-15)
    assert p_value(1e9, 30) >= 0.0
    with pytest.raises(ValueError, match="no t test"):
        p_value(1.0, 0)


@pytest.mark.parametrize(("freedom", "level"), [(0, 0.95), (3, 0.0), (3, 1.0)])
def test_refuses_what_has_no_quantile(freedom: int, level: float) -> None:
    with pytest.raises(ValueError, match="no t quantile"):
        quantile(freedom, level)
