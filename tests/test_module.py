"""Parameters, blocks and modules: what can be read and written, what moves the version, what is saved and loaded."""

import copy
import errno
import operator
import os
import pickle
import shutil

import numpy as np
import pytest

from fastrnn.errors import DtypeError, FastrnnError, OptionError, OutOfMemoryError, ShapeError
from fastrnn.module import Block, Module, Parameter, as_array, as_dtype, generator, replacing
from fastrnn.nn import Sequential

SHAPES = {"weight": (4, 3), "empty": (4, 0), "bias": (4,)}
F32, F64 = np.dtype("float32"), np.dtype("float64")


def block(dtype="float32"):
    made = Block(SHAPES, dtype)
    made.flat[:] = np.arange(16)
    return made


class Linear(Module):
    def __init__(self, dtype="float32"):
        self.params = block(dtype)


class Tied(Module):
    """A module that shares another's block and has one of its own."""

    def __init__(self, linear):
        self.shared = linear.params
        self.own = Block({"scale": (2,)})


class Net(Module):
    def __init__(self):
        self.first = Linear()
        self.rest = [Linear(), Tied(self.first)]
        self.size = 3

    def forward(self, x, shift=0):
        return x @ self.first.weight.T + shift


# ---------------------------------------------------------------- blocks


def test_block_is_one_aligned_array_without_gaps():
    b = block()
    assert b.flat.ctypes.data % 64 == 0 and b.flat.flags.c_contiguous and b.flat.size == 16
    assert [p.tolist() for p in (b["weight"][0], b["empty"], b["bias"])] == [[0, 1, 2], [[]] * 4, [12, 13, 14, 15]]
    assert list(b) == list(SHAPES) and len(b) == 3 and "bias" in b and "no" not in b
    assert {name: p.shape for name, p in b.items()} == SHAPES
    assert b == b and b != block() and len({b, b}) == 1
    assert repr(eval(repr(b), {"Block": Block})) == repr(b)
    with pytest.raises(KeyError):
        b["no"]


@pytest.mark.parametrize("shapes", [{}, {"none": (0,)}, {"scalar": ()}])
def test_block_of_nothing_or_a_scalar(shapes):
    b = Block(shapes)
    for name, p in b.items():
        p[...] = 2
        assert p.shape == shapes[name] and p.grad.shape == p.shape
    assert b.flat.sum() == 2 * b.flat.size == 2 * ("scalar" in shapes)
    assert b.grad.size == b.flat.size


def test_block_that_does_not_fit_in_memory():
    with pytest.raises(OutOfMemoryError, match="do not fit"):
        Block({"w": (2**31, 2**31)})
    with pytest.raises(OutOfMemoryError):
        Block({"w": (2**40, 2**40)})


def test_gradient_is_made_when_asked_for_and_lies_as_the_parameters():
    b = block()
    b.zero_grad()
    assert b._grad is None
    b.grads["bias"][:] = 5
    assert b.grad.tolist() == [0] * 12 + [5] * 4 and b.grad.ctypes.data % 64 == 0
    assert np.shares_memory(b["bias"].grad, b.grad) and b["bias"].grad.tolist() == [5] * 4
    b["weight"][1:3, ::-2].grad[...] = [[1, 2], [3, 4]]
    assert b.grads["weight"].tolist() == [[0, 0, 0], [2, 0, 1], [4, 0, 3], [0, 0, 0]]
    version = b.version
    b.zero_grad()
    assert not b.grad.any() and b.version == version


def test_copies_have_the_parameters_alone():
    b = block()
    b.grad[:] = 1
    b.cache["c"] = lambda: None  # cannot be pickled
    b.touch()
    for made in (copy.copy(b), copy.deepcopy(b), pickle.loads(pickle.dumps(b))):
        assert np.array_equal(made.flat, b.flat) and not np.shares_memory(made.flat, b.flat)
        assert made.flat.ctypes.data % 64 == 0 and made.shapes == b.shapes and made.dtype == b.dtype
        assert made.cache == {} and made.version == 0 and not made.grad.any()
        made["bias"][:] = 0
        assert b["bias"][3] == 15


# ---------------------------------------------------------------- parameters


def test_parameter_reads_as_an_array():
    w = block()["weight"]
    assert isinstance(w, Parameter) and w.name == "weight" and w.shape == (4, 3) and w.dtype == F32
    assert w.sum() == 66 and (w @ np.ones(3, "f4")).tolist() == [3, 12, 21, 30] and np.linalg.norm(w) > 0
    assert [row.tolist() for row in w] == np.arange(12).reshape(4, 3).tolist()
    assert w[1, 2] == 5 and isinstance(w[1, 2], np.float32)


@pytest.mark.parametrize(
    "compute",
    [
        lambda p: p + 1,
        lambda p: -p,
        lambda p: p @ p.T,
        lambda p: p.T,
        lambda p: p.copy(),
        lambda p: copy.copy(p),
        lambda p: p.astype("f8"),
        lambda p: p.reshape(-1),
        lambda p: p.sum(0),
        lambda p: p.mean(axis=1),
        lambda p: p[[0, 2]],
        lambda p: p[p > 3],
        lambda p: p.argsort(),
        lambda p: p.cumsum(),
        lambda p: p.clip(0, 1),
        lambda p: np.concatenate([p, p]),
        lambda p: np.where(p > 0, p, 0),
        lambda p: np.asarray(p),
        lambda p: np.array(p),
        lambda p: np.ascontiguousarray(p),
        lambda p: np.divmod(p, 2)[1],
        lambda p: np.add.outer(p, p),
        lambda p: np.stack((p, p)),
        lambda p: np.zeros_like(p),
        lambda p: copy.deepcopy(p[1:]),
        lambda p: pickle.loads(pickle.dumps(p[1:])),
    ],
)
def test_what_is_computed_is_a_plain_array(compute):
    b = block()
    result, plain = compute(b["weight"]), compute(np.arange(12, dtype="f4").reshape(4, 3))
    assert type(result) is np.ndarray and result.dtype == plain.dtype and b.version == 0
    assert result.shape == plain.shape and np.array_equal(result, plain)


VIEWS = ("view", "real", "imag", "mT", "getfield", "newbyteorder")  # of a parameter that cannot be written to


def test_no_method_gives_a_parameter_that_is_none():
    p = block()["weight"]
    for name in set(dir(np.ndarray)) - set(VIEWS):
        if name.startswith("_"):
            continue
        try:
            made = getattr(p, name)()
        except (TypeError, ValueError, DeprecationWarning):
            continue
        assert not isinstance(made, Parameter), name


def out(p, v):
    np.add(p, v, out=p)


def keyword(p, v):
    np.clip(p, v, v, out=p)


def iadd(p, v):
    p += v


def imul(p, v):
    p *= v


def ipow(p, v):
    p **= 2


def at(p, v):
    np.add.at(p, 0, v)


def reduced(p, v):
    np.add.reduce(np.stack([np.full(p.shape, v)] * 2), out=p)


def first_of_two(p, v):
    np.divmod(np.full(p.shape, v, p.dtype), 2, out=(p, None))


def assigned(p, v):
    p[...] = v


def row(p, v):
    p[1] = v


def fancy(p, v):
    p[[0, 2]] = v


def mask(p, v):
    p[p > 3] = v


def view(p, v):
    p[2:, ::-2][...] = v


def view_iadd(p, v):
    p[2:] += v


def view_of_view(p, v):
    p[1:][1:][0] = v


def filled(p, v):
    p.fill(v)


def copyto(p, v):
    np.copyto(p, v)


def put(p, v):
    np.put(p, [0, 1], v)


def diagonal(p, v):
    np.fill_diagonal(p, v)


WRITERS = [
    out, keyword, iadd, imul, ipow, at, reduced, first_of_two, assigned, row, fancy, mask, view, view_iadd,
    view_of_view, filled, copyto, put, diagonal,
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("write", WRITERS, ids=lambda f: f.__name__)
def test_every_way_to_write_goes_through_and_moves_the_version(write, dtype):
    b = block(dtype)
    plain = np.arange(12, dtype=dtype).reshape(4, 3)
    write(b["weight"], 7)
    write(plain, 7)
    assert b.version > 0
    assert np.array_equal(b.flat, [*plain.ravel(), 12, 13, 14, 15])


def test_writing_gives_back_the_parameter():
    b = block()
    p = q = b["weight"]
    p += 1
    assert p is q and np.add(p, 1, out=p) is p and np.clip(p, 0, 1, out=p) is p
    first, second = np.divmod(p, 2, out=(p, None))
    assert first is p and type(second) is np.ndarray
    assert np.copyto(p, 3) is None
    plain = np.zeros((4, 3), "f4")
    assert np.add(p, 1, out=plain) is plain and plain[0, 0] == 4
    assert np.clip(p, 0, 1, out=plain) is plain


@pytest.mark.parametrize(
    "write",
    [
        lambda p: np.asarray(p).__setitem__(0, 1),
        lambda p: p.view(np.ndarray).fill(1),
        lambda p: p.view().__setitem__(0, 1),
        lambda p: p.T.__setitem__(0, 1),
        lambda p: p.ravel().__setitem__(0, 1),
        lambda p: p.flat.__setitem__(0, 1),
        lambda p: p.sort(),
        lambda p: p.put([0], 1),
        lambda p: p.setflags(write=True),
        lambda p: np.asarray(p).setflags(write=True),
        lambda p: np.asarray(p)[1:].setflags(write=True),
        lambda p: memoryview(p).__setitem__((0, 0), 1.0),
        lambda p: np.add(1, np.ones((4, 3), "f4"), out=np.asarray(p)),
    ],
)
def test_no_way_past_the_version(write):
    b = block()
    before = b.flat.copy()
    with pytest.raises((ValueError, TypeError)):
        write(b["weight"])
    assert np.array_equal(b.flat, before)


def test_a_write_that_fails_half_way_still_moves_the_version():
    b = block()
    with pytest.raises(IndexError):
        np.add.at(b["bias"], [0, 9], 1)
    assert b.version == 1


def test_copies_of_parameters_keep_their_block():
    b = block()
    made, other = copy.deepcopy((b["bias"], b))
    assert isinstance(made, Parameter) and made.name == "bias" and made._block is other and other is not b
    made, other = pickle.loads(pickle.dumps((b["bias"], b)))
    made[0] = 1
    assert other["bias"][0] == 1 and b["bias"][0] == 12
    derived = b["weight"].view()
    with pytest.raises(AttributeError, match="belongs to no block"):
        derived.grad  # noqa: B018
    assert type(copy.deepcopy(derived)) is type(pickle.loads(pickle.dumps(derived))) is np.ndarray


# ---------------------------------------------------------------- modules


def test_names_are_dotted_and_shared_blocks_come_once():
    net = Net()
    names = [f"{m}.{p}" for m in ("first", "rest.0") for p in SHAPES]
    assert [name for name, _ in net.named_parameters()] == [*names, "rest.1.scale"]
    assert list(net.state_dict()) == [*names, *(f"rest.1.{p}" for p in SHAPES), "rest.1.scale"]
    assert [p.name for p in net.parameters()] == [*SHAPES, *SHAPES, "scale"]
    assert net.blocks() == [net.first.params, net.rest[0].params, net.rest[1].own]
    assert net.num_parameters == 34
    net.rest[1].bias = [0, 0, 0, 1]
    assert net.first.bias.tolist() == [0, 0, 0, 1]
    assert "weight" in dir(net.first) and "scale" in dir(net.rest[1])


def test_parameters_are_attributes():
    linear = Linear()
    version = linear.params.version
    linear.bias = range(4)
    assert linear.bias.tolist() == [0, 1, 2, 3] and linear.params.version > version
    linear.bias += 1
    assert linear.params.flat[12:].tolist() == [1, 2, 3, 4] and "bias" not in vars(linear)
    for wrong in (np.zeros(3), np.zeros((4, 1)), 0.0):
        with pytest.raises(ShapeError, match=r"bias must be \[4\], not \["):
            linear.bias = wrong
    with pytest.raises(DtypeError, match="bias"):
        linear.bias = "abcd"
    assert linear.bias.tolist() == [1, 2, 3, 4]
    with pytest.raises(AttributeError, match=r"'Linear' object has no attribute 'wieght'"):
        linear.wieght  # noqa: B018
    assert not hasattr(linear, "forward")
    linear.other = 5
    assert linear.other == 5


def test_call_is_forward():
    assert Net()(np.ones((1, 3), "f4"), shift=1).tolist() == [[4, 13, 22, 31]]


def test_train_reaches_every_part():
    net = Net()
    assert not net.training
    assert net.train() is net and net.first.training and net.rest[1].training
    assert net.eval() is net and not net.first.training and not net.rest[0].training and not net.training


def test_gradients_by_name():
    net = Net()
    net.zero_grad()
    assert all(b._grad is None for b in net.blocks())
    net.grad["rest.0.bias"][:] = 2
    assert net.rest[0].bias.grad.tolist() == [2] * 4 and set(net.grad) == set(net.state_dict())
    net.zero_grad()
    assert not any(g.any() for g in net.grad.values())


def test_copies_are_independent_and_keep_what_is_shared():
    net = Net()
    for made in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert made.rest[1].shared is made.first.params and made.size == 3 and len(made.blocks()) == 3
        made.first.weight[...] = 0
        assert net.first.weight.any() and not made.rest[1].weight.any()
    assert copy.copy(net).first is net.first


# ---------------------------------------------------------------- state_dict


def test_state_dict_is_a_copy_and_goes_back():
    net, other = Net(), Net()
    state = net.state_dict()
    assert all(type(v) is np.ndarray and v.flags.writeable for v in state.values())
    state["rest.0.weight"][:] = 0
    assert net.rest[0].weight.any()
    assert other.load_state_dict(state) == ([], [])
    assert other.first.weight.any() and not other.rest[0].weight.any()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", "longdouble", "int32"])
def test_load_converts_any_real_dtype(dtype):
    linear = Linear()
    linear.load_state_dict({name: np.ones(shape, dtype) for name, shape in SHAPES.items()})
    assert linear.params.flat.tolist() == [1] * 16 and linear.weight.dtype == F32


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_load_takes_torch_tensors(dtype):
    torch = pytest.importorskip("torch")
    state = {name: torch.full(shape, 1.5, dtype=getattr(torch, dtype)) for name, shape in SHAPES.items()}
    state["weight"] = torch.nn.Parameter(state["weight"])
    linear = Linear("float64")
    linear.load_state_dict(state)
    assert linear.params.flat.tolist() == [1.5] * 16


def test_load_names_every_problem_and_changes_nothing():
    linear = Linear()
    before = linear.state_dict()
    with pytest.raises(ShapeError) as error:
        linear.load_state_dict({"weight": np.zeros((3, 4)), "bais": np.zeros(4), "empty": np.zeros((4, 0))})
    message = str(error.value)
    assert "Linear" in message and "missing: bias" in message and "unexpected: bais" in message
    assert "weight must be [4, 3], not [3, 4]" in message and "empty" not in message
    for bad in ({**before, "bias": np.zeros(5)}, {**before, "bias": "abcd"}, {**before, "bias": [1j] * 4}, None, [1]):
        with pytest.raises((ShapeError, DtypeError)):
            linear.load_state_dict(bad)
    assert all(np.array_equal(linear.state_dict()[name], value) for name, value in before.items())


def test_load_that_is_not_strict_says_what_it_left():
    linear = Linear()
    kept = linear.load_state_dict({"bias": np.zeros(4), "other": 1}, strict=False)
    assert kept.missing_keys == ["weight", "empty"] and kept.unexpected_keys == ["other"]
    assert not linear.bias.any() and linear.weight.any()
    with pytest.raises(ShapeError, match="bias"):
        linear.load_state_dict({"bias": np.zeros(5)}, strict=False)


def test_gradients_are_assigned_to_in_place():
    linear = Linear()
    grad, weight = linear.params.grad, linear.grad["weight"]
    linear.params.grad += 1
    linear.weight.grad *= 3
    linear.params.grads["bias"] -= 0.5
    linear.params.grads["bias"] = 2 * linear.params.grads["bias"]
    assert linear.params.grad is grad and (weight == 3).all() and (linear.bias.grad == 1).all()
    linear.weight.grad = np.zeros_like(weight)
    assert not weight.any()
    with pytest.raises(ValueError, match="broadcast"):
        linear.params.grads["bias"] = np.zeros(99)
    with pytest.raises(KeyError):
        linear.params.grads["other"] = 1
    assert dict(linear.params.grads).keys() == linear.params.shapes.keys() and len(linear.params.grads) == 3


def test_the_tree_is_all_modules():
    net = Net()
    assert list(net._tree()) == [net, net.first, *net.rest]
    shared = Linear()
    net.again, net.once_more = shared, [shared]
    assert list(net._tree()).count(shared) == 2
    chain = Sequential(net, Linear())
    assert list(chain._tree()) == [chain, *net._tree(), chain[1]]


def test_save_and_load(tmp_path):
    net, other = Net(), Net()
    net.first.weight[...] = -1
    net.save(tmp_path / "net.weights")
    other.load(tmp_path / "net.weights")
    assert all(np.array_equal(other.state_dict()[name], value) for name, value in net.state_dict().items())
    with pytest.raises(ShapeError, match="missing"):
        Tied(Linear()).load(tmp_path / "net.weights")
    np.save(tmp_path / "one.npy", np.zeros(3))
    np.savez(tmp_path / "object.npz", weight=np.array([None]))
    (tmp_path / "text").write_text("no arrays here")
    (tmp_path / "nothing").write_text("")
    for name in ("one.npy", "object.npz", "text", "nothing"):
        with pytest.raises(OptionError, match=name):
            net.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        net.load(tmp_path / "no.npz")


def test_a_damaged_file_is_told_from_a_missing_one(tmp_path):
    net, path = Net(), tmp_path / "net.npz"
    np.savez_compressed(path, **net.state_dict())
    whole, before = path.read_bytes(), net.state_dict()
    random = np.random.default_rng(0)
    told = 0
    for _ in range(300):
        broken = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            broken[place] = random.integers(256)
        path.write_bytes(broken)
        try:
            net.load(path)
        except FastrnnError:
            told += 1
    assert told > 100
    path.write_bytes(whole)
    net.load(path)
    assert all(np.array_equal(before[name], value) for name, value in net.state_dict().items())


def test_what_was_there_is_replaced_once_the_new_is_whole(tmp_path):
    path, link = tmp_path / "model.npz", tmp_path / "link"
    path.write_bytes(b"before")
    path.chmod(0o600)
    with pytest.raises(KeyboardInterrupt), replacing(path) as file:
        file.write(b"half of")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"before"
    link.symlink_to(path)
    with replacing(link) as file:
        file.write(b"after")
        file.flush()
        assert path.read_bytes() == b"before"
    assert link.is_symlink() and path.read_bytes() == b"after" and path.stat().st_mode & 0o777 == 0o600
    assert sorted(tmp_path.iterdir()) == [link, path]
    with replacing(os.devnull) as file:  # no ordinary file: still there afterwards
        file.write(b"anything")
    assert not os.path.isfile(os.devnull)
    with pytest.raises(FileNotFoundError, match="model"), replacing(tmp_path / "none" / "model"):
        pass
    with pytest.raises(IsADirectoryError), replacing(tmp_path):
        pass
    long = tmp_path / ("n" * 250)
    with replacing(long) as file:
        file.write(b"as long as a name may be")
    assert long.stat().st_size == 24


def test_what_cannot_be_replaced_is_written_to(tmp_path, monkeypatch):
    """Such as a file that is mounted by itself."""
    path = tmp_path / "model.npz"
    path.write_bytes(b"before")

    def busy(spare, path):
        raise OSError(errno.EBUSY, "busy", path)

    monkeypatch.setattr(os, "replace", busy)
    with replacing(path) as file:
        file.write(b"after")
    assert path.read_bytes() == b"after" and list(tmp_path.iterdir()) == [path]

    def full(spare, path):
        raise OSError(errno.ENOSPC, "full", path)

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OSError, match="could not be written to") as told, replacing(path) as file:
        file.write(b"the last")
    [spare] = set(tmp_path.iterdir()) - {path}
    assert str(spare) in str(told.value) and spare.read_bytes() == b"the last"


def test_two_files_of_a_folder_are_written_at_once(tmp_path):
    """As where a signal's handler saves while something is saved."""
    with replacing(tmp_path / "one") as one:
        one.write(b"1")
        with replacing(tmp_path / "two") as two:
            two.write(b"2")
        one.write(b"1")
    assert (tmp_path / "one").read_bytes() == b"11" and (tmp_path / "two").read_bytes() == b"2"


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="may write to anything")
def test_what_is_write_protected_stays(tmp_path):
    path = tmp_path / "model.npz"
    path.write_bytes(b"before")
    path.chmod(0o444)
    with pytest.raises(PermissionError), replacing(path):
        pass
    assert path.read_bytes() == b"before"


# ---------------------------------------------------------------- None


def test_none_is_no_gradient_and_no_parameter():
    linear = Linear()
    linear.weight.grad = 3
    linear.weight.grad = None
    assert not linear.weight.grad.any()
    linear.params.grad = 3
    linear.zero_grad(set_to_none=True)
    assert not linear.params.grad.any()
    linear.params.grad = 3
    linear.params.grad = None
    assert not linear.params.grad.any()
    before = linear.state_dict()
    for write in (lambda: operator.setitem(linear.weight, ..., None), lambda: linear.weight.fill(None)):
        with pytest.raises(DtypeError, match="cannot be set to None"):
            write()
    assert all(np.array_equal(before[name], value) for name, value in linear.state_dict().items())


# ---------------------------------------------------------------- arrays in


class Exporter:
    """An array that speaks DLPack alone."""

    def __init__(self, array):
        self.array = array

    def __dlpack__(self, **options):
        return self.array.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.array.__dlpack_device__()


class Wrapper:
    """An array that speaks `__array__` alone."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.array, dtype)


PLAIN = np.arange(6, dtype="f4").reshape(2, 3)


@pytest.mark.parametrize(
    "given",
    [
        PLAIN.tolist(),
        list(PLAIN),
        np.asfortranarray(PLAIN),
        np.repeat(PLAIN, 2, axis=1)[:, ::2],
        PLAIN[:, ::-1][:, ::-1],
        PLAIN.astype(">f4"),
        PLAIN.astype("f8"),
        PLAIN.astype("f2"),
        PLAIN.astype("longdouble"),
        PLAIN.astype("u1"),
        np.frombuffer(b"\0" + PLAIN.tobytes(), "u1")[1:].view("f4").reshape(2, 3),
        memoryview(PLAIN),
        Wrapper(PLAIN),
        Exporter(PLAIN),
        Block({"w": (2, 3)})["w"] + PLAIN,
    ],
)
@pytest.mark.parametrize("dtype", [F32, F64])
def test_as_array_takes(given, dtype):
    before = copy.deepcopy(given) if isinstance(given, (list, np.ndarray)) else None
    array = as_array(given, dtype, "x")
    assert type(array) is np.ndarray and array.dtype == dtype and array.dtype.isnative
    assert array.flags.c_contiguous and array.flags.aligned and np.array_equal(array, PLAIN)
    if before is not None:
        assert np.array_equal(given, before)


def test_as_array_gives_what_needs_no_conversion():
    locked = PLAIN.copy()
    locked.flags.writeable = False
    for given in (PLAIN, locked, np.empty((0, 3), "f4")):
        assert as_array(given, F32, "x") is given
    assert np.shares_memory(as_array(Exporter(PLAIN), F32, "x"), PLAIN)


def test_as_array_takes_torch():
    torch = pytest.importorskip("torch")
    tensor = torch.from_numpy(PLAIN.copy()).requires_grad_()
    assert np.shares_memory(as_array(tensor, F32, "x"), tensor.detach().numpy())
    for given in (tensor.T.contiguous().T, tensor.double(), tensor.bfloat16(), tensor.half(), tensor.int()):
        assert np.array_equal(as_array(given, F32, "x"), PLAIN)
    with pytest.raises(DtypeError, match="x of type Tensor"):
        as_array(tensor.to_sparse(), F32, "x")


@pytest.mark.parametrize(
    ("given", "error"),
    [
        (None, DtypeError),
        ("abc", DtypeError),
        (b"abc", DtypeError),
        (object(), DtypeError),
        ([1j, 2], DtypeError),
        (np.ones(2, "c8"), DtypeError),
        (np.array(["2020"], "M8[Y]"), DtypeError),
        (np.zeros(2, [("a", "f4")]), DtypeError),
        ([10**400], DtypeError),
        ([[1], [1, 2]], ShapeError),
        ({"a": 1}, DtypeError),
    ],
)
def test_as_array_refuses(given, error):
    with pytest.raises(error, match=r"^the input "):
        as_array(given, F32, "the input")


def test_as_dtype():
    assert [as_dtype(d) for d in ("f4", np.float64, float, None, F32)] == [F32, F64, F64, F32, F32]
    for wrong in ("f2", int, ">f4", "no such", object, complex, [("a", "f4")], 7):
        with pytest.raises(DtypeError, match="float32 or float64"):
            as_dtype(wrong)


def test_as_dtype_takes_torch():
    torch = pytest.importorskip("torch")
    assert as_dtype(torch.float32) == F32 and as_dtype(torch.float64) == F64
    with pytest.raises(DtypeError):
        as_dtype(torch.bfloat16)


def test_generator():
    assert generator(3).random() == generator(np.int64(3)).random() != generator(4).random()
    rng = np.random.default_rng(0)
    assert generator(rng) is rng
    for wrong in (-1, 1.5, "x"):
        with pytest.raises(OptionError, match="seed"):
            generator(wrong)
