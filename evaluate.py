"""How good is a translation, and does it know where it is wrong? (Sec. 4.2-4.5)

    python evaluate.py runs/uapi runs/pi --data ixi_slices/ --out evaluation
    python evaluate.py runs/uapi --image slice.png folder/ --out translated

The first judges runs on pairs: Table 1, figures. Without pairs it translates.
The second translates files and all files in folders, at the size of the run's
slices, and brings each back to its own size. A translation lies in
OUT/RUN/translation/NAME.png, its scale in OUT/RUN/scale/NAME.npy (grey levels)
and NAME.png. OUT/scale.json holds the scale that is white in all such pictures.

residual = |translation - truth|, as in Sec. 4.5; training knows only the patch
residual a - b. The scale is the absolute residual that a map expects, E|r|: for
Eq. 9 the Laplace scale G^sigma(x). For ugac, whose map is alpha and beta of a
density ~ exp(-(|r| / alpha)^beta), E|r| is shown, too. Methods without a scale,
and all with --lam 0, train none: none is drawn or judged.
"""
import csv
import io
import itertools
import json
import math
import os
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import distributed
from torch.nn import functional as F

import run
from baselines import make_generator, trains_scale
from data import (ENDINGS, fit, images_in, load, patient, picture_grid, plot_samples, read_grey,
                  save_figure, say_skipped, six_of, to_unit)
from train import check_settings

METRICS = """metrics.json, null for undefined or infinite:
  {"runs": {RUN: {"method", "scenarios": {"GN0": {"ssim", "psnr", ...}, ...},
                  "pcc_image", "pcc_pixel", "uncertainty"}},
   "copy_input": {"GN0": {...}, ...}}
SSIM times 100, PSNR in dB. "copy_input" returns its input: a run of lower PSNR
is worse than its input. "uncertainty", of runs with a scale, on GN0
and at most 512 images: "correlation" with the residual (Sec. 4.5). Beyond the
paper: "sparsification", "reliability", "rescaled", on phantoms "noise".
evaluate.py explains each at the function of its name."""
SCENARIOS = ("GN0", "GN5", "GN10", "GN20", "IP2", "IP5", "IP10")
BATCH = 32
FOREGROUND = 25.5  # truth above 10 % of the range; air is trivially right, inflates correlations
PROBABILITIES = torch.arange(1, 20, dtype=torch.float64) / 20


# ---------------------------------------------------------------- Sec. 4.2: metrics

def psnr(a, b, data_range=255.0):
    """Peak signal-to-noise ratio of each image (Sec. 4.2).

    PSNR = 10 log10( data_range^2 / mean_j (a_j - b_j)^2 )

    a, b [n,1,h,w] in [0,data_range] -> [n] in dB, infinite where a = b. Average it over images
    afterwards. The released code pools the squared error over all images: another number.
    """
    return 10 * torch.log10(data_range ** 2 / (a - b).square().mean(dim=(1, 2, 3)))


def ssim_windows(a, b, data_range=255.0):
    """Structural similarity in every window (Sec. 4.2, Wang et al. 2004).

    (2 mu_a mu_b + C1) (2 cov_ab + C2) / ( (mu_a^2 + mu_b^2 + C1) (var_a + var_b + C2) ),
    C1 = (0.01 data_range)^2, C2 = (0.03 data_range)^2

    a, b [n,1,h,w] in [0,data_range], h, w >= 11 -> that and mu_b, [n,1,h-10,w-10]. Windows:
    Gaussian, 11x11, sigma 1.5, wholly inside the image.
    """
    t = torch.arange(-5, 6, dtype=a.dtype, device=a.device)
    window = torch.exp(-t ** 2 / (2 * 1.5 ** 2))
    window = window / window.sum()

    def mean(v):
        return F.conv2d(F.conv2d(v, window.view(1, 1, 11, 1)), window.view(1, 1, 1, 11))

    C1, C2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mu_a, mu_b = mean(a), mean(b)
    var_a, var_b = mean(a * a) - mu_a ** 2, mean(b * b) - mu_b ** 2
    cov = mean(a * b) - mu_a * mu_b
    similarity = (2 * mu_a * mu_b + C1) * (2 * cov + C2)
    return similarity / ((mu_a ** 2 + mu_b ** 2 + C1) * (var_a + var_b + C2)), mu_b


def ssim(a, b, data_range=255.0):
    """Structural similarity of each image (Sec. 4.2): the mean over its windows.

    a, b [n,1,h,w] in [0,data_range] -> [n] in [-1,1]. The released code lets 7x7x7 windows cross
    images.
    """
    return ssim_windows(a, b, data_range)[0].mean(dim=(1, 2, 3))


def ssim_head(translation, truth):
    """SSIM where there is something to see: the mean over the windows of all images in which the
    truth's Gaussian mean is at least 6 grey levels. Air is one grey level in the truth and costs
    every method alike. [n,1,h,w] in [0,255] -> one number, None where there is no such window."""
    pairs = zip(translation.split(BATCH), truth.split(BATCH))
    inside = [similarity[mean >= 6] for similarity, mean in itertools.starmap(ssim_windows, pairs)]
    inside = torch.cat(inside).double()
    return float(inside.mean()) if len(inside) else None


def moved(images, down, right):
    """[n,1,h,w] in [0,255] moved by a fraction of a pixel, same shape and range: a Fourier shift,
    clamped, since interpolation would blur, and blur alone changes SSIM."""
    rows, columns = (torch.fft.fftfreq(n, dtype=torch.float64) for n in images.shape[2:])
    turn = torch.exp(-2j * torch.pi * (down * rows[:, None] + right * columns))
    return torch.fft.ifft2(torch.fft.fft2(images.double()) * turn).real.clamp(0, 255)


def displacement(translation, truth, rounds=5):
    """How far the translations of a run lie from where they should: nothing in Eq. 5 holds them.

    truth = c T + g . grad T + constant   in least squares over all images; T lies g/c off its place

    T is the translation, moved back by what the rounds before have found. [n,1,h,w] in [0,255] ->
    pixels down and to the right, and the translation moved back; None twice where T is constant.
    """
    off, T = torch.zeros(2, dtype=torch.float64), translation.double()
    for _ in range(rounds):
        gram, product = torch.zeros(4, 4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
        for part, goal in zip(T.split(BATCH), truth.double().split(BATCH)):
            gradient = torch.gradient(part, dim=(2, 3))
            columns = torch.stack([part, *gradient, torch.ones_like(part)]).flatten(1)
            gram, product = gram + columns @ columns.T, product + columns @ goal.flatten()
        c, *g, _ = torch.linalg.lstsq(gram, product, driver="gelsd").solution
        off = off + torch.stack(g) / c
        if not off.isfinite().all() or off.abs().max() > min(truth.shape[2:]):
            return None, None
        T = torch.cat([moved(part, *-off) for part in translation.split(BATCH)])
    return off.tolist(), T.float()


# ---------------------------------------------------------------- Sec. 4.2: test scenarios

def perturb(x, scenario, generator=None):
    """A test scenario of Sec. 4.2, on grey levels.

    GNk: clip(x + N(0, (k/100 * 255)^2), 0, 255).   IPk: with probability k/100 a pixel is U[0,255].

    x [n,1,h,w] in [0,255] -> same shape and range, x itself for GN0. ValueError for another name.
    """
    if scenario not in SCENARIOS:
        raise ValueError(f"scenario {scenario}: choose one of {', '.join(SCENARIOS)}.")
    kind, k = scenario[:2], int(scenario[2:])
    if kind == "GN":
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return (x + k / 100 * 255 * noise).clamp(0, 255)
    hit, value = torch.rand((2, *x.shape), generator=generator, dtype=x.dtype, device=x.device)
    return torch.where(hit < k / 100, 255 * value, x)


def perturb_all(images, scenario):
    """uint8 [n,h,w] -> float32 [n,1,h,w], every image from a seed of its own: the same noise for
    every method, whatever the batch."""
    first, x = 100_000 * SCENARIOS.index(scenario), torch.from_numpy(images).float().unsqueeze(1)
    return torch.cat([perturb(image, scenario, torch.Generator().manual_seed(first + i))
                      for i, image in enumerate(x.split(1))])


# ---------------------------------------------------------------- a run and its translations

def load_run(folder, device):
    """RUN/ -> its generator and its settings."""
    checkpoint = run.load_checkpoint(folder, check_settings, device)
    config = checkpoint["config"]
    G = make_generator(config["method"], config["width"]).to(device)
    run.load_states({"G": G}, checkpoint["networks"])
    return G.eval(), config


@torch.no_grad()
def translate(G, x, device):
    """x [n,1,d,d] in grey levels -> translation in [0,255]; alpha in grey levels, the scale itself
    but for ugac; beta, 1 but for ugac; on the CPU. Under torchrun each of N processes takes every
    N-th batch, and all get everything."""
    rank, count = 0, 1
    if distributed.is_initialized():
        rank, count = distributed.get_rank(), distributed.get_world_size()
    batches = x.split(BATCH)
    mine = [[part.cpu() for part in G(to_unit(batch.to(device)))] for batch in batches[rank::count]]
    shares = [mine] * count
    if count > 1:
        distributed.all_gather_object(shares, mine)
    outputs = [shares[k % count][k // count] for k in range(len(batches))]
    translation, alpha, *beta = [torch.cat(parts) for parts in zip(*outputs)]
    beta = beta[0] if beta else torch.ones(()).expand_as(alpha)
    return 127.5 * translation + 127.5, 127.5 * alpha, beta


# ---------------------------------------------------------------- Sec. 4.3: Table 1

def score(translation, truth, patients, device="cpu"):
    """SSIM x 100 and PSNR: mean over images, and mean and deviation over the patients' means."""
    row = {}
    for name, metric, unit in (("ssim", ssim, 100), ("psnr", psnr, 1)):
        batches = zip(translation.split(BATCH), truth.split(BATCH))
        values = [metric(a.to(device), b.to(device)).double().cpu() for a, b in batches]
        values = unit * torch.cat(values).numpy()
        means = torch.tensor([values[patients == who].mean() for who in np.unique(patients)])
        row |= {name: float(values.mean()), f"{name}_patients_mean": float(means.mean()),
                f"{name}_patients_sd": float(means.std()) if len(means) > 1 else 0.0}
    return row


def scores_of(metrics):
    scores = {name: judged["scenarios"] for name, judged in metrics["runs"].items()}
    return scores | {"copy of the input": metrics["copy_input"]}


def table(metrics):
    """metrics -> rows of Table 1, header first: run, then SSIM/PSNR of each scenario."""
    return [["run", *SCENARIOS]] + [
        [name, *(f"{row[s]['ssim']:.2f}/{row[s]['psnr']:.2f}" for s in SCENARIOS)]
        for name, row in scores_of(metrics).items()]


def bold(rows):
    """table() with each column's best SSIM and PSNR, as printed, in bold where runs compete."""
    competing = range(1, len(rows) - 1)  # the last row is the input's copy
    if len(competing) < 2:
        return rows
    marked = [list(row) for row in rows]
    for column in range(1, len(rows[0])):
        cells = {k: rows[k][column].split("/") for k in competing}
        best = [max(map(float, numbers)) for numbers in zip(*cells.values())]
        for k, cell in cells.items():
            cell = [f"**{n}**" if float(n) == top else n for n, top in zip(cell, best)]
            marked[k][column] = "/".join(cell)
    return marked


def write_table(rows, out):
    """table1.md and table1.csv; -> the markdown."""
    lines = [rows[0], ["---"] * len(rows[0]), *bold(rows)[1:]]
    markdown = "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"
    sheet = io.StringIO()
    csv.writer(sheet).writerows(rows)
    for name, text in (("table1.md", markdown), ("table1.csv", sheet.getvalue())):
        run.replace_file(out / name, lambda place: place.write_text(text, newline=""))
    return markdown


# ---------------------------------------------------------------- Sec. 4.4: Figures 2-5

def line_style(metrics, name):
    """A row's colour and marker, the same in every figure."""
    if name not in metrics["runs"]:
        return {"color": "black", "marker": "x", "linestyle": ":"}
    k = list(metrics["runs"]).index(name)
    return {"color": f"C{k % 10}", "marker": "osD^v<>P*"[k % 9], "markersize": 5}


def plot_psnr(path, metrics):
    """Figures 2 and 3: PSNR over the seven scenarios."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    ax = figure.subplots()
    for name, row in scores_of(metrics).items():
        values = [row[s]["psnr"] for s in SCENARIOS]
        ax.plot(SCENARIOS, values, label=name, **line_style(metrics, name))
    ax.set_ylabel("PSNR [dB]")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    save_figure(path, figure, "Higher is better. A good curve lies well above the dotted one and "
                "falls little with noise: GNk is Gaussian noise of k %, IPk has k % random pixels.")


def plot_translations(path, x, translations, truth=None):
    """Figure 4, and without truth Figure 5. [6,1,d,d] each; translations: by the run's name."""
    columns = {"input": x, **translations} | ({} if truth is None else {"truth": truth})
    picture_grid(path, columns, caption="A good translation has the input's anatomy, down to small "
                                        "structures, and the target's contrast.")


# ---------------------------------------------------------------- Sec. 4.5: scale and residual

def random_images(n):
    """512 of n images, or all, in random order, always the same: as many as Sec. 4.5 takes."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:512].numpy()


def expected_residual(alpha, beta):
    """The scale of every method's map: the absolute residual that it expects.

    E|r| = alpha exp( lgamma(2/beta) - lgamma(1/beta) ),   alpha itself at beta = 1: Eq. 9

    alpha > 0 in grey levels and beta > 0, one shape -> the same shape, in grey levels.
    """
    return alpha * torch.exp(torch.lgamma(2 / beta) - torch.lgamma(1 / beta))


def pearson(u, v):
    """Pearson correlation of two lists (Sec. 4.5), in [-1,1]; None for constant or empty ones."""
    u, v = (torch.as_tensor(w, dtype=torch.float64).flatten() for w in (u, v))
    if not len(u) or u.min() == u.max() or v.min() == v.max():
        return None
    u, v = u - u.mean(), v - v.mean()
    return float((u * v).sum() / (u.norm() * v.norm()))


def ranks(v):
    """Each number's place in the sorted list, from 1; equal numbers share the mean of theirs."""
    _, group, count = torch.unique(torch.as_tensor(v), return_inverse=True, return_counts=True)
    return (count.cumsum(0) - (count.double() - 1) / 2)[group]


def spearman(u, v):
    """Spearman correlation: Pearson's of the ranks, which no stretching of the map can change."""
    return pearson(ranks(u), ranks(v))


def correlate(residual, scale, inside):
    """Sec. 4.5: does the scale follow the residual, from image to image (means over their pixels)
    and pixel by pixel?

    residual, scale [n,1,h,w] in grey levels; inside [n,1,h,w], True where a pixel counts -> four
    numbers in [-1,1] or None.
    """
    area = inside.sum(dim=(1, 2, 3))
    images = [((v * inside).sum(dim=(1, 2, 3), dtype=torch.float64) / area)[area > 0]
              for v in (residual, scale)]
    pixels = residual[inside], scale[inside]
    return {"pearson_image": pearson(*images), "spearman_image": spearman(*images),
            "pearson_pixel": pearson(*pixels), "spearman_pixel": spearman(*pixels)}


def plot_residuals(path, x, translation, truth, scale):
    """Figures 6 and 8: where the residual is and where the scale says it is. [6,1,d,d] each."""
    columns = {"input": x, "translation": translation, "truth": truth,
               "residual": (translation - truth).abs(), "scale": scale}
    picture_grid(path, columns, 2,
                 "A good scale is bright where the residual |translation - truth| is bright. One "
                 "colour bar holds for both.")


def two_digits(correlation):
    return "undefined" if correlation is None else f"{correlation:.2f}"


def plot_scatter(path, metrics, points):
    """Figures 7 and 9: mean scale against mean residual, one point an image, one panel a run."""
    figure = Figure(figsize=(4 * len(points), 4.3), layout="constrained")
    axes = figure.subplots(1, len(points), squeeze=False)[0]
    for (name, means), ax in zip(points.items(), axes):
        whole = metrics["runs"][name]["uncertainty"]["correlation"]["whole"]
        ax.plot(*means, linestyle="none", alpha=.6, **line_style(metrics, name))
        ax.set(xlabel="mean residual [grey levels]", ylabel="mean scale [grey levels]")
        ax.set_title(f"{name}\nPearson {two_digits(whole['pearson_image'])}, "
                     f"Spearman {two_digits(whole['spearman_image'])}", fontsize=10)
    save_figure(path, figure, "One point is one image, its dark air included. A good scale rises "
                "with the residual: the points lie along a rising line.")


# ---------------------------------------------------------------- beyond the paper

def remaining(residual, uncertainty):
    """Mean residual of the pixels left when the most uncertain k/20 (rounded down) are gone: one
    shape -> [20], k = 0 ... 19. Equally uncertain pixels stand in for each other by their mean."""
    _, group, count = torch.unique(uncertainty, return_inverse=True, return_counts=True)
    total = torch.zeros(len(count), dtype=torch.float64)
    mean = total.index_add(0, group.flatten(), residual.double().flatten()) / count
    n = residual.numel()
    left = torch.tensor([n - n * k // 20 for k in range(20)])
    return mean.repeat_interleave(count).cumsum(0)[left - 1] / left


def sparsification(residual, scale):
    """How far the scale is from an oracle in picking pixels to leave out: the largest residuals.

    AUSE = integral of (m(by scale) - m(by residual)) / m(none) over the removed share, 0 ... 0.95

    residual, scale, one shape, in grey levels -> both curves m = remaining() and AUSE, 0 at best;
    a map that knows nothing has 0.6 on exponentially distributed residuals.
    """
    by_map, by_residual = remaining(residual, scale), remaining(residual, residual)
    return {"removed": [k / 20 for k in range(20)], "map": by_map.tolist(),
            "oracle": by_residual.tolist(),
            "ause": float(torch.trapezoid(by_map - by_residual, dx=1 / 20) / by_map[0])}


def probability(residual, alpha, beta):
    """Probability of the central interval that just reaches a residual; U[0,1] for an honest map.

    u = P(1/beta, (|r| / alpha)^beta), P incomplete gamma; 1 - exp(-|r| / alpha) at beta 1

    residual >= 0, alpha > 0, both in grey levels, beta > 0, one shape -> float64 in [0,1].
    """
    ratio = residual.double() / alpha
    return torch.special.gammainc(1 / beta.double(), ratio ** beta)


def reliability(residual, alpha, beta):
    """How often intervals of probability p = 1/20 ... 19/20 around the translation hold the truth.

    observed(p) = share of pixels with u <= p, u = probability()
    ECE, the expected calibration error = mean over p of |observed(p) - p|
    log loss = mean of -log density = (|r|/alpha)^beta + log(2 alpha/beta) + lgamma(1/beta)
    """
    u = probability(residual, alpha, beta)
    observed = torch.stack([(u <= p).sum() for p in PROBABILITIES]).double() / u.numel()
    ratio = residual.double() / alpha
    log_loss = ratio ** beta + (2 * alpha / beta).log() + torch.lgamma(1 / beta)
    return {"nominal": PROBABILITIES.tolist(), "observed": observed.tolist(),
            "ece": float((observed - PROBABILITIES).abs().mean()),
            "log_loss": float(log_loss.mean())}


def best_factor(residual, alpha, beta):
    """The one number that makes a map likeliest when every alpha is multiplied by it.

    c > 0 with mean_j beta_j ( |r_j| / (c alpha_j) )^beta_j = 1,   c = mean |r| / alpha at beta = 1

    -> c in [e^-20, e^20]. That mean falls in c, so c is found by halving an interval of log c.
    """
    log_terms = beta.double().log() + beta * (residual.double() / alpha).log()
    low, high = -20.0, 20.0
    for _ in range(52):
        middle = (low + high) / 2
        if (log_terms - beta * middle).exp().mean() > 1:
            low = middle
        else:
            high = middle
    return math.exp(middle)


def rescaled(residual, alpha, beta, patients):
    """reliability() before and after alpha is multiplied by c = best_factor(), fitted on the first,
    third, ... of the sorted patients and judged on the others; None for a single patient."""
    fitting = np.isin(patients, np.unique(patients)[::2])
    if fitting.all():
        return None
    c = best_factor(residual[fitting], alpha[fitting], beta[fitting])
    residual, alpha, beta = residual[~fitting], alpha[~fitting], beta[~fitting]
    return {"c": c, "before": reliability(residual, alpha, beta),
            "after": reliability(residual, c * alpha, beta)}


def judge_map(translation, alpha, beta, truth, patients, noise=None):
    """What metrics.json says about one map, and each image's mean residual and mean scale.

    noise: the true Laplace scale of the phantoms' target. A map models patch inconsistency: that it
    follows residual or noise is a finding, not a theorem. [n,1,h,w] in grey levels but for beta.
    """
    residual, scale = (translation - truth).abs(), expected_residual(alpha, beta)
    regions = {"whole": torch.ones_like(truth, dtype=torch.bool), "foreground": truth > FOREGROUND}
    row = {"correlation": {}, "sparsification": sparsification(residual, scale),
           "noise": None if noise is None else {},
           "reliability": reliability(residual, alpha, beta),
           "rescaled": rescaled(residual, alpha, beta, patients)}
    for name, inside in regions.items():
        row["correlation"][name] = correlate(residual, scale, inside)
        if noise is not None:
            ratio = float((scale / noise)[inside].mean())
            row["noise"][name] = correlate(noise, scale, inside) | {"mean_ratio": ratio}
    whole = row["correlation"]["whole"]
    points = [v.mean(dim=(1, 2, 3)).tolist() for v in (residual, scale)]
    return {"pcc_image": whole["pearson_image"], "pcc_pixel": whole["pearson_pixel"],
            "uncertainty": row}, points


def maps_of(metrics):
    return {name: judged["uncertainty"] for name, judged in metrics["runs"].items()
            if judged["uncertainty"]}


def plot_sparsification(path, metrics):
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    ax = figure.subplots()
    for name, judged in maps_of(metrics).items():
        curve, style = judged["sparsification"], line_style(metrics, name)
        ax.plot(curve["removed"], curve["map"], label=f"{name}, AUSE {curve['ause']:.3f}", **style)
        ax.plot(curve["removed"], curve["oracle"], ":", color=style["color"])
    ax.set(xlabel="share of pixels removed", ylabel="mean residual of the rest [grey levels]")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    save_figure(path, figure, "The pixels of largest scale are removed first. A good curve falls "
                "like its oracle (dotted), which removes the largest residuals first. AUSE is the "
                "area between the two over the curve's first value, 0 at best.")


def plot_reliability(path, metrics):
    """On the patients that rescaled() judges."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    titles = {"before": "as translated", "after": "scale times c, fitted on other patients"}
    for (when, title), ax in zip(titles.items(), figure.subplots(1, 2)):
        for name, judged in maps_of(metrics).items():
            if half := (judged["rescaled"] or {"before": judged["reliability"]}).get(when):
                label = f"{name}, ECE {half['ece']:.3f}"
                ax.plot(half["nominal"], half["observed"], label=label, **line_style(metrics, name))
        ax.axline((0, 0), slope=1, color="gray", linestyle=":", label="ideal")
        ax.set(xlabel="nominal coverage", ylabel="observed coverage", xlim=(0, 1), ylim=(0, 1),
               title=title)
        ax.legend(fontsize=8)
    save_figure(path, figure, "How often an interval around the translation holds the truth, and "
                "how often it should. A good curve lies on the diagonal; below it the scale is too "
                "small, above it too large. ECE is the mean distance from it.")


# ---------------------------------------------------------------- the program

def judge(runs, slices, out, device):
    """Every run on every scenario -> metrics; draws the figures of paired data on the way."""
    truth = torch.from_numpy(slices.evaluation_target).float().unsqueeze(1)
    patients = np.array([patient(name) for name in slices.names["evaluation_input"]])
    shown, chosen = six_of(len(truth)), random_images(len(truth))
    noise = None if slices.noise is None else torch.from_numpy(slices.noise[chosen]).unsqueeze(1)
    translations, points, metrics = {}, {}, {"runs": {}, "copy_input": {}}
    without_map = dict.fromkeys(("pcc_image", "pcc_pixel", "uncertainty"))
    for done, scenario in enumerate(SCENARIOS):
        x = perturb_all(slices.evaluation_input, scenario)
        metrics["copy_input"][scenario] = score(x, truth, patients, device)
        for k, (name, (G, config)) in enumerate(runs.items(), 1):
            translation, alpha, beta = translate(G, x, device)
            if not run.is_first():
                continue
            row = metrics["runs"].setdefault(name, {"method": config["method"], "scenarios": {},
                                                    **without_map})
            row["scenarios"][scenario] = score(translation, truth, patients, device)
            row["scenarios"][scenario]["ssim_head"] = 100 * ssim_head(translation, truth)
            if scenario == "GN0":
                off, back = displacement(translation, truth)
                row["displacement"] = off and {"down": off[0], "right": off[1],
                                               "ssim": 100 * float(ssim(back, truth).mean())}
            run.progress(done * len(runs) + k, len(SCENARIOS) * len(runs), "judging")
            if scenario == "GN0":
                translations[name] = translation[shown]
            if scenario == "GN0" and trains_scale(config):
                parts = [v[chosen] for v in (translation, alpha, beta, truth)]
                judged, points[name] = judge_map(*parts, patients[chosen], noise)
                row |= judged
                scale = expected_residual(alpha[shown], beta[shown])
                plot_residuals(out / f"fig6_8_{name}.png", x[shown], translations[name],
                               truth[shown], scale)
    if not run.is_first():
        return None
    plot_psnr(out / "fig2_3_psnr.png", metrics)
    x = torch.from_numpy(slices.evaluation_input[shown]).unsqueeze(1)
    plot_translations(out / "fig4_samples.png", x, translations, truth[shown])
    if points:
        plot_scatter(out / "fig7_9_scatter.png", metrics, points)
        plot_sparsification(out / "sparsification.png", metrics)
        plot_reliability(out / "reliability.png", metrics)
    return metrics


def read_pictures(places):
    """Files, and folders of files -> (name, uint8 [h,w]) one by one. What cannot be read is named
    and skipped; the program ends where nothing can, where two have one name, or over a run."""
    by_name, bad = {}, []
    for place in map(Path, places):
        if os.path.exists(place / "checkpoint.pt"):
            run.fail(f"{place}: is a run, not a folder of pictures; name runs before --image.")
        for path in images_in(place).values() if os.path.isdir(place) else [place]:
            if by_name.setdefault(path.stem, path) != path:
                run.fail(f"{path}: {by_name[path.stem]} has the same name, which would name both "
                         "translations; translate them in two calls.")
    for done, (name, path) in enumerate(by_name.items(), 1):
        run.progress(done, len(by_name), "translating")
        try:
            yield name, read_grey(path)
        except ValueError as error:
            bad.append(error)
    if len(bad) == len(by_name):
        run.fail(str(bad[0]) if bad else
                 f"{', '.join(places)}: no picture inside; files end in {', '.join(ENDINGS)}")
    say_skipped(bad, len(by_name), "pictures")


def own_size(values, shape):
    """[1,1,d,d] of a picture that fit() has made square -> [h,w], the picture's own shape."""
    values, (h, w), side = values.squeeze().numpy(), shape, max(shape)
    top, left = (side - h) // 2, (side - w) // 2
    square = np.asarray(Image.fromarray(values).resize((side, side), Image.Resampling.BICUBIC))
    return square[top:top + h, left:left + w].clip(values.min(), values.max())


def write_png(path, grey):
    picture = Image.fromarray(np.rint(grey).astype(np.uint8))
    run.replace_file(path, lambda place: picture.save(place, format="png"))


def write_translations(pictures, runs, out, device):
    """Pictures (name, uint8 [h,w]) of any size -> the files that the top of this file describes."""
    white, scales = 0.0, []
    for name, picture in pictures:
        for which, (G, config) in runs.items():
            x = torch.from_numpy(fit(picture, config["size"])).float()[None, None]
            translation, alpha, beta = translate(G, x, device)
            if not run.is_first():
                continue
            folder = out / which / "translation"
            run.make_folder(folder)
            write_png(folder / f"{name}.png", own_size(translation, picture.shape))
            if trains_scale(config):
                scale = own_size(expected_residual(alpha, beta), picture.shape)
                packed = io.BytesIO()
                np.save(packed, scale)
                run.make_folder(out / which / "scale")
                scales.append(out / which / "scale" / f"{name}.npy")
                run.replace_file(scales[-1], lambda place: place.write_bytes(packed.getvalue()))
                white = max(white, float(scale.max()))
    for path in scales:  # once more: only now the white level is known
        write_png(path.with_suffix(".png"), np.load(path) * (255 / white))
    print(f"wrote translations, and scales where one is trained, to {out}/RUN/")
    if scales:
        text = json.dumps({"white_level_in_grey_levels": white}) + "\n"
        run.replace_file(out / "scale.json", lambda place: place.write_text(text))
        print(f"white is {white:.1f} grey levels in all pictures of scales ({out}/scale.json)")


def summary(judged):
    """A line about one map, and one about its foreground, which no dark air flatters."""
    ece = f"{judged['reliability']['ece']:.3f}, no c from one patient alone"
    if half := judged["rescaled"]:
        before, after = half["before"]["ece"], half["after"]["ece"]
        ece = f"{before:.3f} -> {after:.3f} with c = {half['c']:.3g}"
    words = "Pearson/Spearman of scale and residual, {}: {}/{} per image, {}/{} per pixel"
    whole, foreground = (words.format(region, *map(two_digits, numbers.values()))
                         for region, numbers in judged["correlation"].items())
    return f"{whole}; AUSE {judged['sparsification']['ause']:.3f}; ECE {ece}\n  {foreground}"


def evaluate_pairs(runs, slices, out, device):
    """Judges runs on pairs, writes and prints Table 1."""
    metrics = judge(runs, slices, out, device)
    if not run.is_first():
        return
    # JSON has no word for NaN, nor for the infinite PSNR of equal images: null.
    valid = json.loads(json.dumps(metrics), parse_constant=lambda word: None)
    text = json.dumps(valid, indent=2) + "\n"
    run.replace_file(out / "metrics.json", lambda place: place.write_text(text))
    print(write_table(table(metrics), out))
    for name, judged in maps_of(metrics).items():
        print(f"{name}: {summary(judged)}")
    print(f"wrote {out}/metrics.json, table1.md, table1.csv and figures")


def translate_unpaired(runs, slices, out, device):
    """Without pairs there is nothing to score: Figure 5, and every translation as a file."""
    names, shown = slices.names["evaluation_input"], six_of(len(slices.evaluation_input))
    if len(set(names)) < len(names) or any(not n or Path(n).name != n or "\0" in n for n in names):
        run.fail("the names in evaluation_input_names cannot name files, or two are equal.")
    x = torch.from_numpy(slices.evaluation_input[shown]).float().unsqueeze(1)
    translations = {name: translate(G, x, device)[0] for name, (G, _) in runs.items()}
    if run.is_first():
        plot_translations(out / "fig5_translations.png", x, translations)
    write_translations(zip(names, slices.evaluation_input), runs, out, device)
    print(f"no pairs, so no scores: wrote {out}/fig5_translations.png")


@run.memory_may_run_out("judge fewer runs or pairs at a time, or give --device cpu")
def main():
    parser = run.make_parser(__doc__, epilog=METRICS)
    flag = parser.add_argument
    flag("runs", nargs="+", metavar="RUN", help="folders that train.py has written")
    flag("--data", metavar="DIR", help="folder, .h5 file or the word phantom (Sec. 4.1)")
    flag("--image", metavar="PATH", nargs="+",
         help="translate these pictures; the runs stand before it (Sec. 4.4)")
    flag("--out", default="evaluation", metavar="DIR", help="default: evaluation (Sec. 4.3)")
    flag("--device", help="cuda, cpu or mps; default: cuda where there is one, else cpu")
    args = parser.parse_args()
    if bool(args.data) == bool(args.image):
        run.fail("give either --data (a data set to judge by) or --image (pictures to translate).")
    run.reuse_freed_memory()
    device, out = run.pick_device(args.device), Path(args.out)
    run.join_processes(device)
    runs = {Path(folder).resolve().name: load_run(folder, device) for folder in args.runs}
    if len(runs) < len(args.runs):
        run.fail("two of the runs have the same folder name, which names their rows; rename one.")
    if args.image:
        write_translations(read_pictures(args.image), runs, out, device)
        return run.leave_processes()
    sizes = {config["size"] for _, config in runs.values()}
    if len(sizes) > 1:
        run.fail(f"the runs have different sizes, {sorted(sizes)}; compare runs of one size.")
    slices = load(args.data, sizes.pop(), ("evaluation_input", "evaluation_target"))
    run.make_folder(out)
    if run.is_first():
        for name, (G, config) in runs.items():
            if Path(config["data"]).name != Path(args.data).name:
                print(f"note: {name} was trained on {config['data']}, and is judged on {args.data}")
            plot_samples(out / f"patches_{name}.png", G, slices, device, trains_scale(config))
    evaluate = evaluate_pairs if len(slices.evaluation_target) else translate_unpaired
    evaluate(runs, slices, out, device)
    run.leave_processes()


if __name__ == "__main__":
    main()
