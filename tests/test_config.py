"""show_config and the number of threads."""

import numpy as np
import pytest

import fastrnn
from fastrnn.backends import REGISTRY, load
from fastrnn.errors import DtypeError, FastrnnWarning, OptionError


def test_show_config_says_what_runs(capsys, monkeypatch):
    monkeypatch.setenv("FASTRNN_BACKEND", "numpy")
    monkeypatch.setattr(load("numba"), "missing", lambda: "it is not here")
    config = fastrnn.show_config(as_dict=True)
    assert config["fastrnn"] == fastrnn.__version__ and config["numpy"] == np.__version__
    assert config["forced backend"] == "numpy" and config["environment"]["FASTRNN_BACKEND"] == "numpy"
    assert list(config["backends"]) == list(REGISTRY)
    assert config["backends"]["numba"] == {"missing": "it is not here"}
    assert config["cpus"] >= config["threads"] >= 1
    assert capsys.readouterr().out == ""
    assert fastrnn.show_config() is None
    printed = capsys.readouterr().out
    for word in (fastrnn.__version__, "it is not here", "FASTRNN_BACKEND", *REGISTRY, str(config["cpu"])):
        assert word in printed


def test_show_config_with_nothing_forced(capsys, monkeypatch):
    for name in ("FASTRNN_BACKEND", "FASTRNN_ISA", "FASTRNN_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert fastrnn.show_config(as_dict=True)["environment"] == {}
    fastrnn.show_config()
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["environment", "none"] in lines and ["forced", "backend", "none"] in lines


BAD = [(0, OptionError), (-1, OptionError), (1.5, DtypeError), ("2", DtypeError), (True, DtypeError)]


@pytest.mark.parametrize(("n", "error"), BAD)
def test_threads_are_a_positive_integer(n, error):
    before = fastrnn.get_num_threads()
    with pytest.raises(error, match="number of threads must be an integer >= 1"):
        fastrnn.set_num_threads(n)
    assert fastrnn.get_num_threads() == before


@pytest.mark.skipif("c" not in fastrnn.backends(), reason="the C library is not built")
def test_threads_are_set_and_bounded_by_the_machine():
    before = fastrnn.get_num_threads()
    try:
        fastrnn.set_num_threads(np.int64(1))
        assert fastrnn.get_num_threads() == 1
        fastrnn.set_num_threads(10**6)
        assert 1 <= fastrnn.get_num_threads() <= fastrnn.show_config(as_dict=True)["cpus"]
    finally:
        fastrnn.set_num_threads(before)


def test_threads_without_the_c_library(monkeypatch):
    monkeypatch.setattr(load("c"), "missing", lambda: "it was not built")
    if "numba" in fastrnn.backends():
        monkeypatch.setattr(load("numba"), "_threads", None)
        fastrnn.set_num_threads(1)
        assert fastrnn.get_num_threads() == 1
    monkeypatch.setattr(load("numba"), "missing", lambda: "it is not installed")
    assert fastrnn.get_num_threads() == 1
    with pytest.warns(FastrnnWarning, match="changes nothing: it was not built"):
        fastrnn.set_num_threads(2)
