"""The tests are tested: every mistake of mutants.py must make at least one of the project's own tests fail.

    python -m pytest tests/test_mutants.py -s      prints the kill matrix, audits by mutants

The audits are the test functions of the other files themselves, all that need no fixture. A mutant that survives means
that an audit is missing: write it.
"""
import importlib
import inspect
import io
from contextlib import contextmanager, redirect_stderr, redirect_stdout

import mutants

# In the order of their imports: whoever imports a planted function must be loaded after it.
MODULES = [importlib.import_module(name) for name in ("patch_op", "losses", "nets", "data", "baselines", "train", "evaluate")]
AUDITORS = {f"{name}.py": importlib.import_module(f"test_{name}") for name in ("patch_op", "losses", "nets", "baselines", "train", "evaluate")}


def audits_of(file):
    """name -> function: the tests of that file's own test file that need no fixture."""
    return {name: test for name, test in vars(AUDITORS[file]).items()
            if name.startswith("test_") and callable(test) and not inspect.signature(test).parameters and not hasattr(test, "pytestmark")}


def load(mutant=None):
    """Executes every module's source again in its own namespace, with the mutant planted in its file."""
    for module in MODULES:
        with open(module.__file__) as file:
            source = file.read()
        if mutant and module.__name__ + ".py" == mutant.file:
            source = mutants.plant(mutant, source)
        exec(compile(source, module.__file__, "exec"), module.__dict__)
    for auditor in AUDITORS.values():
        for name, remembered in vars(auditor).items():
            if name != "tiny_slices":  # phantoms, which no mutant touches
                getattr(remembered, "cache_clear", bool)()  # what else a test file keeps belongs to the code before


@contextmanager
def planted(mutant):
    load(mutant)
    try:
        yield
    finally:
        load()


def fails(audit):
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            audit()
    except (Exception, SystemExit):  # a mutant may break anything; whatever the audit raises is its alarm
        return True
    return False


def kill_matrix(found):
    """mutants down, audits across: which audit notices which mistake."""
    lines = []
    for file, auditor in AUDITORS.items():
        names = list(audits_of(file))
        lines += [f"\n{file}", *(f"  {chr(65 + k) if k < 26 else chr(71 + k)}  {name}" for k, name in enumerate(names))]
        header = "".join(chr(65 + k) if k < 26 else chr(71 + k) for k in range(len(names)))
        lines.append(f"  {'mutant':<42}{header}")
        for mutant in mutants.MUTANTS:
            if mutant.file == file:
                lines.append(f"  {mutant.name:<42}" + "".join("x" if name in found[mutant.name] else "." for name in names))
    return "\n".join(lines)


def alarms(mutant, everything):
    """Names of the audits that notice the mutant: of all that do, or, which is quicker, of the first."""
    found = []
    with planted(mutant):
        for name, audit in audits_of(mutant.file).items():
            if fails(audit):
                found.append(name)
                if not everything:
                    break
    return found


def test_every_mutant_is_caught_and_the_unchanged_code_by_none(request):
    seen = request.config.getoption("capture") == "no"  # with -s somebody wants the whole matrix
    for file in AUDITORS:
        false = [name for name, audit in audits_of(file).items() if fails(audit)]
        assert not false, f"{file}: {false} fail without any mutant"
    found = {mutant.name: alarms(mutant, seen) for mutant in mutants.MUTANTS}
    print(kill_matrix(found))
    print(f"\n{sum(map(bool, found.values()))} of {len(found)} mutants caught")
    survivors = [name for name, audits in found.items() if not audits]
    assert not survivors, f"no audit notices {survivors}"
    assert len(found) >= 40


def test_a_mutant_that_changes_nothing_known_is_refused():
    try:
        mutants.plant(mutants.Mutant("gone", "losses.py", "a line that is not there", "", ""), "x = 1")
    except ValueError as error:
        assert "stands 0 times" in str(error)
    else:
        raise AssertionError("planted nothing without a word")
