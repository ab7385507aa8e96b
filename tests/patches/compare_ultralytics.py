"""Child process of test_ultralytics_patch: the patched Ultralytics loss beside the published one and beside ours."""

import sys
from functools import partial
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import torch
import ultralytics.utils.loss as patched  # the copy: it comes first on the path
from ultralytics.cfg import get_cfg
from upstream import Checks

from rebalance.hosts.ultralytics.criterion import DetectionCriterion
from rebalance.hosts.ultralytics.sites import YoloSites
from rebalance.methods.method import Run
from rebalance.recipe import read

STOCK, COPY = Path(sys.argv[1]), Path(sys.argv[2])
assert COPY in Path(patched.__file__).parents
spec = spec_from_file_location("ultralytics.utils.published", STOCK / "utils/loss.py")
published = module_from_spec(spec)
spec.loader.exec_module(published)

IMAGES, CLASSES, SIZE, SEED = 3, 4, 64, 7
STRIDE = torch.tensor([8.0, 16.0, 32.0])
CANDIDATES = sum((SIZE // int(s)) ** 2 for s in STRIDE)
Run.generator = lambda self, device, *purpose: torch.Generator(device).manual_seed(SEED)
check = Checks()


class Head:
    """As much of a detection head as the loss looks at."""

    nc, stride = CLASSES, STRIDE

    def __init__(self, reg_max):
        self.reg_max = reg_max


class Model(torch.nn.Module):
    """As much of a detection model as the loss looks at."""

    def __init__(self, reg_max=16, **flags):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.args, self.model = get_cfg(overrides=flags), [Head(reg_max)]


def inputs(reg_max=16, seed=0, labels=14):
    """Raw predictions and labels; the last image has none."""
    g = torch.Generator().manual_seed(seed)
    preds = {
        "boxes": torch.randn(IMAGES, 4 * reg_max, CANDIDATES, generator=g) * (2 if reg_max > 1 else 1) + (reg_max == 1),
        "scores": torch.randn(IMAGES, CLASSES, CANDIDATES, generator=g) * 2,
        "feats": [torch.zeros(IMAGES, 1, SIZE // int(s), SIZE // int(s)) for s in STRIDE],
    }
    image = torch.randint(IMAGES - 1, (labels,), generator=g).sort().values.float()
    classes = torch.randint(CLASSES, (labels, 1), generator=g).float()
    boxes = torch.cat((torch.rand(labels, 2, generator=g), torch.rand(labels, 2, generator=g) * 0.6 + 0.15), 1)
    return preds, {"batch_idx": image, "cls": classes, "bboxes": boxes}


def run(criterion, preds, batch):
    leaves = {k: preds[k].clone().requires_grad_() for k in ("boxes", "scores")}
    total, items = criterion({**preds, **leaves}, batch)
    total.sum().backward()
    return torch.stack(list(items.values())), [x.grad for x in leaves.values()]


def run_end_to_end(criterion, preds, batch):
    branches = {k: {n: x.clone().requires_grad_() for n, x in preds.items() if n != "feats"} for k in BRANCHES}
    total, items = criterion({k: {**preds, **v} for k, v in branches.items()}, batch)
    total.sum().backward()
    return torch.stack(list(items.values())), [x.grad for v in branches.values() for x in v.values()]


BRANCHES = ("one2many", "one2one")


def seeded(criterion):
    for branch in (criterion.one2many, criterion.one2one) if hasattr(criterion, "one2one") else (criterion,):
        branch.rebalance.generator = torch.Generator().manual_seed(SEED)
    return criterion


def new_loss(reg_max=16, **flags):
    return seeded(patched.v8DetectionLoss(Model(reg_max, **flags)))


def ours(reg_max=16, **flags):
    return DetectionCriterion(Model(reg_max), recipe=read(flags, YoloSites()), seed=0)


def same(a, b):
    return torch.equal(a[0], b[0]) and all(torch.equal(x, y) for x, y in zip(a[1], b[1], strict=True))


def close(a, b):
    return all(torch.allclose(x, y, rtol=1e-4, atol=1e-6) for x, y in zip((a[0], *a[1]), (b[0], *b[1]), strict=True))


for reg_max in (16, 1):
    preds, batch = inputs(reg_max)
    stock = run(published.v8DetectionLoss(Model(reg_max)), preds, batch)
    check.that(f"off: as published, to the bit, reg_max {reg_max}", same(stock, run(new_loss(reg_max), preds, batch)))
    zero = {"obj_drop": 0, "box_drop": 0, "neg_iou": 0.5, "drop_scope": "matched", "drop_divisor": "host"}
    check.that(f"zero: as published, to the bit, {reg_max}", same(stock, run(new_loss(reg_max, **zero), preds, batch)))
    with torch.no_grad():
        items = new_loss(reg_max, obj_drop=0.5, box_drop=0.5)(preds, batch)[1]
    check.that(f"validation: as published, {reg_max}", torch.equal(torch.stack(list(items.values())), stock[0]))
    for scope in ("background", "matched"):
        for divisor in ("kept", "host"):
            for select in ("random", "confident"):
                for p, q in ((0.5, 0), (0.29, 0.4), (1 / 3, 0), (1.0, 1.0), (0, 0.5)):
                    if select == "random" and p == 0:
                        continue  # ours has drawn for the other loss before, so its order differs
                    flags = {"obj_drop": p, "box_drop": q, "drop_scope": scope, "drop_divisor": divisor}
                    flags |= {"drop_select": select}
                    theirs = run(new_loss(reg_max, **flags), preds, batch)
                    name = f"{scope} {divisor} {select} {p} {q} reg_max {reg_max}"
                    check.that(f"ours: {name}", close(theirs, run(ours(reg_max, **flags), preds, batch)))
                    check.that(f"differs: {name}", not close(theirs, stock))

preds, batch = inputs(1)
stock = run_end_to_end(published.E2ELoss(Model(1)), preds, batch)
theirs = run_end_to_end(patched.E2ELoss(Model(1)), preds, batch)
check.that("end to end: off, as published, to the bit", same(stock, theirs))
flags = {"obj_drop": 0.29, "box_drop": 0.4}
theirs = run_end_to_end(seeded(patched.E2ELoss(Model(1, **flags))), preds, batch)
make = partial(DetectionCriterion, recipe=read(flags, YoloSites()), seed=0)
check.that("end to end: ours", close(theirs, run_end_to_end(patched.E2ELoss(Model(1), make), preds, batch)))
branches = patched.E2ELoss(Model(1, **flags))
check.that("end to end: branches draw apart", branches.one2many.rebalance.seed != branches.one2one.rebalance.seed)


def slow_low(boxes, labels, low=0.3):
    """(B, A) by the definition, one prediction and one label at a time."""
    found = torch.ones(boxes.shape[:2], dtype=torch.bool)
    for image, gts in enumerate(labels.tolist()):
        for n, (x1, y1, x2, y2) in enumerate(boxes[image].tolist()):
            for gx1, gy1, gx2, gy2 in gts:
                inter = max(min(x2, gx2) - max(x1, gx1), 0) * max(min(y2, gy2) - max(y1, gy1), 0)
                union = (x2 - x1) * (y2 - y1) + (gx2 - gx1) * (gy2 - gy1) - inter
                if union > 0 and inter / union >= low:
                    found[image, n] = False
    return found


class Namespace:
    obj_drop, box_drop, drop_scope = 0.29, 0.4, "background"


g = torch.Generator().manual_seed(1)
centre, half = torch.rand(2, 200, 2, generator=g) * 64, torch.rand(2, 200, 2, generator=g) * 16 + 4
boxes, gts = torch.cat((centre - half, centre + half), -1), torch.zeros(2, 3, 4)
gts[0], matched = boxes[0, :3] + 1, torch.rand(2, 200, generator=g) < 0.3  # the second image has no label
low, scores = slow_low(boxes, gts), torch.randn(2, 200, CLASSES, generator=g)
for scope in ("background", "matched"):
    Namespace.drop_scope = scope
    rebalance = patched.Rebalance(Namespace)  # a checkpoint of an unpatched version lacks the other settings
    cls, box = rebalance(boxes, scores, gts, matched)
    eligible = low & (matched if scope == "matched" else ~matched)
    check.that(f"count: {scope}", cls.sum() == 29 * int(eligible.sum()) // 100 > 0)
    check.that(f"negatives alone: {scope}", not (cls & ~eligible).any())
    check.that(f"count: boxes, {scope}", box.sum() == 4 * int((low & matched).sum()) // 10 > 0)
    check.that(f"low IoU alone: boxes, {scope}", not (box & ~(low & matched)).any())
    again = rebalance(boxes, scores, gts, matched)
    check.that(f"fresh each step: {scope}", (again[0] != cls).any() and again[0].sum() == cls.sum())
    many = torch.ones(40_000, dtype=torch.bool)  # times the digits of 1 / 3: more than 64 bits
    check.that(f"a third: {scope}", rebalance.draw(many, 1 / 3, None).sum() == 13_333)
    check.that(f"seeded: {scope}", torch.equal(patched.Rebalance(Namespace)(boxes, scores, gts, matched)[0], cls))

preds, batch = inputs(labels=0)
for p in (0.5, 1.0):
    items, grads = run(new_loss(obj_drop=p, box_drop=p), preds, batch)
    check.that(f"no labels: finite, {p}", all(x.isfinite().all() for x in (items, *grads)))
check.that("no labels: all dropped", items.sum() == 0)

for key, value in (("obj_drop", 1.5), ("box_drop", -0.1), ("neg_iou", 2)):
    call = partial(get_cfg, overrides={key: value})
    check.raises(f"refused: {key}={value}", ValueError, call, key, "between 0.0 and 1.0")
for key in ("drop_scope", "drop_divisor", "drop_select"):
    check.raises(f"refused: {key}=most", ValueError, partial(get_cfg, overrides={key: "most"}), key, "most", "Valid")
    check.raises(f"refused: {key}=None", TypeError, partial(get_cfg, overrides={key: None}), key)
check.raises("refused: obj_drop=much", TypeError, partial(get_cfg, overrides={"obj_drop": "much"}), "obj_drop")
check.raises("refused: obj_drops", SyntaxError, partial(get_cfg, overrides={"obj_drops": 0.5}), "obj_drop")


class Rotated(Model):
    def __init__(self, **flags):
        super().__init__(**flags)
        self.model[0].ne = 1


patched.v8OBBLoss(Rotated())
check.raises("refused: rotated boxes", NotImplementedError, lambda: patched.v8OBBLoss(Rotated(obj_drop=0.5)), "rotated")
check.report()
