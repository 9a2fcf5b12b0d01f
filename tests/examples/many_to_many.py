"""Many to many, aligned: tag every number of a sequence as a peak, a valley or a slope between its neighbours.

A tag needs the number after it as much as the one before: the GRU is bidirectional. Sequences differ in length; the
targets past an end are ignored.
"""

import numpy as np

import fastrnn
from fastrnn import nn, optim

STEPS, BATCH, TAGS, IGNORED = 12, 32, ("peak", "valley", "slope"), -100


def sequences(rng):
    """x: [T, B, 1], lengths: [B], tags: [T, B]"""
    x, lengths = rng.random((STEPS, BATCH)), rng.integers(3, STEPS + 1, BATCH)
    tags = np.full((STEPS, BATCH), 2)
    inner = x[1:-1]
    tags[1:-1][(inner > x[:-2]) & (inner > x[2:])] = 0
    tags[1:-1][(inner < x[:-2]) & (inner < x[2:])] = 1
    at = np.arange(STEPS)[:, None]
    tags[at >= lengths] = IGNORED
    tags[lengths - 1, np.arange(BATCH)] = 2  # an end has no neighbour, as the first has none
    return x[:, :, None], lengths, tags


class Tagger(fastrnn.Module):
    def __init__(self, hidden_size=24):
        self.gru = fastrnn.GRU(1, hidden_size, bidirectional=True, seed=0)
        self.output = nn.Linear(2 * hidden_size, len(TAGS), seed=1)

    def forward(self, x, lengths):
        y, _ = self.gru(x, lengths=lengths)
        return self.output(y)

    def backward(self, dlogits):
        self.gru.backward(self.output.backward(dlogits))


def main(updates=250):
    rng = np.random.default_rng(0)
    model, cross_entropy = Tagger(), nn.CrossEntropy(ignore_index=IGNORED)
    optimizer = optim.Adam(model, lr=0.02)

    model.train()
    for _ in range(updates):
        x, lengths, tags = sequences(rng)
        cross_entropy(model(x, lengths), tags)
        model.zero_grad()
        model.backward(cross_entropy.backward())
        optimizer.step()

    model.eval()
    x, lengths, tags = sequences(rng)
    return (model(x, lengths).argmax(-1) == tags)[tags != IGNORED].mean()


if __name__ == "__main__":
    print(f"{main():.0%} of new numbers tagged right; 'slope' everywhere is right for about half")
