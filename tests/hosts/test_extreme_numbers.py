"""Losses and their gradients are finite: every loss of every criterion, in half precision, with no boxes and thousands.

What a head puts out is replaced by numbers of ±10,000 and 0. Under autocast, as trainings compute half precision.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import yaml_model_load

from rebalance.hosts import host_of
from rebalance.hosts.torchvision.zoo import ZOO
from rebalance.methods import JOINS, METHODS
from rebalance.recipe import read

SIZE, CLASSES, IMAGES = 64, 2, 2
LARGE = 1e4
REACH = 1e3  # of YOLO26's distances, which the host multiplies by the stride in the precision that they come in ...
UNBOUNDED = torch.float16  # ... and whose gradients in the host's own box loss are too large for this one
HEADS = (
    *(("yolov8n.yaml", head) for head in ("stock", "obj", "resobj")),
    ("yolo26n.yaml", "stock"),
    *(("yolov5n.yaml", head) for head in ("anchor", "resobj")),
    *((name, head) for name in ("retinanet_tiny", "fasterrcnn_tiny") for head in ("stock", "obj", "resobj")),
    *(("ssd_tiny", head) for head in ("stock", "sigmoid")),
)
GIVEN: dict[str, dict[str, Any]] = {
    "drop": {"obj_drop": 0.5, "box_drop": 0.5}, "nrd": {"nrd_rate": 1.0}, "ohem": {"ohem_ratio": 1.0},
    "brl": {"brl_warmup": 0},
}  # fmt: skip


@lru_cache
def built(name: str, head: str) -> tuple[Any, Any]:
    """A model, and what it puts out for two images."""
    host = host_of(name)
    cfg = name if name in ZOO else {**yaml_model_load(name), "nc": CLASSES}
    torch.manual_seed(0)
    recipe = read({"head": head}, host.sites)
    model = host.build(cfg, recipe, nc=CLASSES, ch=3, verbose=False).train()
    model.args = get_cfg(overrides={"imgsz": SIZE, "epochs": 5})
    if name in ZOO:
        model.model[-1].trained_at(SIZE)
    return model, model(torch.rand(IMAGES, 3, SIZE, SIZE))


def losses_of(name: str, head: str) -> list[str]:
    """Every loss that is defined there."""
    site = host_of(name).sites.site(head)
    defined = [row.name for row in METHODS.values() if row.defined(site) and row.kind != "head"]
    elements = [row for row in defined if METHODS[row].kind == "element"]
    return elements + [f"{one}+{row}" for row in defined for one in JOINS.get(row, ()) if one in elements]


def recipe_of(name: str, head: str, loss: str) -> Any:
    given = {k: v for row in loss.split("+") for k, v in GIVEN.get(row, {}).items()}
    if name == "fasterrcnn_tiny":
        given = {k: v for k, v in given.items() if k != "ohem_ratio"}
    return read({"loss": loss, **given}, host_of(name).sites, head=head)


def labels(count: int) -> dict[str, Any]:
    """So many an image, of any size: the first a point, the last the whole image."""
    g = torch.Generator().manual_seed(0)
    size = torch.rand(count * IMAGES, 2, generator=g) ** 3
    if count:
        size[0], size[-1] = 0, 1
    centre = torch.rand(count * IMAGES, 2, generator=g)
    return {
        "batch_idx": torch.arange(IMAGES).repeat_interleave(count).float(),
        "cls": torch.randint(CLASSES, (count * IMAGES, 1), generator=g).float(),
        "bboxes": torch.cat((centre, size), 1),
        "most_labels": count,
    }


def extreme(output: Any, dtype: torch.dtype, g: torch.Generator, name: str = "") -> Any:
    """The same structure with other numbers where it has gradients."""
    if isinstance(output, dict):
        return {key: extreme(part, dtype, g, key) for key, part in output.items()}
    if isinstance(output, (list, tuple)):
        return type(output)(extreme(part, dtype, g, name) for part in output)
    if not isinstance(output, Tensor) or not output.requires_grad:
        return output
    large = REACH if is_distance(output, name) else LARGE
    return ((torch.randint(3, output.shape, generator=g) - 1) * large).to(dtype).requires_grad_()


def is_distance(x: Tensor, name: str) -> bool:
    """Whether it is the host's, of a box's sides, without bins."""
    return name == "boxes" and x.shape[1] == 4


def leaves(output: Any, name: str = "") -> list[Tensor]:
    if isinstance(output, dict):
        return [leaf for key, part in output.items() for leaf in leaves(part, key)]
    if isinstance(output, (list, tuple)):
        return [leaf for part in output for leaf in leaves(part, name)]
    if not isinstance(output, Tensor) or not output.requires_grad:
        return []
    return [] if output.dtype == UNBOUNDED and is_distance(output, name) else [output]


def check(name: str, head: str, loss: str, count: int, dtype: torch.dtype) -> None:
    model, output = built(name, head)
    criterion = host_of(model).criterion(model, recipe_of(name, head, loss), seed=0)
    given = extreme(output, dtype, torch.Generator().manual_seed(1))
    assert leaves(given)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        vector, items = criterion(given, labels(count))
    assert vector.isfinite().all(), items
    gradients = torch.autograd.grad(vector.sum(), leaves(given), materialize_grads=True)
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize(
    ("name", "head", "loss"), [(name, head, loss) for name, head in HEADS for loss in losses_of(name, head)]
)
def test_a_loss_is_finite_in_every_precision_with_boxes_and_without(name: str, head: str, loss: str) -> None:
    check(name, head, loss, 0, torch.float32)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        check(name, head, loss, 20, dtype)


@pytest.mark.parametrize(("name", "head"), HEADS)
def test_thousands_of_boxes_an_image(name: str, head: str) -> None:
    check(name, head, losses_of(name, head)[-1], 5000, torch.float32)
