"""The record of experiment.sh: lays out its slices, keeps its scores, chooses lam, draws.

    python results/experiment.py layout DATA    every fourth slice, and the pairs in two parts
    python results/experiment.py tables         prints the tables of results/README.md
    python results/experiment.py figures        draws scenarios.png and lam.png beside this file
    python results/experiment.py one_slice      draws methods.png there from the networks in runs/

The other commands are experiment.sh's own: has, add, best, beyond, large_lam, even, references.
experiment.json has a row a run. "search" and "recipe" rows are scores on three patients, who
choose; all others are scores on five more, who report.
"""
import json
import os
import shutil
import sys
from collections import defaultdict
from math import nan
from pathlib import Path
from statistics import fmean, stdev

HERE = Path(__file__).resolve().parent
sys.path.append(str(HERE.parent))
JSON = HERE / "experiment.json"
CHOOSING = ("IXI017", "IXI300", "IXI537")
REPORTING = ("IXI288", "IXI293", "IXI318", "IXI342", "IXI626")  # the authors have seven more
SHOWN = REPORTING[0]  # whose middle slice methods.png shows
SCENARIOS = ("GN0", "GN5", "GN10", "GN20", "IP2", "IP5", "IP10")
METHODS = ("uapi", "pi", "cyclegan", "gcgan", "ugac", "uagc", "cut")
GROUPS = (*METHODS, "lam0", "even", "other_seeds_uapi")  # of three seeds each; the last: 10 to 12
SEARCHING = 3  # exit code: another process has not finished this search, or these runs
PAPER = {  # Table 1, IXI: SSIM, then PSNR, in the order of SCENARIOS
    "uapi": ((79.99, 78.76, 74.49, 62.24, 77.44, 74.29, 69.35),
             (22.62, 22.20, 21.70, 20.34, 21.93, 21.56, 21.14)),
    "pi": ((82.53, 69.82, 51.90, 36.96, 54.85, 44.10, 38.73),
           (22.18, 21.49, 20.64, 19.26, 20.92, 20.24, 19.70)),
    "cyclegan": ((78.99, 77.04, 72.53, 63.87, 69.81, 64.51, 60.08),
                 (20.90, 20.71, 20.14, 19.19, 20.39, 19.99, 19.50)),
    "gcgan": ((81.00, 76.51, 69.96, 57.75, 73.79, 69.24, 63.91),
              (21.52, 20.66, 19.50, 17.90, 20.30, 19.55, 18.78)),
    "ugac": ((79.31, 77.24, 72.53, 64.03, 70.15, 64.88, 61.01),
             (21.21, 21.05, 20.43, 19.37, 20.68, 20.22, 19.78)),
    "cut": ((78.67, 76.10, 71.43, 61.27, 74.11, 71.78, 68.97),
            (21.15, 21.22, 20.58, 19.67, 21.19, 20.94, 20.65))}


def read():
    return json.loads(JSON.read_text()) if JSON.exists() else {}


def write(rows):
    temporary = JSON.with_suffix(".tmp")
    temporary.write_text(json.dumps(dict(sorted(rows.items())), indent=1) + "\n")
    os.replace(temporary, JSON)


# ---------------------------------------------------------------- slices

def every_fourth(paths):
    """Every fourth slice of each patient, the part before the first underscore; a patient with
    at most 40 files was thinned out before."""
    patients = defaultdict(list)
    for path in sorted(paths):
        patients[path.name.split("_")[0]].append(path)
    return [path for own in patients.values() for path in (own[::4] if len(own) > 40 else own)]


def layout(data):
    """fourth_slices/ to train on, choose_slices/ and report_slices/ with pairs of others."""
    from run import fail
    read()  # a damaged record should end the script here
    data = Path(data)
    people = {path.name[:6] for path in data.glob("evaluation/*")}
    if lacking := {*CHOOSING, *REPORTING} - people:
        fail(f"{data}/evaluation lacks {', '.join(sorted(lacking))}; give the authors' IXI sample.")
    jobs = [(path, Path("fourth_slices") / pile / path.name)
            for pile in ("input", "target") for path in every_fourth((data / pile).iterdir())]
    for end in ("_input", "_target"):
        halves = [path for path in (data / "evaluation").iterdir() if path.stem.endswith(end)]
        for path in every_fourth(halves):
            for part, people in (("choose", CHOOSING), ("report", REPORTING)):
                if path.name.startswith(people):
                    jobs.append((path, Path(f"{part}_slices") / "evaluation" / path.name))
    found = (path for part in ("fourth", "choose", "report")
             for path in Path(f"{part}_slices").glob("*/*") if path.suffix != ".tmp")
    if others := set(found).difference(goal for _, goal in jobs):
        fail(f"{min(others)} does not come from {data}; move {min(others).parts[0]} away.")
    for source, goal in jobs:
        if not goal.exists():
            goal.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, goal.with_suffix(".tmp"))
            os.replace(goal.with_suffix(".tmp"), goal)


# ---------------------------------------------------------------- rows

def stages(config):
    """A run's settings and those of the runs that it began from, the first stage last."""
    out = [config]
    while out[-1]["init"]:
        out.append(json.loads((Path(out[-1]["init"]) / "config.json").read_text()))
    return out


def pairs(part, size):
    """The pairs of one part: inputs and truths, float [n,1,d,d] in grey levels, and names."""
    import torch
    from data import load
    slices = load(f"{part}_slices", size, ("evaluation_input", "evaluation_target"))
    x, y = (torch.from_numpy(images).float().unsqueeze(1) for images in slices[2:4])
    return x, y, slices.names["evaluation_input"]


def fluid(images, x, y):
    """Mean grey level where T1 is dark and T2 bright: in the fluid of ventricles and sulci."""
    return float(images[(x < 70) & (y > 130)].mean())


def translated(folder, x):
    """What translate() returns of a run's G: translation, alpha and beta."""
    from translate import load_run, translate
    return translate(load_run(folder, "cpu")[0], x, "cpu")


def without_air(x, y, translation, alpha, beta):
    """What a map knows where the truth isn't dark: AUSE, that of a constant map, and the share of
    the pixels that its 85 % intervals hold. In the whole image: the AUSE of x, taken as a map."""
    import torch
    from evaluate import FOREGROUND
    from uncertainty import expected_residual, probability, sparsification
    residual, inside = (translation - y).abs(), y > FOREGROUND
    scale, held = expected_residual(alpha, beta), probability(residual, alpha, beta) <= .85
    return {"ause": sparsification(residual[inside], scale[inside])["ause"],
            "constant": sparsification(residual[inside], torch.ones(int(inside.sum())))["ause"],
            "held_by_85": float(held[inside].double().mean()),
            "ause_of_x_with_air": sparsification(residual, x)["ause"]}


def add(row, run, part):
    """Adds runs/RUN with its scores on one part of the pairs as a row."""
    folder = Path("runs") / run
    config = json.loads((folder / "config.json").read_text())
    metrics = json.loads((folder / part / "metrics.json").read_text())
    scores, = metrics["runs"].values()
    logs = [[json.loads(line) for line in (Path(c["out"]) / "log.jsonl").open()]
            for c in stages(config)]
    late = [r["scale_mean"] for r in logs[0] if r["step"] > 0.9 * config["updates"]]
    x, y, _ = pairs(part, config["size"])
    translation, alpha, beta = translated(folder, x)
    rows = read()
    rows[row] = {
        "method": config["method"], "seed": config["seed"], "pairs": part,
        "lams": [c["lam"] for c in stages(config)][::-1], "bf16": config["bf16"],
        "minutes": [round(log[-1]["seconds"] / 60, 1) for log in logs][::-1],
        "scale": fmean(late) if late and None not in late else None,
        "fluid": fluid(translation, x, y),
        "without_air": scores["uncertainty"] and without_air(x, y, translation, alpha, beta),
        **scores}
    rows[f"copy_{part}_{config['size']}"] = {"scenarios": metrics["copy_input"], "pairs": part}
    write(rows)


def gn0(row):
    return row["scenarios"]["GN0"]


def lams(rows, method):
    """{lam: its rows} of a method's search, in ascending order, for lams with both seeds."""
    found = defaultdict(list)
    for name, row in rows.items():
        if name.startswith(f"search_{method}_"):
            found[row["lams"][-1]].append(row)
    return {lam: own for lam, own in sorted(found.items()) if len(own) == 2}


def best(rows, method):
    """The lam of highest mean SSIM on GN0; of those within one point, that of highest PSNR."""
    means = {lam: (fmean(gn0(r)["ssim"] for r in own), fmean(gn0(r)["psnr"] for r in own))
             for lam, own in lams(rows, method).items()}
    top = max(ssim for ssim, _ in means.values())
    return max((psnr, lam) for lam, (ssim, psnr) in means.items() if ssim >= top - 1)[1]


def beyond(rows, method):
    """The lam that lies a factor of four beyond the first three, where the best is at an end."""
    first = list(lams(rows, method))
    if len(first) != 3:
        return ""
    return {first[0]: f"{first[0] / 4:g}", first[2]: f"{first[2] * 4:g}"}.get(
        best(rows, method), "")


def large_lam(method, lam):
    """At 128x128: twice that of 64x64, since the adversarial gradient falls as 1/d and the patch
    loss's as 1/d^2; cut's contrast has no such d."""
    return f"{float(lam) * (1 if method == 'cut' else 2):g}"


def even(rows):
    """UAPI's lam over its mean scale of three seeds, both at 128x128, where PI's patch loss then
    weighs as UAPI's -> the lam for 64x64, half of that."""
    own = [rows[f"uapi_{seed}"] for seed in range(3)]
    return f"{own[0]['lams'][-1] / fmean(row['scale'] for row in own) / 2:.0f}"


def references():
    """What copying scores, and the truth, slightly changed, on the pairs that report, at 128."""
    import torch
    from torch.nn.functional import avg_pool2d, pad
    from evaluate import psnr, ssim, ssim_head, ssim_windows

    x, y, _ = pairs("report", 128)
    changed = {"copy of the input": x, "one pixel lower": y.roll(1, 2),
               "one pixel to the right": y.roll(1, 3),
               "mean of 3x3": avg_pool2d(pad(y, (1, 1, 1, 1), mode="replicate"), 3, 1),
               "air set to 0": torch.where(y < 6, 0, y)}
    found = {name: {"ssim": 100 * float(ssim(v, y).mean()), "psnr": float(psnr(v, y).mean()),
                    "ssim_head": 100 * ssim_head(v, y)} for name, v in changed.items()}
    found |= {"air": float((ssim_windows(y, y)[1] < 6).float().mean()),
              "fluid": {"input": fluid(x, x, y), "truth": fluid(y, x, y)}}
    write(read() | {"references": found})


# ---------------------------------------------------------------- tables and figures

def groups(rows):
    """{name: its rows} of all runs that report, by method or experiment, three seeds each."""
    found = defaultdict(list)
    for name, row in rows.items():
        group, _, seed = name.rpartition("_")
        if row.get("pairs") == "report" and seed.isdigit() and "seed" in row:
            found[group].append(row)
    return {group: found[group] for group in GROUPS if len(found[group]) == 3}


def fail_unless_compared(found):
    """Ends the program where experiment.sh has not come as far as the first comparison."""
    from run import fail
    if lacking := {"other_seeds_uapi", "uapi", "pi"} - found.keys():
        fail(f"{JSON} has no three seeds yet of {', '.join(sorted(lacking))}; let experiment.sh "
             "make them.")


def spread(values, digits=2):
    """Mean and standard deviation over seeds; a dash where a run has no such number."""
    if None in values:
        return "-"
    return f"{fmean(values):.{digits}f} ({stdev(values):.{digits}f})"


def both_scores(own, scenario):
    scores = [row["scenarios"][scenario] for row in own]
    return "/".join(spread([score[metric] for score in scores]) for metric in ("ssim", "psnr"))


def ause(row):
    return row["uncertainty"] and row["uncertainty"]["sparsification"]["ause"]


def pair(score):
    return f"{score['ssim']:.2f}/{score['psnr']:.2f}"


def main_table(rows):
    lines = [["run", "lam", "minutes", "GN0", "GN20", "IP10", "in the head", "fluid",
              "down", "Pearson", "AUSE"]]
    for group, own in groups(rows).items():
        lines.append([group, f"{own[0]['lams'][0]:g}, {own[0]['lams'][-1]:g}",
                      f"{fmean(sum(row['minutes']) for row in own):.0f}",
                      *(both_scores(own, scenario) for scenario in ("GN0", "GN20", "IP10")),
                      spread([gn0(row)["ssim_head"] for row in own]),
                      spread([row["fluid"] for row in own], 0),
                      spread([row["displacement"] and row["displacement"]["down"] for row in own]),
                      spread([row["pcc_image"] for row in own]),
                      spread([ause(row) for row in own], 3)])
    copy = rows["copy_report_128"]["scenarios"]
    scores = [pair(copy[scenario]) for scenario in ("GN0", "GN20", "IP10")]
    head = rows["references"]["copy of the input"]["ssim_head"]
    dark = f"{rows['references']['fluid']['input']:.0f}"
    return lines + [["copy of the input", "-", "-", *scores, f"{head:.2f}", dark, *"---"]]


def all_scores(own):
    """SSIM and PSNR in each of SCENARIOS: 14 lists, a score a seed."""
    return [[row["scenarios"][scenario][metric] for row in own]
            for metric in ("ssim", "psnr") for scenario in SCENARIOS]


def above(a, b):
    """Says whether the mean of a is ranked above that of b: by twice the larger deviation."""
    return fmean(a) - fmean(b) > 2 * max(stdev(a), stdev(b))


def ranks(ours, theirs):
    """How many of our 14 means are ranked above theirs, and how many of theirs above ours."""
    both = [*zip(all_scores(ours), all_scores(theirs))]
    return f"+{sum(above(a, b) for a, b in both)}/-{sum(above(b, a) for a, b in both)}"


def rank_table(rows):
    """UAPI against each other group: how often it is above with equal seeds, and its ranks by its
    seeds 0 to 2, by its other three, and by all six."""
    lines = [["against", "above, of 42", "seeds 0 to 2", "10 to 12", "all six"]]
    found = groups(rows)
    ours, others = found.pop("uapi"), found.pop("other_seeds_uapi")
    for group, theirs in found.items():
        above = sum(a > b for scores in zip(all_scores(ours), all_scores(theirs))
                    for a, b in zip(*scores))
        lines.append([group, f"{above}", *(ranks(seeds, theirs)
                                           for seeds in (ours, others, ours + others))])
    return lines


def recipe_table(rows):
    own = [rows[name] for name in sorted(rows) if name.startswith("recipe_uapi_")]
    return [["seed", "SSIM/PSNR of three people", "of five others"]] + [
        [f"{row['seed']}", pair(gn0(row)), pair(gn0(rows[f"other_seeds_uapi_{row['seed']}"]))]
        for row in own]


def lam_table(rows):
    """A line a method: each lam and its means over two seeds; the rule's choice is bold."""
    lines = [["method", "lam: SSIM/PSNR", "", "", ""]]
    for method in METHODS:
        cells = []
        for lam, own in lams(rows, method).items():
            mean = {metric: fmean(gn0(row)[metric] for row in own) for metric in ("ssim", "psnr")}
            chosen = "**" if lam == best(rows, method) else ""
            cells.append(f"{chosen}{lam:g}{chosen}: {pair(mean)}")
        lines.append([method, *cells, *["-"] * (4 - len(cells))])
    return lines


def reference_table(rows):
    return [["truth, changed", "SSIM/PSNR", "in the head"]] + [
        [name, pair(score), f"{score['ssim_head']:.2f}"]
        for name, score in rows["references"].items()
        if name not in ("air", "fluid", "copy of the input")]


def markdown(lines):
    lines = [lines[0], ["---"] * len(lines[0]), *lines[1:]]
    return "".join(f"|{'|'.join(cells)}|\n" for cells in lines)


def line_and_band(ax, places, scores, color):
    """Draws means over seeds, and from the least to the most of them; a list of scores a place."""
    mean, least, most = (list(map(f, scores)) for f in (fmean, min, max))
    ax.plot(places, mean, "o-", ms=3, color=color)
    ax.fill_between(places, least, most, alpha=.2, lw=0, color=color)


def plot_scenarios(rows):
    """UAPI beside each other group, SSIM above PSNR, with a gap between the two kinds of noise."""
    from matplotlib.figure import Figure

    def apart(scores):
        return [*scores[:4], [nan], *scores[4:]]
    found, copy = groups(rows), all_scores([rows["copy_report_128"]])
    ours, noise = all_scores(found.pop("uapi") + found.pop("other_seeds_uapi")), list(SCENARIOS)
    noise.insert(4, "")
    figure = Figure(figsize=(1 + 1.5 * len(found), 5.6), layout="constrained")
    axes = figure.subplots(2, len(found), sharex=True, sharey="row")
    for group, column in zip(found, axes.T):
        theirs = all_scores(found[group])
        column[0].set_title(group)
        for k, ax in enumerate(column):
            metric = slice(7 * k, 7 * k + 7)
            for name, scores, color in (("uapi", ours, "C0"), (group, theirs, "C1")):
                line_and_band(ax, noise, apart(scores[metric]), color)
                if name in PAPER:
                    ax.plot(apart([[v] for v in PAPER[name][k]]), "--", lw=1, color=color)
            ax.plot(apart(copy[metric]), "kx:", ms=3, lw=1)
        ax.tick_params(axis="x", rotation=90)
    axes[0, 0].set_ylabel("SSIM x 100")
    axes[1, 0].set_ylabel("PSNR [dB]")
    figure.supxlabel("Blue: six seeds of uapi. Orange: three of the run that the panel names. "
                     "Lines: their means. Bands: from the least to the most.\n"
                     "Dashed: the paper's, at 256x256, with other people. Dotted: a copy of the "
                     "input.", fontsize=9)
    figure.savefig(HERE / "scenarios.png", dpi=100)


def plot_searches(rows):
    """SSIM over lam, a panel a method."""
    from matplotlib.figure import Figure
    found = {method: lams(rows, method) for method in METHODS if lams(rows, method)}
    figure = Figure(figsize=(1 + 1.5 * len(found), 3), layout="constrained")
    axes = figure.subplots(1, len(found), sharey=True)
    for ax, (method, searched) in zip(axes, found.items()):
        places = [f"{lam:g}" for lam in searched]
        scores = [[gn0(row)["ssim"] for row in own] for own in searched.values()]
        line_and_band(ax, places, scores, "C0")
        chosen = places.index(f"{best(rows, method):g}")
        ax.plot(chosen, fmean(scores[chosen]), "o", ms=10, mfc="none", color="C1")
        ax.set_title(method)
        ax.tick_params(axis="x", rotation=90)
    axes[0].set_ylabel("SSIM x 100, GN0")
    figure.supxlabel("lam at 64x64. Lines: means of two seeds. Bands: from one to the other. "
                     "Circle: the rule's choice.", fontsize=9)
    figure.savefig(HERE / "lam.png", dpi=100)


def one_slice():
    """methods.png: the middle slice of one patient by every run that reports."""
    from PIL import Image
    from data import picture_grid

    *images, names = pairs("report", 128)
    own = [k for k, name in enumerate(names) if name.startswith(SHOWN)]
    x, y = (half[[own[len(own) // 2]]] for half in images)
    found = groups(read())
    columns = [("input", [x] * len(found))]
    for k, title in enumerate(("first seed", "second", "third")):
        runs = [f"runs/large_{own[k]['method']}_{own[k]['lams'][0]:g}_{own[k]['seed']}"
                for own in found.values()]
        columns.append((title, [translated(folder, x)[0] for folder in runs]))
    columns.append(("truth", [y] * len(found)))
    picture_grid(HERE / "methods.png", columns, labels=list(found))
    grey = Image.open(HERE / "methods.png").convert("L")  # as wide as a page shows it
    grey = grey.resize((840, 840 * grey.height // grey.width), Image.Resampling.LANCZOS)
    grey.save(HERE / "methods.png", optimize=True)


def main():
    command, *words = sys.argv[1:] or ["help"]
    if command in ("tables", "figures", "one_slice"):
        fail_unless_compared(groups(read()))
    if command == "layout" and len(words) == 1:
        layout(*words)
    elif command == "has":
        sys.exit(0 if words[0] in read() else 1)
    elif command == "add":
        add(*words)
    elif command == "beyond":
        print(beyond(read(), *words))
    elif command == "best":
        if len(lams(read(), *words)) < 3 or beyond(read(), *words):
            sys.exit(SEARCHING)
        print(f"{best(read(), *words):g}")
    elif command == "large_lam":
        print(large_lam(*words))
    elif command == "even":
        if any(f"uapi_{seed}" not in read() for seed in range(3)):
            sys.exit(SEARCHING)
        print(even(read()))
    elif command == "references":
        references()
    elif command == "tables":
        for lines in (main_table, rank_table, recipe_table, lam_table, reference_table):
            print(markdown(lines(read())))
    elif command == "figures":
        plot_scenarios(read())
        plot_searches(read())
    elif command == "one_slice":
        one_slice()
    else:
        print(__doc__)
        sys.exit(2)


if __name__ == "__main__":
    main()
