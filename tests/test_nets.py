"""Sec. 3.4: the two networks have the paper's size, two honest heads, one number per image, and refuse what they cannot take."""
import math
import re

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import nets


def count(network):
    return sum(w.numel() for w in network.parameters())


def small(network, seed=0, **settings):
    torch.manual_seed(seed)
    return network(**settings)


def batch(n, d=64, c=1):
    return torch.rand(n, c, d, d, generator=torch.Generator().manual_seed(n)) * 2 - 1


def test_parameter_counts_are_the_papers():
    assert count(nets.UNet()) == 8_667_218  # "approximately 8.7 million"
    assert count(nets.Critic()) == 2_794_977  # "approximately 2.8 million"


def test_image_is_a_tanh_and_scale_a_softplus_above_its_floor():
    G, x = small(nets.UNet, width=2), batch(2)
    shared = G.trunk(x)
    image, scale = G(x)
    assert torch.allclose(image, torch.tanh(G.image_out(G.image_up(*shared))))
    assert torch.allclose(scale, (1 + G.scale_out(G.scale_up(*shared)).exp()).log() + 1 / 127.5, atol=1e-6)
    for head in (G.image_out, G.scale_out):
        torch.nn.init.constant_(head.bias, -1e4)  # drives both heads to their lower ends
    image, scale = G(x)
    assert (image == -1).all() and torch.allclose(scale, torch.tensor(1 / 127.5))


def test_the_floor_is_an_argument():
    G = small(nets.UNet, width=1, floor=0.25)
    torch.nn.init.constant_(G.scale_out.bias, -1e4)
    assert torch.allclose(G(batch(1))[1], torch.tensor(0.25))


def test_each_head_has_its_own_last_level():
    G = small(nets.UNet, width=2)
    for k, (own, others) in enumerate((("image_", "scale_"), ("scale_", "image_"))):
        G.zero_grad()
        G(batch(1))[k].sum().backward()
        grads = {name: w.grad for name, w in G.named_parameters()}
        assert all(g is None for name, g in grads.items() if name.startswith(others))
        assert all(g is not None for name, g in grads.items() if not name.startswith(others))
    assert count(G.image_up) == count(G.scale_up) and count(G.image_out) == count(G.scale_out)


def test_image_alone_equals_the_first_output_and_skips_the_scale_head():
    G, x = small(nets.UNet, width=2), batch(2)
    assert torch.equal(G.image(x), G(x)[0])
    G.scale_up.register_forward_hook(lambda *_: (_ for _ in ()).throw(AssertionError("the scale head ran")))
    G.image(x)


def test_images_in_a_batch_do_not_see_each_other():
    x = batch(3).double()  # the 2x2 bottom's instance norm magnifies float32 rounding
    for network in (small(nets.UNet, width=2).double(), small(nets.Critic, width=2).double()):
        together, alone = network(x), network(x[1:2])
        for t, a in zip(*(out if isinstance(out, tuple) else (out,) for out in (together, alone))):
            assert torch.allclose(t[1:2], a, atol=1e-9)


def test_the_critic_averages_its_map_to_one_number_per_image():
    for d in (64, 128, 256):  # maps of 1x1, 3x3 and 7x7: a sum would show
        f = small(nets.Critic, width=1)
        torch.nn.init.zeros_(f.last.weight)
        torch.nn.init.constant_(f.last.bias, 1.5)
        assert torch.equal(f(batch(2, d)), torch.full((2,), 1.5))


def test_a_constant_image_gets_no_frame():
    # Zero padding would draw one: 0 is mid-grey in [-1,1].
    for value in (-1.0, 0.3):
        with torch.no_grad():
            for out in small(nets.UNet, width=2)(torch.full((1, 1, 64, 64), value)):
                assert out.max() - out.min() < 1e-6


def test_constant_images_alone_get_a_speck_and_only_where_a_gradient_is_wanted():
    x = torch.cat([batch(2, 64), torch.full((1, 1, 64, 64), -1.0)])
    out = nets.with_speck(x)
    assert torch.equal(out[:2], x[:2]) and out[2, 0, 32, 32] == x[2, 0, 32, 32] + 1 / 127.5 and (out[2] != x[2]).sum() == 1
    G = small(nets.UNet, width=1)
    G.image(x).square().mean().backward()
    assert all(torch.isfinite(w.grad).all() for w in G.down.parameters())


def test_outputs_keep_the_shape_for_every_allowed_size_and_channel_count():
    G, f = small(nets.UNet, width=1, c_in=2, c_out=3), small(nets.Critic, width=1, c=3)
    for d in (64, 96, 160):
        image, scale = G(batch(2, d, c=2))
        assert image.shape == scale.shape == (2, 3, d, d) and f(image).shape == (2,)
    stages = G.encode(batch(2, 64, c=2))
    assert [tuple(s.shape[1:]) for s in stages] == [(2 ** k, 64 // 2 ** k, 64 // 2 ** k) for k in range(6)]


def test_other_sizes_are_refused_in_one_sentence():
    for d in (32, 65, 100, 0):
        for network in (nets.UNet(width=1), nets.Critic(width=1)):
            try:
                network(torch.zeros(1, 1, d, d))
            except ValueError as error:
                assert f"multiple of 32 from 64 up, not {d}" in str(error)
            else:
                raise AssertionError(f"{d} was taken")


def test_weights_start_as_he_proposes_and_biases_at_zero():
    G = small(nets.UNet)
    for layer in G.modules():
        if isinstance(layer, torch.nn.Conv2d):
            assert (layer.bias == 0).all()
            expected = math.sqrt(2 / (1.04 * layer.weight[0].numel()))
            if layer.weight.numel() > 10_000:
                assert abs(layer.weight.std().item() / expected - 1) < 0.05


def test_the_layer_table_counts_what_torch_counts():
    for network in (nets.UNet(width=2), nets.Critic(width=2)):
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            network(batch(1, 96))
        rows = nets.layer_table(network, 1, 96)
        assert sum(row[3] for row in rows) == counter.get_total_flops()
        assert sum(row[2] for row in rows) == count(network)


# ---------------------------------------------------------------- what planted mistakes got past the tests above

def test_other_sizes_are_refused_in_one_sentence_2():
    for d in (32, 48, 65, 80, 100, 0):  # 80 = 5 * 16
        with pytest.raises(ValueError, match=f"multiple of 32 from 64 up, not {d}"):
            nets.check_size(d)


def test_the_printed_table_counts_in_millions(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["nets.py", "--size", "64"])
    nets.main()
    printed = capsys.readouterr().out
    assert re.search(r"^down\.0\.0\.0 +16x64x64 +160 +1\.2$", printed, re.MULTILINE)  # 2 * 9 * 16 * 64 * 64 = 1.2 million
    total = [line.split() for line in printed.splitlines() if line.startswith("total")]
    for (_, parameters, mflop), network in zip(total, (nets.UNet(), nets.Critic()), strict=True):
        rows = nets.layer_table(network, 1, 64)
        assert parameters == f"{sum(r[2] for r in rows):,}" and mflop == f"{sum(r[3] for r in rows) / 1e6:.1f}"


def test_leaky_is_torchs_with_slope_one_fifth_in_every_float_type_and_has_no_second_derivative():
    for dtype in (torch.float32, torch.float64, torch.bfloat16):
        h = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0], dtype=dtype, requires_grad=True)
        expected, found = torch.nn.functional.leaky_relu(h, 0.2), nets.leaky(h)
        assert found.dtype == dtype and torch.allclose(found, expected, rtol=1e-15 if dtype == torch.float64 else 1e-2, atol=0)
        gradient, = torch.autograd.grad(found.sum(), h, create_graph=True)
        assert torch.equal(gradient, torch.autograd.grad(expected.sum(), h)[0]) and not gradient.requires_grad


def test_the_critic_is_six_convolutions_with_leaky_in_between():
    torch.manual_seed(0)
    f, y = nets.Critic(width=2).double(), torch.rand(2, 1, 64, 64, dtype=torch.float64) - 0.5
    h = y
    for conv in f.down:
        h = torch.nn.functional.leaky_relu(torch.nn.functional.conv2d(h, conv.weight, conv.bias, stride=2, padding=1), 0.2)
    expected = torch.nn.functional.conv2d(h, f.last.weight, f.last.bias, padding=1).mean(dim=(1, 2, 3))
    assert len(f.down) == 5 and torch.allclose(f(y), expected, rtol=1e-12)
