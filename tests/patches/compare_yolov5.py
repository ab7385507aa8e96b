"""Child process of test_yolov5: the patched YOLOv5 loss beside the published one and beside ours."""

import math
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import SimpleNamespace

import torch
import yolov5.utils.loss as patched  # the copy: it comes first on the path
from upstream import Checks

from rebalance.heads.anchor import COCO_ANCHORS, AnchorHead
from rebalance.hosts.ultralytics.criterion import AnchorCriterion
from rebalance.hosts.ultralytics.sites import YoloSites
from rebalance.methods.drop import Drop
from rebalance.methods.method import Choice, Run
from rebalance.recipe import read

STOCK, COPY = Path(sys.argv[1]), Path(sys.argv[2])
assert COPY in Path(patched.__file__).parents
spec = spec_from_file_location("published", STOCK / "utils/loss.py")
published = module_from_spec(spec)
spec.loader.exec_module(published)

IMAGES, CLASSES, SIZE = 3, 4, 64
STRIDE = torch.tensor([8.0, 16.0, 32.0])
SEED = 7
HYP = {"box": 0.05, "obj": 1.0 * (SIZE / 640) ** 2, "cls": 0.5 * CLASSES / 80, "cls_pw": 1.0, "obj_pw": 1.0}
HYP |= {"fl_gamma": 0.0, "anchor_t": 4.0}
HEAD = AnchorHead(CLASSES, (1, 1, 1), STRIDE, COCO_ANCHORS[3])
Run.generator = lambda self, device, *purpose: torch.Generator(device).manual_seed(SEED)
check = Checks()


class Model(torch.nn.Module):
    """As much of a YOLOv5 model as its loss looks at."""

    def __init__(self, **hyp):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.hyp, self.model = {**HYP, **hyp}, [HEAD]


def inputs(seed=0, labels=14):
    """Raw maps (B, M, 5 + C, H, W) near the anchors, and labels; the last image has none. Two labels share a cell."""
    g = torch.Generator().manual_seed(seed)
    maps = [torch.randn(IMAGES, 3, 5 + CLASSES, SIZE // s, SIZE // s, generator=g) for s in (8, 16, 32)]
    image = torch.randint(IMAGES - 1, (labels,), generator=g).sort().values
    targets = torch.cat((image[:, None], torch.randint(CLASSES, (labels, 1), generator=g)), 1).float()
    boxes = torch.cat((torch.rand(labels, 2, generator=g), torch.rand(labels, 2, generator=g) * 0.6 + 0.15), 1)
    if labels:
        boxes[1], targets[1] = boxes[0] + 0.01, targets[0]
    return maps, torch.cat((targets, boxes), 1)


def run_yolov5(loss, maps, targets):
    leaves = [x.clone().requires_grad_() for x in maps]
    total, items = loss([x.permute(0, 1, 3, 4, 2) for x in leaves], targets)
    total.sum().backward()
    return items, [x.grad for x in leaves]


def run_ours(maps, targets, **flags):
    leaves = [x.clone().requires_grad_() for x in maps]
    model = SimpleNamespace(model=[HEAD], args=SimpleNamespace(imgsz=SIZE))
    batch = {"batch_idx": targets[:, 0], "cls": targets[:, 1:2], "bboxes": targets[:, 2:]}
    total, items = AnchorCriterion(model, recipe=read({"head": "anchor", **flags}, YoloSites()), seed=0)(
        {"maps": leaves}, batch
    )
    total.sum().backward()
    return torch.stack(list(items.values())), [x.grad for x in leaves]


def same(a, b):
    return torch.equal(a[0], b[0]) and all(torch.equal(x, y) for x, y in zip(a[1], b[1], strict=True))


def close(a, b):
    return all(torch.allclose(x, y, rtol=1e-4, atol=1e-7) for x, y in zip((a[0], *a[1]), (b[0], *b[1]), strict=True))


def new_loss(**hyp):
    loss = patched.ComputeLoss(Model(**hyp))
    loss.rebalance.generator.manual_seed(SEED)
    return loss


def slow_negatives(maps, targets, low=0.3):
    """(B, N) by the definition, one prediction and one label at a time: in pixels, no shared code."""
    boxes = HEAD.decode(maps, objectness=False).transpose(1, 2)
    found = torch.ones(boxes.shape[:2], dtype=torch.bool)
    for image, *_, x, y, w, h in targets.tolist():
        x, y, w, h = x * SIZE, y * SIZE, w * SIZE, h * SIZE
        for n, (px, py, pw, ph) in enumerate(boxes[int(image)].tolist()):
            iw = min(px + pw / 2, x + w / 2) - max(px - pw / 2, x - w / 2)
            ih = min(py + ph / 2, y + h / 2) - max(py - ph / 2, y - h / 2)
            inter = max(iw, 0) * max(ih, 0)
            if inter / (pw * ph + w * h - inter) >= low:
                found[int(image), n] = False
    return found


def masks(loss, maps, targets, literal=False):
    """What the patched loss drops: (B, N) objectness, or where literal (matches); (matches) boxes; where it matches."""
    p = [x.permute(0, 1, 3, 4, 2) for x in maps]
    _, tbox, indices, anchors = loss.build_targets(p, targets)
    obj, box = loss.rebalance(p, targets, indices, loss.anchors, tbox, anchors)
    matched = [torch.zeros(x.shape[:4], dtype=torch.bool) for x in p]
    for grid, at in zip(matched, indices, strict=True):
        grid[at] = True
    if literal:
        flat = [torch.cat(obj), matched]
    else:
        flat = [None if m is None else torch.cat([x.flatten(1) for x in m], 1) for m in (obj, matched)]
    levels = [torch.full_like(at[0], level) for level, at in enumerate(indices)]
    places = [torch.cat(x) for x in (levels, *zip(*indices, strict=True))]
    return flat[0], None if box is None else torch.cat(box), flat[1], places


maps, targets = inputs()
stock = run_yolov5(published.ComputeLoss(Model()), maps, targets)
off = {"obj_drop": 0.0, "box_drop": 0, "neg_iou": 0.5, "drop_scope": "matched"}
check.that("off: as published, to the bit", same(stock, run_yolov5(new_loss(), maps, targets)))
check.that("zero: as published, to the bit", same(stock, run_yolov5(new_loss(**off), maps, targets)))
check.that("off: ours", close(stock, run_ours(maps, targets)))
focal = {"fl_gamma": 1.5}
published_focal = run_yolov5(published.ComputeLoss(Model(**focal)), maps, targets)
check.that("focal: as published, to the bit", same(published_focal, run_yolov5(new_loss(**focal), maps, targets)))
every = {"obj_drop": 1.0, "box_drop": 1.0, "drop_divisor": "host"}
nothing = run_yolov5(new_loss(**focal, **every), maps, targets)[0]
check.that("focal: p = 1 leaves less of it", 0 < nothing[1] < published_focal[0][1])

for scope in ("background", "matched", "literal"):
    for divisor in ("kept", "host"):
        for select in ("random", "confident"):
            for p, q in ((0.5, 0.0), (0.29, 0.4), (1 / 3, 0.0), (1.0, 1.0), (0.0, 0.5)):
                if select == "random" and (0 < q < 1 or (scope == "literal" and 0 < p < 1)):
                    continue  # ours draws among padded matches, so its order differs: see "same matches" below
                flags = {"obj_drop": p, "box_drop": q, "drop_scope": scope, "drop_divisor": divisor}
                flags |= {"drop_select": select}
                theirs = run_yolov5(new_loss(**flags), maps, targets)
                name = f"{scope} {divisor} {select} {p} {q}"
                check.that(f"ours: {name}", close(theirs, run_ours(maps, targets, **flags)))
                check.that(f"differs: {name}", not close(theirs, stock))

negatives = slow_negatives(maps, targets)
for scope in ("background", "matched"):
    loss = new_loss(obj_drop=0.29, box_drop=0.4, drop_scope=scope)
    obj, box, matched, _ = masks(loss, maps, targets)
    eligible = negatives & (matched if scope == "matched" else ~matched)
    check.that(f"count: {scope}", obj.sum() == 29 * int(eligible.sum()) // 100 > 0)
    check.that(f"negatives alone: {scope}", not (obj & ~eligible).any())
    rows = [negatives[:, a:b].reshape(IMAGES, 3, n, n) for a, b, n in ((0, 192, 8), (192, 240, 4), (240, 252, 2))]
    p = [x.permute(0, 1, 3, 4, 2) for x in maps]
    low = torch.cat([r[at] for r, at in zip(rows, loss.build_targets(p, targets)[2], strict=True)])
    check.that(f"count: boxes, {scope}", box.sum() == 4 * int(low.sum()) // 10 > 0)
    check.that(f"low IoU alone: boxes, {scope}", not (box & ~low).any())
    again = masks(loss, maps, targets)
    check.that(f"fresh each step: {scope}", (again[0] != obj).any() and again[0].sum() == obj.sum())

# the same matches dropped in both, drawn by the patch
drawn = {}


def as_patch(self, predictions, run):
    pairs = predictions.pairs()
    masks = {}
    for name, found in drawn.items():
        masks[name] = torch.zeros(pairs.shape, dtype=torch.bool)
        masks[name][pairs >= 0] = found
    return Choice(**masks, kept=self.drop_divisor == "kept", matched=True)


ours, Drop.choose = Drop.choose, as_patch
for divisor in ("kept", "host"):
    flags = {"box_drop": 0.5, "drop_divisor": divisor}
    drawn = {"box": masks(new_loss(**flags), maps, targets)[1]}
    theirs = run_yolov5(new_loss(**flags), maps, targets)
    check.that(f"same matches: {divisor}", close(theirs, run_ours(maps, targets, **flags)))
    for p, q in ((0.5, 0.5), (0.29, 0.8), (0.6, 0.0)):
        flags = {"obj_drop": p, "box_drop": q, "drop_divisor": divisor, "drop_scope": "literal"}
        obj, box, _, _ = masks(new_loss(**flags), maps, targets, literal=True)
        drawn = {name: mask for name, mask in (("unset", obj), ("box", box)) if mask is not None}
        theirs = run_yolov5(new_loss(**flags), maps, targets)
        check.that(f"same matches: literal {divisor} {p} {q}", close(theirs, run_ours(maps, targets, **flags)))
        check.that(f"one order: {divisor} {p} {q}", q == 0 or not (obj & ~box).any())
Drop.choose = ours

# literal: what `iou = iou[iou >= 0.3]`, before the scatter, would leave of the IoU tensor; the published code, edited
flags = {"obj_drop": 1.0, "box_drop": 1.0, "drop_scope": "literal"}
text = (STOCK / "utils/loss.py").read_text()
for line, more in (
    ("                lbox += (1.0 - iou).mean()  # iou loss\n", "high = iou.detach() >= 0.3; iou = iou[high]"),
    ("                tobj[b, a, gj, gi] = iou  # iou ratio\n", "b, a, gj, gi = b[high], a[high], gj[high], gi[high]"),
):
    assert line in text
    text = text.replace(line, f"{' ' * 16}{more}\n{line}")
edited = module_from_spec(spec)
exec(compile(text, "edited", "exec"), edited.__dict__)
wanted = run_yolov5(edited.ComputeLoss(Model()), maps, targets)
check.that("literal: the edited line", close(wanted, run_yolov5(new_loss(**flags), maps, targets)))
check.that("literal: the edited line, ours", close(wanted, run_ours(maps, targets, **flags)))
places = masks(new_loss(**flags), maps, targets, literal=True)[3]
cells = set(zip(*(x.tolist() for x in places), strict=True))
check.that("literal: some cell has several matches", len(cells) < len(places[0]))

for name, labels in (("no labels", 0), ("one label", 1)):
    maps1, targets1 = inputs(3, max(labels, 2))
    targets1 = targets1[:labels]
    for p in (0.5, 1.0):
        flags = {"obj_drop": p, "box_drop": p}
        if labels == 0 or p == 1:
            ours = run_ours(maps1, targets1, **flags)
            check.that(f"{name}: p = {p}", close(run_yolov5(new_loss(**flags), maps1, targets1), ours))
        items, grads = run_yolov5(new_loss(**flags), maps1, targets1)
        check.that(f"{name}: finite, p = {p}", all(x.isfinite().all() for x in (items, *grads)))

loss = new_loss(obj_drop=0.5, box_drop=0.5, drop_warmup=2)
for epoch, warm in ((0, True), (1, True), (2, False)):
    loss.rebalance.start_epoch(epoch, seed=0)
    check.that(f"warm-up: epoch {epoch}", same(stock, run_yolov5(loss, maps, targets)) == warm)
loss.rebalance.start_epoch(2, seed=0)
once = run_yolov5(loss, maps, targets)
loss.rebalance.start_epoch(2, seed=0)
check.that("an epoch repeats", same(once, run_yolov5(loss, maps, targets)))
loss.rebalance.start_epoch(2, seed=1)
check.that("a seed matters", not same(once, run_yolov5(loss, maps, targets)))
loss.rebalance.start_epoch(3, seed=1)
other = run_yolov5(loss, maps, targets)
loss.rebalance.start_epoch(4, seed=0)
check.that("seeds and epochs do not add up", not same(other, run_yolov5(loss, maps, targets)))
with torch.no_grad():
    items = loss([x.permute(0, 1, 3, 4, 2) for x in maps], targets)[1]
check.that("validation: as published", torch.equal(items, stock[0]))

bad = (("obj_drop", 1.5), ("box_drop", -0.1), ("neg_iou", math.nan), ("obj_drop", "0.5"), ("obj_drop", True))
for key, value in bad:
    check.raises(f"refused: {key}={value!r}", ValueError, lambda k=key, v=value: new_loss(**{k: v}), key, str(value))
for key in ("drop_scope", "drop_divisor", "drop_select"):
    check.raises(f"refused: {key}", ValueError, lambda k=key: new_loss(**{k: "most"}), key, "most", "one of")
check.report()
