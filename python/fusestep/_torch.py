"""Imported first by the packages that are for PyTorch: where it is missing, this says what to do."""

try:
    import torch as torch
except ImportError as missing:
    raise ImportError(
        "fusestep.optim, fusestep.nn and fusestep.Trainer are for PyTorch, which cannot be imported: "
        f"{missing}. Try: pip install 'fusestep[torch]', or 'fusestep[train]' for the trainer"
    ) from missing
