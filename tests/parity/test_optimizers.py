"""AdamW with groups of parameters against PyTorch's."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from research.train.optimizers import AdamW
from research.train.schedules import Cosine, Warmup

SHAPES = {"backbone": (4, 3), "head": (3, 2), "table": (5, 2), "bias": (2,)}


def draws(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    return {name: scale * rng.normal(size=shape) for name, shape in SHAPES.items()}


def test_groups_with_rates_and_without_decay():
    """Swin's rule of decay and DETR's of rates, clipping and a schedule included."""
    schedule = Warmup(Cosine(0.1, num_steps=9, end=0.01), num_steps=3, initial=0.02)
    transform = AdamW(
        schedule,
        weight_decay=0.3,
        no_decay=("table",),
        rates=(("backbone", 0.1),),
        clip_norm=4.0,
    )()
    ours = jax.tree.map(jnp.float32, draws(0))
    state = transform.init(ours)
    theirs = {
        name: torch.nn.Parameter(torch.tensor(value, dtype=torch.float32))
        for name, value in draws(0).items()
    }
    optimizer = torch.optim.AdamW(
        [
            {"params": [theirs["head"]], "scale": 1.0},
            {"params": [theirs["backbone"]], "scale": 0.1},
            {"params": [theirs["table"], theirs["bias"]], "weight_decay": 0.0},
        ],
        weight_decay=0.3,
    )
    for step in range(8):
        grads = draws(1 + step, scale=3.0)
        updates, state = transform.update(jax.tree.map(jnp.float32, grads), state, ours)
        ours = jax.tree.map(jnp.add, ours, updates)
        for name, parameter in theirs.items():
            parameter.grad = torch.tensor(grads[name], dtype=torch.float32)
        torch.nn.utils.clip_grad_norm_(theirs.values(), 4.0)
        for group in optimizer.param_groups:
            group["lr"] = float(schedule(step)) * group.get("scale", 1.0)
        optimizer.step()
    for name, parameter in theirs.items():
        np.testing.assert_allclose(
            ours[name], parameter.detach().numpy(), rtol=2e-5, atol=2e-6
        )
        assert np.abs(np.asarray(ours[name]) - draws(0)[name]).max() > 0.01
