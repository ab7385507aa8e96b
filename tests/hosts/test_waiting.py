"""No criterion of ours reads a value back from the device, which would make the host wait for it in every step.

Told on the processor by the operations that run: those whose result depends on the values of a tensor.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from ultralytics.cfg import get_cfg

import rebalance
from rebalance.hosts import host_of
from rebalance.match import device
from rebalance.match.regions import RegionBatch, region_batch
from rebalance.match.withheld import Withheld
from rebalance.recipe import read

IMAGES, LABELS, SIZE = 2, 5, 64
OURS = str(Path(rebalance.__file__).parent)
OTHERS = tuple(str(Path(sys.modules[name].__file__ or "").parent) for name in ("ultralytics", "torchvision"))
aten = torch.ops.aten
READING = {aten.nonzero, aten.masked_select, aten._unique2, aten.unique_dim, aten.bincount, aten.equal}
READING |= {aten._local_scalar_dense}  # item(), int(), float(), bool()
INDEXING = {aten.index, aten.index_put, aten.index_put_, aten._index_put_impl_}  # reads where an index is a mask

DROP = {"obj_drop": 0.5, "box_drop": 0.5}
# Every method on one head, with its settings that change what is computed; on the others what is theirs alone
METHODS: list[dict[str, Any]] = [{"loss": loss} for loss in ("bce", "focal", "brl", "varifocal", "ghm", "ohem", "soft")]
METHODS += [DROP, {"loss": "brl+drop", **DROP, "drop_scope": "literal", "drop_select": "confident"}]
RESOBJ_DROP = {"loss": "resobj+drop", "drop_scope": "literal", **DROP}
CENTRE = {"loss": "brl", "brl_overlap": "centre", "divisor": "image"}


class Readings(TorchDispatchMode):
    """Notes the operation and the nearest file of ours or of a host, for each reading."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, str]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = function.overloadpacket
        masked = packet in INDEXING and any(i is not None and i.dtype == torch.bool for i in args[1])
        if masked or packet in READING or (packet is aten.repeat_interleave and "output_size" not in (kwargs or {})):
            frame: Any = sys._getframe()
            while frame.f_back is not None and not frame.f_code.co_filename.startswith((OURS, *OTHERS)):
                frame = frame.f_back
            self.found.append((str(function), f"{frame.f_code.co_filename}:{frame.f_lineno}"))
        return function(*args, **(kwargs or {}))


@pytest.fixture(autouse=True)
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """No way is taken that is there for CPUs alone."""
    monkeypatch.setattr(device, "free_to_read", lambda x: False)


def readings(name: str, given: dict[str, Any]) -> list[tuple[str, str]]:
    """Of one loss, forward and backward, of a batch without regions, and of one with that is diagnosed."""
    host = host_of(name)
    recipe = read({**given, "diagnose": True}, host.sites)
    torch.manual_seed(0)
    model: Any = host.build(name, recipe, nc=3, ch=3, verbose=False)
    model.train().args = get_cfg(overrides={"imgsz": SIZE})
    criterion = host.criterion(model, recipe, seed=0)
    g = torch.Generator().manual_seed(0)
    count = IMAGES * LABELS
    boxes = torch.cat((torch.rand(count, 2, generator=g) * 0.6 + 0.2, torch.full((count, 2), 0.3)), 1)
    labels: dict[str, Any] = {
        "batch_idx": torch.arange(IMAGES).repeat_interleave(LABELS).float(), "bboxes": boxes,
        "cls": torch.randint(3, (count, 1), generator=g).float(), "most_labels": LABELS,
    }  # fmt: skip
    images = torch.rand(IMAGES, 3, SIZE, SIZE, generator=g)
    one = RegionBatch(
        torch.zeros(4), torch.rand(4, 4, generator=g) * 0.5 + 0.25, torch.rand(4, 3, generator=g) < 0.7,
        torch.arange(4) < 3, torch.tensor([0.3, *[torch.inf] * 3]), 4,
    )  # fmt: skip
    objects = torch.arange(IMAGES), torch.arange(IMAGES), boxes[:IMAGES]
    said = {**labels, "regions": region_batch([one] * IMAGES), "withheld": Withheld(*objects, most=1, names=3)}

    def run(predictions: Any, batch: dict[str, Any]) -> Tensor:
        total: Tensor = criterion(predictions, batch)[0].sum()
        total.backward()
        return total

    run(model(images), said)  # makes what is kept from step to step
    mode = Readings()
    for batch in (labels, said):
        predictions = model(images)
        with mode:
            run(predictions, batch)
    return mode.found


@pytest.mark.parametrize(
    ("name", "given"),
    [
        *(("yolov5n.yaml", {"head": "anchor", **given}) for given in [*METHODS, CENTRE]),
        *(("yolov5n.yaml", given) for given in ({"loss": "obj"}, {"loss": "resobj+brl"}, RESOBJ_DROP)),
        *(("retinanet_tiny", given) for given in ({"loss": "bce"}, {"loss": "brl"}, {"loss": "ghm"}, METHODS[-1])),
        *(("retinanet_tiny", given) for given in ({"loss": "obj"}, {"loss": "resobj+brl"}, RESOBJ_DROP)),
        *(
            ("ssd_tiny", given)
            for given in ({"loss": "bce"}, {"loss": "focal"}, {"loss": "ohem"}, {"loss": "soft"}, DROP)
        ),
    ],
    ids=str,
)
def test_nothing_is_read_from_the_device(name: str, given: dict[str, Any]) -> None:
    assert readings(name, given) == []


@pytest.mark.parametrize(
    ("name", "given"),
    [
        *(("yolov8n.yaml", given) for given in ({"loss": "bce"}, {"loss": "soft"}, {"loss": "ghm"}, CENTRE, DROP)),
        *(("yolov8n.yaml", given) for given in ({"loss": "obj"}, RESOBJ_DROP)),
        *(("yolo26n.yaml", given) for given in (DROP, {"loss": "resobj"})),
        # not ohem: the proposals that non-maximum suppression leaves are as many as they are
        *(("fasterrcnn_tiny", given) for given in ({"loss": "bce"}, {"loss": "nrd"}, {"loss": "soft"}, DROP)),
        *(("fasterrcnn_tiny", given) for given in ({"loss": "obj"}, {"loss": "resobj"})),
    ],
    ids=str,
)
def test_where_the_host_reads_we_do_not(name: str, given: dict[str, Any]) -> None:
    found = readings(name, given)
    assert not [where for _, where in found if where.startswith(OURS)]
    assert found  # the host's own: without them the mode would have seen nothing


def test_the_mode_sees_what_it_should() -> None:
    x, mode = torch.tensor([1.0, 0]), Readings()
    with mode:
        x[x > 0].sum().item()
        x.nonzero()
    assert [function.split(".")[1] for function, _ in mode.found] == ["index", "_local_scalar_dense", "nonzero"]
