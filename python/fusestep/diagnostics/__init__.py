"""When training does not work: is the gradient right, can one batch be fitted, what does each layer do, at which rate?

Each diagnostic is a function that leaves the model as found and returns a report: a dataclass with ``summary()``,
``to_json()`` and ``plot(path)`` (matplotlib: ``pip install 'fusestep[train]'``).
"""

from fusestep import _torch as _torch
from fusestep.diagnostics.culprits import Culprit
from fusestep.diagnostics.dead_units import DeadUnitsReport, LayerUnits, dead_units
from fusestep.diagnostics.gradient_check import (
    GradientCheck,
    GradientCheckReport,
    check_function,
    check_gradients,
    check_module,
)
from fusestep.diagnostics.health import HealthReport, LayerGradient, gradient_health, model_health
from fusestep.diagnostics.jacobian import BlockJacobian, JacobianReport, block_jacobians
from fusestep.diagnostics.overfit import OverfitReport, overfit_one_batch
from fusestep.diagnostics.rate_range import RateRangeReport, rate_range
from fusestep.diagnostics.report import Report
from fusestep.diagnostics.variances import LayerVariance, VarianceReport, layer_variances

__all__ = [
    "BlockJacobian",
    "Culprit",
    "DeadUnitsReport",
    "GradientCheck",
    "GradientCheckReport",
    "HealthReport",
    "JacobianReport",
    "LayerGradient",
    "LayerUnits",
    "LayerVariance",
    "OverfitReport",
    "RateRangeReport",
    "Report",
    "VarianceReport",
    "block_jacobians",
    "check_function",
    "check_gradients",
    "check_module",
    "dead_units",
    "gradient_health",
    "layer_variances",
    "model_health",
    "overfit_one_batch",
    "rate_range",
]
