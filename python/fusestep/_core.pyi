from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, overload

__version__: str

class _Info(TypedDict):
    version: str
    simd_compiled: list[str]
    simd: str
    threads: int
    thread_source: str
    cuda_architectures: list[str]
    cuda_devices: list[str]
    cuda_attention: list[str]

class _Optimizer(TypedDict):
    states: list[str]
    squares: list[bool]
    options: dict[str, Any]
    option_docs: dict[str, str]
    doc: str

# (options, params, grads, states, steps, companions, numbers): see optimizer_step in cpp/bindings/optim.cpp.
Group = tuple[
    Mapping[str, Any],
    Sequence[Any],
    Sequence[Any],
    tuple[Sequence[Any] | None, ...],
    int | Sequence[Any],
    Sequence[Any] | None,
    Sequence[Any] | None,
]

def info() -> _Info: ...
def set_num_threads(n: int) -> None: ...
def get_num_threads() -> int: ...
def prefer_huge_pages(address: int, bytes: int) -> None: ...
def optimizers() -> dict[str, _Optimizer]: ...
def check_options(operation: str, name: str, options: Mapping[str, Any]) -> None: ...
def check_clipping(operation: str, clipping: Mapping[str, Any]) -> None: ...
def defers(array: Any) -> bool: ...
def optimizer_step(
    operation: str,
    name: str,
    groups: list[Group],
    clipping: Mapping[str, Any],
    deferred: Mapping[str, Any] | None = None,
    totals: Any | None = None,
) -> tuple[float | None, bool]: ...
@overload
def grad_total(operation: str, grads: Sequence[Any], norm_type: float, out: None = None) -> float: ...
@overload
def grad_total(operation: str, grads: Sequence[Any], norm_type: float, out: Any) -> None: ...
@overload
def grad_norm(
    operation: str, grads: Sequence[Any], norm_type: float, out: None = None, totals: Any | None = None
) -> float: ...
@overload
def grad_norm(operation: str, grads: Sequence[Any], norm_type: float, out: Any, totals: Any | None = None) -> None: ...
@overload
def clip_grad_norm_(
    operation: str, grads: Sequence[Any], clipping: Mapping[str, Any], out: None = None, totals: Any | None = None
) -> float: ...
@overload
def clip_grad_norm_(
    operation: str, grads: Sequence[Any], clipping: Mapping[str, Any], out: Any, totals: Any | None = None
) -> None: ...
def quantize_8bit(operation: str, values: Any, codes: Any, absmax: Any, square: bool) -> None: ...
def dequantize_8bit(operation: str, values: Any, codes: Any, absmax: Any, square: bool) -> None: ...
def clip_grad_value_(operation: str, grads: Sequence[Any], clip_value: float) -> None: ...

# The options of attention and the masked softmax: see cpp/bindings/attention_options.h.
def attention_forward(
    operation: str, query: Any, key: Any, value: Any, out: Any, lse: Any, options: tuple[Any, ...]
) -> None: ...
def attention(
    operation: str, query: Any, key: Any, value: Any, lse_dtype: Any | None, options: tuple[Any, ...]
) -> tuple[Any, Any | None]: ...
def attention_backward(
    operation: str,
    grad_out: Any,
    query: Any,
    key: Any,
    value: Any,
    out: Any,
    lse: Any,
    grad_query: Any | None,
    grad_key: Any | None,
    grad_value: Any | None,
    grad_mask: Any | None,
    options: tuple[Any, ...],
) -> None: ...
def read_tensors(arrays: Sequence[Any]) -> int: ...
def fma_peak(pieces: int) -> int: ...
def has_bf16_products(level: str) -> bool: ...
def bf16_multiply(level: str, a: Any, b: Any, c: Any, steps: int, adds: bool) -> None: ...
def bf16_narrow(level: str, even: Any, odd: Any, row: Any, pairs: Any) -> None: ...
def stream_floor(updated: list[Any], read: list[Any] = ..., written: list[Any] = ...) -> None: ...
def cross_entropy(
    operation: str,
    logits: Any,
    labels: Any,
    loss: Any,
    lse: Any,
    grad: Any | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    reduction: str,
) -> None: ...
def dropout(operation: str, x: Any, out: Any, p: float, seed: Any, offset: int) -> None: ...
def dropout_add(operation: str, x: Any, residual: Any, out: Any, p: float, seed: Any, offset: int) -> None: ...
def masked_softmax_forward(operation: str, scores: Any, out: Any, lse: Any, options: tuple[Any, ...]) -> None: ...
def masked_softmax_backward(
    operation: str,
    grad_out: Any,
    scores: Any,
    lse: Any,
    grad_scores: Any,
    grad_mask: Any,
    options: tuple[Any, ...],
) -> None: ...
