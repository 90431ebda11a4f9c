"""Eq. 2, 3, 5, 6 and 9 against naive float64 loops, cases worked by hand, gradients, invariances.

The critic and the generator of oracles.py are formulas whose gradients can be written down, so the
naive loops need no autograd.
"""
import math
import re
from statistics import fmean as mean
from unittest import mock

import pytest
import torch
from matplotlib.figure import Figure

import losses
import nets
from oracles import (EPS, FAKE, PHI, W, X, Y, Q, agree, critic, difference, generator, naive_eq2,
                     naive_eq5, naive_eq6, naive_f, naive_patch, naive_penalty, noise, phi_of)
from patch_op import patch

SLOPE = "Eq. 2: || grad f(y~) ||_2 at y~ = eps G(x) + (1 - eps) y"
PENALTY = "Eq. 2: 1/b sum_n ((|| grad f(y~_n) ||_2 - 1)_+)^2"
EQ2 = "Eq. 2: f(G(x)) - f(y) + p ((|| grad f(y~) ||_2 - 1)_+)^2"
EQ3 = "Eq. 3: -f(G(x))"
EQ5 = ("Eq. 5: f(G(x)) - f(y) + f(P(G(x))) - f(P(y)) + p ((|| grad f(y~) ||_2 - 1)_+)^2, "
       "one phi for both patches")
EQ6 = "Eq. 6: -f(G(x)) - f(P(G(x))) + lam l_patch"
L1 = "Eq. 6: l_patch = d^-2 || G(P(x)) - P(G(x)) ||_1"
LAPLACE = ("Eq. 9: l_patch = d^-2 sum_j |G(P(x))_j - P(G(x))_j| / s_j + log(2 s_j), "
           "s = G^sigma(P(x))")
DETACHED = "\n  (asked are differences of the risk itself: where they differ, something is detached)"


# ---------------------------------------------------------------- Eq. 2: the slope and its penalty

def test_slope_is_taken_at_fake_for_eps_1_and_at_real_for_eps_0():
    for eps, at in ((1.0, FAKE), (0.0, Y), (0.25, 0.25 * FAKE + 0.75 * Y)):
        slope = losses.critic_slope(critic, Y, FAKE, torch.full_like(EPS, eps))
        agree(slope, (W + Q * at).flatten(1).norm(dim=1), f"{SLOPE}, here eps = {eps}", 1e-12)


def test_penalty_equals_a_naive_loop():
    agree(losses.gradient_penalty(critic, Y, FAKE, EPS), naive_penalty(Y, FAKE, EPS), PENALTY)


def linear(norm):
    w = torch.ones(1, 5, 5, dtype=torch.float64) * norm / 5
    return lambda y: (w * y).sum(dim=(1, 2, 3))


def test_penalty_of_linear_critics_by_hand():
    for norm, expected in ((0.5, 0.0), (1.0, 0.0), (3.0, 4.0)):  # slope 1/2 is free, 3 costs 2^2
        penalty = losses.gradient_penalty(linear(norm), Y, FAKE, EPS)
        agree(penalty, expected, f"{PENALTY}, here of slope {norm}", 1e-12)


def test_penalty_norm_runs_over_channels_and_pixels_of_one_image():
    y, fake = noise(2, 3, 4, 4, seed=6), noise(2, 3, 4, 4, seed=7)
    w = torch.full((3, 4, 4), 2 / math.sqrt(48), dtype=torch.float64)
    gain = torch.tensor([1.0, 0.1], dtype=torch.float64)
    steep_first = lambda y: (w * y).sum(dim=(1, 2, 3)) * gain
    penalty = losses.gradient_penalty(steep_first, y, fake, EPS[:2])
    agree(penalty, 0.5, f"{PENALTY}, here of slopes 2 and 0.2", 1e-12)  # mean of (2-1)^2 and 0
    very_steep = lambda y: 15 * (w * y).sum(dim=(1, 2, 3))
    agree(losses.gradient_penalty(very_steep, y, fake, EPS[:2]), 841, f"{PENALTY}, of slope 30", 1e-9)


def test_penalty_of_a_flat_critic_has_a_finite_gradient():
    w = torch.zeros(1, 5, 5, dtype=torch.float64, requires_grad=True)
    flat = lambda y: (w * y).sum(dim=(1, 2, 3))
    gradient, = torch.autograd.grad(losses.gradient_penalty(flat, Y, FAKE, EPS), w)
    assert torch.isfinite(gradient).all(), "Eq. 2: at slope 0 the penalty's gradient is 0, not NaN"


# ---------------------------------------------------------------- Eq. 2: the critic's plain risk

def test_eq2_equals_a_naive_loop():
    risk = losses.wasserstein_critic_loss(critic, Y, FAKE, EPS, 7.0)
    agree(risk, naive_eq2(Y, FAKE, EPS, 7.0), EQ2)


def test_p_is_10_in_eq2_too():
    risk = losses.wasserstein_critic_loss(critic, Y, FAKE, EPS)
    agree(risk, naive_eq2(Y, FAKE, EPS, 10.0), f"{EQ2}, here p = 10, the default (Sec. 3.4)")


# ---------------------------------------------------------------- Eq. 3: the adversarial risk

def test_eq3_equals_a_naive_loop():
    agree(losses.wasserstein_generator_loss(critic, FAKE), -mean(naive_f(FAKE)), EQ3)


# ---------------------------------------------------------------- Eq. 5: the critic's risk

def test_eq5_equals_a_naive_loop():
    risk = losses.critic_loss(critic, Y, FAKE, PHI, EPS, 7.0)
    agree(risk, naive_eq5(Y, FAKE, PHI, EPS, 7.0), EQ5)


def test_eq5_with_a_constant_per_image_by_hand():
    # f = 5 on the fake, 2 on the real image; zooming a constant changes nothing; slope 0.1 is free
    ones = torch.ones(1, 1, 5, 5, dtype=torch.float64)
    f = lambda y: 0.5 * y.mean(dim=(1, 2, 3))
    risk = losses.critic_loss(f, 4 * ones, 10 * ones, phi_of((4, 0, 1)), EPS[:1])
    agree(risk, 6.0, f"{EQ5}, here 5 - 2 + 5 - 2 + 0", 1e-12)


def test_p_is_10_unless_told_and_weighs_the_penalty_alone():
    for p, words in ((0.0, (0.0,)), (1.0, (1.0,)), (10.0, (10.0,)), (10.0, ())):
        risk = losses.critic_loss(critic, Y, FAKE, PHI, EPS, *words)
        agree(risk, naive_eq5(Y, FAKE, PHI, EPS, p), f"{EQ5}, here p = {p}")


def test_eq5_gradient_in_omega_equals_differences():
    risk = lambda w: losses.critic_loss(lambda y: critic(y, w), Y, FAKE, PHI, EPS)
    w = W.clone().requires_grad_()
    gradient, = torch.autograd.grad(risk(w), w)
    agree(gradient[0, 1, 4], difference(risk, W, (0, 1, 4)), f"d/d omega of {EQ5}{DETACHED}", 1e-6)


def test_a_critic_trained_with_the_penalty_stays_near_slope_1_and_without_it_does_not():
    slopes = {}
    for p in (0.0, 10.0):
        w = torch.zeros(1, 5, 5, dtype=torch.float64, requires_grad=True)
        for _ in range(40):
            f = lambda y: (w * y).sum(dim=(1, 2, 3))
            risk = losses.critic_loss(f, Y + 2, FAKE - 2, PHI, EPS, p)
            gradient, = torch.autograd.grad(risk, w)
            w = (w - 0.05 * gradient).detach().requires_grad_()
        slopes[p] = w.norm().item()
    assert slopes[10.0] < 4 < 20 < slopes[0.0], f"slopes of the critic by p: {slopes}"


# ---------------------------------------------------------------- Eq. 6: the patch loss

def test_patch_l1_by_hand():
    a, b = torch.zeros(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    a[0, 0, 0, 0], b[1, 0, 1, 1] = 3.0, 1.0
    for one, other in ((a, b), (b, a)):
        agree(losses.patch_l1(one, other), 0.5, f"{L1}, here (3/4 + 1/4) / 2", 0)


def test_patch_losses_divide_by_d_squared_as_printed_so_channels_add_up():
    a, b = torch.zeros(1, 3, 4, 4), torch.ones(1, 3, 4, 4)
    agree(losses.patch_l1(a, b), 3.0, f"{L1}, here for 3 channels", 0)
    laplace = losses.patch_laplace(a, b, torch.full((1, 3, 4, 4), 0.5))
    agree(laplace, 6.0, f"{LAPLACE}, here 3 (1 / 0.5 + log 1)", 1e-6)


def test_identity_and_affine_intensity_maps_have_zero_patch_loss():
    loss = lambda G: losses.generator_loss(critic, G, X, PHI, 1.0, uncertainty=False)[1]["patch"]
    for gain, offset in ((1.0, 0.0), (-0.5, 0.3)):
        affine = lambda x: (gain * x + offset, torch.ones_like(x))
        agree(loss(affine), 0.0, f"{L1}, here of G(x) = {gain} x + {offset}", 1e-14)
    assert loss(lambda x: (x ** 2, torch.ones_like(x))) > 1e-3


# ---------------------------------------------------------------- Eq. 6: the generator's risk

def test_eq6_equals_a_naive_loop_with_and_without_uncertainty():
    for uncertainty, l_patch in ((False, L1), (True, LAPLACE)):
        expected, patch_loss = naive_eq6(X, PHI, 4.0, uncertainty)
        risk, terms = losses.generator_loss(critic, generator, X, PHI, 4.0, uncertainty)
        agree(terms["patch"], patch_loss, l_patch)
        agree(risk, expected, f"{EQ6}, l_patch of {l_patch[:5]}")


def test_uncertainty_is_the_default():
    risk, _ = losses.generator_loss(critic, generator, X, PHI, 4.0)
    agree(risk, naive_eq6(X, PHI, 4.0, True)[0], f"{EQ6}, l_patch of Eq. 9")


def test_eq6_gradient_in_theta_equals_differences():
    """Any detached side, image or scale would show here."""
    for uncertainty in (False, True):
        risk = lambda gain: losses.generator_loss(critic, lambda x: generator(x, gain), X, PHI,
                                                  4.0, uncertainty)[0]
        gain = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
        gradient, = torch.autograd.grad(risk(gain), gain)
        expected = difference(risk, gain.detach(), (), 1e-6)
        l_patch = LAPLACE if uncertainty else L1
        agree(gradient, expected, f"d/d theta of {EQ6}; {l_patch}{DETACHED}", 1e-5)


def test_terms_say_what_they_are_and_carry_no_graph():
    gain = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    risk, terms = losses.generator_loss(critic, lambda x: generator(x, gain), X, PHI, 4.0)
    image, _ = generator(X)
    a, (b, scale) = naive_patch(image, PHI), generator(naive_patch(X, PHI))
    expected = {"adversarial": -mean(naive_f(image)), "adversarial_patch": -mean(naive_f(a)),
                "patch": naive_eq6(X, PHI, 4.0, True)[1], "residual": (a - b).abs().mean(),
                "scale_mean": scale.mean(), "scale_min": scale.min()}
    assert terms.keys() == expected.keys() and risk.requires_grad
    for name, value in expected.items():
        agree(terms[name], value, f"the term {name} of {EQ6}")
        assert not terms[name].requires_grad


def test_lam_weighs_a_pixel_of_the_patch_loss_against_the_critics_slope():
    """What lam is, by gradients: one image, d pixels a side, residual b - a = 0.1 everywhere, a
    critic of slope 1 that is spread evenly, and P the identity. A pixel of G(P(x)) feels lam/d^2 in
    PI and lam/(d^2 s) in UAPI; the critic pulls at a pixel by 1/d. UAPI's lam is PI's times s."""
    d, lam, s = 5, 4.0, 0.25
    f = lambda y: y.sum(dim=(1, 2, 3)) / d
    agree(losses.critic_slope(f, Y, FAKE, EPS), [1.0] * 3, f"{SLOPE}, here of f = sum(y)/d", 1e-12)
    for uncertainty, pull, words in ((False, lam / d ** 2, "lam/d^2 for PI (Eq. 6)"),
                                     (True, lam / (d ** 2 * s), "lam/(d^2 s) for UAPI (Eq. 9)")):
        image = torch.zeros(1, 1, d, d, dtype=torch.float64, requires_grad=True)
        b = torch.full_like(image, 0.1, requires_grad=True)
        scale = torch.full_like(image, s, requires_grad=True)
        outputs = iter(((image, scale), (b, scale)))  # G(x), then G(P(x))
        risk, _ = losses.generator_loss(f, lambda _: next(outputs), X[:1], phi_of((d, 0, 0)), lam,
                                        uncertainty)
        of_image, of_b = torch.autograd.grad(risk, (image, b))
        agree(of_b, torch.full_like(b, pull), f"d/d b_j of lam l_patch: {words}", 1e-12)
        agree(of_image, torch.full_like(b, -2 / d - pull),
              f"{EQ6}: d/d G(x)_j is -1/d for f(G(x)), -1/d for f(P(G(x))), and less {words}", 1e-12)
    fake = FAKE[:1].clone().requires_grad_()
    pulls, = torch.autograd.grad(losses.wasserstein_generator_loss(f, fake), fake)
    agree(pulls, torch.full_like(fake, -1 / d), f"{EQ3}: a slope of 1 is 1/d in each pixel", 1e-12)


# ---------------------------------------------------------------- Eq. 9: the patch loss with scale

def test_patch_laplace_by_hand():
    a, b = torch.zeros(2, 1, 1, 2, 2, dtype=torch.float64)
    b[0, 0, 0, 0] = -1.0
    scale = torch.tensor([[[[2.0, 0.5], [0.5, 1.0]]]], dtype=torch.float64)
    # |r|/s: 1/2, 0, 0, 0;   log 2s: log 4, 0, 0, log 2;   over 4 pixels
    agree(losses.patch_laplace(a, b, scale), (0.5 + 3 * math.log(2)) / 4, LAPLACE, 1e-12)


def test_eq9_stays_finite_at_the_ends_of_float32():
    """Residuals and scales that training can meet, and the softplus of what a scale head could
    say at worst."""
    floor = 1 / 127.5
    head = torch.tensor([-1e4, -50.0, 0.0, 50.0, 1e4], requires_grad=True)
    scales = torch.cat([torch.nn.functional.softplus(head) + floor, torch.tensor([floor, 0.1, 1e2])])
    for residual in (0.0, 1e-38, 1e-7, 2.0):
        for scale in scales:
            a, b = (torch.full((1, 1, 2, 2), float(v), requires_grad=True) for v in (0, residual))
            risk = losses.patch_laplace(a, b, scale.expand(1, 1, 2, 2))
            expected = residual / scale.item() + math.log(2 * scale.item())
            agree(risk, expected, LAPLACE, 1e-5 * abs(expected) + 1e-7)
            slopes = torch.autograd.grad(risk, (a, b, head), retain_graph=True)
            assert all(torch.isfinite(slope).all() for slope in slopes), (residual, scale)


def test_patch_laplace_gradients_reach_both_sides_and_the_scale():
    a, b = noise(2, 1, 3, 3, seed=8).requires_grad_(), noise(2, 1, 3, 3, seed=9).requires_grad_()
    scale = (0.3 + noise(2, 1, 3, 3, seed=10).abs()).requires_grad_()
    r, s = (b - a).detach(), scale.detach()
    found = torch.autograd.grad(losses.patch_laplace(a, b, scale), (a, b, scale))
    expected = (-r.sign() / s / 18, r.sign() / s / 18, (1 / s - r.abs() / s ** 2) / 18)
    for name, gradient, wanted in zip(("P(G(x))", "G(P(x))", "the scale"), found, expected):
        agree(gradient, wanted, f"d/d {name} of {LAPLACE}", 1e-12)


def test_the_best_scale_for_a_residual_is_the_residual_itself():
    for residual in (0.02, 0.1, 0.7):
        r = torch.full((1, 1, 1, 1), residual, dtype=torch.float64)
        at = lambda s: losses.patch_laplace(torch.zeros_like(r), r, torch.full_like(r, s)).item()
        assert at(residual) < at(0.97 * residual) and at(residual) < at(1.03 * residual)
        agree(at(residual), 1 + math.log(2 * residual), f"{LAPLACE}, here at s = |r|", 1e-12)


def test_eq9_falls_without_bound_where_the_residual_is_zero():
    r = torch.zeros(1, 1, 2, 2, dtype=torch.float64)
    values = [losses.patch_laplace(r, r, torch.full_like(r, 10.0 ** -k)).item()
              for k in range(1, 300, 50)]
    assert all(later < earlier - 100 for earlier, later in zip(values, values[1:]))


def test_log_of_1_plus_2s_as_released_moves_the_best_scale_from_005_to_0185():
    # Expected risk for residuals from Laplace(0, 0.05), whose mean absolute value is 0.05.
    s = torch.linspace(0.01, 0.6, 100_000, dtype=torch.float64)
    r = torch.full((1, 1, 1, 1), 0.05, dtype=torch.float64)
    printed = [losses.patch_laplace(0 * r, r, v.view(1, 1, 1, 1)) for v in s[::100]]
    best = s[::100][torch.stack(printed).argmin()]
    agree(best, 0.05, f"{LAPLACE}: its minimum over s lies at |r|", 1e-3)
    agree(s[(0.05 / s + (1 + 2 * s).log()).argmin()], 0.185, "released: |r|/s + log(1 + 2s)", 1e-3)


# ---------------------------------------------------------------- in bfloat16 (train.py --bf16)

def test_bfloat16_reaches_the_networks_and_neither_patches_nor_slopes():
    torch.manual_seed(0)
    G, f = nets.UNet(width=2), nets.Critic(width=2)
    x, y = (torch.rand(2, 1, 64, 64) * 2 - 1 for _ in range(2))
    phi, eps = phi_of((50, 3, 7), (60, 0, 4)), torch.full((2, 1, 1, 1), 0.3)

    def all_of_them():
        return patch(x, phi), losses.critic_slope(f, y, x, eps), f(y), G.image(x), *G(x)
    plain = all_of_them()
    with torch.autocast("cpu", torch.bfloat16):
        rough = all_of_them()
        risks = (losses.critic_loss(f, y, x, phi, eps),
                 losses.generator_loss(f, G, x, phi, 10.0)[0])
    assert all(value.dtype == torch.float32 for value in (*plain, *rough, *risks))
    same = [torch.equal(u, v) for u, v in zip(plain, rough)]
    assert same == [True, True, False, False, False, False], "patch and slope alike, the networks not"
    assert all((u - v).abs().mean() < 0.05 for u, v in zip(plain, rough))


# ---------------------------------------------------------------- python losses.py

def test_the_drawing_of_eq9_finds_every_scale_at_its_residual(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["losses.py"])
    figures = []
    with mock.patch.object(Figure, "savefig",
                           lambda figure, place, **_: figures.append(figure) or place.touch()):
        losses.main()
    printed = re.findall(r"\|residual\| (\S+): best scale ([\d.]+)", capsys.readouterr().out)
    assert len(printed) == 3
    assert all(float(scale) == pytest.approx(float(r), rel=0.05) for r, scale in printed)
    floor, = (v for v in figures[0].axes[0].lines if v.get_label().startswith("floor"))
    assert set(floor.get_xdata()) == {nets.ONE_GREY_LEVEL}
