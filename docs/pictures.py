"""Equations and plots as SVG inside a page, drawn by matplotlib from the functions that train, in the page's colour."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from typing import Any

import matplotlib
import matplotlib.style
import torch
from matplotlib.figure import Figure
from package import cards, element
from torch import Tensor

from rebalance.match.candidates import NEGATIVE, POSITIVE
from rebalance.methods.drop import drop_mask
from rebalance.methods.ghm import ghm_weights
from rebalance.methods.nrd import nrd_mask
from rebalance.methods.ohem import ohem_mask
from rebalance.methods.resobj import residual_objectness
from rebalance.methods.soft import soft_weights

BLUE, RED, GREEN, ORANGE, GREY = "#0072B2", "#D55E00", "#009E73", "#E69F00", "#8a8f98"  # Okabe and Ito's
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "figure.constrained_layout.use": True,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "path",
    "svg.hashsalt": "rebalance",
    "mathtext.fontset": "cm",
}
INK = "#010203"  # stands for the page's text colour
Axes = Any


def svg(figure: Figure, label: str, kind: str) -> str:
    """The figure as an element of a page."""
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None}, bbox_inches="tight", pad_inches=0.03)
    body = re.sub(r"^.*?(?=<svg )", "", text.getvalue(), flags=re.DOTALL)
    body = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", body, flags=re.DOTALL)
    body = re.sub(r"\n\s*", "\n", body.replace(INK, "currentColor")).strip()
    body = body.replace("<svg ", f'<svg role="img" aria-label="{html.escape(label)}" ', 1)
    return f'<div class="{kind}">{body}</div>'


def equation(text: str) -> str:
    """LaTeX, as far as matplotlib knows it; lines are apart by a double backslash."""
    lines = text.split("\\\\")
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(7, 0.5 * len(lines)), layout="none")
        for index, line in enumerate(lines):
            figure.text(0, 1 - (index + 0.5) / len(lines), f"${line.strip()}$", size=14, color=INK, va="center")
        return svg(figure, text, "equation")


def plot(name: str) -> str:
    """The plot of a method; empty where there is none to draw."""
    draw = PLOTS.get(name)
    if draw is None and cards()[name].kind == "element":
        draw = element_plot
    if draw is None:
        return ""
    ink = {f"{part}.color": INK for part in ("text", "xtick", "ytick")} | {"axes.labelcolor": INK}
    with matplotlib.style.context(["default", STYLE, ink, {"axes.edgecolor": GREY}]):
        figure = Figure(figsize=(6.4, 3.2))
        draw(name, figure.add_subplot())
        return svg(figure, f"{name}: {cards()[name].summary}", "plot")


def element_plot(name: str, axes: Axes) -> None:
    """What a candidate costs by its prediction, for targets 1, 0.5 and 0, beside cross-entropy."""
    p = torch.linspace(0.005, 0.995, 199, dtype=torch.float64)
    for target, colour in ((1.0, BLUE), (0.5, GREEN), (0.0, RED)):
        targets = torch.full_like(p, target)
        axes.plot(p, element(name, p.logit(), targets), color=colour, label=f"target {target:g}")
        if name != "bce":
            axes.plot(p, element("bce", p.logit(), targets), color=colour, alpha=0.5, linewidth=1, linestyle=":")
    if name == "brl":
        far = element(name, p.logit(), torch.zeros_like(p), confused=True)
        axes.plot(p, 10 * far, color=ORANGE, label="far from every label, × 10")
    axes.set(xlabel="prediction σ(x)" + ("" if name == "bce" else "; dotted: bce"), ylabel="loss", ylim=(-0.03, 2))
    axes.legend()


def candidates() -> tuple[Tensor, Tensor, Tensor]:
    """A made-up image of 16 × 16 predictions: confidence, state, and overlap with its two labels."""
    row, column = torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")
    near = [torch.exp(-((row - y) ** 2 + (column - x) ** 2) / 9) for y, x in ((4, 4), (10, 12), (12, 3))]
    overlap = torch.maximum(near[0], near[1])  # the third object has no label
    noise = torch.rand(16, 16, generator=torch.Generator().manual_seed(0))
    confidence = torch.stack([overlap, near[2]]).amax(0) * 0.9 + 0.1 * noise
    state = torch.where(overlap > 0.75, POSITIVE, NEGATIVE).to(torch.int8)
    return confidence, state, overlap


def map_plot(axes: Axes, chosen: Tensor, state: Tensor, words: tuple[str, str]) -> None:
    """Candidates by place: positives, negatives that count, negatives that do not."""
    kinds = (
        (state == POSITIVE, BLUE, "s", 46, "positive"),
        ((state == NEGATIVE) & ~chosen, RED, "o", 26, words[0]),
        ((state == NEGATIVE) & chosen, GREY, "x", 12, words[1]),
    )
    for mask, colour, marker, size, label in kinds:
        rows, columns = mask.nonzero(as_tuple=True)
        axes.scatter(columns, rows, s=size, c=colour, marker=marker, label=f"{label}: {int(mask.sum())}")
    axes.text(3, 12, "object without a label", ha="center", va="center", size=8, bbox={
        "facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.5}, color="black")  # fmt: skip
    axes.set(xticks=[], yticks=[], aspect="equal", ylim=(15.6, -0.6))
    axes.spines[:].set_visible(False)
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))


def drop_plot(name: str, axes: Axes) -> None:
    """One draw of three quarters of the negatives."""
    _, state, _ = candidates()
    chosen = drop_mask(state == NEGATIVE, 0.75, generator=torch.Generator().manual_seed(1))
    map_plot(axes, chosen, state, ("negative", "dropped in this step"))


def nrd_plot(name: str, axes: Axes) -> None:
    """One draw of three quarters of the sampled negatives."""
    _, state, _ = candidates()
    chosen = nrd_mask(state, 0.75, generator=torch.Generator().manual_seed(2))
    map_plot(axes, chosen, state, ("negative", "left out in this step"))


def ohem_plot(name: str, axes: Axes) -> None:
    """The hardest three negatives for each positive."""
    confidence, state, _ = candidates()
    loss = element("bce", confidence.clamp(0.01, 0.99).logit(), (state == POSITIVE).float())
    kept = ohem_mask(loss.flatten(), state.flatten()).view_as(state)
    map_plot(axes, ~kept, state, ("negative that is kept", "left out"))


def soft_plot(name: str, axes: Axes) -> None:
    """The weight of a negative by its overlap."""
    overlap = torch.linspace(0, 1, 201)
    weights = soft_weights(overlap[None], torch.full((1, 201), NEGATIVE, dtype=torch.int8))[0]
    axes.plot(overlap, weights, color=RED, label="negative")
    axes.plot(overlap, torch.ones(201), color=BLUE, linestyle="--", label="positive")
    axes.set(xlabel="overlap (IoU) with the nearest label", ylabel="weight", ylim=(0, 1.08))
    axes.legend()


def ghm_plot(name: str, axes: Axes) -> None:
    """The weight by gradient norm, for a crowd of easy negatives, a few positives and some outliers."""
    generator = torch.Generator().manual_seed(0)
    means = torch.cat((torch.full((9000,), -4.0), torch.full((600,), 0.0), torch.full((80,), 5.0)))
    logits = means + torch.randn(len(means), generator=generator)
    norm, order = logits.sigmoid().sort()
    weights, _ = ghm_weights(logits, torch.zeros_like(logits), torch.ones_like(logits, dtype=torch.bool))
    axes.step(norm, weights[order], color=RED, where="post")
    axes.set(xlabel="gradient norm g = |σ(x) − y|", ylabel="weight N / GD(g)", yscale="log")
    share = axes.twinx()
    share.hist(norm, bins=30, range=(0, 1), color=GREY, alpha=0.4)
    share.set(ylabel="candidates", yscale="log")
    share.spines["right"].set_visible(True)


def resobj_plot(name: str, axes: Axes) -> None:
    """What passes the gate of the first step: all that scores as high as the lowest positive."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.cat((torch.randn(400, generator=generator) - 2, torch.randn(24, generator=generator) * 0.8 + 1))
    state = torch.cat((torch.full((400,), NEGATIVE), torch.full((24,), POSITIVE))).to(torch.int8)
    targets = (state == POSITIVE).float()
    entered = residual_objectness(logits[None], torch.zeros(1, 1, 424), targets[None], state[None]).entered[0, 0]
    bins = [x / 2 for x in range(-11, 8)]
    parts = [logits[(state == NEGATIVE) & ~entered], logits[(state == NEGATIVE) & entered], logits[state == POSITIVE]]
    labels = ("negative, outside the gate", "negative in the gate", "positive")
    axes.hist([part.tolist() for part in parts], bins, stacked=True, color=[GREY, RED, BLUE], label=labels)
    axes.axvline(logits[state == POSITIVE].min().item(), color=ORANGE, linestyle="--", label="lowest positive, m")
    axes.set(xlabel="objectness o₀ (logit)", ylabel="candidates")
    axes.legend()


def obj_plot(name: str, axes: Axes) -> None:
    """The score by objectness."""
    p = torch.linspace(0, 1, 101)
    for given, colour in ((1.0, BLUE), (0.75, GREEN), (0.5, ORANGE)):
        axes.plot(p, p * given, color=colour, label=f"P(class | object) = {given:g}")
    axes.set(xlabel="P(object)", ylabel="score")
    axes.legend()


PLOTS: dict[str, Callable[[str, Axes], None]] = {
    "drop": drop_plot,
    "nrd": nrd_plot,
    "ohem": ohem_plot,
    "soft": soft_plot,
    "ghm": ghm_plot,
    "obj": obj_plot,
    "resobj": resobj_plot,
}
