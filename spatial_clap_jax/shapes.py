"""Axis letters of this library, and names for the shapes that cross files.

  b batch      p permutations (members) of a scene group    c channels    k sources
  t samples    l frames    f frequency bins    m mels    n tokens    d width

`*b` is any number of leading axes, none included. Stereo channels are L, R; those of first-order
ambisonics W, Y, Z, X (ACN order, SN3D). Feature planes stand last. The aliases are of JAX arrays:
code that runs in data workers spells its NumPy shapes out and leaves this file alone.
"""

from jaxtyping import Array, Complex64, Float, Float32

Signal = Float[Array, "*b t"]
Stereo = Float[Array, "*b 2 t"]
Foa = Float[Array, "*b 4 t"]
Spectrum = Complex64[Array, "*b l f"]
MelFrames = Float32[Array, "*b l m"]
