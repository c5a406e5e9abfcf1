"""Other libraries that are measured beside us where they are installed; none of them is required.

PEERS is the whole list: a name, what is imported, and how to build a step of each operation that the library has. To
add a library, add a row and a function that builds its step.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from .cases import Storage
from .timing import Contestant

Step = Callable[[], object]

LR = 1e-3
COMPILED = "torch compiled"

# The operations that a peer may have; what each builder is given stands beside it.
ADAMW = "AdamW"  # storage
CLIP_ADAMW = "clip + AdamW"  # storage, the greatest norm
EIGHT_BIT = "AdamW, 8-bit moments"  # storage
FUNCTION = "a function of torch"  # the function, and what makes a step of it

# A peer whose step takes longer is named with that time instead of being measured.
SLOWEST_SECONDS = 2.0

# Compiling an optimizer over more tensors than this takes longer than everything else that is measured.
MOST_COMPILED_TENSORS = 200


def _compiled_adamw(storage: Storage) -> Step:
    optimizer = torch.optim.AdamW(storage.params, lr=LR, foreach=True)
    storage.lend_states(optimizer, ("exp_avg", "exp_avg_sq"), counts_steps=True)
    if len(storage.params) > MOST_COMPILED_TENSORS:
        raise LeftOut(f"compiling {len(storage.params):,} tensors takes minutes")
    torch._dynamo.reset()  # else the shapes of earlier rows count against its limit of recompilations
    return torch.compile(optimizer.step)


def _compiled_function(function: Callable[..., torch.Tensor], make_step: Callable[[Any], Step]) -> Step:
    torch._dynamo.reset()
    return make_step(torch.compile(function))


def _deepspeed_adamw(storage: Storage) -> Step:
    from deepspeed.ops.adam import DeepSpeedCPUAdam

    optimizer = DeepSpeedCPUAdam(storage.params, lr=LR, weight_decay=1e-2, adamw_mode=True)
    return lambda: optimizer.step()


def _optax_step(storage: Storage, make: Callable[[Any], Any]) -> Step:
    """Compiled, its arrays donated, so that it updates in place as the others do; on copies of our values."""
    import jax
    import optax

    if len(os.sched_getaffinity(0)) != torch.get_num_threads():
        raise LeftOut("XLA takes every CPU: comparable only with as many --threads")
    optimizer = make(optax)
    params = [jax.numpy.asarray(p.detach().numpy().copy()) for p in storage.params]
    grads = [jax.numpy.asarray(g.numpy()) for g in storage.grads]
    state = optimizer.init(params)

    def update(params: Any, state: Any, grads: Any) -> Any:
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(update, donate_argnums=(0, 1))

    def step() -> None:
        nonlocal params, state
        params, state = compiled(params, state, grads)
        jax.block_until_ready(params)

    return step


def _optax_adamw(storage: Storage) -> Step:
    return _optax_step(storage, lambda optax: optax.adamw(LR, weight_decay=1e-2))


def _optax_clip_adamw(storage: Storage, max_norm: float) -> Step:
    return _optax_step(
        storage, lambda optax: optax.chain(optax.clip_by_global_norm(max_norm), optax.adamw(LR, weight_decay=1e-2))
    )


def _bitsandbytes_adamw(storage: Storage) -> Step:
    from bitsandbytes.optim import AdamW8bit

    optimizer = AdamW8bit(storage.params, lr=LR)
    return lambda: optimizer.step()


def _torchao_adamw(storage: Storage) -> Step:
    from torchao.optim import AdamW8bit

    torch._dynamo.reset()
    optimizer = AdamW8bit(storage.params, lr=LR)
    return lambda: optimizer.step()


class LeftOut(Exception):
    """Why a peer is not measured in a row."""


@dataclass(frozen=True)
class Peer:
    """A library. steps: what builds its step, by operation. compiles: it does so first, for longer than a quick run.

    needs_cuda: it has kernels for CUDA devices alone, and is named here so that nobody misses it.
    """

    name: str
    distribution: str
    module: str  # looked for, and imported only where a step is built
    steps: Mapping[str, Callable[..., Step]] = field(default_factory=dict)
    compiles: bool = False
    needs_cuda: bool = False


PEERS = (
    Peer(COMPILED, "torch", "torch", {ADAMW: _compiled_adamw, FUNCTION: _compiled_function}, compiles=True),
    Peer("DeepSpeedCPUAdam", "deepspeed", "deepspeed.ops.adam", {ADAMW: _deepspeed_adamw}, compiles=True),
    Peer("optax", "optax", "optax", {ADAMW: _optax_adamw, CLIP_ADAMW: _optax_clip_adamw}),
    Peer("bitsandbytes", "bitsandbytes", "bitsandbytes.optim", {EIGHT_BIT: _bitsandbytes_adamw}, compiles=True),
    Peer("torchao", "torchao", "torchao.optim", {EIGHT_BIT: _torchao_adamw}, compiles=True),
    Peer("Liger-Kernel", "liger-kernel", "liger_kernel", needs_cuda=True),
    Peer("FlashAttention", "flash-attn", "flash_attn", needs_cuda=True),
    Peer("xFormers", "xformers", "xformers", needs_cuda=True),
)


class Peers:
    """Those that can be measured here, and a record of who was and who was not."""

    def __init__(self, quick: bool = False, peers: tuple[Peer, ...] = PEERS) -> None:
        self._peers = peers
        self._records = {peer.name: _Record(_version(peer), _why_never(peer, quick)) for peer in peers}

    def contestants(self, operation: str, *given: Any, max_rounds: int | None = None) -> list[Contestant]:
        """The peers that have the operation, each after its first step: compiled, and with its state."""
        found = []
        for peer in self._peers:
            record = self._records[peer.name]
            if operation not in peer.steps or record.never is not None:
                continue
            try:
                with _without_their_warnings():
                    step = _started(peer.steps[operation](*given))
                found.append(Contestant(peer.name, step, max_rounds))
                record.measured += 1
            except LeftOut as reason:
                record.left_out.append(str(reason))
            except Exception as failure:  # whatever another library raises must not end our measurement
                record.left_out.append(f"does not run here: {type(failure).__name__}: {_first_line(failure)}")
        return found

    def describe(self) -> dict[str, dict[str, Any]]:
        """By name: the version (None where it is not installed) and in how many rows it was measured, or why not."""
        return {name: record.describe() for name, record in self._records.items()}


@dataclass
class _Record:
    version: str | None
    never: str | None
    measured: int = 0
    left_out: list[str] = field(default_factory=list)

    def describe(self) -> dict[str, Any]:
        reasons = [self.never] if self.never else list(dict.fromkeys(self.left_out))
        if not reasons and not self.measured:
            reasons = ["has none of the operations that were measured"]
        return {"version": self.version, "rows": self.measured, "left_out": "; ".join(reasons) or None}


@contextmanager
def _without_their_warnings() -> Iterator[None]:
    """They warn of their own internals while they are imported and compiled."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _started(step: Step) -> Step:
    step()
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    if seconds > SLOWEST_SECONDS:
        raise LeftOut(f"a step takes {seconds:.0f} s")
    return step


def _version(peer: Peer) -> str | None:
    try:
        return importlib.metadata.version(peer.distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _why_never(peer: Peer, quick: bool) -> str | None:
    """Why the peer is in no row of this command, whatever is measured; None if it may be."""
    if importlib.util.find_spec(peer.module.partition(".")[0]) is None:
        return "not installed"
    if peer.needs_cuda:
        return "needs a CUDA device"
    if peer.compiles and quick:
        return "compiles for longer than a quick run takes"
    return None


def _first_line(failure: Exception) -> str:
    return (str(failure).strip().splitlines() or [""])[0][:200]
