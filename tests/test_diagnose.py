"""Gradient flow, saturation and spectra: against finite differences, matrix powers and what theory says.

The theory: S. Hochreiter, "Untersuchungen zu dynamischen neuronalen Netzen", 1991; Y. Bengio, P. Simard and
P. Frasconi, "Learning long-term dependencies with gradient descent is difficult", 1994; R. Pascanu, T. Mikolov and
Y. Bengio, "On the difficulty of training recurrent neural networks", 2013.
"""

import sys

import numpy as np
import pytest

import fastrnn
from fastrnn import init
from fastrnn.cell import ACTIVATIONS, Activation
from fastrnn.diagnose import (
    Saturation,
    _ends,
    eigenvalues,
    gradient_norms,
    plot_gradient_norms,
    plot_saturation,
    plot_spectrum,
    saturation,
    spectral_radius,
)
from fastrnn.errors import DtypeError, OptionError, ShapeError

KINDS = [("RNN", {}), ("LSTM", {}), ("LSTM", {"proj_size": 2}), ("GRU", {}), ("GRU", {"reset": "before"})]


def normal(*shape, seed=0, scale=1.0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape) * scale


def layer_of(name, *sizes, **options):
    return getattr(fastrnn, name)(*sizes, **{"seed": 1, **options})


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("activation", ["affine", "tanh"])
@pytest.mark.parametrize("radius", [0.7, 0.95, 1.0, 1.05, 1.3])
def test_gradients_vanish_or_explode_with_the_spectral_radius(radius, activation):
    layer = layer_of("RNN", 3, 16, nonlinearity=activation, bias=False, dtype="float64")
    init.orthogonal(layer, radius, seed=2)
    assert spectral_radius(layer)["h_l0"] == pytest.approx(radius)
    norms = gradient_norms(layer, normal(60, 4, 3, scale=1e-12))["h_l0"]  # so small that tanh is linear
    assert norms.shape == (60,) and norms.dtype == np.float64
    np.testing.assert_allclose(norms, radius ** np.arange(59, -1, -1), rtol=1e-6)
    slope = np.polyfit(np.arange(60), np.log(norms), 1)[0]
    assert slope == pytest.approx(-np.log(radius), abs=1e-6)


def test_tanh_bounds_the_gradient_by_the_radius():
    layer = layer_of("RNN", 3, 16, dtype="float64")
    init.orthogonal(layer, 0.9, seed=2)
    norms = gradient_norms(layer, normal(40, 4, 3, scale=3))["h_l0"]
    assert (norms <= 0.9 ** np.arange(39, -1, -1) * (1 + 1e-9)).all()
    assert norms[0] < 1e-6


def test_an_open_forget_gate_keeps_the_gradient():
    x, steps = normal(100, 4, 3), 100
    norms = {}
    for bias in (-2.0, 6.0):
        layer = layer_of("LSTM", 3, 16)
        init.forget_bias(layer, bias)
        norms[bias] = gradient_norms(layer, x)["h_l0"]
    plain = gradient_norms(layer_of("RNN", 3, 16), x)["h_l0"]
    assert norms[6.0][0] > 0.01  # h[99] still hears of h[0]
    assert norms[-2.0][0] < 1e-12 and plain[0] < 1e-12
    # Along the cell the gradient shrinks by f a step, and f = sigmoid(6) at least nearly.
    rate = (norms[6.0][0] / norms[6.0][steps // 2]) ** (2 / steps)
    assert rate > 0.95


@pytest.mark.parametrize(("name", "options"), KINDS)
def test_a_norm_is_that_of_finite_differences(name, options):
    layer = layer_of(name, 3, 4, dtype="float64", **options)
    x, step = normal(7, 2, 3), 1e-6
    norms = gradient_norms(layer, x)["h_l0"]
    for t in (0, 3, 5):
        _, state = layer(x[: t + 1])
        h = state[0] if name == "LSTM" else state
        gradient = np.zeros(h.shape)
        for i in np.ndindex(h.shape):
            losses = []
            for change in (step, -step):
                moved = h.copy()
                moved[i] += change
                y, _ = layer(x[t + 1 :], (moved, state[1]) if name == "LSTM" else moved)
                losses.append(y[-1].sum() / np.sqrt(y[-1].size))
            gradient[i] = (losses[0] - losses[1]) / (2 * step)
        assert norms[t] == pytest.approx(np.linalg.norm(gradient), rel=1e-6)
    assert norms[-1] == pytest.approx(1)


@pytest.mark.parametrize(("name", "options"), KINDS)
def test_of_a_bidirectional_stack_every_direction_is_in_time_order(name, options):
    layer = layer_of(name, 3, 4, 2, bidirectional=True, **options)
    x, lengths = normal(9, 3, 3), [9, 4, 0]
    norms = gradient_norms(layer, x, lengths=lengths)
    assert list(norms) == ["h_l0", "h_l0_reverse", "h_l1", "h_l1_reverse"]
    # The loss takes the final states: after step length - 1 forward, after step 0 in reverse.
    assert norms["h_l1_reverse"][0] == pytest.approx(np.sqrt(2 / 3))
    assert norms["h_l1"][8] == pytest.approx(np.sqrt(1 / 3))
    # A batch is its rows.
    rows = [gradient_norms(layer, x[:n, b : b + 1]) for b, n in enumerate(lengths)]
    for key, values in norms.items():
        squares = sum(np.pad(row[key] ** 2, (0, 9 - len(row[key]))) for row in rows) / 3
        np.testing.assert_allclose(values, np.sqrt(squares), rtol=1e-9)


def test_the_loss_may_be_given_by_its_gradients():
    layer, x = layer_of("LSTM", 3, 4, 2, dtype="float64"), normal(6, 2, 3)
    usual = gradient_norms(layer, x)
    dy, dh = np.zeros((6, 2, 4)), np.zeros((2, 2, 4))
    dy[-1], dh[-1] = 2 / np.sqrt(8), 1 / np.sqrt(8)
    dstate = dh, np.zeros((2, 2, 4))
    for key in ("h_l0", "h_l1"):
        np.testing.assert_allclose(gradient_norms(layer, x, dy=dy)[key], 2 * usual[key], rtol=1e-12)
        np.testing.assert_allclose(gradient_norms(layer, x, dstate=dstate)[key], usual[key], rtol=1e-12)
        np.testing.assert_allclose(gradient_norms(layer, x, dy=dy, dstate=dstate)[key], 3 * usual[key], rtol=1e-12)
    # A loss at t = 2 hears nothing of what comes later.
    dy[:] = 0
    dy[2] = 1
    assert all((norms[3:] == 0).all() and (norms[:3] > 0).all() for norms in gradient_norms(layer, x, dy=dy).values())


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("batched", [False, True])
def test_layouts(batched, batch_first):
    layer, x = layer_of("GRU", 3, 4, batch_first=batch_first), normal(6, 1, 3)
    state = normal(1, 1, 4)
    expected = gradient_norms(layer_of("GRU", 3, 4), x, state)["h_l0"]
    given = x[:, 0] if not batched else x.swapaxes(0, 1) if batch_first else x
    found = gradient_norms(layer, given, state if batched else state[:, 0])["h_l0"]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(0, 2, 3), (4, 0, 3), (0, 0, 3), (1, 1, 3)])
def test_sizes_at_the_edge(shape):
    layer = layer_of("LSTM", 3, 4, 2)
    norms, shares = gradient_norms(layer, np.zeros(shape)), saturation(layer, np.zeros(shape))
    assert all(values.shape == shape[:1] for values in norms.values())
    assert list(shares) == [gate + suffix for suffix in ("_l0", "_l1") for gate in "ifgo"]
    assert all(np.isnan(share).all() == (0 in shape) for share in shares.values())


@pytest.mark.parametrize("radius", [1e-3, 1e3])
def test_norms_whose_squares_float64_cannot_hold(radius):
    layer = layer_of("RNN", 3, 4, nonlinearity="affine", bias=False, dtype="float64")
    init.orthogonal(layer, radius, seed=2)
    norms = gradient_norms(layer, np.zeros((91, 1, 3)))["h_l0"]
    np.testing.assert_allclose(np.log10(norms), np.log10(radius) * np.arange(90, -1, -1), rtol=1e-9)


def test_what_overflows_shows():
    layer = layer_of("RNN", 3, 4, nonlinearity="affine")
    layer.weight_hh_l0 = np.full((4, 4), 1e30)
    norms = gradient_norms(layer, np.zeros((30, 1, 3)))["h_l0"]
    assert norms[-1] == pytest.approx(1) and not np.isfinite(norms[0])


def test_the_layer_stays_as_it_is():
    layer, x = layer_of("LSTM", 3, 4, 2, dropout=0.5).train(), normal(6, 2, 3).astype("f4")
    x.setflags(write=False)
    y, _ = layer(x)
    before, version = layer.state_dict(), layer.block.version
    gradient_norms(layer, x)
    saturation(layer, x)
    spectral_radius(layer)
    assert layer.training and layer.block.version == version
    assert all((layer.state_dict()[name] == value).all() for name, value in before.items())
    assert not any(grad.any() for grad in layer.grad.values())
    layer.backward(np.ones_like(y))  # through the call from before


@pytest.mark.parametrize("measure", [gradient_norms, saturation])
def test_measures_refuse(measure):
    layer = layer_of("LSTM", 3, 4)
    for wrong in (fastrnn.LSTMCell(3, 4), np.zeros((4, 4)), None):
        with pytest.raises(DtypeError, match="layer must be an RNN, LSTM or GRU"):
            measure(wrong, np.zeros((5, 2, 3)))
    with pytest.raises(ShapeError, match="x must be"):
        measure(layer, np.zeros((5, 2, 4)))
    with pytest.raises(ShapeError, match="pair"):
        measure(layer, np.zeros((5, 2, 3)), np.zeros((1, 2, 4)))
    with pytest.raises(ShapeError, match=r"not within 0\.\.5"):
        measure(layer, np.zeros((5, 2, 3)), lengths=[6, 1])


def test_gradients_of_wrong_shapes_are_refused():
    layer = layer_of("LSTM", 3, 4)
    with pytest.raises(ShapeError, match="dy must be"):
        gradient_norms(layer, np.zeros((5, 2, 3)), dy=np.zeros((5, 2, 3)))
    with pytest.raises(ShapeError, match="dstate"):
        gradient_norms(layer, np.zeros((5, 2, 3)), dstate=np.zeros((1, 2, 4)))


# ---------------------------------------------------------------- gates


def flat(name, gates, **options):
    """A layer of two units whose gates are what their biases say: rows of (unit 0, unit 1)."""
    layer = layer_of(name, 1, 2, **options)
    layer.block.flat[:] = 0
    layer.block.touch()
    layer.bias_ih_l0 = np.concatenate(gates)
    return layer


def test_shares_are_counted_gate_by_gate():
    layer = flat("LSTM", [(9, 9), (9, -9), (0, 9), (-9, 0)])
    shares = saturation(layer, np.zeros((5, 3, 1)))
    assert shares == {"i_l0": (0, 1), "f_l0": (0.5, 0.5), "g_l0": (0, 0.5), "o_l0": (0.5, 0)}
    assert all(isinstance(share, Saturation) for share in shares.values())
    layer = flat("GRU", [(9, 0), (-9, -9), (-9, 0)])
    assert saturation(layer, np.zeros((5, 3, 1))) == {"r_l0": (0, 0.5), "z_l0": (1, 0), "n_l0": (0.5, 0)}
    layer = flat("GRU", [(9, 0), (-9, -9), (-9, 0)], update="write")
    assert saturation(layer, np.zeros((5, 3, 1)))["z_l0"] == (1, 0)
    layer = flat("RNN", [(9, -1)])
    assert saturation(layer, np.zeros((5, 3, 1))) == {"h_l0": (0, 0.5)}
    layer = flat("RNN", [(9, -1)], nonlinearity="relu")
    assert saturation(layer, np.zeros((5, 3, 1))) == {"h_l0": (0.5, 0)}


def test_the_margin_is_the_threshold():
    layer = flat("LSTM", [(np.log(0.15 / 0.85), 0), (0, 0), (np.arctanh(0.85), 0), (0, 0)], dtype="float64")
    for margin, share in ((0.1, 0), (0.14, 0), (0.16, 0.5)):
        shares = saturation(layer, np.zeros((5, 3, 1)), margin=margin)
        assert shares["i_l0"] == (share, 0) and shares["g_l0"] == (0, share)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_steps_past_a_length_do_not_count(bidirectional):
    layer = layer_of("LSTM", 3, 4, 2, bidirectional=bidirectional)
    layer.block.flat *= 6
    layer.block.touch()
    x = normal(9, 3, 3)
    shares = saturation(layer, x, lengths=[9, 4, 0])
    rows = saturation(layer, x[:, :1]), saturation(layer, x[:4, 1:2])
    for key, share in shares.items():
        expected = (np.array(rows[0][key]) * 9 + np.array(rows[1][key]) * 4) / 13
        np.testing.assert_allclose(share, expected, rtol=1e-12)
    assert 0 < shares["i_l1"].low < 1


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_has_its_ends(name):
    from fastrnn.backends.reference import activate

    activation = Activation.of(name)
    low, high = _ends(activation, 0.1)
    assert low < high
    for end, argument in ((low, -1e3), (high, 1e3)):
        value = float(activate(activation, np.array(argument)))
        if np.isfinite(end):  # what is far out is beyond the end, and 0.1 at most
            assert 0 <= (value - end) * np.sign(argument) <= 0.1 + 1e-12
        else:
            assert abs(value) > 5


@pytest.mark.parametrize("margin", [-0.1, 0.5, float("nan"), True, "0.1", None])
def test_margins_that_cannot_be(margin):
    with pytest.raises(OptionError, match="margin must be a number within"):
        saturation(layer_of("RNN", 1, 1), np.zeros((1, 1, 1)), margin=margin)


# ---------------------------------------------------------------- spectra


def test_eigenvalues_are_those_of_each_gate():
    layer = layer_of("LSTM", 3, 2, bidirectional=True, dtype="float64")
    rotation = [[0, -2], [2, 0]]
    layer.weight_hh_l0 = np.concatenate([np.eye(2), rotation, np.diag([3, -4]), np.zeros((2, 2))])
    values = eigenvalues(layer)
    assert list(values) == [gate + suffix for suffix in ("_l0", "_l0_reverse") for gate in "ifgo"]
    assert all(v.dtype == np.complex128 and v.shape == (2,) for v in values.values())
    np.testing.assert_allclose(sorted(values["f_l0"], key=np.imag), [-2j, 2j], atol=1e-12)
    np.testing.assert_allclose(sorted(values["g_l0"].real), [-4, 3], atol=1e-12)
    radius = spectral_radius(layer)
    assert [radius[gate + "_l0"] for gate in "ifgo"] == pytest.approx([1, 2, 4, 0])


def test_a_projection_is_part_of_the_recurrence():
    layer = layer_of("LSTM", 3, 6, proj_size=2, dtype="float64")
    whole = np.asarray(layer.weight_hh_l0)[6:12] @ layer.weight_hr_l0  # [H, H], of rank 2
    largest = np.abs(np.linalg.eigvals(whole)).max()
    assert eigenvalues(layer)["f_l0"].shape == (2,)
    assert spectral_radius(layer)["f_l0"] == pytest.approx(largest)


def test_gates_that_see_the_cell_have_square_blocks_with_projection_too():
    layer = layer_of("LSTM", 3, 6, proj_size=2, peephole="cell", backend="numpy")
    assert eigenvalues(layer)["f_l0"].shape == (6,)


def test_matrices_that_are_not_finite_have_no_spectrum():
    layer = layer_of("GRU", 3, 2)
    layer.weight_hh_l0[0, 0] = np.nan
    radius = spectral_radius(layer)
    assert np.isnan(radius["r_l0"]) and np.isfinite(radius["z_l0"])
    with pytest.raises(DtypeError, match="layer must be"):
        eigenvalues(fastrnn.GRUCell(3, 2))


# ---------------------------------------------------------------- plots


@pytest.fixture
def pyplot():
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    yield plt
    plt.close("all")


def drawn(ax):
    """The axes' figure can be rendered, without a warning."""
    ax.figure.canvas.draw()
    return ax


def test_gradient_norms_are_drawn(pyplot):
    norms = {"h_l0": np.array([1e-3, 0.0, 1.0]), "h_l1": np.array([2.0, np.inf, 3.0])}
    ax = drawn(plot_gradient_norms(norms))
    first, second = ax.get_lines()
    np.testing.assert_array_equal(first.get_xdata(), [0, 1, 2])
    np.testing.assert_array_equal(first.get_ydata(), [1e-3, np.nan, 1.0])
    np.testing.assert_array_equal(second.get_ydata(), [2.0, np.nan, 3.0])
    assert ax.get_yscale() == "log"
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["h_l0", "h_l1"]
    assert ax.get_xlabel() and ax.get_ylabel() and ax.get_title()


@pytest.mark.parametrize("norms", [{}, {"h_l0": np.zeros(3)}, {"h_l0": np.zeros(0)}], ids=str)
def test_nothing_to_draw(pyplot, norms):
    assert drawn(plot_gradient_norms(norms)).get_yscale() == "linear"


def test_saturation_is_drawn(pyplot):
    ax = drawn(plot_saturation({"i_l0": Saturation(0.25, 0.5), "f_l0": Saturation(0.0, 1.0)}))
    low, high = ax.containers
    assert [bar.get_width() for bar in low] == [-0.25, 0]
    assert [bar.get_width() for bar in high] == [0.5, 1]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["i_l0", "f_l0"]
    assert ax.yaxis_inverted()


def test_spectra_are_drawn(pyplot):
    layer = layer_of("RNN", 3, 16)
    init.orthogonal(layer, 1, seed=0)
    ax = drawn(plot_spectrum(eigenvalues(layer)))
    circle, points = ax.get_lines()
    for line in (circle, points):  # of an orthogonal matrix, both lie on the unit circle
        np.testing.assert_allclose(np.hypot(*line.get_data()), 1, rtol=1e-6)
    assert len(points.get_xdata()) == 16 and points.get_label() == "h_l0"
    assert ax.get_aspect() == 1


def test_axes_that_are_given_are_drawn_on(pyplot):
    _, axes = pyplot.subplots(1, 3)
    layer, x = layer_of("LSTM", 3, 4), normal(5, 2, 3)
    assert plot_gradient_norms(gradient_norms(layer, x), axes[0]) is axes[0]
    assert plot_saturation(saturation(layer, x), axes[1]) is axes[1]
    assert plot_spectrum(eigenvalues(layer), ax=axes[2]) is axes[2]
    assert pyplot.get_fignums() == [axes[0].figure.number]
    assert [len(axes[0].get_lines()), len(axes[1].containers), len(axes[2].get_lines())] == [1, 2, 5]


@pytest.mark.parametrize("plot", [plot_gradient_norms, plot_saturation, plot_spectrum])
def test_without_matplotlib_the_error_names_the_extra(plot, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"pip install fastrnn\[plot\]"):
        plot({})
