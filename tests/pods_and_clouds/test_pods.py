"""The programs of pods compile for their TPUs and fit: models of two layers by default, whole models as slow tests.

A slow test takes minutes: `pytest -m slow tests/pods_and_clouds/test_pods.py -n 0`.
"""

import io

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from r1jax.dry_run.compilation import CompiledProgram, compile_stages, least_times, verdict
from r1jax.dry_run.topology import topology_devices
from r1jax.parallel.chips import CHIPS
from r1jax.parallel.layout import make_layout
from r1jax.parallel.memory import GIB
from r1jax.parallel.programs import abstract_weights
from tests.shared.scales import DEVICES, scale_config

TWO_LAYERS = (
    "ModelConfig.num_hidden_layers=2",
    "ModelConfig.first_k_dense_replace=1",
    "SamplingConfig.max_prompt_tokens=128",
    "SamplingConfig.max_new_tokens=384",
    "RLConfig.row_tokens=512",
    "evaluate/SamplingConfig.max_prompt_tokens=128",
    "evaluate/SamplingConfig.max_new_tokens=1920",  # a context that the kernel reads
)

B16 = [("v5e_16", "v5e:4x4"), ("v6e_64", "v6e:8x8")]
B30 = [("qwen3_v5e_64", "v5e:8x8"), ("qwen3_v6e_64", "v6e:8x8")]


def compiled(scale: str, topology: str, program: str, *bindings: str, slices: int = 1) -> CompiledProgram:
    """A program of the last stage of `r1_zero` that has it, compiled."""
    return all_compiled(scale, topology, [program], *bindings, slices=slices)[-1]


def all_compiled(
    scale: str, topology: str, programs: list[str], *bindings: str, slices: int = 1
) -> list[CompiledProgram]:
    """The programs of these names, [] for all, compiled. Each has to fit together with what its stage holds."""
    config = scale_config(scale, *bindings)
    layout = make_layout(config.mesh, topology_devices(topology, slices))
    found = compile_stages(config, layout, programs, Console(file=io.StringIO()))
    for one in found:
        assert verdict(one, layout) == "fits", (
            one.stage,
            one.program.name,
            one.compilation.refusal,
            one.compilation.memory,
        )
    return found


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch, tmp_path, libtpu):
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.fixture
def hurried():
    """Lets the compiler optimise less, in half of the time."""
    jax.config.update("jax_optimization_level", "O1")
    yield
    jax.config.update("jax_optimization_level", "UNKNOWN")


@pytest.mark.slow
@pytest.mark.parametrize("program", ["rl_gradients", "decode"])
def test_two_layers_of_v3_on_128_chips(program, hurried):
    compilation = compiled("v5p_256", "v5p:4x4x8", program, *TWO_LAYERS).compilation
    if program == "decode":  # tokens go to their experts; heads and logits are exchanged; the cache is not copied
        assert {"ragged-all-to-all", "all-to-all"} <= compilation.costs.collectives.keys()
        assert not [b for b in compilation.buffers if b.kind == "temporary" and b.shape == "bf16[1,8,2080,576]"]
    else:  # tokens go to their experts, weights are gathered, gradients are summed where they are stored
        assert {"ragged-all-to-all", "all-gather", "reduce-scatter"} <= compilation.costs.collectives.keys()


@pytest.mark.slow
@pytest.mark.parametrize("program", ["rl_gradients", "decode"])
def test_two_layers_of_qwen3_30b_on_64_chips(program, hurried):
    """Where ragged all-to-all does not compile, devices gather each other's tokens and scatter the experts' outputs."""
    layers = (*TWO_LAYERS, "ModelConfig.first_k_dense_replace=0")
    collectives = compiled("qwen3_v5e_64", "v5e:8x8", program, *layers).compilation.costs.collectives
    assert {"all-gather", "reduce-scatter"} <= collectives.keys()
    assert "ragged-all-to-all" not in collectives


@pytest.mark.slow
def test_the_demo_with_rows_that_two_chips_share(hurried):
    """With a context axis, the first token of a part of a row is sent to the part before it, as its next token.

    On a mesh that only divides rows (fsdp instead of context) there is no collective-permute.
    """
    mesh = ("MeshConfig.data=1", "MeshConfig.expert=2", "MeshConfig.context=2")
    assert "collective-permute" in compiled("cpu", "v5e:2x2", "rl_gradients", *mesh).compilation.costs.collectives


@pytest.mark.slow
def test_671b_trains_on_128_chips():
    """In at most 10 minutes of compilation, and 72 GiB including what is resident."""
    one = compiled("v5p_256", "v5p:4x4x8", "rl_gradients")
    assert one.compilation.seconds <= 600
    assert one.needed <= 72 * GIB


@pytest.mark.slow
def test_671b_pretrains_on_128_chips():
    assert compiled("pretrain_v3", "v5p:4x4x8", "pretrain_step").needed <= CHIPS["v5p"].hbm


@pytest.mark.slow
def test_671b_decodes_a_thousand_sequences_of_32k_on_128_chips():
    """In at most 30 GiB, with one copy of the cache: the result reuses the argument's buffer. A step reads it once."""
    one = compiled("v5p_256", "v5p:4x4x8", "decode").compilation
    assert one.memory.all <= 30 * GIB
    assert one.memory.results + one.memory.temporaries < 0.5 * GIB
    times = least_times(one.costs, CHIPS["v5p"])
    assert times.memory <= 0.4
    assert times.network <= 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "topology"), [B16[0], B30[0]])
def test_a_cache_in_8_bits_is_read_as_it_is_stored(scale, topology):
    """Not in another dtype, nor copied: a step reads the weights, and half of the bytes of a cache in bfloat16."""
    found = [compiled(scale, topology, "decode", f"EngineConfig.cache_dtype='{kind}'") for kind in ("model", "int8")]
    plain, small = (one.compilation for one in found)
    saved = plain.memory.arguments - small.memory.arguments
    assert saved > 0
    assert plain.costs.hbm_bytes - small.costs.hbm_bytes > 0.9 * 16 * saved  # in each of 16 steps
    assert small.memory.temporaries < plain.memory.temporaries + 0.1 * saved


@pytest.mark.slow
def test_671b_trains_on_r1s_longest_outputs_on_512_chips():
    assert compiled("v5p_1024_32k", "v5p:8x8x8", "rl_gradients").needed <= 72 * GIB


@pytest.mark.slow
@pytest.mark.parametrize("slices", [1, 2])
def test_671b_trains_on_512_chips_and_on_two_slices_of_them(slices):
    one = compiled("v5p_2x1024" if slices > 1 else "v5p_1024", "v5p:8x8x8", "rl_gradients", slices=slices)
    between = sum(c.bytes_in for c in one.compilation.costs.between_slices.values())
    assert (between > 0) == (slices > 1)


@pytest.mark.slow
@pytest.mark.parametrize("program", ["rl_gradients", "decode"])
@pytest.mark.parametrize(("scale", "topology"), [*B16, *B30])
def test_16b_and_30b_fit(scale, topology, program):
    """The arguments include all weights, in the dtype in which they are stored for the program."""
    model = scale_config(scale).model
    stored = jnp.dtype(model.param_dtype if program == "rl_gradients" else model.dtype)
    numbers = sum(x.size for x in jax.tree.leaves(abstract_weights(model).params))
    assert compiled(scale, topology, program).compilation.memory.arguments > numbers * stored.itemsize / DEVICES[scale]


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "topology"), [*B16, *B30, ("v5p_256", "v5p:4x4x8")])
def test_every_program_of_a_run_fits(scale, topology):
    """Everything that a run compiles: steps, updates, log-probabilities, prefill, decoding, copies of weights."""
    names = {one.program.name for one in all_compiled(scale, topology, [])}
    assert {"add_logprobs", "rl_update", "copy_weights", "prefill", "insert", "decode"} <= names
