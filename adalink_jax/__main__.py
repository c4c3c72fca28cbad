"""`python -m adalink_jax` is the command `adalink`."""

import sys

from adalink_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
