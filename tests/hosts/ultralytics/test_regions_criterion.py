"""Unknown and verified regions in the losses of YOLO's heads: what has no loss there, and that nothing else changes."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from objectives import LOSSES, recipe_of
from said_regions import image_regions, inside
from torch import Tensor
from ultralytics.utils.loss import E2ELoss
from yolo_heads import (
    ANCHOR,
    CLASSES,
    GRIDS,
    SIZE,
    anchors_at_cells,
    assigned,
    batch,
    build,
    hosts,
    matches_of,
    parts,
    predictions,
)

from rebalance.hosts.host import begin_epoch
from rebalance.hosts.ultralytics.criterion import AnchorCriterion, ObjectnessCriterion
from rebalance.hosts.ultralytics.model import criterion_of
from rebalance.match.regions import RegionBatch, region_batch

IMAGES = 3
LABELS = batch(8)  # of the first two images
# Whose loss of an element depends on what other elements there are
TOGETHER = ("ghm", "ohem", "drop")
ON_OBJECTNESS = ["bce", "focal", "varifocal", "brl", "bce+soft", "bce+drop", "focal+drop", "brl+drop"]
STOCK = ("yolov8n.yaml", "yolo26n.yaml")


HALF, WHOLE = (0.0, 0.0, 0.5, 1.0), (0.0, 0.0, 1.0, 1.0)
# Class 1 in the left half of the first image, both in the right half of the second; the third is known
UNKNOWN = region_batch([
    image_regions((HALF, [1], True)), image_regions(((0.5, 0, 1, 1), [0, 1], True)), image_regions(),
])  # fmt: skip


class Head(NamedTuple):
    """A criterion, predictions, and what other code finds of the candidates of each branch."""

    criterion: Any
    preds: Any
    boxes: list[Tensor]  # (B, N, 4) of each branch: anchors, or what is predicted
    matched: list[Tensor]  # (B, N)
    channels: int  # of the logits


def with_objectness(steps: int) -> dict[str, Tensor]:
    g, cells = torch.Generator().manual_seed(5), sum(n * n for n in GRIDS)
    found = {"objectness": torch.randn(IMAGES, 1, cells, generator=g)}
    if steps:
        found["residuals"] = torch.randn(IMAGES, steps, cells, generator=g) * 0.3
    return {k: v.requires_grad_() for k, v in found.items()}


def make(name: str, head: str, loss: str, **more: Any) -> Head:
    flags = {"loss": loss, "head": head, **({"obj_drop": 0.5} if "drop" in loss else {}), **more}
    if head in ("obj", "resobj"):
        flags |= {"obj_base": "anchor" if name == ANCHOR else "stock"}
    recipe = recipe_of(flags)
    steps = recipe.resobj.resobj_steps if head == "resobj" else 0
    preds = predictions(build(name), images=IMAGES)
    model: Any = build(name)
    if name == ANCHOR:
        if steps:
            g = torch.Generator().manual_seed(6)
            shapes = [(IMAGES, steps, 3, n, n) for n in GRIDS]
            preds["residuals"] = [(torch.randn(shape, generator=g) * 0.3).requires_grad_() for shape in shapes]
        criterion = AnchorCriterion(model, recipe=recipe, seed=0)
        matched = torch.zeros(IMAGES, len(anchors_at_cells()), dtype=torch.bool)
        for image, candidate, _ in matches_of(model.model[0], [x.detach() for x in preds["maps"]], LABELS):
            matched[image, candidate] = True
        return Head(criterion, preds, [anchors_at_cells().expand(IMAGES, -1, -1)], [matched], 1)
    branches = parts(preds)
    if head == "stock":
        criterion = criterion_of(model, recipe, 0)
    else:
        for branch in branches:
            branch |= with_objectness(steps)

        def one(model: Any, *topk: int, **more: int) -> ObjectnessCriterion:
            return ObjectnessCriterion(model, *topk, **more, recipe=recipe, seed=0)

        criterion = E2ELoss(model, one) if len(branches) == 2 else one(model)
    boxes, matched_of = [], []
    for host, branch in zip(hosts(model), branches, strict=True):
        objectness = None
        if head != "stock":
            objectness = branch["objectness"].squeeze(1) + branch.get("residuals", torch.zeros(1, 1, 1)).sum(1)
        found = assigned(host, branch, LABELS, objectness)
        boxes.append(found.boxes)
        matched_of.append(found.positive)
    return Head(criterion, preds, boxes, matched_of, CLASSES if head == "stock" else 1)


def slopes(made: Head, regions: RegionBatch | None, **more: Any) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Loss items; of each branch the gradient (B, N, channels) in what the regions are about; all other gradients.

    `more` is in the batch too.
    """
    given: dict[str, Any] = {**{k: v.clone() for k, v in LABELS.items()}, **more}
    if regions is not None:
        given["regions"] = regions
    begin_epoch(made.criterion, 0)
    vector, items = made.criterion(made.preds, given)
    about, others = [], []
    if "maps" in made.preds:
        wanted = [*made.preds["maps"], *made.preds.get("residuals", [])]
        found = torch.autograd.grad(vector.sum(), wanted, materialize_grads=True)
        maps, residuals = found[:3], found[3:]
        columns = [torch.cat([g[:, :, 4].flatten(1) for g in maps], 1)]
        if residuals:
            columns += torch.cat([g.flatten(2) for g in residuals], 2).unbind(1)
        about.append(torch.stack(columns, -1))
        others += [g[:, :, [0, 1, 2, 3, *range(5, g.shape[2])]] for g in maps]
    else:
        for branch in parts(made.preds):
            names = [k for k in ("scores", "objectness", "residuals", "boxes") if k in branch]
            found = torch.autograd.grad(
                vector.sum(), [branch[k] for k in names], retain_graph=True, materialize_grads=True
            )
            by_name = dict(zip(names, found, strict=True))
            mine = [by_name.pop(k) for k in ("objectness", "residuals") if k in by_name] or [by_name.pop("scores")]
            about.append(torch.cat(mine, 1).transpose(1, 2))
            others += by_name.values()
    return torch.stack(list(items.values())), about, others


HEADS = [(name, "stock", loss) for name in STOCK for loss in LOSSES]
HEADS += [(ANCHOR, "anchor", loss) for loss in [*ON_OBJECTNESS, "bce+ghm", "bce+ohem"]]
HEADS += [(name, head, loss) for name in (*STOCK, ANCHOR) for head in ("obj", "resobj") for loss in ON_OBJECTNESS]


@pytest.mark.parametrize(("name", "head", "loss"), HEADS)
def test_the_gradient_is_exactly_zero_inside_for_what_is_unknown_and_nothing_else_changes(
    name: str, head: str, loss: str
) -> None:
    made = make(name, head, loss)
    items, about, others = slopes(made, UNKNOWN)
    plain_items, plain, plain_others = slopes(make(name, head, loss), None)
    assert all(torch.equal(a, b) for a, b in zip(others, plain_others, strict=True))
    for found, before, boxes, matched in zip(about, plain, made.boxes, made.matched, strict=True):
        out = inside(boxes, UNKNOWN, made.channels) & ~matched.unsqueeze(-1)
        out = out.expand_as(found)
        assert out.any()
        assert (~out).any()
        assert found[out].eq(0).all()
        assert (inside(boxes, UNKNOWN, made.channels) & matched.unsqueeze(-1)).any()
        if not any(x in loss for x in TOGETHER):
            assert torch.equal(found[~out], before[~out])
            assert before[out].ne(0).any()
        else:
            assert found[~out].ne(0).any()
    assert items.isfinite().all()
    assert not torch.equal(items, plain_items)


# Both classes verified in the left half of the first image, class 0 in all of the second
VERIFIED = region_batch([
    image_regions((HALF, [0, 1], False)), image_regions((WHOLE, [0], False)), image_regions(),
])  # fmt: skip


@pytest.mark.parametrize(
    ("loss", "base", "flags"),
    [
        ("bce+drop", "bce", {"obj_drop": 1.0, "drop_divisor": "host"}), ("brl", "bce", {"brl_warmup": 0}),
        ("bce+soft", "bce", {}), ("bce+ohem", "bce", {"ohem_ratio": 0.1}),
    ],
)  # fmt: skip
@pytest.mark.parametrize(("name", "head"), [("yolov8n.yaml", "stock"), ("yolo26n.yaml", "stock"), (ANCHOR, "anchor")])
def test_a_verified_negative_has_its_whole_loss_whatever_the_method(
    name: str, head: str, loss: str, base: str, flags: dict[str, Any]
) -> None:
    found = slopes(make(name, head, loss, divisor="host", **flags), VERIFIED)[1]
    plain = slopes(make(name, head, loss, divisor="host", **flags), None)[1]
    full = slopes(make(name, head, base), None)[1]
    made = make(name, head, loss)
    for ours, without, whole, boxes, matched in zip(found, plain, full, made.boxes, made.matched, strict=True):
        there = inside(boxes, VERIFIED, CLASSES)
        there = (there if made.channels > 1 else there.all(-1, keepdim=True)) & ~matched.unsqueeze(-1)
        assert there.any()
        assert torch.equal(ours[there], whole[there])
        assert not torch.equal(without[there], whole[there])
        if loss != "bce+ohem":  # which then mines others
            assert torch.equal(ours[~there], without[~there])


@pytest.mark.parametrize(("name", "head"), [("yolov8n.yaml", "stock"), (ANCHOR, "anchor")])
def test_below_a_size_nothing_was_labelled(name: str, head: str) -> None:
    """20 of the 64 pixels: what is predicted, or on anchors what the anchor is, is smaller."""
    small = image_regions((WHOLE, [0, 1], True))._replace(below=torch.tensor([20 / SIZE]))
    made = make(name, head, "bce")
    about, before = slopes(made, region_batch([small] * IMAGES))[1][0], slopes(made, None)[1][0]
    clipped = made.boxes[0].clamp(0, SIZE)
    out = ((clipped[..., 2:] - clipped[..., :2]).prod(-1).sqrt() < 20) & ~made.matched[0]
    assert out.any()
    assert not out.all()
    assert about[out].eq(0).all()
    assert torch.equal(about[~out], before[~out])


@pytest.mark.parametrize("name", ["yolov8n.yaml", ANCHOR])
def test_the_divisor_by_candidates_counts_those_that_have_a_loss(name: str) -> None:
    head = "anchor" if name == ANCHOR else "stock"
    made = make(name, head, "focal", divisor="candidates")
    found, plain = (slopes(made, regions)[1][0] for regions in (UNKNOWN, None))
    out = inside(made.boxes[0], UNKNOWN, made.channels) & ~made.matched[0].unsqueeze(-1)
    torch.testing.assert_close(found[~out] * int((~out).sum()), plain[~out] * out.numel())


def test_a_data_set_that_says_nothing_of_a_batch_leaves_the_host_s_loss_to_the_bit() -> None:
    for name, head in (("yolov8n.yaml", "stock"), (ANCHOR, "anchor")):
        none = region_batch([image_regions()] * IMAGES)
        found, plain = (slopes(make(name, head, "bce"), regions) for regions in (none, None))
        assert torch.equal(found[0], plain[0])
        assert all(torch.equal(a, b) for i in (1, 2) for a, b in zip(found[i], plain[i], strict=True))  # type: ignore[call-overload]
