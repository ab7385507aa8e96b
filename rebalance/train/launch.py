"""Several processes that train one model: what stops one of them is told in a line.

The host starts them by torch's launcher. Below the traceback of each it shows one of its own, and a table.
"""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import distributed
from ultralytics.utils import LOCAL_RANK

from rebalance.errors import RebalanceError

LAUNCHER = "torch.distributed.run"
_GONE = ("closed by peer", "reset by peer")  # what gloo says to the others


def command(given: Sequence[str]) -> list[str]:
    """The host's command for torch's launcher, with `main` in its place; found as this process finds it."""
    if LAUNCHER not in given:
        return [*given]
    place = given.index(LAUNCHER)
    program = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main()"
    return [*given[: place - 1], "-c", program, *given[place + 1 :]]


def main() -> None:
    """Launch as torch does; where a process stopped, end with code 1, and say so where it could not."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    logging.disable(logging.ERROR)  # its own account, which the line replaces
    try:
        run.main()
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode < 0:
            name = signal.Signals(-failure.exitcode).name
            memory = " (out of memory?)" if name == "SIGKILL" else ""
            print(f"rebalance: process {rank} was ended by {name}{memory}", file=sys.stderr)
        sys.exit(1)
    except (SignalException, KeyboardInterrupt):
        sys.exit(130)


@contextmanager
def told() -> Iterator[None]:
    """In one of several processes: end in a line where an error is the user's to solve, or another one is gone."""
    try:
        yield
    except RebalanceError as error:
        if LOCAL_RANK == -1:
            raise
        _end(str(error), 2)
    except RuntimeError as error:
        text = str(error)
        if LOCAL_RANK == -1 or not (isinstance(error, distributed.DistError) or any(x in text for x in _GONE)):
            raise
        _end("another one is gone", 1)
    except KeyboardInterrupt:
        if LOCAL_RANK == -1:
            raise
        sys.exit(130)


def _end(text: str, code: int) -> None:
    print(f"rebalance: error: process {LOCAL_RANK}: {text}", file=sys.stderr, flush=True)
    sys.exit(code)
