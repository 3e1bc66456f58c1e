"""A run on sequences of several lengths, in batches of three shapes."""

from dataclasses import dataclass

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from research.data.buckets import BucketedData, length_buckets
from research.data.sequences import AppendEos
from research.evals.loss import HeldOutLoss
from research.experiment import Experiment
from research.train.checkpoints import Checkpoints
from research.train.optimizers import Adam
from research.train.schedules import Constant


@dataclass(frozen=True)
class Sequences:
    """`num` sequences of 1 to 15 tokens, each the sum of two before it, modulo 8."""

    num: int

    def __len__(self):
        return self.num

    def __getitem__(self, index):
        tokens = [index % 8, index // 8 % 8]
        while len(tokens) < 15:
            tokens.append(sum(tokens[-2:]) % 8)
        return {"tokens": 4 + np.array(tokens[: 1 + index * 7919 % 15], np.int32)}


class Network(nn.Module):
    """Each token from the one before it, with dropout."""

    @nn.compact
    def __call__(self, tokens, train):
        x = nn.Embed(12, 16, name="embed")(tokens)
        x = nn.Dropout(0.1, deterministic=not train)(x)
        return nn.Dense(12, name="out")(x)


@dataclass(frozen=True)
class NextToken:
    """The likelihood of every token but the first, padding left out."""

    network: Network = Network()

    def init(self, rng, batch):
        return self.network.init(rng, batch["tokens"], train=False)

    def loss(self, variables, batch, rng, train):
        tokens = batch["tokens"]
        rngs = {"dropout": rng}
        logits = self.network.apply(variables, tokens[:, :-1], train, rngs=rngs)
        scores = jax.nn.log_softmax(logits)
        losses = -jnp.take_along_axis(scores, tokens[:, 1:, None], axis=-1)[..., 0]
        weights = (tokens[:, 1:] > 0).astype(jnp.float32)
        if "mask" in batch:
            weights = weights * batch["mask"][:, None]
        total, count = jnp.sum(weights * losses), jnp.sum(weights)
        return total / count, ({"loss": (total, count)}, {})


def experiment(num_steps: int = 20) -> Experiment:
    """Batches of 32 x 4, 16 x 8 and 8 x 16 tokens."""
    *smaller, largest = length_buckets((4, 8, 16), 128)
    return Experiment(
        task=NextToken(),
        data=BucketedData(
            train=Sequences(300),
            eval={"test": Sequences(50)},
            batch_size=largest.batch_size,
            spec=largest.spec,
            smaller=tuple(smaller),
            transforms=(AppendEos(),),
            eval_transforms=(AppendEos(),),
            seed=6,
        ),
        optimizer=Adam(Constant(1e-2, warmup_steps=3)),
        num_steps=num_steps,
        num_microbatches=2,
        evals={"test": HeldOutLoss(batch_size=16, every=5)},
        checkpoints=Checkpoints(every=5, keep_last=3),
        log_every=5,
    )
