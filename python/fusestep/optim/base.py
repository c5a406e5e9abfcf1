"""The base of every optimizer here: torch.optim's bookkeeping around one fused call a step."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice
from operator import is_
from types import MappingProxyType
from typing import Any, ClassVar, Literal, TypeAlias, TypedDict

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fusestep import _core, ops
from fusestep._refusal import refuse


class Clipping(TypedDict, total=False):
    """The clipping options that every optimizer takes by keyword, and keeps as attributes of these names.

    The attributes may be changed between steps: a run that clips only after the warm-up sets
    ``opt.max_grad_norm`` when it gets there. They are no part of ``state_dict()``, whose keys are torch's.
    """

    max_grad_norm: float | None
    """Clip the gradients of all groups together to this norm, by ``min(1, max_grad_norm / (norm + 1e-6))``
    as ``torch.nn.utils.clip_grad_norm_`` does; the factor is folded into the update. > 0; inf only measures.
    Default: None, no clipping."""

    norm_type: float
    """Which norm: 1, 2 or inf. Default: 2."""

    clip_factor: float | None
    """Clip in the other form of the literature: where the norm is over ``max_grad_norm``, multiply by this
    factor in place of the quotient. Default: None."""

    max_grad_value: float | None
    """Clamp every element of the gradients to [-max_grad_value, max_grad_value]; not together with
    ``max_grad_norm``. Default: None."""

    on_nonfinite: Literal["skip", "raise", "propagate"] | None
    """What to do with a norm that is infinite or NaN. "skip": leave everything as it was (parameters,
    moments, step counts) and count it in ``opt.skipped_steps``; "raise": leave it so too, and raise
    RuntimeError; "propagate": update with it. "skip" and "raise" take the norm even where nothing is clipped.
    Default: None, which is "skip" with ``max_grad_norm`` and "propagate" without."""

    rewrite_grads: bool
    """Also store the unscaled and clipped gradients in ``p.grad``. Default: False, they are only read."""


# Their defaults stand once, beside the functions on plain arrays.
CLIPPING_DEFAULTS: dict[str, Any] = {name: ops.CLIPPING[name] for name in Clipping.__annotations__}

# The options of a group, its parameters, gradients, states and step counts: what _core.optimizer_step takes.
Group: TypeAlias = tuple[
    Mapping[str, Any], Sequence[Any], Sequence[Any], tuple[Sequence[Any] | None, ...], int | Sequence[Any]
]
States: TypeAlias = tuple[tuple[Sequence[Any] | None, ...], int | Sequence[Any]]

# Only where CUDA is emulated in CPU memory, for the tests.
_CPU_DEFERS = _core.defers(torch.empty(0))

_NO_STATE: Mapping[str, Any] = MappingProxyType({})


class FusedOptimizer(torch.optim.Optimizer):
    """What the optimizers share: collect the tensors of all groups, call the core once, store new state.

    A subclass says which kernel it runs (``_name``), which state tensors that kernel takes and which option
    switches each of them on (``_states``: in the kernel's order, under torch's names; None: always on), and
    hands its arguments to ``__init__``. Validation, arithmetic and the norm are the core's.

    Args:
        params: tensors, (name, tensor) pairs or dicts of a parameter group, as for ``torch.optim``.
            float32 or float64, on the CPU or all on one CUDA device, any strides without overlap. Gradients have
            the dtype of their parameter; float32 parameters also take bfloat16 and float16 gradients. Parameters
            without a gradient are left alone.
        defaults: the options of a parameter group, under torch's names.
        clipping: see `Clipping`.

    With ``capturable=True`` (on CUDA; the CPU has no use for it) the step counts are on the device, ``lr`` may
    be a tensor there, and the norm, the clip factor and the decision to skip never leave it: the host does
    not wait, and a CUDA graph may hold the step. Make one step before the capture, for the state to be there.
    Without it a step that takes the norm waits for it.

    Attributes:
        grad_norm: norm of the gradients of all groups at the last step, unscaled and before clipping; None as
            long as no step has taken it. With capturable, a 0-dim float64 tensor on the device.
        skipped_steps: number of steps that were left out, for a norm that was not finite or for the
            ``found_inf`` of a ``torch.amp.GradScaler``. With capturable, a 0-dim float64 tensor on the device.

    Raises:
        TypeError: an unknown keyword, or an option of the wrong kind.
        ValueError: an option out of its range, or a tensor given twice.
    """

    # torch.amp.GradScaler then leaves the gradients as they are and sets grad_scale and found_inf for step().
    _step_supports_amp_scaling = True

    _name: ClassVar[str]
    _states: ClassVar[dict[str, str | None]]

    max_grad_norm: float | None
    norm_type: float
    clip_factor: float | None
    max_grad_value: float | None
    on_nonfinite: Literal["skip", "raise", "propagate"] | None
    rewrite_grads: bool
    grad_norm: float | Tensor | None
    skipped_steps: int | Tensor

    def __init__(self, params: Any, defaults: dict[str, Any], clipping: Clipping) -> None:
        unknown = clipping.keys() - CLIPPING_DEFAULTS.keys()
        if unknown:
            refuse(
                type(self).__name__,
                min(unknown),
                f"an argument of torch.optim.{type(self).__name__} or one of {', '.join(CLIPPING_DEFAULTS)}",
                "an unknown keyword",
                error=TypeError,
            )
        for name, default in CLIPPING_DEFAULTS.items():
            setattr(self, name, clipping.get(name, default))
        self.grad_norm = None
        self.skipped_steps = 0
        self._check_options(defaults)
        _core.check_clipping(type(self).__name__, self._clipping())
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group as ``torch.optim.Optimizer.add_param_group`` does, after checking its options.

        Raises:
            ValueError: an option out of its range, or a tensor given twice, in this group or in another one
                (torch warns of the first: the update would be applied twice).
        """
        if isinstance(param_group, dict):
            self._check_options({**self.defaults, **param_group})
            params = param_group["params"]
            if not isinstance(params, (Tensor, set)):
                param_group["params"] = params = list(params)
                tensors = [p[1] if isinstance(p, tuple) else p for p in params]
                seen: set[int] = set()
                for i, p in enumerate(tensors):
                    if id(p) in seen:
                        refuse(
                            type(self).__name__,
                            f"params[{i}]",
                            "every tensor once",
                            f"one of shape {tuple(p.shape)} for the second time",
                            "Leave out the repetition.",
                        )
                    seen.add(id(p))
        super().add_param_group(param_group)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient.

        Nothing is written unless everything is valid, in all groups; nor where the step is skipped (see
        `Clipping`): then parameters, state and step counts keep their bytes, and new state is not stored.

        Args:
            closure: reevaluates the model and returns the loss, called with gradients enabled. Default: None.

        Returns:
            What the closure returned, else None.

        Raises:
            TypeError: a tensor of a dtype, layout or device that the kernels do not take.
            ValueError: shapes that do not match, overlapping tensors, an option out of its range.
            RuntimeError: a norm that is not finite, with ``on_nonfinite="raise"``.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        operation, kernel = f"{type(self).__name__}.step", self._kernel(self.param_groups)
        params, grads = self._with_gradients()
        clipping = self._clipping()
        # Only torch.amp.GradScaler sets these two, for the time of one step, and deletes them after it.
        scale: Any = getattr(self, "grad_scale", None)
        found_inf: Any = getattr(self, "found_inf", None)
        deferred = self._deferred(params, scale, found_inf)
        if scale is not None and deferred is None:
            clipping["grad_scale"] = float(scale)
        if found_inf is not None and deferred is None and float(found_inf) != 0.0:
            if self.max_grad_norm is not None or self.on_nonfinite in ("skip", "raise"):
                scaled = _core.grad_norm(operation, list(chain.from_iterable(grads)), self.norm_type)
                self.grad_norm = scaled / clipping.get("grad_scale", 1.0)
            self.skipped_steps += 1
            return loss

        fresh: list[tuple[Tensor, dict[str, Tensor]]] = []
        work: list[Group] = [
            (group, members, gradients, *self._collect(group, members, states, fresh))
            for group, members, gradients, states in zip(
                self.param_groups, params, grads, self._states_of(params), strict=True
            )
        ]
        if fresh and deferred is not None and torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            refuse(
                operation,
                "state",
                "the state of every parameter before a CUDA graph captures a step",
                "none yet",
                "The graph would start it anew at each replay: make one step first.",
                error=RuntimeError,
            )
        try:
            norm, applied = _core.optimizer_step(operation, kernel, work, clipping, deferred)
        except (TypeError, ValueError) as refusal:
            raise type(refusal)(self._in_group_indices(str(refusal), kernel, params)) from None
        if deferred is None:
            self.grad_norm = norm
        if not applied:
            self.skipped_steps += 1
            return loss
        for p, new in fresh:
            self.state[p].update(new)
        # The core writes behind autograd's back; a backward pass through what has changed must still fail.
        for changed in (params, grads) if self.rewrite_grads else (params,):
            for tensors in changed:
                increment_version(tensors)
        return loss

    def check_parameters(self) -> None:
        """Refuse now what ``step`` would refuse of the dtypes and devices of the parameters.

        ``fusestep.Trainer.fit`` calls it before it draws a batch: gradients exist only after the first backward pass.

        Raises:
            TypeError: a dtype that the kernels do not take.
            ValueError: a device that this build has no kernels for, or parameters on several devices.
        """
        operation, kernel = f"{type(self).__name__}.step", self._kernel(self.param_groups)
        # A step over parameters without elements: it is checked in full and changes nothing.
        work: list[Group] = []
        for group in self.param_groups:
            kinds = {(p.dtype, p.device): torch.empty(0, dtype=p.dtype, device=p.device) for p in group["params"]}
            empty = list(kinds.values())
            used = [None if option is not None and not group[option] else empty for option in self._states.values()]
            states = tuple(None if column is None else [t.clone() for t in column] for column in used)
            work.append((group, empty, [t.clone() for t in empty], states, 1))
        _core.optimizer_step(operation, kernel, work, self._clipping())

    def __getstate__(self) -> dict[str, Any]:
        own = (*CLIPPING_DEFAULTS, "grad_norm", "skipped_steps")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take over a pickle, or what ``load_state_dict`` has made of a checkpoint, of ours or of torch's.

        An option that the checkpoint does not know (``decay``, ``form``, those of later torch releases) stays
        as this optimizer was built; a step count that is a number (torch before 1.12) becomes a tensor.
        """
        super().__setstate__(state)
        for group in self.param_groups:
            for name, default in self.defaults.items():
                group.setdefault(name, default)
            for p in group["params"]:
                kept = self.state.get(p, _NO_STATE)
                if "step" in kept:
                    home = p.device if group.get("capturable") else torch.device("cpu")
                    if not isinstance(kept["step"], Tensor):
                        kept["step"] = torch.tensor(float(kept["step"]), dtype=torch.float32)
                    kept["step"] = kept["step"].to(home)

    def _kernel(self, groups: Iterable[dict[str, Any]]) -> str:
        """The name in ``_core.optimizers()`` of the kernel for these groups."""
        return self._name

    def _check_options(self, options: dict[str, Any]) -> None:
        operation = type(self).__name__
        if options.get("differentiable"):
            refuse(
                operation,
                "differentiable",
                "False",
                "True",
                f"torch.optim.{operation} has it, the fused step has not.",
            )
        _core.check_options(operation, self._kernel([options]), options)

    def _clipping(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in CLIPPING_DEFAULTS}

    def _deferred(self, params: list[list[Tensor]], scale: Any, found_inf: Any) -> dict[str, Any] | None:
        """What a capturable step reads and writes on the device; None where the host decides."""
        flags = {bool(group.get("capturable")) for group in self.param_groups}
        if flags == {False}:
            return None
        if len(flags) > 1:
            refuse(
                f"{type(self).__name__}.step",
                "capturable",
                "the same in all parameter groups",
                "both True and False",
                "Use one optimizer for each.",
            )
        first = next(chain.from_iterable(params), None)
        if first is None or (first.device.type == "cpu" and not _CPU_DEFERS):
            return None
        device = first.device
        takes_norm = self.max_grad_norm is not None or self.on_nonfinite in ("skip", "raise")
        # The same tensors from step to step: a graph writes to these.
        if takes_norm and not isinstance(self.grad_norm, Tensor):
            self.grad_norm = torch.zeros((), dtype=torch.float64, device=device)
        if not isinstance(self.skipped_steps, Tensor):
            self.skipped_steps = torch.full((), self.skipped_steps, dtype=torch.float64, device=device)
        norm = self.grad_norm if takes_norm else None
        return {"grad_scale": scale, "found_inf": found_inf, "norm": norm, "skipped": self.skipped_steps}

    def _with_gradients(self) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        """The parameters that have a gradient, and the gradients, group by group."""
        params: list[list[Tensor]] = []
        grads: list[list[Tensor]] = []
        for group in self.param_groups:
            members = group["params"]
            gradients = [grad for p in members if (grad := p.grad) is not None]
            if len(gradients) < len(members):
                members = [p for p in members if p.grad is not None]
            params.append(members)
            grads.append(gradients)
        return params, grads

    def _in_group_indices(self, message: str, kernel: str, params: list[list[Tensor]]) -> str:
        """The core counts the tensors that it was given; who reads its refusal counts those of the group."""
        lists = "|".join(["params", "grads", "steps", *_core.optimizers()[kernel]["states"]])

        def own_index(match: re.Match[str]) -> str:
            group, name, i = match.groups()
            k = int(group or 0)
            members = self.param_groups[k]["params"]
            own = next(j for j, p in enumerate(members) if p is params[k][int(i)])
            return match[0].replace(f"{name}[{i}]", f"{name}[{own}]")

        return re.sub(rf"(?:groups\[(\d+)\]\.)?\b({lists})\[(\d+)\]", own_index, message)

    def _states_of(self, params: list[list[Tensor]]) -> list[list[Mapping[str, Any]]]:
        """The state of every parameter, group by group; an empty one, not stored, where there is none yet.

        ``torch.Tensor.__hash__`` is a Python function, so that looking up 1,000 small parameters takes longer
        than the rest of this file. A dict keeps the order of insertion: once every parameter has its state,
        the keys are these very parameters in this order, and identity shows it without a single hash. Nothing
        is remembered from step to step, so whatever a user does to ``opt.state`` is seen.
        """
        state = self.state
        if not state:
            return [[_NO_STATE] * len(members) for members in params]
        if len(state) == sum(map(len, params)) and all(map(is_, state, chain.from_iterable(params))):
            values = iter(state.values())
            return [list(islice(values, len(members))) for members in params]
        return [[state.get(p, _NO_STATE) for p in members] for members in params]

    def _collect(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        states: list[Mapping[str, Any]],
        fresh: list[tuple[Tensor, dict[str, Tensor]]],
    ) -> States:
        """The state tensors of a group in the kernel's order (None: not used), and its step counts.

        State that does not exist yet is made, and noted in `fresh` for the time after the step.
        """
        used = [key if option is None or group[option] else None for key, option in self._states.items()]
        try:
            columns = tuple(None if key is None else [state[key] for state in states] for key in used)
            return columns, [state["step"] for state in states]
        except KeyError:
            complete = [self._complete(group, p, state, fresh) for p, state in zip(params, states, strict=True)]
            return self._collect(group, params, complete, fresh)

    def _complete(
        self,
        group: dict[str, Any],
        param: Tensor,
        state: Mapping[str, Any],
        fresh: list[tuple[Tensor, dict[str, Tensor]]],
    ) -> Mapping[str, Any]:
        """`state` with what is missing in it: everything at first, later what an option has switched on."""
        options = {"step": None, **self._states}
        needed = [key for key, option in options.items() if option is None or group[option]]
        missing = [key for key in needed if key not in state]
        if not missing:
            return state
        if state and any(options[key] is None for key in missing):
            refuse(
                f"{type(self).__name__}.step",
                f"state of a parameter of shape {tuple(param.shape)}",
                f"the keys {', '.join(needed)}",
                ", ".join(state),
                "Load the state of the same kind of optimizer, or empty opt.state.",
            )
        new = {key: self._new_state(key, param, group) for key in missing}
        fresh.append((param, new))
        return {**state, **new}

    def _new_state(self, key: str, param: Tensor, group: dict[str, Any]) -> Tensor:
        if key == "step":
            return torch.zeros((), dtype=torch.float32, device=param.device if group.get("capturable") else "cpu")
        return torch.zeros_like(param, memory_format=torch.preserve_format)
