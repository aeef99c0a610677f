"""What arrays of merges look like, for signatures (jaxtyping): nothing here computes."""

from collections.abc import Mapping

import jax
import numpy as np
from jaxtyping import Array, Bool, Float, Inexact, Integer, PyTree, UInt, UInt32

Coefficient = float | jax.Array | np.ndarray
"""A parameter that may be traced: `vmap` and `grad` go through it."""

Coefficients = Coefficient | tuple[float, ...]
"""A coefficient for all models, or one for each."""

Place = int | np.integer | Integer[Array, ""] | Integer[np.ndarray, ""]
"""A position: of a model, a row or a leaf; counted on the host or traced."""

Totals = tuple[PyTree, ...]
"""What the rounds of a step found, each summed over all leaves."""

Value = Inexact[Array, "*leaf"]
"""A leaf of one model in the dtype of the computation, or a slice of it."""

Mask = Bool[Array, "*leaf"]
"""Some elements of a leaf."""

Keys = UInt[Array, "*leaf"]
"""Elements of a leaf as integers that sort as their magnitudes do."""

Share = Float[Array, " models"]
"""One number per model: weights, norms, coefficients of a combination."""

Products = Float[Array, "models models"]
"""Inner products of N models, each with each (their Gram matrix)."""

Seed = UInt32[Array, "2"]
"""Two words of a PRNG key and a leaf path."""

Json = None | bool | int | float | str | list["Json"] | dict[str, "Json"]
"""What a commit records."""

Parameters = Mapping[str, object]
"""Arguments of a function that makes a transform or a merge method."""
