"""The products of bfloat16 that attention on CPUs is made of: twins against the manual, instructions against twins."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fusestep import _core

TWINS = {"amx_bf16": "amx_bf16_on_scalar", "avx512_bf16": "avx512_bf16_on_avx2"}
LEVEL = pytest.mark.parametrize("level", TWINS)
LEAST = 2.0**-126  # the smallest normal number


def twin_of(level):
    if not _core.has_bf16_products(TWINS[level]):
        pytest.skip(f"this build or this CPU has no {TWINS[level]}")
    return TWINS[level]


def hardware(level):
    if not _core.has_bf16_products(level):
        pytest.skip(f"this CPU has no {level}, or the operating system refuses it")
    return level


def tiles(b):
    """(32 steps, 32) as the right factor lies: [step][half][pair of rows][column][2]."""
    steps = b.shape[0] // 32
    return b.reshape(steps, 16, 2, 2, 16).permute(0, 3, 1, 4, 2).contiguous()


def multiply(level, a, b, c, adds):
    c = c.clone()
    _core.bf16_multiply(level, a, tiles(b), c, a.shape[1] // 32, adds)
    return c.numpy()


def drawn(rng, steps, scale=0):
    """Factors whose products differ by up to 2^24, so that sums are rounded; exact in float64. Sums to add to."""

    def numbers(*shape):
        return torch.from_numpy(rng.integers(-255, 256, shape) * 2.0 ** rng.integers(-6, 7, shape)).float()

    a = (numbers(32, 32 * steps) * 2.0**scale).bfloat16()
    b = numbers(32 * steps, 32).bfloat16()
    return a, b, numbers(32, 32) * 2.0**scale * 1.0009765625


def flushed(x):
    return np.where(np.abs(x) < LEAST, np.copysign(0.0, x), x)


def rounded(x):
    """float64 to float32, subnormal numbers to zero."""
    return flushed(np.float32(x).astype(np.float64))


def by_the_manual(level, a, b, c, adds):
    """TDPBF16PS and VDPBF16PS as Intel's manual writes them down, in float64 that rounds to float32 where they do."""
    a, b = (flushed(x.double().numpy()) for x in (a, b))
    total = flushed(c.double().numpy()) if adds else np.zeros((32, 32))
    for first in range(0, a.shape[1], 32):
        even, odd = np.zeros((32, 32)), np.zeros((32, 32))
        for k in range(first, first + 32, 2):
            products = a[:, k, None] * b[k], a[:, k + 1, None] * b[k + 1]
            if level == "amx_bf16":
                even, odd = rounded(even + products[0]), rounded(odd + products[1])
            else:
                total = rounded(rounded(total + products[1]) + products[0])
        if level == "amx_bf16":
            total = rounded(total + rounded(even + odd))
    return total


def same_bits(got, want):
    """NaN is NaN, whatever its other bits."""
    nan = np.isnan(got) & np.isnan(want)
    return (nan | (np.float32(got).view(np.int32) == np.float32(want).view(np.int32))).all()


@LEVEL
@pytest.mark.parametrize("scale", [0, -120, -133], ids=lambda s: f"times 2^{s}")
@pytest.mark.parametrize("adds", [False, True])
@pytest.mark.parametrize("steps", [1, 3])
def test_twins_follow_the_manual(level, steps, adds, scale, rng):
    """At 2^-120 some products and sums are subnormal, at 2^-133 most factors are."""
    a, b, c = drawn(rng, steps, scale)
    assert same_bits(multiply(twin_of(level), a, b, c, adds), by_the_manual(level, a, b, c, adds))


def test_the_two_differ(rng):
    """Or the tests above would not tell one order of additions from another."""
    a, b, c = drawn(rng, 3)
    assert not same_bits(by_the_manual("amx_bf16", a, b, c, True), by_the_manual("avx512_bf16", a, b, c, True))


@LEVEL
def test_no_step_is_zero(level, rng):
    a, b, c = drawn(rng, 0)
    assert (multiply(twin_of(level), a, b, c, False) == 0).all()
    np.testing.assert_array_equal(multiply(twin_of(level), a, b, c, True), c.numpy())


# Subnormal products in `make exhaustive`: the manual leaves open whether a sum is zero before or after it is rounded up
# to the smallest normal number.
SCALES = [0, 110, *(pytest.param(scale, marks=pytest.mark.exhaustive) for scale in (-120, -133))]


# AMD's manual does not say in which order VDPBF16PS adds: attention holds its bounds in any, its bits are for one.
AND_ORDER = pytest.mark.parametrize("level", ["amx_bf16", pytest.param("avx512_bf16", marks=pytest.mark.exhaustive)])


@AND_ORDER
@pytest.mark.parametrize("scale", SCALES)
def test_the_instruction_is_its_twin(level, scale, rng):
    instruction, twin = hardware(level), twin_of(level)
    for steps in (0, 1, 2, 8):
        for adds in (False, True):
            a, b, c = drawn(rng, steps, scale)
            if steps:  # infinities and NaN
                a[3, 5], a[9, 1], b[7, 20], c[2, 30] = np.inf, np.nan, -np.inf, np.nan
            assert same_bits(multiply(instruction, a, b, c, adds), multiply(twin, a, b, c, adds)), (steps, adds)


# --- rounding -------------------------------------------------------------------------------------------------------
def narrow(level, even, odd):
    row, pairs = torch.empty(32, dtype=torch.bfloat16), torch.empty(16, 2, dtype=torch.bfloat16)
    _core.bf16_narrow(level, even, odd, row, pairs)
    return row, pairs


def numbers_to_round(rng):
    """Of every exponent, ties, subnormal ones, and what is not a number."""
    bits = rng.integers(0, 2**32, 64, dtype=np.uint32)
    bits[:24] = (bits[:24] & 0xFFFF0000) | 0x8000  # ties
    bits[24:32] &= 0x807FFFFF  # subnormal
    bits[32:38] = 0x7F800000, 0xFF800000, 0x7F800001, 0xFFC12345, 0x80000000, 0x7F7FFFFF
    bits = rng.permutation(bits)
    return torch.from_numpy(bits.view(np.float32)).split(32)


@LEVEL
def test_twins_round_to_the_nearest(level, rng):
    for _ in range(50):
        even, odd = numbers_to_round(rng)
        want = [torch.from_numpy(np.float32(flushed(x.numpy()))).bfloat16().float() for x in (even, odd)]
        row, pairs = narrow(twin_of(level), even, odd)
        assert same_bits(row.float().numpy(), want[0].numpy())
        assert same_bits(pairs[:, 0].float().numpy(), want[0][:16].numpy())
        assert same_bits(pairs[:, 1].float().numpy(), want[1][:16].numpy())


@LEVEL
def test_the_instruction_rounds_as_its_twin(level, rng):
    instruction, twin = hardware(level), twin_of(level)
    for _ in range(50):
        numbers = numbers_to_round(rng)
        for got, want in zip(narrow(instruction, *numbers), narrow(twin, *numbers), strict=True):
            assert torch.equal(got.view(torch.int16), want.view(torch.int16))


# --- bad arguments --------------------------------------------------------------------------------------------------
def test_levels_without_such_products_are_refused():
    a, b, c = torch.zeros(32, 32).bfloat16(), torch.zeros(32, 32).bfloat16(), torch.zeros(32, 32)
    for level in ("scalar", "", "amx"):
        assert not _core.has_bf16_products(level)
        with pytest.raises(ValueError, match="bf16_multiply: level: expected a level with products of bfloat16"):
            multiply(level, a, b, c, False)
