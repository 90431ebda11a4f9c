"""benchmark.py times the loop itself, beside a way that finds the same risks; its FLOP are those of
the layers."""
from unittest import mock

import torch

import benchmark
import train
from nets import Critic, UNet, layer_table
from oracles import agree
from patch_op import sample_phi
from toys import TINY, equal, tiny_slices, trained


def weights(state):
    return [w.detach() for networks in state[:2] for w in networks.parameters()]


def test_the_benchmarks_update_is_the_loops(tmp_path):
    state = train.build(TINY)
    benchmark.update(benchmark.OURS, TINY, tiny_slices(), state)
    assert equal(weights(state), weights(trained(tmp_path, updates=1)))


def test_the_obvious_way_finds_the_same_risks():
    """On one batch: after a step of Adam even rounding would show."""
    state, stream = train.build(TINY), torch.Generator().manual_seed(0)
    G, f = state.theta["G"], state.omega["f"]
    x, y = (2 * torch.rand(2, 1, 64, 64, generator=stream) - 1 for _ in range(2))
    phi, eps, risks = sample_phi(2, 64, stream), torch.full((2, 1, 1, 1), 0.3), []
    for critic_loss, generator_loss, image in (benchmark.OURS, benchmark.OBVIOUS):
        risk_f = critic_loss(f, y, image(G, x).detach(), phi, eps, 10.0)
        risks.append(torch.stack([risk_f, generator_loss(f, G, x, phi, 10.0, True)[0]]))
    agree(risks[1], risks[0], "Eq. 5 and Eq. 6 with 9, the obvious way beside ours", 1e-4)


def flops_by_hand(config):
    """From the layers' shapes. Per image a convolution costs F = 2 K C k^2 H W forward, F for its
    weights' gradient and F for its input's; a patch 4 d^3. There is no gradient for x, y, fake and
    patches in critic steps, nor for f's weights and the scale of G(x) in the generator's. The
    penalty takes 4 F: f forward, its gradient, and back through that gradient 2 F, since
    nets.leaky tells autograd that f is piecewise linear."""
    d = config["size"]
    G, f = ({name: flops for name, _, _, flops in layer_table(network, 1, d)}
            for network in (UNet(width=config["width"]), Critic(width=config["critic_width"])))
    G_first, f_first = G["down.0.0.0"], f["down.0"]
    G_scale = sum(flops for name, flops in G.items() if name.startswith("scale"))
    G, f, patch = sum(G.values()), sum(f.values()), 4 * d ** 3
    critic_step = G - G_scale + 4 * (3 * f - f_first) + 4 * f + 2 * patch
    generator = 2 * (3 * G - G_first) - 2 * G_scale + 4 * f + 3 * patch
    return config["batch"] * (config["critic_steps"] * critic_step + generator)


def test_flop_are_counted_as_by_hand():
    config = TINY | {"critic_steps": 1, "repeats": 1, "width": 2}
    with mock.patch.object(benchmark, "seconds", lambda device, work: 2.0):  # nothing runs twice
        found = benchmark.measure(config)
    assert 1e9 * found["GFLOP"] == flops_by_hand(config)
    agree(found["GFLOP/s"], found["GFLOP"] / 2.0, "GFLOP over seconds")
    best = 2e-9 * 2 * 64 * 64 * 9 * 64 * 64 / 2.0
    agree(found["share"], found["GFLOP/s"] / best, "the share of one convolution's rate")
    assert found["seconds per update"] == 2 and found["obvious way / ours"] == 1
    assert found["peak MB"] >= found["peak MB, before"] > 0
