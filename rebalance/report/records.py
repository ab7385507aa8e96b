"""The records of a sweep, under the names that reports know them by."""

from rebalance.experiments.record import (
    METRICS as METRICS,
)
from rebalance.experiments.record import (
    SPLITS as SPLITS,
)
from rebalance.experiments.record import (
    Box as Box,
)
from rebalance.experiments.record import (
    Detection as Detection,
)
from rebalance.experiments.record import (
    Label as Label,
)
from rebalance.experiments.record import (
    Record as Record,
)
from rebalance.experiments.record import (
    Sample as Sample,
)
from rebalance.experiments.record import (
    Sweep as Sweep,
)
from rebalance.experiments.record import (
    by_epoch as by_epoch,
)
from rebalance.experiments.record import (
    load as load,
)
from rebalance.experiments.record import (
    read as read,
)
