"""``python -m fusestep``: the same as the command ``fusestep``."""

import sys

from fusestep.cli import main

sys.exit(main())
