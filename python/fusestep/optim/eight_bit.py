"""Moments in 8 bits as tensors: their codes lie in memory as their parameter does, and blocks follow that order."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import torch
from torch import Tensor

from fusestep import ops

BLOCK = 256


def absmax(key: str) -> str:
    """The key of the scales of a state, float32 of shape (blocks(param),)."""
    return f"{key}_absmax"


def blocks(param: Tensor) -> int:
    return -(-param.numel() // BLOCK)


def quantized(
    state: Mapping[str, Any], param: Tensor, moments: Container[str], squares: Container[str]
) -> dict[str, Any]:
    """A parameter's state with codes and scales in place of the moments of other dtypes."""
    result = {**state}
    for key, value in state.items():
        if key in moments and isinstance(value, Tensor) and value.dtype != torch.uint8:
            result[key], result[absmax(key)] = _quantize(value, param, key in squares)
    return result


def dequantized(state: Mapping[str, Any], squares: Container[str]) -> dict[str, Any]:
    """A parameter's state with float32 moments in place of codes and scales."""
    result = {**state}
    for key, value in state.items():
        if isinstance(value, Tensor) and value.dtype == torch.uint8:
            result[key] = _dequantize(value, result.pop(absmax(key)), key in squares)
    return result


def _quantize(values: Tensor, param: Tensor, square: bool) -> tuple[Tensor, Tensor]:
    """The codes of moments, laid out as the parameter, and their scales, on its device."""
    wide = torch.empty_like(param, dtype=torch.float32, device="cpu", requires_grad=False).copy_(values)
    codes = torch.empty_like(wide, dtype=torch.uint8)
    flat, scales = ops.quantize_8bit(_in_memory_order(wide).contiguous(), square=square)
    _in_memory_order(codes).copy_(flat)
    return codes.to(param.device), scales.to(param.device)


def _dequantize(codes: Tensor, scales: Tensor, square: bool) -> Tensor:
    """The moments, float32, laid out as their codes and on the same device."""
    values = torch.empty_like(codes, dtype=torch.float32, device="cpu")
    flat = ops.dequantize_8bit(_in_memory_order(codes.cpu()).contiguous(), scales.cpu(), square=square)
    _in_memory_order(values).copy_(flat)
    return values.to(codes.device)


def _in_memory_order(dense: Tensor) -> Tensor:
    """A view of a tensor without gaps whose elements, in C order, are those of the memory."""
    order = sorted(range(dense.ndim), key=dense.stride().__getitem__, reverse=True)
    return dense.permute(order)
