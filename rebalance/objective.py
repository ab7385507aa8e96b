"""What a criterion asks the methods, in order: relabel, choose, cost, weigh, divide. Nothing else calls their verbs.

A host's criterion turns predictions and labels into candidates and adds its box loss; what the classification (or
objectness) loss of these candidates is, is decided here.

Shapes: B images, N candidates an image, C channels (the classes, or 1 for an objectness), T steps.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rebalance.diagnosis import IGNORED, LOW, LOWERED, RECALIBRATED, Diagnosis
from rebalance.match.boxes import upcast
from rebalance.match.candidates import IGNORE, NEGATIVE, POSITIVE, Candidates
from rebalance.match.device import zeroed
from rebalance.match.regions import NOTHING_SAID, Known, RegionBatch, known
from rebalance.match.withheld import Withheld, present
from rebalance.methods.bce import Bce, bce
from rebalance.methods.method import DENSE, NOTHING, Choice, Method, Predictions, Run
from rebalance.methods.resobj import StepMeans, refine, residual_objectness
from rebalance.recipe import Recipe


class Objective:
    """The methods of one stage of a criterion's loss, and what they keep from step to step.

    Attributes:
        run: where the run stands; stages of one criterion share it.
        plain: whether every candidate has the host's own loss, with the same weight.
        by_overlap: whether the loss depends on how far a candidate is from the labels.
        by_image: whether the loss of an image is the same without the other images.
        counts: what was chosen in this epoch, summed up on the device; None before anything was.
        slopes: (2, 2) in the first step of this epoch, with what was chosen and without: the sum of the loss's
            gradients in the logits, each without its sign, of positives and of negatives; None: not measured.
        steps: mean objectness after each refinement, of this epoch.
        regions: of the batch at hand; None: its data set says nothing but its labels.
        diagnosis: of the training at hand; None: nobody asks.
    """

    def __init__(
        self,
        recipe: Recipe,
        run: Run,
        *,
        stage: str = DENSE,
        own: Callable[[Tensor, Tensor], Tensor] | None = None,
        ignores: bool = False,
    ) -> None:
        """Start at epoch 0.

        Args:
            recipe: of the training.
            run: of the criterion.
            stage: whose methods these are.
            own: the host's cross-entropy, kept to the bit where no method changes it; None: ours.
            ignores: whether candidates may be IGNORE.
        """
        self.recipe, self.run, self.own, self.ignores = recipe, run, own, ignores
        self.methods = [method for method in recipe.methods if method.acts(stage)]
        self.element = next((method for method in self.methods if method.kind == "element"), Bce())
        self.weighting = next((method for method in self.methods if method.kind == "weighting"), None)
        weighs = self.weighting is not None and type(self.weighting).weigh is not Method.weigh
        self.plain = self.element.name == "bce" and not weighs
        self.by_overlap = any("overlap" in method.needs for method in self.methods)
        self.by_image = all(method.by_image for method in self.methods)
        self.regions: RegionBatch | None = None
        self.withheld: Withheld | None = None  # of the batch at hand, for the diagnosis
        self.stage = stage
        self.diagnosis: Diagnosis | None = None
        if recipe["diagnose"]:
            kinds = [kind for method in self.methods if (kind := method.spares(stage))]
            self.diagnosis = Diagnosis([*kinds, *[IGNORED] * (ignores and stage == DENSE)])
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int, epochs: int = 0) -> None:
        """Take note of the epoch (from 0) and how many there are, and forget what was counted."""
        self.run.epoch, self.run.epochs, self.run.step = epoch, epochs, 0
        self.counts: Tensor | None = None
        self.slopes: Tensor | None = None
        self.steps = StepMeans()
        if self.diagnosis:
            self.diagnosis.begin_epoch()

    # The verbs --------------------------------------------------------------------------------------------------------

    def relabel(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Begin a step with the host's batch, as the methods change it."""
        self.run.step += self.run.training
        self.regions = batch.get("regions")
        self.withheld = batch.get("withheld") if self.diagnosis and self.run.training else None
        for method in self.recipe.methods:
            batch = method.relabel(batch, self.run)
        return batch

    def known(self, boxes: Callable[[], Tensor], *, images: int, size: tuple[int, int], each: bool) -> Known:
        """What this batch's regions say of candidates by their boxes, which are asked for where there are regions.

        What they say goes into `Predictions` and `Candidates`; the rest is done here and in the methods. An unmatched
        candidate has no loss where it is unknown, and is none for whatever is chosen, mined, counted or weighed; a sure
        one is a negative in full. A matched candidate has its whole loss: of what a label is, all classes are known.
        The divisors of the hosts stay what they are, so that the loss elsewhere does; `divisor=candidates` counts what
        has a loss.

        Args:
            boxes: of the anchors, or decoded: (N, 4) or (B, N, 4) corners in pixels.
            images: B.
            size: height, width of the network's input.
            each: of each class by itself; else of all at once, as an objectness or a softmax is.
        """
        if self.regions is None and self.withheld is None:
            return NOTHING_SAID
        there, found = boxes(), NOTHING_SAID
        if self.regions is not None:
            found = known(self.regions, there, images=images, size=size, each=each)
        if self.withheld is not None:
            found = found._replace(hidden=present(self.withheld, there, images=images, size=size, each=each))
        return found

    def choose(self, predictions: Predictions) -> Choice:
        """What leaves the losses of this step."""
        if self.weighting is None:
            return NOTHING
        state = predictions.state
        if (settled := predictions.known.settled) is not None:
            predictions = predictions._replace(state=state.masked_fill(settled & (state == NEGATIVE), IGNORE))
        found = self.weighting.choose(predictions, self.run)
        if found is None:
            return NOTHING
        if self.diagnosis and found.left is not None and predictions.known.hidden is not None:
            kind = self.weighting.spares(self.stage)
            self.diagnosis.chosen(kind, found.left, state, predictions.known.hidden)
        sure = predictions.known.sure
        if sure is not None and sure.shape[-1] > 1:
            found = found._replace(sure=sure & (state == NEGATIVE).unsqueeze(-1))
        if found.counts is not None:
            self.counts = found.counts if self.counts is None else self.counts + found.counts
        return found

    def weigh_up(
        self, choice: Choice, state: Tensor, logits: Tensor, total: Callable[[Tensor, Choice], Tensor]
    ) -> None:
        """Measure `slopes`, by the loss itself, so that it holds for every head and divisor; nothing is read back.

        Args:
            choice: of the step.
            state: (B, N).
            logits: (B, N) or (B, N, C).
            total: the divided loss of logits and a choice.
        """
        if choice.gone is None or choice.counts is None or self.run.step != 1:
            return
        steps, self.steps = self.steps, StepMeans()  # which are of the training alone
        diagnosis, self.diagnosis = self.diagnosis, None
        rows = []
        for one in (choice, NOTHING):
            leaf = upcast(logits.detach()).requires_grad_()
            slope = torch.autograd.grad(total(leaf, one), leaf)[0].abs().view(*state.shape, -1).sum(-1)
            positive = (state if one.rest is not None else one.seen(state)) == POSITIVE
            rows.append(torch.stack((slope.where(positive, 0).sum(), slope.where(~positive, 0).sum())))
        self.slopes, self.steps, self.diagnosis = torch.stack(rows), steps, diagnosis

    @property
    def mined(self) -> int:
        """Proposals of an image that are chosen by their loss; 0: the host samples at random."""
        return self.weighting.mines() if self.weighting else 0

    def loss(self, candidates: Candidates) -> Tensor:
        """Loss of every element, weighted and not reduced.

        Returns:
            (B, N, C), on a softmax (B, N, 1), at least float32; 0 without gradient at IGNORE and where unknown.
        """
        candidates = candidates.settled()
        if self.plain and self.own:
            loss = self.own(candidates.logits, candidates.targets)
        else:
            loss = self.element.cost(candidates, self.run)
        if candidates.unknown is not None:
            loss = loss.masked_fill(candidates.unknown, 0)
        weights = self.weighting.weigh(candidates, loss, self.run) if self.weighting else None
        if weights is not None:
            if candidates.sure is not None:
                weights = weights.to(loss.dtype)
                weights = torch.where(candidates.sure, weights.clamp(min=1), weights)
            loss = loss * weights
        elif self.ignores:
            loss = zeroed(loss, (candidates.state == IGNORE).unsqueeze(-1))
        self._diagnose(candidates, loss, weights)
        return loss

    def _diagnose(self, candidates: Candidates, loss: Tensor, weights: Tensor | None = None) -> None:
        """Let the diagnosis follow a loss, where somebody asks."""
        if self.diagnosis is None or candidates.hidden is None or not loss.requires_grad:
            return
        turned = self.element.recalibrated(candidates, self.run)
        spared = {} if turned is None else {RECALIBRATED: turned}
        if weights is not None:
            spared[LOWERED] = weights.to(loss.dtype) < LOW
        self.diagnosis.follow(candidates, loss, spared)

    def objectness(self, candidates: Candidates, residuals: Tensor, choice: Choice) -> dict[str, Tensor]:
        """Losses of an objectness and its refinements, without what was chosen; (B, N) each, not divided.

        Both have the weight `obj_weight`.

        Args:
            candidates: with (B, N) logits and targets; what is known (B, N, 1) of all classes at once.
            residuals: (T, B, N).
            choice: leaves both losses; what becomes background, in both.

        Returns:
            `obj_loss` and, where there are steps, `res_loss`, the sum over the steps.
        """
        logits, targets, state = candidates[:3]
        # in part, what becomes background is a positive still
        seen = candidates._replace(state=choice.seen(state) if choice.rest is None else state).settled().state
        if self.run.training and "objectness" in self.run.site.gives:
            self.steps.add(refine(logits.detach(), residuals.detach()), seen)

        def element(logits: Tensor, targets: Tensor) -> Tensor:
            def cost(choice: Choice) -> Tensor:
                aims = targets if choice.background is None else targets.masked_fill(choice.background, 0)
                logits_, aims_ = logits.unsqueeze(-1), aims.unsqueeze(-1)
                one = candidates._replace(logits=logits_, targets=aims_, state=choice.seen(state))
                if self.plain and candidates.unknown is None:
                    loss = bce(logits, aims)
                    self._diagnose(one._replace(logits=logits), loss)
                    return loss
                return self.loss(one).squeeze(-1)

            return choice.trained(cost)

        loss = choice.of_loss(element(logits, targets))
        losses = {"obj_loss": loss.masked_fill(state == IGNORE, 0) if self.ignores else loss}
        if len(residuals):
            settings = self.recipe.resobj
            candidates = candidates._replace(hidden=None)  # a diagnosis is of the objectness, not of its refinements
            losses["res_loss"] = residual_objectness(
                logits, residuals, targets, seen,
                weights=None if choice.left is None else choice.of_loss(torch.ones_like(logits)),
                grad=settings.resobj_grad, gate=settings.resobj_gate, element=element,
            ).losses.sum(0)  # fmt: skip
        weight = self.recipe["obj_weight"]
        return losses if weight == 1 else {name: loss * weight for name, loss in losses.items()}

    def count(
        self, positive: Tensor, choice: Choice, *, by: str = "", channels: int = 1, ignored: Any = None
    ) -> Tensor:
        """What a summed loss is divided by, where that is not the host's own affair; at least 1.

        Args:
            positive: (B, N) bool.
            choice: what left the loss or became background.
            by: batch (matched candidates), candidates (all, times channels; what became background is one still), or
                image (matched candidates of each image by itself, then the mean over images); empty: the recipe's.
            channels: C.
            ignored: (B, N) bool, what is no candidate, or (B, N, C) of each channel; None: nothing.

        Returns:
            A scalar; by image (B,), the divisor of each image's sum. Where several processes have a part of the batch
            each, and their losses are averaged, the mean of their counts: then the loss is that of the whole batch.
        """
        by = by or self.recipe.divisor
        if by == "candidates":
            counted = torch.ones_like(positive) if ignored is None else ~ignored
            if counted.dim() == 2 and choice.sure is not None:
                counted = counted.unsqueeze(-1).expand_as(choice.sure)
            channels = channels if counted.dim() == 2 else 1  # or they are spelt out
            gone = choice.left
        else:
            counted, gone = positive, choice.gone
        counted = choice.of_count(counted, gone)
        if by == "image":
            return counted.sum(1).clamp(min=1) * len(counted)
        whole = self.run.summed(counted.sum() * (channels if by == "candidates" else 1)).clamp(min=1)
        return whole if self.run.parts == 1 else whole / self.run.parts
