"""Compares the losses of two checkouts of rebalance on the same inputs, bit for bit.

    python scripts/compare_versions.py dump --tree <checkout> --out old.pt [--only <pattern>]
    python scripts/compare_versions.py compare old.pt new.pt

A case is a model, training flags and a kind of batch. Its criterion runs two steps of epoch 0, a validation and a step
of a later epoch, on predictions and labels that are drawn from a fixed seed: what it says of itself, its losses, their
gradients in the head's predictions, what was dropped, the objectness after each step and the moving averages are kept.
Of each model the weights, the gradients in them and the decoded predictions are kept too, and the texts that bad input
is refused with. Numbers that differ, and cases that one side lacks, make exit code 1; texts that differ are listed.

Tensors are kept as a digest of their bytes, two sums and a sample, from which a difference is told. What a checkout
calls its parts stands in `open_tree` alone.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import os
import re
import runpy
import sys
import tempfile
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.mkdtemp(prefix="compare-"))
os.environ.setdefault("MPLBACKEND", "Agg")

import torch
from torch import Tensor

Flags = dict[str, Any]
SIZE, IMAGES, EPOCHS = 64, 3, 5  # pixels, images a batch, epochs of the run that is played
KINDS = ("ordinary", "one image without labels", "no labels")  # the first for every case, of the others one in turn
LATER = 2  # the later epoch, the first after every warm-up here
SAMPLE = 128  # elements kept of a tensor


# A checkout -----------------------------------------------------------------------------------------------------------


class Tree(NamedTuple):
    """What a checkout is asked for."""

    refusal: type[Exception]
    build: Callable[[str, int, Flags], Any]  # model name, classes, flags -> model
    criterion: Callable[[Any, str, Flags, int], Any]  # model, its name, flags, seed
    begin_epoch: Callable[[Any, int], None]
    counts: Callable[[Any], dict[str, int]]
    step_means: Callable[[Any], dict[str, float]]
    averages: Callable[[Any], list[list[float] | None]]
    describe: Callable[[Any, str, Flags], dict[str, Any]]  # model with its criterion, its name, flags


def open_tree(folder: Path) -> Tree:
    """Import rebalance from a checkout. Its names at the time of `rebalance.adapters`, and those of today."""
    sys.path.insert(0, str(folder))
    import rebalance

    if not Path(rebalance.__file__).resolve().is_relative_to(folder):
        sys.exit(f"{rebalance.__file__} is not in {folder}")
    from ultralytics.nn.tasks import DetectionModel

    from rebalance.errors import RebalanceError

    if (folder / "rebalance" / "recipe.py").is_file():
        from rebalance.hosts import host, host_of
        from rebalance.recipe import read

        def recipe(name: str, given: Flags) -> Any:
            return read(given, host_of(name).sites)

        return Tree(
            refusal=RebalanceError,
            build=lambda name, nc, given: host_of(name).build(name, recipe(name, given), nc=nc, ch=3, verbose=False),
            criterion=lambda model, name, given, seed: host_of(name).criterion(model, recipe(name, given), seed),
            begin_epoch=host.begin_epoch,
            counts=host.counts,
            step_means=host.step_means,
            averages=lambda criterion: [kept.get("average") for kept in host.keep(criterion)],
            describe=lambda model, name, given: host.describe(model),
        )
    from rebalance.adapters.torchvision.model import TorchvisionModel
    from rebalance.adapters.ultralytics import criterion as parts
    from rebalance.adapters.ultralytics.model import anchored, host_of, model_class
    from rebalance.adapters.ultralytics.trainer import describe
    from rebalance.losses.resolve import train_flags

    def values(name: str, given: Flags) -> Any:
        return train_flags(given, host=host_of(name), anchored=anchored(name))

    def build(name: str, nc: int, given: Flags) -> Any:
        flags = values(name, given)
        if host_of(name) != "yolo":
            return TorchvisionModel(name, nc=nc, verbose=False, flags=flags)
        if flags.head == "stock":
            return DetectionModel(name, nc=nc, verbose=False)
        return model_class(name, flags.head)(name, nc=nc, verbose=False, flags=flags)

    return Tree(
        refusal=RebalanceError,
        build=build,
        criterion=lambda model, name, given, seed: parts.build_criterion(model, values(name, given), seed),
        begin_epoch=parts.begin_epoch,
        counts=parts.counts,
        step_means=parts.step_means,
        averages=parts.averages,
        describe=lambda model, name, given: describe(values(name, given), model),
    )


# Cases ----------------------------------------------------------------------------------------------------------------


def crossed(**lists: tuple[Any, ...]) -> list[Flags]:
    """Every combination of the values."""
    return [dict(zip(lists, chosen, strict=True)) for chosen in product(*lists.values())]


DIVISORS = ("host", "image", "batch", "candidates")
SCOPES = ("background", "matched", "literal")
BOTH = {"obj_drop": 0.5, "box_drop": 0.4, "neg_iou": 0.4}
BRL = {"brl_t": 0.3, "brl_iou": 0.3, "brl_weight": 0.6, "brl_beta": 0.5, "brl_gamma": 1.5, "brl_alpha": 0.4}

# What is tried at every place; a place that refuses it keeps the refusal
EVERYWHERE: list[Flags] = [
    {},
    *crossed(loss=("bce", "focal", "brl", "ghm", "ohem", "soft"), divisor=DIVISORS),
    *({"loss": name} for name in ("focal", "brl", "ghm", "ohem", "soft", "nrd")),
    *({"loss": name} for name in ("focal+ohem", "bce+ohem", "focal+soft", "focal+ghm", "brl+soft")),
    *({"loss": "focal", "focal_gamma": gamma} for gamma in (0, 0.5, 1, 3)),
    *({"loss": "focal", "focal_alpha": alpha} for alpha in (-1, 0, 0.75)),
    {"loss": "focal", "focal_gamma": 0, "focal_alpha": -1},
    *({"loss": "brl", "brl_t": t} for t in (0, 0.3, 0.8, 1)),
    *({"loss": "brl", "brl_iou": iou} for iou in (0, 0.3, 1)),
    *({"loss": "brl", "brl_weight": weight} for weight in (0, 0.5, 1, 2)),
    *({"loss": "brl", "brl_beta": beta} for beta in (0, 0.5, 2)),
    *({"loss": "brl", "brl_gamma": gamma} for gamma in (0, 1)),
    *({"loss": "brl", "brl_alpha": alpha} for alpha in (-1, 0.6)),
    {"loss": "brl", "brl_overlap": "centre"},
    {"loss": "brl", "brl_warmup": 2},
    *crossed(loss=("brl",), divisor=("auto", *DIVISORS), **{name: (value,) for name, value in BRL.items()}),
    {"obj_drop": 0.5},
    {"box_drop": 0.5},
    {"obj_drop": 1, "box_drop": 1},
    {"obj_drop": 0.29, "neg_iou": 0.7},
    {"loss": "drop"},
    {**BOTH, "drop_warmup": 2},
    *crossed(
        drop_scope=SCOPES, drop_divisor=("kept", "host"), drop_select=("random", "confident"),
        **{name: (value,) for name, value in BOTH.items()},
    ),
    *crossed(
        drop_scope=SCOPES, drop_divisor=("kept", "host"), divisor=DIVISORS[1:],
        **{name: (value,) for name, value in BOTH.items()},
    ),
    *crossed(
        loss=("focal+drop", "brl+drop"), drop_scope=SCOPES, drop_divisor=("kept", "host"),
        **{name: (value,) for name, value in BOTH.items()},
    ),
    {"loss": "brl+drop", **BRL, **BOTH},
    *({"loss": "ghm", "ghm_bins": bins} for bins in (1, 5)),
    *({"loss": "ghm", "ghm_momentum": momentum} for momentum in (0, 0.5)),
    *crossed(loss=("ghm",), ghm_bins=(40,), ghm_momentum=(0.9,), ghm_regions=("all", "occupied")),
    *({"loss": "ohem", "ohem_ratio": ratio} for ratio in (0, 0.5, 1.3)),
    *({"loss": "ohem", "ohem_rois": rois} for rois in (1, 16)),
    {"loss": "ohem", "ohem_ratio": 1.3, "divisor": "candidates"},
    *({"loss": "soft", "soft_a": a} for a in (0, 1)),
    {"loss": "soft", "soft_b": 5},
    {"loss": "soft", "soft_c": 3},
    {"loss": "focal+soft", "soft_a": 0.6, "soft_b": 5, "soft_c": 3, "focal_gamma": 1},
    *crossed(loss=("nrd",), nrd_rate=(0, 0.3, 1), nrd_stage=("roi", "rpn")),
    *crossed(loss=("nrd",), nrd_stage=("rpn",), divisor=DIVISORS),
]  # fmt: skip
GAINS: list[Flags] = [
    {"anchor_t": 2},
    {"box_gain": 0.2},
    {"obj_gain": 0.3},
    {"cls_gain": 2},
    {"anchor_t": 1.5, "box_gain": 0.2, "obj_gain": 0.3, "cls_gain": 2, **BOTH},
    {"anchor_t": 8, "loss": "brl", **BRL},
]
STEPS: list[Flags] = [
    *crossed(resobj_steps=(0, 1, 2, 3), resobj_on=("obj", "cls"), resobj_grad=("isolated", "joint")),
    *({"resobj_steps": 3, "resobj_grad": "joint", **more} for more in (BOTH, {"loss": "focal"}, {"loss": "soft"})),
    {"resobj_steps": 1, "resobj_on": "cls", "loss": "brl", **BRL},
]


class Case(NamedTuple):
    """A model and its training flags."""

    model: str
    classes: int
    flags: Flags
    seed: int = 0

    @property
    def name(self) -> str:
        """As it is listed."""
        flags = " ".join(f"{k}={v}" for k, v in self.flags.items())
        return f"{self.model} nc={self.classes} seed={self.seed} {flags}".strip()

    @property
    def build(self) -> Case:
        """What the model itself is made of."""
        kept = ("head", "resobj_steps", "resobj_on", "resobj_grad")
        return self._replace(flags={k: v for k, v in self.flags.items() if k in kept}, seed=0)


def cases() -> Iterator[Case]:
    """All that is compared."""
    anchors = ("yolov5n.yaml",)
    for name, heads in {
        "yolov8n.yaml": ("stock", "obj", "resobj"),
        "yolo26n.yaml": ("stock", "resobj"),
        "yolov5n.yaml": ("anchor", "obj", "resobj"),
        "retinanet_tiny": ("stock", "obj", "resobj"),
        "ssd_tiny": ("stock", "obj"),
        "fasterrcnn_tiny": ("stock", "obj", "resobj"),
    }.items():
        for head in heads:
            chosen = [*EVERYWHERE, *(STEPS if head == "resobj" else []), *(GAINS if name in anchors else [])]
            given = {} if head == "stock" else {"head": head}
            yield from (Case(name, 3, {**given, **flags}) for flags in chosen)
            yield Case(name, 3, {**given, **BOTH}, seed=7)
            yield from (Case(name, 1, {**given, **flags}) for flags in ({}, {"loss": "focal"}, BOTH))
    for name, head in {"yolov8n-p6.yaml": "anchor", "yolov3-tiny.yaml": "anchor", "yolo11n.yaml": "stock"}.items():
        given = {} if head == "stock" else {"head": head}
        for flags in ({}, BOTH, {"loss": "brl", **BRL}, {"loss": "ohem"}, {"loss": "ghm"}):
            yield Case(name, 3, {**given, **flags})


# Inputs ---------------------------------------------------------------------------------------------------------------


def generator(*key: Any) -> torch.Generator:
    """Random numbers of their own for each key."""
    seed = int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:7], "big")
    return torch.Generator().manual_seed(seed)


def labels(kind: str, classes: int, step: int) -> dict[str, Any]:
    """A batch as the host's loader gives it: labels of all sizes, two that differ in class alone, a tiny one."""
    g = generator("labels", kind, classes, step)
    each = {"ordinary": (5, 2, 3), "one image without labels": (4, 0, 2), "no labels": (0, 0, 0)}[kind]
    image = torch.cat([torch.full((count,), float(i)) for i, count in enumerate(each)])
    centre, side = torch.rand(len(image), 2, generator=g), torch.rand(len(image), 2, generator=g) ** 2 * 0.6 + 0.08
    boxes = torch.cat(((side / 2).maximum(centre.minimum(1 - side / 2)), side), 1)
    cls = torch.randint(classes, (len(image), 1), generator=g).float()
    if len(image):
        boxes[1], cls[1] = boxes[0], (cls[0] + 1) % classes
        boxes[2] = torch.tensor((20, 20, 16, 16)) / SIZE  # its border runs through centres of cells
        boxes[3, 2:] = 0.02
    batch: dict[str, Any] = {"batch_idx": image, "cls": cls, "bboxes": boxes}
    if step % 2:
        batch["most_labels"] = max(each)
    return batch


def cut(raw: Any) -> Any:
    """The same without the graph, which would keep all that the model computed."""
    if isinstance(raw, dict):
        return (OrderedDict if isinstance(raw, OrderedDict) else dict)((k, cut(v)) for k, v in raw.items())
    if isinstance(raw, (list, tuple)):
        return type(raw)([cut(v) for v in raw])
    return raw.detach().requires_grad_(raw.requires_grad) if isinstance(raw, Tensor) else raw


def predictions(raw: Any, key: tuple[Any, ...], found: dict[str, Tensor], path: str = "") -> Any:
    """What the head gave with other numbers, drawn from the key; the tensors are put into `found`, by path."""
    if isinstance(raw, dict):
        kind = OrderedDict if isinstance(raw, OrderedDict) else dict
        return kind((k, predictions(v, key, found, f"{path}.{k}" if path else str(k))) for k, v in raw.items())
    if isinstance(raw, (list, tuple)):
        return type(raw)([predictions(v, key, found, f"{path}.{i}") for i, v in enumerate(raw)])
    if not isinstance(raw, Tensor) or not raw.requires_grad:
        return raw
    if "feats" in path:  # read for their shape
        return raw.detach()
    noise = torch.randn(raw.shape, generator=generator(*key, path))
    if "boxes" in path:  # from distances of about a cell and a half
        if raw.shape[1] > 4:
            bins = raw.shape[1] // 4
            value = noise * 0.7 - (torch.arange(bins) * 0.5).repeat(4).view(1, -1, 1)
        else:
            value = noise.abs() + 0.7
    elif "deltas" in path:
        value = noise * 0.3
    elif "features" in path:
        value = noise * 0.5
    else:
        value = noise * 2 - (0 if "residuals" in path else 1)
        value.view(-1)[::41], value.view(-1)[20::41] = 40, -40  # so sure that a score is 1, and nearly 0
    found[path] = value.requires_grad_()
    return value


# Dumping --------------------------------------------------------------------------------------------------------------


def digest(x: Tensor) -> dict[str, Any]:
    """A tensor in short. Zeros have no sign here."""
    x = x.detach().contiguous()
    x = x + 0.0 if x.is_floating_point() else x
    flat = x.flatten().double()
    return {
        "shape": tuple(x.shape), "dtype": str(x.dtype),
        "sha": hashlib.sha256(x.view(-1).numpy().tobytes()).hexdigest()[:24],
        "sum": float(flat.sum()), "size": float(flat.abs().sum()),
        "sample": flat[:: max(1, len(flat) // SAMPLE)].clone(),
    }  # fmt: skip


class Dump:
    """Runs the cases of a checkout and keeps what came of them."""

    def __init__(self, tree: Tree) -> None:
        self.tree, self.models, self.cases = tree, dict[str, Any](), dict[str, Any]()
        self.built: dict[str, tuple[Any, Any]] = {}  # model and what its head predicts

    def model(self, case: Case) -> tuple[Any, Any]:
        """The model of a case, made once, and what its head predicts in training."""
        from ultralytics.cfg import get_cfg

        name = case.build.name
        if name not in self.built:
            torch.manual_seed(0)
            model = self.tree.build(case.model, case.classes, case.build.flags).train()
            model.args = get_cfg(overrides={"imgsz": SIZE, "epochs": EPOCHS})
            head = model.model[-1]
            if hasattr(head, "side"):  # as the trainer does
                head.side = SIZE
            if hasattr(head, "numbers"):  # so few samples that there are more positives than a sample may have
                head.numbers = head.numbers._replace(anchors=8, rois=8)
            weights = {k: digest(v) for k, v in model.state_dict().items()}
            images = torch.rand(IMAGES, 3, SIZE, SIZE, generator=generator("images"))
            raw = model(images)
            model.criterion = self.tree.criterion(model, case.model, case.build.flags, 0)
            self.tree.begin_epoch(model.criterion, 0)
            loss, items = model.criterion(raw, labels("ordinary", case.classes, 0))
            loss.sum().backward()
            gradients = {k: digest(p.grad) for k, p in model.named_parameters() if p.grad is not None}
            model.zero_grad()
            with torch.no_grad():
                decoded = model.eval()(images)[0]
            raw = cut(raw)
            model.train()
            self.models[name] = {
                "weights": weights, "order": list(weights), "loss": digest(loss),
                "items": {k: digest(v) for k, v in items.items()}, "gradients": gradients, "decoded": digest(decoded),
            }  # fmt: skip
            self.built[name] = model, raw
        return self.built[name]

    def step(self, model: Any, raw: Any, case: Case, kind: str, step: int) -> dict[str, Any]:
        """One batch."""
        found: dict[str, Tensor] = {}
        preds = predictions(raw, (case.model, case.classes, step), found)
        batch = labels(kind, case.classes, step)
        if not torch.is_grad_enabled():
            loss, items = model.criterion((None, preds), batch)
            return {"loss": digest(loss), "items": {k: digest(v) for k, v in items.items()}}
        loss, items = model.criterion(preds, batch)
        gradients = torch.autograd.grad(loss.sum(), list(found.values()), allow_unused=True)
        return {
            "loss": digest(loss), "items": {k: digest(v) for k, v in items.items()},
            "gradients": {k: digest(g) for k, g in zip(found, gradients, strict=True) if g is not None},
        }  # fmt: skip

    def state(self, criterion: Any) -> dict[str, Any]:
        """What an epoch left."""
        return {
            "counts": self.tree.counts(criterion), "step_means": self.tree.step_means(criterion),
            "averages": self.tree.averages(criterion),
        }  # fmt: skip

    def run(self, case: Case, kinds: tuple[str, ...]) -> None:
        """A case with batches of these kinds."""
        try:
            model, raw = self.model(case)
            self.tree.criterion(model, case.model, case.flags, case.seed)
        except self.tree.refusal as error:
            self.cases[case.name] = {"text": {"refused": str(error)}}
            return
        for kind in kinds:
            model.criterion = criterion = self.tree.criterion(model, case.model, case.flags, case.seed)
            told = self.tree.describe(model, case.model, case.flags)
            kept: dict[str, Any] = {"text": told}
            self.tree.begin_epoch(criterion, 0)
            kept["step 1"] = self.step(model, raw, case, kind, 0)
            kept["step 2"] = self.step(model, raw, case, kind, 1)
            with torch.no_grad():
                kept["validation"] = self.step(model, raw, case, kind, 2)
            kept["state"] = self.state(criterion)
            if hasattr(criterion, "update"):
                criterion.update()
            self.tree.begin_epoch(criterion, LATER)
            kept["later"] = self.step(model, raw, case, kind, 3)
            kept["state later"] = self.state(criterion)
            self.cases[f"{case.name} | {kind}"] = kept


# Refusals -------------------------------------------------------------------------------------------------------------

V8, V5 = "model=yolov8n.yaml", "model=yolov5n.yaml"
RETINA, SSD, FASTER = "model=retinanet_tiny", "model=ssd_tiny", "model=fasterrcnn_tiny"
# Command lines. Those of `train` name a data set without images, at which what is accepted comes to its end
BAD_INPUT = [
    f"train {V8} loss=fokal", f"train {V8} loss=focal+ghm", f"train {V8} loss=soft+brl", f"train {V8} loss=drop+drop",
    f"train {V8} loss=bce+", f"train {V8} loss=nrd", f"train {V8} loss=resobj head=obj", f"train {V8} loss=obj+resobj",
    f"train {V8} loss=bce obj_drop=0.5", f"train {V8} loss=focal brl_t=0.1", f"train {V8} loss=ghm soft_a=0.5",
    f"train {V8} obj_drop=1.5", f"train {V8} obj_drop=x", f"train {V8} obj_drop=nan", f"train {V8} obj_drp=0.5",
    f"train {V8} drop_scope=foreground", f"train {V8} drop_scope=literl obj_drop=0.5", f"train {V8} drop_warmup=1.5",
    f"train {V8} anchor_t=3", f"train {V8} box_gain=0.1", f"train {V8} resobj_steps=3", f"train {V8} resobj_steps=9",
    f"train {V8} head=resobj resobj_on=box", f"train {V8} head=ancor", f"train {V8} head=obj anchor_t=3",
    f"train {V8} nrd_rate=0.5", f"train {V8} ohem_rois=64", f"train {V8} divisor=mean", f"train {V8} ghm_momentum=1",
    f"train {V8} ghm_bins=0", f"train {V8} ghm_regions=some", f"train {V8} brl_overlap=iou", f"train {V8} brl_t=2",
    f"train {V8} focal_alpha=-2", f"train {V8} epoch=3 loss=focal", f"train {V8} epochs=x loss=focal",
    f"train {V8} head=resobj loss=ohem", f"train {V8} head=resobj loss=ghm", f"train {V8} loss=resobj+ghm",
    f"train {V8} head=anchor cls=0.7", f"train {V5} head=obj box=5", f"train {V5} autoanchor=maybe head=anchor",
    f"train {V5} head=anchor loss=nrd", f"train {V5} head=anchor resobj_grad=joint", f"train {V5} anchor_t=0.5",
    f"train {RETINA} head=anchor", f"train {RETINA} loss=nrd", f"train {RETINA} brl_overlap=centre",
    f"train {RETINA} head=resobj loss=ghm", f"train {RETINA} head=obj loss=ohem", f"train {RETINA} cls=2",
    f"train {SSD} head=obj", f"train {SSD} loss=brl", f"train {SSD} loss=ghm", f"train {SSD} head=resobj",
    f"train {FASTER} loss=focal", f"train {FASTER} loss=brl", f"train {FASTER} divisor=batch",
    f"train {FASTER} ohem_ratio=2", f"train {FASTER} nrd_stage=head", f"train {FASTER} ohem_rois=0",
    f"train {FASTER} loss=bce nrd_rate=0.5", f"train {FASTER} head=obj loss=focal", f"train {FASTER} box=3",
    "train model=retinanet_tinny loss=brl", "train model=yolov8n-cls.yaml loss=brl", f"train {V8} loss=focal",
    "train model=yolov8n-seg.yaml head=anchor", "train model=yolov10n.yaml head=obj", "train", "trian",
    f"train {RETINA} freeze=3", f"train {RETINA} distill_model=yolov8n.yaml", f"train {V8} loss",
    "train resume model=yolov8n.yaml", "sparsify", "sparsify data=none.yaml", "sparsify data=none.yaml rate=2",
    "sparsify data=none.yaml out=made protocol=extrem", "sparsify data=none.yaml keep_one=perhaps", "sparsify dta=x",
    "sweep obj_drop=0,2 model=yolov8n.yaml data=none.yaml", "sweep loss=focal,dorp model=yolov8n.yaml data=none.yaml",
    "sweep", "report", "report nowhere", "bench only=yolo", "bench repeats=1", "steps", "steps model=none.pt source=x",
    "seafloor size=10", "seafloor labelled=2", "benchmark preset=huge", "help trian", "val", "hook", "hook begone",
]  # fmt: skip


def refusals() -> dict[str, Any]:
    """What each line of BAD_INPUT is answered with, in an empty folder."""
    found, before = {}, (Path.cwd(), sys.argv[:])
    for line in BAD_INPUT:
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            Path("some.yaml").write_text(f"path: {folder}\ntrain: no\nval: no\nnames: {{0: a, 1: b}}\n", "utf-8")
            sys.argv[:] = ["rebalance", *line.split(), *(["data=some.yaml"] if line.startswith("train ") else [])]
            out, err, code = io.StringIO(), io.StringIO(), None
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                try:
                    runpy.run_module("rebalance", run_name="__main__", alter_sys=False)
                except SystemExit as end:
                    code = end.code
                except Exception as error:
                    code = f"{type(error).__name__}: {str(error).splitlines()[0]}"
            left = sorted(file.name for file in Path.cwd().iterdir() if file.name != "some.yaml")
            told = f"[{code}] {(err.getvalue() or out.getvalue()).strip()[:2000]}{f' left: {left}' if left else ''}"
            found[line] = told.replace(folder, "<folder>")
            os.chdir(before[0])
    sys.argv[:] = before[1]
    return found


def dump(folder: Path, out: Path, only: str) -> None:
    """Run a checkout and write what came of it."""
    start = time.monotonic()
    torch.set_num_threads(1)
    job = Dump(open_tree(folder))
    for index, case in enumerate(cases()):
        if re.search(only, case.name):
            job.run(case, (KINDS[0], KINDS[1 + index % 2]))
    ran = sum("refused" not in kept["text"] for kept in job.cases.values())
    spent = time.monotonic() - start
    texts = {} if only else refusals()
    part = out.with_name(f".{out.name}.{os.getpid()}")
    torch.save({"cases": job.cases, "models": job.models, "refusals": texts}, part)
    part.replace(out)
    print(
        f"{out}: {ran} cases ran and {len(job.cases) - ran} were refused, on {len(job.models)} models; "
        f"{len(texts)} bad inputs; {spent:.0f} s"
    )


# Comparing ------------------------------------------------------------------------------------------------------------


def differences(a: Any, b: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Where two records differ, and how."""
    if isinstance(a, Mapping) and isinstance(b, Mapping) and "sha" in a and "sha" in b:
        if (a["sha"], a["shape"], a["dtype"]) != (b["sha"], b["shape"], b["dtype"]):
            if a["shape"] != b["shape"] or a["dtype"] != b["dtype"]:
                yield path, f"{a['shape']} {a['dtype']}, {b['shape']} {b['dtype']}"
            else:
                off = float((a["sample"] - b["sample"]).abs().max()) if len(a["sample"]) else 0.0
                yield path, f"sums {a['sum']:.9g} and {b['sum']:.9g}; at most {off:.3g} apart in a sample"
    elif isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in [*a, *(k for k in b if k not in a)]:
            if key not in a or key not in b:
                yield f"{path} {key}".strip(), "only in the first" if key in a else "only in the second"
            else:
                yield from differences(a[key], b[key], f"{path} {key}".strip())
    elif isinstance(a, str) and isinstance(b, str) and a != b:
        yield path, wording(a, b)
    elif a != b and not (a != a and b != b):
        yield path, f"{a!r}, {b!r}"


def wording(a: str, b: str) -> str:
    """The words that only one of two texts has."""
    one, other = Counter(a.split()), Counter(b.split())
    found = [f"{sign} {' '.join(words)}" for sign, words in (("-", one - other), ("+", other - one)) if words]
    return " ".join(found) or "the same words in another order"


def compare(first: Path, second: Path, shown: int) -> int:
    """Print how two dumps differ; the exit code."""
    a, b = (torch.load(file, weights_only=False) for file in (first, second))
    numbers: dict[str, list[tuple[str, str]]] = {}
    texts: dict[tuple[str, str], list[str]] = {}  # of one difference in words, where it stands
    for part in ("models", "cases"):
        for name in [*a[part], *(k for k in b[part] if k not in a[part])]:
            if name not in a[part] or name not in b[part]:
                numbers[name] = [("", "only in the first" if name in a[part] else "only in the second")]
                continue
            for path, how in differences(a[part][name], b[part][name]):
                if path.startswith("text"):
                    texts.setdefault((path, how), []).append(name)
                else:
                    numbers.setdefault(name, []).append((path, how))
    for line, how in differences(a["refusals"], b["refusals"]):
        texts.setdefault(("refusal", how), []).append(f"rebalance {line}")
    for (path, how), names in list(texts.items())[:shown]:
        print(f"{len(names)} texts differ ({path}): {how}\n  e.g. {names[0]}")
    for name, listed in list(numbers.items())[:shown]:
        print(f"numbers differ: {name}")
        for path, how in listed[:6]:
            print(f"  {path}: {how}" if path else f"  {how}")
        if len(listed) > 6:
            print(f"  and {len(listed) - 6} more")
    for what, found in (("texts differ in", texts), ("numbers differ in", numbers)):
        if len(found) > shown:
            print(f"{what} {len(found) - shown} more {'ways' if found is texts else 'cases'}")
    cases_, models = len({*a["cases"], *b["cases"]}), len({*a["models"], *b["models"]})
    print(
        f"{cases_} cases, {models} models, {len(a['refusals'])} bad inputs: "
        f"numbers differ in {len(numbers)}, texts in {sum(map(len, texts.values()))}"
    )
    return 1 if numbers else 0


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("dump", help="run a checkout")
    one.add_argument("--tree", type=Path, required=True, help="its folder")
    one.add_argument("--out", type=Path, required=True, help="file to write")
    one.add_argument("--only", default="", help="regular expression: cases whose name holds it, no bad input")
    two = commands.add_parser("compare", help="compare two dumps")
    two.add_argument("first", type=Path)
    two.add_argument("second", type=Path)
    two.add_argument("--shown", type=int, default=20, help="differences that are listed")
    given = parser.parse_args()
    if given.command == "compare":
        return compare(given.first, given.second, given.shown)
    dump(given.tree.resolve(), given.out.resolve(), given.only)
    return 0


if __name__ == "__main__":
    sys.exit(main())
