from __future__ import annotations

import math
import warnings
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from objectives import recipe_of
from slow_match import slow_match
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from ultralytics.utils.metrics import bbox_iou
from yolo_heads import anchor_box, anchor_head, decoded, overlaps

from rebalance.heads.anchor import AnchorHead
from rebalance.hosts.host import begin_epoch, counts, pulls
from rebalance.hosts.ultralytics.criterion import AnchorCriterion
from rebalance.hosts.ultralytics.model import AnchorDetectionModel
from rebalance.match.anchor import match
from rebalance.match.candidates import candidate_state
from rebalance.methods.drop import Drop
from rebalance.methods.method import Predictions, Run

BALANCE = {2: (4.0, 1.0), 3: (4.0, 1.0, 0.4), 4: (4.0, 1.0, 0.25, 0.06)}


def criterion(head: AnchorHead, size: int = 64, seed: int = 0, **flags: Any) -> AnchorCriterion:
    model = SimpleNamespace(model=[head], args=SimpleNamespace(imgsz=size))
    return AnchorCriterion(model, recipe=recipe_of({"head": "anchor", **flags}), seed=seed)


def batch_of(labels: Tensor, **more: Any) -> dict[str, Any]:
    """A batch as the host makes it, from (T, 6) image, class, box."""
    return {"batch_idx": labels[:, 0], "cls": labels[:, 1:2], "bboxes": labels[:, 2:6], **more}


def random_maps(head: AnchorHead, *, images: int = 3, height: int = 64, width: int = 64, seed: int = 0) -> list[Tensor]:
    g = torch.Generator().manual_seed(seed)
    sizes = [(height // s, width // s) for s in head.stride.int().tolist()]
    return [torch.randn(images, head.na, head.no, h, w, generator=g) * 1.5 for h, w in sizes]


def random_labels(count: int = 14, *, images: int = 3, nc: int = 4, seed: int = 0) -> Tensor:
    """(T, 6); the last image has none, the first two labels are one object labelled twice."""
    g = torch.Generator().manual_seed(seed)
    image = torch.randint(images - 1, (count, 1), generator=g).sort(0).values
    rest = torch.randint(nc, (count, 1), generator=g), torch.rand(count, 2, generator=g)
    labels = torch.cat((image, *rest, torch.rand(count, 2, generator=g) * 0.6 + 0.05), 1)
    if count > 1:
        labels[1] = labels[0] + torch.tensor([0, 0, 0.01, 0, 0.02, 0])
    return labels


def edge_labels(nc: int = 4) -> Tensor:
    """(T, 6) on two images: centres on lines between cells, in their middles, at 0 and 1; several in one cell."""
    places = [0.0, 1 / 16, 1 / 8, 3 / 16, 0.5, 0.53125, 15 / 16, 1.0]
    rows = [
        (i % 2, (i + j) % nc, x, y, s, s)
        for s in (0.1, 0.4)
        for i, x in enumerate(places)
        for j, y in enumerate(places)
    ]
    rows += [(0, 0, 0.4, 0.4, 0.2, 0.2), (0, 1, 0.4, 0.4, 0.2, 0.2), (0, 1, 0.41, 0.4, 0.21, 0.2)]
    return torch.tensor(sorted(rows, key=lambda row: row[0]), dtype=torch.float32)


def run(loss: Any, maps: list[Tensor], labels: Tensor, **more: Any) -> tuple[Tensor, list[Tensor]]:
    """Loss vector, and the gradients of its sum in the maps."""
    leaves = [x.clone().requires_grad_() for x in maps]
    vector, items = loss({"maps": leaves}, batch_of(labels, **more))
    torch.testing.assert_close(torch.stack(list(items.values())) * len(maps[0]), vector.detach())
    vector.sum().backward()
    return vector.detach(), [x.grad for x in leaves if x.grad is not None]


def assert_same(a: tuple[Tensor, list[Tensor]], b: tuple[Tensor, list[Tensor]], rtol: float = 1e-5) -> None:
    torch.testing.assert_close(a[0], b[0], rtol=rtol, atol=1e-7)
    assert len(a[1]) == len(b[1])
    for x, y in zip(a[1], b[1], strict=True):
        torch.testing.assert_close(x, y, rtol=rtol, atol=1e-8)


# Golden numbers -------------------------------------------------------------------------------------------------------

# Two images of 16 x 16 pixels, two classes; a level of 2 x 2 cells with an anchor of 8 x 8 pixels, and one of one cell
# whose anchor of 1600 x 1600 pixels fits nothing. The first image has one label, 8 x 4 pixels in the middle of the
# first cell; the second has none. All box logits are 0, so that predictions are anchors in the middle of their cells.
#   box    IoU 32 / 64 = 0.5; no distance; v = 4/pi^2 (atan 2 - atan 1)^2 = 0.041957, alpha = v / (v + 0.5) = 0.077418;
#          CIoU = 0.5 - 0.003248 = 0.496752. Loss 0.503248
#   obj    the match has logit 2: log(1 + e^-2) + 2 (1 - 0.496752) = 0.126928 + 1.006496 = 1.133424; all others have -1:
#          log(1 + e^-1) = 0.313262. First level (1.133424 + 7 * 0.313262) / 8 = 0.415782, times 4; second 0.313262:
#          1.976391
#   cls    logits 1 for the class that it is and 3 for the other: (0.313262 + 3.048587) / 2 = 1.680925
#   gains  0.05 * 3/2, (16/640)^2 * 3/2, 0.5 * 2/80 * 3/2; both images: times 2
GAINS = (0.075, 0.0009375, 0.01875)


@pytest.fixture
def golden() -> tuple[AnchorHead, list[Tensor], Tensor]:
    head = AnchorHead(2, (1, 1), torch.tensor([8.0, 16.0]), [(8, 8), (1600, 1600)])
    maps = [torch.zeros(2, 1, 7, 2, 2), torch.zeros(2, 1, 7, 1, 1)]
    for x in maps:
        x[:, :, 4] = -1
    maps[0][0, 0, 4:, 0, 0] = torch.tensor([2.0, 1, 3])
    return head, maps, torch.tensor([[0, 0, 0.25, 0.25, 0.5, 0.25]])


@pytest.mark.parametrize(
    ("flags", "box", "obj", "cls"),
    [
        ({}, 0.503248, 1.976391, 1.680925),
        # p = 1: the 9 predictions without a label are off it (IoU 0, or 32 / 1600^2), and only the match is left:
        # 4 * 1.133424; as in the host, divided by all 8 of its level: 4 * 0.141678
        ({"obj_drop": 1.0}, 0.503248, 4.533696, 1.680925),
        ({"obj_drop": 1.0, "drop_divisor": "host"}, 0.503248, 0.566712, 1.680925),
        # the match has IoU 0.5, so that it is low at 0.6: matched leaves 7 * 0.313262 on the first level, mean 0.313262
        # or divided by 8; literal trains it against 0: 2 + 0.126928 = 2.126928 with the 7 others
        ({"obj_drop": 1.0, "drop_scope": "matched", "neg_iou": 0.6}, 0.503248, 1.566310, 1.680925),
        (
            {"obj_drop": 1.0, "drop_scope": "matched", "neg_iou": 0.6, "drop_divisor": "host"},
            0.503248,
            1.409679,
            1.680925,
        ),
        ({"obj_drop": 1.0, "drop_scope": "literal", "neg_iou": 0.6}, 0.503248, 2.473143, 1.680925),
        ({"box_drop": 1.0, "neg_iou": 0.6}, 0.0, 1.976391, 1.680925),
        ({"box_drop": 1.0}, 0.503248, 1.976391, 1.680925),  # 0.5 is not under 0.3
        ({"obj_drop": 1.0, "drop_warmup": 1}, 0.503248, 1.976391, 1.680925),
    ],
)
def test_golden_numbers(golden: Any, flags: dict[str, Any], box: float, obj: float, cls: float) -> None:
    head, maps, labels = golden
    vector, _ = run(criterion(head, 16, **flags), maps, labels)
    expected = [2 * gain * x for gain, x in zip(GAINS, (box, obj, cls), strict=True)]
    assert vector.tolist() == pytest.approx(expected, rel=3e-6)


@pytest.mark.parametrize(
    ("flags", "pull", "push"),
    [
        # the match is alone on its level of 8, or divided by 8 still; of the others nothing is left
        ({"obj_drop": 1.0}, 8, 0),
        ({"obj_drop": 1.0, "drop_divisor": "host"}, 1, 0),
        # the others have one slope; without dropping 4 * 7/8 + 2/2 = 4.5 of it. Half of each, under 8 and 2 candidates;
        # under what is left on average where 4 of the 9 leave, 8 - 7 * 4/9 = 44/9 and 2 - 2 * 4/9 = 10/9
        ({"obj_drop": 0.5, "drop_select": "weight", "drop_divisor": "host"}, 1, 0.5),
        ({"obj_drop": 0.5, "drop_select": "weight"}, 8 * 9 / 44, (4 * 3.5 * 9 / 44 + 9 / 10) / 4.5),
        # the match, of slope |0.880797 - 0.496752|, becomes background, of slope 0.880797 beside 0.268941
        ({"obj_drop": 1.0, "drop_scope": "literal", "neg_iou": 0.6}, 0, 1 + 0.5 * 0.880797 / (4.5 * 0.268941)),
        ({"box_drop": 1.0}, None, None),
        ({"obj_drop": 1.0, "drop_warmup": 1}, None, None),
    ],
)
def test_pull_on_positives_and_push_on_negatives_by_hand(
    golden: Any, flags: dict[str, Any], pull: float | None, push: float | None
) -> None:
    head, maps, labels = golden
    loss = criterion(head, 16, **flags)
    run(loss, maps, labels)
    expected = {} if pull is None else {"pull": pytest.approx(pull, abs=1e-4), "push": pytest.approx(push, abs=1e-4)}
    assert pulls(loss) == expected
    begin_epoch(loss, 1)
    with torch.no_grad():
        loss({"maps": maps}, batch_of(labels))
    assert pulls(loss) == {}  # of validation nothing is said
    run(loss, maps, torch.zeros(0, 6))
    assert "pull" not in pulls(loss)  # without a positive there is none


def test_items_are_named_and_detached(golden: Any) -> None:
    head, maps, labels = golden
    _, items = criterion(head, 16)({"maps": maps}, batch_of(labels))
    assert list(items) == ["box_loss", "obj_loss", "cls_loss"]
    assert not any(x.requires_grad for x in items.values())


def test_gains_are_flags(golden: Any) -> None:
    head, maps, labels = golden
    plain, _ = run(criterion(head, 16), maps, labels)
    scaled, _ = run(criterion(head, 16, box_gain=0.1, obj_gain=3, cls_gain=0), maps, labels)
    torch.testing.assert_close(scaled, plain * torch.tensor([2.0, 3, 0]))


# Parity with YOLOv5 ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def yolov5() -> Any:
    """YOLOv5's own loss class."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("yolov5.utils.loss", exc_type=ImportError).ComputeLoss


def run_yolov5(yolov5: Any, head: AnchorHead, maps: list[Tensor], labels: Tensor, size: int = 64) -> Any:
    """As `run`: YOLOv5's loss with the gains that its trainer sets."""
    scale = 3 / head.nl
    hyp = {"box": 0.05 * scale, "obj": (size / 640) ** 2 * scale, "cls": 0.5 * head.nc / 80 * scale}
    hyp |= {"cls_pw": 1.0, "obj_pw": 1.0, "fl_gamma": 0.0, "anchor_t": 4.0, "label_smoothing": 0.0}

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))
            self.hyp, self.model = hyp, [head]

    leaves = [x.clone().requires_grad_() for x in maps]
    loss, items = yolov5(Model())([x.permute(0, 1, 3, 4, 2) for x in leaves], labels)
    loss.sum().backward()
    return items * len(maps[0]), [x.grad for x in leaves]


@pytest.mark.upstream
@pytest.mark.parametrize(("nc", "height", "width", "seed"), [(1, 64, 64, 0), (4, 128, 64, 0), (4, 64, 64, 1)])
def test_equals_yolov5_on_random_batches(yolov5: Any, nc: int, height: int, width: int, seed: int) -> None:
    head = anchor_head(nc)
    maps, labels = random_maps(head, height=height, width=width, seed=seed), random_labels(40, nc=nc, seed=seed)
    assert_same(run(criterion(head), maps, labels), run_yolov5(yolov5, head, maps, labels))


@pytest.mark.upstream
def test_equals_yolov5_on_edge_centres_and_shared_cells(yolov5: Any) -> None:
    head = anchor_head(4)
    maps = random_maps(head, images=2)
    assert_same(run(criterion(head), maps, edge_labels()), run_yolov5(yolov5, head, maps, edge_labels()))


@pytest.mark.upstream
def test_equals_yolov5_without_labels_and_with_four_levels(yolov5: Any) -> None:
    head = anchor_head(4, levels=4)
    maps = random_maps(head, height=128, width=128)
    for labels in (random_labels(40), torch.zeros(0, 6)):
        assert_same(run(criterion(head), maps, labels), run_yolov5(yolov5, head, maps, labels))


def real_batch(data: Path, size: int = 160, count: int = 8) -> tuple[Tensor, Tensor]:
    """Images (B, 3, size, size) in [0, 1] and labels (T, 6) of the fullest real images."""
    import cv2

    files = sorted((data / "labels" / "train").glob("*.txt"), key=lambda file: -file.stat().st_size)[:count]
    images, rows = [], []
    for number, file in enumerate(files):
        image = cv2.imread(str(data / "images" / "train" / f"{file.stem}.jpg"))
        images.append(torch.from_numpy(cv2.resize(image, (size, size))[..., ::-1].copy()).permute(2, 0, 1) / 255)
        rows += [[number, *map(float, line.split())] for line in file.read_text("utf-8").splitlines()]
    return torch.stack(images), torch.tensor(rows)


@pytest.mark.upstream
@pytest.mark.parametrize(("name", "nc"), [("aquarium", 7), ("coco_mini", 80)])
def test_equals_yolov5_on_real_batches(yolov5: Any, shared_data: Path, name: str, nc: int) -> None:
    images, labels = real_batch(shared_data / name)
    torch.manual_seed(0)
    model = AnchorDetectionModel("yolov5n.yaml", nc=nc, verbose=False).train()
    with torch.no_grad():
        maps = [x.contiguous() for x in model(images)["maps"]]
    head = model.model[-1]
    assert len(labels) > 100
    ours = run(criterion(head, 160), maps, labels)
    assert_same(ours, run_yolov5(yolov5, head, maps, labels, 160), rtol=1e-4)
    assert ours[0].gt(0).all()


# Slow reference -------------------------------------------------------------------------------------------------------


class Reference:
    """The loss by loops over levels, images, candidates and matches. Only the random order comes from the product."""

    def __init__(self, head: AnchorHead, maps: list[Tensor], labels: Tensor, size: int = 64, **flags: Any) -> None:
        self.head, self.size, self.recipe = head, size, recipe_of({"head": "anchor", **flags})
        self.leaves = [x.double().requires_grad_() for x in maps]
        shapes = [(x.shape[3], x.shape[4]) for x in maps]
        self.matches = slow_match(labels, head.anchors, shapes, self.recipe["anchor_t"])
        self.overlap = overlaps(decoded(head, maps), batch_of(labels), (shapes[0][0] * 8, shapes[0][1] * 8))
        self.matched = torch.zeros(self.overlap.shape, dtype=torch.bool)
        for level in self.matches:
            for m in level:
                self.matched[m.image, m.candidate] = True
        found = match(labels, head.anchors, shapes, self.recipe["anchor_t"])  # for the order of the draws alone
        pairs = (found.image * self.overlap.shape[1] + found.candidate).where(found.valid, -1)
        box: Tensor | None = None
        unset: Tensor | None = None
        own = torch.zeros(pairs.shape, dtype=torch.float64)
        parts = (torch.split(x, found.sizes) for x in (own, found.valid))
        for row, valid, matches, x in zip(*parts, self.matches, maps, strict=True):
            row[valid] = torch.tensor([self.ciou(x.double(), m).clamp(min=0) for m in matches], dtype=torch.float64)
        self.obj = torch.zeros_like(self.matched)
        if "obj_drop" in flags or "box_drop" in flags:
            confidence = torch.cat([x[:, :, 4].flatten(1) for x in maps], 1)
            first = Run(self.recipe.site)
            first.step = 1
            given = Predictions(
                candidate_state(self.matched), self.overlap.lt, lambda: confidence, lambda: own, lambda: pairs
            )
            choice = self.recipe.of(Drop).choose(given, first)
            assert choice is not None
            self.obj, box, unset = self.obj if choice.gone is None else choice.gone, choice.box, choice.unset
        self.box, self.unset, self.low = (
            [
                level[valid].tolist()
                for level, valid in zip(*(torch.split(y, found.sizes) for y in (x, found.valid)), strict=True)
            ]
            for x in (*(torch.zeros_like(pairs).bool() if x is None else x for x in (box, unset)), own < 0.3)
        )

    @staticmethod
    def ciou(x: Tensor, match: Any) -> Tensor:
        """Of what is predicted at a match with the label that is matched."""
        box = torch.tensor(match.box, dtype=torch.float64)
        return bbox_iou(anchor_box(x, match), box, xywh=True, CIoU=True).squeeze()  # type: ignore[no-any-return]

    def run(self) -> tuple[Tensor, list[Tensor]]:
        lbox = lobj = lcls = torch.zeros((), dtype=torch.float64)
        first = 0
        slots = zip(self.leaves, self.matches, self.box, self.unset, strict=True)
        for level, (x, matches, dropped, unset) in enumerate(slots):
            target: dict[tuple[int, int], float] = {}
            ious, classes = [], []
            for m, sets_none in zip(matches, unset, strict=True):
                p = x[m.image, m.anchor, :, m.row, m.column]
                iou = self.ciou(x, m)
                ious.append(iou)
                if not sets_none:
                    target[m.image, m.candidate] = max(iou.item(), 0)  # the last match counts
                wanted = torch.zeros(self.head.nc, dtype=torch.float64)
                wanted[m.label] = 1
                classes.append(binary_cross_entropy_with_logits(p[5:], wanted))
            kept = [1 - iou for iou, gone in zip(ious, dropped, strict=True) if not gone]
            count = len(kept) if self.recipe["drop_divisor"] == "kept" else len(ious)
            if kept:
                lbox = lbox + sum(kept) / max(count, 1)
            if classes and self.head.nc > 1:
                lcls = lcls + sum(classes) / len(classes)

            terms = []
            for image in range(len(x)):
                for n, logit in enumerate(x[image, :, 4].flatten()):
                    y = target.get((image, first + n), 0.0)
                    if not self.obj[image, first + n]:
                        terms.append(-y * logit.sigmoid().log() - (1 - y) * (-logit).sigmoid().log())
            host = self.recipe["drop_divisor"] == "host"
            size = x[:, :, 4].numel() if host else max(len(terms), 1)
            if terms:
                lobj = lobj + BALANCE[len(self.leaves)][level] * sum(terms) / size
            first += x[0, :, 4].numel()
        scale = 3 / len(self.leaves)
        gains = (0.05 * scale, (self.size / 640) ** 2 * scale, 0.5 * self.head.nc / 80 * scale)
        vector = torch.stack([gain * part for gain, part in zip(gains, (lbox, lobj, lcls), strict=True)]) * len(
            self.leaves[0]
        )
        vector.sum().backward()
        return vector.detach().float(), [
            torch.zeros_like(x).float() if x.grad is None else x.grad.float() for x in self.leaves
        ]


DROPS = [
    {"obj_drop": 0.5},
    {"obj_drop": 0.29, "box_drop": 0.4, "drop_select": "confident"},
    {"box_drop": 0.5},
    {"obj_drop": 1.0, "box_drop": 1.0},
]


SCOPES = ("background", "matched", "literal")
# Every scope with every rate, and with what is dropped from the objectness both divisors
CASES = [
    (rates, scope, ("kept", "host")[(r + s) % 2]) for r, rates in enumerate(DROPS) for s, scope in enumerate(SCOPES)
]


@pytest.mark.parametrize(("rates", "scope", "divisor"), CASES)
def test_equals_the_slow_reference(rates: dict[str, Any], scope: str, divisor: str) -> None:
    head = anchor_head(2)
    maps, labels = random_maps(head, images=2, height=32, width=64), random_labels(12, images=2, nc=2)
    maps = [x / 2 for x in maps]  # boxes near their anchors
    flags = {**rates, "drop_scope": scope, "drop_divisor": divisor}
    reference = Reference(head, maps, labels, **flags)
    low = reference.overlap < 0.3
    assert (low & reference.matched).sum() > 5  # the sample has what is to be dropped
    assert (~low & reference.matched).sum() > 5
    gone = any(map(any, reference.unset)) if scope == "literal" else reference.obj.any()
    assert gone == (rates.get("obj_drop", 0) > 0)
    loss = criterion(head, **flags)
    assert_same(run(loss, maps, labels), reference.run(), rtol=1e-4)


def test_equals_the_slow_reference_where_nothing_is_dropped() -> None:
    for nc, labels in ((1, random_labels(6, images=2, nc=1)), (2, torch.zeros(0, 6))):
        head = anchor_head(nc)
        maps = random_maps(head, images=2, height=32, width=64)
        reference = Reference(head, maps, labels)
        value, gradients = run(criterion(head), maps, labels)
        expected = reference.run()
        torch.testing.assert_close(value, expected[0], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(gradients[0][:, :, 4], expected[1][0][:, :, 4], rtol=1e-4, atol=1e-8)


# Properties -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("off", [{"obj_drop": 0, "box_drop": 0}, {"loss": "drop"}, {"obj_drop": 0.5, "drop_warmup": 1}])
def test_nothing_to_drop_is_bit_equal(off: dict[str, Any]) -> None:
    head = anchor_head(4)
    maps, labels = random_maps(head), random_labels()
    plain, dropping = run(criterion(head), maps, labels), run(criterion(head, **off), maps, labels)
    assert torch.equal(plain[0], dropping[0])
    assert all(torch.equal(a, b) for a, b in zip(plain[1], dropping[1], strict=True))


def test_dropping_changes_the_gradients_of_its_own_loss_alone() -> None:
    head = anchor_head(4)
    maps, labels = random_maps(head), random_labels()
    _, plain = run(criterion(head), maps, labels)
    _, obj = run(criterion(head, obj_drop=0.75), maps, labels)
    _, box = run(criterion(head, box_drop=0.75), maps, labels)
    for a, b, c in zip(plain, obj, box, strict=True):
        assert not torch.equal(a[:, :, 4], b[:, :, 4])
        assert torch.equal(a[:, :, :4], b[:, :, :4])
        assert torch.equal(a[:, :, 5:], b[:, :, 5:])
        assert torch.equal(a[:, :, 4:], c[:, :, 4:])
    assert not torch.equal(plain[0][:, :, :4], box[0][:, :, :4])


@pytest.mark.parametrize("p", [0.25, 1.0])
def test_exactly_p_of_the_negatives_have_no_gradient(p: float) -> None:
    head = anchor_head(4)
    maps, labels = random_maps(head), random_labels()
    reference = Reference(head, maps, labels, obj_drop=p)
    _, gradients = run(criterion(head, obj_drop=p), maps, labels)
    still = torch.cat([g[:, :, 4].flatten(1) for g in gradients], 1) == 0
    negatives = (reference.overlap < 0.3) & ~reference.matched
    assert not (still & ~negatives).any()  # positives, and what overlaps a label unmatched, always count
    assert int(still.sum()) == math.floor(p * int(negatives.sum()))


def test_literal_trains_cells_that_no_slot_sets_as_background() -> None:
    head = anchor_head(4)
    maps, labels = random_maps(head), random_labels(30)
    flags = {"obj_drop": 1.0, "drop_scope": "literal"}
    reference = Reference(head, maps, labels, **flags)
    _, gradients = run(criterion(head, **flags), maps, labels)
    found = torch.cat([g[:, :, 4].flatten(1) for g in gradients], 1)
    sizes = [x[0, :, 4].numel() for x in maps]
    kinds = {"background": 0, "the last slot": 0, "an earlier slot": 0}
    for level, (x, matches, low) in enumerate(zip(maps, reference.matches, reference.low, strict=True)):
        scores = torch.cat([y[:, :, 4].flatten(1) for y in maps], 1).sigmoid()
        cells: dict[tuple[int, int], list[tuple[float, bool]]] = {}
        for m, is_low in zip(matches, low, strict=True):
            cells.setdefault((m.image, m.candidate), []).append((float(reference.ciou(x.double(), m)), is_low))
        for cell, slots in cells.items():
            left = [iou for iou, is_low in slots if not is_low]
            target = left[-1] if left else 0
            kind = "background" if not left else "an earlier slot" if slots[-1][1] else "the last slot"
            kinds[kind] += 1
            # σ(x) - target, times gain and balance, over the candidates of the level, times B images
            expected = (scores[cell] - target) * 0.01 * BALANCE[3][level] / sizes[level]
            assert float(found[cell]) == pytest.approx(float(expected), rel=1e-3, abs=1e-8), kind
    assert all(kinds.values()), kinds


def test_literal_takes_the_same_slots_from_both_losses() -> None:
    head = anchor_head(4)
    maps, labels = random_maps(head), random_labels(30)
    for rates in ((0.5, 0.5), (0.3, 0.8)):
        reference = Reference(head, maps, labels, obj_drop=rates[0], box_drop=rates[1], drop_scope="literal")
        box, unset, low = ([*chain(*x)] for x in (reference.box, reference.unset, reference.low))
        assert [sum(box), sum(unset)] == [int(rate * sum(low)) for rate in rates[::-1]]
        assert all(a or not b for a, b in zip(box, unset, strict=True))
        assert all(a or not b for a, b in zip(low, box, strict=True))


def test_pull_and_push_where_some_slots_set_no_target() -> None:
    head = anchor_head(4)
    maps, labels = random_maps(head), random_labels(30)
    flags = {"obj_drop": 0.5, "drop_scope": "literal"}
    loss, reference = criterion(head, **flags), Reference(head, maps, labels, **flags)
    dropping, plain = (
        torch.cat([g[:, :, 4].flatten(1) for g in run(x, maps, labels)[1]], 1).abs() for x in (loss, criterion(head))
    )
    left = torch.zeros_like(reference.matched)
    for matches, unset in zip(reference.matches, reference.unset, strict=True):
        for m, sets_none in zip(matches, unset, strict=True):
            left[m.image, m.candidate] |= not sets_none
    assert 0 < left.sum() < reference.matched.sum()
    expected = {
        "pull": float(dropping[left].sum() / plain[reference.matched].sum()),
        "push": float(dropping[~left].sum() / plain[~reference.matched].sum()),
    }
    assert pulls(loss) == pytest.approx(expected, abs=2e-4)


def test_each_step_draws_afresh_and_an_epoch_repeats() -> None:
    head = anchor_head(4)
    maps, labels = random_maps(head), random_labels()
    loss = criterion(head, obj_drop=0.5)
    first, second = run(loss, maps, labels), run(loss, maps, labels)
    assert not torch.equal(first[0], second[0])
    begin_epoch(loss, 0)
    assert torch.equal(run(loss, maps, labels)[0], first[0])
    with torch.no_grad():
        loss((None, {"maps": maps}), batch_of(labels))  # validation is no step
    assert torch.equal(run(loss, maps, labels)[0], second[0])
    begin_epoch(loss, 1)
    assert not torch.equal(run(loss, maps, labels)[0], first[0])
    assert torch.equal(run(criterion(head, obj_drop=0.5), maps, labels)[0], first[0])
    assert not torch.equal(run(criterion(head, obj_drop=0.5, seed=1), maps, labels)[0], first[0])


def test_validation_drops_nothing() -> None:
    head = anchor_head(4)
    maps, labels = random_maps(head), random_labels()
    plain, _ = run(criterion(head), maps, labels)
    loss = criterion(head, obj_drop=0.75, box_drop=0.75)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            output = head.decode(maps)
            for _ in range(2):
                assert torch.equal(loss((output, {"maps": maps}), batch_of(labels))[0], plain)
    assert counts(loss) == {}


def test_counts_are_of_candidates_and_of_matches_and_add_up_over_an_epoch() -> None:
    head = anchor_head(4)
    maps, labels = random_maps(head), random_labels()
    loss, reference = criterion(head, obj_drop=0.5, box_drop=0.25), Reference(head, maps, labels)
    low = reference.overlap < 0.3
    negatives = int((low & ~reference.matched).sum())
    pairs = sum(bool(low[m.image, m.candidate]) for level in reference.matches for m in level)
    expected = [negatives, negatives // 2, pairs, pairs // 4]
    for steps in (1, 2):
        run(loss, maps, labels)
        assert counts(loss) == dict(
            zip(
                ("negatives", "obj_dropped", "low_iou_matches", "box_dropped"),
                [steps * n for n in expected],
                strict=True,
            )
        )
    begin_epoch(loss, 1)
    assert counts(loss) == {}


def test_the_count_of_labels_may_come_with_the_batch() -> None:
    head = anchor_head(4)
    maps, labels = random_maps(head), random_labels()
    most = int(labels[:, 0].long().bincount().max())
    plain = run(criterion(head, obj_drop=0.5), maps, labels)
    for given in (most, most + 5):
        assert_same(plain, run(criterion(head, obj_drop=0.5), maps, labels, most_labels=given))


@pytest.mark.parametrize(
    "labels", [torch.zeros(0, 6), random_labels(1), random_labels(14)], ids=["none", "one", "some"]
)
@pytest.mark.parametrize("scope", ["", *SCOPES])
def test_finite_whatever_is_left(scope: str, labels: Tensor) -> None:
    for nc, p, scale in ((1, 1.0, 1), (3, 0.5, 100), (3, 1.0, 1)):
        head, given = anchor_head(nc), labels.clone()
        given[:, 1] %= nc
        flags = {"obj_drop": p, "box_drop": p, "drop_scope": scope} if scope else {}
        vector, gradients = run(criterion(head, **flags), [x * scale for x in random_maps(head)], given)
        assert vector.isfinite().all()
        assert all(g.isfinite().all() for g in gradients)
        assert len(gradients) == 3  # every output is in the graph


@pytest.mark.parametrize(
    ("dtype", "flags"), [(torch.float16, {}), (torch.bfloat16, {"obj_drop": 0.75, "box_drop": 0.5})]
)
def test_half_precision_maps(dtype: torch.dtype, flags: dict[str, Any]) -> None:
    head = anchor_head(4)
    for scale in (1, 60):
        maps = [(x * scale).to(dtype) for x in random_maps(head, height=128, width=128)]
        vector, gradients = run(criterion(head, 128, **flags), maps, random_labels())
        assert vector.dtype == torch.float32
        assert vector.isfinite().all()
        assert all(g.isfinite().all() and g.dtype == dtype for g in gradients)
        # computed in single precision: the same numbers as from the same maps in single
        single, _ = run(criterion(head, 128, **flags), [x.float() for x in maps], random_labels())
        torch.testing.assert_close(vector, single, rtol=1e-5, atol=1e-7)


def test_under_autocast() -> None:
    head = anchor_head(4)
    maps, labels = random_maps(head), random_labels()
    plain = run(criterion(head, obj_drop=0.5), maps, labels)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(run(criterion(head, obj_drop=0.5), maps, labels), plain)


def test_the_order_of_images_does_not_matter() -> None:
    head = anchor_head(4)
    maps, labels = random_maps(head), random_labels()
    turned = labels.clone()
    turned[:, 0] = 2 - labels[:, 0]
    turned = turned[turned[:, 0].argsort(stable=True)]
    flags = {"obj_drop": 1.0, "box_drop": 0.5, "drop_select": "confident"}
    plain, _ = run(criterion(head, **flags), maps, labels)
    other, _ = run(criterion(head, **flags), [x.flip(0) for x in maps], turned)
    torch.testing.assert_close(plain, other)


def test_one_class_has_no_class_loss_and_its_logits_no_gradient() -> None:
    head = anchor_head(1)
    labels = random_labels(nc=1)
    vector, gradients = run(criterion(head), random_maps(head), labels)
    assert vector[2] == 0
    assert vector[:2].gt(0).all()
    assert all(g[:, :, 5:].eq(0).all() for g in gradients)


def test_inputs_are_unchanged() -> None:
    head = anchor_head(4)
    maps, labels = random_maps(head), random_labels()
    before = [x.clone() for x in maps], labels.clone()
    criterion(head, obj_drop=0.5, box_drop=0.5)({"maps": maps}, batch_of(labels))
    assert all(torch.equal(a, b) for a, b in zip(maps, before[0], strict=True))
    assert torch.equal(labels, before[1])


def test_the_criterion_adds_nothing_to_the_state_dict() -> None:
    model = AnchorDetectionModel("yolov5n.yaml", nc=2, verbose=False)
    names = set(model.state_dict())
    model.args = SimpleNamespace(imgsz=64, seed=0)
    model.criterion = model.init_criterion()
    assert isinstance(model.criterion, AnchorCriterion)
    assert set(model.state_dict()) == names
