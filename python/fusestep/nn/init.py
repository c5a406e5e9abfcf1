"""Initial values: by activation (Xavier/Glorot, He), by batch size, and for residual branches by depth."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import pairwise

import torch
from torch import nn

from fusestep._refusal import check_choice, check_integer, refuse

# A layer whose outputs pass through one of these loses half of its variance there, which He's factor 2 gives
# back. The value is the slope for negative inputs: leaky ones lose less.
_RECTIFIERS: dict[str, float] = {"relu": 0.0, "gelu": 0.0, "silu": 0.0, "leaky_relu": 0.01}
_SYMMETRIC = ("linear", "tanh", "sigmoid", "softmax")
_MODULES: dict[type[nn.Module], str] = {
    nn.ReLU: "relu",
    nn.GELU: "gelu",
    nn.SiLU: "silu",
    nn.LeakyReLU: "leaky_relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.Softmax: "softmax",
}
_DISTRIBUTIONS = ("normal", "uniform")
_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def init_weights_(
    module: nn.Module,
    activation: str = "linear",
    *,
    distribution: str = "normal",
    generator: torch.Generator | None = None,
) -> None:
    """Initialises every linear and convolution layer inside ``module``, in place, by what follows it.

    ======================================  ===================================================
    activation after the layer              variance of its weights
    ======================================  ===================================================
    linear, tanh, sigmoid, softmax          Xavier/Glorot: 2 / (fan_in + fan_out)
    relu, gelu, silu                        He: 2 / fan_in
    leaky_relu with slope a                 He: 2 / ((1 + a^2) fan_in)
    ======================================  ===================================================

    Inside an ``nn.Sequential`` the activation is the module that follows the layer; everywhere else it is
    ``activation``. Biases become zero. Other layers (embeddings, norms) are left as they are.

    distribution: "normal", or "uniform" with the same variance, on [-sqrt(3 var), sqrt(3 var)].
    generator: where the draws come from (default: torch's global generator).
    Raises ValueError for an unknown activation or distribution; nothing has been changed then.
    """
    check_choice("init_weights_", "activation", activation, (*_SYMMETRIC, *_RECTIFIERS))
    check_choice("init_weights_", "distribution", distribution, _DISTRIBUTIONS)
    xavier = nn.init.xavier_normal_ if distribution == "normal" else nn.init.xavier_uniform_
    he = nn.init.kaiming_normal_ if distribution == "normal" else nn.init.kaiming_uniform_
    followers = dict(_followers(module))
    for layer in _layers(module):
        name, slope = _activation_of(followers.get(layer), activation)
        if name in _RECTIFIERS:
            he(layer.weight, a=slope, nonlinearity="leaky_relu", generator=generator)
        else:
            xavier(layer.weight, generator=generator)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


@torch.no_grad()
def init_normal_(module: nn.Module, batch_size: int, *, generator: torch.Generator | None = None) -> None:
    """Draws the weights of every linear and convolution layer inside ``module`` from N(0, 1 / sqrt(batch_size)).

    1 / sqrt(n) is the variance, n the batch size: the deviation is n^(-1/4). It remedies the large gradients that
    N(0, 1) leads to, without a look at the layers; ``init_weights_``, which goes by their sizes, is better for deep
    models. Biases become zero. Other layers (embeddings, norms) are left as they are.

    batch_size: samples in a batch, >= 1.
    generator: where the draws come from (default: torch's global generator).
    Raises TypeError or ValueError for another batch_size; nothing has been changed then.
    """
    check_integer("init_normal_", "batch_size", batch_size, 1)
    for layer in _layers(module):
        layer.weight.normal_(0.0, batch_size**-0.25, generator=generator)
        if layer.bias is not None:
            layer.bias.zero_()


@torch.no_grad()
def scale_residual_branches_(module: nn.Module, suffixes: Iterable[str], depth: int) -> None:
    """Multiplies the weights that write into the residual stream by 1 / sqrt(2 * depth), as GPT-2 does, in place.

    Each of the ``depth`` blocks adds two branches, attention and the feed-forward part, to the stream: its variance
    would grow by a term for each of them, and keeps the size of one.

    suffixes: ends of the names of these weights in ``module.named_parameters()``, such as "attention.out.weight".
    depth: blocks, >= 1.
    Raises TypeError or ValueError for another depth, or for a suffix that no parameter has; nothing has been changed
    then.
    """
    check_integer("scale_residual_branches_", "depth", depth, 1)
    named, suffixes = dict(module.named_parameters()), tuple(suffixes)
    for suffix in suffixes:
        if not any(name.endswith(suffix) for name in named):
            refuse("scale_residual_branches_", "suffixes", "ends of the names of parameters", repr(suffix))
    for name, parameter in named.items():
        if name.endswith(suffixes):
            parameter.div_(math.sqrt(2 * depth))


def _layers(module: nn.Module) -> Iterator[nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d]:
    for layer in module.modules():
        if isinstance(layer, _LAYERS):
            yield layer


def _followers(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    for parent in module.modules():
        if isinstance(parent, nn.Sequential):
            yield from pairwise(parent)


def _activation_of(follower: nn.Module | None, default: str) -> tuple[str, float]:
    name = _MODULES.get(type(follower), default) if follower is not None else default
    slope = follower.negative_slope if isinstance(follower, nn.LeakyReLU) else _RECTIFIERS.get(name, 0.0)
    return name, slope
