"""How good is a translation, and does it know where it is wrong? (Sec. 4.2-4.5)

    python evaluate.py RUN [RUN ...] --data DIR --out DIR     Table 1, metrics.json and the figures
    python evaluate.py RUN --image FILE --out DIR             translates one picture

metrics.json: {"runs": {RUN: {"method", "scenarios": {"GN0": {"ssim", "psnr", ...}, ...}, "pcc_image", "pcc_pixel",
"uncertainty"}}, "copy_input": {"GN0": {...}, ...}}, SSIM times 100 as in Table 1, PSNR in dB; null: undefined or infinite.
copy_input is the row of a "method" that returns its input: a run that does not beat it has learned nothing. "uncertainty",
for runs with a map, on GN0 and at most 512 images: "correlation" with the absolute residual |r| (Sec. 4.5), and beyond the
paper "sparsification", "reliability", "rescaled" and on phantoms "noise", each explained at the function of its name.

A map is alpha and beta of the density ~ exp(-(|r| / alpha)^beta), UGAC's; beta = 1 is Eq. 9's Laplace density, alpha its
scale. So that they can be compared, maps are shown and correlated as the absolute residual that they expect, in grey levels.
"""
import argparse
import csv
import functools
import io
import json
import math
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch import distributed
from torch.nn import functional as F

import run
from baselines import make_generator, trains_scale
from data import draw_samples, fit, load, patient, picture_grid, read_grey, to_unit
from run import fail, is_first, make_folder, progress, replace_file
from train import check_settings

SCENARIOS = ("GN0", "GN5", "GN10", "GN20", "IP2", "IP5", "IP10")
BATCH = 32
FOREGROUND = 25.5  # a truth above 10 % of the range: air and bone are dark, trivially right and sure, and inflate correlations
LEVELS = torch.arange(1, 20, dtype=torch.float64) / 20


# ---------------------------------------------------------------- Sec. 4.2: metrics and perturbations

def psnr(a, b, data_range=255.0):
    """Peak signal-to-noise ratio of each image (Sec. 4.2).

    PSNR = 10 log10( data_range^2 / mean_j (a_j - b_j)^2 )

    a, b [n,1,h,w] in [0,data_range] -> [n] in dB, infinite where a = b. Average it over images afterwards; the released
    code pools the squared error over all images first, which is another number.
    """
    return 10 * torch.log10(data_range ** 2 / (a - b).square().mean(dim=(1, 2, 3)))


def ssim(a, b, data_range=255.0):
    """Structural similarity of each image (Sec. 4.2, Wang et al. 2004).

    SSIM = mean over windows of (2 mu_a mu_b + C1)(2 cov_ab + C2) / ((mu_a^2 + mu_b^2 + C1)(var_a + var_b + C2)),
    C1 = (0.01 data_range)^2, C2 = (0.03 data_range)^2, windows Gaussian, 11x11, sigma 1.5, wholly inside the image

    a, b [n,1,h,w] in [0,data_range], h, w >= 11 -> [n] in [-1,1]. The released code lets 7x7x7 windows cross images.
    """
    t = torch.arange(-5, 6, dtype=a.dtype, device=a.device)
    window = torch.exp(-t ** 2 / (2 * 1.5 ** 2))
    window = window / window.sum()

    def mean(v):
        return F.conv2d(F.conv2d(v, window.view(1, 1, 11, 1)), window.view(1, 1, 1, 11))

    C1, C2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    mu_a, mu_b = mean(a), mean(b)
    var_a, var_b, cov = mean(a * a) - mu_a ** 2, mean(b * b) - mu_b ** 2, mean(a * b) - mu_a * mu_b
    similarity = (2 * mu_a * mu_b + C1) * (2 * cov + C2) / ((mu_a ** 2 + mu_b ** 2 + C1) * (var_a + var_b + C2))
    return similarity.mean(dim=(1, 2, 3))


def perturb(x, scenario, generator=None):
    """A test scenario of Sec. 4.2, on grey levels.

    GNk: clip(x + N(0, (k/100 * 255)^2), 0, 255).   IPk: each pixel, with probability k/100, becomes U[0,255].

    x [n,1,h,w] in [0,255] -> same shape and range; GN0 returns x. ValueError for any other name.
    """
    if scenario not in SCENARIOS:
        raise ValueError(f"scenario {scenario}: choose one of {', '.join(SCENARIOS)}.")
    kind, k = scenario[:2], int(scenario[2:])
    if k == 0:
        return x
    if kind == "GN":
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
        return (x + k / 100 * 255 * noise).clamp(0, 255)
    hit, value = torch.rand((2, *x.shape), generator=generator, dtype=x.dtype, device=x.device)
    return torch.where(hit < k / 100, 255 * value, x)


def perturb_all(images, scenario):
    """uint8 [n,h,w] -> float32 [n,1,h,w], every image from a seed of its own: the same noise for every method, whatever
    the batch."""
    x = torch.from_numpy(images).float().unsqueeze(1)
    seeds = (100_000 * SCENARIOS.index(scenario) + i for i in range(len(x)))
    return torch.cat([perturb(x[i:i + 1], scenario, torch.Generator().manual_seed(s)) for i, s in enumerate(seeds)])


# ---------------------------------------------------------------- a run

def load_run(folder, device):
    """RUN/ -> its generator and its settings."""
    checkpoint = run.load_checkpoint(folder, check_settings, device)
    config = checkpoint["config"]
    G = make_generator(config["method"], config["width"]).to(device)
    run.load_states({"G": G}, checkpoint["networks"])
    return G.eval(), config


@torch.no_grad()
def translate(G, x, device):
    """x [n,1,d,d] in grey levels -> image in [0,255] and alpha, in grey levels, and beta, 1 where G has two heads, on the CPU.
    Under torchrun each process takes every N-th batch, and all get everything."""
    rank, count = (distributed.get_rank(), distributed.get_world_size()) if distributed.is_initialized() else (0, 1)
    batches = x.split(BATCH)
    done = [[[part.cpu() for part in G(to_unit(batch.to(device)))] for batch in batches[rank::count]]] * count
    if count > 1:
        distributed.all_gather_object(done, done[rank])
    image, alpha, *beta = (torch.cat(parts) for parts in zip(*(done[k % count][k // count] for k in range(len(batches)))))
    return 127.5 * image + 127.5, 127.5 * alpha, beta[0] if beta else torch.ones(()).expand_as(alpha)


def score(image, truth, patients, device="cpu"):
    """SSIM x 100 and PSNR: mean over images, as in Table 1, and mean and standard deviation over the patients' means."""
    row, batches = {}, [(a.to(device), b.to(device)) for a, b in zip(image.split(BATCH), truth.split(BATCH))]
    for name, metric, unit in (("ssim", ssim, 100), ("psnr", psnr, 1)):
        values = unit * torch.cat([metric(a, b).double().cpu() for a, b in batches]).numpy()
        people = torch.tensor([values[patients == who].mean() for who in np.unique(patients)])
        row |= {name: float(values.mean()), f"{name}_patients_mean": float(people.mean()),
                f"{name}_patients_sd": float(people.std()) if len(people) > 1 else 0.0}
    return row


# ---------------------------------------------------------------- Sec. 4.5 and beyond: does it know where it is wrong?

def random_images(n):
    """At most 512 of n images at random, always the same: as many as Sec. 4.5 takes, and as fit into memory at 256x256."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:512].numpy()


def expected_residual(alpha, beta):
    """The absolute residual that a map expects.

    E|r| = alpha exp( lgamma(2/beta) - lgamma(1/beta) ),   alpha itself at beta = 1

    alpha > 0 in grey levels and beta > 0, one shape -> the same shape, in grey levels.
    """
    return alpha * torch.exp(torch.lgamma(2 / beta) - torch.lgamma(1 / beta))


def pearson(u, v):
    """Pearson correlation of two lists of numbers (Sec. 4.5), in [-1,1]; None where one of them is constant or empty."""
    u, v = (torch.as_tensor(w, dtype=torch.float64).flatten() for w in (u, v))
    if not len(u) or u.min() == u.max() or v.min() == v.max():
        return None
    u, v = u - u.mean(), v - v.mean()
    return float((u * v).sum() / (u.norm() * v.norm()))


def ranks(v):
    """v, any shape -> each number's place in the sorted list, from 1, float64; equal numbers share the mean of their places."""
    _, group, count = torch.unique(torch.as_tensor(v), return_inverse=True, return_counts=True)
    return (count.cumsum(0) - (count.double() - 1) / 2)[group]


def spearman(u, v):
    """Spearman correlation: Pearson's of the ranks, which no stretching of the map can change."""
    return pearson(ranks(u), ranks(v))


def correlate(residual, expected, inside):
    """Sec. 4.5: does the map follow the absolute residual, from image to image (means over their pixels) and pixel by pixel?

    residual, expected [n,1,h,w] in grey levels; inside [n,1,h,w], True where a pixel counts -> four numbers in [-1,1] or None.
    """
    area = inside.sum(dim=(1, 2, 3))
    images = [(v * inside).sum(dim=(1, 2, 3), dtype=torch.float64)[area > 0] / area[area > 0] for v in (residual, expected)]
    pixels = residual[inside], expected[inside]
    return {"pearson_image": pearson(*images), "spearman_image": spearman(*images),
            "pearson_pixel": pearson(*pixels), "spearman_pixel": spearman(*pixels)}


def remaining(residual, uncertainty):
    """Mean residual of the pixels left when the most uncertain k/20 (rounded down) are gone: one shape -> [20], k = 0 ... 19.
    Equally uncertain pixels stand in for each other by their mean."""
    _, group, count = torch.unique(uncertainty, return_inverse=True, return_counts=True)
    mean = torch.zeros(len(count), dtype=torch.float64).index_add(0, group.flatten(), residual.double().flatten()) / count
    kept = torch.tensor([residual.numel() - residual.numel() * k // 20 for k in range(20)])
    return mean.repeat_interleave(count).cumsum(0)[kept - 1] / kept


def sparsification(residual, expected):
    """How much better an oracle, which removes the largest residuals first, picks pixels to leave out than the map does.

    AUSE = integral over the removed share, 0 ... 0.95, of ( m(by map) - m(by residual) ) / m(none), m = remaining(), trapezoids

    residual, expected, one shape, in grey levels -> both curves in grey levels and AUSE, 0 at best; a map that knows nothing
    has 0.6 on exponentially distributed residuals.
    """
    by_map, by_residual = remaining(residual, expected), remaining(residual, residual)
    return {"removed": [k / 20 for k in range(20)], "map": by_map.tolist(), "oracle": by_residual.tolist(),
            "ause": float(torch.trapezoid(by_map - by_residual, dx=1 / 20) / by_map[0])}


def probability(residual, alpha, beta):
    """Probability of the central interval that just reaches a residual; U[0,1] over pixels where the map tells the truth.

    u = P(1/beta, (|r| / alpha)^beta), P the regularised lower incomplete gamma function;   1 - exp(-|r| / alpha) at beta = 1

    residual >= 0, alpha > 0, both in grey levels, beta > 0, one shape -> float64 in [0,1], the same shape.
    """
    return torch.special.gammainc(1 / beta.double(), (residual.double() / alpha) ** beta)


def reliability(residual, alpha, beta):
    """How often intervals of nominal probability p = 1/20 ... 19/20 around the prediction hold the truth.

    observed(p) = share of pixels with u <= p, u = probability();   ECE = mean over p of |observed(p) - p|

    As in probability() -> both, and the mean of -log density, (|r|/alpha)^beta + log(2 alpha/beta) + lgamma(1/beta).
    """
    u = probability(residual, alpha, beta)
    observed = torch.stack([(u <= p).sum() for p in LEVELS]).double() / u.numel()
    log_loss = (residual.double() / alpha) ** beta + (2 * alpha / beta).log() + torch.lgamma(1 / beta)
    return {"nominal": LEVELS.tolist(), "observed": observed.tolist(), "ece": float((observed - LEVELS).abs().mean()),
            "log_loss": float(log_loss.mean())}


def best_factor(residual, alpha, beta):
    """The one number that makes a map likeliest when every alpha is multiplied by it.

    c > 0 with mean_j beta_j ( |r_j| / (c alpha_j) )^beta_j = 1,   c = mean |r| / alpha at beta = 1

    As in probability() -> c in [e^-20, e^20]. That mean falls in c, so c is found by halving an interval of log c.
    """
    log_terms = beta.double().log() + beta * (residual.double() / alpha).log()
    low, high = -20.0, 20.0
    for _ in range(52):
        middle = (low + high) / 2
        low, high = (middle, high) if (log_terms - beta * middle).exp().mean() > 1 else (low, middle)
    return math.exp(middle)


def rescaled(residual, alpha, beta, patients):
    """reliability() before and after alpha is multiplied by best_factor(), which is fitted on the first, third, ... of the
    sorted patients and judged on the others. patients [n] -> both and c; None where there is but one patient."""
    fitting = np.isin(patients, np.unique(patients)[::2])
    if fitting.all():
        return None
    c = best_factor(residual[fitting], alpha[fitting], beta[fitting])
    residual, alpha, beta = residual[~fitting], alpha[~fitting], beta[~fitting]
    return {"c": c, "before": reliability(residual, alpha, beta), "after": reliability(residual, c * alpha, beta)}


def judge_map(image, alpha, beta, truth, patients, noise=None):
    """What metrics.json says about one map, and the points of Figures 7 and 9: mean |r| and expected |r| of each image.

    noise: the true Laplace scale of the phantoms' target, to be compared with the map. A map models patch inconsistency:
    that it follows residual or noise is a finding, not a theorem. All [n,1,h,w], in grey levels but for beta; patients [n].
    """
    residual, expected = (image - truth).abs(), expected_residual(alpha, beta)
    regions = {"whole": torch.ones_like(truth, dtype=torch.bool), "foreground": truth > FOREGROUND}
    found = {name: correlate(residual, expected, inside) for name, inside in regions.items()}
    row = {"correlation": found, "sparsification": sparsification(residual, expected), "noise": None,
           "reliability": reliability(residual, alpha, beta), "rescaled": rescaled(residual, alpha, beta, patients)}
    if noise is not None:
        row["noise"] = {name: correlate(noise, expected, inside) | {"mean_ratio": float((expected / noise)[inside].mean())}
                        for name, inside in regions.items()}
    points = [v.mean(dim=(1, 2, 3)).tolist() for v in (residual, expected)]
    whole = found["whole"]
    return {"pcc_image": whole["pearson_image"], "pcc_pixel": whole["pearson_pixel"], "uncertainty": row}, points


# ---------------------------------------------------------------- Table 1 and the figures

def table(metrics):
    """metrics -> rows of Table 1, header first: method, then SSIM/PSNR of each scenario."""
    rows = [["run", *SCENARIOS]]
    scores = {name: judged["scenarios"] for name, judged in metrics["runs"].items()} | {"copy of the input": metrics["copy_input"]}
    for name, scenarios in scores.items():
        rows.append([name, *(f"{scenarios[s]['ssim']:.2f}/{scenarios[s]['psnr']:.2f}" for s in SCENARIOS)])
    return rows


def bold(rows):
    """rows of table() -> the same, each column's best SSIM and best PSNR, as printed, in bold where several runs compete."""
    columns = [[cell.split("/") for cell in column] for column in list(zip(*rows[1:-1]))[1:]]
    best = [[max(map(float, numbers)) for numbers in zip(*column)] for column in columns]

    def mark(cell, tops):
        return "/".join(f"**{number}**" if float(number) == top else number for number, top in zip(cell.split("/"), tops))
    return [[row[0], *map(mark, row[1:], best)] if 0 < k < len(rows) - 1 > 2 else row for k, row in enumerate(rows)]


def write_table(rows, out):
    """table1.md and table1.csv; -> the markdown."""
    markdown = "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *bold(rows)[1:]]) + "\n"
    lines = io.StringIO()
    csv.writer(lines).writerows(rows)
    replace_file(out / "table1.md", lambda place: place.write_text(markdown))
    replace_file(out / "table1.csv", lambda place: place.write_text(lines.getvalue(), newline=""))
    return markdown


def judge(runs, slices, out, device):
    """Every run on every scenario -> metrics; draws the figures of paired data on the way."""
    truth = torch.from_numpy(slices.evaluation_target).float().unsqueeze(1)
    patients = np.array([patient(name) for name in slices.names["evaluation_input"]])
    shown = np.linspace(0, len(truth) - 1, 6).round().astype(int)
    chosen = random_images(len(truth))
    noise = None if slices.noise is None else torch.from_numpy(slices.noise).unsqueeze(1)[chosen]
    samples, scatter, metrics = {}, {}, {"runs": {}, "copy_input": {}}
    for name, (_, config) in runs.items():
        row = metrics["runs"][name] = {"method": config["method"], "scenarios": {}}
        row |= {"pcc_image": None, "pcc_pixel": None, "uncertainty": None}
    for done, scenario in enumerate(SCENARIOS):
        x = perturb_all(slices.evaluation_input, scenario)
        metrics["copy_input"][scenario] = score(x, truth, patients, device)
        for k, (name, (G, config)) in enumerate(runs.items(), 1):
            image, *scale = translate(G, x, device)
            if not is_first():
                continue
            row = metrics["runs"][name]
            row["scenarios"][scenario] = score(image, truth, patients, device)
            progress(done * len(runs) + k, len(SCENARIOS) * len(runs), "judging")
            if scenario == "GN0":
                samples[name] = image[shown]
                if trains_scale(config):
                    found, scatter[name] = judge_map(*(v[chosen] for v in (image, *scale, truth)), patients[chosen], noise)
                    row |= found
                    expected = expected_residual(*(v[shown] for v in scale))
                    draw_residuals(out / f"fig6_8_{name}.png", x[shown], truth[shown], image[shown], expected)
    if not is_first():
        return None
    draw_psnr(out / "fig2_3_psnr.png", metrics)
    if scatter:
        draw_scatter(out / "fig7_9_scatter.png", metrics, scatter)
        draw_sparsification(out / "sparsification.png", metrics)
        draw_reliability(out / "reliability.png", metrics)
    rows = [[slices.evaluation_input[i], *(image[k] for image in samples.values()), truth[i]] for k, i in enumerate(shown)]
    picture_grid(out / "fig4_samples.png", rows, ["input", *samples, "ground truth"])
    return metrics


def plot(path, *draws, size=(5, 4)):
    """One panel of that size [inches] for each draw(ax), side by side."""
    figure = Figure(figsize=(size[0] * len(draws), size[1]), layout="constrained")
    for draw, ax in zip(draws, figure.subplots(1, len(draws), squeeze=False)[0]):
        draw(ax)
    replace_file(path, lambda place: figure.savefig(place, dpi=90, format="png"))


def look(metrics, name):
    """A run's colour and marker, the same in every figure."""
    k = list(metrics["runs"]).index(name)
    return {"color": f"C{k % 10}", "marker": "osD^v<>P*"[k % 9], "markersize": 5}


def draw_psnr(path, metrics):
    """Figures 2 and 3: PSNR over the seven scenarios."""
    def draw(ax):
        for name, judged in metrics["runs"].items():
            ax.plot(SCENARIOS, [judged["scenarios"][s]["psnr"] for s in SCENARIOS], label=name, **look(metrics, name))
        ax.plot(SCENARIOS, [metrics["copy_input"][s]["psnr"] for s in SCENARIOS], "x:", color="black", label="copy of the input")
        ax.set(ylabel="PSNR [dB]")
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    plot(path, draw, size=(9, 5))


def draw_residuals(path, x, truth, image, expected):
    """Figures 6 and 8: where the residual is and where the map says it is."""
    residual = (image - truth).abs()
    tops = float(residual.quantile(0.999)), float(expected.quantile(0.999))
    rows = [[x[i], truth[i], image[i], (residual[i], tops[0]), (expected[i], tops[1])] for i in range(len(x))]
    picture_grid(path, rows, ["input", "ground truth", "prediction", "abs. residual [grey levels]", "expected [grey levels]"])


def draw_scatter(path, metrics, scatter):
    """Figures 7 and 9: mean expected against mean absolute residual, one point an image, one panel a run."""
    def draw(name, ax):
        found = metrics["runs"][name]["uncertainty"]["correlation"]["whole"]
        ax.plot(*scatter[name], linestyle="none", alpha=.6, **look(metrics, name))
        ax.set(xlabel="mean absolute residual [grey levels]", ylabel="mean of the map, E|r| [grey levels]")
        title = f"{name}\nPearson {two_digits(found['pearson_image'])}, Spearman {two_digits(found['spearman_image'])}"
        ax.set_title(title, fontsize=10)
    plot(path, *(functools.partial(draw, name) for name in scatter), size=(4, 4))


def maps_of(metrics):
    return {name: judged["uncertainty"] for name, judged in metrics["runs"].items() if judged["uncertainty"]}


def draw_sparsification(path, metrics):
    """What remains when the most uncertain pixels are removed, and when those of the largest residuals are."""
    def draw(ax):
        for name, found in maps_of(metrics).items():
            curve, style = found["sparsification"], look(metrics, name)
            ax.plot(curve["removed"], curve["map"], label=f"{name}, AUSE {curve['ause']:.3f}", **style)
            ax.plot(curve["removed"], curve["oracle"], ":", color=style["color"])
        ax.set(xlabel="share of pixels removed", ylabel="mean |r| of the rest [grey levels]", title="dotted: the oracle")
        ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    plot(path, draw, size=(8, 4.5))


def draw_reliability(path, metrics):
    """How often intervals hold the truth against how often they should, on the patients that rescaled() judges."""
    def draw(when, title, ax):
        for name, found in maps_of(metrics).items():
            half = (found["rescaled"] or {"before": found["reliability"]}).get(when)
            if half:
                ax.plot(half["nominal"], half["observed"], label=f"{name}, ECE {half['ece']:.3f}", **look(metrics, name))
        ax.axline((0, 0), slope=1, color="gray", linestyle=":", label="ideal")
        ax.set(xlabel="nominal coverage", ylabel="observed coverage", xlim=(0, 1), ylim=(0, 1), title=title)
        ax.legend(fontsize=8)
    titles = {"before": "as predicted", "after": "times c, fitted on other patients"}
    plot(path, *(functools.partial(draw, when, title) for when, title in titles.items()))


def draw_translations(path, runs, slices, device):
    """Figure 5: data without pairs, so there is nothing to score; the translations alone."""
    shown = np.linspace(0, len(slices.evaluation_input) - 1, 6).round().astype(int)
    x = torch.from_numpy(slices.evaluation_input[shown]).float().unsqueeze(1)
    images = [translate(G, x, device)[0] for G, _ in runs.values()]
    if is_first():
        picture_grid(path, [[x[k], *(image[k] for image in images)] for k in range(len(x))], ["input", *runs])


def translate_picture(path, runs, out, device):
    """One picture of any size: fitted to the run's size as in training, translated, and brought back to its own size."""
    try:
        picture = read_grey(path)
    except ValueError as error:
        fail(f"{error}.")
    (h, w), side = picture.shape, max(picture.shape)
    top, left = (side - h) // 2, (side - w) // 2

    def own_size(values):
        values = values.squeeze().numpy()
        grown = np.asarray(Image.fromarray(values).resize((side, side), Image.Resampling.BICUBIC))
        return grown[top:top + h, left:left + w].clip(values.min(), values.max())

    make_folder(out)
    for name, (G, config) in runs.items():
        x = torch.from_numpy(fit(picture, config["size"])).float()[None, None]
        image, *scale = translate(G, x, device)
        image, expected = own_size(image), own_size(expected_residual(*scale))
        stem = out / f"{Path(path).stem}_{name}"
        write_png(f"{stem}_translation.png", image)
        print(f"wrote {stem}_translation.png")
        if trains_scale(config):
            packed = io.BytesIO()
            np.save(packed, expected)
            replace_file(f"{stem}_scale.npy", lambda place: place.write_bytes(packed.getvalue()))
            write_png(f"{stem}_scale.png", expected * 255 / expected.max())
            print(f"wrote {stem}_scale.npy (grey levels) and {stem}_scale.png (white is {expected.max():.1f} grey levels)")


def write_png(path, grey):
    picture = Image.fromarray(np.rint(grey).astype(np.uint8))
    replace_file(path, lambda place: picture.save(place, format="png"))


def two_digits(correlation):
    return "undefined" if correlation is None else f"{correlation:.2f}"


def summary(found):
    """One line about one map."""
    whole, halves = found["correlation"]["whole"], found["rescaled"] or {"before": found["reliability"]}
    image, pixel = (f"{two_digits(whole['pearson_' + of])}/{two_digits(whole['spearman_' + of])}" for of in ("image", "pixel"))
    after = f" -> {halves['after']['ece']:.3f} with c = {halves['c']:.3g}" if "c" in halves else ", no c from one patient alone"
    return (f"Pearson/Spearman of map and residual {image} per image, {pixel} per pixel; "
            f"AUSE {found['sparsification']['ause']:.3f}; ECE {halves['before']['ece']:.3f}{after}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders that train.py has written (Table 1: one row each)")
    parser.add_argument("--data", help="folder, .h5 file or the word phantom, as for train.py; its evaluation set is used (Sec. 4.1)")
    parser.add_argument("--image", metavar="FILE", help="translate this picture instead (Sec. 4.4)")
    parser.add_argument("--out", default="evaluation", help="folder for table1.md, table1.csv, metrics.json and figures (Sec. 4.3)")
    parser.add_argument("--device", help="cuda, cpu or mps; default: cuda where there is one, else cpu")
    parser.error = fail
    args = parser.parse_args()
    if bool(args.data) == bool(args.image):
        fail("give either --data (a data set to judge by) or --image (one picture to translate).")
    run.reuse_freed_memory()
    device, out = run.pick_device(args.device), Path(args.out)
    if args.data:
        run.join_processes(device)
    runs = {Path(folder).resolve().name: load_run(folder, device) for folder in args.runs}
    if len(runs) < len(args.runs):
        fail("two of the runs have the same folder name, which names their row in the table; rename one.")
    if args.image:
        return translate_picture(args.image, runs, out, device)
    sizes = {config["size"] for _, config in runs.values()}
    if len(sizes) > 1:
        fail(f"the runs were trained at different sizes, {sorted(sizes)}; compare runs of one size.")
    slices = load(args.data, sizes.pop(), ("evaluation_input", "evaluation_target"))
    make_folder(out)
    if not len(slices.evaluation_target):
        draw_translations(out / "fig5_translations.png", runs, slices, device)
        print(f"no pairs, so no scores: wrote {out}/fig5_translations.png")
        return run.leave_processes()
    try:
        metrics = judge(runs, slices, out, device)
    except (MemoryError, RuntimeError) as error:
        if not run.is_out_of_memory(error):
            raise
        fail("out of memory: judge fewer runs at a time, or give --device cpu.")
    if metrics is None:
        return run.leave_processes()  # the first one writes
    # JSON has no word for NaN, nor for the infinite PSNR of equal images: null.
    valid = json.loads(json.dumps(metrics), parse_constant=lambda word: None)
    replace_file(out / "metrics.json", lambda place: place.write_text(json.dumps(valid, indent=2) + "\n"))
    print(write_table(table(metrics), out))
    for name, found in maps_of(metrics).items():
        print(f"{name}: {summary(found)}")
    print(f"wrote {out}/metrics.json, table1.md, table1.csv and figures")
    run.leave_processes()


if __name__ == "__main__":
    main()
