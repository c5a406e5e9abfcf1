"""The torch library "fusestep", and what its operators share.

There are two ways to a kernel. Code that simply runs calls ``_core`` at once: two passes through torch's dispatcher in
Python cost more than the attention of a small model. Everything else (a compiler, a transform of ``torch.func``, a
mode, a subclass, forward-mode AD) meets the operators as ``torch.ops.fusestep.*``, with a fake kernel, an autograd
formula and a rule for vmap each. ``runs_eagerly`` alone decides between the two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._functorch import autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from fusestep import _core
from fusestep._refusal import refuse

_library = torch.library.Library("fusestep", "DEF")  # type: ignore[no-untyped-call]
_U64 = 2**64
_LARGE = 2**23  # bytes

# A torch.autograd.Function without its look at torch.func's transforms, which costs 2 microseconds a call, and which
# inside an operator, where torch has entered the transform's level already, would refuse every function.
SingleLevelFunction: Any = _SingleLevelFunction

# Looked up once: runs_eagerly is asked in every call.
_is_compiling = torch.compiler.is_compiling
_num_dispatch_modes = torch._C._len_torch_dispatch_stack
_has_function_mode = torch._C._is_torch_function_mode_enabled
_has_transforms = torch._C._are_functorch_transforms_active
_is_jit_tracing = torch._C._is_tracing

_PLAIN_TYPES = frozenset({Tensor, torch.nn.Parameter, type(None), bool, int, float, str, tuple, list})


@dataclass(frozen=True)
class Operator:
    """What torch is told of ``torch.ops.fusestep.<schema>``.

    The functions that take a ctx are those of a torch.autograd.Function whose inputs are the operator's.

    Args:
        kernel: takes tensors of every device: ``_core`` chooses by it.
        fake: results without content.
        setup_context: (ctx, inputs, output).
        backward: (ctx, *grads) -> gradients of the inputs.
        jvp: (ctx, *tangents) -> tangents of the outputs.
        vmap: (info, in_dims, *inputs) -> (outputs, out_dims); None: one call for each example.
    """

    schema: str
    kernel: Callable[..., Any]
    fake: Callable[..., Any]
    setup_context: Callable[..., None]
    backward: Callable[..., Any]
    jvp: Callable[..., Any]
    vmap: Callable[..., Any] | None = None

    def register(self) -> None:
        name = "fusestep::" + self.schema[: self.schema.index("(")]
        # The kernels take any strides, but what they allocate lies in the order of the inputs: these must not change.
        tags = (torch.Tag.needs_fixed_stride_order, torch.Tag.pt2_compliant_tag)
        _library.define(self.schema, tags=tags)  # type: ignore[no-untyped-call]
        for device in ("CPU", "CUDA"):
            _library.impl(name, self.kernel, device)  # type: ignore[no-untyped-call]
        torch.library.register_fake(name, self.fake, lib=_library)
        op = getattr(torch.ops.fusestep, name.removeprefix("fusestep::")).default
        _library.impl(name, self._autograd(op), "Autograd", with_keyset=True)  # type: ignore[no-untyped-call]
        torch.library.register_vmap(name, self.vmap or call_each(op), lib=_library)

    def _autograd(self, op: Any) -> Callable[..., Any]:
        """As torch.library.register_autograd, but for every level of torch.func and with forward mode."""

        def forward(ctx: Any, caller: tuple[Any, bool, bool], *inputs: Any) -> Any:
            keyset, records_grad, records_forward_mode = caller
            with ExitStack() as modes:
                if _has_transforms():
                    # A function runs its forward with recording off. But here the levels around this one are called,
                    # which record too: with it off, the second derivative would come out as zero.
                    modes.enter_context(torch.set_grad_enabled(records_grad))
                    modes.enter_context(forward_ad._set_fwd_grad_enabled(records_forward_mode))
                modes.enter_context(torch._C._AutoDispatchBelowAutograd())
                output = op.redispatch(keyset & torch._C._after_autograd_keyset, *inputs)
            self.setup_context(ctx, inputs, output)
            return output

        def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
            return None, *self.backward(ctx, *grads)

        def jvp(ctx: Any, _: None, *tangents: Any) -> Any:
            return self.jvp(ctx, *tangents)

        members = {"forward": forward, "backward": backward, "jvp": jvp}
        name = f"fusestep_{op._opname}"
        function: Any = type(name, (SingleLevelFunction,), {k: staticmethod(v) for k, v in members.items()})

        def kernel(keyset: Any, *inputs: Any) -> Any:
            caller = keyset, torch.is_grad_enabled(), torch._C._is_fwd_grad_enabled()
            with autograd_function.enable_single_level_autograd_function():  # type: ignore[attr-defined]  # not exported
                return function.apply(caller, *inputs)

        return kernel


def call_each(op: Callable[..., Any]) -> Callable[..., Any]:
    """The rule for vmap that is right for every operator: a call for each example.

    A random mask is a function of its seed and of positions within the example. So a seed that is given drops the same
    elements of every example; one that is drawn is drawn by torch.randint, which knows vmap's `randomness`.
    """

    def rule(info: Any, in_dims: Sequence[Any], *inputs: Any) -> tuple[Any, Any]:
        def of_example(x: Any, dim: Any, n: int) -> Any:
            return x.select(dim, n) if isinstance(x, Tensor) and dim is not None else x

        outputs = [
            op(*(of_example(x, dim, n) for x, dim in zip(inputs, in_dims, strict=True))) for n in range(info.batch_size)
        ]
        if isinstance(outputs[0], Tensor):
            return torch.stack(outputs), 0
        return tuple(torch.stack(of_all) for of_all in zip(*outputs, strict=True)), (0,) * len(outputs[0])

    return rule


def refuse_double_backward(name: str) -> Callable[..., NoReturn]:
    """The autograd formula of a backward operator: there is none."""

    def backward(*_: object) -> NoReturn:
        refuse(
            name,
            "gradients",
            "first derivatives only",
            "a derivative of its gradients",
            "Double backward is not implemented: torch.nn.functional has operations that can be derived twice.",
            RuntimeError,
        )

    return backward


def refuse_forward_mode(name: str) -> Callable[..., NoReturn]:
    """The jvp of an operator that has none."""

    def jvp(*_: object) -> NoReturn:
        refuse(
            name,
            "tangents",
            "reverse-mode derivatives only",
            "a forward-mode derivative",
            "Forward mode is not implemented: torch.nn.functional has operations that can be derived in it.",
            RuntimeError,
        )

    return jvp


def new_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Room for a result like ``x``. On a CPU a large one asks for huge pages: it is written for the first time."""
    out = torch.empty_like(x, dtype=dtype)
    if out.nbytes >= _LARGE and out.device.type == "cpu":
        _core.prefer_huge_pages(out.data_ptr(), out.nbytes)
    return out


def runs_eagerly(values: Iterable[Any]) -> bool:
    """Whether these are ordinary tensors (and options) of code that simply runs, so that ``_core`` may be called.

    It must say no wherever torch has to see a call: a transform that does not would be dropped without a word.
    """
    return not (
        _is_compiling()
        or _num_dispatch_modes()
        or _has_function_mode()
        or _has_transforms()
        or _is_jit_tracing()
        or forward_ad._current_level >= 0
        or not _PLAIN_TYPES.issuperset(map(type, values))
    )


def are_many(grad: Tensor) -> bool:
    """Whether it is the gradients of many outputs at once (is_grads_batched), for which torch has a vmap of its own."""
    return torch._C._functorch.is_legacy_batchedtensor(grad)


def draw_seed(device: torch.device) -> Tensor:
    """A new seed from torch's default CPU generator: manual_seed and activation checkpointing reproduce it.

    While a CUDA graph captures, it comes from the device's generator instead: each replay draws another one there.
    """
    captured = device.type == "cuda" and not _is_compiling() and torch.cuda.is_current_stream_capturing()
    return torch.randint(2**63 - 1, (), dtype=torch.int64, device=device if captured else "cpu")


def check_seed(operation: str, seed: int | Tensor) -> None:
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.dim() != 0:
            refuse(
                operation, "seed", "a 0-dim int64 tensor", f"{seed.dtype} of shape {tuple(seed.shape)}", error=TypeError
            )
    elif isinstance(seed, bool) or not isinstance(seed, (int, torch.SymInt)):
        refuse(operation, "seed", "an integer or a 0-dim int64 tensor", repr(seed), error=TypeError)


def seed_for_core(seed: int | Tensor, device: torch.device) -> int | Tensor:
    """For ``_core``, which draws on `device`: a tensor that lies there is read there, and the host does not wait."""
    if not isinstance(seed, Tensor) or (seed.is_cuda and seed.device == device):
        return seed
    return int(seed.item()) % _U64  # tensors hold the 64 bits of a seed as a signed number


def seed_tensor(seed: int | Tensor) -> Tensor:
    """For ``torch.ops``."""
    if isinstance(seed, Tensor):
        return seed
    return torch.full((), seed - _U64 if seed >= _U64 // 2 else seed, dtype=torch.int64, device="cpu")
