"""The three pages under test: tables resolve, sh blocks run, tables and most statements of numbers
agree with the files measured. Times and indented commands are not checked."""
import ast
import importlib
import json
import os
import re
import runpy
import shlex
import statistics
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
import torch
from PIL import Image

import data
import mutants
import prepare
from toys import tiny_slices

ROOT = Path(__file__).resolve().parent.parent
README, RESULTS, LAB = PAGES = [(ROOT / name).read_text()
                                for name in ("README.md", "results/README.md", "tests/README.md")]
# What is added to a command so that it ends in seconds.
TINY = "--size 64 --width 1 --critic-width 1 --batch 2 --critic-steps 1 --updates 1"
MAIN = "The main table: IXI at 128x128, the paper's networks"
SCENARIOS = ("GN0", "GN5", "GN10", "GN20", "IP2", "IP5", "IP10")
MARKS = ("500", "1000", "1500")  # runs are compared here; a few went on
# Table 1 of the paper, IXI: SSIM, then PSNR, in SCENARIOS' order.
PAPER = {
    "pi": ((82.53, 69.82, 51.90, 36.96, 54.85, 44.10, 38.73), (22.18, 21.49, 20.64, 19.26, 20.92, 20.24, 19.70)),
    "uapi": ((79.99, 78.76, 74.49, 62.24, 77.44, 74.29, 69.35), (22.62, 22.20, 21.70, 20.34, 21.93, 21.56, 21.14))}
# One normal number is this often two deviations from the mean of three others: |t| > sqrt(3), two
# degrees of freedom.
BY_CHANCE = 1 - (3 / 5) ** 0.5


def section(page, title):
    return page.split(f"## {title}\n")[1].split("\n## ")[0]


def rows(text):
    """The cells of every table row, headers and rules left out."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")]
             for line in text.splitlines() if line.startswith("|")]
    rules = [k for k, cells in enumerate(lines) if set("".join(cells)) <= set("-: ")]
    return [cells for k, cells in enumerate(lines) if k not in rules and k + 1 not in rules]


def table(text, head):
    """The rows of the one table whose header begins with `head`."""
    _, rest = text.split(f"\n| {head} |")
    return rows("|" + rest.split("\n\n")[0])


def commands(text):
    """Every line of every ```sh block, in order."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def sentences(page):
    """The running text of a page: no code, tables, headings or pictures."""
    text = re.sub(r"```.*?```", "", page, flags=re.DOTALL)
    lines = [line for line in text.splitlines() if not re.match(r"(\||#|!\[|    )", line)]
    text = re.sub(r"\]\(.*?\)|`|\*\*", "", "\n".join(lines))
    return [sentence for part in re.split(r"\n\s*\n|\n- ", text)
            for sentence in re.split(r"(?<=[.:!?])\s+", " ".join(part.split())) if sentence]


def defined_tests():
    names = set()
    for path in (ROOT / "tests").glob("test_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                names |= {node.name, f"{path.stem}.{node.name}"}
    return names


# ---------------------------------------------------------------- prose

def test_the_readme_is_short_and_its_table_of_equations_comes_early():
    assert len(README.splitlines()) <= 220 and len(README.split()) <= 2000
    assert len(README.split("## Equation, code, test")[0].split()) < 700


@pytest.mark.parametrize("page", PAGES, ids=("README", "results", "tests"))
def test_every_sentence_has_at_most_30_words_and_no_semicolon(page):
    for sentence in sentences(page):
        assert len(sentence.split()) <= 30 and ";" not in sentence, sentence


# ---------------------------------------------------------------- tables of code, tests and mistakes

def test_every_equation_leads_to_code_that_names_it_and_to_a_test():
    table = rows(section(README, "Equation, code, test"))
    table = [row for row in table if len(row) == 4]
    assert {row[0] for row in table} >= {f"Eq. {n}" for n in (2, 3, 4, 5, 6, 9)} and len(table) >= 15
    for paper, _, code, test in table:
        module, name = code.strip("`").split(".")
        document = getattr(importlib.import_module(module), name).__doc__
        kind, number = paper.split()
        pattern = rf"Eq\. [\d, ]*{number}\b|\({number}\)" if kind == "Eq." else re.escape(number)
        assert re.search(pattern, document), f"{code} does not name {paper}"
        assert test.strip("`") in defined_tests(), test


def test_every_test_that_a_page_names_exists():
    names = {name for page in PAGES for name in re.findall(r"`(test_[a-z0-9_.]+?)(?:\.py)?`", page)}
    modules = {path.stem for path in (ROOT / "tests").glob("test_*.py")}
    assert len(names) > 30 and names <= defined_tests() | modules, names - defined_tests() - modules


def test_every_row_of_paper_and_released_code_names_a_planted_mistake():
    table = rows(section(README, "Paper, released code, ours"))
    known = {mutant.name for mutant in mutants.MUTANTS}
    assert len(table) >= 15
    for what, *_, mutant in table:
        assert mutant.strip("`") in known, (what, mutant)


def test_the_mutants_are_counted_right():
    for page in (README, LAB):
        assert f"holds {len(mutants.MUTANTS)} " in page


def test_the_algorithm_stands_in_readme_and_train_in_the_same_order():
    loop = (ROOT / "train.py").read_text().split("def train(")[1].split("Nothing below")[0]
    labels = [f"({k})" for k in range(1, 11)]
    algorithm = section(README, "The algorithm")
    assert re.findall(r"^ +(\(\d+\)) ", algorithm, re.MULTILINE) == labels
    assert re.findall(r"# (\(\d+\)) ", loop) == labels


def test_the_loop_fits_on_one_screen_and_calls_the_paper_and_run_alone():
    source = (ROOT / "train.py").read_text()
    loop, = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.While))
    end = source[:source.index("Nothing below this line changes")].count("\n")
    nodes = [node for node in ast.walk(loop) if getattr(node, "lineno", end) < end]
    calls = [ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)]
    machinery = [name for name in calls if name.startswith("run.")]
    paper = {"draw", "sample_phi", "torch.rand", "G.image", "critic_loss", "generator_loss"}
    torchs = {"range", "eps.to", "torch.no_grad", "f.requires_grad_", "opt_f.zero_grad", "opt_f.step",
              "opt_G.zero_grad", "opt_G.step", "risk_f.backward", "risk_G.backward"}
    assert set(calls) - set(machinery) == paper | torchs and len(machinery) <= 6
    assert end - loop.lineno <= 40 and not any(isinstance(node, ast.If) for node in nodes)


# ---------------------------------------------------------------- commands

def test_every_flag_that_a_page_uses_exists():
    known = set()
    for path in [*ROOT.glob("*.py"), ROOT / "tests/benchmark.py", ROOT / "tests/mutants.py"]:
        known |= set(re.findall(r'"(--[a-z0-9_-]+)"', path.read_text()))
    used = {flag for page in PAGES for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]+", page)}
    others = {"--dist", "--standalone", "--nproc_per_node", "--help"}  # pytest's, torchrun's
    assert used <= known | others, used - known - others


def tiny(line):
    """A command on ixi_slices/ that ends in seconds; --init's networks must keep their width."""
    line = re.sub(r"(--resume .*--updates) \d+", r"\1 2", line)
    return re.sub(r"(train\.py [^;&|\n]*--data \w+_slices/[^;&|\n]*?)(?= *;| *$)", rf"\1 {TINY}", line)


def shell(line, cwd):
    """Runs one line in a shell; `python` is this interpreter, the programs are this checkout's."""
    python = rf"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT))}/\1"
    line = re.sub(r"\bpython ([\w/]+\.py)", python, line)
    env = os.environ | {"OMP_NUM_THREADS": "1"}  # the other core has other tests to run
    done = subprocess.run(["bash", "-ec", line], cwd=cwd, capture_output=True, text=True, env=env)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def run_line(monkeypatch):
    """Runs one line, made tiny: a plain `python FILE ...` in this process, to spare the imports."""
    def run_line(line, cwd):
        monkeypatch.chdir(cwd)
        python, *words = tiny(line).split()
        if python != "python" or ";" in line:
            return shell(tiny(line), cwd)
        monkeypatch.setattr(sys, "argv", words)
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    return run_line


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder as a reader has it: phantoms stand in for ixi_slices/, and one picture."""
    root = tmp_path_factory.mktemp("reader")
    slices = tiny_slices()
    for which, images in zip(data.SETS, slices):
        folder, _, half = which.partition("_")
        (root / "ixi_slices" / folder).mkdir(parents=True, exist_ok=True)
        for name, image in zip(slices.names[which], images):
            end = f"_{half}" if half else ""
            Image.fromarray(image).save(root / "ixi_slices" / folder / f"{name}{end}.png")
    Image.fromarray(slices.evaluation_input[0]).save(root / "slice.png")
    return root


def test_the_first_command_trains_on_phantoms_and_beats_copying(place):
    install, *steps = [part.strip() for part in commands(README)[0].split("&&")][2:]
    assert install == "pip install -r requirements.txt"
    steps[0] += " --updates 150"
    printed = [shell(step, place) for step in steps]
    metrics = json.loads((place / "runs/smoke/evaluation/metrics.json").read_text())
    ours, copy = metrics["runs"]["smoke"]["scenarios"]["GN0"], metrics["copy_input"]["GN0"]
    assert ours["psnr"] > copy["psnr"] + 2 and ours["ssim"] > copy["ssim"] + 20, "visibly learned"
    assert "update 1/" in printed[0] and "| smoke |" in printed[1]


def test_every_other_command_of_the_readme_runs(place, run_line):
    lines = [line for line in commands(README)[1:] if "pytest" not in line and "prepare" not in line]
    assert len(lines) >= 12
    for line in lines:
        run_line(line, place)


@pytest.mark.parametrize("page", (README, RESULTS), ids=("README", "results"))
def test_the_notebook_lines_run(place, monkeypatch, page):
    monkeypatch.chdir(place)
    monkeypatch.setattr(data, "phantoms", lambda size: tiny_slices())
    if not Path("runs/smoke").exists():  # made by the first command
        shell(f"python train.py --smoke {TINY}", place)
    code, = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {"x": torch.from_numpy(tiny_slices().evaluation_input).float().unsqueeze(1)}
    exec(code.replace("runs/smoke_uapi_0", "runs/smoke"), names)
    translation = names.get("image", names.get("translation"))
    assert translation.shape == names["scale"].shape == names["x"].shape and names["scale"].min() > 0
    assert 0 <= translation.min() and translation.max() <= 255


def test_the_labs_training_commands_run(tmp_path, run_line):
    lines = [line.replace("--smoke", f"--smoke {TINY}") for line in commands(section(LAB, "The lab"))
             if "mutants" not in line and "pytest" not in line]
    assert len(lines) >= 5
    for line in lines:
        run_line(line, tmp_path)


def test_the_archives_commands_are_those_of_prepare():
    """tests/test_prepare.py runs them on tiny archives; only the archives' folders may differ."""

    def skeleton(line):
        return [word for word in line.split() if word != "--preview" and not word.endswith("/")]
    lines = [skeleton(line) for line in commands(README) if "prepare.py" in line]
    documented = [skeleton(line) for line in prepare.__doc__.splitlines() if "prepare.py" in line]
    assert lines == documented and len(lines) == 3


def test_ci_runs_the_readmes_test_command_and_nothing_else():
    line = next(line for line in README.splitlines() if re.match("python3 -m venv .*pytest", line))
    assert line.endswith("&& python -m pytest -q -n 2 --dist loadfile tests")
    ci = (ROOT / ".ci" / "run").read_text()
    assert "grep -m 1 '^python3 -m venv .*pytest' README.md" in ci and "requirements.txt" in line


# ---------------------------------------------------------------- numbers

def stored(name):
    return json.loads((ROOT / "results" / name).read_text())


def mean_and_sd(values):
    return f"{statistics.mean(values):.2f} ({statistics.stdev(values):.2f})"


def cell(row):
    return f"{row['ssim']:.2f}/{row['psnr']:.2f}"


def test_the_first_commands_numbers_are_those_stored():
    metrics = stored("smoke_seeds.json")
    smoke = metrics["runs"]["uapi, lam 10"]["0"]["scenarios"]
    copy = metrics["copy_input"]
    assert rows(section(README, "Three minutes on a CPU")) == [
        [name, cell(row["GN0"]), cell(row["GN20"])]
        for name, row in (("smoke", smoke), ("copy of the input", copy))]
    moved = [abs(scores[s]["ssim"] - smoke[s]["ssim"]) for name, scores in metrics.items()
             if name.endswith("seed 0") for s in ("GN0", "GN20")]
    assert len(moved) == 6 and round(max(moved)) == 5
    assert "More cores, or another CPU, moved SSIM by up to five." in README


def test_the_five_seeds_are_those_stored_and_carry_what_is_said_of_them():
    stored_runs = stored("smoke_seeds.json")
    runs = stored_runs["runs"]
    with_lam, without, pi = (runs[name] for name in ("uapi, lam 10", "uapi, lam 0", "pi, lam 10"))
    text = section(RESULTS, "The first command over five seeds")
    for cpu in ("another CPU", "a CPU without AVX-512", "two cores of the quickest CPU"):
        other = stored_runs[f"{cpu}, uapi, lam 10, seed 0"]
        assert "gave {} on GN0 and {} on GN20".format(*map(cell, other.values())) in text

    def over_seeds(group, number):
        return [number(group[seed]) for seed in "01234"]
    expected = [[name, *over_seeds(runs[name], lambda run: cell(run["scenarios"][scenario]))]
                for scenario in ("GN0", "GN20") for name in runs]
    kinds = {"patch residual": ("residual_last_tenth", 3), "scale": ("scale_last_tenth", 3)}
    kinds_of_map = {"uapi, lam 10": ("ause", 3), "the blurred input as a map": ("ause_of_the_input", 3),
                    "a constant map": ("ause_of_a_constant", 3), "over images": ("pcc_image", 2),
                    "over pixels": ("pcc_pixel", 2),
                    "over images, in the foreground": ("foreground_image", 2),
                    "over pixels, in the foreground": ("foreground_pixel", 2)}
    cells_of = rows(text)
    assert cells_of[:6] == expected and len(cells_of) == 6 + 4 + 7 + 3
    for name, *cells in cells_of[6:-3]:
        name, _, kind = name.rpartition(": ") if ": " in name else ("uapi, lam 10", "", name)
        key, digits = (kinds | kinds_of_map)[kind]
        assert cells == over_seeds(runs[name], lambda run: f"{run[key]:.{digits}f}"), kind
    assert "Copy of the input has {} on GN0 and {} on GN20".format(
        *(cell(stored_runs["copy_input"][scenario]) for scenario in ("GN0", "GN20"))) in text

    def gap(one, other, scenario, metric):
        return [one[seed]["scenarios"][scenario][metric] - other[seed]["scenarios"][scenario][metric]
                for seed in "01234"]
    psnr, ssim = gap(with_lam, without, "GN0", "psnr"), gap(pi, without, "GN0", "ssim")
    said = f"by {min(psnr):.1f} to {max(psnr):.1f} dB"
    assert min(psnr) > 1 and said in text and said in LAB
    assert min(ssim) > 0 and f"by {min(ssim):.1f} to {max(ssim):.1f}." in text
    pairs = (with_lam, without), (pi, without), (with_lam, pi)
    above = [[str(sum(value > 0 for value in gap(*pair, scenario, metric)))
              for scenario in ("GN0", "GN20") for metric in ("ssim", "psnr")] for pair in pairs]
    assert [cells for _, *cells in table(text, "seeds, of five, with more")] == above
    images, foreground = (over_seeds(with_lam, lambda run: run[key])
                          for key in ("pcc_image", "foreground_image"))
    assert f"images is {min(images):.2f} to {max(images):.2f}" in text
    assert sum(value < 0 for value in foreground) == 4, "negative with four of five seeds"
    # the lab's answers, which have room for two cores
    gaps, lower = [], []
    for seed in "01234":
        ten, zero = with_lam[seed], without[seed]
        assert 0.045 < ten["residual_last_tenth"] < 0.075 and 0.045 < ten["scale_last_tenth"] < 0.075
        assert abs(ten["residual_last_tenth"] - ten["scale_last_tenth"]) < 0.01
        assert 0.155 < zero["residual_last_tenth"] < 0.215
        assert zero["residual_last_tenth"] > 2.6 * ten["residual_last_tenth"]
        assert zero["wasserstein_last_tenth"] < ten["wasserstein_last_tenth"]
        gaps.append(ten["ause_of_the_input"] - ten["ause"])
        lower.append(pi[seed]["wasserstein_last_tenth"] < zero["wasserstein_last_tenth"])
        assert 0.16 < ten["ause"] < 0.20 and ten["ause_of_a_constant"] > 0.57
        assert ten["ause"] < ten["ause_of_the_input"] and 0.18 < ten["ause_of_the_input"] < 0.23
    assert f"with every seed, by {min(gaps):.3f} to {max(gaps):.3f}" in text and sum(lower) == 4


def test_the_main_table_is_the_stored_one():
    """Means over seeds, their standard deviation in brackets; single runs at 1,500 updates."""
    runs, copy = stored("table1_128.json")["runs"], stored("table1_128.json")["copy_input"]
    expected = []
    for name, marks in runs.items():
        for mark, seeds in marks.items():
            if ", lam" in name or len(seeds) == 1 and mark != "1500":
                continue
            cells = []
            for scenario in SCENARIOS:
                scores = [run["scenarios"][scenario] for run in seeds.values()]
                cells.append("/".join(mean_and_sd([score[m] for score in scores])
                                      if len(scores) > 1 else f"{scores[0][m]:.2f}"
                                      for m in ("ssim", "psnr")))
            expected.append([name, mark, "-".join(sorted({min(seeds), max(seeds)})), *cells])
    expected.append(["copy of the input", "-", "-", *(cell(copy[s]) for s in SCENARIOS)])
    assert table(section(RESULTS, MAIN), "run | updates | seeds") == expected


def test_pictures_are_there_and_small():
    for page, folder in ((README, ROOT), (RESULTS, ROOT / "results"), (LAB, ROOT / "tests")):
        for name in re.findall(r"!\[.*?\]\((.*?)\)", page):
            assert 10_000 < (folder / name).stat().st_size < 500_000


def test_the_short_table_is_taken_from_the_main_one():
    """Our methods at 1,500 updates over three seeds, and the copy."""
    full = table(section(RESULTS, MAIN), "run | updates | seeds")
    short = [[*row[:4], row[6]] for row in full if row[1:3] in (["1500", "0-2"], ["-", "-"])]
    assert len(short) == 3 and rows(section(README, "Results")) == short


def test_the_main_table_carries_what_is_said_of_it():
    runs, text = stored("table1_128.json")["runs"], section(RESULTS, MAIN)
    uapi, pi = runs["uapi"]["1500"], runs["pi"]["1500"]

    def scores(runs, scenario, metric):
        return [runs[seed]["scenarios"][scenario][metric] for seed in "012"]

    def gaps(scenarios, metric):
        """Ours, of means over seeds, and the paper's."""
        ours = [statistics.mean(scores(uapi, s, metric)) - statistics.mean(scores(pi, s, metric))
                for s in scenarios]
        one, other = (PAPER[name][metric == "psnr"] for name in ("uapi", "pi"))
        theirs = [one[k] - other[k] for k in map(SCENARIOS.index, scenarios)]
        return min(theirs), max(theirs), min(ours), max(ours)
    signs, ratios = [], {}
    for metric in ("ssim", "psnr"):
        for mark in ("500", "1000", "1500"):
            one, other = ([scores(runs[name][mark], s, metric) for s in SCENARIOS] for name in ("uapi", "pi"))
            signs.append([f"{metric.upper()}, {mark}", *(str(sum(a > b for a, b in zip(ours, theirs)))
                                                         for ours, theirs in zip(one, other))])
            for s, ours, theirs in zip(SCENARIOS, one, other):
                gap = abs(statistics.mean(ours) - statistics.mean(theirs))
                ratios[gap / max(statistics.stdev(ours), statistics.stdev(theirs))] = metric, s, mark
    assert max(ratios) < 2 and ratios[max(ratios)] == ("ssim", "IP5", "1500"), "not ranked"
    assert f"a ratio of {max(ratios):.3f}" in text
    assert table(text, "metric, updates") == signs
    assert all(row[4:] == ["3"] * 4 for row in signs[:3]), "SSIM on GN20 and among random pixels"
    assert all(set(signs[k][1:]) == {"3"} for k in (3, 5)) and "2" in signs[4], "PSNR"
    for said, scenarios, metric in (("{:.1f} to {:.1f} points. Our mean gaps after 1,500 updates are {:.1f} to "
                                     "{:.1f}.", ("GN20", "IP2", "IP5", "IP10"), "ssim"),
                                    ("{:.1f} to {:.1f} dB. Our mean gaps after 1,500 updates are {:.1f} to "
                                     "{:.1f}.", SCENARIOS, "psnr")):
        assert "gaps are " + said.format(*gaps(scenarios, metric)) in text
    assert f"{PAPER['pi'][0][0]} against {PAPER['uapi'][0][0]}" in text
    rises = [statistics.mean(scores(runs[name]["1500"], "GN0", "ssim"))
             - statistics.mean(scores(runs[name]["1000"], "GN0", "ssim")) for name in ("uapi", "pi")]
    assert "by {:.1f} points for UAPI and by {:.1f} for PI".format(*rises) in text
    for name, metric, fell in (("uapi", "ssim", 1), ("pi", "ssim", 1), ("uapi", "psnr", 0), ("pi", "psnr", 2)):
        late, early = (scores(runs[name][mark], "GN0", metric) for mark in ("1500", "1000"))
        assert sum(one < other for one, other in zip(late, early)) == fell, (name, metric)
    falls = [statistics.mean(scores(runs[name]["1000"], "GN20", "psnr"))
             - statistics.mean(scores(runs[name]["1500"], "GN20", "psnr")) for name in ("uapi", "pi")]
    assert "by {:.1f} and {:.1f} dB".format(*falls) in text
    moves = [[late - early for early, late in zip(*(scores(runs[name][mark], "GN20", "ssim")
                                                    for mark in ("1000", "1500")))] for name in ("uapi", "pi")]
    assert [sum(move > 0 for move in three) for three in moves] == [2, 2]
    assert min(moves[1]) == moves[1][1] and f"PI's seed 1 fell by {-moves[1][1]:.1f} points" in text
    pairs = [[a - b for a, b in zip(scores(uapi, s, m), scores(pi, s, m))]
             for s in SCENARIOS for m in ("ssim", "psnr")]
    t = [statistics.mean(three) / statistics.stdev(three) * 3 ** 0.5 for three in pairs]
    assert f"in {sum(abs(value) > 4.30 for value in t)} of the {len(t)} comparisons after 1,500" in text
    far, compared = set(), 0
    for mark, (name, seed), metric, s in product(
            MARKS, (("uapi, float32", "3"), ("uapi, long", "4")), ("ssim", "psnr"), SCENARIOS):
        three = scores(runs["uapi"][mark], s, metric)
        distance = runs[name][mark][seed]["scenarios"][s][metric] - statistics.mean(three)
        assert s != "GN0" or abs(distance) < statistics.stdev(three), "within one standard deviation"
        compared += 1
        if abs(distance) > 2 * statistics.stdev(three):
            far.add((mark, seed, metric, s, distance > 0))
    assert far == {(mark, "4", "psnr", s, True) for mark, s in (
        ("1000", "IP5"), ("1000", "IP10"), ("1500", "GN10"), ("1500", "GN20"))}
    assert f"{len(far)} of their {compared} comparisons, where chance gives {BY_CHANCE * compared:.0f}" in text
    pearson = [uapi[seed]["pcc_image"] for seed in "012"]
    assert f"{min(pearson):.2f} to {max(pearson):.2f}" in section(README, "Results")


def test_the_maps_know_what_is_said_of_them():
    """The last score of every map, and how Pearson per image in the foreground grows."""
    runs, text = stored("table1_128.json")["runs"], section(RESULTS, MAIN)
    kinds = [(region, f"pearson_{what}") for region in ("whole", "foreground") for what in ("image", "pixel")]
    kinds += [("whole", "spearman_pixel"), ("foreground", "spearman_pixel")]
    last = {(name, seed): (mark, run) for name, marks in runs.items() for mark, seeds in marks.items()
            if mark in MARKS for seed, run in seeds.items() if "ause" in run}
    assert table(text, "run | updates | seed | over images") == [
        [name, mark, seed, *(f"{run['correlation'][region][kind]:.2f}"
                             for region, kind in kinds), f"{run['ause']:.3f}"]
        for (name, seed), (mark, run) in sorted(last.items(), key=lambda entry: list(runs).index(entry[0][0]))]
    expected, foreground = [], {}
    for name, seed in last:
        known = {mark: runs[name][mark][seed]["correlation"]["foreground"]["pearson_image"]
                 for mark in MARKS if seed in runs[name].get(mark, {})}
        if len(known) > 1:
            expected.append([name, seed, *(f"{known[mark]:.2f}" if mark in known else "-" for mark in MARKS)])
            foreground[name, seed] = list(known.values())
    assert sorted(table(text, "map of | seed")) == sorted(expected)
    assert [seed for (name, seed), values in foreground.items()
            if name.startswith("uapi") and values == sorted(values)] == ["1", "2", "3"]
    assert sum(name.startswith("uapi") for name, _ in foreground) == 5
    fell = foreground["uapi", "0"][-1]
    assert f"seed 0 it falls to {fell:.2f}" in text
    five = [run["scenarios"] for marks in ("uapi", "uapi, float32", "uapi, long")
            for run in runs[marks]["1500"].values()]
    assert all(min(five, key=lambda scored: scored[s]["ssim"]) is five[0] for s in SCENARIOS)
    worst = min("012", key=lambda seed: runs["uapi"]["1500"][seed]["scenarios"]["GN0"]["ssim"])
    assert worst == "0" and foreground["uapi", "0"] == sorted(foreground["uapi", "0"], reverse=True)
    ugac, ours = last["ugac", "0"][1], [run for (name, _), (_, run) in last.items()
                                        if name in ("uapi", "uapi, float32", "uapi, long")]
    whole = [run["pcc_image"] for run in ours]
    assert (f"UAPI with lam 10 has {min(whole):.2f} to {max(whole):.2f} after 1,500 updates, and ugac "
            f"{ugac['pcc_image']:.2f}") in text
    assert f"does better, at {last['uagc, float32', '0'][1]['pcc_image']:.2f}" in text
    pixels = [run["correlation"]["foreground"]["pearson_pixel"] for name in ("uapi", "uapi, float32", "uapi, long")
              for seeds in runs[name].values() for run in seeds.values()]
    assert f"foreground Pearson is {min(pixels):.2f} to {max(pixels):.2f} for every run of UAPI" in text
    assert ugac["ause"] == min(run["ause"] for _, run in last.values()) and f"AUSE, {ugac['ause']:.3f}" in text
    assert max(last.values(), key=lambda entry: entry[1]["correlation"]["whole"]["spearman_pixel"])[1] is ugac
    inside = [run["correlation"]["foreground"] for run in (ugac, *ours)]
    orders = [region["spearman_pixel"] for region in inside]
    assert (f"Spearman, {orders[0]:.2f}, is like UAPI's, which has {min(orders[1:]):.2f} to "
            f"{max(orders[1:]):.2f}, and its Pearson over pixels is lower") in text
    assert inside[0]["pearson_pixel"] < min(region["pearson_pixel"] for region in inside[1:])


def test_the_compared_methods_carry_what_is_said_of_them():
    """Single runs beside the scatter of UAPI and PI over seeds."""
    runs, text = stored("table1_128.json")["runs"], section(RESULTS, MAIN)
    copy, counted, without_noise = stored("table1_128.json")["copy_input"]["GN0"], [], {}
    for mark in MARKS:
        names = [name for name in runs if name not in ("uapi", "pi") and "0" in runs[name].get(mark, {})]
        stood_out = []
        for name, other, metric, scenario in product(names, ("uapi", "pi"), ("ssim", "psnr"), SCENARIOS):
            seeds = [run["scenarios"][scenario][metric] for run in runs[other][mark].values()]
            gap = runs[name][mark]["0"]["scenarios"][scenario][metric] - statistics.mean(seeds)
            if abs(gap) > 2 * statistics.stdev(seeds):
                stood_out.append((name, other, metric, scenario, "above" if gap > 0 else "below"))
        n = 28 * len(names)
        counted.append([mark, str(len(names)), str(n), str(len(stood_out)), f"{BY_CHANCE * n:.0f}"])
        without_noise[mark] = {(*row[:3], row[4]) for row in stood_out if row[3] == "GN0"}
        if mark == "500":
            three = sum(row[0] in ("cyclegan", "ugac", "gcgan, float32") for row in stood_out)
            assert f"{three} of the {len(stood_out)} are of cyclegan, ugac, and gcgan in float32" in text
    assert {row[0] for row in stood_out if row[1:] == ("uapi", "psnr", "GN20", "above")} == {"cyclegan", "ugac"}
    assert table(text, "updates | runs | comparisons") == counted and round(100 * BY_CHANCE) == 23
    assert without_noise["500"] == {
        (name, other, metric, "below") for other in ("uapi", "pi")
        for name, metric in (("cyclegan", "ssim"), ("gcgan, float32", "psnr"), ("ugac", "ssim"), ("ugac", "psnr"))}
    assert without_noise["1000"] == {
        (name, "pi", "ssim", "below") for name in ("cyclegan", "gcgan, float32", "uagc, float32", "cut")} | {
        ("released", other, metric, "below") for other in ("uapi", "pi") for metric in ("ssim", "psnr")}
    assert without_noise["1500"] == {("released", other, "ssim", "below") for other in ("uapi", "pi")}
    released = [runs["released"][mark]["0"]["scenarios"]["GN0"]["ssim"] for mark in MARKS]
    gaps = [statistics.mean(run["scenarios"]["GN0"]["ssim"] for run in runs[other]["1500"].values()) - released[2]
            for other in ("pi", "uapi")]
    assert "in SSIM, {:.1f} and {:.1f} points below PI and UAPI".format(*gaps) in text
    rises = [runs[name]["1500"]["0"]["scenarios"]["GN0"]["ssim"]
             - runs[name]["1000"]["0"]["scenarios"]["GN0"]["ssim"] for name in names]
    assert f"the six rose by {min(rises):.1f} to {max(rises):.1f} points" in text and len(rises) == 6
    low = [(name, s) for name, other, metric, s, where in stood_out
           if (other, metric, where) == ("uapi", "ssim", "below") and name in ("ugac", "cut") and s[:2] == "IP"]
    gaps = [statistics.mean(run["scenarios"][s]["ssim"] for run in runs["uapi"]["1500"].values())
            - runs[name]["1500"]["0"]["scenarios"][s]["ssim"] for name, s in low]
    assert f"below UAPI, by {min(gaps):.1f} to {max(gaps):.1f} points" in text and len(low) == 6
    names.remove("released")
    late = [runs[name]["1500"]["0"]["scenarios"]["GN0"]["ssim"] for name in names]
    gaps = [statistics.mean(run["scenarios"]["GN0"]["ssim"] for run in runs[other]["1500"].values()) - ssim
            for other in ("uapi", "pi") for ssim in late]
    assert f"{min(gaps):.1f} to {max(gaps):.1f} SSIM points below the means" in text
    pi = runs["pi"]["1500"]["0"]["scenarios"]
    above = [name for name in names if all(runs[name]["1500"]["0"]["scenarios"][s][m] > pi[s][m]
                                           for s in SCENARIOS for m in ("ssim", "psnr"))]
    assert above == ["cyclegan", "ugac", "gcgan, float32"]
    uagc, gcgan, uapi = (runs[name]["1500"]["0"]["scenarios"]
                         for name in ("uagc, float32", "gcgan, float32", "uapi"))
    assert [(s, m) for s in SCENARIOS for m in ("ssim", "psnr") if uagc[s][m] <= uapi[s][m]] == [("GN0", "ssim")]
    gaps = [uagc[s]["ssim"] - gcgan[s]["ssim"] for s in ("GN20", "IP2", "IP5", "IP10")]
    assert f"SSIM is {min(gaps):.1f} to {max(gaps):.1f} points above gcgan's" in text
    gaps = [runs["cyclegan"]["1500"]["0"]["scenarios"][s]["ssim"] - runs["ugac"]["1500"]["0"]["scenarios"][s]["ssim"]
            for s in ("GN20", "IP2", "IP5", "IP10")]
    assert f"is {min(gaps):.1f} to {max(gaps):.1f} points below it there" in text
    early = {(name, seed): run["scenarios"]["GN0"]["ssim"] > copy["ssim"] for name in runs
             if ", lam" not in name for seed, run in runs[name]["500"].items()}
    assert not any(better for (_, seed), better in early.items() if seed == "0")
    assert all(better for (_, seed), better in early.items() if seed != "0")


def test_the_weights_lam_carry_what_is_said_of_them():
    """One seed at 500 updates, beside the scatter over three."""
    runs, text = stored("table1_128.json")["runs"], section(RESULTS, MAIN)
    expected = [[lam] for lam in ("1", "10", "100")]
    for name in ("uapi", "pi"):
        three = [runs[name]["500"][seed]["scenarios"]["GN0"] for seed in "012"]
        weights = [runs[f"{name}, lam 1, float32"], runs[name], runs[f"{name}, lam 100, float32"]]
        weights = [weight["500"]["1"]["scenarios"]["GN0"] for weight in weights]
        expected = [[*row, cell(weight)] for row, weight in zip(expected, weights)]
        for metric in ("ssim", "psnr"):
            values = [weight[metric] for weight in weights]
            assert max(values) - min(values) < 2 * statistics.stdev(row[metric] for row in three)
    assert table(text, "lam | UAPI") == expected
    ause = {run["ause"]: name for name, marks in runs.items() for seeds in marks.values()
            for run in seeds.values() if "ause" in run}
    assert ause[max(ause)] == "uapi, lam 100, float32" and f"AUSE, {max(ause):.3f}" in text


def test_the_single_runs_are_those_stored():
    """Without noise; the scatter over patients is that of the last score."""
    expected = []
    for name, marks in stored("table1_128.json")["runs"].items():
        for seed in sorted({seed for seeds in marks.values() for seed in seeds}):
            scores = {mark: marks[mark][seed]["scenarios"]["GN0"] for mark in MARKS
                      if seed in marks.get(mark, {})}
            last = list(scores.values())[-1]
            scatter = "/".join(f"{last[f'{metric}_patients_sd']:.2f}" for metric in ("ssim", "psnr"))
            row = [cell(scores[mark]) if mark in scores else "-" for mark in MARKS]
            expected += [[name, seed, *row, scatter]] if ", lam" not in name else []
    assert table(section(RESULTS, MAIN), "run | seed | 500") == expected


def test_the_longer_runs_are_those_stored():
    """From 1,500 updates on, with what their maps know."""
    expected, runs, text = [], stored("table1_128.json")["runs"], section(RESULTS, MAIN)
    for name, marks in runs.items():
        for seed in sorted({seed for mark, seeds in marks.items() if int(mark) > 1500 for seed in seeds}):
            for mark, run in [(mark, seeds[seed]) for mark, seeds in marks.items()
                              if int(mark) >= 1500 and seed in seeds]:
                known = [f"{run['correlation'][region][f'pearson_{what}']:.2f}"
                         for what in ("image", "pixel") for region in ("whole", "foreground")]
                scores = [cell(run["scenarios"][scenario]) for scenario in ("GN0", "GN20")]
                expected.append([name, seed, mark, *scores, *known, f"{run['ause']:.3f}"])
    assert table(text, "run | seed | updates") == expected

    def scores(name, mark, seed, metric, scenario="GN0"):
        return runs[name][mark][seed]["scenarios"][scenario][metric]
    ssim = [scores("uapi, long", mark, "4", "ssim") for mark in ("1500", "2000", "3000", "4000")]
    rises = [late - early for early, late in zip(ssim, ssim[1:])]
    assert "in SSIM by {:.1f}, {:.1f} and {:.1f} points. So it still rises".format(*rises) in text
    psnr = [scores("uapi, long", mark, "4", "psnr") for mark in ("500", "1000", "1500", "2000", "3000", "4000")]
    falls = [early - late for early, late in zip(psnr, psnr[1:]) if late < early]
    assert falls == [psnr[2] - psnr[3]] and f"fell once, by {falls[0]:.1f} dB until 2,000" in text
    lacks = [theirs[0] - scores("uapi, long", "4000", "4", m) for theirs, m in zip(PAPER["uapi"], ("ssim", "psnr"))]
    assert "lacks {:.1f} points and {:.1f} dB of the paper's 79.99/22.62".format(*lacks) in text
    noisy = [scores("uapi, long", mark, "4", "psnr", "GN20") for mark in ("2000", "3000", "4000")]
    assert noisy == sorted(noisy, reverse=True) and f"by {noisy[0] - noisy[-1]:.1f} dB in all" in text
    falls = [[scores("uapi", "1500", "1", m, s) - scores("uapi", "2000", "1", m, s) for s in SCENARIOS]
             for m in ("ssim", "psnr")]
    assert "by at most {:.1f} points and {:.1f} dB".format(*map(max, falls)) in text and min(map(min, falls)) > 0
    gains = [scores("uapi, float32", "2500", "3", m) - scores("uapi, float32", "1500", "3", m)
             for m in ("ssim", "psnr")]
    assert "2,500 seed 3 rose without noise, by {:.1f} SSIM points and {:.2f} dB".format(*gains) in text
    longest = runs["uapi, long"]["4000"]["4"]["scenarios"]["GN0"]
    assert f"seed 4 reached {cell(longest)} on GN0 after 4,000 updates" in section(README, "Results")
    known = {(name, mark): seeds[seed]["correlation"]["foreground"]["pearson_image"] for name, seed in
             (("uapi", "1"), ("uapi, float32", "3"), ("uapi, long", "4"))
             for mark, seeds in runs[name].items() if seed in seeds}
    ends = [known["uapi", "2000"], known["uapi, float32", "2500"], known["uapi, long", "4000"]]
    assert f"over images ends at {min(ends):.2f} to {max(ends):.2f}" in text
    fourth = {mark: value for (name, mark), value in known.items() if name == "uapi, long"}
    assert [mark for mark, value in fourth.items() if value < 0] == ["1000", "1500"]
    assert max(fourth, key=fourth.get) == "3000"


def test_the_starts_are_those_stored():
    """Without noise; the first two rows are the runs of the main table."""
    stored_runs, text = stored("table1_128.json"), section(RESULTS, MAIN)
    uapi, expected = stored_runs["runs"]["uapi"], []
    starts = {"none": uapi["500"], "none, 1,000 updates": uapi["1000"], **stored_runs["starts"]}
    for name, runs in starts.items():
        scores = [runs[seed]["scenarios"]["GN0"] for seed in "012"]
        means = (f"{statistics.mean(score[m] for score in scores):.2f}" for m in ("ssim", "psnr"))
        expected.append([name, *map(cell, scores), "/".join(means)])
    assert table(text, "start | seed 0") == expected
    gains = {name: {m: [runs[seed]["scenarios"]["GN0"][m] - uapi["500"][seed]["scenarios"]["GN0"][m] for seed in "012"]
                    for m in ("ssim", "psnr")} for name, runs in stored_runs["starts"].items()}
    above = [name for name, gain in gains.items() if min(gain["ssim"] + gain["psnr"]) > 0]
    assert above == ["rates x3 first"]
    fast = [gains["rates x3 first"][m] for m in ("ssim", "psnr")]
    assert "by {:.1f} to {:.1f} SSIM points and {:.1f} to {:.1f} dB".format(
        *(bound(gain) for gain in fast for bound in (min, max))) in text
    for m in ("ssim", "psnr"):
        later = statistics.mean(uapi["1000"][seed]["scenarios"]["GN0"][m] for seed in "012")
        assert all(statistics.mean(runs[seed]["scenarios"]["GN0"][m] for seed in "012") < later
                   for runs in stored_runs["starts"].values())


def test_the_speed_is_the_stored_one():
    speed = stored("speed.json")
    values = [value for _, value in table(section(RESULTS, "Speed"), "quantity")]
    assert values == [f"{speed['seconds per update']:.1f}", f"{speed['peak MB']:.0f}",
                      f"{speed['GFLOP']:.0f}"]
