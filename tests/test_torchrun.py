"""torchrun: several processes with a part of the batch each train what one process with the whole batch trains."""
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch as replaced

import pytest
import torch

import data
import evaluate
import train
from test_faults import FAST, go
from test_train import everything, tiny_slices, untimed_log

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch knows no other processes")
ROOT = Path(train.__file__).resolve().parent
WORDS = [*FAST, "--batch", 4, "--lr-g", 1e-4, "--lr-c", 1e-4, "--device", "cpu"]

DYING = """
import os, sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import torch, train, test_torchrun
losses, original = [], train.generator_loss

def dies_in_update_6(*words):
    losses.append(None)
    if len(losses) == 6 and os.environ["RANK"] == "1":
        raise torch.OutOfMemoryError("CUDA out of memory")
    return original(*words)

with test_torchrun.double_precision(generator_loss=dies_in_update_6):
    train.main()
"""


def double_precision(**stand_ins):
    """Inside, everything is trained in float64. Adam divides each gradient by its own size, so in float32 the rounding of a
    gradient that is 0 on paper, as of every bias before a norm, becomes a step as large as any other."""
    draw, build = train.draw, train.build

    def build_double(*words):
        torch.set_default_dtype(torch.float64)
        try:
            return build(*words)
        finally:
            torch.set_default_dtype(torch.float32)
    return replaced.multiple(train, build=build_double, draw=lambda *words: draw(*words).double(), draw_samples=lambda *_: None,
                             draw_curves=lambda *_: None, **stand_ins)


def torchrun(program, *words):
    """Two processes on this machine, as a user starts them; standalone: it asks for no port and no other machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", program, *words]
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=180, cwd=ROOT,
                          env=os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""})


def farthest(one, other):
    """The largest difference between any two weights of two runs."""
    states = [everything(run)["networks"] for run in (one, other)]
    return max((w - states[1][name][key]).abs().max().item() for name, network in states[0].items() for key, w in network.items())


@pytest.fixture(scope="module")
def h5(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "slices.h5"
    data.write_h5(path, tiny_slices())
    return path


def test_two_processes_write_and_print_what_one_does(tmp_path, h5):
    ran = torchrun("train.py", "--data", h5, *WORDS, "--updates", 2, "--out", tmp_path / "two")
    assert ran.returncode == 0, ran.stderr
    go("--data", h5, *WORDS, "--updates", 2, "--out", tmp_path / "one")
    assert [line.split()[1] for line in ran.stdout.splitlines() if line.startswith("update")] == ["1/2", "2/2"]
    assert ran.stdout.count("finished") == 1
    assert [row["step"] for row in untimed_log(tmp_path / "two")] == [1, 2]
    one, two = ({path.name for path in (tmp_path / name).iterdir()} for name in ("one", "two"))
    assert two == one | {"samples", "curves.png"}
    assert farthest(tmp_path / "one", tmp_path / "two") <= 2 * 2 * 1e-4 * 1.01  # float32: no more than Adam's steps themselves
    judged = torchrun("evaluate.py", tmp_path / "two", "--data", h5, "--out", tmp_path / "shared", "--device", "cpu")
    assert judged.returncode == 0 and judged.stdout.count("two: Pearson/Spearman") == 1, judged.stderr
    go(tmp_path / "two", "--data", h5, "--out", tmp_path / "alone", "--device", "cpu", program=evaluate)
    for name in ("metrics.json", "table1.md", "table1.csv"):
        assert (tmp_path / "shared" / name).read_text() == (tmp_path / "alone" / name).read_text()


def test_two_processes_train_as_one(tmp_path, h5):
    """Five updates of two processes are those of one, to 1e-5 and far below. In the sixth the second process runs out of memory:
    all end, the reason stands there, the first's checkpoint is whole, and one process goes on from it."""
    one, two = tmp_path / "one", tmp_path / "two"
    (tmp_path / "dying.py").write_text(DYING.format(root=str(ROOT)))
    ran = torchrun(tmp_path / "dying.py", "--data", h5, *WORDS, "--updates", 8, "--out", two)
    reason = f"error: out of memory: choose a smaller --batch, --size or --width; {two}/checkpoint.pt holds the last good state"
    assert ran.returncode != 0 and reason in ran.stderr, ran.stderr
    assert everything(two)["step"] == 5
    with double_precision():
        go("--data", h5, *WORDS, "--updates", 5, "--out", one)
        assert everything(one)["networks"]["G"]["image_out.weight"].dtype == torch.float64
        assert farthest(one, two) < 1e-9
        for run in (one, two):
            go("--resume", run, "--updates", 8)
    assert farthest(one, two) < 1e-9 and [row["step"] for row in untimed_log(two)] == [*range(1, 9)]


def test_what_torchrun_cannot_do_ends_in_one_sentence(monkeypatch, capsys, tmp_path, h5):
    monkeypatch.setattr(train, "join_processes", lambda _: None)
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    for words in ((), ("--method", "released", "--batch", 3)):
        with pytest.raises(SystemExit) as stop:
            go("--data", h5, *WORDS, *words, "--out", tmp_path / "run")
        assert stop.value.code == 2 and re.fullmatch("error: torchrun wants .*\n", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()
