"""Where the number of elements that a mask holds may be asked for."""

from torch import Tensor


def free_to_read(x: Tensor) -> bool:
    """Whether its values can be read without waiting: on a CPU, where a shorter way may depend on them."""
    return x.is_cpu
