"""Plots of the losses themselves, for the papers' figures that need no training, with their numbers as CSV."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.style
import numpy as np
import pandas
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from rebalance.files import write_whole
from rebalance.report.figures.style import DPI, GREY, MORE_COLOURS, STYLE

Values = NDArray[np.float64]
STEP = 0.005  # of the prediction


def focal(p_t: ArrayLike, *, gamma: float = 2.0, alpha: float = 1.0) -> Values:
    """Focal loss, -alpha (1 - p_t)^gamma log(p_t), at the confidence in the truth p_t, in (0, 1).

    Lin et al. 2017, equation 5; Adhikari et al., equation 2. At gamma 0 it is cross-entropy; `alpha` is the weight of
    the candidate: alpha of a positive, 1 - alpha of a negative.
    """
    p = np.asarray(p_t, dtype=np.float64)
    loss: Values = -alpha * (1 - p) ** gamma * np.log(p)
    return loss


def brl(p_t: ArrayLike, *, t: float = 0.5, beta: float = 1.0, gamma: float = 2.0, alpha: float = 0.25) -> Values:
    """Background Recalibration Loss of a confusion candidate at the confidence in background p_t, in (0, 1).

    Zhang et al. 2020, equation 2. Up to `t` the branch is the mirrored one, of weight `beta` (0: the paper's BRL-);
    `alpha` is the weight of positives: a confusion candidate has 1 - alpha, in both branches.
    """
    p = np.asarray(p_t, dtype=np.float64)
    negative, mirrored = (focal(q, gamma=gamma, alpha=1 - alpha) for q in (p, 1 - p))
    return np.where(p > t, negative, beta * mirrored)


def write(name: str, folder: Path) -> Path:
    """Draw one of FIGURES into a folder, made where it is missing, with its numbers as CSV; return the picture."""
    x = np.arange(STEP, 1 - STEP / 2, STEP, dtype=np.float64)
    folder.mkdir(parents=True, exist_ok=True)
    with matplotlib.style.context(["default", STYLE]):
        figure, columns = FIGURES[name](np.asarray(x))
        picture = BytesIO()
        figure.savefig(picture, dpi=DPI, metadata={"Software": None})
    write_whole(folder / f"{name}.png", picture.getvalue())
    numbers = pandas.DataFrame(columns).to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_whole(folder / f"{name}.csv", numbers.encode())
    return folder / f"{name}.png"


Drawn = tuple[Any, Mapping[str, Values]]  # a figure, and its numbers by column


def _brl(x: Values) -> Drawn:
    """Figure 2 of Zhang et al.: the negative branch and its mirror below t."""
    columns = {"p_t": x, "focal": focal(x, alpha=0.75), **{f"brl_t={t:g}": brl(x, t=t) for t in (0.1, 0.25, 0.5)}}
    figure = Figure(figsize=(6.5, 4.3))
    panel = figure.subplots()
    panel.plot(x, columns["focal"], "--", color=GREY, label="focal loss of a negative")
    for colour, t in zip(MORE_COLOURS, (0.5, 0.25, 0.1), strict=False):
        width, y = 2.4 if t == 0.5 else 1.4, columns[f"brl_t={t:g}"]
        panel.plot(x[x <= t], y[x <= t], color=colour, linewidth=width)  # the value jumps at t
        panel.plot(x[x > t], y[x > t], color=colour, linewidth=width, label=f"BRL, t = {t:g}")
    panel.set_xlabel("p_t, confidence in background")
    panel.set_ylabel("loss (gamma 2, alpha 0.25, weight 1)")
    panel.set_ylim(0, 1.5)
    panel.legend()
    panel.set_title("BRL on a confusion candidate")
    return figure, columns


def _focal(x: Values) -> Drawn:
    """Figure 6 of Adhikari et al. (gamma 8), and the smaller gammas."""
    gammas = (0, 1, 2, 4, 8)
    columns: dict[str, Values] = {"prediction": x}
    figure = Figure(figsize=(10.5, 4.3))
    panels = figure.subplots(1, 2, sharey=True)
    for panel, kind, p in ((panels[0], "positive", x), (panels[1], "negative", 1 - x)):
        panel.axvspan(0.3, 0.7, color="#e5e7eb", linewidth=0)
        for colour, gamma in zip(MORE_COLOURS, gammas, strict=False):
            columns[f"{kind}_gamma={gamma}"] = focal(p, gamma=gamma)
            panel.plot(x, columns[f"{kind}_gamma={gamma}"], color=colour, label=f"gamma = {gamma}")
        panel.set_title(f"{kind} candidate")
        panel.set_xlabel("predicted probability of the object")
        panel.set_ylim(0, 3)
    panels[0].set_ylabel("focal loss (alpha 1)")
    panels[0].legend(title="grey: 'don't care' at gamma 8")
    return figure, columns


FIGURES: Mapping[str, Callable[[Values], Drawn]] = {"brl": _brl, "focal": _focal}
