"""A small network, trained in seconds: what the losses for few steps are seen to end in."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from tests.oracles import MIXTURE, flow_map, flow_velocity

WIDTH, BATCH = 64, 512


def network(params, x, t, cond):
    """An MLP of x [n, 2], t [n] and every number of cond [n]."""
    h = jnp.concatenate([x, jnp.stack([t, *(cond or {}).values()], axis=1)], axis=1)
    for w, b in params[:-1]:
        h = jax.nn.silu(h @ w + b[None])
    return h @ params[-1][0] + params[-1][1][None]


def trained(loss, inputs, steps=2000, rate=3e-3):
    """Parameters after Adam on the mixture, from new ones.

    Args:
      loss: (key, predict, x_0) -> [batch].
      inputs: of the network beside x, at least the time.
    """
    sizes = [2 + inputs, WIDTH, WIDTH, WIDTH, 2]
    keys = jax.random.split(jax.random.key(0), 4)
    shapes = zip(keys, itertools.pairwise(sizes), strict=True)
    params = [(jax.random.normal(k, shape) / np.sqrt(shape[0]), jnp.zeros(shape[1])) for k, shape in shapes]
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    @jax.jit
    def train(params):
        def step(carry, key):
            params, state = carry
            data_key, key = jax.random.split(key)
            x_0 = MIXTURE.draw(data_key, BATCH)

            def mean_loss(params):
                return jnp.mean(loss(key, lambda x, t, cond: network(params, x, t, cond), x_0))

            updates, state = optimizer.update(jax.grad(mean_loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(jax.random.key(1), steps))[0][0]

    return train(params)


def starts_and_ends(num=2000):
    """x at t = 1 of alpha = 1 - t, sigma = t, and where the probability flow of the mixture has it at t = 0."""
    x, one = jax.random.normal(jax.random.key(3), (num, 2)), jnp.ones(num)
    velocity = lambda x, t: flow_velocity(MIXTURE, x, jnp.maximum(t, 1e-4))  # noqa: E731
    return x, flow_map(velocity, x, one, 0 * one, 200)


def distance(x, end):
    """Root mean square; the mixture's own is 0.78."""
    return float(jnp.sqrt(jnp.mean(jnp.square(x - end))))
