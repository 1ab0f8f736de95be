"""`python -m r1jax`, and the installed command `r1jax`."""

import os
import sys

from r1jax.cli import main


def run() -> None:
    status = main()
    if status:
        # At once: reads that a failed restore left under way would print tracebacks of their own at shutdown.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    run()
