"""Many to many, not aligned: an encoder and a decoder that write a sequence of digits backwards.

The encoder's last state is all that the decoder gets of the sequence; what flows back through that state trains the
encoder. In training the decoder is given the digits it should have written; then a stream feeds its own back in.
"""

import numpy as np

import fastrnn
from fastrnn import nn, optim

DIGITS, STEPS, BATCH = 5, 4, 32
START = DIGITS  # a symbol of its own begins what the decoder reads


def sequences(rng):
    """digits: [T, B]"""
    return rng.integers(0, DIGITS, (STEPS, BATCH))


class Reverser(fastrnn.Module):
    def __init__(self, hidden_size=32):
        self.symbols = nn.Embedding(DIGITS + 1, 12, seed=0)  # read by both
        self.encoder = fastrnn.LSTM(12, hidden_size, seed=1)
        self.decoder = fastrnn.LSTM(12, hidden_size, seed=2)
        self.output = nn.Linear(hidden_size, DIGITS, seed=3)

    def forward(self, digits, before):
        _, state = self.encoder(self.symbols(digits))
        y, _ = self.decoder(self.symbols(before), state)
        return self.output(y)

    def backward(self, dlogits):
        dx, dstate = self.decoder.backward(self.output.backward(dlogits))
        self.symbols.backward(dx)
        dx, _ = self.encoder.backward(None, dstate)
        self.symbols.backward(dx)

    def reverse(self, digits):
        _, state = self.encoder(self.symbols(digits))
        stream = self.decoder.stream(digits.shape[1])
        stream.state = state
        written = [np.full(digits.shape[1], START)]
        for _ in digits:
            written.append(self.output(stream.step(self.symbols(written[-1]))).argmax(-1))
        return np.array(written[1:])


def main(updates=300):
    rng = np.random.default_rng(0)
    model, cross_entropy = Reverser(), nn.CrossEntropy()
    optimizer = optim.Adam(model, lr=0.02)

    model.train()
    for _ in range(updates):
        digits = sequences(rng)
        target = digits[::-1]
        before = np.vstack([np.full((1, BATCH), START), target[:-1]])
        cross_entropy(model(digits, before), target)
        model.zero_grad()
        model.backward(cross_entropy.backward())
        optim.clip_grad_norm(model, 1.0)
        optimizer.step()

    model.eval()
    digits = sequences(rng)
    return (model.reverse(digits) == digits[::-1]).all(0).mean()


if __name__ == "__main__":
    print(f"{main():.0%} of new sequences reversed without a mistake")
