"""One to many: spell a number. One noisy vector stands for a digit; the GRU writes its English name, letter by letter.

The vector becomes the first state. In training the GRU is given the letters that came before (teacher forcing); then
a stream feeds each letter that it wrote back in.
"""

import numpy as np

import fastrnn
from fastrnn import nn, optim

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
LETTERS = "." + "".join(sorted(set("".join(NAMES))))  # the dot begins a name and ends it
STEPS = max(map(len, NAMES)) + 1
SPELLED = np.array([[LETTERS.index(c) for c in name.ljust(STEPS, ".")] for name in NAMES]).T  # [T, 10]
CODES = np.random.default_rng(1).standard_normal((len(NAMES), 16))


def digits(rng, batch=40):
    """vectors: [B, 16], digits: [B]"""
    digits = rng.integers(0, len(NAMES), batch)
    return CODES[digits] + 0.3 * rng.standard_normal((batch, CODES.shape[1])), digits


class Speller(fastrnn.Module):
    def __init__(self, hidden_size=32):
        self.start = nn.Linear(CODES.shape[1], hidden_size, seed=0)
        self.letters = nn.Embedding(len(LETTERS), 12, seed=1)
        self.gru = fastrnn.GRU(12, hidden_size, seed=2)
        self.output = nn.Linear(hidden_size, len(LETTERS), seed=3)

    def forward(self, vectors, letters):
        y, _ = self.gru(self.letters(letters), self.start(vectors)[None])
        return self.output(y)

    def backward(self, dlogits):
        dx, dh = self.gru.backward(self.output.backward(dlogits))
        self.letters.backward(dx)
        self.start.backward(dh[0])

    def spell(self, vector):
        stream = self.gru.stream()
        stream.state = self.start(vector)[None, None]
        name, letter = "", 0
        while len(name) < STEPS:
            letter = int(nn.sample(self.output(stream.step(self.letters(letter))), temperature=0))
            if LETTERS[letter] == ".":
                break
            name += LETTERS[letter]
        return name


def main(updates=150):
    rng = np.random.default_rng(0)
    model, cross_entropy = Speller(), nn.CrossEntropy()
    optimizer = optim.Adam(model, lr=0.02)

    model.train()
    for _ in range(updates):
        vectors, numbers = digits(rng)
        letters = SPELLED[:, numbers]
        before = np.vstack([np.zeros_like(letters[:1]), letters[:-1]])
        cross_entropy(model(vectors, before), letters)
        model.zero_grad()
        model.backward(cross_entropy.backward())
        optimizer.step()

    model.eval()
    vectors, numbers = digits(rng)
    return np.mean([model.spell(v) == NAMES[n] for v, n in zip(vectors, numbers, strict=True)])


if __name__ == "__main__":
    print(f"{main():.0%} of new vectors spelled without a mistake")
