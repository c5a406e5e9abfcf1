"""The base of every optimizer here: torch.optim's bookkeeping around one fused call a step."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain, islice
from operator import is_
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import increment_version

from fusestep import _core, _mesh
from fusestep._refusal import did_you_mean, refuse

from . import eight_bit, sharding
from .options import CLIPPING_DEFAULTS, PRECISION_DEFAULTS, STATE_DTYPES, Extras

if TYPE_CHECKING:
    from fusestep._core import Group

States: TypeAlias = tuple[tuple[Sequence[Any] | None, ...], int | Sequence[Any], Sequence[Any] | None]

# Only where CUDA is emulated in CPU memory, for the tests.
_CPU_DEFERS = _core.defers(torch.empty(0))

_NO_STATE: Mapping[str, Any] = MappingProxyType({})


def _draw_seed() -> int:
    """From torch's default CPU generator, so that ``torch.manual_seed`` repeats it."""
    return int(torch.randint(2**63 - 1, (), device="cpu"))


class FusedOptimizer(torch.optim.Optimizer):
    """What the optimizers share: collect the tensors of all groups, call the core once, store new state.

    A subclass says which kernel it runs (``_name``), which state tensors that kernel takes and which option
    switches each of them on (``_states``: in the kernel's order, under torch's names; None: always on), and
    hands its arguments to ``__init__``. Validation, arithmetic and the norm are the core's.

    Args:
        params: tensors, (name, tensor) pairs or dicts of a parameter group, as for ``torch.optim``.
            float32, bfloat16, float16 or float64, on the CPU or all on one CUDA device, any strides without
            overlap. Gradients of float64 parameters are float64, of others any of the other three dtypes. All but
            float64 is computed in float32 and rounded once. Parameters without a gradient are left alone. DTensors, of
            any meshes and placements but partial sums: each process updates its part, and the norm is that of all
            processes (docs/sharded.md).
        defaults: the options of a parameter group, under torch's names.
        extras: see `Clipping` and `Precision`.

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

    def __init__(self, params: Any, defaults: dict[str, Any], extras: Extras) -> None:
        known = {**CLIPPING_DEFAULTS, **PRECISION_DEFAULTS}
        unknown = extras.keys() - known.keys()
        if unknown:
            refuse(
                type(self).__name__,
                min(unknown),
                f"an argument of torch.optim.{type(self).__name__} or one of {', '.join(known)}",
                "an unknown keyword",
                did_you_mean(min(unknown), known),
                TypeError,
            )
        for name, default in CLIPPING_DEFAULTS.items():
            setattr(self, name, extras.get(name, default))
        self.grad_norm = None
        self.skipped_steps = 0
        # Only where they are asked for: the groups of a state_dict have torch's keys otherwise.
        given: dict[str, Any] = {**extras}
        defaults |= {
            name: given[name] for name, default in PRECISION_DEFAULTS.items() if given.get(name, default) != default
        }
        if defaults.get("rounding") == "stochastic":
            defaults.setdefault("seed", _draw_seed())
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
            options = {**self.defaults, **param_group}
            if options.get("rounding") == "stochastic" and options.get("seed") is None:
                param_group["seed"] = options["seed"] = _draw_seed()
            self._check_options(options)
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
            RuntimeError: a norm that is not finite, with ``on_nonfinite="raise"``; processes of one mesh that have
                gradients of different parameters.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()

        operation, kernel = f"{type(self).__name__}.step", self._kernel(self.param_groups)
        params, grads = self._with_gradients()
        meshes = sharding.meshes(self.param_groups)
        clipping = self._clipping()
        # Only torch.amp.GradScaler sets these two, for the time of one step, and deletes them after it.
        scale: Any = getattr(self, "grad_scale", None)
        found_inf: Any = getattr(self, "found_inf", None)
        whole: _mesh.Whole | None = None
        if meshes:
            grads = sharding.placed(operation, self.param_groups, params, grads, self.rewrite_grads)
            if self._takes_norm() or found_inf is not None:
                measured = list(chain.from_iterable(grads)) if self._takes_norm() else []
                whole = _mesh.gather(operation, measured, meshes, self.norm_type, found_inf)
                found_inf = None if found_inf is None else whole.found_inf
        deferred = self._deferred(params, scale, found_inf)
        totals: Tensor | None = None
        if whole is not None:
            totals = whole.totals_on_host(operation) if deferred is None else whole.totals
        if scale is not None and deferred is None:
            clipping["grad_scale"] = float(scale)
        if found_inf is not None and deferred is None and float(found_inf) != 0.0:
            if self._takes_norm():
                measured = list(chain.from_iterable(grads)) if totals is None else []
                scaled = _core.grad_norm(operation, measured, self.norm_type, totals=totals)
                self.grad_norm = scaled / clipping.get("grad_scale", 1.0)
            self.skipped_steps += 1
            return loss

        fresh: list[tuple[Tensor, dict[str, Tensor]]] = []
        groups = self.param_groups if self.state else self._first_groups()
        work: list[Group] = [
            (group, members, gradients, *self._collect(group, members, states, fresh), numbers)
            for group, members, gradients, states, numbers in zip(
                groups, params, grads, self._states_of(params), self._numbers(params), strict=True
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
        if meshes:
            work = sharding.local(operation, self.param_groups, list(self._states), work)
        try:
            norm, applied = _core.optimizer_step(operation, kernel, work, clipping, deferred, totals)
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
        if meshes:
            for _, parts, gradients, *_ in work:
                increment_version([*parts, *gradients] if self.rewrite_grads else parts)
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
            fresh: list[Mapping[str, Any]] = [
                {key: self._new_state(key, p, group) for key in self._needed(group, p)} for p in empty
            ]
            states, _, _ = self._collect(group, empty, fresh, [])
            companion = self._companion(group)
            companions = [self._new_state(companion, p, group) for p in empty] if companion else None
            work.append((group, empty, [t.clone() for t in empty], states, 1, companions, None))
        _core.optimizer_step(operation, kernel, work, self._clipping())

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over a ``state_dict()`` of this class or of its counterpart in ``torch.optim``.

        The options of the groups become those of the checkpoint; options that it does not have (one of torch's has
        none of `Precision`) stay as this optimizer was built. Moments get the dtype that the options then ask for,
        whatever dtype they were saved in, 8 bits included; float32 copies stay float32.

        Raises:
            ValueError: groups or parameters that do not fit (torch's own check).
        """
        loaded: list[dict[str, Any]] = []
        handle = self.register_load_state_dict_pre_hook(lambda _, given: loaded.append(given))  # after all others
        try:
            super().load_state_dict(state_dict)
        finally:
            handle.remove()
        # torch has cast every state to the dtype of its parameter.
        squares = self._squares()
        saved = chain.from_iterable(group["params"] for group in loaded[-1]["param_groups"])
        for group in self.param_groups:
            for p, name in zip(group["params"], islice(saved, len(group["params"])), strict=True):
                given = loaded[-1]["state"].get(name, _NO_STATE)
                if _in_8_bits(group, p):
                    converted = eight_bit.quantized(given, p, self._states, squares)
                else:
                    converted = eight_bit.dequantized(given, squares)
                for key in given.keys() - converted.keys():
                    del self.state[p][key]
                for key, value in converted.items():
                    if key == "step" or not isinstance(value, Tensor):
                        continue
                    dtype = self._state_dtype(key, p, group)
                    if value is not given.get(key) or self.state[p][key].dtype != dtype:
                        self.state[p][key] = value.to(dtype=dtype, device=p.device, copy=True)

    def dequantized_state_dict(self) -> dict[str, Any]:
        """``state_dict()`` with the moments that are kept in 8 bits as float32, for ``torch.optim`` to load.

        Groups that have ``state_dtype="8bit"`` come without it. All else is shared, as in ``state_dict()``.
        """
        packed, squares = self.state_dict(), self._squares()
        for group in packed["param_groups"]:
            if group.get("state_dtype") == "8bit":
                del group["state_dtype"]
        packed["state"] = {name: eight_bit.dequantized(state, squares) for name, state in packed["state"].items()}
        return packed

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

    def _first_groups(self) -> list[dict[str, Any]]:
        """The options that the first step goes by."""
        return self.param_groups

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
        if options.get("state_dtype") not in STATE_DTYPES:
            given, expected = options["state_dtype"], ", ".join(map(str, STATE_DTYPES))
            near = did_you_mean(given, [name for name in STATE_DTYPES if isinstance(name, str)])
            refuse(operation, "state_dtype", f"one of {expected}", repr(given), near)
        _core.check_options(operation, self._kernel([options]), options)

    def _squares(self) -> set[str]:
        """The states that are never negative, such as second moments."""
        flags = _core.optimizers()[self._kernel(self.param_groups)]["squares"]
        return {key for key, square in zip(self._states, flags, strict=True) if square}

    def _needed(self, group: dict[str, Any], param: Tensor) -> list[str]:
        """The keys of a parameter's state."""
        moments = [key for key, option in self._states.items() if option is None or group[option]]
        scales = map(eight_bit.absmax, moments) if _in_8_bits(group, param) else ()
        return ["step", *moments, *scales]

    def _clipping(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in CLIPPING_DEFAULTS}

    def _takes_norm(self) -> bool:
        return self.max_grad_norm is not None or self.on_nonfinite in ("skip", "raise")

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
        takes_norm = self._takes_norm()
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
        states = _core.optimizers()[kernel]["states"]
        lists = "|".join(["params", "grads", "step", *states, *map(eight_bit.absmax, states)])

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
        try:
            columns = self._columns(group, params, states)
            return columns, [state["step"] for state in states], self._companions(group, params, states, fresh)
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
        needed = self._needed(group, param)
        missing = [key for key in needed if key not in state]
        if not missing:
            return state
        if state and any(self._states.get(key.removesuffix("_absmax")) is None for key in missing):
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

    def _columns(
        self, group: dict[str, Any], params: list[Tensor], states: list[Mapping[str, Any]]
    ) -> tuple[Sequence[Any] | None, ...]:
        """The tensors of each state, None where it is not used; in 8 bits then the scales of each."""
        used = [key if option is None or group[option] else None for key, option in self._states.items()]
        columns: list[Sequence[Any] | None] = [None if key is None else [s[key] for s in states] for key in used]
        if group.get("state_dtype") == "8bit":
            for key in used:
                scale = "" if key is None else eight_bit.absmax(key)
                pairs = zip(params, states, strict=True)
                columns.append(None if key is None else [s[scale] if _in_8_bits(group, p) else None for p, s in pairs])
        return tuple(columns)

    @staticmethod
    def _companion(group: dict[str, Any]) -> str | None:
        """The key of what the rounding keeps beside each parameter."""
        if group.get("rounding") == "kahan":
            return "compensation"
        return "master_param" if group.get("master_weights") else None

    def _companions(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        states: list[Mapping[str, Any]],
        fresh: list[tuple[Tensor, dict[str, Tensor]]],
    ) -> list[Tensor] | None:
        """What the rounding keeps beside the parameters; made where a state, such as torch saves, lacks it."""
        key = self._companion(group)
        if key is None:
            return None
        companions: list[Tensor] = []
        for p, state in zip(params, states, strict=True):
            kept = state.get(key)
            if kept is None:
                kept = self._new_state(key, p, group)
                fresh.append((p, {key: kept}))
            companions.append(kept)
        return companions

    def _numbers(self, params: list[list[Tensor]]) -> list[Sequence[int] | None]:
        """Where rounding is stochastic, the position of each parameter among all of the optimizer; by group."""
        numbers: list[Sequence[int] | None] = []
        first = 0
        for group, members in zip(self.param_groups, params, strict=True):
            everyone = group["params"]
            if group.get("rounding") != "stochastic":
                numbers.append(None)
            elif members is everyone:
                numbers.append(range(first, first + len(everyone)))
            else:
                numbers.append([first + i for i, p in enumerate(everyone) if p.grad is not None])
            first += len(everyone)
        return numbers

    def _new_moments(self, param: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        return {key: self._new_state(key, param, group) for key in self._needed(group, param) if key != "step"}

    def _new_state(self, key: str, param: Tensor, group: dict[str, Any]) -> Tensor:
        if key == "step":
            return torch.zeros((), dtype=torch.float32, device=param.device if group.get("capturable") else "cpu")
        if key == "master_param":
            return param.detach().to(torch.float32, memory_format=torch.preserve_format, copy=True)
        if key.endswith("_absmax"):
            return torch.zeros(eight_bit.blocks(param), dtype=torch.float32, device=param.device)
        return torch.zeros_like(
            param, dtype=self._state_dtype(key, param, group), memory_format=torch.preserve_format, requires_grad=False
        )

    @staticmethod
    def _state_dtype(key: str, param: Tensor, group: dict[str, Any]) -> torch.dtype:
        if key == "master_param" or key.endswith("_absmax"):
            return torch.float32
        wanted = None if key == "compensation" or param.dtype == torch.float64 else group.get("state_dtype")
        if wanted == "8bit":
            return torch.uint8
        return param.dtype if wanted is None else wanted


def _in_8_bits(group: dict[str, Any], param: Tensor) -> bool:
    return group.get("state_dtype") == "8bit" and param.dtype != torch.float64
