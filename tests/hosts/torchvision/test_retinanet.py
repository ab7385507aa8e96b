"""RetinaNet's criterion and head against torchvision's own, and every loss on it against its formula."""

from __future__ import annotations

from collections import OrderedDict
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from objectives import recipe_of
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead
from torchvision.ops import batched_nms, box_iou, clip_boxes_to_image, complete_box_iou

from rebalance.hosts import SITES
from rebalance.hosts.host import begin_epoch, counts
from rebalance.hosts.torchvision.dense import labels_of
from rebalance.hosts.torchvision.head import Anchors
from rebalance.hosts.torchvision.model import TorchvisionModel
from rebalance.hosts.torchvision.retinanet import RetinaNetCriterion
from rebalance.match.candidates import IGNORE, NEGATIVE, POSITIVE
from rebalance.match.iou import Matched
from rebalance.methods import JOINS, METHODS

SIZE, CLASSES = (64, 96), 3  # height, width
ANCHORS = Anchors(((12.0, 20.0), (32.0, 48.0)), ((0.5, 1.0, 2.0),) * 2)
SHAPES = ((8, 12), (4, 6))
SITE = SITES["retinanet"]
ELEMENTS = [name for name, row in METHODS.items() if row.kind == "element" and row.defined(SITE)]
WEIGHTINGS = [name for name, row in METHODS.items() if row.kind == "weighting" and row.defined(SITE)]
# Every method, each weighting with the host's own element loss or the first it may be joined with
LOSSES = [*ELEMENTS, *(f"{'focal' if 'focal' in JOINS[name] else JOINS[name][0]}+{name}" for name in WEIGHTINGS)]
PAIRS = [f"{element}+{name}" for name in WEIGHTINGS for element in JOINS[name] if element in ELEMENTS]


def labels(*counts: int, seed: int = 0) -> dict[str, Any]:
    """A batch with so many labels in each image; every label overlaps some anchor."""
    g = torch.Generator().manual_seed(seed)
    total = sum(counts)
    size = torch.rand(total, 2, generator=g) * 0.4 + 0.15
    centre = size / 2 + torch.rand(total, 2, generator=g) * (1 - size)
    return {
        "batch_idx": torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).float(),
        "cls": torch.randint(CLASSES, (total, 1), generator=g).float(),
        "bboxes": torch.cat((centre, size), 1),
    }


def predictions(images: int, *, seed: int = 1, low: float = -3.0, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """Random predictions; class logits around `low`."""
    g = torch.Generator().manual_seed(seed)
    anchors, counts = ANCHORS([torch.zeros(s) for s in SHAPES], SIZE)
    logits = torch.randn(images, len(anchors), CLASSES, generator=g, dtype=torch.float64) * 2 + low
    deltas = torch.randn(images, len(anchors), 4, generator=g, dtype=torch.float64) * 0.3
    raw = {"anchors": anchors, "counts": counts, "size": SIZE}
    return raw | {"logits": logits.to(dtype).requires_grad_(), "deltas": deltas.to(dtype).requires_grad_()}


def criterion(**given: Any) -> RetinaNetCriterion:
    return RetinaNetCriterion(None, recipe=recipe_of(given, host="retinanet"), seed=0)


def run(raw: dict[str, Any], batch: dict[str, Any], **given: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Classification and box loss, not times B, and the gradients of their sum."""
    loss = criterion(**given)(raw, batch)[0] / len(raw["logits"])
    return (loss, *gradients(loss.sum(), raw))


def gradients(loss: Tensor, raw: dict[str, Any]) -> tuple[Tensor, Tensor]:
    found = torch.autograd.grad(loss, (raw["logits"], raw["deltas"]), retain_graph=True, allow_unused=True)
    first, second = (torch.zeros(1) if x is None else x for x in found)
    return first, second


def matched(raw: dict[str, Any], batch: dict[str, Any]) -> tuple[Matched, Tensor]:
    """What the anchors are matched to, and (B, A, C) targets."""
    padded = labels_of(batch, len(raw["logits"]), raw["size"], torch.device("cpu"))
    found = criterion().match(raw["anchors"], padded)
    targets = torch.zeros(raw["logits"].shape, dtype=torch.float64)
    for i, a in (found.state == POSITIVE).nonzero().tolist():
        targets[i, a, padded.classes[i, found.label[i, a]]] = 1
    return found, targets


def theirs(raw: dict[str, Any], batch: dict[str, Any]) -> Tensor:
    """torchvision's two losses on the same predictions."""
    images = len(raw["logits"])
    height, width = SIZE
    xywh = batch["bboxes"] * torch.tensor([width, height, width, height])
    corners = torch.cat((xywh[:, :2] - xywh[:, 2:] / 2, xywh[:, :2] + xywh[:, 2:] / 2), 1)
    targets = [
        {"boxes": corners[batch["batch_idx"] == i], "labels": batch["cls"][batch["batch_idx"] == i].view(-1).long()}
        for i in range(images)
    ]
    model = SimpleNamespace(proposal_matcher=Matcher(0.5, 0.4, True), head=RetinaNetHead(8, 9, CLASSES))
    outputs = {"cls_logits": raw["logits"], "bbox_regression": raw["deltas"]}
    found = RetinaNet.compute_loss(model, targets, outputs, [raw["anchors"]] * images)
    return torch.stack((found["classification"], found["bbox_regression"]))


def focal(x: Tensor, y: Tensor, gamma: float = 2, alpha: float = 0.25) -> Tensor:
    p = x.sigmoid()
    p_t = torch.where(y == 1, p, 1 - p)
    return torch.where(y == 1, alpha, 1 - alpha) * -((1 - p_t) ** gamma) * p_t.log()


# torchvision's own numbers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [(5, 1, 12), (3, 0, 7), (0, 4), (0, 0), (1,)])
def test_focal_equals_torchvision_in_value_and_gradient(counts: tuple[int, ...]) -> None:
    """Also with images without labels: there torchvision divides by 1, and so do we."""
    raw, batch = predictions(len(counts)), labels(*counts)
    loss, *grads = run(raw, batch)
    expected = theirs(raw, batch)
    torch.testing.assert_close(loss, expected)
    for mine, other in zip(grads, gradients(expected.sum(), raw), strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-8)
    assert criterion().recipe["loss"] == "focal"
    assert criterion().recipe.divisor == "image"


def test_what_comes_out_is_times_the_images_and_named() -> None:
    raw, batch = predictions(3), labels(2, 4, 1)
    loss, items = criterion()(raw, batch)
    torch.testing.assert_close(loss, 3 * theirs(raw, batch))
    assert list(items) == ["cls_loss", "box_loss"]
    torch.testing.assert_close(torch.stack(list(items.values())), loss / 3)
    assert not any(x.requires_grad for x in items.values())
    in_validation = criterion()((torch.zeros(1), raw), batch)[0]
    assert torch.equal(in_validation, loss)


def test_divisor_batch_is_mmdetections() -> None:
    """Both sums divided by the positives of the whole batch, `avg_factor` there."""
    raw, batch = predictions(3), labels(5, 0, 9)
    found, targets = matched(raw, batch)
    positives = (found.state == POSITIVE).sum()
    taking_part = (found.state != IGNORE).unsqueeze(-1)
    cls = (focal(raw["logits"], targets) * taking_part).sum() / positives
    box = torch.zeros((), dtype=torch.float64)
    for i in range(3):
        image = {**raw, "logits": raw["logits"][[i]], "deltas": raw["deltas"][[i]]}
        box = box + theirs(image, one(batch, i))[1] * (found.state[i] == POSITIVE).sum()  # a mean over its positives
    loss = run(raw, batch, divisor="batch")[0]
    torch.testing.assert_close(loss, torch.stack((cls, box / positives)), rtol=1e-6, atol=0)


def one(batch: dict[str, Any], image: int) -> dict[str, Any]:
    kept = batch["batch_idx"] == image
    return {"batch_idx": torch.zeros(int(kept.sum())), "cls": batch["cls"][kept], "bboxes": batch["bboxes"][kept]}


def test_divisor_candidates_counts_what_takes_part() -> None:
    raw, batch = predictions(2), labels(5, 9)
    found, targets = matched(raw, batch)
    taking_part = (found.state != IGNORE).unsqueeze(-1)
    expected = (focal(raw["logits"], targets) * taking_part).sum() / (taking_part.sum() * CLASSES)
    assert (found.state == IGNORE).any()
    loss = run(raw, batch, divisor="candidates")[0]
    torch.testing.assert_close(loss[0], expected)
    torch.testing.assert_close(loss[1], run(raw, batch)[0][1])  # the box loss keeps the host's


# Every loss -----------------------------------------------------------------------------------------------------------


def test_ce_is_cross_entropy() -> None:
    raw, batch = predictions(2), labels(5, 9)
    found, targets = matched(raw, batch)
    p = raw["logits"].sigmoid()
    loss = -torch.where(targets == 1, p, 1 - p).log() * (found.state != IGNORE).unsqueeze(-1)
    count = (found.state == POSITIVE).sum(1)
    torch.testing.assert_close(run(raw, batch, loss="ce")[0][0], (loss.sum((1, 2)) / count).mean())


def recalibrated(
    raw: dict[str, Any], batch: dict[str, Any], t: float, weight: float, iou: float, beta: float
) -> Tensor:
    """Equation 2 with the bands of the paper, written out; divided by the positives of each image."""
    found, targets = matched(raw, batch)
    x = raw["logits"]
    p_t = 1 - x.sigmoid()
    plain = -0.75 * (1 - p_t) ** 2 * p_t.log()
    mirrored = -beta * 0.75 * p_t**2 * (1 - p_t).log()
    confused = (found.state == NEGATIVE) & (found.overlap < iou)
    negative = (found.state == NEGATIVE) & ~confused
    loss = torch.where(confused.unsqueeze(-1), weight * torch.where(p_t > t, plain, mirrored), 0)
    loss = loss + torch.where(negative.unsqueeze(-1), plain, 0)
    loss = loss + torch.where((found.state == POSITIVE).unsqueeze(-1), focal(x, targets), 0)
    return (loss.sum((1, 2)) / (found.state == POSITIVE).sum(1).clamp(min=1)).mean()


@pytest.mark.parametrize(
    ("counts", "t", "weight", "iou", "beta"),
    [((5, 9), 0.5, 0.1, 0.1, 1), ((5, 9), 0.3, 0.5, 0.2, 1), ((4, 0), 0.7, 1, 0.05, 0), ((0, 0), 0.5, 0.1, 0.1, 1)],
)
def test_brl_equals_its_equation_with_the_papers_bands(
    counts: tuple[int, ...], t: float, weight: float, iou: float, beta: float
) -> None:
    raw, batch = predictions(2, low=0), labels(*counts)
    given = {"brl_t": t, "brl_weight": weight, "brl_iou": iou, "brl_beta": beta}
    loss, grad, _ = run(raw, batch, loss="brl", divisor="image", **given)
    expected = recalibrated(raw, batch, t, weight, iou, beta)
    torch.testing.assert_close(loss[0], expected)
    torch.testing.assert_close(grad, gradients(expected, raw)[0])


def test_bands_of_brl_by_hand() -> None:
    """One label and one anchor of each kind: IoU 1, 1/2 (positive), 0.45 (ignored), 0.2, and 0 (confused)."""
    boxes = [[0, 0, 20, 20], [0, 0, 20, 10], [0, 0, 20, 9], [0, 0, 20, 4], [40, 40, 60, 60]]
    label = {"batch_idx": torch.zeros(1), "cls": torch.zeros(1, 1), "bboxes": torch.tensor([[10, 10, 20, 20]]) / 64.0}
    logits = torch.tensor([[[2.0], [2.0], [2.0], [2.0], [2.0]]], requires_grad=True)
    deltas = torch.zeros(1, 5, 4, requires_grad=True)
    raw = {"logits": logits, "deltas": deltas, "anchors": torch.tensor(boxes).float(), "size": (64, 64)}
    state = matched(raw, label)[0].state[0].tolist()
    assert state == [POSITIVE, POSITIVE, IGNORE, NEGATIVE, NEGATIVE]
    grad = run(raw, label, loss="brl")[1][0, :, 0].tolist()
    assert grad[0] == grad[1] < 0
    assert grad[2] == 0
    assert grad[3] > 0  # a negative is pushed down
    assert grad[4] < 0  # a confused one that looks like an object is pushed up
    # the mirrored branch is that of a positive, weighted 0.1 · (1 − 0.25) in the place of 0.25
    assert grad[4] == pytest.approx(grad[0] * 0.1 * 0.75 / 0.25, rel=1e-5)


@pytest.mark.parametrize("t", [0.3, 0.5, 0.7])
def test_the_gradient_of_a_confused_anchor_changes_sign_at_the_threshold(t: float) -> None:
    raw, batch = predictions(1, low=0), labels(0)  # without labels every anchor is confused
    grad = run(raw, batch, loss="brl", brl_t=t)[1]
    p_t = 1 - raw["logits"].sigmoid()
    assert (grad[p_t > t] > 0).all()
    assert (grad[p_t < t] < 0).all()
    assert 0 < (p_t > t).sum() < p_t.numel()


def test_neutral_brl_is_focal() -> None:
    raw, batch = predictions(3), labels(5, 0, 9)
    neutral = run(raw, batch, loss="brl", brl_t=0, brl_weight=1)
    for mine, host in zip(neutral, run(raw, batch), strict=True):
        torch.testing.assert_close(mine, host)
    torch.testing.assert_close(neutral[0], theirs(raw, batch))


def test_brl_is_focal_in_its_warm_up_and_finite_after_it() -> None:
    raw, batch = predictions(2), labels(5, 9)
    loss = criterion(loss="brl", brl_t=0.7, brl_warmup=2)
    assert torch.equal(loss(raw, batch)[0], criterion()(raw, batch)[0])
    begin_epoch(loss, 2)
    after = loss(raw, batch)[0]
    assert after.isfinite().all()
    assert after[0] != criterion()(raw, batch)[0][0]


def test_ohem_counts_the_hardest_negatives_of_each_image() -> None:
    raw, batch = predictions(3), labels(5, 0, 9)
    found, targets = matched(raw, batch)
    loss = focal(raw["logits"], targets).sum(-1)
    total = torch.zeros((), dtype=torch.float64)
    for i in (0, 2):  # an image without a positive counts nothing
        positive = found.state[i] == POSITIVE
        hardest = loss[i][found.state[i] == NEGATIVE].sort(descending=True).values[: 3 * int(positive.sum())]
        total = total + (loss[i][positive].sum() + hardest.sum()) / positive.sum()
    torch.testing.assert_close(run(raw, batch, loss="focal+ohem")[0][0], total / 3)


def test_soft_weighs_negatives_by_the_overlap_of_their_anchor() -> None:
    raw, batch = predictions(2), labels(5, 0)
    found, targets = matched(raw, batch)
    weight = 0.25 + 0.75 * torch.exp(-50 * torch.exp(-20 * found.overlap))
    weight = torch.where(found.state == POSITIVE, 1, weight) * (found.state != IGNORE)
    loss = (focal(raw["logits"], targets).sum(-1) * weight).sum(1)
    expected = (loss / (found.state == POSITIVE).sum(1).clamp(min=1)).mean()
    torch.testing.assert_close(run(raw, batch, loss="soft")[0][0], expected, rtol=1e-6, atol=0)
    assert criterion(loss="soft").recipe["loss"] == "focal+soft"


def test_ghm_divides_by_the_density_of_gradients_and_by_what_takes_part() -> None:
    raw, batch = predictions(2), labels(5, 9)
    found, targets = matched(raw, batch)
    kept = (found.state != IGNORE).unsqueeze(-1).expand_as(targets)
    g = (raw["logits"].sigmoid() - targets).abs()[kept]
    bins = (g * 30).long().clamp(max=29)
    weight = len(g) / (bins.bincount(minlength=30)[bins] * 30)
    p = raw["logits"].sigmoid()
    loss = -torch.where(targets == 1, p, 1 - p).log()[kept]
    torch.testing.assert_close(run(raw, batch, loss="ghm")[0][0], (loss * weight).sum() / len(g))
    assert criterion(loss="ghm").recipe.divisor == "candidates"


@pytest.mark.parametrize("loss", [name for name in (*ELEMENTS, *PAIRS) if name != "focal"])
def test_every_loss_changes_the_gradient(loss: str) -> None:
    raw, batch = predictions(2, low=0), labels(5, 9)
    given = {"obj_drop": 0.5} if loss.endswith("+drop") else {}
    mine, host = run(raw, batch, loss=loss, **given)[1], run(raw, batch)[1]
    assert mine.isfinite().all()
    assert not torch.allclose(mine, host)


@pytest.mark.parametrize(
    ("loss", "counts"), [*((loss, (5, 9)) for loss in LOSSES), *((loss, (0, 0)) for loss in LOSSES), ("focal", (4, 0))]
)
def test_ignored_anchors_have_no_gradient_and_all_is_finite(loss: str, counts: tuple[int, ...]) -> None:
    raw, batch = predictions(2), labels(*counts)
    with torch.no_grad():
        raw["logits"][0, :50] *= 100
        raw["deltas"][0, :50] *= 1e4
    given = {"obj_drop": 0.9, "box_drop": 0.9} if loss.endswith("+drop") else {}
    value, cls, box = run(raw, batch, loss=loss, **given)
    state = matched(raw, batch)[0].state
    assert value.isfinite().all()
    assert cls.isfinite().all()
    assert box.isfinite().all()
    assert cls[state == IGNORE].eq(0).all()
    assert box[state != POSITIVE].eq(0).all()
    if sum(counts) == 0:
        assert value[1] == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    raw, batch = predictions(2, dtype=dtype), labels(5, 9)
    whole = {**raw, "logits": raw["logits"].detach().float().requires_grad_(), "deltas": raw["deltas"].detach().float()}
    loss = criterion()(raw, batch)[0]
    assert loss.dtype == torch.float32
    assert torch.equal(loss, criterion()(whole, batch)[0])


@pytest.mark.parametrize("loss", LOSSES)
def test_a_few_images_at_a_time_give_the_same(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw, batch = predictions(5), labels(5, 0, 9, 1, 3)
    given = {"loss": loss} | ({"obj_drop": 0.5, "box_drop": 0.5} if loss.endswith("+drop") else {})
    found = []
    for elements in (10**9, 2 * raw["logits"][0].numel(), 1):
        monkeypatch.setattr("rebalance.hosts.torchvision.dense.ELEMENTS", elements)
        found.append(run(raw, batch, **given))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b)


# Dropping -------------------------------------------------------------------------------------------------------------


def test_dropping_nothing_is_bit_equal() -> None:
    raw, batch = predictions(3), labels(5, 0, 9)
    for mine, host in zip(run(raw, batch, loss="focal+drop"), run(raw, batch), strict=True):
        assert torch.equal(mine, host)


@pytest.mark.parametrize(
    ("scope", "divisor", "kept"),
    [
        ("background", "candidates", "kept"), ("background", "image", "host"),
        ("matched", "image", "kept"), ("matched", "batch", "kept"), ("matched", "candidates", "host"),
        ("literal", "batch", "kept"), ("literal", "candidates", "kept"), ("literal", "image", "host"),
    ],
)  # fmt: skip
def test_dropping_all_is_finite(scope: str, divisor: str, kept: str) -> None:
    raw, batch = predictions(3), labels(5, 0, 9)
    given = {"obj_drop": 1, "box_drop": 1, "drop_scope": scope, "divisor": divisor, "drop_divisor": kept}
    for x in run(raw, batch, **given):
        assert x.isfinite().all()


def low(raw: dict[str, Any], batch: dict[str, Any], *, own: bool = False) -> Tensor:
    """(B, A) whether the decoded box overlaps every label by less than 0.3; torchvision's decoder.

    Or, where it is matched, the label that it is matched to, by torchvision's complete IoU.
    """
    padded, found = labels_of(batch, len(raw["logits"]), SIZE, torch.device("cpu")), matched(raw, batch)[0]
    out = torch.ones(raw["logits"].shape[:2], dtype=torch.bool)
    for i, deltas in enumerate(raw["deltas"].detach()):
        boxes = BoxCoder((1.0, 1.0, 1.0, 1.0)).decode_single(deltas, raw["anchors"].double())
        if padded.valid[i].any():
            here = padded.boxes[i][padded.valid[i]].double()
            if own:
                out[i] = complete_box_iou(here, boxes).gather(0, found.label[i].unsqueeze(0))[0] < 0.3
            else:
                out[i] = box_iou(here, boxes).amax(0) < 0.3
    return out


@pytest.mark.parametrize(
    ("scope", "p"), [("background", 0.1), ("background", 1.0), ("matched", 0.75), ("literal", 0.75), ("literal", 1.0)]
)
def test_what_is_dropped_and_counted(scope: str, p: float) -> None:
    raw, batch = predictions(3), labels(5, 0, 9)
    state = matched(raw, batch)[0].state
    negatives = low(raw, batch, own=scope == "literal") & (state == (NEGATIVE if scope == "background" else POSITIVE))
    loss = criterion(obj_drop=p, drop_scope=scope)
    value = loss(raw, batch)[0].sum()
    counted = counts(loss)
    assert counted["negatives"] == int(negatives.sum()) > 10
    assert counted["obj_dropped"] == int(p * int(negatives.sum()))
    grad = gradients(value, raw)[0]
    gone = grad.eq(0).all(-1) & (state != IGNORE)
    if scope == "literal":  # nothing is gone: what was a match is trained as background
        turned = (grad > 0).all(-1) & (state == POSITIVE)
        assert (gone.sum(), turned.sum()) == (0, counted["obj_dropped"])
        assert not (turned & ~negatives).any()
    else:
        assert gone.sum() == counted["obj_dropped"]
        assert not (gone & ~negatives).any()


def test_box_drop_leaves_the_classification_loss_alone() -> None:
    raw, batch = predictions(3), labels(5, 0, 9)
    loss = criterion(box_drop=0.5)
    value = loss(raw, batch)[0]
    plain = criterion()(raw, batch)[0]
    assert value[0] == plain[0]
    box, before = gradients(value[1], raw)[1], gradients(plain[1], raw)[1]
    gone = before.ne(0).any(-1) & box.eq(0).all(-1)
    assert gone.sum() == counts(loss)["box_dropped"] == counts(loss)["low_iou_matches"] // 2 > 5
    assert not (gone & ~low(raw, batch)).any()


def test_the_drop_divisors() -> None:
    """In scope `matched` what is dropped were positives, so `kept` divides by fewer."""
    raw, batch = predictions(3), labels(5, 4, 9)
    host, kept = (
        run(raw, batch, obj_drop=1, drop_scope="matched", drop_divisor=x, divisor="batch")[0][0]
        for x in ("host", "kept")
    )
    positive = matched(raw, batch)[0].state == POSITIVE
    left = positive & ~low(raw, batch)
    torch.testing.assert_close(kept / host, (positive.sum() / left.sum()).double())


def test_the_drop_divisors_of_the_box_loss() -> None:
    raw, batch = predictions(3), labels(5, 4, 9)
    positive = matched(raw, batch)[0].state == POSITIVE
    left = positive & ~low(raw, batch)
    assert 0 < left.sum() < positive.sum()
    host, kept = (run(raw, batch, box_drop=1, drop_divisor=x, divisor="batch")[0][1] for x in ("host", "kept"))
    torch.testing.assert_close(kept / host, (positive.sum() / left.sum()).double())


def test_what_becomes_background_is_a_negative_to_the_other_loss() -> None:
    """Of negatives that all are confused, and weigh nothing, nothing is left."""
    raw, batch = predictions(3), labels(5, 4, 9)
    positive = matched(raw, batch)[0].state == POSITIVE
    gone = positive & low(raw, batch, own=True)
    assert gone.any()
    grad = run(raw, batch, loss="brl+drop", obj_drop=1, drop_scope="literal", brl_iou=1, brl_weight=0)[1]
    assert grad[gone].eq(0).all()
    assert grad[positive & ~gone].ne(0).any(-1).all()


def test_a_pair_drops_from_the_other_loss() -> None:
    raw, batch = predictions(2), labels(5, 9)
    loss = criterion(loss="brl+drop", obj_drop=0.5)
    grad = gradients(loss(raw, batch)[0].sum() / 2, raw)[0]
    plain = run(raw, batch, loss="brl")[1]
    gone = grad.eq(0).all(-1) & plain.ne(0).any(-1)
    assert gone.sum() == counts(loss)["obj_dropped"] > 0
    torch.testing.assert_close(grad[~gone], plain[~gone])


def test_nothing_is_dropped_in_validation() -> None:
    raw, batch = predictions(2), labels(5, 9)
    loss = criterion(obj_drop=0.9)
    with torch.no_grad():
        assert torch.equal(loss(raw, batch)[0], criterion()(raw, batch)[0])
    assert counts(loss) == {}


# Anchors and inference ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 96), (96, 96), (320, 416)])
def test_anchors_are_torchvisions(size: tuple[int, int]) -> None:
    """Sizes that the coarsest levels do not divide too: 320 px are 2.5 cells of 128."""
    sizes = ((32.0, 40.0), (64.0, 80.0), (128.0, 161.0))
    maps = [torch.zeros(2, 8, -(-size[0] // s), -(-size[1] // s)) for s in (8, 64, 128)]
    anchors, counts = Anchors(sizes, ((0.5, 1.0, 2.0),) * 3)(maps, size)
    image = ImageList(torch.zeros(2, 3, *size), [size] * 2)
    expected = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 3)(image, maps)[0]
    assert torch.equal(anchors, expected)
    assert counts == [x.shape[-2] * x.shape[-1] * 6 for x in maps]


def test_anchors_made_in_inference_can_be_trained_on() -> None:
    anchors = Anchors(((7.0,),), ((1.0,),))
    with torch.inference_mode():
        anchors([torch.zeros(3, 5)], (24, 40))
    found = anchors([torch.zeros(3, 5)], (24, 40))[0]
    assert not found.is_inference()


class Body(nn.Module):
    """The first two parts of a model as torchvision's RetinaNet wants its backbone."""

    def __init__(self, body: nn.Module, neck: nn.Module, channels: int) -> None:
        super().__init__()
        self.body, self.neck, self.out_channels = body, neck, channels

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        found: OrderedDict[str, Tensor] = self.neck(self.body(x))
        return found


@pytest.mark.parametrize("size", [(128, 128), (160, 224)])
def test_inference_equals_torchvisions_own_retinanet(size: tuple[int, int]) -> None:
    """The same layers in torchvision's model; our head's pairs after its thresholds and its NMS."""
    torch.manual_seed(0)
    ours = TorchvisionModel("retinanet_tiny", nc=CLASSES, verbose=False).double().eval()
    body, neck, head = ours.model
    nn.init.normal_(head.layers.classification_head.cls_logits.weight, std=0.3)  # scores above the threshold and below
    nn.init.normal_(head.layers.regression_head.bbox_reg.weight, std=0.05)
    whole = RetinaNet(
        Body(body, neck, 64), CLASSES, image_mean=[0, 0, 0], image_std=[1, 1, 1], head=head.layers,
        anchor_generator=AnchorGenerator(head.anchors_of.sizes, head.anchors_of.ratios),
        min_size=min(size), max_size=max(size), topk_candidates=head.most, score_thresh=0.05,
    ).eval()  # fmt: skip
    images = torch.rand(2, 3, *size, dtype=torch.float64)  # whose order of scores does not depend on rounding
    with torch.no_grad():
        expected = whole(list(images))
        decoded = ours(images)[0].transpose(1, 2)
    for row, other in zip(decoded, expected, strict=True):
        scores, classes = row[:, 4:].max(1)
        kept = scores > 0.05
        centre, half = row[:, :2], row[:, 2:4] / 2
        boxes = torch.cat((centre - half, centre + half), 1)[kept]
        torch.testing.assert_close(boxes, clip_boxes_to_image(boxes, size))
        scores, classes = scores[kept], classes[kept]
        chosen = batched_nms(boxes, scores, classes, 0.5)[:300]
        assert len(other["boxes"]) > 20
        assert torch.equal(classes[chosen], other["labels"])
        torch.testing.assert_close(scores[chosen], other["scores"])
        torch.testing.assert_close(boxes[chosen], other["boxes"], rtol=1e-4, atol=1e-3)
