"""The same bits on every instruction set, with any number of threads, every time."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import all_bits
import cases
import numpy as np
import problems
import pytest
import torch
from fusestep import _core

LEVELS = ("scalar", "avx2", "avx512", "avx512_bf16", "amx_bf16", "neon")  # of one architecture, lowest first


@pytest.fixture(scope="module")
def here():
    return all_bits.all_bits()


@pytest.fixture(scope="module")
def available():
    """The levels that this CPU has and this build contains: all up to the one that is chosen by itself."""
    best = run(None, "-c", "from fusestep import _core; print(_core.info()['simd'])").stdout.strip()
    compiled = _core.info()["simd_compiled"]
    return compiled[: compiled.index(best) + 1]


def run(level, *arguments):
    environment = {name: value for name, value in os.environ.items() if name != "FUSESTEP_SIMD"}
    if level is not None:
        environment["FUSESTEP_SIMD"] = level
    return subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)


def assert_same(got, want):
    assert got.keys() == want.keys()
    assert [name for name in want if got[name] != want[name]] == []


@pytest.mark.parametrize("level", LEVELS)
def test_every_instruction_set_gives_the_same_bits(level, here, available):
    result = run(level, Path(all_bits.__file__))
    if level in available:
        assert result.returncode == 0, result.stderr
        assert_same(json.loads(result.stdout), here)
    else:
        assert result.returncode == 1, "a crash"
        assert re.search(rf"FUSESTEP_SIMD: expected .+, got .*{level}", result.stderr), result.stderr


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_any_number_of_threads_gives_the_same_bits(count, here, threads):
    threads(count)
    assert_same(all_bits.all_bits(), here)


def test_the_hash_tells_one_bit(rng):
    a = rng.standard_normal(1000).astype(np.float32)
    before = all_bits.digest(a)
    a.view(np.int32)[500] ^= 1
    assert all_bits.digest(a) != before


def test_a_tensor_is_updated_as_its_elements_are():
    """Where an element lies, in which tensor, lane or tail, does not change what it becomes."""
    n = cases.SLICE + 37
    for optimizer in cases.OPTIMIZERS:
        options = optimizer.settings[-1]
        whole = problems.make(optimizer, options, [(n,)], rng=np.random.default_rng(3), mid_run=True)
        parts = problems.make(optimizer, options, [(n,)], rng=np.random.default_rng(3), mid_run=True)
        cuts = [1, 3, 10, 64, 1000, n - 7]

        def split(tensors, cuts=cuts):
            return list(torch.tensor_split(tensors[0], cuts))

        parts.params, parts.grads = split(parts.params), split(parts.grads)
        parts.states = [None if s is None else split(s) for s in parts.states]
        whole.step(5)
        parts.step(5)
        for got, want in zip(parts.flat(), whole.flat(), strict=True):
            problems.assert_same_bits(got, want)


def test_the_norm_is_of_the_elements_however_they_are_cut(rng):
    values = torch.from_numpy(rng.standard_normal(5 * cases.SLICE).astype(np.float32))
    from fusestep import ops

    for norm_type in (1, 2, math.inf):
        whole = ops.grad_norm([values], norm_type)
        assert whole == ops.grad_norm(list(torch.tensor_split(values, [1, 5, 16383, 40000])), norm_type)
