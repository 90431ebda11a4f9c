"""Sec. 3.4: the loop moves what it says, as often as it says, with fresh draws and the paper's
settings, and nothing else; its twin in baselines.py likewise (Sec. 4.2)."""
import functools
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import baselines
import data
import losses
import train
from patch_op import sample_phi
from toys import (FAST, TINY, ToyF, ToyG, double_precision, equal, everything, exhaust, go, loop_of,
                  replaced, tiny_slices, trained, untimed_log)

NOWHERE = Path("nowhere")  # of runs that leave nothing


def toy_state(config):
    with replaced(UNet=ToyG, Critic=ToyF):
        return train.build(config)


def weights(networks):
    return [w.detach().clone() for w in networks.parameters()]


def gradients(networks):
    return [None if w.grad is None else w.grad.clone() for w in networks.parameters()]


@functools.cache
def watched_run(**changes):
    """Trains a toy run and returns everything that happened, in order, as a list of dicts:
    draw (pile, batch, stream), critic_loss and generator_loss (arguments, exact gradients),
    forward (network, images), step (network, gradients, what it moved)."""
    config, events = TINY | changes, []
    state = toy_state(config)
    networks = {"G": state.theta, "f": state.omega}

    def note(what, **event):
        events.append({"what": what} | event)

    def watch_step(name, optimiser):
        move = optimiser.step

        def watched():
            before = {k: weights(network) for k, network in networks.items()}
            found = {k: gradients(network) for k, network in networks.items()}
            move()
            moved = {k: not equal(before[k], weights(networks[k])) for k in networks}
            note("step", network=name, gradients=found, moved=moved)
        optimiser.step = watched

    def watch_forward(name, layer):
        layer.register_forward_hook(
            lambda _, inputs, __: note("forward", network=name, images=len(inputs[0])))

    def draw(images, b, generator, device):
        batch = data.draw(images, b, generator, device)
        note("draw", pile=images, batch=batch, stream=generator)
        return batch

    def critic_loss(f, y, fake, phi, eps, p):
        risk = losses.critic_loss(f, y, fake, phi, eps, p)
        exact = torch.autograd.grad(risk, list(f.parameters()), retain_graph=True)
        note("critic_loss", y=y, fake=fake, phi=phi, eps=eps, p=p, exact=exact)
        return risk

    def generator_loss(f, G, x, phi, lam, uncertainty):
        risk, terms = losses.generator_loss(f, G, x, phi, lam, uncertainty)
        exact = torch.autograd.grad(risk, list(G.parameters()), retain_graph=True,
                                    allow_unused=True)
        note("generator_loss", x=x, phi=phi, lam=lam, uncertainty=uncertainty, exact=exact)
        return risk, terms

    watch_step("G", state.opt_G)
    watch_step("f", state.opt_f)
    watch_forward("G", state.theta["G"].shared)
    watch_forward("scale", state.theta["G"].scale_head)
    watch_forward("f", state.omega["f"].shared)
    with replaced(draw=draw, critic_loss=critic_loss, generator_loss=generator_loss):
        exhaust(loop_of(config)(config, tiny_slices(), state))
    return events, state, config


def of(events, *kinds):
    return [event for event in events if event["what"] in kinds]


# ---------------------------------------------------------------- Sec. 3.4: settings and start

def test_defaults_are_the_papers():
    defaults = {action.dest: action.default for action in train.make_parser()._actions}
    paper = dict(p=10, size=256, batch=8, updates=15000, critic_steps=15, lr_g=5e-5, lr_c=2e-5,
                 width=16, critic_width=32, method="uapi")
    for name, value in paper.items():
        assert defaults[name] == value, f"{name}: {defaults[name]}, Sec. 3.4 has {value}"
    with mock.patch("sys.argv", ["train.py", "--data", "phantom"]):
        config, _ = train.read_settings()
    assert config["lam"] == 10, f"lam is {config['lam']} unless told, ours is 10"


def test_optimisers_are_the_papers_adam():
    state = train.build(TINY)
    for optimiser, networks, lr in ((state.opt_G, state.theta, 5e-5),
                                    (state.opt_f, state.omega, 2e-5)):
        group, = optimiser.param_groups
        assert isinstance(optimiser, torch.optim.Adam) and group["lr"] == lr
        assert group["betas"] == (0, 0.9), f"Sec. 3.4: beta 0 and 0.9, found {group['betas']}"
        assert group["eps"] == 1e-8 and group["weight_decay"] == 0 and not group["amsgrad"]
        assert [id(w) for w in group["params"]] == [id(w) for w in networks.parameters()]
    assert state.step == 0 and state.seconds == 0


def test_either_network_has_its_own_width():
    state = train.build(TINY | {"width": 2, "critic_width": 3})
    G, f = state.theta["G"], state.omega["f"]
    assert G.down[0][0][0].out_channels == 2 and f.down[0].out_channels == 3


def test_the_seed_alone_decides_the_initial_weights():
    torch.manual_seed(123)
    one, again, other = (train.build(TINY | {"seed": seed}) for seed in (0, 0, 1))
    for k in range(2):
        assert equal(weights(one[k]), weights(again[k]))
        assert not equal(weights(one[k]), weights(other[k]))


def test_no_stream_shares_its_seed_with_weights_or_streams_of_any_run():
    """Two generators of one seed draw the same numbers: weights and x of a run, or the phi of one
    run and the eps of the next, would depend on each other."""
    seeds = []
    for seed in range(51):
        state = toy_state(TINY | {"seed": seed})
        seeds += [torch.initial_seed(), *(s.initial_seed() for s in state.streams.values())]
    assert set(state.streams) == {"x", "y", "phi", "eps", "baselines"}
    shared = sorted({seed for seed in seeds if seeds.count(seed) > 1})
    assert len(seeds) == 51 * 6 and not shared, f"seeds {shared} serve more than one stream"


def test_weights_come_from_no_stream():
    state = toy_state(TINY)
    for name, stream in state.streams.items():
        unused = torch.Generator().manual_seed(stream.initial_seed()).get_state()
        assert torch.equal(stream.get_state(), unused), f"build() drew from the stream of {name}"


# ---------------------------------------------------------------- Sec. 3.4: who moves, and by what

def test_critic_updates_move_omega_alone_and_generator_updates_theta_alone():
    events, _, config = watched_run()
    steps = of(events, "step")
    order = (["f"] * config["critic_steps"] + ["G"]) * config["updates"]
    assert [step["network"] for step in steps] == order, "Sec. 3.4: n_c critic updates, then G"
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
            assert equal(step["gradients"][still], last[still])
        last[moving] = step["gradients"][moving]
    assert all(not event["fake"].requires_grad for event in of(events, "critic_loss"))


def test_every_step_uses_the_gradient_of_its_own_risk_and_nothing_older():
    events, _, _ = watched_run()
    exact = None
    for event in events:
        exact = event.get("exact", exact)
        if event["what"] == "step":
            for g, e in zip(event["gradients"][event["network"]], exact, strict=True):
                assert (g is None and e is None) or torch.allclose(g, e, rtol=1e-4, atol=1e-7)


def test_lam_p_and_method_reach_the_risks():
    for method in ("uapi", "pi"):
        events, _, _ = watched_run(method=method, lam=3.5, p=2.5, critic_steps=1, updates=1)
        assert all(e["p"] == 2.5 for e in of(events, "critic_loss"))
        risk, = of(events, "generator_loss")
        assert (risk["lam"], risk["uncertainty"]) == (3.5, method == "uapi"), method


# ---------------------------------------------------------------- Sec. 3.1, 3.2: what is drawn

def test_x_y_phi_and_eps_are_new_at_every_update():
    events, _, config = watched_run()
    n = config["updates"] * (config["critic_steps"] + 1)
    phis = [tuple(map(tuple, (v.tolist() for v in e["phi"]))) for e in events if "phi" in e]
    eps = [tuple(e["eps"].flatten().tolist()) for e in of(events, "critic_loss")]
    batches = [tuple(e["batch"].sum(dim=(1, 2, 3)).tolist()) for e in of(events, "draw")]
    assert len(phis) == n == len(set(phis)), "Sec. 3.2: phi anew at each risk calculation"
    assert len(eps) == config["updates"] * config["critic_steps"] == len(set(eps))
    assert len(set(batches)) > len(batches) // 2  # with replacement from six: repeats may happen


def test_eps_is_one_uniform_number_per_image():
    events, _, config = watched_run(batch=32, updates=1)
    eps = torch.stack([e["eps"] for e in of(events, "critic_loss")])
    assert eps.shape[1:] == (config["batch"], 1, 1, 1), "Eq. 2: one eps_n for each image"
    assert 0 <= eps.min() and eps.max() < 1
    assert abs(eps.mean() - 0.5) < 0.09 and abs(eps.var() - 1 / 12) < 0.03, "Eq. 2: U[0,1]"


def test_phi_is_one_per_image_and_covers_the_batch():
    events, _, _ = watched_run(batch=32, updates=1)
    for event in of(events, "critic_loss", "generator_loss"):
        assert all(v.shape == (32,) for v in event["phi"])
        assert len(set(event["phi"].size.tolist())) > 4


def test_x_comes_from_input_and_y_from_target_by_independent_streams():
    events, state, config = watched_run(batch=32, updates=1)
    piles = dict(zip("xy", tiny_slices().on("cpu")))
    order = ["x", "y"] * config["critic_steps"] + ["x"]
    index = {name: [] for name in piles}
    for name, event in zip(order, of(events, "draw"), strict=True):
        assert torch.equal(event["pile"], piles[name])
        assert event["stream"] is state.streams[name]
        known = data.to_unit(piles[name]).flatten(1)
        same = (event["batch"].flatten(1)[:, None] == known).all(dim=2)
        index[name] += same.int().argmax(dim=1).tolist()
    x, y = np.array(index["x"][:96]), np.array(index["y"])
    assert set(x) == set(y) == set(range(6))           # with replacement, every slice can come
    assert abs(np.mean(x == y) - 1 / 6) < 0.12         # no more often equal than by chance
    assert abs(np.corrcoef(x, y)[0, 1]) < 0.3


def test_critic_judges_fakes_of_its_own_x_and_the_generator_gets_a_fresh_batch():
    events, _, config = watched_run(batch=32, updates=1)  # more fakes than a pool of 50 would hold
    drawn = [event["batch"] for event in of(events, "draw")][:7]  # x y x y x y x
    xs, ys = drawn[::2], drawn[1::2]
    assert torch.equal(of(events, "generator_loss")[0]["x"], xs[-1])
    assert not torch.equal(xs[-1], xs[-2])
    G = toy_state(config).theta["G"]
    for x, y, event in zip(xs, ys, of(events, "critic_loss")):
        assert torch.equal(event["y"], y)
        assert torch.allclose(event["fake"], G.image(x), atol=1e-6), "Eq. 5: the fake is G(x)"


# ---------------------------------------------------------------- what an update costs

def test_passes_per_update_are_those_the_readme_states():
    events, _, config = watched_run()
    b, n_c = config["batch"], config["critic_steps"]
    passes = {name: [e["images"] for e in of(events, "forward") if e["network"] == name]
              for name in "Gf"}
    assert passes["G"] == ([b] * n_c + [b, b]) * 2         # G(x) for each critic; G(x) and G(P(x))
    assert passes["f"] == ([4 * b, b] * n_c + [b, b]) * 2  # Eq. 5's four batches and y~; Eq. 6


def test_the_scale_head_rests_during_critic_updates():
    events, _, config = watched_run()
    heads = [e["network"] for e in of(events, "forward") if e["network"] != "f"]
    once = ["G"] * config["critic_steps"] + ["G", "scale", "G", "scale"]
    assert heads == once * config["updates"]
    _, state, _ = watched_run(method="pi", critic_steps=1, updates=1)
    assert all(w.grad is None for w in state.theta["G"].scale_head.parameters())  # of no use to PI


# ---------------------------------------------------------------- the first numbers

# Measured with torch 2.13.0 on a CPU. They moved twice: when every stream got a seed of its own (x
# drew from the seed of the weights before), and when the phantoms got a thicker skull.
GOLDEN = (
    {"wasserstein": -0.259323, "slope": 0.403399, "adversarial": -0.0444804,
     "adversarial_patch": -0.0580187, "patch": 0.923233, "residual": 0.305569,
     "scale_mean": 0.935497, "scale_min": 0.0360012},
    {"wasserstein": -0.0195588, "slope": 0.429018, "adversarial": 0.0384081,
     "adversarial_patch": 0.0674996, "patch": 0.924997, "residual": 0.308772,
     "scale_mean": 0.947702, "scale_min": 0.0518445},
)


@functools.cache
def first_losses():
    """Two updates of the real networks in float64, which alone gives all CPUs the same second update
    -> the logged rows, and every critic's risk in order."""
    risks = []

    def critic_loss(*words):
        risks.append(losses.critic_loss(*words))
        return risks[-1]
    with tempfile.TemporaryDirectory() as folder, double_precision(critic_loss=critic_loss):
        trained(Path(folder), lr_g=1e-3, lr_c=1e-3)
        return untimed_log(Path(folder)), risks


def test_golden_first_losses():
    """Whatever moves these numbers changed the algorithm, its draws or its start."""
    for row, golden in zip(first_losses()[0], GOLDEN, strict=True):
        for name, value in golden.items():
            assert row[name] == pytest.approx(value, rel=1e-4), f"{name}, update {row['step']}"


def test_the_wasserstein_number_is_minus_the_critics_last_risk():
    rows, risks = first_losses()
    assert [row["wasserstein"] for row in rows] == [-risks[2].item(), -risks[5].item()]


def test_the_slope_is_that_of_the_last_critic_batch_after_the_update():
    """critic_slope of the logged line gets the last y and eps and the moved generator's G(x)."""
    seen = []

    def critic_slope(f, y, fake, eps):
        seen.append((y, fake, eps))
        return losses.critic_slope(f, y, fake, eps)
    config, drawn = TINY | {"updates": 1}, []

    def draw(*words):
        drawn.append(data.draw(*words))
        return drawn[-1]
    state = toy_state(config)
    with replaced(critic_slope=critic_slope, draw=draw, log=lambda *_, **__: None,
                  save=lambda *_: None):
        train.follow(train.train(config, tiny_slices(), state), config, tiny_slices(), NOWHERE, state)
    (y, fake, eps), = seen
    assert torch.equal(y, drawn[-2]) and torch.equal(fake, state.theta["G"].image(drawn[-1]))
    assert eps.shape == (2, 1, 1, 1) and not fake.requires_grad


# ---------------------------------------------------------------- resume: the state is all there is

def test_a_resumed_run_ends_where_an_uninterrupted_one_does():
    """Networks, optimisers and streams go on bit for bit (toys; all methods: test_run.py)."""
    with tempfile.TemporaryDirectory() as root:
        whole, halves = Path(root, "whole"), Path(root, "halves")
        toys = dict(UNet=ToyG, Critic=ToyF)
        go(*FAST, "--updates", 4, "--out", whole, **toys)
        go(*FAST, "--updates", 2, "--out", halves, **toys)
        go("--resume", halves, "--updates", 4, **toys)
        one, other = everything(whole), everything(halves)
    for part in ("networks", "opt_G", "opt_f", "streams", "step"):
        assert equal(one[part], other[part]), f"{part} differ"


# ---------------------------------------------------------------- Sec. 4.2: the twin, baselines.py

def test_both_loops_end_on_the_same_weights_given_the_papers_risks():
    """Eq. 5 and Eq. 6 or 9 in place of the compared methods' risks, which know no phi: each draws it
    here. PI's generator needs no y, so the y that the twin draws for it is handed back to its
    stream."""
    for method in ("pi", "uapi"):
        config = TINY | {"method": method}
        one, other = toy_state(config), toy_state(config)
        y_stream, phi_stream = other.streams["y"], other.streams["phi"]
        before = []

        def critic_risk(_, theta, omega, x, y, eps, p):
            phi = sample_phi(len(x), x.shape[-1], phi_stream)
            before.append(y_stream.get_state())
            with torch.no_grad():
                fake = theta["G"].image(x)
            return losses.critic_loss(omega["f"], y, fake, phi, eps, p)

        def generator_risk(method, theta, omega, x, y, lam, generator):
            phi = sample_phi(len(x), x.shape[-1], phi_stream)
            y_stream.set_state(before[-1])
            return losses.generator_loss(omega["f"], theta["G"], x, phi, lam, method == "uapi")

        with replaced(critic_risk=critic_risk, generator_risk=generator_risk):
            exhaust(train.train(config, tiny_slices(), one))
            exhaust(baselines.train(config, tiny_slices(), other))
        start = toy_state(config)
        for k in range(2):
            assert equal(weights(one[k]), weights(other[k])), f"{method}: the loops part"
            assert not equal(weights(one[k]), weights(start[k]))
        assert equal([v.get_state() for v in one.streams.values()],
                     [v.get_state() for v in other.streams.values()]), f"{method}: other draws"


def test_the_twin_draws_and_moves_as_the_loop_does():
    """gcGAN has two critics; both move n_c times, with x and y of their own streams."""
    events, state, config = watched_run(method="gcgan")
    steps = of(events, "step")
    order = (["f"] * config["critic_steps"] + ["G"]) * config["updates"]
    assert [step["network"] for step in steps] == order
    for step in steps:
        assert step["moved"] == {"G": step["network"] == "G", "f": step["network"] == "f"}
    piles = dict(zip("xy", tiny_slices().on("cpu")))
    for name, event in zip("xy" * len(steps), of(events, "draw"), strict=True):
        assert torch.equal(event["pile"], piles[name])
        assert event["stream"] is state.streams[name]


def test_no_gradient_reaches_the_twins_networks_that_stand_still():
    events, _, _ = watched_run(method="gcgan")
    steps = of(events, "step")
    for before, step in zip(steps, steps[1:]):
        still = "f" if step["network"] == "G" else "G"
        assert equal(step["gradients"][still], before["gradients"][still])
