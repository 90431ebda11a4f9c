"""Sec. 4.2: the compared methods give the known answers, compare what they say, train what they
say, on equal budgets. What happens in whole iterations of their loop stands in test_train.py."""
import functools
import math
from pathlib import Path
from statistics import fmean as mean

import torch
from torch.nn import functional

import baselines
import benchmark
import losses
import nets
import train
from oracles import EPS, X, Y, Q, W, agree, critic, naive_eq2, naive_f, noise
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
            risk = baselines.critic_risk(method, theta, omega, X, Y, EPS, 2.5)
            agree(risk, naive_eq2(real, fake, EPS, 2.5), f"{method}: Eq. 2 of the triple {words}")


def test_no_gradient_reaches_a_generator_in_a_critics_update():
    gain = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    theta = dict.fromkeys("GH", Formula(lambda v: gain * v))
    omega = {"f": critic, "g": mirrored_critic, "f_T": mirrored_critic}
    for method in ("cyclegan", "ugac", "gcgan", "uagc", "cut"):
        risk = baselines.critic_risk(method, theta, omega, X, Y, EPS, 3.0)
        reached, = torch.autograd.grad(risk, gain, allow_unused=True)
        assert reached is None, f"{method}: fakes are detached in a critic's update"


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
    agree(terms["alpha_mean"], 0.3, "the maps logged are G's, whose output is wanted")


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
    with torch.autocast("cpu", torch.bfloat16):
        assert {v.dtype for v in G(x)} == {torch.float32}, "--bf16: what leaves G is float32"
    with torch.no_grad():
        G.scale_out.bias -= 100
        G.beta_out.bias += 100
    _, alpha, beta = G(x)
    agree(alpha, torch.full_like(alpha, 1e-3), "UGAC: alpha = softplus(.) + 1e-3", 1e-9)
    agree(beta, torch.full_like(beta, 4), "UGAC: beta = min(softplus(.) + 0.1, 4)", 0)


def test_ugacs_third_head_starts_by_he_as_the_others_do():
    torch.manual_seed(0)
    G = baselines.ThreeHeadedUNet(width=16)
    for name, layer in (("beta_out", G.beta_out), ("beta_up.halve", G.beta_up.halve[0]),
                        ("scale_out", G.scale_out)):
        fan_in = layer.weight[0].numel()
        share = layer.weight.std().item() / math.sqrt(2 / (1.04 * fan_in))
        assert 0.8 < share < 1.2, f"Sec. 3.4: {name} starts at {share:.2f} of He's deviation"
        assert not layer.bias.any(), f"Sec. 3.4: biases of {name} start at {layer.bias.tolist()[:3]}"


def test_the_smallest_scale_that_is_logged_is_the_smallest():
    slope = lambda v: 0.5 + 0.4 * v
    G, H = Formula(lambda v: v, slope, constant(1.0)), Formula(lambda v: v, constant(0.9), slope)
    _, ugac = baselines.ugac_generator_loss(flat, flat, G, H, X, Y, 1.0)
    agree(ugac["alpha_min"], slope(Y).min().item(), "log: alpha_min of ugac")
    _, uagc = baselines.gcgan_generator_loss(flat, flat, Formula(lambda v: v, slope), X, 1.0, True)
    agree(uagc["scale_min"], slope(X).min().item(), "log: scale_min of uagc")


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


def naive_eq2_of_mirrored_critic(y, fake, eps, p):
    """Eq. 2 of f_T(v) = 2 f(T(v)) + 1 from oracles.py: twice f's slope, at the mirrored images."""
    costs = []
    for real, other, e in zip(y.flip(-1), fake.flip(-1), eps):
        slope = 2 * math.hypot(*(W + Q * (e * other + (1 - e) * real)).flatten().tolist())
        costs.append(2 * naive_f(other[None])[0] - 2 * naive_f(real[None])[0]
                     + p * max(slope - 1, 0) ** 2)
    return mean(costs)


def test_f_T_compares_mirrored_images_with_translations_of_mirrored_images():
    """Two critics, neither flat, and a G that knows left from right: T(G(x)) for G(T(x)), f for f_T
    or f_T(G(x)) would show, in the critic's risk and in the generator's."""
    ramp = torch.linspace(0.2, 1, 5, dtype=torch.float64)
    theta = {"G": Formula(lambda v: ramp * v, lambda v: 0.2 + v ** 2 * ramp)}
    omega, mirrored = {"f": critic, "f_T": mirrored_critic}, ramp * X.flip(-1)
    for method in ("gcgan", "uagc"):
        risk = baselines.critic_risk(method, theta, omega, X, Y, EPS, 2.5)
        asked = (naive_eq2(Y, ramp * X, EPS, 2.5)
                 + naive_eq2_of_mirrored_critic(Y.flip(-1), mirrored, EPS, 2.5))
        agree(risk, asked, f"{method}, Sec. 4.2: Eq. 2 of f: y, G(x), and of f_T: T(y), G(T(x))")
        risk, terms = baselines.generator_risk(method, theta, omega, X, Y, 0.0, None)
        asked = -mean(naive_f(ramp * X)) - 2 * mean(naive_f(mirrored.flip(-1))) - 1
        for found in (risk, terms["adversarial"]):
            agree(found, asked, f"{method}, Sec. 4.2: -f(G(x)) - f_T(G(T(x))), here lam = 0")


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
        agree(baselines.nce(alike, alike), math.log(S), f"{NCE}, here {S} pixels alike")


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
    x, stream = torch.rand(2, 1, 64, 64) * 2 - 1, torch.Generator().manual_seed(0)
    return nets.UNet(width=2), baselines.make_heads(2), x, baselines.draw_pixels(64, stream)


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
    G, F, x, pixels = small_cut()
    with torch.autocast("cpu", torch.bfloat16):
        vectors = baselines.features(G, F, x, pixels)
    assert [v.dtype for v in vectors] == [torch.float32] * 5
    for v in vectors:
        agree(v.norm(dim=2), torch.ones(v.shape[:2]), "CUT: features are unit vectors", 1e-5)


def test_cut_looks_at_the_image_and_four_stages_in_256_pixels_each():
    G, F, x, pixels = small_cut()
    assert [len(index) for index in pixels] == [256, 256, 256, 256, 64]
    assert all(len(set(index.tolist())) == len(index) for index in pixels)
    assert max(index.max() for index in pixels[:2]) > 3500 and pixels[2].max() < 1024
    vectors = baselines.features(G, F, x, pixels)
    assert [v.shape for v in vectors] == [(2, len(index), 256) for index in pixels]
    for v in vectors:
        agree(v.norm(dim=2), torch.ones(v.shape[:2]), "CUT: features are unit vectors", 1e-5)
    for layer, stage, n, s in ((2, G.encode(x)[1], 1, 5), (0, x, 0, 3)):
        i, j = divmod(pixels[layer][s].item(), stage.shape[-1])
        expected = functional.normalize(F[layer](stage[n, :, i, j]), dim=0)
        agree(vectors[layer][n, s], expected, f"CUT: layer {layer} at its pixel ({i}, {j})", 1e-6)


def test_cut_queries_come_from_the_output_and_keys_are_detached():
    G, F, x, pixels = small_cut()
    y = x.flip(2)
    risk, _ = baselines.cut_generator_loss(flat, G, F, x, y, pixels, 3.0)

    def contrast(image, translated):
        keys = [k.detach() for k in baselines.features(G, F, image, pixels)]
        queries = baselines.features(G, F, translated, pixels)
        return sum(baselines.nce(q, k) for q, k in zip(queries, keys)) / 5
    expected = 3.0 / 2 * (contrast(x, G.image(x)) + contrast(y, G.image(y)))
    agree(risk, expected, CUT, 1e-4)
    weights = [*G.image_out.parameters(), *G.down[0].parameters(), *F.parameters()]
    found, wanted = torch.autograd.grad(risk, weights), torch.autograd.grad(expected, weights)
    for u, v in zip(found, wanted):
        agree(u, v, f"d/d theta of {CUT}", 1e-4)
    assert wanted[0].any() and wanted[-1].any()


def test_cut_generator_is_scored_on_translations_of_x():
    G, F, x, pixels = small_cut()
    score = lambda v: v.mean(dim=(1, 2, 3))
    y = x.flip(2)
    risk, terms = baselines.cut_generator_loss(score, G, F, x, y, pixels, 0.0)
    agree(risk, -G.image(x).mean().item(), f"{CUT}, here lam = 0", 1e-6)
    agree(terms["residual"], (G.image(y) - y).abs().mean().item(), "the logged |G(y) - y|", 1e-6)


# ---------------------------------------------------------------- all methods: terms, budgets

def networks(method, width=1, critic_width=1):
    state = train.build(TINY | {"method": method, "width": width, "critic_width": critic_width})
    return state.theta, state.omega


def risk_of(kind, method, theta, omega, b=2, d=64):
    """What one critic or generator update of this method minimises, on noise -> risk, terms."""
    stream = torch.Generator().manual_seed(1)
    x, y = (2 * torch.rand(b, 1, d, d, generator=stream) - 1 for _ in range(2))
    phi, eps = sample_phi(b, d, stream), torch.full((b, 1, 1, 1), 0.3)
    G, f = theta["G"], omega["f"]
    if kind == "generator" and method in ("pi", "uapi"):
        return losses.generator_loss(f, G, x, phi, 10.0, method == "uapi")
    if kind == "generator":
        return baselines.generator_risk(method, theta, omega, x, y, 10.0, stream)
    if method in ("pi", "uapi"):
        with torch.no_grad():
            fake = G.image(x)
        return losses.critic_loss(f, y, fake, phi, eps), {}
    return baselines.critic_risk(method, theta, omega, x, y, eps, 10.0), {}


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
    for kind in ("critic", "generator"):
        moving, still = (omega, theta) if kind == "critic" else (theta, omega)
        still.requires_grad_(False)
        counts = []
        risk, terms = risk_of(kind, method, theta, omega)
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


def test_p_reaches_every_critic_and_the_log_has_minus_the_critics_risk():
    weights, risks, logged = [], [], []

    def watched(*words):
        weights.append(words[-1])
        risks.append(losses.wasserstein_critic_loss(*words))
        return risks[-1]
    config = TINY | {"method": "gcgan", "p": 2.5, "critic_steps": 1, "updates": 1}
    with replaced(UNet=ToyG, Critic=ToyF, save=lambda *_: None, wasserstein_critic_loss=watched,
                  log=lambda *_, **values: logged.append(values["wasserstein"])):
        state = train.build(config)
        train.follow(baselines.train(config, tiny_slices(), state), config, tiny_slices(),
                     Path("nowhere"), state)
    assert weights == [2.5, 2.5], "gcgan: p of --p weighs each critic's penalty"
    agree(logged[-1], -sum(risks).item(), "gcgan: the log's wasserstein is -l_cri", 1e-6)  # f, f_T


def test_terms_are_named_alike_and_carry_no_graph():
    for method in baselines.METHODS:
        terms = one_turn(method)[3]
        assert {"adversarial", "consistency", "residual"} <= set(terms), method
        assert not any(term.requires_grad for term in terms.values()), method
        for name, own in (("scale", ["uagc"]), ("alpha", ["ugac"])):
            logged = f"{name}_mean" in terms, f"{name}_min" in terms
            assert logged == (method in own, method in own), f"{method} logs {name}: {logged}"


def flops(method, n_c=15):
    """FLOPs of the convolutions and matrix products of one generator update with its n_c critic
    updates at 128x128, paper networks, one image (all grow with the batch alike)."""
    theta, omega = networks(method, 16, 32)
    total = 0
    for kind in ("critic", "generator"):
        omega.requires_grad_(kind == "critic")
        with benchmark.Count() as count:
            risk_of(kind, method, theta, omega, 1, 128)[0].backward()
        total += count.flops * (n_c if kind == "critic" else 1)
    return total


def weights_trained(method):
    """Weights that get a gradient, at the paper's widths; which ones, tiny networks tell."""
    moved = one_turn(method)[1]
    return sum(w.numel() for part in networks(method, 16, 32)
               for name, w in part.named_parameters() if name in moved)


def test_the_results_page_counts_passes_work_and_weights(request):
    """1 + 1, 2 + 4 half: the sum of the numbers is the count."""
    text = (request.config.rootpath / "results/README.md").read_text().split("## Work\n")[1]
    lines = [[cell.strip() for cell in line.strip("|").split("|")]
             for line in text.split("\n## ")[0].splitlines()]
    table = {cells[0]: cells[1:] for cells in lines if cells[0] in METHODS and len(cells) == 7}
    assert set(table) == set(METHODS)

    def whole(cell):
        return sum(int(word) for word in cell.split() if word.isdigit())
    work_of = {method: flops(method) for method in METHODS}
    for method, (*counts, work, weights) in table.items():
        passes = one_turn(method)[0]
        assert [whole(cell) for cell in counts] == [*passes["critic"], *passes["generator"]], method
        assert work == f"{work_of[method] / work_of['pi']:.2f}", method
        assert weights == f"{weights_trained(method) / 1e6:.2f} M", method
