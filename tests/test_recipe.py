from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from rebalance.errors import ConfigError
from rebalance.methods.bce import bce
from rebalance.methods import METHODS
from objectives import recipe_of
from rebalance.settings import TrainFlags, as_dict, flags

README = Path(__file__).resolve().parents[2] / "README.md"


@pytest.mark.parametrize(
    ("loss", "element", "weighting", "text"),
    [
        ("bce", "bce", "", "bce"),
        ("drop", "bce", "drop", "drop"),
        ("bce+drop", "bce", "drop", "drop"),
        ("drop+bce", "bce", "drop", "drop"),
        ("ce", "bce", "", "bce"),
        ("ce+drop", "bce", "drop", "drop"),
        ("focal", "focal", "", "focal"),
        ("drop+focal", "focal", "drop", "focal+drop"),
        ("brl+drop", "brl", "drop", "brl+drop"),
        ("ghm", "bce", "ghm", "ghm"),
        ("ohem+focal", "focal", "ohem", "focal+ohem"),
    ],
)
def test_select(loss: str, element: str, weighting: str, text: str) -> None:
    assert select(loss) == Selection(element, weighting)
    assert select(loss).text() == text
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
        ("ce+bce", "loss=ce+bce joins two methods of one kind (element); valid pairs: bce+drop, focal+drop, brl+drop"),
        (
            "focal+ghm",
            "loss=focal+ghm: ghm has no meaning with focal; valid pairs: bce+drop, focal+drop, brl+drop, bce",
        ),
        ("soft+brl", "loss=soft+brl: soft has no meaning with brl; valid pairs: bce+drop"),
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
        ({"focal_gamma": 1, "obj_drop": 0.5}, {"loss": "focal+drop", "focal_gamma": 1.0}),
        ({"brl_weight": 1}, {"loss": "brl", "brl_weight": 1.0}),
        ({"soft_a": 1}, {"loss": "soft", "soft_a": 1.0}),
        ({"divisor": "batch"}, {"loss": "bce"}),
        ({"loss": "resobj"}, {"loss": "bce", "head": "resobj"}),
        ({"loss": "obj"}, {"loss": "bce", "head": "obj"}),
        ({"loss": "resobj", "resobj_steps": "3"}, {"loss": "bce", "head": "resobj", "resobj_steps": 3}),
        ({"loss": "resobj+drop", "obj_drop": 0.5}, {"loss": "drop", "head": "resobj"}),
        ({"loss": "resobj", "obj_drop": 0.5}, {"loss": "drop", "head": "resobj"}),
        ({"loss": "brl+resobj", "head": "resobj"}, {"loss": "brl"}),
        ({"head": "resobj", "resobj_grad": "joint", "resobj_on": "cls"}, {"loss": "bce"}),
    ],
)
def test_recipe_of(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert as_dict(recipe_of(given)) == {**as_dict(TrainFlags(loss="bce")), **given, **expected}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"loss": "bce"}),
        ({"nrd_rate": 0.5}, {"loss": "nrd", "nrd_rate": 0.5}),
        ({"ohem_rois": 64}, {"loss": "ohem", "ohem_rois": 64}),
        ({"loss": "soft", "divisor": "host"}, {"loss": "soft"}),
    ],
)
def test_flags_of_faster_rcnn(given: dict[str, Any], expected: dict[str, Any]) -> None:
    assert as_dict(recipe_of(given, host="fasterrcnn")) == {**as_dict(TrainFlags()), **given, **expected}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ohem_ratio": 2}, "ohem_ratio=2 has no effect with fasterrcnn; it is for head=stock, head=anchor"),
        ({"divisor": "batch"}, "divisor=batch is not defined for fasterrcnn, which divides by what it sampled"),
        ({"loss": "focal"}, "loss=focal is not defined for fasterrcnn; losses there: bce, drop, ohem, soft, nrd"),
        ({"loss": "bce", "nrd_rate": 0.5}, "nrd_rate=0.5 has no effect with loss=bce; add it: loss=bce+nrd"),
        ({"loss": "focal+nrd"}, "loss=focal+nrd: nrd has no meaning with focal; valid pairs: "),
        ({"nrd_stage": "head"}, "nrd_stage=head is not one of roi, rpn"),
        ({"ohem_rois": 0}, "ohem_rois=0 is out of range: at least 1"),
        ({"head": "anchor"}, "head=anchor is not defined for fasterrcnn; heads: stock"),
    ],
)
def test_flags_of_faster_rcnn_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        recipe_of(given, host="fasterrcnn")
    assert str(error.value).startswith(message)


def test_the_head_of_a_checkpoint_counts_where_none_is_given() -> None:
    assert recipe_of({"anchor_t": 3}, head="anchor").head == "anchor"
    assert recipe_of({"head": "stock"}, head="anchor").head == "stock"


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
        ({"head": "anchors"}, "head=anchors is not one of stock, anchor, obj, resobj (did you mean anchor?)"),
        ({"loss": "dorp"}, "loss=dorp: dorp is not one of "),
        ({"loss": "bce", "obj_drop": 0.5}, "obj_drop=0.5 has no effect with loss=bce; add it: loss=bce+drop"),
        ({"anchor_t": 3}, "anchor_t=3 has no effect with head=stock; add head=anchor"),
        ({"loss": "drop", "focal_gamma": 1}, "focal_gamma=1 has no effect with loss=drop; add it: loss=drop+focal"),
        ({"loss": "focal", "brl_t": 0.5}, "brl_t=0.5 has no effect with loss=focal; use loss=brl"),
        ({"loss": "brl", "ghm_bins": 5}, "ghm_bins=5 has no effect with loss=brl; use loss=ghm"),
        ({"brl_t": 0.5, "ghm_bins": 5}, "loss=brl+ghm: ghm has no meaning with brl; valid pairs: "),
        ({"brl_t": 2}, "brl_t=2 is out of range: 0 to 1"),
        ({"ghm_bins": 0}, "ghm_bins=0 is out of range: at least 1"),
        ({"divisor": "positive"}, "divisor=positive is not one of auto, host, image, batch, candidates"),
        ({"ohem_rois": 64}, "ohem_rois=64 has no effect with head=stock; it is for fasterrcnn"),
        ({"nrd_rate": 0.5}, "loss=nrd is not defined for head=stock; losses there: bce, focal, brl, drop, "),
        ({"resobj_steps": 1}, "resobj_steps=1 has no effect with head=stock; add head=resobj"),
        ({"head": "obj", "resobj_on": "cls"}, "resobj_on=cls has no effect with head=obj; add head=resobj"),
        ({"loss": "resobj", "resobj_steps": 6}, "resobj_steps=6 is out of range: 0 to 5"),
        ({"loss": "resobj", "head": "anchor"}, "loss=resobj is for head=resobj, but head=anchor was given"),
        ({"loss": "resobj+obj"}, "loss=resobj+obj chooses more than one head"),
        ({"loss": "resobj+ghm"}, "loss=ghm is not defined for head=resobj; losses there: bce, focal, brl, drop, soft"),
        ({"loss": "resobj", "ohem_ratio": 1}, "ohem_ratio=1 has no effect with head=resobj; it is for head=stock"),
        ({"head": "resobj", "anchor_t": 3}, "anchor_t=3 has no effect with head=resobj; add head=anchor"),
        ({"obj_drop": 0.5, "autoanchor": False}, "autoanchor=False has no effect with head=stock; add head=anchor"),
    ],
)
def test_train_flags_refuses(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        recipe_of(given)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_method_that_is_not_defined_for_a_head_names_the_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "drop", METHODS["drop"]._replace(places=("anchor",)))
    assert recipe_of({"loss": "drop", "head": "anchor"}).loss == "drop"
    with pytest.raises(ConfigError, match=r"^loss=drop is not defined for head=stock; losses there: bce, focal, "):
        recipe_of({"obj_drop": 0.5})


@pytest.mark.parametrize(
    "given", [{}, {"obj_drop": 0.5}, {"head": "anchor"}, {"head": "anchor", "box_drop": 0.1, "drop_scope": "literal"}]
)
def test_flags_that_a_checkpoint_keeps_come_back(given: dict[str, Any]) -> None:
    parsed = recipe_of(given)
    assert kept_flags(as_dict(parsed)) == parsed


def test_a_checkpoint_without_flags_has_the_host_s_loss() -> None:
    assert kept_flags({}) == recipe_of({})
    assert kept_flags({}, head="anchor") == recipe_of({"head": "anchor"})


def test_heads_on_anchors_take_the_flags_of_the_anchor_head() -> None:
    given = {"loss": "resobj", "anchor_t": 3, "obj_gain": 2, "resobj_steps": 1}
    parsed = recipe_of(given, anchored=True)
    assert (parsed.head, parsed.anchor_t, parsed.obj_gain, parsed.resobj_steps) == ("resobj", 3, 2, 1)
    with pytest.raises(ConfigError, match="anchor_t=3 has no effect with head=stock"):
        recipe_of({"anchor_t": 3}, anchored=True)


@pytest.mark.parametrize(
    ("loss", "stock", "anchor"),
    [
        ("bce", "host", "host"),
        ("drop", "host", "host"),
        ("soft", "host", "host"),
        ("focal", "host", "batch"),
        ("brl+drop", "host", "batch"),
        ("focal+soft", "host", "batch"),
        ("ohem", "host", "batch"),
        ("ghm", "candidates", "candidates"),
    ],
)
def test_the_divisor_is_the_method_s_own_unless_it_is_given(loss: str, stock: str, anchor: str) -> None:
    assert divisor_of(recipe_of({"loss": loss}), "stock") == stock
    assert divisor_of(recipe_of({"loss": loss, "head": "anchor"}), "anchor") == anchor
    assert divisor_of(recipe_of({"loss": loss, "head": "obj"}), "obj") == anchor
    for given in ("host", "image", "batch", "candidates"):
        assert divisor_of(recipe_of({"loss": loss, "divisor": given}), "stock") == given


def test_every_pair_that_is_offered_can_be_chosen() -> None:
    for name, row in METHODS.items():
        assert (row.kind == "weighting") == bool(row.joins)
        for element in row.joins:
            assert select(f"{element}+{name}") == Selection(element, name)
        assert set(row.divisors) <= set(row.places)
        assert set(row.divisors.values()) <= set(flags(TrainFlags)["divisor"].metadata["choices"])


def test_every_row_is_complete() -> None:
    methods = {f.metadata["method"] for f in flags(TrainFlags).values()}
    assert methods <= {*METHODS, "", "anchor"}  # a flag of a method that is not there could never be given
    for name, row in METHODS.items():
        assert re.fullmatch(r"[a-z]+", name)
        assert row.kind in ("element", "weighting", "head")
        assert row.places
        assert set(row.places) <= set(PLACES)
        assert all((row.title, row.source))


# Golden numbers -------------------------------------------------------------------------------------------------------

# Element losses by hand: logits, targets, settings, values
GOLDEN: dict[str, list[tuple[list[float], list[float], dict[str, Any], list[float]]]] = {
    # log(1 + e^0) = 0.693147; log(1 + e^-2) = 0.126928, for the other label 2 more; a quarter of one and the rest of
    # the other
    "bce": [([0, 2, 2, -2, 2], [1, 1, 0, 1, 0.25], {}, [0.693147, 0.126928, 2.126928, 2.126928, 1.626928])],
    # the distances from the target are 1/2, sigmoid(-2) = 0.119203, sigmoid(2) = 0.880797, 1/2 - 1/4 and 0; squared and
    # times the values of bce, 0.25 * 0.693147 = 0.173287, 0.014209 * 0.126928 = 0.001804, 0.775803 * 2.126928 =
    # 1.650078, 0.0625 * 0.693147 = 0.043322 and 0; times alpha_t 0.25, 0.25, 0.75, 0.0625 + 0.5625 and 0.5
    "focal": [
        ([0, 2, 2, 0, 0], [1, 1, 0, 0.25, 0.5], {}, [0.043322, 0.000451, 1.237559, 0.027076, 0]),
        ([0, 2, 2], [1, 1, 0], {"alpha": -1.0}, [0.173287, 0.001804, 1.650078]),
        ([0, 2, 2], [1, 1, 0], {"alpha": -1.0, "gamma": 0.0}, [0.693147, 0.126928, 2.126928]),
        # gamma = 1, alpha = 0.5: 0.119203 * 0.126928 / 2 and 0.880797 * 2.126928 / 2
        ([2, 2], [1, 0], {"gamma": 1.0, "alpha": 0.5}, [0.007565, 0.936695]),
    ],
    # Not confused: focal. Confused at x = -2: p_t = 0.880797 > t, focal's 0.75 * 0.001804 = 0.001353; at x = 2: p_t =
    # 0.119203 <= t, mirrored, 0.75 * p_t^2 * -log(1 - p_t) = 0.75 * 0.014209 * 0.126928, the same; both times 0.1
    "brl": [
        (
            [2, 2, -2, 2],
            [1, 0, 0, 0],
            {"confused": torch.tensor([False, False, True, True])},
            [0.000451, 1.237559, 0.000135, 0.000135],
        ),
        # t = 0: never mirrored, 0.75 * 1.650078 at x = 2; t = 1: always, the same number at x = -2
        ([-2, 2], [0, 0], {"confused": torch.tensor([True, True]), "t": 0.0}, [0.000135, 0.123756]),
        ([-2, 2], [0, 0], {"confused": torch.tensor([True, True]), "t": 1.0}, [0.123756, 0.000135]),
        ([-2, 2], [0, 0], {"confused": torch.tensor([True, True]), "beta": 0.0}, [0.000135, 0]),
        # t = 0.9: p_t = 0.880797 at x = -2 is below it, mirrored: 0.75 * 0.775803 * 2.126928, halved, times 0.5
        (
            [-2, -3],
            [0, 0],
            {"confused": torch.tensor([True, True]), "t": 0.9, "beta": 0.5, "weight": 0.5},
            [0.309390, 0.000041],
        ),  # x = -3: p_t = 0.952574; 0.75 * 0.047426^2 * 0.048587, halved
    ],
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
    where = header.index("Where")
    for name, row in found.items():
        assert tuple(ticked(row[where])) == METHODS[name].places
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
