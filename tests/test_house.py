"""The house: what the top level holds, who imports whom, how long the files are, how the pages are
kept."""
import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Who stands on whom: a file imports only from files before it, but for drawings inside main().
ORDER = ("run", "phantoms", "nets", "uncertainty", "data", "patch_op", "losses", "baselines",
         "train", "translate", "evaluate")
AT_MOST = {"patch_op.py": 135, "losses.py": 176, "nets.py": 205, "phantoms.py": 115, "data.py": 395,
           "train.py": 320, "baselines.py": 310, "uncertainty.py": 175, "translate.py": 150,
           "evaluate.py": 420, "run.py": 525, "prepare.py": 620, "README.md": 245}
TOP_LEVEL = {*AT_MOST, "LICENSE", "requirements.txt", ".gitignore"}


def imports(path):
    """{module: True where it is imported at the top of the file} of the project's own modules."""
    found, tree = {}, ast.parse(path.read_text())
    for node in ast.walk(tree):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module]
        for name in names:
            if (ROOT / f"{name}.py").exists():
                found[name] = found.get(name, False) or node in tree.body
    return found


def test_imports_run_one_way_and_form_no_circle():
    for k, name in enumerate(ORDER):
        for other, at_the_top in imports(ROOT / f"{name}.py").items():
            if at_the_top:
                assert other in ORDER[:k], f"{name}.py imports {other}, which stands above it"
    assert not {"patch_op", "losses"} & imports(ROOT / "data.py").keys()
    others = imports(ROOT / "prepare.py")
    assert {name for name, at_the_top in others.items() if at_the_top} <= set(ORDER[:5])
    assert not any("prepare" in imports(ROOT / f"{name}.py") for name in ORDER)


def test_files_that_are_the_paper_import_machinery_only_to_draw():
    for name in ("patch_op", "losses", "nets", "uncertainty"):
        at_the_top = {other for other, top in imports(ROOT / f"{name}.py").items() if top}
        assert at_the_top <= {"patch_op", "run"}, f"{name}.py imports {at_the_top}"


def test_the_top_level_holds_nothing_else():
    if not (ROOT / ".git").exists():
        pytest.skip("not a clone: git knows what belongs to the project")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    top = {line for line in listed.splitlines() if "/" not in line}
    assert top == TOP_LEVEL, top ^ TOP_LEVEL
    assert {line.split("/")[0] for line in listed.splitlines() if "/" in line} <= {
        ".ci", "results", "tests"}


def test_no_file_is_longer_than_agreed():
    found = {name: len((ROOT / name).read_text().splitlines()) for name in AT_MOST}
    assert not {name: n for name, n in found.items() if n > AT_MOST[name]}


def test_lines_have_at_most_100_columns():
    for path in [*ROOT.glob("*.py"), *ROOT.glob("results/*.py")]:
        long = [k for k, line in enumerate(path.read_text().splitlines(), 1) if len(line) > 100]
        assert not long, f"{path.name}: lines {long}"


def test_every_file_has_its_tests_and_no_test_imports_another():
    for name in ORDER:
        assert (ROOT / f"tests/test_{name}.py").exists(), f"{name}.py has no tests of its own"
    for path in ROOT.glob("tests/*.py"):
        if path.name != "test_mutants.py":  # which runs the others' tests, by their names
            assert not re.search(r"^\s*(from|import) test_", path.read_text(), re.M), path.name
