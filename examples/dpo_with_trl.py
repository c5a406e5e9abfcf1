"""Preference tuning by TRL (DPO): of two answers the better one is learnt. Attention and AdamW are fusestep's."""

import argparse
import copy
import os
import random

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all is made here: nothing is fetched, nothing reported
import fusestep.integrations.transformers  # noqa: F401  # registers attn_implementation="fusestep"
import torch
from datasets import Dataset
from fusestep.optim import AdamW
from support.tiny_llama import LETTERS, make_config, make_tokenizer
from transformers import LlamaForCausalLM
from trl import DPOConfig, DPOTrainer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=60)
steps = parser.parse_args().steps

tokenizer = make_tokenizer()
torch.manual_seed(0)
config = make_config(tokenizer, attn_implementation="fusestep")
model = LlamaForCausalLM(config)  # in place of yours, fine-tuned before (sft_with_trl.py)


def pairs(number):
    """To any letters the answer of somebody who likes vowels, and of somebody who does not."""
    for _ in range(number):
        prompt = "".join(random.choices(LETTERS, k=random.randint(2, 4))) + ">"
        chosen, rejected = ("".join(random.choices(kind, k=3)) for kind in ("aeiou", "bcdfg"))
        yield {"prompt": prompt, "chosen": chosen, "rejected": rejected}


random.seed(0)
optimizer = AdamW(model.parameters(), lr=1e-3, max_grad_norm=1.0)
trainer = DPOTrainer(
    model,
    copy.deepcopy(model),  # the reference, from which the model shall not go far
    DPOConfig(
        "runs/dpo", max_steps=steps, per_device_train_batch_size=32, per_device_eval_batch_size=64, beta=0.1,
        max_grad_norm=0.0,  # the optimizer clips
        bf16=False, gradient_checkpointing=False, use_cpu=True, report_to="none", save_strategy="no", logging_steps=10,
    ),
    train_dataset=Dataset.from_list(list(pairs(512))),
    eval_dataset=Dataset.from_list(list(pairs(64))),
    processing_class=tokenizer,
    optimizers=(optimizer, None),
)  # fmt: skip
before = trainer.evaluate()
trainer.train()
after = trainer.evaluate()
for name in ("loss", "rewards/margins", "rewards/accuracies"):
    print(f"{name} {before['eval_' + name]:.3f} -> {after['eval_' + name]:.3f}")
assert after["eval_rewards/margins"] > before["eval_rewards/margins"]
