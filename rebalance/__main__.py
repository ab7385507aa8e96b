"""`python -m rebalance`: the command line."""

import sys

from rebalance.cli.main import main

sys.exit(main())
