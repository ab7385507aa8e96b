from __future__ import annotations

from copy import deepcopy
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.loss import E2ELoss, v8DetectionLoss
from ultralytics.utils.metrics import bbox_iou
from ultralytics.utils.tal import make_anchors

from rebalance.hosts.ultralytics.criterion import DetectionCriterion, build_criterion, counts, droppings
from rebalance.methods.drop import Dropping
from objectives import recipe_of
from rebalance.settings import TrainFlags

MODELS = ("yolov8n.yaml", "yolov10n.yaml", "yolo11n.yaml", "yolo26n.yaml")
SIZE, IMAGES, CLASSES = 64, 2, 2
Branch = dict[str, Any]


@lru_cache
def build(name: str) -> DetectionModel:
    torch.manual_seed(0)
    model = DetectionModel(name, nc=CLASSES, verbose=False).train()
    model.args = get_cfg(overrides={"imgsz": SIZE, "epochs": 5})
    return model


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> DetectionModel:
    return build(request.param)


def batch(count: int = 7, seed: int = 0) -> dict[str, Tensor]:
    """Labels of both images, of 13 to 45 pixels."""
    g = torch.Generator().manual_seed(seed)
    image = (torch.arange(count) * IMAGES // max(count, 1)).float()
    box = torch.cat((torch.rand(count, 2, generator=g) * 0.6 + 0.2, torch.rand(count, 2, generator=g) * 0.5 + 0.2), 1)
    return {"batch_idx": image, "cls": torch.randint(CLASSES, (count, 1), generator=g).float(), "bboxes": box}


def branch(model: DetectionModel, seed: int = 0) -> Branch:
    """Predictions of one branch, whose boxes reach about 1.5 cells to every side, some near a label and others not."""
    g, reg_max = torch.Generator().manual_seed(seed), model.model[-1].reg_max
    grids = [SIZE // s for s in (8, 16, 32)]
    cells = sum(n * n for n in grids)
    boxes = torch.randn(IMAGES, 4, reg_max, cells, generator=g)
    boxes = boxes * 0.7 - torch.arange(reg_max).view(-1, 1) * 0.5 if reg_max > 1 else boxes.abs() + 0.7
    return {
        "boxes": boxes.flatten(1, 2).requires_grad_(),
        "scores": torch.randn(IMAGES, CLASSES, cells, generator=g).requires_grad_(),
        "feats": [torch.zeros(IMAGES, 1, n, n) for n in grids],
    }


def predictions(model: DetectionModel, seed: int = 0) -> Branch:
    """As the model's head returns them in training."""
    if getattr(model.model[-1], "one2one_cv2", None) is None:
        return branch(model, seed)
    return {"one2many": branch(model, seed), "one2one": branch(model, seed + 100)}


def leaves(preds: Branch) -> list[Tensor]:
    parts = [preds] if "boxes" in preds else [preds["one2many"], preds["one2one"]]
    return [part[k] for part in parts for k in ("boxes", "scores")]


def ours(model: DetectionModel, seed: int = 0, **flags: Any) -> Any:
    return criterion_of(model, recipe_of({"loss": "drop", **flags}), seed)


def run(
    criterion: Any, model: DetectionModel, labels: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor], list[Tensor]]:
    """Loss vector, items, and gradients in the predictions."""
    preds = predictions(model)
    loss, items = criterion(preds, {k: v.clone() for k, v in labels.items()})
    gradients = torch.autograd.grad(loss.sum(), leaves(preds), materialize_grads=True)
    return loss.detach(), items, list(gradients)


def assert_bit_equal(a: Any, b: Any) -> None:
    assert torch.equal(a[0], b[0])
    assert a[1].keys() == b[1].keys()
    assert all(torch.equal(a[1][k], b[1][k]) for k in a[1])
    assert all(torch.equal(x, y) for x, y in zip(a[2], b[2], strict=True))


# Nothing dropped ------------------------------------------------------------------------------------------------------

OFF = [
    {},
    {"obj_drop": 0, "box_drop": 0, "drop_scope": "literal"},
    {"obj_drop": 0.5, "box_drop": 0.5, "drop_warmup": 1},
]


@pytest.mark.parametrize("flags", OFF, ids=str)
@pytest.mark.parametrize("count", [0, 1, 7])
def test_nothing_to_drop_is_the_host_to_the_bit(model: DetectionModel, count: int, flags: dict[str, Any]) -> None:
    assert_bit_equal(run(ours(model, **flags), model, batch(count)), run(model.init_criterion(), model, batch(count)))


def test_a_whole_step_is_the_host_s_to_the_bit(model: DetectionModel) -> None:
    images = torch.rand(IMAGES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    found = []
    for criterion in (model.init_criterion(), ours(model)):
        model.zero_grad()
        loss, _ = criterion(model(images), batch())
        loss.sum().backward()
        found.append((loss.detach(), [p.grad.clone() for p in model.parameters() if p.grad is not None]))
    model.zero_grad()
    assert torch.equal(found[0][0], found[1][0])
    assert len(found[0][1]) > 50
    assert all(torch.equal(a, b) for a, b in zip(found[0][1], found[1][1], strict=True))


@pytest.mark.parametrize(
    "flags", [{"obj_drop": 0.75}, {"box_drop": 0.75}, {"obj_drop": 1.0, "drop_scope": "literal"}], ids=str
)
def test_validation_is_the_host_s_and_does_not_change(model: DetectionModel, flags: dict[str, Any]) -> None:
    criterion, preds = ours(model, **flags), predictions(model)
    run(criterion, model, batch())  # what the last step dropped must not stay dropped
    for dropping in droppings(criterion):
        dropping.begin_epoch(1)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            expected = model.init_criterion()((None, preds), batch())[0]
            for _ in range(2):
                assert torch.equal(criterion((None, preds), batch())[0], expected)
    assert counts(criterion) == {}


# Slow reference -------------------------------------------------------------------------------------------------------


class Reference:
    """One branch's loss by loops over images, predictions and classes, on the host's own assignment.

    Only the random order comes from the product.
    """

    def __init__(
        self, model: DetectionModel, host: v8DetectionLoss, preds: Branch, labels: Any, flags: TrainFlags
    ) -> None:
        self.host, self.flags, self.reg_max = host, flags, model.model[-1].reg_max
        self.boxes, self.scores = (preds[k].detach().double().requires_grad_() for k in ("boxes", "scores"))
        points, strides = make_anchors(preds["feats"], host.stride, 0.5)
        targets = torch.cat((labels["batch_idx"].view(-1, 1), labels["cls"], labels["bboxes"]), 1)
        targets = host.preprocess(targets, IMAGES, torch.full((4,), float(SIZE)))
        gt_labels, gt_boxes = targets.split((1, 4), 2)
        decoded = self.decode(points).detach()
        pixels = (decoded * strides).float()
        _, self.target_boxes, self.target_scores, matched, _ = host.assigner(
            preds["scores"].detach().transpose(1, 2).sigmoid(), pixels, points * strides, gt_labels, gt_boxes,
            gt_boxes.sum(2, keepdim=True) > 0,
        )  # fmt: skip
        self.points, self.strides, self.matched = points, strides, matched.bool()
        self.overlap = self.slow_overlap(pixels, gt_boxes)

    def decode(self, points: Tensor) -> Tensor:
        """(B, N, 4) corners in cells of the level."""
        reach = self.boxes.transpose(1, 2)
        if self.reg_max > 1:
            bins = torch.arange(self.reg_max, dtype=torch.float64)
            reach = (reach.unflatten(2, (4, self.reg_max)).softmax(3) * bins).sum(3)
        return torch.cat((points - reach[..., :2], points + reach[..., 2:]), 2)

    @staticmethod
    def slow_overlap(pixels: Tensor, gt_boxes: Tensor) -> Tensor:
        overlap = torch.zeros(pixels.shape[:2])
        for image in range(len(pixels)):
            for n, (x1, y1, x2, y2) in enumerate(pixels[image].tolist()):
                for g1, h1, g2, h2 in gt_boxes[image].tolist():
                    inter = max(min(x2, g2) - max(x1, g1), 0) * max(min(y2, h2) - max(y1, h1), 0)
                    union = (x2 - x1) * (y2 - y1) + (g2 - g1) * (h2 - h1) - inter
                    overlap[image, n] = max(float(overlap[image, n]), inter / union)
        return overlap

    def run(self, stream: int) -> tuple[Tensor, list[Tensor]]:
        flags, hyp = self.flags, self.host.hyp
        pairs = torch.arange(self.matched.numel()).view_as(self.matched).where(self.matched, -1)
        confidence = self.scores.detach().transpose(1, 2).sigmoid().amax(2).float()
        self.obj, self.box = Dropping(flags, seed=0, stream=stream).draw(self.matched, self.overlap, confidence, pairs)
        weights = torch.ones(CLASSES) if self.host.class_weights is None else self.host.class_weights.flatten()

        lcls = lbox = ldfl = torch.zeros((), dtype=torch.float64)
        all_scores = float(self.target_scores.sum())
        left_cls = left_box = 0.0
        decoded = self.decode(self.points)
        for image in range(IMAGES):
            for n in range(self.matched.shape[1]):
                scores = self.target_scores[image, n]
                dropped = bool(self.obj[image, n])
                left_cls += 0 if dropped else float(scores.sum())
                if not dropped or flags["drop_scope"] == "literal":
                    for c in range(CLASSES):
                        y = torch.zeros(()).double() if dropped else scores[c].double()
                        term = binary_cross_entropy_with_logits(self.scores[image, c, n], y)
                        lcls = lcls + weights[c].double() * term
                if self.matched[image, n] and not self.box[image, n]:
                    weight = scores.sum().double()
                    left_box += float(weight)
                    stride = float(self.strides[n])
                    target = (self.target_boxes[image, n] / stride).double()
                    iou = bbox_iou(decoded[image, n], target, xywh=False, CIoU=True).squeeze()
                    lbox = lbox + (1 - iou) * weight
                    ldfl = ldfl + self.distance(image, n, target, stride) * weight
        cls_divisor = (
            left_cls if flags["drop_divisor"] == "kept" and flags["drop_scope"] != "background" else all_scores
        )
        box_divisor = left_box if flags["drop_divisor"] == "kept" else all_scores
        vector = torch.stack(
            (
                hyp.box * lbox / max(box_divisor, 1),
                hyp.cls * lcls / max(cls_divisor, 1),
                hyp.dfl * ldfl / max(box_divisor, 1),
            )
        )
        gradients = torch.autograd.grad(vector.sum() * IMAGES, [self.boxes, self.scores], materialize_grads=True)
        return vector.detach().float() * IMAGES, [g.float() for g in gradients]

    def distance(self, image: int, n: int, target: Tensor, stride: float) -> Tensor:
        """DFL: cross-entropy of the two bins around each side's distance; without bins, L1 in parts of the image."""
        point = self.points[n].double()
        reach = torch.cat((point - target[:2], target[2:] - point))
        logits = self.boxes[image, :, n].unflatten(0, (4, self.reg_max))
        if self.reg_max == 1:
            return (logits.squeeze(1) - reach).abs().mean() * stride / SIZE
        parts = []
        for side in range(4):
            t = min(max(float(reach[side]), 0), self.reg_max - 1 - 0.01)
            lower, log_p = int(t), logits[side].log_softmax(0)
            parts.append(-(lower + 1 - t) * log_p[lower] - (t - lower) * log_p[lower + 1])
        return torch.stack(parts).mean()


def slow(model: DetectionModel, labels: Any, **flags: Any) -> tuple[Tensor, list[Tensor], list[Reference]]:
    """The reference of a whole criterion, and of each branch."""
    preds, host = predictions(model), model.init_criterion()
    given = recipe_of({"loss": "drop", **flags})
    if not isinstance(host, E2ELoss):
        reference = Reference(model, host, preds, labels, given)
        return *reference.run(0), [reference]
    branches = [
        Reference(model, part, preds[name], labels, given)
        for name, part in (("one2many", host.one2many), ("one2one", host.one2one))
    ]
    many, one = (reference.run(stream) for stream, reference in enumerate(branches))
    gradients = [g * 0.8 for g in many[1]] + [g * 0.2 for g in one[1]]
    return many[0] * 0.8 + one[0] * 0.2, gradients, branches


RATES = [
    {"obj_drop": 0.5},
    {"box_drop": 0.5, "neg_iou": 0.6},
    {"obj_drop": 0.29, "box_drop": 0.5, "drop_select": "confident"},
    {"obj_drop": 1.0, "box_drop": 1.0, "neg_iou": 0.6},
]


@pytest.mark.parametrize("name", ["yolov8n.yaml", "yolo26n.yaml"])
@pytest.mark.parametrize("divisor", ["kept", "host"])
@pytest.mark.parametrize("scope", ["background", "matched", "literal"])
@pytest.mark.parametrize("rates", RATES, ids=str)
def test_equals_the_slow_reference(name: str, rates: dict[str, Any], scope: str, divisor: str) -> None:
    model = build(name)
    flags = {**rates, "drop_scope": scope, "drop_divisor": divisor}
    expected, gradients, branches = slow(model, batch(), **flags)
    low = branches[0].overlap < 0.3
    assert (low & branches[0].matched).sum() > 3  # the sample has what is to be dropped
    assert (~low & branches[0].matched).sum() > 3
    found = run(ours(model, **flags), model, batch())
    torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-6)
    for a, b in zip(found[2], gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def test_equals_the_slow_reference_with_class_weights() -> None:
    model = deepcopy(build("yolov8n.yaml"))
    model.class_weights = torch.tensor([0.5, 1.5])
    for flags in ({"obj_drop": 0.5}, {"obj_drop": 0.5, "drop_scope": "literal"}):
        expected, gradients, _ = slow(model, batch(), **flags)
        found = run(ours(model, **flags), model, batch())
        torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found[2][1], gradients[1], rtol=1e-3, atol=1e-6)
    assert not torch.equal(found[0], run(ours(build("yolov8n.yaml"), **flags), model, batch())[0])
    assert_bit_equal(run(ours(model), model, batch()), run(v8DetectionLoss(model), model, batch()))


# Properties -----------------------------------------------------------------------------------------------------------


def test_exactly_p_of_the_negatives_have_no_gradient_in_any_class() -> None:
    model = build("yolov8n.yaml")
    _, _, (reference,) = slow(model, batch(), obj_drop=0.29)
    _, _, (_, scores) = run(ours(model, obj_drop=0.29), model, batch())
    still = scores.eq(0).all(1)
    negatives = ~reference.matched & (reference.overlap < 0.3)
    assert not (still & ~negatives).any()
    assert int(still.sum()) == 29 * int(negatives.sum()) // 100
    assert not scores.transpose(1, 2)[~still].eq(0).any()


def test_literal_trains_dropped_matches_as_background() -> None:
    model = build("yolov8n.yaml")
    flags = {"obj_drop": 1.0, "drop_scope": "literal", "drop_divisor": "host"}
    _, _, (reference,) = slow(model, batch(), **flags)
    _, _, (_, scores) = run(ours(model, **flags), model, batch())
    dropped = reference.matched & (reference.overlap < 0.3)
    assert dropped.sum() > 3
    total = reference.target_scores.sum().clamp(min=1)
    background = branch(model)["scores"].detach().sigmoid() * model.args.cls / total * IMAGES
    torch.testing.assert_close(scores.transpose(1, 2)[dropped], background.transpose(1, 2)[dropped])


def test_each_rate_acts_on_its_own_loss(model: DetectionModel) -> None:
    plain = run(model.init_criterion(), model, batch())
    obj = run(ours(model, obj_drop=0.75), model, batch())
    box = run(ours(model, box_drop=1.0, neg_iou=0.9), model, batch())
    for i, (a, b, c) in enumerate(zip(plain[2], obj[2], box[2], strict=True)):
        is_scores = i % 2 == 1
        assert torch.equal(a, b) != is_scores
        assert torch.equal(a, c) == is_scores


def test_branches_draw_differently_and_counts_add_up() -> None:
    model = build("yolo26n.yaml")
    criterion = ours(model, obj_drop=0.5, box_drop=0.5)
    many, one = droppings(criterion)
    assert many.key != one.key
    assert counts(criterion) == {}
    run(criterion, model, batch())
    assert many.counts is not None
    assert one.counts is not None
    found = counts(criterion)
    assert list(found) == ["negatives", "obj_dropped", "low_iou_matches", "box_dropped"]
    assert list(found.values()) == (many.counts + one.counts).tolist()
    assert all(v > 0 for v in found.values())
    assert found["obj_dropped"] == sum(int(d.counts[0]) // 2 for d in (many, one) if d.counts is not None)


def test_each_step_draws_afresh_and_an_epoch_repeats(model: DetectionModel) -> None:
    criterion = ours(model, obj_drop=0.5)
    first, second = run(criterion, model, batch()), run(criterion, model, batch())
    assert not torch.equal(first[0], second[0])
    for dropping in droppings(criterion):
        dropping.begin_epoch(0)
    assert_bit_equal(run(criterion, model, batch()), first)
    assert_bit_equal(run(ours(model, obj_drop=0.5), model, batch()), first)
    assert not torch.equal(run(ours(model, seed=1, obj_drop=0.5), model, batch())[0], first[0])


@pytest.mark.parametrize("count", [0, 1, 7])
@pytest.mark.parametrize("p", [0.5, 1.0])
@pytest.mark.parametrize("scope", ["background", "matched", "literal"])
def test_finite_whatever_is_left(model: DetectionModel, scope: str, p: float, count: int) -> None:
    loss, items, gradients = run(ours(model, obj_drop=p, box_drop=p, drop_scope=scope), model, batch(count))
    assert loss.isfinite().all()
    assert all(v.isfinite() for v in items.values())
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_predictions(model: DetectionModel, dtype: torch.dtype) -> None:
    preds = predictions(model)
    for part in [preds] if "boxes" in preds else preds.values():
        part.update({k: part[k].detach().to(dtype).requires_grad_() for k in ("boxes", "scores")})
        part["feats"] = [x.to(dtype) for x in part["feats"]]
    criterion = ours(model, obj_drop=0.5, box_drop=0.5)
    with torch.autocast("cpu", dtype):
        loss, _ = criterion(preds, batch())
    assert loss.isfinite().all()
    assert all(g.isfinite().all() for g in torch.autograd.grad(loss.sum(), leaves(preds)))


def test_a_copy_of_the_model_has_a_criterion_of_its_own() -> None:
    model = deepcopy(build("yolov8n.yaml"))
    model.criterion = ours(model, obj_drop=0.5)
    names = set(model.state_dict())
    copy = deepcopy(model)
    assert isinstance(copy.criterion, DetectionCriterion)
    run(copy.criterion, model, batch())
    assert counts(copy.criterion)
    assert counts(model.criterion) == {}  # what the copy does leaves no trace here
    model.criterion = None
    assert set(model.state_dict()) == names  # and a criterion adds nothing to the state dict
