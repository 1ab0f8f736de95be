"""Dry runs: what an experiment takes on each device, without a weight or a step.

`run.py` has the entry point of `r1jax run --dry_run`. `stage_programs.py` lists the programs of each stage with their
abstract arguments; `lowering.py` lowers them all for this machine, `compilation.py` compiles them all for a TPU
topology, whose devices come from `topology.py`. `aot.py` compiles and caches one program, `hlo.py` reads the costs of a
compiled one, and `tables.py` prints the results.
"""
