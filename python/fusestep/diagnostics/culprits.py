"""Why a model cannot fit one batch: each possible culprit is examined by an experiment.

In this order, up to the first one that is guilty, because each makes the experiments after it meaningless:

1. **the backward pass is wrong**: gradients against central differences;
2. **the loss is wrong**: the outputs are set free, as if the model could say anything. Minimising a right loss over
   them reaches the target, and the outputs then say what the targets say;
3. **the initial values are bad**: other initial values (``init_weights_``) reach the target in half of the steps;
4. **the rate is too high** or **too low**: a rate lower or higher by powers of ten reaches the target;
   then, if no rate does, the initial values once more: does the first gradient vanish or explode?
5. **the model is too simple**: all others are ruled out, and at the best rate the loss has settled.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fusestep.diagnostics.attempt import Attempt
from fusestep.diagnostics.gradient_check import check_module
from fusestep.diagnostics.health import model_health
from fusestep.diagnostics.preserve import preserved, without_dropout
from fusestep.nn.init import init_weights_

BACKWARD = "the backward pass is wrong"
LOSS = "the loss is wrong"
INITIAL = "the initial values are bad"
TOO_HIGH = "the rate is too high"
TOO_LOW = "the rate is too low"
TOO_SIMPLE = "the model is too simple"

ADVICE = {
    BACKWARD: "See check_module for every parameter; look for detach(), in-place changes, a wrong derivative.",
    LOSS: "Compute it by hand for one observation: signs, reduction, which target goes with which output.",
    INITIAL: "Initialise by activation: fusestep.nn.init.init_weights_; see layer_variances.",
    TOO_HIGH: "Lower the rate; see rate_range.",
    TOO_LOW: "Raise the rate; see rate_range.",
    TOO_SIMPLE: "Give it more layers or width.",
}
DECADES = 6  # how far, by powers of ten, other rates are tried
BACKWARD_TOLERANCE = 1e-2  # relative: a wrong derivative is wrong by more, a kink of a ReLU near by is worth less
SETTLED = 0.02  # of the whole descent: what the last quarter of the updates may still gain


@dataclass(frozen=True)
class Culprit:
    """Something that may keep a model from fitting one batch."""

    name: str
    guilty: bool | None  # None: it could not be found out, or there was no need to
    measurement: str  # what was done, and what came out
    advice: str


class Inquiry:
    """The experiments after an attempt that gave ``losses``: all where it failed; where it reached the target with a
    loss below zero, those that tell whether this loss means anything.
    """

    def __init__(self, attempt: Attempt, losses: tuple[float, ...]) -> None:
        self.attempt = attempt
        self.losses = losses
        self.trials = {1.0: losses}  # by the factor of the rate

    def examine(self) -> tuple[Culprit, ...]:
        """The culprits in the order in which they were examined; at most the last one is guilty."""
        found: list[Culprit] = []
        experiments = [self._backward, self._loss]
        if not self.attempt.reached(self.losses):
            experiments += [self._other_initial_values, self._rate, self._first_gradient, self._model]
        for experiment in experiments:
            for name, guilty, measurement in experiment():
                found = [culprit for culprit in found if culprit.name != name]
                found.append(Culprit(name, guilty, measurement, ADVICE[name]))
                if guilty:
                    return tuple(found)
        return tuple(found)

    def _backward(self) -> list[tuple[str, bool | None, str]]:
        inputs, targets = self.attempt.batch
        few = min(4, len(inputs)) if len(inputs) == len(targets) else len(inputs)
        generator = torch.Generator().manual_seed(0)
        try:
            report = check_module(
                self.attempt.model,
                (inputs[:few], targets[:few]),
                loss_fn=self.attempt.loss_fn,
                elements=4,
                relative_tolerance=BACKWARD_TOLERANCE,
                generator=generator,
            )
        except (RuntimeError, TypeError, ValueError, NotImplementedError) as problem:
            return [(BACKWARD, None, f"gradients could not be checked: {problem}")]
        wrong = [check for check in report if not check.passed]
        missing = [check for check in wrong if check.analytic == 0.0]
        if missing:
            slope = f"(by {missing[0].numeric:.3g} for the first)"
            text = f"no gradient reaches {_listed([c.name for c in missing])}, but the loss changes with it {slope}"
            return [(BACKWARD, True, text)]
        if wrong:
            worst = max(wrong, key=lambda check: check.error)
            text = (
                f"{worst.name}{list(worst.index)}: backward() gives {worst.analytic:.4g}, differences"
                f" {worst.numeric:.4g}; wrong in {_listed([c.name for c in wrong])}"
            )
            return [(BACKWARD, True, text)]
        return [(BACKWARD, False, f"gradients agree with differences in all {len(report)} parameters")]

    def _loss(self) -> list[tuple[str, bool | None, str]]:
        inputs, targets = self.attempt.batch
        with preserved(self.attempt.model), torch.no_grad():
            without_dropout(self.attempt.model)
            outputs = self.attempt.model(inputs)
        if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
            return [(LOSS, None, f"free outputs were not tried: the model gives {type(outputs).__name__}")]
        try:
            free, losses = self._minimise_over_outputs(outputs)
        except (RuntimeError, ValueError) as problem:  # a loss of probabilities, say, that meets what is none
            return [(LOSS, None, f"it does not take free outputs: {problem}")]
        if losses is None:
            return [(LOSS, True, "it does not depend on the outputs: its gradient with respect to them is zero")]
        went = f"with the outputs free, it fell from {losses[0]:.4g} to {min(losses):.4g}"
        if not min(losses) <= self.attempt.target:
            text = f"{went}, and not to the target {self.attempt.target:.4g}, which no model can reach then"
            return [(LOSS, True, text)]
        agreement = _agreement(free, targets)
        if agreement is None:
            return [(LOSS, False, went)]
        says = f"the outputs then agree with {agreement:.0%} of the targets"
        return [(LOSS, agreement < 0.5, f"{went}; {says}")]

    def _minimise_over_outputs(self, outputs: Tensor) -> tuple[Tensor, list[float] | None]:
        targets = self.attempt.batch[1]
        start = torch.nan_to_num(outputs, posinf=0.0, neginf=0.0)
        start = start / max(1.0, float(start.abs().max()))
        distance = (targets - start).abs().max() if _same_kind(start, targets) else torch.ones(())
        free = start.requires_grad_()
        steps, step = 300, 0.05 * max(1.0, float(distance))
        optimizer = torch.optim.Adam([free], lr=step)
        losses: list[float] = []
        for update in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = step * (1.0 - update / steps)
            loss = self.attempt.loss_fn(free, targets)
            losses.append(float(loss.detach()))
            gradient = torch.autograd.grad(loss, free, allow_unused=True)[0] if loss.requires_grad else None
            if gradient is None or (update == 0 and not gradient.any()):
                return free, None
            free.grad = gradient
            optimizer.step()
        return free.detach(), losses

    def _other_initial_values(self) -> list[tuple[str, bool | None, str]]:
        losses = self.attempt.losses(prepare=_reinitialise)
        went = f"initialised anew by activation, the loss went from {losses[0]:.4g} to {losses[-1]:.4g}"
        quick = self.attempt.reached(losses) and 2 * (len(losses) - 1) <= self.attempt.steps
        here = f"in {len(losses) - 1} updates, and from the values here to {self.losses[-1]:.4g}"
        return [(INITIAL, quick, f"{went} {here}")]

    def _rate(self) -> list[tuple[str, bool | None, str]]:
        blown = not math.isfinite(self.losses[-1]) or self.losses[-1] > self.losses[0]
        for decade in range(1, DECADES + 1):
            for factor in (10.0**-decade,) if blown else (10.0**decade, 10.0**-decade):
                losses = self.trials[factor] = self.attempt.losses(rate_factor=factor)
                if self.attempt.reached(losses):
                    name = TOO_HIGH if factor < 1.0 else TOO_LOW
                    times = f"{1 / factor:g} times lower" if factor < 1.0 else f"{factor:g} times higher"
                    text = (
                        f"at this rate, {self._rate_at(1.0)}, the loss went from {self.losses[0]:.4g} to"
                        f" {self.losses[-1]:.4g}; at {self._rate_at(factor)}, {times}, it reached {losses[-1]:.4g} in"
                        f" {len(losses) - 1} updates"
                    )
                    return [(name, True, text)]
        factor, losses = self._best()
        text = f"no rate within {DECADES} powers of ten does better than {losses[-1]:.4g}, at {self._rate_at(factor)}"
        if blown:
            return [(TOO_HIGH, None if losses[-1] > losses[0] else False, text)]
        return [(TOO_HIGH, False, text), (TOO_LOW, False, text)]

    def _first_gradient(self) -> list[tuple[str, bool | None, str]]:
        health = model_health(self.attempt.model, self.attempt.batch, loss_fn=self.attempt.loss_fn)
        extreme = {flag: names for flag, names in health.sick.items() if flag != "no gradient"}
        if not extreme:
            return []
        layer = next(layer for layer in health if layer.flag in extreme)
        text = "; ".join(f"{flag} in {len(names)} of {len(health)} layers" for flag, names in extreme.items())
        ratio = f"|gradient| / |weights| is {layer.ratio:.1e} in {layer.name or 'the model'}"
        return [(INITIAL, True, f"the first gradient is {text}; {ratio}")]

    def _model(self) -> list[tuple[str, bool | None, str]]:
        factor, losses = self._best()
        gained = losses[3 * len(losses) // 4] - losses[-1]
        settled = math.isfinite(gained) and gained <= SETTLED * (losses[0] - losses[-1])
        text = (
            f"at the best rate, {self._rate_at(factor)}, the loss"
            f" {'has settled at' if settled else 'was still falling at'} {losses[-1]:.4g}: the last quarter of"
            f" {len(losses) - 1} updates gained {gained:.2g}"
        )
        alike = _contradictions(*self.attempt.batch)
        if alike:
            text += f"; {alike} of {len(self.attempt.batch[0])} inputs are another one's equal with another target"
        return [(TOO_SIMPLE, True if settled else None, text)]

    def _best(self) -> tuple[float, tuple[float, ...]]:
        finite = {factor: losses for factor, losses in self.trials.items() if math.isfinite(losses[-1])}
        return min((finite or self.trials).items(), key=lambda trial: trial[1][-1])

    def _rate_at(self, factor: float) -> str:
        return f"{float(self.attempt.optimizer.param_groups[0]['lr']) * factor:.3g}"


def _reinitialise(model: nn.Module) -> None:
    torch.manual_seed(0)
    for module in model.modules():
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()
    init_weights_(model)


def _same_kind(outputs: Tensor, targets: Tensor) -> bool:
    return targets.is_floating_point() and targets.shape == outputs.shape


@torch.no_grad()
def _agreement(outputs: Tensor, targets: Tensor) -> float | None:
    """From 0 to 1, how far ``outputs`` say what ``targets`` say; None where that cannot be told.

    Classes: the part of the observations whose largest output is their class. Numbers: their correlation.
    """
    if _same_kind(outputs, targets):
        if bool((targets >= 0).all()) and torch.allclose(targets.sum(-1), torch.ones(()).to(targets), atol=1e-3):
            return float((outputs.argmax(-1) == targets.argmax(-1)).double().mean())
        both = torch.stack([outputs.flatten(), targets.flatten()]).double()
        if float(both.std(dim=1).min()) == 0.0:
            return None
        return max(0.0, float(torch.corrcoef(both)[0, 1]))
    if not targets.is_floating_point() and targets.shape == outputs.shape[:-1]:
        counted = targets >= 0  # ignore_index is negative
        return float((outputs.argmax(-1) == targets)[counted].double().mean()) if bool(counted.any()) else None
    return None


def _contradictions(inputs: Tensor, targets: Tensor) -> int:
    """How many observations have the inputs of another one, but not its targets: no model can tell them apart."""
    if len(inputs) != len(targets):
        return 0
    same = (inputs.flatten(1)[:, None] == inputs.flatten(1)).all(-1) if inputs.dim() > 1 else inputs[:, None] == inputs
    goals = targets.reshape(len(targets), -1)
    other = (goals[:, None] != goals).any(-1)
    return int((same & other).any(-1).sum())


def _listed(names: list[str]) -> str:
    return ", ".join(name or "(model)" for name in names[:5]) + (", ..." if len(names) > 5 else "")
