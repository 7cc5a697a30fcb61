"""What devices send each other, as read from compiled programs."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import scaling
from collectives import KINDS, collectives, kernels, summary

from tests.conftest import simulated

EIGHT = """
import json
from dataclasses import asdict
import jax, jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec as P
from collectives import collectives

mesh = jax.make_mesh((2, 4), ("a", "b"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

def body(i, x):  # (8, 32) on a device
    x = x + lax.psum(x, "b")
    x = x + lax.all_gather(x, "a").sum(0)
    x = x + jnp.tile(lax.psum_scatter(x, ("a", "b"), tiled=True), (8, 1))
    x = x + lax.all_to_all(x, "b", 0, 0, tiled=True)
    inner = lambda y, _: (y + lax.ppermute(y, "b", [(0, 1), (1, 2), (2, 3)]), None)
    return lax.scan(inner, x, None, length=3)[0]

def run(x, n):
    x = lax.psum(x, ("a", "b"))
    return lax.fori_loop(0, n, body, x)

f = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=(P(("a", "b")), P()), out_specs=P(("a", "b")), check_vma=False))
text = f.lower(jax.ShapeDtypeStruct((64, 32), jnp.float32), 5).compile().as_text()
print(json.dumps([asdict(c) | {"sent": c.sent} for c in collectives(text)]))
"""


def test_those_of_a_program_with_one_of_each():
    """Kinds, bytes and how often, against what was written: 8 x 32 numbers of 4 bytes on each of 8 devices."""
    env = os.environ | {"XLA_FLAGS": simulated(8), "JAX_PLATFORMS": "cpu"}
    env |= {"PYTHONPATH": str(Path(scaling.__file__).parent)}
    done = subprocess.run([sys.executable, "-c", EIGHT], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    rows = 8 * 32 * 4
    expected = [
        ("all-reduce", 8, 1, False, 2 * rows * 7 / 8),
        ("all-reduce", 4, 1, True, 2 * rows * 3 / 4),
        ("all-gather", 2, 1, True, 2 * rows * 1 / 2),
        ("reduce-scatter", 8, 1, True, rows / 8 * 7),
        ("all-to-all", 4, 1, True, rows * 3 / 4),
    ]
    told = [(c["kind"], len(c["group"]), c["times"], c["looped"], c["sent"]) for c in found]
    permute = [c for c in told if c[0] == "collective-permute"]
    assert sorted(c for c in told if c[0] != "collective-permute") == sorted(expected)
    assert [(c[2], c[3], c[4]) for c in permute] == [(3, True, 3 * rows)]
    assert {tuple(c["group"]) for c in found} == {tuple(range(8)), (0, 1, 2, 3), (0, 4), ()}
    assert [c["pairs"] for c in found if c["pairs"]] == [[[0, 1], [1, 2], [2, 3], [4, 5], [5, 6], [6, 7]]]
    assert {c["kind"] for c in found} == set(KINDS)
    assert {c["dtypes"] for c in found} == {"f32"}


FORMS = """
%all-reduce-scatter.1 (i: bf16[16,8], j: f32[16]) -> (bf16[2,8], f32[2]) {
  %s = (bf16[16,8]{1,0:T(8,128)(2,1)}, f32[16]{0}) all-reduce(%i, %j), replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  %slice = bf16[2,8]{1,0} dynamic-slice(%s, %n)
  ROOT %both = (bf16[2,8]{1,0:T(8,128)(2,1)}, f32[2]{0}) tuple(%slice, %other)
}
%body (p: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %g = (bf16[4,8]{1,0:T(8,128)}, bf16[16,8]{1,0:T(8)}) all-gather-start(%x), replica_groups=mesh['a'=2,'b'=4] {'b'}
  %d = bf16[16,8]{1,0} all-gather-done(%g)
  %r = (bf16[4,8]{1,0}, /*index=1*/f32[]{:T(128)}) all-reduce(%x, %y), replica_groups=mesh['a'=4,'b'=4] {'a':(1)2, 'b'}
  %p = (u8[4,8]{1,0}, u8[4,8]{1,0}, u32[], u32[]) collective-permute-start(%z), source_target_pairs={{0,1},{1,0}}
  %f = (bf16[2,8]{1,0}, f32[2]{0}) fusion(%q), kind=kCustom, calls=%all-reduce-scatter.1
  %h = bf16[8,2]{1,0} all-gather(%u), replica_groups=mesh['a'=8,'b'=2], device_ids=([2,8]T(1,0)) {'a'}, dimensions={0}
  %s = (bf16[4,8]{1,0}, f32[2]{0}, bf16[4,8]{1,0}, f32[2]{0}) all-reduce-start(%x, %y), replica_groups={{0,1}}
  %one = f32[4]{0} all-reduce-start(%y), replica_groups={{0,1}}
  %alone = f32[4] all-reduce(%w), replica_groups={{0},{1}}
  %e = f32[2]{0:T(8)} get-tuple-element(%s), index=1
  %v = f32[1,2]{1,0} bitcast(%e)
}
ENTRY %main (a: s32[]) -> s32[] {
  %w = (s32[], bf16[4,8]) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"7"}}
}
"""


def test_started_collectives_and_groups_of_a_mesh():
    """The forms of programs of TPUs and GPUs. The outermost loop's trips are the steps: they do not multiply."""
    gather, reduce, permute, scatter, transposed, started, one = collectives(FORMS)
    assert (gather.result, gather.group, gather.times, gather.sent) == (16 * 8 * 2, (0, 1, 2, 3), 1, 192)
    assert (reduce.result, reduce.group, reduce.dtypes) == (4 * 8 * 2 + 4, (0, 1, 2, 3, 8, 9, 10, 11), "bf16, f32")
    assert (permute.result, permute.pairs, permute.sent) == (32, ((0, 1), (1, 0)), 32)
    assert (scatter.kind, scatter.group, scatter.result, scatter.sent) == ("reduce-scatter", tuple(range(8)), 40, 280)
    assert (transposed.group, transposed.sent) == (tuple(range(8)), 28)
    assert (started.result, started.sent, one.result) == (4 * 8 * 2 + 2 * 4, 72, 16)  # with and without what goes in
    lines = summary([gather, gather, reduce, permute])
    assert [line.split(":")[0].strip() for line in lines] == [
        "2 all-gather of bf16 over 4 devices",
        "1 all-reduce of bf16, f32 over 8 devices",
        "1 collective-permute of u8 over 2 pairs",
    ]


def test_kernels_are_what_a_loop_starts():
    """Eight of the loop's eleven lines: what ends a started one, and names for what is there, start nothing."""
    assert kernels(FORMS) == 8
    assert kernels("ENTRY %main (a: f32[]) -> f32[] {\n  ROOT %b = f32[] add(%a, %a)\n}\n") == 0


def test_a_program_of_one_device_has_none():
    assert collectives("ENTRY %main (a: f32[]) -> f32[] {\n  ROOT %b = f32[] add(%a, %a)\n}\n") == []


def test_seconds_of_links_within_and_between_hosts():
    """By hand: 4 devices a host, 100 bytes a second within and 10 beyond."""
    machine = scaling.Machine(flops=1.0, link=100.0, near=4, far=10.0)
    assert machine.seconds([(range(4), (), 300.0)]) == pytest.approx(3.0)
    # each hands 3/4 of 400 bytes round its host, and carries a quarter to the other, half of it at a time
    assert machine.seconds([(range(8), (), 350.0)]) == pytest.approx(3.0 + 100 / 2 / 10)
    assert machine.seconds([((0, 4, 8, 12), (), 300.0)]) == pytest.approx(30.0)  # one of each host
    assert machine.seconds([((0, 2, 4, 6), (), 300.0)]) == pytest.approx(2.0 + 200 / 2 / 10)  # two of each
    assert machine.seconds([((), ((0, 1), (4, 5)), 50.0)]) == pytest.approx(0.5)
    assert machine.seconds([((), ((0, 1), (3, 4)), 50.0)]) == pytest.approx(5.0)
    assert scaling.Machine(1.0, 100.0).seconds([(range(64), (), 630.0)]) == pytest.approx(6.3)  # all are near
