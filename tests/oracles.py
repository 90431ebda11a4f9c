"""The paper a second time, slow and obvious; the critic and generator of these audits are formulas."""
import itertools
import math
from statistics import fmean as mean

import torch

import patch_op


def agree(got, expected, equation, tolerance=1e-9):
    """Numbers or tensors agree everywhere; else the message holds the equation and both sides."""
    got, expected = (torch.as_tensor(v, dtype=torch.float64).detach() for v in (got, expected))
    assert got.shape == expected.shape, f"{equation}: {got.shape}, asked for {expected.shape}"
    got, expected = got.flatten(), expected.flatten()
    off = (got - expected).abs().nan_to_num(math.inf)
    n = off.argmax()
    assert off[n] <= tolerance, (f"{equation}\n  found          {got[n]:.10g}"
                                 f"\n  asked for      {expected[n]:.10g}"
                                 f"\n  (entry {n} of {len(off)}; tolerance {tolerance:g})")


def noise(*shape, seed=0):
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=stream, dtype=torch.float64)


def phi_of(*settings):
    """(size, j1, j2) of every image -> Phi."""
    return patch_op.Phi(*torch.tensor(settings).T)


X, Y, FAKE = (noise(3, 1, 5, 5, seed=seed) for seed in (1, 2, 3))
PHI = phi_of((4, 1, 0), (5, 0, 0), (3, 0, 2))
EPS = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64).view(3, 1, 1, 1)
W, Q = noise(1, 5, 5, seed=4), 0.35


def critic(y, w=W, q=Q):
    """f(y) = sum_j w_j y_j + q/2 y_j^2, so grad f = w + q y, by hand; [b,1,5,5] -> [b]."""
    return (w * y + q / 2 * y ** 2).sum(dim=(1, 2, 3))


def generator(x, gain=0.8):
    """Image and scale depend on where a pixel lies, so that G(P(x)) and P(G(x)) differ."""
    ramp = torch.linspace(0.5, 1.5, x.shape[-1], dtype=x.dtype)
    return gain * x * ramp + 0.1 * x ** 2, 0.3 + 0.1 * (gain * x * ramp) ** 2


def pixels(image):
    return image.flatten().tolist()


def difference(risk, w, index, step=1e-5):
    """The slope of a risk in one entry of w, by central differences."""
    nudge = torch.zeros_like(w)
    nudge[index] = step
    return (risk(w + nudge).item() - risk(w - nudge).item()) / (2 * step)


def naive_patch(x, phi):
    """Eq. 4, pixel by pixel: Keys' kernel with a = -0.5, no taps outside the crop."""
    def kernel(t):
        if abs(t) <= 1:
            return 1.5 * abs(t) ** 3 - 2.5 * t ** 2 + 1
        return -0.5 * abs(t) ** 3 + 2.5 * t ** 2 - 4 * abs(t) + 2 if abs(t) < 2 else 0.0

    def taps(i, size, d):
        weights = {k: kernel((i + 0.5) * size / d - 0.5 - k) for k in range(size)}
        return [(k, weight / sum(weights.values())) for k, weight in weights.items()]

    out, d = torch.zeros_like(x), x.shape[-1]
    for n, (size, j1, j2) in enumerate(zip(*(v.tolist() for v in phi))):
        for c, i, j in itertools.product(range(x.shape[1]), range(d), range(d)):
            out[n, c, i, j] = sum(u * v * x[n, c, j1 + k, j2 + m].item()
                                  for k, u in taps(i, size, d) for m, v in taps(j, size, d))
    return out


def naive_f(y):
    return [sum(w * v + Q / 2 * v * v for w, v in zip(pixels(W), pixels(image))) for image in y]


def naive_penalty(y, fake, eps):
    """Last term of Eq. 2, not yet times p, with grad f = w + q y~."""
    slopes = [math.hypot(*(w + Q * (e * u + (1 - e) * v) for w, u, v in zip(pixels(W), *images)))
              for e, *images in zip(pixels(eps), map(pixels, fake), map(pixels, y))]
    return mean(max(slope - 1, 0) ** 2 for slope in slopes)


def naive_eq2(y, fake, eps, p):
    return mean(naive_f(fake)) - mean(naive_f(y)) + p * naive_penalty(y, fake, eps)


def naive_eq5(y, fake, phi, eps, p):
    y_patch, fake_patch = naive_patch(y, phi), naive_patch(fake, phi)
    return naive_eq2(y, fake, eps, p) + mean(naive_f(fake_patch)) - mean(naive_f(y_patch))


def naive_eq6(x, phi, lam, uncertainty):
    """Eq. 6 with the generator above, and Eq. 9 or its own last term -> risk, l_patch."""
    image, (b, scale) = generator(x)[0], generator(naive_patch(x, phi))
    a = naive_patch(image, phi)
    l_patch = mean(abs(v - u) / s + math.log(2 * s) if uncertainty else abs(v - u)
                   for u, v, s in zip(*map(pixels, (a, b, scale))))
    return -mean(naive_f(image)) - mean(naive_f(a)) + lam * l_patch, l_patch


def naive_conv(x, weight, bias):
    """A 3x3 convolution, tap by tap; beyond the border lies what lies before it, mirrored."""
    h, w = x.shape[-2:]
    rows, columns = ([1, *range(n), n - 2] for n in (h, w))
    framed = x[:, :, rows][..., columns]
    out = bias.view(1, -1, 1, 1).expand(len(x), -1, h, w).clone()
    for o, i, j in itertools.product(range(len(weight)), range(3), range(3)):
        out[:, o] += (weight[o, :, i, j].view(-1, 1, 1) * framed[..., i:i + h, j:j + w]).sum(dim=1)
    return out


def naive_unet(w, x, floor=1 / 127.5):
    """Sec. 3.4's generator; w: its weights by name, x [b,1,d,d], all float64 -> image, scale."""
    def layer(h, name):
        h = naive_conv(h, w[f"{name}.0.weight"], w[f"{name}.0.bias"])
        mean = h.mean(dim=(2, 3), keepdim=True)           # of one channel of one image
        variance = ((h - mean) ** 2).mean(dim=(2, 3), keepdim=True)
        gain, offset = (w[f"{name}.1.{v}"].view(1, -1, 1, 1) for v in ("weight", "bias"))
        h = (h - mean) / (variance + 1e-5) ** 0.5 * gain + offset
        return torch.where(h > 0, h, 0.2 * h)

    def up(h, skip, name):
        twice = [i // 2 for i in range(2 * h.shape[-1])]  # the nearest pixel
        h = layer(h[:, :, twice][..., twice], f"{name}.halve")
        return layer(layer(torch.cat([skip, h], dim=1), f"{name}.merge.0"), f"{name}.merge.1")

    h, skips = x, []
    for k in range(6):
        if k:
            skips.append(h)
            corners = [h[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]
            h = torch.stack(corners).max(dim=0).values
        h = layer(layer(h, f"down.{k}.0"), f"down.{k}.1")
    for k in range(4):
        h = up(h, skips.pop(), f"up.{k}")
    image, scale = (naive_conv(up(h, skips[0], f"{head}_up"), w[f"{head}_out.weight"],
                               w[f"{head}_out.bias"]) for head in ("image", "scale"))
    return 1 - 2 / (1 + (2 * image).exp()), (1 + scale.exp()).log() + floor
