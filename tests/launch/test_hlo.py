from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from launch.hlo import Collective, Hlo
from research.train import sharding


def compiled(function, *args, **options):
    return Hlo(jax.jit(function, **options).lower(*args).compile().as_text())


def on_eight(function):
    mesh = sharding.make_mesh({"data": 8})
    return jax.shard_map(function, mesh=mesh, in_specs=P("data"), out_specs=P("data"))


def test_each_kind_with_its_bytes():
    def all_of_them(x):  # (2, 8) on each device
        summed = jax.lax.psum(x, "data")
        gathered = jax.lax.all_gather(2 * x, "data", axis=1, tiled=True)
        scattered = jax.lax.psum_scatter(
            3 * gathered, "data", scatter_dimension=1, tiled=True
        )
        swapped = jax.lax.all_to_all(4 * x, "data", 1, 0, tiled=True)
        ring = [(i, (i + 1) % 8) for i in range(8)]
        passed = jax.lax.ppermute(5 * x, "data", ring)
        return summed + scattered + swapped.reshape(2, 8) + passed

    found = compiled(on_eight(all_of_them), jnp.ones((16, 8))).collectives()
    part = 2 * 8 * 4
    assert found == (
        Collective("all-reduce", 1, part, 2 * part * 7 // 8),
        Collective("all-gather", 1, part, part * 7),
        Collective("reduce-scatter", 1, 8 * part, part * 7),
        Collective("all-to-all", 1, part, part * 7 // 8),
        Collective("collective-permute", 1, part, part),
    )


def test_groups_are_those_of_the_mesh_axis():
    mesh = sharding.make_mesh({"data": 2, "fsdp": 4})
    for axis, size in (("data", 2), ("fsdp", 4)):
        summed = jax.shard_map(
            partial(jax.lax.psum, axis_name=axis),
            mesh=mesh,
            in_specs=P(("data", "fsdp")),
            out_specs=P("fsdp" if axis == "data" else "data"),
        )
        (found,) = compiled(summed, jnp.ones((64,))).collectives()
        assert found == Collective("all-reduce", 1, 32, 2 * 32 * (size - 1) // size)


def test_a_loop_counts_each_iteration():
    def summed(x):
        return jax.lax.scan(
            lambda c, _: (jax.lax.psum(jnp.sin(c), "data") * jnp.ones_like(x), None),
            x,
            length=5,
        )[0]

    function = on_eight(lambda x: jax.lax.pcast(summed(x), (), to="varying"))
    program = compiled(function, jnp.ones((8, 4)))
    assert program.collectives() == (Collective("all-reduce", 5, 80, 140),)
    assert program.unknown_loops == 0


def test_loops_within_loops_multiply():
    def inner(x):
        return jax.lax.fori_loop(0, 3, lambda _, x: x @ x, x)

    def outer(x):
        return jax.lax.scan(lambda x, _: (inner(x), None), x, length=7)[0]

    # The compiler may unroll the inner one: then its body is there three times.
    products = compiled(outer, jnp.ones((64, 64))).times
    assert max(products.values()) in (7, 21)


def test_a_loop_of_unknown_length_is_told():
    program = compiled(
        lambda x: jax.lax.while_loop(lambda x: x.sum() < 9, lambda x: x * 2, x),
        jnp.ones((4,)),
    )
    assert program.unknown_loops == 1


def test_traffic_of_one_instruction():
    assert compiled(lambda x: x + 1, jnp.ones((1024,))).traffic() == 2 * 4096


def test_traffic_of_a_scan_is_its_slices():
    stack = jnp.ones((50, 1000))
    add = compiled(
        lambda s: jax.lax.scan(lambda c, x: (c + x, None), s[0] * 0, s)[0], stack
    )
    # Of each row 4000 bytes, and the running sum read and written, three times that;
    # the whole stack in every iteration would be fifty times more.
    assert 50 * 3 * 4000 <= add.traffic() <= 50 * 3 * 4000 * 1.2


def test_traffic_of_an_update_is_the_row():
    write = compiled(
        lambda stack, row, i: jax.lax.dynamic_update_slice(stack, row, (i, 0)),
        jnp.ones((1000, 1000)),
        jnp.ones((1, 1000)),
        3,
        donate_argnums=0,
    )
    assert 2 * 4000 <= write.traffic() <= 2 * 4000 + 100


TPU = (Path(__file__).parent / "loop.tpu.hlo").read_text()


def test_the_forms_of_tpu_compilers():
    program = Hlo(TPU)
    matrix, half = 128 * 64 * 4, 128 * 64 * 2
    assert program.collectives() == (
        # Started and done: one. In groups of four.
        Collective("all-reduce", 1, matrix, 2 * matrix * 3 // 4),
        # In two fusions of one channel: one. Six iterations, by the loop's condition.
        # In groups of the four devices along one of the mesh's two axes.
        Collective("all-gather", 6, 6 * half, 6 * half * 3),
        Collective("reduce-scatter", 6, 6 * matrix, 6 * matrix * 7 // 8),
    )
    assert program.unknown_loops == 0


def test_only_the_main_memory_is_traffic():
    half, matrix = 128 * 64 * 2, 128 * 64 * 4
    looped = half + half + matrix  # what the three fusions read; they write elsewhere
    copied = matrix  # from main memory to the vector memory
    reduced = matrix  # back from there
    assert Hlo(TPU).traffic() == 6 * looped + copied + reduced


SLICES = """ENTRY %main (x: f32[100,8], i: s32[]) -> f32[100,8] {
  %x = f32[100,8]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %zero = s32[] constant(0)
  %row = f32[1,8]{1,0} dynamic-slice(%x, %i, %zero), dynamic_slice_sizes={1,8}
  ROOT %y = f32[100,8]{1,0} dynamic-update-slice(%x, %row, %zero, %zero)
}
"""


def test_slices_and_updates_move_the_slice():
    row = 8 * 4
    assert Hlo(SLICES).traffic() == 2 * row + 2 * row


def test_groups_along_a_part_of_a_mesh_axis():
    half = TPU.replace("{'axis_1'}", "{'axis_0', 'axis_1':(1)2}")
    (gathered,) = (c for c in Hlo(half).collectives() if c.kind == "all-gather")
    assert gathered.sent == 6 * 128 * 64 * 2 * 3


def test_a_conditional_counts_every_branch():
    def branches(x):
        return jax.lax.cond(x.sum() > 0, lambda x: x @ x, lambda x: jnp.sin(x) @ x, x)

    program = compiled(branches, jnp.ones((128, 128)))
    visited = [n for n, times in program.times.items() if times == 1]
    assert len(visited) >= 3


def test_garbage_is_refused():
    with pytest.raises(ValueError, match="no closing parenthesis"):
        Hlo("%f (x: f32[]) -> f32[] {\n  %y = f32[] add(%x, %x\n}")


def test_shapes_of_few_bits():
    program = Hlo(
        "ENTRY %f (x: s4[8,2]) -> s4[8,2] {\n  %x = s4[8,2]{1,0} parameter(0)\n"
        "  ROOT %y = s4[8,2]{1,0} negate(%x)\n}"
    )
    assert program.traffic() == 2 * 8
    assert np.isscalar(program.traffic())
