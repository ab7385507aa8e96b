from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
import torch
from objectives import recipe_of
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils.loss import v8DetectionLoss
from ultralytics.utils.metrics import bbox_iou
from yolo_heads import CLASSES, SIZE, Branch, assigned, batch, build, hosts, leaves, overlaps, parts, predictions, reach

import rebalance.hosts.ultralytics.criterion as module
from rebalance.hosts.host import begin_epoch, branches, counts
from rebalance.hosts.ultralytics.criterion import DetectionCriterion
from rebalance.hosts.ultralytics.model import criterion_of
from rebalance.match.candidates import candidate_state
from rebalance.methods.drop import Drop
from rebalance.methods.method import Choice, Predictions, Run
from rebalance.recipe import Recipe

# With and without distances in bins, with one branch and with two
MODELS = ("yolov8n.yaml", "yolov10n.yaml", "yolo11n.yaml", "yolo26n.yaml")
IMAGES = 2


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> DetectionModel:
    return build(request.param)


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

ZERO = {"obj_drop": 0, "box_drop": 0, "drop_scope": "literal"}
WARMUP = {"obj_drop": 0.5, "box_drop": 0.5, "drop_warmup": 1}


@pytest.mark.parametrize(
    ("name", "flags", "count"),
    [
        ("yolov8n.yaml", ZERO, 7), ("yolov8n.yaml", WARMUP, 0), ("yolov10n.yaml", {}, 0), ("yolo11n.yaml", ZERO, 1),
        ("yolo26n.yaml", {}, 1), ("yolo26n.yaml", WARMUP, 7),
    ],
)  # fmt: skip
def test_nothing_to_drop_is_the_host_to_the_bit(name: str, flags: dict[str, Any], count: int) -> None:
    model = build(name)
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
    ("name", "flags"),
    [
        ("yolov8n.yaml", {"obj_drop": 0.75}),
        ("yolov10n.yaml", {"box_drop": 0.75}),
        ("yolo26n.yaml", {"obj_drop": 1.0, "drop_scope": "literal"}),
    ],
)
def test_validation_is_the_host_s_and_leaves_no_trace(name: str, flags: dict[str, Any]) -> None:
    model = build(name)
    criterion, undisturbed, preds = ours(model, **flags), ours(model, **flags), predictions(model)
    run(criterion, model, batch())  # what the last step dropped must not stay dropped
    counted = counts(criterion)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            expected = model.init_criterion()((None, preds), batch())[0]
            for _ in range(2):
                assert torch.equal(criterion((None, preds), batch())[0], expected)
    assert counts(criterion) == counted
    run(undisturbed, model, batch())
    assert_bit_equal(run(criterion, model, batch()), run(undisturbed, model, batch()))  # the second step's draw
    begin_epoch(criterion, 1)
    assert counts(criterion) == {}


# Slow reference -------------------------------------------------------------------------------------------------------


class Reference:
    """One branch's loss by loops over images, predictions and classes, on the host's own assignment.

    Only the random order comes from the product.
    """

    def __init__(self, host: v8DetectionLoss, preds: Branch, labels: Any, recipe: Recipe) -> None:
        self.host, self.recipe, self.reg_max = host, recipe, host.reg_max
        self.boxes, self.scores = (preds[k].detach().double().requires_grad_() for k in ("boxes", "scores"))
        found = assigned(host, preds, labels)
        self.points, self.strides, self.matched = found.points, found.strides, found.positive
        self.target_boxes, self.target_scores = found.target_boxes, found.scores
        self.overlap, self.own = overlaps(found.boxes, labels), found.own

    def run(self, stream: int) -> tuple[Tensor, list[Tensor]]:
        flags, hyp = self.recipe, self.host.hyp
        first = Run(flags.site, stream=stream)
        first.step = 1
        confidence = self.scores.detach().transpose(1, 2).sigmoid().amax(2).float()
        given = Predictions(candidate_state(self.matched), self.overlap.lt, lambda: confidence, lambda: self.own)
        choice, none = flags.of(Drop).choose(given, first), torch.zeros_like(self.matched)
        assert choice is not None
        self.obj, self.box = (none if x is None else x for x in (choice.gone, choice.box))
        weights = torch.ones(CLASSES) if self.host.class_weights is None else self.host.class_weights.flatten()

        lcls = lbox = ldfl = torch.zeros((), dtype=torch.float64)
        all_scores = float(self.target_scores.sum())
        left_cls = left_box = 0.0
        sides = reach(self.boxes, self.reg_max)
        decoded = torch.cat((self.points - sides[..., :2], self.points + sides[..., 2:]), 2)
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
    preds, recipe = predictions(model), recipe_of({"loss": "drop", **flags})
    found = [Reference(host, part, labels, recipe) for host, part in zip(hosts(model), parts(preds), strict=True)]
    results = [reference.run(stream) for stream, reference in enumerate(found)]
    gains = (0.8, 0.2) if len(found) == 2 else (1,)
    vector = torch.stack([gain * result[0] for gain, result in zip(gains, results, strict=True)]).sum(0)
    gradients = [gain * g for gain, result in zip(gains, results, strict=True) for g in result[1]]
    return vector, gradients, found


RATES = [
    {"obj_drop": 0.5},
    {"box_drop": 0.5, "neg_iou": 0.6},
    {"obj_drop": 0.29, "box_drop": 0.5, "drop_select": "confident"},
    {"obj_drop": 1.0, "box_drop": 1.0, "neg_iou": 0.6},
]


SCOPES = ("background", "matched", "literal")
# Every scope with every rate; each pair of these with divisors and models is among them
CASES = [
    (("yolov8n.yaml", "yolo26n.yaml")[(r + s) % 2], rates, scope, ("kept", "host")[(r // 2 + s) % 2])
    for r, rates in enumerate(RATES)
    for s, scope in enumerate(SCOPES)
]


@pytest.mark.parametrize(("name", "rates", "scope", "divisor"), CASES)
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


@pytest.mark.parametrize("loss", ["drop", "focal+drop", "brl+drop"])
def test_what_left_may_be_left_out_or_made_0(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build("yolov8n.yaml")
    flags = {"loss": loss, "obj_drop": 0.5}
    monkeypatch.setattr(module, "LANES", 1)  # however many there are
    left_out = run(ours(model, **flags), model, batch())
    monkeypatch.setattr(Choice, "stays", lambda _: None)
    made_0 = run(ours(model, **flags), model, batch())
    torch.testing.assert_close(left_out[0], made_0[0])
    for a, b in zip(left_out[2], made_0[2], strict=True):
        assert torch.equal(a == 0, b == 0)
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-9)  # the last bit of a few


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
    dropped = reference.matched & (reference.own < 0.3)
    assert 3 < dropped.sum() != (reference.matched & (reference.overlap < 0.3)).sum()
    total = reference.target_scores.sum().clamp(min=1)
    background = predictions(model)["scores"].detach().sigmoid() * model.args.cls / total * IMAGES
    torch.testing.assert_close(scores.transpose(1, 2)[dropped], background.transpose(1, 2)[dropped])


@pytest.mark.parametrize("name", ["yolov8n.yaml", "yolo26n.yaml"])
def test_each_rate_acts_on_its_own_loss(name: str) -> None:
    model = build(name)
    plain = run(model.init_criterion(), model, batch())
    obj = run(ours(model, obj_drop=0.75), model, batch())
    box = run(ours(model, box_drop=1.0, neg_iou=0.9), model, batch())
    for i, (a, b, c) in enumerate(zip(plain[2], obj[2], box[2], strict=True)):
        is_scores = i % 2 == 1
        assert torch.equal(a, b) != is_scores
        assert torch.equal(a, c) == is_scores


def test_branches_draw_differently_and_their_counts_add_up() -> None:
    model = build("yolo26n.yaml")
    criterion = ours(model, obj_drop=0.5, box_drop=0.5)
    assert counts(criterion) == {}
    preds = predictions(model)
    preds["one2one"] = preds["one2many"]  # of the negatives of both, those that only one has dropped
    loss, _ = criterion(preds, batch())
    assert not torch.equal(*(branch.objective.run.generator(loss.device).get_state() for branch in branches(criterion)))
    found = counts(criterion)
    assert list(found) == ["negatives", "obj_dropped", "low_iou_matches", "box_dropped"]
    each = []
    for host, part in zip(hosts(model), parts(preds), strict=True):
        given = assigned(host, part, batch())
        low = overlaps(given.boxes, batch()) < 0.3
        each.append([int((low & ~given.positive).sum()), int((low & given.positive).sum())])
    (negatives, low), (others, other_low) = each
    expected = [negatives + others, negatives // 2 + others // 2, low + other_low, low // 2 + other_low // 2]
    assert list(found.values()) == expected
    assert all(value > 0 for value in expected)
    criterion(preds, batch())
    assert list(counts(criterion).values()) == [2 * value for value in expected]


@pytest.mark.parametrize("name", ["yolov8n.yaml", "yolo26n.yaml"])
def test_each_step_draws_afresh_and_an_epoch_repeats(name: str) -> None:
    model = build(name)
    criterion = ours(model, obj_drop=0.5)
    first, second = run(criterion, model, batch()), run(criterion, model, batch())
    assert not torch.equal(first[0], second[0])
    begin_epoch(criterion, 0)
    assert_bit_equal(run(criterion, model, batch()), first)
    assert_bit_equal(run(criterion, model, batch()), second)
    begin_epoch(criterion, 1)
    assert not torch.equal(run(criterion, model, batch())[0], first[0])
    assert_bit_equal(run(ours(model, obj_drop=0.5), model, batch()), first)
    assert not torch.equal(run(ours(model, seed=1, obj_drop=0.5), model, batch())[0], first[0])


@pytest.mark.parametrize("count", [0, 1, 7])
@pytest.mark.parametrize("index", range(4))
def test_finite_whatever_is_left(index: int, count: int) -> None:
    model, p, scope = build(MODELS[index]), (0.5, 1.0)[index % 2], SCOPES[(index + count) % 3]
    loss, items, gradients = run(ours(model, obj_drop=p, box_drop=p, drop_scope=scope), model, batch(count))
    assert loss.isfinite().all()
    assert all(v.isfinite() for v in items.values())
    assert all(g.isfinite().all() for g in gradients)


@pytest.mark.parametrize(("name", "dtype"), zip(MODELS, [torch.bfloat16, torch.float16] * 2, strict=True))
def test_half_precision_predictions(name: str, dtype: torch.dtype) -> None:
    model = build(name)
    preds = predictions(model, dtype=dtype)
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
