"""How good is a translation, and does it know where it is wrong? (Sec. 4.2-4.5)

    python evaluate.py RUN [RUN ...] --data DIR --out DIR     Table 1, metrics.json and the paper's figures
    python evaluate.py RUN --image FILE --out DIR             translates one picture

metrics.json: {"runs": {RUN: {"method", "scenarios": {"GN0": {"ssim", "psnr", ...}, ...}, "pcc_image", "pcc_pixel"}},
"copy_input": {"GN0": {...}, ...}}, SSIM times 100 as in Table 1, PSNR in dB. copy_input is the row of a "method" that
returns its input: a run that does not beat it has learned nothing.
"""
import argparse
import csv
import json
import os
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from torch.nn import functional as F

from data import fail, fit, load, make_folder, patient, picture_grid, progress, read_grey, to_unit
from nets import UNet
from train import load_checkpoint, pick_device

SCENARIOS = ("GN0", "GN5", "GN10", "GN20", "IP2", "IP5", "IP10")
BATCH = 32


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


def pearson(u, v):
    """Pearson correlation of two lists of numbers (Sec. 4.5), in [-1,1]; None where one of them is constant."""
    u, v = (torch.as_tensor(w, dtype=torch.float64).flatten() for w in (u, v))
    u, v = u - u.mean(), v - v.mean()
    return float((u * v).sum() / (u.norm() * v.norm())) if u.any() and v.any() else None


def two_digits(correlation):
    return "undefined" if correlation is None else f"{correlation:.2f}"


# ---------------------------------------------------------------- a run

def load_run(run, device):
    """RUN/ -> its generator and its configuration."""
    checkpoint = load_checkpoint(run, device)
    G = UNet(width=checkpoint["config"]["width"]).to(device)
    G.load_state_dict(checkpoint["G"])
    return G.eval(), checkpoint["config"]


@torch.no_grad()
def translate(G, x, device):
    """x [n,1,d,d] in grey levels -> image in [0,255] and scale, both in grey levels, on the CPU."""
    out = [[(part * 127.5).cpu() for part in G(to_unit(batch.to(device)))] for batch in x.split(BATCH)]
    image, scale = (torch.cat(parts) for parts in zip(*out))
    return image + 127.5, scale


def score(image, truth, patients):
    """SSIM x 100 and PSNR: mean over images, as in Table 1, and mean and standard deviation over the patients' means."""
    row = {}
    for name, values in (("ssim", 100 * ssim(image, truth)), ("psnr", psnr(image, truth))):
        values = values.double().numpy()
        people = np.array([values[patients == who].mean() for who in np.unique(patients)])
        row |= {name: float(values.mean()), f"{name}_patients_mean": float(people.mean()),
                f"{name}_patients_sd": float(people.std(ddof=1)) if len(people) > 1 else 0.0}
    return row


def correlate(image, scale, truth):
    """Sec. 4.5: how mean scale follows mean absolute residual over at most 512 random images, and pixel by pixel."""
    chosen = torch.randperm(len(image), generator=torch.Generator().manual_seed(0))[:512]
    residual, scale = (image - truth).abs()[chosen], scale[chosen]
    per_image = [part.mean(dim=(1, 2, 3)).tolist() for part in (residual, scale)]
    return {"pcc_image": pearson(*per_image), "pcc_pixel": pearson(residual, scale)}, per_image


# ---------------------------------------------------------------- Table 1 and the figures

def table(metrics):
    """metrics -> rows of Table 1, header first: method, then SSIM/PSNR of each scenario."""
    rows = [["run", *SCENARIOS]]
    for name, scenarios in [*((n, r["scenarios"]) for n, r in metrics["runs"].items()), ("copy of the input", metrics["copy_input"])]:
        rows.append([name, *(f"{scenarios[s]['ssim']:.2f}/{scenarios[s]['psnr']:.2f}" for s in SCENARIOS)])
    return rows


def write_table(rows, out):
    """table1.md and table1.csv; -> the markdown."""
    markdown = "\n".join("| " + " | ".join(row) + " |" for row in [rows[0], ["---"] * len(rows[0]), *rows[1:]]) + "\n"
    (out / "table1.md").write_text(markdown)
    with open(out / "table1.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return markdown


def plot(path, draw, size=(6, 4)):
    """One pair of axes, filled by draw(ax)."""
    figure = Figure(figsize=size, layout="constrained")
    draw(figure.subplots())
    figure.savefig(path, dpi=90)


def judge(runs, slices, out, device):
    """Every run on every scenario -> metrics; draws the figures of paired data on the way."""
    truth = torch.from_numpy(slices.evaluation_target).float().unsqueeze(1)
    patients = np.array([patient(name) for name in slices.names["evaluation_input"]])
    shown = np.linspace(0, len(truth) - 1, 6).round().astype(int)
    samples, scatter, metrics = {}, {}, {"runs": {}, "copy_input": {}}
    for name, (_, config) in runs.items():
        metrics["runs"][name] = {"method": config["method"], "scenarios": {}, "pcc_image": None, "pcc_pixel": None}
    for done, scenario in enumerate(SCENARIOS):
        x = perturb_all(slices.evaluation_input, scenario)
        metrics["copy_input"][scenario] = score(x, truth, patients)
        for k, (name, (G, config)) in enumerate(runs.items(), 1):
            image, scale = translate(G, x, device)
            row = metrics["runs"][name]
            row["scenarios"][scenario] = score(image, truth, patients)
            progress(done * len(runs) + k, len(SCENARIOS) * len(runs), "judging")
            if scenario == "GN0":
                samples[name] = image[shown]
                if config["method"] == "uapi":
                    correlation, scatter[name] = correlate(image, scale, truth)
                    row |= correlation
                    draw_residuals(out / f"fig6_8_{name}.png", x[shown], truth[shown], image[shown], scale[shown])
    draw_psnr(out / "fig2_3_psnr.png", metrics)
    draw_scatter(out / "fig7_9_scatter.png", metrics, scatter)
    rows = [[slices.evaluation_input[i], *(image[k] for image in samples.values()), truth[i]] for k, i in enumerate(shown)]
    picture_grid(out / "fig4_samples.png", rows, ["input", *samples, "ground truth"])
    return metrics


def draw_psnr(path, metrics):
    """Figures 2 and 3: PSNR over the seven scenarios."""
    def draw(ax):
        lines = {name: run["scenarios"] for name, run in metrics["runs"].items()} | {"copy of the input": metrics["copy_input"]}
        for name, scenarios in lines.items():
            ax.plot(SCENARIOS, [scenarios[s]["psnr"] for s in SCENARIOS], "o:" if name == "copy of the input" else "o-", label=name)
        ax.set(ylabel="PSNR [dB]")
        ax.legend()
    plot(path, draw)


def draw_residuals(path, x, truth, image, scale):
    """Figures 6 and 8: where the residual is and where the scale says it is."""
    residual = (image - truth).abs()
    tops = float(residual.quantile(0.999)), float(scale.quantile(0.999))
    rows = [[x[i], truth[i], image[i], (residual[i], tops[0]), (scale[i], tops[1])] for i in range(len(x))]
    picture_grid(path, rows, ["input", "ground truth", "prediction", "abs. residual [grey levels]", "scale [grey levels]"])


def draw_scatter(path, metrics, scatter):
    """Figures 7 and 9: mean absolute residual against mean scale, one point an image."""
    def draw(ax):
        for name, (residual, scale) in scatter.items():
            ax.plot(residual, scale, ".", alpha=.6, label=f"{name}, Pearson {two_digits(metrics['runs'][name]['pcc_image'])}")
        ax.set(xlabel="mean absolute residual [grey levels]", ylabel="mean scale [grey levels]")
        ax.legend()
    if scatter:
        plot(path, draw, size=(5, 4))


def draw_translations(path, runs, slices, device):
    """Figure 5: data without pairs, so there is nothing to score; the translations alone."""
    shown = np.linspace(0, len(slices.evaluation_input) - 1, 6).round().astype(int)
    x = torch.from_numpy(slices.evaluation_input[shown]).float().unsqueeze(1)
    images = [translate(G, x, device)[0] for G, _ in runs.values()]
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
        image, scale = map(own_size, translate(G, x, device))
        stem = out / f"{Path(path).stem}_{name}"
        Image.fromarray(np.rint(image).astype(np.uint8)).save(f"{stem}_translation.png")
        print(f"wrote {stem}_translation.png")
        if config["method"] == "uapi":
            np.save(f"{stem}_scale.npy", scale)
            Image.fromarray(np.rint(scale * 255 / scale.max()).astype(np.uint8)).save(f"{stem}_scale.png")
            print(f"wrote {stem}_scale.npy (grey levels) and {stem}_scale.png (white is {scale.max():.1f} grey levels)")


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
    device, out = pick_device(args.device), Path(args.out)
    runs = {Path(run).resolve().name: load_run(run, device) for run in args.runs}
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
        return print(f"no pairs, so no scores: wrote {out}/fig5_translations.png")
    metrics = judge(runs, slices, out, device)
    (out / "metrics.json.tmp").write_text(json.dumps(metrics, indent=2) + "\n")
    os.replace(out / "metrics.json.tmp", out / "metrics.json")
    print(write_table(table(metrics), out))
    for name, run in metrics["runs"].items():
        if run["method"] == "uapi":
            per_image, per_pixel = two_digits(run["pcc_image"]), two_digits(run["pcc_pixel"])
            print(f"{name}: Pearson of scale and absolute residual {per_image} per image, {per_pixel} per pixel")
    print(f"wrote {out}/metrics.json, table1.md, table1.csv and figures")


if __name__ == "__main__":
    main()
