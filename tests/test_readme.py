"""The README cannot lie: its tables resolve, its commands run, its numbers stand in the files that were measured."""
import ast
import importlib
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import data
from test_train import tiny_slices

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
# What is added to a command on ixi_slices/ so that it ends in seconds; the README says so.
TINY = "--size 64 --width 1 --critic-width 1 --batch 2 --critic-steps 1 --updates 1"

ARCHIVES = "From the archives to slices"


def section(title):
    return README.split(f"## {title}\n")[1].split("\n## ")[0]


def rows(text):
    """The cells of every table row in a section, headers and rules left out."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("|")]
    rules = [k for k, cells in enumerate(lines) if set("".join(cells)) <= set("-: ")]
    return [cells for k, cells in enumerate(lines) if k not in rules and k + 1 not in rules]


def defined_tests():
    names = set()
    for path in (ROOT / "tests").glob("test_*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"):
                names |= {node.name, f"{path.stem}.{node.name}"}
    return names


def commands(text=README):
    """Every line of every ```sh block, in order."""
    return [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]


def test_every_equation_leads_to_code_that_names_it_and_to_a_test():
    table = rows(section("Equation, code, test"))
    assert len(table) >= 15
    for paper, _, code, test in table:
        module, name = code.strip("`").split(".")
        document = getattr(importlib.import_module(module), name).__doc__
        kind, number = paper.split()
        named = (f"({number})" in document or re.search(rf"Eq\. [\d, ]*{number}\b", document)) if kind == "Eq." else number in document
        assert named, f"{code} does not name {paper}"
        assert test.strip("`") in defined_tests(), test


def test_equations_2_3_4_5_6_and_9_are_all_there():
    assert {row[0] for row in rows(section("Equation, code, test"))} >= {f"Eq. {n}" for n in (2, 3, 4, 5, 6, 9)}


def test_every_test_that_the_readme_names_exists():
    named = set(re.findall(r"`(test_[a-z0-9_]+(?:\.test_[a-z0-9_]+)?)`", README))
    assert len(named) > 20 and named <= defined_tests(), named - defined_tests()


def test_the_algorithm_stands_in_readme_and_train_in_the_same_order():
    loop = (ROOT / "train.py").read_text().split("def train(")[1].split("Nothing below this line")[0]
    labels = [f"({k})" for k in range(1, 11)]
    assert re.findall(r"^ +(\(\d+\)) ", section("The algorithm"), re.MULTILINE) == labels
    assert re.findall(r"# (\(\d+\)) ", loop) == labels


def test_the_loop_fits_on_one_screen():
    loop = (ROOT / "train.py").read_text().split("    while step <")[1].split("Nothing below this line")[0]
    assert len(loop.splitlines()) <= 42


def test_every_flag_that_the_readme_uses_exists():
    known = set()
    for program in ("train", "evaluate", "data", "patch_op", "nets", "prepare", "tests/benchmark"):
        known |= set(re.findall(r'"(--[a-z0-9_-]+)"', (ROOT / f"{program}.py").read_text()))
    used = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]+", README))
    others = {"--dist", "--standalone", "--nproc_per_node", "--nnodes", "--node_rank", "--rdzv_endpoint"}  # pytest's, torchrun's
    assert used <= known | others, used - known


def tiny(line):
    return re.sub(r"(train\.py --data \w+_slices/[^;&|\n]*?)(?= *;| *$)", rf"\1 {TINY}", line)


def shell(line, cwd):
    """Runs one README line in a shell as it stands; `python` is this interpreter, the programs are this checkout's."""
    line = re.sub(r"\bpython ([\w/]+\.py)", rf"{shlex.quote(sys.executable)} {shlex.quote(str(ROOT))}/\1", line)
    env = os.environ | {"OMP_NUM_THREADS": "1"}  # the other core has other tests to run
    done = subprocess.run(["bash", "-ec", line], cwd=cwd, capture_output=True, text=True, env=env)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture
def run(monkeypatch):
    """Runs one README line, made tiny: a plain `python FILE ...` within this process, which spares the imports."""
    def run(line, cwd):
        monkeypatch.chdir(cwd)
        python, *words = tiny(line).split()
        if python != "python" or ";" in line:
            return shell(tiny(line), cwd)
        monkeypatch.setattr(sys, "argv", words)
        runpy.run_path(str(ROOT / words[0]), run_name="__main__")
    return run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder as the README's reader has it: phantoms stand in for ixi_slices/, and one picture."""
    from PIL import Image

    root = tmp_path_factory.mktemp("reader")
    slices = tiny_slices()
    for which, images in zip(data.SETS, slices):
        for name, image in zip(slices.names[which], images):
            folder, end = which.split("_") if "_" in which else (which, "")
            (root / "ixi_slices" / folder).mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / "ixi_slices" / folder / f"{name}{'_' + end if end else ''}.png")
    Image.fromarray(slices.evaluation_input[0]).save(root / "slice.png")
    return root


def test_the_first_command_trains_on_phantoms_and_beats_copying(place):
    install, *steps = [part.strip() for part in commands()[0].split("&&")][2:]
    assert install == "pip install -r requirements.txt"
    printed = [shell(step, place) for step in steps]
    metrics = json.loads((place / "runs/smoke/evaluation/metrics.json").read_text())
    ours, copied = metrics["runs"]["smoke"]["scenarios"]["GN0"], metrics["copy_input"]["GN0"]
    assert ours["psnr"] > copied["psnr"] + 2 and ours["ssim"] > copied["ssim"] + 20, "visibly learned"
    assert metrics["runs"]["smoke"]["pcc_pixel"] > 0.2
    assert "update 1/" in printed[0] and "| smoke |" in printed[1]


def test_every_other_command_runs(place, run):
    planting = "python tests/mutants.py plant", "git checkout"  # would change the files under test
    elsewhere = README.replace(section(ARCHIVES), "")
    rest = [line for line in commands(elsewhere)[1:] if "pytest" not in line and not line.startswith(planting)]
    assert len(rest) >= 12
    for line in rest:
        run(line, place)


def test_archives_become_slices_that_train_and_are_evaluated(tmp_path, run):
    test_prepare = pytest.importorskip("test_prepare", reason="nibabel, scipy and pydicom are not installed")
    people = [f"IXI{k:03d}-Guys-0001" for k in range(3)]
    test_prepare.write_ixi(tmp_path, people)
    for contrast in ("t1", "t2"):
        (tmp_path / contrast).rename(tmp_path / f"IXI-{contrast.upper()}")
    for k in range(3):
        test_prepare.write_knee(tmp_path / ("singlecoil_val" if k == 0 else "singlecoil_train") / f"file{k}.h5")
        for z in range(8):
            test_prepare.write_ct(tmp_path / "CQ500" / f"CQ500CT{k} CQ500CT{k}" / "Unknown Study" / "CT Plain" / f"{z:06d}.dcm",
                                  test_prepare.ct_head(10. * z), (-126, -126, 10. * z), z)
    lines = commands(section(ARCHIVES))
    assert [line.split()[1] for line in lines] == ["prepare.py"] * 3 + ["train.py", "evaluate.py"] * 2
    as_above = [line for line in commands(section("Start here")) if line.endswith(("--lam 10", "--out evaluation"))]
    assert [line.split()[1] for line in as_above] == ["train.py", "evaluate.py"]
    for line in lines + as_above:
        run(line, tmp_path)
    assert (tmp_path / "ixi_slices/preview.png").exists() and (tmp_path / "evaluation/metrics.json").exists()
    assert (tmp_path / "evaluation_knee/table1.md").exists()
    assert [p.name for p in (tmp_path / "evaluation_ct").iterdir()] == ["fig5_translations.png"]


def test_the_mutants_are_counted_right():
    assert f"holds {len(importlib.import_module('mutants').MUTANTS)} mistakes" in README


def test_ci_runs_the_readmes_test_command_and_nothing_else():
    line = next(line for line in README.splitlines() if re.match("python3 -m venv .*pytest", line))
    assert line.endswith("&& python -m pytest -q -n 2 --dist loadfile tests") and "requirements.txt" in line
    assert "grep -m 1 '^python3 -m venv .*pytest' README.md" in (ROOT / ".ci" / "run").read_text()


def test_every_result_is_the_stored_number_of_its_command():
    """A results row names a json in results/; each of its SSIM/PSNR and Pearson cells must be that file's number, rounded."""
    table = [row for row in rows(section("Results")) if row[0].startswith("`results/")]
    assert len(table) >= 4
    for source, name, *scores, image, pixel in table:
        metrics = json.loads((ROOT / source.strip("`")).read_text())
        row = metrics["copy_input"] if name == "copy of the input" else metrics["runs"][name]["scenarios"]
        for scenario, cell in zip(("GN0", "GN5", "GN10", "GN20", "IP2", "IP5", "IP10"), scores, strict=True):
            assert cell == f"{row[scenario]['ssim']:.2f}/{row[scenario]['psnr']:.2f}", (source, name, scenario)
        for key, cell in (("pcc_image", image), ("pcc_pixel", pixel)):
            value = None if name == "copy of the input" else metrics["runs"][name][key]
            assert cell == ("-" if value is None else f"{value:.2f}"), (source, name, key)


def test_what_is_said_of_the_maps_is_stored_too():
    runs = json.loads((ROOT / "results/methods_ixi64.json").read_text())["runs"]
    table = [row for row in rows(section("Results")) if row[0] in runs]
    assert [row[0] for row in table] == [name for name, run in runs.items() if run["uncertainty"]]
    for name, *correlations, ause, c, before, after in table:
        found = runs[name]["uncertainty"]
        whole, inside = found["correlation"]["whole"], found["correlation"]["foreground"]
        keys = ("pearson_image", "spearman_image", "pearson_pixel", "spearman_pixel")
        assert correlations == [f"{whole[key]:.2f} ({inside[key]:.2f})" for key in keys]
        again = found["rescaled"]
        assert [ause, c] == [f"{found['sparsification']['ause']:.3f}", f"{again['c']:.2f}"]
        assert [before, after] == [f"{again[key]['ece']:.3f}" for key in ("before", "after")]


def test_what_is_said_of_the_phantoms_noise_is_stored_too():
    noise = json.loads((ROOT / "results/phantom_smoke.json").read_text())["runs"]["smoke"]["uncertainty"]["noise"]
    said = [f"{noise[where][key]:.2f}" for where in ("whole", "foreground") for key in ("pearson_image", "pearson_pixel")]
    assert "at {} per image and {} per pixel (foreground {} and {})".format(*said) in " ".join(section("Results").split())
    assert f"{noise['foreground']['mean_ratio']:.1f} times as large in the foreground" in section("Results")


def test_the_readmes_picture_is_there_and_small():
    for name in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert 10_000 < (ROOT / name).stat().st_size < 500_000
