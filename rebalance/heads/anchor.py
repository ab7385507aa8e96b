"""The anchor and objectness head of YOLOv3 and YOLOv5.

Shapes: B images, L levels, M anchors a level, C classes, H rows and W columns of a level, N = sum of M·H·W.
Parameters are named as in YOLOv5 (`m.{level}`, `anchors`), so that its state dicts load by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rebalance.settings import setting

# Width, height in pixels at 640 px, by number of levels. Three levels: YOLOv3's and YOLOv5's k-means on COCO;
# two: YOLOv3-tiny's; four: YOLOv5's P6 models.
COCO_ANCHORS: dict[int, tuple[tuple[int, ...], ...]] = {
    2: ((10, 14, 23, 27, 37, 58), (81, 82, 135, 169, 344, 319)),
    3: ((10, 13, 16, 30, 33, 23), (30, 61, 62, 45, 59, 119), (116, 90, 156, 198, 373, 326)),
    4: (
        (19, 27, 44, 40, 38, 94),
        (96, 68, 86, 152, 180, 137),
        (140, 301, 303, 264, 238, 542),
        (436, 615, 739, 380, 925, 792),
    ),
}


@dataclass(frozen=True, kw_only=True)
class AnchorSettings:
    """Flags of the anchor head and of YOLOv5's loss on it; the gains are YOLOv5's."""

    anchor_t: float = setting(4.0, "largest side ratio of a label to its anchor", low=1)
    autoanchor: bool = setting(True, "fit the anchors where their best possible recall is under 0.98")
    box_gain: float = setting(0.05, "weight of the CIoU loss", low=0)
    obj_gain: float = setting(1.0, "weight of the objectness loss", low=0)
    cls_gain: float = setting(0.5, "weight of the classification loss", low=0)


class AnchorHead(nn.Module):
    """One 1×1 convolution a level that predicts, for each anchor, a box, an objectness and C class logits."""

    anchors: Tensor  # (L, M, 2) width, height in cells
    stride: Tensor  # (L,) pixels a cell

    def __init__(self, nc: int, channels: Sequence[int], stride: Tensor, anchors: Sequence[Sequence[float]]) -> None:
        """Build the head for `nc` classes; `anchors`: for each level width, height, width, height, … in pixels."""
        nn.Module.__init__(self)
        self.nc, self.nl, self.na = nc, len(channels), len(anchors[0]) // 2
        self.no = nc + 5  # x, y, w, h, objectness, classes
        self.stride = stride
        pixels = torch.tensor(anchors, dtype=torch.float32).view(self.nl, -1, 2)
        # register_buffer refuses a name that a host's base class has as a plain attribute
        self._buffers["anchors"] = pixels / stride.view(-1, 1, 1)
        self.m = nn.ModuleList(nn.Conv2d(c, self.no * self.na, 1) for c in channels)
        self.bias_init()

    def bias_init(self) -> None:
        """Prior biases of YOLOv5: about 8 objects in a 640 px image, 0.6 of the classes' mass."""
        with torch.no_grad():
            for conv, stride in zip(self.m, self.stride.tolist(), strict=True):
                bias = conv.bias.view(self.na, -1)  # type: ignore[operator]
                bias[:, 4] += math.log(8 / (640 / stride) ** 2)
                bias[:, 5:] += math.log(0.6 / (self.nc - 0.99999))

    def class_rows(self) -> dict[str, Callable[[Tensor, Tensor], Tensor]]:
        """For each parameter (M · (5 + C), …): (tensor, (K,) classes) -> box, objectness and these classes' rows."""

        def rows(x: Tensor, kept: Tensor) -> Tensor:
            return x.view(self.na, -1, *x.shape[1:])[:, torch.cat((torch.arange(5), kept + 5))].flatten(0, 1)

        return {f"m.{level}.{k}": rows for level in range(self.nl) for k in ("weight", "bias")}

    def maps(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Raw predictions of each level: (B, M, 5 + C, H, W), a view of the convolution's output."""
        outputs = [conv(x) for conv, x in zip(self.m, features, strict=True)]
        # not unflatten: in an ONNX export it would fix the size of the image
        return [x.view(x.shape[0], self.na, self.no, x.shape[2], x.shape[3]) for x in outputs]

    def decode(
        self, maps: Sequence[Tensor], *, objectness: bool = True, refined: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Predictions in pixels of the input image.

        Args:
            maps: raw predictions of each level.
            objectness: score = P(class | object) · P(object); the boxes alone where False.
            refined: for each level (B, M, 1, H, W), objectness logits in the place of those in `maps`.

        Returns:
            (B, 4 + C, N): centre, width, height, scores in [0, 1]; (B, 4, N) without the scores.
        """
        levels = []
        for level, x in enumerate(maps):
            h, w = x.shape[-2:]
            y = x.sigmoid() if objectness else x[:, :, :4].sigmoid()
            rows = torch.arange(h, device=x.device, dtype=x.dtype).view(h, 1).expand(h, w)
            columns = torch.arange(w, device=x.device, dtype=x.dtype).expand(h, w)
            stride, anchors = self.stride[level].to(x), self.anchors[level].to(x)
            xy = (y[:, :, 0:2] * 2 - 0.5 + torch.stack((columns, rows))) * stride
            wh = (y[:, :, 2:4] * 2) ** 2 * (anchors * stride).view(1, self.na, 2, 1, 1)
            score = y[:, :, 4:5] if refined is None else refined[level].sigmoid()
            parts = (xy, wh, y[:, :, 5:] * score) if objectness else (xy, wh)
            levels.append(torch.cat(parts, 2).transpose(1, 2).flatten(2))  # (B, M, 4 + C, H, W) -> (B, 4 + C, M·H·W)
        return torch.cat(levels, 2)

    def corners(self, maps: Sequence[Tensor]) -> Tensor:
        """The boxes of `decode` to the bit, as corners: (B, 4, N) without gradient, on a CPU several times faster.

        Powers of two are taken together: they round nothing.
        """
        with torch.no_grad():
            sizes = [self.na * x.shape[-2] * x.shape[-1] for x in maps]
            found = maps[0].new_empty(len(maps[0]), 4, sum(sizes))
            parts = torch.split(found, sizes, 2)
            for x, part, stride, anchors in zip(maps, parts, self.stride, self.anchors, strict=True):
                y = x[:, :, :4].sigmoid().transpose(1, 2)  # (B, 4, M, H, W)
                cell = stride.to(x) * 2
                halves = (anchors.to(x) * cell).mT.view(2, self.na, 1, 1)  # of (2y)² · anchor
                place = _half_grid(*x.shape[-2:], x.device, x.dtype)
                centre, half = y[:, :2].sub_(0.25).add_(place).mul_(cell), y[:, 2:].square_().mul_(halves)
                torch.sub(centre, half, out=part[:, :2].view(centre.shape))
                torch.add(centre, half, out=part[:, 2:].view(half.shape))
            return found


@lru_cache(maxsize=64)  # as the images of a training are of few shapes
def _half_grid(h: int, w: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """(2, 1, H, W) half the column and row of each cell."""
    column, row = torch.arange(w, device=device, dtype=dtype), torch.arange(h, device=device, dtype=dtype)
    return torch.stack(torch.meshgrid(column, row, indexing="xy")).unsqueeze(1) / 2


def objectness(maps: Sequence[Tensor]) -> Tensor:
    """Objectness logits of all candidates: (B, N)."""
    return torch.cat([x[:, :, 4].flatten(1) for x in maps], 1)


def taken(
    maps: Sequence[Tensor], sizes: list[int], image: Tensor, anchor: Tensor, row: Tensor, column: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """What the loss reads of raw predictions.

    Returns:
        Those at (S,) places, of which each level has so many, level by level: (S, 4) of the box and (S, C) of the
        classes; and `objectness`.
    """
    found: tuple[Tensor, Tensor, Tensor]
    found = _Taken.apply(sizes, image, anchor, row, column, *maps)  # type: ignore[no-untyped-call]
    return found


class _Taken(torch.autograd.Function):
    """As by indices and slices, whose gradients are two tensors as large as a map each, added up; here they are one."""

    @staticmethod
    def forward(
        ctx: Any, sizes: list[int], image: Tensor, anchor: Tensor, row: Tensor, column: Tensor, *maps: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(image, anchor, row, column)
        ctx.sizes, ctx.maps = sizes, [(x.shape, x.dtype) for x in maps]
        levels = zip(maps, *(torch.split(x, sizes) for x in (image, anchor, row, column)), strict=True)
        slots = torch.cat([x[i, a, :, r, c] for x, i, a, r, c in levels])
        return slots[:, :4], slots[:, 5:], objectness(maps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, boxes: Tensor, classes: Tensor, all_: Tensor) -> tuple[Tensor | None, ...]:
        sizes = [math.prod(shape) // shape[0] // shape[2] for shape, _ in ctx.maps]
        slots = torch.cat((boxes, boxes.new_zeros(len(boxes), 1), classes), -1)
        gradients = []
        parts = (torch.split(x, ctx.sizes) for x in (slots, *ctx.saved_tensors))
        levels = zip(ctx.maps, torch.split(all_, sizes, 1), *parts, strict=True)
        for (shape, dtype), at_all, at_slots, image, anchor, row, column in levels:
            x = slots.new_zeros(shape, dtype=dtype)
            x.permute(0, 1, 3, 4, 2).index_put_((image, anchor, row, column), at_slots.to(dtype), accumulate=True)
            x[:, :, 4] += at_all.view_as(x[:, :, 4])
            gradients.append(x)
        return None, None, None, None, None, *gradients
