"""Sec. 4.2: the compared methods give the known answers, compare what they say, train what they
say, on equal budgets. What happens in whole iterations of their loop stands in test_train.py."""
import functools
import math
from contextlib import nullcontext
from pathlib import Path
from statistics import fmean as mean

import torch
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

import baselines
import losses
import nets
import train
from oracles import (EPS, FAKE, PHI, X, Y, agree, critic, naive_eq2, naive_f, naive_patch, noise,
                     phi_of)
from patch_op import sample_phi
from toys import TINY, ToyF, ToyG, replaced, tiny_slices

METHODS = ("pi", "uapi", *baselines.METHODS)
CYCLE = "cycleGAN: -f(G(x)) - g(H(y)) + lam ( |H(G(x)) - x| + |G(H(y)) - y| )"
GAUSSIAN = "UGAC: (|r| / alpha)^beta - log(beta / alpha) + log Gamma(1 / beta)"
UGAC = "UGAC: -f(G(x)) - g(H(y)) + lam sum_r ( w1 |r| + w2 NLL(r) ), r of both ways back"
GCGAN = "gcGAN: -f(G(x)) - f_T(G(T(x))) + lam |G(x) - T^-1(G(T(x)))|, T the mirror image"
UAGC = "uagc: Eq. 9 with T for P"
NCE = "CUT: -log( exp(q_s . k_s / tau) / sum_t exp(q_s . k_t / tau) ), t over the same image"
CUT = "CUT: -f(G(x)) + lam/2 ( NCE(x, G(x)) + NCE(y, G(y)) ), keys from the input, detached"
RELEASED_5 = ("released Eq. 5: f(fake) - f(y) + p ((|25 grad f(y~)| - 1)_+)^2 "
              "+ 5e-4 (f(y)^2 + f(fake)^2)")
RELEASED_9 = "released Eq. 9: t = |r|/s, above 2 damped to 2 + log(t - 1); + log(1 + 2s)"
RELEASED_6 = ("released Eq. 6: -f(G(x))/2 - f(G(P(x)))/2 + lam ( l(a, b, G^sigma(P(x))) "
              "+ l(a, b, P(G^sigma(x))) ) / 2, a = P(G(x)) clipped, b = G(P(x))")
POOL = "released: a fresh fake, or with probability 1/2 an old one from a pool of 50"


def flat(y):
    return 0 * y.sum(dim=(1, 2, 3))


def mirrored_critic(y):
    """Another critic, so that taking one for the other shows."""
    return 2 * critic(y.flip(-1)) + 1


class Formula:
    """A generator by formula: image(x), and with scale (or alpha and beta) when called."""
    def __init__(self, image, *maps):
        self.image, self.maps = image, maps

    def __call__(self, x):
        return self.image(x), *(m(x) for m in self.maps)


def constant(value):
    return lambda x: torch.full_like(x, value)


# ---------------------------------------------------------------- the critics' triples, Eq. 2 each

def test_every_critic_compares_its_own_triple():
    """All networks but one critic answer 0, so each risk is one naive Eq. 2."""
    ramp = torch.linspace(0.2, 1, 5, dtype=torch.float64)  # so that G(T(x)) is not T(G(x))
    theta = {"G": Formula(lambda v: ramp * v), "H": Formula(lambda v: 0.3 * v)}
    straight, back = ("f: y, G(x)", Y, ramp * X), ("g: x, H(y)", X, 0.3 * Y)
    mirrored = ("f_T: T(y), G(T(x))", Y.flip(-1), ramp * X.flip(-1))
    table = {"cyclegan": {"f": straight, "g": back}, "ugac": {"f": straight, "g": back},
             "gcgan": {"f": straight, "f_T": mirrored}, "uagc": {"f": straight, "f_T": mirrored},
             "cut": {"f": straight}}
    for method, triples in table.items():
        for name, (words, real, fake) in triples.items():
            omega = {other: critic if other == name else flat for other in triples}
            risk = baselines.critic_risk(method, theta, omega, X, Y, PHI, EPS, 2.5)
            agree(risk, naive_eq2(real, fake, EPS, 2.5), f"{method}: Eq. 2 of the triple {words}")


def test_no_gradient_reaches_a_generator_in_a_critics_update():
    gain = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    theta = dict.fromkeys("GH", Formula(lambda v: gain * v))
    omega = {"f": critic, "g": mirrored_critic, "f_T": mirrored_critic}
    for method in ("cyclegan", "ugac", "gcgan", "uagc", "cut"):
        risk = baselines.critic_risk(method, theta, omega, X, Y, PHI, EPS, 3.0)
        reached, = torch.autograd.grad(risk, gain, allow_unused=True)
        assert reached is None, f"{method}: fakes are detached in a critic's update"
    _, fake = baselines.released_pair(theta["G"], X, Y, PHI, "whole", {}, torch.Generator())
    assert not fake.requires_grad, "released: fakes are detached in a critic's update"


# ---------------------------------------------------------------- cycleGAN

def test_cyclegan_known_answers():
    plus, risk = Formula(lambda v: v + 0.1), baselines.cyclegan_generator_loss
    twice, half = Formula(lambda v: 2 * v), Formula(lambda v: v / 2 + 0.1)
    for lam in (1.0, 3.0):
        found, terms = risk(flat, flat, plus, plus, X, Y, lam)
        agree(found, 0.4 * lam, f"{CYCLE}, here G = H = id + 0.1")
        agree(terms["residual"], 0.2, "the logged residual: the mean of both ways there and back")
        found, _ = risk(flat, flat, twice, half, X, Y, lam)
        agree(found, lam * (0.1 + 0.2), f"{CYCLE}, here G = 2x, H = y/2 + 0.1")


def test_cyclegan_generators_are_scored_by_their_own_critics():
    G, H = Formula(lambda v: 0.5 * v), Formula(lambda v: 2 * v)  # inverses: the cycle is free
    risk, terms = baselines.cyclegan_generator_loss(critic, mirrored_critic, G, H, X, Y, 10.0)
    expected = -mean(naive_f(0.5 * X)) - mirrored_critic(2 * Y).mean().item()
    agree(risk, expected, CYCLE)
    agree(terms["consistency"], 0.0, CYCLE)


# ---------------------------------------------------------------- UGAC

NLL = [((1, 1), 0.900000), ((2, 1), 1.143147), ((1, 2), 1.194218), ((.5, 1.5), 2.184005),
       ((1, .5), 1.552534)]
VARIANCE = [2, 8, .5, .184622]  # for beta = 1/2 it reaches farther than the grid below
R = torch.tensor([0.5, 1, 2, 0.1], dtype=torch.float64)


def test_generalized_gaussian_known_answers():
    for (alpha, beta), expected in NLL:
        maps = torch.full_like(R, alpha), torch.full_like(R, beta)
        found = baselines.generalized_gaussian(R, *maps)
        agree(found, expected, f"{GAUSSIAN}, here alpha {alpha}, beta {beta}", 1e-6)


def test_generalized_gaussian_is_laplace_for_beta_1_and_a_density_for_all():
    alpha = torch.full_like(R, 0.7)
    laplace = losses.patch_laplace(*(v.view(1, 1, 2, 2) for v in (R, 0 * R, alpha)))
    found = baselines.generalized_gaussian(R, alpha, torch.ones_like(R))
    agree(found, laplace - math.log(2), f"{GAUSSIAN}: Eq. 9 where beta = 1")
    r = torch.linspace(-60, 60, 400_001, dtype=torch.float64)
    for ((alpha, beta), _), variance in zip(NLL, VARIANCE):
        shape = math.log(beta / alpha) - math.lgamma(1 / beta) - math.log(2)
        density = torch.exp(-((r.abs() / alpha) ** beta) + shape)
        maps = [torch.tensor(v, dtype=torch.float64) for v in (alpha, beta)]
        for v, p in zip(r[::40000], density[::40000]):
            agree((-baselines.generalized_gaussian(v, *maps)).exp() / 2, p, GAUSSIAN, 1e-5)
        agree(torch.trapezoid(density, r), 1.0, "a density's integral", 1e-4)
        agree(torch.trapezoid(density * r ** 2, r) / variance, 1.0, "its variance", 1e-3)


def test_generalized_gaussian_has_a_finite_gradient_where_the_residual_is_zero():
    r, alpha, beta = (torch.tensor([v], dtype=torch.float64, requires_grad=True)
                      for v in (0.0, 0.5, 0.6))
    baselines.generalized_gaussian(r, alpha, beta).backward()
    assert all(torch.isfinite(v.grad).all() for v in (r, alpha, beta))


def test_ugac_weighs_residual_and_likelihood_of_both_ways_back():
    G = Formula(lambda v: v + 0.1, constant(0.3), constant(1.5))
    H = Formula(lambda v: v + 0.2, constant(0.5), constant(0.8))
    risk, terms = baselines.ugac_generator_loss(flat, flat, G, H, X, Y, 2.0)

    def nll(r, alpha, beta):
        return (r / alpha) ** beta - math.log(beta / alpha) + math.lgamma(1 / beta)
    likelihoods = nll(0.3, 0.5, 0.8) + nll(0.3, 0.3, 1.5)  # of H(G(x)) by H, of G(H(y)) by G
    agree(risk, 2.0 * (1.0 * (0.3 + 0.3) + 0.015 * likelihoods), UGAC)
    agree(terms["scale_mean"], 0.3, "the maps logged are G's, whose output is wanted")


def test_ugac_generator_is_scored_like_cyclegans():
    G, H = (Formula(lambda v, k=k: k * v, constant(1.0), constant(1.0)) for k in (0.5, 2))
    risk, _ = baselines.ugac_generator_loss(critic, mirrored_critic, G, H, X, Y, 0.0)
    agree(risk, -mean(naive_f(0.5 * X)) - mirrored_critic(2 * Y).mean().item(), UGAC)


def test_ugacs_three_heads_stay_in_their_ranges_and_have_their_own_last_level():
    torch.manual_seed(0)
    G = baselines.ThreeHeadedUNet(width=2)
    with torch.no_grad():
        G.beta_out.bias += 2
    x = torch.rand(2, 1, 64, 64) * 2 - 1
    image, alpha, beta = G(x)
    raw = G.beta_out(G.beta_up(*G.trunk(x)))
    expected = (torch.log1p(raw.exp()) + 0.1).clamp(max=4)
    agree(beta, expected.tolist(), "UGAC: beta = min(softplus(.) + 0.1, 4)", 1e-5)
    assert torch.equal(image, G.image(x)) and image.abs().max() <= 1
    assert alpha.min() >= 1e-3 and 0.1 < beta.min() and beta.max() <= 4 and beta.min() < 4
    others = [*G.image_up.parameters(), *G.scale_up.parameters()]
    reached = torch.autograd.grad(beta.sum(), others, allow_unused=True)
    assert all(g is None for g in reached), "beta has a last level of its own"
    with torch.no_grad():
        G.scale_out.bias -= 100
        G.beta_out.bias += 100
    _, alpha, beta = G(x)
    agree(alpha, torch.full_like(alpha, 1e-3), "UGAC: alpha = softplus(.) + 1e-3", 1e-9)
    agree(beta, torch.full_like(beta, 4), "UGAC: beta = min(softplus(.) + 0.1, 4)", 0)


# ---------------------------------------------------------------- gcGAN and uagc

def test_gcgan_known_answers():
    x, columns = noise(2, 1, 4, 4, seed=12), torch.arange(4, dtype=torch.float64) / 3
    for ramp, expected in ((columns, 2 / 3), (columns.view(4, 1), 0.0)):
        risk, _ = baselines.gcgan_generator_loss(flat, flat, Formula(lambda v: v + ramp), x, 1.0)
        agree(risk, expected, f"{GCGAN}: left and right, not up and down", 1e-12)


def test_gcgan_generator_is_scored_straight_and_mirrored():
    G = Formula(lambda v: 0.5 * v)
    risk, _ = baselines.gcgan_generator_loss(critic, mirrored_critic, G, X, 10.0)
    agree(risk, -mean(naive_f(0.5 * X)) - mirrored_critic(0.5 * X.flip(-1)).mean().item(), GCGAN)


def test_uagc_is_eq9_with_the_mirror_for_the_patch():
    ramp = torch.linspace(0.5, 1.5, 5, dtype=torch.float64)
    G = Formula(lambda v: v * ramp, lambda v: 0.2 + v ** 2 * ramp)
    risk, terms = baselines.gcgan_generator_loss(flat, flat, G, X, 3.0, uncertainty=True)
    costs = []
    for row in X.reshape(-1, 5).tolist():
        for j in range(5):
            mirrored = row[4 - j]                     # T(x) at column j
            a, b = mirrored * ramp[4 - j].item(), mirrored * ramp[j].item()
            s = 0.2 + mirrored ** 2 * ramp[j].item()  # G^sigma(T(x)), as Eq. 9 takes G^sigma(P(x))
            costs.append(abs(b - a) / s + math.log(2 * s))
    agree(risk, 3.0 * mean(costs), UAGC)
    assert terms["scale_min"] > 0


# ---------------------------------------------------------------- CUT

def test_nce_known_answers():
    eye = torch.eye(2, dtype=torch.float64)[None]
    agree(baselines.nce(eye, eye), 6.2487e-7, f"{NCE}, here q = k = 1", 1e-10)
    agree(baselines.nce(eye, eye.flip(1)), 14.285715, f"{NCE}, here keys swapped", 1e-6)
    for S in (2, 7, 256):
        alike = torch.ones(3, S, 4, dtype=torch.float64) / 2
        agree(baselines.nce(alike, alike), math.log(S), f"{NCE}, here {S} places alike")


def test_nce_equals_a_naive_loop_with_negatives_from_the_same_image_only():
    q, k = (functional.normalize(noise(2, 4, 3, seed=seed), dim=2) for seed in (13, 14))
    costs = []
    for queries, keys in zip(q.tolist(), k.tolist()):
        for s in range(4):
            likeness = [sum(u * v for u, v in zip(queries[s], key)) / 0.07 for key in keys]
            costs.append(math.log(sum(map(math.exp, likeness))) - likeness[s])
    agree(baselines.nce(q, k), mean(costs), NCE)


def small_cut():
    torch.manual_seed(0)
    x, places = torch.rand(2, 1, 64, 64) * 2 - 1, torch.Generator().manual_seed(0)
    return nets.UNet(width=2), baselines.make_heads(2), x, baselines.draw_places(64, places)


def test_similarities_of_cut_are_float32_under_bfloat16():
    """1/tau would magnify the rounding of bfloat16, 0.4 %, to errors in the gradient."""
    q, k = (functional.normalize(noise(2, 64, 16, seed=s).float(), dim=2) for s in (15, 16))
    q.requires_grad_()
    plain = baselines.nce(q, k)
    wanted, = torch.autograd.grad(plain, q)
    with torch.autocast("cpu", torch.bfloat16):
        rough = baselines.nce(q, k)
    gradient, = torch.autograd.grad(rough, q)
    agree(rough, plain.item(), f"{NCE}, in float32 under autocast", 1e-6)
    error = ((gradient - wanted).norm() / wanted.norm()).item()
    assert error < 1e-5, f"{NCE}: its gradient is off by {error:.1e} under autocast"


def test_features_of_cut_keep_the_images_type_under_bfloat16():
    G, F, x, places = small_cut()
    with torch.autocast("cpu", torch.bfloat16):
        vectors = baselines.features(G, F, x, places)
    assert [v.dtype for v in vectors] == [torch.float32] * 5
    for v in vectors:
        agree(v.norm(dim=2), torch.ones(v.shape[:2]), "CUT: features are unit vectors", 1e-5)


def test_cut_looks_at_the_image_and_four_stages_in_256_places_each():
    G, F, x, places = small_cut()
    assert [len(place) for place in places] == [256, 256, 256, 256, 64]
    assert all(len(set(place.tolist())) == len(place) for place in places)
    assert max(place.max() for place in places[:2]) > 3500 and places[2].max() < 1024
    vectors = baselines.features(G, F, x, places)
    assert [v.shape for v in vectors] == [(2, len(place), 256) for place in places]
    for v in vectors:
        agree(v.norm(dim=2), torch.ones(v.shape[:2]), "CUT: features are unit vectors", 1e-5)
    for layer, stage, n, s in ((2, G.encode(x)[1], 1, 5), (0, x, 0, 3)):
        i, j = divmod(places[layer][s].item(), stage.shape[-1])
        expected = functional.normalize(F[layer](stage[n, :, i, j]), dim=0)
        agree(vectors[layer][n, s], expected, f"CUT: layer {layer} at its place ({i}, {j})", 1e-6)


def test_cut_queries_come_from_the_output_and_keys_are_detached():
    G, F, x, places = small_cut()
    y = x.flip(2)
    risk, _ = baselines.cut_generator_loss(flat, G, F, x, y, places, 3.0)

    def contrast(image, translated):
        keys = [k.detach() for k in baselines.features(G, F, image, places)]
        queries = baselines.features(G, F, translated, places)
        return sum(baselines.nce(q, k) for q, k in zip(queries, keys)) / 5
    expected = 3.0 / 2 * (contrast(x, G.image(x)) + contrast(y, G.image(y)))
    agree(risk, expected, CUT, 1e-4)
    weights = [*G.image_out.parameters(), *G.down[0].parameters(), *F.parameters()]
    found, wanted = torch.autograd.grad(risk, weights), torch.autograd.grad(expected, weights)
    for u, v in zip(found, wanted):
        agree(u, v, f"d/d theta of {CUT}", 1e-4)
    assert wanted[0].any() and wanted[-1].any()


def test_cut_generator_is_scored_on_translations_of_x():
    G, F, x, places = small_cut()
    score = lambda v: v.mean(dim=(1, 2, 3))
    y = x.flip(2)
    risk, terms = baselines.cut_generator_loss(score, G, F, x, y, places, 0.0)
    agree(risk, -G.image(x).mean().item(), f"{CUT}, here lam = 0", 1e-6)
    agree(terms["residual"], (G.image(y) - y).abs().mean().item(), "the logged |G(y) - y|", 1e-6)


# ---------------------------------------------------------------- released: Eq. 5, 9 and 6

def test_released_critic_by_hand():
    for slope, penalty in ((0.02, 0.0), (0.08, 1.0)):  # times 25: 1/2 is free, 2 costs 1
        linear = lambda v: slope / 5 * v.sum(dim=(1, 2, 3))
        f_y, f_fake = linear(Y), linear(FAKE)
        drift = (f_y ** 2 + f_fake ** 2).mean()
        expected = (f_fake - f_y).mean() + 10 * penalty + 5e-4 * drift
        agree(baselines.released_critic_loss(linear, Y, FAKE, EPS), expected, RELEASED_5)


def test_released_drift_squares_the_mean_of_the_map():
    """The released drift takes the mean of squares over the 5x5 map; ours has one number left."""
    three = lambda v: 3 + flat(v)
    agree(baselines.released_critic_loss(three, Y, FAKE, EPS), 5e-4 * (9 + 9), RELEASED_5, 1e-12)
    assert "mean of squares" in baselines.released_critic_loss.__doc__


def test_released_likelihood_by_hand_and_its_best_scale():
    a, scale = torch.zeros(1, 1, 1, 2, dtype=torch.float64), torch.full((1, 1, 1, 2), 0.5).double()
    b = torch.tensor([0.5, 2.0], dtype=torch.float64).view(1, 1, 1, 2)  # t = 1 and 4
    expected = (1 + 2 + math.log(3)) / 2 + math.log(2)
    agree(baselines.released_laplace(a, b, scale), expected, RELEASED_9)
    u = (torch.arange(20000, dtype=torch.float64) + .5) / 20000
    r = (-0.05 * torch.log(1 - u)).view(1, 1, 1, -1)  # |Laplace noise| of scale 0.05
    scales = torch.linspace(0.1, 0.3, 201, dtype=torch.float64)
    risks = [baselines.released_laplace(0 * r, r, torch.full_like(r, s)) for s in scales]
    best = scales[torch.stack(risks).argmin()]
    agree(best, 0.185, f"{RELEASED_9}: its minimum for Laplace noise of 0.05", 0.003)


def test_released_likelihood_has_finite_gradients_on_both_branches():
    b, scale = (torch.tensor(v, dtype=torch.float64).view(1, 1, 1, 3).requires_grad_()
                for v in ([0.0, 0.5, 5.0], [0.5, 0.5, 0.5]))
    baselines.released_laplace(torch.zeros(1, 1, 1, 3), b, scale).backward()
    assert torch.isfinite(b.grad).all() and torch.isfinite(scale.grad).all()


def test_released_generator_scores_g_of_p_by_halves_and_takes_both_scales():
    ramp = torch.linspace(0.5, 1.5, 5, dtype=torch.float64)
    G = lambda v: (3 * v * ramp, 0.3 + 0.1 * v ** 2 * ramp)
    risk, _ = baselines.released_generator_loss(critic, G, X, PHI, 2.0)
    (image, whole), (b, scale) = G(X), G(naive_patch(X, PHI))
    a, zoomed = naive_patch(image, PHI), naive_patch(whole, PHI).clamp(min=whole.min())
    assert a.abs().max() > 1
    patch_losses = []
    for s in (scale, zoomed):
        t = ((b - a.clamp(-1, 1)).abs() / s).flatten().tolist()
        damped = mean(v if v <= 2 else 2 + math.log(v - 1) for v in t)
        patch_losses.append(damped + (1 + 2 * s).log().mean().item())
    expected = -mean(naive_f(image)) / 2 - mean(naive_f(b)) / 2 + 2.0 * mean(patch_losses)
    agree(risk, expected, RELEASED_6)


# ---------------------------------------------------------------- released: what it remembers

def fakes(first, count=5):
    """Fakes of one pixel each, numbered."""
    return torch.arange(first, first + count, dtype=torch.float64).view(count, 1, 1, 1)


def test_the_pool_hands_out_old_fakes_half_of_the_time_and_keeps_50():
    history, stream, fresh = {}, torch.Generator().manual_seed(0), 0
    for k in range(10):
        new = fakes(5 * k)
        agree(baselines.swap_with_pool(new, history, "whole", stream), new, f"{POOL}, not full", 0)
    for k in range(10, 110):
        new, old = fakes(5 * k), history["whole"]
        out = baselines.swap_with_pool(new, history, "whole", stream)
        kept = out == new
        fresh += int(kept.sum())
        assert len(history["whole"]) == 50 and torch.isin(out[~kept], torch.cat([old, new])).all()
        staying = torch.isin(new[~kept], history["whole"]).sum()
        assert staying >= 2 * (~kept).sum() - 5  # but for those replaced at once
    assert 0.4 < fresh / 500 < 0.6, f"{POOL}: {fresh} of 500 were handed over fresh"


def test_whole_fakes_and_fakes_of_patches_have_a_pool_of_50_each():
    history, stream = {}, torch.Generator().manual_seed(0)
    for k in range(40):
        for pool, sign in (("whole", 1), ("patches", -1)):
            out = baselines.swap_with_pool(sign * fakes(5 * k + 1), history, pool, stream)
            assert (sign * out > 0).all(), f"{POOL}: a fake of the other pool came out of {pool}"
    assert set(history) == {"whole", "patches"} and all(len(v) == 50 for v in history.values())
    assert (history["whole"] > 0).all() and (history["patches"] < 0).all()


def test_a_pool_of_the_state_is_no_view_of_what_was_handed_over():
    history, stream = {}, torch.Generator().manual_seed(0)
    for k in range(10):
        out = baselines.swap_with_pool(fakes(5 * k), history, "whole", stream)
    out.zero_()
    agree(history["whole"].flatten(), list(range(50)), POOL, 0)


def test_released_draws_give_phi_until_it_is_replaced_and_x_once():
    """phi of the last generator update serves all critic updates after it, its x the first."""
    history, phis = {}, [phi_of((k, 0, 1), (k, 1, 0), (k, 0, 0)) for k in (3, 4, 5)]
    same = lambda one, other: all(torch.equal(u, v) for u, v in zip(one, other))
    for x in (X, Y):  # before any generator update: each x as drawn, the first phi for all
        found, phi = baselines.released_draws(history, x, phis[0 if x is X else 1])
        assert found is x and same(phi, phis[0])
    history |= {"x": FAKE, "phi": torch.stack(phis[2])}  # as the loop leaves it
    found, phi = baselines.released_draws(history, X, phis[0])
    assert found is FAKE and same(phi, phis[2])
    found, phi = baselines.released_draws(history, X, phis[1])
    assert found is X and same(phi, phis[2])


def test_released_pair_is_whole_or_of_patches_with_g_after_p():
    ramp = torch.linspace(0.5, 1.5, 5, dtype=torch.float64)
    G, stream = Formula(lambda v: v * ramp), torch.Generator().manual_seed(0)
    history = {}
    y, fake = baselines.released_pair(G, X, Y, PHI, "whole", history, stream)
    agree(y, Y, "released, whole images: y", 0)
    agree(fake, X * ramp, "released, whole images: G(x)", 0)
    y, fake = baselines.released_pair(G, X, Y, PHI, "patches", history, stream)
    agree(y, naive_patch(Y, PHI), "released, patches: P(y)")
    agree(fake, naive_patch(X, PHI) * ramp, "released, patches: G(P(x)), not P(G(x))")
    agree(history["whole"], X * ramp, POOL, 0)
    agree(history["patches"], naive_patch(X, PHI) * ramp, POOL)


# ---------------------------------------------------------------- all methods: terms, budgets

def networks(method, width=1, critic_width=1):
    state = train.build(TINY | {"method": method, "width": width, "critic_width": critic_width})
    return state.theta, state.omega


def risk_of(kind, method, theta, omega, b=2, d=64, part="whole"):
    """What one critic or generator update of this method minimises, on noise -> risk, terms."""
    stream = torch.Generator().manual_seed(1)
    x, y = (2 * torch.rand(b, 1, d, d, generator=stream) - 1 for _ in range(2))
    phi, eps = sample_phi(b, d, stream), torch.full((b, 1, 1, 1), 0.3)
    G, f = theta["G"], omega["f"]
    if kind == "generator" and method in ("pi", "uapi"):
        return losses.generator_loss(f, G, x, phi, 10.0, method == "uapi")
    if kind == "generator":
        return baselines.generator_risk(method, theta, omega, x, y, phi, 10.0, stream)
    if method in ("pi", "uapi"):
        with torch.no_grad():
            fake = G.image(x)
        return losses.critic_loss(f, y, fake, phi, eps), {}
    if method == "released":
        pair = baselines.released_pair(G, x, y, phi, part, {}, stream)
        return baselines.released_critic_loss(f, *pair, eps), {}
    return baselines.critic_risk(method, theta, omega, x, y, phi, eps, 10.0), {}


def updates_of(method):
    """The critic steps of one turn, and the generator's."""
    parts = ("whole", "patches") if method == "released" else ("whole",)
    return [("critic", part) for part in parts] + [("generator", "whole")]


@functools.cache
def one_turn(method):
    """One turn of tiny networks -> {kind: [batches through generators, through critics]}, the names
    of all weights that got a gradient, the names of all weights, the generator's terms."""
    theta, omega = networks(method)
    passes, trained = {"critic": [0, 0], "generator": [0, 0]}, set()
    for k, network in enumerate((theta, omega)):
        for name in {"G", "H", "f", "g", "f_T"} & set(network):
            first = network[name].down[0]
            first.register_forward_hook(lambda _, inputs, __, k=k: counts.append((k, inputs[0])))
    for kind, part in updates_of(method):
        moving, still = (omega, theta) if kind == "critic" else (theta, omega)
        still.requires_grad_(False)
        counts = []
        risk, terms = risk_of(kind, method, theta, omega, part=part)
        risk.backward()
        for k, images in counts:
            passes[kind][k] += len(images) / 2
        trained |= {name for name, w in moving.named_parameters() if w.grad is not None}
        assert all(w.grad is None for w in still.parameters()), f"{method}: {kind}"
        still.requires_grad_(True)
        moving.zero_grad()
    everything = {name for part in (theta, omega) for name, _ in part.named_parameters()}
    return passes, trained, everything, terms


def test_every_method_trains_all_its_networks_but_scale_heads_that_it_has_no_use_for():
    for method in METHODS:
        _, trained, everything, _ = one_turn(method)
        idle, has_map = everything - trained, baselines.trains_scale({"method": method, "lam": 1})
        assert (not idle) == has_map, f"{method} leaves {idle} as they are"
        assert all("scale" in name for name in idle), method
        assert not baselines.trains_scale({"method": method, "lam": 0}), "lam 0 trains no scale"


def test_our_weights_other_than_10_are_those_of_cut_and_released():
    assert baselines.LAM == {"cut": 1.0, "released": 0.5}


def test_p_reaches_every_critic_and_the_log_has_minus_the_critics_risk():
    for method, name in (("gcgan", "wasserstein_critic_loss"),
                         ("released", "released_critic_loss")):
        weights, risks, logged, real = [], [], [], getattr(baselines, name)

        def watched(*words):
            weights.append(words[-1])
            risks.append(real(*words))
            return risks[-1]
        config = TINY | {"method": method, "p": 2.5, "critic_steps": 1, "updates": 1}
        with replaced(UNet=ToyG, Critic=ToyF, save=lambda *_: None, **{name: watched},
                      log=lambda *_, **values: logged.append(values["wasserstein"])):
            state = train.build(config)
            baselines.train(config, tiny_slices(), Path("nowhere"), state)
        assert set(weights) == {2.5}, f"{method}: p of --p weighs each critic's penalty"
        last = sum(risks[-2:]) if method == "gcgan" else risks[-1]  # f and f_T; the second step
        agree(logged[-1], -last.item(), f"{method}: the log's wasserstein is -l_cri", 1e-6)


def test_terms_are_named_alike_and_carry_no_graph():
    for method in baselines.METHODS:
        terms = one_turn(method)[3]
        assert {"adversarial", "consistency", "residual"} <= set(terms), method
        assert not any(term.requires_grad for term in terms.values()), method
        has_map = baselines.trains_scale({"method": method, "lam": 1})
        assert ("scale_mean" in terms) == ("scale_min" in terms) == has_map, method


class Nowhere(nullcontext):
    """Stands in for the counter's module tracker, which cannot stand the penalty's autograd."""
    parents = {"Global"}


def flop_counter():
    counter = FlopCounterMode(display=False)
    counter.mod_tracker = Nowhere()
    return counter


def test_flops_are_counted_as_the_layer_table_counts_them():
    G, y = nets.UNet(width=4), torch.zeros(1, 1, 64, 64)
    with flop_counter() as counter:
        G(y)
    assert counter.get_total_flops() == sum(row[3] for row in nets.layer_table(G, 1, 64))
    weight = torch.ones(5, 1, 3, 3, requires_grad=True)
    f = lambda v: functional.conv2d(v, weight).square().mean(dim=(1, 2, 3))
    with flop_counter() as counter:
        losses.gradient_penalty(f, y, y, torch.zeros(1, 1, 1, 1)).backward()
    # Forward and the gradient in y~; its two gradients, in the weight and in what came from above;
    # then both of the forward pass.
    assert counter.get_total_flops() == 6 * (2 * 5 * 9 * 62 * 62)


def flops(method, n_c=15):
    """FLOPs of the convolutions and matrix products of one generator update with its n_c critic
    updates at 128x128, paper networks, one image (all grow with the batch alike)."""
    theta, omega = networks(method, 16, 32)
    total = 0
    for kind, part in updates_of(method):
        omega.requires_grad_(kind == "critic")
        with flop_counter() as counter:
            risk_of(kind, method, theta, omega, 1, 128, part)[0].backward()
        total += counter.get_total_flops() * (n_c if kind == "critic" else 1)
    return total


def weights_trained(method):
    """Weights that get a gradient, at the paper's widths; which ones, tiny networks tell."""
    moved = one_turn(method)[1]
    return sum(w.numel() for part in networks(method, 16, 32)
               for name, w in part.named_parameters() if name in moved)


def test_the_readme_counts_passes_work_and_weights(request):
    """1 + 1, 2 + 4 half, 2 in two: the sum of the numbers, or the first, is the count."""
    text = (request.config.rootpath / "results/README.md").read_text().split("## Passes and work")[1]
    lines = [[cell.strip() for cell in line.strip("|").split("|")]
             for line in text.split("\n## ")[0].splitlines()]
    table = {cells[0]: cells[1:] for cells in lines if cells[0] in METHODS and len(cells) == 7}
    assert set(table) == set(METHODS)

    def whole(cell):
        return sum(int(word) for word in cell.replace(" in two", "").split() if word.isdigit())
    work_of = {method: flops(method) for method in METHODS}
    for method, (*counts, work, weights) in table.items():
        passes = one_turn(method)[0]
        assert [whole(cell) for cell in counts] == [*passes["critic"], *passes["generator"]], method
        assert work == f"{work_of[method] / work_of['pi']:.2f}", method
        assert weights == f"{weights_trained(method) / 1e6:.2f} M", method
