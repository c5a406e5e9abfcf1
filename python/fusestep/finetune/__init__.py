"""Fine-tuning with under a tenth of the parameters trained: LoRA, adapters, adapter fusion, prefixes.

Each function changes a model in place: it adds parameters, leaves only these to be trained, and the model computes what
it computed before until they are. Full fine-tuning needs none of this: train the model as it is.
"""

from fusestep import _torch as _torch
from fusestep.finetune.adapters import Adapter, add_adapters, fuse_adapters
from fusestep.finetune.freezing import trained_share
from fusestep.finetune.lora import add_lora, merge_lora
from fusestep.finetune.prefix import add_prefix

__all__ = ["Adapter", "add_adapters", "add_lora", "add_prefix", "fuse_adapters", "merge_lora", "trained_share"]
