"""Deterministic weights and inputs for parity checks against published implementations.

A golden case is `<case>.json` + `<case>.npz`:

* the json names the architecture, the constructor arguments of the published implementation, its state
  dict (`"state_dict": {name: [dtype, shape]}`, the names a published checkpoint uses) and the inputs;
* the npz holds `output` (or `output_0`, `output_1`, ...) that the published implementation gave, in
  float32 on a CPU, for the weights and inputs that the functions below generate from names alone.

So no weights are stored: `fill(name, shape)` gives every floating-point parameter; integer and
boolean buffers, and the names listed under `"kept"` in the json, keep the value of their constructor.
"""

import zlib

import numpy as np


def _rng(key: str) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(zlib.crc32(key.encode())))


def fill(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float32 values of the parameter or floating-point buffer `name`, from its name and shape alone.

    Two or more dimensions: normal / sqrt(fan_in), fan_in = product of all dimensions but the first.
    `running_var`: 1 + |normal| / 10. Other one-dimensional `...weight`: 1 + normal / 10.
    Anything else (biases, scalars, running means): normal / 20.
    """
    values = _rng(name).standard_normal(shape)
    if name.endswith("running_var"):
        values = 1.0 + 0.1 * np.abs(values)
    elif len(shape) >= 2:
        values = values / np.sqrt(max(1.0, float(np.prod(shape[1:]))))
    elif name.endswith("weight") and len(shape) == 1:
        values = 1.0 + 0.1 * values
    else:
        values = 0.05 * values
    return values.astype(np.float32)


def image(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Float32 input in [0, 1]: smooth waves plus noise, drifting by about a pixel a frame.

    `shape` ends in (T, C, H, W) or (C, H, W), with any leading batch dimension; `key` seeds it.
    """
    rng = _rng("input:" + key)
    h, w = shape[-2:]
    c = shape[-3]
    t = shape[-4] if len(shape) >= 4 else 1
    lead = int(np.prod(shape[:-4])) if len(shape) > 4 else 1
    y, x = np.mgrid[0:h, 0:w].astype(np.float64)
    out = np.empty((lead, t, c, h, w))
    for b in range(lead):
        fx, fy, phase = rng.uniform(0.1, 0.9, (3, c))
        texture = rng.uniform(-0.25, 0.25, (c, h, w))
        dx, dy = rng.uniform(-1.5, 1.5, 2)
        for i in range(t):
            wave = np.sin(
                fx[:, None, None] * (x + i * dx)
                + fy[:, None, None] * (y + i * dy)
                + 6.28 * phase[:, None, None]
            )
            out[b, i] = (
                0.5 + 0.25 * wave + np.roll(texture, (round(i * dy), round(i * dx)), axis=(1, 2))
            )
    return np.clip(out, 0, 1).reshape(shape).astype(np.float32)
