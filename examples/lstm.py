"""A character LSTM learns to spell from the built-in corpus, and babbles a little as it goes. About two minutes.

    python examples/lstm.py

Nothing in here is a transformer: a `Task` may train any torch model. Each of two processes reads its own share of
the text; eight steps are made locally between two exchanges (`local-sgd`), which keeps the wire quiet.
"""

import torch
from torch import nn
from torch.nn import functional

import medley
from medley.data.corpus import load_pairs

LENGTH = 96  # characters in one sample


class Speller(nn.Module):
    """Characters in, what probably comes next out."""

    def __init__(self, letters: int, width: int = 128) -> None:
        super().__init__()
        self.embed = nn.Embedding(letters, 32)
        self.lstm = nn.LSTM(32, width, batch_first=True)
        self.head = nn.Linear(width, letters)

    def forward(self, codes, memory=None):
        hidden, memory = self.lstm(self.embed(codes), memory)
        return self.head(hidden), memory


class Characters(medley.Task):
    def __init__(self) -> None:
        text = "\n".join(f"{pair.questions[0]} {pair.answer}" for pair in load_pairs())
        self.letters = sorted(set(text))
        codes = torch.tensor([self.letters.index(letter) for letter in text])
        self.samples = list(codes.unfold(0, LENGTH + 1, LENGTH))

    def model(self) -> nn.Module:
        return Speller(len(self.letters))

    def dataset(self):
        return self.samples[:-40]

    def heldout(self):
        return self.samples[-40:]

    def loss(self, model, batch):
        scores = model(batch[:, :-1])[0].flatten(0, 1)
        wanted = batch[:, 1:].flatten()
        total = functional.cross_entropy(scores, wanted, reduction="sum")
        return medley.Loss(total, len(wanted), (scores.argmax(1) == wanted).sum(), tokens=len(wanted))


def babble(task: Characters, model: nn.Module, start: str, length: int = 240) -> str:
    """Let it go on from `start`, a letter at a time."""
    torch.manual_seed(1)
    text, memory = start, None
    codes = torch.tensor([[task.letters.index(letter) for letter in start]])
    for _ in range(length):
        scores, memory = model(codes, memory)
        codes = torch.multinomial(functional.softmax(scores[:, -1] / 0.5, -1), 1)
        text += task.letters[int(codes)]
    return text


def tell(event: dict) -> None:
    if event["kind"] == "heldout":
        print(f"  after {event['elapsed_s']:5.1f} s it guesses {event['accuracy']:.0%} of the next characters")


if __name__ == "__main__":
    result = medley.train(
        Characters,
        on_event=tell,
        epochs=60,
        max_minutes=2,
        batch_samples=32,
        mode="local-sgd",
        local_steps=8,
        optimizer__lr=5e-3,
    )
    print(babble(Characters(), result.model(), "It is best to "))
