"""Objectness and residual subnets, for any dense head.

Chen et al., "Residual Objectness for Imbalance Reduction", sections 3.1 and 3.2.
Shapes: B images, K channels, A anchors a cell, T steps, H rows and W columns of a feature map.
What layers are built with: `channels` of the features (K), `width` of a subnet between its two convolutions, `anchors`
(A), `steps` (T, at least 1 unless said), `prior`, the objectness at the start in (0, 1), and the activation, `act`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import fold

from rebalance.errors import ModelError

NARROW = 8  # channels, below which the nine taps are worth it
STD = 0.01  # of the weights of a last layer, as in RetinaNet


def objectness_prior(nc: int, given: str = "code") -> float:
    """P(object) at the start, of `nc` classes.

    It matters how near it is to the share of positives among the candidates. Where it is ten times that, the gradient
    of the objectness loss says little else than "less", all weights of the subnet move along its mean feature to say
    it, and it takes the subnet hundreds of steps to tell anything apart (docs/methods/obj.md has numbers).

    Args:
        given: code: 0.001, as the authors have it in their later code, about that share. paper: 1/C (section 3.1), made
            for 80 classes. Or a number.
    """
    named = {"paper": _one_in(nc), "code": 0.001}
    return named[given] if given in named else float(given)


def class_prior(nc: int, given: str = "paper") -> float:
    """P(class | object) at the start, of `nc` classes: paper: 0.01 (section 3.1); code: 1/C; or a number."""
    named = {"paper": 0.01, "code": _one_in(nc)}
    return named[given] if given in named else float(given)


def _one_in(nc: int) -> float:
    return 1 / max(nc, 2)  # of a single class 1/C would be certainty


def width_of(given: float, channels: int) -> int:
    """Channels of a subnet on `channels`: up to 1 `given` is a fraction of these, at least 16; above, their number."""
    return round(given) if given > 1 else max(16, int(channels * given))


def logit(p: float) -> float:
    """The bias that a sigmoid turns into probability `p` in (0, 1)."""
    return math.log(p / (1 - p))


class Narrow(nn.Conv2d):
    """A 3×3 convolution to few channels, for inference on a CPU: a product for each of its nine taps, moved and added.

    Else it would take as long as one to sixteen channels. It is the same up to the order of the sum.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, K, H, W) -> (B, few, H, W)."""
        traced = torch.jit.is_tracing() or torch.compiler.is_compiling()  # type: ignore[attr-defined, no-untyped-call]
        if traced or not x.is_cpu or x.dtype.itemsize < 4:
            return super().forward(x)
        taps = self.weight.flip(2, 3).permute(0, 2, 3, 1).flatten(0, 2)  # (few·9, K)
        moved = taps.expand(len(x), -1, -1).bmm(x.flatten(2))  # not @, which copies x
        return fold(moved, x.shape[-2:], 3, padding=1) + _bias(self).view(-1, 1, 1)


class ObjectnessSubnet(nn.Module):
    """Two 3×3 convolutions that give an objectness for each anchor of a cell."""

    def __init__(
        self, channels: int, width: int, *, anchors: int = 1, prior: float = 0.01, act: type[nn.Module] = nn.SiLU
    ) -> None:
        super().__init__()
        self.hidden = nn.Conv2d(channels, width, 3, padding=1)
        self.act = act()
        self.logits = nn.Conv2d(width, anchors, 3, padding=1)
        nn.init.normal_(self.logits.weight, std=STD)
        nn.init.constant_(self.logits.bias, logit(prior))  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, K, H, W) -> logits (B, A, H, W), and the features (B, width, H, W) between the convolutions."""
        features = self.act(self.hidden(x))
        return self.logits(features), features


class Joined(nn.Module):
    """Features, and behind them what a convolution and an activation make of them."""

    def __init__(self, conv: nn.Conv2d, act: nn.Module) -> None:
        super().__init__()
        self.conv, self.act = conv, act

    def forward(self, x: Tensor) -> Tensor:
        """(B, K, H, W) -> (B, K + the convolution's channels, H, W)."""
        return torch.cat((x, self.act(self.conv(x))), 1)


class ResidualSubnets(nn.Module):
    """The residual subnets of all steps: two 3×3 convolutions each, which share nothing but their input.

    The first convolutions are computed as one, the second as one with a group for each step, which is the same and
    faster. They start as good as without effect: weights of 0.01, no bias.
    """

    fused = False

    def __init__(
        self, channels: int, width: int, *, anchors: int = 1, steps: int = 2, act: type[nn.Module] = nn.SiLU
    ) -> None:
        super().__init__()
        self.steps, self.anchors = steps, anchors
        self.hidden = nn.Conv2d(channels, steps * width, 3, padding=1)
        self.act = act()
        self.logits = nn.Conv2d(steps * width, steps * anchors, 3, padding=1, groups=steps)
        nn.init.normal_(self.logits.weight, std=STD)
        nn.init.zeros_(self.logits.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """(B, K, H, W) -> residual logits (B, T, A, H, W); once fused their sum, (B, 1, A, H, W)."""
        _no_training(self)
        x = self.logits(self.act(self.hidden(x)))
        return x.view(x.shape[0], self.steps, self.anchors, x.shape[2], x.shape[3])

    def fuse(self, shown: int) -> None:
        """Let the last convolution give the sum of the first `shown` residuals, 1 to T: for inference alone.

        It is linear, so this changes nothing but the order of a sum.
        """
        width = self.logits.in_channels // self.steps
        hidden, last, steps = self.hidden, self.logits, (self.steps, self.anchors)
        weight, bias = last.weight.view(*steps, width, 3, 3)[:shown], _bias(last).view(steps)[:shown]
        self.hidden = _conv(hidden.weight[: shown * width], _bias(hidden)[: shown * width])
        self.logits = _conv(weight.transpose(0, 1).flatten(1, 2), bias.sum(0))
        self.steps, self.fused = 1, True


class ResidualObjectness(nn.Module):
    """An objectness subnet on a class tower, and the residual subnets of T steps.

    With `on="obj"` the residual subnets see the features within the objectness subnet; these are part of it, so where
    the gradient is isolated (`grad` is not joint) they are detached, and the residual losses train the residual subnets
    alone. With `on="cls"` they see the features of the class tower, which the residual losses train along.
    """

    fused = False

    def __init__(
        self, channels: int, *, width: float = 1, residual_width: float = 0, anchors: int = 1, steps: int = 2,
        on: str = "obj", grad: str = "isolated", prior: float = 0.01, act: type[nn.Module] = nn.SiLU,
    ) -> None:  # fmt: skip
        """Build with random weights; the widths are as in `width_of`, 0 of a residual subnet: as the objectness subnet.

        With 0 steps it is the objectness alone.
        """
        super().__init__()
        inner, residual_inner = (width_of(given, channels) for given in (width, residual_width or width))
        self.on, self.grad, self.channels = on, grad, channels
        self.objectness: Any = ObjectnessSubnet(channels, inner, anchors=anchors, prior=prior, act=act)
        source = inner if on == "obj" else channels
        made = ResidualSubnets(source, residual_inner, anchors=anchors, steps=steps, act=act) if steps else None
        self.residual = made

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B, K, H, W) -> objectness logits (B, A, H, W), and residual logits (B, T, A, H, W) or None where T = 0.

        Once fused: the refined objectness and None.
        """
        _no_training(self)
        if self.fused:
            return self.objectness(x), None
        logits, features = self.objectness(x)
        if self.residual is None:
            return logits, None
        if self.on == "cls":
            return logits, self.residual(x)
        return logits, self.residual(features if self.grad == "joint" else features.detach())

    def fuse(self, shown: int) -> None:
        """Let the last convolution give the objectness and the first `shown` residuals, summed: for inference alone.

        The last convolutions of all subnets are linear, so their sum is one over all that they see. With `on="cls"`
        the first ones see the same and are one too.
        """
        if self.residual is None:
            return
        first, act, last = self.objectness.hidden, self.objectness.act, self.objectness.logits
        layers: list[nn.Module] = [first, act, last]
        if shown:
            self.residual.fuse(shown)
            more, more_last = self.residual.hidden, self.residual.logits
            last = _conv(torch.cat((last.weight, more_last.weight), 1), _bias(last) + _bias(more_last))
            if self.on == "cls":
                first = _conv(torch.cat((first.weight, more.weight)), torch.cat((_bias(first), _bias(more))))
                layers = [first, act, last]
            else:
                layers = [first, act, Joined(more, act), last]
        self.objectness, self.residual, self.fused = nn.Sequential(*layers), None, True


class SharedResiduals(nn.Module):
    """Residual subnets for a head whose last convolution gives boxes, objectness and classes at once.

    That head has no objectness tower: its objectness comes straight from the features that boxes and classes share. A
    1×1 convolution squeezes them for all steps. With `on="obj"` they count as the objectness subnet's own, so that
    isolated residual losses do not train them; with `on="cls"` as the class tower's, which they do train.
    """

    def __init__(
        self, channels: int, *, anchors: int, steps: int, on: str = "obj", grad: str = "isolated", width: float = 0
    ) -> None:
        """Build with random weights; `width`, of what is squeezed too, is as in `width_of`, 0: an eighth."""
        super().__init__()
        inner = width_of(width or 1 / 8, channels)
        self.detached = on == "obj" and grad != "joint"
        self.squeeze = nn.Conv2d(channels, inner, 1)
        self.act = nn.SiLU()
        self.residual = ResidualSubnets(inner, inner, anchors=anchors, steps=steps)

    def forward(self, x: Tensor) -> Tensor:
        """(B, K, H, W) -> residual logits (B, T, A, H, W)."""
        logits: Tensor = self.residual(self.act(self.squeeze(x.detach() if self.detached else x)))
        return logits

    def fuse(self, shown: int) -> None:
        """Sum the first `shown` residuals, see `ResidualSubnets.fuse`; whoever shows none leaves the sum out."""
        self.residual.fuse(max(1, shown))


class Refined:
    """What the heads of all hosts have in common that refine an objectness in steps: a mixin, before the host's head.

    Attributes:
        steps: T; 0 with head=obj.
        fused: whether the refinements have been added up, see `fuse`.
    """

    steps: int = 0
    fused = False
    _shown: int | None = None

    @property
    def shown(self) -> int | None:
        """Refinements that count in inference; None: all.

        Raises:
            ModelError: it is to be changed once they have been added up.
        """
        return self._shown

    @shown.setter
    def shown(self, value: int | None) -> None:
        if self.fused and value != self._shown:
            raise ModelError(
                f"shown={value}: this model is fused, its {self.steps} refinements have been added up; load the "
                "checkpoint of its training"
            )
        self._shown = value

    def fuse(self: Any) -> None:
        """What the host does to its head for inference; then refinements that count are added up once and for all."""
        super().fuse()  # type: ignore[misc]
        if not self.fused and self.steps:
            count = self.steps if self.shown is None else min(self.shown, self.steps)
            for module in [m for m in self.modules() if isinstance(m, (ResidualObjectness, SharedResiduals))]:
                module.fuse(count)
            self.fused = True


def unfused(head: Any) -> bool:
    """Whether a head has refinements that fusing would add up."""
    return isinstance(head, Refined) and head.steps > 0 and not head.fused


def flatten_steps(levels: Sequence[Tensor]) -> Tensor:
    """Residual logits of all levels, (B, T, A, H, W) each -> (B, T, N), candidates in the order of A, H, W."""
    return torch.cat([x.flatten(2) for x in levels], 2)


def _conv(weight: Tensor, bias: Tensor) -> nn.Conv2d:
    """A 3×3 convolution of these numbers, without gradients."""
    kind = Narrow if weight.shape[0] < NARROW else nn.Conv2d
    conv = kind(weight.shape[1], weight.shape[0], 3, padding=1, device="meta")  # draws no random numbers
    conv.weight, conv.bias = (nn.Parameter(x.detach().clone(), requires_grad=False) for x in (weight, bias))
    return conv


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None
    return conv.bias


def _no_training(module: Any) -> None:
    if module.fused and module.training:
        raise ModelError("a fused model cannot be trained: its refinements have been added up; load its checkpoint")
