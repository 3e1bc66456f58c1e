from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from research.errors import UserError
from research.layers.cores import Performer
from research.layers.dropout import StochasticDepth
from research.layers.norms import LayerNorm
from research.layers.windows import PositionAlone, WindowAttention
from research.models.image_classifier import ImageClassifier
from research.models.swin import (
    MapPosition,
    PatchEmbedding,
    PatchMerging,
    PatchMergingPostNorm,
    Swin,
    resize,
    swin_v2,
)
from tests.layers import slow
from tests.models.training import told_to_train

B = dict(embed_dim=128, depths=(2, 2, 18, 2), num_heads=(4, 8, 16, 32))
L = dict(embed_dim=192, depths=(2, 2, 18, 2), num_heads=(6, 12, 24, 48))
SMALL = dict(embed_dim=4, depths=(1, 2), num_heads=(1, 2), window_size=2)
IMAGE = jax.random.normal(jax.random.key(0), (2, 19, 32, 3))


def shapes(model, size=32, channels=3):
    image = jnp.zeros((1, size, size, channels))
    return jax.eval_shape(lambda: model.init(jax.random.key(0), image))


@pytest.mark.parametrize(
    ("swin", "size", "parameters"),
    [
        (Swin(), 224, 28_288_354),
        (Swin(), 33, 28_288_354),
        (Swin(depths=(2, 2, 18, 2)), 32, 49_606_258),
        (Swin(**B), 32, 87_768_224),
        (Swin(**L), 32, 196_532_476),
        (Swin(**B, window_size=12), 32, 87_903_584),
        (Swin(**L, window_size=12), 32, 196_735_516),
        (swin_v2(), 32, 28_347_154),
    ],
    ids=["T", "T-33", "S", "B", "L", "B-384", "L-384", "v2-T"],
)
def test_published_sizes(swin, size, parameters):
    """At whatever size of images, for windows are no larger for larger ones."""
    leaves = jax.tree.leaves(shapes(ImageClassifier(swin), size))
    assert sum(leaf.size for leaf in leaves) == parameters


@pytest.mark.parametrize(
    ("swin", "size", "gigaflops"),
    [
        (Swin(), 224, 4.5),
        (Swin(**B, window_size=12), 384, 47.0),
    ],
    ids=["T", "B-384"],
)
def test_published_products(swin, size, gigaflops):
    """Products of the linear layers and of attention, which their FLOPs are."""
    image = jax.ShapeDtypeStruct((1, size, size, 3), jnp.float32)
    model = ImageClassifier(swin)
    jaxpr = jax.make_jaxpr(model.apply)(shapes(model, size), image)
    assert abs(products(jaxpr.jaxpr) / 1e9 - gigaflops) < 0.06 * gigaflops


def products(jaxpr):
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            left = equation.invars[0].aval.shape
            depth = np.prod([left[axis] for axis in contracted])
            total += depth * np.prod(equation.outvars[0].aval.shape)
        for inner in jax.tree.leaves(
            list(equation.params.values()),
            is_leaf=lambda part: hasattr(part, "jaxpr") or hasattr(part, "eqns"),
        ):
            inner = getattr(inner, "jaxpr", inner)
            total += products(inner) if hasattr(inner, "eqns") else 0
    return total


def test_maps_have_their_strides():
    """Rounded up, where the strides do not divide."""
    swin = Swin(4, (1, 1, 1, 1), (1, 1, 2, 2), 2)
    image = jax.ShapeDtypeStruct((1, 33, 64, 3), jnp.float32)
    maps, _ = jax.eval_shape(lambda x: swin.init_with_output(slow.key(0), x), image)
    assert [x.shape[1:] for x in maps] == [
        (9, 16, 4),
        (5, 8, 8),
        (3, 4, 16),
        (2, 2, 32),
    ]


def run(model, variables, image=IMAGE, **rngs):
    return slow.jit(lambda v, rngs: model.apply(v, image, bool(rngs), rngs=rngs))(
        variables, rngs
    )


@pytest.fixture(scope="module")
def small():
    swin = Swin(**SMALL)
    return swin, {"params": slow.random_params(swin, IMAGE)}


def test_patches_are_a_convolution():
    module = PatchEmbedding(4, 5)
    params = slow.random_params(module, IMAGE)
    padded = np.pad(np.float64(IMAGE), ((0, 0), (0, 1), (0, 0), (0, 0)))
    expected = np.zeros((2, 5, 8, 5)) + np.float64(params["bias"])
    for row, column in np.ndindex(5, 8):
        square = padded[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        expected[:, row, column] += np.tensordot(
            square, np.float64(params["kernel"]), 3
        )
    np.testing.assert_allclose(slow.apply(module, params, IMAGE), expected, atol=1e-5)


@pytest.mark.parametrize("merge", [PatchMerging, PatchMergingPostNorm])
def test_merging_takes_places_by_column(merge):
    x = jax.random.normal(jax.random.key(1), (1, 3, 4, 2))
    params = slow.random_params(merge(), x)
    padded = np.pad(np.float64(x), ((0, 0), (0, 1), (0, 0), (0, 0)))
    parts = [padded[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
    expected = np.concatenate(parts, axis=-1)
    kernel = np.float64(params["reduction"]["kernel"])

    def norm(h):
        h = h - h.mean(-1, keepdims=True)
        h = h / np.sqrt((h**2).mean(-1, keepdims=True) + 1e-5)
        scale, bias = (np.float64(params["norm"][name]) for name in ("scale", "bias"))
        return h * scale + bias

    expected = (
        norm(expected) @ kernel if merge is PatchMerging else norm(expected @ kernel)
    )
    np.testing.assert_allclose(slow.apply(merge(), params, x), expected, atol=1e-5)


def test_chosen_maps_with_norms(small):
    swin, variables = small
    first, last = map(np.asarray, run(swin, variables))
    (only,) = run(swin.clone(out_stages=(1,)), variables)
    np.testing.assert_array_equal(only, last)
    normed = swin.clone(out_norm=LayerNorm)
    norms = {
        f"out_norm_{i}": {"scale": jnp.full(4 * 2**i, 2.0), "bias": jnp.ones(4 * 2**i)}
        for i in range(2)
    }
    maps = run(normed, {"params": variables["params"] | norms})
    for plain, there in zip((first, last), map(np.asarray, maps), strict=True):
        np.testing.assert_allclose(there.mean(-1), 1.0, atol=1e-5)
        centred = plain - plain.mean(-1, keepdims=True)
        expected = 2 * centred / centred.std(-1, keepdims=True) + 1
        np.testing.assert_allclose(there, expected, atol=1e-3)


def test_blocks_take_turns(small):
    """Every second one is shifted, by half a window rounded down."""
    shifts, built = [], WindowAttention

    def spy(**settings):
        shifts.append((settings["window_size"], settings["shift"]))
        return built(**settings)

    def of(**changed):
        shifts.clear()
        swin = Swin(8, (2, 3), (1, 1), 5, attention=spy).clone(**changed)
        shapes(swin)
        return list(shifts)

    assert of() == [(5, 0), (5, 2), (5, 0), (5, 2), (5, 0)]
    assert of(shifts=(0.0,)) == [(5, 0)] * 5
    assert of(window_size=(4, 2))[1:4] == [(4, 2), (2, 0), (2, 1)]
    # Made for images of 40 pixels, whose maps are of 10 and 5.
    assert of(image_size=40) == [(5, 0), (5, 2), (5, 0), (5, 0), (5, 0)]
    # Of 32 pixels: of 8 and 4.
    assert of(image_size=32) == [(5, 0), (5, 2), (4, 0), (4, 0), (4, 0)]


def test_paths_are_dropped_more_and_more(small):
    swin, variables = small
    rates = []

    def note(next_call, args, kwargs, context):
        if isinstance(context.module, StochasticDepth):
            rates.append(context.module.rate)
        return next_call(*args, **kwargs)

    model = ImageClassifier(swin.clone(depths=(2, 3), drop_path_rate=0.4), 3)
    with nn.intercept_methods(note):
        shapes(model)
    np.testing.assert_allclose(rates, np.repeat([0, 0.1, 0.2, 0.3, 0.4], 2))
    model = swin.clone(drop_path_rate=0.5)
    drops = [run(model, variables, dropout=jax.random.key(seed))[-1] for seed in (0, 1)]
    assert (np.asarray(drops[0]) != np.asarray(drops[1])).any()
    np.testing.assert_array_equal(run(model, variables)[-1], run(swin, variables)[-1])


def test_every_part_is_told_to_train(small):
    swin, variables = small
    for train in (True, False):
        with told_to_train() as told:
            jax.eval_shape(
                partial(swin.apply, train=train),
                variables,
                IMAGE,
                rngs={"dropout": slow.key(0)},
            )
        assert set(told.values()) == {train}, told
        block = "stage_0_block_0"
        parts = ("mixer/attention", "mlp", "mixer_residual/drop_path")
        assert {f"{block}/{part}" for part in parts} | {"dropout"} <= told.keys()


def test_the_ablations_of_the_paper(small):
    """Of shifts, positions and attention: each is another function, of its own size."""
    swin, variables = small
    count = partial(jax.tree.reduce, lambda total, leaf: total + leaf.size)
    size = count(shapes(swin), 0)
    tables = 9 * (1 + 2 + 2)
    absolute = partial(MapPosition, size=(5, 8))

    def sized(**changed):
        model = swin.clone(**changed)
        return count(jax.eval_shape(lambda: model.init(slow.key(0), IMAGE)), 0) - size

    no_position = partial(WindowAttention, position=None)
    assert sized(shifts=(0.0,)) == 0
    assert sized(attention=no_position) == -tables
    assert sized(attention=no_position, absolute=absolute) == 160 - tables
    assert sized(absolute=absolute) == 160
    assert sized(attention=partial(WindowAttention, match=PositionAlone)) == 0
    expected = run(swin, variables)[-1]
    for changed in (
        dict(shifts=(0.0,)),
        dict(attention=partial(WindowAttention, match=PositionAlone)),
    ):
        assert np.abs(run(swin.clone(**changed), variables)[-1] - expected).max() > 1e-3


def test_another_core():
    swin = Swin(4, (2,), (1,), 2)
    core = partial(WindowAttention, core=Performer(4), position=None)
    model = ImageClassifier(swin.clone(attention=core), 3)
    variables = slow.jit(model.init)(slow.key(0), IMAGE)
    assert np.isfinite(run(model, variables)).all()
    with pytest.raises(UserError, match="Performer has no logits to add a bias to"):
        shapes(swin.clone(attention=partial(WindowAttention, core=Performer(4))))


def test_classifier_is_a_norm_a_mean_and_a_head(small):
    swin, variables = small
    model = ImageClassifier(swin, 3)
    params = slow.random_params(model, IMAGE) | {"backbone": variables["params"]}
    last = np.float64(run(swin, variables)[-1])
    last = last - last.mean(-1, keepdims=True)
    last /= np.sqrt((last**2).mean(-1, keepdims=True) + 1e-5)
    scale, bias = (np.float64(params["norm"][name]) for name in ("scale", "bias"))
    pooled = (last * scale + bias).mean((1, 2))
    logits = run(model, {"params": params})
    np.testing.assert_allclose(logits, slow.dense(params["logits"], pooled), atol=1e-4)
    headless = {name: part for name, part in params.items() if name != "logits"}
    vector = run(model.clone(num_classes=None), {"params": headless})
    np.testing.assert_allclose(vector, pooled, atol=1e-4)


@pytest.mark.parametrize("make", [Swin, swin_v2])
def test_bfloat16(make):
    swin = make(**SMALL, dtype="bfloat16")
    variables = {"params": slow.random_params(swin, IMAGE)}
    maps = jax.eval_shape(swin.apply, variables, IMAGE)
    assert {x.dtype for x in maps} == {jnp.dtype("bfloat16")}


def test_remat_computes_the_same():
    swin = Swin(4, (2,), (1,), 2, drop_path_rate=0.0)
    variables = {"params": slow.random_params(swin, IMAGE)}

    @partial(slow.jit, static_argnums=0)
    def gradient(swin, variables):
        return jax.grad(lambda v: jnp.square(swin.apply(v, IMAGE, True)[-1]).sum())(
            variables
        )

    one, other = gradient(swin, variables), gradient(swin.clone(remat=True), variables)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), one, other)


def test_v2_starts_as_the_identity():
    """Norms after the branches begin at zero."""
    swin = swin_v2(**SMALL | dict(depths=(3,), num_heads=(1,)))
    variables = slow.jit(swin.init)(slow.key(0), IMAGE)
    (there,) = run(swin, variables)
    (none,) = run(swin.clone(depths=(0,)), variables)
    np.testing.assert_array_equal(there, none)
    assert np.abs(there).max() > 0


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        (dict(num_heads=(1,)), r"num_heads has 1 values for the 2 stages"),
        (dict(window_size=(2, 2, 2)), "window_size has 3 values"),
        (dict(num_heads=(3, 2)), "4 dimensions cannot be split over 3 heads"),
        (dict(absolute=partial(MapPosition, size=(4, 4))), r"\(4, 4\) .* \(8, 8\)"),
    ],
)
def test_what_does_not_go_together(changed, match):
    with pytest.raises(UserError, match=match):
        shapes(Swin(**SMALL | changed))


def test_resize_for_larger_windows():
    path = "params/stage_0_block_0/mixer/position/table"
    place = "params/absolute/embedding"
    draws = np.random.default_rng(0)
    leaves = {
        path: np.tile([[1.0, -2.0]], (25, 1)).astype(np.float32),
        place: draws.normal(size=(16, 3)).astype(np.float32),
        "params/norm/scale": np.ones(3, np.float32),
    }
    expected = {
        path: jax.ShapeDtypeStruct((81, 2), jnp.float32),
        place: jax.ShapeDtypeStruct((64, 3), jnp.float32),
        "params/norm/scale": jax.ShapeDtypeStruct((5,), jnp.float32),
    }
    resized = resize(leaves, expected)
    np.testing.assert_allclose(
        resized[path], np.tile([[1.0, -2.0]], (81, 1)), rtol=1e-6
    )
    assert resized[place].shape == (64, 3)
    # Of other things only the caller knows what to do.
    assert resized["params/norm/scale"].shape == (3,)
    same = resize(leaves, {path: jax.ShapeDtypeStruct((25, 2), jnp.float32)})
    assert same[path] is leaves[path]
    # What differs between columns alone still does.
    columns = np.tile(np.arange(4, dtype=np.float32), 4)[:, None]
    wide = {place: jax.ShapeDtypeStruct((64, 1), jnp.float32)}
    square = resize({place: columns}, wide)[place].reshape(8, 8)
    np.testing.assert_allclose(square, square[:1].repeat(8, 0), atol=1e-6)
    assert (np.diff(square[0])[1:-1] > 0.2).all()
    with pytest.raises(UserError, match="26 positions, and 81 are wanted"):
        resize({path: np.zeros((26, 2))}, expected)
