"""How far something is that takes long."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


def progress(things: Sequence[T], what: str, every: float = 2.0) -> Iterator[T]:
    """Yield the things and, where it takes long, say on stderr how far it is (interval in seconds)."""
    said = time.monotonic()
    for done, thing in enumerate(things):
        if time.monotonic() - said > every:
            said = time.monotonic()
            print(f"{what} {done}/{len(things)}", file=sys.stderr, flush=True)
        yield thing
