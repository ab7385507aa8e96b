"""Faster R-CNN against torchvision's own, its samples and methods, and trained."""

from __future__ import annotations

from collections import OrderedDict
from copy import deepcopy
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torchvision
from objectives import recipe_of
from small_data import STILL, by_heart, make_dataset
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, smooth_l1_loss
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.roi_heads import RoIHeads, fastrcnn_loss
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.ops import batched_nms, box_iou, complete_box_iou

from rebalance import YOLO
from rebalance.hosts import SITES
from rebalance.hosts.host import begin_epoch, counts, describe
from rebalance.hosts.state_dict import load_by_name
from rebalance.hosts.torchvision import faster_rcnn
from rebalance.hosts.torchvision.faster_rcnn import FasterRCNNCriterion, FasterRCNNDetect
from rebalance.hosts.torchvision.model import TorchvisionModel
from rebalance.hosts.torchvision.published import load_coco
from rebalance.hosts.torchvision.zoo import ZOO
from rebalance.match.boxes import decode_deltas
from rebalance.match.candidates import IGNORE, NEGATIVE, POSITIVE
from rebalance.match.iou import Matched
from rebalance.match.padded import Padded
from rebalance.match.sample import Sampled
from rebalance.methods import METHODS
from rebalance.methods.method import Choice
from rebalance.methods.soft import soft_weights

SIZE = 160
ALL = 10**6  # more samples than there are candidates
Labels = list[list[tuple[int, float, float, float, float]]]  # of each image: class and corners in pixels
# The second image has none; in the third two labels overlap each other
LABELS: Labels = [
    [(0, 10, 12, 60, 70), (2, 80, 30, 150, 150), (1, 3, 100, 25, 130)],
    [],
    [(1, 40, 40, 100, 100), (2, 41, 41, 101, 101)],
    [(0, 0, 0, 160, 160)],
]
LOSSES = [name for name, row in METHODS.items() if row.defined(SITES["fasterrcnn"])]


@pytest.fixture(scope="module")
def head() -> FasterRCNNDetect:
    """The head of the small model with 3 classes, its last layers strong enough to make a difference."""
    torch.manual_seed(0)
    found: Any = ZOO["fasterrcnn_tiny"].build(3)[2]
    for layer in (found.predictor.cls_score, found.predictor.bbox_pred, found.rpn.cls_logits, found.rpn.bbox_pred):
        torch.nn.init.normal_(layer.weight, std=0.1)
    return found  # type: ignore[no-any-return]


@pytest.fixture
def features() -> OrderedDict[str, Tensor]:
    g = torch.Generator().manual_seed(1)
    sides = {"4": 20, "6": 10, "9": 5, "pool": 3}
    return OrderedDict((k, torch.randn(4, 64, n, n, generator=g).requires_grad_()) for k, n in sides.items())


@pytest.fixture
def raw(head: FasterRCNNDetect, features: OrderedDict[str, Tensor]) -> dict[str, Any]:
    return head.train().predict(features, (SIZE, SIZE))


def criterion(head: FasterRCNNDetect, loss: str = "", seed: int = 0, **given: Any) -> FasterRCNNCriterion:
    return FasterRCNNCriterion(head, recipe=recipe_of({"loss": loss, **given}, host="fasterrcnn"), seed=seed)


def batch_of(labels: Labels) -> dict[str, Tensor]:
    rows = [(i, *row) for i, image in enumerate(labels) for row in image]
    index, classes, x1, y1, x2, y2 = torch.tensor(rows, dtype=torch.float32).view(-1, 6).unbind(1)
    boxes = torch.stack(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), 1) / SIZE
    return {"batch_idx": index, "cls": classes.unsqueeze(1), "bboxes": boxes}


BATCH = batch_of(LABELS)
NOTHING = batch_of([[]] * 4)


def gradients(loss: Tensor, head: FasterRCNNDetect, features: OrderedDict[str, Tensor]) -> list[Tensor]:
    inputs = [*features.values(), *head.parameters()]
    return list(torch.autograd.grad(loss, inputs, retain_graph=True, allow_unused=True, materialize_grads=True))


def gradient(loss: Tensor, of: Tensor) -> Tensor:
    return torch.autograd.grad(loss, of, retain_graph=True)[0]


class Recorded(NamedTuple):
    candidates: Tensor  # states that were sampled from
    found: Sampled


@pytest.fixture
def samples(monkeypatch: pytest.MonkeyPatch) -> list[Recorded]:
    """What was sampled: the RPN's anchors, then the RoI head's proposals, step by step."""
    seen: list[Recorded] = []
    real = faster_rcnn.sample

    def recording(state: Tensor, *args: Any, **options: Any) -> Sampled:
        seen.append(Recorded(state, real(state, *args, **options)))
        return seen[-1].found

    monkeypatch.setattr(faster_rcnn, "sample", recording)
    return seen


# Against torchvision --------------------------------------------------------------------------------------------------


class Theirs:
    """torchvision's two stages on the layers of our head."""

    def __init__(self, head: FasterRCNNDetect, anchors: int = ALL, rois: int = ALL) -> None:
        make = AnchorGenerator(head.anchors_of.sizes, head.anchors_of.ratios)
        before, after = (dict(zip(("training", "testing"), n, strict=True)) for n in head.numbers[:2])
        self.rpn: Any = RegionProposalNetwork(make, head.rpn, 0.7, 0.3, anchors, 0.5, before, after, 0.7)
        self.roi: Any = RoIHeads(
            head.pool, head.mlp, head.predictor, 0.5, 0.5, rois, 0.25, None, 0.05, 0.5, 100
        )  # fmt: skip
        self.sizes = [(SIZE, SIZE)] * 4

    def __call__(self, features: OrderedDict[str, Tensor], labels: Labels, *, training: bool = True) -> Any:
        self.rpn.train(training)
        self.roi.train(training)
        targets = [
            {
                "boxes": torch.tensor([corners for _, *corners in image], dtype=torch.float32).view(-1, 4),
                "labels": torch.tensor([kind + 1 for kind, *_ in image], dtype=torch.int64),
            }
            for image in labels
        ]
        images = ImageList(torch.zeros(4, 3, SIZE, SIZE), self.sizes)
        proposals, first = self.rpn(images, features, targets if training else None)
        found, second = self.roi(features, proposals, self.sizes, targets if training else None)
        return [*first.values(), *second.values()] if training else (proposals, found)


def same_losses(
    found: Tensor, expected: list[Tensor], head: FasterRCNNDetect, features: OrderedDict[str, Tensor]
) -> None:
    torch.testing.assert_close(found, torch.stack(expected) * 4)
    for one, other in zip(found, expected, strict=True):
        for mine, their in zip(gradients(one, head, features), gradients(other * 4, head, features), strict=True):
            torch.testing.assert_close(mine, their, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("labels", [LABELS, [*LABELS[1:], LABELS[0]], [[]] * 4], ids=["first", "turned", "none"])
def test_all_candidates_cost_what_they_do_in_torchvision(
    head: FasterRCNNDetect, features: OrderedDict[str, Tensor], labels: Labels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "numbers", head.numbers._replace(anchors=ALL, rois=ALL))
    raw = head.train().predict(features, (SIZE, SIZE))
    found, items = criterion(head)(raw, batch_of(labels))
    same_losses(found, Theirs(head)(features, labels), head, features)
    assert list(items) == ["obj_loss", "prop_loss", "cls_loss", "box_loss"]
    torch.testing.assert_close(torch.stack(list(items.values())), found.detach() / 4)


def test_the_same_samples_cost_what_they_do_in_torchvision(
    head: FasterRCNNDetect, features: OrderedDict[str, Tensor], raw: dict[str, Any], samples: list[Recorded]
) -> None:
    found, _ = criterion(head)(raw, BATCH)
    theirs = Theirs(head)
    stages = iter(samples)

    def sampler(labels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        (_, (places, states)), chosen = next(stages), []
        for kind in (POSITIVE, NEGATIVE):
            masks = []
            for image, label in enumerate(labels):
                place = places[image][states[image] == kind]
                there = raw["valid"][image]
                if len(label) != len(raw["anchors"]):  # ours has padding before the labels' own boxes
                    place = torch.where(place < len(there), place, place - len(there) + there.sum())
                masks.append(torch.zeros_like(label, dtype=torch.uint8).index_fill_(0, place, 1))
            chosen.append(masks)
        return chosen[0], chosen[1]

    theirs.rpn.fg_bg_sampler = theirs.roi.fg_bg_sampler = sampler
    same_losses(found, theirs(features, LABELS), head, features)
    # few enough samples that something was left out
    assert all((found.state != IGNORE).sum() < (states >= 0).sum() for states, found in samples)


def test_the_loss_s_parts_by_hand() -> None:
    # two sampled proposals, classes 2 and background, logits zero: log 3 each; the offset is 0.5 in one of four
    # coordinates, beyond beta: 0.5 - 1/18, over two samples
    logits, deltas = torch.zeros(2, 3), torch.zeros(2, 12)
    deltas[0, 8] = 0.5
    cls, box = fastrcnn_loss(logits, deltas, [torch.tensor([2, 0])], [torch.zeros(2, 4)])
    ours = faster_rcnn._smooth_l1(deltas.view(1, 2, 3, 4)[:, :, 2], torch.zeros(1, 2, 4), torch.tensor([[True, False]]))
    torch.testing.assert_close(ours, torch.tensor([[0.5 - 1 / 18, 0]]))
    torch.testing.assert_close((cls, box), (torch.tensor(3.0).log(), (0.5 - torch.tensor(1 / 18)) / 2))
    counted = torch.tensor([[True, True]])
    torch.testing.assert_close(faster_rcnn._mean(ours, counted), box)
    assert faster_rcnn._mean(ours * 0, ~counted) == 0
    gone = torch.tensor([[False, True]])
    for kept in (True, False):  # of two counted, one is gone
        left = Choice(left=gone, kept=kept).of_count(counted, gone)
        torch.testing.assert_close(faster_rcnn._mean(ours, left), box * (2 if kept else 1))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("most", [None, 40])
def test_proposals_are_torchvision_s(
    head: FasterRCNNDetect, raw: dict[str, Any], training: bool, most: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = ((100, 150), (40, 60)) if most else ((2000, 1000), (2000, 1000))
    monkeypatch.setattr(head, "numbers", head.numbers._replace(before=before, after=after))
    boxes = decode_deltas(raw["deltas"].detach() * 4, raw["anchors"])
    boxes[:, ::7, 2:] = boxes[:, ::7, :2]  # without an area
    theirs = Theirs(head).rpn.train(training)
    expected, scores = theirs.filter_proposals(boxes, raw["logits"].flatten(), [(SIZE, SIZE)] * 4, raw["counts"])
    found, valid = head.train(training).propose(raw["logits"].detach(), boxes, raw["counts"], (SIZE, SIZE))
    assert found.shape == (4, after[0 if training else 1], 4)
    for image in range(4):
        assert torch.equal(found[image][valid[image]], expected[image])
        assert not found[image][~valid[image]].any()
    assert (scores[0].diff() <= 0).all()


def test_anchors_and_predictions_are_in_torchvision_s_order(raw: dict[str, Any], head: FasterRCNNDetect) -> None:
    theirs = Theirs(head).rpn
    maps = list(raw["features"].values())
    anchors = theirs.anchor_generator(ImageList(torch.zeros(4, 3, SIZE, SIZE), [(SIZE, SIZE)] * 4), maps)
    assert torch.equal(raw["anchors"], anchors[0])
    assert sum(raw["counts"]) == len(raw["anchors"]) == 3 * (400 + 100 + 25 + 9)
    logits, deltas = torchvision.models.detection.rpn.concat_box_prediction_layers(*head.rpn(maps))
    assert torch.equal(raw["logits"], logits.view(4, -1))
    assert torch.equal(raw["deltas"], deltas.view(4, -1, 4))


def test_inference_is_torchvision_s(
    head: FasterRCNNDetect, features: OrderedDict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "numbers", head.numbers._replace(most=ALL))
    with torch.no_grad():
        proposals, expected = Theirs(head)(features, LABELS, training=False)
        raw = head.eval().predict(features, (SIZE, SIZE))
        boxes, scores, classes = head.decode(raw)
    assert [len(p) for p in proposals] == raw["valid"].sum(1).tolist()
    assert boxes.min() >= 0
    assert boxes.max() <= SIZE
    for image, wanted in enumerate(expected):
        b, s, c = (x[image][scores[image] > 0.05] for x in (boxes, scores, classes))
        kept = batched_nms(b, s, c, 0.5)[:100]
        assert len(kept) > 20
        torch.testing.assert_close(b[kept], wanted["boxes"], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(s[kept], wanted["scores"])
        assert torch.equal(c[kept] + 1, wanted["labels"])


def test_only_the_best_pairs_are_handed_on(head: FasterRCNNDetect, features: OrderedDict[str, Tensor]) -> None:
    with torch.no_grad():
        raw = head.eval().predict(features, (SIZE, SIZE))
        few, many = (FasterRCNNDetect.decode(_with(head, most=most), raw) for most in (50, ALL))
    assert few[1].shape == (4, 50)
    assert torch.equal(few[1], many[1].topk(50, 1)[0])
    padding = int((~raw["valid"]).sum())
    assert (many[1] == 0).sum() >= padding * 3  # padding has no score in any class


def _with(head: FasterRCNNDetect, **numbers: Any) -> FasterRCNNDetect:
    other = deepcopy(head)
    other.numbers = head.numbers._replace(**numbers)
    return other


# Samples --------------------------------------------------------------------------------------------------------------


def test_samples_of_a_step(head: FasterRCNNDetect, raw: dict[str, Any], samples: list[Recorded]) -> None:
    criterion(head)(raw, BATCH)
    anchors, rois = samples
    assert anchors.found.place.shape == (4, 128)
    assert rois.found.place.shape == (4, 64)
    for (states, (_, state)), count, most in ((anchors, 128, 64), (rois, 64, 16)):
        positive = (states == POSITIVE).sum(1).clamp(max=most)
        assert torch.equal((state == POSITIVE).sum(1), positive)
        negative = (states == NEGATIVE).sum(1).minimum(count - positive)
        assert torch.equal((state == NEGATIVE).sum(1), negative)
    assert not (anchors.candidates[1] == POSITIVE).any()  # the image without labels has negatives only
    assert (anchors.found.state[1] == NEGATIVE).all()
    # the labels' own boxes are among the proposals, and positive
    most = max(map(len, LABELS))
    own = rois.candidates[:, -most:]
    assert (own == POSITIVE).sum(1).tolist() == [len(image) for image in LABELS]
    assert ((own == IGNORE).sum(1) == torch.tensor([most - len(image) for image in LABELS])).all()


def test_of_few_samples_half_of_the_anchors_and_a_quarter_of_the_proposals_are_positive(
    head: FasterRCNNDetect, raw: dict[str, Any], samples: list[Recorded], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head, "numbers", head.numbers._replace(anchors=4, rois=8))
    criterion(head)(raw, BATCH)
    for states, (_, state) in samples:
        there = (states == POSITIVE).sum(1)
        assert there.max() > 2
        assert torch.equal((state == POSITIVE).sum(1), there.clamp(max=2))


def test_draws_depend_on_seed_epoch_and_step_alone(
    head: FasterRCNNDetect, raw: dict[str, Any], samples: list[Recorded]
) -> None:
    def steps(epochs: list[int], seed: int = 0) -> list[list[Tensor]]:
        samples.clear()
        loss = criterion(head, seed=seed)
        for epoch in epochs:
            begin_epoch(loss, epoch)
            for _ in range(2):
                loss(raw, BATCH)
        return [found.place for _, found in samples[-4:]]  # type: ignore[return-value]

    whole, resumed = steps([0, 1]), steps([1])
    for one, other in zip(whole, resumed, strict=True):
        assert torch.equal(one, other)
    assert not torch.equal(whole[0], whole[2])  # a step draws afresh
    assert not torch.equal(steps([0])[0], whole[0])
    assert not torch.equal(steps([1], seed=1)[0], whole[0])


def test_validation_samples_the_same_for_every_batch_and_drops_nothing(
    head: FasterRCNNDetect, raw: dict[str, Any], samples: list[Recorded]
) -> None:
    for loss in (criterion(head), criterion(head, "nrd"), criterion(head, "drop", obj_drop=1, box_drop=1)):
        with torch.no_grad():
            first, again = loss((None, raw), BATCH)[0], loss((None, raw), BATCH)[0]
            torch.testing.assert_close(first, again, rtol=0, atol=0)
            torch.testing.assert_close(first, criterion(head)((None, raw), BATCH)[0], rtol=0, atol=0)
        assert counts(loss) == {}


# Methods --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "neutral"),
    [("nrd", {"nrd_rate": 0}), ("nrd", {"nrd_rate": 0, "nrd_stage": "rpn"}), ("soft", {"soft_a": 1}), ("drop", {})],
)
def test_neutral_settings_are_the_stock_loss_bit_for_bit(
    head: FasterRCNNDetect, features: OrderedDict[str, Tensor], raw: dict[str, Any], loss: str, neutral: dict[str, Any]
) -> None:
    found, expected = (x(raw, BATCH)[0] for x in (criterion(head, loss, **neutral), criterion(head)))
    assert torch.equal(found, expected)
    for one, other in zip(*(gradients(x.sum(), head, features) for x in (found, expected)), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_finite_and_reaches_every_parameter(
    head: FasterRCNNDetect, features: OrderedDict[str, Tensor], raw: dict[str, Any], loss: str
) -> None:
    given = {"obj_drop": 1, "box_drop": 1} if loss == "drop" else {"nrd_rate": 1} if loss == "nrd" else {}
    for labels in (BATCH, NOTHING):
        found, _ = criterion(head, loss, **given)(raw, labels)
        assert found.isfinite().all()
        grads = torch.autograd.grad(found.sum(), list(head.parameters()), retain_graph=True)  # raises where unused
        assert all(g.isfinite().all() for g in grads)
        # bce is what the host has; of nothing but background, dropped in full, no loss is left
        assert torch.equal(found, criterion(head)(raw, labels)[0]) == (loss == "bce")


def stage_losses(
    head: FasterRCNNDetect, raw: dict[str, Any], recorded: Recorded
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(B, S) cross-entropy, state, overlap and class target of the sampled proposals, image by image."""
    most = max(map(len, LABELS))
    rows = []
    for image, (place, state) in enumerate(zip(*recorded.found, strict=True)):
        own = torch.tensor([corners for _, *corners in LABELS[image]]).view(-1, 4)
        boxes = torch.cat((raw["proposals"][image], own, torch.zeros(most - len(own), 4)))[place]
        iou = box_iou(boxes, own) if len(own) else torch.zeros(len(boxes), 1)
        overlap, label = iou.max(1)
        kinds = torch.tensor([kind for kind, *_ in LABELS[image]] or [0])[label] + 1
        target = torch.where(state == POSITIVE, kinds, 0)
        maps = OrderedDict((k, v[image : image + 1]) for k, v in raw["features"].items())
        logits, _ = head.roi(maps, boxes.unsqueeze(0), raw["size"])
        rows.append((cross_entropy(logits[0], target, reduction="none"), state, overlap, target))
    a, b, c, d = (torch.stack(x) for x in zip(*rows, strict=True))
    return a, b, c, d


def test_soft_weighs_the_negatives_of_the_roi_head_by_overlap(
    head: FasterRCNNDetect, raw: dict[str, Any], samples: list[Recorded]
) -> None:
    stock = criterion(head)(raw, BATCH)[0]
    found = criterion(head, "soft", soft_a=0.1, soft_b=30, soft_c=10)(raw, BATCH)[0]
    cost, state, overlap, _ = stage_losses(head, raw, samples[-1])
    weights = torch.where(
        state == POSITIVE, 1, 0.1 + 0.9 * torch.exp(-30 * torch.exp(-10 * overlap))
    )  # fmt: skip
    sampled = state != IGNORE
    torch.testing.assert_close(found[2], (cost * weights)[sampled].sum() / sampled.sum() * 4)
    assert torch.equal(found[[0, 1, 3]], stock[[0, 1, 3]])
    ends = soft_weights(torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2, dtype=torch.int8))
    torch.testing.assert_close(ends, torch.tensor([[0.25, 1.0]]))


def test_nrd_leaves_the_mean_over_the_other_samples(
    head: FasterRCNNDetect, raw: dict[str, Any], samples: list[Recorded]
) -> None:
    """What left has no gradient at all."""
    seen: list[Tensor] = []
    stock = criterion(head)(raw, BATCH)[0]
    hook = head.predictor.register_forward_hook(lambda _module, _inputs, found: seen.append(found[0]))
    found = criterion(head, "nrd")(raw, BATCH)[0]
    hook.remove()
    cost, state, *_ = stage_losses(head, raw, samples[-1])
    kept = gradient(found[2], seen[-1]).ne(0).any(-1).view_as(state)
    gone = (state != IGNORE) & ~kept
    assert int(gone.sum()) == int((state == NEGATIVE).sum()) * 3 // 4 > 100
    assert not gone[state != NEGATIVE].any()
    torch.testing.assert_close(found[2], cost[kept].mean() * 4)
    assert torch.equal(found[[0, 1, 3]], stock[[0, 1, 3]])  # the same samples, and the box loss as it was

    found = criterion(head, "nrd", nrd_stage="rpn")(raw, BATCH)[0]
    place, state = samples[-2].found
    kept = gradient(found[0], raw["logits"]).gather(1, place).ne(0) & (state != IGNORE)
    gone = (state != IGNORE) & ~kept
    assert int(gone.sum()) == int((state == NEGATIVE).sum()) * 3 // 4 > 100
    assert not gone[state != NEGATIVE].any()
    logits = raw["logits"].gather(1, place)[kept]
    expected = binary_cross_entropy_with_logits(logits, (state == POSITIVE)[kept].float())
    torch.testing.assert_close(found[0], expected * 4)
    assert torch.equal(found[1:], stock[1:])


def test_ohem_keeps_the_hardest_of_those_that_overlap(head: FasterRCNNDetect, monkeypatch: pytest.MonkeyPatch) -> None:
    # The first two overlap by 90/110 = 0.82, the second costs more; the first and the fourth by 70/130 = 0.54, and are
    # both kept. The last is padding of the highest cost
    boxes = torch.tensor([[
        [0.0, 0, 10, 10], [1, 0, 11, 10], [50, 50, 60, 60], [3, 0, 13, 10], [90, 90, 99, 99], [0, 0, 0, 0]
    ]])  # fmt: skip
    cls, box = torch.tensor([[1.0, 1, 0.5, 0.1, 0.9, 9]]), torch.tensor([[0.0, 1, 0, 0.1, 0, 9]])
    state = torch.tensor([[NEGATIVE, POSITIVE, NEGATIVE, POSITIVE, NEGATIVE, IGNORE]], dtype=torch.int8)
    matched = Matched(state, torch.zeros(1, 6, dtype=torch.int64), torch.zeros(1, 6))
    for count, places in ((1, [1]), (2, [1, 4]), (3, [1, 4, 2]), (6, [1, 4, 2])):
        # the fourth overlaps the second by 80/120 = 0.67, and comes after the third
        loss = criterion(head, "ohem", ohem_rois=count)
        monkeypatch.setattr(head, "roi", lambda *_, there: (None, None))
        monkeypatch.setattr(loss, "_roi_losses", lambda *_: (cls, box))
        place, chosen = loss._hardest({"features": None, "size": None}, Padded(*[torch.zeros(0)] * 3), boxes, matched)
        expected = [*places, 3][:count]
        assert place.shape == chosen.shape == (1, count)
        assert place[0][chosen[0] != IGNORE].tolist() == expected
        assert chosen[0][: len(expected)].tolist() == state[0][expected].tolist()


def test_ohem_trains_on_the_classification_and_box_loss_of_what_it_kept(
    head: FasterRCNNDetect, raw: dict[str, Any]
) -> None:
    stock, mined = criterion(head), criterion(head, "ohem", ohem_rois=ALL)
    few = criterion(head, "ohem", ohem_rois=16)
    full, some = mined(raw, BATCH)[0], few(raw, BATCH)[0]
    assert torch.equal(full[:2], stock(raw, BATCH)[0][:2])  # the RPN is left alone
    assert some[2] + some[3] > full[2] + full[3]  # the harder ones
    with torch.no_grad():
        assert torch.equal(few(raw, BATCH)[0][2:], some[2:].detach())  # nothing is random


@pytest.mark.parametrize(
    ("scope", "divisor"), [("background", "kept"), ("matched", "kept"), ("matched", "host"), ("literal", "kept")]
)
def test_drop_acts_on_the_rpn(
    head: FasterRCNNDetect, raw: dict[str, Any], samples: list[Recorded], scope: str, divisor: str
) -> None:
    stock = criterion(head)(raw, BATCH)[0]
    dropping = criterion(head, obj_drop=0.5, box_drop=0.5, drop_scope=scope, drop_divisor=divisor, neg_iou=0.6)
    found = dropping(raw, BATCH)[0]
    assert torch.equal(found[2:], stock[2:])  # the RoI head is left alone
    place, state = samples[-2].found
    positive, sampled = state == POSITIVE, state != IGNORE
    boxes = decode_deltas(raw["deltas"].detach(), raw["anchors"])
    overlaps = [
        box_iou(b, torch.tensor([c for _, *c in own]).view(-1, 4)) for b, own in zip(boxes, LABELS, strict=True)
    ]
    overlap = torch.stack([o.max(1)[0] if o.shape[1] else torch.zeros(len(o)) for o in overlaps])
    if scope == "literal":  # with its own label: that of the anchor
        for row, b, own in zip(overlap, boxes, LABELS, strict=True):
            if own:
                corners = torch.tensor([c for _, *c in own]).float()
                label = box_iou(corners, raw["anchors"]).max(0)[1]
                row.copy_(complete_box_iou(b, corners).gather(1, label.unsqueeze(1)).squeeze(1))
    overlap = overlap.gather(1, place)
    low = (overlap < 0.6) & sampled
    eligible = low & (~positive if scope == "background" else positive)
    slope = gradient(found[0], raw["logits"]).gather(1, place)
    obj = positive & (slope > 0) if scope == "literal" else sampled & (slope == 0)  # trained as background, or not
    at = place.unsqueeze(-1).expand(-1, -1, 4)
    box = positive & gradient(found[1], raw["deltas"]).gather(1, at).eq(0).all(-1)
    for drawn, of in ((obj, eligible), (box, low & positive)):
        assert int(drawn.sum()) == int(of.sum()) // 2 > 1
        assert not (drawn & ~of).any()
    assert counts(dropping) == {
        "negatives": int(eligible.sum()), "obj_dropped": int(obj.sum()), "low_iou_matches": int((low & positive).sum()),
        "box_dropped": int(box.sum()),
    }  # fmt: skip
    target = (positive & ~obj if scope == "literal" else positive).float()
    left = sampled if scope == "literal" else sampled & ~obj
    cost = binary_cross_entropy_with_logits(raw["logits"].gather(1, place), target, reduction="none")
    counted = left if divisor == "kept" else sampled
    torch.testing.assert_close(found[0], cost[left].sum() / counted.sum() * 4)
    encoded = torch.stack([
        torchvision.models.detection._utils.BoxCoder((1.0, 1.0, 1.0, 1.0)).encode_single(
            torch.tensor([c for _, *c in own])[box_iou(torch.tensor([c for _, *c in own]), raw["anchors"]).max(0)[1]]
            if own else raw["anchors"], raw["anchors"],
        ) for own in LABELS
    ])  # fmt: skip
    chosen = positive & ~box
    deltas, wanted = (x.gather(1, at)[chosen] for x in (raw["deltas"], encoded))
    total = smooth_l1_loss(deltas, wanted, beta=1 / 9, reduction="sum")
    counted = sampled & ~box if divisor == "kept" else sampled
    torch.testing.assert_close(found[1], total / counted.sum() * 4)


def test_drop_waits_for_its_warmup(head: FasterRCNNDetect, raw: dict[str, Any]) -> None:
    loss = criterion(head, obj_drop=0.5, drop_warmup=1)
    assert torch.equal(loss(raw, BATCH)[0], criterion(head)(raw, BATCH)[0])
    begin_epoch(loss, 1)
    loss(raw, BATCH)
    assert counts(loss)["obj_dropped"] > 0


# Models ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (96, 160), (160, 96)])
def test_the_small_model_takes_every_size_and_a_copy_has_its_own_head(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    model = TorchvisionModel("fasterrcnn_tiny", nc=3, verbose=False)
    model.criterion = criterion(model.model[-1])
    copy = deepcopy(model)  # as the EMA does
    assert copy.criterion.head is copy.model[-1] is not model.model[-1]
    batch = {"img": torch.rand(2, 3, *size), **batch_of(LABELS[:1])}
    model.train().loss(batch)[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    decoded, raw = model.eval()(batch["img"])
    assert decoded.shape == (2, 4 + 3, 300)
    assert ((decoded[:, 4:] > 0).sum(1) <= 1).all()
    assert raw["proposals"].shape == (2, 200, 4)
    with torch.no_grad():
        assert model.loss(batch, (decoded, raw))[0].isfinite().all()
    assert int(model.stride.max()) == 32


def test_a_detector_of_torchvision_loads_by_name_and_predicts_the_same(tmp_path: Path) -> None:
    torch.manual_seed(0)
    original = torchvision.models.detection.fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=4, min_size=96, max_size=96, rpn_post_nms_top_n_test=30,
        box_score_thresh=0.1,
    ).eval()  # fmt: skip
    torch.nn.init.normal_(original.roi_heads.box_predictor.cls_score.weight, std=0.002)  # no score is 1
    torch.save(original.state_dict(), tmp_path / "detector.pth")
    yolo = YOLO("fasterrcnn_resnet50_fpn")
    yolo.model = TorchvisionModel("fasterrcnn_resnet50_fpn", nc=3, verbose=False)
    yolo.load(str(tmp_path / "detector.pth"))
    head: Any = yolo.model.model[-1]
    head.numbers = head.numbers._replace(after=(30, 30))
    assert (head.rpn.cls_logits.weight == original.rpn.head.cls_logits.weight).all()
    image = torch.rand(3, 96, 96)
    with torch.no_grad():
        expected = original([image])[0]
        boxes, scores, classes = (x[0] for x in head.decode(yolo.model.eval()(image[None])[1]))
    there = scores > 0.1
    kept = batched_nms(boxes[there], scores[there], classes[there], 0.5)[:100]
    assert len(kept) > 3
    torch.testing.assert_close(scores[there][kept], expected["scores"], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(boxes[there][kept], expected["boxes"], rtol=1e-3, atol=1e-2)
    assert torch.equal(classes[there][kept] + 1, expected["labels"])


def test_coco_s_rows_old_names_and_backbones() -> None:
    weights = FasterRCNN_ResNet50_FPN_Weights.COCO_V1
    original = torchvision.models.detection.fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91)
    state = dict(original.state_dict())
    # the published file is of 2019, with other names where a convolution stands alone
    old = {k.replace("rpn.head.conv.0.0.", "rpn.head.conv."): v for k, v in state.items()}
    old = {
        k.replace(".0.weight", ".weight").replace(".0.bias", ".bias") if "_blocks" in k else k: v
        for k, v in old.items()
    }
    assert {"rpn.head.conv.bias", "backbone.fpn.inner_blocks.3.weight", "backbone.fpn.layer_blocks.0.bias"} <= set(old)
    model = TorchvisionModel("fasterrcnn_resnet50_fpn", nc=80, verbose=False)
    names = weights.meta["categories"]
    for given in (state, old):
        model.model[-1].predictor.cls_score.bias.data.zero_()
        assert load_coco(model, dict(given), weights) == (len(state), len(state))
        theirs, ours = original.roi_heads.box_predictor, model.model[-1].predictor
        assert [model.names[i] for i in (0, 79)] == ["person", "toothbrush"]
        for kind in (0, 40, 79):
            index = names.index(model.names[kind])
            assert torch.equal(ours.cls_score.weight[kind + 1], theirs.cls_score.weight[index])
            assert torch.equal(ours.bbox_pred.bias.view(-1, 4)[kind + 1], theirs.bbox_pred.bias.view(-1, 4)[index])
        assert torch.equal(ours.cls_score.bias[0], theirs.cls_score.bias[0])
    backbone = torchvision.models.resnet50().state_dict()
    copied, total = load_by_name(model, model.translate(dict(backbone)), "resnet50")
    assert (copied, total) == (len(backbone) - 2, len(backbone))  # all but its classifier
    assert torch.equal(model.model[0].layer4[2].conv3.weight, backbone["layer4.2.conv3.weight"])


def test_the_zoo_s_rows() -> None:
    rows = {name: row for name, row in ZOO.items() if row.head.sites.name == "fasterrcnn"}
    assert list(rows) == [
        "fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_fpn",
        "fasterrcnn_mobilenet_v3_large_320_fpn", "fasterrcnn_resnet101_fpn", "fasterrcnn_tiny",
    ]  # fmt: skip
    for name in rows:
        if hasattr(torchvision.models.detection, name):
            their_numbers(name)


def their_numbers(name: str) -> None:
    original = getattr(torchvision.models.detection, name)(weights=None, weights_backbone=None)
    assert ZOO[name].mean == tuple(original.transform.image_mean)
    assert ZOO[name].std == tuple(original.transform.image_std)
    head: Any = ZOO[name].build(90)[2]
    make, roi = original.rpn.anchor_generator, original.roi_heads
    assert head.numbers.least == original.rpn.score_thresh
    assert head.anchors_of.sizes == make.sizes
    assert head.anchors_of.ratios == make.aspect_ratios
    assert head.numbers.before == tuple(original.rpn._pre_nms_top_n.values())
    assert head.numbers.after == tuple(original.rpn._post_nms_top_n.values())
    assert head.numbers.anchors == original.rpn.fg_bg_sampler.batch_size_per_image
    assert head.numbers.rois == roi.fg_bg_sampler.batch_size_per_image
    assert repr(head.pool) == repr(roi.box_roi_pool)
    assert sum(p.numel() for p in head.predictor.parameters()) == sum(p.numel() for p in roi.box_predictor.parameters())


def test_what_ran_is_told_with_the_flags_that_count_here() -> None:
    model = TorchvisionModel("fasterrcnn_tiny", nc=3, verbose=False)
    model.criterion = criterion(model.model[-1], "ohem", ohem_rois=64)
    told = describe(model)
    assert told["settings"] == {"ohem_rois": 64}
    assert told["divisor"] == "samples of the batch"
    assert told["text"].startswith(
        "loss=ohem head=stock (online hard example mining): FasterRCNNCriterion, ohem_rois=64"
    )


def quicken(model: torch.nn.Module) -> None:
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = 0.2


@pytest.mark.slow
def test_overfits_eight_images_and_comes_back_from_its_checkpoint(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data", train=8, val=1, test=1, size=96)
    by_heart(data, times=10)
    yolo = YOLO("fasterrcnn_tiny")
    options = {"workers": 0, "device": "cpu", "plots": False, "verbose": False, "batch": 8, "imgsz": 96}
    # 70 steps are too few for statistics that move by 3 % a step
    yolo.add_callback("on_train_start", lambda trainer: quicken(trainer.model))
    yolo.train(
        data=str(data), epochs=7, optimizer="AdamW", lr0=0.003, warmup_epochs=0.2, nbs=8, val=False, amp=False,
        seed=0, project=str(tmp_path / "runs"), name="run", **options, **STILL,
    )  # fmt: skip
    again = YOLO(str(tmp_path / "runs" / "run" / "weights" / "last.pt"))
    metrics = again.val(data=str(data), project=str(tmp_path / "runs"), **options)
    assert metrics.box.map50 > 0.9
    image = sorted((tmp_path / "data" / "images" / "train").iterdir())[0]
    yolo.model = YOLO(str(tmp_path / "runs" / "run" / "weights" / "last.pt")).model
    first, second = (x.predict(str(image), imgsz=96, verbose=False)[0].boxes.data for x in (again, yolo))
    torch.testing.assert_close(first, second)
