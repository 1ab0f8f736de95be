"""Dry runs for a TPU topology: what is read off compiled programs, and what a user sees."""

import functools
import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from r1jax.config import EngineConfig, MeshConfig
from r1jax.dry_run import aot, hlo
from r1jax.dry_run.tables import format_bytes
from r1jax.dry_run.topology import topology_devices
from r1jax.errors import UsageError
from r1jax.model.experts import grouped_matmul
from r1jax.parallel.chips import CHIPS, chip_of
from r1jax.parallel.expert_parallel import moe_all_to_all
from r1jax.parallel.layout import make_layout, rollout_layout
from r1jax.parallel.memory import GIB, device_memory, resident_memory
from r1jax.telemetry.flops import Work, model_flops
from tests.shared.command_line import command

# Reading HLO.

LOOP = """HloModule jit_f, is_scheduled=true, num_partitions=8

%body (p: (s32[], bf16[4,64])) -> (s32[], bf16[4,64]) {
  %p = (s32[]{:T(128)}, bf16[4,64]{1,0:T(8,128)(2,1)}) parameter(0)
  %one = s32[]{:T(128)} constant(STEP)
  %i = s32[]{:T(128)} get-tuple-element(%p), index=0
  %x = bf16[4,64]{1,0:T(8,128)(2,1)} get-tuple-element(%p), index=1
  %next = s32[]{:T(128)} add(%i, %one)
  %w = bf16[64,64]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  %y = bf16[4,64]{1,0:T(8,128)(2,1)S(1)} dot(%x, %w), lhs_contracting_dims={1}, config={"estimated_cycles":"100"}
  %s = bf16[4,64]{1,0:T(8,128)(2,1)} all-reduce(%y), channel_id=1, replica_groups=GROUPS, to_apply=%sum
  ROOT %t = (s32[]{:T(128)}, bf16[4,64]{1,0:T(8,128)(2,1)}) tuple(%next, %s)
}

%condition (q: (s32[], bf16[4,64])) -> pred[] {
  %q = (s32[]{:T(128)}, bf16[4,64]{1,0:T(8,128)(2,1)}) parameter(0)
  %end = s32[]{:T(128)} constant(10)
  %j = s32[]{:T(128)} get-tuple-element(%q), index=0
  ROOT %lt = pred[]{:T(512)} compare(%j, %end), direction=DIRECTION
}

ENTRY %main (a: bf16[4,64]) -> bf16[4,64] {
  %a = bf16[4,64]{1,0:T(8,128)(2,1)} parameter(0)
  %zero = s32[]{:T(128)} constant(START)
  %start = s32[]{:T(128)} copy(%zero)
  %first = (s32[]{:T(128)}, bf16[4,64]{1,0:T(8,128)(2,1)}) tuple(%start, %a)
  %loop = (s32[]{:T(128)}, bf16[4,64]{1,0:T(8,128)(2,1)}) while(%first), condition=%condition, body=%body
  ROOT %out = bf16[4,64]{1,0:T(8,128)(2,1)} get-tuple-element(%loop), index=1
}
"""


def loop(start=0, step=1, direction="LT", groups="{{0,1,2,3},{4,5,6,7}}") -> hlo.Costs:
    text = LOOP.replace("START", str(start)).replace("STEP", str(step)).replace("DIRECTION", direction)
    return hlo.read_costs(text.replace("GROUPS", groups))


@pytest.mark.parametrize(
    ("settings", "trips"),
    [({}, 10), (dict(start=1), 9), (dict(step=3), 4), (dict(direction="LE"), 11), (dict(start=12), 0)],
)
def test_the_body_of_a_loop_counts_as_often_as_it_runs(settings, trips):
    found = loop(**settings)
    assert found.flops == trips * 2 * 4 * 64 * 64
    assert found.cycles == trips * 100
    # x and the weights are read, y stays in VMEM, the sum is written; the counter moves 12 bytes a run, 8 at the start.
    assert found.hbm_bytes == trips * (2 * (4 * 64 + 64 * 64 + 4 * 64) + 3 * 4) + 2 * 4
    assert found.collectives["all-reduce"] == hlo.Collective(trips, trips * 2 * 3 / 4 * 2 * 4 * 64)
    assert found.unknown_loops == 0


@pytest.mark.parametrize(
    ("groups", "size"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 4),
        ("{}", 8),
        ("[4,2]<=[8]", 2),
        ("[2,4]<=[2,4]T(1,0)", 4),
        ("mesh['axis_0'=2,'axis_1'=4], device_ids=([2,4]T(1,0)) {'axis_1'}", 4),
        ("mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}", 8),
        ("mesh['a'=8] {'a':(1)2}", 2),
    ],
)
def test_groups_of_all_forms(groups, size):
    found = loop(groups=groups).collectives["all-reduce"]
    assert found.bytes_in == pytest.approx(10 * 2 * (size - 1) / size * 2 * 4 * 64)


def test_a_loop_that_data_ends_is_counted_once_and_reported():
    text = LOOP.replace(
        "%end = s32[]{:T(128)} constant(10)", '%end = s32[]{:T(128)} custom-call(), custom_call_target="x"'
    )
    found = hlo.read_costs(
        text.replace("START", "0").replace("STEP", "1").replace("DIRECTION", "LT").replace("GROUPS", "{}")
    )
    assert (found.unknown_loops, found.cycles) == (1, 100)


COLLECTIVES = """HloModule jit_g, num_partitions=8

%fused_start (p0: f32[2,16]) -> (f32[2,16], f32[8,16]) {
  %p0 = f32[2,16]{1,0} parameter(0)
  %g0 = f32[8,16]{1,0} all-gather(%p0), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"-1","flag_end":"-1"}}
  ROOT %c0 = (f32[2,16]{1,0}, f32[8,16]{1,0}) custom-call(%g0), custom_call_target="AsyncCollectiveStart"
}

%fused_middle (p1: f32[2,16]) -> f32[8,16] {
  %p1 = f32[2,16]{1,0} parameter(0)
  ROOT %g1 = f32[8,16]{1,0} all-gather(%p1), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}, backend_config={"async_collective_fusion_config":{"flag_start":"2","flag_end":"8"}}
}

%fused_done (p2: f32[2,16]) -> f32[8,16] {
  %p2 = f32[2,16]{1,0} parameter(0)
  %g2 = f32[8,16]{1,0} all-gather(%p2), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}
  ROOT %c2 = f32[8,16]{1,0} custom-call(%p2, %g2), custom_call_target="AsyncCollectiveDone"
}

%all-reduce-scatter (p3: f32[8,16]) -> f32[2,16] {
  %p3 = f32[8,16]{1,0} parameter(0)
  %r3 = f32[8,16]{1,0} all-reduce(%p3), channel_id=5, replica_groups=[2,4]<=[8], to_apply=%sum
  %z3 = s32[] constant(0)
  ROOT %d3 = f32[2,16]{1,0} dynamic-slice(%r3, %z3, %z3), dynamic_slice_sizes={2,16}
}

ENTRY %main (a: f32[2,16], b: f32[8,16]) -> f32[8,16] {
  %a = f32[2,16]{1,0} parameter(0)
  %b = f32[8,16]{1,0} parameter(1)
  %start = (f32[2,16]{1,0}, f32[8,16]{1,0}) fusion(%a), kind=kCustom, calls=%fused_start
  %middle = f32[8,16]{1,0} fusion(%a), kind=kOutput, calls=%fused_middle
  %done = f32[8,16]{1,0} fusion(%a), kind=kCustom, calls=%fused_done
  %part = f32[2,16]{1,0} fusion(%b), kind=kCustom, calls=%all-reduce-scatter
  %as = (f32[8,16]{1,0}, f32[8,16]{1,0}) collective-permute-start(%b), channel_id=6, source_target_pairs={{0,1},{1,0}}
  %ad = f32[8,16]{1,0} collective-permute-done(%as)
  %x = f32[8,16]{1,0} all-to-all(%b), channel_id=7, replica_groups={{0,1,2,3,4,5,6,7}}, dimensions={0}
  %g = s32[8]{0} parameter(2)
  %y = f32[8,16]{1,0} ragged-all-to-all(%b, %done, %g, %g, %g, %g), channel_id=10, replica_groups={{0,1,2,3,4,5,6,7}}
  %z = f32[2,16]{1,0} ragged-all-to-all(%y, %a, %g, %g, %g, %g), channel_id=11, replica_groups={{0,1,2,3,4,5,6,7}}
  %after = token[] after-all()
  %send = (f32[8,16]{1,0}, u32[], token[]) send(%b, %after), channel_id=8, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2,3,4}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %recv = (f32[8,16]{1,0}, u32[], token[]) recv(%after), channel_id=9, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_runtime",_xla_megascale_target="{1,2,3,4}x{0:3}",_xla_megascale_transfer_type="ALL_REDUCE"}
  %custom = f32[8,16]{1,0} custom-call(%b), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"cost_estimate":{"flops":"4096","bytes_accessed":"9"}}}
  %silent = f32[8,16]{1,0} custom-call(%b), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{}}
  ROOT %sizes = s32[8]{0} custom-call(%b), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{}}
}
"""  # noqa: E501


def test_collectives_count_once_in_every_form():
    found = hlo.read_costs(COLLECTIVES)
    whole, part = 4 * 8 * 16, 4 * 2 * 16
    assert found.collectives == {
        "all-gather": hlo.Collective(1, 3 * part),
        "reduce-scatter": hlo.Collective(1, 3 / 4 * whole),
        "collective-permute": hlo.Collective(1, whole),
        "all-to-all": hlo.Collective(1, 7 / 8 * whole),
        "ragged-all-to-all": hlo.Collective(2, 7 / 8 * (whole + part)),
    }
    assert found.between_slices == {"all-reduce": hlo.Collective(1, 2 * 3 / 4 * whole)}
    assert (found.flops, found.kernels) == (4096, 1)


CONVOLUTION = """HloModule c

ENTRY %main (a: bf16[3,8,16], b: bf16[3,16,4]) -> bf16[3,8,4] {{
  %a = bf16[3,8,16]{{2,1,0}} parameter(0)
  %b = bf16[3,16,4]{{2,1,0}} parameter(1)
  ROOT %c = bf16[3,8,4]{{2,1,0}} convolution(%a, %b), window={{size=3 {window}}}, dim_labels=0bf_0io->0bf
}}
"""


@pytest.mark.parametrize(
    ("window", "pairs"),
    [
        ("stride=2 pad=0_0 lhs_dilate=3", 3),  # a batch of three products, as the TPU compiler writes it
        ("pad=1_1", 7),  # a true window: two of the nine meet what was put around
    ],
)
def test_batched_products_written_as_a_convolution(window, pairs):
    assert hlo.read_costs(CONVOLUTION.format(window=window)).flops == 2 * pairs * 8 * 16 * 4


SLICES = """HloModule s

%read (p: f32[6,128], i: s32[]) -> f32[1,128] {
  %p = f32[6,128]{1,0} parameter(0)
  %i = s32[] parameter(1)
  ROOT %d = f32[1,128]{1,0} dynamic-slice(%p, %i, %i), dynamic_slice_sizes={1,128}
}

%around (o: f32[6,128], j: s32[]) -> f32[1,128] {
  %o = f32[6,128]{1,0} parameter(0)
  %same = f32[6,128]{1,0} bitcast(%o)
  %j = s32[] parameter(1)
  %inner = f32[1,128]{1,0} fusion(%same, %j), kind=kLoop, calls=%read
  ROOT %negated = f32[1,128]{1,0} negate(%inner)
}

%copied (c: f32[6,128]) -> f32[6,128] {
  %c = f32[6,128]{1,0} parameter(0)
  ROOT %t = f32[6,128]{0,1} copy(%c)
}

%moved (m: f32[6,128], l: s32[]) -> f32[1,128] {
  %m = f32[6,128]{1,0} parameter(0)
  %l = s32[] parameter(1)
  %x = f32[6,128]{0,1} fusion(%m), kind=kLoop, calls=%copied
  %y = f32[6,128]{1,0} copy(%x)
  ROOT %z = f32[1,128]{1,0} dynamic-slice(%y, %l, %l), dynamic_slice_sizes={1,128}
}

%write (q: f32[6,128], u: f32[1,128], k: s32[]) -> f32[6,128] {
  %q = f32[6,128]{1,0} parameter(0)
  %u = f32[1,128]{1,0} parameter(1)
  %k = s32[] parameter(2)
  ROOT %w = f32[6,128]{1,0} dynamic-update-slice(%q, %u, %k, %k)
}

%rewrite (e: f32[6,128], f: f32[1,128], g: s32[]) -> f32[6,128] {
  %e = f32[6,128]{1,0} parameter(0)
  %f = f32[1,128]{1,0} parameter(1)
  %g = s32[] parameter(2)
  %h = f32[6,128]{0,1} copy(%e)
  ROOT %v = f32[6,128]{0,1} dynamic-update-slice(%h, %f, %g, %g)
}

ENTRY %main (a: f32[6,128], n: s32[]) -> f32[6,128] {
  %a = f32[6,128]{1,0} parameter(0)
  %n = s32[] parameter(1)
  %r = f32[1,128]{1,0} fusion(%a, %n), kind=kLoop, calls=CALLED
  ROOT %o = f32[6,128]{1,0} fusion(%a, %r, %n), kind=kLoop, calls=%write
}
"""


@pytest.mark.parametrize("called", ["%read", "%around", "%moved"])
def test_a_slice_of_stacked_layers_is_read_and_written_alone(called):
    """Also where the fusion that reads the slice is nested in another one, or the layout is changed before."""
    row, number = 4 * 128, 4
    assert hlo.read_costs(SLICES.replace("CALLED", called)).hbm_bytes == (row + number + row) + (row + number + row)


def test_an_update_of_a_copy_reads_and_writes_all():
    text = SLICES.replace("CALLED", "%read").replace("calls=%write", "calls=%rewrite")
    row, number = 4 * 128, 4
    assert hlo.read_costs(text).hbm_bytes == (row + number + row) + (6 * row + row + number + 6 * row)


KERNELS = """HloModule k

ENTRY %main (a: f32[6,128], w: f32[8,128,128]) -> f32[6,128] {
  %a = f32[6,128]{1,0} parameter(0)
  %w = f32[8,128,128]{2,1,0} parameter(1)
  %k = f32[6,128]{1,0} custom-call(%a, %w), custom_call_target="tpu_custom_call", ATTRIBUTES
  ROOT %o = f32[6,128]{1,0} bitcast(%k)
}
"""


@pytest.mark.parametrize(
    ("attributes", "read"),
    [
        ('backend_config={"cost_estimate":{"bytes_accessed":"4096"}}', 4096),
        ('backend_config={"cost_estimate":{"bytes_accessed":"4096000"}}', 2 * 4 * 6 * 128 + 4 * 8 * 128 * 128),
        ('metadata={op_name="jit(f)/2_of_8_groups/ragged_dot"}', 2 * 4 * 6 * 128 + 4 * 2 * 128 * 128),
    ],
)
def test_a_kernel_reads_what_it_says_or_the_groups_that_have_rows(attributes, read):
    assert hlo.read_costs(KERNELS.replace("ATTRIBUTES", attributes)).hbm_bytes == read


def test_a_text_that_is_not_hlo_is_refused():
    with pytest.raises(ValueError, match="HLO"):
        hlo.read_costs("nonsense")


# Compiled programs.


@pytest.fixture(scope="module")
def v5e(libtpu):
    return topology_devices("v5e:2x2")


def scanned(layout, layers=6):
    """A matrix product with the sharded weights of each layer, forward and backward."""

    def loss(x_BD, w_LDD):
        return jax.lax.scan(lambda x, w_DD: (jax.nn.relu(x @ w_DD), None), x_BD, w_LDD)[0].sum()

    x, w = ((1024, 1024), PartitionSpec(("data", "fsdp"))), ((layers, 1024, 1024), PartitionSpec(None, "fsdp"))
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(layout.mesh, spec)) for shape, spec in (x, w)
    ]
    return jax.jit(jax.grad(loss, argnums=1), out_shardings=arguments[1].sharding).lower(*arguments)


def test_the_flops_collectives_and_memory_of_a_compiled_loop(v5e):
    """Six layers on four devices, 256 rows each: weights are gathered twice and gradients scattered once."""
    made = aot.compile_ahead(scanned(make_layout(MeshConfig(data=1, fsdp=4), v5e)))
    assert made.refusal is None
    assert made.costs.flops == 6 * 3 * 2 * 256 * 1024 * 1024
    matrix = 2 * 1024 * 1024
    moved = made.costs.collectives
    assert moved["all-gather"] == hlo.Collective(12, 12 * 3 / 4 * matrix)
    assert moved["reduce-scatter"] == hlo.Collective(6, 6 * 3 / 4 * matrix)
    assert made.costs.cycles > made.costs.flops / CHIPS["v5e"].flops_per_cycle
    assert made.memory.arguments == (2 * 256 * 1024 + 6 * matrix // 4)
    assert made.memory.results == pytest.approx(6 * matrix // 4, abs=4096)
    assert made.memory.code > 0


def test_between_slices_only_the_data_axis_moves(libtpu):
    devices = topology_devices("v5e:2x2", 2)
    layout = make_layout(MeshConfig(data=2, fsdp=4), devices)
    made = aot.compile_ahead(scanned(layout))
    gradients = 6 * 2 * 1024 * 1024 // 4
    assert made.costs.between_slices["all-reduce"].bytes_in == gradients  # 2 (n - 1) / n of them, for n = 2
    assert made.costs.collectives["all-gather"].bytes_in == 12 * 3 / 4 * 2 * 1024 * 1024


def test_the_clock_makes_cycles_of_a_product_the_peak(libtpu):
    """The compiler estimates a 4096 x 4096 product at 85 to 100 % of the matrix units' peak."""
    for name, chip in CHIPS.items():
        device = topology_devices({"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}[name])[0]
        assert chip_of(device) is chip
        sharding = NamedSharding(make_layout(MeshConfig(data=1), [device]).mesh, PartitionSpec())
        x = jax.ShapeDtypeStruct((4096, 4096), jnp.bfloat16, sharding=sharding)
        made = aot.compile_ahead(jax.jit(jnp.matmul, out_shardings=sharding).lower(x, x))
        assert made.costs.flops == 2 * 4096**3
        assert 0.85 < made.costs.flops / made.costs.cycles / chip.flops_per_cycle <= 1, name


def test_the_flops_of_experts_grow_with_rows_and_not_with_experts(v5e):
    """Three products: forward, for the rows, and for the weights, where partly filled tiles add a quarter."""
    S, D, F, E = 8192, 512, 256, 8
    sharding = make_layout(MeshConfig(data=1), v5e[:1]).replicated()
    shapes = (((S, D), jnp.bfloat16), ((E, D, F), jnp.bfloat16), ((E,), jnp.int32))
    inputs = [jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for shape, dtype in shapes]

    def loss(rows, weights, sizes):
        return (grouped_matmul(rows, weights, sizes).astype(jnp.float32) ** 2).sum()

    made = aot.compile_ahead(jax.jit(jax.grad(loss, argnums=(0, 1))).lower(*inputs))
    assert made.costs.unknown_loops == 0
    assert made.costs.flops == pytest.approx(3.25 * 2 * S * D * F, rel=0.01)


@pytest.mark.slow
def test_the_flops_of_sharded_experts_are_those_of_rows_that_arrive(v5e):
    """Buffers have room for 1.5 times as many rows. The backward pass recomputes the rows and two of three products."""
    T, K, D, F, E = 1024, 2, 512, 256, 8  # tokens of each device, experts of all
    layout = make_layout(MeshConfig(data=1, expert=4), v5e)
    rows, by_expert = PartitionSpec(("data", "expert")), PartitionSpec("expert")
    names = {"gate_EDF": (E, D, F), "up_EDF": (E, D, F), "down_EFD": (E, F, D)}

    def laid_out(shape, spec, dtype=jnp.bfloat16):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(layout.mesh, spec))

    inputs = (
        {name: laid_out(shape, by_expert) for name, shape in names.items()},
        *(laid_out((4 * T, n), rows, dtype) for n, dtype in ((D, jnp.bfloat16), (K, jnp.int32), (K, jnp.float32))),
    )
    run = functools.partial(moe_all_to_all, axes=("expert",), sync_axes=("expert",))
    specs = ({name: by_expert for name in names}, rows, rows, rows)
    divided = jax.shard_map(run, mesh=layout.mesh, in_specs=specs, out_specs=rows, check_vma=False)

    def loss(*inputs):
        return (divided(*inputs).astype(jnp.float32) ** 2).sum()

    made = aot.compile_ahead(jax.jit(jax.grad(loss, argnums=(0, 1, 3))).lower(*inputs))
    tiles = 3 * 1.25  # for the weights, where partly filled tiles add a quarter
    assert made.costs.flops == pytest.approx((3 + 2 + 3 + tiles) * 2 * T * K * D * F, rel=0.01)


def test_a_refusal_says_how_much_and_which_buffers(v5e):
    layout = make_layout(MeshConfig(data=1), v5e[:1])
    assert device_memory(layout) == CHIPS["v5e"].hbm
    x = jax.ShapeDtypeStruct((5 * 2**28,), jnp.float32, sharding=layout.replicated())
    made = aot.compile_ahead(jax.jit(lambda x: (x + 1, x * 2, x * 3), out_shardings=layout.replicated()).lower(x))
    assert "20.00G" in made.refusal and f"{CHIPS['v5e'].hbm / GIB:.2f}G" in made.refusal
    assert (made.memory.arguments, made.memory.results) == (5 * GIB, pytest.approx(15 * GIB, abs=4096))  # and a table
    assert [(b.size, b.shape, b.kind) for b in made.buffers[:2]] == [(5 * GIB, "f32[1342177280]", "result")] * 2
    assert ("argument", "x") in {(b.kind, b.origin) for b in made.buffers}


# The mesh.


def test_slices_are_along_the_data_axis(libtpu):
    layout = make_layout(MeshConfig(data=4, fsdp=2), topology_devices("v5e:2x2", 2))
    slices = np.vectorize(lambda device: device.slice_index)(layout.mesh.devices)
    assert slices.reshape(4, 2).tolist() == [[0, 0], [0, 0], [1, 1], [1, 1]]


def test_an_axis_of_a_mesh_is_a_line_of_the_torus(libtpu):
    layout = make_layout(MeshConfig(data=1, fsdp=4, expert=8), topology_devices("v5p:2x4x4"))
    for line in layout.mesh.devices.reshape(4, 8):
        coords = np.asarray([device.coords for device in line])
        assert len(np.unique(coords, axis=0)) == 8
        assert np.prod(np.ptp(coords, axis=0) + 1) == 8  # a block without holes


@pytest.mark.parametrize("config", [MeshConfig(data=1, fsdp=8), MeshConfig(data=3, fsdp=-1)])
def test_a_mesh_that_slices_do_not_divide(libtpu, config):
    with pytest.raises(UsageError, match="MeshConfig"):
        make_layout(config, topology_devices("v5e:2x2", 2))


def test_a_rollout_mesh_that_slices_do_not_divide(libtpu):
    layout = make_layout(MeshConfig(data=2, fsdp=4), topology_devices("v5e:2x2", 2))
    assert rollout_layout(layout, EngineConfig(mesh=MeshConfig(data=2, fsdp=4))).mesh.size == 8
    with pytest.raises(UsageError, match=r"MeshConfig\.data"):
        rollout_layout(layout, EngineConfig(mesh=MeshConfig(data=1, fsdp=8)))


def test_one_chip_alone(libtpu):
    for name in ("v5e:1x1", "v6e:1x1"):
        [device] = topology_devices(name)
        assert chip_of(device).dimensions == 2


def test_a_result_is_cached_for_its_compiler_only(v5e, monkeypatch):
    lowered = scanned(make_layout(MeshConfig(data=1, fsdp=4), v5e))
    before = aot.fingerprint(lowered, v5e)
    assert aot.fingerprint(lowered, v5e) == before
    assert aot.fingerprint(lowered, v5e[:2]) != before
    monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_other=1")
    assert aot.fingerprint(lowered, v5e) != before


# Memory and FLOPs.


def test_what_a_stage_holds_while_a_program_runs():
    held = {"weights": 1, "optimizer": 2, "gradients": 8, "reference": 16, "copy of the weights": 32, "cache": 64}
    held |= {"prompts": 128}
    ahead = {"policy that draws ahead": 256}

    def beside(program: str, changed=None, accumulates=True) -> int:
        return sum(resident_memory(held | (changed or {}), program, accumulates=accumulates).values())

    assert beside("start_training") == 0
    assert beside("rl_gradients") == 2 + 16 + 4  # the sum of those before
    assert beside("rl_gradients", accumulates=False) == 2 + 16
    assert beside("rl_update") == 16
    assert beside("prefill") == 1 + 2 + 16 + 64
    assert beside("decode") == 1 + 2 + 16 + 128
    assert beside("decode", {"copy of the weights": 0}) == 2 + 16 + 128
    assert beside("decode", ahead) == 1 + 2 + 16 + 128 + 256
    assert beside("decode", ahead | {"copy of the weights": 0}) == 1 + 2 + 16 + 128
    assert beside("rl_update", ahead) == 16 + 256 + 32 + 64 + 128  # the next rollout continues
    assert resident_memory({"weights": 1, "optimizer": 2, "gradients": 1}, "sft_step", accumulates=False) == {}


def test_the_models_own_flops(experiment_config):
    """6 N a token in training, N without the embedding table, and two products for scores and values."""
    model = experiment_config.model
    weights = 117_504 - 208 * 64
    attention = 2 * 4 * (32 + 16) * 10  # layers, heads, sizes of a query and a value, tokens looked at
    assert model_flops(model, Work(7, 10, 3)) == 6 * 7 * (weights + attention)
    assert model_flops(model, Work(7, 10, 1, absorbed=True)) == 2 * 7 * (weights + 2 * 4 * (2 * 32 + 16) * 10)


# What a user sees.

DRY = ("run", "r1_zero", "--dry_run", "--topology")


def test_a_second_dry_run_compiles_nothing(libtpu, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = (*DRY, "v5e:2x2", "--programs", "make_slots,add_gradients,prefill")
    status, first, err = command(capsys, *arguments)
    assert (status, err) == (0, "")
    assert "4 devices of v5e:2x2, mesh data 4" in first
    assert re.search(r"3 programs: 3 compiled in \d+ s, 0 cached", first)
    assert "1/5 rl: compiling make_slots" in first
    assert len(list((tmp_path / ".cache" / "r1jax" / "topology").glob("*.json"))) == 3

    monkeypatch.setattr(aot, "compile_ahead", lambda lowered: pytest.fail("compiled again"))
    file = tmp_path / "figures.json"
    status, second, _ = command(capsys, *arguments, "--json", str(file))
    assert (status, "3 programs: 0 compiled in 0 s, 3 cached" in second) == (0, True)
    tables = [text[text.index("memory on each of") :] for text in (first, second)]
    assert tables[0] == tables[1]
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in second.splitlines() if line.startswith("│")]
    assert next(row for row in rows if len(row) == 9 and row[1] == "prefill")[-1] == "fits"
    work = next(row for row in rows if len(row) == 10 and row[1] == "prefill")
    assert 1 <= float(work[3]) < 1.2  # compiled FLOPs by the model's own: a little more is computed
    assert work[-2] in ("compute", "memory", "network")
    assert_same_figures(json.loads(file.read_text()), rows, work)


def assert_same_figures(figures: dict, rows: list[list[str]], work: list[str]) -> None:
    """The JSON has a row of the table of memory for each program, and the figures of `work`, prefill's row."""
    assert (figures["topology"], figures["slices"], figures["mesh"]["data"]) == ("v5e:2x2", 1, 4)
    by_name = [(one["program"], format_bytes(one["all"]), one["verdict"]) for one in figures["programs"]]
    assert by_name == [(row[1], *row[7:9]) for row in rows if len(row) == 9]
    one = next(one for one in figures["programs"] if one["program"] == "prefill")
    assert one["all"] == sum(one["memory"].values()) + sum(one["resident"].values())
    assert f"{one['flops'] / one['model_flops']:.2f}" == work[3]
    times = [one["least_times"][part] for part in ("compute", "memory", "network", "compiler")]
    assert [f"{1000 * s:,.3f}" for s in times] == work[4:8]
    assert sum(c["bytes_in"] for c in one["collectives"].values()) > 0


@pytest.mark.slow
def test_what_does_not_fit_ends_with_1_and_says_what_to_set(libtpu, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    files = ("model/deepseek_v2_lite.gin", "algorithm/r1.gin", "scale/r1_zero_16b.gin")
    gin = [argument for file in files for argument in ("--gin", file)]
    status, out, err = command(capsys, *DRY, "v5e:2x2", *gin, "--programs", "make_slots")
    assert (status, "rl's make_slots, evaluate's make_slots" in err) == (1, True)
    assert "RESOURCE_EXHAUSTED: " in out
    assert "bf16[26,16,34832,576]" in out
    assert "EngineConfig.slots" in out


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--dry_run", "--topology", "v9:2x2"), "--topology"),
        (("--dry_run", "--topology", "v5e"), "v5e:4x4"),
        (("--dry_run", "--topology", "v5p:4x4"), "v5p:4x4x8"),
        (("--dry_run", "--topology", "v5e:3x4"), "--topology"),
        (("--dry_run", "--topology", "v5e:2x2", "--programs", "train"), "--programs names 'train'"),
        (("--dry_run", "--topology", "v5e:2x2", "--slices", "2", "--set", "MeshConfig.fsdp=8"), "MeshConfig"),
        (("--dry_run", "--slices", "2"), "--topology"),
        (("--dry_run", "--json", "figures.json"), "--topology"),
        (("--workdir", "w", "--topology", "v5e:2x2"), "--dry_run"),
    ],
)
def test_what_is_asked_for_wrongly_is_one_line(libtpu, capsys, tmp_path, monkeypatch, arguments, named):
    monkeypatch.chdir(tmp_path)
    status, _, err = command(capsys, "run", "r1_zero", *arguments)
    assert (status, named in err, len(err.strip().splitlines())) == (2, True, 1), err


def test_a_missing_compiler_is_named(monkeypatch):
    from jax.experimental import topologies

    def missing(**_):
        raise RuntimeError("JAX TPU support not installed; cannot generate TPU topology.")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    with pytest.raises(UsageError, match="libtpu"):
        topology_devices("v5e:2x2")
