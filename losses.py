"""The risks of critic and generator (Eq. 2, 3, 5, 6, 9), one pure function each; nothing is drawn at random in here.

    python losses.py    draws Eq. 9 over the scale for a few residuals, each minimum marked: losses.png

    letter      here          shape           meaning                                                      paper
    x           x             [b,c_in,d,d]    a batch from the input domain, in [-1,1]                     Sec. 3.1
    y           y             [b,c_out,d,d]   a batch from the target domain, in [-1,1], unrelated to x    Sec. 3.1
    G_theta     G             x -> two maps   the generator: image G^I(x) and scale map G^sigma(x)         Sec. 3.1, 3.3
    theta       G's weights                   what Eq. 3, 6 are minimised over                             Sec. 3.1
    G_theta(x)  fake          [b,c_out,d,d]   the transferred image, in [-1,1]                             Eq. 2
    f_omega     f             y -> [b]        the critic: one real number per image                        Sec. 3.1
    omega       f's weights                   what Eq. 2, 5 are minimised over                             Sec. 3.1
    eps_n       eps           [b,1,1,1]       where between fake and real the penalty looks, U[0,1]        Eq. 2
    y~_n        y_tilde       [b,c_out,d,d]   that point, eps * fake + (1 - eps) * y                       Eq. 2
    p           p             number          weight of the gradient penalty, 10                           Eq. 2
    (.)_+       clamp(min=0)                  max(0, .)                                                    Eq. 2
    phi_n       phi           Phi of [b]      size and place of the n-th image's patch                     Sec. 3.2
    P_phi       patch(., phi) same as its x   the patch operator, one phi_n per image                      Eq. 4
    l_patch     patch_l1, patch_laplace       scalar; how far G(P(x)) and P(G(x)) are apart                Eq. 6, 9
    lambda      lam           number          weight of the patch loss, by grid search per data set        Eq. 6
    a, b        a, b          [b,c_out,d,d]   P(G(x)) and G(P(x)), the two sides of patch invariance       Sec. 3.3
    sigma       scale         [b,c_out,d,d]   G^sigma(P(x)), the Laplace scale of every residual pixel     Eq. 9
    b           len(x)        number          images in the batch (the paper uses the letter twice)        Eq. 2
    d           d             pixels          side of an image                                             Sec. 3.1
"""
import torch

from patch_op import patch


def critic_slope(f, y, fake, eps):
    """How steep the critic is between a fake and a real image, one number per image.

    || grad_{y~_n} f(y~_n) ||_2,   y~_n = eps_n G(x_n) + (1 - eps_n) y_n                              (inside Eq. 2)

    y, fake [b,c,d,d] in [-1,1]; eps [b,1,1,1] in [0,1], one number per image -> [b], differentiable in omega.
    The norm runs over all of c,d,d of one image. f(y~).sum() lets one backward pass return every image's own gradient.
    """
    y_tilde = (eps * fake + (1 - eps) * y).requires_grad_()
    with torch.autocast(y.device.type, enabled=False):  # with --bf16, too, slopes are taken in float32
        gradient, = torch.autograd.grad(f(y_tilde).sum(), y_tilde, create_graph=True)
    # vector_norm, not sqrt(sum(g * g)): the latter's own gradient is NaN where g = 0.
    return torch.linalg.vector_norm(gradient, dim=(1, 2, 3))


def gradient_penalty(f, y, fake, eps):
    """One-sided gradient penalty: slopes of f above 1 cost, slopes below 1 do not.

    1/b sum_n ( (|| grad_{y~_n} f(y~_n) ||_2 - 1)_+ )^2                                               (last term of Eq. 2)

    y, fake [b,c,d,d] in [-1,1]; eps [b,1,1,1] in [0,1] -> scalar >= 0, not yet times p. On whole images only.
    The released code differentiates the sum of a 5x5 critic map instead of one number, and also penalises patches.
    """
    return (critic_slope(f, y, fake, eps) - 1).clamp(min=0).square().mean()


def wasserstein_critic_loss(f, y, fake, eps, p=10.0):
    """The critic's risk on whole images alone, the plain WGAN with a one-sided penalty.

    l_cri = 1/b sum_n f(G(x_n)) - f(y_n) + p ((|| grad f(y~_n) ||_2 - 1)_+)^2                                          (2)

    y, fake [b,c,d,d] in [-1,1], fake detached; eps [b,1,1,1] -> scalar, minimised over omega.
    """
    return (f(fake) - f(y)).mean() + p * gradient_penalty(f, y, fake, eps)


def wasserstein_generator_loss(f, fake):
    """The generator's adversarial risk: be scored high by the critic.

    l_gen = -1/b sum_n f(G(x_n))                                                                                       (3)

    fake = G(x) [b,c,d,d], not detached -> scalar, minimised over theta.
    """
    return -f(fake).mean()


def critic_loss(f, y, fake, phi, eps, p=10.0):
    """The critic's risk with patch invariance, on whole images and on patches.

    l_cri = 1/b sum_n [ f(G(x_n)) - f(y_n) + f(P_n(G(x_n))) - f(P_n(y_n)) + p (...)^2 ],   P_n = P_{phi_n}             (5)

    y, fake [b,c,d,d] in [-1,1], fake = G(x) detached: this risk moves omega alone. phi: Phi of [b], the same phi_n for
    fake and real; eps [b,1,1,1] -> scalar, minimised over omega. (...)^2 is the penalty of Eq. 2, on whole images.
    One call of f on the four batches equals four calls, since f treats images one by one, and is faster.
    The released code has G(P(x)) for P(G(x)), and adds a drift penalty 5e-4 (f(y)^2 + f(fake)^2).
    """
    f_fake, f_y, f_fake_patch, f_y_patch = f(torch.cat([fake, y, patch(fake, phi), patch(y, phi)])).chunk(4)
    return (f_fake - f_y + f_fake_patch - f_y_patch).mean() + p * gradient_penalty(f, y, fake, eps)


def patch_l1(a, b):
    """Patch invariance loss, averaged over the batch: translating, then zooming should equal zooming, then translating.

    l_patch = d^-2 || G(P(x)) - P(G(x)) ||_1                                                         (last term of Eq. 6)

    a = P(G(x)), b = G(P(x)), [b,c,d,d] -> scalar >= 0. d^-2 as printed: channels add up (c = 1 throughout the paper).
    Symmetric in a and b. Zero for the identity and for every affine map of the intensities: it keeps the anatomy and
    nothing else, so only the critic makes the output look like the target.
    """
    d = a.shape[-1]
    return ((b - a).abs().sum(dim=(1, 2, 3)) / d ** 2).mean()


def patch_laplace(a, b, scale):
    """Uncertainty-aware patch loss: negative log likelihood of the residual under Laplace(0, scale).

    l_patch = d^-2 sum_j |G(P(x))_j - P(G(x))_j| / G^sigma(P(x))_j + log(2 G^sigma(P(x))_j)                          (9)

    a = P(G(x)), b = G(P(x)), scale = G^sigma(P(x)) > 0, [b,c,d,d] -> scalar, can be negative. For a residual r its
    minimum over the scale lies at scale = |r|. Gradients reach a, b and scale alike.
    The released code has log(1 + 2 scale), which moves that minimum, damps ratios above 2, and averages in P(G^sigma(x)).
    """
    d = a.shape[-1]
    return (((b - a).abs() / scale + (2 * scale).log()).sum(dim=(1, 2, 3)) / d ** 2).mean()


def generator_loss(f, G, x, phi, lam, uncertainty=True):
    """The generator's risk: look real, whole and in patches, and be patch invariant.

    l_gen = 1/b sum_n [ -f(G(x_n)) - f(P_n(G(x_n))) + lam l_patch(theta, x_n, phi_n) ]                              (6)

    with l_patch from Eq. 9 (uncertainty=True, UAPI) or Eq. 6 (False, PI). The first term alone is Eq. 3.
    x [b,c,d,d] in [-1,1]; phi: Phi of [b]; lam >= 0 -> scalar, minimised over theta, and a dict of its terms, detached:
    adversarial, adversarial_patch, patch (not yet times lam), residual (mean |a - b|) and, for UAPI, scale_mean, scale_min.
    """
    image, _ = G(x)
    b, scale = G(patch(x, phi))
    a = patch(image, phi)
    adversarial, adversarial_patch = wasserstein_generator_loss(f, image), wasserstein_generator_loss(f, a)
    l_patch = patch_laplace(a, b, scale) if uncertainty else patch_l1(a, b)
    terms = {"adversarial": adversarial, "adversarial_patch": adversarial_patch, "patch": l_patch,
             "residual": (b - a).abs().mean()}
    if uncertainty:
        terms |= {"scale_mean": scale.mean(), "scale_min": scale.min()}
    return adversarial + adversarial_patch + lam * l_patch, {name: term.detach() for name, term in terms.items()}


def main():
    import argparse
    from matplotlib.figure import Figure

    argparse.ArgumentParser(description="Draw Eq. 9 over the scale for a few residuals: losses.png.").parse_args()
    scale = torch.logspace(-2.3, 0.3, 400)
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    ax = figure.subplots()
    for residual in (0.0, 0.02, 0.1, 0.5):
        r = torch.full((1, 1, 1, 1), residual)
        risk = torch.stack([patch_laplace(r, torch.zeros_like(r), s.view(1, 1, 1, 1)) for s in scale])
        line, = ax.semilogx(scale.numpy(), risk.numpy(), label=f"|residual| = {residual:g}" + (": falls for ever" if residual == 0 else ""))
        if residual > 0:
            ax.plot(residual, risk.min().item(), "o", color=line.get_color())
            print(f"|residual| {residual:g}: smallest Eq. 9 {risk.min():+.3f} at scale {scale[risk.argmin()]:.3f}")
    ax.axvline(1 / 127.5, color="gray", linestyle=":", label="floor: one grey level, 1/127.5")
    ax.set(xlabel="scale", ylabel="Eq. 9", ylim=(-5, 8), title="The best scale is the residual itself")
    ax.legend()
    figure.savefig("losses.png", dpi=120)
    print("wrote losses.png")


if __name__ == "__main__":
    main()
