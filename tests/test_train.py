"""Sec. 3.4: the loop moves what it says, as often as it says, with fresh draws and the paper's
settings, and nothing else; its twin in baselines.py likewise (Sec. 4.2)."""
import ast
import functools
import io
import signal
import tempfile
from contextlib import nullcontext, redirect_stderr
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

import baselines
import data
import losses
import run
import train
import translate
from oracles import agree
from patch_op import sample_phi
from toys import (FAST, TINY, ToyF, ToyG, double_precision, equal, everything, exhaust, go, loop_of,
                  refused, replaced, tiny_slices, trained, untimed_log)

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

def test_a_critic_step_costs_one_pass_of_G_and_five_of_f():
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


# ---------------------------------------------------------------- the loops are generators

ROOT = Path(train.__file__).resolve().parent
ITERATING = ("follow", "exhaust", "list", "tuple", "next", "zip", "enumerate")
TWINS = ("uapi", "gcgan")  # a method of either loop


def never_iterated(source):
    """The calls of a loop in a program's text, which make a generator that does nothing by itself
    -> how many there are, and the lines of those that nobody iterates: neither where they stand
    nor, by the name that they are given, later in the same function."""
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}

    def is_loop(call):
        function = ast.unparse(call.func)
        return (function in ("loop", "train") or "loop_of(" in function
                or (function.endswith(".train") and len(call.args) > 1))  # not a network's own

    def iterated(node):
        above = parents[node]
        if isinstance(above, (ast.For, ast.comprehension)):
            return above.iter is node
        if isinstance(above, ast.Call) and node in above.args:
            name = ast.unparse(above.func).split(".")[-1]
            return name in ITERATING and (name not in ("zip", "enumerate") or iterated(above))
        return False

    def scope(node):
        while node in parents and not isinstance(node, (ast.FunctionDef, ast.Lambda)):
            node = parents[node]
        return node

    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and is_loop(node)]
    idle = []
    for call in calls:
        above = parents[call]
        places = [call]
        if isinstance(above, ast.Assign) and isinstance(above.targets[0], ast.Name):
            places = [node for node in ast.walk(scope(call)) if isinstance(node, ast.Name)
                      and node.id == above.targets[0].id and isinstance(node.ctx, ast.Load)]
        if not any(iterated(place) for place in places):
            idle.append(call.lineno)
    return len(calls), idle


def test_every_call_of_a_loop_is_iterated():
    """A generator that nobody iterates trains nothing, without a word."""
    for text, idle in (("train.train(c, s, t)", [1]), ("loop(c, s, t)", [1]),
                       ("toys.loop_of(config)(c, s, t)", [1]), ("u = loop(c, s, t)\nu.close()", [1]),
                       ("follow(loop(c, s, t), c, s, f, t)", []), ("print(loop(c, s, t))", [1]),
                       ("for _ in baselines.train(c, s, t):\n    pass", []),
                       ("u = train.train(c, s, t)\nnext(u)", []), ("t.train(c, s, t)", [1]),
                       ("exhaust(toys.loop_of(config)(c, s, t))", [])):
        assert never_iterated(text) == (1, idle), f"this very check errs about {text!r}"
    found = {}
    for path in (*ROOT.glob("*.py"), *ROOT.glob("tests/*.py")):
        found[path.name], idle = never_iterated(path.read_text(encoding="utf-8"))
        assert not idle, (f"{path.name}, lines {idle}: train() is called, but its updates are not "
                          "iterated: a generator does nothing by itself (Sec. 3.4)")
    for name in ("train.py", "toys.py", "benchmark.py", "test_train.py"):
        assert found[name], f"no call of a loop found in {name}: what is it that trains there?"


def test_a_loop_that_nobody_iterates_moves_nothing():
    for method in TWINS:
        config = TINY | {"method": method}
        state, start = toy_state(config), toy_state(config)
        updates = loop_of(config)(config, tiny_slices(), state)
        assert equal(all_of(state), all_of(start)), f"{method}: the bare call of the loop trains"
        step, *_ = next(updates)
        assert step == 1 and not equal(all_of(state), all_of(start)), f"{method}: next() trains not"


def all_of(state):
    """All that an update changes or draws from."""
    return [weights(state.theta), weights(state.omega), state.opt_G.state_dict()["state"],
            state.opt_f.state_dict()["state"], [s.get_state() for s in state.streams.values()],
            [w.requires_grad for w in (*state.theta.parameters(), *state.omega.parameters())]]


def test_a_loop_that_is_closed_leaves_what_a_run_of_so_many_updates_leaves():
    """And can go on from there, as --resume and the follower's end after a signal ask for."""
    for method in TWINS:
        config, slices = TINY | {"method": method, "updates": 4}, tiny_slices()
        closed, short, whole = (toy_state(config) for _ in range(3))
        updates = loop_of(config)(config, slices, closed)
        assert [next(updates)[0], next(updates)[0]] == [1, 2]
        updates.close()
        exhaust(loop_of(config)(config | {"updates": 2}, slices, short))
        for what, one, other in zip(("theta", "omega", "opt_G", "opt_f", "streams",
                                     "requires_grad"), all_of(closed), all_of(short)):
            assert equal(one, other), f"{method}: {what} of a loop closed after 2 updates differ"
        assert all(w.requires_grad for w in closed.omega.parameters())
        exhaust(loop_of(config)(config, slices, closed._replace(step=2)))
        exhaust(loop_of(config)(config, slices, whole))
        assert equal(all_of(closed), all_of(whole)), f"{method}: 2 + 2 updates are not 4"
        assert not equal(weights(closed.theta), weights(short.theta))


def test_a_suspended_loop_leaves_gradients_on_and_autocast_off():
    """What follows an update sees a plain torch, with --bf16, too, and may use no_grad itself."""
    for method in TWINS:
        config = TINY | {"method": method, "bf16": True, "updates": 3, "critic_steps": 1}
        seen = 0
        for _ in loop_of(config)(config, tiny_slices(), toy_state(config)):
            modes = torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")
            assert modes == (True, False), f"{method}: at the yield grad, autocast are {modes}"
            with torch.no_grad():
                pass  # as plot_samples() does
            with torch.autocast("cpu", torch.bfloat16):
                pass
            seen += 1
        assert seen == 3
        assert torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def loop_text(module):
    """The function train() of a file, and the while of its updates, as syntax trees."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    function, = (node for node in tree.body
                 if isinstance(node, ast.FunctionDef) and node.name == "train")
    loop, = (node for node in ast.walk(function) if isinstance(node, ast.While))
    return function, loop


def test_above_the_yield_stands_the_paper_torch_and_what_begins_with_run():
    """Sec. 3.4 can be read off the loops: no log, no picture, no file, no clock in between."""
    known = {"draw", "sample_phi", "critic_loss", "generator_loss", "critic_risk", "generator_risk",
             "G.image", "range", "slices.on", "eps.to", "run.bf16", "run.my_share",
             "run.average_gradients", "run.decay_rates"}
    methods = ("requires_grad_", "backward", "zero_grad", "step")
    for module in (train, baselines):
        function, loop = loop_text(module)
        calls = {ast.unparse(node.func) for node in ast.walk(function) if isinstance(node, ast.Call)}
        strange = {name for name in calls - known
                   if name.split(".")[-1] not in methods
                   and (not name.startswith("torch.") or name in ("torch.save", "torch.load"))}
        assert not strange, f"{module.__name__}.train calls {strange}, not the paper's (Sec. 3.4)"
        assert {"draw", "opt_f.step", "opt_G.step", "run.decay_rates"} <= calls
        yields = [node for node in ast.walk(function) if isinstance(node, (ast.Yield, ast.YieldFrom))]
        assert len(yields) == 1 and loop.body[-1].value is yields[0], (
            f"{module.__name__}.train: one yield, the last statement of the loop, so that nothing "
            "below it changes a weight")
        assert function.body[-1] is loop and not loop.orelse


def test_the_twin_loop_asks_for_no_method():
    """Sec. 4.2: the loop is the same for all; methods differ in critic_risk and generator_risk."""
    branches = [node.lineno for node in ast.walk(loop_text(baselines)[1])
                if isinstance(node, (ast.If, ast.IfExp, ast.Match))]
    assert not branches, f"baselines.train branches in lines {branches}"


# ---------------------------------------------------------------- devices, bfloat16, shares

def run_on_meta(method, loop):
    """An update on torch's device without numbers, where mixing devices raises as on CUDA; autocast,
    which does not know it, is left out."""
    config = TINY | {"method": method, "device": "meta", "critic_steps": 1, "updates": 1}
    with mock.patch.object(torch, "autocast", lambda *_, **__: nullcontext()):
        exhaust(loop(config, tiny_slices(), train.build(config)))


def test_no_tensor_of_a_loop_is_left_on_the_cpu():
    """Both loops, all methods, with the real networks."""
    for method in ("uapi", "pi", *baselines.METHODS):
        run_on_meta(method, loop_of({"method": method}))


def test_eps_left_on_the_cpu_would_be_noticed():
    """By the test above, which would say nothing if the meta device let devices mix."""
    for method, module in zip(TWINS, (train, baselines)):
        text, wrong = Path(module.__file__).read_text(encoding="utf-8"), {"__name__": "wrong"}
        assert text.count("eps.to(device)") == 1
        exec(text.replace("eps.to(device)", "eps"), wrong)
        try:
            run_on_meta(method, wrong["train"])
        except RuntimeError as error:
            assert "device" in str(error), error
        else:
            raise AssertionError(f"{module.__name__}.train: eps on the CPU went unnoticed")


def layer_types(method, bf16):
    """(kind of update, network, images, type of its first layer's output) in one update."""
    config = TINY | {"method": method, "bf16": bf16, "updates": 1, "critic_steps": 1}
    state, found = toy_state(config), []
    for name, network in {**state.theta, **state.omega}.items():
        network.shared.register_forward_hook(
            lambda _, inputs, out, name=name: found.append((name, len(inputs[0]), out.dtype)))
    steps = []
    for name, optimiser in (("critic", state.opt_f), ("generator", state.opt_G)):
        def step(name=name, move=optimiser.step):
            steps.append((name, found.copy()))
            found.clear()
            move()
        optimiser.step = step
    exhaust(loop_of(config)(config, tiny_slices(), state))
    assert [name for name, _ in steps] == ["critic", "generator"]
    return dict(steps)


def test_layers_run_in_bfloat16_exactly_with_bf16_in_all_four_updates():
    """But for the critics' pass that the penalty of Eq. 2 differentiates: slopes stay float32."""
    for method in TWINS:
        for bf16 in (False, True):
            layers = torch.bfloat16 if bf16 else torch.float32
            types = layer_types(method, bf16)
            critics, G = [v for v in types["critic"] if v[0] != "G"], [
                v for v in types["critic"] if v[0] == "G"]
            assert G and {v[2] for v in G} == {layers}, f"{method}, --bf16 {bf16}, critic: {G}"
            for name in {v[0] for v in critics}:
                found = [v[2] for v in critics if v[0] == name]
                assert found == [layers] * (len(found) - 1) + [torch.float32] and len(found) > 1, (
                    f"{method}, --bf16 {bf16}: {name} of the critic's update runs in {found}, asked "
                    f"for is {layers} for the risk, then float32 for the slope of Eq. 2")
            found = {v[2] for v in types["generator"]}
            assert found == {layers} and len(types["generator"]) >= 4, (
                f"{method}, --bf16 {bf16}: layers of the generator's update run in {found}")


def as_process(rank, method):
    """Trains a toy run as one of two processes that torchrun has started -> batches as drawn, those
    handed to the risks, and in order which gradients are averaged and which network moves. Asserts
    that all that a risk gets, phi and eps, too, is for 2 of 4 images."""
    config = TINY | {"method": method, "batch": 4, "critic_steps": 2}
    state, drawn, handed, calls = toy_state(config), [], [], []
    parts = {"omega": state.omega, "theta": state.theta}
    for name, optimiser in (("omega", state.opt_f), ("theta", state.opt_G)):
        def step(name=name, move=optimiser.step):
            calls.append(f"{name} moves")
            move()
        optimiser.step = step

    def average(networks):
        whose = {id(w) for w in networks.parameters()}
        calls.extend(f"{name} averaged" for name, part in parts.items()
                     if whose == {id(w) for w in part.parameters()})

    def draw(*words):
        drawn.append(data.draw(*words))
        return drawn[-1]

    def watched(real, *images):
        def risk(*words):
            for batch in words:
                batch = getattr(batch, "size", None) if isinstance(batch, tuple) else batch
                count = len(batch) if isinstance(batch, torch.Tensor) else 2
                assert count == 2, f"torchrun: {real.__name__} got {count} of 4 images, asked are 2"
            handed.extend(words[k] for k in images)
            return real(*words)
        return risk
    risks = dict(critic_loss=watched(losses.critic_loss, 1),
                 generator_loss=watched(losses.generator_loss, 2),
                 critic_risk=watched(baselines.critic_risk, 3, 4),
                 generator_risk=watched(baselines.generator_risk, 3, 4))
    with (mock.patch.multiple(torch.distributed, is_initialized=lambda: True,
                              get_world_size=lambda: 2, get_rank=lambda: rank),
          replaced(average_gradients=average, draw=draw, **risks)):
        exhaust(loop_of(config)(config, tiny_slices(), state))
    return drawn, handed, calls


def test_each_of_two_processes_sees_its_half_and_averages_what_moves_next():
    """torchrun, call by call; test_torchrun.py has two real processes."""
    turn = ["omega averaged", "omega moves"] * 2 + ["theta averaged", "theta moves"]
    for method in TWINS:
        for rank in (0, 1):
            drawn, handed, calls = as_process(rank, method)
            assert calls == turn * 2, f"{method}: gradients are averaged and moves made so: {calls}"
            if method == "uapi":  # x y x y x: Eq. 5 is handed G(x) for x
                drawn = [batch for k, batch in enumerate(drawn) if k % 5 in (1, 3, 4)]
            halves = [batch.chunk(2)[rank] for batch in drawn]
            assert equal(handed, halves), f"{method}: process {rank} sees other images than its half"


# ---------------------------------------------------------------- --decay

def rates_of(method, state=None, **changes):
    """The learning rates at every optimiser's step: [(critic's, ...)], [generator's]."""
    config = TINY | {"method": method, "critic_steps": 2, "lr_g": 3e-4, "lr_c": 5e-4} | changes
    state, found = state or toy_state(config), {"f": [], "G": []}
    for name, opt in (("f", state.opt_f), ("G", state.opt_G)):
        def step(name=name, opt=opt, move=opt.step):
            found[name] += [group["lr"] for group in opt.param_groups]
            move()
        opt.step = step
    exhaust(loop_of(config)(config, tiny_slices(), state))
    return found


DECAY = "--decay: rate = flag times min( 1, (N - step)/(F N) ), step updates done of N"


def test_both_rates_decay_over_the_last_part_of_a_run_and_are_constant_without_decay():
    """By hand, at every step of both optimisers of both loops: 8 updates, the last half, quarter,
    all and none of them."""
    table = {0.5: [1, 1, 1, 1, 1, 3 / 4, 1 / 2, 1 / 4], 0.25: [1, 1, 1, 1, 1, 1, 1, 1 / 2],
             1.0: [1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8], 0.0: [1] * 8}
    for method in TWINS:
        for F, factors in table.items():
            found = rates_of(method, updates=8, decay=F)
            agree(found["G"], [3e-4 * v for v in factors], f"{method}, opt_G, F = {F}: {DECAY}", 1e-15)
            twice = [5e-4 * v for v in factors for _ in range(2)]
            agree(found["f"], twice, f"{method}, opt_f, F = {F}: {DECAY}", 1e-15)
            step = torch.arange(8, dtype=torch.float64)
            if F:
                agree(found["G"], 3e-4 * ((8 - step) / (F * 8)).clamp(max=1), DECAY, 1e-15)


def test_a_run_that_goes_on_to_more_updates_decays_at_its_new_end():
    for method in TWINS:
        state = toy_state(TINY | {"method": method})
        assert rates_of(method, state, updates=2, decay=0.5)["G"] == [3e-4, 3e-4]
        state = toy_state(TINY | {"method": method})
        rates_of(method, state, updates=2, decay=1.0)  # at its end only half the rate is left
        found = rates_of(method, state._replace(step=2), updates=8, decay=0.5)
        agree(found["G"], [3e-4 * v for v in (1, 1, 1, 3 / 4, 1 / 2, 1 / 4)],
              f"{method}, resumed at 2, N = 8, F = 1/2: {DECAY}", 1e-15)
        agree(found["f"][::2], [5e-4 * v for v in (1, 1, 1, 3 / 4, 1 / 2, 1 / 4)],
              f"{method}, opt_f, resumed at 2, N = 8, F = 1/2: {DECAY}", 1e-15)


def watched_rates():
    """A stand-in for run.decay_rates that keeps the rates it has set."""
    real, found = run.decay_rates, []

    def decay_rates(config, step, opt_G, opt_f):
        real(config, step, opt_G, opt_f)
        found.append((step, opt_G.param_groups[0]["lr"], opt_f.param_groups[0]["lr"]))
    return found, decay_rates


def stopped_at_2(folder, words, **toys):
    """What a run of four updates leaves that is stopped after its second one."""
    asked = iter((0, signal.SIGINT))
    try:
        with redirect_stderr(io.StringIO()):
            go(*words, "--out", folder, signal_received=lambda _: next(asked), **toys)
    except SystemExit as stop:
        assert stop.code == 130
    assert everything(folder)["step"] == 2


def test_four_updates_are_two_and_after_a_resume_two_with_decay():
    for method in TWINS:
        with tempfile.TemporaryDirectory() as root:
            whole, halves = Path(root, "whole"), Path(root, "halves")
            toys = dict(UNet=ToyG, Critic=ToyF)
            words = (*FAST, "--method", method, "--updates", 4, "--decay", 0.5)
            go(*words, "--out", whole, **toys)
            stopped_at_2(halves, words, **toys)
            found, decay_rates = watched_rates()
            go("--resume", halves, decay_rates=decay_rates, **toys)
            one, other = everything(whole), everything(halves)
        assert found == [(2, 5e-5, 2e-5), (3, 5e-5 / 2, 2e-5 / 2)], f"{method}: {DECAY}: {found}"
        for part in ("networks", "opt_G", "opt_f", "streams", "step"):
            assert equal(one[part], other[part]), f"{method}, --decay 0.5: {part} differ"


def test_a_run_from_before_decay_is_still_read_and_keeps_its_rates():
    with tempfile.TemporaryDirectory() as root:
        old, new = Path(root, "old"), Path(root, "new")
        go(*FAST, "--updates", 1, "--out", old)
        checkpoint = everything(old)
        assert checkpoint["config"].pop("decay") == 0.0
        torch.save(checkpoint, old / "checkpoint.pt")
        G, config = translate.load_run(old, "cpu")
        assert "decay" not in config and equal(G.state_dict(), checkpoint["networks"]["G"])
        words = refused(go, "--resume", old, "--updates", 3, "--decay", 0.5)
        assert "leave out --decay" in words, words
        assert "decay" not in everything(old)["config"]
        for name, call in (("init", (*FAST, "--init", old, "--updates", 2, "--out", new)),
                           ("resume", ("--resume", old, "--updates", 3))):
            found, decay_rates = watched_rates()
            go(*call, decay_rates=decay_rates)
            steps = [0, 1] if name == "init" else [1, 2]
            assert found == [(step, 5e-5, 2e-5) for step in steps], f"--{name}: {found}"
        assert everything(old)["step"] == 3 and everything(old)["config"]["decay"] == 0.0
        assert "leave out --decay" in refused(go, "--resume", new, "--updates", 3, "--decay", 0.5)
