"""`python -m rocm_passes.cli`: the command `rocm-passes`."""

import sys

from . import main

if __name__ == "__main__":
    sys.exit(main())
