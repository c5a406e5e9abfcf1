"""The declared cases of attention: what it may be asked for, as data, and the arrays that ask for it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

Features = dict[str, Any]


@dataclass(frozen=True)
class Shape:
    batch: int = 2
    heads: int = 4
    kv_heads: int = 2
    queries: int = 9
    keys: int = 13
    dim: int = 8
    value_dim: int = 8

    def scores(self) -> tuple[int, int, int, int]:
        return self.batch, self.heads, self.queries, self.keys


# What may be asked for, each on its own. `mask` is (kind, which of batch, heads, queries and keys it has: "1" where it
# is broadcast, and missing at the front as NumPy allows). Lengths, slopes and mask values are drawn.
FEATURES: dict[str, Features] = {
    "plain": {},
    "causal": {"causal": True},
    "top_left": {"causal": "top_left"},
    "bottom_right": {"causal": "bottom_right"},
    "window": {"window": (3, 2)},
    "window_self": {"window": (0, 0)},
    "window_left": {"window": (4, None)},
    "window_right": {"window": (None, 1)},
    "window_causal": {"window": (2, 5), "causal": True},
    "window_bottom_right": {"window": (5, 1), "causal": "bottom_right"},
    "key_lengths": {"key_lengths": True},
    "key_lengths_bottom_right": {"key_lengths": True, "causal": "bottom_right"},
    "boolean": {"mask": ("boolean", "bhqk")},
    "boolean_padding": {"mask": ("boolean", "b11k")},
    "boolean_square": {"mask": ("boolean", "qk")},
    "boolean_rows": {"mask": ("boolean", "bhq1")},
    "additive": {"mask": ("additive", "bhqk")},
    "additive_heads": {"mask": ("additive", "1hqk")},
    "additive_batch": {"mask": ("additive", "b1qk")},
    "additive_square": {"mask": ("additive", "qk")},
    "additive_keys": {"mask": ("additive", "k")},
    "additive_one_head": {"mask": ("additive", "h11")},
    "additive_scalar": {"mask": ("additive", "")},
    "additive_rows": {"mask": ("additive", "q1")},
    "additive_excludes": {"mask": ("excluding", "bhqk")},
    "additive_padding": {"mask": ("excluding", "b11k")},
    "alibi": {"alibi_slopes": "h"},
    "alibi_batch": {"alibi_slopes": "bh"},
    "alibi_bottom_right": {"alibi_slopes": "h", "causal": "bottom_right"},
    "softcap": {"softcap": 1.5},
    "scale": {"scale": 0.7},
    "scale_negative": {"scale": -0.3},
    "scale_zero": {"scale": 0.0},
    "dropout": {"dropout_p": 0.25},
    "dropout_most": {"dropout_p": 0.999},
    "dropout_least": {"dropout_p": 2.0**-16},
    "dropout_all": {"dropout_p": 1.0},
    "packed": {"packed": True},
    "packed_causal": {"packed": True, "causal": True},
    "packed_bottom_right": {"packed": True, "causal": "bottom_right", "alibi_slopes": "bh"},
    "packed_lengths": {"packed": True, "key_lengths": True, "window": (3, 3)},
    "packed_mask": {"packed": True, "mask": ("additive", "bhqk")},
    "packed_boolean": {"packed": True, "mask": ("boolean", "1hqk")},
    "packed_dropout": {"packed": True, "dropout_p": 0.25},
    "everything": {
        "causal": "bottom_right",
        "window": (6, 1),
        "key_lengths": True,
        "mask": ("excluding", "bhqk"),
        "alibi_slopes": "bh",
        "softcap": 2.0,
        "scale": 0.5,
        "dropout_p": 0.1,
    },
    "everything_boolean": {
        "causal": True,
        "window": (7, None),
        "mask": ("boolean", "b1qk"),
        "alibi_slopes": "h",
        "softcap": 3.0,
        "dropout_p": 0.3,
    },
    "everything_packed": {
        "packed": True,
        "causal": True,
        "window": (6, 1),
        "key_lengths": True,
        "mask": ("excluding", "1hqk"),
        "alibi_slopes": "h",
        "softcap": 2.0,
        "dropout_p": 0.1,
    },
}


@dataclass
class Problem:
    """Arrays in float64, and the options as fusestep takes them."""

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    grad_out: np.ndarray
    options: dict[str, Any] = field(default_factory=dict)
    first_batch: int = 0  # of one that `sequences` cut out: its place

    def tensors(self) -> tuple[np.ndarray, ...]:
        return self.query, self.key, self.value

    @property
    def additive(self) -> bool:
        mask = self.options.get("mask")
        return mask is not None and np.asarray(mask).dtype != np.bool_

    def map(self, function) -> Problem:
        """With `function` applied to every array of floats."""
        options = dict(self.options)
        for name in ("mask", "alibi_slopes"):
            if name in options and options[name].dtype != np.bool_:
                options[name] = function(options[name])
        arrays = (function(a) for a in (*self.tensors(), self.grad_out))
        return Problem(*arrays, options, self.first_batch)

    def rounded(self, dtype) -> Problem:
        """The values that `dtype` can hold."""
        return self.map(lambda a: round_to(a, dtype))


def make(shape: Shape, features: Features, rng: np.random.Generator, spread: float = 1.0) -> Problem:
    """Random arrays; scores of about `spread`."""
    features = dict(features)
    if features.pop("packed", False):
        shape, cu_seqlens = _pack(shape, rng)
    else:
        cu_seqlens = {}
    sequences = len(cu_seqlens["cu_seqlens_q"]) - 1 if cu_seqlens else shape.batch

    def normal(*sizes):
        return rng.standard_normal(sizes)

    options: dict[str, Any] = {**features, **cu_seqlens}
    if "mask" in features:
        options["mask"] = make_mask(*features["mask"], shape.scores(), rng)
    if "key_lengths" in features:
        lengths = rng.integers(0, shape.keys + 1, sequences)
        if cu_seqlens:  # they may name more keys than a sequence has, but none needs to have fewer
            lengths = np.minimum(lengths, np.diff(cu_seqlens["cu_seqlens_k"]))
        options["key_lengths"] = lengths.astype(rng.choice(["int32", "int64"]))
    if "alibi_slopes" in features:
        sizes = {"h": (shape.heads,), "bh": (sequences, shape.heads)}[features["alibi_slopes"]]
        options["alibi_slopes"] = rng.uniform(-0.1, 0.5, sizes)
    if features.get("dropout_p"):
        options["seed"] = int(rng.integers(0, 2**64, dtype=np.uint64))
        options["offset"] = int(rng.integers(0, 2**32))
    return Problem(
        spread * normal(shape.batch, shape.heads, shape.queries, shape.dim),
        normal(shape.batch, shape.kv_heads, shape.keys, shape.dim),
        normal(shape.batch, shape.kv_heads, shape.keys, shape.value_dim),
        normal(shape.batch, shape.heads, shape.queries, shape.value_dim),
        options,
    )


def make_mask(kind: str, dims: str, scores: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """boolean: half of it False. additive: finite. excluding: additive, with -inf and whole rows of it."""
    sizes = dict(zip("bhqk", scores, strict=True))
    shape = tuple(sizes.get(dim, 1) for dim in dims)
    if kind == "boolean":
        return rng.random(shape) < 0.5
    mask = np.asarray(rng.standard_normal(shape))
    if kind == "excluding":
        mask = np.where(rng.random(shape) < 0.3, -np.inf, mask)
        mask[rng.random(shape[:-1]) < 0.2] = -np.inf
    return mask


def _pack(shape: Shape, rng: np.random.Generator) -> tuple[Shape, dict[str, Any]]:
    """Four sequences, one without queries, one without keys, and rows at the end that belong to none."""
    queries = rng.integers(1, shape.queries + 1, 4)
    keys = rng.integers(1, shape.keys + 1, 4)
    queries[rng.integers(4)] = 0
    keys[rng.integers(4)] = 0
    dtype = rng.choice(["int32", "int64"])
    cu_seqlens = {
        "cu_seqlens_q": np.concatenate([[0], np.cumsum(queries)]).astype(dtype),
        "cu_seqlens_k": np.concatenate([[0], np.cumsum(keys)]).astype(dtype),
    }
    rest = rng.integers(0, 4, 2)
    total_q, total_k = int(queries.sum() + rest[0]), int(keys.sum() + rest[1])
    return replace(shape, batch=1, queries=total_q, keys=total_k), cu_seqlens


def sequences(problem: Problem) -> list[tuple[slice, slice, Problem]]:
    """(its queries, its keys, a problem of its own) of each packed sequence; of the whole if nothing is packed."""
    options = dict(problem.options)
    if "cu_seqlens_q" not in options:
        return [(slice(None), slice(None), problem)]
    q_ends, k_ends = options.pop("cu_seqlens_q"), options.pop("cu_seqlens_k")
    scores = (1, problem.query.shape[1], problem.query.shape[2], problem.key.shape[2])
    found = []
    for n in range(len(q_ends) - 1):
        queries, keys = slice(q_ends[n], q_ends[n + 1]), slice(k_ends[n], k_ends[n + 1])
        own = dict(options)
        if "mask" in own:
            own["mask"] = np.broadcast_to(own["mask"], scores)[:, :, queries, keys].copy()
        if "key_lengths" in own:
            own["key_lengths"] = own["key_lengths"][n : n + 1]
        if "alibi_slopes" in own and own["alibi_slopes"].ndim == 2:
            own["alibi_slopes"] = own["alibi_slopes"][n]
        cut = Problem(
            problem.query[:, :, queries],
            problem.key[:, :, keys],
            problem.value[:, :, keys],
            problem.grad_out[:, :, queries],
            own,
            first_batch=n,
        )
        found.append((queries, keys, cut))
    return found


def round_to(a: np.ndarray, dtype: str) -> np.ndarray:
    """Rounded to `dtype`, in a NumPy dtype that holds it: float32 for bfloat16."""
    if dtype != "bfloat16":
        return np.asarray(a, dtype)
    import torch

    return torch.as_tensor(np.asarray(a)).to(torch.bfloat16).float().numpy()
