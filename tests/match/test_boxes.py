from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.models.detection._utils import BoxCoder

from rebalance.match import boxes
from rebalance.match.boxes import below, ciou, decode_deltas, encode_deltas, inside, max_iou, xywh_to_xyxy


def random_boxes(*shape: int, seed: int = 0) -> Tensor:
    """(…, 4) corners within a square of 100 pixels, sides 1 to 61."""
    g = torch.Generator().manual_seed(seed)
    first = torch.rand(*shape, 2, generator=g) * 60
    return torch.cat((first, first + 1 + torch.rand(*shape, 2, generator=g) * 60), -1)


def slow_iou(a: list[float], b: list[float]) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    inter = max(width, 0.0) * max(height, 0.0)
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def slow_max_iou(candidates: Tensor, labels: Tensor) -> Tensor:
    """One pair at a time; padding (all zeros) is no label."""
    out = torch.zeros(candidates.shape[:2])
    for image, (rows, padded) in enumerate(zip(candidates.tolist(), labels.tolist(), strict=True)):
        real = [box for box in padded if any(box)]
        for row, box in enumerate(rows):
            out[image, row] = max((slow_iou(box, label) for label in real), default=0.0)
    return out


def test_xywh_to_xyxy_by_hand() -> None:
    assert xywh_to_xyxy(torch.tensor([[5.0, 10.0, 4.0, 6.0]])).tolist() == [[3.0, 7.0, 7.0, 13.0]]


def test_max_iou_by_hand() -> None:
    # 10 x 10 against 10 x 10 shifted by half a side: 50 / 150; against a quarter of it: 25 / 100; apart: 0
    candidates = torch.tensor([[[0.0, 0, 10, 10], [20, 20, 30, 30]]])
    assert max_iou(candidates, torch.tensor([[[5.0, 0, 15, 10]]]))[0].tolist() == pytest.approx([1 / 3, 0])
    assert max_iou(candidates, torch.tensor([[[0.0, 0, 5, 5], [5, 0, 15, 10]]]))[0, 0].item() == pytest.approx(1 / 3)
    assert max_iou(candidates, candidates)[0].tolist() == [1, 1]


@pytest.mark.parametrize(("images", "candidates", "labels"), [(1, 1, 1), (3, 17, 5), (2, 40, 1), (4, 3, 9)])
def test_max_iou_equals_the_slow_loop(images: int, candidates: int, labels: int) -> None:
    a, b = random_boxes(images, candidates), random_boxes(images, labels, seed=1)
    torch.testing.assert_close(max_iou(a, b), slow_max_iou(a, b))
    b[0, labels // 2 :] = 0  # images with fewer labels are padded
    torch.testing.assert_close(max_iou(a, b), slow_max_iou(a, b))


def test_max_iou_of_padding_and_of_candidates_without_area_is_zero() -> None:
    a = random_boxes(2, 6)
    a[:, 0] = 0
    a[:, 1, 2:] = a[:, 1, :2]
    assert max_iou(a, torch.zeros(2, 3, 4)).eq(0).all()
    found = max_iou(a, torch.tensor([[[0.0, 0, 100, 100]]] * 2))
    assert found[:, :2].eq(0).all()
    assert found[:, 2:].gt(0).all()


@pytest.mark.parametrize(("candidates", "labels"), [(0, 3), (5, 0), (0, 0)])
def test_max_iou_without_candidates_or_labels(candidates: int, labels: int) -> None:
    assert torch.equal(max_iou(torch.rand(2, candidates, 4), torch.rand(2, labels, 4)), torch.zeros(2, candidates))


@pytest.mark.parametrize("pairs", [1, 7, 60, 10**9])
def test_max_iou_in_parts_is_the_same_to_the_bit(monkeypatch: pytest.MonkeyPatch, pairs: int) -> None:
    a, b = random_boxes(3, 50), random_boxes(3, 4, seed=1)
    whole = max_iou(a, b)
    monkeypatch.setattr(boxes, "PAIRS", {"cpu": pairs})
    assert torch.equal(max_iou(a, b), whole)


@pytest.mark.parametrize("iou", [0, 0.1, 0.3, 0.5, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_below_is_whether_the_iou_with_every_label_is(iou: float, dtype: torch.dtype) -> None:
    a, b = (random_boxes(3, n, seed=n).to(dtype) for n in (900, 6))
    b[0, 3:] = 0  # padding
    a[1, :5, 2:] = a[1, :5, :2]  # no area
    a[2, :6] = b[2]  # an IoU of 1
    found, overlap = below(a, b, iou), max_iou(a, b)
    told = (overlap - iou).abs() > 1e-6
    assert torch.equal(found[told], overlap[told] < iou)
    assert told.sum() > 1000
    assert found.any() == (iou > 0)


def test_below_of_an_iou_of_exactly_that() -> None:
    # 10 x 10 against 5 x 10, 10 x 5 and 5 x 5 within it
    labels = torch.tensor([[[0.0, 0, 5, 10]], [[0, 0, 10, 5]], [[0, 0, 5, 5]]])
    whole = torch.tensor([[0.0, 0, 10, 10]]).expand(3, 1, 4)
    assert below(whole, labels, 0.5).flatten().tolist() == [False, False, True]
    assert not below(whole, labels, 0.25).any()


@pytest.mark.parametrize(("candidates", "labels"), [(0, 3), (5, 0), (0, 0)])
def test_below_without_candidates_or_labels(candidates: int, labels: int) -> None:
    found = below(torch.rand(2, candidates, 4), torch.rand(2, labels, 4), 0.3)
    assert found.tolist() == [[True] * candidates] * 2


@pytest.mark.parametrize("pairs", [1, 7, 60, 10**9])
def test_below_in_parts_is_the_same(monkeypatch: pytest.MonkeyPatch, pairs: int) -> None:
    a, b = random_boxes(3, 50), random_boxes(3, 4, seed=1)
    monkeypatch.setattr(boxes, "PAIRS", {"cpu": pairs})
    assert torch.equal(below(a, b, 0.3), max_iou(a, b) < 0.3)
    assert torch.equal(below(a.mT.contiguous().mT, b, 0.3), max_iou(a, b) < 0.3)  # as AnchorHead.corners has them


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_max_iou_computes_half_precision_boxes_in_single(dtype: torch.dtype) -> None:
    # an area of 300 x 300 does not fit into float16
    a, b = (random_boxes(2, n, seed=n).mul(5).to(dtype) for n in (9, 3))
    found = max_iou(a, b)
    assert found.dtype == torch.float32
    assert torch.equal(found, max_iou(a.float(), b.float()))


def test_max_iou_has_no_gradient_and_leaves_its_inputs() -> None:
    a, b = random_boxes(2, 9).requires_grad_(), random_boxes(2, 3, seed=1)
    before = a.detach().clone(), b.clone()
    assert not max_iou(a, b).requires_grad
    assert torch.equal(a.detach(), before[0])
    assert torch.equal(b, before[1])


def random_xywh(count: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """Pairs of predicted and true boxes: apart, overlapping, one within the other, and equal."""
    g = torch.Generator().manual_seed(0)
    gt = torch.rand(count, 4, generator=g, dtype=dtype) * 20 + 2
    pred = gt + torch.randn(count, 4, generator=g, dtype=dtype) * torch.linspace(0, 8, count, dtype=dtype)[:, None]
    pred[:, 2:] = pred[:, 2:].abs() + 0.1
    pred[1] = torch.cat((gt[1, :2], gt[1, 2:] / 2))
    return pred, gt


def test_ciou_by_hand() -> None:
    # Equal shapes, v = 0. Boxes 4 x 2 at (2, 1) and (4, 1): intersection 2 x 2 of union 12; the enclosing box is 6 x 2,
    # its diagonal squared 40; the centres are 2 apart: 1/3 - 4/40.
    pred, gt = torch.tensor([[2.0, 1, 4, 2]]), torch.tensor([[4.0, 1, 4, 2]])
    assert ciou(pred, gt).tolist() == pytest.approx([1 / 3 - 1 / 10])
    assert ciou(gt, gt).tolist() == pytest.approx([1])
    # Same centre, 2 x 2 in 4 x 1: intersection 2, union 4 + 4 - 2 = 6, IoU 1/3, no distance;
    # v = 4/pi^2 (atan 4 - atan 1)^2 = 0.118345, alpha = v / (1 - 1/3 + v) = 0.150757
    assert ciou(torch.tensor([[0.0, 0, 2, 2]]), torch.tensor([[0.0, 0, 4, 1]])).tolist() == pytest.approx(
        [1 / 3 - 0.150757 * 0.118345], abs=1e-5
    )


def test_ciou_equals_the_hosts_in_value_and_gradient() -> None:
    from ultralytics.utils.metrics import bbox_iou

    pred, gt = random_xywh(40)
    ours, theirs = pred.clone().requires_grad_(), pred.clone().requires_grad_()
    mine = ciou(ours, gt)
    host = bbox_iou(theirs, gt, xywh=True, CIoU=True).squeeze(-1)
    torch.testing.assert_close(mine, host, rtol=1e-9, atol=1e-9)
    mine.square().sum().backward()
    host.square().sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-7, atol=1e-9)
    assert mine.max() > 0.9
    assert mine.min() < 0  # the sample covers both ends


def test_ciou_gradient_is_that_of_its_value_with_alpha_held() -> None:
    # Boxes of one shape: there v is 0 with slope 0, so the constant alpha does not show
    pred, gt = random_xywh(6)
    pred = pred[2:]
    gt = torch.cat((gt[2:, :2], pred[:, 2:].detach() * 1.5), 1)
    assert torch.autograd.gradcheck(lambda x: ciou(torch.cat((x, pred[:, 2:]), 1), gt), pred[:, :2].requires_grad_())


def plain_ciou(pred: Tensor, gt: Tensor) -> Tensor:
    """Equation by equation, so that autograd finds the gradient."""
    low, high = pred[..., :2] - pred[..., 2:] / 2, pred[..., :2] + pred[..., 2:] / 2
    gt_low, gt_high = gt[..., :2] - gt[..., 2:] / 2, gt[..., :2] + gt[..., 2:] / 2
    inter = (torch.minimum(high, gt_high) - torch.maximum(low, gt_low)).clamp(min=0).prod(-1)
    iou = inter / (pred[..., 2:].prod(-1) + gt[..., 2:].prod(-1) - inter + boxes.EPS)
    diagonal = ((torch.maximum(high, gt_high) - torch.minimum(low, gt_low)) ** 2).sum(-1) + boxes.EPS
    distance = ((pred[..., :2] - gt[..., :2]) ** 2).sum(-1) / diagonal
    angle, gt_angle = (torch.atan(x[..., 2] / (x[..., 3] + boxes.EPS)) for x in (pred, gt))
    v = 4 / math.pi**2 * (gt_angle - angle) ** 2
    alpha = (v / (v - iou + 1 + boxes.EPS)).detach()
    return iou - distance - alpha * v


@pytest.mark.parametrize("grid", [True, False])  # of whole numbers many sides are equal, and many boxes only touch
def test_ciou_equals_the_plain_formula_in_value_and_gradient(grid: bool) -> None:
    g = torch.Generator().manual_seed(0)
    pred, gt = torch.rand(2, 4000, 4, generator=g, dtype=torch.float64) * 12
    if grid:
        pred, gt = pred.round(), gt.round()
    pred[::7, 2:] = 0  # a point
    gt[::11, 2:] = 0
    pred[::13, 2] = 0  # a line
    pred[::17, :2] = gt[::17, :2]
    pred[::19, 2:] = gt[::19, 2:]
    gt[::23] = pred[::23]
    leaves = [pred.clone().requires_grad_() for _ in range(2)]
    mine, plain = ciou(leaves[0], gt), plain_ciou(leaves[1], gt)
    torch.testing.assert_close(mine, plain, rtol=1e-12, atol=1e-12)
    weights = torch.randn(4000, generator=g, dtype=torch.float64)
    slopes = [torch.autograd.grad((x * weights).sum(), y)[0] for x, y in zip((mine, plain), leaves, strict=True)]
    torch.testing.assert_close(*slopes, rtol=1e-7, atol=1e-9)


def test_ciou_of_equal_boxes_is_one_whatever_rounds() -> None:
    # the sides of the intersection are differences of corners, so that it may round to more than the union
    gt = torch.rand(50_000, 4, generator=torch.Generator().manual_seed(0)) * 320 + 1
    pred = gt.clone().requires_grad_()
    found = ciou(pred, gt)
    found.sum().backward()
    assert found.max() <= 1
    assert found.min() > 1 - 1e-3
    assert pred.grad is not None
    assert pred.grad.isfinite().all()


@pytest.mark.parametrize("size", [0.0, 1e-4, 1e4])
def test_ciou_is_finite_for_boxes_of_any_size(size: float) -> None:
    pred = torch.tensor([[1.0, 1, size, size], [1, 1, size, 1], [1, 1, 1, size]]).requires_grad_()
    gt = torch.tensor([[1.0, 1, 2, 2], [90, 1, 2, 2], [1, 1, size, size]])
    value = ciou(pred, gt)
    value.sum().backward()
    assert value.isfinite().all()
    assert pred.grad is not None
    assert pred.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_ciou_computes_half_precision_boxes_in_single(dtype: torch.dtype) -> None:
    pred, gt = (x.mul(20).to(dtype) for x in random_xywh(20))  # areas do not fit into float16
    assert torch.equal(ciou(pred, gt), ciou(pred.float(), gt.float()))


def test_ciou_of_no_boxes() -> None:
    assert ciou(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0,)


def test_inside_is_strictly_within_a_label_of_the_image() -> None:
    # by hand: left of, on the border of, in the first, in both, in the second label; the third is padding
    points = torch.tensor([[0.0, 5], [1, 5], [3, 5], [5, 5], [9, 9], [0, 0]])
    labels = torch.tensor(
        [[[1.0, 1, 6, 8], [4, 4, 10, 10], [0, 0, 0, 0]], [[-1, -1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]]
    )
    assert inside(points, labels).int().tolist() == [[0, 0, 1, 1, 1, 0], [0, 0, 0, 0, 0, 1]]
    assert inside(points, labels[:, :0]).shape == (2, 6)
    assert not inside(points, labels[:, :0]).any()


SCALES = [(1.0, 1.0), (10.0, 5.0)]  # of RetinaNet and the RPN; of SSD and the RoI head


@pytest.mark.parametrize("scale", SCALES)
def test_encode_deltas_equals_torchvision_in_value_and_gradient(scale: tuple[float, float]) -> None:
    labels, anchors = (random_boxes(3, 20, seed=seed).double().requires_grad_() for seed in (0, 1))
    weights = torch.tensor([scale[0], scale[0], scale[1], scale[1]])
    coder = BoxCoder(tuple(weights.tolist()))
    expected = torch.stack([coder.encode_single(a, b) for a, b in zip(labels, anchors, strict=True)])
    found = encode_deltas(labels, anchors, scale)
    torch.testing.assert_close(found, expected)
    pull = torch.randn(found.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for mine, other in zip(
        torch.autograd.grad((found * pull).sum(), (labels, anchors)),
        torch.autograd.grad((expected * pull).sum(), (labels, anchors)),
        strict=True,
    ):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("scale", SCALES)
def test_decode_deltas_equals_torchvision_in_value_and_gradient(scale: tuple[float, float]) -> None:
    """Also where a side would grow beyond the limit: there the gradient is 0."""
    anchors = random_boxes(40, seed=1).double()
    g = torch.Generator().manual_seed(2)
    deltas = (torch.randn(40, 4, generator=g, dtype=torch.float64) * 3 * max(scale)).requires_grad_()
    expected = BoxCoder((scale[0], scale[0], scale[1], scale[1])).decode_single(deltas, anchors)
    found = decode_deltas(deltas, anchors, scale)
    torch.testing.assert_close(found, expected)
    pull = torch.randn(found.shape, generator=g, dtype=torch.float64)
    (mine,) = torch.autograd.grad((found * pull).sum(), deltas)
    (other,) = torch.autograd.grad((expected * pull).sum(), deltas)
    torch.testing.assert_close(mine, other)
    assert mine[:, 2:].eq(0).any()


@pytest.mark.parametrize("scale", SCALES)
def test_decoding_undoes_encoding(scale: tuple[float, float]) -> None:
    labels, anchors = random_boxes(2, 30).double(), random_boxes(30, seed=1).double()
    torch.testing.assert_close(decode_deltas(encode_deltas(labels, anchors, scale), anchors, scale), labels)
