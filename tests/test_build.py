"""The build: what is compiled and how, what an installation does without a compiler, and the C programs in tests/c.

That the kernels are right is not shown here but in test_backends.py. Next: csrc/build.py, setup.py.
"""

from __future__ import annotations

import os
import re
import runpy
import shutil
import subprocess
import sys
import tarfile
import zipfile
from functools import cache
from pathlib import Path

import pytest

import fastrnn

ROOT = Path(__file__).parents[1]
CSRC = ROOT / "csrc"
MACHINES = ["x86_64", "aarch64", "arm64", "riscv64", "i686"]


@pytest.fixture(scope="module")
def build() -> dict:
    return runpy.run_path(str(CSRC / "build.py"))


# ---- what is compiled ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("machine", MACHINES)
def test_flags_run_everywhere_and_keep_nan(build, machine):
    for name, library in build["libraries"](machine):
        flags = library["cflags"]
        assert {"-ffp-contract=off", "-fno-math-errno", "-std=gnu11", "-fPIC"} <= set(flags), name
        assert not {"-march=native", "-mtune=native", "-ffast-math", "-Ofast"} & set(flags), name
        if name in ("frnn_core", "frnn_generic", "frnn_neon"):
            assert not [flag for flag in flags if flag.startswith("-m")], name


@pytest.mark.parametrize(
    "machine, isas",
    [
        ("x86_64", ["generic", "avx2", "avx512"]),
        ("aarch64", ["generic", "neon"]),
        ("arm64", ["generic", "neon"]),
        ("riscv64", ["generic"]),
    ],
)
def test_libraries(build, machine, isas):
    libraries = dict(build["libraries"](machine))
    assert list(libraries) == ["frnn_core", *(f"frnn_{isa}" for isa in isas)]
    assert set(dict(libraries["frnn_core"]["macros"])) == {f"FRNN_HAVE_{isa.upper()}" for isa in isas}
    for isa in isas:
        assert f"csrc/{isa}.c" in libraries[f"frnn_{isa}"]["sources"]
    sources = [source for library in libraries.values() for source in library["sources"]]
    assert len(sources) == len(set(sources))


def test_every_file_belongs_to_a_library(build):
    libraries = [library for machine in MACHINES for _, library in build["libraries"](machine)]
    sources = {source for library in libraries for source in library["sources"]}
    assert sources == {f"csrc/{path.name}" for path in CSRC.glob("*.c")}
    for library in libraries:
        assert set(library["obj_deps"][""]) == {"csrc/build.py", *(f"csrc/{path.name}" for path in CSRC.glob("*.h"))}


def test_declarations(build):
    header = """
        int before(void);
        /* cdef: begin */
        #define LEFT_OUT 1
        int taken(int n); /* and its comment */
        /* cdef: end */
        int after(void);
    """
    text = build["declarations"](header)
    assert "int taken(int n);" in text
    assert not re.search("LEFT_OUT|before|after", text)


@pytest.mark.skipif(sys.platform == "darwin", reason="macOS says it with ARCHFLAGS")
def test_target_follows_a_cross_build(monkeypatch):
    monkeypatch.setenv("_PYTHON_HOST_PLATFORM", "linux-aarch64")
    assert runpy.run_path(str(CSRC / "build.py"))["TARGET"] == "aarch64"


@pytest.mark.parametrize(
    "cflags, flags",
    [(None, ["-g0"]), ("-O2 -fno-gcse", ["-g0"]), ("-g0", ["-g0"]), ("-O1 -g", []), ("-ggdb3 -O1", [])],
)
def test_debug_information_is_made_where_cflags_asks(monkeypatch, cflags, flags):
    monkeypatch.delenv("CFLAGS", raising=False)
    if cflags is not None:
        monkeypatch.setenv("CFLAGS", cflags)
    build = runpy.run_path(str(CSRC / "build.py"))
    _, _, _, extension = build["ffi"]._assigned_source
    for each in [extension["extra_compile_args"], *(library["cflags"] for _, library in build["LIBRARIES"])]:
        assert [flag for flag in each if flag.startswith("-g")] == flags


# ---- what is packed and installed ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def project() -> dict:
    with (ROOT / "pyproject.toml").open("rb") as file:
        return pytest.importorskip("tomllib").load(file)["project"]


def test_version(project):
    assert project["version"] == fastrnn.__version__


def test_makefile_installs_the_test_extra(project):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    lists = [re.search(rf"^{name} := (.*)$", makefile, re.M)[1] for name in ("TEST_TOOLS", "COMPANIONS")]
    assert " ".join(lists).replace('"', "").split() == project["optional-dependencies"]["test"]


@pytest.fixture
def checkout(tmp_path) -> Path:
    """A copy of what a build reads, for it to write into."""
    pytest.importorskip("setuptools", minversion="77")
    ignore = shutil.ignore_patterns("__pycache__", "*.so", "*.egg-info")
    for path in [ROOT / name for name in ("bench", "csrc", "fastrnn", "tests")]:
        shutil.copytree(path, tmp_path / path.name, ignore=ignore)
    for path in ROOT.iterdir():
        if path.is_file():
            shutil.copy(path, tmp_path)
    return tmp_path


def setup(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "setup.py", *arguments],
        cwd=folder,
        env={**{k: v for k, v in os.environ.items() if k != "FASTRNN_REQUIRE_C"}, **environment},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # no terminal to write to
    )


def test_sdist_holds_all_that_a_build_needs(checkout):
    result = setup(checkout, "--quiet", "sdist")
    assert result.returncode == 0, result.stderr
    [archive] = (checkout / "dist").iterdir()
    with tarfile.open(archive) as file:
        names = {name.partition("/")[2] for name in file.getnames()}
    wanted = {"LICENSE", "Makefile", "pyproject.toml", "setup.py", "fastrnn/py.typed", "tests/test_build.py"}
    wanted |= {f"csrc/{path.name}" for path in CSRC.iterdir() if path.is_file()}
    wanted |= {path.relative_to(ROOT).as_posix() for path in (ROOT / "bench/results").glob("*.md")}  # README names them
    assert wanted <= names
    assert not [name for name in names if name.endswith((".so", ".pyc", ".json")) or "-quick." in name]


def test_without_a_compiler_the_rest_is_installed_and_says_so(checkout):
    result = setup(checkout, "build", CC="false")
    assert result.returncode == 0, result.stderr
    assert "WITHOUT" in result.stderr and "fastrnn[numba]" in result.stderr
    assert "pip install --no-cache-dir --force-reinstall fastrnn\n" in result.stderr
    [package] = checkout.glob("build/lib*/fastrnn")
    assert {path.name for path in package.iterdir()} >= {"__init__.py", "backends", "py.typed"}
    assert not list(package.glob("_c.*"))


def test_a_wheel_without_the_library_is_not_named_as_one_with_it(checkout):
    left_over = checkout / "lib" / "fastrnn" / "_c.abi3.so"
    left_over.parent.mkdir(parents=True)
    left_over.write_bytes(b"of an earlier build")
    (checkout / "setup.cfg").write_text("[build]\nbuild_lib = lib\n", encoding="utf-8")
    result = setup(checkout, "--quiet", "bdist_wheel", CC="false")
    assert result.returncode == 0, result.stderr
    [wheel] = (checkout / "dist").iterdir()
    assert wheel.name == f"fastrnn-{fastrnn.__version__}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as file:
        names = file.namelist()
        told = file.read(f"fastrnn-{fastrnn.__version__}.dist-info/WHEEL").decode()
    assert "Root-Is-Purelib: true" in told and "Tag: py3-none-any" in told
    assert "fastrnn/__init__.py" in names and not [name for name in names if "_c." in name]


def test_without_a_compiler_where_one_must_be(checkout):
    result = setup(checkout, "build", CC="false", FASTRNN_REQUIRE_C="1")
    assert result.returncode != 0
    assert "cannot be built" in result.stderr and "compiler" in result.stderr


# ---- the Makefile's environment --------------------------------------------------------------------------------------

# In place of Python: makes an environment of its copy, or none where NONE is set.
STAND_IN = """#!/bin/sh
case "$*" in
"-m venv"*) test -z "$NONE" && for folder; do :; done && mkdir -p "$folder/bin" && cp "$0" "$folder/bin/python" ;;
"-m pip --python"*) exit 1 ;;
esac
"""


@pytest.fixture
def make(tmp_path):
    """Runs make in a folder of its own, with the stand-in."""
    if not shutil.which("make"):
        pytest.skip("make is not installed")
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "stand-in").write_text(STAND_IN, encoding="utf-8")
    (tmp_path / "stand-in").chmod(0o755)

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            ["make", "PYTHON=./stand-in", *arguments],
            cwd=tmp_path,
            env={**{k: v for k, v in os.environ.items() if not k.startswith("MAKE")}, **environment},
            capture_output=True,
            text=True,
        )

    return run


def folder_with(path: Path, *names: str) -> Path:
    path.mkdir()
    for name in ("precious", *names):
        (path / name).touch()
    return path / "precious"


@pytest.mark.parametrize("variable, folder", [("VENV", ".venv"), ("BENCH", ".venv-bench")])
def test_an_environment_that_make_did_not_make_is_left(make, tmp_path, variable, folder):
    precious = folder_with(tmp_path / folder)
    result = make(f"{folder}/made")
    assert result.returncode and precious.exists()
    assert f"{folder} exists and is not this Makefile's" in result.stderr and f"make {variable}=..." in result.stderr
    result = make("other/made", f"{variable}=other")
    assert result.returncode == 0, result.stderr
    assert precious.exists() and (tmp_path / "other/made").exists()
    assert make("clean", f"{variable}=other").returncode == 0 and not (tmp_path / "other").exists()
    assert make("clean").returncode == 0 and precious.exists()


@pytest.mark.parametrize("name", ["begun", "made"])
def test_an_environment_that_make_began_is_made_anew(make, tmp_path, name):
    precious = folder_with(tmp_path / ".venv", name)
    result = make("--always-make", ".venv/made")
    assert result.returncode == 0, result.stderr
    assert not precious.exists()
    assert {path.name for path in (tmp_path / ".venv").iterdir()} == {"begun", "bin", "made"}


def test_an_environment_that_cannot_be_made(make, tmp_path):
    result = make(".venv/made", NONE="1")
    assert result.returncode and "cannot make a virtual environment" in result.stderr
    assert not (tmp_path / ".venv").exists()


# ---- the C programs --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """Compiles tests/c/{name}.c with the core's files that it needs and gives a function that runs it."""
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if not compiler:
        pytest.skip("no C compiler")
    folder = tmp_path_factory.mktemp("c")

    @cache
    def compiled(name: str, *flags: str):
        output = folder / "".join([name, *flags])
        sources = [ROOT / "tests" / "c" / f"{name}.c", CSRC / "threads.c", CSRC / "cpu.c"]
        command = [compiler, "-std=gnu11", "-O2", "-pthread", f"-I{CSRC}", *flags]
        subprocess.run([*command, *sources, "-o", output], check=True)

        def run(*arguments: str | Path) -> str:
            result = subprocess.run([output, *arguments], capture_output=True, text=True, timeout=120)
            assert result.returncode == 0, result.stdout + result.stderr
            return result.stdout

        return run

    return compiled


@pytest.mark.parametrize("flags", [(), ("-DFRNN_NO_FUTEX",)], ids=["futex", "condition"])
def test_threads(program, flags):
    output = program("test_threads", *flags)()
    assert re.findall("^ok (.*)$", output, re.M) == [
        "size",
        "ranks",
        "barrier",
        "a task that calls",
        "callers at once",
        "signals",
        "fork",
        *(["places"] if sys.platform == "linux" else []),
        "busy neighbours",
    ]


def facts(output: str) -> dict[str, str]:
    return {name: rest for name, _, rest in (line.partition(" ") for line in output.splitlines())}


def test_cpu(program):
    found = facts(program("test_cpu")())
    assert found["name"]
    level1, level2, level3 = map(int, found["caches"].split())
    assert level1 == 0 or 4 << 10 <= level1 <= 1 << 20
    assert level2 == 0 or level1 <= level2
    assert level3 == 0 or level2 <= level3
    if hasattr(os, "sched_getaffinity"):
        assert 1 <= int(found["count"]) <= len(os.sched_getaffinity(0))


@pytest.mark.skipif(not os.path.exists("/proc/cpuinfo"), reason="nothing to compare with: no /proc/cpuinfo")
def test_cpu_features_are_those_the_kernel_lists(program):
    flags = set()
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
        if line.startswith(("flags", "Features")):
            flags = set(line.partition(":")[2].split())
            break
    wanted = {
        "avx2": {"avx2", "fma"},
        "avx512": {"avx2", "fma", "avx512f", "avx512dq", "avx512bw", "avx512vl"},
        "neon": {"asimd"},
    }
    found = set(facts(program("test_cpu")()).get("features", "").split())
    assert found == {name for name, needs in wanted.items() if needs <= flags}


V2 = "30 24 0:26 {top} /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n"
V1 = "33 31 0:30 {top} /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct\n"
OTHER = "22 28 0:20 / /proc rw - proc proc rw\n34 31 0:31 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset\n"


@pytest.mark.skipif(sys.platform != "linux", reason="control groups are Linux's")
@pytest.mark.parametrize(
    "mounts, groups, files, quota",
    [
        pytest.param("", "", {}, None, id="no groups"),
        pytest.param(V2.format(top="/"), "0::/a/b", {}, None, id="v2 without files"),
        pytest.param(V2.format(top="/"), "0::/a/b", {"a/b/cpu.max": "max 100000"}, None, id="v2 no bound"),
        pytest.param(V2.format(top="/"), "0::/a/b", {"a/b/cpu.max": "100000 100000"}, 1, id="v2 one"),
        pytest.param(V2.format(top="/"), "0::/a/b", {"a/b/cpu.max": "1000 100000"}, 1, id="v2 a part"),
        pytest.param(V2.format(top="/"), "0::/a/b", {"a/b/cpu.max": "150000 100000"}, 2, id="v2 rounded up"),
        pytest.param(
            V2.format(top="/"),
            "0::/a/b",
            {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000", "cpu.max": "900000 100000"},
            1,
            id="v2 the group above",
        ),
        pytest.param(V2.format(top="/"), "7:cpu:/b\n0::/a", {"a/cpu.max": "70000 100000"}, 1, id="v2 beside v1"),
        pytest.param(V2.format(top="/"), "0::/", {"cpu.max": "70000 100000"}, 1, id="v2 in a namespace"),
        pytest.param(V2.format(top="/x/y"), "0::/x/y", {"cpu.max": "70000 100000"}, 1, id="v2 mounted in part"),
        pytest.param(V2.format(top="/x"), "0::/x/y", {"y/cpu.max": "70000 100000"}, 1, id="v2 below the mount"),
        pytest.param(V2.format(top="/x"), "0::/xy/z", {"cpu.max": "70000 100000"}, 1, id="v2 beside the mount"),
        pytest.param(V2.format(top="/"), "0::/a", {"a/cpu.max": "nonsense"}, None, id="v2 nonsense"),
        pytest.param(V2.format(top="/"), "0::/a", {"a/cpu.max": ""}, None, id="v2 empty"),
        pytest.param(
            V1.format(top="/"),
            "5:cpuset:/z\n4:cpu,cpuacct:/a\n0::/u",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "50000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
            1,
            id="v1 a part",
        ),
        pytest.param(
            V1.format(top="/"),
            "4:cpu,cpuacct:/a",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "-1", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
            None,
            id="v1 no bound",
        ),
        pytest.param(
            V1.format(top="/docker/1"),
            "4:cpuacct,cpu:/docker/1",
            {"cpu,cpuacct/cpu.cfs_quota_us": "200000", "cpu,cpuacct/cpu.cfs_period_us": "200000"},
            1,
            id="v1 in a container",
        ),
        pytest.param(
            V1.format(top="/"),
            "4:cpuset:/a",
            {"cpu,cpuacct/a/cpu.cfs_quota_us": "50000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"},
            None,
            id="v1 in no group",
        ),
    ],
)
def test_cpu_quota(program, tmp_path, mounts, groups, files, quota):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/mountinfo").write_text(OTHER + mounts, encoding="utf-8")
    (tmp_path / "proc/self/cgroup").write_text(groups + "\n", encoding="utf-8")
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    processors = len(os.sched_getaffinity(0))
    count = int(facts(program("test_cpu")(tmp_path))["count"])
    assert count == min(processors, quota or processors)
