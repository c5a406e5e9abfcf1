"""`python -m fusestep.bench`: the same as `fusestep bench`."""

from __future__ import annotations

import sys

from .command import main

sys.exit(main(sys.argv[1:]))
