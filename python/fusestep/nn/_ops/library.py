"""The torch library "fusestep", and what its operators share.

Code that is traced (torch.compile, export, fake tensors) meets the operators as ``torch.ops.fusestep.*``, with fake
kernels and autograd formulas. Code that simply runs takes a shorter way, straight into ``_core``: two trips through
torch's dispatcher in Python cost more than the attention of a small model. Both ways call the same kernels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from fusestep._refusal import refuse

_library = torch.library.Library("fusestep", "DEF")  # type: ignore[no-untyped-call]
_U64 = 2**64
_PLAIN_TYPES = (Tensor, torch.nn.Parameter)


def register(
    schema: str,
    kernel: Callable[..., Any],
    fake: Callable[..., Any],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> None:
    """Defines ``torch.ops.fusestep.<schema>``. ``kernel`` takes tensors of every device: ``_core`` chooses by it."""
    name = "fusestep::" + schema[: schema.index("(")]
    # The kernels take any strides, but what they allocate lies in the order of the inputs: these must not change it.
    tags = (torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag)
    _library.define(schema, tags=tags)  # type: ignore[no-untyped-call]
    for device in ("CPU", "CUDA"):
        _library.impl(name, kernel, device)  # type: ignore[no-untyped-call]
    torch.library.register_fake(name, fake, lib=_library)
    torch.library.register_autograd(name, backward, setup_context=setup_context, lib=_library)


def refuse_double_backward(name: str) -> Callable[..., None]:
    """The autograd formula of a backward operator: there is none."""

    def backward(*_: object) -> None:
        refuse(
            name,
            "gradients",
            "first derivatives only",
            "a derivative of its gradients",
            "Double backward is not implemented: torch.nn.functional has operations that can be derived twice.",
            RuntimeError,
        )

    return backward


def runs_eagerly(tensors: Iterable[Tensor]) -> bool:
    """Whether these are ordinary tensors with nobody watching, so that ``_core`` may be called on the spot."""
    if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return False
    if torch._C._are_functorch_transforms_active():
        return False
    for tensor in tensors:  # noqa: SIM110  # a microsecond quicker than all()
        if type(tensor) not in _PLAIN_TYPES or tensor.is_meta:
            return False
    return True


def draw_seed() -> Tensor:
    """A new seed from torch's default CPU generator: manual_seed and activation checkpointing reproduce it."""
    return torch.randint(2**63 - 1, (), dtype=torch.int64, device="cpu")


def check_seed(operation: str, seed: int | Tensor) -> None:
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.dim() != 0:
            refuse(
                operation, "seed", "a 0-dim int64 tensor", f"{seed.dtype} of shape {tuple(seed.shape)}", error=TypeError
            )
    elif isinstance(seed, bool) or not isinstance(seed, (int, torch.SymInt)):
        refuse(operation, "seed", "an integer or a 0-dim int64 tensor", repr(seed), error=TypeError)


def seed_number(seed: int | Tensor) -> int:
    """For ``_core``: tensors hold the 64 bits of a seed as a signed number."""
    return int(seed.item()) % _U64 if isinstance(seed, Tensor) else seed


def seed_tensor(seed: int | Tensor) -> Tensor:
    """For ``torch.ops``."""
    if isinstance(seed, Tensor):
        return seed
    return torch.full((), seed - _U64 if seed >= _U64 // 2 else seed, dtype=torch.int64, device="cpu")
