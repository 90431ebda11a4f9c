"""The record of experiment.sh: lays out its slices, keeps its scores, chooses lam, draws.

    python results/experiment.py layout DATA    every fourth slice, and the pairs in two parts
    python results/experiment.py tables         prints the tables of results/README.md
    python results/experiment.py figures        draws scenarios.png and lam.png beside this file

The other commands are experiment.sh's own: has, add, best, beyond, large_lam, even, references.
experiment.json has a row a run. "search" and "recipe" rows are scores on three patients, who
choose; all others are scores on five more, who report.
"""
import json
import os
import shutil
import sys
from collections import defaultdict
from pathlib import Path
from statistics import fmean, stdev

HERE = Path(__file__).resolve().parent
JSON = HERE / "experiment.json"
CHOOSING = ("IXI017", "IXI300", "IXI537")
SCENARIOS = ("GN0", "GN5", "GN10", "GN20", "IP2", "IP5", "IP10")
METHODS = ("uapi", "pi", "cyclegan", "gcgan", "ugac", "uagc", "cut")


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
    """fourth_slices/ to train on, choose_slices/ and report_slices/ with pairs of other patients."""
    data = Path(data)
    jobs = [(path, Path("fourth_slices") / pile / path.name)
            for pile in ("input", "target") for path in every_fourth((data / pile).iterdir())]
    for end in ("_input", "_target"):
        for path in every_fourth(p for p in (data / "evaluation").iterdir() if p.stem.endswith(end)):
            part = "choose" if path.name.startswith(CHOOSING) else "report"
            jobs.append((path, Path(f"{part}_slices") / "evaluation" / path.name))
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


def add(row, run, part):
    """Adds runs/RUN with its scores on one part of the pairs as a row."""
    folder = Path("runs") / run
    config = json.loads((folder / "config.json").read_text())
    metrics = json.loads((folder / part / "metrics.json").read_text())
    scores, = metrics["runs"].values()
    logs = [[json.loads(line) for line in (Path(c["out"]) / "log.jsonl").open()]
            for c in stages(config)]
    late = [r["scale_mean"] for r in logs[0] if r["step"] > 0.9 * config["updates"]]
    rows = read()
    rows[row] = {
        "method": config["method"], "seed": config["seed"], "pairs": part,
        "lams": [c["lam"] for c in stages(config)][::-1], "bf16": config["bf16"],
        "minutes": [round(log[-1]["seconds"] / 60, 1) for log in logs][::-1],
        "scale": fmean(late) if late and None not in late else None, **scores}
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
    """UAPI's lam over its mean scale of three seeds: where PI's patch loss weighs as UAPI's."""
    own = [rows[f"uapi_{seed}"] for seed in range(3)]
    return f"{own[0]['lams'][0] / fmean(row['scale'] for row in own):.0f}"


def references():
    """What the truth itself scores, slightly changed, on the pairs that report, at 128x128."""
    sys.path.insert(0, str(HERE.parent))
    import torch
    from torch.nn.functional import avg_pool2d, pad
    from data import load
    from evaluate import psnr, ssim, ssim_head, ssim_windows

    slices = load("report_slices", 128, ("evaluation_input", "evaluation_target"))
    y = torch.from_numpy(slices.evaluation_target).float().unsqueeze(1)
    changed = {"one pixel lower": y.roll(1, 2), "one pixel to the right": y.roll(1, 3),
               "mean of 3x3": avg_pool2d(pad(y, (1, 1, 1, 1), mode="replicate"), 3, 1),
               "air set to 0": torch.where(y < 6, 0, y)}
    rows = read()
    rows["references"] = {name: {"ssim": 100 * float(ssim(v, y).mean()),
                                 "psnr": float(psnr(v, y).mean()),
                                 "ssim_head": 100 * ssim_head(v, y)}
                          for name, v in changed.items()}
    rows["references"]["share of windows in air"] = float((ssim_windows(y, y)[1] < 6).float().mean())
    write(rows)


def main():
    command, *words = sys.argv[1:] or ["help"]
    if command == "layout":
        layout(*words)
    elif command == "has":
        sys.exit(0 if words[0] in read() else 1)
    elif command == "add":
        add(*words)
    elif command == "beyond":
        print(beyond(read(), *words) if lams(read(), *words) else "")
    elif command == "best":
        if len(lams(read(), *words)) < 3 or beyond(read(), *words):
            sys.exit(1)  # the other process is still searching
        print(f"{best(read(), *words):g}")
    elif command == "large_lam":
        print(large_lam(*words))
    elif command == "even":
        if any(f"uapi_{seed}" not in read() for seed in range(3)):
            sys.exit(1)
        print(even(read()))
    elif command == "references":
        references()
    else:
        print(__doc__)
        sys.exit(2)


if __name__ == "__main__":
    main()
