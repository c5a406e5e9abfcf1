"""RLHF by TRL: a reward model from pairs of answers, then reinforcement (GRPO) of what it rewards."""

import argparse
import os
import random

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all is made here: nothing is fetched, nothing reported
import fusestep.integrations.transformers  # noqa: F401  # registers attn_implementation="fusestep"
import torch
from datasets import Dataset
from fusestep.optim import AdamW
from support.tiny_llama import LETTERS, make_config, make_tokenizer
from transformers import LlamaForCausalLM, LlamaForSequenceClassification
from trl import GRPOConfig, GRPOTrainer, RewardConfig, RewardTrainer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=40)
steps = parser.parse_args().steps

tokenizer = make_tokenizer(padding_side="left")
torch.manual_seed(0)
config = make_config(tokenizer, attn_implementation="fusestep")
model = LlamaForCausalLM(config)  # in place of yours, fine-tuned before (sft_with_trl.py)
config.num_labels = 1
reward_model = LlamaForSequenceClassification(config)


def prompt():
    return "".join(random.choices(LETTERS, k=random.randint(2, 4))) + ">"


def pairs(number):
    """To any letters the answer of somebody who likes vowels, and any other."""
    for _ in range(number):
        chosen, rejected = ("".join(random.choices(kind, k=3)) for kind in ("aeiou", LETTERS))
        yield {"prompt": prompt(), "chosen": chosen, "rejected": rejected}


def reward(prompts, completions, **_):
    """What the reward model says of each answer. Pairs ended with <eos> when it was trained."""
    texts = [question + answer + "<eos>" for question, answer in zip(prompts, completions, strict=True)]
    with torch.no_grad():
        return reward_model(**tokenizer(texts, padding=True, return_tensors="pt")).logits[:, 0].tolist()


random.seed(0)
settings = {
    "max_steps": steps, "per_device_train_batch_size": 64, "per_device_eval_batch_size": 256, "logging_steps": 10,
    "max_grad_norm": 0.0,  # the optimizers clip
    "bf16": False, "gradient_checkpointing": False, "use_cpu": True, "report_to": "none", "save_strategy": "no",
}  # fmt: skip
first = RewardTrainer(
    reward_model,
    RewardConfig("runs/reward", **settings),
    train_dataset=Dataset.from_list(list(pairs(512))),
    eval_dataset=Dataset.from_list(list(pairs(128))),
    processing_class=tokenizer,
    optimizer_cls_and_kwargs=(AdamW, {"lr": 2e-3, "max_grad_norm": 1.0}),
)
before = first.evaluate()
first.train()
after = first.evaluate()
print(f"reward model: loss {before['eval_loss']:.3f} -> {after['eval_loss']:.3f}")
assert after["eval_loss"] < before["eval_loss"]

second = GRPOTrainer(
    model,
    reward,
    GRPOConfig("runs/grpo", num_generations=8, max_completion_length=3, **settings),
    train_dataset=Dataset.from_list([{"prompt": prompt()} for _ in range(256)]),
    eval_dataset=Dataset.from_list([{"prompt": prompt()} for _ in range(32)]),
    processing_class=tokenizer,
    optimizers=(AdamW(model.parameters(), lr=3e-3, max_grad_norm=1.0), None),
)
before = second.evaluate()
second.train()
after = second.evaluate()
print(f"model: reward {before['eval_reward']:.2f} -> {after['eval_reward']:.2f}")
answer = model.generate(**tokenizer(["q>"], return_tensors="pt"), max_new_tokens=3, do_sample=True)
print("to q> it now answers", tokenizer.decode(answer[0][2:]))
assert after["eval_reward"] > before["eval_reward"]
