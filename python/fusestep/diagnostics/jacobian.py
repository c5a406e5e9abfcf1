"""How much each block stretches a gradient: the spectral norm of its Jacobian, by power iteration."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from fusestep._refusal import check_integer, check_number, refuse
from fusestep.diagnostics import drawing
from fusestep.diagnostics.preserve import preserved
from fusestep.diagnostics.report import RowsReport

if TYPE_CHECKING:
    from matplotlib.figure import Figure, SubFigure

NEGLIGIBLE = 1e-7  # elements of a vector of length 1: left in, they become denormal numbers, on which CPUs are slow


@dataclass(frozen=True)
class BlockJacobian:
    """The Jacobian J = dh_k/dh_{k-1} of one block at one batch; the largest and the mean of its singular values."""

    name: str  # of the block
    spectral_norm: float  # ||J||, the most by which it stretches a vector
    mean_gain: float  # ||J||_F / sqrt(rows), by which it stretches a random gradient on its way back: an estimate
    iterations: int
    residual: float  # ||J'J v - s^2 v|| / s^2 at the end: a singular value lies within s (1 +- residual), about
    forward: str  # how J v was had: "jvp", or "differences" where the block has no forward-mode derivative


@dataclass(frozen=True)
class JacobianReport(RowsReport[BlockJacobian]):
    """A ``BlockJacobian`` for each block, from the first on."""

    @property
    def spectral_product(self) -> float:
        """||dh_n/dh_{n-1}|| ... ||dh_1/dh_0||: no gradient that comes back through all blocks is stretched by more."""
        return math.prod(block.spectral_norm for block in self.rows)

    @property
    def gain_product(self) -> float:
        """The product of the mean gains: how much a typical gradient is stretched, if blocks are independent."""
        return math.prod(block.mean_gain for block in self.rows)

    def summary(self) -> str:
        width = max((len(block.name) for block in self.rows), default=5)
        lines = [f"{'block':{width}}  {'||J||':>9}  {'mean gain':>9}"]
        lines += [f"{block.name:{width}}  {block.spectral_norm:9.3g}  {block.mean_gain:9.3g}" for block in self.rows]
        lines.append(f"{'product':{width}}  {self.spectral_product:9.3g}  {self.gain_product:9.3g}")
        return "\n".join(lines)

    def figure_size(self) -> tuple[float, float]:
        return (8.0, 4.2)

    def draw(self, figure: Figure | SubFigure) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.subplots()
        at = range(1, len(self) + 1)
        gains = [block.mean_gain for block in self.rows]
        axes.plot(
            at, [b.spectral_norm for b in self.rows], "o-", color=drawing.MAIN, markersize=4, label="largest: ||J||"
        )
        axes.plot(at, gains, "s--", color=drawing.SECOND, markersize=4, label="mean gain")
        axes.axhline(1.0, color=drawing.FAINT, linewidth=1.2)
        axes.set_yscale("log")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(frameon=False, fontsize=8)
        drawing.style(
            axes,
            f"Through all {len(self)} blocks a gradient is stretched by about {self.gain_product:.1e},"
            f" at most {self.spectral_product:.1e}",
            "block (1: next to the inputs)",
            "singular values of dh_k / dh_(k-1)",
        )


def block_jacobians(
    model: nn.Module,
    inputs: Any,
    *,
    blocks: Sequence[str] | None = None,
    max_iterations: int = 200,
    tolerance: float = 1e-2,
    seed: int = 0,
) -> JacobianReport:
    """The spectral norm of each block's Jacobian dh_k/dh_{k-1}, where ``model(inputs)`` brings it.

    By the chain rule the gradient comes back through the product of these Jacobians: it vanishes where their norms are
    well below 1, block after block, and may explode where they are well above. J is never there as a matrix: power
    iteration on J'J takes J v by ``torch.func.jvp`` and J'u by ``torch.func.vjp``. Without dropout, in evaluation mode.

    blocks: the names of the modules, in their order, each called with h_{k-1} as its first argument and returning h_k
        (or a tuple that begins with it). Default: the parts of that ``nn.ModuleList`` or ``nn.Sequential``
        for which their number times that of their parameters is largest.
    max_iterations, tolerance: it ends when ``residual`` is at most ``tolerance``, or after so many products.
    seed: of the first vectors.

    Fused kernels without forward mode (fusestep's attention) are differentiated numerically where J v is needed,
    and the row says so.

    Raises ValueError for names that the model does not have, and where no block was met.
    """
    check_integer("block_jacobians", "max_iterations", max_iterations, 1)
    check_number("block_jacobians", "tolerance", tolerance, 0.0)
    modules = dict(model.named_modules())
    names = _main_chain(model) if blocks is None else list(blocks)
    for name in names:
        if name not in modules:
            refuse("block_jacobians", "blocks", "names of modules of the model", repr(name))
    with preserved(model), sdpa_kernel(SDPBackend.MATH):  # the others have no forward mode
        model.eval()
        calls = _calls(model, inputs, {name: modules[name] for name in names})
        if not calls:
            refuse("block_jacobians", "blocks", "modules that are called with a floating tensor", str(names))
        generator = torch.Generator().manual_seed(seed)
        rows = [
            _examine(name, function, h, generator, max_iterations, tolerance) for name, (function, h) in calls.items()
        ]
    return JacobianReport(tuple(rows))


def _main_chain(model: nn.Module) -> list[str]:
    """Neither the two halves of a model nor the three layers within each of its blocks: the blocks."""
    chains = {
        name: module for name, module in model.named_modules() if isinstance(module, (nn.ModuleList, nn.Sequential))
    }
    if not chains:
        remedy = "Give the names of the blocks."
        refuse("block_jacobians", "blocks", "an nn.ModuleList or nn.Sequential in the model", "none", remedy)
    main = max(chains, key=lambda name: len(chains[name]) * sum(p.numel() for p in chains[name].parameters()))
    return [f"{main}.{child}" if main else child for child, _ in chains[main].named_children()]


def _calls(
    model: nn.Module, inputs: Any, blocks: dict[str, nn.Module]
) -> dict[str, tuple[Callable[[Tensor], Tensor], Tensor]]:
    """What each block computes of its first argument, and that argument in ``model(inputs)``."""
    calls: dict[str, tuple[Callable[[Tensor], Tensor], Tensor]] = {}

    def hook(name: str) -> Callable[..., None]:
        def remember(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not args or not isinstance(args[0], Tensor) or not args[0].is_floating_point():
                return  # tokens: there is nothing to differentiate by

            def function(h: Tensor) -> Tensor:
                out = module(h, *args[1:], **kwargs)
                result: Tensor = out[0] if isinstance(out, tuple) else out
                return result

            calls[name] = (function, args[0].detach())

        return remember

    with contextlib.ExitStack() as hooks, torch.no_grad():
        for name, module in blocks.items():
            handle = module.register_forward_pre_hook(hook(name), with_kwargs=True)
            hooks.callback(handle.remove)
        model(inputs)
    return calls


def _examine(
    name: str,
    function: Callable[[Tensor], Tensor],
    h: Tensor,
    generator: torch.Generator,
    max_iterations: int,
    tolerance: float,
) -> BlockJacobian:
    pair: Any = torch.func.vjp(function, h)  # its stub has a third part too, which only has_aux brings
    out, vjp = pair

    def back(u: Tensor) -> Tensor:
        result: Tensor = vjp(u, retain_graph=True)[0]
        return result.detach()

    random = _random_like(out, generator)
    mean_gain = _norm(back(random)) / math.sqrt(out.numel())  # E ||J'u||^2 = ||J||_F^2 for u ~ N(0, 1)
    method, forth = _forward_product(function, h)
    v = back(random)
    iterations, spectral_norm, residual = 0, 0.0, 0.0
    for iterations in range(1, max_iterations + 1):
        length = _norm(v)
        if length == 0.0 or not math.isfinite(length):
            return BlockJacobian(name, length, mean_gain, iterations, 0.0, method)
        v = v / length
        v = torch.where(v.abs() < NEGLIGIBLE, 0.0, v)
        stretched = forth(v)
        spectral_norm = _norm(stretched)
        image = back(stretched)
        if spectral_norm == 0.0:
            break
        residual = _norm(image - spectral_norm**2 * v) / spectral_norm**2
        if residual <= tolerance:
            break
        v = image
    return BlockJacobian(name, spectral_norm, mean_gain, iterations, residual, method)


def _forward_product(function: Callable[[Tensor], Tensor], h: Tensor) -> tuple[str, Callable[[Tensor], Tensor]]:
    """("jvp" or "differences", v -> J v for v that is not zero)."""

    def jvp(v: Tensor) -> Tensor:
        product: Tensor = torch.func.jvp(function, (h,), (v,))[1]
        return product.detach()

    # (f(h + t v) - f(h - t v)) / 2t. No element of h moves by more than eps^(1/3) of h's typical size, which balances
    # rounding and truncation.
    reach = torch.finfo(h.dtype).eps ** (1 / 3) * max(_norm(h) / math.sqrt(h.numel()), 1e-3)

    @torch.no_grad()
    def differences(v: Tensor) -> Tensor:
        step = reach / float(v.abs().max())
        quotient: Tensor = (function(h + step * v) - function(h - step * v)) / (2 * step)
        return quotient

    try:
        jvp(torch.zeros_like(h))
    except (NotImplementedError, RuntimeError) as refusal:
        if "orward" not in str(refusal):  # "forward mode", "forward AD": anything else is an error of the model
            raise
        return "differences", differences
    return "jvp", jvp


def _random_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(tensor.shape, generator=generator, dtype=torch.float32).to(tensor)


def _norm(tensor: Tensor) -> float:
    return float(tensor.double().norm())
