"""How commands and the library start JAX and find devices. JAX is imported in functions, so that `--help` is quick."""

import contextlib
import ctypes
import errno
import inspect
import logging as py_logging
import os
import sys
import threading
from pathlib import Path
from typing import Any


def use_gcsfs() -> None:
    """Has gs:// paths go through gcsfs, before the first path is made: TensorFlow would take memory and threads.

    Listings are not cached, because other hosts write to the directories that this one lists.
    """
    os.environ.setdefault("EPATH_USE_TF", "false")
    os.environ.setdefault("FSSPEC_GCS", '{"use_listings_cache": false}')


def set_defaults() -> None:
    """What commands and the library have in common: gcsfs, quiet libraries, and the compilation cache.

    JAX_COMPILATION_CACHE_DIR, or jax_compilation_cache_dir in a notebook, moves the cache.
    """
    import jax
    from absl import logging

    use_gcsfs()
    logging.set_verbosity(logging.FATAL)  # Orbax logs its options at each checkpoint, and errors that it raises
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    if not jax.config.values["jax_compilation_cache_dir"]:
        jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache" / "r1jax" / "xla"))


def start_jax(*, cpu_only: bool = False) -> None:
    """`set_defaults`, and what is for a process that is the command's own: hooks, and how memory is reused.

    `cpu_only` is for commands that need no accelerator: JAX then takes none, and does not load libtpu.
    """
    import jax

    set_defaults()
    py_logging.getLogger("asyncio").setLevel(py_logging.CRITICAL)  # futures that nobody waits for after a failure
    # A restore that fails leaves reads of other arrays, which fail as well, as coroutines that nobody waits for.
    sys.unraisablehook = lambda raised: (
        inspect.iscoroutine(raised.object) or is_echo(raised.exc_value) or sys.__unraisablehook__(raised)
    )
    threading.excepthook = lambda raised: is_echo(raised.exc_value) or threading.__excepthook__(raised)
    if cpu_only:
        jax.config.update("jax_platforms", "cpu")
    if cpu_only or not has_device_file("accel*", "vfio/*", "nvidia*"):
        keep_freed_memory()


def has_device_file(*patterns: str) -> bool:
    return any(next(Path("/dev").glob(pattern), None) for pattern in patterns)


def keep_freed_memory() -> None:
    """Has glibc reuse freed arrays. By default it unmaps them, and at the next step Linux maps and clears new pages."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt:
        for option, value in ((-1, 2**31 - 1), (-4, 0), (-8, 1)):  # M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX
            mallopt(option, value)


def is_echo(error: BaseException | None) -> bool:
    """Whether a failure that the main thread raises by itself is heard again from a library's threads or clean-up.

    A restore that fails leaves reads on a closed event loop; on a full disk, files that are still open fail as well.
    """
    is_disk = isinstance(error, OSError) and (error.errno == errno.ENOSPC or str(error) == "handle is closed")
    return is_disk or str(error) == "Event loop is closed"


def find_devices() -> None:
    """Initializes JAX's devices. On a machine without a TPU, libtpu's complaints about that are dropped."""
    import jax

    from r1jax.dry_run.topology import without_stderr

    with contextlib.nullcontext() if has_device_file("accel*", "vfio/*") else without_stderr():
        jax.devices()


def load_checkpoint(path: str) -> tuple[Any, Any]:
    """Starts JAX and loads a checkpoint: (the `Layout` of this process's first device, the `Policy` on it)."""
    start_jax()
    find_devices()
    import jax

    from r1jax.config import MeshConfig
    from r1jax.parallel.layout import make_layout
    from r1jax.paths import absolute
    from r1jax.runs.policy import load_policy

    layout = make_layout(MeshConfig(data=1), devices=jax.local_devices()[:1])
    return layout, load_policy(absolute(path), layout)
