"""Optimizers for PyTorch: torch.optim's arguments and state_dict, one fused step, clipping included::

from fusestep.optim import AdamW

opt = AdamW(model.parameters(), lr=3e-4, weight_decay=0.1, max_grad_norm=1.0)
loss.backward()
opt.step()
opt.grad_norm        # of all gradients, before clipping
"""

from fusestep import _torch as _torch

from .adagrad import Adagrad
from .adam import Adam
from .adamw import AdamW
from .base import FusedOptimizer
from .options import Clipping, Extras, Precision
from .rmsprop import RMSprop
from .sgd import SGD

__all__ = ["SGD", "Adagrad", "Adam", "AdamW", "Clipping", "Extras", "FusedOptimizer", "Precision", "RMSprop"]
