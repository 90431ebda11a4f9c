"""run.py and the programs: what a run leaves behind, how it stops and goes on, and what happens
when something goes wrong: kills, damaged files, full disks, no memory, wrong use, odd data."""
import errno
import io
import itertools
import json
import os
import pickle
import re
import resource
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
import zipfile
from contextlib import ExitStack, contextmanager, redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

import baselines
import data
import evaluate
import losses
import run
import train
import translate
from patch_op import sample_phi
from toys import (FAST, TINY, ToyF, ToyG, equal, everything, files_in, go, loop_of, refused,
                  replaced, saved, tiny_slices, trained, untimed_log)

ROOT = Path(train.__file__).resolve().parent
METHODS = ("uapi", "pi", *baselines.METHODS)
STATE = ("networks", "opt_G", "opt_f", "streams", "step")


def go_toy(*words, **stand_ins):
    """go with networks of two convolutions: where the disk is what matters, they are enough."""
    go(*words, UNet=ToyG, Critic=ToyF, **stand_ins)


def listing(root):
    """What a folder holds, but for the empty file by which a training claims its own."""
    return {path: path.read_bytes() if path.is_file() else None for path in root.rglob("*")
            if path.name != ".claim"}


def assert_same_end(one, other, before=True):
    """Checkpoints and log, but for the clock, and no file more."""
    for name in run.CHECKPOINTS[:1 + before]:
        ends = [torch.load(folder / name, weights_only=True) for folder in (one, other)]
        for part in STATE:
            assert equal(ends[0][part], ends[1][part]), f"{name}: {part} differ"
    assert untimed_log(one) == untimed_log(other)
    assert {path.name for path in one.iterdir()} == {path.name for path in other.iterdir()}


@pytest.fixture(scope="module")
def toy_run(tmp_path_factory):
    """Three updates, uninterrupted."""
    folder = tmp_path_factory.mktemp("toys") / "run"
    go_toy(*FAST, "--updates", 3, "--out", folder)
    return folder


@pytest.fixture
def copy(toy_run, tmp_path):
    return shutil.copytree(toy_run, tmp_path / "run")


# ---------------------------------------------------------------- when something is due

def due(n_updates, times):
    return [step for step in range(1, n_updates + 1) if run.is_due(step, n_updates, times)]


def test_something_is_due_at_updates_1_10_100_evenly_in_between_and_at_the_last():
    assert due(7, 100) == due(7, 10) == [1, 2, 3, 4, 5, 6, 7]
    assert due(1000, 100) == [1, *range(10, 1001, 10)]
    assert due(350, 10) == [1, 10, 35, 70, 100, *range(105, 351, 35)]
    assert due(15000, 100) == [1, 10, 100, *range(150, 15001, 150)]
    assert [n for n in range(1, 300) if due(n, 100)[-1] != n or due(n, 10)[-1] != n] == []
    assert run.is_due(7, 1000, 10, signal=signal.SIGTERM) and not run.is_due(7, 1000, 10, signal=0)


def test_only_the_first_process_writes():
    with mock.patch.multiple(torch.distributed, is_initialized=lambda: True, get_rank=lambda: 1):
        assert due(100, 100) == [] and not run.is_due(7, 10, 10, signal=signal.SIGTERM)


def followed(folder, seconds=0.0, **changes):
    """A run with all that follows an update, by whatever stands in train.py and run.py now."""
    config = TINY | changes
    state = train.build(config)._replace(seconds=seconds)
    train.follow(loop_of(config)(config, tiny_slices(), state), config, tiny_slices(), folder, state)


def test_both_loops_log_and_save_every_per_cent_and_draw_every_tenth():
    for method in ("uapi", "gcgan"):
        logged, saved, drawn = [], [], []
        with tempfile.TemporaryDirectory() as folder, replaced(
                UNet=ToyG, Critic=ToyF, log=lambda _, __, step, *___, **____: logged.append(step),
                save=lambda _, __, step, *___: saved.append(step),
                plot_samples=lambda path, *_: drawn.append(path.name)):
            followed(Path(folder), method=method, updates=20, critic_steps=1)
        assert logged == saved == list(range(1, 21)), method
        assert drawn == [f"{step:06d}.png" for step in (1, *range(2, 21, 2))], method


def test_the_clock_goes_on_where_a_run_stood():
    with tempfile.TemporaryDirectory() as folder, replaced(UNet=ToyG, Critic=ToyF):
        followed(Path(folder), seconds=1000.0, updates=1, critic_steps=1)
        for seconds in (run.read_log(Path(folder))[-1]["seconds"], everything(Path(folder))["seconds"]):
            assert 1000 < seconds < 1100, f"after 1,000 seconds and one update: {seconds}"


def test_a_stop_leaves_line_picture_and_checkpoint_of_its_update():
    """SIGTERM during update 7 of 1,000, for which nothing else is due."""
    terminate = lambda step, *_: step == 7 and os.kill(os.getpid(), signal.SIGTERM)
    for method in ("uapi", "gcgan"):
        drawn = []
        with tempfile.TemporaryDirectory() as folder:
            with pytest.raises(SystemExit) as stop:
                go_toy(*FAST, "--method", method, "--updates", 1000, "--out", folder,
                       progress=terminate, plot_samples=lambda path, *_: drawn.append(path.name),
                       plot_curves=lambda folders, path: drawn.append(path.name))
            assert stop.value.code == 128 + signal.SIGTERM
            assert [row["step"] for row in untimed_log(Path(folder))] == [1, 7]
            assert everything(Path(folder))["step"] == 7
        assert drawn == ["000001.png", "curves.png", "000007.png", "curves.png"]


# ---------------------------------------------------------------- log, curves, samples

def test_a_logged_line_says_the_same_on_screen_and_in_the_file():
    values = dict(wasserstein=1.0, slope=2.0, residual=3.0, patch=4.0)
    scales = dict(scale_mean=5.0, scale_min=0.5)
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()) as printed:
        for logged, lam in ((values | scales, 10.0), (values, 10.0), (values | scales, 0.0)):
            tensors = {name: torch.tensor(value) for name, value in logged.items()}
            run.log(Path(folder), TINY | {"updates": 20, "lam": lam}, 5, 100.0, **tensors)
        uapi, *without = run.read_log(Path(folder))
    same = {"step": 5, "seconds": 100.0, "images_per_second": 0.4} | values  # 5 (3 + 1) 2 images
    assert uapi == same | scales
    for row, why in zip(without, ("PI has no scale", "lam 0 trains none"), strict=True):
        assert row == same | {"scale_mean": None, "scale_min": None}, f"{why}: null"
    first, *others = printed.getvalue().splitlines()
    line = ("update 5/20  elapsed 0:01:40  remaining 0:05:00  "
            "wasserstein 1.000  slope 2.000  residual 3.0000")
    assert first == line + "  scale 5.0000 (min 0.5000)  0 images/s"
    assert others == [line + "  0 images/s"] * 2


def write_log(folder, scale=None):
    folder.mkdir()
    rows = [dict(step=step, wasserstein=1000.0 if step < 3 else 1 / step, slope=1.0 + step,
                 residual=0.5 / step, scale_mean=scale, scale_min=scale) for step in range(1, 31)]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def test_curves_show_every_run_and_their_height_is_that_of_the_last_nine_tenths():
    figures = []
    with tempfile.TemporaryDirectory() as root, mock.patch.object(
            Figure, "savefig", lambda figure, place, **_: figures.append(figure) or place.touch()):
        uapi, pi = Path(root, "uapi"), Path(root, "pi")
        rows, _ = write_log(uapi, scale=0.25), write_log(pi)
        run.plot_curves([uapi, pi], Path(root, "curves.png"))
        assert Path(root, "curves.png").exists()
    panels = figures[0].axes
    for ax, name in zip(panels, ("wasserstein", "slope", "residual"), strict=True):
        for label in ("uapi", "pi"):
            line, = [line for line in ax.lines if line.get_label() == label]
            assert list(line.get_xdata()) == list(range(1, 31))
            assert list(line.get_ydata()) == [row[name] for row in rows]
    scales = [line for line in panels[2].lines if line.get_label().endswith(", scale")]
    assert [list(line.get_ydata()) for line in scales] == [[0.25] * 30]  # none of pi
    assert panels[0].get_ylim() == (0, pytest.approx(1.05 / 4 + 1e-3))  # of step 4 on


def test_a_scale_is_shown_where_eq_9_has_trained_it_on_patches():
    shown = {}
    for method, lam in itertools.product(("uapi", "pi", "gcgan", "uagc"), (10.0, 0.0)):
        with tempfile.TemporaryDirectory() as folder, replaced(
                UNet=ToyG, Critic=ToyF, log=lambda *_, **__: None, save=lambda *_: None,
                plot_samples=lambda *words: shown.update({(method, lam): words[4]})):
            followed(Path(folder), method=method, lam=lam, updates=1, critic_steps=1)
    assert {key for key, scale in shown.items() if scale} == {("uapi", 10.0)}


def test_a_run_leaves_what_the_readme_promises(tmp_path, capsys):
    folder = tmp_path / "run"
    go(*FAST, "--updates", 2, "--out", folder,
       plot_samples=train.plot_samples, plot_curves=run.plot_curves)
    assert {path.name for path in folder.iterdir()} == {
        *run.CHECKPOINTS, ".claim", "config.json", "curves.png", "log.jsonl", "samples"}
    samples = sorted((folder / "samples").iterdir())
    assert [path.name for path in samples] == ["000001.png", "000002.png"]
    assert json.loads((folder / "config.json").read_text()) == everything(folder)["config"]
    assert everything(folder)["config"] == TINY | {"critic_steps": 1, "out": str(folder)}
    assert set(untimed_log(folder)[0]) == {
        "step", "wasserstein", "slope", "adversarial", "adversarial_patch", "patch", "residual",
        "scale_mean", "scale_min"}
    printed = capsys.readouterr().out
    assert "update 2/2" in printed and f"finished: {folder}" in printed


# ---------------------------------------------------------------- settings

def test_lam_is_10_unless_told_and_1_for_cut(tmp_path):
    found = []
    given = [[], *(["--method", method] for method in ("pi", *baselines.METHODS))]
    for words in (*given, ["--method", "cut", "--lam", 3]):
        go(*FAST, *words, "--out", tmp_path / "run",
           train=lambda config, *_: found.append((config["method"], config["lam"])) or ())
    assert found == [("uapi", 10), ("pi", 10), ("cyclegan", 10), ("ugac", 10), ("gcgan", 10),
                     ("uagc", 10), ("cut", 1), ("cut", 3)]


def test_a_run_without_a_name_is_named_by_data_method_lam_and_seed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    go_toy(*FAST, "--updates", 1, "--lam", 3.5, "--seed", 7)
    assert [path.name for path in Path("runs").iterdir()] == ["phantom_uapi_lam3.5_seed7"]


def test_commands_that_are_printed_can_be_copied(tmp_path, capsys):
    out = tmp_path / "my run's"
    go_toy(*FAST, "--updates", 1, "--out", out)
    assert shlex.split(capsys.readouterr().out.splitlines()[-1])[-7:] == [
        "python", "evaluate.py", str(out), "--data", "phantom", "--out", str(out / "evaluation")]
    assert f"--resume {shlex.quote(str(out))}," in refused(go_toy, *FAST, "--out", out)


# ---------------------------------------------------------------- a share for each process

def as_process(rank, count):
    return mock.patch.multiple(torch.distributed, is_initialized=lambda: True,
                               get_rank=lambda: rank, get_world_size=lambda: count)


def test_processes_share_every_batch_without_gap_or_overlap():
    x, phi = torch.arange(6.).view(6, 1, 1, 1), sample_phi(6, 64, torch.Generator().manual_seed(0))
    alone = run.my_share(x, phi)
    assert alone[0] is x and alone[1] is phi, "one process takes everything"
    shares = []
    for rank in range(3):
        with as_process(rank, 3):
            shares.append(run.my_share(x, phi))
    assert torch.equal(torch.cat([share[0] for share in shares]), x)
    assert all(type(share[1]) is type(phi) and len(share[0]) == 2 for share in shares)
    assert equal([torch.cat(part) for part in zip(*(share[1] for share in shares))], list(phi))


def test_gradients_are_the_mean_over_the_processes():
    network = torch.nn.Linear(2, 1)
    network.weight.grad = torch.tensor([[1.0, 2.0]])  # the bias has none
    run.average_gradients(network)
    assert network.weight.grad.tolist() == [[1, 2]], "one process keeps its own"

    def all_reduce(flat):
        flat += torch.tensor([10.0, 20.0]) + torch.tensor([100.0, 200.0])  # of two other processes
    with as_process(0, 3), mock.patch.object(torch.distributed, "all_reduce", all_reduce):
        run.average_gradients(network)
    assert network.weight.grad.tolist() == [[37, 74]] and network.bias.grad is None


def test_the_largest_signal_of_all_processes_stops_them():
    assert run.signal_received([]) == 0 and run.signal_received([signal.SIGINT]) == signal.SIGINT

    def all_reduce(number, how):
        assert how is torch.distributed.ReduceOp.MAX
        number.fill_(signal.SIGTERM)
    with as_process(0, 2), mock.patch.multiple(torch.distributed, all_reduce=all_reduce,
                                               get_backend=lambda: "gloo"):
        assert run.signal_received([]) == signal.SIGTERM


def test_bf16_is_for_layers_and_only_where_asked_for():
    layer, x = torch.nn.Linear(2, 2), torch.ones(1, 2)
    for asked, kind in ((True, torch.bfloat16), (False, torch.float32)):
        with run.bf16({"device": "cpu", "bf16": asked}):
            assert layer(x).dtype is kind


@pytest.mark.parametrize("capability, device, asked, warned", (
    ("AVX2", "cpu", True, True), ("AVX2", "cpu", False, False),
    ("AVX2", "cuda", True, False), ("AVX512", "cpu", True, False)))
def test_a_user_is_told_where_bf16_costs_days(capsys, capability, device, asked, warned):
    with mock.patch.object(torch.backends.cpu, "get_cpu_capability", lambda: capability):
        run.warn_of_slow_bf16({"device": device, "bf16": asked})
    assert ("leave it out" in capsys.readouterr().out) is warned


# ---------------------------------------------------------------- what is saved, and what never

def test_a_checkpoint_holds_all_that_an_update_changes_or_draws_from():
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        with replaced(UNet=ToyG, Critic=ToyF):
            state = trained(folder, method="gcgan", updates=1)
        saved = run.load_checkpoint(folder)
        before, after = [(folder / name).exists() for name in run.CHECKPOINTS[::-1]]
        run.save(folder, TINY, 2, 0.0, state)
        older = torch.load(folder / "checkpoint_before.pt", weights_only=True)
    assert saved.keys() == run.CONTENTS.keys() and (before, after) == (False, True)
    networks = {**state.theta, **state.omega}
    assert equal(saved["networks"], {k: dict(v.state_dict()) for k, v in networks.items()})
    assert equal(saved["streams"], {k: v.get_state() for k, v in state.streams.items()})
    for name in ("opt_G", "opt_f"):
        assert equal(saved[name], getattr(state, name).state_dict()), name
    assert saved["step"] == 1 and saved["seconds"] > 0 and equal(saved, older)


def test_weights_beyond_all_use_are_never_saved():
    """No run could go on from weights of 1e30 or NaN; the sentence names the way that exists."""
    for value in (1e30, -1e30, float("nan"), float("inf")):
        for networks, name in (("theta", "G"), ("omega", "f")):
            with tempfile.TemporaryDirectory() as folder:
                folder = Path(folder)
                with replaced(UNet=ToyG, Critic=ToyF):
                    state = train.build(TINY)
                weight = next(getattr(state, networks).parameters())
                with torch.no_grad():
                    sound = weight.clone()
                    weight[-1, -1, -1, -1] = value
                said = refused(run.save, folder, TINY, 5, 0.0, state)
                assert f"update 5: the weights of {name} are above 1e6 or not finite" in said
                assert "no checkpoint was written yet" in said and "--init" not in said
                assert list(folder.iterdir()) == []
                with torch.no_grad():
                    weight.copy_(sound)
                run.save(folder, TINY, 5, 0.0, state)
                with torch.no_grad():
                    weight[-1, -1, -1, -1] = value
                before = listing(folder)
                said = refused(run.save, folder, TINY, 6, 0.0, state)
                assert f"--init {folder}" in said and "--resume" not in said
                assert listing(folder) == before


def test_a_risk_that_is_not_finite_ends_the_run_and_names_itself():
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        for value in (float("inf"), -float("inf"), float("nan")):
            said = refused(run.fail_unless_finite, folder, 3, generator=torch.tensor(value),
                           critic=torch.tensor(0.0))
            assert said.startswith("error: update 3: generator is not finite; no checkpoint was")
        (folder / "checkpoint.pt").touch()
        said = refused(run.fail_unless_finite, folder, 3, patch=torch.tensor(float("nan")))
        assert "holds the last saved state" in said and f"--init {folder}" in said
        assert "--resume" not in said, "--resume takes no other learning rates"
        run.fail_unless_finite(folder, 3, generator=torch.tensor(0.0))


def test_a_run_that_diverges_says_at_which_update_and_in_what(tmp_path):
    words = *FAST, "--updates", 20, "--out"
    said = refused(go, *words, tmp_path / "f", "--lr-c", 1e12)
    assert said.startswith("error: update 1: generator, adversarial, adversarial_patch is not "
                           "finite; no checkpoint was written yet")
    said = refused(go, *words, tmp_path / "G", "--lr-g", 1e12)
    assert said.startswith("error: update 1: the weights of G are above 1e6")
    assert not any(tmp_path.rglob("checkpoint*.pt"))


# ---------------------------------------------------------------- --init: another run's networks

def begun(*words, **stand_ins):
    """What a command line hands to the loop, which does not run."""
    seen = []
    go(*words, train=lambda *handed: seen.append(handed) or (), **stand_ins)
    (config, slices, state), = seen
    return SimpleNamespace(config=config, slices=slices, state=state)


def test_init_takes_weights_and_neither_adams_averages_nor_the_step():
    with tempfile.TemporaryDirectory() as root:
        go_toy(*FAST, "--updates", 1, "--out", Path(root, "old"))
        words = *FAST, "--init", Path(root, "old"), "--out", Path(root, "new")
        state = begun(*words, UNet=ToyG, Critic=ToyF).state
        networks = everything(Path(root, "old"))["networks"]
    assert equal(dict(state.theta["G"].state_dict()), dict(networks["G"]))
    assert state.step == 0 and not state.opt_G.state and not state.opt_f.state


def test_init_starts_from_anothers_weights_with_everything_else_new(tmp_path, toy_run, h5):
    words = ("--init", toy_run, "--data", h5, "--size", 96, "--width", 1, "--critic-width", 1,
             "--batch", 3, "--lam", 2, "--lr-g", 1e-3, "--lr-c", 1e-3, "--seed", 5, "--updates", 9,
             "--method", "pi", "--out", tmp_path / "new")
    toys = dict(UNet=ToyG, Critic=ToyF)
    new, networks = begun(*words, **toys), everything(toy_run)["networks"]
    for name, network in (*new.state.theta.items(), *new.state.omega.items()):
        assert equal(dict(network.state_dict()), dict(networks[name])), f"{name} is not RUN's"
    with replaced(**toys):
        fresh = train.build(new.config)
    for optimiser, own in (("opt_G", "theta"), ("opt_f", "omega")):
        found = getattr(new.state, optimiser)
        assert found.state_dict() == getattr(fresh, optimiser).state_dict()
        moved, weights = found.param_groups[0]["params"], getattr(new.state, own).parameters()
        assert [id(w) for w in moved] == [id(w) for w in weights]
    for name, stream in fresh.streams.items():
        assert torch.equal(new.state.streams[name].get_state(), stream.get_state())
    assert new.state.step == 0 and new.state.seconds == 0
    assert new.slices.input.shape[1:] == (96, 96) and new.config["batch"] == 3
    assert json.loads((tmp_path / "new/config.json").read_text())["init"] == str(toy_run)


def test_a_run_begun_with_init_goes_on_when_the_other_is_gone(tmp_path, copy):
    words = *FAST, "--init", copy, "--lam", 2
    go_toy(*words, "--updates", 4, "--out", tmp_path / "whole")
    go_toy(*words, "--updates", 2, "--out", tmp_path / "halves")
    shutil.rmtree(copy)
    go_toy("--resume", tmp_path / "halves", "--updates", 4)
    assert_same_end(tmp_path / "halves", tmp_path / "whole")
    assert everything(tmp_path / "halves")["config"]["init"] == str(copy)
    assert not equal(everything(tmp_path / "whole")["networks"], trained_networks(tmp_path / "new"))


def trained_networks(folder):
    go_toy(*FAST, "--lam", 2, "--updates", 4, "--out", folder)
    return everything(folder)["networks"]


@pytest.fixture(scope="module")
def untrained(tmp_path_factory):
    """A run of each method, saved before its first update."""
    root = tmp_path_factory.mktemp("untrained")
    for method in METHODS:
        (root / method).mkdir()
        config = TINY | {"method": method, "out": str(root / method)}
        run.save(root / method, config, 0, 0.0, train.build(config))
    return root


def test_init_takes_networks_of_the_same_names_and_widths_only(tmp_path, untrained):
    """By accident cyclegan's G and f would fit uapi, and others' too; H would be lost unseen."""
    kinds = [("uapi", "pi"), ("gcgan", "uagc"), ("cyclegan",), ("ugac",), ("cut",)]
    kind = {method: methods for methods in kinds for method in methods}
    for one, other in itertools.product(METHODS, ("uapi", "uagc", "cyclegan")):
        words = *FAST, "--init", untrained / one, "--method", other, "--out", tmp_path / "new"
        if other in kind[one]:
            begun(*words)
            shutil.rmtree(tmp_path / "new")
        else:
            assert "--method" in refused(begun, *words), f"{other} took the networks of {one}"
            assert list(tmp_path.iterdir()) == []
    for flag in ("--width", "--critic-width"):
        words = *FAST, "--init", untrained / "uapi", flag, 2, "--out", tmp_path / "new"
        said = refused(begun, *words)
        assert "does not fit" in said and flag in said and list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- where runs stand: python run.py

def test_run_py_says_where_runs_stand_and_draws_their_curves(monkeypatch, tmp_path, capsys, copy):
    monkeypatch.chdir(tmp_path)
    go_toy(*FAST, "--method", "pi", "--lam", 2, "--seed", 3, "--updates", 1, "--out", "other")
    capsys.readouterr()
    drawn = []
    plot_curves = run.plot_curves
    go(copy, "other", program=run,
       plot_curves=lambda *words: drawn.append(words) or plot_curves(*words))
    first, whole, last, tenth, second, *_ = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{copy}: data phantom, method uapi, size 64, lam 10.0, seed 0")
    assert whole == "  finished at update 3 of 3, whose checkpoint is whole" and "step 3" in last
    assert f"wasserstein {untimed_log(copy)[-1]['wasserstein']:.4g}" in last
    assert tenth.startswith("  mean of the last tenth: wasserstein ") and "scale_mean" in tenth
    assert second.startswith("other: data phantom, method pi, size 64, lam 2.0, seed 3")
    assert drawn == [([copy, Path("other")], Path("curves.png"))] and Path("curves.png").exists()


def test_run_py_names_a_log_with_a_row_that_lacks_a_number(monkeypatch, tmp_path, copy):
    rows = [{"step": 1}, untimed_log(copy)[-1]]
    (copy / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    assert "damaged" in refused(go, copy, program=run)


def test_run_py_takes_means_over_the_rows_of_the_last_tenth(tmp_path, monkeypatch, capsys, copy):
    row = untimed_log(copy)[-1]
    rows = [row | {"step": step, "residual": step * 1.0} for step in range(5, 101, 5)]
    (copy / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.chdir(tmp_path)
    go(copy, program=run)
    tenth, = re.findall("mean of the last tenth: (.*)", capsys.readouterr().out)
    assert "residual 97.5  " in tenth, "updates 95 and 100"


def test_run_py_names_a_damaged_checkpoint_and_takes_the_one_before(
        monkeypatch, tmp_path, capsys, copy):
    monkeypatch.chdir(tmp_path)
    (copy / "checkpoint.pt").write_bytes(b"damaged")
    capsys.readouterr()
    go(copy, program=run)
    out, error = capsys.readouterr()
    assert error.startswith(f"{copy}/checkpoint.pt: is no checkpoint of train.py, or damaged")
    assert f"taking {copy}/checkpoint_before.pt" in error and "update 2 of 3" in out


@pytest.mark.parametrize("folder, sentence", [
    ("none", "no such checkpoint"), ("file", "no such checkpoint"), ("empty", "no such checkpoint"),
    ("damaged", "or damaged"), ("silent", "log.jsonl: is missing"),
    ("diary", "log.jsonl: is missing"),
    ("number", "log.jsonl: is missing"), ("odd", "is no checkpoint of train.py, or damaged")])
def test_run_py_on_what_is_no_run_ends_in_one_sentence(
        monkeypatch, tmp_path, copy, folder, sentence):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("in the way")
    Path("empty").mkdir()
    for name in ("damaged", "silent", "diary", "number", "odd"):
        shutil.copytree(copy, name)
    for name in run.CHECKPOINTS:
        Path("damaged", name).write_bytes(b"damaged")
        torch.save(everything(copy) | {"config": None}, Path("odd", name))
    Path("silent/log.jsonl").unlink()
    Path("diary/log.jsonl").write_text("a diary\n")
    Path("number/log.jsonl").write_text("3\n")
    before = listing(tmp_path)
    assert sentence in refused(go, copy, folder, program=run)
    assert listing(tmp_path) == before


def test_run_py_reads_the_log_of_a_killed_run(monkeypatch, tmp_path, capsys, copy):
    """Its last line may be cut short; that is no damage."""
    monkeypatch.chdir(tmp_path)
    with open(copy / "log.jsonl", "a") as file:
        file.write('{"step": 4, "wass')
    go(copy, program=run)
    assert "step 3" in capsys.readouterr().out


# ---------------------------------------------------------------- kill and go on

class Killed(BaseException):
    pass


def opening_the_log(function):
    """Inside, run.py opens log.jsonl by another function."""
    def opened(path, mode):
        return function(path, mode) if Path(path).name == "log.jsonl" else open(path, mode)
    return mock.patch.object(run, "open", opened, create=True)


def killed_at(moment, *words):
    """Runs train.py until it touches the disk for the moment-th time, as SIGKILL would leave it:
    half a log line, half a checkpoint, one of two renames. -> True where it died, else False."""
    moments = itertools.count()
    replace, torch_save, write_text = os.replace, torch.save, Path.write_text

    def tick():
        if next(moments) == moment:
            raise Killed

    def renamed(source, target):
        tick()
        replace(source, target)
        tick()

    def saved(checkpoint, file):
        packed = io.BytesIO()
        torch_save(checkpoint, packed)
        whole = packed.getvalue()
        file.write(whole[:len(whole) // 2])
        file.flush()
        tick()
        file.write(whole[len(whole) // 2:])

    def text_written(path, text):
        write_text(path, text[:len(text) // 2])
        tick()
        write_text(path, text)

    @contextmanager
    def halves(path, mode):
        def write(text):
            for half in (text[:len(text) // 2], text[len(text) // 2:]):
                tick()
                file.write(half)
                file.flush()
            tick()
        with open(path, mode) as file:
            yield SimpleNamespace(write=write)

    try:
        with (mock.patch.object(os, "replace", renamed), mock.patch.object(torch, "save", saved),
              opening_the_log(halves),
              mock.patch.multiple(Path, write_text=text_written, unlink=lambda _: None)):
            go_toy(*words)
    except Killed:
        return True
    return False


def test_a_run_killed_at_any_moment_of_its_writing_goes_on_to_the_same_end(tmp_path, toy_run):
    for moment in itertools.count():
        folder = tmp_path / f"{moment}"
        words = *FAST, "--updates", 3, "--out", folder
        if not killed_at(moment, *words):
            break
        go_toy(*(("--resume", folder) if any(folder.glob("checkpoint*.pt")) else words))
        assert_same_end(folder, toy_run)
    # config.json; a line, half a checkpoint, its rename; twice the older one's rename
    assert moment == 3 + 3 * (3 + 3) + 2 * 2


def test_a_resumed_run_killed_once_more_never_loses_its_last_saved_state(tmp_path, toy_run):
    """The worst start: the last checkpoint is damaged, so all hangs on the one before."""
    for moment in itertools.count():
        folder = shutil.copytree(toy_run, tmp_path / f"{moment}")
        (folder / "checkpoint.pt").write_bytes(b"damaged")
        if not killed_at(moment, "--resume", folder):
            break
        go_toy("--resume", folder)
        assert_same_end(folder, toy_run)
    assert moment > 10


@pytest.mark.parametrize("bf16", ([], ["--bf16"]), ids=("float32", "bf16"))
@pytest.mark.parametrize("method", METHODS)
def test_four_updates_of_every_method_equal_two_and_resume_and_two(tmp_path, method, bf16):
    words = *FAST, "--method", method, *bf16
    go(*words, "--updates", 4, "--out", tmp_path / "whole")
    go(*words, "--updates", 2, "--out", tmp_path / "halves")
    go("--resume", tmp_path / "halves", "--updates", 4)
    assert_same_end(tmp_path / "halves", tmp_path / "whole")


def test_resume_goes_on_with_the_clock_and_keeps_its_new_settings(tmp_path, copy):
    torch.save(everything(copy) | {"seconds": 1000.0}, copy / "checkpoint.pt")
    moved = copy.rename(tmp_path / "moved")
    go_toy("--resume", moved, "--updates", 4)
    end = everything(moved)
    assert not copy.exists() and end["step"] == 4 and end["seconds"] > 1000
    assert run.read_log(moved)[-1]["seconds"] > 1000
    assert end["config"]["updates"] == 4 and end["config"]["out"] == str(moved)
    assert json.loads((moved / "config.json").read_text()) == end["config"]


def start(*words, **options):
    """train.py as its user starts it, on one thread and without a display."""
    quiet = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    quiet |= {"OMP_NUM_THREADS": "1", "MPLBACKEND": "TkAgg", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen([sys.executable, ROOT / "train.py", *map(str, words)], text=True,
                            env=quiet, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


def last_step(folder):
    """The last whole line of the log; 0 before there is one."""
    log = folder / "log.jsonl"
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def test_real_signals_stop_a_real_process_and_nothing_is_lost(tmp_path, h5):
    """On a machine without a display, a line per 10 updates. SIGKILL, then SIGINT; then five
    updates more, and the same from one go."""
    folder, whole, logged = tmp_path / "run", tmp_path / "whole", 0
    words = *FAST, "--data", h5, "--updates", 1000, "--out", folder
    for number in (signal.SIGKILL, signal.SIGINT):
        process, deadline = start(*words), time.monotonic() + 120
        while not (last_step(folder) > logged + 1 and (folder / "checkpoint.pt").exists()):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()
            time.sleep(0.01)
        process.send_signal(number)
        error = process.communicate(timeout=60)[1]
        logged, words = last_step(folder), ("--resume", folder)
    assert process.returncode == 128 + number and everything(folder)["step"] == logged, error
    assert error == (f"stopped after update {logged}; go on with: "
                     f"python train.py --resume {folder}\n")
    assert (folder / "samples" / "000001.png").exists() and (folder / "curves.png").exists()
    end = logged + 5
    go("--resume", folder, "--updates", end)
    go(*FAST, "--data", h5, "--updates", end, "--out", whole)
    one, other = everything(folder), everything(whole)
    assert all(equal(one[part], other[part]) for part in STATE)
    lines = {row["step"]: row for row in untimed_log(folder)}
    assert sorted(lines) == sorted({1, *range(10, logged, 10), *range(logged, end + 1)})
    assert all(lines.get(row["step"], row) == row for row in untimed_log(whole))


def test_the_same_signal_again_ends_the_program_at_once():
    for number in (signal.SIGINT, signal.SIGTERM):
        before = signal.getsignal(number)
        with pytest.raises(ZeroDivisionError), run.catching_signals() as caught:
            os.kill(os.getpid(), number)
            assert caught == [number] and signal.getsignal(number) == signal.SIG_DFL
            raise ZeroDivisionError
        assert signal.getsignal(number) == before


# ---------------------------------------------------------------- damaged checkpoints

def damaged(content, how):
    """content, damaged: cut at a share of its length, a bit flipped there, or how itself."""
    if isinstance(how, bytes):
        return how
    kind, share = how
    return content[:int(share * (len(content) - 1))] if kind == "cut" else flipped(content, share)


def flipped(content, place):
    """content with one bit flipped, at a place or at a share of its length."""
    place = int(place * (len(content) - 1)) if isinstance(place, float) else place
    return content[:place] + bytes([content[place] ^ 16]) + content[place + 1:]


def put_folder(path):
    path.unlink()
    path.mkdir()


DAMAGES = [b"", b"hello", b"\x80\x02}q\x00.", ("cut", 0.1), ("cut", 0.5), ("cut", 1.0),
           *(("flip", share) for share in (0.25, 0.4, 0.6)), Path.unlink, put_folder]


@pytest.mark.parametrize("how", DAMAGES, ids=lambda how: getattr(how, "__name__", str(how)))
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(
        tmp_path, capsys, copy, toy_run, how):
    last = copy / "checkpoint.pt"
    how(last) if callable(how) else last.write_bytes(damaged(last.read_bytes(), how))
    capsys.readouterr()
    assert run.load_checkpoint(copy)["step"] == 2  # it looks and leaves everything as it is
    said = capsys.readouterr().err
    assert said.startswith(f"{last}: ")
    assert said.endswith(f"taking {copy}/checkpoint_before.pt, the one before it\n")
    if how is not put_folder:  # no rename could mend that
        go_toy("--resume", copy)
        assert_same_end(copy, toy_run)
    (copy / "checkpoint_before.pt").write_bytes(b"")
    last.is_dir() or last.write_bytes(b"")
    before = listing(tmp_path)
    for call, words in ((go_toy, ["--resume", copy]), (evaluate.load_run, [copy, "cpu"])):
        assert f"{last}: is no checkpoint of train.py, or damaged" in refused(call, *words)
    assert listing(tmp_path) == before


def test_a_flipped_bit_is_noticed_or_changes_nothing(tmp_path, capsys, toy_run):
    """torch.load looks at no checksum, so most flips would train on unseen. Here: the bit of each
    entry that marks it as a folder, which torch then fills with garbage; the first bytes of the
    zip's directory; places all over the file."""
    content, sound = (toy_run / "checkpoint.pt").read_bytes(), everything(toy_run)
    unseen, directory = 0, zipfile.ZipFile(toy_run / "checkpoint.pt").start_dir
    folders = [entry.start() + 38 for entry in re.finditer(b"PK\1\2", content)]
    places = [*folders, *range(directory, directory + 200),
              *np.linspace(0, len(content) - 1, 200).astype(int)]
    for place in places:
        (tmp_path / "checkpoint.pt").write_bytes(flipped(content, place))
        try:
            assert equal(run.load_checkpoint(tmp_path), sound)
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


def test_a_pickle_bomb_is_not_set_off(tmp_path, copy):
    bomb = Bomb(tmp_path / "exploded")
    (copy / "checkpoint_before.pt").unlink()
    inside = everything(copy) | {"more": {"pool": bomb}}
    for write in (lambda path: path.write_bytes(pickle.dumps(bomb)),
                  lambda path: torch.save(bomb, path), lambda path: torch.save(inside, path),
                  lambda path: torch.save(inside, path, _use_new_zipfile_serialization=False)):
        write(copy / "checkpoint.pt")
        for call, words in ((go_toy, ["--resume", copy]), (evaluate.load_run, [copy, "cpu"])):
            assert "or damaged" in refused(call, *words)
    assert not bomb.path.exists()
    pickle.loads(pickle.dumps(bomb))
    assert bomb.path.exists()  # it would have gone off


ODD_CONFIGS = [lambda c: None, lambda c: [c], lambda c: {}, lambda c: c | {"new": 1},
               lambda c: {k: v for k, v in c.items() if k != "method"}, lambda c: c | {1: 1},
               lambda c: c | {"resume": "x"}, lambda c: c | {"help": "x"},
               lambda c: c | {"help": True}, lambda c: c | {"h": True}, lambda c: c | {"upd": 1},
               *(lambda c, odd=odd: c | odd for odd in (
                   {"width": "1"}, {"width": 1.5}, {"width": 0}, {"width": 10 ** 12},
                   {"width": True}, {"width": [1]}, {"size": 100}, {"method": "magic"},
                   {"method": 3}, {"lam": float("nan")}, {"bf16": "yes"}, {"data": 5},
                   {"batch": None}, {"init": 3}))]


@pytest.mark.parametrize("change", ODD_CONFIGS)
def test_a_checkpoint_of_odd_settings_ends_in_one_sentence(tmp_path, toy_run, change):
    checkpoint = everything(toy_run)
    torch.save(checkpoint | {"config": change(checkpoint["config"])}, tmp_path / "checkpoint.pt")
    before = listing(tmp_path)
    for call, words in ((go_toy, ["--resume", tmp_path]), (evaluate.load_run, [tmp_path, "cpu"]),
                        (go_toy, [*FAST, "--out", tmp_path / "new", "--init", tmp_path])):
        assert "is no checkpoint of train.py, or damaged" in refused(call, *words)
    assert listing(tmp_path) == before


def test_a_checkpoint_that_does_not_fit_itself_ends_in_one_sentence(tmp_path):
    """Another width, critic width or method in its settings than in its weights; other parts that
    are not what they should be. pi and uapi have the same networks: a change between these is the
    one that nothing shows."""
    go(*FAST, "--updates", 1, "--out", tmp_path / "run")
    sound, path = everything(tmp_path / "run"), tmp_path / "odd" / "checkpoint.pt"
    path.parent.mkdir()
    settings = {"G": {"width": 2}, "f": {"critic_width": 2}, "H": {"method": "cyclegan"},
                "G ": {"method": "ugac"}, "f_T": {"method": "gcgan"}}
    odd = [(part, {"config": sound["config"] | change}) for part, change in settings.items()]
    streams = sound["streams"]
    odd += [("G", {"networks": 3}), ("f", {"networks": {"G": sound["networks"]["G"]}}),
            ("opt_G", {"opt_G": 3}), ("opt_f", {"opt_f": {}}),
            ("opt_G", {"opt_G": {"state": {}, "param_groups": []}}), ("x", {"streams": {}}),
            ("eps", {"streams": streams | {"eps": 3}}),
            ("y", {"streams": streams | {"y": torch.zeros(3)}})]
    for part, change in odd:
        torch.save(sound | change, path)
        said = refused(go, "--resume", path.parent)
        other_type = any(type(value) is not run.CONTENTS[name] for name, value in change.items())
        reason = "of another type" if other_type else f"the checkpoint's {part.strip()} does not fit"
        assert reason in said, said
        if part.strip() == "G" and not other_type:
            assert "does not fit" in refused(evaluate.load_run, path.parent, "cpu")


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
    return lambda *words, **options: (
        function(*words, **options) if next(left) > 0 else raising(error)())


def test_a_full_disk_ends_in_one_sentence_and_the_last_checkpoint_is_whole(tmp_path, toy_run):
    readonly = PermissionError(errno.EACCES, "Permission denied")
    torchs = RuntimeError("[enforce fail at inline_container.cc:672] unexpected pos 64 vs 0")
    saving = lambda error, calls: mock.patch.object(
        torch, "save", fail_late(torch.save, error, calls))
    faults = {"log": lambda: opening_the_log(fail_late(open, FULL, 2)),
              "half a line": lambda: opening_the_log(half_written),
              "read-only": lambda: opening_the_log(raising(readonly)),
              "checkpoint": lambda: saving(FULL, 2),
              "checkpoint, in torch's words": lambda: saving(torchs, 1),
              "rename": lambda: mock.patch.object(os, "replace", fail_late(os.replace, FULL, 4)),
              "samples": ExitStack}
    for name, fault in faults.items():
        folder = tmp_path / name
        words = *FAST, "--updates", 3, "--out", folder
        full = {"plot_samples": raising(FULL)} if name == "samples" else {}
        with fault():
            said = refused(go_toy, *words, **full)
        assert "cannot be written" in said and f"{folder}" in said, (name, said)
        assert not any(folder.glob("*.tmp"))
        found = any(folder.glob("checkpoint*.pt"))
        go_toy(*(("--resume", folder) if found else words))
        assert_same_end(folder, toy_run)


def test_a_file_system_that_refuses_in_earnest(tmp_path, h5):
    """A real process may write 1.5 MB to a file: the pictures fit, the checkpoint does not."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000,) * 2)
    folder = tmp_path / "run"
    process = start(*FAST, "--data", h5, "--width", 2, "--out", folder, preexec_fn=limit)
    error = process.communicate(timeout=120)[1]
    assert process.returncode == 2 and error.count("\n") == 1, error
    assert error.startswith(f"error: {folder}/checkpoint.pt: cannot be written (")
    left = sorted(path.name for path in folder.iterdir())
    assert left == [".claim", "config.json", "curves.png", "log.jsonl", "samples"]


NO_MEMORY = (MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
             RuntimeError("MPS backend out of memory"),
             RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: "
                          "can't allocate memory: you tried to"),
             RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))


@pytest.mark.parametrize("error", NO_MEMORY, ids=str)
def test_no_memory_ends_in_one_sentence_and_keeps_the_last_checkpoint(tmp_path, toy_run, error):
    words, late = (*FAST, "--updates", 3, "--out"), fail_late(train.generator_loss, error, 2)
    said = refused(go_toy, *words, tmp_path / "run", generator_loss=late)
    assert "out of memory: choose a smaller --batch, --size or --width" in said
    assert f"{tmp_path}/run/checkpoint.pt holds the last saved state" in said
    go_toy("--resume", tmp_path / "run")
    assert_same_end(tmp_path / "run", toy_run)
    said = refused(go_toy, *words, tmp_path / "new", generator_loss=raising(error))
    assert "out of memory" in said and "checkpoint.pt was not written yet" in said


def test_networks_too_large_for_this_machine_end_in_one_sentence(tmp_path):
    with pytest.raises(RuntimeError) as real:
        train.build(TINY | {"width": 10 ** 5})  # more than a flag allows: 360 GB for one layer
    assert "out of memory" in refused(run.explain_failure, real.value, tmp_path)


@pytest.mark.parametrize("bug", (RuntimeError("The size of tensor a (3) must match"),
                                 ValueError("odd"), TypeError("odd")))
def test_a_bug_of_ours_shows_its_traceback(tmp_path, bug):
    with pytest.raises(type(bug), match=str(bug)[:3]) as shown:
        go_toy(*FAST, "--out", tmp_path / "run", generator_loss=raising(bug))
    assert shown.value is bug and shown.traceback[-1].name == "call"  # of raising(): where it was


# ---------------------------------------------------------------- wrong use

@pytest.mark.parametrize("flag, value, sentence", [
    ("--size", 100, "multiple of 32"), ("--size", 32, "from 64 up"),
    ("--size", 10 ** 6, "from 1 to 4096"), ("--size", -64, "whole number"),
    ("--batch", 0, "whole number from 1"), ("--batch", -2, "whole number"),
    ("--batch", 10 ** 9, "from 1 to 4096"), ("--batch", "2.5", "whole number"),
    ("--width", 10 ** 6, "from 1 to 256"), ("--critic-width", 10 ** 6, "from 1 to 512"),
    ("--updates", 0, "whole number from 1"), ("--updates", 10 ** 10, "whole number"),
    ("--critic-steps", 0, "whole number from 1"), ("--seed", -1, "whole number from 0"),
    ("--seed", "", "whole number"), ("--seed", 10 ** 20, "whole number from 0"),
    ("--lam", "nan", "finite"), ("--lam", "inf", "finite"), ("--lam", "-inf", "finite"),
    ("--lam", "ten", "finite"), ("--lam", -1, "finite number from 0"),
    ("--p", "nan", "finite"), ("--p", -1, "number from 0"), ("--lr-g", 0, "number from 1e-12"),
    ("--lr-c", "inf", "finite"), ("--lr-g", "1e999", "finite"),
    ("--method", "magic", "invalid choice"), ("--device", "toaster", "no such device"),
    ("--device", "cpu:7", "no such device"), ("--device", "meta", "no such device"),
    ("--device", "hpu", "no such device"), ("--device", "cuda:99", "no such device"),
    ("--device", "cuda:x", "no such device"), ("--magic", 1, "unrecognized"),
    ("--data", "", "nothing to train on"), ("--data", "none", "no such folder"),
    ("--resume", "none", "no such checkpoint"), ("--resume", "file", "no such checkpoint"),
    ("--resume", "file/deep", "no such checkpoint"), ("--init", "none", "no such checkpoint"),
    ("--init", "file", "no such checkpoint"), ("--out", "file", "cannot be made into a folder"),
    ("--out", "file/deep", "cannot be made into a folder"),
    ("--out", "/proc/none", "cannot be made into a folder"),
    ("--out", "x" * 300, "cannot be made into a folder"), ("--out", "full", "already holds a run"),
    ("--out", "foreign", "was not written by train.py"), ("--out", "taken", "it is a folder"),
])
def test_wrong_use_ends_in_one_sentence_and_leaves_nothing_behind(
        monkeypatch, tmp_path, toy_run, flag, value, sentence):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("in the way")
    shutil.copytree(toy_run, "full")
    Path("foreign").mkdir()
    Path("foreign/log.jsonl").write_text("a diary\n")
    Path("taken/config.json").mkdir(parents=True)
    before = listing(tmp_path)
    words = [f"{flag}={value}"] if flag == "--resume" else [*FAST, f"{flag}={value}"]
    assert sentence in refused(go_toy, *words)
    assert listing(tmp_path) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="here there is a CUDA device")
def test_cuda_where_there_is_none_ends_in_one_sentence():
    assert "--device cuda: this machine has no such device" in refused(run.pick_device, "cuda")


@pytest.mark.parametrize("words, sentence", [
    (["--lam", 3, "--batch", 5], "leave out --lam, --batch"),
    (["--method", "pi"], "leave out --method"), (["--seed", 4], "leave out --seed"),
    (["--lr-c", 1], "leave out --lr-c"), (["--out", "elsewhere"], "leave out --out"),
    (["--bf16"], "leave out --bf16"), (["--decay", 0.5], "leave out --decay"),
    (["--data", "other"], "other: no such folder"), (["--init", "other"], "leave out --init"), (["--lr-g", 1e-6], "with --init"),
    (["--updates", 2], "at least 3"), (["--smoke"], "stands alone"),
    (["--device", "toaster"], "no such device")])
def test_resume_takes_no_other_flags(tmp_path, copy, words, sentence):
    before = listing(tmp_path)
    assert sentence in refused(go_toy, "--resume", copy, *words)
    assert listing(tmp_path) == before


def test_resume_without_its_data_ends_in_one_sentence(tmp_path, h5):
    shutil.copy(h5, tmp_path / "moved.h5")
    go_toy(*FAST, "--data", tmp_path / "moved.h5", "--updates", 1, "--out", tmp_path / "run")
    (tmp_path / "moved.h5").unlink()
    before = listing(tmp_path)
    said = refused(go_toy, "--resume", tmp_path / "run", "--updates", 2)
    assert "moved.h5: no such folder or file" in said and listing(tmp_path) == before


# ---------------------------------------------------------------- evaluate.py used wrongly

@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """run: 64x64; large: 96x96."""
    root = tmp_path_factory.mktemp("runs")
    go(*FAST, "--updates", 1, "--out", root / "run")
    go(*FAST, "--size", 96, "--updates", 1, "--out", root / "large")
    return root


def test_evaluate_used_wrongly_ends_in_one_sentence_and_leaves_nothing_behind(
        monkeypatch, tmp_path, h5, runs):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((9, 9), np.uint8)).save("good.png")
    Path("empty").mkdir()
    one, large, before, judged = runs / "run", runs / "large", listing(tmp_path), ("--data", h5)
    for words, sentence in (
            ([one], "required: --data"), ([one, *judged, "--image", "good.png"], "unrecognized"),
            ([*judged], "required: RUN"), (["empty", *judged], "no such checkpoint"),
            (["none", *judged], "no such checkpoint"),
            (["good.png", *judged], "no such checkpoint"),
            ([one, large, *judged], "different sizes, [64, 96]"),
            ([one, one, *judged], "same folder name"), ([one, "--data", "none"], "no such folder"),
            ([one, "--data", "empty"], "no readable image for evaluation_input"),
            ([one, "--data", "good.png"], "is not an .h5"),
            ([one, *judged, "--device", "toaster"], "no such device"),
            ([one, *judged, "--out", "good.png"], "cannot be made into a folder"),
            ([one, *judged, "--out", "good.png/deep"], "cannot be made into a folder"),
            ([one, *judged, "--out", "/proc/none"], "cannot be made into a folder")):
        assert sentence in refused(go, *words, program=evaluate), words
        assert listing(tmp_path) == before, words


@pytest.mark.parametrize("place", ("table1.md", "metrics.json", "fig2_3_psnr.png",
                                   "run/translation/good.png", "run/scale/good.npy"))
def test_evaluate_on_a_full_disk_ends_in_one_sentence_and_leaves_no_half_file(
        tmp_path, h5, runs, place):
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(tmp_path / "good.png")
    program, what = (translate, [tmp_path / "good.png"]) if "good" in place else (
        evaluate, ["--data", h5])
    replace = os.replace
    full = lambda source, target: (
        raising(FULL)() if f"{target}".endswith(place) else replace(source, target))
    with (mock.patch.object(os, "replace", full),
          mock.patch.object(data, "picture_grid", lambda *_: None),
          mock.patch.object(evaluate, "picture_grid", lambda *_, **__: None)):
        said = refused(go, runs / "run", *what, "--out", tmp_path / "out", program=program)
    assert f"{place}: cannot be written (No space left on device)" in said
    left = [str(path) for path in (tmp_path / "out").rglob("*")]
    assert not any(name.endswith((place, ".tmp")) for name in left)


@pytest.mark.parametrize("error", (torch.OutOfMemoryError("CUDA out of memory"), MemoryError()))
def test_evaluate_without_memory_ends_in_one_sentence(monkeypatch, tmp_path, h5, runs, error):
    words = runs / "run", "--data", h5, "--out", tmp_path / "out"
    for part in ("load", "evaluate_runs"):
        with mock.patch.object(evaluate, part, raising(error)):
            said = refused(go, *words, program=evaluate)
        assert said.startswith("error: out of memory: evaluate fewer runs"), part
    monkeypatch.setattr(evaluate, "evaluate_runs", raising(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        go(*words, program=evaluate)


# ---------------------------------------------------------------- numbers stay sane

def grey(value, n=2):
    return np.full((n, 64, 64), value, np.uint8)


def noise(seed):
    return np.random.default_rng(seed).choice([0, 255], (4, 64, 64)).astype(np.uint8)


ODD_DATA = {  # input, target, changed settings
    "salt and pepper, identical domains, a batch of one, lam 1e6":
        (noise(0), noise(0), {"batch": 1, "lam": 1e6}),
    "all black, a constant target, a batch of one, lam 0":
        (grey(0), grey(140), {"batch": 1, "lam": 0.0}),
}


@pytest.mark.parametrize("what", ODD_DATA)
def test_200_updates_on_odd_data_stay_finite_and_the_scale_positive(tmp_path, what):
    one, other, changes = ODD_DATA[what]
    slices = tiny_slices()._replace(input=one, target=other)
    with replaced(save=lambda *_: None):
        state = trained(tmp_path, slices, updates=200, critic_steps=1, **changes)
    rows = untimed_log(tmp_path)
    values = [value for row in rows for value in row.values() if value is not None]
    assert len(rows) == 101 and np.isfinite(values).all()  # update 1, and every second one
    if changes.get("lam") != 0:  # then nothing trains the scale, and none is logged
        assert min(row["scale_min"] for row in rows) >= 1 / 127.5
    assert all(torch.isfinite(w).all() for w in state.theta.parameters())


# ---------------------------------------------------------------- same seed, same run

def drawn(folder, slices):
    """Everything that two updates of toy networks draw: batches, patches and eps."""
    found = []

    def sample(*words):
        phi = sample_phi(*words)
        found.extend(phi)
        return phi

    def critic_loss(f, y, fake, phi, eps, p):
        found.append(eps)
        return losses.critic_loss(f, y, fake, phi, eps, p)

    def draw(*words):
        found.append(data.draw(*words))
        return found[-1]
    with replaced(UNet=ToyG, Critic=ToyF, draw=draw, sample_phi=sample, critic_loss=critic_loss):
        trained(folder, slices)
    return found


def test_the_number_of_threads_changes_no_draw(tmp_path):
    found = []
    for threads in (1, 2):
        folder = tmp_path / f"{threads}"
        folder.mkdir()
        try:
            torch.set_num_threads(threads)
            found.append(drawn(folder, tiny_slices()))
        finally:
            torch.set_num_threads(1)
    assert len(found[0]) == 2 * (3 * (2 + 3 + 1) + 1 + 3) and equal(*found)
    streams = [everything(tmp_path / f"{threads}")["streams"] for threads in (1, 2)]
    assert equal(*streams)


def test_two_runs_of_the_real_networks_are_equal_bit_for_bit(tmp_path):
    for name in "ab":
        go(*FAST, "--updates", 3, "--out", tmp_path / name)
    assert_same_end(tmp_path / "a", tmp_path / "b")


def test_the_order_of_files_on_disk_changes_no_draw(tmp_path):
    pictures, found = noise(2), []
    for k, order in enumerate(([0, 1, 2, 3], [3, 1, 0, 2])):
        for which in ("input", "target"):
            (tmp_path / f"{k}" / which).mkdir(parents=True)
            for i in order:
                picture = Image.fromarray(pictures[i])
                picture.save(tmp_path / f"{k}" / which / f"{which}{i}_0.png")
        found.append(drawn(tmp_path / f"{k}", data.load(tmp_path / f"{k}", 64)))
    assert equal(*found)


# ---------------------------------------------------------------- one training a folder

def test_a_second_training_in_one_folder_ends_with_a_sentence_also_before_the_first_checkpoint(
        tmp_path, copy):
    """The claim is a lock, which no dead process holds: a left .claim file blocks nobody."""
    for folder, words in ((tmp_path / "new", (*FAST, "--updates", 2, "--out", tmp_path / "new")),
                          (copy, ("--resume", copy, "--updates", 4))):
        with run.claim_folder(folder):
            before = listing(tmp_path)
            assert "another run writes there now" in refused(go_toy, *words)
            assert listing(tmp_path) == before
        assert (folder / ".claim").exists()
        go_toy(*words)
    assert everything(copy)["step"] == 4


def test_two_real_trainings_started_together_leave_one_run(tmp_path, h5):
    folder = tmp_path / "run"
    words = *FAST, "--data", h5, "--updates", 400, "--out", folder
    pair = [start(*words), start(*words)]
    deadline = time.monotonic() + 120
    while all(process.poll() is None for process in pair) and time.monotonic() < deadline:
        time.sleep(0.05)
    loser, winner = sorted(pair, key=lambda process: process.poll() is None)
    assert loser.returncode == 2
    error = loser.communicate()[1]
    assert error.startswith(f"error: {folder}: another run writes there now"), error
    winner.send_signal(signal.SIGTERM)
    winner.communicate(timeout=60)
    steps = [row["step"] for row in untimed_log(folder)]
    assert winner.returncode in (0, 128 + signal.SIGTERM) and steps == sorted(set(steps))


def test_a_lock_is_windows_own_where_there_is_no_fcntl(tmp_path):
    for error in (None, PermissionError(errno.EACCES, "held")):
        msvcrt = SimpleNamespace(LK_NBLCK=2, locking=mock.Mock(side_effect=error))
        with (mock.patch.object(run, "os", SimpleNamespace(name="nt")),
              mock.patch.dict(sys.modules, msvcrt=msvcrt, fcntl=None)):
            file = run.lock(tmp_path / "claim")
        assert (file is None) == (error is not None) and msvcrt.locking.call_count == 1
        if file:
            file.close()


def test_a_file_system_without_locks_is_not_taken_for_another_training(tmp_path):
    fcntl = SimpleNamespace(LOCK_EX=1, LOCK_NB=2, flock=raising(OSError(errno.ENOLCK, "No locks")))
    with mock.patch.dict(sys.modules, fcntl=fcntl):
        said = refused(go_toy, *FAST, "--updates", 1, "--out", tmp_path / "run")
    assert "No locks" in said and "another run" not in said


# ---------------------------------------------------------------- moved data, default names

def test_resume_takes_the_new_name_of_moved_data_and_ends_as_if_nothing_had_moved(tmp_path, h5):
    for name in ("stays", "moves"):
        shutil.copy(h5, tmp_path / f"{name}.h5")
        go_toy(*FAST, "--data", tmp_path / f"{name}.h5", "--updates", 2, "--out", tmp_path / name)
    (tmp_path / "moves.h5").rename(tmp_path / "moved.h5")
    said = refused(go_toy, "--resume", tmp_path / "moves", "--updates", 4)
    assert "moves.h5: no such folder or file" in said and "leave out" not in said
    go_toy("--resume", tmp_path / "moves", "--updates", 4, "--data", tmp_path / "moved.h5")
    go_toy("--resume", tmp_path / "stays", "--updates", 4)
    assert_same_end(tmp_path / "moves", tmp_path / "stays")
    assert everything(tmp_path / "moves")["config"]["data"] == str(tmp_path / "moved.h5")


def test_only_files_have_endings_in_a_default_name(monkeypatch, tmp_path, h5):
    monkeypatch.chdir(tmp_path)
    shutil.copy(h5, "set.v2.h5")
    for which, pile in zip(("input", "target"), tiny_slices()[:2]):
        Path("ixi.v1_0.5mm", which).mkdir(parents=True)
        for k, image in enumerate(pile):
            Image.fromarray(image).save(f"ixi.v1_0.5mm/{which}/p{which}{k}_0.png")
    for data_set in ("set.v2.h5", "ixi.v1_0.5mm/"):
        go_toy(*FAST, "--data", data_set, "--updates", 1)
    names = {path.name for path in Path("runs").iterdir()}
    assert names == {"set.v2_uapi_lam10_seed0", "ixi.v1_0.5mm_uapi_lam10_seed0"}


def test_a_folder_that_holds_a_run_is_named_with_the_data_of_that_run(tmp_path, copy):
    said = refused(go_toy, *FAST, "--data", "other/phantom", "--out", copy)
    assert f"{copy}: already holds a run, on phantom; go on with it by --resume {copy}" in said


def test_a_run_that_ends_while_another_reads_its_slices_is_not_replaced(tmp_path):
    """Both looked into the folder before either had saved; the claim of the first is gone."""
    out, load = tmp_path / "run", data.load

    def slow_load(*words):
        if not out.exists():  # the other one begins and ends meanwhile
            saved(out, ToyG(1))
            found.append((out / "checkpoint.pt").read_bytes())
        return load(*words)
    found = []
    said = refused(go_toy, *FAST, "--updates", 1, "--out", out, load=slow_load)
    assert "already holds a run" in said, f"two new runs, one folder: says {said!r}"
    assert (out / "checkpoint.pt").read_bytes() == found[0], "the first run was written over"


def test_a_resume_never_rolls_back_what_another_process_has_done_while_it_reads_its_slices(copy):
    def slow_load(*words):
        if not ends:
            ends.append(None)  # the other one's slices are quickly read
            go_toy("--resume", copy, "--updates", 4)
            ends.append((everything(copy), untimed_log(copy)))
        return data_load(*words)
    ends, data_load = [], data.load
    said = refused(go_toy, "--resume", copy, "--updates", 5, load=slow_load)
    assert "another process went on with it meanwhile" in said
    assert equal(ends[1], (everything(copy), untimed_log(copy))) and everything(copy)["step"] == 4


def test_a_run_of_which_only_the_checkpoint_before_is_left_is_not_replaced(tmp_path, capsys):
    """So a run lies there that was killed between its two renames."""
    out = saved(tmp_path / "run", ToyG(1))
    (out / "checkpoint.pt").rename(out / "checkpoint_before.pt")
    before = files_in(out)
    with pytest.raises(SystemExit) as stop:
        go_toy(*FAST, "--updates", 1, "--out", out)
    said = capsys.readouterr().err
    assert stop.value.code == 2 and "already holds a run" in said, f"a new run there: {said!r}"
    assert files_in(out) == before, f"it was refused, yet left {files_in(out).keys()}"


# ---------------------------------------------------------------- names, outputs, signals

ODD_NAMES = ("$lam_$seed", "_first", "r\udce9sum\udce9", "a\u202fb", "\u8133", "tab\tnew\nline",
             "\ud800")


def test_every_name_can_be_printed_drawn_and_told_from_the_others():
    assert run.printable("IXI_1 \u8133") == "IXI_1 \u8133"
    assert run.printable(os.fsdecode(b"r\xe9sum\xe9")) == "r\\udce9sum\\udce9"
    assert len({run.printable(name) for name in ODD_NAMES}) == len(ODD_NAMES)
    for name in ODD_NAMES:
        assert run.printable(name).isprintable() and run.printable(name).encode("utf-8")
        assert not run.label(name).startswith("_")
    figure = Figure()
    ax = figure.subplots()
    for name in ODD_NAMES:
        ax.plot([0, 1], label=run.label(name))
    assert len(ax.legend().get_texts()) == len(ODD_NAMES), "a name has no entry in the legend"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about a font without that glyph
        figure.savefig(io.BytesIO())


@pytest.mark.parametrize("name", ODD_NAMES[:5])
def test_a_run_of_any_name_trains_goes_on_and_is_shown(monkeypatch, tmp_path, capsys, name):
    monkeypatch.chdir(tmp_path)
    if sys.platform != "linux":
        pytest.skip("other file systems refuse such names")
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        go_toy(*FAST, "--updates", 1, "--out", f"runs/{name}", plot_curves=run.plot_curves,
               plot_samples=lambda *_: None)
        go_toy("--resume", f"runs/{name}", "--updates", 2)
        go(f"runs/{name}", program=run, plot_curves=run.plot_curves)
    assert everything(Path("runs", name))["step"] == 2 and Path("curves.png").exists()


def program(code, **options):
    """A process that runs code as one of the programs would run its main()."""
    text = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nimport run\n{code}\nrun.start(main)"
    return subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, **options)


@pytest.mark.parametrize("coding", ("cp1252", "ascii", "utf-8"))
def test_a_name_that_the_output_cannot_show_is_escaped_and_ends_nothing(coding):
    code = "def main():\n  print('\\u8133 \\udce9'); print('\\u8133', file=sys.stderr)"
    process = program(code, env=os.environ | {"PYTHONIOENCODING": coding})
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0 and b"Traceback" not in error, error
    assert b"\\udce9" in out and (coding == "utf-8" or b"\\u8133" in out + error)


def test_a_reader_that_has_gone_ends_a_program_with_141_and_without_a_traceback():
    code = "def main():\n  for _ in range(10 ** 6): print('a line')"
    process = program(code)
    process.stdout.readline()
    process.stdout.close()
    error = process.stderr.read()
    assert process.wait(timeout=60) == 141 and error == b"", error


def test_ctrl_c_ends_a_program_with_130_and_without_a_traceback():
    code = "def main():\n  import time\n  print('ready', flush=True)\n  time.sleep(60)"
    # A shell's background jobs ignore the signal, and so would their children.
    process = program(code, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and error == b"", error


def test_every_program_starts_alike():
    for path in sorted(ROOT.glob("*.py")):
        source = path.read_text()
        assert source.rstrip().endswith(("run.start(main)", "    start(main)")), (
            f"{path.name}: Ctrl-C, | head and names that cannot be shown end in a traceback")


def test_a_closed_pipe_is_no_full_disk(tmp_path):
    with pytest.raises(BrokenPipeError):
        run.explain_failure(BrokenPipeError(errno.EPIPE, "Broken pipe"), tmp_path)


def test_a_folder_of_somebody_else_ends_in_one_sentence(tmp_path):
    """Mode 700 of another user: even to ask whether a checkpoint is there is forbidden."""
    forbidden = PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "log.jsonl"))
    with mock.patch.object(Path, "exists", raising(forbidden)):
        said = refused(run.explain_failure, forbidden, tmp_path)
    assert "log.jsonl: cannot be written (Permission denied)" in said
    with mock.patch.object(run, "open", raising(forbidden), create=True):
        said = refused(go_toy, *FAST, "--updates", 1, "--out", tmp_path / "run")
    assert "cannot be written (Permission denied); choose another --out" in said
