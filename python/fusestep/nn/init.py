"""Initialisation by activation: Xavier/Glorot for symmetric ones, He for the rectifiers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import nn

from fusestep._refusal import refuse

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
    known = [*_SYMMETRIC, *_RECTIFIERS]
    if activation not in known:
        refuse("init_weights_", "activation", "one of " + ", ".join(known), repr(activation))
    if distribution not in ("normal", "uniform"):
        refuse("init_weights_", "distribution", '"normal" or "uniform"', repr(distribution))
    xavier = nn.init.xavier_normal_ if distribution == "normal" else nn.init.xavier_uniform_
    he = nn.init.kaiming_normal_ if distribution == "normal" else nn.init.kaiming_uniform_
    followers = dict(_followers(module))
    for layer in module.modules():
        if not isinstance(layer, _LAYERS):
            continue
        name, slope = _activation_of(followers.get(layer), activation)
        if name in _RECTIFIERS:
            he(layer.weight, a=slope, nonlinearity="leaky_relu", generator=generator)
        else:
            xavier(layer.weight, generator=generator)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def _followers(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    for parent in module.modules():
        if isinstance(parent, nn.Sequential):
            yield from pairwise(parent)


def _activation_of(follower: nn.Module | None, default: str) -> tuple[str, float]:
    name = _MODULES.get(type(follower), default) if follower is not None else default
    slope = follower.negative_slope if isinstance(follower, nn.LeakyReLU) else _RECTIFIERS.get(name, 0.0)
    return name, slope
