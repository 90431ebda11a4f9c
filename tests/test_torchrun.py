"""torchrun: several processes with a share of the batch each train what one process with the whole
batch trains."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import train
from toys import FAST, double_precision, everything, go, refused, twins_networks, untimed_log

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(),
                                reason="this torch knows no other processes")
ROOT = Path(train.__file__).resolve().parent
WORDS = [*FAST, "--batch", 4, "--lr-g", 1e-4, "--lr-c", 1e-4, "--device", "cpu"]

PROGRAM = """
import os, sys
sys.path[:0] = [{root!r}, {root!r} + "/tests"]
import torch, run, toys, train
losses, original = [], train.generator_loss

def dies_in_update_6(*words):
    losses.append(None)
    if len(losses) == 6 and os.environ["RANK"] == "1":
        raise torch.OutOfMemoryError("CUDA out of memory")
    return original(*words)

run.join_processes("cpu")
networks = toys.twins_networks()
if run.is_first():
    torch.save(networks, {path!r})
with toys.double_precision(generator_loss=dies_in_update_6, join_processes=lambda device: None):
    train.main()
"""


def torchrun(program, *words):
    """Two processes on this machine, as a user starts them; standalone: it asks for no port and no
    other machine."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
               program, *words]
    quiet = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=180,
                          cwd=ROOT, env=quiet)


@pytest.fixture(scope="module")
def launched(tmp_path_factory, h5):
    """One start of two processes for two tests, since starting takes longer than training: they
    leave the twin loop's networks in networks.pt, and a run that dies in its sixth update in two."""
    root = tmp_path_factory.mktemp("torchrun")
    program = PROGRAM.format(root=str(ROOT), path=str(root / "networks.pt"))
    (root / "program.py").write_text(program)
    ran = torchrun(root / "program.py", *WORDS, "--data", h5, "--updates", 8, "--out", root / "two")
    return root, ran


def farthest(one, other):
    """The largest difference between any two weights of two runs."""
    one, other = (everything(folder)["networks"] for folder in (one, other))
    return max((w - other[name][key]).abs().max().item()
               for name, network in one.items() for key, w in network.items())


def test_two_processes_write_and_print_what_one_does_and_leave_no_thread(tmp_path, h5):
    """A thread of gloo that is alive at the end takes the process down with it now and then."""
    one, two, words = tmp_path / "one", tmp_path / "two", ("--data", h5, "--updates", 1, "--out")
    program = tmp_path / "program.py"
    program.write_text(f"""if True:
        import os, sys
        sys.path.insert(0, {str(ROOT)!r})
        import run, train
        run.start(train.main)
        if os.path.exists("/proc/self/task"):  # Linux
            left = len(os.listdir("/proc/self/task"))
            assert left == 1, f"{{left - 1}} threads outlive the process group"
        """)
    ran = torchrun(program, *WORDS, *words, two)
    assert ran.returncode == 0, ran.stderr
    go(*WORDS, *words, one)
    printed = [line.split()[1] for line in ran.stdout.splitlines() if line.startswith("update")]
    assert printed == ["1/1"] and ran.stdout.count("finished") == 1
    assert [row["step"] for row in untimed_log(two)] == [1]
    left = [{path.name for path in folder.iterdir()} for folder in (one, two)]
    assert left[1] == left[0] | {"samples", "curves.png"}


def test_two_processes_train_as_one(launched, h5):
    """Five updates of two processes are those of one, to 1e-5 and far below. In the sixth the
    second process runs out of memory: all end, the reason stands there, the first's checkpoint is
    whole, and one process goes on from it."""
    root, ran = launched
    one, two = root / "one", root / "two"
    reason = ("error: out of memory: choose a smaller --batch, --size or --width; "
              f"{two}/checkpoint.pt holds the last saved state")
    assert ran.returncode != 0 and reason in ran.stderr, ran.stderr
    assert everything(two)["step"] == 5
    with double_precision():
        go(*WORDS, "--data", h5, "--updates", 5, "--out", one)
        weight = everything(one)["networks"]["G"]["image_out.weight"]
        assert weight.dtype == torch.float64 and farthest(one, two) < 1e-9
        for folder in (one, two):
            go("--resume", folder, "--updates", 7)
    assert farthest(one, two) < 1e-9
    assert [row["step"] for row in untimed_log(two)] == [*range(1, 8)]


def test_two_processes_train_the_compared_methods_networks_as_one_does(launched):
    """Sec. 4.2: the twin loop shares x and y of both updates, averages omega's gradients before
    omega moves and theta's before theta does, and all networks end where one process's do."""
    root, ran = launched
    assert (root / "networks.pt").exists(), ran.stderr
    one, two = twins_networks(), torch.load(root / "networks.pt", weights_only=True)
    assert one.keys() == two.keys() and len(one) == 3 + 4
    off = {f"{name}.{key}": (w - two[name][key]).abs().max().item()
           for name, network in one.items() for key, w in network.items()}
    assert all(w.dtype == torch.float64 for network in one.values() for w in network.values())
    worst = max(off, key=off.get)
    assert off[worst] < 1e-9, (f"{worst}, Sec. 4.2: two processes are {off[worst]:.1e} away from one, "
                               "asked for is less than 1e-9")


def test_what_torchrun_cannot_do_ends_in_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 3)
    said = refused(go, *WORDS, "--out", tmp_path / "run", join_processes=lambda _: None)
    assert said.startswith("error: torchrun wants a --batch that its processes can share evenly")
    assert not (tmp_path / "run").exists()
