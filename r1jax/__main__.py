"""`python -m r1jax`."""

import sys

from r1jax.cli.main import main

sys.exit(main())
