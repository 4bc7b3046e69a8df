"""A Transformer that reads handwritten digits: every part of it is a function or module of one of the katas."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from feed_forward import FeedForwardSublayer
from jaxtyping import Float, Int
from label_smoothing import label_smoothing_loss
from modules import evaluate
from normalization import Dropout
from optimization import AdamW, batches, clip_grad_norm_
from residual import Residual
from sklearn.datasets import load_digits
from tensors import standardize
from torch import Tensor, nn
from transformer import Embedding, MultiHeadAttention, WarmupCosine, random_crop
from views import patchify


@dataclass(frozen=True)
class Digits:
    """Scans of digits, 8 pixels by 8, standardised one by one; a fifth of them is held out."""

    images: Float[Tensor, "n 1 8 8"]
    labels: Int[Tensor, " n"]
    held_out_images: Float[Tensor, "m 1 8 8"]
    held_out_labels: Int[Tensor, " m"]


def load(generator: torch.Generator) -> Digits:
    """scikit-learn's 1797 digits, split at random."""
    data = load_digits()
    order = torch.randperm(len(data.target), generator=generator)
    images = standardize(torch.tensor(data.images, dtype=torch.float32).unsqueeze(1), dim=(1, 2, 3))[order]
    labels = torch.tensor(data.target)[order]
    held_out = len(order) // 5
    return Digits(images[held_out:], labels[held_out:], images[:held_out], labels[:held_out])


class Classifier(nn.Module):
    """A Transformer encoder over the patches of an image; the mean of what it says of each patch decides."""

    def __init__(self, dim: int = 48, heads: int = 4, layers: int = 2, patch: int = 2, dropout: float = 0.1):
        super().__init__()
        self.patch = patch
        self.register_buffer("places", torch.arange((8 // patch) ** 2), persistent=False)
        self.patches = nn.Linear(patch**2, dim)
        self.positions = Embedding((8 // patch) ** 2, dim)
        blocks = []
        for _ in range(layers):
            attention = nn.Sequential(nn.LayerNorm(dim), MultiHeadAttention(dim, heads), Dropout(dropout))
            blocks += [Residual(attention), FeedForwardSublayer(dim, 2 * dim, dropout)]
        self.blocks = nn.Sequential(*blocks)
        self.classes = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 10))

    def forward(self, images: Float[Tensor, "b 1 8 8"]) -> Float[Tensor, "b 10"]:
        x = self.patches(patchify(images, self.patch)) + self.positions(self.places)
        return self.classes(self.blocks(x).mean(dim=1))


@dataclass(frozen=True)
class Epoch:
    """How far training has come."""

    number: int
    loss: float
    accuracy: float  # on the held-out digits, from 0 to 1
    model: Classifier


def train(seed: int = 0, epochs: int = 30, batch_size: int = 64, padding: int = 1) -> Iterator[Epoch]:
    """Trains a classifier, on crops of digits padded by so many pixels, and tells after each epoch how it does."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    digits = load(generator)
    model = Classifier()
    optimizer = AdamW(model.parameters(), lr=3e-3, weight_decay=0.05)
    steps = -(-len(digits.images) // batch_size)
    schedule = WarmupCosine(optimizer, warmup=2 * steps, total=epochs * steps)
    for number in range(1, epochs + 1):
        model.train()
        total = 0.0
        for images, labels in batches(
            digits.images, digits.labels, batch_size=batch_size, shuffle=True, generator=generator
        ):
            optimizer.zero_grad()
            loss = label_smoothing_loss(model(random_crop(images, padding, generator=generator)), labels, 0.1)
            loss.backward()
            clip_grad_norm_(model.parameters(), max_norm=1.0)
            optimizer.step()
            schedule.step()
            total += loss.item() * len(images)
        _, accuracy = evaluate(
            model, nn.functional.cross_entropy, batches(digits.held_out_images, digits.held_out_labels, batch_size=256)
        )
        yield Epoch(number, total / len(digits.images), accuracy, model)
