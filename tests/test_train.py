"""Sec. 3.4: the loop moves what it says, as often as it says, with fresh draws, the paper's settings, and nothing else."""
import functools
import json
import tempfile
from pathlib import Path
from unittest.mock import patch as replaced

import numpy as np
import pytest
import torch

import data
import train

TINY = dict(data="phantom", method="uapi", lam=10.0, p=10.0, size=64, batch=2, updates=2, critic_steps=3, lr_g=5e-5, lr_c=2e-5,
            width=1, critic_width=1, seed=0, bf16=False, device="cpu", out=None)


@functools.cache
def tiny_slices():
    return data.phantoms(64, subjects=3, slices=2)


class ToyG(torch.nn.Module):
    """Two convolutions with the generator's manners: the loop is audited, not the networks, and this takes milliseconds."""

    def __init__(self, method, width):
        super().__init__()
        self.shared, self.scale_head = torch.nn.Conv2d(1, 2, 3, padding=1), torch.nn.Conv2d(2, 1, 3, padding=1)

    def image(self, x):
        return torch.tanh(self.shared(x).sum(dim=1, keepdim=True) + x)

    def forward(self, x):
        h = self.shared(x)
        return torch.tanh(h.sum(dim=1, keepdim=True) + x), torch.nn.functional.softplus(self.scale_head(h)) + 0.01


class ToyF(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.shared = torch.nn.Conv2d(1, 2, 5, stride=3)

    def forward(self, y):
        return self.shared(y).square().mean(dim=(1, 2, 3))


def weights(network):
    return [w.detach().clone() for w in network.parameters()]


def gradients(network):
    return [None if w.grad is None else w.grad.clone() for w in network.parameters()]


def same(one, other):
    return all((u is None and v is None) or (u is not None and v is not None and torch.equal(u, v)) for u, v in zip(one, other))


@functools.cache
def watched_run(**changes):
    """Trains two updates of a toy run and returns everything that happened, in order, as a list of dicts:
    draw (pile, batch), critic_loss and generator_loss (their arguments and exact gradients), forward (network, images),
    step (network, what the step did to both networks). Logging and drawing are left out."""
    events, config, parts = [], TINY | changes, {}

    def watch_step(name, optimiser):
        step = optimiser.step

        def watched():
            G, f = parts["G"], parts["f"]
            before = {"G": weights(G), "f": weights(f)}
            event = {"what": "step", "network": name, "gradients": {"G": gradients(G), "f": gradients(f)}}
            step()
            events.append(event | {"moved": {k: not same(before[k], weights(parts[k])) for k in before}})
        optimiser.step = watched

    def build(*args):
        built = original["build"](*args)
        parts.update(zip(("G", "f", "opt_G", "opt_f", "streams"), (built[0]["G"], built[1]["f"], *built[2:])))
        for name, layer in (("G", parts["G"].shared), ("scale", parts["G"].scale_head), ("f", parts["f"].shared)):
            layer.register_forward_hook(lambda _, inputs, __, name=name: events.append({"what": "forward", "network": name, "images": len(inputs[0])}))
        watch_step("G", built[2])
        watch_step("f", built[3])
        return built

    def draw(images, b, generator, device):
        batch = original["draw"](images, b, generator, device)
        events.append({"what": "draw", "pile": images, "batch": batch, "stream": generator})
        return batch

    def critic_loss(f, y, fake, phi, eps, p):
        risk = original["critic_loss"](f, y, fake, phi, eps, p)
        exact = torch.autograd.grad(risk, list(f.parameters()), retain_graph=True)
        events.append({"what": "critic_loss", "y": y, "fake": fake, "phi": phi, "eps": eps, "p": p, "exact": exact})
        return risk

    def generator_loss(f, G, x, phi, lam, uncertainty):
        risk, terms = original["generator_loss"](f, G, x, phi, lam, uncertainty)
        exact = torch.autograd.grad(risk, list(G.parameters()), retain_graph=True, allow_unused=True)
        events.append({"what": "generator_loss", "x": x, "phi": phi, "lam": lam, "uncertainty": uncertainty, "exact": exact})
        return risk, terms

    stand_ins = dict(make_generator=ToyG, Critic=ToyF, build=build, draw=draw, critic_loss=critic_loss, generator_loss=generator_loss,
                     log=lambda *_, **__: None, save=lambda *_: None, draw_samples=lambda *_: None, draw_curves=lambda *_: None,
                     critic_slope=lambda *_: torch.zeros(()))
    original = {name: getattr(train, name) for name in stand_ins}
    with replaced.multiple(train, **stand_ins):
        train.train(config, tiny_slices(), Path("nowhere"))
    return events, parts, config


def of(events, what):
    return [event for event in events if event["what"] == what]


# ---------------------------------------------------------------- audits of the loop

def test_critic_updates_move_omega_alone_and_generator_updates_theta_alone():
    events, _, config = watched_run()
    steps = of(events, "step")
    assert [s["network"] for s in steps] == (["f"] * config["critic_steps"] + ["G"]) * config["updates"]
    for step in steps:
        assert step["moved"] == {"G": step["network"] == "G", "f": step["network"] == "f"}


def test_no_gradient_reaches_the_network_that_stands_still():
    events, _, _ = watched_run()
    last = {"G": None, "f": None}
    for step in of(events, "step"):
        moving, still = ("G", "f") if step["network"] == "G" else ("f", "G")
        if last[still] is None:
            assert all(g is None for g in step["gradients"][still])
        else:
            assert same(step["gradients"][still], last[still])
        last[moving] = step["gradients"][moving]
    assert all(not event["fake"].requires_grad for event in of(events, "critic_loss"))


def test_every_step_uses_the_gradient_of_its_own_risk_and_nothing_older():
    events, _, _ = watched_run()
    exact = None
    for event in events:
        exact = event.get("exact", exact)
        if event["what"] == "step":
            for g, e in zip(event["gradients"][event["network"]], exact):
                assert (g is None and e is None) or torch.allclose(g, e, rtol=1e-4, atol=1e-7)


def test_passes_per_update_are_those_the_readme_states():
    events, _, config = watched_run()
    b, n_c = config["batch"], config["critic_steps"]
    passes = {name: [e["images"] for e in of(events, "forward") if e["network"] == name] for name in "Gf"}
    # G(x) for each critic update; G(x) and G(P(x)) for the generator's; G(x) once more for the slope in the log line
    assert passes["G"] == ([b] * n_c + [b, b] + [b]) * 2
    assert passes["f"] == ([4 * b, b] * n_c + [b, b]) * 2  # four batches and y~; G(x) and P(G(x))


def test_the_scale_head_rests_during_critic_updates():
    events, _, config = watched_run()
    heads = [e["network"] for e in of(events, "forward") if e["network"] != "f"]
    assert heads == (["G"] * config["critic_steps"] + ["G", "scale", "G", "scale"] + ["G"]) * config["updates"]
    events, parts, _ = watched_run(method="pi", critic_steps=1, updates=1)
    assert all(w.grad is None for w in parts["G"].scale_head.parameters())  # PI has no use for it


def test_x_y_phi_and_eps_are_new_at_every_update():
    events, _, config = watched_run()
    n = config["updates"] * (config["critic_steps"] + 1)
    phis = [tuple(map(tuple, (v.tolist() for v in e["phi"]))) for e in events if "phi" in e]
    eps = [tuple(e["eps"].flatten().tolist()) for e in of(events, "critic_loss")]
    batches = [e["batch"].sum(dim=(1, 2, 3)) for e in of(events, "draw")]
    assert len(phis) == n and len(set(phis)) == n
    assert len(eps) == config["updates"] * config["critic_steps"] == len(set(eps))
    assert len({tuple(b.tolist()) for b in batches}) > len(batches) // 2  # drawn with replacement from six: repeats may happen


def test_eps_is_one_uniform_number_per_image():
    events, _, config = watched_run(batch=32, updates=1)
    eps = torch.stack([e["eps"] for e in of(events, "critic_loss")])
    assert eps.shape[1:] == (config["batch"], 1, 1, 1)
    assert 0 <= eps.min() and eps.max() < 1 and abs(eps.mean() - 0.5) < 0.09 and abs(eps.var() - 1 / 12) < 0.03


def test_phi_is_one_per_image_and_covers_the_batch():
    events, _, _ = watched_run(batch=32, updates=1)
    for event in events:
        if "phi" in event:
            assert all(v.shape == (32,) for v in event["phi"]) and len(set(event["phi"].size.tolist())) > 4


def test_x_comes_from_input_and_y_from_target_by_independent_streams():
    events, parts, config = watched_run(batch=32, updates=1)
    slices = tiny_slices()
    draws = of(events, "draw")
    piles = {"x": data.to_device(slices.input, "cpu"), "y": data.to_device(slices.target, "cpu")}
    order = ["x", "y"] * config["critic_steps"] + ["x"]
    for name, event in zip(order * config["updates"], draws, strict=True):
        assert torch.equal(event["pile"], piles[name]) and event["stream"] is parts["streams"][name]
    index = {name: [] for name in piles}
    for name, event in zip(order, draws):
        known = data.to_unit(piles[name]).flatten(1)
        index[name] += (event["batch"].flatten(1)[:, None] == known).all(dim=2).int().argmax(dim=1).tolist()
    x, y = np.array(index["x"][:96]), np.array(index["y"])
    assert set(x) == set(y) == set(range(6))                    # with replacement, every slice can come
    assert abs(np.mean(x == y) - 1 / 6) < 0.12                  # no more often equal than by chance
    assert abs(np.corrcoef(x, y)[0, 1]) < 0.3


def test_critic_judges_fakes_of_its_own_x_and_the_generator_gets_a_fresh_batch():
    events, parts, config = watched_run()
    xs = [e["batch"] for e in of(events, "draw")][:7:2]  # x y x y x y x
    assert torch.equal(of(events, "generator_loss")[0]["x"], xs[-1])
    assert not torch.equal(xs[-1], xs[-2])
    with replaced.multiple(train, make_generator=ToyG, Critic=ToyF):
        G = train.build(config)[0]["G"]
    for x, y, event in zip(xs, [e["batch"] for e in of(events, "draw")][1:7:2], of(events, "critic_loss")[:3]):
        assert torch.equal(event["y"], y) and torch.allclose(event["fake"], G.image(x), atol=1e-6)


def test_lam_p_and_method_reach_the_risks():
    for method in ("uapi", "pi"):
        events, _, _ = watched_run(method=method, lam=3.5, p=2.5, critic_steps=1, updates=1)
        assert all(e["p"] == 2.5 for e in of(events, "critic_loss"))
        assert [(e["lam"], e["uncertainty"]) for e in of(events, "generator_loss")] == [(3.5, method == "uapi")]


def test_optimisers_and_defaults_are_the_papers():
    defaults = {a.dest: a.default for a in train.make_parser()._actions}
    paper = dict(p=10, size=256, batch=8, updates=15000, critic_steps=15, lr_g=5e-5, lr_c=2e-5, width=16, critic_width=32, method="uapi")
    assert {name: defaults[name] for name in paper} == paper
    theta, omega, opt_G, opt_f, streams, _, step, _ = train.build(TINY)
    G, f = theta["G"], omega["f"]
    for optimiser, network, lr in ((opt_G, G, 5e-5), (opt_f, f, 2e-5)):
        group, = optimiser.param_groups
        assert isinstance(optimiser, torch.optim.Adam) and group["betas"] == (0, 0.9) and group["lr"] == lr
        assert group["weight_decay"] == 0 and not group["amsgrad"]
        assert [id(w) for w in group["params"]] == [id(w) for w in network.parameters()]
    assert len({stream.initial_seed() for stream in streams.values()}) == 5 and step == 0


GOLDEN = (  # measured with torch 2.13.0 on a CPU, one and two threads alike
    {"wasserstein": 0.150089, "slope": 0.344198, "adversarial": 0.00336740, "adversarial_patch": -0.0151616,
     "patch": 0.983793, "residual": 0.329858, "scale_mean": 0.860645, "scale_min": 0.00963650},
    {"wasserstein": 0.236023, "slope": 0.357783, "adversarial": 0.0107016, "adversarial_patch": -0.00802349,
     "patch": 0.969266, "residual": 0.287367, "scale_mean": 0.853705, "scale_min": 0.00852117},
)


@functools.cache
def first_losses():
    """Two updates of the real networks -> the logged rows, and every critic's risk in order."""
    risks, original = [], train.critic_loss
    with tempfile.TemporaryDirectory() as run, replaced.multiple(
            train, draw_samples=lambda *_: None, draw_curves=lambda *_: None,
            critic_loss=lambda *arguments: risks.append(original(*arguments)) or risks[-1]):
        train.train(TINY | {"lr_g": 1e-3, "lr_c": 1e-3}, tiny_slices(), Path(run))
        return [json.loads(line) for line in (Path(run) / "log.jsonl").read_text().splitlines()], risks


def test_golden_first_losses():
    """Whatever moves these numbers changed the algorithm, its draws or its start."""
    for row, golden in zip(first_losses()[0], GOLDEN, strict=True):
        for name, value in golden.items():
            assert row[name] == pytest.approx(value, rel=2e-3), name


def test_the_wasserstein_number_is_minus_the_critics_last_risk():
    rows, risks = first_losses()
    assert [row["wasserstein"] for row in rows] == [-risks[2].item(), -risks[5].item()]


# ---------------------------------------------------------------- the program

SMALL = "--data phantom --size 64 --width 1 --critic-width 1 --batch 2 --critic-steps 2".split()


def cli(monkeypatch, *words, draw=False):
    """Runs train.py in this process, on fewer phantoms than usual and, for speed, without pictures."""
    slices = tiny_slices()
    monkeypatch.setattr("sys.argv", ["train.py", *map(str, words)])
    nothing = lambda *_: None
    pictures = dict(draw_samples=train.draw_samples if draw else nothing, draw_curves=train.draw_curves if draw else nothing)
    with replaced.object(data, "phantoms", lambda size: slices), replaced.multiple(train, **pictures):
        train.main()


def everything(run):
    return torch.load(run / "checkpoint.pt", weights_only=True)


def equal(one, other):
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def untimed_log(run):
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_second")} for row in rows]


def test_six_updates_equal_three_and_resume_and_three(monkeypatch, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    cli(monkeypatch, *SMALL, "--updates", 6, "--out", whole)
    original = train.save

    def killed(run, checkpoint):
        if checkpoint["step"] == 4:
            raise KeyboardInterrupt  # after the fourth line was logged, before its checkpoint stands
        original(run, checkpoint)

    with replaced.object(train, "save", killed), pytest.raises(KeyboardInterrupt):
        cli(monkeypatch, *SMALL, "--updates", 6, "--out", parts)
    assert everything(parts)["step"] == 3
    cli(monkeypatch, "--resume", parts)
    one, other = everything(whole), everything(parts)
    for part in ("networks", "opt_G", "opt_f", "streams", "step"):
        assert equal(one[part], other[part]), part
    assert untimed_log(whole) == untimed_log(parts) and [row["step"] for row in untimed_log(parts)] == [1, 2, 3, 4, 5, 6]


def test_a_finished_run_can_be_given_more_updates(monkeypatch, tmp_path):
    cli(monkeypatch, *SMALL, "--updates", 1, "--out", tmp_path / "short")
    cli(monkeypatch, "--resume", tmp_path / "short", "--updates", 2)
    cli(monkeypatch, *SMALL, "--updates", 2, "--out", tmp_path / "long")
    assert equal(everything(tmp_path / "short")["networks"], everything(tmp_path / "long")["networks"])


def test_a_run_leaves_what_the_readme_promises(monkeypatch, tmp_path, capsys):
    run = tmp_path / "run"
    cli(monkeypatch, *SMALL, "--updates", 2, "--out", run, draw=True)
    assert sorted(p.name for p in run.iterdir()) == ["checkpoint.pt", "checkpoint_before.pt", "config.json", "curves.png", "log.jsonl", "samples"]
    assert [p.name for p in sorted((run / "samples").iterdir())] == ["000001.png", "000002.png"]
    assert json.loads((run / "config.json").read_text())["critic_steps"] == 2
    printed = capsys.readouterr().out
    for word in ("update 2/2", "elapsed", "remaining", "wasserstein", "slope", "residual", "scale", "min", "images/s"):
        assert word in printed
    assert set(untimed_log(run)[0]) == {"step", "wasserstein", "slope", "adversarial", "adversarial_patch", "patch", "residual",
                                        "scale_mean", "scale_min"}


def test_pi_logs_no_scale(monkeypatch, tmp_path):
    cli(monkeypatch, *SMALL, "--method", "pi", "--updates", 1, "--out", tmp_path / "run")
    assert untimed_log(tmp_path / "run")[0]["scale_mean"] is None


def test_dry_run_prints_shapes_and_writes_nothing(monkeypatch, tmp_path, capsys):
    cli(monkeypatch, *SMALL, "--dry-run", "--out", tmp_path / "run")
    printed = capsys.readouterr().out
    assert "G^sigma(x)  [2, 1, 64, 64]" in printed and "critic_steps  2" in printed
    assert not (tmp_path / "run").exists()


def test_a_risk_that_is_not_finite_stops_the_run_and_keeps_the_last_checkpoint(monkeypatch, tmp_path, capsys):
    original, calls = train.generator_loss, []

    def breaks(*args):
        risk, terms = original(*args)
        calls.append(risk)
        return (risk, terms) if len(calls) < 2 else (risk * float("nan"), terms | {"patch": terms["patch"] * float("nan")})

    monkeypatch.setattr(train, "generator_loss", breaks)
    with pytest.raises(SystemExit) as stop:
        cli(monkeypatch, *SMALL, "--updates", 3, "--out", tmp_path / "run")
    message = capsys.readouterr().err
    assert stop.value.code == 2 and "update 2: generator, patch" in message and "checkpoint.pt holds" in message
    assert everything(tmp_path / "run")["step"] == 1


@pytest.mark.parametrize("words, sentence", [
    ([], "nothing to train on"),
    (["--data", "no/such/folder"], "no such folder"),
    ([*SMALL, "--size", "100"], "multiple of 32"),
    ([*SMALL, "--lam", "nan"], "finite number"),
    ([*SMALL, "--lam", "-1"], "finite number of at least 0"),
    ([*SMALL, "--lr-g", "0"], "above 0"),
    ([*SMALL, "--batch", "0"], "whole number from 1"),
    ([*SMALL, "--seed", "99999999999999999999"], "whole number from 0"),
    ([*SMALL, "--method", "magic"], "invalid choice"),
    ([*SMALL, "--device", "toaster"], "no such device"),
    (["--resume", "no/such/run"], "no such checkpoint"),
])
def test_wrong_use_ends_in_one_sentence_and_code_2(monkeypatch, tmp_path, capsys, words, sentence):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli(monkeypatch, *words)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and sentence in error and error.startswith("error: ") and error.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_never_overwritten_and_resume_takes_no_other_settings(monkeypatch, tmp_path, capsys):
    run = tmp_path / "run"
    cli(monkeypatch, *SMALL, "--updates", 1, "--out", run)
    for words, sentence in (([*SMALL, "--out", run], "already holds a run"), (["--resume", run, "--lam", "3"], "leave out --lam")):
        with pytest.raises(SystemExit) as stop:
            cli(monkeypatch, *words)
        assert stop.value.code == 2 and sentence in capsys.readouterr().err
    assert everything(run)["step"] == 1


def test_a_run_killed_before_its_first_checkpoint_starts_again(monkeypatch, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text("{}")
    (run / "log.jsonl").write_text('{"step": 1}\n')
    cli(monkeypatch, *SMALL, "--updates", 1, "--out", run)
    assert [row["step"] for row in untimed_log(run)] == [1] and len(untimed_log(run)[0]) > 5


def test_damaged_checkpoints_and_odd_resumes_end_in_one_sentence(monkeypatch, tmp_path, capsys):
    run = tmp_path / "run"
    cli(monkeypatch, *SMALL, "--updates", 2, "--out", run)
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "checkpoint.pt").write_text("hello")
    capsys.readouterr()
    for words, sentence in ((["--resume", run, "--updates", 1], "at least 2"), (["--resume", run, "--smoke"], "stands alone"),
                            (["--resume", run, "--dry-run"], "stands alone"), (["--resume", tmp_path / "bad"], "or damaged"),
                            ([*SMALL, "--out", tmp_path / "file"], "cannot be made into a folder")):
        with pytest.raises(SystemExit) as stop:
            cli(monkeypatch, *words)
        error = capsys.readouterr().err
        assert stop.value.code == 2 and sentence in error and error.count("\n") == 1
    assert everything(run)["step"] == 2


# ---------------------------------------------------------------- what planted mistakes got past the tests above

def test_either_network_has_its_own_width():
    theta, omega, *_ = train.build(TINY | {"width": 2, "critic_width": 3})
    G, f = theta["G"], omega["f"]
    assert G.down[0][0][0].out_channels == 2 and f.down[0].out_channels == 3


def test_the_seed_moves_both_networks_and_every_stream():
    one, again, other = (train.build(TINY | {"seed": seed}) for seed in (0, 0, 1))
    for k in range(2):
        assert same(weights(one[k]), weights(again[k])) and not same(weights(one[k]), weights(other[k]))
    assert len({stream.initial_seed() for built in (one, other) for stream in built[4].values()}) == 10


def test_adams_epsilon_is_torchs_and_lam_is_10():
    _, _, opt_G, opt_f, *_ = train.build(TINY)
    assert all(optimiser.param_groups[0]["eps"] == 1e-8 for optimiser in (opt_G, opt_f))


def test_lam_is_10_but_for_methods_whose_authors_chose_another(monkeypatch, tmp_path):
    found = []
    monkeypatch.setattr(train, "train", lambda config, *_: found.append((config["method"], config["lam"])))
    for words in ([], ["--method", "cyclegan"], ["--method", "cut"], ["--method", "released"], ["--method", "cut", "--lam", 3]):
        cli(monkeypatch, *SMALL, *words, "--out", tmp_path / "run")
    assert found == [("uapi", 10.0), ("cyclegan", 10.0), ("cut", 1.0), ("released", 0.5), ("cut", 3.0)]


@pytest.mark.parametrize("updates, logged, drawn", [(7, range(1, 8), [1, 2, 3, 4, 5, 6, 7]),
                                                    (350, [*range(3, 350, 3), 350], range(35, 351, 35))])
def test_a_line_per_cent_ten_samples_and_the_last_update_always(updates, logged, drawn):
    found = {"log": [], "save": [], "samples": []}
    with replaced.multiple(train, make_generator=ToyG, Critic=ToyF, draw_curves=lambda *_: None, save=lambda run, c: found["save"].append(c["step"]),
                           log=lambda run, config, step, *_, **__: found["log"].append(step),
                           draw_samples=lambda run, config, step, *_: found["samples"].append(step)):
        train.train(TINY | {"updates": updates, "critic_steps": 1}, tiny_slices(), Path("nowhere"))
    assert found == {"log": list(logged), "save": list(logged), "samples": list(drawn)}


def test_a_logged_line_says_the_same_on_screen_and_in_the_file(tmp_path, capsys):
    values = dict(wasserstein=1.0, slope=2.0, residual=3.0, patch=4.0, scale_mean=5.0, scale_min=0.5)
    for method in ("uapi", "pi"):
        train.log(tmp_path, TINY | {"updates": 20, "method": method}, 5, 100.0, **{k: torch.tensor(v) for k, v in values.items()})
    uapi, pi = (json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines())
    assert uapi == {"step": 5, "seconds": 100.0, "images_per_second": 0.4} | values  # 5 * (3 + 1) * 2 images
    assert pi == uapi | {"scale_mean": None, "scale_min": None}
    first, second = capsys.readouterr().out.splitlines()
    line = "update 5/20  elapsed 0:01:40  remaining 0:05:00  wasserstein 1.000  slope 2.000  residual 3.0000"
    assert first == line + "  scale 5.0000 (min 0.5000)  0 images/s" and second == line + "  0 images/s"


def test_resume_goes_on_with_the_clock_and_remembers_its_new_settings(monkeypatch, tmp_path):
    run, moved = tmp_path / "run", tmp_path / "moved"
    cli(monkeypatch, *SMALL, "--updates", 1, "--out", run)
    train.save(run, everything(run) | {"seconds": 1000.0})
    run.rename(moved)
    cli(monkeypatch, "--resume", moved, "--updates", 2)
    assert not run.exists() and everything(moved)["step"] == 2 and everything(moved)["seconds"] > 1000
    assert json.loads((moved / "log.jsonl").read_text().splitlines()[1])["seconds"] > 1000
    assert everything(moved)["config"]["updates"] == 2 == json.loads((moved / "config.json").read_text())["updates"]


def test_resume_takes_no_other_method(monkeypatch, tmp_path, capsys):
    cli(monkeypatch, *SMALL, "--updates", 1, "--out", tmp_path / "run")
    for flag, value in (("--method", "pi"), ("--batch", 3), ("--seed", 4), ("--lr-c", 1)):
        with pytest.raises(SystemExit):
            cli(monkeypatch, "--resume", tmp_path / "run", flag, value)
        assert f"leave out {flag}." in capsys.readouterr().err


def test_a_run_without_a_name_is_named_by_data_method_lam_and_seed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    cli(monkeypatch, *SMALL, "--updates", 1, "--lam", 3.5, "--seed", 7)
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["phantom_uapi_lam3.5_seed7"]


def test_infinity_stops_the_run_as_nan_does(tmp_path):
    for value in (float("inf"), -float("inf"), float("nan")):
        with pytest.raises(SystemExit):
            train.stop_unless_finite(tmp_path, 3, generator=torch.tensor(value), critic=torch.tensor(0.0))
    train.stop_unless_finite(tmp_path, 3, generator=torch.tensor(0.0))


def test_a_strangers_checkpoint_cannot_run_code(tmp_path, capsys):
    torch.save({"step": Path("anything but tensors and plain types")}, tmp_path / "checkpoint.pt")
    with pytest.raises(SystemExit) as stop:
        train.load_checkpoint(tmp_path)
    assert stop.value.code == 2 and "UnpicklingError" in capsys.readouterr().err


def test_a_crash_while_saving_leaves_the_old_checkpoint_whole(tmp_path):
    def dies(checkpoint, path):
        Path(path).write_bytes(b"half a file")
        raise KeyboardInterrupt

    train.save(tmp_path, dict.fromkeys(train.CONTENTS, 1) | {"config": TINY})
    with replaced.object(torch, "save", dies), pytest.raises(KeyboardInterrupt):
        train.save(tmp_path, {"step": 2})
    assert train.load_checkpoint(tmp_path)["step"] == 1


def test_samples_show_evaluation_slices_in_grey_levels(tmp_path):
    shown, slices, G = {}, tiny_slices(), train.build(TINY)[0]["G"]
    with replaced.object(train, "picture_grid", lambda path, rows, titles: shown.update({path.name: (rows, titles)})):
        train.draw_samples(tmp_path, TINY, 7, G, slices)
        train.draw_samples(tmp_path, TINY | {"method": "pi"}, 8, G, slices)
    rows, titles = shown["000007.png"]
    assert titles == ["input", "translation", "scale [grey levels]", "truth"] and shown["000008.png"][1] == ["input", "translation", "truth"]
    chosen = [0, 0, 1, 1]  # four of two
    with torch.no_grad():
        image, scale = G(data.to_unit(torch.from_numpy(slices.evaluation_input[chosen]).unsqueeze(1)))
    for (x, out, (spread, top), truth), k, i, s in zip(rows, chosen, image, scale, strict=True):
        assert np.array_equal(x, slices.evaluation_input[k]) and np.array_equal(truth, slices.evaluation_target[k])
        assert torch.allclose(out, 127.5 * (i + 1), atol=1e-3) and torch.allclose(spread, 127.5 * s, atol=1e-3) and top == spread.max()
