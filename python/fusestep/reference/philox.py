"""Philox4x32 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with 7 rounds."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from ._widen import Array

ROUNDS = 7

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_WORD = np.uint64(0xFFFFFFFF)
_32 = np.uint64(32)

# Words are kept in uint64, where their products have room.
Words = tuple[Array, Array, Array, Array]
Key = tuple[int, int]


def philox(counter: tuple[ArrayLike, ArrayLike, ArrayLike, ArrayLike], seed: int) -> Words:
    """Four random words for each counter.

    Args:
        counter: four words, each an integer or an array of them; they broadcast against each other.
        seed: the 64-bit key, its lower word first.

    Returns:
        Four arrays of uint64 that hold words of 32 bits.
    """
    a, b, c, d = (np.asarray(word, np.uint64) for word in counter)
    words = (a, b, c, d)
    key = (seed & 0xFFFFFFFF, seed >> 32)
    for _ in range(ROUNDS):
        words = philox_round(words, key)
        key = next_key(key)
    return words


def philox_round(words: Words, key: Key) -> Words:
    """One round: two multiplications, whose upper words are mixed with the other words and the key."""
    product0 = np.uint64(_MULTIPLIERS[0]) * words[0]
    product1 = np.uint64(_MULTIPLIERS[1]) * words[2]
    return (
        (product1 >> _32) ^ words[1] ^ np.uint64(key[0]),
        product1 & _WORD,
        (product0 >> _32) ^ words[3] ^ np.uint64(key[1]),
        product0 & _WORD,
    )


def next_key(key: Key) -> Key:
    """The key of the round that follows."""
    return (key[0] + _WEYL[0]) & 0xFFFFFFFF, (key[1] + _WEYL[1]) & 0xFFFFFFFF
