"""fusestep's optimizer and attention under transformers' own Trainer: in float32, under bf16 autocast, in bf16."""

from __future__ import annotations

import warnings

import fusestep.integrations.transformers  # noqa: F401  # registers the attention
import pytest
import torch
from fusestep.optim import AdamW

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # its own imports use what other packages have deprecated
    import transformers

pytestmark = pytest.mark.filterwarnings(
    "ignore::Warning:transformers", "ignore::Warning:torch", "ignore::Warning:accelerate"
)


def losses(folder, implementation, optimizer_class, dtype=torch.float32, bf16=False, **options):
    """Of 20 steps of a tiny Llama on sequences of one pattern."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=32, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=implementation, dtype=dtype)
    assert model.dtype == dtype
    optimizer = optimizer_class(model.parameters(), lr=5e-3, **options)
    rows = [torch.arange(start, start + 16) % 32 for start in range(32)]
    arguments = transformers.TrainingArguments(
        str(folder), max_steps=20, per_device_train_batch_size=8, bf16=bf16, use_cpu=True, logging_steps=1,
        report_to="none", save_strategy="no", disable_tqdm=True, lr_scheduler_type="constant", max_grad_norm=1.0,
    )  # fmt: skip
    trainer = transformers.Trainer(
        model,
        arguments,
        train_dataset=[{"input_ids": row, "labels": row} for row in rows],
        optimizers=(optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)),
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize(
    ("precision", "options"),
    [
        ({}, {}),
        ({"bf16": True}, {}),
        ({"dtype": torch.bfloat16}, {}),
        ({"dtype": torch.bfloat16}, {"rounding": "stochastic", "seed": 1}),
        ({"dtype": torch.bfloat16, "bf16": True}, {"master_weights": True}),
    ],
    ids=["float32", "bf16=True", "bfloat16", "bfloat16, stochastic", "bfloat16 and bf16=True, master weights"],
)
def test_trains_as_torchs_own(tmp_path, capsys, precision, options):
    ours = losses(tmp_path, "fusestep", AdamW, **precision, **options)
    theirs = losses(tmp_path, "sdpa", torch.optim.AdamW, **precision)
    assert len(ours) == 20
    assert ours[-1] < 0.8 * ours[0]
    if precision.get("dtype") is None:
        # 20 updates in float32; where a bf16 rounding of an activation falls the other way, the loss moves by 2**-8
        assert ours == pytest.approx(theirs, rel=2.0**-6 if precision else 1e-5)
