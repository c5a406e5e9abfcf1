"""Prints {what: hash of every bit it gave}, for everything whose bits are promised: test_bits.py runs it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator

import cases
import eight_bits
import numpy as np
import problems
from fusestep import ops

# A slice for each of seven threads; tensors that begin and end inside slices.
SIZES = (3 * cases.SLICE + 3, *cases.SMALL_SIZES, cases.SLICE - 1, 2 * cases.SLICE + 1)


def digest(*values) -> str:
    sha = hashlib.sha256()
    for value in values:
        sha.update(np.ascontiguousarray(value).tobytes())
    return sha.hexdigest()


def optimizer_bits() -> Iterator[tuple[str, str]]:
    for optimizer in cases.OPTIMIZERS:
        # Every setting once, with every dtype and every clipping some time.
        for i, options in enumerate(optimizer.settings):
            dtypes = cases.DTYPES[i % len(cases.DTYPES)]
            clipping = cases.CLIPPINGS[i % len(cases.CLIPPINGS)]
            rng = np.random.default_rng(i)
            problem = problems.make(optimizer, options, [(n,) for n in SIZES], dtypes, rng=rng, mid_run=True)
            norms = [problem.step(number, rewrite_grads=number == 9, **clipping) or 0.0 for number in (8, 9)]
            arrays = [a for a in problem.flat() if a is not None]
            yield f"{optimizer.name} {options} {dtypes} {clipping}", digest(np.array(norms), *arrays)

            problem = problems.extremes(optimizer, options)
            problem.step(9)
            arrays = [problems.one_nan(a) for a in problem.flat() if a is not None]
            yield f"{optimizer.name} {options} extremes", digest(*arrays)


def eight_bit_bits() -> Iterator[tuple[str, str]]:
    for optimizer in cases.OPTIMIZERS:
        options = max((s for s in optimizer.settings if not s.get("centered")), key=len)
        drawn = problems.make(optimizer, options, [(n,) for n in SIZES], rng=np.random.default_rng(4), mid_run=True)
        for what, problem in (("", drawn), (" extremes", problems.extremes(optimizer, options))):
            eight = eight_bits.in_8_bits(problem)
            for number in (8, 9):
                eight.step(number)
            arrays = [problems.one_nan(problems.flat(eight.params))]
            arrays += [problems.flat(codes) for codes in eight.states if codes is not None]
            arrays += [problems.one_nan(problems.flat(scales)) for scales in eight.rounding.values()]
            yield f"{optimizer.name} in 8 bits{what}", digest(*arrays)


def grad_bits() -> Iterator[tuple[str, str]]:
    rng = np.random.default_rng(1)
    for dtype in ("float32", "float64", "bfloat16", "float16"):
        for layout in ("contiguous", "strided"):
            grads = [problems.array(rng.standard_normal(n), dtype, layout=layout) for n in SIZES]
            for norm_type in (1, 2, math.inf):
                yield f"norm {norm_type} {dtype} {layout}", digest(ops.grad_norm(grads, norm_type))
            ops.clip_grad_norm_(grads, 10.0)
            yield f"clip_grad_norm_ {dtype} {layout}", digest(problems.flat(grads))
            ops.clip_grad_value_(grads, 0.01)
            yield f"clip_grad_value_ {dtype} {layout}", digest(problems.flat(grads))


def dropout_bits() -> Iterator[tuple[str, str]]:
    rng = np.random.default_rng(2)
    for dtype in ("float32", "float64", "bfloat16", "float16"):
        for layout in ("contiguous", "strided"):
            arrays = [problems.array(rng.standard_normal(n), dtype, layout=layout) for n in SIZES]
            outs = [ops.dropout(a, 0.3, seed=2**63 + 5, offset=7) for a in arrays]
            yield f"dropout {dtype} {layout}", digest(problems.flat(outs))
            outs = [ops.dropout_add(a, o, 0.1, seed=5) for a, o in zip(arrays, outs, strict=True)]
            yield f"dropout_add {dtype} {layout}", digest(problems.flat(outs))


def cross_entropy_bits() -> Iterator[tuple[str, str]]:
    rng = np.random.default_rng(3)
    options = {"label_smoothing": 0.1, "z_loss": 1e-3, "ignore_index": 7}
    for dtype in ("float32", "float64", "bfloat16", "float16"):
        for layout in ("contiguous", "strided"):
            for classes in (5, 1000, 3 * 1024 + 17):
                logits = problems.array(4 * rng.standard_normal((6, classes)), dtype, layout=layout)
                labels = rng.integers(0, classes, 6)
                grad = problems.array(np.zeros((6, classes)), dtype, layout=layout)
                results = ops.cross_entropy(logits, labels, grad=grad, reduction="none", **options)
                yield f"cross_entropy {dtype} {layout} {classes}", digest(*results, problems.flat([grad]))


def all_bits() -> dict[str, str]:
    return dict([*optimizer_bits(), *eight_bit_bits(), *grad_bits(), *dropout_bits(), *cross_entropy_bits()])


if __name__ == "__main__":
    print(json.dumps(all_bits()))
