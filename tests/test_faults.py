"""What happens when something goes wrong: kills, damaged files, full disks, no memory, wrong use, odd data. The paper is silent."""
import errno
import itertools
import json
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch as replaced

import numpy as np
import pytest
import torch
from PIL import Image

import data
import evaluate
import losses
import train
from test_train import TINY, ToyF, ToyG, equal, everything, tiny_slices, untimed_log

ROOT = Path(train.__file__).resolve().parent
FAST = "--size 64 --width 1 --critic-width 1 --batch 2 --critic-steps 1".split()
STATE = ("networks", "opt_G", "opt_f", "streams", "memory", "step")


@pytest.fixture(scope="module")
def h5(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "slices.h5"
    data.write_h5(path, tiny_slices())
    return path


def go(*words, program=train, **stand_ins):
    """Runs train.py or evaluate.py in this process, without pictures."""
    stand_ins = dict(draw_samples=lambda *_: None, draw_curves=lambda *_: None) | stand_ins
    with replaced.object(sys, "argv", [f"{program.__name__}.py", *map(str, words)]), replaced.multiple(train, **stand_ins):
        program.main()


def go_toy(*words, **stand_ins):
    """The same with networks of two convolutions: where the disk is what matters, milliseconds are enough."""
    go(*words, make_generator=ToyG, Critic=ToyF, **stand_ins)


def refused(capsys, call, *words, **options):
    """The one sentence on stderr of a call that ends as it must, with exit code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        call(*words, **options)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1, error
    return error


def listing(root):
    return {path: path.read_bytes() if path.is_file() else None for path in root.rglob("*")}


def assert_same_end(run, whole, before=True):
    """Checkpoints and log, but for the clock, and no file more."""
    for name in ("checkpoint.pt", "checkpoint_before.pt")[:1 + before]:
        one, other = (torch.load(folder / name, weights_only=True) for folder in (run, whole))
        assert all(equal(one[part], other[part]) for part in STATE), name
    assert untimed_log(run) == untimed_log(whole)
    assert {path.name for path in run.iterdir()} == {path.name for path in whole.iterdir()}


# ---------------------------------------------------------------- kill and go on

class Killed(BaseException):
    pass


def killed_at(moment, *words):
    """Runs train.py until it touches the disk for the moment-th time, as SIGKILL would leave it: half a log line, half a
    checkpoint, one of two renames. -> True where it died, False where it had finished before."""
    moments, replace, torch_save, write_text = itertools.count(), os.replace, torch.save, Path.write_text

    def tick():
        if next(moments) == moment:
            raise Killed

    def renamed(source, target):
        tick()
        replace(source, target)
        tick()

    def saved(checkpoint, place):
        torch_save(checkpoint, place)
        whole = place.read_bytes()
        place.write_bytes(whole[:len(whole) // 2])
        tick()
        place.write_bytes(whole)

    def text_written(place, text):
        write_text(place, text[:len(text) // 2])
        tick()
        write_text(place, text)

    @contextmanager
    def opened(path, mode):
        def write(text):
            for half in (text[:len(text) // 2], text[len(text) // 2:]):
                tick()
                file.write(half)
                file.flush()
            tick()
        with open(path, mode) as file:
            yield SimpleNamespace(write=write)

    try:
        with (replaced.object(os, "replace", renamed), replaced.object(torch, "save", saved),
              replaced.object(train, "open", opened, create=True), replaced.multiple(Path, write_text=text_written, unlink=lambda _: None)):
            go_toy(*words)
    except Killed:
        return True
    return False


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory, h5):
    """Three updates, uninterrupted."""
    run = tmp_path_factory.mktemp("toys") / "run"
    go_toy("--data", h5, *FAST, "--updates", 3, "--out", run)
    return run


def test_a_run_killed_at_any_moment_of_its_writing_goes_on_to_the_same_end(tmp_path, h5, toy_run):
    for moment in itertools.count():
        run = tmp_path / f"{moment}"
        words = "--data", h5, *FAST, "--updates", 3, "--out", run
        if not killed_at(moment, *words):
            break
        go_toy(*(("--resume", run) if any(run.glob("checkpoint*.pt")) else words))
        assert_same_end(run, toy_run)
    assert moment == 3 + 3 * (3 + 3) + 2 * 2  # config.json; a line, half a checkpoint, its rename; twice the older one's rename


def test_a_resumed_run_killed_once_more_never_loses_its_last_good_checkpoint(tmp_path, toy_run):
    """The worst start: the last checkpoint is damaged, so all hangs on the one before."""
    for moment in itertools.count():
        run = shutil.copytree(toy_run, tmp_path / f"{moment}")
        (run / "checkpoint.pt").write_bytes(b"damaged")
        if not killed_at(moment, "--resume", run):
            break
        go_toy("--resume", run)
        assert_same_end(run, toy_run)
    assert moment > 10


@pytest.mark.parametrize("method", ("uapi", "pi", *train.METHODS))
def test_four_updates_of_every_method_equal_two_and_resume_and_two(tmp_path, h5, method):
    words = "--data", h5, *FAST, "--method", method
    go(*words, "--updates", 4, "--out", tmp_path / "whole")
    go(*words, "--updates", 2, "--out", tmp_path / "parts")
    go("--resume", tmp_path / "parts", "--updates", 4)
    assert_same_end(tmp_path / "parts", tmp_path / "whole")


def start(*words, **options):
    """train.py as its user starts it, on one thread and without a display."""
    quiet = {name: value for name, value in os.environ.items() if name not in ("DISPLAY", "WAYLAND_DISPLAY")}
    quiet |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "TkAgg", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen([sys.executable, ROOT / "train.py", *map(str, words)], text=True, env=quiet,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def last_step(run):
    """The last whole line of the log; 0 before there is one."""
    lines = (run / "log.jsonl").read_text().split("\n")[:-1] if (run / "log.jsonl").exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def test_real_signals_stop_a_real_process_and_nothing_is_lost(tmp_path, h5):
    """A line per 10 updates. SIGKILL twice, SIGINT, SIGTERM; then five updates more, and the same from one go."""
    run, whole, logged = tmp_path / "run", tmp_path / "whole", 0
    words = "--data", h5, *FAST, "--updates", 1000, "--out", run
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGKILL, signal.SIGTERM):
        process, deadline = start(*words), time.monotonic() + 120
        while not (last_step(run) > logged and (run / "checkpoint.pt").exists()):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.01)
        process.send_signal(number)
        error = process.communicate(timeout=60)[1]
        logged, words = last_step(run), ("--resume", run)
        if number == signal.SIGKILL:
            assert process.returncode == -9, error
            continue
        step = everything(run)["step"]
        assert process.returncode == 128 + number and step > logged and step % 10, error
        assert error == f"stopped after update {step}; go on with: python train.py --resume {run}\n"
    end = everything(run)["step"] + 5
    go("--resume", run, "--updates", end)
    go("--data", h5, *FAST, "--updates", end, "--out", whole)
    one, other = everything(run), everything(whole)
    assert all(equal(one[part], other[part]) for part in STATE)
    lines, all_lines = untimed_log(run), {line["step"]: line for line in untimed_log(whole)}
    steps = [line["step"] for line in lines]
    assert steps == [*range(10, step, 10), *range(step + 1, end + 1)] and all(line == all_lines[line["step"]] for line in lines)


def test_the_same_signal_again_ends_the_program_at_once():
    for number in (signal.SIGINT, signal.SIGTERM):
        before = signal.getsignal(number)
        with pytest.raises(ZeroDivisionError), train.noting_signals() as noted:
            os.kill(os.getpid(), number)
            assert noted == [number] and signal.getsignal(number) == signal.SIG_DFL
            raise ZeroDivisionError
        assert signal.getsignal(number) == before


# ---------------------------------------------------------------- damaged checkpoints

def damaged(content, how):
    """content, damaged: a share of its bytes, a bit flipped at a share of its length, or as it stands there."""
    if isinstance(how, bytes):
        return how
    kind, share = how
    place = int(share * (len(content) - 1))
    return content[:place] if kind == "cut" else content[:place] + bytes([content[place] ^ 16]) + content[place + 1:]


def put_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = [b"", b"hello", b"\x80\x02}q\x00.", ("cut", 0.1), ("cut", 0.5), ("cut", 1.0), *(("flip", share) for share in (0.25, 0.4, 0.5))]


@pytest.mark.parametrize("how", [*DAMAGES, Path.unlink, put_folder], ids=lambda how: getattr(how, "__name__", str(how)))
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(tmp_path, capsys, toy_run, how):
    run = shutil.copytree(toy_run, tmp_path / "run")
    last = run / "checkpoint.pt"
    how(last) if callable(how) else last.write_bytes(damaged(last.read_bytes(), how))
    capsys.readouterr()
    assert evaluate.load_checkpoint(run)["step"] == 2  # it looks and leaves everything as it is
    said = capsys.readouterr().err
    assert said.startswith(f"{last}: ") and said.endswith(f"taking {run}/checkpoint_before.pt, the one before it\n")
    if how is not put_folder:  # no rename could mend that
        go_toy("--resume", run)
        assert_same_end(run, toy_run)
    (run / "checkpoint_before.pt").write_bytes(b"")
    last.is_dir() or last.write_bytes(b"")
    before = listing(tmp_path)
    for call, words in ((go_toy, ["--resume", run]), (evaluate.load_run, [run, "cpu"])):
        assert f"{last}: is no checkpoint of train.py, or damaged" in refused(capsys, call, *words)
    assert listing(tmp_path) == before


def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path, capsys, toy_run):
    """torch.load looks at no checksum, so most flips would train on unseen. Here: the bit of each entry that
    marks it as a folder, which torch then fills with garbage; the first bytes of the zip's directory; places all over the file."""
    content, sound = (toy_run / "checkpoint.pt").read_bytes(), everything(toy_run)
    unseen, directory = 0, zipfile.ZipFile(toy_run / "checkpoint.pt").start_dir
    folders = [entry.start() + 38 for entry in re.finditer(b"PK\1\2", content)]
    places = [*folders, *range(directory, directory + 200), *np.linspace(0, len(content) - 1, 200).astype(int)]
    for place in places:
        (tmp_path / "checkpoint.pt").write_bytes(content[:place] + bytes([content[place] ^ 16]) + content[place + 1:])
        try:
            assert equal(train.load_checkpoint(tmp_path), sound)
            unseen += 1
        except SystemExit as stop:
            assert stop.code == 2
    assert capsys.readouterr().err.count("or damaged") == len(places) - unseen > 300


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_bomb_is_not_set_off(tmp_path, capsys, toy_run):
    bomb, run = Bomb(tmp_path / "exploded"), shutil.copytree(toy_run, tmp_path / "run")
    (run / "checkpoint_before.pt").unlink()
    inside = everything(run) | {"memory": {"pool": bomb}}
    for write in (lambda place: place.write_bytes(pickle.dumps(bomb)), lambda place: torch.save(bomb, place),
                  lambda place: torch.save(inside, place), lambda place: torch.save(inside, place, _use_new_zipfile_serialization=False)):
        write(run / "checkpoint.pt")
        for call, words in ((go_toy, ["--resume", run]), (evaluate.load_run, [run, "cpu"])):
            assert "or damaged" in refused(capsys, call, *words)
    assert not bomb.path.exists()
    pickle.loads(pickle.dumps(bomb))
    assert bomb.path.exists()  # it would have gone off


ODD_CONFIGS = [lambda c: None, lambda c: [c], lambda c: {}, lambda c: {k: v for k, v in c.items() if k != "method"},
               lambda c: c | {"new": 1}, lambda c: c | {1: 1}, lambda c: c | {"resume": "x"}, lambda c: c | {"help": "x"},
               *(lambda c, odd=odd: c | odd for odd in (
                   {"width": "1"}, {"width": 1.5}, {"width": 0}, {"width": 10 ** 12}, {"width": True}, {"width": [1]}, {"size": 100},
                   {"method": "magic"}, {"method": 3}, {"lam": float("nan")}, {"bf16": "yes"}, {"data": 5}, {"batch": None}))]


@pytest.mark.parametrize("change", ODD_CONFIGS)
def test_a_checkpoint_of_odd_settings_ends_in_one_sentence(tmp_path, capsys, toy_run, change):
    checkpoint = everything(toy_run)
    torch.save(checkpoint | {"config": change(checkpoint["config"])}, tmp_path / "checkpoint.pt")
    before = listing(tmp_path)
    for call, words in ((go_toy, ["--resume", tmp_path]), (evaluate.load_run, [tmp_path, "cpu"])):
        assert "is no checkpoint of train.py, or damaged" in refused(capsys, call, *words)
    assert listing(tmp_path) == before


def test_a_checkpoint_that_does_not_fit_itself_ends_in_one_sentence(tmp_path, capsys, h5):
    """Another width, critic width or method in its settings than in its weights; other parts that are not what they should be.
    pi, uapi and released have the same networks: a change between these is the one that nothing shows."""
    go("--data", h5, *FAST, "--updates", 1, "--out", tmp_path / "run")
    sound, path = everything(tmp_path / "run"), tmp_path / "odd" / "checkpoint.pt"
    path.parent.mkdir()
    settings = {"G": {"width": 2}, "f": {"critic_width": 2}, "H": {"method": "cyclegan"},
                "G ": {"method": "ugac"}, "f_T": {"method": "gcgan"}}
    odd = [(part, {"config": sound["config"] | change}) for part, change in settings.items()]
    odd += [("G", {"networks": 3}), ("f", {"networks": {"G": sound["networks"]["G"]}}), ("opt_G", {"opt_G": 3}), ("opt_f", {"opt_f": {}}),
            ("opt_G", {"opt_G": {"state": {}, "param_groups": []}}), ("x", {"streams": {}}),
            ("eps", {"streams": sound["streams"] | {"eps": 3}}), ("y", {"streams": sound["streams"] | {"y": torch.zeros(3)}})]
    for part, change in odd:
        torch.save(sound | change, path)
        said = refused(capsys, go, "--resume", path.parent)
        assert f"the checkpoint's {part.strip()} does not fit its own configuration" in said, said
        if part.strip() == "G":
            assert "does not fit" in refused(capsys, evaluate.load_run, path.parent, "cpu")


# ---------------------------------------------------------------- full disks, no memory

FULL = OSError(errno.ENOSPC, "No space left on device")


@contextmanager
def half_written(path, mode):
    with open(path, mode) as file:
        def write(text):
            file.write(text[:len(text) // 2])
            raise FULL
        yield SimpleNamespace(write=write)


def raising(error):
    def call(*_, **__):
        raise error
    return call


def fail_late(function, error, calls):
    """function for some calls, then the error."""
    left = itertools.count(calls, -1)
    return lambda *words, **options: function(*words, **options) if next(left) > 0 else raising(error)()


def test_a_full_disk_ends_in_one_sentence_and_the_last_checkpoint_is_whole(tmp_path, capsys, toy_run, h5):
    readonly = PermissionError(errno.EACCES, "Permission denied")
    torchs = RuntimeError("[enforce fail at inline_container.cc:672] unexpected pos 64 vs 0")
    faults = {"log": lambda: replaced.object(train, "open", fail_late(open, FULL, 2), create=True),
              "half a line": lambda: replaced.object(train, "open", half_written, create=True),
              "read-only": lambda: replaced.object(train, "open", raising(readonly), create=True),
              "checkpoint": lambda: replaced.object(torch, "save", fail_late(torch.save, FULL, 2)),
              "checkpoint, in torch's words": lambda: replaced.object(torch, "save", fail_late(torch.save, torchs, 1)),
              "rename": lambda: replaced.object(os, "replace", fail_late(os.replace, FULL, 4)),
              "samples": lambda: replaced.object(train, "draw_samples", raising(FULL))}
    for k, (name, fault) in enumerate(faults.items()):
        run = tmp_path / f"{k}"
        words = "--data", h5, *FAST, "--updates", 3, "--out", run
        with fault():
            said = refused(capsys, go_toy, *words, **({"draw_samples": train.draw_samples} if name == "samples" else {}))
        found = any(run.glob("checkpoint*.pt"))
        assert "cannot be written" in said and f"{run}" in said and not any(run.glob("*.tmp")), (name, said)
        go_toy(*(("--resume", run) if found else words))
        assert_same_end(run, toy_run)


def test_a_file_system_that_refuses_in_earnest(tmp_path, h5):
    """A real process may write 100 kB to a file: config and log fit, the checkpoint does not."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000,) * 2)
    process = start("--data", h5, *FAST, "--updates", 11, "--out", tmp_path / "run", preexec_fn=limit)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 2 and error.count("\n") == 1, error
    assert error.startswith(f"error: {tmp_path}/run/checkpoint.pt: cannot be written (")
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["config.json", "log.jsonl"]


NO_MEMORY = (MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), RuntimeError("MPS backend out of memory"),
             RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to"),
             RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"))


@pytest.mark.parametrize("error", NO_MEMORY, ids=str)
def test_no_memory_ends_in_one_sentence_and_keeps_the_last_checkpoint(tmp_path, capsys, toy_run, h5, error):
    run = tmp_path / "run"
    late = fail_late(train.generator_loss, error, 2)
    said = refused(capsys, go_toy, "--data", h5, *FAST, "--updates", 3, "--out", run, generator_loss=late)
    assert "out of memory: choose a smaller --batch, --size or --width" in said and f"{run}/checkpoint.pt holds the last good" in said
    go_toy("--resume", run)
    assert_same_end(run, toy_run)
    again = refused(capsys, go_toy, "--data", h5, *FAST, "--out", tmp_path / "new", generator_loss=raising(error))
    assert "out of memory" in again and "no checkpoint was written yet" in again


def test_networks_too_large_for_this_machine_end_in_one_sentence(tmp_path, capsys):
    with pytest.raises(RuntimeError) as real:
        train.build(TINY | {"width": 10 ** 5})  # more than the command line allows: no machine has 360 GB for one layer
    assert "out of memory" in refused(capsys, train.explain, real.value, tmp_path)


@pytest.mark.parametrize("bug", (RuntimeError("The size of tensor a (3) must match"), ValueError("odd"), TypeError("odd")))
def test_a_bug_of_ours_shows_its_traceback(tmp_path, h5, bug):
    with pytest.raises(type(bug), match=str(bug)[:3]) as shown:
        go_toy("--data", h5, *FAST, "--out", tmp_path / "run", generator_loss=raising(bug))
    assert shown.value is bug and shown.traceback[-1].name == "call"  # of raising(): where it happened


# ---------------------------------------------------------------- wrong use

@pytest.mark.parametrize("flag, value, sentence", [
    ("--size", 100, "multiple of 32"), ("--size", 32, "from 64 up"), ("--size", 10 ** 6, "from 1 to 4096"),
    ("--size", -64, "whole number"), ("--batch", 0, "whole number from 1"), ("--batch", -2, "whole number"),
    ("--batch", 10 ** 9, "from 1 to 4096"), ("--batch", "2.5", "whole number"),
    ("--width", 10 ** 6, "from 1 to 256"), ("--critic-width", 10 ** 6, "from 1 to 512"), ("--updates", 0, "whole number from 1"),
    ("--updates", 10 ** 10, "whole number"), ("--critic-steps", 0, "whole number from 1"), ("--seed", -1, "whole number from 0"),
    ("--seed", "", "whole number"), ("--lam", "nan", "finite"), ("--lam", "inf", "finite"), ("--lam", "-inf", "finite"),
    ("--lam", "ten", "finite"), ("--p", "nan", "finite"), ("--p", -1, "at least 0"), ("--lr-g", 0, "above 0"),
    ("--lr-c", "inf", "finite"), ("--lr-g", "1e999", "finite"),
    ("--method", "magic", "invalid choice"), ("--device", "toaster", "no such device"), ("--device", "cpu:7", "no such device"),
    ("--device", "meta", "no such device"), ("--device", "hpu", "no such device"), ("--device", "cuda:99", "no such device"),
    ("--device", "cuda:x", "no such device"), ("--magic", 1, "unrecognized"), ("--data", "", "nothing to train on"),
    ("--data", "none", "no such folder"), ("--resume", "none", "no such checkpoint"), ("--resume", "file", "no such checkpoint"),
    ("--resume", "file/deep", "no such checkpoint"),
    ("--out", "file", "cannot be made into a folder"), ("--out", "file/deep", "cannot be made into a folder"),
    ("--out", "/proc/none", "cannot be made into a folder"), ("--out", "x" * 300, "cannot be made into a folder"),
    ("--out", "full", "already holds a run"), ("--out", "foreign", "was not written by train.py"), ("--out", "taken", "it is a folder"),
])
def test_wrong_use_ends_in_one_sentence_and_leaves_nothing_behind(monkeypatch, tmp_path, capsys, h5, toy_run, flag, value, sentence):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("in the way")
    shutil.copytree(toy_run, "full")
    Path("foreign").mkdir()
    Path("foreign/log.jsonl").write_text("a diary\n")
    Path("taken/config.json").mkdir(parents=True)
    before = listing(tmp_path)
    words = ([] if flag in ("--data", "--resume") else ["--data", h5]) + [f"{flag}={value}"]
    assert sentence in refused(capsys, go_toy, *words if flag == "--resume" else (*FAST, *words))
    assert listing(tmp_path) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="here there is a CUDA device")
def test_cuda_where_there_is_none_ends_in_one_sentence(capsys):
    assert "--device cuda: this machine has no such device" in refused(capsys, train.pick_device, "cuda")


@pytest.mark.parametrize("words, sentence", [
    (["--lam", 3, "--batch", 5], "leave out --lam, --batch"), (["--method", "pi"], "leave out --method"),
    (["--out", "elsewhere"], "leave out --out"), (["--bf16"], "leave out --bf16"), (["--updates", 2], "at least 3"),
    (["--smoke"], "stands alone"), (["--dry-run"], "stands alone"), (["--device", "toaster"], "no such device"), (["--data", "phantom"], "leave out --data")])
def test_resume_takes_no_other_flags(tmp_path, capsys, toy_run, words, sentence):
    run = shutil.copytree(toy_run, tmp_path / "run")
    before = listing(tmp_path)
    assert sentence in refused(capsys, go_toy, "--resume", run, *words)
    assert listing(tmp_path) == before


def test_resume_without_its_data_ends_in_one_sentence(tmp_path, capsys, h5):
    shutil.copy(h5, tmp_path / "moved.h5")
    go_toy("--data", tmp_path / "moved.h5", *FAST, "--updates", 1, "--out", tmp_path / "run")
    (tmp_path / "moved.h5").unlink()
    before = listing(tmp_path)
    assert "moved.h5: no such folder or file" in refused(capsys, go_toy, "--resume", tmp_path / "run", "--updates", 2)
    assert listing(tmp_path) == before


@pytest.fixture(scope="module")
def runs(tmp_path_factory, h5):
    """run: 64x64, drawn by a real process on a machine without a display; large: 96x96."""
    root = tmp_path_factory.mktemp("runs")
    process = start("--data", h5, *FAST, "--updates", 1, "--out", root / "run")
    output, error = process.communicate(timeout=120)
    assert process.returncode == 0 and error == "" and (root / "run" / "samples" / "000001.png").exists() and "finished" in output, error
    (root / "large").mkdir()
    checkpoint = everything(root / "run")
    train.save(root / "large", checkpoint | {"config": checkpoint["config"] | {"size": 96}})
    return root


def test_evaluate_used_wrongly_ends_in_one_sentence_and_leaves_nothing_behind(monkeypatch, tmp_path, capsys, h5, runs):
    monkeypatch.chdir(tmp_path)
    Path("text.png").write_text("not a picture")
    Path("half.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0\0")
    Image.fromarray(np.zeros((9, 9), np.uint8)).save("good.png")
    Path("empty").mkdir()
    run, large, before = runs / "run", runs / "large", listing(tmp_path)
    judged = "--data", h5
    for words, sentence in (
            ([run], "give either --data"), ([run, *judged, "--image", "good.png"], "give either --data"), ([*judged], "required: RUN"),
            (["empty", *judged], "no such checkpoint"), (["none", *judged], "no such checkpoint"),
            (["good.png", *judged], "no such checkpoint"), ([run, large, *judged], "different sizes, [64, 96]"),
            ([run, run, *judged], "same folder name"), ([run, "--data", "none"], "no such folder"),
            ([run, "--data", "empty"], "no readable image"), ([run, "--data", "good.png"], "is not an .h5"),
            ([run, *judged, "--device", "toaster"], "no such device"),
            ([run, "--image", "text.png"], "cannot be read as an image"), ([run, "--image", "half.png"], "cannot be read as an image"),
            ([run, "--image", "none.png"], "cannot be read as an image"), ([run, "--image", "empty"], "cannot be read as an image"),
            ([run, *judged, "--out", "good.png"], "cannot be made into a folder"),
            ([run, "--image", "good.png", "--out", "good.png"], "cannot be made into a folder"),
            ([run, *judged, "--out", "good.png/deep"], "cannot be made into a folder"),
            ([run, *judged, "--out", "/proc/none"], "cannot be made into a folder")):
        assert sentence in refused(capsys, go, *words, program=evaluate), words
        assert listing(tmp_path) == before, words


@pytest.mark.parametrize("place", ("table1.md", "table1.csv", "metrics.json", "fig2_3_psnr.png", "good_run_translation.png",
                                   "good_run_scale.npy"))
def test_evaluate_on_a_full_disk_ends_in_one_sentence_and_leaves_no_half_file(tmp_path, capsys, h5, runs, place):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "good.png")
    what = ["--image", tmp_path / "good.png"] if place.startswith("good") else ["--data", h5]
    replace = os.replace
    full = lambda source, target: raising(FULL)() if Path(target).name == place else replace(source, target)
    with replaced.object(os, "replace", full), replaced.object(evaluate, "picture_grid", lambda *_: None):
        said = refused(capsys, go, runs / "run", *what, "--out", tmp_path / "out", program=evaluate)
    assert f"{place}: cannot be written (No space left on device)" in said
    assert not any(path.name.endswith(".tmp") or path.name == place for path in (tmp_path / "out").iterdir())


@pytest.mark.parametrize("error", (torch.OutOfMemoryError("CUDA out of memory"), MemoryError()))
def test_evaluate_without_memory_ends_in_one_sentence(monkeypatch, tmp_path, capsys, h5, runs, error):
    monkeypatch.setattr(evaluate, "judge", raising(error))
    said = refused(capsys, go, runs / "run", "--data", h5, "--out", tmp_path / "out", program=evaluate)
    assert said.startswith("error: out of memory: judge fewer runs")
    monkeypatch.setattr(evaluate, "judge", raising(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        go(runs / "run", "--data", h5, "--out", tmp_path / "out", program=evaluate)


# ---------------------------------------------------------------- numbers stay sane

def grey(value, n=2):
    return np.full((n, 64, 64), value, np.uint8)


def noise(seed):
    return np.random.default_rng(seed).choice([0, 255], (4, 64, 64)).astype(np.uint8)


ODD_DATA = {  # input, target, changed settings
    "salt and pepper, identical domains, a batch of one, lam 1e6": (noise(0), noise(0), {"batch": 1, "lam": 1e6}),
    "all black, a constant target, a batch of one, lam 0": (grey(0), grey(140), {"batch": 1, "lam": 0.0}),
}


@pytest.mark.parametrize("what", ODD_DATA)
def test_200_updates_on_odd_data_stay_finite_and_the_scale_positive(tmp_path, what):
    one, other, changes = ODD_DATA[what]
    slices = tiny_slices()._replace(input=one, target=other)
    with replaced.multiple(train, save=lambda *_: None, draw_samples=lambda *_: None, draw_curves=lambda *_: None):
        G, _ = train.train(TINY | {"updates": 200, "critic_steps": 1} | changes, slices, tmp_path)
    rows = untimed_log(tmp_path)
    assert len(rows) == 100 and all(np.isfinite(value) for row in rows for value in row.values())
    assert min(row["scale_min"] for row in rows) >= 1 / 127.5
    assert all(torch.isfinite(w).all() for w in G.parameters())


@pytest.mark.parametrize("value", (0, 140))
def test_a_constant_slice_leaves_the_gradient_finite(value):
    G = train.build(TINY)[0]["G"]
    x = data.to_unit(torch.from_numpy(grey(value)).unsqueeze(1))
    risk, _ = losses.generator_loss(ToyF(1), G, x, train.sample_phi(2, 64), 10.0)
    risk.backward()
    assert all(torch.isfinite(w.grad).all() for w in G.parameters())


def test_a_run_that_diverges_says_at_which_update_and_in_which_term(tmp_path, capsys, h5):
    said = refused(capsys, go, "--data", h5, *FAST, "--lr-c", 1e18, "--updates", 20, "--out", tmp_path / "run")
    assert said.startswith("error: update 1: generator, adversarial, adversarial_patch is not finite; no checkpoint was written yet")
    said = refused(capsys, go, "--data", h5, *FAST, "--lr-g", 1e18, "--updates", 20, "--out", tmp_path / "run")
    assert said.startswith("error: update 2: ") and "is not finite" in said and "checkpoint.pt holds the last good state" in said


def test_eq_9_stays_finite_at_the_ends_of_float32():
    """Residuals and scales that training can meet, and the softplus of what a scale head could say at worst."""
    floor = 1 / 127.5
    heads = torch.nn.functional.softplus(torch.tensor([-1e4, -50.0, 0.0, 1e4])) + floor
    scales = torch.cat([torch.tensor([floor, 0.1, 1.0, 1e2, 1e4]), heads])
    for residual in (0.0, 1e-38, 1e-7, 2.0):
        for scale in scales:
            a, b, s = (torch.full((1, 1, 2, 2), float(value), requires_grad=True) for value in (0.0, residual, scale))
            risk = losses.patch_laplace(a, b, s)
            risk.backward()
            assert torch.isfinite(risk) and all(torch.isfinite(v.grad).all() for v in (a, b, s)), (residual, scale)
            assert risk.item() == pytest.approx(residual / scale.item() + np.log(2 * scale.item()), rel=1e-5)
    head = torch.tensor([-1e4, -1e2, 0.0, 1e2, 1e4], requires_grad=True)
    s = (torch.nn.functional.softplus(head) + floor).view(5, 1, 1, 1)
    losses.patch_laplace(torch.zeros_like(s), torch.full_like(s, 2.0), s).backward()
    assert torch.isfinite(head.grad).all()


# ---------------------------------------------------------------- same seed, same run

def drawn(config, slices, run):
    """Everything that two updates draw: batches, patches and eps. Toy networks: two threads on large ones take long."""
    found, draw, sample_phi, critic_loss = [], train.draw, train.sample_phi, train.critic_loss
    stand_ins = dict(make_generator=ToyG, Critic=ToyF, draw_samples=lambda *_: None, draw_curves=lambda *_: None,
                     draw=lambda *words: found.append(draw(*words)) or found[-1],
                     sample_phi=lambda *words: found.extend(sample_phi(*words)) or train.Phi(*found[-3:]),
                     critic_loss=lambda *words: found.append(words[4]) or critic_loss(*words))
    with replaced.multiple(train, **stand_ins):
        train.train(config, slices, run)
    return found


def test_the_same_seed_gives_the_same_run_and_no_number_of_threads_other_draws(tmp_path):
    found = []
    for k, threads in enumerate((1, 1, 2)):
        (tmp_path / f"{k}").mkdir()
        try:
            torch.set_num_threads(threads)
            found.append(drawn(TINY, tiny_slices(), tmp_path / f"{k}"))
        finally:
            torch.set_num_threads(1)
    assert len(found[0]) == 2 * (3 * (2 + 3 + 1) + 1 + 3) and equal(found[0], found[1]) and equal(found[0], found[2])
    assert_same_end(tmp_path / "0", tmp_path / "1")
    assert equal(everything(tmp_path / "0")["streams"], everything(tmp_path / "2")["streams"])


def test_two_runs_of_the_real_networks_are_equal_bit_for_bit(tmp_path, h5):
    for name in "ab":
        go("--data", h5, *FAST, "--updates", 3, "--out", tmp_path / name)
    assert_same_end(tmp_path / "a", tmp_path / "b")


def test_the_order_of_files_on_disk_changes_no_draw(tmp_path):
    pictures, found = noise(2), []
    for k, order in enumerate(([0, 1, 2, 3], [3, 1, 0, 2])):
        for which in ("input", "target"):
            (tmp_path / f"{k}" / which).mkdir(parents=True)
            for i in order:
                Image.fromarray(pictures[i]).save(tmp_path / f"{k}" / which / f"{which}{i}_0.png")
        found.append(drawn(TINY, data.load(tmp_path / f"{k}", 64), tmp_path / f"{k}"))
    assert equal(*found)
