"""On a CUDA device: no waiting for the device, mixed precision, the same draw on every call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from objectives import recipe_of
from ultralytics.cfg import get_cfg
from ultralytics.nn.tasks import DetectionModel

from rebalance.hosts.host import begin_epoch, counts
from rebalance.hosts.ultralytics.model import AnchorDetectionModel, criterion_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype"),
]

IMAGES, SIZE, LABELS = 4, 128, 6


def batch() -> dict[str, Any]:
    """Labels of four images, on the device, counted before they left the host."""
    random = torch.Generator().manual_seed(0)
    centre = torch.rand(IMAGES * LABELS, 2, generator=random) * 0.6 + 0.2
    size = torch.rand(IMAGES * LABELS, 2, generator=random) * 0.3 + 0.05
    labels = {
        "batch_idx": torch.arange(IMAGES).repeat_interleave(LABELS).float(),
        "cls": torch.randint(3, (IMAGES * LABELS, 1), generator=random).float(),
        "bboxes": torch.cat((centre, size), 1),
    }
    return {**{key: value.cuda() for key, value in labels.items()}, "most_labels": LABELS}


def anchor(**given: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = AnchorDetectionModel("yolov5n.yaml", nc=3, verbose=False).cuda().train()
    model.args = get_cfg(overrides={"imgsz": SIZE})
    return model, criterion_of(model, recipe_of({"head": "anchor", **given}), seed=0)


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"obj_drop": 0.75, "box_drop": 0.5},
        {"obj_drop": 0.5, "drop_scope": "literal"},
        *({"loss": loss} for loss in ("varifocal", "brl+drop", "ghm", "ohem", "soft")),
        {"loss": "brl", "brl_overlap": "centre", "divisor": "candidates"},
    ],
    ids=str,
)
def test_the_anchor_criterion_never_waits_for_the_device(given: dict[str, Any]) -> None:
    model, criterion = anchor(**given)
    labels, images = batch(), torch.rand(IMAGES, 3, SIZE, SIZE, device="cuda")
    criterion(model(images), labels)[0].sum().backward()  # makes what is kept on the device
    preds = model(images)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        criterion(preds, labels)[0].sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("head", ["anchor", "stock"])
def test_mixed_precision_is_finite(head: str, dtype: torch.dtype) -> None:
    if head == "anchor":
        model, criterion = anchor(obj_drop=0.75, box_drop=0.75)
    else:
        model = DetectionModel("yolov8n.yaml", nc=3, verbose=False).cuda().train()
        model.args = get_cfg(overrides={"imgsz": SIZE})
        criterion = criterion_of(model, recipe_of({"obj_drop": 0.75, "box_drop": 0.75}), seed=0)
    with torch.autocast("cuda", dtype):
        loss = criterion(model(torch.rand(IMAGES, 3, SIZE, SIZE, device="cuda")), batch())[0].sum()
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert counts(criterion)["obj_dropped"] == counts(criterion)["negatives"] * 3 // 4


def test_the_draw_is_the_same_each_time() -> None:
    model, criterion = anchor(obj_drop=0.5)
    preds, labels = model(torch.rand(IMAGES, 3, SIZE, SIZE, device="cuda")), batch()
    losses = []
    for _ in range(2):
        begin_epoch(criterion, 3)
        losses.append(criterion(preds, labels)[0].detach())
    assert torch.equal(*losses)
