"""SSD against torchvision's own, and trained."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from objectives import recipe_of
from small_data import STILL, by_heart, make_dataset
from small_training import train
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torchvision.models.detection import SSD300_VGG16_Weights, SSDLite320_MobileNet_V3_Large_Weights
from torchvision.models.detection._utils import BoxCoder, SSDMatcher
from torchvision.models.detection.image_list import ImageList
from torchvision.ops import box_iou, sigmoid_focal_loss

from rebalance import YOLO
from rebalance.errors import ConfigError
from rebalance.hosts import SITES
from rebalance.hosts.host import counts, remembered
from rebalance.hosts.state_dict import load_by_name
from rebalance.hosts.torchvision.model import TorchvisionModel
from rebalance.hosts.torchvision.published import load_coco
from rebalance.hosts.torchvision.ssd import SCALE, SigmoidSSDCriterion, SigmoidSSDDetect, SSDCriterion, SSDDetect
from rebalance.hosts.torchvision.zoo import ZOO, LastImageNorm, Smaller, Unpadded
from rebalance.match.boxes import decode_deltas
from rebalance.match.candidates import POSITIVE
from rebalance.match.padded import Padded
from rebalance.methods import JOINS, METHODS

NAMES = [name for name, row in ZOO.items() if row.head.sites.name == "ssd"]
SIZE = 160
Labels = list[list[tuple[int, float, float, float, float]]]  # of each image: class and corners in pixels
# The second image has none; in the third two labels share their best default box
LABELS: Labels = [
    [(0, 10, 12, 60, 70), (2, 80, 30, 150, 150), (1, 3, 100, 25, 130)],
    [],
    [(1, 40, 40, 100, 100), (2, 41, 41, 101, 101)],
    [(0, 0, 0, 160, 160)],
]
LOSSES = [name for name, row in METHODS.items() if row.defined(SITES["ssd"])] + [
    f"focal+{name}" for name, row in METHODS.items() if row.defined(SITES["ssd"]) and "focal" in JOINS.get(name, ())
]


def criterion(loss: str = "", **given: Any) -> SSDCriterion:
    return SSDCriterion(None, recipe=recipe_of({"loss": loss, **given}, host="ssd"), seed=0)


def batch_of(labels: Labels, size: int = SIZE) -> dict[str, Tensor]:
    rows = [(i, *row) for i, image in enumerate(labels) for row in image]
    index, classes, x1, y1, x2, y2 = torch.tensor(rows, dtype=torch.float32).view(-1, 6).unbind(1)
    boxes = torch.stack(((x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1), 1) / size
    return {"batch_idx": index, "cls": classes.unsqueeze(1), "bboxes": boxes}


def padded(labels: Labels) -> Padded:
    most = max(map(len, labels))
    boxes, valid = torch.zeros(len(labels), most, 4), torch.zeros(len(labels), most, dtype=torch.bool)
    for i, image in enumerate(labels):
        for j, (_, *corners) in enumerate(image):
            boxes[i, j], valid[i, j] = torch.tensor(corners), True
    return Padded(boxes, torch.zeros(len(labels), most, dtype=torch.int64), valid)


@pytest.fixture(scope="module")
def originals() -> dict[str, Any]:
    """torchvision's detectors of 3 classes, random."""
    torch.manual_seed(0)
    return {
        name: getattr(torchvision.models.detection, name)(weights=None, weights_backbone=None, num_classes=4).eval()
        for name in ("ssd300_vgg16", "ssdlite320_mobilenet_v3_large")
    }


@cache
def head_of(name: str) -> Any:
    return ZOO[name].build(3)[2]


def default_boxes(name: str, cells: tuple[int, ...], side: int) -> Tensor:
    boxes: Tensor = head_of(name).boxes_of([torch.zeros(1, 1, n, n) for n in cells], side)
    return boxes


def raw_of(images: int = 4, *, spread: float = 1, seed: int = 0) -> dict[str, Any]:
    """Random predictions for 3 classes on the default boxes of ssd_tiny."""
    anchors = default_boxes("ssd_tiny", (20, 10, 5, 3, 2), SIZE)
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, len(anchors), 4, generator=g) * 2
    deltas = torch.randn(images, len(anchors), 4, generator=g) * spread
    return {
        "logits": logits.requires_grad_(), "deltas": deltas.requires_grad_(), "anchors": anchors, "size": (SIZE, SIZE)
    }  # fmt: skip


def their_matches(labels: Labels, anchors: Tensor) -> list[Tensor]:
    """As SSD.forward computes them."""
    found, matcher = [], SSDMatcher(0.5)
    for image in labels:
        boxes = torch.tensor([corners for _, *corners in image])
        found.append(matcher(box_iou(boxes, anchors)) if image else torch.full((len(anchors),), -1))
    return found


def their_loss(theirs: Any, raw: dict[str, Any], labels: Labels) -> dict[str, Tensor]:
    targets = [
        {
            "boxes": torch.tensor([corners for _, *corners in image]).view(-1, 4),
            "labels": torch.tensor([kind + 1 for kind, *_ in image], dtype=torch.int64),
        }
        for image in labels
    ]
    outputs = {"cls_logits": raw["logits"], "bbox_regression": raw["deltas"]}
    anchors = [raw["anchors"]] * len(labels)
    found: dict[str, Tensor] = theirs.compute_loss(targets, outputs, anchors, their_matches(labels, raw["anchors"]))
    return found


def gradients(loss: Tensor, raw: dict[str, Any]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(
        loss, (raw["logits"], raw["deltas"]), retain_graph=True, allow_unused=True, materialize_grads=True
    )


# The loss -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", [LABELS, LABELS[1:2], LABELS[:1], [[], []]], ids=["all", "none", "one", "nones"])
def test_stock_is_torchvision_s_loss_in_value_and_gradient(originals: dict[str, Any], labels: Labels) -> None:
    raw = raw_of(len(labels))
    (cls, box), items = criterion()(raw, batch_of(labels))
    expected = their_loss(originals["ssd300_vgg16"], raw, labels)
    b = len(labels)
    torch.testing.assert_close(cls, expected["classification"] * b)
    torch.testing.assert_close(box, expected["bbox_regression"] * b)
    assert items == {"cls_loss": (cls / b).detach(), "box_loss": (box / b).detach()}
    for one, other in (
        (cls, expected["classification"] * b),
        (box, expected["bbox_regression"] * b),
    ):
        for found, wanted in zip(gradients(one, raw), gradients(other, raw), strict=True):
            torch.testing.assert_close(found, wanted)
    assert criterion().recipe["loss"] == "ohem"


def test_unmined_cross_entropy_is_torch_s() -> None:
    raw = raw_of()
    (cls, _), _ = criterion("ce")(raw, batch_of(LABELS))
    matches = their_matches(LABELS, raw["anchors"])
    targets = torch.stack([
        torch.tensor([kind + 1 for kind, *_ in image] + [0])[matched.where(matched >= 0, len(image))]
        for image, matched in zip(LABELS, matches, strict=True)
    ])  # fmt: skip
    expected = cross_entropy(raw["logits"].flatten(0, 1), targets.flatten(), reduction="sum") / (targets > 0).sum()
    torch.testing.assert_close(cls, expected * 4)
    torch.testing.assert_close(gradients(cls, raw)[0], gradients(expected * 4, raw)[0])


@pytest.mark.parametrize(
    ("loss", "neutral", "same"),
    [
        ("focal", {"focal_gamma": 0, "focal_alpha": -1}, "ce"),
        ("focal+ohem", {"focal_gamma": 0, "focal_alpha": -1}, ""),
        ("soft", {"soft_a": 1}, "ce"),
        ("ohem", {"ohem_ratio": 1e6}, "ce"),  # but for the image without labels
        ("drop", {}, "ce"),
    ],
)
def test_neutral_settings(loss: str, neutral: dict[str, float], same: str) -> None:
    labels = [*LABELS[:1], *LABELS[2:]]
    raw = raw_of(3)
    found, expected = (x(raw, batch_of(labels))[0] for x in (criterion(loss, **neutral), criterion(same)))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradients(found.sum(), raw), gradients(expected.sum(), raw))


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_is_finite_and_differs_from_stock(loss: str) -> None:
    raw = raw_of(spread=10)
    given = {"obj_drop": 0.5, "box_drop": 0.5} if "drop" in loss else {"ohem_ratio": 2} if loss == "ohem" else {}
    (cls, box), _ = criterion(loss, **given)(raw, batch_of(LABELS))
    stock = criterion()(raw, batch_of(LABELS))[0]
    found, other = gradients(cls + box, raw), gradients(stock.sum(), raw)
    assert all(x.isfinite().all() for x in (cls, box, *found))
    assert not torch.allclose(found[0], other[0])
    assert torch.equal(found[1], other[1]) == ("drop" not in loss)
    nothing = criterion(loss, **given)(raw, batch_of([[]] * 4))[0].sum()
    assert nothing.isfinite()
    assert all(x.isfinite().all() for x in gradients(nothing, raw))


@pytest.mark.parametrize("divisor", ["image", "batch", "candidates"])
def test_the_divisor(divisor: str) -> None:
    raw = raw_of()
    cls = criterion("ce", divisor=divisor)(raw, batch_of(LABELS))[0][0]
    anchors = raw["anchors"]
    matched = torch.stack([m >= 0 for m in their_matches(LABELS, anchors)])
    each = torch.stack([
        criterion("ce", divisor="candidates")(
            {**raw, "logits": raw["logits"][i : i + 1], "deltas": raw["deltas"][i : i + 1]}, batch_of([image])
        )[0][0] for i, image in enumerate(LABELS)
    ]) * len(anchors)  # fmt: skip
    counts = matched.sum(1).clamp(min=1)
    by = {"image": (each / counts).mean(), "batch": each.sum() / counts.new_tensor(int(matched.sum()))}
    expected = by.get(divisor, each.sum() / matched.numel())
    torch.testing.assert_close(cls, expected * 4)


@pytest.mark.parametrize("loss", ["drop", "focal+drop"])
def test_drop_drops_and_counts(loss: str) -> None:
    raw = raw_of(spread=10)
    dropping = criterion(loss, obj_drop=0.75, box_drop=0.5, drop_divisor="host")
    cls, box = dropping(raw, batch_of(LABELS))[0]
    negatives, dropped, low, box_dropped = counts(dropping).values()
    assert dropped == negatives * 3 // 4 > 100
    assert box_dropped == low // 2 > 3
    without = gradients(cls, raw)[0].abs().sum(-1) == 0
    assert without.sum() == dropped
    matched = torch.stack([m >= 0 for m in their_matches(LABELS, raw["anchors"])])
    assert not without[matched].any()  # scope `background`: matches stay
    assert (gradients(box, raw)[1].abs().sum(-1) > 0).sum() == matched.sum() - box_dropped
    with torch.no_grad():
        again = dropping(raw, batch_of(LABELS))[0]
    torch.testing.assert_close(
        again, criterion(loss.replace("+drop", "").replace("drop", "ce"))(raw, batch_of(LABELS))[0]
    )


def test_drop_takes_the_most_confident_first() -> None:
    raw = raw_of(1)
    dropping = criterion("drop", obj_drop=0.1, drop_select="confident", neg_iou=1)
    cls = dropping(raw, batch_of(LABELS[:1]))[0][0]
    gone = gradients(cls, raw)[0].abs().sum(-1) == 0
    state = criterion().match(raw["anchors"], padded(LABELS[:1])).state
    objects = 1 - raw["logits"].detach().softmax(-1)[..., 0]
    assert objects[gone].min() >= objects[~gone & (state != POSITIVE)].max()


# The loss of sigmoid scores -----------------------------------------------------------------------------------------


def sigmoid_criterion(loss: str = "", **given: Any) -> SigmoidSSDCriterion:
    recipe = recipe_of({"loss": loss, "head": "sigmoid", **given}, host="ssd")
    return SigmoidSSDCriterion(None, recipe=recipe, seed=0)


def sigmoid_raw(images: int = 4) -> dict[str, Any]:
    raw = raw_of(images)
    return {**raw, "logits": raw["logits"].detach()[..., 1:].clone().requires_grad_()}


def one_hots(labels: Labels, anchors: Tensor) -> Tensor:
    """(B, A, 3) targets: the class of the label that a default box is matched to."""
    found = torch.zeros(len(labels), len(anchors), 3)
    for i, (image, matched) in enumerate(zip(labels, their_matches(labels, anchors), strict=True)):
        for j in (matched >= 0).nonzero().flatten().tolist():
            found[i, j, image[int(matched[j])][0]] = 1
    return found


def test_focal_loss_of_sigmoid_scores_is_torchvision_s() -> None:
    raw = sigmoid_raw()
    (cls, box), _ = sigmoid_criterion("focal", focal_alpha=0.75, focal_gamma=3)(raw, batch_of(LABELS))
    targets = one_hots(LABELS, raw["anchors"])
    expected = sigmoid_focal_loss(raw["logits"], targets, alpha=0.75, gamma=3, reduction="sum") / targets.sum() * 4
    torch.testing.assert_close(cls, expected)
    torch.testing.assert_close(gradients(cls, raw)[0], gradients(expected, raw)[0])
    torch.testing.assert_close(box, criterion()(raw_of(), batch_of(LABELS))[0][1])  # as with the softmax


def test_sigmoid_scores_are_mined_by_the_sum_over_classes() -> None:
    raw = sigmoid_raw()
    cls = sigmoid_criterion()(raw, batch_of(LABELS))[0][0]
    targets = one_hots(LABELS, raw["anchors"])
    each = binary_cross_entropy_with_logits(raw["logits"], targets, reduction="none").sum(-1)
    positive, total = targets.sum(-1) > 0, torch.zeros(())
    for own, matched in zip(each, positive, strict=True):
        total = total + own[matched].sum() + own[~matched].sort(descending=True)[0][: 3 * int(matched.sum())].sum()
    torch.testing.assert_close(cls, total / positive.sum() * 4)
    assert sigmoid_criterion().recipe["loss"] == "ohem"


@pytest.mark.parametrize("loss", [n for n, row in METHODS.items() if row.defined(SITES["ssd-sigmoid"])])
def test_every_loss_of_sigmoid_scores_is_finite(loss: str) -> None:
    raw = sigmoid_raw()
    for labels in (LABELS, [[]] * 4):
        total = sigmoid_criterion(loss, **({"obj_drop": 0.5} if loss == "drop" else {}))(raw, batch_of(labels))[0].sum()
        assert total.isfinite()
        assert all(x.isfinite().all() for x in gradients(total, raw))


@pytest.mark.parametrize("name", NAMES)
def test_a_head_of_sigmoid_scores_starts_at_a_hundredth_and_decodes_sigmoids(name: str) -> None:
    recipe = recipe_of({"head": "sigmoid"}, host="ssd")
    model = TorchvisionModel(name, nc=3, verbose=False, recipe=recipe).eval()
    head = model.model[-1]
    with torch.no_grad():
        decoded, raw = model(torch.zeros(1, 3, 96, 96))
    assert raw["logits"].shape == (*raw["deltas"].shape[:2], 3)
    probs = raw["logits"].sigmoid()
    assert probs.median() == pytest.approx(0.01, rel=0.2)
    torch.testing.assert_close(decoded[:, 4:].amax(1), probs.flatten(1).topk(decoded.shape[-1])[0])
    assert type(head) is SigmoidSSDDetect


def test_a_head_of_sigmoid_scores_is_kept_in_checkpoints(tmp_path: Path) -> None:
    data = make_dataset(tmp_path / "data")
    train("ssd_tiny", data, tmp_path, head="sigmoid", loss="focal", epochs=1, pretrained=False)
    best = YOLO(tmp_path / "run" / "weights" / "best.pt")
    assert type(best.model.model[-1]) is SigmoidSSDDetect
    assert remembered(best.model)["flags"]["head"] == "sigmoid"
    again = train(tmp_path / "run" / "weights" / "best.pt", data, tmp_path / "again", loss="brl", epochs=1)
    assert type(again.trainer.model.model[-1]) is SigmoidSSDDetect
    assert again.trainer.loss_ran["loss"] == "brl"


@pytest.mark.parametrize("given", [{"loss": "brl"}, {"loss": "ghm"}, {"head": "anchor"}])
def test_what_is_not_defined_is_refused(given: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="ssd"):
        recipe_of(given, host="ssd")


# Boxes ----------------------------------------------------------------------------------------------------------------


def test_matching_is_torchvision_s() -> None:
    g = torch.Generator().manual_seed(3)
    anchors = raw_of()["anchors"]
    for trial in range(20):
        corners = torch.rand(3, 4, 2, 2, generator=g).sort(2)[0].flatten(2) * SIZE
        corners[..., 2:] += 4
        if trial % 4 == 0:
            corners[:, 1] = corners[:, 0]  # twice the same label: the last has the best default box
        labels = [[(0, *box.tolist()) for box in image[: i + 1 + trial % 3]] for i, image in enumerate(corners)]
        found = criterion().match(anchors, padded(labels))
        positive = found.state == POSITIVE
        expected = torch.stack(their_matches(labels, anchors))
        assert torch.equal(positive, expected >= 0)
        assert torch.equal(found.label[positive], expected[positive])


def test_boxes_are_decoded_as_torchvision_does() -> None:
    g = torch.Generator().manual_seed(0)
    anchors, deltas = raw_of()["anchors"], torch.randn(len(raw_of()["anchors"]), 4, generator=g) * 8
    expected = BoxCoder((10.0, 10.0, 5.0, 5.0)).decode_single(deltas, anchors)
    torch.testing.assert_close(decode_deltas(deltas, anchors, SCALE), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "size"), [("ssd300_vgg16", 300), ("ssd300_vgg16", 320), ("ssdlite320_mobilenet_v3_large", 320)]
)
def test_default_boxes_are_torchvision_s(originals: dict[str, Any], name: str, size: int) -> None:
    generator = deepcopy(originals[name].anchor_generator)
    cells = {300: (38, 19, 10, 5, 3, 1), 320: (40, 20, 10, 5, 3, 1)}[size] if "vgg" in name else (20, 10, 5, 3, 2, 1)
    if (name, size) == ("ssd300_vgg16", 320):
        generator.steps[-2:] = [320 / 3, 320]  # made for 300 px, where the last levels are thirds and the whole
    maps = [torch.zeros(1, 1, n, n) for n in cells]
    expected = generator(ImageList(torch.zeros(1, 3, size, size), [(size, size)]), maps)[0]
    torch.testing.assert_close(default_boxes(name, cells, size), expected, rtol=1e-6, atol=1e-4)
    assert head_of(name).side == originals[name].transform.min_size[0]


@pytest.mark.parametrize("name", NAMES)
def test_default_boxes_do_not_depend_on_the_image(name: str) -> None:
    # Validation pads images to other shapes; what was learnt about a default box must hold there
    model = TorchvisionModel(name, nc=3, verbose=False).eval()
    with torch.no_grad():
        square, wide = (model(torch.zeros(1, 3, h, 256))[1]["anchors"] for h in (256, 128))
    assert {tuple(x) for x in wide.round(decimals=2).tolist()} <= {tuple(x) for x in square.round(decimals=2).tolist()}
    assert len(wide) < len(square)


def test_default_boxes_of_a_validation_serve_a_training() -> None:
    with torch.inference_mode():
        boxes = default_boxes("ssd_tiny", (7, 4, 2, 1, 1), 56)
    assert not boxes.is_inference()


def test_the_best_pairs_are_decoded() -> None:
    head, raw = head_of("ssd_tiny"), raw_of(2)
    boxes, scores, classes = head.decode(raw)
    assert boxes.shape == (2, head.most, 4)
    probs = raw["logits"].softmax(-1)[..., 1:]
    torch.testing.assert_close(scores, probs.flatten(1).topk(head.most)[0])
    place = (probs[1] == scores[1, 7]).nonzero()[0]
    assert classes[1, 7] == place[1]
    expected = decode_deltas(raw["deltas"][1, place[0]], raw["anchors"][place[0]], SCALE)
    torch.testing.assert_close(boxes[1, 7], expected)


# Models ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [(64, 64), (96, 160)])
def test_every_model_takes_every_size_and_a_single_image(name: str, size: tuple[int, int]) -> None:
    model = TorchvisionModel(name, nc=3, verbose=False)
    assert isinstance(model.model[-1], SSDDetect)
    raw = model.train()(torch.rand(1, 3, *size))
    assert raw["logits"].shape == (*raw["deltas"].shape[:2], 4)
    assert raw["anchors"].shape == raw["deltas"].shape[1:]
    decoded, _ = model.eval()(torch.rand(2, 3, *size))
    assert decoded.shape[:2] == (2, 7)
    assert ((decoded[:, 4:] > 0).sum(1) == 1).all()
    used = {n for n, p in model.named_parameters() if p.requires_grad}
    assert used == {n for n, _ in model.named_parameters()}


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("ssd300_vgg16", SSD300_VGG16_Weights.COCO_V1),
        ("ssdlite320_mobilenet_v3_large", SSDLite320_MobileNet_V3_Large_Weights.COCO_V1),
    ],
)
def test_of_coco_s_weights_the_rows_of_80_classes(name: str, weights: Any) -> None:
    original = getattr(torchvision.models.detection, name)(weights=None, weights_backbone=None, num_classes=91)
    model = TorchvisionModel(name, nc=80, verbose=False)
    state = original.state_dict()
    assert load_coco(model, dict(state), weights) == (len(state), len(state))
    names = weights.meta["categories"]
    assert [model.names[i] for i in (0, 79)] == ["person", "toothbrush"]
    theirs, ours = (head.classification_head.module_list[1] for head in (original.head, model.model[2].layers))
    theirs, ours = (x[-1] if isinstance(x, nn.Sequential) else x for x in (theirs, ours))
    theirs, ours = theirs.bias.view(-1, 91), ours.bias.view(-1, 81)
    assert torch.equal(ours[:, 0], theirs[:, 0])  # background
    assert torch.equal(ours[:, 1 + 25], theirs[:, names.index(model.names[25])])


@pytest.mark.parametrize(
    ("name", "backbone", "left"),
    [("ssd300_vgg16", "vgg16", "classifier."), ("ssdlite320_mobilenet_v3_large", "mobilenet_v3_large", "classifier.")],
)
def test_a_backbone_s_state_dict_loads_by_name(name: str, backbone: str, left: str) -> None:
    # SSDLite's is built with the last stage halved, as in the detector
    original = getattr(torchvision.models, backbone)(**({"reduced_tail": True} if "lite" in name else {}))
    state = original.state_dict()
    model = TorchvisionModel(name, nc=3, verbose=False)
    found = model.translate(dict(state))
    copied, total = load_by_name(model, found, backbone)
    own = model.state_dict()
    assert (copied, total) == (sum(not k.startswith(left) for k in state), len(state))
    assert all(torch.equal(own[k], v) for k, v in found.items() if not k.startswith(left))
    last = [k for k in state if k.startswith("features.") and k.endswith("weight")][-1]
    assert any(v is state[last] for v in found.values())
    with torch.no_grad():  # the same numbers where they leave the backbone
        x = torch.rand(1, 3, 64, 64)
        body = model.model[0].eval()
        original.eval()
        cut = 23 if "vgg" in backbone else 17
        ours = body.features(x)
        original.features[16 if "vgg" in backbone else 0].ceil_mode = True
        torch.testing.assert_close(ours, original.features[:cut](x))


def test_a_full_mobilenet_loads_but_for_its_last_stage() -> None:
    state = torchvision.models.mobilenet_v3_large().state_dict()
    model = TorchvisionModel("ssdlite320_mobilenet_v3_large", nc=3, verbose=False)
    copied, total = load_by_name(model, model.translate(dict(state)), "mobilenet_v3_large")
    assert 0.6 < copied / total < 1


def test_images_are_normalised_as_torchvision_does(originals: dict[str, Any]) -> None:
    for name, original in originals.items():
        assert ZOO[name].mean == tuple(original.transform.image_mean)
        assert ZOO[name].std == tuple(original.transform.image_std)


def test_a_map_smaller_than_the_kernel_is_padded_at_its_end() -> None:
    conv = Unpadded(1, 1, 3, bias=False)
    nn.init.ones_(conv.weight)
    assert conv(torch.ones(1, 1, 1, 2)).tolist() == [[[[2.0]]]]
    assert conv(torch.ones(1, 1, 3, 4)).tolist() == [[[[9.0, 9.0]]]]


def test_one_value_a_channel_is_normalised_by_the_past() -> None:
    norm, stock = LastImageNorm(2), nn.BatchNorm2d(2)
    x = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(norm(x), stock(x))
    kept = norm.running_mean.clone()
    single = torch.tensor([[[[3.0]], [[-1.0]]]])
    assert torch.equal(norm(single), stock.eval()(single))
    assert torch.equal(norm.running_mean, kept)


def test_smaller_levels_follow_the_coarsest() -> None:
    neck = Smaller(256, (128, 128))
    features = OrderedDict(a=torch.rand(1, 64, 8, 12), b=torch.rand(1, 256, 3, 5))
    found = neck(features)
    assert [tuple(x.shape[1:]) for x in found.values()] == [(64, 8, 12), (256, 3, 5), (128, 2, 3), (128, 1, 2)]
    assert list(features) == ["a", "b"]


def test_a_traced_model_gives_the_same() -> None:
    model = TorchvisionModel("ssd_tiny", nc=3, verbose=False).eval()
    model.model[-1].export = True
    image = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # shapes become constants, as in every export
        expected = model(image)
        traced = torch.jit.trace(model, torch.zeros(1, 3, 64, 96))
        torch.testing.assert_close(traced(image), expected)


# Training -------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """ssd_tiny after 60 steps on eight images, and its data."""
    folder = tmp_path_factory.mktemp("ssd")
    data = make_dataset(folder / "data", train=8, size=96)
    by_heart(data, times=10)

    def quick(trainer: Any) -> None:
        for module in trainer.model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.3  # so few steps that the moving statistics would lag behind

    model = YOLO("ssd_tiny")
    model.add_callback("on_train_start", quick)
    model.train(
        data=str(data), imgsz=96, epochs=6, batch=8, nbs=8, workers=0, plots=False, val=False, pretrained=False,
        optimizer="AdamW", lr0=0.003, cos_lr=True, warmup_epochs=0, project=str(folder), name="run", verbose=False,
        **STILL,
    )  # fmt: skip
    return folder / "run" / "weights" / "last.pt", data


@pytest.mark.slow
def test_eight_images_are_learnt_and_predicted_the_same_after_loading(fitted: Any) -> None:
    file, data = fitted
    # not rect, which pads these to 128 px: a third of what is seen would be new
    found = YOLO(file).val(data=str(data), imgsz=96, rect=False, workers=0, plots=False, verbose=False)
    assert found.box.map50 > 0.9
    image = str(data.parent / "images" / "train" / "00.jpg")
    boxes = [YOLO(file).predict(image, imgsz=96, verbose=False)[0].boxes.data for _ in range(2)]
    assert torch.equal(*boxes)
    assert len(boxes[0])
    assert YOLO(file).model.model[-1].side == 96
