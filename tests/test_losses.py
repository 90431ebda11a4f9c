"""Eq. 2, 3, 5, 6, 9 against naive float64 loops, cases worked by hand, gradients and invariances.

The critic and the generator below are small formulas whose gradients can be written down, so that the naive loops need
no autograd: they are the oracle.
"""
import math
import re
from unittest.mock import patch as replaced

import pytest
import torch
from matplotlib.figure import Figure

import losses
import nets
from patch_op import patch
from test_patch_op import naive_patch, noise, phi_of

X, Y, FAKE = noise(3, 1, 5, 5, seed=1), noise(3, 1, 5, 5, seed=2), noise(3, 1, 5, 5, seed=3)
PHI = phi_of((4, 1, 0), (5, 0, 0), (3, 0, 2))
EPS = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64).view(3, 1, 1, 1)
W, Q = noise(1, 5, 5, seed=4), 0.35


def critic(y, w=W, q=Q):
    """f(y) = sum_j w_j y_j + q/2 y_j^2, so grad f = w + q y; [b,1,5,5] -> [b]."""
    return (w * y + q / 2 * y ** 2).sum(dim=(1, 2, 3))


def generator(x, gain=0.8):
    """Image and scale that depend on where a pixel lies, so that G(P(x)) and P(G(x)) differ."""
    ramp = torch.linspace(0.5, 1.5, x.shape[-1], dtype=x.dtype)
    return gain * x * ramp + 0.1 * x ** 2, 0.3 + 0.1 * (gain * x * ramp) ** 2


def naive_penalty(y, fake, eps):
    """(|w + q y~| - 1)_+^2, pixel by pixel, averaged over images."""
    total = 0.0
    for n in range(len(y)):
        square = 0.0
        for j, (a, b, w) in enumerate(zip(fake[n].flatten().tolist(), y[n].flatten().tolist(), W.flatten().tolist())):
            square += (w + Q * (eps[n].item() * a + (1 - eps[n].item()) * b)) ** 2
        total += max(math.sqrt(square) - 1, 0) ** 2
    return total / len(y)


def naive_f(y):
    """The critic's values as Python floats."""
    return [sum(w * v + Q / 2 * v * v for w, v in zip(W.flatten().tolist(), image.flatten().tolist())) for image in y]


def mean(values):
    return sum(values) / len(values)


# ---------------------------------------------------------------- Eq. 2: the penalty

def test_penalty_equals_a_naive_loop():
    assert abs(losses.gradient_penalty(critic, Y, FAKE, EPS).item() - naive_penalty(Y, FAKE, EPS)) < 1e-9


def linear(norm):
    w = torch.ones(1, 5, 5, dtype=torch.float64) * norm / 5
    return lambda y: (w * y).sum(dim=(1, 2, 3))


def test_penalty_of_linear_critics_by_hand():
    for norm, expected in ((0.5, 0.0), (1.0, 0.0), (3.0, 4.0)):  # one-sided, squared: slope 1/2 is free, slope 3 costs 4
        assert abs(losses.gradient_penalty(linear(norm), Y, FAKE, EPS).item() - expected) < 1e-12


def test_penalty_norm_runs_over_channels_and_pixels_of_one_image():
    y, fake = noise(2, 3, 4, 4, seed=6), noise(2, 3, 4, 4, seed=7)
    w = torch.full((3, 4, 4), 2 / math.sqrt(48), dtype=torch.float64)
    steep_first = lambda y: (w * y).sum(dim=(1, 2, 3)) * torch.tensor([1.0, 0.1], dtype=torch.float64)
    assert abs(losses.gradient_penalty(steep_first, y, fake, EPS[:2]).item() - 0.5) < 1e-12  # mean of (2-1)^2 and 0


def test_slope_is_taken_at_fake_for_eps_1_and_at_real_for_eps_0():
    for eps, at in ((1.0, FAKE), (0.0, Y), (0.25, 0.25 * FAKE + 0.75 * Y)):
        slope = losses.critic_slope(critic, Y, FAKE, torch.full((3, 1, 1, 1), eps, dtype=torch.float64))
        assert torch.allclose(slope, (W + Q * at).flatten(1).norm(dim=1), atol=1e-12)


def test_penalty_teaches_the_critic():
    # d/dw of the penalty, against central differences: without create_graph it would be missing or wrong.
    w = W.clone().requires_grad_()
    gradient, = torch.autograd.grad(losses.gradient_penalty(lambda y: critic(y, w), Y, FAKE, EPS), w)
    step = torch.zeros_like(W)
    step[0, 2, 3] = 1e-5
    up, down = (losses.gradient_penalty(lambda y: critic(y, W + s), Y, FAKE, EPS).item() for s in (step, -step))
    assert abs(gradient[0, 2, 3].item() - (up - down) / 2e-5) < 1e-7 and gradient.abs().max() > 0.1


def test_penalty_of_a_flat_critic_has_a_finite_gradient():
    w = torch.zeros(1, 5, 5, dtype=torch.float64, requires_grad=True)
    gradient, = torch.autograd.grad(losses.gradient_penalty(lambda y: (w * y).sum(dim=(1, 2, 3)), Y, FAKE, EPS), w)
    assert torch.isfinite(gradient).all()


def test_penalty_of_a_batch_is_the_mean_of_its_images():
    alone = [losses.gradient_penalty(critic, Y[n:n + 1], FAKE[n:n + 1], EPS[n:n + 1]).item() for n in range(3)]
    assert abs(losses.gradient_penalty(critic, Y, FAKE, EPS).item() - mean(alone)) < 1e-12


# ---------------------------------------------------------------- Eq. 2, 3, 5: critic and adversarial risks

def test_eq2_equals_a_naive_loop():
    expected = mean(naive_f(FAKE)) - mean(naive_f(Y)) + 7 * naive_penalty(Y, FAKE, EPS)
    assert abs(losses.wasserstein_critic_loss(critic, Y, FAKE, EPS, 7.0).item() - expected) < 1e-9


def test_eq3_equals_a_naive_loop():
    assert abs(losses.wasserstein_generator_loss(critic, FAKE).item() + mean(naive_f(FAKE))) < 1e-9


def test_eq5_equals_a_naive_loop():
    expected = (mean(naive_f(FAKE)) - mean(naive_f(Y)) + mean(naive_f(naive_patch(FAKE, PHI))) - mean(naive_f(naive_patch(Y, PHI)))
                + 7 * naive_penalty(Y, FAKE, EPS))
    assert abs(losses.critic_loss(critic, Y, FAKE, PHI, EPS, 7.0).item() - expected) < 1e-9


def test_eq5_with_a_constant_per_image_by_hand():
    # f = 5 on the fake, 2 on the real image; zooming a constant image changes nothing: 5 - 2 + 5 - 2, slope 0.
    ones = torch.ones(1, 1, 5, 5, dtype=torch.float64)
    f = lambda y: 0.5 * y.mean(dim=(1, 2, 3))
    assert abs(losses.critic_loss(f, 4 * ones, 10 * ones, phi_of((4, 0, 1)), EPS[:1]).item() - 6.0) < 1e-12


def test_p_is_10_unless_told_and_weighs_the_penalty_alone():
    at = {p: losses.critic_loss(critic, Y, FAKE, PHI, EPS, p).item() for p in (0.0, 1.0, 10.0)}
    assert abs(at[10.0] - at[0.0] - 10 * (at[1.0] - at[0.0])) < 1e-9 and at[1.0] > at[0.0]
    assert losses.critic_loss(critic, Y, FAKE, PHI, EPS).item() == at[10.0]


def test_eq5_gradient_in_omega_equals_differences():
    w = W.clone().requires_grad_()
    gradient, = torch.autograd.grad(losses.critic_loss(lambda y: critic(y, w), Y, FAKE, PHI, EPS), w)
    step = torch.zeros_like(W)
    step[0, 1, 4] = 1e-5
    up, down = (losses.critic_loss(lambda y: critic(y, W + s), Y, FAKE, PHI, EPS).item() for s in (step, -step))
    assert abs(gradient[0, 1, 4].item() - (up - down) / 2e-5) < 1e-6


# ---------------------------------------------------------------- Eq. 6, 9: patch losses

def test_patch_l1_by_hand():
    a, b = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    a[0, 0, 0, 0], b[1, 0, 1, 1] = 3.0, 1.0
    assert losses.patch_l1(a, b).item() == 0.5  # (3/4 + 1/4) / 2
    assert losses.patch_l1(b, a).item() == 0.5


def test_patch_losses_divide_by_d_squared_as_printed_so_channels_add_up():
    a, b = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    assert losses.patch_l1(a, b).item() == 3.0
    assert abs(losses.patch_laplace(a, b, torch.full((1, 3, 4, 4), 0.5)).item() - 3 * 2.0) < 1e-6


def test_patch_laplace_by_hand():
    a, b = torch.zeros(1, 1, 2, 2, dtype=torch.float64), torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    b[0, 0, 0, 0] = -1.0
    scale = torch.tensor([[[[2.0, 0.5], [0.5, 1.0]]]], dtype=torch.float64)
    # |r|/s: 1/2, 0, 0, 0;   log 2s: log 4, 0, 0, log 2;   over 4 pixels
    assert abs(losses.patch_laplace(a, b, scale).item() - (0.5 + 3 * math.log(2)) / 4) < 1e-12


def test_patch_laplace_gradients_reach_both_sides_and_the_scale():
    a, b = noise(2, 1, 3, 3, seed=8).requires_grad_(), noise(2, 1, 3, 3, seed=9).requires_grad_()
    scale = (0.3 + noise(2, 1, 3, 3, seed=10).abs()).requires_grad_()
    r, s = (b - a).detach(), scale.detach()
    grad_a, grad_b, grad_s = torch.autograd.grad(losses.patch_laplace(a, b, scale), (a, b, scale))
    assert torch.allclose(grad_b, r.sign() / s / 18) and torch.allclose(grad_a, -grad_b)
    assert torch.allclose(grad_s, (1 / s - r.abs() / s ** 2) / 18)


def test_the_best_scale_for_a_residual_is_the_residual_itself():
    for residual in (0.02, 0.1, 0.7):
        r = torch.full((1, 1, 1, 1), residual, dtype=torch.float64)
        at = lambda s: losses.patch_laplace(torch.zeros_like(r), r, torch.full_like(r, s)).item()
        assert at(residual) < at(0.97 * residual) and at(residual) < at(1.03 * residual)
        assert abs(at(residual) - (1 + math.log(2 * residual))) < 1e-12


def toy_terms(lam, uncertainty):
    """Eq. 6 with Eq. 9 or its own last term, from the naive pieces, as (total, patch term)."""
    image, _ = generator(X)
    a = naive_patch(image, PHI)
    b, scale = generator(naive_patch(X, PHI))
    patch_term = 0.0
    for r, s in zip((b - a).flatten().tolist(), scale.flatten().tolist()):
        patch_term += abs(r) / s + math.log(2 * s) if uncertainty else abs(r)
    patch_term /= X.numel()
    return -mean(naive_f(image)) - mean(naive_f(a)) + lam * patch_term, patch_term


def test_eq6_equals_a_naive_loop_with_and_without_uncertainty():
    for uncertainty in (False, True):
        expected, patch_term = toy_terms(4.0, uncertainty)
        risk, terms = losses.generator_loss(critic, generator, X, PHI, 4.0, uncertainty)
        assert abs(risk.item() - expected) < 1e-9
        assert abs(terms["patch"].item() - patch_term) < 1e-9


def test_uncertainty_is_the_default():
    assert losses.generator_loss(critic, generator, X, PHI, 4.0)[0] == losses.generator_loss(critic, generator, X, PHI, 4.0, True)[0]


def test_eq6_gradient_in_theta_equals_differences():
    # Any detached side, image or scale would show here.
    for uncertainty in (False, True):
        gain = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
        risk = lambda g: losses.generator_loss(critic, lambda x: generator(x, g), X, PHI, 4.0, uncertainty)[0]
        gradient, = torch.autograd.grad(risk(gain), gain)
        up, down = (risk(torch.tensor(0.8 + s, dtype=torch.float64)).item() for s in (1e-6, -1e-6))
        assert abs(gradient.item() - (up - down) / 2e-6) < 1e-5


def test_terms_say_what_they_are_and_carry_no_graph():
    gain = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    risk, terms = losses.generator_loss(critic, lambda x: generator(x, gain), X, PHI, 4.0)
    image, _ = generator(X)
    a, (b, scale) = naive_patch(image, PHI), generator(naive_patch(X, PHI))
    expected = {"adversarial": -mean(naive_f(image)), "adversarial_patch": -mean(naive_f(a)), "patch": toy_terms(4.0, True)[1],
                "residual": (a - b).abs().mean(), "scale_mean": scale.mean(), "scale_min": scale.min()}
    assert terms.keys() == expected.keys() and risk.requires_grad
    for name, value in expected.items():
        assert abs(float(terms[name]) - float(value)) < 1e-9 and not terms[name].requires_grad


# ---------------------------------------------------------------- what the paper states or hides

def test_identity_and_affine_intensity_maps_have_zero_patch_loss():
    for gain, offset in ((1.0, 0.0), (-0.5, 0.3)):
        G = lambda x: (gain * x + offset, torch.ones_like(x))
        assert losses.generator_loss(critic, G, X, PHI, 1.0, uncertainty=False)[1]["patch"] < 1e-14
    curved = losses.generator_loss(critic, lambda x: (x ** 2, torch.ones_like(x)), X, PHI, 1.0, uncertainty=False)
    assert curved[1]["patch"] > 1e-3


def test_eq9_falls_without_bound_where_the_residual_is_zero():
    r = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    values = [losses.patch_laplace(r, r, torch.full_like(r, 10.0 ** -k)).item() for k in range(1, 300, 50)]
    assert all(later < earlier - 100 for earlier, later in zip(values, values[1:]))


def test_log_of_1_plus_2s_as_released_moves_the_best_scale_from_005_to_0185():
    # Expected risk for residuals from Laplace(0, 0.05), whose mean absolute value is 0.05.
    s = torch.linspace(0.01, 0.6, 100_000, dtype=torch.float64)
    r = torch.full((len(s), 1, 1, 1), 0.05, dtype=torch.float64)
    printed = torch.stack([losses.patch_laplace(0 * r[:1], r[:1], v.view(1, 1, 1, 1)) for v in s[::100]])
    assert abs(s[::100][printed.argmin()].item() - 0.05) < 1e-3
    assert abs(s[(0.05 / s + (1 + 2 * s).log()).argmin()].item() - 0.185) < 1e-3


def test_a_critic_trained_with_the_penalty_stays_near_slope_1_and_without_it_does_not():
    slopes = {}
    for p in (0.0, 10.0):
        w = torch.zeros(1, 5, 5, dtype=torch.float64, requires_grad=True)
        optimiser = torch.optim.Adam([w], lr=0.2, betas=(0.0, 0.9))
        for _ in range(40):
            risk = losses.critic_loss(lambda y: (w * y).sum(dim=(1, 2, 3)), Y + 2, FAKE - 2, PHI, EPS, p)
            optimiser.zero_grad()
            risk.backward()
            optimiser.step()
        slopes[p] = w.norm().item()
    assert slopes[10.0] < 4 < 20 < slopes[0.0]


# ---------------------------------------------------------------- what planted mistakes got past the tests above

def test_p_is_10_in_eq2_too():
    assert losses.wasserstein_critic_loss(critic, Y, FAKE, EPS) == losses.wasserstein_critic_loss(critic, Y, FAKE, EPS, 10.0)


def test_the_drawing_of_eq9_finds_every_scale_at_its_residual(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["losses.py"])
    with replaced.object(Figure, "savefig", lambda figure, *_, **__: figures.append(figure)):
        figures = []
        losses.main()
    found = re.findall(r"\|residual\| (\S+): .* at scale (\S+)", capsys.readouterr().out)
    assert len(found) == 3 and all(float(scale) == pytest.approx(float(residual), rel=0.05) for residual, scale in found)
    floor, = (line for line in figures[0].axes[0].lines if line.get_label().startswith("floor"))
    assert set(floor.get_xdata()) == {nets.ONE_GREY_LEVEL}


def test_bfloat16_reaches_the_networks_and_neither_patches_nor_slopes():
    torch.manual_seed(0)
    G, f = nets.UNet(width=2), nets.Critic(width=2)
    x, y = (torch.rand(2, 1, 64, 64) * 2 - 1 for _ in range(2))
    phi, eps = phi_of((50, 3, 7), (60, 0, 4)), torch.full((2, 1, 1, 1), 0.3)
    plain = patch(x, phi), losses.critic_slope(f, y, x, eps), f(y), G.image(x), G(x)[1]
    with torch.autocast("cpu", torch.bfloat16):
        rough = patch(x, phi), losses.critic_slope(f, y, x, eps), f(y), G.image(x), G(x)[1]
        risk = losses.critic_loss(f, y, x, phi, eps) + losses.generator_loss(f, G, x, phi, 10.0)[0]
    assert all(u.dtype == v.dtype == torch.float32 for u, v in zip(plain, rough)) and risk.dtype == torch.float32
    assert [torch.equal(u, v) for u, v in zip(plain, rough)] == [True, True, False, False, False]
    assert all((u - v).abs().mean() < 0.05 for u, v in zip(plain, rough))
