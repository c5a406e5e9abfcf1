"""The operators with a softmax inside: attention, and the masked softmax on its own.

Their options are a tuple, in the order that ``_core`` reads (cpp/bindings/attention_options.h); None: not given.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fusestep import _core
from fusestep._refusal import refuse

from .library import (
    Operator,
    SingleLevelFunction,
    are_many,
    call_each,
    new_like,
    refuse_double_backward,
    refuse_forward_mode,
    runs_eagerly,
    seed_for_core,
    seed_tensor,
)

Options = tuple[Any, ...]

# The types of the options in torch's schemas, in the order of the tuple. The masked softmax has the first eight.
_SOFTMAX = {
    "mask": "Tensor?",
    "causal": "str?",
    "window": "SymInt[]?",
    "key_lengths": "Tensor?",
    "scale": "float?",
    "dropout_p": "float",
    "seed": "Tensor?",
    "offset": "SymInt",
}
_ATTENTION = {
    **_SOFTMAX,
    "alibi_slopes": "Tensor?",
    "softcap": "float?",
    "cu_seqlens_q": "Tensor?",
    "cu_seqlens_k": "Tensor?",
}
_MASK, _CAUSAL, _WINDOW, _KEY_LENGTHS, _, _DROPOUT_P, _SEED, _, _ALIBI_SLOPES, _, _CU_SEQLENS_Q, _ = range(12)
_SCALARS = frozenset({type(None), bool, int, float, str, tuple, list})


@dataclass(frozen=True)
class SoftmaxOperator:
    """A forward and a backward kernel, and what torch is told of them.

    The forward kernel returns out and the rows' log-sum-exp, which may be None where lse_dtype is. The backward kernel
    makes the weights (and the dropout mask) again from the inputs and the log-sum-exp, and fills the gradients of the
    inputs and of an additive mask, those that are not None.
    """

    name: str
    inputs: tuple[str, ...]
    options: Mapping[str, str]
    kernel: Callable[..., tuple[Tensor, Any]]  # (operation, *inputs, lse_dtype, options)
    backward_kernel: Callable[..., None]
    fake_out: Callable[..., Tensor]  # out without content, for such inputs
    saves_out: bool  # whether the backward kernel reads out

    def __call__(
        self, operation: str, inputs: tuple[Tensor, ...], options: Options, wants_lse: bool
    ) -> tuple[Tensor, Tensor | None]:
        """out, and the log-sum-exp where it is wanted. ``operation`` is named by errors."""
        if not runs_eagerly((*inputs, *options)) or inputs[0].is_meta:
            for name, x in zip(self.inputs, inputs, strict=True):
                if x.is_nested is True:  # torch.fx.Proxy has no answer
                    refuse(operation, name, "an ordinary tensor", "a nested one")
            out, lse = getattr(torch.ops.fusestep, f"{self.name}_forward").default(*inputs, *_op_options(options))
            return out, lse
        options = _for_core(options, inputs[0].device)
        if torch.is_grad_enabled():
            mask = options[_MASK]
            for x in inputs if mask is None else (*inputs, mask):
                if x.requires_grad:
                    out, lse = _apply(self, operation, options, mask, *inputs)
                    return out, lse
        return self.kernel(operation, *inputs, _lse_dtype(inputs[0]) if wants_lse else None, options)

    def save(self, ctx: Any, inputs: tuple[Tensor, ...], out: Tensor, lse: Tensor, options: Options) -> None:
        ctx.mark_non_differentiable(lse)
        saved = (*inputs, out, lse) if self.saves_out else (*inputs, lse)
        if _SCALARS.issuperset(map(type, options)):
            ctx.options, ctx.tensor_options = options, ()
        else:
            ctx.tensor_options = tuple(i for i, option in enumerate(options) if isinstance(option, Tensor))
            ctx.options = tuple(None if isinstance(option, Tensor) else option for option in options)
            saved += tuple(options[i] for i in ctx.tensor_options)
        ctx.save_for_backward(*saved)

    def gradients(self, operation: str, grad_out: Tensor, ctx: Any, needs: Sequence[bool]) -> list[Tensor | None]:
        """Of the inputs and the mask; None where ``needs`` has False."""
        saved, options = ctx.saved_tensors, ctx.options
        if ctx.tensor_options:
            count = len(saved) - len(ctx.tensor_options)
            given = list(options)
            for i, option in zip(ctx.tensor_options, saved[count:], strict=True):
                given[i] = option
            saved, options = saved[:count], tuple(given)
        if not torch.is_grad_enabled() and not are_many(grad_out) and runs_eagerly((grad_out, *saved)):
            return self.backward(operation, grad_out, saved, options, needs)
        # Traced or transformed, or it may be derived once more, which the operator refuses when that is really asked.
        op = getattr(torch.ops.fusestep, f"{self.name}_backward").default
        grads = op(grad_out, *saved, *_op_options(options), needs)
        return [grad if need else None for grad, need in zip(grads, needs, strict=True)]

    def backward(
        self, operation: str, grad_out: Tensor, saved: Sequence[Tensor], options: Options, needs: Sequence[bool]
    ) -> list[Tensor | None]:
        of = (*saved[: len(self.inputs)], options[_MASK])
        grads = [new_like(x) if need else None for x, need in zip(of, needs, strict=True)]
        self.backward_kernel(operation, grad_out, *saved, *grads, _for_core(options, grad_out.device))
        return grads

    def register(self) -> None:
        def tensors(*names: str) -> str:
            return ", ".join(f"Tensor {name}" for name in names)

        options = ", ".join(f"{kind} {name}" for name, kind in self.options.items())
        saved = (*self.inputs, *(("out", "lse") if self.saves_out else ("lse",)))
        gradients = tensors(*(f"grad_{name}" for name in (*self.inputs, "mask")))
        Operator(
            f"{self.name}_forward({tensors(*self.inputs)}, {options}) -> (Tensor out, Tensor lse)",
            self._op_kernel,
            self._op_fake,
            self._op_setup_context,
            self._op_backward,
            refuse_forward_mode(self.name),
            self._op_vmap,
        ).register()
        Operator(
            f"{self.name}_backward({tensors('grad_out', *saved)}, {options}, bool[] needs) -> ({gradients})",
            self._op_backward_kernel,
            self._op_backward_fake,
            lambda ctx, inputs, output: None,
            refuse_double_backward(self.name),
            refuse_forward_mode(self.name),
            self._op_backward_vmap,
        ).register()

    # What follows is for torch.ops: there, a seed is a tensor.

    def _op_kernel(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        inputs, options = arguments[: len(self.inputs)], arguments[len(self.inputs) :]
        return self.kernel(self.name, *inputs, _lse_dtype(inputs[0]), _for_core(options, inputs[0].device))

    def _op_fake(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        return self.fake_out(*arguments[: len(self.inputs)]), _empty_lse(arguments[0])

    def _op_setup_context(self, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        self.save(ctx, inputs[: len(self.inputs)], *output, inputs[len(self.inputs) :])

    def _op_backward(self, ctx: Any, grad_out: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        # The mask is the first of the options: the gradients are those of the first inputs. The operator's own first
        # input is its dispatch key set.
        count = len(self.inputs) + 1
        grads = self.gradients(self.name, grad_out, ctx, list(ctx.needs_input_grad[1 : 1 + count]))
        return (*grads, *[None] * (len(self.options) - 1))

    def _op_backward_kernel(self, grad_out: Tensor, *arguments: Any) -> list[Tensor]:
        *arguments_, needs = arguments
        count = len(arguments_) - len(self.options)
        saved, options = arguments_[:count], tuple(arguments_[count:])
        grads = self.backward(self.name, grad_out, saved, options, needs)
        return [grad_out.new_empty(0) if grad is None else grad for grad in grads]

    def _op_backward_fake(self, _: Tensor, *arguments: Any) -> list[Tensor]:
        of = (*arguments[: len(self.inputs)], arguments[-1 - len(self.options)])  # the inputs and the mask
        needs = arguments[-1]
        return [torch.empty_like(t) if need else arguments[0].new_empty(0) for t, need in zip(of, needs, strict=True)]

    # vmap: the mapped dimension becomes a part of the batch where that leaves every example its result.

    def _op_vmap(self, info: Any, in_dims: Sequence[Any], *arguments: Any) -> Any:
        op = getattr(torch.ops.fusestep, f"{self.name}_forward").default
        count = len(self.inputs)
        options = arguments[count:]
        if not _folds(options):
            return call_each(op)(info, in_dims, *arguments)
        batch = _Fold(info.batch_size, arguments[0], in_dims[0])
        inputs = [batch.fold(x, dim) for x, dim in zip(arguments[:count], in_dims[:count], strict=True)]
        outputs = op(*inputs, *batch.fold_options(options, in_dims[count:]))
        return tuple(batch.unfold(x, like_lse) for x, like_lse in zip(outputs, (False, True), strict=True)), (0, 0)

    def _op_backward_vmap(self, info: Any, in_dims: Sequence[Any], *arguments: Any) -> Any:
        op = getattr(torch.ops.fusestep, f"{self.name}_backward").default
        *arguments_, needs = arguments
        count = len(arguments_) - len(self.options)
        saved, options = arguments_[:count], tuple(arguments_[count:])
        if needs[-1] or not _folds(options):  # a folded mask's gradient would be summed over the examples
            return call_each(op)(info, in_dims, *arguments)
        batch = _Fold(info.batch_size, arguments[1], in_dims[1])
        lse = count - 1
        folded = [batch.fold(x, dim, i == lse) for i, (x, dim) in enumerate(zip(saved, in_dims[:count], strict=True))]
        grads = op(*folded, *batch.fold_options(options, in_dims[count:-1]), needs)
        return (
            tuple(batch.unfold(grad, False) if need else grad for grad, need in zip(grads, needs, strict=True)),
            tuple(0 if need else None for need in needs),
        )


def _folds(options: Options) -> bool:
    """Whether examples may go side by side in one batch: dropout counts batches, and packed sequences are one batch."""
    return options[_DROPOUT_P] == 0.0 and (len(options) == len(_SOFTMAX) or options[_CU_SEQLENS_Q] is None)


class _Fold:
    """The mapped dimension as a part of the batch: (N, B, H, S, D) to (N * B, H, S, D), and back.

    Args:
        examples: N.
        first: the first input, mapped along dimension `dim` (None: it is not): what has fewer than four dimensions
            (the scores of a masked softmax) lacks the leading ones.
    """

    def __init__(self, examples: int, first: Tensor, dim: int | None) -> None:
        self.examples = examples
        own_dims = first.dim() - (dim is not None)
        self.missing = 4 - own_dims
        self.batch = 1 if self.missing > 0 else self._first(first, dim).shape[1]

    def _first(self, x: Tensor, dim: int | None) -> Tensor:
        """The examples first."""
        return x.expand(self.examples, *x.shape) if dim is None else x.movedim(dim, 0)

    def _padded(self, x: Tensor, dims: int) -> Tensor:
        return x.reshape(x.shape[0], *[1] * (dims + 1 - x.dim()), *x.shape[1:])

    def fold(self, x: Tensor, dim: int | None, is_lse: bool = False) -> Tensor:
        return self._padded(self._first(x, dim), 3 if is_lse else 4).flatten(0, 1)

    def unfold(self, x: Tensor, is_lse: bool) -> Tensor:
        x = x.reshape(self.examples, self.batch, *x.shape[1:])
        for _ in range(self.missing):
            x = x.squeeze(1)
        return x

    def fold_options(self, options: Options, dims: Sequence[Any]) -> Options:
        folded = list(options)
        mask, lengths = options[_MASK], options[_KEY_LENGTHS]
        if mask is not None:
            has_batch = mask.dim() - (dims[_MASK] is not None) == 4
            if dims[_MASK] is not None or (has_batch and mask.shape[0] != 1):
                mask = self._padded(self._first(mask, dims[_MASK]), 4)
                folded[_MASK] = mask.expand(-1, self.batch, -1, -1, -1).flatten(0, 1)
        if lengths is not None:
            folded[_KEY_LENGTHS] = self._first(lengths, dims[_KEY_LENGTHS]).flatten()
        slopes = options[_ALIBI_SLOPES] if len(options) > _ALIBI_SLOPES else None
        if slopes is not None:
            slopes = self._padded(self._first(slopes, dims[_ALIBI_SLOPES]), 2)
            folded[_ALIBI_SLOPES] = slopes.expand(-1, self.batch, -1).flatten(0, 1)
        return tuple(folded)


class _Function(SingleLevelFunction):  # type: ignore[misc]  # torch's own is untyped
    @staticmethod
    def forward(
        ctx: Any, operator: SoftmaxOperator, operation: str, options: Options, mask: Tensor | None, *inputs: Tensor
    ) -> tuple[Tensor, Tensor]:
        out, lse = operator.kernel(operation, *inputs, _lse_dtype(inputs[0]), options)
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


def _op_options(options: Options) -> list[Any]:
    """For torch's schemas."""
    given = list(options)
    if isinstance(given[_CAUSAL], bool):
        given[_CAUSAL] = "top_left" if given[_CAUSAL] else None
    if given[_WINDOW] is not None:
        given[_WINDOW] = [-1 if reach is None else reach for reach in given[_WINDOW]]
    if given[_SEED] is not None:
        given[_SEED] = seed_tensor(given[_SEED])
    return given


def _for_core(options: Options, device: torch.device) -> Options:
    seed = options[_SEED]
    if not isinstance(seed, Tensor):
        return options
    return (*options[:_SEED], seed_for_core(seed, device), *options[_SEED + 1 :])


def _lse_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _empty_lse(x: Tensor) -> Tensor:
    """Room for a number for each row of query or scores."""
    return x.new_empty(x.shape[:-1], dtype=_lse_dtype(x))


def _attention_fake(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    batch, heads, length, _ = query.shape
    features = value.shape[-1]
    # As (batch, queries, heads, features) in memory: see cpp/bindings/attention.cpp.
    strides = (length * heads * features, features, heads * features, 1)
    return query.new_empty_strided((batch, heads, length, features), strides)


def _softmax_kernel(operation: str, scores: Tensor, _: object, options: Options) -> tuple[Tensor, Tensor]:
    out, lse = new_like(scores), _empty_lse(scores)
    _core.masked_softmax_forward(operation, scores, out, lse, options)
    return out, lse


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


attention = SoftmaxOperator(
    "attention",
    ("query", "key", "value"),
    _ATTENTION,
    _core.attention,
    _core.attention_backward,
    _attention_fake,
    saves_out=True,
)
masked_softmax = SoftmaxOperator(
    "masked_softmax",
    ("scores",),
    _SOFTMAX,
    _softmax_kernel,
    _softmax_backward,
    torch.empty_like,
    saves_out=False,
)
attention.register()
masked_softmax.register()
