"""Random crops, rotations and flips of images: few pictures, each never seen twice in the same way."""

import argparse

import torch
from fusestep import TrainConfig, Trainer
from fusestep.optim import AdamW
from fusestep.schedules import WarmupCosine
from torch import nn

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--steps", type=int, default=200)
steps = parser.parse_args().steps

SIZE, MARGIN, SHAPES = 16, 3, 3


def draw(number, generator):
    """Noisy pictures (N, 1, 16, 16) of a plus, a square or a diagonal cross, somewhere, and which of them (N,)."""
    images = 0.4 * torch.randn(number, 1, SIZE, SIZE, generator=generator)
    labels = torch.randint(SHAPES, (number,), generator=generator)
    for image, label in zip(images, labels.tolist(), strict=True):
        top, left = torch.randint(SIZE - 6, (2,), generator=generator).tolist()
        patch = image[0, top : top + 7, left : left + 7]
        if label == 0:
            patch[3] += 1
            patch[:, 3] += 1
        elif label == 1:
            patch[[0, -1]] += 1
            patch[:, [0, -1]] += 1
        else:
            patch += torch.eye(7) + torch.eye(7).flip(1)
    return images, labels


def augmented(images):
    """A random window of each picture, turned by a random multiple of 90 degrees, every other one mirrored."""
    padded = nn.functional.pad(images, (MARGIN,) * 4)
    changed = []
    for image in padded:
        top, left = torch.randint(2 * MARGIN + 1, (2,)).tolist()
        image = image[:, top : top + SIZE, left : left + SIZE].rot90(int(torch.randint(4, ())), dims=(1, 2))
        changed.append(image.flip(2) if torch.rand(()) < 0.5 else image)
    return torch.stack(changed)


class Batches:
    """Twelve of the pictures at a time, in random order, as ``change`` makes them."""

    def __init__(self, images, labels, change):
        self.images, self.labels, self.change = images, labels, change

    def __iter__(self):
        for chosen in torch.randperm(len(self.labels)).split(12):
            yield self.change(self.images[chosen]), self.labels[chosen]


def accuracy(change):
    """On new pictures, of a model that was trained on 48."""
    generator = torch.Generator().manual_seed(0)
    few, many = draw(48, generator), draw(600, generator)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32 * 16, SHAPES),
    )  # fmt: skip
    optimizer = AdamW(model.parameters(), max_grad_norm=1.0)
    config = TrainConfig(max_steps=steps, progress=False)
    Trainer(model, optimizer, WarmupCosine(3e-3, 10, max(steps, 11)), config).fit(Batches(*few, change))
    model.eval()
    with torch.no_grad():
        return (model(many[0]).argmax(1) == many[1]).float().mean().item()


print(f"accuracy on new pictures: {accuracy(lambda images: images):.1%} without, {accuracy(augmented):.1%} with")
