"""Object detection training for incomplete labels.

    from rebalance import YOLO
    YOLO("yolov8n.pt").train(data="my.yaml", loss="drop", obj_drop=0.75)

`YOLO` is Ultralytics' with our flags; `trainer(loss=..., ...)` is a trainer class for Ultralytics' own `YOLO`.
`complete(data=..., audit=...)` and `rounds(data=..., model=..., ...)` are the commands of these names.
"""

from typing import Any

from rebalance import moved

__version__ = "0.1.0"
__all__ = ["YOLO", "__version__", "complete", "rounds", "trainer"]

moved.install()


def __getattr__(name: str) -> Any:  # loads torch and the host on first use only, so that `rebalance help` is instant
    if name == "YOLO":
        from rebalance.train.api import YOLO

        return YOLO
    if name == "trainer":
        from rebalance.train.trainer import trainer

        return trainer
    if name in ("complete", "rounds"):
        from rebalance.audit import api

        return getattr(api, name)
    raise AttributeError(f"module 'rebalance' has no attribute {name!r}")
