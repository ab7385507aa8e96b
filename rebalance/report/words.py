"""The sentences of notes, captions and verdicts, which templates/words.md holds."""

from __future__ import annotations

from functools import cache
from typing import Any

import jinja2


@cache
def _sentences() -> Any:
    layouts = jinja2.Environment(loader=jinja2.PackageLoader("rebalance.report"), undefined=jinja2.StrictUndefined)
    return layouts.get_template("words.md").module


def say(_name: str, **facts: Any) -> str:
    """Return what a macro of words.md says, on one line."""
    return " ".join(str(getattr(_sentences(), _name)(**facts)).split())
