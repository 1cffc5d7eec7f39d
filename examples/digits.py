"""Handwritten digits: a small network learns to read them, on two processes of this machine, in half a minute.

    pip install scikit-learn
    python examples/digits.py

A `Task` says three things: which network, which samples, and how wrong a batch is. Everything else (who computes
what, what happens when a process dies) is Medley's business.
"""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional

import medley


class Digits(medley.Task):
    """1,797 scans of 8 x 8 grey pixels; every fifth is kept for the exam."""

    def __init__(self) -> None:
        pixels, labels = load_digits(return_X_y=True)
        images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 8, 8) / 16
        self.samples = list(zip(images, torch.tensor(labels), strict=True))

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3, padding=1),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(32 * 4 * 4, 10),
        )

    def dataset(self):
        return [sample for number, sample in enumerate(self.samples) if number % 5]

    def heldout(self):
        return self.samples[::5]

    def loss(self, model, batch):
        images, labels = batch
        scores = model(images)
        total = functional.cross_entropy(scores, labels, reduction="sum")
        return medley.Loss(total, len(labels), correct=(scores.argmax(1) == labels).sum())


def tell(event: dict) -> None:
    if event["kind"] == "heldout":
        print(f"  after {event['elapsed_s']:4.1f} s it reads {event['accuracy']:.1%} of digits it never saw")


if __name__ == "__main__":
    result = medley.train(Digits, on_event=tell, epochs=15, batch_samples=48, heldout_samples=360, optimizer__lr=3e-3)

    images, labels = (torch.stack(column) for column in zip(*Digits().heldout(), strict=True))
    read = result.model()(images).argmax(1)
    right = int((read == labels).sum())
    print(f"{right} of {len(labels)} right ({right / len(labels):.1%}) after {result.seconds:.0f} seconds of training")

    wrong = (read != labels).nonzero().flatten().tolist()
    if wrong:
        print(f"its hardest one: it says {read[wrong[0]]}, they say {labels[wrong[0]]}")
        for row in images[wrong[0], 0]:
            print("   ", "".join(" .:*#"[int(pixel * 4)] * 2 for pixel in row))
