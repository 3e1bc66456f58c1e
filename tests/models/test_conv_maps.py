import jax
import jax.numpy as jnp
import numpy as np

from research.models.conv_maps import ConvMaps


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
