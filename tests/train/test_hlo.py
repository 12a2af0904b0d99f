"""Compiled programs, written by hand and by XLA: exchanges and memory traffic, loops and all."""

from functools import partial

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from spatial_clap_jax.losses.contrastive import ring_info_nce
from spatial_clap_jax.train.hlo import KINDS, Collective, collectives, memory_bytes, parse
from spatial_clap_jax.train.sharding import MeshShape, batch_sharding, make_mesh
from spatial_clap_jax.train.topology import devices_of

SUM = """
%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %sum = f32[] add(%a, %b)
}
"""
# A loop of 7 around an all-reduce of 40 bytes; XLA for CPUs and GPUs says how often it runs.
LOOP = (
    SUM
    + """
%body (state: (s32[], f32[10])) -> (s32[], f32[10]) {
  %state = (s32[], f32[10]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %x = f32[10]{0} get-tuple-element(%state), index=1
  %reduced = f32[10]{0} all-reduce(%x), channel_id=1, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %next = (s32[], f32[10]{0}) tuple(%i, %reduced)
}

%condition (state: (s32[], f32[10])) -> pred[] {
  %state = (s32[], f32[10]{0}) parameter(0)
  %i = s32[] get-tuple-element(%state), index=0
  %last = s32[]{:T(128)} constant(7)
  ROOT %more = pred[] compare(%i, %last), direction=LT
}

ENTRY %main (start: (s32[], f32[10])) -> (s32[], f32[10]) {
  %start = (s32[], f32[10]{0}) parameter(0)
  ROOT %loop = (s32[], /*index=1*/f32[10]{0}) while(%start), condition=%condition, body=%body
}
"""
)
KNOWN = LOOP.replace("body=%body\n", 'body=%body, backend_config={"known_trip_count":{"n":"5"}}\n')
ENDLESS = LOOP.replace("direction=LT", "direction=NE")


def entry(*lines: str) -> str:
    return "ENTRY %main (p: f32[8]) -> f32[8] {\n  " + "\n  ".join(lines) + "\n}\n"


def only(text: str, devices: int = 4) -> Collective:
    (found,) = collectives(parse(text), devices)
    return found


@pytest.mark.parametrize(("text", "times"), [(LOOP, 7), (KNOWN, 5), (ENDLESS, 1)])
def test_a_loop_runs_as_often_as_it_says(text, times):
    found = only(text)
    assert found.kind == "all-reduce"
    assert found.bytes == times * 40
    # A ring of 4: three quarters are sent, twice.
    assert found.sent_bytes == times * 40 * 1.5
    # Each time the all-reduce reads 40 bytes and writes 40; the condition compares 4 + 4 to 1.
    assert memory_bytes(parse(text)) == times * (80 + 9)


@pytest.mark.parametrize(
    ("line", "kind", "size", "sent"),
    [
        ("%r = f32[8]{0} all-reduce(%p), replica_groups={}", "all-reduce", 32, 48),
        (
            "%r = (f32[8]{0}, bf16[2,3]{1,0}) all-reduce(%p, %q), replica_groups={{0,1},{2,3}}",
            "all-reduce",
            44,
            44,
        ),
        (
            "%r = f32[32]{0} all-gather(%p), replica_groups=[1,4]<=[4], dimensions={0}",
            "all-gather",
            128,
            96,
        ),
        (
            "%r = f32[2]{0} reduce-scatter(%p), replica_groups=mesh['a'=2,'b'=2] {'a','b'}, "
            "dimensions={0}",
            "reduce-scatter",
            8,
            24,
        ),
        (
            "%r = pred[8]{0} all-to-all(%p), replica_groups=mesh['a'=2,'b'=2] {'b'}",
            "all-to-all",
            8,
            4,
        ),
        (
            "%r = s8[8]{0} collective-permute(%p), source_target_pairs={{0,1},{1,0}}",
            "collective-permute",
            8,
            8,
        ),
        # Begun here, ended elsewhere: counted once, by its result.
        (
            "%r = (f32[8]{0}, f32[32]{0}) all-gather-start(%p), replica_groups={{0,1,2,3}}\n"
            "  %d = f32[32]{0} all-gather-done(%r)",
            "all-gather",
            128,
            96,
        ),
        (
            "%r = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%p), "
            "source_target_pairs={{0,1}}\n  %d = f32[8]{0} collective-permute-done(%r)",
            "collective-permute",
            32,
            32,
        ),
        (
            "%r = f32[8]{0} all-reduce-start(%p), replica_groups={{0,1,2,3}}\n"
            "  %d = f32[8]{0} all-reduce-done(%r)",
            "all-reduce",
            32,
            48,
        ),
        (
            "%r = ((f32[32]{0}), f32[8]{0}) reduce-scatter-start(%p), replica_groups={{0,1,2,3}}\n"
            "  %d = f32[8]{0} reduce-scatter-done(%r)",
            "reduce-scatter",
            32,
            96,
        ),
        (
            "%r = ((f32[16]{0}, f32[16]{0}), (f32[16]{0}, f32[16]{0}), u32[]) "
            "all-to-all-start(%p, %q), replica_groups=[2,2]<=[4]\n"
            "  %d = (f32[16]{0}, f32[16]{0}) all-to-all-done(%r)",
            "all-to-all",
            128,
            64,
        ),
    ],
)
def test_every_kind_of_exchange(line, kind, size, sent):
    assert only(entry("%p = f32[8]{0} parameter(0)", line)) == Collective(kind, size, sent, False)


def test_a_device_alone_exchanges_nothing():
    text = entry("%r = f32[8]{0} all-reduce(%p), replica_groups={{0},{1}}")
    assert collectives(parse(text), 2) == []


@pytest.mark.parametrize(
    ("target", "word", "kind", "sent"),
    [
        # Two slices: half of the result is sent, twice.
        ('"{1,2}x{0:3}"', "ALL_REDUCE", "all-reduce", 32),
        ("{{7->15},{15->7}}", "ONE_TO_ONE", "collective-permute", 32),
        # What nobody knows yet is told by its name.
        ('"{1,2}x{0:3}"', "MANY_TO_ONE", "many-to-one", 32),
    ],
)
def test_between_slices(target, word, kind, sent):
    attributes = (
        f"channel_id=1, is_host_transfer=true, frontend_attributes={{_xla_megascale_target={target}"
        f',_xla_megascale_transfer_type="{word}"}}'
    )
    text = entry(
        "%p = f32[8]{0} parameter(0)",
        f"%s = (f32[8]{{0}}, u32[], token[]) send(%p, %t), {attributes}",
        f"%r = (f32[8]{{0}}, u32[], token[]) recv(%t), {attributes}",
    )
    assert only(text, devices=8) == Collective(kind, 32, sent, True)


@pytest.mark.slow
def test_a_ring_over_two_slices_crosses_the_network():
    """As XLA's compiler for TPUs writes it."""
    pytest.importorskip("libtpu", reason="XLA's compiler for TPUs is not installed (extra `tpu`)")
    devices, slices = devices_of("v5e:2x2*2")
    mesh = make_mesh(devices, MeshShape(replica=slices))
    rows, whole = batch_sharding(mesh), NamedSharding(mesh, PartitionSpec())
    embeddings = jax.ShapeDtypeStruct((64, 16), jnp.float32, sharding=rows)
    scale = jax.ShapeDtypeStruct((), jnp.float32, sharding=whole)
    loss = jax.jit(partial(ring_info_nce, mesh=mesh), out_shardings=whole)
    text = loss.lower(embeddings, embeddings, scale).compile().as_text() or ""
    found = [one for one in collectives(parse(text), mesh.size) if one.between_slices]
    passed = [one.bytes for one in found if one.kind == "collective-permute"]
    # A chip's eight rows of text.
    assert max(passed) >= 8 * 16 * 4
    assert {one.kind for one in found} <= set(KINDS)


def test_pieces_of_one_exchange_count_once():
    gather = (
        "  ROOT %g = f32[32]{0} all-gather(%a), channel_id=9, replica_groups={{0,1,2,3}}, "
        'frontend_attributes={chain_id="0"}\n}\n'
    )
    pieces = "".join(
        f"%{name} (a: f32[8]) -> f32[32] {{\n  %a = f32[8]{{0}} parameter(0)\n{gather}"
        for name in ("first", "middle")
    )
    # A later piece runs beside the work of a loop that it has nothing to do with.
    loop = LOOP.replace(
        "  ROOT %next",
        "  %part = f32[32]{0} fusion(%x), kind=kCustom, calls=%middle\n  ROOT %next",
    ).replace(
        "  ROOT %loop",
        "  %begin = f32[32]{0} fusion(%start), kind=kCustom, calls=%first\n  ROOT %loop",
    )
    found = {c.kind: c.bytes for c in collectives(parse(pieces + loop), 4)}
    assert found == {"all-reduce": 7 * 40, "all-gather": 128}


def test_exchanges_of_one_channel_that_are_no_pieces():
    # Those written by hand in a shard_map all have channel 1.
    text = entry(
        "%p = f32[8]{0} parameter(0)",
        "%q = f32[8]{0} collective-permute(%p), channel_id=1, source_target_pairs={{0,1}}",
        "ROOT %r = f32[8]{0} collective-permute(%q), channel_id=1, source_target_pairs={{0,1}}",
    )
    assert [c.bytes for c in collectives(parse(text), 2)] == [32, 32]


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        # Reads 32 and 32, writes 32.
        (("%r = f32[8]{0} add(%p, %p)",), 96),
        # Other names of what is there.
        (("%r = f32[2,4]{1,0} bitcast(%p)", "%t = (f32[8]{0}) tuple(%p)"), 0),
        # In on-chip memory, S(1): only what is read costs.
        (("%r = f32[8]{0:T(8)S(1)} negate(%p)",), 32),
        # Filled up to tiles of 8 x 128.
        (("%r = f32[3,5]{1,0:T(8,128)} broadcast(%s)",), 8 * 128 * 4),
        (("%r = f32[130,3]{0,1:T(8,128)} broadcast(%s)",), 8 * 256 * 4),
        # A copy into on-chip memory and back.
        (
            (
                "%c = (f32[8]{0:S(1)}, f32[8]{0}, u32[]) copy-start(%p)",
                "%d = f32[8]{0:S(1)} copy-done(%c)",
                "%e = (f32[8]{0}, f32[8]{0:S(1)}, u32[]) copy-start(%d)",
            ),
            64,
        ),
        (("%c = ((f32[8]{0}), f32[2]{0:S(1)}, s32[]) slice-start(%p), slice={[0:2]}",), 8),
        # More for what has begun moves nothing by itself.
        (("%u = ((f32[8]{0}), f32[8]{0}, u32[]) async-update(%p, %s, %s)",), 0),
        # What is cut out is read, not all of it; what is updated is written.
        (("%r = f32[2]{0} dynamic-slice(%p, %s), dynamic_slice_sizes={2}",), 16),
        (("%q = f32[2]{0} slice(%p)", "%r = f32[8]{0} dynamic-update-slice(%p, %q, %s)"), 16 + 16),
    ],
)
def test_memory_traffic(lines, expected):
    assert memory_bytes(parse(entry("%p = f32[8]{0} parameter(0)", *lines))) == expected


def test_a_fusion_reads_what_it_cuts_and_writes_what_it_updates():
    fused = """
%fused (whole: f32[100], i: s32[], update: f32[4]) -> f32[100] {
  %whole = f32[100]{0} parameter(0)
  %i = s32[] parameter(1)
  %update = f32[4]{0} parameter(2)
  %same = f32[100]{0} bitcast(%whole)
  %cut = f32[4]{0} dynamic-slice(%same, %i), dynamic_slice_sizes={4}
  %sum = f32[4]{0} add(%cut, %update)
  ROOT %updated = f32[100]{0} dynamic-update-slice(%same, %sum, %i)
}
"""
    text = fused + entry(
        "%p = f32[100]{0} parameter(0)",
        "%s = s32[] parameter(1)",
        "%u = f32[4]{0} parameter(2)",
        "ROOT %r = f32[100]{0} fusion(%p, %s, %u), kind=kLoop, calls=%fused",
    )
    # The cut, the index and the update are read, the update is written.
    assert memory_bytes(parse(text)) == 16 + 4 + 16 + 16


def test_beside_xlas_own_count():
    """XLA counts loop-free programs rightly, and a loop's body once."""
    x, w = jnp.ones((64, 128)), jnp.ones((128, 128))

    def once(x, w):
        return jnp.tanh(x @ w)

    def often(x, w):
        return jax.lax.scan(lambda c, _: (once(c, w), None), x, None, length=11)[0]

    def counted(function) -> tuple[float, float]:
        compiled = jax.jit(function).lower(x, w).compile()
        analysis = compiled.cost_analysis()
        assert analysis is not None
        return memory_bytes(parse(compiled.as_text() or "")), analysis["bytes accessed"]

    ours, theirs = counted(once)
    assert ours == pytest.approx(theirs, rel=0.02)
    looped, body_once = counted(often)
    assert looped == pytest.approx(11 * ours, rel=0.25)
    assert body_once < 0.3 * looped
