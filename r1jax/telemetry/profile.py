"""Traces of chosen steps by JAX's profiler, to be opened in xprof, TensorBoard's profile plugin or Perfetto."""

from typing import Any

import jax
from etils import epath

from r1jax.telemetry.files import named


class Profiler:
    """Writes a trace of the steps `steps` of a stage into `directory`, where there are any."""

    def __init__(self, steps: range, directory: epath.Path):
        self.steps, self.directory, self.is_tracing = steps, directory, False

    def begin(self, step: int, state: Any = None) -> None:
        """Before a step. `state` is what the devices may still work on: a trace has whole steps."""
        if (step in self.steps) == self.is_tracing:
            return
        jax.block_until_ready(state)
        if self.is_tracing:
            self.close()
            return
        with named(self.directory):
            jax.profiler.start_trace(str(self.directory))
        self.is_tracing = True

    def close(self) -> None:
        if self.is_tracing:
            self.is_tracing = False
            with named(self.directory):
                jax.profiler.stop_trace()
