"""The benchmark's report, on results made by hand: each figure in it is known here beforehand."""

from __future__ import annotations

import copy
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import report
import report_numbers as numbers
import report_pages
import report_pictures as pictures
import report_words

ENGINES = {
    "c": {"title": "fastrnn C", "version": "0.1.0"},
    "numba": {"title": "fastrnn numba", "version": "0.1.0"},
    "torch": {"title": "PyTorch", "version": "2.13.0"},
    "torch-compiled": {"title": "PyTorch, compiled", "version": "2.13.0"},
    "onnxruntime": {"title": "ONNX Runtime", "version": "1.22.0"},
    "jax": {"title": "JAX", "missing": "jax not installed"},
}
WRONG, FAILED = {"wrong": "y is off by 0.31 of its largest value"}, {"failed": "its process ended with code -9"}
SKIPPED = {"skipped": "no training"}


def timed(seconds: float, *blocks: float) -> dict[str, Any]:
    """An engine's record; blocks: their medians."""
    quantiles = [[m, m, m, m, 2 * m, 3 * m] for m in blocks or (seconds, seconds)]
    return {"time": seconds, "blocks": quantiles, "runs": 9, "error": 1e-6, "version": "1"}


def run_of(name: str, threads: int = 2, floor: float | None = None, **engines: Any) -> dict[str, Any]:
    """A run by its case's name; engines: seconds, or a whole record."""
    cell, mode, hidden, batch, *rest = name.split("-")
    layers, directions = {"2x2": (2, 2), "2x1": (2, 1)}.get(rest[0] if rest else "", (1, 1))
    case = {
        "cell": cell,
        "mode": mode,
        "hidden": int(hidden[1:]),
        "batch": int(batch[1:]),
        "steps": {"step": 1, "words": 35}.get(mode, 100),
        "layers": layers,
        "directions": directions,
        "ragged": "ragged" in rest,
        "words": 10_000 * (mode == "words"),
    }
    records = {e.replace("_", "-"): r if isinstance(r, dict) else timed(r) for e, r in engines.items()}
    return {"case": case, "name": name, "threads": threads, "floor": floor, "engines": records}


def results_of(*runs: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A file of results with these runs."""
    return {
        "machine": {
            "cpu": "Some CPU (R) 9",
            "cpus": 2,
            "isa": "avx512",
            "platform": "Linux-6.1",
            "python": "3.11.7",
            "numpy": "2.4.6",
        },
        "ceilings": {
            "caches": {"l1": 32768, "l2": 2**20, "l3": 2**25},
            "fma": {"1": 118.0, "2": 235.0},
            "read": {"l1": {"1": 400.0, "2": 790.0}, "memory": {"1": 18.0, "2": 30.0}},
        },
        "engines": ENGINES,
        "settings": {"date": "2026-11-21", "quick": False, "seconds": 0.2, "blocks": 3, "minutes": 31.5},
        "runs": list(runs),
        "footprint": {
            "c": {"import_seconds": 0.09, "first_result_seconds": 0.1, "installed_bytes": 2**22, "peak_bytes": 2**25},
            "torch": {"import_seconds": 2.5, "first_result_seconds": 3.25, "installed_bytes": 2**30},
        },
        **fields,
    }


# Ratios of the LSTM's inference: 2, 1/2 and 4, whose geometric mean is the cube root of 4.
RUNS = (
    run_of("lstm-inference-h16-b1", floor=5e-4, c=1e-3, numba=5e-4, torch=2e-3, onnxruntime=4e-3),
    run_of("lstm-inference-h256-b32", floor=8e-3, c=1e-2, torch=9e-3, torch_compiled=6e-3, onnxruntime=5e-3),
    run_of("lstm-inference-h256-b1", floor=1.5e-3, c=2e-3, torch=WRONG, onnxruntime=timed(8e-3, 8e-3, 16e-3)),
    run_of("lstm-training-h16-b1", c=3e-3, torch=3e-3, onnxruntime=SKIPPED),
    run_of("gru-training-h16-b1", c=WRONG, torch=1e-3, onnxruntime=SKIPPED),
    run_of("lstm-step-h16-b1", c=2e-6, torch=5e-5, onnxruntime=8e-6),
    run_of("lstm-step-h512-b1", c=9e-5, torch=6e-5, onnxruntime=8e-5),
    run_of("lstm-inference-h64-b1-2x2", c=4e-3, torch=6e-3),
    run_of("gru-training-h128-b32-ragged", c=5e-3, torch=FAILED),
    run_of("lstm-words-h200-b20-2x1", c=0.1, torch=0.25),
    run_of("lstm-inference-h16-b1", 1, c=8e-4, torch=3.2e-3),
    run_of("lstm-inference-h256-b32", 1, c=1.8e-2, torch=9e-3),
)
RESULTS = results_of(*RUNS)
# Results that lack something, and what they still have.
VARIANTS = {
    "empty": results_of(),
    "no ceilings": results_of(*({**run, "floor": None} for run in RUNS[:2]), ceilings=None),
    "one thread": results_of(*(run for run in RUNS if run["threads"] == 1)),
    "two threads alone": results_of(*RUNS[:2]),
    "steps alone": results_of(*(run for run in RUNS if run["case"]["mode"] == "step")),
    "no grid": results_of(*(run for run in RUNS if numbers.kind(run) in ("words", "stacked", "ragged"))),
    "no rival": results_of(run_of("lstm-inference-h16-b1", c=1e-3), run_of("lstm-step-h16-b1", c=1e-6)),
    "no fastrnn": results_of(run_of("lstm-inference-h16-b1", torch=1e-3), run_of("lstm-step-h16-b1", torch=1e-6)),
    "all wrong": results_of(*(run_of(name, c=WRONG, torch=1) for name in ("lstm-inference-h16-b1", "gru-step-h8-b1"))),
    "engines unknown": results_of(RUNS[1], RUNS[-1], engines={}, footprint={}),
    "interrupted": results_of(
        *RUNS[:1], footprint=None, settings={"date": "2026-11-21", "quick": True, "seconds": 0.03, "blocks": 3}
    ),
}


def lines_with(text: str, *words: str) -> list[str]:
    return [line for line in text.splitlines() if all(word in line for word in words)]


# ---------------------------------------------------------------- statistics


def test_the_best_rival_is_the_fastest_that_is_right_and_not_ours() -> None:
    assert [numbers.best_rival(run) for run in RUNS[:4]] == ["torch", "onnxruntime", "onnxruntime", "torch"]
    assert numbers.best_rival(RUNS[8]) is None
    assert [numbers.ratio(run) for run in RUNS[:5]] == pytest.approx([2, 0.5, 4, 1, None])
    assert numbers.ratio(RUNS[8]) is None


def test_scores() -> None:
    scores = {name: numbers.score(runs) for name, runs in numbers.grouped(numbers.select(RESULTS)).items()}
    assert [*scores] == [
        "LSTM inference",
        "LSTM training",
        "GRU training",
        "LSTM step",
        "2x2 inference",
        "ragged training",
        "words",
    ]
    lstm = scores["LSTM inference"]
    assert lstm.mean == pytest.approx(4 ** (1 / 3)) and (lstm.won, lstm.total) == (2, 3)
    assert lstm.worst is RUNS[1]
    assert scores["LSTM training"][:3] == (pytest.approx(1), 1, 1)  # equal is won
    assert scores["GRU training"] == (None, 0, 1, RUNS[4])  # wrong is lost
    assert scores["ragged training"] == (None, 0, 0, None)  # no rival, no score
    assert scores["LSTM step"].mean == pytest.approx((4 * 2 / 3) ** 0.5)
    assert numbers.score(numbers.select(RESULTS, "grid", threads=1))[:3] == (pytest.approx(2**0.5), 1, 2)


def test_losses_are_sorted_and_a_wrong_result_is_the_worst() -> None:
    assert [run["name"] for run in numbers.losses(numbers.select(RESULTS))] == [
        "gru-training-h16-b1",
        "lstm-inference-h256-b32",
        "lstm-step-h512-b1",
    ]


def test_scaling_floors_words_and_noise() -> None:
    found = numbers.scaling(RESULTS)
    assert found == pytest.approx({"lstm-inference-h16-b1": 0.8, "lstm-inference-h256-b32": 1.8})
    assert numbers.geometric_mean(found.values()) == pytest.approx(1.2)
    assert numbers.floor_share(RUNS[0]) == pytest.approx(0.5) and numbers.floor_share(RUNS[3]) is None
    shares = numbers.floor_medians(RESULTS)
    assert shares == {"H>=256, B>=32": (pytest.approx(0.8), 1), "B=1": (pytest.approx((0.5 + 0.75) / 2), 2)}
    assert numbers.words_per_second(RUNS[9], 0.1) == pytest.approx(7000)
    narrow = results_of(*RUNS, run_of("rnn-inference-h128-b32", floor=1.0, c=2.0))
    assert numbers.floor_medians(narrow) == shares  # neither large nor B=1
    noise = numbers.noise(RESULTS)
    assert max(noise) == pytest.approx(2) and sorted(noise)[-2] == 1


def test_means_leave_out_what_is_not_there() -> None:
    assert numbers.geometric_mean([2, None, 8]) == pytest.approx(4) and numbers.geometric_mean([None]) is None
    assert numbers.median([3, None, 1]) == 2 and numbers.median([]) is None


def test_figures_as_text() -> None:
    assert [report_words.digits(x) for x in (0, 0.00123456, 0.9999, 9.996, 99.96, 1234.5, 1234567, None)] == [
        *("0", "0.00123", "1.00", "10.0", "100", "1,234", "1,234,567", "-")
    ]
    assert [report_words.factor(x) for x in (0.5, 9.994, 9.996, 99.96, 1622, None)] == [
        *("0.50", "9.99", "10.0", "100", "1622", "-")
    ]
    assert [report_words.duration(x) for x in (2e-6, 0.9999e-3, 0.0123, 12, None)] == [
        *("2.00 µs", "1.00 ms", "12.3 ms", "12.0 s", "-")
    ]


# ---------------------------------------------------------------- what is written


def test_summary_shows_wins_and_losses() -> None:
    text = report.summary(RESULTS)
    assert lines_with(text, "LSTM inference", "1.59", "2 of 3", "0.50", "lstm-inference-h256-b32", "ONNX Runtime")
    assert lines_with(text, "GRU training", "0 of 1", "wrong", "gru-training-h16-b1", "PyTorch")
    assert lines_with(text, "sequences, 1 thread", "1.41", "1 of 2")
    assert "Where fastrnn loses: 3 of 9 cases\n" in text
    lost = text.split("Where fastrnn loses")[1].splitlines()[1:4]
    assert [line.split()[:2] for line in lost] == [
        ["wrong", "gru-training-h16-b1"],
        ["0.50", "lstm-inference-h256-b32"],
        ["0.67", "lstm-step-h512-b1"],
    ]
    assert lines_with(text, "missing", "JAX (jax not installed)")
    assert lines_with(text, "wrong", "PyTorch on lstm-inference-h256-b1", "2 more")
    assert lines_with(text, "threads", "1.20 times", "worst 0.80", "lstm-inference-h16-b1")
    assert lines_with(text, "limit", "80 % at H>=256, B>=32", "62 % at B=1")
    assert lines_with(text, "118 / 235 GFLOP/s on 1 / 2 threads", "L1 790, memory 30")
    assert lines_with(text, "noise", "1.00 (median)", "above 1.25 in 1 of")


def test_summary_is_a_screenful_however_much_is_lost() -> None:
    cells, modes = ("lstm", "gru", "rnn"), ("inference", "training")
    grid = [f"{c}-{m}-h{h}-b{b}" for c in cells for m in modes for h in (16, 512, 1024) for b in (1, 128)]
    others = [f"{c}-{m}-h1024-b128{what}" for c in cells for m in modes for what in ("-2x2", "-ragged")]
    names = [*grid, *others, *(f"{c}-step-h512-b1" for c in cells), "lstm-words-h650-b20-2x1"]
    runs = [run_of(name, t, 1.0, c=2.0, torch_compiled=1.0, jax=WRONG) for name in names for t in (1, 2, 4)]
    missing = {f"e{i}": {"title": f"Engine {i}", "missing": "this and that not installed"} for i in range(9)}
    results = results_of(*runs, engines=ENGINES | missing)
    results["machine"]["cpu"] = "A CPU with a name that goes on and on, at so many GHz and with Graphics" * 2
    lines = report.summary(results).splitlines()
    assert len(lines) <= 40 and max(map(len, lines)) <= report_pages.WIDTH
    assert lines_with("\n".join(lines), "Where fastrnn loses: 52 of 52 cases, the worst (and 44 more)")


def test_markdown_has_everything() -> None:
    text = report.markdown(RESULTS, "picture.png")
    assert lines_with(text, "](picture.png)")
    assert "takes 1.00 times as long" not in text and "fastrnn wins 3 of them and loses 2; worst: wrong" in text
    assert lines_with(text, "| LSTM inference |", "1.59", "2 of 3", "**0.50**")
    assert lines_with(text, "| **wrong** | gru-training-h16-b1 | PyTorch |")
    assert lines_with(text, "| H=16 |", "1.00 ms<br>2.00 PyTorch<br>50 % of the limit")
    assert lines_with(text, "| H=256 |", "**10.0 ms<br>0.50 ONNX Runtime<br>80 % of the limit**")
    assert lines_with(text, "| lstm-step-h512-b1 | 90.0 |", "| 60.0 |", "| 80.0 |", "| **0.67** |")
    assert lines_with(text, "| lstm-words-h200-b20-2x1 | 7,000 |", "| 2,800 |", "| 2.50 |")
    assert lines_with(text, "| gru-training-h128-b32-ragged | 5.00 |", "| failed |")
    assert lines_with(text, "| LSTM inference | 0.50 | 0.50 to 0.50 |")  # numba over C
    assert lines_with(text, "| LSTM inference, H=16 | **0.80** |")
    assert lines_with(text, "| LSTM inference, H=256 |", "1.80")
    assert lines_with(text, "| JAX | missing: jax not installed |")
    assert lines_with(text, "| PyTorch | 2.13.0 | 10 | **1** | **1** | 0 |")
    assert lines_with(text, "| PyTorch | 2.50 | 3.25 | 1,024 MiB | - |")
    assert lines_with(text, "| gru-training-h16-b1 | 2 | fastrnn C | **wrong: y is off by 0.31")
    assert lines_with(text, "| ONNX Runtime | no training | 2 |")
    assert [len(set(map(columns, table))) for table in tables(text)] == [1] * len(tables(text)) != []


def columns(line: str) -> int:
    return len(re.findall(r"(?<!\\)\|", line))


def tables(text: str) -> list[list[str]]:
    """A Markdown text's tables as lists of lines."""
    return [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]


@pytest.mark.parametrize("name", VARIANTS)
def test_text_of_results_that_lack_something(name: str) -> None:
    results = VARIANTS[name]
    for text in (report.summary(results), report.markdown(results), report.readme_section(results, "results/some-cpu")):
        assert "Some CPU" in text and "None" not in text.replace("\nNone.\n", "")
    assert "  takes" not in report.summary(results) and "of  " not in report_words.headline(results)
    has_rival = any(numbers.compared(run) for run in results["runs"])
    assert bool(lines_with(report.summary(results), "mean", "won", "worst")) == has_rival
    shown = {line.split("|")[1].strip() for table in tables(report.markdown(results)) for line in table}
    assert {run["name"] for run in numbers.select(results)} <= shown
    assert ("Where fastrnn loses: 2 of 2 cases" in report.summary(results)) == (name == "all wrong")


def test_results_are_not_changed() -> None:
    before = copy.deepcopy(RESULTS)
    report.summary(RESULTS)
    report.markdown(RESULTS)
    assert before == RESULTS


# ---------------------------------------------------------------- the README

MARKED = f"# Title\n\nbefore  \n{report.BEGIN}\nold |\n{report.END}\nafter, without a newline at the end"


def test_readme_changes_between_the_marks_alone(tmp_path: Path) -> None:
    path = tmp_path / "README.md"
    path.write_text(MARKED, encoding="utf-8")
    report.update_readme(path, RESULTS, "bench/results/some-cpu")
    text = path.read_text(encoding="utf-8")
    before, after = text.split(report.BEGIN)[0], text.split(report.END)[1]
    assert before == MARKED.split(report.BEGIN)[0] and after == MARKED.split(report.END)[1]
    assert "old" not in text
    assert lines_with(text, "| LSTM inference | 1.59 | **0.50 (H=256, B=32, ONNX Runtime)** | 2 of 3 |")
    assert lines_with(text, "| GRU training | - | **wrong (H=16, B=1, PyTorch)** | 0 of 1 |")
    assert lines_with(text, "| LSTM step | 2.00; 8.00 ONNX Runtime | **90.0; 60.0 PyTorch** |")
    assert lines_with(text, "](bench/results/some-cpu.png)") and lines_with(text, "bench/results/some-cpu.md)")
    assert lines_with(text, "Some CPU (R) 9, 2 CPUs", "2026-11-21")
    report.update_readme(path, RESULTS, "bench/results/some-cpu")
    assert (text == path.read_text(encoding="utf-8")) is True


@pytest.mark.parametrize(
    "text",
    [
        "",
        MARKED.replace(report.BEGIN, ""),
        MARKED.replace(report.END, ""),
        MARKED + f"\n{report.END}\n",
        f"{report.END}\n{report.BEGIN}\n",
    ],
)
def test_readme_without_its_marks_is_left_alone(tmp_path: Path, text: str) -> None:
    path = tmp_path / "README.md"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=r"README\.md must have a line .*benchmark: made.* once each"):
        report.update_readme(path, RESULTS, "bench/results/some-cpu")
    assert path.read_text(encoding="utf-8") == text


# ---------------------------------------------------------------- pictures and the page


def test_without_matplotlib_the_text_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    path = tmp_path / "cpu.json"
    path.write_text(json.dumps(RESULTS))
    with pytest.raises(SystemExit, match=r"pictures need matplotlib: pip install fastrnn\[plot\]"):
        report.main([str(path)])
    assert "Where fastrnn loses" in capsys.readouterr().out
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cpu.json", "cpu.md"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of few dots, and skip without matplotlib."""
    pytest.importorskip("matplotlib")
    png = pictures.png
    for module in (report_pages, pictures):
        monkeypatch.setattr(module, "png", lambda figure, dpi: png(figure, 24))


def test_the_page_needs_nothing_else(small: None) -> None:
    text = report.html(RESULTS)
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'>]{,30})""", text)
    assert len(links) == 4 and all(link.startswith("data:image/png;base64,") for link in links)
    assert (
        len(re.findall("<img ", text)) == 4 and "<script" not in text and "url(" not in text and "@import" not in text
    )
    alternatives = re.findall('alt="(.*?)"', text)
    assert [words in alt for words, alt in zip(("ONNX Runtime", "One step", "%", "as on 1"), alternatives, strict=True)]
    for words in (
        '<td>LSTM inference</td><td>1.59</td><td>2 of 3</td><td class="marked">0.50</td>',
        '<td class="marked">10.0 ms<br>0.50 ONNX Runtime<br>80 % of the limit</td>',
        '<td class="marked">wrong: y is off by 0.31 of its largest value</td>',
        "<td>failed: its process ended with code -9</td>",
        "missing: jax not installed",
    ):
        assert words in text, words


def test_the_page_escapes_what_it_is_given(small: None) -> None:
    why = {"failed": "<b>&"}
    text = report.html(results_of(run_of("lstm-inference-h16-b1", c=1e-3, torch=why)))
    assert "<b>" not in text and "failed: &lt;b&gt;&amp;" in text


@pytest.mark.parametrize("name", VARIANTS)
def test_page_of_results_that_lack_something(name: str, small: None, tmp_path: Path) -> None:
    shown = {
        "empty": 0,
        "no ceilings": 1,
        "one thread": 1,
        "two threads alone": 2,
        "steps alone": 1,
        "no grid": 0,
        "no rival": 0,
        "no fastrnn": 0,
        "all wrong": 2,
        "engines unknown": 3,
        "interrupted": 2,
    }
    assert len(re.findall("<img ", report.html(VARIANTS[name]))) == shown[name]
    report.plot(VARIANTS[name], tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")


def texts(ax: Any) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_heat_maps_show_ratios_rivals_and_losses() -> None:
    pytest.importorskip("matplotlib")
    figure = pictures.heat_maps(RESULTS, pictures.ratio_shade(RESULTS))
    panels = {ax.get_title(): ax for ax in figure.axes}
    lstm, gru = panels["LSTM inference"], panels["GRU training"]
    assert texts(lstm) == ["2.00", "PyTorch", "-", "", "4.00", "ONNX\nRuntime", "0.50", "ONNX\nRuntime"]
    assert [text.get_weight() for text in lstm.texts[::2]] == ["normal", "normal", "normal", "bold"]
    red, _, blue = lstm.images[0].get_array()[1, 1]
    assert red > 2 * blue
    red, _, blue = lstm.images[0].get_array()[0, 0]
    assert blue > 2 * red
    assert texts(gru)[:2] == ["wrong", "PyTorch"]
    red, _, blue = gru.images[0].get_array()[0, 0]
    assert red > 2 * blue


def test_equal_is_white() -> None:
    pytest.importorskip("matplotlib")
    colours = pictures._colours(pictures.ratio_shade(RESULTS))
    assert min(colours.to_rgba(1)[:3]) > 0.95


def test_step_bars_hang_below_one_where_lost() -> None:
    pytest.importorskip("matplotlib")
    (ax,) = pictures.step_bars(RESULTS).axes
    assert [bar.get_y() for bar in ax.patches] == [1, 1]
    assert [bar.get_height() for bar in ax.patches] == pytest.approx([3, 2 / 3 - 1])
    assert texts(ax) == ["ONNX\nRuntime", "4.00", "PyTorch", "0.67"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["16\n2.00", "512\n90.0"]
    low, high = ax.get_ylim()
    assert low <= 2 / 3 and high > 4


def test_labels_stand_out_from_every_colour() -> None:
    pytest.importorskip("matplotlib")
    for shade in (pictures.ratio_shade(RESULTS), pictures.floor_shade(RESULTS)):
        colours, (least, most) = pictures._colours(shade), shade.ends
        for step in range(101):
            rgb = colours.to_rgba(least + (most - least) * step / 100)[:3]
            light = pictures.luminance(rgb) + 0.05
            contrast = 1.05 / light if pictures._ink(rgb) == "white" else light / 0.05
            assert contrast >= 4.5, rgb


def test_luminance_of_the_primaries() -> None:
    assert pictures.luminance((1, 1, 1)) == pytest.approx(1) and pictures.luminance((0, 0, 0)) == 0
    assert pictures.luminance((1, 0, 0)) == pytest.approx(0.2126)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = pytest.importorskip("matplotlib.image")
    results = results_of(*RUNS[:1])
    folder = tmp_path / "bench" / "results"
    folder.mkdir(parents=True)
    (folder / "a-cpu-9.6.json").write_text(json.dumps(results))
    readme = tmp_path / "README.md"
    readme.write_text(MARKED, encoding="utf-8")
    report.main([str(folder / "a-cpu-9.6.json"), "--readme", str(readme)])
    assert (capsys.readouterr().out == report.summary(results) + "\n") is True
    assert {file.suffix for file in folder.iterdir()} == {".json", ".md", ".html", ".png"}
    assert {file.stem for file in folder.iterdir()} == {"a-cpu-9.6"}
    assert "](bench/results/a-cpu-9.6.png)" in readme.read_text(encoding="utf-8")
    assert image.imread(folder / "a-cpu-9.6.png").shape[1] == 1200
    readme.write_text("no marks")
    with pytest.raises(SystemExit, match="must have a line"):
        report.main([str(folder / "a-cpu-9.6.json"), "--readme", str(readme)])


@pytest.mark.parametrize(
    ("text", "told"), [(None, "No such file"), ("# not JSON", "cannot be read"), ("[1, 2]", "not what suite.py made")]
)
def test_what_are_no_results(tmp_path: Path, text: str | None, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "cpu.json"
    if text:
        path.write_text(text)
    with pytest.raises(SystemExit) as stopped:
        report.main([str(path)])
    assert stopped.value.code == 2 and told in capsys.readouterr().err


def test_the_machine_is_told_with_its_generation_where_it_is_known() -> None:
    machine = RESULTS["machine"]
    assert report_words.machine_line(RESULTS).startswith("Some CPU (R) 9, 2 CPUs, avx512; ")
    known = {**RESULTS, "machine": {**machine, "family": 25, "model": 17}}
    assert report_words.machine_line(known).startswith("Some CPU (R) 9 (family 25, model 17), 2 CPUs, avx512; ")
