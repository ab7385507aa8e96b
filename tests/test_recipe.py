"""What a user's flags come to: the one reading of `loss`, head and settings."""

from __future__ import annotations

import re
from typing import Any

import pytest
from objectives import recipe_of

from rebalance.errors import ConfigError
from rebalance.hosts import FAMILIES, SITES
from rebalance.methods import JOINS, METHODS
from rebalance.recipe import GIVEN, HEADS, TRAIN, Selection, kept, read, select, unsaid

DEFAULTS = {name: item.default for name, (_, item) in TRAIN.items()}
STOCK = SITES["stock"]
ON_HOST = {"brl_base": "host", "brl_gamma": 0.0, "brl_alpha": -1.0}  # what auto comes to where targets are scores


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
    assert select(loss, STOCK) == Selection(element, weighting)
    assert select(loss, STOCK).text(STOCK) == text
    assert select(text, STOCK) == select(loss, STOCK)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ("dorp", "loss=dorp: dorp is not one of bce, drop (did you mean drop?)"),
        ("bce+dropp", "loss=bce+dropp: dropp is not one of bce, drop (did you mean drop?)"),
        ("", "loss=: nothing is not one of bce, drop"),
        ("bce+", "loss=bce+: nothing is not one of bce, drop"),
        ("BCE", "loss=BCE: BCE is not one of bce, drop"),
        ("drop+drop", "loss=drop+drop joins two methods of one kind (weighting); valid pairs: bce+drop"),
        (
            "ce+bce",
            "loss=ce+bce joins two methods of one kind (element); valid pairs: bce+drop, focal+drop, ",
        ),
        (
            "focal+ghm",
            "loss=focal+ghm: ghm has no meaning with focal; valid pairs: bce+drop, focal+drop, ",
        ),
        ("soft+brl", "loss=soft+brl: soft has no meaning with brl; valid pairs: bce+drop"),
        ("bce+drop+bce", "loss=bce+drop+bce joins two methods of one kind (element); valid pairs: bce+drop"),
    ],
)
def test_select_refuses(loss: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        select(loss, STOCK)
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
        ({"brl_weight": 1}, {"loss": "brl", "brl_weight": 1.0, **ON_HOST}),
        ({"loss": "brl", "brl_gamma": 2}, {**ON_HOST, "brl_gamma": 2.0}),
        ({"loss": "brl", "brl_alpha": 0.5, "brl_warmup": "3"}, {**ON_HOST, "brl_alpha": 0.5, "brl_warmup": 3}),
        ({"loss": "brl", "brl_base": "auto", "brl_alpha": "auto"}, ON_HOST),
        ({"loss": "brl", "brl_base": "focal"}, {"brl_gamma": 2.0, "brl_alpha": 0.25}),
        ({"loss": "brl", "brl_base": "focal", "brl_gamma": 0}, {"brl_gamma": 0.0, "brl_alpha": 0.25}),
        ({"soft_a": 1}, {"loss": "soft", "soft_a": 1.0}),
        ({"divisor": "batch"}, {"loss": "bce"}),
        ({"loss": "resobj"}, {"loss": "bce", "head": "resobj"}),
        ({"loss": "obj"}, {"loss": "bce", "head": "obj"}),
        ({"loss": "resobj", "resobj_steps": "3"}, {"loss": "bce", "head": "resobj", "resobj_steps": 3}),
        ({"loss": "resobj+drop", "obj_drop": 0.5}, {"loss": "drop", "head": "resobj"}),
        ({"loss": "resobj", "obj_drop": 0.5}, {"loss": "drop", "head": "resobj"}),
        ({"loss": "brl+resobj", "head": "resobj"}, {"loss": "brl", **ON_HOST}),
        ({"head": "resobj", "resobj_grad": "joint", "resobj_on": "cls"}, {"loss": "bce"}),
    ],
)
def test_what_flags_come_to(given: dict[str, Any], expected: dict[str, Any]) -> None:
    values = recipe_of(given).values
    assert {name: values[name] for name in DEFAULTS if name != "obj_base"} == {
        **{name: value for name, value in DEFAULTS.items() if name != "obj_base"},
        "loss": "bce", **given, **expected,
    }  # fmt: skip


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
    assert recipe_of(given, host="fasterrcnn").values == {**DEFAULTS, **given, **expected}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"ohem_ratio": 2},
            "ohem_ratio=2 has no effect with fasterrcnn; it is for detectors that score every candidate",
        ),
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
    assert recipe_of({"anchor_t": 3}, head="anchor")["head"] == "anchor"
    assert recipe_of({"head": "stock"}, head="anchor")["head"] == "stock"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"obj_dorp": 0.5}, "unknown flag obj_dorp=0.5 (did you mean obj_drop?); flags: loss, head, obj_base, divisor"),
        ({"obj_drop": 1.5}, "obj_drop=1.5 is out of range: 0 to 1"),
        ({"obj_drop": "nan"}, "obj_drop=nan is out of range: 0 to 1"),
        ({"obj_drop": "much"}, "obj_drop=much is not a number"),
        ({"box_drop": True}, "box_drop=True is not a number"),
        ({"drop_warmup": 1.5}, "drop_warmup=1.5 is not a whole number"),
        (
            {"drop_scope": "match"},
            "drop_scope=match is not one of background, matched, literal (did you mean matched?)",
        ),
        ({"head": "anchors"}, "head=anchors is not one of stock, anchor, obj, resobj, sigmoid (did you mean anchor?)"),
        ({"loss": "dorp"}, "loss=dorp: dorp is not one of "),
        ({"loss": "bce", "obj_drop": 0.5}, "obj_drop=0.5 has no effect with loss=bce; add it: loss=bce+drop"),
        ({"anchor_t": 3}, "anchor_t=3 has no effect with head=stock; add head=anchor"),
        ({"loss": "drop", "focal_gamma": 1}, "focal_gamma=1 has no effect with loss=drop; add it: loss=drop+focal"),
        ({"loss": "focal", "brl_t": 0.5}, "brl_t=0.5 has no effect with loss=focal; use loss=brl"),
        ({"loss": "brl", "ghm_bins": 5}, "ghm_bins=5 has no effect with loss=brl; use loss=ghm"),
        ({"brl_t": 0.5, "ghm_bins": 5}, "loss=brl+ghm: ghm has no meaning with brl; valid pairs: "),
        ({"brl_t": 2}, "brl_t=2 is out of range: 0 to 1"),
        ({"brl_base": "hots"}, "brl_base=hots is not one of auto, host, focal (did you mean host?)"),
        ({"brl_warmup": 1.5}, "brl_warmup=1.5 is not auto or a whole number"),
        ({"brl_warmup": "atuo"}, "brl_warmup=atuo is not auto or a whole number"),
        ({"brl_gamma": -1}, "brl_gamma=-1 is out of range: at least 0"),
        ({"brl_gamma": True}, "brl_gamma=True is not auto or a number"),
        ({"ghm_bins": 0}, "ghm_bins=0 is out of range: at least 1"),
        ({"divisor": "positive"}, "divisor=positive is not one of auto, host, image, batch, candidates"),
        ({"ohem_rois": 64}, "ohem_rois=64 has no effect with head=stock; it is for fasterrcnn"),
        ({"nrd_rate": 0.5}, "loss=nrd is not defined for head=stock; losses there: bce, focal, "),
        ({"resobj_steps": 1}, "resobj_steps=1 has no effect with head=stock; add head=resobj"),
        ({"head": "obj", "resobj_on": "cls"}, "resobj_on=cls has no effect with head=obj; add head=resobj"),
        ({"loss": "resobj", "resobj_steps": 6}, "resobj_steps=6 is out of range: 0 to 5"),
        ({"loss": "resobj", "head": "anchor"}, "loss=resobj is for head=resobj, but head=anchor was given"),
        ({"loss": "resobj+obj"}, "loss=resobj+obj chooses more than one head"),
        (
            {"loss": "resobj+ghm"},
            "loss=ghm is not defined for head=resobj; losses there: bce, focal, ",
        ),
        ({"loss": "resobj", "ohem_ratio": 1}, "loss=ohem is not defined for head=resobj; losses there: bce"),
        ({"head": "resobj", "anchor_t": 3}, "anchor_t=3 has no effect with head=resobj; add obj_base=anchor"),
        ({"obj_drop": 0.5, "autoanchor": False}, "autoanchor=False has no effect with head=stock; add head=anchor"),
    ],
)
def test_train_flags_refuses(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        recipe_of(given)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("bce", list(SITES)),
        ("focal", ["stock", "anchor", "obj", "resobj", "retinanet", "retinanet-obj", "ssd", "ssd-sigmoid"]),
        ("varifocal", ["stock", "anchor", "obj", "resobj", "retinanet", "retinanet-obj", "ssd-sigmoid"]),
        ("brl", ["stock", "anchor", "obj", "resobj", "retinanet", "retinanet-obj", "ssd-sigmoid"]),
        ("drop", list(SITES)),
        ("ghm", ["stock", "anchor", "obj", "retinanet", "ssd-sigmoid"]),
        ("ohem", ["stock", "anchor", "obj", "retinanet", "fasterrcnn", "fasterrcnn-obj", "ssd", "ssd-sigmoid"]),
        ("soft", list(SITES)),
        ("nrd", ["fasterrcnn", "fasterrcnn-obj"]),
        ("obj", ["obj", "resobj", "retinanet-obj", "fasterrcnn-obj"]),
        ("resobj", ["obj", "resobj", "retinanet-obj", "fasterrcnn-obj"]),
    ],
)
def test_a_method_is_defined_where_what_it_needs_is_given(name: str, where: list[str]) -> None:
    assert [site.name for site in SITES.values() if METHODS[name].defined(site)] == where


@pytest.mark.parametrize(
    "given", [{}, {"obj_drop": 0.5}, {"head": "anchor"}, {"head": "anchor", "box_drop": 0.1, "drop_scope": "literal"}]
)
def test_flags_that_a_checkpoint_keeps_come_back(given: dict[str, Any]) -> None:
    recipe = recipe_of(given)
    assert kept(dict(recipe.values), FAMILIES[0]) == recipe


def test_an_isolated_gradient_of_a_time_without_a_choice_of_the_gate_ends_at_its_own_step() -> None:
    now = dict(recipe_of({"head": "resobj"}).values)
    before = {name: value for name, value in now.items() if name != "resobj_gate"}
    assert kept(now, FAMILIES[0])["resobj_grad"] == "isolated"
    for old in (before, {"head": "resobj", "resobj_grad": "isolated"}):
        assert kept(old, FAMILIES[0])["resobj_grad"] == "stepwise"
        assert read({}, FAMILIES[0], head="resobj", before=old)["resobj_grad"] == "stepwise"
    assert kept({**before, "resobj_grad": "joint"}, FAMILIES[0])["resobj_grad"] == "joint"


@pytest.mark.parametrize(("host", "divisor"), [("retinanet", "image"), ("fasterrcnn", "image"), ("yolo", "host")])
def test_a_checkpoint_of_a_time_when_subnets_were_narrow_has_its_width_and_divisor(host: str, divisor: str) -> None:
    now = recipe_of({"head": "resobj"}, host=host)
    old = {name: value for name, value in now.values.items() if not re.match("obj_w|obj_p|cls_|resobj_[gw]", name)}
    sites = next(sites for sites in FAMILIES if sites.name == host)
    found = kept(old, sites)
    assert (found["obj_width"], found.divisor) == (0.25, divisor)
    assert kept({**old, "divisor": "candidates"}, sites).divisor == "candidates"
    assert kept(dict(now.values), sites).divisor == now.divisor == ("host" if host == "yolo" else "batch")
    again = read({}, sites, head="resobj", before=old)
    assert again["obj_width"] == (1.0 if host == "fasterrcnn" else 0.25)
    assert again.divisor == now.divisor


@pytest.mark.parametrize(
    ("kept_", "given", "expected"),
    [
        ("resobj", {}, {"head": "resobj", "obj_width": 32, "resobj_width": 8, "resobj_steps": 3, "obj_drop": 0.0}),
        ("resobj", {"resobj_steps": 1}, {"resobj_steps": 1, "obj_width": 32}),
        ("resobj", {"head": "obj"}, {"head": "obj", "obj_width": 32, "obj_weight": 2.0, "resobj_width": 0}),
        ("resobj", {"loss": "obj+focal"}, {"head": "obj", "obj_width": 32, "resobj_width": 0}),
        ("obj", {"loss": "resobj"}, {"head": "resobj", "obj_width": 32, "resobj_width": 0}),
        ("resobj", {"head": "stock"}, {"head": "stock", "obj_width": 1.0, "obj_weight": 1.0}),
        ("resobj", {"obj_base": "anchor"}, {"head": "resobj", "obj_width": 1.0, "resobj_width": 8}),
    ],
)
def test_what_stays_with_the_head_of_a_checkpoint(kept_: str, given: dict[str, Any], expected: dict[str, Any]) -> None:
    before: dict[str, Any] = {"head": kept_, "obj_width": 32, "obj_weight": 2.0}
    if kept_ == "resobj":
        before |= {"resobj_width": 8, "resobj_steps": 3, "loss": "drop", "obj_drop": 0.5}
    before = dict(recipe_of(before).values)
    found = read(given, FAMILIES[0], head=kept_, before=before)
    assert {name: found[name] for name in expected} == expected


def test_a_checkpoint_without_flags_has_the_host_s_loss() -> None:
    assert kept({}, FAMILIES[0]) == recipe_of({})
    assert kept({}, FAMILIES[0], head="anchor") == recipe_of({"head": "anchor"})


@pytest.mark.parametrize("head", ["stock", "anchor", "obj"])
def test_a_checkpoint_of_an_earlier_version_goes_on_with_the_loss_that_it_was_trained_with(head: str) -> None:
    numbers = {"brl_gamma": 2.0, "brl_alpha": 0.25, "brl_warmup": 0}
    earlier = {"loss": "brl+drop", "head": head, "obj_drop": 0.5, "brl_t": 0.3, **numbers}
    found = kept(earlier, FAMILIES[0])
    assert {name: found[name] for name in earlier} == earlier
    assert (found["brl_base"], found.divisor) == ("focal", STOCK.positives if head == "stock" else "batch")
    assert found.methods[0].divide(found.site) == found.divisor
    assert unsaid(earlier, found) == "brl_base=focal" + " obj_width=0.25" * (head == "obj")
    again = dict(found.values)  # what its next checkpoint keeps
    assert kept(again, FAMILIES[0]) == found
    assert unsaid(again, found) == ""


@pytest.mark.parametrize("loss", ["bce", "focal", "drop"])
def test_of_another_loss_nothing_was_left_unsaid(loss: str) -> None:
    assert unsaid({"loss": loss}, kept({"loss": loss}, FAMILIES[0])) == ""


def test_heads_on_anchors_take_the_flags_of_the_anchor_head() -> None:
    given = {"loss": "resobj", "anchor_t": 3, "obj_gain": 2, "resobj_steps": 1}
    recipe = recipe_of(given, anchored=True)
    assert {name: recipe[name] for name in given} == {**given, "loss": "bce"}
    assert (recipe["head"], recipe["obj_base"], recipe.resobj.resobj_steps) == ("resobj", "anchor", 1)
    with pytest.raises(ConfigError, match="anchor_t=3 has no effect with head=stock"):
        recipe_of({"anchor_t": 3}, anchored=True)


@pytest.mark.parametrize("anchored", [False, True])
def test_what_an_objectness_stands_on_can_be_said(anchored: bool) -> None:
    assert recipe_of({"head": "obj"}, anchored=anchored)["obj_base"] == ("anchor" if anchored else "stock")
    for base in ("anchor", "stock"):
        recipe = recipe_of({"head": "obj", "obj_base": base}, anchored=anchored)
        assert (recipe["obj_base"], "anchors" in recipe.site.gives) == (base, base == "anchor")
        assert recipe.site.divisors["host"] == (
            "mean over the candidates of a level" if base == "anchor" else "sum of target scores"
        )
    for given, host in (({"obj_base": "anchor"}, "yolo"), ({"head": "obj", "obj_base": "stock"}, "retinanet")):
        with pytest.raises(
            ConfigError, match=r"^obj_base=\w+ has no effect with .*; it is for head=obj and head=resobj"
        ):
            recipe_of(given, host=host)


def test_without_head_resobj_there_are_no_steps() -> None:
    assert [recipe_of({"head": head}).resobj.resobj_steps for head in ("stock", "obj", "resobj")] == [0, 0, 2]


@pytest.mark.parametrize(
    ("loss", "stock", "anchor"),
    [
        ("bce", "host", "host"),
        ("drop", "host", "host"),
        ("soft", "host", "host"),
        ("focal", "host", "batch"),
        ("brl+drop", "host", "host"),
        ("varifocal", "host", "host"),
        ("focal+soft", "host", "batch"),
        ("ohem", "host", "batch"),
        ("ghm", "candidates", "candidates"),
    ],
)
def test_the_divisor_is_the_method_s_own_unless_it_is_given(loss: str, stock: str, anchor: str) -> None:
    assert recipe_of({"loss": loss}).divisor == stock
    assert recipe_of({"loss": loss, "head": "anchor"}).divisor == anchor
    assert recipe_of({"loss": loss, "head": "obj"}).divisor == anchor
    for given in ("host", "image", "batch", "candidates"):
        assert recipe_of({"loss": loss, "divisor": given}).divisor == given


@pytest.mark.parametrize(("host", "divisor"), [("retinanet", "image"), ("ssd", "batch"), ("fasterrcnn", "host")])
def test_a_host_names_its_own_divisor(host: str, divisor: str) -> None:
    assert recipe_of({}, host=host).divisor == divisor
    assert recipe_of({"divisor": "host"}, host=host).divisor == divisor


def test_every_pair_that_is_offered_can_be_chosen() -> None:
    for name, row in METHODS.items():
        for element in JOINS.get(name, []):
            assert select(f"{element}+{name}", STOCK) == Selection(element, name)
        for site in SITES.values():
            if row.kind != "head" and row.defined(site):
                assert row().divide(site) in ("host", *site.divisors)


def test_every_flag_is_of_one_owner_and_every_name_a_word() -> None:
    assert all(re.fullmatch(r"[a-z]+", name) for name in METHODS)
    assert set(METHODS) >= HEADS
    assert set(METHODS["drop"].counted) == {"negatives", "obj_dropped", "low_iou_matches", "box_dropped"}


def used(given: dict[str, Any], host: str = "yolo", **options: Any) -> set[str]:
    return set(recipe_of(given, host=host, **options).used)


def test_the_settings_that_have_a_say_are_those_of_what_runs() -> None:
    brl = {name for name in TRAIN if name.startswith("brl_")}
    assert used({"loss": "brl"}) == brl
    assert used({"loss": "brl"}, "retinanet") == brl - {"brl_overlap"}
    assert used({"loss": "ohem"}) == {"ohem_ratio"}
    assert used({"loss": "ohem"}, "fasterrcnn") == {"ohem_rois"}
    assert used({"head": "anchor"}) == {"anchor_t", "box_gain", "obj_gain", "cls_gain"}
    own = {"obj_width", "obj_prior", "cls_prior", "obj_weight", "cls_weight"}
    steps = {name for name in TRAIN if name.startswith("resobj_")}
    assert used({"head": "resobj"}) == own | steps
    assert used({"head": "obj"}) == own
    assert used({"head": "resobj"}, "fasterrcnn") == {"obj_prior", "obj_weight"} | steps
    assert used({"head": "obj"}, anchored=True) == {"anchor_t", "box_gain", "obj_gain", "cls_gain"}
    assert used({"head": "resobj"}, anchored=True) >= {"resobj_steps", "anchor_t"}


def test_a_site_says_what_it_is() -> None:
    assert all(site.about and site.where and site.host in site.divisors for site in SITES.values())
    assert all(set(site.divisors) <= {"host", "image", "batch", "candidates"} for site in SITES.values())


def test_what_a_flag_may_need_can_be_said() -> None:
    words = {word for site in SITES.values() for word in (*site.gives, *site.stages)}
    assert words <= set(GIVEN)
    assert {item.metadata["needs"] for _, item in TRAIN.values()} - {""} <= words
