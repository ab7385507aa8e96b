from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor, nn

from rebalance.heads.anchor import COCO_ANCHORS, AnchorHead, objectness, taken
from rebalance.match.boxes import xywh_to_xyxy

STRIDE = torch.tensor([8.0, 16.0, 32.0])


def head(nc: int = 3, channels: tuple[int, ...] = (4, 6, 8), levels: int = 3) -> AnchorHead:
    torch.manual_seed(0)
    stride = torch.tensor([8.0 * 2**i for i in range(levels)])
    return AnchorHead(nc, channels, stride, COCO_ANCHORS[levels])


def features(channels: tuple[int, ...] = (4, 6, 8), size: int = 64, images: int = 2) -> list[Tensor]:
    g = torch.Generator().manual_seed(1)
    return [
        torch.randn(images, c, size // s, size // (2 * s), generator=g)
        for c, s in zip(channels, (8, 16, 32), strict=True)
    ]


def test_parameters_are_named_as_in_yolov5() -> None:
    names = {name: tuple(tensor.shape) for name, tensor in head().state_dict().items()}
    assert names == {
        "anchors": (3, 3, 2),
        "m.0.weight": (24, 4, 1, 1),  # 3 anchors of 5 + 3 numbers
        "m.0.bias": (24,),
        "m.1.weight": (24, 6, 1, 1),
        "m.1.bias": (24,),
        "m.2.weight": (24, 8, 1, 1),
        "m.2.bias": (24,),
    }


def test_anchors_are_in_cells() -> None:
    assert head().anchors[:, 0].tolist() == [[10 / 8, 13 / 8], [30 / 16, 61 / 16], [116 / 32, 90 / 32]]


@pytest.mark.upstream
@pytest.mark.parametrize(
    ("name", "levels"), [("yolov3-tiny", 2), ("yolov3", 3), ("yolov5n", 3), ("yolov5n6", 4), ("yolov5x6", 4)]
)
def test_anchors_are_those_of_the_published_models(name: str, levels: int) -> None:
    package = find_spec("yolov5")
    if package is None or package.origin is None:
        pytest.skip("yolov5 is not installed (requirements-upstream.txt)")
    (file,) = Path(package.origin).parent.glob(f"models/**/{name}.yaml")
    published = yaml.safe_load(file.read_text("utf-8"))["anchors"]
    assert [list(level) for level in COCO_ANCHORS[levels]] == published


def test_anchors_grow_from_level_to_level_and_keep_their_numbers() -> None:
    # the sum of a level's numbers, so that none of them changes where the published models are not at hand
    sums = {levels: [sum(level) for level in anchors] for levels, anchors in COCO_ANCHORS.items()}
    assert sums == {2: [169, 1130], 3: [125, 376, 1259], 4: [262, 719, 1788, 3887]}
    for anchors in COCO_ANCHORS.values():
        areas = [w * h for level in anchors for w, h in zip(level[::2], level[1::2], strict=True)]
        assert areas == sorted(areas)


@pytest.mark.parametrize("nc", [1, 2, 80])
def test_prior_biases(nc: int) -> None:
    made = head(nc)
    torch.manual_seed(0)
    plain = [nn.Conv2d(c, 3 * (5 + nc), 1) for c in (4, 6, 8)]
    for conv, start, stride in zip(made.m, plain, (8, 16, 32), strict=True):
        shift = (conv.bias - start.bias).view(3, 5 + nc)  # type: ignore[operator]
        # 8 objects in the (640 / stride)^2 cells; 0.6 shared among the classes
        assert shift[:, :4].eq(0).all()
        assert shift[:, 4].tolist() == pytest.approx([math.log(8 / (640 / stride) ** 2)] * 3, abs=1e-5)
        assert shift[:, 5:].flatten().tolist() == pytest.approx([math.log(0.6 / (nc - 0.99999))] * 3 * nc, abs=1e-5)
        assert torch.equal(conv.weight, start.weight)


def test_maps_are_views_in_the_layout_of_yolov5() -> None:
    made, inputs = head(), features()
    for level, (found, x) in enumerate(zip(made.maps(inputs), inputs, strict=True)):
        flat = made.m[level](x)
        assert found.shape == (2, 3, 8, *x.shape[2:])
        for anchor in range(3):
            for number in range(8):
                assert torch.equal(found[:, anchor, number], flat[:, anchor * 8 + number])


def test_decode_by_hand() -> None:
    # One level of 2 rows and 3 columns, stride 8, two anchors of 16 x 8 and 4 x 32 pixels, two classes
    made = AnchorHead(2, (1,), torch.tensor([8.0]), [(16, 8, 4, 32)])
    raw = torch.full((1, 2, 7, 2, 3), -20.0)
    # Anchor 1, row 1, column 2. Sigmoids 0.5, 0.75, 0.5, 0.25, 0.8, 0.5, 0.1:
    p = torch.tensor([0.5, 0.75, 0.5, 0.25, 0.8, 0.5, 0.1])
    raw[0, 1, :, 1, 2] = (p / (1 - p)).log()
    found = made.decode([raw])
    assert found.shape == (1, 6, 12)
    # x: (2 * 0.5 - 0.5 + 2) * 8 = 20; y: (2 * 0.75 - 0.5 + 1) * 8 = 16; w: (2 * 0.5)^2 * 4 = 4;
    # h: (2 * 0.25)^2 * 32 = 8; scores 0.5 * 0.8 and 0.1 * 0.8.
    # The candidate is anchor 1 of 2 x 3 cells, row 1, column 2: 6 + 3 + 2.
    assert found[0, :, 11].tolist() == pytest.approx([20, 16, 4, 8, 0.4, 0.08], rel=1e-5)
    # everything else is nearly 0: half a cell left of and above its own corner, without size or score
    assert found[0, :, 0].tolist() == pytest.approx([-4, -4, 0, 0, 0, 0], abs=1e-4)
    assert found[0, :2, 7].tolist() == pytest.approx([4, -4], abs=1e-4)  # anchor 1, row 0, column 1
    torch.testing.assert_close(made.decode([raw], objectness=False), found[:, :4])


def test_decode_reaches_over_the_cell_and_up_to_four_anchors() -> None:
    made = head(1)
    low, high = (made.decode([torch.full((1, 3, 6, 1, 1), v) for _ in range(3)]) for v in (-50.0, 50.0))
    sizes = made.anchors.view(-1, 2) * STRIDE.repeat_interleave(3).view(-1, 1)
    torch.testing.assert_close(high[0, 2:4].T, sizes * 4)
    assert low[0, 2:].abs().max() < 1e-6
    torch.testing.assert_close(high[0, :2].T, (1.5 * STRIDE).repeat_interleave(3).view(-1, 1).expand(-1, 2))
    torch.testing.assert_close(low[0, :2].T, (-0.5 * STRIDE).repeat_interleave(3).view(-1, 1).expand(-1, 2))


def test_candidates_are_numbered_by_level_anchor_row_column() -> None:
    made = head()
    maps = [torch.zeros(1, 3, 8, h, w) for h, w in ((2, 3), (1, 2), (1, 1))]
    number = 0
    for x in maps:
        for anchor in range(3):
            for row in range(x.shape[3]):
                for column in range(x.shape[4]):
                    x[0, anchor, 4, row, column] = number
                    number += 1
    assert objectness(maps).tolist() == [list(range(number))]
    x, y = made.decode(maps)[0, :2]
    assert x.tolist() == [4, 12, 20, 4, 12, 20] * 3 + [8, 24] * 3 + [16] * 3
    assert y.tolist() == [4, 4, 4, 12, 12, 12] * 3 + [8] * 6 + [16] * 3


@pytest.mark.parametrize("levels", [2, 3, 4])
def test_levels_and_one_class(levels: int) -> None:
    channels = (4, 6, 8, 10)[:levels]
    made = head(1, channels, levels)
    inputs = [torch.randn(2, c, 16 // 2**i, 16 // 2**i) for i, c in enumerate(channels)]
    maps = made.maps(inputs)
    found = made.decode(maps)
    assert found.shape == (2, 5, sum(3 * (16 // 2**i) ** 2 for i in range(levels)))
    assert objectness(maps).shape == (2, found.shape[2])
    assert found[:, 4].ge(0).all()
    assert found[:, 4].le(1).all()
    found.sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_decode_keeps_half_precision_for_exported_models(dtype: torch.dtype) -> None:
    made = head()
    maps = [x.to(dtype) for x in made.maps(features())]
    found = made.decode(maps)
    assert found.dtype == dtype
    assert found.isfinite().all()


@pytest.mark.parametrize("stride", [(8.0, 16.0, 32.0), (7.0, 12.0, 31.0)])
def test_corners_are_the_decoded_boxes_to_the_bit(stride: tuple[float, ...]) -> None:
    made = AnchorHead(3, (4, 6, 8), torch.tensor(stride), COCO_ANCHORS[3])
    maps = [x * 5 for x in made.maps(features(images=3))]
    before = [x.detach().clone() for x in maps]
    decoded = made.decode([x[:, :, :4] for x in maps], objectness=False)
    found = made.corners(maps)
    assert not found.requires_grad
    assert torch.equal(found, xywh_to_xyxy(decoded.transpose(1, 2)).transpose(1, 2))
    made.anchors.mul_(2)  # as autoanchor does after the model was built
    assert torch.equal(
        made.corners(maps), xywh_to_xyxy(made.decode([x[:, :, :4] for x in maps], objectness=False).mT).mT
    )
    assert all(torch.equal(x, y) for x, y in zip(maps, before, strict=True))


def test_what_is_taken_of_the_maps_has_the_gradient_of_indices_and_slices() -> None:
    g = torch.Generator().manual_seed(3)
    maps = [torch.randn(2, 3, 8, h, 4, generator=g, dtype=torch.float64, requires_grad=True) for h in (4, 2, 6)]
    sizes = [40, 30, 0]
    image, anchor, row, column = (torch.randint(0, n, (70,), generator=g) for n in (2, 3, 2, 4))  # some twice

    def by_index(*maps: Tensor) -> tuple[Tensor, ...]:
        places = zip(maps, *(torch.split(x, sizes) for x in (image, anchor, row, column)), strict=True)
        slots = torch.cat([x[i, a, :, r, c] for x, i, a, r, c in places])
        return slots[..., :4], slots[..., 5:], objectness(maps)

    def ours(*maps: Tensor) -> tuple[Tensor, ...]:
        return taken(maps, sizes, image, anchor, row, column)

    assert all(torch.equal(x, y) for x, y in zip(ours(*maps), by_index(*maps), strict=True))
    weights = [torch.randn(x.shape, generator=g, dtype=torch.float64) for x in by_index(*maps)]
    for outputs in ((0, 1, 2), (0,), (1,), (2,)):
        found = [
            torch.autograd.grad(sum((of(*maps)[k] * weights[k]).sum() for k in outputs), maps)  # type: ignore[arg-type]
            for of in (ours, by_index)
        ]
        assert all(torch.equal(x, y) for x, y in zip(*found, strict=True))
    assert torch.autograd.gradcheck(ours, maps)
