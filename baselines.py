"""The compared methods (Sec. 4.2): what their critics compare, what their generators minimise.

    python train.py --data ixi_slices/ --method cyclegan        or ugac, gcgan, uagc, cut, released

    method     critics compare (real against fake)          the generator is asked for
    cyclegan   f: y, G(x);  g: x, H(y)                      H(G(x)) = x and G(H(y)) = y
    ugac       the same                                     the same, generalized Gaussian
    gcgan      f: y, G(x);  f_T: T(y), G(T(x))              G(T(x)) = T(G(x)), T the mirror image
    uagc       the same                                     the same, Laplace: Eq. 9 with T for P
    cut        f: y, G(x)                                   places of x and G(x) that match
    released   Eq. 5, 9 as the authors' public code has them: README, "Paper, released code, ours"

H: Y -> X is an inverse generator, g a critic on X, f_T one on mirrored images, F the heads of CUT.
|.| is the mean over pixels and batch. pi asks for a small |G(P(x)) - P(G(x))|, gcgan for the same
with T for P. So uagc, which the paper does not have, helps to tell the effect of patches from that
of the likelihood, though its critics differ, too. But for released, every critic pays Eq. 2 and
every generator Eq. 3. Critic, optimisers, number of updates and, but for ugac's third head, U-Net
are the same for all, whatever the methods' own recipes. Only released moves its critic more often.
"""
import torch
from torch import nn

import run
from data import draw, plot_samples
from losses import (critic_slope, patch_l1, patch_laplace, wasserstein_critic_loss,
                    wasserstein_generator_loss)
from nets import Critic, UNet, Up, conv3, he_init
from patch_op import Phi, patch, sample_phi

METHODS = ("cyclegan", "ugac", "gcgan", "uagc", "cut", "released")
LAM = {"cut": 1.0, "released": 0.5}  # our weights other than 10; gcGAN's authors have 20


def trains_scale(config):
    """True where the scale head is trained: elsewhere its output must not be shown as a map."""
    return config["method"] in ("uapi", "ugac", "uagc", "released") and config["lam"] > 0


# ---------------------------------------------------------------- cycleGAN (Zhu et al., 2017)

def cyclegan_generator_loss(f, g, G, H, x, y, lam):
    """There and back again: each generator must undo the other.

    l_gen = -f(G(x)) - g(H(y)) + lam ( |H(G(x)) - x| + |G(H(y)) - y| )

    x, y [b,1,d,d] in [-1,1] -> scalar, minimised over both generators, and its terms.
    """
    fake_y, fake_x = G.image(x), H.image(y)
    adversarial = wasserstein_generator_loss(f, fake_y) + wasserstein_generator_loss(g, fake_x)
    cycle = (H.image(fake_y) - x).abs().mean() + (G.image(fake_x) - y).abs().mean()
    terms = {"adversarial": adversarial, "consistency": cycle, "residual": cycle / 2}
    return adversarial + lam * cycle, terms


# ---------------------------------------------------------------- UGAC (Upadhyay et al., 2021)

class ThreeHeadedUNet(UNet):
    """UGAC's generator: image, and alpha and beta of a generalized Gaussian for every pixel.

    alpha = softplus(.) + 1e-3,  beta = min(softplus(.) + 0.1, 4)

    x [b,1,d,d] -> image in [-1,1], alpha > 0 in its units, beta in (0.1,4]; each [b,1,d,d].
    """
    def __init__(self, width=16):
        super().__init__(width=width, floor=1e-3)
        self.beta_up, self.beta_out = Up(width), conv3(width, 1)
        he_init(self.beta_up)
        he_init(self.beta_out)

    def forward(self, x):
        shared = self.trunk(x)
        image = torch.tanh(self.image_out(self.image_up(*shared)).to(x.dtype))
        alpha = nn.functional.softplus(self.scale_out(self.scale_up(*shared)).to(x.dtype))
        beta = nn.functional.softplus(self.beta_out(self.beta_up(*shared)).to(x.dtype))
        return image, alpha + self.floor, (beta + 0.1).clamp(max=4)


def generalized_gaussian(r, alpha, beta):
    """Negative log likelihood under a generalized Gaussian; beta = 1 is Laplace, 2 is Gauss.

    -log p = (|r| / alpha)^beta - log(beta / alpha) + log Gamma(1 / beta)     (+ log 2, left out)

    r, alpha > 0, beta > 0: one shape -> scalar, the mean. |r| is at least 1e-6: for beta < 1 the
    power's slope is infinite at 0. UGAC's public code has |r| / alpha * beta for the power; then
    beta runs to 0.684 everywhere.
    """
    power = (r.abs().clamp(min=1e-6) / alpha) ** beta
    return (power - (beta / alpha).log() + torch.lgamma(1 / beta)).mean()


def ugac_generator_loss(f, g, G, H, x, y, lam, w1=1.0, w2=0.015):
    """cycleGAN with a likelihood of what the way there and back has lost, r.

    l_gen = -f(G(x)) - g(H(y)) + lam sum_r ( w1 |r| + w2 NLL(r) ),  r = H(G(x)) - x and G(H(y)) - y

    x, y [b,1,d,d]; G(x), H(y) -> image, alpha, beta -> scalar and its terms. alpha and beta belong
    to the generator that comes back: G's are learned on fakes, H(y). w1, w2: the authors'.
    """
    fake_y, fake_x = G.image(x), H.image(y)
    back_x, alpha_x, beta_x = H(fake_y)
    back_y, alpha, beta = G(fake_x)
    adversarial = wasserstein_generator_loss(f, fake_y) + wasserstein_generator_loss(g, fake_x)
    cycle = (back_x - x).abs().mean() + (back_y - y).abs().mean()
    likelihood_x = generalized_gaussian(back_x - x, alpha_x, beta_x)
    likelihood_y = generalized_gaussian(back_y - y, alpha, beta)
    consistency = w1 * cycle + w2 * (likelihood_x + likelihood_y)
    terms = {"adversarial": adversarial, "consistency": consistency, "residual": cycle / 2,
             "scale_mean": alpha.mean(), "scale_min": alpha.min(), "beta_mean": beta.mean()}
    return adversarial + lam * consistency, terms


# ---------------------------------------------------------------- gcGAN (Fu et al., 2019), uagc

def T(x):
    """The mirror image: columns in reverse, [b,c,d,d] -> same shape. T is its own inverse."""
    return x.flip(-1)


def gcgan_generator_loss(f, f_T, G, x, lam, uncertainty=False):
    """Mirroring before or after the translation must give the same.

    l_gen = -f(G(x)) - f_T(G(T(x))) + lam |G(x) - T^-1(G(T(x)))|            (False: gcgan)
    l_gen = -f(G(x)) - f_T(G(T(x))) + lam l_patch(a, b, G^sigma(T(x)))      (True: uagc, Eq. 9)

    with a = T(G(x)), b = G(T(x)). The first line's |.| equals |a - b|, since T^-1 = T.
    x [b,1,d,d] in [-1,1] -> scalar and its terms.
    """
    image = G.image(x)
    b, scale = G(T(x)) if uncertainty else (G.image(T(x)), None)
    a = T(image)
    adversarial = wasserstein_generator_loss(f, image) + wasserstein_generator_loss(f_T, b)
    consistency = patch_laplace(a, b, scale) if uncertainty else patch_l1(a, b)
    terms = {"adversarial": adversarial, "consistency": consistency,
             "residual": (b - a).abs().mean()}
    if uncertainty:
        terms |= {"scale_mean": scale.mean(), "scale_min": scale.min()}
    return adversarial + lam * consistency, terms


# ---------------------------------------------------------------- CUT (Park et al., 2020)

def make_heads(width):
    """F: from the channels of the image and of four stages of G's encoder to 256 numbers."""
    return nn.ModuleList(nn.Sequential(nn.Linear(c, 256), nn.ReLU(), nn.Linear(256, 256))
                         for c in (1, width, 2 * width, 4 * width, 8 * width))


def draw_places(d, generator, most=256):
    """Places without replacement for each of the five layers: list of int64 [min(256, all)]."""
    return [torch.randperm((d // k) ** 2, generator=generator)[:most] for k in (1, 1, 2, 4, 8)]


def features(G, F, image, places):
    """image [b,1,d,d] -> for each layer the chosen places as unit vectors, list of [b,S,256]."""
    vectors = []
    for head, layer, place in zip(F, [image, *G.encode(image, stages=4)], places):
        chosen = layer.flatten(2)[:, :, place.to(image.device)].transpose(1, 2)      # [b,S,c]
        vectors.append(nn.functional.normalize(head(chosen).to(image.dtype), dim=2))
    return vectors


def nce(q, k, tau=0.07):
    """Contrastive loss: a place of the output must find its own among those of the same input.

    NCE = -1/(bS) sum_{n,s} log( exp(q_ns . k_ns / tau) / sum_t exp(q_ns . k_nt / tau) )

    q, k unit vectors [b,S,m] -> scalar >= 0; log S where all are alike. Negatives come from the
    same image only.
    """
    with torch.autocast(q.device.type, enabled=False):  # 1/tau would magnify bfloat16's rounding
        similarity = q @ k.transpose(1, 2) / tau                                     # [b,S,S]
    own = torch.arange(q.shape[1], device=q.device).repeat(len(q))
    return nn.functional.cross_entropy(similarity.flatten(0, 1), own)


def cut_generator_loss(f, G, F, x, y, places, lam):
    """Every place of the output must be recognised from its place in the input; y must stay y.

    l_gen = -f(G(x)) + lam/2 ( NCE(x, G(x)) + NCE(y, G(y)) ),  keys from the input, detached

    x, y [b,1,d,d]; F from make_heads; places, the same for query and key -> scalar, minimised over
    G and F, and its terms. NCE is the mean over five layers. residual is |G(y) - y|.
    """
    def NCE(image, translation):
        with torch.no_grad():
            keys = features(G, F, image, places)
        return sum(map(nce, features(G, F, translation, places), keys)) / len(keys)

    fake, same = G.image(x), G.image(y)
    adversarial = wasserstein_generator_loss(f, fake)
    contrast = (NCE(x, fake) + NCE(y, same)) / 2
    terms = {"adversarial": adversarial, "consistency": contrast,
             "residual": (same - y).abs().mean()}
    return adversarial + lam * contrast, terms


# ---------------------------------------------------------------- UAPI as released

def released_critic_loss(f, y, fake, eps, p=10.0):
    """The released critic's risk; it moves twice a turn, on whole images, then on patches.

    l_cri = f(fake) - f(y) + p ((|| 25 grad f(y~) ||_2 - 1)_+)^2 + 5e-4 (f(y)^2 + f(fake)^2)

    y, fake: y and G(x), or P(y) and G(P(x)), [b,1,d,d]; eps [b,1,1,1] -> scalar, the mean over the
    batch. 25 f is the sum of the 5x5 map. The released drift term takes the mean of squares over
    that map; f(y)^2 here is the square of its mean.
    """
    f_fake, f_y = f(torch.cat([fake, y])).chunk(2)
    penalty = (25 * critic_slope(f, y, fake, eps) - 1).clamp(min=0).square().mean()
    drift = (f_y.square() + f_fake.square()).mean()
    return (f_fake - f_y).mean() + p * penalty + 5e-4 * drift


def released_laplace(a, b, scale):
    """The released Eq. 9: ratios above 2 are damped; log(1 + 2s) moves the best scale off |r|.

    t = |b - a| / s;   mean of  ( t  if t <= 2 else 2 + log(t - 1) ) + log(1 + 2s)

    a, b, scale > 0 [b,1,d,d] -> scalar >= 0. torch.where passes on a NaN of the branch not taken,
    so the logarithm's argument is clamped.
    """
    t = (b - a).abs() / scale
    damped = torch.where(t <= 2, t, 2 + (t.clamp(min=2) - 1).log())
    return (damped + (1 + 2 * scale).log()).mean()


def released_generator_loss(f, G, x, phi, lam):
    """Eq. 6 as released: halves, G(P(x)) for P(G(x)) before the critic, both scales.

    l_gen = -f(G(x))/2 - f(G(P(x)))/2 + lam ( l(a, b, G^sigma(P(x))) + l(a, b, P(G^sigma(x))) ) / 2

    with a = P(G(x)) clipped to [-1,1], b = G(P(x)), l = released_laplace. x [b,1,d,d] in [-1,1];
    phi: Phi of [b] -> scalar and its terms.
    """
    image, whole_scale = G(x)
    b, scale = G(patch(x, phi))
    a = patch(image, phi).clamp(-1, 1)
    zoomed_scale = patch(whole_scale, phi).clamp(min=whole_scale.min().detach())  # no undershoot
    adversarial = (wasserstein_generator_loss(f, image) + wasserstein_generator_loss(f, b)) / 2
    l_patch = (released_laplace(a, b, scale) + released_laplace(a, b, zoomed_scale)) / 2
    terms = {"adversarial": adversarial, "consistency": l_patch, "residual": (b - a).abs().mean(),
             "scale_mean": scale.mean(), "scale_min": scale.min()}
    return adversarial + lam * l_patch, terms


def swap_with_pool(fakes, history, pool, generator, most=50):
    """Each fake is handed over. Once its pool of 50 is full, with probability 1/2 an old one is
    handed over instead, and the new one takes its place. fakes [b,1,d,d]; history[pool] keeps the
    pool -> [b,1,d,d]."""
    old = history.get(pool, fakes[:0])
    room = most - len(old)
    old, out = torch.cat([old, fakes[:room]]), fakes.clone()
    for n in range(room, len(fakes)):
        place = torch.randint(2 * most, (1,), generator=generator).item()
        if place < most:
            out[n], old[place] = old[place].clone(), fakes[n]
    history[pool] = old
    return out


def released_draws(history, x, phi):
    """What the released critic takes for fresh draws: the phi of the generator's last update for
    all its updates until the next, and that update's x for the first of them."""
    return history.pop("x", x), Phi(*history.setdefault("phi", torch.stack(phi)))


@torch.no_grad()
def released_pair(G, x, y, phi, part, history, generator):
    """Real and fake batch of one step of the released critic; either part has its own pool."""
    if part == "patches":
        x, y = patch(x, phi), patch(y, phi)
    return y, swap_with_pool(G.image(x), history, part, generator)


# ---------------------------------------------------------------- the loop, a twin of train.py's

def make_generator(method, width):
    return ThreeHeadedUNet(width) if method == "ugac" else UNet(width=width)


def build_networks(config):
    """What a method trains -> theta: G, and H or F; omega: f, and g or f_T."""
    method, width, critic_width = config["method"], config["width"], config["critic_width"]
    theta = nn.ModuleDict({"G": make_generator(method, width)})
    omega = nn.ModuleDict({"f": Critic(width=critic_width)})
    if method in ("cyclegan", "ugac"):
        theta["H"], omega["g"] = make_generator(method, width), Critic(width=critic_width)
    elif method in ("gcgan", "uagc"):
        omega["f_T"] = Critic(width=critic_width)
    elif method == "cut":
        theta["F"] = make_heads(width)
    return theta, omega


def critic_risk(method, theta, omega, x, y, phi, eps, p):
    """One critic update's risk, fakes detached.

    l_cri = sum of C over the method's triples (critic; real, fake),   C = Eq. 2

    x, y [b,1,d,d] in [-1,1]; eps [b,1,1,1], the same for all critics -> scalar. phi is not used
    here; a test puts Eq. 5 in this function's place.
    """
    G, f = theta["G"], omega["f"]
    with torch.no_grad():
        triples = [(f, y, G.image(x))]
        if method in ("cyclegan", "ugac"):
            triples.append((omega["g"], x, theta["H"].image(y)))
        if method in ("gcgan", "uagc"):
            triples.append((omega["f_T"], T(y), G.image(T(x))))
    return sum(wasserstein_critic_loss(*triple, eps, p) for triple in triples)


def generator_risk(method, theta, omega, x, y, phi, lam, generator):
    """One generator update's risk of any method above -> scalar and its terms, detached."""
    G, f = theta["G"], omega["f"]
    if method == "cyclegan":
        risk, terms = cyclegan_generator_loss(f, omega["g"], G, theta["H"], x, y, lam)
    elif method == "ugac":
        risk, terms = ugac_generator_loss(f, omega["g"], G, theta["H"], x, y, lam)
    elif method in ("gcgan", "uagc"):
        risk, terms = gcgan_generator_loss(f, omega["f_T"], G, x, lam, method == "uagc")
    elif method == "cut":
        places = draw_places(x.shape[-1], generator)
        risk, terms = cut_generator_loss(f, G, theta["F"], x, y, places, lam)
    else:
        risk, terms = released_generator_loss(f, G, x, phi, lam)
    return risk, {name: term.detach() for name, term in terms.items()}


def train(config, slices, folder, state, requests=()):
    """The loop of train.py with the risks above; arguments as there. released doubles n_c during
    the first 151 generator updates, and its critic moves on whole images, then on patches."""
    method, theta, omega, history = config["method"], state.theta, state.omega, state.history
    G, f, opt_G, opt_f = theta["G"], omega["f"], state.opt_G, state.opt_f
    b, d, p, lam = config["batch"], config["size"], config["p"], config["lam"]
    device, streams = config["device"], state.streams
    X, Y = slices.on(device)
    step, n_updates, started = state.step, config["updates"], run.started(state.seconds)
    parts = ("whole", "patches") if method == "released" else ("whole",)

    while step < n_updates:
        run.decay_rates(config, step, opt_G, opt_f)
        # The critics: n_c updates of omega. theta stands still.
        n_c = config["critic_steps"] * (2 if method == "released" and step <= 150 else 1)
        for _ in range(n_c):
            x, y = draw(X, b, streams["x"], device), draw(Y, b, streams["y"], device)
            phi = sample_phi(b, d, streams["phi"])
            if method == "released":
                x, phi = released_draws(history, x, phi)
            for part in parts:
                eps = torch.rand(b, 1, 1, 1, generator=streams["eps"])
                x, y, phi, eps = run.my_share(x, y, phi, eps.to(device))
                with run.bf16(config):
                    if method == "released":
                        pair = released_pair(G, x, y, phi, part, history, streams["baselines"])
                        risk_f = released_critic_loss(f, *pair, eps, p)
                    else:
                        risk_f = critic_risk(method, theta, omega, x, y, phi, eps, p)
                opt_f.zero_grad()
                risk_f.backward()
                run.average_gradients(omega)
                opt_f.step()

        # The generators: one update of theta. omega stands still.
        x, y = draw(X, b, streams["x"], device), draw(Y, b, streams["y"], device)
        phi = sample_phi(b, d, streams["phi"])
        x, y, phi = run.my_share(x, y, phi)
        if method == "released":
            history |= {"x": x, "phi": torch.stack(phi)}
        omega.requires_grad_(False)
        with run.bf16(config):
            risk_G, terms = generator_risk(method, theta, omega, x, y, phi, lam,
                                           streams["baselines"])
        opt_G.zero_grad()
        risk_G.backward()
        run.average_gradients(theta)
        opt_G.step()
        omega.requires_grad_(True)
        step += 1
        # ---- Nothing below this line changes a weight. ----

        run.progress(step, n_updates, "update")
        run.stop_unless_finite(folder, step, critic=risk_f, generator=risk_G, **terms)
        stop = run.stop_requested(requests)
        if run.is_due(step, n_updates, 100, stop):
            slope = critic_slope(f, y, G.image(x).detach(), eps).mean()
            run.log(folder, config, step, started, wasserstein=-risk_f, slope=slope, **terms)
            if run.is_due(step, n_updates, 10, stop):
                picture = folder / "samples" / f"{step:06d}.png"
                plot_samples(picture, G, slices, device, trains_scale(config))
                run.plot_curves([folder], folder / "curves.png")
            run.save(folder, config, step, started, state)
        if stop:
            run.stop(folder, step, stop)


if __name__ == "__main__":
    run.make_parser(__doc__).parse_args()
    print(__doc__)
