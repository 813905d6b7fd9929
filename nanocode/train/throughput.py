"""What a device could do at best: the denominator of MFU, model FLOPs utilisation (PaLM, arXiv 2204.02311, appendix B).

Accelerators by their data sheets (dense bf16, no sparsity); a CPU by measurement, because its clock and its share of
the machine are nobody's promise.
"""

import time
from typing import Literal

import jax
import jax.numpy as jnp

DATASHEET_BF16_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU7x": 2307e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}
"""By the beginning of jax's `device_kind`; the longest that fits counts."""
# On a CPU matmuls of this size are compute-bound and take milliseconds.
MEASURED_SIZE = 1024
MEASURED_RUNS = 8

Origin = Literal["data sheet", "measured matmul"]


def peak_flops(device: jax.Device | None = None) -> tuple[float, Origin]:
    """Floating-point operations per second of one device, and where the number is from."""
    device = device or jax.devices()[0]
    fitting = [name for name in DATASHEET_BF16_FLOPS if device.device_kind.startswith(name)]
    if fitting:
        return DATASHEET_BF16_FLOPS[max(fitting, key=len)], "data sheet"
    return measured_matmul_flops(MEASURED_SIZE, MEASURED_RUNS), "measured matmul"


def measured_matmul_flops(size: int, runs: int) -> float:
    """The best of some float32 matmuls of `size` x `size`, after one that warms up."""
    square = jnp.ones((size, size), jnp.float32)
    multiply = jax.jit(jnp.matmul)
    multiply(square, square).block_until_ready()
    best = float("inf")
    for _ in range(runs):
        began = time.perf_counter()
        multiply(square, square).block_until_ready()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best
