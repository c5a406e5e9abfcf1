"""Run by torchrun: other libraries' training loops over several processes, with fusestep's optimizer and with torch's.

Writes a JSON object: for each library ``[losses with ours, losses with torch's, alike]``, where ``alike`` says whether
all processes ended with the same parameters; or the traceback, as text.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback

import torch
import torch.distributed as dist
from fusestep.optim import AdamW
from torch import nn
from torch.distributed.tensor import DTensor

STEPS, BATCH = 6, 8  # rows a process
OPTIMIZERS = AdamW, torch.optim.AdamW


class Regression(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))

    def forward(self, x, y):
        return {"loss": nn.functional.mse_loss(self.net(x), y)}


class Rows(torch.utils.data.Dataset):
    def __init__(self):
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(STEPS * BATCH * dist.get_world_size(), 8, generator=generator)

    def __len__(self):
        return len(self.x)

    def __getitem__(self, i):
        return {"x": self.x[i], "y": self.x[i].sum(dim=0, keepdim=True)}


def alike(parameters):
    """Whether every process has the same parameters, bit for bit."""
    own = torch.cat([p.detach().flatten() for p in parameters])
    everywhere = [torch.empty_like(own) for _ in range(dist.get_world_size())]
    dist.all_gather(everywhere, own)
    return all(torch.equal(theirs, own) for theirs in everywhere)


def with_accelerate(optimizer_class):
    import accelerate

    accelerator = accelerate.Accelerator(cpu=True)
    model = Regression()
    optimizer = optimizer_class(model.parameters(), lr=0.02)
    data = torch.utils.data.DataLoader(Rows(), batch_size=BATCH)
    model, optimizer, data = accelerator.prepare(model, optimizer, data)
    losses = []
    for batch in data:
        loss = model(**batch)["loss"]
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(accelerator.reduce(loss.detach(), "mean")))
    return losses, alike(model.parameters())


def with_transformers(optimizer_class):
    import transformers

    model = Regression()
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder, use_cpu=True, max_steps=STEPS, per_device_train_batch_size=BATCH, logging_steps=1,
            max_grad_norm=0.5, report_to=[], save_strategy="no", disable_tqdm=True, remove_unused_columns=False,
            ddp_backend="gloo", lr_scheduler_type="constant",
        )  # fmt: skip
        optimizer = optimizer_class(model.parameters(), lr=0.02)
        trainer = transformers.Trainer(model, arguments, train_dataset=Rows(), optimizers=(optimizer, None))
        trainer.train()
    return [row["loss"] for row in trainer.state.log_history if "loss" in row], alike(model.parameters())


def fit_lightning(optimizer_class, strategy, shards=False, **options):
    import lightning
    from torch.distributed.fsdp import fully_shard

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = Regression()
            self.losses = []

        def configure_model(self):
            if shards:
                fully_shard(self.model, mesh=self.device_mesh["data_parallel"])

        def training_step(self, batch):
            loss = self.model(**batch)["loss"]
            self.losses.append(float(loss.detach()))
            return loss

        def configure_optimizers(self):
            return optimizer_class(self.parameters(), lr=0.02)

    trainer = lightning.Trainer(
        max_steps=STEPS, accelerator="cpu", devices=dist.get_world_size(), logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, strategy=strategy, **options,
    )  # fmt: skip
    module = Module()
    trainer.fit(module, torch.utils.data.DataLoader(Rows(), batch_size=BATCH))
    parameters = list(module.parameters())
    assert shards == all(isinstance(p, DTensor) for p in parameters)
    return module.losses, alike([p.full_tensor() if shards else p for p in parameters])


def with_lightning(optimizer_class):
    from lightning.pytorch.strategies import DDPStrategy

    return fit_lightning(optimizer_class, DDPStrategy(process_group_backend="gloo"), gradient_clip_val=0.5)


def with_lightning_fsdp2(optimizer_class):
    """Accelerate, and so transformers, has FSDP on accelerators alone: on CPUs it falls back to DDP."""
    from lightning.pytorch.strategies import ModelParallelStrategy

    return fit_lightning(optimizer_class, ModelParallelStrategy(process_group_backend="gloo"), shards=True)


LIBRARIES = {
    "Accelerate": with_accelerate,
    "transformers": with_transformers,
    "Lightning": with_lightning,
    "Lightning, FSDP2": with_lightning_fsdp2,
}


def outcome(train):
    try:
        (ours, same), (theirs, _) = (train(optimizer_class) for optimizer_class in OPTIMIZERS)
    except Exception:
        return traceback.format_exc()
    return [ours, theirs, same]


def main():
    os.environ["HF_HUB_OFFLINE"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    results = {name: outcome(train) for name, train in LIBRARIES.items()}
    if dist.get_rank() == 0:
        with open(sys.argv[1], "w") as file:
            json.dump(results, file)


main()
