"""The methods, one file each. To add one: a file beside this one, and a row below.

A method is an element loss (what one candidate costs) or a weighting (how much each counts); one of each may be joined:
`loss=focal+drop`. A head is a row too: its name among the losses chooses it, `loss=resobj+drop`.
"""

from __future__ import annotations

from rebalance.methods.bce import Bce
from rebalance.methods.brl import Brl
from rebalance.methods.drop import Drop
from rebalance.methods.focal import Focal
from rebalance.methods.ghm import Ghm
from rebalance.methods.method import Method
from rebalance.methods.nrd import Nrd
from rebalance.methods.ohem import Ohem
from rebalance.methods.resobj import Obj, ResObj
from rebalance.methods.soft import Soft
from rebalance.methods.varifocal import Varifocal

ROWS: tuple[type[Method], ...] = (Bce, Focal, Varifocal, Brl, Drop, Ghm, Ohem, Soft, Nrd, Obj, ResObj)
METHODS: dict[str, type[Method]] = {row.name: row for row in ROWS}
# Every weighting with the element losses that it may be joined with
JOINS: dict[str, list[str]] = {
    row.name: [other.name for other in ROWS if other.kind == "element" and row.joins(other)]
    for row in ROWS
    if row.kind == "weighting"
}
ALIASES = {"ce": "bce"}  # on a sigmoid they are one loss
