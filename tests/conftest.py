"""Fake devices and the compilation cache are set before jax is imported, for the whole suite."""

import gc
import os
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
os.environ["JAX_PLATFORMS"] = "cpu"


def xla_flags(devices: int) -> str:
    """Compiling is most of the suite's time, and half of that optimising; runs whose figures count do without these."""
    flags = f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0"
    flags += " --xla_cpu_parallel_codegen_split_count=1"  # pytest-xdist's processes share the cores already
    # Half of the rest is jaxlib 0.10's newer emitter; later ones have no other, and refuse the flag.
    has_both = version("jaxlib").startswith("0.10.") and "R1JAX_TEST_NEWER_EMITTER" not in os.environ
    return flags + (" --xla_cpu_use_fusion_emitters=false" if has_both else "")


os.environ["XLA_FLAGS"] = xla_flags(8)
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".cache" / "xla"))
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"  # small programs are a tenth of the compiling
os.environ["EPATH_USE_TF"] = "false"  # as the command line has it; read once, by the first path
gc.set_threshold(100_000, 50, 100)  # traced programs are millions of objects that stay: looking for dead ones took 7 %

import dataclasses
import fcntl
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import jax
import pytest
from etils import epath

from r1jax.cli.experiments import gin_path, load_experiment
from r1jax.cli.gin_config import read_config
from r1jax.config import MeshConfig, ModelConfig
from r1jax.data.feeds import Records, ensure_records
from r1jax.model.spec import init_params, init_router_bias
from r1jax.parallel.layout import make_layout

TOY_RECORDS = {"running_sum_corpus": 200, "running_sum_problems": 16, "chat_problems": 16}


def pytest_xdist_auto_num_workers(config) -> int:
    """One more than there are cores, since tests wait for other processes and time limits; each takes 3 to 4 GiB."""
    return min(4, (os.cpu_count() or 1) + 1)


def pytest_collection_modifyitems(items) -> None:
    """Files that run whole stages come first: else one of them is the last, and the other processes wait for it."""
    long = ("resume", "stages", "pods_and_clouds", "command_line")
    items.sort(key=lambda item: item.path.parent.name not in long)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Every compiled program holds memory maps, of which Linux gives a process 65,530: a whole suite's are too many."""
    yield
    jax.clear_caches()


@pytest.fixture(scope="session")
def experiment_config():
    module = load_experiment("r1_zero")
    return read_config(module.Config, [gin_path(file) for file in module.GIN_FILES], [])


@pytest.fixture(scope="session")
def model(experiment_config) -> ModelConfig:
    """The demo's model, with weights large enough that every part matters."""
    return dataclasses.replace(experiment_config.model, initializer_range=0.3)


@pytest.fixture(scope="session")
def policy(model):
    """(params, router_bias), the bias uneven so that it takes part in every choice."""
    params = init_params(jax.random.key(0), model)
    bias = jax.tree.map(lambda b: 0.1 * jax.random.normal(jax.random.key(1), b.shape), init_router_bias(model))
    return params, bias


@pytest.fixture(scope="session")
def dense_model() -> ModelConfig:
    """The demo's dense student with every part of Qwen2.5's and Qwen3's attention."""
    files = [gin_path(file) for file in ("model/tiny_dense.gin", "scale/cpu.gin", "algorithm/grpo.gin")]
    model = read_config(load_experiment("r1_zero").Config, files, []).model
    return dataclasses.replace(model, initializer_range=0.3, qk_norm=True)


@pytest.fixture(scope="session")
def grouped_moe_model(dense_model) -> ModelConfig:
    """The same with experts in all layers and no biases: every part of Qwen3-MoE."""
    return dataclasses.replace(
        dense_model, attention_bias=False, first_k_dense_replace=0, moe_intermediate_size=24, n_routed_experts=8,
        num_experts_per_tok=2, n_group=1, topk_group=1, topk_method="greedy", scoring_func="softmax",
        norm_topk_prob=True, routed_scaling_factor=1.0,
    )  # fmt: skip


@pytest.fixture(scope="session")
def dense_policy(dense_model):
    return uneven_policy(dense_model)


@pytest.fixture(scope="session")
def grouped_moe_policy(grouped_moe_model):
    return uneven_policy(grouped_moe_model)


def uneven_policy(model: ModelConfig):
    """(params, router_bias), biases and norms uneven: zeros and ones would hide one that is left out."""
    params = init_params(jax.random.key(0), model)

    def uneven(path, x):
        key = jax.random.fold_in(jax.random.key(1), zlib.crc32(jax.tree_util.keystr(path).encode()))
        return x + 0.3 * jax.random.normal(key, x.shape) if "bias" in path[-1].key or "norm" in path[-1].key else x

    return jax.tree_util.tree_map_with_path(uneven, params), init_router_bias(model)


@pytest.fixture(scope="session")
def one_device():
    return make_layout(MeshConfig(data=1), devices=jax.devices()[:1])


@contextmanager
def made_once(tmp_path_factory, name: str) -> Iterator[Path]:
    """A locked directory that pytest-xdist's processes share: the first process to come fills it."""
    base = tmp_path_factory.getbasetemp()
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    home.mkdir(exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield home


@pytest.fixture(scope="session")
def toy_records(tmp_path_factory) -> dict[str, epath.Path]:
    """Records of the demo by task, of seed 0. To write them `ensure_records` starts TensorFlow, for seconds."""
    wanted = [Records(task, "train", n) for task, n in TOY_RECORDS.items()]
    with made_once(tmp_path_factory, "toy_records") as home:
        return dict(zip(TOY_RECORDS, ensure_records(wanted, 0, epath.Path(home)), strict=True))


@pytest.fixture(scope="session")
def fork(tmp_path_factory) -> Path:
    from tests.shared.small_run import FORK

    path = tmp_path_factory.mktemp("fork") / "variety.py"
    path.write_text(FORK)
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory, fork) -> Path:
    """The workdir of a small run that nothing interrupted; what it printed is beside it, in stdout.txt.

    Tests only read it.
    """
    from tests.shared.small_run import r1jax, settings

    with made_once(tmp_path_factory, "small_run") as home:
        if not (home / "stdout.txt").exists():
            done = r1jax("run", str(fork), "--workdir", str(home / "whole"), *settings(), cwd=home)
            assert done.returncode == 0, done.stderr
            (home / "stdout.txt").write_text(done.stdout)
    return home / "whole"


@pytest.fixture(scope="session")
def saved_policy(tmp_path_factory, model, policy):
    """The directory of a stage that holds `policy`, of the demo's task."""
    from tests.shared.checkpoints import save_policy

    return save_policy(tmp_path_factory.mktemp("policy") / "pretrain", model, policy, "running_sum")


@pytest.fixture(scope="session")
def libtpu():
    """Skips tests that compile for TPUs where the compiler is missing."""
    pytest.importorskip("libtpu", reason="libtpu, the TPU compiler, is not installed")
