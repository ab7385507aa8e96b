"""The sentences of notes, captions and verdicts, which templates/words.md holds."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import jinja2


def template(name: str, **filters: Callable[..., str]) -> jinja2.Template:
    """Return a file of templates/, which and whose parts may use the filters."""
    layouts = jinja2.Environment(
        loader=jinja2.PackageLoader("rebalance.report"),
        autoescape=name.endswith(".html"),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
    )
    layouts.filters |= filters
    return layouts.get_template(name)


@cache
def _sentences() -> Any:
    return template("words.md").module


def say(_name: str, **facts: Any) -> str:
    """Return what a macro of words.md says, on one line."""
    return " ".join(str(getattr(_sentences(), _name)(**facts)).split())
