"""The peephole LSTM as one writes it in JAX: lax.scan over a cell, the input's product hoisted, jit."""

import jax
import jax.numpy as jnp
import numpy as np

from bench.peers.libraries import Arrays

INPUTS = ("x", "h0", "c0")
WEIGHTS = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0", "weight_peephole_l0")


def lstm(given: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array, jax.Array]:
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


Found = tuple[tuple[jax.Array, ...], dict[str, jax.Array]]


def both(given: dict[str, jax.Array], gradients: tuple[jax.Array, ...]) -> Found:
    """Outputs, and the gradients of all that is given."""
    outputs, pull = jax.vjp(lstm, given)
    return outputs, pull(gradients)[0]


class Program:
    """One layer.

    Args:
        arrays: weights, inputs and gradients by name.
        threads: as many as this process may use processors.
    """

    def __init__(self, arrays: Arrays, threads: int) -> None:
        self.given = {name: jnp.asarray(arrays[name]) for name in (*INPUTS, *WEIGHTS)}
        self.gradients = tuple(jnp.asarray(arrays[f"d_{name}"]) for name in ("y", "h_n", "c_n"))
        self.lstm, self.both = jax.jit(lstm), jax.jit(both)

    def forward(self) -> Found:
        """The outputs, and no gradients."""
        return jax.block_until_ready(self.lstm(self.given)), {}

    def training(self) -> Found:
        """The outputs, and the gradients of all that is given."""
        found: Found = jax.block_until_ready(self.both(self.given, self.gradients))
        return found

    def named(self, found: Found) -> Arrays:
        """As arrays."""
        outputs, gradients = found
        named = dict(zip(("y", "h_n", "c_n"), outputs, strict=True))
        named |= {f"d_{name}": array for name, array in gradients.items()}
        return {name: np.asarray(array) for name, array in named.items()}
