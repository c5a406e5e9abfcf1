"""Optimizer problems whose states are in 8 bits."""

from __future__ import annotations

import copy

import torch
from fusestep import reference
from problems import as_numpy


def quantized(arrays, square, order="C"):
    """(codes, scales) of a list of arrays, in the order of memory: "C" or "F"."""
    codes, scales = [], []
    for a in map(as_numpy, arrays):
        one, scale = reference.quantize_8bit(a.ravel(order), square=square)
        codes.append(one.reshape(a.shape, order=order))
        scales.append(scale)
    return codes, scales


def dequantized(codes, scales, square, order="C"):
    return [
        reference.dequantize_8bit(c.ravel(order), s, square=square).reshape(c.shape, order=order)
        for c, s in zip(codes, scales, strict=True)
    ]


def in_8_bits(problem, order="C"):
    """The same problem with its states in 8 bits; those of `problem` become what the codes stand for."""
    eight = copy.deepcopy(problem)
    for k, (state, arrays) in enumerate(zip(problem.optimizer.states, problem.states, strict=True)):
        if arrays is None:
            continue
        codes, scales = quantized(arrays, state.non_negative, order)
        for a, values in zip(arrays, dequantized(codes, scales, state.non_negative, order), strict=True):
            as_numpy(a)[...] = values
        eight.states[k] = [torch.from_numpy(c) for c in codes]
        eight.rounding[f"{state.name}_absmax"] = [torch.from_numpy(s) for s in scales]
    return eight
