"""suggestions.csv: what is read is what was written, and a spreadsheet finds nothing to run in it."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rebalance.audit import table
from rebalance.audit.table import COLUMNS, Near, Suggestion
from rebalance.errors import DataError

NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=20) | st.sampled_from(
    [
        "=1+1",
        "+1",
        "-a",
        "@SUM(A1)",
        "'x",
        "''=x",
        "\t=1",
        "a,b",
        'a"b',
        "a\nb",
        "\r\n",
        "\udce9.jpg",
        " =1",
        "\ufeff=1",
    ]
)


def row(image: str, name: str = "fish", kind: str = "missing") -> Suggestion:
    return Suggestion(
        image, kind, 3, name, (1.25, 2.0, 30.5, 40.75), 0.5, 0.25, Near(0, 1, (1.0, 2.0, 3.0, 4.0), 0.125)
    )


@given(image=NAMES, name=NAMES)
def test_any_name_comes_back_as_it_was_and_no_cell_is_a_formula(
    tmp_path_factory: pytest.TempPathFactory, image: str, name: str
) -> None:
    path = table.write(tmp_path_factory.getbasetemp() / "suggestions.csv", [row(image, name)])
    assert table.read(path) == [row(image, name)]
    with open(path, encoding="utf-8", errors="surrogateescape", newline="") as file:
        header, cells = csv.reader(file)
    assert tuple(header) == COLUMNS
    assert not [cell for cell in cells if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))]


def test_an_ordinary_name_is_written_as_it_is(tmp_path: Path) -> None:
    path = table.write(tmp_path / "suggestions.csv", [row("train/a b.jpg", "sea star")])
    assert ",train/a b.jpg,missing,3,sea star,1.25,2.00,30.50,40.75,0.50000,0.2500,0,1,1.00," in path.read_text("utf-8")


def test_a_changed_row_is_refused_with_its_place(tmp_path: Path) -> None:
    path = table.write(tmp_path / "suggestions.csv", [row("a.jpg"), row("b.jpg")])
    path.write_text(path.read_text("utf-8").replace(",b.jpg,", ",c.jpg,"), "utf-8")
    with pytest.raises(DataError, match=r"row 2: id .* is not that of its image, kind, class and box"):
        table.read(path)
