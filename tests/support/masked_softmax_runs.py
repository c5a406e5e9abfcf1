"""The masked softmax as attention over key = value = the identity: its features and its bounds."""

from __future__ import annotations

import numpy as np
import tolerances
from attention_cases import FEATURES, Problem

SOFTMAX = {
    name: features for name, features in FEATURES.items() if not {"packed", "alibi_slopes", "softcap"} & features.keys()
}


def bounds(scores, grad_out, options, dtype):
    """It is attention over key = value = the identity; then no product is rounded, and none is charged too little."""
    keys = scores.shape[-1]
    eye = np.tile(np.eye(keys), (*scores.shape[:2], 1, 1))
    bound = tolerances.attention(Problem(scores, eye, eye, grad_out, options), dtype)
    return {name: bound[key] for name, key in NAMES.items() if key in bound}


NAMES = {"out": "out", "lse": "lse", "grad_scores": "grad_query", "grad_mask": "grad_mask"}
