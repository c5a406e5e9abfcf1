"""Supervised fine-tuning by TRL: the loss is that of the answer alone. Attention and AdamW are fusestep's."""

import argparse
import os
import random

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all is made here: nothing is fetched, nothing reported
import fusestep.integrations.transformers  # noqa: F401  # registers attn_implementation="fusestep"
import torch
from datasets import Dataset
from fusestep.optim import AdamW
from support.tiny_llama import LETTERS, make_config, make_tokenizer
from transformers import LlamaForCausalLM
from trl import SFTConfig, SFTTrainer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=100)
steps = parser.parse_args().steps

tokenizer = make_tokenizer()
torch.manual_seed(0)
config = make_config(tokenizer, attn_implementation="fusestep")
model = LlamaForCausalLM(config)  # in place of yours


def rows(number):
    """Four random letters, which nobody could guess, and the three that follow the last of them in the alphabet."""
    for _ in range(number):
        prompt = "".join(random.choices(LETTERS, k=random.randint(2, 4)))
        start = LETTERS.index(prompt[-1]) + 1
        yield {"prompt": prompt + ">", "completion": (2 * LETTERS)[start : start + 3]}


random.seed(0)
trainer = SFTTrainer(
    model,
    SFTConfig(
        "runs/sft", max_steps=steps, per_device_train_batch_size=32, per_device_eval_batch_size=64,
        completion_only_loss=True,  # the labels of the prompt are -100
        max_grad_norm=0.0,  # the optimizer clips
        bf16=False, gradient_checkpointing=False, use_cpu=True, report_to="none", save_strategy="no", logging_steps=10,
    ),
    train_dataset=Dataset.from_list(list(rows(512))),
    eval_dataset=Dataset.from_list(list(rows(64))),
    processing_class=tokenizer,
    optimizer_cls_and_kwargs=(AdamW, {"lr": 5e-3, "max_grad_norm": 1.0}),
)  # fmt: skip

batch = next(iter(trainer.get_train_dataloader()))
row, labels = batch["input_ids"][0], batch["labels"][0]  # (S,)
print(f"of {tokenizer.decode(row)} the loss is that of {tokenizer.decode(row[labels != -100])}")
before = trainer.evaluate()["eval_loss"]
trainer.train()
after = trainer.evaluate()["eval_loss"]
print(f"loss of the answers {before:.3f} -> {after:.3f}")
assert after < before
