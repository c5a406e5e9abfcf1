"""Learning-rate schedules side by side, as a picture."""

import argparse
from pathlib import Path

from fusestep.schedules import ExponentialWarmup, InverseSqrt, LinearWarmup, WarmupCosine
from matplotlib.figure import Figure

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=1000)
parser.add_argument("--output", type=Path, default=Path("rates.png"))
options = parser.parse_args()
steps = max(10, options.steps)
warmup_steps = steps // 5
schedules = {
    "linear warm-up, cosine decay": WarmupCosine(1e-3, warmup_steps, steps, initial_lr=1e-5, min_lr=1e-4),
    "linear warm-up": LinearWarmup(1e-3, warmup_steps, initial_lr=1e-5),
    "exponential warm-up": ExponentialWarmup(1e-3, warmup_steps, initial_lr=1e-5),
    "inverse square root": InverseSqrt.from_peak(1e-3, warmup_steps),
}
figure = Figure(figsize=(7, 4), layout="constrained")
axes = figure.subplots()
for name, schedule in schedules.items():
    axes.plot([schedule(step) for step in range(steps)], label=name)
axes.set_xlabel("step")
axes.set_ylabel("learning rate")
axes.legend(frameon=False)
figure.savefig(options.output, dpi=120)
print(f"see {options.output}")
