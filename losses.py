"""The risks of critic and generator (Eq. 2, 3, 5, 6, 9), one pure function each; nothing is random.

    python losses.py    draws Eq. 9 over the scale for a few residuals, minima marked: losses.png

    paper       here          shape          meaning                                        where
    x           x             [b,c_in,d,d]   a batch from the input domain, in [-1,1]       Sec. 3.1
    y           y             [b,c_out,d,d]  one from the target domain, unrelated to x     Sec. 3.1
    G_theta     G             x -> two maps  the generator: image G^I(x), scale G^sigma(x)  Sec. 3.3
    theta       G's weights                  what Eq. 3 and 6 are minimised over            Sec. 3.1
    G_theta(x)  fake, image   [b,c_out,d,d]  the translation, in [-1,1]                     Eq. 2
    f_omega     f             y -> [b]       the critic: one real number per image          Sec. 3.1
    omega       f's weights                  what Eq. 2 and 5 are minimised over            Sec. 3.1
    eps_n       eps           [b,1,1,1]      where between fake and real, U[0,1]            Eq. 2
    y~_n        y_tilde       [b,c_out,d,d]  that point, eps * fake + (1 - eps) * y         Eq. 2
    p           p             number         weight of the gradient penalty, 10             Eq. 2
    (.)_+       clamp(min=0)                 max(0, .)                                      Eq. 2
    phi_n       phi           Phi of [b]     size and place of the n-th image's patch       Sec. 3.2
    P_phi       patch(., phi) shape kept     the patch operator, one phi_n per image        Eq. 4
    l_patch     patch_l1, patch_laplace      how far G(P(x)) and P(G(x)) are apart          Eq. 6, 9
    lambda      lam           number         weight of the patch loss                       Eq. 6
    a, b        a, b          [b,c_out,d,d]  P(G(x)), G(P(x)); patch residual epsilon = a-b Sec. 3.3
    sigma       scale         [b,c_out,d,d]  G^sigma(P(x)), of each residual pixel          Eq. 9
    b           len(x)        number         images in the batch, not the image b above     Eq. 2
    d           d             pixels         side of an image                               Sec. 3.1
"""
import torch

from patch_op import patch


def critic_slope(f, y, fake, eps):
    """Measures how steep the critic is between a fake and a real image, one number per image.

    (2)  || grad_{y~_n} f(y~_n) ||_2,   y~_n = eps_n G(x_n) + (1 - eps_n) y_n      (inside Eq. 2)

    y, fake [b,c,d,d] in [-1,1]; eps [b,1,1,1] in [0,1], one number per image -> [b], differentiable
    in omega. The norm runs over all of c,d,d of one image. f treats images one by one, so
    one backward pass from f(y~).sum() returns every image's own gradient.
    """
    y_tilde = (eps * fake + (1 - eps) * y).requires_grad_()                  # [b,c,d,d]
    with torch.autocast(y.device.type, enabled=False):  # with --bf16, too, slopes are float32
        gradient, = torch.autograd.grad(f(y_tilde).sum(), y_tilde, create_graph=True)
    # vector_norm, not sqrt(sum(g * g)): the latter's own gradient is NaN where g = 0.
    return torch.linalg.vector_norm(gradient, dim=(1, 2, 3))                 # [b]


def gradient_penalty(f, y, fake, eps):
    """The one-sided gradient penalty makes slopes of f above 1 cost; slopes below 1 do not.

    (2)  1/b sum_n ( (|| grad_{y~_n} f(y~_n) ||_2 - 1)_+ )^2                  (last term of Eq. 2)

    y, fake [b,c,d,d] in [-1,1]; eps [b,1,1,1] in [0,1] -> scalar >= 0, not yet times p. It looks at
    whole images only. The released code penalises patches, too, and the slope of a summed 5x5 map.
    """
    return (critic_slope(f, y, fake, eps) - 1).clamp(min=0).square().mean()


def wasserstein_critic_loss(f, y, fake, eps, p=10.0):
    """Returns the critic's risk on whole images alone, as baselines.py needs it (WGAN).

    (2)  l_cri = 1/b sum_n f(G(x_n)) - f(y_n) + p ((|| grad f(y~_n) ||_2 - 1)_+)^2

    y, fake [b,c,d,d] in [-1,1], fake detached; eps [b,1,1,1] -> scalar, minimised over omega.
    """
    return (f(fake) - f(y)).mean() + p * gradient_penalty(f, y, fake, eps)


def wasserstein_generator_loss(f, fake):
    """The generator's adversarial risk falls as the critic scores its images higher.

    (3)  l_gen = -1/b sum_n f(G(x_n))

    fake = G(x) [b,c,d,d], not detached -> scalar, minimised over theta.
    """
    return -f(fake).mean()


def critic_loss(f, y, fake, phi, eps, p=10.0):
    """Returns the critic's risk with patch invariance, on whole images and on patches.

    (5)  l_cri = 1/b sum_n [ f(G(x_n)) - f(y_n) + f(P_n(G(x_n))) - f(P_n(y_n)) + p (...)^2 ]

    y, fake [b,c,d,d] in [-1,1], fake = G(x) detached: this risk moves omega alone. phi: Phi of [b],
    P_n = P_{phi_n}, the same for fake and real; eps [b,1,1,1] -> scalar, minimised over omega.
    (...)^2 is the penalty of Eq. 2, on whole images. f treats images one by one, so one call on
    the four batches equals four calls, and is faster. The released code has G(P(x)) for P(G(x)),
    and adds a drift penalty 5e-4 (f(y)^2 + f(fake)^2).
    """
    four = torch.cat([fake, y, patch(fake, phi), patch(y, phi)])             # [4b,c,d,d]
    f_fake, f_y, f_fake_patch, f_y_patch = f(four).chunk(4)                  # [b] each
    penalty = gradient_penalty(f, y, fake, eps)
    return (f_fake - f_y + f_fake_patch - f_y_patch).mean() + p * penalty


def patch_l1(a, b):
    """Patch invariance: translating, then zooming should equal zooming, then translating.

    (6)  l_patch = d^-2 || G(P(x)) - P(G(x)) ||_1                             (last term of Eq. 6)

    a = P(G(x)), b = G(P(x)), [b,c,d,d] -> scalar >= 0, the mean over the batch. d^-2 as printed:
    channels add up (c = 1 in the paper). It is symmetric in a and b, and zero for the identity and
    for every affine map of the intensities, so only the critic makes outputs look like targets.
    """
    d = a.shape[-1]
    return ((b - a).abs().sum(dim=(1, 2, 3)) / d ** 2).mean()


def patch_laplace(a, b, scale):
    """The uncertainty-aware patch loss is -log likelihood of the residual under Laplace(0, scale).

    (9)  l_patch = d^-2 sum_j |G(P(x))_j - P(G(x))_j| / G^sigma(P(x))_j + log(2 G^sigma(P(x))_j)

    a = P(G(x)), b = G(P(x)), scale = G^sigma(P(x)) > 0, [b,c,d,d] -> scalar, can be negative.
    Gradients reach a, b and scale alike. The released code has log(1 + 2 scale), damps ratios above
    2, and averages this with the loss whose scale is P(G^sigma(x)). The best scale of one pixel:

        Laplace density of a residual r                   1/(2s) exp(-|r|/s)
        its negative logarithm is Eq. 9                   L(s) = |r|/s + log(2s)
        its derivative                                    L'(s) = -|r|/s^2 + 1/s
        which is 0 only at                                s = |r|
        L falls before it and grows after it. Where r = 0, L = log(2s) falls without end as s -> 0.
    """
    d = a.shape[-1]
    return (((b - a).abs() / scale + (2 * scale).log()).sum(dim=(1, 2, 3)) / d ** 2).mean()


def generator_loss(f, G, x, phi, lam, uncertainty=True):
    """The generator's risk asks G to look real, whole and in patches, and to be patch invariant.

    (6)  l_gen = 1/b sum_n [ -f(G(x_n)) - f(P_n(G(x_n))) + lam l_patch(theta, x_n, phi_n) ]

    with l_patch from Eq. 9 (uncertainty=True, UAPI) or Eq. 6 (False, PI). The first term is Eq. 3.
    x [b,c,d,d] in [-1,1]; phi: Phi of [b]; lam >= 0 -> scalar, minimised over theta, and a dict of
    detached terms: adversarial, adversarial_patch, patch (not yet times lam), residual (mean
    |a - b|) and, for UAPI, scale_mean and scale_min.
    """
    image, _ = G(x)                                                          # G^I(x)
    b, scale = G(patch(x, phi))                                              # G(P(x)), its scale
    a = patch(image, phi)                                                    # P(G(x))
    adversarial = wasserstein_generator_loss(f, image)
    adversarial_patch = wasserstein_generator_loss(f, a)
    l_patch = patch_laplace(a, b, scale) if uncertainty else patch_l1(a, b)
    terms = {"adversarial": adversarial, "adversarial_patch": adversarial_patch, "patch": l_patch,
             "residual": (b - a).abs().mean()}
    if uncertainty:
        terms |= {"scale_mean": scale.mean(), "scale_min": scale.min()}
    risk = adversarial + adversarial_patch + lam * l_patch
    return risk, {name: term.detach() for name, term in terms.items()}


def main():
    from matplotlib.figure import Figure
    import run
    run.make_parser(__doc__).parse_args()
    scale = torch.arange(5, 2001) / 1000
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    ax = figure.subplots()
    for residual in (0.0, 0.02, 0.1, 0.5):
        r = torch.full((1, 1, 1, 1), residual)
        risk = torch.stack([patch_laplace(r, 0 * r, s.view(1, 1, 1, 1)) for s in scale])
        end = "" if residual else ": falls without end towards scale 0"
        line, = ax.semilogx(scale.numpy(), risk.numpy(), label=f"|residual| = {residual:g}{end}")
        if residual > 0:
            best = risk.argmin()
            ax.plot(scale[best], risk[best], "o", color=line.get_color())
            print(f"|residual| {residual:g}: best scale {scale[best]:.3f}, Eq. 9 {risk[best]:+.3f}")
    ax.axvline(1 / 127.5, color="gray", linestyle=":", label="floor of the scale: one grey level")
    ax.set(xlabel="scale", ylabel="Eq. 9", ylim=(-5, 8), title="The best scale is |residual|")
    ax.legend(fontsize=8)
    run.save_png("losses.png", figure, dpi=120)
    print("wrote losses.png")


if __name__ == "__main__":
    import run
    run.start(main)
