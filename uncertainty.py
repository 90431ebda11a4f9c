"""Does a map know where a translation is wrong? Sec. 4.5, and two questions beyond the paper.

    python uncertainty.py    asks four made-up maps the three questions: uncertainty.png

correlate       Sec. 4.5     does the map rise where the residual rises?
sparsification  not there    does it find the pixels that are best left out? (AUSE, by order alone)
reliability     not there    are its numbers as large as the residuals? (ECE)

residual = |r|, r = translation - truth, in grey levels. A map gives each pixel a density of r,
proportional to exp(-(|r| / alpha)^beta). Eq. 9 has alpha = G^sigma(x), beta = 1, ugac maps of both.
A map's scale is the residual that it expects, E|r|, for Eq. 9 alpha itself. No map learned from r,
but from what a patch, a mirror image (uagc) or the way back (ugac) changes. That it follows the
residual is a finding, not a theorem.
"""
import torch
from matplotlib.figure import Figure

import run

FEWEST = 10  # images: two points lie on a line, so that a correlation of few says nothing
PROBABILITIES = torch.arange(1, 20, dtype=torch.float64) / 20


def expected_residual(alpha, beta):
    """Returns the scale of any method's map: the absolute residual that it expects.

    E|r| = alpha exp( lgamma(2/beta) - lgamma(1/beta) ),   alpha itself at beta = 1: Eq. 9

    alpha > 0 in grey levels and beta > 0, one shape -> the same shape, in grey levels.
    """
    return alpha * torch.exp(torch.lgamma(2 / beta) - torch.lgamma(1 / beta))


# ---------------------------------------------------------------- Sec. 4.5: correlation

def pearson(u, v):
    """Returns Pearson's correlation of two lists (Sec. 4.5); None for constant or empty ones."""
    u, v = (torch.as_tensor(w, dtype=torch.float64).flatten() for w in (u, v))
    if not len(u) or u.min() == u.max() or v.min() == v.max():
        return None
    return float(torch.corrcoef(torch.stack([u, v]))[0, 1])


def two_digits(number):
    return "undefined" if number is None else f"{number:.2f}"


def ranks(v):
    """Returns each number's rank, from 1; equal numbers share the mean of theirs."""
    _, group, count = torch.unique(torch.as_tensor(v), return_inverse=True, return_counts=True)
    return (count.cumsum(0) - (count.double() - 1) / 2)[group]


def spearman(u, v):
    """Returns Spearman's correlation: Pearson's of the ranks, which no stretching can change."""
    return pearson(ranks(u), ranks(v))


def correlate(residual, scale, inside):
    """Asks whether the scale follows the residual: from image to image (means over their pixels),
    where Sec. 4.5 has Pearson's correlation, and pixel by pixel, where it has pictures.

    residual, scale [n,1,h,w] in grey levels; inside [n,1,h,w], True where a pixel counts -> four
    numbers in [-1,1] or None; those of images are None for fewer than 10 of them.
    """
    area = inside.sum(dim=(1, 2, 3))
    images = [((v * inside).sum(dim=(1, 2, 3), dtype=torch.float64) / area)[area > 0]
              for v in (residual, scale)]
    images = images if len(images[0]) >= FEWEST else ([], [])
    pixels = residual[inside], scale[inside]
    return {"pearson_image": pearson(*images), "spearman_image": spearman(*images),
            "pearson_pixel": pearson(*pixels), "spearman_pixel": spearman(*pixels)}


# ---------------------------------------------------------------- beyond the paper: order, size

def mean_of_the_rest(residual, scale):
    """Returns the mean residual of the pixels that are left when the k/20 of largest scale (rounded
    down) are gone: one shape -> [20], k = 0 ... 19. Pixels of equal scale count with their mean."""
    _, group, count = torch.unique(scale, return_inverse=True, return_counts=True)
    total = torch.zeros(len(count), dtype=torch.float64)
    mean = total.index_add(0, group.flatten(), residual.double().flatten()) / count
    n = residual.numel()
    left = torch.tensor([n - n * k // 20 for k in range(20)])
    return mean.repeat_interleave(count).cumsum(0)[left - 1] / left


def sparsification(residual, scale):
    """Measures how far the scale is from an oracle, which leaves out the largest residuals first.

    AUSE = integral of (m(by scale) - m(by residual)) / m(none) over the removed share, 0 ... 0.95

    residual, scale, one shape, in grey levels -> both curves m = mean_of_the_rest() and AUSE, the
    area under the sparsification error, 0 at best. A constant map has 0.6 on exponential residuals.
    """
    by_scale = mean_of_the_rest(residual, scale)
    by_residual = mean_of_the_rest(residual, residual)
    return {"removed": [k / 20 for k in range(20)], "map": by_scale.tolist(),
            "oracle": by_residual.tolist(),
            "ause": float(torch.trapezoid(by_scale - by_residual, dx=1 / 20) / by_scale[0])}


def probability(residual, alpha, beta):
    """Returns the probability of the central interval that just reaches a residual; for an honest
    map it is uniform on [0,1].

    u = gammainc(1/beta, (|r| / alpha)^beta);   1 - exp(-|r| / alpha) at beta 1

    residual >= 0, alpha > 0, both in grey levels, beta > 0, one shape -> float64 in [0,1].
    """
    ratio = residual.double() / alpha
    return torch.special.gammainc(1 / beta.double(), ratio ** beta)


def reliability(residual, alpha, beta):
    """Counts how often intervals of probability p = 1/20 ... 19/20 hold the truth.

    observed(p) = share of pixels with u <= p, u = probability()
    ECE, the expected calibration error = mean over p of |observed(p) - p|
    """
    u = probability(residual, alpha, beta)
    observed = torch.stack([(u <= p).sum() for p in PROBABILITIES]).double() / u.numel()
    return {"nominal": PROBABILITIES.tolist(), "observed": observed.tolist(),
            "ece": float((observed - PROBABILITIES).abs().mean())}


# ---------------------------------------------------------------- four made-up maps, curves

def made_up_maps(generator):
    """Draws residuals of a known Laplace scale [16,1,32,32], and names four maps of them."""
    honest = 1 + 9 * torch.rand(16, 1, 32, 32, generator=generator)
    residual = -honest * (1 - torch.rand(honest.shape, generator=generator)).log()
    shuffled = honest.flatten()[torch.randperm(honest.numel(), generator=generator)]
    return residual, {"honest": honest, "half as large": honest / 2,
                      "constant": torch.full_like(honest, float(honest.mean())),
                      "shuffled": shuffled.view_as(honest)}


def plot_order_and_size(rows):
    """Draws the curves behind AUSE and ECE. A row is a label, what sparsification() and
    reliability() return, and matplotlib's style."""
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, order, size, style in rows:
        left.plot(order["removed"], order["map"], label=f"{name}, AUSE {order['ause']:.3f}",
                  **style)
        left.plot(order["removed"], order["oracle"], ":", color=style["color"])
        right.plot(size["nominal"], size["observed"], label=f"{name}, ECE {size['ece']:.3f}",
                   **style)
    right.axline((0, 0), slope=1, color="gray", linestyle=":", label="ideal")
    left.set(xlabel="share of pixels removed", ylabel="mean residual of the rest [grey levels]")
    right.set(xlabel="nominal coverage", ylabel="observed coverage", xlim=(0, 1), ylim=(0, 1))
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    return figure


def main():
    run.make_parser(__doc__).parse_args()
    residual, maps = made_up_maps(torch.Generator().manual_seed(0))
    rows = []
    for k, (name, scale) in enumerate(maps.items()):
        correlation = correlate(residual, scale, residual >= 0)["pearson_pixel"]
        order = sparsification(residual, scale)
        size = reliability(residual, scale, torch.ones_like(scale))
        style = dict(color=f"C{k}", marker="osD^"[k], markersize=9 - 2 * k)
        rows.append((name, order, size, style))
        print(f"{name:<14} Pearson {two_digits(correlation):<10} AUSE {order['ause']:.3f}  "
              f"ECE {size['ece']:.3f}")
    run.save_png("uncertainty.png", plot_order_and_size(rows))
    print("wrote uncertainty.png")


if __name__ == "__main__":
    run.start(main)
