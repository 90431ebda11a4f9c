"""The compared methods (Sec. 4.2): what their critics compare, what their generators minimise.

    python train.py --data ixi_slices/ --method cyclegan        or ugac, gcgan, uagc, cut

    method     critics compare (real against fake)          the generator is asked for
    cyclegan   f: y, G(x);  g: x, H(y)                      H(G(x)) = x and G(H(y)) = y
    ugac       the same                                     the same, generalized Gaussian
    gcgan      f: y, G(x);  f_T: T(y), G(T(x))              G(T(x)) = T(G(x)), T the mirror image
    uagc       the same                                     the same, Laplace: Eq. 9 with T for P
    cut        f: y, G(x)                                   pixels of x and G(x) that match

H: Y -> X is an inverse generator, g a critic on X, f_T one on mirrored images, F the heads of CUT.
|.| is the mean over pixels and batch. pi asks for a small |G(P(x)) - P(G(x))|, gcgan for the same
with T for P. uagc is gcgan with uncertainty, and not in the paper. It helps to tell the effect of
patches from that of the likelihood, though its critics differ, too. Every critic's risk contains
Eq. 2, every generator's Eq. 3. Critic, optimisers, number of updates and, but for ugac's third
head, U-Net are the same for all, whatever the methods' own recipes. Sec. 4.2 has it so, but for
CUT, which it takes from CUT's authors with another network. gcGAN's code also has an identity term
of weight 5, UGAC's identity terms and an adversarial weight of 0.05: ours have neither. A
generator's terms for the log are adversarial; consistency, which lam weighs; residual, the mean |.|
of one comparison.
"""
import torch
from torch import nn

import run
from data import draw
from losses import patch_l1, patch_laplace, wasserstein_critic_loss, wasserstein_generator_loss
from nets import Critic, UNet, Up, conv3, he_init

METHODS = ("cyclegan", "ugac", "gcgan", "uagc", "cut")
LAM = {"cut": 1.0}  # our weights other than 10; gcGAN's authors have 20


def trains_scale(config):
    """Says whether the scale head is trained: elsewhere its output must not be shown as a map."""
    return config["method"] in ("uapi", "ugac", "uagc") and config["lam"] > 0


# ---------------------------------------------------------------- cycleGAN (Zhu et al., 2017)

def cyclegan_generator_loss(f, g, G, H, x, y, lam):
    """Each generator must undo the other, there and back again.

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
    """UGAC's generator gives image, alpha and beta of a generalized Gaussian for every pixel.

    alpha = softplus(.) + 1e-3,  beta = min(softplus(.) + 0.1, 4)

    x [b,1,d,d] -> image in [-1,1], alpha >= 1e-3 in its units, beta in [0.1,4]; each [b,1,d,d].
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
    """Returns -log likelihood under a generalized Gaussian; beta = 1 is Laplace, 2 is Gauss.

    -log p = (|r| / alpha)^beta - log(beta / alpha) + log Gamma(1 / beta)     (+ log 2, left out)

    r, alpha > 0, beta > 0: one shape -> scalar, the mean. |r| is at least 1e-6: for beta < 1 the
    power's slope is infinite at 0. UGAC's public code has |r| / alpha * beta for the power; then
    beta runs to 0.684 everywhere.
    """
    power = (r.abs().clamp(min=1e-6) / alpha) ** beta
    return (power - (beta / alpha).log() + torch.lgamma(1 / beta)).mean()


def ugac_generator_loss(f, g, G, H, x, y, lam, w1=1.0, w2=0.015):
    """UGAC is cycleGAN with a likelihood of what the way there and back has lost, r.

    l_gen = -f(G(x)) - g(H(y)) + lam sum_r ( w1 |r| + w2 NLL(r) ),  r = H(G(x)) - x and G(H(y)) - y

    x, y [b,1,d,d]; G(x), H(y) -> image, alpha, beta -> scalar and its terms. G's alpha and beta
    are learned only where G translates H(y) back to y. w1, w2: the authors'.
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
             "alpha_mean": alpha.mean(), "alpha_min": alpha.min(), "beta_mean": beta.mean()}
    return adversarial + lam * consistency, terms


# ---------------------------------------------------------------- gcGAN (Fu et al., 2019), uagc

def T(x):
    """Mirrors images, columns in reverse, [b,c,d,d] -> same shape. T is its own inverse."""
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
    """Makes F, from the channels of the image and of four stages of G's encoder to 256 numbers."""
    return nn.ModuleList(nn.Sequential(nn.Linear(c, 256), nn.ReLU(), nn.Linear(256, 256))
                         for c in (1, width, 2 * width, 4 * width, 8 * width))


def draw_pixels(d, stream, most=256):
    """Draws pixels without replacement for each of five layers: list of int64 [min(256, all)]."""
    return [torch.randperm((d // k) ** 2, generator=stream)[:most] for k in (1, 1, 2, 4, 8)]


def features(G, F, image, pixels):
    """Returns each layer's given pixels of an image [b,1,d,d] as unit vectors, list of
    [b,S,256]."""
    vectors = []
    for head, layer, index in zip(F, [image, *G.encode(image, stages=4)], pixels):
        chosen = layer.flatten(2)[:, :, index.to(image.device)].transpose(1, 2)      # [b,S,c]
        vectors.append(nn.functional.normalize(head(chosen).to(image.dtype), dim=2))
    return vectors


def nce(q, k, tau=0.07):
    """A pixel of the output must find its own among those of the same input (contrastive loss).

    NCE = -1/(bS) sum_{n,s} log( exp(q_ns . k_ns / tau) / sum_t exp(q_ns . k_nt / tau) )

    q, k unit vectors [b,S,m] -> scalar >= 0; log S where all are alike. Negatives come from the
    same image only.
    """
    with torch.autocast(q.device.type, enabled=False):  # 1/tau would magnify bfloat16's rounding
        similarity = q @ k.transpose(1, 2) / tau                                     # [b,S,S]
    own = torch.arange(q.shape[1], device=q.device).repeat(len(q))
    return nn.functional.cross_entropy(similarity.flatten(0, 1), own)


def cut_generator_loss(f, G, F, x, y, pixels, lam):
    """Every pixel of the output must be recognised from its own in the input; y must stay y.

    l_gen = -f(G(x)) + lam/2 ( NCE(x, G(x)) + NCE(y, G(y)) ),  keys from the input, detached

    x, y [b,1,d,d]; F from make_heads; pixels, the same for query and key -> scalar, minimised over
    G and F, and its terms. NCE is the mean over five layers. residual is |G(y) - y|.
    """
    def NCE(image, translation):
        with torch.no_grad():
            keys = features(G, F, image, pixels)
        return sum(map(nce, features(G, F, translation, pixels), keys)) / len(keys)

    fake, same = G.image(x), G.image(y)
    adversarial = wasserstein_generator_loss(f, fake)
    contrast = (NCE(x, fake) + NCE(y, same)) / 2
    terms = {"adversarial": adversarial, "consistency": contrast,
             "residual": (same - y).abs().mean()}
    return adversarial + lam * contrast, terms


# ---------------------------------------------------------------- the loop, a twin of train.py's

def make_generator(method, width):
    return ThreeHeadedUNet(width) if method == "ugac" else UNet(width=width)


def build_networks(config):
    """Builds what a method trains -> theta: G, and H or F; omega: f, and g or f_T."""
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


def critic_risk(method, theta, omega, x, y, eps, p):
    """Returns one critic update's risk, fakes detached.

    l_cri = sum of C over the method's triples (critic; real, fake),   C = Eq. 2

    x, y [b,1,d,d] in [-1,1]; eps [b,1,1,1], the same for all critics -> scalar.
    """
    G, f = theta["G"], omega["f"]
    with torch.no_grad():
        triples = [(f, y, G.image(x))]
        if method in ("cyclegan", "ugac"):
            triples.append((omega["g"], x, theta["H"].image(y)))
        if method in ("gcgan", "uagc"):
            triples.append((omega["f_T"], T(y), G.image(T(x))))
    return sum(wasserstein_critic_loss(*triple, eps, p) for triple in triples)


def generator_risk(method, theta, omega, x, y, lam, stream):
    """Returns one generator update's risk of any method above, a scalar, and its detached terms."""
    G, f = theta["G"], omega["f"]
    if method == "cyclegan":
        risk, terms = cyclegan_generator_loss(f, omega["g"], G, theta["H"], x, y, lam)
    elif method == "ugac":
        risk, terms = ugac_generator_loss(f, omega["g"], G, theta["H"], x, y, lam)
    elif method in ("gcgan", "uagc"):
        risk, terms = gcgan_generator_loss(f, omega["f_T"], G, x, lam, method == "uagc")
    else:
        pixels = draw_pixels(x.shape[-1], stream)
        risk, terms = cut_generator_loss(f, G, theta["F"], x, y, pixels, lam)
    return risk, {name: term.detach() for name, term in terms.items()}


def train(config, slices, state):
    """Runs the loop of train.py with the risks above; it takes and yields what that does."""
    method, theta, omega = config["method"], state.theta, state.omega
    opt_G, opt_f = state.opt_G, state.opt_f
    b, n_c = config["batch"], config["critic_steps"]
    p, lam, device, streams = config["p"], config["lam"], config["device"], state.streams
    X, Y = slices.on(device)
    step, n_updates = state.step, config["updates"]

    while step < n_updates:
        run.decay_rates(config, step, opt_G, opt_f)
        # The critics: n_c updates of omega. theta stands still.
        for _ in range(n_c):
            x, y = draw(X, b, streams["x"], device), draw(Y, b, streams["y"], device)
            eps = torch.rand(b, 1, 1, 1, generator=streams["eps"])
            x, y, eps = run.my_share(x, y, eps.to(device))
            with run.bf16(config):
                risk_f = critic_risk(method, theta, omega, x, y, eps, p)
            opt_f.zero_grad()
            risk_f.backward()
            run.average_gradients(omega)
            opt_f.step()

        # The generators: one update of theta. omega stands still.
        x, y = draw(X, b, streams["x"], device), draw(Y, b, streams["y"], device)
        x, y = run.my_share(x, y)
        omega.requires_grad_(False)
        with run.bf16(config):
            risk_G, terms = generator_risk(method, theta, omega, x, y, lam, streams["baselines"])
        opt_G.zero_grad()
        risk_G.backward()
        run.average_gradients(theta)
        opt_G.step()
        omega.requires_grad_(True)
        step += 1
        # Nothing below this line changes a weight.
        yield step, risk_f, risk_G, terms, (x, y, eps)


def main():
    run.make_parser(__doc__).parse_args()
    print(__doc__)


if __name__ == "__main__":
    run.start(main)
