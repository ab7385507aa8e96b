"""How numbers are written in tables."""

from __future__ import annotations

import pytest

from rebalance.report.evidence import Gap
from rebalance.report.table import gap_text, p_text, p_words, points_of


@pytest.mark.parametrize(("value", "text"), [(0.4837, "48.4"), (-0.0001, "0.0"), (1.0, "100.0"), (-0.012, "-1.2")])
def test_points(value: float, text: str) -> None:
    assert points_of(value) == text


@pytest.mark.parametrize(
    ("p", "text", "words"),
    [
        (0.000999, "< 0.001", "p < 0.001"),
        (0.0123, "0.012", "p = 0.012"),
        (0.0995, "0.100", "p = 0.100"),
        (0.41, "0.41", "p = 0.41"),
        (1.0, "1.00", "p = 1.00"),
    ],
)
def test_p_values(p: float, text: str, words: str) -> None:
    assert (p_text(p), p_words(p)) == (text, words)


@pytest.mark.parametrize(
    ("gap", "text"), [(None, "–"), (Gap(0.333), "0.33"), (Gap(-0.001, -0.204, 0.3), "0.00 (-0.20 to 0.30)")]
)
def test_gap_closed(gap: Gap | None, text: str) -> None:
    assert gap_text(gap) == text
