"""`python -m r1jax`."""

import sys

from r1jax.cli.main import main

if __name__ == "__main__":  # processes that are spawned import this file
    sys.exit(main())
