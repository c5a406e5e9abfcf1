"""fusestep's optimizers and attention under Accelerate, with its clipping and with ours."""

from __future__ import annotations

import accelerate
import pytest
import torch
from accelerate.state import AcceleratorState
from fusestep.models import GPT, GPTConfig
from fusestep.optim import AdamW
from torch.nn.functional import cross_entropy

SHAPE = GPTConfig(vocabulary=32, context=16, layers=1, heads=2, width=16, dropout=0.1)


def losses(precision, optimizer_class=AdamW, clip=None, **options):
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
    torch.manual_seed(0)
    model = GPT(SHAPE)
    optimizer = optimizer_class(model.parameters(), lr=1e-2, **options)
    tokens = torch.randint(0, 32, (4, 17), generator=torch.Generator().manual_seed(1))
    data = torch.utils.data.DataLoader(tokens.repeat(8, 1), batch_size=4)
    model, optimizer, data = accelerator.prepare(model, optimizer, data)
    torch.manual_seed(2)  # dropout
    history = []
    for batch in data:
        with accelerator.accumulate(model):
            logits = model(batch[:, :-1])
            loss = cross_entropy(logits.float().flatten(0, 1), batch[:, 1:].flatten())
            accelerator.backward(loss)
            if clip is not None and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
            history.append(float(loss.detach()))
    return history


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_trains_as_torchs_own(precision):
    ours, theirs = losses(precision), losses(precision, torch.optim.AdamW)
    assert ours == pytest.approx(theirs, rel=1e-5 if precision == "no" else 2.0**-6)
    assert ours[-1] < ours[0]


def test_its_clipping_and_ours_are_the_same():
    assert losses("no", clip=0.1) == pytest.approx(losses("no", max_grad_norm=0.1), rel=1e-5)
