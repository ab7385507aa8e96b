from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from rebalance.config import TrainFlags, as_dict, flags
from rebalance.errors import ConfigError
from rebalance.losses.bce import bce
from rebalance.losses.registry import METHODS, Selection, kept_flags, select, train_flags

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.mark.parametrize(
    ("loss", "element", "weighting", "text"),
    [
        ("bce", "bce", "", "bce"),
        ("drop", "bce", "drop", "drop"),
        ("bce+drop", "bce", "drop", "drop"),
        ("drop+bce", "bce", "drop", "drop"),
    ],
)
def test_select(loss: str, element: str, weighting: str, text: str) -> None:
    assert select(loss) == Selection(element, weighting)
    assert select(loss).text == text
    assert select(text) == select(loss)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("dorp", "loss=dorp: dorp is not one of bce, drop (did you mean drop?)"),
        ("bce+dropp", "loss=bce+dropp: dropp is not one of bce, drop (did you mean drop?)"),
        ("", "loss=: nothing is not one of bce, drop"),
        ("bce+", "loss=bce+: nothing is not one of bce, drop"),
        ("BCE", "loss=BCE: BCE is not one of bce, drop"),
        ("drop+drop", "loss=drop+drop joins two methods of one kind (weighting); valid pairs: bce+drop"),
        ("bce+drop+bce", "loss=bce+drop+bce joins two methods of one kind (element); valid pairs: bce+drop"),
    ],
)
def test_select_refuses(loss: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        select(loss)
    assert str(error.value).replace(", ".join(METHODS), "bce, drop").startswith(message)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"loss": "bce", "head": "stock"}),
        ({"loss": ""}, {"loss": "bce"}),
        ({"loss": "drop"}, {"loss": "drop", "obj_drop": 0.0, "box_drop": 0.0}),
        ({"obj_drop": "0.5"}, {"loss": "drop", "obj_drop": 0.5}),
        ({"box_drop": 0}, {"loss": "drop", "box_drop": 0.0}),
        ({"loss": "bce+drop", "obj_drop": 1}, {"loss": "drop", "obj_drop": 1.0}),
        ({"head": "anchor"}, {"loss": "bce", "head": "anchor"}),
        ({"head": "anchor", "anchor_t": "3", "box_drop": 0.25}, {"loss": "drop", "anchor_t": 3.0, "box_drop": 0.25}),
        ({"head": "anchor", "autoanchor": "False"}, {"autoanchor": False}),
    ],
)
def test_train_flags(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert as_dict(train_flags(given)) == {**as_dict(TrainFlags(loss="bce")), **given, **expected}


def test_the_head_of_a_checkpoint_counts_where_none_is_given() -> None:
    assert train_flags({"anchor_t": 3}, head="anchor").head == "anchor"
    assert train_flags({"head": "stock"}, head="anchor").head == "stock"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"obj_dorp": 0.5}, "unknown flag obj_dorp=0.5 (did you mean obj_drop?); flags: loss, head, obj_drop"),
        ({"obj_drop": 1.5}, "obj_drop=1.5 is out of range: 0 to 1"),
        ({"obj_drop": "nan"}, "obj_drop=nan is out of range: 0 to 1"),
        ({"obj_drop": "much"}, "obj_drop=much is not a number"),
        ({"box_drop": True}, "box_drop=True is not a number"),
        ({"drop_warmup": 1.5}, "drop_warmup=1.5 is not a whole number"),
        (
            {"drop_scope": "match"},
            "drop_scope=match is not one of background, matched, literal (did you mean matched?)",
        ),
        ({"head": "anchors"}, "head=anchors is not one of stock, anchor (did you mean anchor?)"),
        ({"loss": "dorp"}, "loss=dorp: dorp is not one of "),
        ({"loss": "bce", "obj_drop": 0.5}, "obj_drop=0.5 has no effect with loss=bce; add it: loss=bce+drop"),
        ({"anchor_t": 3}, "anchor_t=3 has no effect with head=stock; add head=anchor"),
        ({"obj_drop": 0.5, "autoanchor": False}, "autoanchor=False has no effect with head=stock; add head=anchor"),
    ],
)
def test_train_flags_refuses(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        train_flags(given)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_method_that_is_not_defined_for_a_head_names_the_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "drop", METHODS["drop"]._replace(heads=("anchor",)))
    assert train_flags({"loss": "drop", "head": "anchor"}).loss == "drop"
    with pytest.raises(ConfigError, match=r"^loss=drop is not defined for head=stock; heads: anchor$"):
        train_flags({"obj_drop": 0.5})


@pytest.mark.parametrize(
    "given", [{}, {"obj_drop": 0.5}, {"head": "anchor"}, {"head": "anchor", "box_drop": 0.1, "drop_scope": "literal"}]
)
def test_flags_that_a_checkpoint_keeps_come_back(given: dict[str, Any]) -> None:
    parsed = train_flags(given)
    assert kept_flags(as_dict(parsed)) == parsed


def test_a_checkpoint_without_flags_has_the_host_s_loss() -> None:
    assert kept_flags({}) == train_flags({})
    assert kept_flags({}, head="anchor") == train_flags({"head": "anchor"})


def test_every_row_is_complete() -> None:
    methods = {f.metadata["method"] for f in flags(TrainFlags).values()}
    assert methods <= {*METHODS, "", "anchor"}  # a flag of a method that is not there could never be given
    for name, row in METHODS.items():
        assert re.fullmatch(r"[a-z]+", name)
        assert row.kind in ("element", "weighting")
        assert row.heads
        assert set(row.heads) <= set(flags(TrainFlags)["head"].metadata["choices"])
        assert all((row.title, row.source))


# Golden numbers -------------------------------------------------------------------------------------------------------

# Element losses by hand: logits, targets, settings, values
GOLDEN: dict[str, list[tuple[list[float], list[float], dict[str, Any], list[float]]]] = {
    # log(1 + e^0) = 0.693147; log(1 + e^-2) = 0.126928, for the other label 2 more; a quarter of one and the rest of
    # the other
    "bce": [([0, 2, 2, -2, 2], [1, 1, 0, 1, 0.25], {}, [0.693147, 0.126928, 2.126928, 2.126928, 1.626928])],
}


@pytest.mark.parametrize("name", [name for name, row in METHODS.items() if row.kind == "element"])
def test_golden_numbers(name: str) -> None:
    assert name in GOLDEN, f"add a row of numbers worked out by hand for {name}"
    for logits, targets, settings, values in GOLDEN[name]:
        found = METHODS[name].function(torch.tensor(logits).float(), torch.tensor(targets).float(), **settings)
        torch.testing.assert_close(found, torch.tensor(values), rtol=0, atol=2e-6)


def test_bce_keeps_double_precision_and_raises_half() -> None:
    for given, expected in ((torch.float16, torch.float32), (torch.bfloat16, torch.float32)):
        assert bce(torch.zeros(2, dtype=given), torch.ones(2)).dtype == expected
    assert bce(torch.zeros(2, dtype=torch.float64), torch.ones(2)).dtype == torch.float64


# README ---------------------------------------------------------------------------------------------------------------


def tables(heading: str) -> list[list[list[str]]]:
    """Markdown tables of a section, as rows of cells, without the line of dashes."""
    if not README.is_file():
        pytest.skip("no README.md beside the package")
    section = README.read_text("utf-8").partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"(?:^\|.*\n)+", section, re.MULTILINE)
    rows = [[re.split(r"(?<!\\)\|", line.strip("| ")) for line in block.splitlines()] for block in blocks]
    return [[[cell.strip() for cell in row] for row in block if not set(row[0]) <= set("-: ")] for block in rows]


def ticked(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def test_readme_lists_the_registry() -> None:
    header, *rows = tables("Losses")[0]
    assert ticked(header[0]) == ["loss="]
    found = {ticked(row[0])[0]: row for row in rows}
    assert list(found) == list(METHODS)
    heads = next(i for i, cell in enumerate(header) if "head=" in cell)
    for name, row in found.items():
        assert tuple(ticked(row[heads])) == METHODS[name].heads
        assert METHODS[name].source in row[-1]


def test_readme_lists_every_flag_and_its_default() -> None:
    header, *rows = tables("Losses")[1]
    assert header[:2] == ["Flag", "Default"]
    found = {}
    for row in rows:
        names = ticked(row[0])
        values = row[1].replace("`", "").split(", ") if len(names) > 1 else [row[1].strip("`")]
        found.update(dict(zip(names, values, strict=True)))
    known = {name: item.default for name, item in flags(TrainFlags).items() if name not in ("loss", "head")}
    assert list(found) == list(known)
    for name, default in known.items():
        assert found[name] == (f"{default:g}" if isinstance(default, float) else str(default))
