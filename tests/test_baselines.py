"""Sec. 4.2: the compared methods give the known answers, compare what they say, train what they say, on equal budgets."""
import functools
import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import baselines
import losses
import nets
from patch_op import patch, sample_phi
from test_losses import EPS, FAKE, PHI, X, Y, critic, naive_f, naive_penalty
from test_patch_op import noise, phi_of


def flat(y):
    return 0 * y.sum(dim=(1, 2, 3))


def only_image(formula):
    return SimpleNamespace(image=formula)


class Heads:
    """A generator by formula: image(x), and with scale (or alpha and beta) when called."""

    def __init__(self, image, *maps):
        self.image, self.maps = image, maps

    def __call__(self, x):
        return self.image(x), *(m(x) for m in self.maps)


def mean(values):
    return sum(values) / len(values)


def naive_eq2(y, fake, eps, p):
    return mean(naive_f(fake)) - mean(naive_f(y)) + p * naive_penalty(y, fake, eps)


def mirrored_critic(y):
    """Another critic, so that taking one for the other shows."""
    return 2 * critic(y.flip(-1)) + 1


# ---------------------------------------------------------------- cycleGAN

def alone(method, name, p=2.5):
    """The critics' risk with every critic but one set to 0: that one's naive Eq. 2."""
    critics = {k: critic if k == name else flat for k in {"cyclegan": ("f", "g"), "gcgan": ("f", "f_T")}[method]}
    theta = {"G": only_image(lambda v: 0.5 * v), "H": only_image(lambda v: 0.3 * v)}
    return baselines.critic_risk(method, theta, critics, X, Y, PHI, EPS, p, {}, None).item()


def test_cyclegan_critics_each_compare_their_own_domain():
    assert alone("cyclegan", "f") == pytest.approx(naive_eq2(Y, 0.5 * X, EPS, 2.5), abs=1e-9)
    assert alone("cyclegan", "g") == pytest.approx(naive_eq2(X, 0.3 * Y, EPS, 2.5), abs=1e-9)


def test_cyclegan_known_answers():
    plus = only_image(lambda v: v + 0.1)
    for lam in (1.0, 3.0):
        assert baselines.cyclegan_generator_loss(flat, flat, plus, plus, X, Y, lam)[0].item() == pytest.approx(0.4 * lam)
        twice, half = only_image(lambda v: 2 * v), only_image(lambda v: v / 2 + 0.1)
        assert baselines.cyclegan_generator_loss(flat, flat, twice, half, X, Y, lam)[0].item() == pytest.approx(lam * (0.1 + 0.2))


def test_cyclegan_generators_are_scored_by_their_own_critics():
    G, H = only_image(lambda v: 0.5 * v), only_image(lambda v: 2 * v)  # exact inverses: the cycle costs nothing
    risk, terms = baselines.cyclegan_generator_loss(critic, mirrored_critic, G, H, X, Y, 10.0)
    expected = -mean(naive_f(0.5 * X)) - mirrored_critic(2 * Y).mean().item()
    assert risk.item() == pytest.approx(expected) and terms["consistency"].item() == pytest.approx(0)


# ---------------------------------------------------------------- UGAC

NLL = [((1, 1), 0.900000), ((2, 1), 1.143147), ((1, 2), 1.194218), ((.5, 1.5), 2.184005), ((1, .5), 1.552534)]
VARIANCE = [2, 8, .5, .184622, 120]
R = torch.tensor([0.5, 1, 2, 0.1], dtype=torch.float64)


def test_generalized_gaussian_known_answers():
    for (alpha, beta), expected in NLL:
        found = baselines.generalized_gaussian(R, torch.full_like(R, alpha), torch.full_like(R, beta))
        assert found.item() == pytest.approx(expected, abs=1e-6)


def test_generalized_gaussian_is_laplace_for_beta_1_and_a_density_for_all():
    alpha, one = torch.full_like(R, 0.7), torch.ones_like(R)
    laplace = losses.patch_laplace(R.view(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), alpha.view(1, 1, 2, 2))
    assert baselines.generalized_gaussian(R, alpha, one).item() == pytest.approx(laplace.item() - math.log(2))
    r = torch.linspace(-60, 60, 400_001, dtype=torch.float64)
    for ((alpha, beta), _), variance in zip(NLL[:4], VARIANCE):  # beta = 1/2 reaches farther than this grid
        nll = [baselines.generalized_gaussian(v, torch.tensor(float(alpha)).double(), torch.tensor(float(beta)).double()) for v in r[::40000]]
        density = torch.exp(-((r.abs() / alpha) ** beta) + math.log(beta / alpha) - math.lgamma(1 / beta) - math.log(2))
        assert torch.allclose(torch.exp(-torch.stack(nll)) / 2, density[::40000], atol=1e-5)
        assert torch.trapezoid(density, r).item() == pytest.approx(1, abs=1e-4)
        assert torch.trapezoid(density * r ** 2, r).item() == pytest.approx(variance, rel=1e-3)


def test_generalized_gaussian_has_a_finite_gradient_where_the_residual_is_zero():
    r, alpha, beta = (torch.tensor([v], dtype=torch.float64, requires_grad=True) for v in (0.0, 0.5, 0.6))
    baselines.generalized_gaussian(r, alpha, beta).backward()
    assert all(torch.isfinite(v.grad).all() for v in (r, alpha, beta))


def test_ugac_weighs_residual_and_likelihood_of_both_ways_back():
    G = Heads(lambda v: v + 0.1, lambda v: 0.3 + 0 * v, lambda v: 1.5 + 0 * v)
    H = Heads(lambda v: v + 0.2, lambda v: 0.5 + 0 * v, lambda v: 0.8 + 0 * v)
    risk, terms = baselines.ugac_generator_loss(flat, flat, G, H, X, Y, 2.0)

    def nll(r, alpha, beta):
        return (r / alpha) ** beta - math.log(beta / alpha) + math.lgamma(1 / beta)
    expected = 2.0 * (1.0 * (0.3 + 0.3) + 0.015 * (nll(0.3, 0.5, 0.8) + nll(0.3, 0.3, 1.5)))
    assert risk.item() == pytest.approx(expected)
    assert terms["scale_mean"].item() == pytest.approx(0.3)  # the maps logged are G's, whose output is wanted


def test_ugac_generator_is_scored_like_cyclegans():
    G, H = Heads(lambda v: 0.5 * v, torch.ones_like, torch.ones_like), Heads(lambda v: 2 * v, torch.ones_like, torch.ones_like)
    risk, _ = baselines.ugac_generator_loss(critic, mirrored_critic, G, H, X, Y, 0.0)
    assert risk.item() == pytest.approx(-mean(naive_f(0.5 * X)) - mirrored_critic(2 * Y).mean().item())


def test_ugacs_three_heads_stay_in_their_ranges_and_have_their_own_last_level():
    torch.manual_seed(0)
    G = baselines.ThreeHeadedUNet(width=2)
    with torch.no_grad():
        G.beta_out.bias += 2
    x = torch.rand(2, 1, 64, 64) * 2 - 1
    image, alpha, beta = G(x)
    assert torch.equal(image, G.image(x)) and image.abs().max() <= 1
    assert alpha.min() >= 1e-3 and 0.1 < beta.min() and beta.max() <= 4 and beta.min() < 4
    with torch.no_grad():
        G.scale_out.bias -= 100
        G.beta_out.bias += 100
    assert G(x)[1].max().item() == pytest.approx(1e-3) and torch.equal(G(x)[2], torch.full_like(beta, 4))
    gradient = torch.autograd.grad(beta.sum(), list(G.image_up.parameters()) + list(G.scale_up.parameters()), allow_unused=True)
    assert all(g is None for g in gradient)


# ---------------------------------------------------------------- gcGAN and uagc

def test_gcgan_critics_compare_straight_with_straight_and_mirrored_with_mirrored():
    assert alone("gcgan", "f") == pytest.approx(naive_eq2(Y, 0.5 * X, EPS, 2.5), abs=1e-9)
    assert alone("gcgan", "f_T") == pytest.approx(naive_eq2(Y.flip(-1), 0.5 * X.flip(-1), EPS, 2.5), abs=1e-9)


def test_gcgan_known_answers():
    x = noise(2, 1, 4, 4, seed=12)
    columns = torch.arange(4, dtype=torch.float64) / 3
    for ramp, expected in ((columns, 2 / 3), (columns.view(4, 1), 0.0)):  # T mirrors left and right, not up and down
        G = Heads(lambda v: v + ramp)
        assert baselines.gcgan_generator_loss(flat, flat, G, x, 1.0)[0].item() == pytest.approx(expected, abs=1e-12)


def test_gcgan_generator_is_scored_straight_and_mirrored():
    risk, _ = baselines.gcgan_generator_loss(critic, mirrored_critic, Heads(lambda v: 0.5 * v), X, 10.0)
    assert risk.item() == pytest.approx(-mean(naive_f(0.5 * X)) - mirrored_critic(0.5 * X.flip(-1)).mean().item())


def test_uagc_is_eq9_with_the_mirror_for_the_patch():
    ramp = torch.linspace(0.5, 1.5, 5, dtype=torch.float64)
    G = Heads(lambda v: v * ramp, lambda v: 0.2 + v ** 2 * ramp)
    risk, terms = baselines.gcgan_generator_loss(flat, flat, G, X, 3.0, uncertainty=True)
    total = 0.0
    for image in X[:, 0].tolist():
        for row in image:
            for j in range(5):
                mirrored = row[4 - j]                     # T(x) at column j
                a, b = row[4 - j] * ramp[4 - j].item(), mirrored * ramp[j].item()
                s = 0.2 + mirrored ** 2 * ramp[j].item()  # G^sigma(T(x)), as Eq. 9 takes G^sigma(P(x))
                total += abs(b - a) / s + math.log(2 * s)
    assert risk.item() == pytest.approx(3.0 * total / X.numel()) and terms["scale_min"] > 0


# ---------------------------------------------------------------- CUT

def test_nce_known_answers():
    eye = torch.eye(2, dtype=torch.float64)[None]
    assert baselines.nce(eye, eye).item() == pytest.approx(6.2487e-7, rel=1e-4)
    assert baselines.nce(eye, eye.flip(1)).item() == pytest.approx(14.285715, abs=1e-6)
    for S in (2, 7, 256):
        alike = torch.ones(3, S, 4, dtype=torch.float64) / 2
        assert baselines.nce(alike, alike).item() == pytest.approx(math.log(S))


def test_nce_equals_a_naive_loop_with_negatives_from_the_same_image_only():
    q, k = (functional.normalize(noise(2, 4, 3, seed=s), dim=2) for s in (13, 14))
    total = 0.0
    for n in range(2):
        for s in range(4):
            likeness = [sum(u * v for u, v in zip(q[n, s].tolist(), k[n, t].tolist())) / 0.07 for t in range(4)]
            total += math.log(sum(map(math.exp, likeness))) - likeness[s]
    assert baselines.nce(q, k).item() == pytest.approx(total / 8)


def small_cut():
    torch.manual_seed(0)
    return nets.UNet(width=2), baselines.make_heads(2), torch.rand(2, 1, 64, 64) * 2 - 1


def test_cut_looks_at_the_image_and_four_stages_in_256_places_each():
    G, F, x = small_cut()
    places = baselines.draw_places(64, torch.Generator().manual_seed(0))
    assert [len(p) for p in places] == [256, 256, 256, 256, 64] and all(len(set(p.tolist())) == len(p) for p in places)
    assert max(p.max() for p in places[:2]) > 3500 and places[2].max() < 1024
    vectors = baselines.features(G, F, x, places)
    assert [v.shape for v in vectors] == [(2, len(p), 256) for p in places]
    assert all(torch.allclose(v.norm(dim=2), torch.ones(2, v.shape[1])) for v in vectors)
    stage = G.encode(x)[1]
    expected = functional.normalize(F[2](stage[1, :, places[2][5] // 32, places[2][5] % 32]), dim=0)
    assert torch.allclose(vectors[2][1, 5], expected, atol=1e-6)
    assert torch.allclose(functional.normalize(F[0](x[0, :, places[0][3] // 64, places[0][3] % 64]), dim=0), vectors[0][0, 3], atol=1e-6)


def test_cut_queries_come_from_the_output_and_keys_are_detached():
    G, F, x = small_cut()
    y, places = x.flip(2), baselines.draw_places(64, torch.Generator().manual_seed(0))
    risk, terms = baselines.cut_generator_loss(flat, G, F, x, y, places, 3.0)

    def NCE(image, translated):
        keys = [k.detach() for k in baselines.features(G, F, image, places)]
        return mean([baselines.nce(q, k) for q, k in zip(baselines.features(G, F, translated, places), keys)])
    expected = 3.0 / 2 * (NCE(x, G.image(x)) + NCE(y, G.image(y)))
    assert risk.item() == pytest.approx(expected.item(), rel=1e-5)
    theta = list(G.image_out.parameters()) + list(G.down[0].parameters()) + list(F.parameters())
    found, wanted = torch.autograd.grad(risk, theta), torch.autograd.grad(expected, theta)
    assert all(torch.allclose(u, v, atol=1e-5) and v.any() for u, v in list(zip(found, wanted))[:1] + list(zip(found, wanted))[-2:])
    assert all(torch.allclose(u, v, atol=1e-4) for u, v in zip(found, wanted))


def test_cut_generator_is_scored_on_translations_of_x():
    G, F, x = small_cut()
    places = baselines.draw_places(64, torch.Generator().manual_seed(0))
    score = lambda v: v.mean(dim=(1, 2, 3))
    assert baselines.cut_generator_loss(score, G, F, x, x.flip(2), places, 0.0)[0].item() == pytest.approx(-G.image(x).mean().item(), abs=1e-6)


# ---------------------------------------------------------------- released

def test_released_critic_by_hand():
    for slope, penalty in ((0.02, 0.0), (0.08, 1.0)):  # times 25: 1/2 is free, 2 costs 1
        linear = lambda v: slope / 5 * v.sum(dim=(1, 2, 3))
        f_y, f_fake = linear(Y), linear(FAKE)
        expected = (f_fake - f_y).mean() + 10 * penalty + 5e-4 * (f_y ** 2 + f_fake ** 2).mean()
        assert baselines.released_critic_loss(linear, Y, FAKE, EPS).item() == pytest.approx(expected.item(), abs=1e-9)


def test_released_likelihood_by_hand_and_its_best_scale():
    a, scale = torch.zeros(1, 1, 1, 2, dtype=torch.float64), torch.full((1, 1, 1, 2), 0.5, dtype=torch.float64)
    b = torch.tensor([0.5, 2.0], dtype=torch.float64).view(1, 1, 1, 2)  # t = 1 and 4
    assert baselines.released_laplace(a, b, scale).item() == pytest.approx((1 + 2 + math.log(3)) / 2 + math.log(2))
    u = (torch.arange(20000, dtype=torch.float64) + .5) / 20000
    r = (-0.05 * torch.log(1 - u)).view(1, 1, 1, -1)  # absolute values of Laplace noise of scale 0.05
    scales = torch.linspace(0.1, 0.3, 201, dtype=torch.float64)
    risks = [baselines.released_laplace(torch.zeros_like(r), r, torch.full_like(r, s)) for s in scales]
    assert scales[torch.stack(risks).argmin()].item() == pytest.approx(0.185, abs=0.003)


def test_released_likelihood_has_finite_gradients_on_both_branches():
    b, scale = (torch.tensor(v, dtype=torch.float64).view(1, 1, 1, 3).requires_grad_() for v in ([0.0, 0.5, 5.0], [0.5, 0.5, 0.5]))
    baselines.released_laplace(torch.zeros(1, 1, 1, 3), b, scale).backward()
    assert torch.isfinite(b.grad).all() and torch.isfinite(scale.grad).all()


def test_released_generator_scores_g_of_p_by_halves_and_takes_both_scales():
    ramp = torch.linspace(0.5, 1.5, 5, dtype=torch.float64)
    G = lambda v: (3 * v * ramp, 0.3 + 0.1 * v ** 2 * ramp)
    risk, _ = baselines.released_generator_loss(critic, G, X, PHI, 2.0)
    image, whole = G(X)
    b, scale = G(patch(X, PHI))
    a, zoomed = patch(image, PHI).clamp(-1, 1), patch(whole, PHI).clamp(min=whole.min())
    assert patch(image, PHI).abs().max() > 1
    expected = -mean(naive_f(image)) / 2 - mean(naive_f(b)) / 2
    for s in (scale, zoomed):
        t = (b - a).abs() / s
        damped = [v if v <= 2 else 2 + math.log(v - 1) for v in t.flatten().tolist()]
        expected += 2.0 * (mean(damped) + (1 + 2 * s).log().mean().item()) / 2
    assert risk.item() == pytest.approx(expected, abs=1e-9)


def test_the_pool_hands_out_old_fakes_half_of_the_time_and_keeps_50():
    memory, stream = {}, torch.Generator().manual_seed(0)
    for k in range(10):
        batch = torch.arange(5.).view(5, 1, 1, 1) + 5 * k
        assert torch.equal(baselines.swap_with_history(batch, memory, stream), batch)  # until it is full
    fresh = 0
    for k in range(10, 110):
        batch = torch.arange(5.).view(5, 1, 1, 1) + 5 * k
        before, out = memory["pool"].clone(), baselines.swap_with_history(batch, memory, stream)
        kept = out == batch
        fresh += int(kept.sum())
        assert len(memory["pool"]) == 50 and torch.isin(out[~kept], torch.cat([before, batch])).all()
        assert torch.isin(batch[~kept], memory["pool"]).sum() >= 2 * (~kept).sum() - 5  # but for those replaced at once
    assert 0.4 < fresh / 500 < 0.6


def test_released_turns_alternate_whole_images_and_patches_of_one_batch_and_one_phi():
    G, memory, stream = only_image(lambda v: 0.5 * v), {}, torch.Generator().manual_seed(0)
    phis = [phi_of((4, 1, 0), (5, 0, 0), (3, 0, 2)), phi_of((4, 0, 0), (4, 0, 0), (4, 0, 0)), phi_of((3, 0, 0), (3, 1, 1), (5, 0, 0))]
    batches = [(noise(3, 1, 5, 5, seed=s), noise(3, 1, 5, 5, seed=s + 50)) for s in range(20, 24)]
    for turn, (real_x, real_y) in zip(range(4), (batches[0], batches[0], batches[2], batches[2])):
        y, fake = baselines.released_turn(G, *batches[turn], phis[min(turn, 2)], memory, stream)
        if turn % 2 == 0:
            assert torch.equal(y, real_y) and torch.equal(fake, 0.5 * real_x)
        else:
            assert torch.equal(y, patch(real_y, phis[0])) and torch.equal(fake, 0.5 * patch(real_x, phis[0]))


def test_released_critic_takes_the_generators_batch_again_and_moves_more_often_at_first():
    theta, omega, memory, stream = networks("released")
    x, y, phi = batch()
    baselines.critic_risk("released", theta, omega, x, y, phi, EPS[:2].float(), 10.0, memory, stream)
    later = x.flip(2)
    baselines.generator_risk("released", theta, omega, later, y, phi, 0.5, memory, stream)
    assert set(memory) == {"pool", "last_x"}
    baselines.critic_risk("released", theta, omega, x, y, phi, EPS[:2].float(), 10.0, memory, stream)
    assert torch.equal(memory["x"], later)
    assert [baselines.critic_updates("released", 15, step) for step in (0, 149, 150)] == [60, 60, 30]
    assert {baselines.critic_updates(m, 15, 0) for m in ("uapi", "pi", *baselines.METHODS[:-1])} == {15}


# ---------------------------------------------------------------- on the loop: passes, work, parameters

def networks(method, width=1, critic_width=1, device="cpu"):
    torch.manual_seed(0)
    with torch.device(device):
        more = baselines.more_networks(method, width, critic_width)
        theta = nn.ModuleDict({"G": baselines.make_generator(method, width), **more[0]})
        omega = nn.ModuleDict({"f": nets.Critic(width=critic_width), **more[1]})
    return theta, omega, {}, torch.Generator().manual_seed(0)


def batch(b=2, d=64):
    stream = torch.Generator().manual_seed(1)
    x, y = (2 * torch.rand(b, 1, d, d, generator=stream) - 1 for _ in range(2))
    return x, y, sample_phi(b, d, stream)


def risk_of(kind, method, theta, omega, memory, stream, x, y, phi, eps):
    """What train.py's critic or generator block minimises for this method."""
    G, f = theta["G"], omega["f"]
    if kind == "critic" and method in ("pi", "uapi"):
        with torch.no_grad():
            fake = G.image(x)
        return losses.critic_loss(f, y, fake, phi, eps)
    if kind == "critic":
        return baselines.critic_risk(method, theta, omega, x, y, phi, eps, 10.0, memory, stream)
    if method in ("pi", "uapi"):
        return losses.generator_loss(f, G, x, phi, 10.0, method == "uapi")[0]
    return baselines.generator_risk(method, theta, omega, x, y, phi, 10.0, memory, stream)[0]


@functools.cache
def passes(method):
    """{kind: (batches through generators, batches through critics)} of one update of each kind (released: two critic
    updates, whole and patches)."""
    theta, omega, memory, stream = networks(method)
    seen = {"G": 0, "f": 0}
    for name in {"G", "H"} & set(theta):
        theta[name].down[0].register_forward_hook(lambda _, inputs, __: seen.update(G=seen["G"] + len(inputs[0]) / 2))
    for network in omega.values():
        network.register_forward_hook(lambda _, inputs, __: seen.update(f=seen["f"] + len(inputs[0]) / 2))
    found = {}
    for kind, still in (("critic", theta), ("generator", omega)):
        seen.update(G=0, f=0)
        for _ in range(2 if method == "released" and kind == "critic" else 1):
            still.requires_grad_(kind == "critic")
            risk_of(kind, method, theta, omega, memory, stream, *batch(), torch.full((2, 1, 1, 1), 0.3)).backward()
        found[kind] = (int(seen["G"]), int(seen["f"]))
        assert all(w.grad is None for w in still.parameters()), "no gradient reaches the networks that stand still"
        still.requires_grad_(True)
        for w in (*theta.parameters(), *omega.parameters()) if kind == "critic" else ():
            w.grad = None
    return found


def weights_trained(method):
    """Weights that get a gradient, at the paper's widths; which ones, tiny networks tell."""
    moved = trained_names(method)
    theta, omega, *_ = networks(method, 16, 32, "meta")
    return sum(w.numel() for part in (theta, omega) for name, w in part.named_parameters() if name in moved)


class Nowhere(nullcontext):
    """Stands in for the counter's module tracker, which cannot stand the penalty's autograd.grad."""
    parents = {"Global"}


def flop_counter():
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = Nowhere()
    return counter


def flops(method, n_c=15, d=128):
    """FLOPs of the convolutions and matrix products of one generator update with its n_c critic updates, paper networks,
    one image (all grow with the batch alike)."""
    theta, omega, memory, stream = networks(method, 16, 32)

    def count(kind):
        with flop_counter() as counter:
            risk_of(kind, method, theta, omega, memory, stream, *batch(1, d), torch.full((1, 1, 1, 1), 0.3)).backward()
        return counter.get_total_flops()
    critics = n_c * (count("critic") + (count("critic") if method == "released" else 0))
    omega.requires_grad_(False)
    return critics + count("generator")


@pytest.mark.parametrize("width", [16])
def test_flops_are_counted_as_the_layer_table_counts_them(width):
    with flop_counter() as counter:
        nets.UNet(width=width)(torch.zeros(1, 1, 64, 64))
    assert counter.get_total_flops() == sum(row[3] for row in nets.layer_table(nets.UNet(width=width), 1, 64))
    y, weight = torch.zeros(1, 1, 64, 64), torch.ones(5, 1, 3, 3, requires_grad=True)
    f = lambda v: functional.conv2d(v, weight).square().mean(dim=(1, 2, 3))
    with flop_counter() as counter:
        losses.gradient_penalty(f, y, y, torch.zeros(1, 1, 1, 1)).backward()
    one = 2 * 5 * 9 * 62 * 62
    # forward and gradient in y~; its two gradients, in the weight and in what came from above; then both of the forward pass
    assert counter.get_total_flops() == 6 * one


METHODS = ("pi", "uapi", *baselines.METHODS)


@functools.cache
def trained_names(method):
    """Names of the weights that one update of each kind gives a gradient."""
    theta, omega, memory, stream = networks(method)
    for kind in ("critic", "critic", "generator"):
        omega.requires_grad_(kind == "critic")
        risk_of(kind, method, theta, omega, memory, stream, *batch(), torch.full((2, 1, 1, 1), 0.3)).backward()
    return {name for part in (theta, omega) for name, w in part.named_parameters() if w.grad is not None}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_all_its_networks_but_scale_heads_that_it_has_no_use_for(method):
    theta, omega, *_ = networks(method)
    everything = {name for part in (theta, omega) for name, _ in part.named_parameters()}
    idle = everything - trained_names(method)
    assert (not idle) == (method in baselines.SCALED) and all("scale" in name for name in idle)


@pytest.mark.parametrize("method", baselines.METHODS)
def test_terms_are_named_alike_and_carry_no_graph(method):
    theta, omega, memory, stream = networks(method)
    if method == "released":
        baselines.critic_risk(method, theta, omega, *batch(), EPS[:2].float(), 10.0, memory, stream)
    _, terms = baselines.generator_risk(method, theta, omega, *batch(), 10.0, memory, stream)
    assert {"adversarial", "consistency", "residual"} <= set(terms) and not any(term.requires_grad for term in terms.values())
    assert ("scale_mean" in terms) == ("scale_min" in terms) == (method in baselines.SCALED)


def test_methods_compare_what_the_table_says():
    """Every critic gets its own triple: with all networks replaced by formulas, each method's risk is known."""
    ramp = torch.linspace(0.2, 1, 5, dtype=torch.float64)  # so that G(T(x)) is not T(G(x))
    half, double = only_image(lambda v: ramp * v), only_image(lambda v: 2 * v)
    theta = {"G": half, "H": double}
    twice = {"cyclegan": {"f": critic, "g": mirrored_critic}, "gcgan": {"f": critic, "f_T": mirrored_critic}, "cut": {"f": critic}}
    eq2 = losses.wasserstein_critic_loss
    plain = eq2(critic, Y, ramp * X, EPS, 3.0)
    expected = {"cyclegan": plain + eq2(mirrored_critic, X, 2 * Y, EPS, 3.0), "cut": plain,
                "gcgan": plain + eq2(mirrored_critic, Y.flip(-1), ramp * X.flip(-1), EPS, 3.0)}
    for method, same in (("cyclegan",) * 2, ("ugac", "cyclegan"), ("gcgan",) * 2, ("uagc", "gcgan"), ("cut",) * 2):
        networks = theta if method in ("cyclegan", "ugac") else {"G": half}
        risk = baselines.critic_risk(method, networks, twice[same], X, Y, PHI, EPS, 3.0, {}, None)
        assert risk.item() == pytest.approx(expected[same].item(), abs=1e-9), method


def test_no_gradient_reaches_a_generator_in_a_critics_update():
    gain = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    G = only_image(lambda v: gain * v)
    omega = {"f": critic, "g": mirrored_critic, "f_T": mirrored_critic}
    for method in baselines.METHODS:
        theta = {"G": G, "H": G} if method in ("cyclegan", "ugac") else {"G": G}
        critics = {k: v for k, v in omega.items() if k == "f" or k == {"cyclegan": "g", "ugac": "g", "gcgan": "f_T", "uagc": "f_T"}.get(method)}
        risk = baselines.critic_risk(method, theta, critics, X, Y, PHI, EPS, 3.0, {}, torch.Generator())
        assert torch.autograd.grad(risk, gain, allow_unused=True)[0] is None if risk.requires_grad else True, method


# ---------------------------------------------------------------- the README's table

def test_the_readme_counts_passes_work_and_weights(request):
    """1 + 1, 2 + 4 half, 2 in two: the sum of the numbers, or the first, is the count."""
    text = (request.config.rootpath / "README.md").read_text().split("## The compared methods")[1].split("\n## ")[0]
    table = {cells[0]: cells[1:] for cells in ([c.strip() for c in line.strip("|").split("|")] for line in text.splitlines())
             if cells[0] in METHODS and len(cells) == 7}
    assert set(table) == set(METHODS)
    whole = lambda cell: sum(int(word) for word in cell.replace(" in two", "").split() if word.isdigit())
    once = flops("pi")
    for method, (*counts, work, weights) in table.items():
        found = passes(method)
        assert [whole(cell) for cell in counts] == [*found["critic"], *found["generator"]], method
        assert work == f"{flops(method) / once:.2f}" and weights == f"{weights_trained(method) / 1e6:.2f} M", method
