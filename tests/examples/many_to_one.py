"""Many to one: name the wave. A noisy sequence of 8 to 20 numbers is a sine, a square or a sawtooth wave.

The LSTM reads it; its last state, which for a shorter sequence is the one after its own last step, is classified.
"""

import numpy as np

import fastrnn
from fastrnn import nn, optim

STEPS, BATCH, CLASSES = 20, 32, 3


def waves(rng):
    """x: [T, B, 1], lengths: [B], labels: [B]"""
    labels, lengths = rng.integers(0, CLASSES, BATCH), rng.integers(8, STEPS + 1, BATCH)
    phase = np.arange(STEPS)[:, None] / 8 + rng.random(BATCH)  # [T, B] in turns, at least one turn long
    shapes = np.sin(2 * np.pi * phase), np.sign(np.sin(2 * np.pi * phase)), 2 * (phase % 1) - 1
    x = np.choose(labels, shapes) + 0.1 * rng.standard_normal((STEPS, BATCH))
    return x[:, :, None], lengths, labels


class Classifier(fastrnn.Module):
    def __init__(self, hidden_size=16):
        self.lstm = fastrnn.LSTM(1, hidden_size, seed=0)
        self.output = nn.Linear(hidden_size, CLASSES, seed=1)

    def forward(self, x, lengths):
        _, (h, _) = self.lstm(x, lengths=lengths)
        return self.output(h[-1])

    def backward(self, dlogits):
        dh = self.output.backward(dlogits)[None]
        self.lstm.backward(None, (dh, np.zeros_like(dh)))


def main(updates=150):
    rng = np.random.default_rng(0)
    model, cross_entropy = Classifier(), nn.CrossEntropy()
    optimizer = optim.Adam(model, lr=0.02)

    model.train()
    for _ in range(updates):
        x, lengths, labels = waves(rng)
        cross_entropy(model(x, lengths), labels)
        model.zero_grad()
        model.backward(cross_entropy.backward())
        optim.clip_grad_norm(model, 1.0)
        optimizer.step()

    model.eval()
    x, lengths, labels = waves(rng)
    return (model(x, lengths).argmax(-1) == labels).mean()


if __name__ == "__main__":
    print(f"{main():.0%} of new waves named right; a guess is right for {1 / CLASSES:.0%}")
