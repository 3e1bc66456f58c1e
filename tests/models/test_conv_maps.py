import jax
import jax.numpy as jnp
import numpy as np

from research.models.conv_maps import ConvMaps
from tests.layers import slow


def test_maps_halve_and_see_their_neighbourhood_alone():
    model = ConvMaps((8, 16), num_convs=2)
    image = jax.random.normal(jax.random.key(0), (2, 13, 16, 3))
    variables = jax.jit(model.init)(jax.random.key(1), image)
    maps = jax.jit(model.apply)(variables, image)
    assert [m.shape for m in maps] == [(2, 7, 8, 8), (2, 4, 4, 16)]
    kernels = variables["params"]
    assert kernels["conv_1_1"]["kernel"].shape == (3, 3, 16, 16)
    assert "bias" not in kernels["conv_0_0"]

    def without_norms(image):
        """What a pixel of the second map depends on: norms see the whole image."""
        plain = ConvMaps((8, 16), norm=lambda dtype, name: lambda x: x)
        shared = {k: v for k, v in kernels.items() if k.startswith("conv")}
        return plain.apply({"params": shared}, image)[1][0, 5, 5].sum()

    large = jax.random.normal(jax.random.key(2), (1, 40, 48, 3))
    seen = np.abs(jax.jit(jax.grad(without_norms))(large))[0].sum(-1) > 0
    # To each side one pixel, then two, two, and four.
    for place in np.nonzero(seen):
        assert (place.min(), place.max()) == (20 - 9, 20 + 9)
    assert jnp.isfinite(maps[1]).all()


def test_convolutions_but_the_first_are_added_to_what_they_read():
    model = ConvMaps((8, 16), num_convs=2)
    image = jnp.asarray(np.random.default_rng(0).normal(size=(2, 7, 6, 3)), jnp.float32)
    params = slow.random_params(model, image)
    maps, x = slow.apply(model, params, image), np.float64(image)
    for level, groups in enumerate((2, 4)):
        for number in range(2):
            name = f"{level}_{number}"
            kernel = params[f"conv_{name}"]["kernel"]
            h = slow.conv({"kernel": kernel, "bias": np.zeros(kernel.shape[-1])}, x)
            h = h if number else h[:, ::2, ::2]
            h = np.maximum(slow.group_norm(params[f"norm_{name}"], h, groups), 0)
            x = x + h if number else h
        np.testing.assert_allclose(maps[level], x, rtol=1e-4, atol=1e-4)
