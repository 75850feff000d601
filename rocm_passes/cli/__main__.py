"""`python -m rocm_passes.cli`: the command `rocm-passes`."""

import sys

from rocm_passes.cli import main

if __name__ == "__main__":
    sys.exit(main())
