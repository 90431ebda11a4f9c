"""The tests are tested: every mistake of mutants.py must make at least one of them fail.

    python -m pytest tests/test_mutants.py -s      prints the kill matrix, audits by mutants

The audits are the test functions of the other files themselves, all that need no fixture. A mutant
that survives means that an audit is missing: write it.
"""
import importlib
import inspect
import io
import json
import random
import time
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path
from unittest import mock

import mutants
from toys import refused

# In the order of their imports: whoever imports a planted function must be loaded after it.
MODULES = {name: importlib.import_module(name) for name in (
    "run", "phantoms", "nets", "uncertainty", "data", "patch_op", "losses", "baselines", "train",
    "translate", "evaluate")}
AUDITORS = {f"{name}.py": [*map(importlib.import_module, mutants.auditors(f"{name}.py"))]
            for name in MODULES}


@cache
def compiled(path, mutant=None):
    source = Path(path).read_text()
    return compile(mutants.plant(mutant, source) if mutant else source, path, "exec")


def load(mutant=None):
    """Executes every module again in its own namespace, with the mutant planted in its file."""
    for name, module in MODULES.items():
        hit = mutant and mutant.file == f"{name}.py"
        exec(compiled(module.__file__, mutant if hit else None), vars(module))
    for auditor in {auditor for auditors in AUDITORS.values() for auditor in auditors}:
        for name, value in list(vars(auditor).items()):
            home = MODULES.get(getattr(value, "__module__", None))
            if home and name in vars(home):  # from home import name
                setattr(auditor, name, getattr(home, name))
            elif hasattr(value, "cache_clear") and name != "tiny_slices":
                value.cache_clear()  # what it remembers belongs to the code before


@contextmanager
def loaded(mutant):
    load(mutant)
    try:
        yield
    finally:
        load()


false_alarms = set()  # audits that fail without any mutant


def fails(audit):
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            audit()
    except (Exception, SystemExit) as error:  # whatever a mutant breaks is the alarm,
        return type(error) is not NameError   # but for a name that the mutant itself gets wrong
    return False


@cache
def audits_of(file):
    """name -> function: the tests of that file that need no fixture and pass on the code as it is,
    the quick ones first."""
    audits = {f"{auditor.__name__}.{name}": test for auditor in AUDITORS[file]
              for name, test in vars(auditor).items()
              if name.startswith("test_") and callable(test) and not hasattr(test, "pytestmark")
              and not inspect.signature(test).parameters}
    seconds = {}
    for name, audit in audits.items():
        load()  # what another audit has cached would make this one look quick
        start = time.perf_counter()
        if not fails(audit):
            seconds[name] = time.perf_counter() - start
    false_alarms.update(audits.keys() - seconds.keys())
    return {name: audits[name] for name in sorted(seconds, key=seconds.get)}


def alarms(mutant, everything):
    """Names of the audits that notice the mutant: of all that do, or, quicker, of the first."""
    noticed, audits = [], audits_of(mutant.file)
    with loaded(mutant):
        for name, audit in audits.items():
            if fails(audit):
                noticed.append(name)
                if not everything:
                    break
    return noticed


def kill_matrix(noticed):
    """Audits by number, then mutants down and those numbers across."""
    lines = []
    for file in AUDITORS:
        names = list(audits_of(file))
        lines += ["", file, *(f"  {k:>2}  {name}" for k, name in enumerate(names))]
        for mutant in mutants.MUTANTS:
            if mutant.file == file:
                hits = (str(names.index(name)) for name in noticed[mutant.name])
                lines.append(f"  {mutant.name:<42}{' '.join(hits) or 'SURVIVES'}")
    return "\n".join(lines)


def test_every_mutant_is_caught_and_the_unchanged_code_by_none(request):
    everything = request.config.getoption("capture") == "no"  # with -s: the whole matrix
    for file in AUDITORS:
        audits_of(file)
    noticed = {mutant.name: alarms(mutant, everything) for mutant in mutants.MUTANTS}
    print(kill_matrix(noticed))
    print(f"\n{sum(map(bool, noticed.values()))} of {len(noticed)} mutants caught")
    assert not false_alarms, f"{sorted(false_alarms)} fail without any mutant"
    survivors = [name for name, audits in noticed.items() if not audits]
    assert not survivors, f"no audit notices {survivors}"
    assert len(noticed) == len(mutants.MUTANTS) >= 230


def test_a_mutant_whose_line_is_gone_is_refused():
    gone = mutants.Mutant("gone", "losses.py", "a line that is not there", "", "")
    try:
        mutants.plant(gone, "x = 1")
    except ValueError as error:
        assert "stands 0 times" in str(error)
    else:
        raise AssertionError("planted nothing without a word")


# ---------------------------------------------------------------- python tests/mutants.py

def exercise(monkeypatch, root):
    """A copy of losses.py to plant in -> its path and a function that runs a command line."""
    path = root / "losses.py"
    path.write_text("# a reader's own line\n" + (mutants.ROOT / "losses.py").read_text())
    monkeypatch.setattr(mutants, "ROOT", root)
    monkeypatch.setattr(mutants, "PLANTED", root / ".planted.json")

    def call(*words):
        with mock.patch("sys.argv", ["mutants.py", *words]):
            mutants.main()
    return path, call


def test_plant_changes_one_line_names_its_test_and_restore_keeps_the_readers_own_edits(
        monkeypatch, tmp_path, capsys):
    path, call = exercise(monkeypatch, tmp_path)
    before = path.read_text()
    call("plant", "eq3_sign_flipped")
    assert path.read_text() == before.replace("return -f(fake).mean()", "return f(fake).mean()")
    said = capsys.readouterr().out
    assert "python -m pytest -q tests/test_losses.py" in said and "eq3_sign_flipped" in said
    call("restore")
    assert path.read_text() == before and "# a reader's own line" in before
    assert [left.name for left in tmp_path.iterdir()] == ["losses.py"]


def test_changes_made_while_hunting_are_kept_beside_the_file(monkeypatch, tmp_path, capsys):
    path, call = exercise(monkeypatch, tmp_path)
    before = path.read_text()
    call("plant", "eq3_sign_flipped")
    path.write_text(path.read_text() + "# an idea\n")
    call("restore")
    assert path.read_text() == before and "losses.py.edited" in capsys.readouterr().out
    assert (tmp_path / "losses.py.edited").read_text().endswith("# an idea\n")


def test_a_random_mutant_keeps_its_name_until_revealed(monkeypatch, tmp_path, capsys):
    _, call = exercise(monkeypatch, tmp_path)
    mutant = next(mutant for mutant in mutants.MUTANTS if mutant.file == "losses.py")
    with mock.patch.object(random, "choice", lambda _: mutant):
        call("plant", "--random")
    said = capsys.readouterr().out
    assert mutant.name not in said and "tests/test_losses.py" in said
    call("reveal")
    said = capsys.readouterr().out
    assert all(words in said for words in (mutant.name, mutant.line, mutant.wrong))
    call("restore")


def test_a_second_plant_and_other_wrong_use_end_in_one_sentence(monkeypatch, tmp_path):
    path, call = exercise(monkeypatch, tmp_path)
    for words in (("reveal",), ("restore",)):
        assert "nothing is planted" in refused(call, *words)
    for words in (("plant",), ("plant", "no_such_mutant"), ("weed",)):
        assert "usage" in refused(call, *words)
    call("plant", "eq3_sign_flipped")
    once = path.read_text()
    assert "planted already" in refused(call, "plant", "eq2_with_p_1")
    assert path.read_text() == once
    assert json.loads(mutants.PLANTED.read_text())["name"] == "eq3_sign_flipped"
    call("restore")
    path.write_text("nothing of the kind\n")
    assert "stands 0 times" in refused(call, "plant", "eq3_sign_flipped")


def test_the_list_shows_every_mutant_and_where_it_was_seen(monkeypatch, tmp_path, capsys):
    _, call = exercise(monkeypatch, tmp_path)
    call()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == [mutant.name for mutant in mutants.MUTANTS]
    assert len(set(line.split()[0] for line in lines)) == len(lines)
    assert sum("released code" in line for line in lines) >= 15
