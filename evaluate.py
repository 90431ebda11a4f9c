"""How good is a translation, and does it know where it is wrong? (Sec. 4.2-4.5)

    python evaluate.py runs/uapi runs/pi --data ixi_slices/ --out evaluation

Runs are scored on pairs: Table 1 and figures. Without pairs their translations
are written, as by translate.py. Where no scale was trained, as with --lam 0,
none is drawn or scored. uncertainty.py explains what is asked of a scale.
"""
import json
import os
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.nn import functional as F

import run
from baselines import trains_scale
from data import SET_FOLDERS, load, patient, picture_grid, save_figure, six_indices
from translate import BATCH, load_run, translate, write_translations
from uncertainty import (correlate, expected_residual, plot_order_and_size, reliability,
                         sparsification, two_digits)

METRICS = """metrics.json, null for undefined or infinite:
  {"runs": {RUN: {"method", "scenarios": {"GN0": {"ssim", "psnr", ...}, ...},
                  "displacement", "pcc_image", "pcc_pixel", "uncertainty"}},
   "copy_input": {"GN0": {...}, ...}}
SSIM times 100, PSNR in dB. "copy_input" returns its input. "ssim_head" leaves
out air. "displacement", on GN0: how many pixels translations lie too low and
too far right, and SSIM with that undone. "pcc_image" (Sec. 4.5), "pcc_pixel":
Pearson of residual and scale over images and pixels. "uncertainty": all that
uncertainty.py asks, on GN0 and at most 512 images."""
SCENARIOS = ("GN0", "GN5", "GN10", "GN20", "IP2", "IP5", "IP10")
HEAD = 6  # grey levels of the truth; air, where every method loses the same SSIM, has less
FOREGROUND = 25.5  # truth above 10 % of the range; dark air would inflate correlations


# ---------------------------------------------------------------- Sec. 4.2: metrics

def psnr(a, b, data_range=255.0):
    """Returns the peak signal-to-noise ratio of each image (Sec. 4.2).

    PSNR = 10 log10( data_range^2 / mean_j (a_j - b_j)^2 )

    a, b [n,1,h,w] in [0,data_range] -> [n] in dB, infinite where a = b. Average it over images
    afterwards. The released code pools the squared error over all images: another number.
    """
    return 10 * torch.log10(data_range ** 2 / (a - b).square().mean(dim=(1, 2, 3)))


def ssim_windows(a, b, data_range=255.0):
    """Returns the structural similarity in every window (Sec. 4.2, Wang et al. 2004).

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
    """Returns the structural similarity of each image (Sec. 4.2): the mean over its windows.

    a, b [n,1,h,w] in [0,data_range] -> [n] in [-1,1]. The released 7x7x7 windows cross images.
    """
    return ssim_windows(a, b, data_range)[0].mean(dim=(1, 2, 3))


def ssim_head(translation, truth):
    """Returns SSIM without air (ours), over all images' windows in which the truth's Gaussian mean
    is at least HEAD: [n,1,h,w] in [0,255] -> one number, None where there is no such window."""
    def inside(a, b):
        similarity, mean = ssim_windows(a, b)
        return similarity[mean >= HEAD]
    windows = in_batches(inside, translation, truth)
    return float(windows.mean()) if len(windows) else None


def in_batches(metric, translation, truth):
    """Returns what metric(a, b) gives for all images, float64. SSIM's windows of all images at once
    would take twenty times their memory."""
    pairs = zip(translation.split(BATCH), truth.split(BATCH))
    return torch.cat([metric(a, b) for a, b in pairs]).double()


# ---------------------------------------------------------------- Sec. 4.2: test scenarios

def perturb(x, scenario, generator=None):
    """Perturbs images as a test scenario of Sec. 4.2, on grey levels.

    GNk: clip(x + N(0, (k/100 * 255)^2), 0, 255).   IPk: with probability k/100 a pixel is U[0,255].

    x [n,1,h,w] in [0,255] -> same shape and range, x itself for GN0. The paper does not say that
    GN is clipped; that is ours. ValueError for another name.
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
    """Perturbs uint8 [n,h,w] -> float32 [n,1,h,w]. Every image has a seed of its own, so that all
    methods see the same noise, whatever the batch."""
    first, x = 100_000 * SCENARIOS.index(scenario), torch.from_numpy(images).float().unsqueeze(1)
    return torch.cat([perturb(image, scenario, torch.Generator().manual_seed(first + i))
                      for i, image in enumerate(x.split(1))])


# ---------------------------------------------------------------- Sec. 4.3: Table 1

def score(translation, truth, patients):
    """Returns SSIM x 100 and PSNR: the mean over images, and mean and deviation over the patients'
    means. It runs on the CPU: CUDA may round to TF32, which moves SSIM by 0.3 points."""
    head = ssim_head(translation, truth)
    row = {"ssim_head": None if head is None else 100 * head}
    for name, metric, unit in (("ssim", ssim, 100), ("psnr", psnr, 1)):
        values = unit * in_batches(metric, translation, truth).numpy()
        means = torch.tensor([values[patients == who].mean() for who in np.unique(patients)])
        row |= {name: float(values.mean()), f"{name}_patients_mean": float(means.mean()),
                f"{name}_patients_sd": float(means.std()) if len(means) > 1 else None}
    return row


def scores_of(metrics):
    scores = {name: row["scenarios"] for name, row in metrics["runs"].items()}
    return scores | {"copy of the input": metrics["copy_input"]}


def table(metrics):
    """Writes Table 1 in markdown: run, then SSIM/PSNR of each scenario."""
    rows = [["run", *SCENARIOS], ["---"] * (1 + len(SCENARIOS))]
    for name, row in scores_of(metrics).items():
        scores = (f"{row[s]['ssim']:.2f}/{row[s]['psnr']:.2f}" for s in SCENARIOS)
        rows.append([run.printable(name), *scores])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


# ---------------------------------------------------------------- Sec. 4.3, 4.4: Figures 2-5

def line_style(metrics, name):
    """Gives a row its colour and marker, the same in every figure."""
    if name not in metrics["runs"]:
        return {"color": "black", "marker": "x", "linestyle": ":"}
    k = list(metrics["runs"]).index(name)
    return {"color": f"C{k % 10}", "marker": "osD^v<>P*"[k % 9], "markersize": 5}


def plot_psnr(path, metrics):
    """Draws Figures 2 and 3: PSNR over the seven scenarios."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    ax = figure.subplots()
    for name, row in scores_of(metrics).items():
        values = [row[s]["psnr"] for s in SCENARIOS]
        ax.plot(SCENARIOS, values, label=run.label(name), **line_style(metrics, name))
    ax.set_ylabel("PSNR [dB]")
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1))
    save_figure(path, figure, "Higher is better. A good curve lies well above the dotted one and "
                "falls little with noise: GNk is Gaussian noise of k %, IPk has k % random pixels.")


def plot_translations(path, x, translations, truth=None):
    """Draws Figure 4, without truth Figure 5: six pictures each, translations by the run's name."""
    columns = [("input", x), *((run.label(name), image) for name, image in translations.items())]
    columns += [] if truth is None else [("truth", truth)]
    picture_grid(path, columns, caption="A good translation has the input's anatomy, down to small "
                                        "structures, and the target's contrast.")


# ---------------------------------------------------------------- Sec. 4.5: Figures 6-9

def choose_512(n):
    """Returns 512 indices of n, as Sec. 4.5 does, or all, in a random order, always the same."""
    return torch.randperm(n, generator=torch.Generator().manual_seed(0))[:512].numpy()


def middle_slices(patients):
    """Returns the index of the middle slice of each of the first four patients."""
    own = [np.flatnonzero(patients == who) for who in dict.fromkeys(patients)]
    return [indices[len(indices) // 2] for indices in own[:4]]


def plot_residuals(path, x, translation, truth, scale, patients):
    """Draws Figures 6 and 8: the residual and, of runs with a scale, the scale beside it. One row
    is one patient; [n,1,d,d] each."""
    scores = zip(patients, 100 * ssim(translation, truth), psnr(translation, truth))
    labels = [f"{run.label(who)}\nSSIM {s:.1f}\nPSNR {p:.1f} dB" for who, s, p in scores]
    columns = [("input\n$x$", x), ("translation\n$G(x)$", translation), ("truth", truth),
               ("residual\n|G(x) - truth|", (translation - truth).abs())]
    caption = "The residual should be dark."
    if scale is not None:
        columns.append(("scale\n(expected)", scale))
        caption = ("A good scale is bright where the residual is bright. One colour bar holds for "
                   "both.")
    picture_grid(path, columns, len(columns) - 3, caption, labels=labels)


def plot_scatter(path, metrics, points):
    """Draws Figures 7 and 9: mean scale against mean residual, a point an image, a panel a run."""
    figure = Figure(figsize=(4 * len(points), 4.3), layout="constrained")
    axes = figure.subplots(1, len(points), squeeze=False)[0]
    for (name, means), ax in zip(points.items(), axes):
        whole = metrics["runs"][name]["uncertainty"]["correlation"]["whole"]
        ax.plot(*means, **line_style(metrics, name) | {"linestyle": "none", "alpha": .6})
        ax.set(xlabel="mean residual [grey levels]", ylabel="mean scale [grey levels]")
        ax.set_title(f"{run.label(name)}\nPearson {two_digits(whole['pearson_image'])}, "
                     f"Spearman {two_digits(whole['spearman_image'])}", fontsize=10)
    save_figure(path, figure, "One point is one image, its dark air included. A good scale rises "
                "with the residual: the points lie along a rising line.")


# ---------------------------------------------------------------- beyond the paper

def moved(images, down, right):
    """Moves images [n,1,h,w] in [0,255] by fractions of a pixel: a Fourier shift, clamped, since
    interpolation would blur, and blur alone changes SSIM."""
    rows, columns = (torch.fft.fftfreq(n, dtype=torch.float64) for n in images.shape[2:])
    turn = torch.exp(-2j * torch.pi * (down * rows[:, None] + right * columns))
    return torch.fft.ifft2(torch.fft.fft2(images.double()) * turn).real.clamp(0, 255)


def displacement(translation, truth, rounds=5):
    """Finds how far a run's translations lie from where they should: Eq. 5 does not hold them.

    truth = c T(. + off) + constant = c T + g . grad T + constant  to first order, off = g / c

    in least squares over all images. T is the translation, moved back by what the rounds before
    have found. [n,1,h,w] in [0,255] -> pixels down and to the right, and the translation moved
    back; None twice where T is constant, or where no off inside the image is found.
    """
    off, T = torch.zeros(2, dtype=torch.float64), translation.double()
    for _ in range(rounds):
        gram = torch.zeros(5, 5, dtype=torch.float64)
        for part, goal in zip(T.split(BATCH), truth.double().split(BATCH)):
            gradient = torch.gradient(part, dim=(2, 3))
            columns = torch.stack([part, *gradient, torch.ones_like(part), goal]).flatten(1)
            gram += columns @ columns.T
        if not gram[1, 1] * gram[2, 2]:
            return None, None
        c, *g, _ = torch.linalg.lstsq(gram[:4, :4], gram[:4, 4], driver="gelsd").solution
        off = off + torch.stack(g) / c
        if not off.isfinite().all() or off.abs().max() > min(truth.shape[2:]):
            return None, None
        T = torch.cat([moved(part, *-off) for part in translation.split(BATCH)])
    return off.tolist(), T.float()


def score_in_place(translation, truth):
    """Returns displacement() and SSIM with that undone; None where it is undefined."""
    off, moved_back = displacement(translation, truth)
    return off and {"down": off[0], "right": off[1],
                    "ssim": 100 * float(in_batches(ssim, moved_back, truth).mean())}


def score_map(translation, alpha, beta, truth):
    """Returns what metrics.json says about one map, and each image's mean residual and scale.
    [n,1,h,w] in grey levels but for beta."""
    residual, scale = (translation - truth).abs(), expected_residual(alpha, beta)
    regions = {"whole": torch.ones_like(truth, dtype=torch.bool), "foreground": truth > FOREGROUND}
    correlation = {name: correlate(residual, scale, inside) for name, inside in regions.items()}
    row = {"pcc_image": correlation["whole"]["pearson_image"],
           "pcc_pixel": correlation["whole"]["pearson_pixel"],
           "uncertainty": {"correlation": correlation,
                           "sparsification": sparsification(residual, scale),
                           "reliability": reliability(residual, alpha, beta)}}
    return row, [v.mean(dim=(1, 2, 3)).tolist() for v in (residual, scale)]


def plot_uncertainty(path, metrics):
    """Draws the curves behind AUSE and ECE."""
    figure = plot_order_and_size(
        (run.label(name), about["sparsification"], about["reliability"], line_style(metrics, name))
        for name, row in metrics["runs"].items() if (about := row["uncertainty"]))
    save_figure(path, figure, "Left: pixels of largest scale are removed first. A good curve falls "
                "like its oracle (dotted), which removes the largest residuals first. AUSE is the "
                "area between them divided by the first value. Right: how often an interval "
                "around the translation holds the truth, and how often it should. Below the "
                "diagonal the scale is too small. ECE is the mean distance from it. Both are 0 at "
                "best.")


# ---------------------------------------------------------------- the program

def evaluate_runs(runs, slices, out, device):
    """Scores every run on every scenario -> metrics; draws the figures on the way."""
    truth = torch.from_numpy(slices.evaluation_target).float().unsqueeze(1)
    patients = np.array([patient(name) for name in slices.names["evaluation_input"]])
    six, middle, chosen = (six_indices(len(truth)), middle_slices(patients),
                           choose_512(len(truth)))
    translations, points, metrics = {}, {}, {"runs": {}, "copy_input": {}}
    for done, scenario in enumerate(SCENARIOS):
        x = perturb_all(slices.evaluation_input, scenario)
        metrics["copy_input"][scenario] = score(x, truth, patients)
        for k, (name, (G, config)) in enumerate(runs.items(), 1):
            translation, alpha, beta = translate(G, x, device)
            row = metrics["runs"].setdefault(name, {"method": config["method"], "scenarios": {}})
            row["scenarios"][scenario] = score(translation, truth, patients)
            run.progress(done * len(runs) + k, len(SCENARIOS) * len(runs), "evaluating")
            if scenario != "GN0":
                continue
            translations[name], scale = translation[six], None
            row |= {"displacement": score_in_place(translation, truth), "pcc_image": None,
                    "pcc_pixel": None, "uncertainty": None}
            if trains_scale(config):
                about, points[name] = score_map(*(v[chosen] for v in (translation, alpha, beta,
                                                                      truth)))
                row |= about
                scale = expected_residual(alpha[middle], beta[middle])
            plot_residuals(out / f"fig6_8_{name}.png", x[middle], translation[middle],
                           truth[middle], scale, patients[middle])
    plot_psnr(out / "fig2_3_psnr.png", metrics)
    plot_translations(out / "fig4_samples.png", slices.evaluation_input[six], translations,
                      truth[six])
    if points:
        plot_scatter(out / "fig7_9_scatter.png", metrics, points)
        plot_uncertainty(out / "uncertainty.png", metrics)
    return metrics


def summary(row):
    """Returns lines about one run: its displacement and what its scale knows. The foreground leaves
    out dark air, which flatters a scale."""
    off, about = row["displacement"], row["uncertainty"]
    head = two_digits(row["scenarios"]["GN0"]["ssim_head"])
    lies = "lies {down:+.2f} pixels down, {right:+.2f} right, SSIM {ssim:.2f} with that undone"
    lines = [f"SSIM in the head {head}; {lies.format(**off) if off else 'displacement undefined'}"]
    for region, numbers in about["correlation"].items() if about else ():
        image, image_ranks, pixel, pixel_ranks = map(two_digits, numbers.values())
        lines.append(f"Pearson/Spearman of scale and residual, {region}: {image}/{image_ranks} per "
                     f"image, {pixel}/{pixel_ranks} per pixel")
    if about:
        lines.append(f"AUSE {about['sparsification']['ause']:.3f}; "
                     f"ECE {about['reliability']['ece']:.3f}")
    return "\n  ".join(lines)


def evaluate_pairs(runs, slices, out, device):
    """Scores runs on pairs, writes and prints Table 1."""
    metrics = evaluate_runs(runs, slices, out, device)
    # JSON has no word for NaN, nor for the infinite PSNR of equal images: null.
    valid = json.loads(json.dumps(metrics), parse_constant=lambda word: None)
    for name, text in (("metrics.json", json.dumps(valid, indent=2) + "\n"),
                       ("table1.md", table(metrics))):
        run.replace_file(out / name, lambda new: new.write_text(text, encoding="utf-8"))
    print(table(metrics))
    for name, row in metrics["runs"].items():
        print(f"{run.printable(name)}: {summary(row)}")
    print(f"wrote {out}/metrics.json, table1.md and figures")


def translate_unpaired(runs, slices, out, device):
    """Draws Figure 5 and writes every translation: without pairs there is nothing to score."""
    names, six = slices.names["evaluation_input"], six_indices(len(slices.evaluation_input))
    if len(set(names)) < len(names) or any(not n or Path(n).name != n or "\0" in n for n in names):
        run.fail("the names in evaluation_input_names cannot name files, or two are equal.")
    x = torch.from_numpy(slices.evaluation_input[six]).float().unsqueeze(1)
    translations = {name: translate(G, x, device)[0] for name, (G, _) in runs.items()}
    write_translations(zip(names, slices.evaluation_input), runs, out, device)
    plot_translations(out / "fig5_translations.png", x, translations)
    print(f"no pairs, so no scores: wrote {out}/fig5_translations.png")


@run.memory_may_run_out("evaluate fewer runs or pairs at a time, or give --device cpu")
def main():
    parser = run.make_parser(__doc__, epilog=METRICS)
    flag = parser.add_argument
    flag("runs", nargs="+", metavar="RUN", help="folders that train.py has written")
    flag("--data", required=True, metavar="DIR",
         help="folder, .h5 file or the word phantom (Sec. 4.1)")
    flag("--out", default="evaluation", metavar="DIR", help="default: evaluation (Sec. 4.3)")
    flag("--device", help="cuda, cpu or mps; default: cuda where there is one, else cpu")
    args = parser.parse_args()
    run.reuse_freed_memory()
    device, out = run.pick_device(args.device), Path(args.out)
    inside = {(Path(args.data) / name).resolve() for name in SET_FOLDERS}
    if inside & {out.resolve(), *out.resolve().parents}:
        run.fail(f"--out {out}: lies in a folder of slices of --data; choose another --out.")
    runs = {Path(folder).resolve().name: load_run(folder, device) for folder in args.runs}
    if len(runs) < len(args.runs):
        run.fail("two of the runs have the same folder name, which names their rows; rename one.")
    sizes = {config["size"] for _, config in runs.values()}
    if len(sizes) > 1:
        run.fail(f"the runs have different sizes, {sorted(sizes)}; compare runs of one size.")
    slices = load(args.data, sizes.pop(), ("evaluation_input", "evaluation_target"))
    own = {f"fig6_8_{name}.png" for name in runs}
    if any(trains_scale(config) for _, config in runs.values()):
        own.add("fig7_9_scatter.png")
    others = {path.name for path in out.glob("fig[67]_*")} - own  # they would stay beside ours
    if others and len(slices.evaluation_target):
        run.fail(f"--out {out}: holds scores of other runs, {min(others)}; choose another --out.")
    run.make_folder(out)
    for name, (_, config) in runs.items():
        trained_on, scored_on = (os.path.abspath(data) for data in (config["data"], args.data))
        if Path(trained_on).name != Path(scored_on).name:
            print(f"note: {name} was trained on {config['data']}, and is scored on {args.data}")
    evaluate = evaluate_pairs if len(slices.evaluation_target) else translate_unpaired
    evaluate(runs, slices, out, device)


if __name__ == "__main__":
    run.start(main)
