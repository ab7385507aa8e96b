"""Model surgery: Ultralytics' detection models with our heads."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import LOGGER

from rebalance.boxes import xywh_to_xyxy
from rebalance.config import as_dict
from rebalance.errors import ModelError
from rebalance.heads.anchor import COCO_ANCHORS, AnchorHead
from rebalance.losses.registry import kept_flags

KEY = "rebalance"  # of model.yaml: what a checkpoint remembers of our flags


class AnchorDetect(AnchorHead, Detect):  # type: ignore[misc]
    """The anchor head as Ultralytics sees a head.

    It is a Detect for exporters and validators, but has none of its layers; `cv2` and `cv3` say so.
    """

    cv2 = ()
    cv3 = None

    @property
    def anchors(self) -> Tensor:  # type: ignore[override]
        """(L, M, 2) in cells; Detect has an attribute of that name, which would hide the buffer."""
        return self._buffers["anchors"]  # type: ignore[return-value]

    def forward(self, features: list[Tensor]) -> Any:
        """Raw maps in training; else (B, 4 + C, N) centre, width, height, scores, with the maps unless exported."""
        maps = self.maps(features)
        if self.training:
            return {"maps": maps}
        decoded = self.decode(maps)
        if self.xyxy:
            corners = xywh_to_xyxy(decoded[:, :4].transpose(1, 2)).transpose(1, 2)
            decoded = torch.cat((corners, decoded[:, 4:]), 1)
        return decoded if self.export else (decoded, {"maps": maps})


class AnchorDetectionModel(DetectionModel):  # type: ignore[misc]
    """Any Ultralytics detection model with two to four levels, its head replaced by the anchor head."""

    def __init__(self, cfg: Any = "yolov5n.yaml", ch: int = 3, nc: int | None = None, verbose: bool = True) -> None:
        super().__init__(cfg, ch=ch, nc=nc, verbose=False)
        old = replaceable_head(self)
        channels = [branch[0].conv.in_channels for branch in old.cv2]
        head: Any = AnchorDetect(old.nc, channels, old.stride, COCO_ANCHORS[old.nl])
        head.i, head.f, head.type = old.i, old.f, f"{AnchorDetect.__module__}.AnchorDetect"
        head.np = sum(p.numel() for p in head.parameters())
        self.model[-1] = head
        if verbose:
            self.info()

    def init_criterion(self) -> Any:
        """The loss that this model was trained with."""
        from rebalance.adapters.ultralytics.criterion import build_criterion

        flags = kept_flags(remembered(self).get("flags", {}), head="anchor")
        return build_criterion(self, flags, seed=int(getattr(self.args, "seed", 0)))


def replaceable_head(model: nn.Module) -> Detect:
    """The stock head of a model, where the anchor head can take its place.

    Raises:
        ModelError: it has another kind of head, or too many levels.
    """
    head = model.model[-1]  # type: ignore[index]
    if type(head) is not Detect or head.nl not in COCO_ANCHORS:
        raise ModelError(
            f"head=anchor needs a detection model with {', '.join(map(str, COCO_ANCHORS))} levels; "
            f"this one ends in {type(head).__name__}" + (f" with {head.nl} levels" if hasattr(head, "nl") else "")
        )
    return head


def remember(model: Any, flags: Any) -> None:
    """Write the flags into the model, as plain values that a checkpoint keeps and any installation can read."""
    model.yaml[KEY] = {"flags": as_dict(flags)}


def remembered(model: Any) -> dict[str, Any]:
    """What `remember` wrote, or an empty dict."""
    yaml = getattr(model, "yaml", None)
    return yaml.get(KEY, {}) if isinstance(yaml, dict) else {}


def host_of(cfg: Any) -> str:
    """The host of a model: yolo, or a detector of torchvision; from its `yaml` or its name."""
    from rebalance.adapters.torchvision.zoo import ZOO

    name = cfg.get("torchvision") if isinstance(cfg, dict) else cfg
    return ZOO[name].host if name in ZOO else "yolo"


def read_state_dict(path: str | Path) -> dict[str, Tensor] | None:
    """The tensors of a plain state dict file; None where the file is something else, e.g. an Ultralytics checkpoint.

    Nothing but tensors is ever unpickled.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        return None
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        return None
    return state


def load_by_name(model: nn.Module, state: dict[str, Tensor], source: str) -> tuple[int, int]:
    """Copy the tensors whose name and shape match.

    Args:
        model: what is filled.
        state: name to tensor, as an original YOLOv5 saves them.
        source: file name, for the message.

    Returns:
        Number of tensors copied, and number in the file.
    """
    own = model.state_dict()
    fits = {k: v for k, v in state.items() if k in own and own[k].shape == v.shape}
    if not fits:
        raise ModelError(f"pretrained={source}: none of its {len(state)} tensors fits this model by name and shape")
    model.load_state_dict(fits, strict=False)
    left = sorted(set(state) - set(fits))
    LOGGER.info(
        f"rebalance: {len(fits)} of {len(state)} tensors of {source} match by name and shape"
        + (f"; not: {', '.join(left)}" if left else "")
    )
    return len(fits), len(state)
