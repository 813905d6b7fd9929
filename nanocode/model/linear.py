"""The two operations of which a transformer's time is made, with backward passes written for memory traffic.

Differentiating `x @ w` gives dw as (dyᵀ·x)ᵀ, which makes XLA transpose dy; here the narrower of x and dy is
transposed. Measured on 2 CPU cores at 3072 x 128 x 512: 313 instead of 201 GFLOP/s.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

NORM_EPSILON = 1e-6


@jax.custom_vjp
def linear(x: Float[Array, "*R D"], w: Float[Array, "D F"]) -> Float[Array, "*R F"]:
    """x @ w."""
    return x @ w


def _linear_forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return x @ w, (x, w)


def _linear_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array, Array]:
    x, w = saved
    rows, d_rows = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    return dy @ w.T, transposed_product(rows, d_rows)


linear.defvjp(_linear_forward, _linear_backward)


def transposed_product(x: Float[Array, "R D"], y: Float[Array, "R F"]) -> Float[Array, "D F"]:
    """xᵀ·y, transposing the narrower one."""
    if x.shape[1] <= y.shape[1]:
        return x.T @ y
    return jax.lax.optimization_barrier(y.T @ x).T


@jax.custom_vjp
def rms_norm(x: Float[Array, "*R D"]) -> Float[Array, "*R D"]:
    """x / √(mean x² + ε), computed in float32."""
    return _rms_forward(x)[0]


def _rms_forward(x: Array) -> tuple[Array, tuple[Array, Array]]:
    wide = x.astype(jnp.float32)
    inverse = jax.lax.rsqrt(jnp.mean(jnp.square(wide), -1, keepdims=True) + NORM_EPSILON)
    return (wide * inverse).astype(x.dtype), (x, inverse)


def _rms_backward(saved: tuple[Array, Array], dy: Array) -> tuple[Array]:
    x, inverse = saved
    wide, d_wide = x.astype(jnp.float32), dy.astype(jnp.float32)
    along = jnp.mean(wide * d_wide, -1, keepdims=True) * jnp.square(inverse)
    return (((d_wide - wide * along) * inverse).astype(x.dtype),)


rms_norm.defvjp(_rms_forward, _rms_backward)
