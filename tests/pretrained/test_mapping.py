"""Layouts there and back, and what is said of every tensor that is not as expected."""

import numpy as np
import pytest

from spatial_clap_jax.errors import InputError
from spatial_clap_jax.pretrained.files import common_prefix
from spatial_clap_jax.pretrained.mapping import (
    Entry,
    Left,
    Taking,
    batch_norm,
    dense,
    leaf_shapes,
    nested,
    norm,
    renamed,
    write_entries,
)


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("entry", "theirs", "ours"),
    [
        (Entry("a", ("x",)), [(5,)], (5,)),
        (Entry("a", ("x",)), [()], ()),
        (Entry("a", ("x",)), [(3, 4)], (3, 4)),
        (Entry("a", ("x", "y", "z")), [(5,)] * 3, (15,)),
        (Entry("a", ("x",), "matrix"), [(3, 4)], (4, 3)),
        (Entry("a", ("x", "y", "z"), "matrix"), [(3, 4)] * 3, (4, 9)),
        (Entry("a", ("x",), "convolution"), [(6, 5, 3, 2)], (3, 2, 5, 6)),
        (Entry("a", ("x",), "patches", (4, 12)), [(6, 1, 4, 12)], (48, 6)),
        (Entry("a", ("x",), "patches"), [(6, 5, 1, 1)], (5, 6)),
        (Entry("a", ("x",), "token"), [(1, 1, 5)], (5,)),
    ],
)
def test_every_layout_goes_there_and_back(entry, theirs, ours):
    parts = [numbers(*shape, seed=i) for i, shape in enumerate(theirs)]
    array = entry.from_theirs(parts)
    assert array.shape == ours
    assert array.dtype == np.float32
    assert array.flags.c_contiguous
    back = entry.to_theirs(array)
    assert all(part.flags.c_contiguous for part in back)
    for part, expected in zip(back, parts, strict=True):
        assert part.shape == expected.shape
        np.testing.assert_array_equal(part, expected)
    np.testing.assert_array_equal(entry.from_theirs(back), array)


def test_layouts_by_hand():
    matrix = Entry("a", ("x", "y"), "matrix")
    out, x, y = np.arange(2.0), [[1, 2, 3], [4, 5, 6]], [[7, 8, 9], [10, 11, 12]]
    joined = matrix.from_theirs([np.array(x), np.array(y)])
    assert joined.tolist() == [[1, 4, 7, 10], [2, 5, 8, 11], [3, 6, 9, 12]]
    kernel = numbers(6, 5, 3, 2)
    turned = Entry("a", ("x",), "convolution").from_theirs([kernel])
    assert turned[2, 1, 4, 3] == kernel[3, 4, 2, 1]
    patches = Entry("a", ("x",), "patches", (2, 3)).from_theirs([numbers(4, 1, 2, 3)])
    assert patches[1 * 3 + 2, 3] == numbers(4, 1, 2, 3)[3, 0, 1, 2]
    assert Entry("a", ("x",)).from_theirs([out.astype(np.float16)]).tolist() == [0, 1]


ENTRIES = [*dense("params/layer", "q", "k"), *batch_norm("bn", "norm"), *norm("params/n", "ln")]
SHAPES = {
    "params/layer/kernel": (3, 4),
    "params/layer/bias": (4,),
    **{f"params/bn/{part}": (5,) for part in ("scale", "bias")},
    **{f"batch_stats/bn/{part}": (5,) for part in ("mean", "var")},
    **{f"params/n/{part}": (3,) for part in ("scale", "bias")},
}


def tensors(**changes):
    arrays = {path: numbers(*shape, seed=len(path)) for path, shape in SHAPES.items()}
    changed = {name.replace("_of_", "."): array for name, array in changes.items()}
    return write_entries(ENTRIES, arrays) | changed


def test_all_tensors_are_taken_and_told():
    there = tensors(weight_of_head=numbers(2), counter=np.array(7))
    assert set(there) == {
        *("q.weight", "q.bias", "k.weight", "k.bias", "ln.weight", "ln.bias", "counter"),
        *(f"norm.{part}" for part in ("weight", "bias", "running_mean", "running_var")),
        "weight.head",
    }
    taking = Taking("file.pt", there)
    arrays = taking.take(ENTRIES, SHAPES)
    assert {path: array.shape for path, array in arrays.items()} == SHAPES
    np.testing.assert_array_equal(arrays["batch_stats/bn/var"], there["norm.running_var"])
    np.testing.assert_array_equal(arrays["params/layer/kernel"][:, 2:], there["k.weight"].T)
    taking.make("params/extra", "drawn")
    report = taking.finish([Left(r"weight\..*", "heads"), Left("counter", "counters")])
    assert report.taken[0] == ("params/layer/kernel", "q.weight + k.weight", (3, 4))
    assert report.left == (("counter", "counters"), ("weight.head", "heads"))
    assert report.summary == (
        "file.pt: 8 arrays of 42 numbers taken; 2 tensors left (counters, heads); 1 made (drawn)"
    )
    assert report.lines[0] == "params/layer/kernel [3, 4] <- q.weight + k.weight"
    assert report.lines[8:] == [
        "left: counter (counters)",
        "left: weight.head (heads)",
        "made: params/extra (drawn)",
    ]


def test_a_report_with_nothing_left_or_made_says_no_more():
    taking = Taking("a", {"x": numbers(2)})
    taking.take([Entry("params/x", ("x",))], {"params/x": (2,)})
    assert taking.finish().summary == "a: 1 arrays of 2 numbers taken"


def test_missing_tensors_are_all_listed():
    there = tensors()
    del there["k.weight"], there["norm.running_var"]
    with pytest.raises(InputError, match=r"^a\.pt: lacks k\.weight, norm\.running_var; every"):
        Taking("a.pt", there).take(ENTRIES, SHAPES)


def test_unexpected_tensors_are_all_listed_in_order():
    taking = Taking("a.pt", tensors(zeta=numbers(1), alpha=numbers(1), headed=numbers(1)))
    taking.take(ENTRIES, SHAPES)
    # A rule holds for a whole name.
    with pytest.raises(InputError, match=r"^a\.pt: has alpha, headed, zeta, which this archit"):
        taking.finish([Left("head", "heads")])


def test_a_long_list_is_cut():
    with pytest.raises(InputError, match=r"x038, x039 and 2 more, which"):
        Taking("a", {f"x{i:03d}": numbers(1) for i in range(42)}).finish()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"k_of_weight": numbers(3, 3)},
            r"q\.weight \+ k\.weight has shape \[2, 3\] \+ \[3, 3\], which does not fit "
            r"params/layer/kernel \[3, 4\]",
        ),
        ({"k_of_weight": numbers(2, 4)}, r"has shape \[2, 3\] \+ \[2, 4\], which does not fit"),
        ({"k_of_weight": numbers(2)}, r"has shape \[2, 3\] \+ \[2\], which does not fit"),
        ({"k_of_bias": np.float32(1)}, r"has shape \[2\] \+ \[\], which does not fit"),
        ({"ln_of_bias": numbers(4)}, r"ln\.bias has shape \[4\], which .* params/n/bias \[3\];"),
        ({"ln_of_bias": numbers(3, 1)}, r"ln\.bias has shape \[3, 1\], which"),
        ({"ln_of_bias": np.array([0, np.nan, 0])}, r"ln\.bias holds NaN or infinite numbers"),
        ({"norm_of_weight": np.full(5, -np.inf)}, r"norm\.weight holds NaN or infinite"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(changes, message):
    with pytest.raises(InputError, match=message):
        Taking("a", tensors(**changes)).take(ENTRIES, SHAPES)


@pytest.mark.parametrize("shape", [(6, 1, 12, 4), (6, 3, 4, 4), (6, 48), (6, 1, 48), (), (48,)])
def test_patches_of_another_kernel_are_refused(shape):
    taking = Taking("a", {"x": numbers(*shape)})
    with pytest.raises(InputError, match=r"x has shape .*, which does not fit a \[48, 6\]"):
        taking.take([Entry("a", ("x",), "patches", (4, 12))], {"a": (48, 6)})


def test_a_float64_too_large_for_us_is_no_number():
    taking = Taking("a", {"x": np.array([1e300])})
    with (
        np.errstate(over="ignore"),
        pytest.raises(InputError, match="x holds NaN or infinite numbers"),
    ):
        taking.take([Entry("a", ("x",))], {"a": (1,)})


def test_entries_and_shapes_are_of_one_model():
    with pytest.raises(AssertionError, match="params/n/bias"):
        Taking("a", tensors()).take(ENTRIES[:-1], SHAPES)


def test_renaming_must_not_join_two():
    given = {"module.a": numbers(1), "b": numbers(2)}
    assert list(renamed(given, lambda name: name.removeprefix("module."))) == ["a", "b"]
    with pytest.raises(InputError, match=r"^a: another tensor is called a too; remove one"):
        renamed({**given, "a": numbers(1)}, lambda name: name.removeprefix("module."))


def test_the_prefix_before_one_name():
    names = {"text.x.weight": numbers(1), "text.y.weight": numbers(1)}
    assert common_prefix(names, "x.weight", "a") == "text."
    assert common_prefix({"x.weight": numbers(1)}, "x.weight", "a") == ""
    with pytest.raises(InputError, match=r"^a: tensors that end in z\.weight: none; one is"):
        common_prefix(names, "z.weight", "a")
    with pytest.raises(InputError, match=r"end in weight: text\.x\., text\.y\.; one is expected"):
        common_prefix(names, "weight", "a")


def test_nested_and_its_paths():
    arrays = {"params/a/kernel": numbers(2, 3), "params/b": numbers(1), "batch_stats/a": numbers(4)}
    tree = nested(arrays)
    assert tree["params"]["a"]["kernel"] is arrays["params/a/kernel"]
    assert leaf_shapes(tree) == {path: array.shape for path, array in arrays.items()}
