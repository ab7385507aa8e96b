"""What a table is: columns of one length with notes below, and how numbers are written. templates/ lays it out.

Metrics are shown in points, 0 to 100, with one decimal, as the papers do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rebalance.report.evidence import Gap, Stat


@dataclass(frozen=True)
class Cell:
    """One cell; bold marks the best of its column."""

    text: str
    bold: bool = False


@dataclass(frozen=True)
class Column:
    """A column: its name, its cells, and whether they hold text, which stands left; numbers stand right."""

    name: str
    cells: tuple[Cell, ...]
    left: bool = False

    @property
    def empty(self) -> bool:
        """Whether no cell says anything."""
        return not any(cell.text for cell in self.cells)


@dataclass(frozen=True)
class Table:
    """A title, columns of one length, and notes below, a line each."""

    title: str
    columns: tuple[Column, ...]
    notes: tuple[str, ...] = ()

    @property
    def head(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(column.name for column in self.columns)

    @property
    def rows(self) -> list[tuple[Cell, ...]]:
        """The cells, row by row."""
        return list(zip(*(column.cells for column in self.columns), strict=True))


def column(name: str, texts: Iterable[Any], left: bool = False) -> Column:
    """A column of texts."""
    return Column(name, tuple(Cell(str(text)) for text in texts), left)


def marked(name: str, means: Sequence[float | None], texts: Iterable[str], beside: Iterable[str] = ()) -> Column:
    """A column with its largest value bold; ties as shown are all bold, unless all are the same.

    The cells `beside` stand below the others and outside the contest.
    """
    shown = [None if mean is None else points_of(mean) for mean in means]
    known = [mean for mean in means if mean is not None]
    best = points_of(max(known)) if len({*shown} - {None}) > 1 else ""
    cells = [Cell(text, one == best) for one, text in zip(shown, texts, strict=True)]
    return Column(name, (*cells, *map(Cell, beside)))


def points_of(value: float, digits: int = 1) -> str:
    """A fraction in points with one decimal, or more: 0.4837 -> '48.4'."""
    return f"{round(100 * value, digits) + 0.0:.{digits}f}"  # + 0.0: no minus zero


def points(value: Stat | None, *, sign: bool = False, digits: int = 1) -> str:
    """A mean in points with its interval, where it has one: '48.4 ± 1.2', '+0.7 ± 0.9', '' for None."""
    if value is None:
        return ""
    text = points_of(value.mean, digits)
    text = f"+{text}" if sign and not text.startswith("-") else text
    return text if value.half is None else f"{text} ± {points_of(value.half, digits)}"


def small_points(values: Sequence[Stat | None]) -> list[str]:
    """The same of shares that may be far below a point: with so many decimals that two digits of the smallest show."""
    least = min((abs(value.mean) for value in values if value and value.mean), default=1.0)
    digits = min(max(1 - math.floor(math.log10(100 * least)), 1), 5)
    return [points(value, digits=digits) for value in values]


def p_text(p: float) -> str:
    """A p-value: '0.012', '< 0.001'."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def p_words(p: float) -> str:
    """A p-value in a sentence: 'p = 0.012', 'p < 0.001'."""
    text = p_text(p)
    return f"p {text}" if text.startswith("<") else f"p = {text}"


def gap_text(gap: Gap | None) -> str:
    """A share of the gap with its interval: '0.40 (0.12 to 0.71)'; '–' where the gap is too small to divide by."""
    if gap is None:
        return "–"
    interval = "" if gap.low is None or gap.high is None else f" ({_share(gap.low)} to {_share(gap.high)})"
    return f"{_share(gap.share)}{interval}"


def _share(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"


def percent(removal: float) -> str:
    """A removal fraction as the papers write it: 0.1 -> '10%'."""
    return f"{100 * removal:g}%"


def span(counts: Iterable[int]) -> str:
    """Return the range of counts: '3', '2 to 3', '' for none."""
    ordered = sorted({*counts})
    return " to ".join(map(str, [*ordered[:1], *ordered[1:][-1:]]))


def mean(values: Iterable[float | None]) -> float | None:
    """The mean of those that are there, None for none."""
    known = [v for v in values if v is not None]
    return sum(known) / len(known) if known else None


def mean_text(values: Iterable[float | None], digits: int) -> str:
    """The mean with so many digits, '' for none."""
    found = mean(values)
    return "" if found is None else f"{found:.{digits}f}"


def as_text(table: Table) -> str:
    """Return the table for a terminal; a star marks the best of a column."""
    starred = any(cell.bold for row in table.rows for cell in row)
    columns = []
    for one in table.columns:
        texts = [one.name, *(cell.text + (" *"[cell.bold] if starred else "") for cell in one.cells)]
        width = max(map(len, texts))
        columns.append([text.ljust(width) if one.left else text.rjust(width) for text in texts])
    head, *body = ("  ".join(line).rstrip() for line in zip(*columns, strict=True))
    rule = "-" * max(map(len, [head, *body]))
    return "\n".join([table.title, head, rule, *body, *["* best of the column"] * starred, *table.notes])
