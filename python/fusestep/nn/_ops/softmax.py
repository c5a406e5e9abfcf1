"""The operators with a softmax inside: attention, and the masked softmax on its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusestep import _core

from .library import refuse_double_backward, register, runs_eagerly, seed_number, seed_tensor

Options = dict[str, Any]

# What both take: names as in the options of _core, types as in torch's schemas, values that say "not given".
_COMMON: dict[str, tuple[str, Any]] = {
    "mask": ("Tensor?", None),
    "causal": ("str?", None),
    "window": ("SymInt[]?", None),
    "key_lengths": ("Tensor?", None),
    "scale": ("float?", None),
    "dropout_p": ("float", 0.0),
    "seed": ("Tensor?", None),
    "offset": ("SymInt", 0),
}
_ATTENTION: dict[str, tuple[str, Any]] = {
    **_COMMON,
    "alibi_slopes": ("Tensor?", None),
    "softcap": ("float?", None),
    "cu_seqlens_q": ("Tensor?", None),
    "cu_seqlens_k": ("Tensor?", None),
}


@dataclass(frozen=True)
class Operator:
    """A forward and a backward kernel, and all that torch wants to know about them.

    The forward kernel fills ``out`` and the rows' log-sum-exp from ``inputs``; the backward kernel regenerates the
    weights (and the dropout mask) from the inputs and the log-sum-exp, and fills the gradients of the inputs and of an
    additive mask, those that are wanted.
    """

    name: str
    inputs: tuple[str, ...]
    options: Mapping[str, tuple[str, Any]]
    kernel: Callable[..., None]
    backward_kernel: Callable[..., None]
    allocate: Callable[..., tuple[Tensor, Tensor]]  # out and log-sum-exp for such inputs
    saves_out: bool  # whether the backward kernel reads out

    def __post_init__(self) -> None:
        def tensors(*names: str) -> str:
            return ", ".join(f"Tensor {name}" for name in names)

        options = ", ".join(f"{kind} {name}" for name, (kind, _) in self.options.items())
        saved = (*self.inputs, *(("out", "lse") if self.saves_out else ("lse",)))
        gradients = tensors(*(f"grad_{name}" for name in (*self.inputs, "mask")))
        register(
            f"{self.name}_forward({tensors(*self.inputs)}, {options}) -> (Tensor out, Tensor lse)",
            self._op_kernel,
            lambda *arguments: self.allocate(*arguments[: len(self.inputs)]),
            self._op_setup_context,
            self._op_backward,
        )
        register(
            f"{self.name}_backward({tensors('grad_out', *saved)}, {options}, bool[] needs) -> ({gradients})",
            self._op_backward_kernel,
            lambda _, *arguments: self._empty_gradients(arguments, arguments[-1]),
            lambda ctx, inputs, output: None,
            refuse_double_backward(self.name),
        )

    def __call__(self, operation: str, inputs: Sequence[Tensor], options: Options) -> tuple[Tensor, Tensor]:
        """out and log-sum-exp. ``options`` has what is given; ``operation`` is named by errors."""
        tensors = [*inputs, *[value for value in options.values() if isinstance(value, Tensor)]]
        if not runs_eagerly(tensors):
            arguments = self._op_arguments(options)
            out, lse = getattr(torch.ops.fusestep, f"{self.name}_forward").default(*inputs, *arguments)
            return out, lse
        options = _with_seed_number(options)
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            out, lse = _apply(self, operation, options, options.get("mask"), *inputs)
            return out, lse
        return self.forward(operation, inputs, options)

    def forward(self, operation: str, inputs: Sequence[Tensor], options: Options) -> tuple[Tensor, Tensor]:
        out, lse = self.allocate(*inputs)
        self.kernel(operation, *inputs, out, lse, _with_seed_number(options))
        return out, lse

    def save(self, ctx: Any, inputs: Sequence[Tensor], out: Tensor, lse: Tensor, options: Options) -> None:
        ctx.mark_non_differentiable(lse)
        tensors = {name: value for name, value in options.items() if isinstance(value, Tensor)}
        ctx.save_for_backward(*inputs, *((out, lse) if self.saves_out else (lse,)), *tensors.values())
        ctx.tensor_options = tuple(tensors)
        ctx.options = {name: value for name, value in options.items() if name not in tensors}

    def gradients(self, operation: str, grad_out: Tensor, ctx: Any, needs: Sequence[bool]) -> list[Tensor | None]:
        """Of the inputs and the mask; None where ``needs`` has False."""
        tensors = ctx.saved_tensors
        count = len(tensors) - len(ctx.tensor_options)
        saved = tensors[:count]
        options = {**ctx.options, **dict(zip(ctx.tensor_options, tensors[count:], strict=True))}
        if not torch.is_grad_enabled() and runs_eagerly((grad_out,)):
            return self.backward(operation, grad_out, saved, options, needs)
        # Somebody traces, or wants to derive once more, which the operator refuses once it is really asked.
        arguments = self._op_arguments(options)
        op = getattr(torch.ops.fusestep, f"{self.name}_backward").default
        return [
            grad if need else None for grad, need in zip(op(grad_out, *saved, *arguments, needs), needs, strict=True)
        ]

    def backward(
        self, operation: str, grad_out: Tensor, saved: Sequence[Tensor], options: Options, needs: Sequence[bool]
    ) -> list[Tensor | None]:
        of: tuple[Any, ...] = (*saved[: len(self.inputs)], options.get("mask"))
        grads = [torch.empty_like(t) if need else None for t, need in zip(of, needs, strict=True)]
        self.backward_kernel(operation, grad_out, *saved, *grads, _with_seed_number(options))
        return grads

    # What follows is for torch.ops: there, options are positional and a seed is a tensor.

    def _op_arguments(self, options: Options) -> list[Any]:
        options = {**{name: default for name, (_, default) in self.options.items()}, **options}
        if options["causal"] is True:
            options["causal"] = "top_left"
        if options["window"] is not None:
            options["window"] = [-1 if reach is None else reach for reach in options["window"]]
        if options["seed"] is not None:
            options["seed"] = seed_tensor(options["seed"])
        return [options[name] for name in self.options]

    def _given(self, arguments: Sequence[Any]) -> Options:
        options = zip(self.options, arguments, strict=True)
        return {name: value for name, value in options if value is not None}

    def _op_kernel(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        count = len(self.inputs)
        return self.forward(self.name, arguments[:count], self._given(arguments[count:]))

    def _op_setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        count = len(self.inputs)
        self.save(ctx, inputs[:count], *output, self._given(inputs[count:]))

    def _op_backward(self, ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # The mask is the first of the options: the gradients are those of the first arguments.
        count = len(self.inputs) + 1
        grads = self.gradients(self.name, grad_out, ctx, list(ctx.needs_input_grad[:count]))
        return (*grads, *[None] * (len(self.options) - 1))

    def _op_backward_kernel(self, grad_out: Tensor, *arguments: Any) -> list[Tensor]:
        *arguments_, needs = arguments
        count = len(arguments_) - len(self.options)
        grads = self.backward(self.name, grad_out, arguments_[:count], self._given(arguments_[count:]), needs)
        return [grad_out.new_empty(0) if grad is None else grad for grad in grads]

    def _empty_gradients(self, arguments: Sequence[Any], needs: Sequence[bool]) -> list[Tensor]:
        of = (*arguments[: len(self.inputs)], arguments[-1 - len(self.options)])  # the inputs and the mask
        return [torch.empty_like(t) if need else arguments[0].new_empty(0) for t, need in zip(of, needs, strict=True)]


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, operator: Operator, operation: str, options: Options, mask: Tensor | None, *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        out, lse = operator.forward(operation, inputs, options)
        ctx.set_materialize_grads(False)
        ctx.operator, ctx.operation = operator, operation
        operator.save(ctx, inputs, out, lse, options)
        return out, lse

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        _, _, _, mask_needs, *needs = ctx.needs_input_grad
        if grad_out is None:
            return (None,) * len(ctx.needs_input_grad)
        *grads, grad_mask = ctx.operator.gradients(ctx.operation, grad_out, ctx, [*needs, mask_needs])
        return (None, None, None, grad_mask, *grads)


_apply: Callable[..., tuple[Tensor, Tensor]] = _Function.apply


def _with_seed_number(options: Options) -> Options:
    seed = options.get("seed")
    return {**options, "seed": seed_number(seed)} if isinstance(seed, Tensor) else options


def _lse_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _allocate_attention(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    batch, heads, length, _ = query.shape
    features = value.shape[-1]
    # As (B, S, H, Dv) in memory, so that a model's out.transpose(1, 2).reshape(B, S, H * Dv) copies nothing.
    strides = (length * heads * features, features, heads * features, 1)
    out = query.new_empty_strided((batch, heads, length, features), strides)
    return out, query.new_empty((batch, heads, length), dtype=_lse_dtype(query))


def _allocate_softmax(scores: Tensor) -> tuple[Tensor, Tensor]:
    lse = torch.empty(scores.shape[:-1], dtype=_lse_dtype(scores), device=scores.device)
    return torch.empty_like(scores), lse


def _softmax_backward(
    operation: str,
    grad_out: Tensor,
    scores: Tensor,
    lse: Tensor,
    grad_scores: Tensor | None,
    grad_mask: Tensor | None,
    options: Options,
) -> None:
    # The kernel sums the mask's gradient from that of the scores, and so needs room for it in any case.
    room = torch.empty_like(scores) if grad_scores is None else grad_scores
    _core.masked_softmax_backward(operation, grad_out, scores, lse, room, grad_mask, options)


attention = Operator(
    "attention",
    ("query", "key", "value"),
    _ATTENTION,
    _core.attention_forward,
    _core.attention_backward,
    _allocate_attention,
    saves_out=True,
)
masked_softmax = Operator(
    "masked_softmax",
    ("scores",),
    _COMMON,
    _core.masked_softmax_forward,
    _softmax_backward,
    _allocate_softmax,
    saves_out=False,
)
