"""The peephole LSTM as one writes it in JAX: lax.scan over a cell, the input's product hoisted, jit."""

import jax
import jax.numpy as jnp
import numpy as np

from bench.peers.libraries import OUTPUTS, Arrays, Program

GIVEN = ("x", "h0", "c0", "weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_peephole_l0")
Gradients = dict[str, jax.Array]
Three = tuple[jax.Array, jax.Array, jax.Array]


def lstm(given: dict[str, jax.Array]) -> Three:
    """Outputs y [T, B, H], h_n and c_n [1, B, H]."""
    p_i, p_f, p_o = jnp.split(given["weight_peephole_l0"], 3)
    weight_hh = given["weight_hh_l0"].T
    xw = given["x"] @ given["weight_ih_l0"].T + given["bias_ih_l0"] + given["bias_hh_l0"]  # [T, B, 4H]

    def step(
        states: tuple[jax.Array, jax.Array], xw_t: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
        h, c = states
        a_i, a_f, a_g, a_o = jnp.split(xw_t + h @ weight_hh, 4, axis=1)
        i, f = jax.nn.sigmoid(a_i + p_i * c), jax.nn.sigmoid(a_f + p_f * c)
        c = f * c + i * jnp.tanh(a_g)
        h = jax.nn.sigmoid(a_o + p_o * c) * jnp.tanh(c)
        return (h, c), h

    (h, c), y = jax.lax.scan(step, (given["h0"][0], given["c0"][0]), xw)
    return y, h[None], c[None]


def both(given: dict[str, jax.Array], gradients: Three) -> tuple[Three, Gradients]:
    """Outputs, and the gradients of all that is given."""
    outputs, pull = jax.vjp(lstm, given)
    return outputs, pull(gradients)[0]


def named(found: tuple[Three, Gradients]) -> Arrays:
    """Outputs and gradients as arrays."""
    outputs, gradients = found
    arrays = dict(zip(OUTPUTS, outputs, strict=True))
    arrays |= {f"d_{name}": array for name, array in gradients.items()}
    return {name: np.asarray(array) for name, array in arrays.items()}


def program(arrays: Arrays, threads: int) -> Program:
    """One layer, on as many threads as this process may use processors."""
    given = {name: jnp.asarray(arrays[name]) for name in GIVEN}
    gradients = tuple(jnp.asarray(arrays[f"d_{name}"]) for name in OUTPUTS)
    forward, training = jax.jit(lstm), jax.jit(both)
    return Program(
        lambda: (jax.block_until_ready(forward(given)), {}),
        lambda: jax.block_until_ready(training(given, gradients)),
        named,
    )
