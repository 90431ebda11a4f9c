"""Sec. 3.3, 3.4: the two networks have the paper's size, two honest heads and one number per image;
constant images do them no harm, and what they cannot take they refuse."""
import math
import re
from unittest import mock

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import data
import losses
import nets
from oracles import agree, naive_unet, phi_of


def count(network):
    return sum(w.numel() for w in network.parameters())


def small(network, seed=0, **settings):
    torch.manual_seed(seed)
    return network(**settings)


def batch(n, d=64, c=1):
    return torch.rand(n, c, d, d, generator=torch.Generator().manual_seed(n)) * 2 - 1


# ---------------------------------------------------------------- Sec. 3.3: two heads

def test_image_is_a_tanh_and_scale_a_softplus_above_its_floor():
    G, x = small(nets.UNet, width=2), batch(2)
    image, scale = G(x)
    shared = G.trunk(x)
    agree(image, torch.tanh(G.image_out(G.image_up(*shared))), "Sec. 3.3: G^I = tanh(.)", 1e-6)
    softplus = (1 + G.scale_out(G.scale_up(*shared)).exp()).log()
    agree(scale, softplus + 1 / 127.5, "Sec. 3.3: G^sigma = softplus(.), here + floor", 1e-6)
    for head in (G.image_out, G.scale_out):
        torch.nn.init.constant_(head.bias, -1e4)  # drives both heads to their lower ends
    image, scale = G(x)
    agree(image, torch.full_like(image, -1), "Sec. 3.3: G^I >= -1", 0)
    agree(scale, torch.full_like(scale, 1 / 127.5), "floor of the scale: one grey level", 0)


def test_the_floor_is_an_argument():
    G = small(nets.UNet, width=1, floor=0.25)
    torch.nn.init.constant_(G.scale_out.bias, -1e4)
    agree(G(batch(1))[1], torch.full((1, 1, 64, 64), 0.25), "floor of the scale: 0.25 as told", 0)


def test_each_head_has_its_own_last_level():
    G = small(nets.UNet, width=2)
    for k, (own, others) in enumerate((("image_", "scale_"), ("scale_", "image_"))):
        G.zero_grad()
        G(batch(1))[k].sum().backward()
        for name, w in G.named_parameters():
            reached, asked = w.grad is not None, not name.startswith(others)
            assert reached == asked, (
                "Sec. 3.3: G(x) = [G^I(x), G^sigma(x)], each head with a last level of its own\n"
                f"  found          {own}: {name} is {'' if reached else 'not '}reached\n"
                "  the paper asks the contrary")
    assert count(G.image_up) == count(G.scale_up) and count(G.image_out) == count(G.scale_out)


def test_image_alone_equals_the_first_output_and_skips_the_scale_head():
    G, x = small(nets.UNet, width=2), batch(2)
    assert torch.equal(G.image(x), G(x)[0])

    def alarm(*_):
        raise AssertionError("the scale head ran")
    G.scale_up.register_forward_hook(alarm)
    G.image(x)


# ---------------------------------------------------------------- Sec. 3.4: the generator

def test_parameter_counts_are_the_papers():
    agree(count(nets.UNet()), 8_667_218, "Sec. 3.4: approximately 8.7 million parameters of G", 0)
    agree(count(nets.Critic()), 2_794_977, "Sec. 3.4: approximately 2.8 million of f", 0)


def test_outputs_keep_the_shape_for_every_allowed_size_and_channel_count():
    G, f = small(nets.UNet, width=1, c_in=2, c_out=3), small(nets.Critic, width=1, c=3)
    for d in (64, 96, 160):
        image, scale = G(batch(2, d, c=2))
        assert image.shape == scale.shape == (2, 3, d, d) and f(image).shape == (2,)
    stages = [tuple(stage.shape[1:]) for stage in G.encode(batch(2, 64, c=2))]
    assert stages == [(2 ** k, 64 // 2 ** k, 64 // 2 ** k) for k in range(6)]


def test_other_sizes_are_refused_in_one_sentence():
    for d in (32, 48, 65, 80, 100, 0):  # 80 = 5 * 16
        for network in (nets.UNet(width=1), nets.Critic(width=1)):
            with pytest.raises(ValueError, match=f"multiple of 32 from 64 up, not {d}"):
                network(torch.zeros(1, 1, d, d))


def test_images_in_a_batch_do_not_see_each_other():
    x = batch(3).double()  # the 2x2 bottom's instance norm magnifies float32 rounding
    for network in (small(nets.UNet, width=2).double(), small(nets.Critic, width=2).double()):
        together, alone = network(x), network(x[1:2])
        if isinstance(together, torch.Tensor):
            together, alone = [together], [alone]
        for t, a in zip(together, alone):
            agree(t[1:2], a, "Sec. 3.4: the second image of the batch, as alone", 1e-9)


def test_the_generator_equals_a_naive_forward_pass():
    """Of oracles.py, without one of torch's layers, in float64. Norms get gains and offsets, and
    biases values, so that each would be missed."""
    G, x = small(nets.UNet, width=2).double(), batch(2).double()
    stream = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for w in G.parameters():
            if w.ndim == 1:
                w += 0.2 * torch.randn(w.shape, generator=stream, dtype=torch.float64)
    for name, found, asked in zip(("G^I, tanh", "G^sigma, softplus + floor"), G(x),
                                  naive_unet(dict(G.named_parameters()), x), strict=True):
        agree(found, asked, f"Sec. 3.4: {name}, of a U-Net of 3x3 convolutions with reflection "
                            "padding, instance norm, LeakyReLU, max pooling and skips", 1e-9)


def test_weights_start_as_he_proposes_and_biases_at_zero():
    for network in (small(nets.UNet), small(nets.Critic)):
        for layer in (v for v in network.modules() if isinstance(v, torch.nn.Conv2d)):
            z = layer.weight.flatten() / math.sqrt(2 / (1.04 * layer.weight[0].numel()))
            law = "He, 2015: w ~ N(0, 2 / ((1 + 0.2^2) fan_in))"
            agree(z.std(), 1, f"{law}: its deviation", 4 / math.sqrt(2 * len(z)))
            agree((z ** 4).mean(), 3, f"{law}: a normal law", 4 * math.sqrt(96 / len(z)))
            assert not layer.bias.any(), "biases start at 0"


# ---------------------------------------------------------------- Sec. 3.4: the critic

def test_the_critic_is_six_convolutions_with_leaky_in_between():
    f, y = small(nets.Critic, width=2).double(), batch(2).double()
    h = y
    for conv in f.down:
        h = F.leaky_relu(F.conv2d(h, conv.weight, conv.bias, stride=2, padding=1), 0.2)
    last = F.conv2d(h, f.last.weight, f.last.bias, padding=1)
    assert len(f.down) == 5
    agree(f(y), last.mean(dim=(1, 2, 3)), "Sec. 3.4: DCGAN's critic, LeakyReLU, no norm", 1e-12)


def test_the_critic_averages_its_map_to_one_number_per_image():
    for d in (64, 128, 256):  # maps of 1x1, 3x3 and 7x7: a sum would show
        f = small(nets.Critic, width=1)
        torch.nn.init.zeros_(f.last.weight)
        torch.nn.init.constant_(f.last.bias, 1.5)
        agree(f(batch(2, d)), [1.5, 1.5], "Sec. 3.1: f(y) is one number, here the map's mean", 0)


# ---------------------------------------------------------------- images without variance, borders

def test_a_constant_image_gets_no_frame():
    # Zero padding would draw one: 0 is mid-grey in [-1,1].
    for value in (-1.0, 0.3):
        with torch.no_grad(), mock.patch.object(nets, "with_speck", lambda x: x):
            for out in small(nets.UNet, width=2)(torch.full((1, 1, 64, 64), value)):
                agree(out, out.mean().expand_as(out), "a constant image stays constant", 1e-6)


def test_images_constant_within_half_a_grey_level_get_a_speck_of_one():
    grey = 1 / 127.5
    x = torch.cat([batch(2), torch.full((2, 1, 64, 64), 0.3)])
    x[2, 0, 5, 5] += 0.6 * grey  # an image
    x[3, 0, ::2] += 0.4 * grey   # not constant, and no image either
    out = nets.with_speck(x)
    assert torch.equal(out[:3], x[:3])
    assert (out[3] != x[3]).sum() == 1
    agree(out[3, 0, 32, 32], x[3, 0, 32, 32] + grey, "a speck of one grey level", 1e-7)


def odd_batches():
    """Constant slices, slices with all content outside of their patch, and both among others; each
    with phi."""
    ordinary = data.to_unit(torch.from_numpy(data.phantom_slices(64, 1, 4).input)).unsqueeze(1)
    phi = phi_of((50, 14, 14), (45, 10, 10), (46, 8, 18), (55, 9, 9))  # nothing above, left of 8
    yield "ordinary", ordinary, phi
    for value in (-1.0, -0.9, 0.1, 0.77, 1.0):
        yield f"constant {value}", torch.full((4, 1, 64, 64), value), phi
    outside = torch.full((4, 1, 64, 64), -1.0)
    outside[:, :, :6, :6] = batch(4)[:, :, :6, :6]
    yield "content outside the patch", outside, phi
    grey = torch.full((1, 1, 64, 64), 0.77)
    yield "mixed", torch.cat([ordinary[:1], outside[:1], grey, batch(1)]), phi


def test_odd_images_bring_the_generator_no_larger_gradient_than_ten_ordinary_ones():
    G, f = small(nets.UNet, width=4), small(nets.Critic, width=4)
    norms = {}
    for name, x, phi in odd_batches():
        risk, _ = losses.generator_loss(f, G, x, phi, 10.0)
        gradient = torch.autograd.grad(risk, list(G.parameters()))
        norms[name] = torch.cat([g.flatten() for g in gradient]).norm().item()
    too_large = {name: norm for name, norm in norms.items() if not norm <= 10 * norms["ordinary"]}
    assert not too_large, f"|grad of Eq. 6| is {norms['ordinary']:.0f} ordinarily, but {too_large}"


def test_the_generator_is_the_same_function_with_and_without_gradients():
    G = small(nets.UNet, width=2)
    for name, x, _ in odd_batches():
        with torch.no_grad():
            without = G(x), G.image(x)
        (image, scale), alone = G(x), G.image(x)
        assert torch.equal(image, without[0][0]) and torch.equal(scale, without[0][1]), name
        assert torch.equal(alone, without[1]), name


# ---------------------------------------------------------------- Details, and python nets.py

def test_leaky_is_torchs_with_slope_one_fifth_and_has_no_second_derivative():
    for dtype, rtol in ((torch.float32, 1e-6), (torch.float64, 1e-15), (torch.bfloat16, 1e-2)):
        h = torch.tensor([-3.0, -0.5, 0.0, 0.5, 3.0], dtype=dtype, requires_grad=True)
        expected, found = F.leaky_relu(h, 0.2), nets.leaky(h)
        assert found.dtype == dtype and torch.allclose(found, expected, rtol=rtol, atol=0)
        gradient, = torch.autograd.grad(found.sum(), h, create_graph=True)
        assert torch.equal(gradient, torch.autograd.grad(expected.sum(), h)[0])
        assert not gradient.requires_grad


def test_the_layer_table_counts_what_torch_counts():
    for network in (nets.UNet(width=2), nets.Critic(width=2)):
        counter = FlopCounterMode(display=False)
        with counter, torch.no_grad():
            network(batch(1, 96))
        rows = nets.layer_table(network, 1, 96)
        assert sum(row[3] for row in rows) == counter.get_total_flops()
        assert sum(row[2] for row in rows) == count(network)


def test_the_printed_table_counts_in_millions(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["nets.py", "--size", "64"])
    nets.main()
    printed = capsys.readouterr().out
    # 2 * 9 * 16 * 64 * 64 = 1.2 million
    assert re.search(r"^down\.0\.0\.0 +16x64x64 +160 +1\.2$", printed, re.MULTILINE)
    totals = [line.split() for line in printed.splitlines() if line.startswith("total")]
    for (_, parameters, mflop), network in zip(totals, (nets.UNet(), nets.Critic()), strict=True):
        rows = nets.layer_table(network, 1, 64)
        assert parameters == f"{sum(row[2] for row in rows):,}"
        assert mflop == f"{sum(row[3] for row in rows) / 1e6:.1f}"
