"""Box arithmetic on tensors.

Shapes: B images, A candidates, G labels an image (padded to the fullest image of the batch, with boxes without area).
Boxes are (x1, y1, x2, y2) unless a name ends in `xywh` (centre, width, height); any unit, the same for both arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

EPS = 1e-7  # keeps divisions finite for boxes without area; the value YOLOv5 uses
# (candidate, label) pairs compared at a time. On a CPU 1 MiB a temporary, which stays in the cache: over ten times
# faster than all at once. Elsewhere 64 MiB, which fills a GPU and bounds the memory.
PAIRS = {"cpu": 2**18}
PAIRS_ELSEWHERE = 2**24
MAX_LOG_SCALE = math.log(1000 / 16)  # torchvision's: keeps exp() finite


def upcast(x: Tensor) -> Tensor:
    """Half precision to float32; float32 and float64 stay."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def xywh_to_xyxy(xywh: Tensor) -> Tensor:
    """Centre, width, height to corners; (..., 4) -> (..., 4)."""
    centre, half = xywh[..., :2], xywh[..., 2:] / 2
    return torch.cat((centre - half, centre + half), -1)


def max_iou(boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """Overlap: (B, A) IoU in [0, 1] of each candidate with the nearest label of its image, whatever its class.

    From (B, A, 4) candidates and (B, G, 4) labels; 0 where the image has no label. Not differentiable.
    """
    with torch.no_grad():
        boxes, gt_boxes = upcast(boxes.detach()), upcast(gt_boxes.detach())
        (b, a), g = boxes.shape[:2], gt_boxes.shape[1]
        if a == 0 or g == 0:
            return boxes.new_zeros(b, a)
        return _most(boxes.transpose(1, 2).contiguous(), gt_boxes, pair_iou)


def below(boxes: Tensor, gt_boxes: Tensor, iou: float) -> Tensor:
    """(B, A) bool: whether `max_iou` is below `iou`, in two thirds of its time; one within rounding may be either.

    It is where the intersection I with any label is so small that I · (1 + iou) / iou - G < P, the areas.
    """
    with torch.no_grad():
        boxes, gt_boxes = upcast(boxes.detach()), upcast(gt_boxes.detach())
        (b, a), g = boxes.shape[:2], gt_boxes.shape[1]
        if a == 0 or g == 0 or iou == 0:
            return torch.full((b, a), iou > 0, device=boxes.device)
        gt_areas, factor = area(gt_boxes.mT).neg_().unsqueeze(2), (1 + iou) / max(iou, EPS)

        def rest(boxes: Tensor, gt_boxes: Tensor, *, space: Tensor) -> Tensor:
            width, height, spare = _sides(boxes, gt_boxes, space)
            return torch.addcmul(gt_areas, width, height, value=factor, out=spare)

        planes = boxes.transpose(1, 2).contiguous()
        return _most(planes, gt_boxes, rest) < area(planes).clamp_(min=EPS)


def _most(planes: Tensor, gt_boxes: Tensor, pairs: Callable[..., Tensor]) -> Tensor:
    """(B, A) the most that `pairs` gives a candidate of (B, 4, A) with any label, in parts."""
    (b, _, a), g = planes.shape, gt_boxes.shape[1]
    # a number of shapes alone: no value is read back from the device
    step = min(a, max(1, PAIRS.get(planes.device.type, PAIRS_ELSEWHERE) // (b * g)))
    best, space = planes.new_empty(b, a), planes.new_empty(3, b * g * step)
    for part, found in zip(torch.split(planes, step, 2), torch.split(best, step, 1), strict=True):
        torch.amax(pairs(part, gt_boxes, space=space), 1, out=found)
    return best


def area(corners: Tensor) -> Tensor:
    """(B, 4, A) -> (B, A)."""
    x1, y1, x2, y2 = corners.unbind(1)
    return (x2 - x1) * (y2 - y1)


def pair_iou(boxes: Tensor, gt_boxes: Tensor, *, space: Tensor | None = None) -> Tensor:
    """(B, G, A) IoU of every label (B, G, 4) with every candidate (B, 4, A); not differentiable.

    `space` (3, at least B·G·A) is written to, and holds what is returned: memory that is new at each call is most of
    its time on a CPU.
    """
    inter, areas, spare = pair_intersection(boxes, gt_boxes, space=space)
    union = torch.add(areas, area(gt_boxes.mT).unsqueeze(2), out=spare).sub_(inter).clamp_(min=EPS)
    iou: Tensor = inter.div_(union)
    return iou


def pair_intersection(boxes: Tensor, others: Tensor, *, space: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """What candidates (B, 4, A) share with other boxes (B, G, 4); not differentiable.

    Returns:
        (B, G, A) area of each intersection, (B, 1, A) area of each candidate, (B, G, A) memory to write to; the first
        and the last are in `space`, see `pair_iou`.
    """
    width, height, spare = _sides(boxes, others, space)
    return width.mul_(height.clamp_(min=0)), area(boxes).unsqueeze(1), spare


def _sides(boxes: Tensor, others: Tensor, space: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """As `pair_intersection`: (B, G, A) its width, its height, which is below 0 where they are apart, and memory."""
    # the long dimension is innermost, which is three times faster than (B, A, G)
    x1, y1, x2, y2 = boxes.unsqueeze(2).unbind(1)  # (B, 1, A)
    gx1, gy1, gx2, gy2 = others.unsqueeze(2).unbind(3)  # (B, G, 1)
    shape = torch.Size((len(others), others.shape[1], boxes.shape[2]))
    space = boxes.new_empty(3, shape.numel()) if space is None else space[:, : shape.numel()]
    width, height, spare = space.view(3, *shape)
    torch.minimum(x2, gx2, out=width).sub_(torch.maximum(x1, gx1, out=spare)).clamp_(min=0)
    torch.minimum(y2, gy2, out=height).sub_(torch.maximum(y1, gy1, out=spare))
    return width, height, spare


def inside(points: Tensor, gt_boxes: Tensor) -> Tensor:
    """(B, N) whether a label (B, G, 4) holds the point x, y (N, 2), the same in every image; its border is outside."""
    x, y = points.unbind(-1)
    x1, y1, x2, y2 = gt_boxes.unsqueeze(2).unbind(3)  # (B, G, 1) against (N,)
    return ((x > x1) & (x < x2) & (y > y1) & (y < y2)).any(1)


def ciou(pred_xywh: Tensor, gt_xywh: Tensor) -> Tensor:
    """Complete IoU of boxes (..., 4) paired by row (Zheng et al. 2020, "Distance-IoU Loss", equations 9 to 11).

    It is in [-1.5, 1], and differentiable, once, in `pred_xywh` with the trade-off alpha held constant as in the paper.
    """
    found: Tensor = _Ciou.apply(upcast(pred_xywh), upcast(gt_xywh))  # type: ignore[no-untyped-call]
    return found


class _Ciou(torch.autograd.Function):
    """Its gradient is made of what its value is made of: half the operations that autograd would record."""

    @staticmethod
    def forward(ctx: Any, pred_xywh: Tensor, gt_xywh: Tensor) -> Tensor:
        # by coordinate, (2, ...) each: x and y
        (p, size), (g, gt_size) = (torch.split(x.movedim(-1, 0).contiguous(), 2) for x in (pred_xywh, gt_xywh))
        low, high = p - size / 2, p + size / 2
        gt_low, gt_high = g - gt_size / 2, g + gt_size / 2
        shared = torch.minimum(high, gt_high) - torch.maximum(low, gt_low)  # below 0 where apart
        hull = size + gt_size - shared
        sides = shared.clamp(min=0)
        (w, h), (gw, gh) = size, gt_size
        inter = sides[0] * sides[1]
        union = w * h + gw * gh - inter + EPS
        iou = (inter / union).clamp_(max=1)  # of equal boxes it may round to more, and alpha to 0/0
        diagonal = hull.square().sum(0) + EPS
        apart = p - g
        distance = apart.square().sum(0) / diagonal
        h = h + EPS
        turn = torch.atan(gw / (gh + EPS)) - torch.atan(w / h)
        v = turn.square() * (4 / math.pi**2)  # aspect ratio
        alpha = v / (v - iou + (1 + EPS))
        if ctx.needs_input_grad[0]:
            # 1, or -1, where this side of the prediction is the intersection's, or the hull's; 0 where both
            right, left = torch.sign(gt_high - high), torch.sign(low - gt_low)
            # half the slope in a side of the intersection, and in one of the hull
            by_side = sides.flip(0).where(shared >= 0, 0) * ((1 + iou) / (2 * union))
            by_hull = hull * (distance / diagonal)
            by_either = by_side - by_hull
            by_centre = (right - left) * by_either - apart * (2 / diagonal)
            by_size = (right + left) * (by_either / 2) + by_side + by_hull - size.flip(0) * (iou / union)
            by_ratio = alpha * turn * (8 / math.pi**2) / (w * w + h * h)
            by_size[0].addcmul_(by_ratio, h)
            by_size[1].addcmul_(by_ratio, w, value=-1)
            ctx.save_for_backward(torch.cat((by_centre, by_size)).movedim(0, -1))
        found: Tensor = iou - distance - alpha * v
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        slopes: Tensor = ctx.saved_tensors[0]
        return gradient.unsqueeze(-1) * slopes, None


def own_overlap(boxes: Tensor, gt_boxes: Tensor) -> Tensor:
    """(...) complete IoU of boxes (..., 4) with labels (..., 4) paired by row, 0 below 0. Not differentiable."""
    with torch.no_grad():
        pairs = [torch.cat(((x[..., :2] + x[..., 2:]) / 2, x[..., 2:] - x[..., :2]), -1) for x in (boxes, gt_boxes)]
        return ciou(*pairs).clamp(min=0)


def encode_deltas(gt_boxes: Tensor, anchors: Tensor, scale: tuple[float, float] = (1, 1)) -> Tensor:
    """Offsets of a label from an anchor (Girshick et al. 2014, "Rich feature hierarchies", equations 6 to 9).

    (..., 4) dx, dy, dw, dh, those of centre and size times `scale`; not finite where a box has no area.
    """
    size, gt_size = anchors[..., 2:] - anchors[..., :2], gt_boxes[..., 2:] - gt_boxes[..., :2]
    centre, gt_centre = anchors[..., :2] + size / 2, gt_boxes[..., :2] + gt_size / 2
    return torch.cat(((gt_centre - centre) / size * scale[0], torch.log(gt_size / size) * scale[1]), -1)


def decode_deltas(deltas: Tensor, anchors: Tensor, scale: tuple[float, float] = (1, 1)) -> Tensor:
    """Boxes from the offsets of `encode_deltas`: (..., 4) corners; a side grows at most 62.5-fold."""
    size = anchors[..., 2:] - anchors[..., :2]
    centre = anchors[..., :2] + size / 2 + deltas[..., :2] / scale[0] * size
    half = (deltas[..., 2:] / scale[1]).clamp(max=MAX_LOG_SCALE).exp() * size / 2
    return torch.cat((centre - half, centre + half), -1)
