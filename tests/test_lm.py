"""The language model: its gradients, its carried state, its text in and out, and what it refuses."""

import itertools
import math
import pickle

import numpy as np
import pytest

from fastrnn import nn, optim
from fastrnn.errors import DtypeError, OptionError, ShapeError, UsageError
from fastrnn.lm import EOS, UNK, LanguageModel, Score, Vocabulary, batches, load, save

CELLS = ["lstm", "gru", "rnn"]
TEXT = "the cat sat on the mat.\nthe dog sat on the cat!\n"


def tokens(*shape, size=5, seed=0):
    return np.random.default_rng([seed, *shape]).integers(0, size, shape)


def tiny(cell="lstm", dtype="float64", **options):
    options = {"num_layers": 1, "seed": 3, **options}
    return LanguageModel(5, options.pop("embedding_size", 4), 4, cell=cell, dtype=dtype, **options)


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("options", [{}, {"num_layers": 2, "embedding_size": 3}, {"tied": True}], ids=str)
def test_gradients_are_those_of_finite_differences(cell, options):
    model, step = tiny(cell, **options), 1e-6
    inputs, targets = tokens(6, 3), tokens(6, 3, seed=1)
    targets[4:, 2] = -100
    state = model(tokens(2, 3, seed=2))[1]
    model.train()
    model.loss(inputs, targets, state)
    model.backward()
    random = np.random.default_rng(4)
    for block in model.blocks():
        for i in random.permutation(block.flat.size)[:25]:
            losses = []
            for change in (step, -step):
                block.flat[i] += change
                block.touch()
                losses.append(model.eval().loss(inputs, targets, state)[0])
                block.flat[i] -= change
            block.touch()
            assert block.grad[i] == pytest.approx((losses[0] - losses[1]) / (2 * step), rel=1e-5, abs=1e-9)


def test_the_loss_is_the_mean_cross_entropy():
    model = tiny()
    inputs, targets = tokens(6, 3), tokens(6, 3, seed=1)
    logits, _ = model(inputs)
    assert logits.shape == (6, 3, 5)
    share = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    expected = -np.log(np.take_along_axis(share, targets[..., None], -1)).mean()
    assert model.loss(inputs, targets)[0] == pytest.approx(expected, rel=1e-12)


def test_a_tied_model_has_one_matrix_that_gathers_both_gradients():
    model = tiny(tied=True).train()
    assert model.num_parameters == tiny().num_parameters - 5 * 4
    assert "output.weight" not in dict(model.named_parameters())
    np.testing.assert_array_equal(model.embedding.weight, model.output.weight)
    model.loss(tokens(6, 3), tokens(6, 3, seed=1))
    model.backward()
    both = model.embedding.weight.grad.copy()

    apart = tiny().train()
    apart.load_state_dict(model.state_dict())
    apart.loss(tokens(6, 3), tokens(6, 3, seed=1))
    apart.backward()
    np.testing.assert_allclose(both, apart.embedding.weight.grad + apart.output.weight.grad, rtol=1e-12)

    optim.SGD(model, lr=0.1).step()
    np.testing.assert_array_equal(model.embedding.weight, model.output.weight)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_dropout_acts_in_training_alone_and_its_gradient_is_that_of_its_masks(num_layers):
    model = tiny(dropout=0.5, num_layers=num_layers)
    assert model.rnn.dropout == (0.5 if num_layers > 1 else 0)
    inputs, targets = tokens(6, 3), tokens(6, 3, seed=1)
    assert model.loss(inputs, targets)[0] == model.loss(inputs, targets)[0]
    model.train()
    assert model.loss(inputs, targets)[0] != model.loss(inputs, targets)[0]

    def drawn():
        """The loss, of the same masks every time."""
        model.rnn._random = model.dropout._random = np.random.default_rng(8)
        return model.loss(inputs, targets)[0]

    model.zero_grad()
    drawn()
    model.backward()
    weight, step = model.embedding.weight, 1e-6
    i = np.unravel_index(np.abs(weight.grad).argmax(), weight.shape)
    expected = weight.grad[i]
    weight[i] += step
    above = drawn()
    weight[i] -= 2 * step
    assert expected == pytest.approx((above - drawn()) / (2 * step), rel=1e-5)


@pytest.mark.parametrize("cell", CELLS)
def test_training_learns(cell):
    stream = Vocabulary.characters(TEXT).encode(TEXT * 4)
    model = LanguageModel(int(stream.max()) + 1, 8, 32, cell=cell, seed=0)
    optimizer, before = optim.Adam(model, lr=0.01), model.score(stream).nats
    model.train()
    for _ in range(15):
        state = None
        for inputs, targets in batches(stream, 2, 16):
            _, state = model.loss(inputs, targets, state)
            model.zero_grad()
            model.backward()
            optimizer.step()
    assert model.score(stream).nats < before / 2


# ---------------------------------------------------------------- streams of tokens


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("pieces", [[1] * 12, [5, 7], [12], [1, 0, 11]], ids=str)
def test_a_state_carried_over_is_one_long_sequence(cell, pieces):
    model, sequence, state = tiny(cell, num_layers=2), tokens(12, 3), None
    whole, last = model(sequence)
    parts = []
    for piece in np.split(sequence, np.cumsum(pieces)[:-1]):
        logits, state = model(piece, state)
        parts.append(logits)
    np.testing.assert_allclose(np.concatenate(parts), whole, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(state, last, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("steps", [1, 3, 1000])
@pytest.mark.parametrize("batch_size", [1, 2, 5, 30])
@pytest.mark.parametrize("size", [2, 3, 11, 30])
def test_batches_have_every_token_but_the_first_as_a_target_once(size, batch_size, steps):
    stream = np.arange(size)
    pairs = list(batches(stream, batch_size, steps))
    inputs, targets = (np.concatenate(part) for part in zip(*pairs, strict=True))
    assert all(a.shape == b.shape and len(a) <= steps and a.shape[1] == batch_size for a, b in pairs)
    counted = targets != -100
    assert sorted(targets[counted]) == list(range(1, size))
    np.testing.assert_array_equal(inputs[counted] + 1, targets[counted])
    for row in inputs[counted.any(1)].T:  # each row is a piece of the stream, in order
        assert (np.diff(row[row > 0]) == 1).all()


class Unreadable:
    def __array__(self, *_, **__):
        raise RuntimeError("on another device")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1], 1, 1), ShapeError, r"tokens must be \[N\] with N >= 2, not \[1\]"),
        (([[1, 2]], 1, 1), ShapeError, r"not \[1, 2\]"),
        (([1.0, 2.0], 1, 1), DtypeError, "tokens must be integers, not float64"),
        ((Unreadable(), 1, 1), DtypeError, "cannot be read as an array: on another device"),
        (([1, 2], 0, 1), OptionError, "batch_size must be an integer >= 1, not 0"),
        (([1, 2], 1, 2.5), OptionError, "steps must be an integer >= 1, not 2.5"),
        (([1, 2], True, 1), OptionError, "batch_size must be an integer >= 1, not True"),
    ],
)
def test_batches_refuse(arguments, error, message):
    with pytest.raises(error, match=message):
        batches(*arguments)


@pytest.mark.parametrize("steps", [1, 4, 100])
def test_a_score_is_that_of_the_whole_stream_in_one_go(steps):
    model, stream = tiny(), tokens(40)
    loss, _ = model.loss(stream[:-1], stream[1:])
    score = model.score(stream, steps=steps)
    assert score.nats == pytest.approx(loss, rel=1e-12)
    assert score.tokens == 39
    assert score.bits == pytest.approx(loss / math.log(2))
    assert score.perplexity == pytest.approx(math.exp(loss))
    assert model.score(stream, batch_size=7, steps=steps).tokens == 39


def test_a_score_far_off_is_infinite_not_an_error():
    assert Score(1e4, 1).perplexity == math.inf
    assert math.isnan(Score(math.nan, 1).perplexity)


def test_a_uniform_model_has_the_perplexity_of_its_vocabulary():
    model = tiny()
    for block in model.blocks():
        block.flat[:] = 0
        block.touch()
    assert model.score(tokens(40)).perplexity == pytest.approx(5)


def test_scoring_and_generating_leave_the_mode_as_it_was():
    model = tiny(dropout=0.5)
    for mode in (True, False):
        model.train(mode)
        assert model.score(tokens(9)).nats == model.score(tokens(9)).nats
        model.generate([1], 2)
        assert model.training is model.rnn.training is model.dropout.training is mode
    model.train()
    with pytest.raises(ShapeError):
        model.generate([99], 2)
    assert model.training
    model.dropout.eval()  # a part with a mode of its own
    model.score(tokens(9))
    assert model.training and model.rnn.training and not model.dropout.training


# ---------------------------------------------------------------- generation


@pytest.mark.parametrize("cell", CELLS)
def test_generation_repeats_with_its_seed_and_follows_the_prompt(cell):
    model = tiny(cell, num_layers=2, dtype="float32")
    first = model.generate([1, 2, 3], 50, rng=7)
    assert first.shape == (50,) and first.dtype == np.int64
    assert first.min() >= 0 and first.max() < 5
    np.testing.assert_array_equal(first, model.generate(np.array([1, 2, 3]), 50, rng=np.random.default_rng(7)))
    assert (first != model.generate([1, 2, 3], 50, rng=8)).any()
    assert model.generate([1], 0).shape == (0,)


@pytest.mark.parametrize("options", [{"temperature": 0}, {"top_k": 1}], ids=str)
def test_greedy_generation_takes_the_likeliest_of_the_whole_sequence(options):
    model, sequence = tiny(), [1, 2, 3]
    for block in model.blocks():
        block.flat *= 4
        block.touch()
    for token in model.generate(sequence, 8, **options):
        logits, _ = model(np.array(sequence))
        assert token == logits[-1].argmax()
        sequence.append(token)


def test_top_k_keeps_to_the_k_likeliest():
    model, sequence = tiny(), [1]
    for token in model.generate(sequence, 30, top_k=2, rng=0):
        logits, _ = model(np.array(sequence))
        assert token in logits[-1].argsort()[-2:]
        sequence.append(token)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([], 3), ShapeError, r"tokens must be \[N\] with N >= 1, not \[0\]"),
        (([5], 3), ShapeError, "5, which is not within 0..4"),
        (([0], -1), OptionError, "length must be an integer >= 0, not -1"),
        (([0], 3, -1.0), OptionError, "temperature"),
        (([0], 3, 1.0, 0), OptionError, "top_k"),
        (([0], 3, 1.0, None, "x"), OptionError, "seed"),
        ((["a"], 3), DtypeError, "tokens must be integers"),
    ],
)
def test_generation_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        tiny().generate(*arguments)


# ---------------------------------------------------------------- vocabularies


def test_characters_there_and_back():
    vocabulary = Vocabulary.characters(TEXT)
    assert vocabulary.tokens == tuple(sorted(set(TEXT)))
    numbers = vocabulary.encode(TEXT)
    assert numbers.dtype == np.int64 and numbers.shape == (len(TEXT),)
    assert vocabulary.decode(numbers) == TEXT
    assert vocabulary.encode("").shape == (0,) and vocabulary.decode([]) == ""
    assert eval(repr(vocabulary)) == vocabulary
    with pytest.raises(OptionError, match="'X' is not among the 15 characters"):
        vocabulary.encode("caXt")


def test_words_there_and_back():
    vocabulary = Vocabulary.words(TEXT)
    assert vocabulary.tokens == (UNK, EOS, "the", "on", "sat", "cat", "cat!", "dog", "mat.")
    numbers = vocabulary.encode("the  cow\n\nsat")
    assert numbers.tolist() == [2, 0, 1, 1, 4, 1]
    assert vocabulary.decode(numbers) == "the <unk>\n\nsat\n"
    assert vocabulary.decode(vocabulary.encode(TEXT)) == TEXT
    assert Vocabulary.words(TEXT, 4).tokens == (UNK, EOS, "the", "on")
    assert Vocabulary.words("a <unk> b <eos>").tokens == (UNK, EOS, "a", "b")
    assert Vocabulary.words("", 2).encode("a").tolist() == [0, 1]


def test_words_without_unk_refuse_what_they_do_not_know():
    with pytest.raises(OptionError, match="'cow' is not among the 2 words"):
        Vocabulary((EOS, "cat"), "words").encode("cat cow")


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Vocabulary("aba"), OptionError, "'a' comes twice"),
        (lambda: Vocabulary("ab", "bytes"), OptionError, "unknown unit 'bytes'"),
        (lambda: Vocabulary((1, 2)), OptionError, "must be strings"),
        (lambda: Vocabulary.words("a", 1), OptionError, "size must be an integer >= 2, not 1"),
        (lambda: Vocabulary("ab").decode([2]), ShapeError, r"number 2; there are 0\.\.1"),
        (lambda: Vocabulary("ab").decode([-1]), ShapeError, "number -1"),
        (lambda: Vocabulary("ab").decode([0.5]), ShapeError, "number 0.5"),
    ],
)
def test_vocabularies_refuse(make, error, message):
    with pytest.raises(error, match=message):
        make()


# ---------------------------------------------------------------- the model as an object


def test_repr_is_the_call_that_makes_it():
    model = LanguageModel(5, 4, 4, 2, "gru", 0.5, True, seed=1, dtype="float64", backend="numpy")
    text = "LanguageModel(5, 4, 4, num_layers=2, cell='gru', dropout=0.5, tied=True, seed=1, dtype='float64', "
    assert repr(model) == text + "backend='numpy')"
    again = eval(repr(model))
    np.testing.assert_array_equal(again.embedding.weight, model.embedding.weight)
    assert repr(LanguageModel(5, 3, 4)) == "LanguageModel(5, 3, 4)"


def test_names_and_shapes_of_the_parameters():
    shapes = {name: value.shape for name, value in LanguageModel(7, 3, 4).state_dict().items()}
    assert shapes == {
        "embedding.weight": (7, 3),
        "rnn.weight_ih_l0": (16, 3),
        "rnn.weight_hh_l0": (16, 4),
        "rnn.bias_ih_l0": (16,),
        "rnn.bias_hh_l0": (16,),
        "output.weight": (7, 4),
        "output.bias": (7,),
    }


def test_initialisation():
    model = LanguageModel(50, 20, 20, seed=0)
    for weight in (model.output.weight, LanguageModel(50, 20, 20, tied=True).embedding.weight):
        assert -0.1 <= weight.min() < -0.09 and 0.09 < weight.max() <= 0.1
    assert model.embedding.weight.std() == pytest.approx(1, abs=0.1)
    assert not model.output.bias.any()
    np.testing.assert_array_equal((model.rnn.bias_ih_l0 + model.rnn.bias_hh_l0)[20:40], 1)
    same, other = LanguageModel(50, 20, 20, seed=0), LanguageModel(50, 20, 20, seed=1)
    assert all((same.state_dict()[name] == value).all() for name, value in model.state_dict().items())
    assert (other.rnn.weight_hh_l0 != model.rnn.weight_hh_l0).any()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: LanguageModel(5, 3, 4, tied=True), ShapeError, "needs embedding_size == hidden_size, not 3 and 4"),
        (lambda: LanguageModel(5, 3, 4, cell="ltsm"), OptionError, "'ltsm'"),
        (lambda: LanguageModel(5, 3, 0), ShapeError, "hidden_size"),
        (lambda: LanguageModel(5, 3, 4, num_layers=0), ShapeError, "num_layers"),
        (lambda: LanguageModel(-1, 3, 4), ShapeError, "num_embeddings"),
        (lambda: LanguageModel(5, 3, 4, dropout=2), OptionError, "probability"),
        (lambda: LanguageModel(5, 3, 4, dtype="int8"), DtypeError, "float32 or float64"),
        (lambda: LanguageModel(5, 3, 4, backend="cuda"), OptionError, "'cuda'"),
        (lambda: LanguageModel(5, 3, 4)(np.zeros((2, 2))), DtypeError, "integers"),
        (lambda: LanguageModel(5, 3, 4)(np.full((2, 2), 5)), ShapeError, "not within 0..4"),
        (lambda: LanguageModel(5, 3, 4).loss([[1]], [[1, 2]]), ShapeError, "targets"),
        (lambda: LanguageModel(5, 3, 4).backward(), UsageError, "backward has no call"),
        (lambda: LanguageModel(5, 3, 4).score([1]), ShapeError, "N >= 2"),
    ],
)
def test_models_refuse(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_inputs_are_not_written_to():
    model, inputs, targets, state = tiny().train(), tokens(6, 3), tokens(6, 3, seed=1), np.ones((2, 1, 3, 4))
    for array in (inputs, targets, state):
        array.setflags(write=False)
    model.loss(inputs, targets, tuple(state))
    model.backward()
    model.score(inputs.reshape(-1), 2)


def test_a_model_on_disk(tmp_path):
    path = tmp_path / "model"
    vocabulary = Vocabulary.words(TEXT)
    model = LanguageModel(len(vocabulary), 4, 4, 2, "gru", 0.5, True, seed=0, dtype="float64")
    save(path, model, vocabulary)
    again, words = load(path, backend="numpy")
    assert words == vocabulary
    text = "num_layers=2, cell='gru', dropout=0.5, tied=True, dtype='float64', backend='numpy'"
    assert repr(again) == f"LanguageModel({len(vocabulary)}, 4, 4, {text})"
    assert again.num_parameters == model.num_parameters
    stream = vocabulary.encode(TEXT)
    assert again.score(stream).nats == pytest.approx(model.score(stream).nats, rel=1e-12)


def test_a_model_of_sizes_that_numpy_counted(tmp_path):
    stream = np.array([0, 3, 1, 4])
    model = LanguageModel(stream.max() + 1, np.int64(4), np.int32(6), np.int64(2), dropout=np.float32(0.25), seed=0)
    save(tmp_path / "model", model, Vocabulary.characters("abcde"))
    again, _ = load(tmp_path / "model")
    assert (again.rnn.hidden_size, again.rnn.num_layers, again.dropout.p) == (6, 2, 0.25)
    assert again.score(stream).nats == model.score(stream).nats


@pytest.mark.parametrize("bits", [np.random.PCG64, np.random.MT19937])
def test_training_goes_on_after_a_load_as_without(bits, tmp_path):
    """With dropout, to the bit: its generator's state is in the file."""

    def train(model, optimizer, steps):
        state = None
        for inputs, targets in itertools.islice(batches(np.arange(400) % 5, 4, 8), steps):
            optimizer.zero_grad()
            _, state = model.loss(inputs, targets, state)
            model.backward()
            optimizer.step()
        return model.state_dict()

    model = LanguageModel(5, 6, 6, 2, dropout=0.4, seed=np.random.Generator(bits(0))).train()
    optimizer = optim.Adam(model)
    train(model, optimizer, 3)
    save(tmp_path / "model", model, Vocabulary.characters("abcde"))
    again, _ = load(tmp_path / "model")
    resumed = optim.Adam(again)
    resumed.load_state_dict(optimizer.state_dict())
    one, other = train(model, optimizer, 5), train(again.train(), resumed, 5)
    assert all(np.array_equal(one[name], other[name]) for name in one)


def test_what_cannot_be_saved(tmp_path):
    model = tiny()
    with pytest.raises(OptionError, match=r"must have the model's \d+ tokens, not 2"):
        save(tmp_path / "model", model, Vocabulary.characters("ab"))
    with pytest.raises(DtypeError, match="model must be a LanguageModel, not Linear"):
        save(tmp_path / "model", nn.Linear(2, 3), Vocabulary.characters("ab"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"", b"text", b"PK\x05\x06" + bytes(18), "npz", "npy"], ids=str)
def test_a_file_of_another_kind(content, tmp_path):
    path = tmp_path / "file"
    with open(path, "wb") as file:
        if content == "npz":
            np.savez(file, a=np.zeros(3))
        elif content == "npy":
            np.save(file, np.zeros(3))
        else:
            file.write(content)
    with pytest.raises(OptionError, match="is not a language model that"):
        load(path)
    with pytest.raises(FileNotFoundError):
        load(tmp_path / "none")


def test_a_pickled_model_is_the_same():
    model = tiny()
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again(tokens(4, 2))[0], model(tokens(4, 2))[0])


def test_a_token_is_no_negative_number():
    """-100 least of all, which as a target would not count."""
    for call in (
        lambda: tiny().score([1, 2, -100]),
        lambda: batches([0, -1, 2], 1, 2),
        lambda: tiny().generate([-1], 1),
    ):
        with pytest.raises(ShapeError, match=r"tokens must be >= 0, not -1"):
            call()
