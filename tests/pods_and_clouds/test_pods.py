"""Programs of pods compile for their TPUs, and fit: two layers of them by default, whole ones as slow tests.

A slow one takes minutes: `pytest -m slow tests/pods_and_clouds/test_pods.py -n 0`.
"""

import io

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from r1jax.cli.gin_config import read_config
from r1jax.cli.main import gin_path, load_experiment
from r1jax.dry_run.compilation import Compiled, compile_stages, verdict
from r1jax.dry_run.topology import topology_devices
from r1jax.parallel.layout import make_layout
from r1jax.parallel.memory import GIB
from r1jax.parallel.programs import abstract_policy
from tests.pods_and_clouds.test_scales import CHIPS, FILES, config_of
from tests.pods_and_clouds.test_topology import libtpu  # noqa: F401

TWO_LAYERS = (
    "ModelConfig.num_hidden_layers=2",
    "ModelConfig.first_k_dense_replace=1",
    "RLConfig.max_prompt_tokens=128",
    "RLConfig.max_new_tokens=384",
    "RLConfig.row_tokens=512",
    "EvaluateConfig.max_prompt_tokens=128",
    "EvaluateConfig.max_new_tokens=384",
)


def compiled(scale: str, topology: str, program: str, *bindings: str, slices: int = 1) -> Compiled:
    """The last stage's of a program of `r1_zero`, anew."""
    return all_compiled(scale, topology, [program], *bindings, slices=slices)[-1]


def all_compiled(scale: str, topology: str, programs: list[str], *bindings: str, slices: int = 1) -> list[Compiled]:
    """Programs of these names, [] for all: each has to fit with what its stage has beside it."""
    config = read_config(load_experiment("r1_zero").Config, [gin_path(f) for f in FILES[scale]], list(bindings))
    layout = make_layout(config.mesh, topology_devices(topology, slices))
    found = compile_stages(config, layout, programs, Console(file=io.StringIO()))
    for one in found:
        assert verdict(one, layout) == "fits", (one.stage, one.program.name, one.made.refusal, one.made.memory)
    return found


@pytest.fixture(autouse=True)
def nothing_is_known(monkeypatch, tmp_path, libtpu):  # noqa: F811
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def hurried():
    """A compiler that optimises less: half of the time."""
    jax.config.update("jax_optimization_level", "O1")
    yield
    jax.config.update("jax_optimization_level", "UNKNOWN")


@pytest.mark.parametrize("program", ["grpo_gradients", "decode"])
def test_two_layers_of_v3_on_128_chips(program, hurried):
    made = compiled("v5p_256", "v5p:4x4x8", program, *TWO_LAYERS).made
    if program == "decode":  # tokens are shown to all devices, heads and words travel
        assert {"all-reduce", "all-to-all"} <= made.costs.collectives.keys()
    else:  # tokens travel to their experts, weights are gathered, gradients of experts added up where they are stored
        assert {"ragged-all-to-all", "all-gather", "reduce-scatter"} <= made.costs.collectives.keys()


def test_the_demo_with_rows_that_two_chips_share(hurried):
    """TPUs' kernel of attention takes a part of a row; a part's first token goes to the part before, as its next.

    On a mesh that divides rows alone (fsdp in the place of context) nothing is permuted.
    """
    mesh = ("MeshConfig.data=1", "MeshConfig.expert=2", "MeshConfig.context=2")
    assert "collective-permute" in compiled("cpu", "v5e:2x2", "grpo_gradients", *mesh).made.costs.collectives


@pytest.mark.slow
def test_671b_trains_on_128_chips():
    """In at most 10 minutes of compilation, and 72 GiB with what lies beside it."""
    one = compiled("v5p_256", "v5p:4x4x8", "grpo_gradients")
    assert one.made.seconds <= 600
    assert one.needed <= 72 * GIB


@pytest.mark.slow
def test_671b_decodes_a_thousand_sequences_of_32k_on_128_chips():
    """In at most 30 GiB, of which the cache is there once: what it gives takes its place."""
    memory = compiled("v5p_256", "v5p:4x4x8", "decode").made.memory
    assert memory.all <= 30 * GIB
    assert memory.results + memory.temporaries < 1 * GIB


@pytest.mark.slow
def test_671b_trains_on_r1s_longest_outputs_on_512_chips():
    assert compiled("v5p_1024_32k", "v5p:8x8x8", "grpo_gradients").needed <= 72 * GIB


@pytest.mark.slow
@pytest.mark.parametrize("slices", [1, 2])
def test_671b_trains_on_512_chips_and_on_two_slices_of_them(slices):
    one = compiled("v5p_2x1024" if slices > 1 else "v5p_1024", "v5p:8x8x8", "grpo_gradients", slices=slices)
    between = sum(c.bytes for c in one.made.costs.between_slices.values())
    assert (between > 0) == (slices > 1)


@pytest.mark.slow
@pytest.mark.parametrize("program", ["grpo_gradients", "decode"])
@pytest.mark.parametrize(("scale", "topology"), [("v5e_16", "v5e:4x4"), ("v6e_64", "v6e:8x8")])
def test_16b_fits(scale, topology, program):
    """With all that it reads of the weights, as they are stored for it."""
    model = config_of(scale).model
    stored = jnp.dtype(model.param_dtype if program == "grpo_gradients" else model.dtype)
    numbers = sum(x.size for x in jax.tree.leaves(abstract_policy(model)[0]))
    assert compiled(scale, topology, program).made.memory.arguments > numbers * stored.itemsize / CHIPS[scale]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scale", "topology"), [("v5e_16", "v5e:4x4"), ("v6e_64", "v6e:8x8"), ("v5p_256", "v5p:4x4x8")]
)
def test_every_program_of_a_run_fits(scale, topology):
    """Pretraining's step and updates, log-probabilities, prefill, the movement of weights: all that a run compiles."""
    names = {one.program.name for one in all_compiled(scale, topology, [])}
    assert {"pretrain_step", "prepare_batch", "grpo_update", "copy_weights", "prefill", "insert", "decode"} <= names
