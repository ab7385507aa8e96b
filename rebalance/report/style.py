"""How the plots look. Colours are Okabe and Ito's, which people with any colour vision tell apart."""

from __future__ import annotations

from typing import Any

DPI = 130
PHOTO_DPI = 100  # photos do not shrink as line drawings do, and the report carries them inside
BLUE, ORANGE, GREEN, PURPLE, SKY, RED = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
COLOURS = (BLUE, RED, GREEN, PURPLE, ORANGE, SKY)
MORE_COLOURS = (*COLOURS, "#111827", "#999933", "#882255", "#44aa99", "#6b7280", "#ddcc77")  # from Tol's muted scheme
SPLIT_COLOURS = {"test": BLUE, "val": ORANGE}
GREY = "#6b7280"
STYLE = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": "#374151",
    "axes.edgecolor": "#9ca3af",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.8,
    "lines.linewidth": 2.0,
    "lines.markersize": 6,
    "legend.frameon": False,
    "xtick.color": "#374151",
    "ytick.color": "#374151",
    "figure.constrained_layout.use": True,
}


def epoch_axis(panel: Any) -> None:
    """Let a panel, once drawn, have ticks at whole epochs only: one where there is one epoch, else at least two."""
    low, high = panel.get_xlim()
    panel.xaxis.get_major_locator().set_params(integer=True, min_n_ticks=1 if high - low < 1 else 2)
