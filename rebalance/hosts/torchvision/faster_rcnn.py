"""Faster R-CNN: torchvision's layers, anchors, matching and proposals; sampling and losses are ours, batch by batch.

Ren et al. 2015, "Faster R-CNN"; Lin et al. 2017, "Feature Pyramid Networks"; with a refined objectness: Chen et al.,
"Residual Objectness for Imbalance Reduction".
Shapes: B images, A anchors, P proposals an image (padded), S samples an image (padded), C classes, G labels of the
fullest image, T steps.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import smooth_l1_loss
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import MultiScaleRoIAlign, batched_nms, clip_boxes_to_image, nms, remove_small_boxes
from ultralytics.utils import RANK

from rebalance.heads.objectness import Refined, SharedResiduals, flatten_steps, logit, objectness_prior
from rebalance.heads.roi_align import roi_align
from rebalance.hosts.evaluation import RCNN
from rebalance.hosts.torchvision.dense import Batch, Result, labels_of, of_label, plainly, predictions
from rebalance.hosts.torchvision.head import Anchors, Raw, TorchvisionHead, best_pairs, by_cell, take
from rebalance.match import device
from rebalance.match.boxes import decode_deltas, encode_deltas, upcast
from rebalance.match.candidates import BACKGROUND, IGNORE, NEGATIVE, POSITIVE, SIGMOID, SOFTMAX, Candidates
from rebalance.match.iou import Matched, match_by_iou
from rebalance.match.padded import Padded
from rebalance.match.regions import NOTHING_SAID, Known
from rebalance.match.sample import Sampled, sample
from rebalance.methods.method import NOTHING, ROI, RPN, Choice, Predictions, Run, Site, Sites
from rebalance.methods.resobj import ResObj, refine, refined, unrefined
from rebalance.objective import Objective
from rebalance.recipe import Recipe

RPN_IOU = (0.7, 0.3)  # of anchors: from the first on positive, below the second negative, ignored in between
ROI_IOU = 0.5  # of proposals: from there on positive, else negative
RPN_SHARE, ROI_SHARE = 0.5, 0.25  # most positives among the samples
NMS_IOU = 0.7  # of proposals, and of RoIs in hard example mining
SCALE = (10.0, 5.0)  # of the RoI head's offsets
BETA = 1 / 9  # of smooth L1: quadratic below
LEAST_PROPOSAL, LEAST_BOX = 1e-3, 1e-2  # shorter sides are thrown away, in pixels

STAGES = Site(
    name="fasterrcnn", where="fasterrcnn", about="samples of the RPN and of the RoI head", own="bce",
    gives=frozenset({"overlap", "one", "samples", "proposals"}), stages=(RPN, ROI),
    divisors={"host": "samples of the batch"},
)  # fmt: skip
OBJECTNESS = replace(
    STAGES, name="fasterrcnn-obj", where="fasterrcnn with head=obj or resobj",
    about="objectness of all anchors in the RPN, samples of the RoI head", gives=STAGES.gives | {"objectness", "prior"},
    divisors={
        "image": "RPN: positives of each image, mean over images; RoI head: samples of the batch",
        "batch": "RPN: positives of the batch; RoI head: samples of the batch",
        "candidates": "RPN: anchors of the batch; RoI head: samples of the batch",
    },
    host="batch",
)  # fmt: skip


class Numbers(NamedTuple):
    """How many boxes go where; a pair is for training and for inference. The defaults are torchvision's."""

    before: tuple[int, int] = (2000, 1000)  # proposals of a level before non-maximum suppression
    after: tuple[int, int] = (2000, 1000)  # proposals of an image after it
    anchors: int = 256  # samples of the RPN's loss
    rois: int = 512  # samples of the RoI head's loss
    most: int = 1000  # pairs of proposal and class that are handed on
    least: float = 0  # objectness that a proposal has


class FasterRCNNCriterion:
    """torchvision's loss of Faster R-CNN with our methods.

    RPN: binary cross-entropy on the objectness of 256 sampled anchors an image, at most half of them positive; smooth
    L1 on the offsets of the positives. RoI head: cross-entropy of 512 sampled proposals, at most a quarter positive,
    the labels' own boxes among the candidates; smooth L1 on the offsets of the true class. All four sums are divided by
    the number of samples of the batch. (The numbers are torchvision's; small models sample fewer.)

    Where the methods act:

    * `ohem`: in the RoI head. Classification and box loss of all proposals, without gradient; in each image
      non-maximum suppression by that loss at an IoU of 0.7, and the `ohem_rois` hardest that are left are trained on in
      the place of a random sample.
    * `soft`: in the RoI head's classification loss, on the sampled negatives, by the overlap of the proposal. The
      divisor is the number of samples.
    * `nrd`, `nrd_stage=roi`: floor(nrd_rate · N) of the N sampled negatives of the batch leave the RoI head's
      classification loss, which is then a mean over what is left; the box loss is as it was. `nrd_stage=rpn`: the same
      for the sampled negative anchors and the RPN's objectness loss.
    * `drop`: in the RPN. `obj_drop` draws from the sampled anchors whose decoded box overlaps every label by less than
      `neg_iou`, those with target 0 or the matched ones as `drop_scope` says, and they leave the objectness loss; in
      scope `literal` from the matched ones whose complete IoU with their own label is lower, and they become
      background. `box_drop` draws from the matched ones for the RPN's box loss. With
      `drop_divisor=kept` each loss is divided by the samples less those that left it, with `host` by all samples.
      Another anchor never takes the place of one that was dropped.

    Nothing is dropped in validation, where the samples are the same for every batch.

    A negative anchor or proposal of which any class is unknown (see `rebalance.match.regions`) is never drawn, nor
    mined. A verified one is drawn as any other, and then has its whole loss; where `ohem` mines, those that the random
    sample would have held are trained on beside the hardest of the others.
    """

    def __init__(self, head: FasterRCNNDetect, *, recipe: Recipe, seed: int) -> None:
        self.head, self.recipe = head, recipe
        self.run = Run(recipe.site, seed=seed, rank=max(RANK, 0))
        self.rpn = Objective(recipe, self.run, stage=RPN, ignores=True)
        self.roi = Objective(recipe, self.run, stage=ROI)
        self.objectives = (self.rpn, self.roi)

    def __call__(self, preds: Any, batch: Batch) -> Result:
        """(4,) `obj_loss` and `prop_loss` of the RPN, `cls_loss` and `box_loss` of the RoI head; see `Host.criterion`.

        Where the RPN's objectness has steps (5,): before the last two `res_loss`.
        """
        batch = self.rpn.relabel(batch)
        self.roi.regions, self.roi.withheld = self.rpn.regions, self.rpn.withheld
        raw: Raw = preds[1] if isinstance(preds, tuple) else preds
        images = len(raw["logits"])
        labels = labels_of(batch, images, raw["size"], raw["logits"].device)
        parts = self._rpn(raw, labels)  # names of ten letters at most, for the host's table
        parts |= dict(zip(("cls_loss", "box_loss"), self._roi(raw, labels), strict=True))
        loss = torch.stack(list(parts.values()))
        return loss * images, dict(zip(parts, loss.detach(), strict=True))

    # First stage ------------------------------------------------------------------------------------------------------

    def _rpn(self, raw: Raw, labels: Padded) -> dict[str, Tensor]:
        high, low = RPN_IOU
        matched = match_by_iou(raw["anchors"], labels, high=high, low=low, rescue="ties")
        known = self.rpn.known(lambda: raw["anchors"], images=len(raw["logits"]), size=raw["size"], each=False)
        raw, matched, known = self._drawn(raw, _sampled(matched, known), known)
        logits, residuals = unrefined(raw["logits"], raw.get("residuals"))
        deltas, anchors = upcast(raw["deltas"]), raw["anchors"]
        choice = self.rpn.choose(
            predictions(
                matched.state, lambda: decode_deltas(deltas.detach(), anchors), labels, matched.label,
                lambda: refine(logits, residuals)[-1].detach(), known,
            )
        )  # fmt: skip
        positive = matched.state == POSITIVE
        boxes = _smooth_l1(
            deltas, encode_deltas(of_label(labels.boxes, matched.label), anchors), choice.in_box(positive)
        )

        def losses(logits: Tensor, residuals: Tensor, choice: Choice) -> dict[str, Tensor]:
            targets = positive.to(logits.dtype)
            candidates = Candidates(logits, targets, matched.state, matched.overlap, SIGMOID, *known)
            found = self.rpn.objectness(candidates, residuals, choice)
            return self._divided({**found, "prop_loss": choice.of_box_loss(boxes)}, matched.state, choice)

        self.rpn.weigh_up(choice, matched.state, logits, lambda x, choice: losses(x, residuals[:0], choice)["obj_loss"])
        return losses(logits, residuals, choice)

    def _drawn(self, raw: Raw, matched: Matched, known: Known) -> tuple[Raw, Matched, Known]:
        """The anchors trained on: (B, S) logits, (B, S, 4) offsets and anchors, matches, what is known of them."""
        generator = self.run.generator(matched.state.device, "anchors")
        place, state = sample(matched.state, self.head.numbers.anchors, RPN_SHARE, generator=generator)
        drawn = {
            "logits": raw["logits"].gather(1, place), "deltas": take(raw["deltas"], place),
            "anchors": raw["anchors"][place],
        }  # fmt: skip
        found = Matched(state, matched.label.gather(1, place), matched.overlap.gather(1, place))
        return drawn, found, _at(known, place)

    def _divided(self, losses: dict[str, Tensor], state: Tensor, choice: Choice) -> dict[str, Tensor]:
        """The RPN's summed losses, of (B, S) each."""
        sampled = state != IGNORE
        return {
            "obj_loss": _mean(losses["obj_loss"], choice.of_count(sampled, choice.left)),
            "prop_loss": _mean(losses["prop_loss"], choice.of_box_count(sampled)),
        }

    # Second stage -----------------------------------------------------------------------------------------------------

    def _roi(self, raw: Raw, labels: Padded) -> tuple[Tensor, Tensor]:
        boxes = torch.cat((raw["proposals"], labels.boxes), 1)
        matched = match_by_iou(boxes, labels, high=ROI_IOU, low=ROI_IOU)
        there = torch.cat((raw["valid"], labels.valid), 1)
        matched = matched._replace(state=matched.state.masked_fill(~there, IGNORE))
        known = self.roi.known(lambda: boxes, images=len(boxes), size=raw["size"], each=False)
        matched = _sampled(matched, known)
        place, state = (
            self._mined(raw, labels, boxes, matched, known) if self.roi.mined else self._random(matched.state)
        )
        chosen = Matched(state, matched.label.gather(1, place), matched.overlap.gather(1, place))
        rois = take(boxes, place)
        logits, deltas = self.head.roi(raw["features"], rois, raw["size"], there=state != IGNORE)

        def confidence() -> Tensor:
            scores = upcast(logits.detach())
            return scores[..., BACKGROUND + 1 :].logsumexp(-1) - scores[..., BACKGROUND]

        # a proposal is judged by what it overlaps, not by the box that the head makes of it
        known = _at(known, place)
        choice = self.roi.choose(
            Predictions(state, chosen.overlap.lt, confidence, own=lambda: chosen.overlap, known=known)
        )
        cls, box = self._roi_losses(logits, deltas, labels, rois, chosen, choice, known)
        sampled = state != IGNORE
        cls = choice.of_loss(cls.where(sampled, 0))
        counted = choice.of_count(sampled, choice.left), choice.of_box_count(sampled)
        return _mean(cls, counted[0]), _mean(choice.of_box_loss(box), counted[1])

    def _roi_losses(
        self, logits: Tensor, deltas: Tensor, labels: Padded, rois: Tensor, matched: Matched, choice: Choice = NOTHING,
        known: Known = NOTHING_SAID,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """(B, S) classification and box loss of each RoI; of padding the former is any number."""
        state, positive = choice.seen(matched.state), matched.state == POSITIVE
        gt_boxes, classes = (of_label(values, matched.label) for values in labels[:2])
        own = torch.where(positive, classes + 1, BACKGROUND)
        of_class = deltas.gather(2, own[..., None, None].expand(-1, -1, -1, 4)).squeeze(2)
        in_box = choice.in_box(positive)
        box = _smooth_l1(upcast(of_class), encode_deltas(gt_boxes, rois, SCALE), in_box)
        target = own.where(state == POSITIVE, BACKGROUND)
        cls = self.roi.loss(Candidates(logits, target, state, matched.overlap, SOFTMAX, *known)).squeeze(-1)
        return cls, box

    def _random(self, state: Tensor) -> Sampled:
        """The host's sample of proposals."""
        return sample(state, self.head.numbers.rois, ROI_SHARE, generator=self.run.generator(state.device, "proposals"))

    def _mined(self, raw: Raw, labels: Padded, boxes: Tensor, matched: Matched, known: Known) -> Sampled:
        """The hardest, and beside them those verified negatives that the host's sample holds."""
        if known.sure is None:
            return self._hardest(raw, labels, boxes, matched)
        sure = known.sure.squeeze(-1) & (matched.state == NEGATIVE)
        others = matched._replace(state=matched.state.masked_fill(sure, IGNORE))
        drawn, hardest = self._random(matched.state), self._hardest(raw, labels, boxes, others)
        verified = drawn.state.masked_fill(~sure.gather(1, drawn.place), IGNORE)
        return Sampled(torch.cat((hardest.place, drawn.place), 1), torch.cat((hardest.state, verified), 1))

    def _hardest(self, raw: Raw, labels: Padded, boxes: Tensor, matched: Matched) -> Sampled:
        """Hard example mining: the candidates of highest loss, of those that overlap by more than 0.7 only one."""
        with torch.no_grad():
            predicted = self.head.roi(raw["features"], boxes, raw["size"], there=matched.state != IGNORE)
            cls, box_loss = self._roi_losses(*predicted, labels, boxes, matched)
            loss = cls + box_loss
            places, states, count = [], [], min(self.roi.mined, boxes.shape[1])
            for box, cost, state in zip(boxes, loss, matched.state, strict=True):
                there = (state != IGNORE).nonzero().squeeze(1)
                place = there[nms(box[there], cost[there].to(box.dtype), NMS_IOU)[:count]]
                missing = (0, count - len(place))
                places.append(nn.functional.pad(place, missing))
                states.append(nn.functional.pad(state[place], missing, value=IGNORE))
        return Sampled(torch.stack(places), torch.stack(states))


class RefinedFasterRCNNCriterion(FasterRCNNCriterion):
    """The loss of Faster R-CNN whose RPN trains on all anchors but the ignored; the RoI head's is as without.

    RPN: binary cross-entropy on the objectness, target 1 of a positive and 0 of a negative; the residual losses with
    the same targets behind their gates, summed over the steps; smooth L1 on the offsets of all positives. All three are
    divided by `divisor`, as those of RetinaNet with an objectness are: by default by the positives of the batch. (The
    offsets' also with `candidates`.) The paper does not say what it divides by.

    `drop` and `nrd_stage=rpn` draw from all anchors, and what they draw leaves the objectness loss and the residual
    losses; a prediction's confidence is its refined objectness.
    """

    def _drawn(self, raw: Raw, matched: Matched, known: Known) -> tuple[Raw, Matched, Known]:
        return raw, matched, known

    def _divided(self, losses: dict[str, Tensor], state: Tensor, choice: Choice) -> dict[str, Tensor]:
        positive = state == POSITIVE
        count = self.rpn.count(positive, choice, ignored=state == IGNORE)
        counts = {"prop_loss": self.rpn.count(choice.of_box_count(positive), NOTHING, by=plainly(self.recipe))}
        order = [name for name in ("obj_loss", "prop_loss", "res_loss") if name in losses]
        return {name: (losses[name].sum(1) / counts.get(name, count)).sum() for name in order}


def _sampled(matched: Matched, known: Known) -> Matched:
    """What may be sampled: no candidate of which something is unknown, unless it is matched to a label."""
    unknown = known.ignored(matched.state == POSITIVE)
    return (
        matched if unknown is None else matched._replace(state=matched.state.masked_fill(unknown.squeeze(-1), IGNORE))
    )


def _at(known: Known, place: Tensor) -> Known:
    """What is known (B, N, 1) of the candidates at places (B, S)."""
    return Known(*(None if x is None else x.gather(1, place.unsqueeze(-1)) for x in known))


def _smooth_l1(deltas: Tensor, targets: Tensor, chosen: Tensor) -> Tensor:
    """(B, S) smooth L1, summed over the four offsets; 0 where not chosen, whatever the target, still in the graph."""
    safe = torch.where(chosen.unsqueeze(-1), targets, 0)  # an infinite target would have no gradient, masked or not
    return torch.where(chosen, smooth_l1_loss(deltas, safe, reduction="none", beta=BETA).sum(-1), 0)


def _mean(loss: Tensor, counted: Tensor) -> Tensor:
    """The sum of losses, 0 for what does not count, divided by what counts, at least 1."""
    return loss.sum() / counted.sum().clamp(min=1)


class RoINorm(nn.BatchNorm2d):
    """Batch normalisation of RoIs; padding has no say in the statistics of a training, which are else the host's."""

    there: Tensor | None = None  # (K,) bool: what is no padding

    def forward(self, x: Tensor) -> Tensor:
        """(K, C, H, W), of the same shape; the moving averages follow where there is a gradient."""
        if not self.training or self.there is None:
            return super().forward(x)
        y, weight = upcast(x), self.there.to(x.device, upcast(x).dtype).view(-1, 1, 1, 1)
        count = (weight.sum() * x.shape[2] * x.shape[3]).clamp(min=1)
        mean = (y * weight).sum((0, 2, 3)) / count
        centred = y - mean.view(1, -1, 1, 1)
        var = (centred.square() * weight).sum((0, 2, 3)) / count
        if torch.is_grad_enabled():
            with torch.no_grad():  # of the variance without bias, as in torch
                self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
                self.running_mean.lerp_(mean.to(self.running_mean), self.momentum)  # type: ignore[union-attr, arg-type]
                unbiased = var * count / (count - 1).clamp(min=1)
                self.running_var.lerp_(unbiased.to(self.running_var), self.momentum)  # type: ignore[union-attr, arg-type]
        scale = upcast(self.weight) * (var + self.eps).rsqrt()
        return (centred * scale.view(1, -1, 1, 1) + upcast(self.bias).view(1, -1, 1, 1)).to(x.dtype)


@contextmanager
def counted(layers: nn.Module, there: Tensor | None) -> Iterator[None]:
    """Let normalisation of RoIs count only those that are `there` (B, S)."""
    norms = [layer for layer in layers.modules() if isinstance(layer, RoINorm)]
    for norm in norms:
        norm.there = None if there is None else there.flatten()
    try:
        yield
    finally:
        for norm in norms:
            norm.there = None


class FasterRCNNDetect(TorchvisionHead):
    """torchvision's RPN and RoI head with the proposals between them.

    In training only the RPN and the choice of proposals run here; the criterion samples proposals and asks for the RoI
    layers with `roi`.
    """

    evaluation = RCNN
    sites = Sites("fasterrcnn", {"stock": STAGES, "obj": OBJECTNESS, "resobj": OBJECTNESS})
    criterion = FasterRCNNCriterion
    background = 1

    def __init__(
        self,
        rpn: RPNHead,
        pool: MultiScaleRoIAlign,
        mlp: TwoMLPHead | FastRCNNConvFCHead,
        predictor: FastRCNNPredictor,
        anchors: Anchors,
        nc: int,
        stride: int,
        numbers: Numbers = Numbers(),  # noqa: B008 - it cannot change
    ) -> None:
        """Build the head of torchvision's layers; the predictor's are for 1 + nc classes, background first."""
        super().__init__(nc, stride)
        self.rpn, self.pool, self.mlp, self.predictor = rpn, pool, mlp, predictor
        for layer in mlp.modules():
            if type(layer) is nn.BatchNorm2d:
                layer.__class__ = RoINorm
        self.anchors_of, self.numbers = anchors, numbers

    def predict(self, features: OrderedDict[str, Tensor], size: tuple[int, int]) -> Raw:
        """What the RPN predicts, and the proposals.

        Returns:
            `logits` (B, A) objectness, `deltas` (B, A, 4), `anchors` (A, 4) in pixels, `counts` anchors of each level,
            `proposals` (B, P, 4) in pixels without gradient, `valid` (B, P) bool, False where padding, `features`.
        """
        maps = list(features.values())
        anchors, counts = self.anchors_of(maps, size)
        found = self.first_stage([self.rpn.conv(x) for x in maps])
        with torch.no_grad():
            boxes = decode_deltas(upcast(found["deltas"].detach()), anchors)
            logits = upcast(refined(found["logits"], found.get("residuals"), self.shown))
            proposals, valid = self.propose(logits, boxes, counts, size)
        return {
            **found, "anchors": anchors, "counts": counts, "size": size, "proposals": proposals, "valid": valid,
            "features": features,
        }  # fmt: skip

    def first_stage(self, hidden: list[Tensor]) -> Raw:
        """`logits` (B, A) and `deltas` (B, A, 4), of the RPN's features on each level."""
        logits = by_cell([self.rpn.cls_logits(x) for x in hidden])
        return {"logits": logits, "deltas": by_cell([self.rpn.bbox_pred(x) for x in hidden], 4)}

    def propose(self, logits: Tensor, boxes: Tensor, counts: list[int], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """The best boxes of each level, clipped, without the tiny ones, after non-maximum suppression by level.

        From (B, A) objectness and (B, A, 4) boxes in pixels, `counts` of each level: (B, P, 4) proposals, best first,
        and (B, P) which are no padding; P = `numbers.after`.
        """
        stage = 0 if self.training else 1
        before, most = self.numbers.before[stage], self.numbers.after[stage]
        scores, places, levels, start = [], [], [], 0
        for index, count in enumerate(counts):
            score, best = logits[:, start : start + count].topk(min(before, count), 1)
            scores.append(score)
            places.append(best + start)
            levels.append(torch.full_like(best[0], index))
            start += count
        place, level = torch.cat(places, 1), torch.cat(levels)
        probs = torch.cat(scores, 1).sigmoid()
        clipped = clip_boxes_to_image(take(boxes, place), size)
        proposals, valid = [], []
        for box, prob in zip(clipped.unbind(0), probs.unbind(0), strict=True):
            fit = remove_small_boxes(box, LEAST_PROPOSAL)
            if self.numbers.least:
                fit = fit[prob[fit] >= self.numbers.least]
            box = box[fit]
            kept = box[batched_nms(box, prob[fit], level[fit], NMS_IOU)[:most]]
            # concatenated and cut, so that a trace does not take the number of this image for a constant
            proposals.append(torch.cat((kept, kept.new_zeros(most, 4)))[:most])
            there = torch.ones_like(kept[:, 0], dtype=torch.bool)
            valid.append(torch.cat((there, there.new_zeros(most)))[:most])
        return torch.stack(proposals), torch.stack(valid)

    def roi(
        self, features: Mapping[str, Tensor], boxes: Tensor, size: tuple[int, int], there: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The second stage: (B, S, 1 + C) class logits, background first, and (B, S, 1 + C, 4) offsets.

        `boxes` are (B, S, 4) in pixels; padding may be anything, and in training `there` (B, S) says what is none.
        """
        maps = {name: upcast(x) for name, x in features.items()}
        dtype = next(iter(maps.values())).dtype
        pooled = self._pooled(maps, boxes.to(dtype), size)
        with counted(self.mlp, there):
            logits, deltas = self.predictor(self.mlp(pooled.to(self.predictor.cls_score.weight.dtype)))
        shape = (len(boxes), boxes.shape[1], 1 + self.nc)
        return logits.view(shape), deltas.view(*shape, 4)

    def _pooled(self, maps: dict[str, Tensor], boxes: Tensor, size: tuple[int, int]) -> Tensor:
        """(B·S, channels, …) what the RoIs (B, S, 4) see of the maps."""
        pool, sizes = self.pool, [size] * len(boxes)
        if not (self.training and device.free_to_read(boxes) and pool.sampling_ratio > 0):
            found: Tensor = pool(maps, list(boxes.unbind(0)), sizes)
            return found
        if pool.scales is None or pool.map_levels is None:
            pool(maps, list(boxes[:, :0].unbind(0)), sizes)  # it takes note of them
        flat, image = boxes.flatten(0, 1), torch.arange(len(boxes)).repeat_interleave(boxes.shape[1])
        levels = [x for name, x in maps.items() if name in pool.featmap_names]
        return roi_align(
            levels, flat, image, pool.map_levels([flat]), scales=pool.scales, bins=pool.output_size,
            samples=pool.sampling_ratio,
        )  # fmt: skip

    def decode(self, raw: Raw) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and classes of the best pairs of proposal and class; padding scores 0."""
        proposals, size = raw["proposals"], raw["size"]
        logits, deltas = self.roi(raw["features"], proposals, size)
        boxes = decode_deltas(upcast(deltas)[:, :, 1:], proposals.unsqueeze(2), SCALE)  # (B, P, C, 4)
        boxes = clip_boxes_to_image(boxes, size)
        big = (boxes[..., 2:] - boxes[..., :2]).amin(-1) >= LEAST_BOX
        scores = upcast(logits).softmax(-1)[..., 1:].masked_fill(~(big & raw["valid"].unsqueeze(-1)), 0)
        best, kept, classes = best_pairs(scores, [scores.shape[1]], self.numbers.most)
        pair = (kept * self.nc + classes).unsqueeze(-1).expand(-1, -1, 4)
        return boxes.flatten(1, 2).gather(1, pair), best, classes

    def class_rows(self) -> Mapping[str, Callable[[Tensor, Tensor], Tensor]]:
        """The predictor's two layers: (1 + C, …) and ((1 + C) · 4, …)."""

        def rows(x: Tensor, kept: Tensor, each: int) -> Tensor:
            return x.view(-1, each, *x.shape[1:])[kept].flatten(0, 1)

        layers = (("cls_score", 1), ("bbox_pred", 4))
        return {f"predictor.{layer}.{k}": partial(rows, each=n) for layer, n in layers for k in ("weight", "bias")}


class RefinedFasterRCNNDetect(Refined, FasterRCNNDetect):
    """Faster R-CNN whose RPN learns from all anchors, and refines its objectness where it has steps.

    The RPN's objectness comes straight from the features that its offsets come from, so residual subnets see those,
    squeezed as on YOLO's anchor head; like the RPN they are shared by all levels. Proposals are ranked by the refined
    objectness. Made from the stock head, see `with_objectness`.
    """

    criterion = RefinedFasterRCNNCriterion

    def add_objectness(self, settings: ResObj) -> None:
        """Add the subnets. At first an object is as unlikely as section 3.1 has it, where nothing is sampled.

        Without that the loss of all that is background would swamp the others.
        """
        last = self.rpn.cls_logits
        nn.init.constant_(last.bias, logit(objectness_prior(self.nc, settings.obj_prior)))
        if self.steps:
            self.residual = SharedResiduals(
                last.in_channels, anchors=last.out_channels, steps=self.steps, on=settings.resobj_on,
                grad=settings.resobj_grad, width=settings.resobj_width,
            )  # fmt: skip

    def first_stage(self, hidden: list[Tensor]) -> Raw:
        """As without, and `residuals` (B, T, A) where there are steps."""
        found = super().first_stage(hidden)
        if self.steps:
            found["residuals"] = flatten_steps([self.residual(x).movedim(2, -1) for x in hidden])  # as H, W, A
        return found


FasterRCNNDetect.with_steps = RefinedFasterRCNNDetect
