"""Unknown and verified regions in the losses of torchvision's detectors, and that nothing else changes."""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import test_diagnosis_torchvision as model_of
import torch
from objectives import recipe_of
from said_regions import image_regions, inside
from torch import Tensor
from torchvision.ops import box_convert, box_iou
from yolo_heads import CLASSES, SIZE, batch

from rebalance.hosts import SITES
from rebalance.hosts.host import begin_epoch
from rebalance.hosts.torchvision import faster_rcnn
from rebalance.hosts.torchvision.dense import DenseCriterion, labels_of
from rebalance.hosts.torchvision.faster_rcnn import FasterRCNNCriterion, Numbers, RefinedFasterRCNNCriterion
from rebalance.hosts.torchvision.head import Anchors
from rebalance.hosts.torchvision.retinanet import RefinedRetinaNetCriterion, RetinaNetCriterion
from rebalance.hosts.torchvision.ssd import SigmoidSSDCriterion, SSDCriterion
from rebalance.hosts.torchvision.zoo import ZOO
from rebalance.match.candidates import IGNORE, NEGATIVE, POSITIVE
from rebalance.match.regions import RegionBatch, region_batch
from rebalance.match.sample import Sampled
from rebalance.methods import JOINS, METHODS

IMAGES = 3
LABELS = batch(8)  # of the first two images
ANCHORS = Anchors(((12,), (24,), (40,)), ((0.5, 1.0, 2.0),) * 3)(
    [torch.zeros(1, n, n) for n in (8, 4, 2)], (SIZE, SIZE)
)
# Whose loss of an element depends on what other elements there are
TOGETHER = ("ghm", "ohem", "drop")

DENSE: dict[str, tuple[type[DenseCriterion], str, str, int]] = {  # criterion, host, head, classes that are apart
    "retinanet": (RetinaNetCriterion, "retinanet", "stock", CLASSES),
    "ssd": (SSDCriterion, "ssd", "stock", 1),
    "ssd-sigmoid": (SigmoidSSDCriterion, "ssd", "sigmoid", CLASSES),
    "retinanet-obj": (RefinedRetinaNetCriterion, "retinanet", "obj", 1),
    "retinanet-resobj": (RefinedRetinaNetCriterion, "retinanet", "resobj", 1),
}

HALF, WHOLE = (0.0, 0.0, 0.5, 1.0), (0.0, 0.0, 1.0, 1.0)
# Class 1 in the left half of the first image, both in the right half of the second; the third is known
UNKNOWN = region_batch([
    image_regions((HALF, [1], True)), image_regions(((0.5, 0, 1, 1), [0, 1], True)), image_regions(),
])  # fmt: skip
# Both classes verified in the left half of the first image, class 0 in all of the second
VERIFIED = region_batch([
    image_regions((HALF, [0, 1], False)), image_regions((WHOLE, [0], False)), image_regions(),
])  # fmt: skip


def losses_at(site: str) -> list[str]:
    defined = [name for name, row in METHODS.items() if row.defined(SITES[site]) and row.kind != "head"]
    elements = [name for name in defined if METHODS[name].kind == "element"]
    return elements + [
        f"{element}+{name}" for name in defined for element in JOINS.get(name, ()) if element in elements
    ]


CASES = [(kind, loss) for kind in DENSE for loss in losses_at(kind.replace("resobj", "obj"))]


class Made(NamedTuple):
    criterion: Any
    raw: dict[str, Any]
    about: list[Tensor]  # what regions act on: (B, A, channels) each
    channels: int  # of what is known
    matched: Tensor  # (B, A) bool
    negative: Tensor  # (B, A) bool


def make(kind: str, loss: str, **more: Any) -> Made:
    criterion, host, head, channels = DENSE[kind]
    flags = {"loss": loss, "head": head, **({"obj_drop": 0.5} if "drop" in loss else {}), **more}
    made: Any = criterion(None, recipe=recipe_of(flags, host=host), seed=0)
    anchors, counts = ANCHORS
    g, count = torch.Generator().manual_seed(1), len(ANCHORS[0])
    logits = torch.randn(IMAGES, count, CLASSES + (kind == "ssd"), generator=g) * 2
    raw = {
        "logits": logits.requires_grad_(), "deltas": torch.randn(IMAGES, count, 4, generator=g).requires_grad_(),
        "anchors": anchors, "counts": counts, "size": (SIZE, SIZE),
    }  # fmt: skip
    about = ["logits"]
    if "obj" in kind:
        raw["objectness"] = torch.randn(IMAGES, count, generator=g).requires_grad_()
        about = ["objectness"]
    if "resobj" in kind:
        raw["residuals"] = torch.randn(IMAGES, 2, count, generator=g).mul_(0.3).requires_grad_()
        about.append("residuals")
    state = made.match(anchors, labels_of(LABELS, IMAGES, (SIZE, SIZE), anchors.device)).state
    return Made(made, raw, [raw[name] for name in about], channels, state == POSITIVE, state == NEGATIVE)


def slopes(made: Made, regions: RegionBatch | None) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Loss items; gradients (B, A, channels) in what regions act on; all other gradients."""
    given: dict[str, Any] = {k: v.clone() for k, v in LABELS.items()}
    if regions is not None:
        given["regions"] = regions
    begin_epoch(made.criterion, 0)
    vector, items = made.criterion(made.raw, given)
    others = [x for x in made.raw.values() if isinstance(x, Tensor) and x.requires_grad and not holds(made.about, x)]
    found = torch.autograd.grad(vector.sum(), [*made.about, *others], materialize_grads=True)
    about = [g if g.shape[1] == len(ANCHORS[0]) and g.dim() == 3 else by_candidate(g) for g in found[: len(made.about)]]
    return torch.stack(list(items.values())), about, list(found[len(made.about) :])


def holds(tensors: list[Tensor], one: Tensor) -> bool:
    return any(x is one for x in tensors)


def by_candidate(x: Tensor) -> Tensor:
    return x.unsqueeze(-1) if x.dim() == 2 else x.transpose(1, 2)


def there(made: Made, regions: RegionBatch, *, every: bool = False) -> Tensor:
    """(B, A, channels) where the regions are about unmatched candidates."""
    boxes = ANCHORS[0].expand(IMAGES, -1, -1)
    found = inside(boxes, regions, CLASSES)
    if made.channels == 1:
        found = (found.all(-1) if every else found.any(-1)).unsqueeze(-1)
    return found & ~made.matched.unsqueeze(-1)


@pytest.mark.parametrize(("kind", "loss"), CASES)
def test_the_gradient_is_exactly_zero_inside_for_what_is_unknown_and_nothing_else_changes(kind: str, loss: str) -> None:
    made = make(kind, loss)
    items, about, others = slopes(made, UNKNOWN)
    plain_items, plain, plain_others = slopes(make(kind, loss), None)
    assert all(torch.equal(a, b) for a, b in zip(others, plain_others, strict=True))
    out = there(made, UNKNOWN)
    assert (made.matched.unsqueeze(-1) & inside(ANCHORS[0].expand(IMAGES, -1, -1), UNKNOWN, made.channels)).any()
    for found, before in zip(about, plain, strict=True):
        gone = out.expand_as(found)
        assert found[gone].eq(0).all()
        if any(x in loss for x in TOGETHER):
            assert found[~gone].ne(0).any()
        else:
            assert torch.equal(found[~gone], before[~gone])
            assert before[gone].ne(0).any()
    assert items.isfinite().all()
    assert not torch.equal(items, plain_items)


DOUBTING: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("bce+drop", "bce", {"obj_drop": 1.0, "drop_divisor": "host"}),
    ("brl", "focal", {"brl_warmup": 0, "brl_t": 0.2}),
    ("brl", "focal", {"brl_warmup": 0, "divisor": "batch"}), ("bce+soft", "bce", {}),
    ("bce+ohem", "bce", {"ohem_ratio": 0.1}),
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "loss", "base", "flags"), [(kind, *row) for row in DOUBTING for kind in DENSE if (kind, row[0]) in CASES]
)
def test_a_verified_negative_has_its_whole_loss_whatever_the_method(
    kind: str, loss: str, base: str, flags: dict[str, Any]
) -> None:
    flags = {"divisor": "host", **flags}
    made = make(kind, loss, **flags)
    found, plain = (slopes(make(kind, loss, **flags), x)[1] for x in (VERIFIED, None))
    full = slopes(make(kind, base, divisor=flags["divisor"]), None)[1]
    sure = there(made, VERIFIED, every=True) & made.negative.unsqueeze(-1)
    assert sure.any()
    for ours, without, whole in zip(found[:1], plain[:1], full[:1], strict=True):  # a gate moves with what is dropped
        mask = sure.expand_as(ours)
        assert torch.equal(ours[mask], whole[mask])
        assert not torch.equal(without[mask], whole[mask])
        if "ohem" not in loss:  # which then mines others
            assert torch.equal(ours[~mask], without[~mask])


@pytest.mark.parametrize("kind", DENSE)
def test_the_divisor_by_candidates_counts_those_that_have_a_loss(kind: str) -> None:
    found, plain = (slopes(make(kind, "bce", divisor="candidates"), regions)[1][0] for regions in (UNKNOWN, None))
    made = make(kind, "bce")
    out = there(made, UNKNOWN).expand(-1, -1, made.channels)
    counted = (made.matched | made.negative).unsqueeze(-1).expand_as(out)
    gone = out.expand_as(found)
    torch.testing.assert_close(found[~gone] * int((counted & ~out).sum()), plain[~gone] * int(counted.sum()))


@pytest.mark.parametrize("kind", DENSE)
def test_a_data_set_that_says_nothing_of_a_batch_leaves_the_loss_to_the_bit(kind: str) -> None:
    none = region_batch([image_regions()] * IMAGES)
    found, plain = (slopes(make(kind, "bce"), regions) for regions in (none, None))
    assert torch.equal(found[0], plain[0])
    assert all(torch.equal(a, b) for i in (1, 2) for a, b in zip(found[i], plain[i], strict=True))  # type: ignore[call-overload]


# Whole models, of which nothing but the anchors is taken from the product ---------------------------------------------

# Class 1 in the right half of the first image, both in the lower half of the second
OF_TWO = region_batch([image_regions(((0.5, 0, 1, 1), [1], True)), image_regions(((0, 0.5, 1, 1), [0, 1], True))])


def nearest_label(anchors: Tensor) -> Tensor:
    """(2, A) IoU of each anchor with the nearest label of each image."""
    labels = (model_of.LABELS["bboxes"][model_of.LABELS["batch_idx"] == image] * model_of.SIZE for image in range(2))
    return torch.stack([box_iou(anchors, box_convert(boxes, "cxcywh", "xyxy")).amax(1) for boxes in labels])


@pytest.mark.parametrize(
    ("name", "flags", "key", "channels"),
    [
        ("retinanet_tiny", {"loss": "focal", "divisor": "batch"}, "logits", CLASSES),
        ("retinanet_tiny", {"loss": "brl"}, "logits", CLASSES),
        ("retinanet_tiny", {"head": "obj", "loss": "bce"}, "objectness", 1),
        ("retinanet_tiny", {"head": "resobj", "loss": "bce"}, "objectness", 1),
        ("ssd_tiny", {"loss": "bce"}, "logits", 1),
        ("ssd_tiny", {"head": "sigmoid", "loss": "focal"}, "logits", CLASSES),
        ("fasterrcnn_tiny", {"head": "obj", "loss": "bce"}, "logits", 1),
    ],
)
def test_through_a_whole_model_the_gradient_is_zero_where_it_is_unknown_and_as_ever_elsewhere(
    name: str, flags: dict[str, Any], key: str, channels: int
) -> None:
    raws = [model_of.step(model_of.made(name, **flags), **more)[2] for more in ({"regions": OF_TWO}, {})]
    found, plain = (x if x.dim() == 3 else x.unsqueeze(-1) for x in (raw[key].grad for raw in raws))
    anchors = raws[0]["anchors"]
    out = inside(anchors.expand(2, -1, -1), OF_TWO, channels, model_of.SIZE)
    gone = (out & (nearest_label(anchors) < 0.2).unsqueeze(-1)).expand_as(found)  # surely unmatched
    assert gone.any()
    assert found[gone].eq(0).all()
    assert plain[gone].ne(0).any()
    rest = ~out.expand_as(found)
    torch.testing.assert_close(found[rest], plain[rest], rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("loss", ["bce", "ohem"])
def test_where_all_is_unknown_the_matched_anchors_alone_have_a_gradient(
    loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    everywhere = region_batch([image_regions((WHOLE, [0], True)), image_regions((WHOLE, [0, 1], True))])
    model = model_of.made("fasterrcnn_tiny", loss=loss)
    assert model_of.step(model)[2]["logits"].grad.ne(0).sum() > 20
    drawn: list[Tensor] = []

    def noted(call: Any) -> Any:
        def sample(*args: Any, **more: Any) -> Any:
            found = call(*args, **more)
            drawn.append(found.state)
            return found

        return sample

    model = model_of.made("fasterrcnn_tiny", loss=loss)
    monkeypatch.setattr(faster_rcnn, "sample", noted(faster_rcnn.sample))
    monkeypatch.setattr(model.criterion, "_hardest", noted(model.criterion._hardest))
    raw = model_of.step(model, regions=everywhere)[2]
    assert len(drawn) == 2  # of the RPN, of the RoI head
    assert all((state == POSITIVE).any() and not (state == NEGATIVE).any() for state in drawn)
    touched = raw["logits"].grad.ne(0)
    assert touched.any()
    assert nearest_label(raw["anchors"])[touched].min() > 0.3


# Faster R-CNN ---------------------------------------------------------------------------------------------------------

ROI_LOSSES = ["bce", "ohem", "soft", "nrd", "drop"]


@pytest.fixture(scope="module")
def two_stages() -> dict[str, Any]:
    """The head of the small model, and what it predicts for three images."""
    torch.manual_seed(0)
    head: Any = ZOO["fasterrcnn_tiny"].build(CLASSES)[2]
    for layer in (head.predictor.cls_score, head.predictor.bbox_pred, head.rpn.cls_logits, head.rpn.bbox_pred):
        torch.nn.init.normal_(layer.weight, std=0.1)
    g = torch.Generator().manual_seed(1)
    sides = {"4": 8, "6": 4, "9": 2, "pool": 1}
    features = {k: torch.randn(IMAGES, 64, n, n, generator=g) for k, n in sides.items()}
    raw = head.train().predict(features, (SIZE, SIZE))
    raw = {k: v.detach().requires_grad_() if k in ("logits", "deltas") else v for k, v in raw.items()}
    return {"head": head, "raw": raw}


def both(two_stages: dict[str, Any], loss: str, kind: Any = FasterRCNNCriterion, **flags: Any) -> Any:
    """The criterion; flags are `head` and those of the loss."""
    recipe = recipe_of({"loss": loss, **({"obj_drop": 0.5} if loss == "drop" else {}), **flags}, host="fasterrcnn")
    return kind(two_stages["head"], recipe=recipe, seed=0)


def step(criterion: Any, raw: dict[str, Any], regions: RegionBatch | None) -> tuple[dict[str, Tensor], Tensor]:
    """Losses by name, and the gradient in the RPN's objectness."""
    given: dict[str, Any] = {k: v.clone() for k, v in LABELS.items()}
    if regions is not None:
        given["regions"] = regions
    begin_epoch(criterion, 0)
    vector, items = criterion(raw, given)
    return items, torch.autograd.grad(vector[list(items).index("obj_loss")], raw["logits"])[0]


class Drawn(NamedTuple):
    boxes: Tensor  # (B, S, 4)
    state: Tensor  # (B, S)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Drawn]:
    """What the RoI head trained on, step by step, as its losses saw it."""
    seen: list[Drawn] = []
    real = FasterRCNNCriterion._roi_losses

    def recording(self: Any, logits: Any, deltas: Any, labels: Any, rois: Tensor, matched: Any, *more: Any) -> Any:
        if more:  # else hard examples are looked for
            seen.append(Drawn(rois.detach(), matched.state))
        return real(self, logits, deltas, labels, rois, matched, *more)

    monkeypatch.setattr(FasterRCNNCriterion, "_roi_losses", recording)
    return seen


@pytest.mark.parametrize("loss", ROI_LOSSES)
def test_no_stage_draws_a_negative_that_is_unknown(
    two_stages: dict[str, Any], drawn: list[Drawn], loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    anchors: list[Sampled] = []
    real = faster_rcnn.sample
    monkeypatch.setattr(faster_rcnn, "sample", lambda *x, **more: anchors.append(real(*x, **more)) or anchors[-1])
    raw = two_stages["raw"]
    items, slope = step(both(two_stages, loss), raw, UNKNOWN)
    assert all(x.isfinite() for x in items.values())
    out = inside(raw["anchors"].expand(IMAGES, -1, -1), UNKNOWN, 1).squeeze(-1)
    place, state = anchors[0]
    assert not (out.gather(1, place) & (state == NEGATIVE)).any()
    assert (out.gather(1, place) & (state == POSITIVE)).any()
    sampled = torch.zeros_like(out).scatter(1, place, state != IGNORE)
    assert slope[out & ~sampled].eq(0).all()
    (found,) = drawn
    there = inside(found.boxes, UNKNOWN, 1).squeeze(-1)
    assert not (there & (found.state == NEGATIVE)).any()
    assert (there & (found.state == POSITIVE)).any()
    assert (~there & (found.state == NEGATIVE)).any()
    drawn.clear()
    step(both(two_stages, loss), raw, None)
    (before,) = drawn
    assert (inside(before.boxes, UNKNOWN, 1).squeeze(-1) & (before.state == NEGATIVE)).any()


@pytest.mark.parametrize("head", ["obj", "resobj"])
@pytest.mark.parametrize("loss", ["bce", "drop"])
def test_an_rpn_that_trains_on_all_anchors_has_no_gradient_where_a_class_is_unknown(
    two_stages: dict[str, Any], head: str, loss: str
) -> None:
    raw = dict(two_stages["raw"])
    if head == "resobj":
        steps = torch.randn(IMAGES, 2, raw["logits"].shape[1], generator=torch.Generator().manual_seed(4)) * 0.3
        raw["residuals"] = steps.requires_grad_()
    criterion = both(two_stages, loss, RefinedFasterRCNNCriterion, head=head)
    slope, plain = (step(criterion, raw, regions)[1] for regions in (UNKNOWN, None))
    labels = labels_of(LABELS, IMAGES, (SIZE, SIZE), slope.device)
    positive = faster_rcnn.match_by_iou(raw["anchors"], labels, high=0.7, low=0.3, rescue="ties").state == POSITIVE
    out = inside(raw["anchors"].expand(IMAGES, -1, -1), UNKNOWN, 1).squeeze(-1) & ~positive
    assert slope[out].eq(0).all()
    assert plain[out].ne(0).any()
    if loss == "bce":
        assert torch.equal(slope[~out], plain[~out])
    if head == "resobj":
        begin_epoch(criterion, 0)
        vector, items = criterion(raw, {**LABELS, "regions": UNKNOWN})
        residual = torch.autograd.grad(vector[list(items).index("res_loss")], raw["residuals"])[0]
        assert residual.transpose(0, 1)[:, out].eq(0).all()
        assert residual.ne(0).any()


ALL_VERIFIED = region_batch([image_regions((WHOLE, [0, 1], False))] * IMAGES)


@pytest.mark.parametrize(
    ("loss", "flags"),
    [
        ("nrd", {"nrd_rate": 1.0}), ("nrd", {"nrd_rate": 1.0, "nrd_stage": "rpn"}), ("drop", {"obj_drop": 1.0}),
        ("soft", {}),
    ],
)  # fmt: skip
def test_verified_samples_have_their_whole_loss_whatever_the_method(
    two_stages: dict[str, Any], loss: str, flags: dict[str, Any]
) -> None:
    raw = two_stages["raw"]
    full = step(both(two_stages, "bce"), raw, None)[0]
    found, plain = (step(both(two_stages, loss, **flags), raw, regions)[0] for regions in (ALL_VERIFIED, None))
    for name, value in full.items():
        torch.testing.assert_close(found[name], value)
    assert any(not torch.equal(plain[name], full[name]) for name in full)


def test_mining_leaves_the_verified_negatives_that_a_random_sample_holds(
    two_stages: dict[str, Any], drawn: list[Drawn]
) -> None:
    raw = two_stages["raw"]
    criterion = both(two_stages, "ohem", ohem_rois=4)
    step(criterion, raw, VERIFIED)
    step(both(two_stages, "bce"), raw, None)
    step(criterion, raw, None)
    ours, random, mined = drawn

    def verified(one: Drawn) -> Tensor:
        return inside(one.boxes, VERIFIED, CLASSES).all(-1) & (one.state == NEGATIVE)

    def rows(one: Drawn, kept: Tensor) -> list[list[float]]:
        return sorted(one.boxes[0][kept[0]].tolist())

    assert rows(ours, verified(ours)) == rows(random, verified(random))
    assert len(rows(ours, verified(ours))) > len(rows(mined, verified(mined)))
    others = (ours.state != IGNORE) & ~verified(ours)
    assert others.sum(1).le(4).all()
    assert others[2].any()  # of which nothing is said


def test_the_numbers_of_samples_are_what_they_were(two_stages: dict[str, Any], drawn: list[Drawn]) -> None:
    """Others take the places of those that are not drawn, where there are any."""
    two_stages["head"].numbers, kept = Numbers(anchors=16, rois=16), two_stages["head"].numbers
    try:
        step(both(two_stages, "bce"), two_stages["raw"], UNKNOWN)
    finally:
        two_stages["head"].numbers = kept
    assert (drawn[0].state != IGNORE).sum(1).tolist() == [16] * IMAGES
