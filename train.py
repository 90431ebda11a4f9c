"""The training loop (Sec. 3.4): 15 critic updates, then one generator update, 15,000 times.

    python train.py --data ixi_slices/ --lam 10      the paper's settings
    python train.py --smoke                          a first look on built-in phantoms, about a minute on a CPU
    python train.py --resume RUN                     goes on where RUN stopped, as if nothing had happened

RUN/ gets config.json, log.jsonl and checkpoint.pt (a line and a save per 1 % of the run, at most one per update),
curves.png and samples/STEP.png.
"""
import argparse
import json
import math
import os
import pickle
import sys
import time
from pathlib import Path

import torch
from matplotlib.figure import Figure

from data import draw, fail, load, make_folder, picture_grid, progress, to_device, to_unit
from losses import critic_loss, critic_slope, generator_loss
from nets import Critic, UNet, check_size
from patch_op import patch, sample_phi

SMOKE = dict(data="phantom", size=64, width=8, critic_width=16, batch=4, critic_steps=2, lr_g=1e-3, lr_c=5e-4,
             updates=150, out="runs/smoke")


# ---------------------------------------------------------------- Sec. 3.4

def train(config, slices, run, checkpoint=None):
    """Trains G and f in turn on two piles of slices (Sec. 3.4) and writes the folder run; a checkpoint continues a run.

    config: every flag by its name; slices: data.Slices -> G and f, trained. Where the paper is silent: He initialisation,
    batches drawn with replacement. The released code trains the critic 30 times per update at first and takes the
    generator's batch for its next critic update."""
    b, d, p, lam, device = (config[flag] for flag in ("batch", "size", "p", "lam", "device"))
    G, f, opt_G, opt_f, streams, step, seconds = build(config, checkpoint)
    X, Y = to_device(slices.input, device), to_device(slices.target, device)
    every, moments = max(1, config["updates"] // 100), {math.ceil(config["updates"] * k / 10) for k in range(1, 11)}
    started = time.perf_counter() - seconds

    while step < config["updates"]:
        # Critic: n_c updates of omega; theta stands still.
        for _ in range(config["critic_steps"]):
            x, y = draw(X, b, streams["x"], device), draw(Y, b, streams["y"], device)  # (1) two independent batches
            phi = sample_phi(b, d, streams["phi"])                                     # (2) one patch setting per image
            eps = torch.rand(b, 1, 1, 1, generator=streams["eps"]).to(device)          # (3) where the penalty looks
            with torch.no_grad():
                fake = G.image(x)                                                      # (4) G(x), detached
            risk_f = critic_loss(f, y, fake, phi, eps, p)                              # (5) Eq. 5
            opt_f.zero_grad()
            risk_f.backward()
            opt_f.step()                                                               # (6) moves omega

        # Generator: one update of theta; omega stands still.
        x = draw(X, b, streams["x"], device)                                           # (7) a fresh batch
        phi = sample_phi(b, d, streams["phi"])                                         # (8) and fresh patches
        f.requires_grad_(False)
        risk_G, terms = generator_loss(f, G, x, phi, lam, config["method"] == "uapi")  # (9) Eq. 6, with Eq. 9 for UAPI
        opt_G.zero_grad()
        risk_G.backward()
        opt_G.step()                                                                   # (10) moves theta
        f.requires_grad_(True)
        step += 1
        # ---- Nothing below this line changes a weight. ----

        stop_unless_finite(run, step, critic=risk_f, generator=risk_G, **terms)
        progress(step, config["updates"], "update")
        if step % every == 0 or step == config["updates"]:
            slope = critic_slope(f, y, fake, eps).mean()
            log(run, config, step, time.perf_counter() - started, wasserstein=-risk_f, slope=slope, **terms)
            save(run, {"config": config, "step": step, "seconds": time.perf_counter() - started,
                       "G": G.state_dict(), "f": f.state_dict(), "opt_G": opt_G.state_dict(), "opt_f": opt_f.state_dict(),
                       "streams": {name: stream.get_state() for name, stream in streams.items()}})
        if step in moments:
            draw_samples(run, config, step, G, slices)
            draw_curves(run)
    return G, f


def build(config, checkpoint=None):
    """Networks, optimisers (Sec. 3.4: Adam, beta 0 and 0.9) and one random stream each for x, y, phi and eps: new from
    the seed, or as the checkpoint left them. -> G, f, opt_G, opt_f, streams, step, seconds spent so far."""
    torch.manual_seed(config["seed"])  # the initial weights are all that is ever drawn from the global stream
    G, f = UNet(width=config["width"]).to(config["device"]), Critic(width=config["critic_width"]).to(config["device"])
    opt_G = torch.optim.Adam(G.parameters(), lr=config["lr_g"], betas=(0.0, 0.9))
    opt_f = torch.optim.Adam(f.parameters(), lr=config["lr_c"], betas=(0.0, 0.9))
    streams = {name: torch.Generator().manual_seed(1000 * config["seed"] + k) for k, name in enumerate(("x", "y", "phi", "eps"))}
    if checkpoint is None:
        return G, f, opt_G, opt_f, streams, 0, 0.0
    for name, part in (("G", G), ("f", f), ("opt_G", opt_G), ("opt_f", opt_f)):
        part.load_state_dict(checkpoint[name])
    for name, stream in streams.items():
        stream.set_state(checkpoint["streams"][name])
    return G, f, opt_G, opt_f, streams, checkpoint["step"], checkpoint["seconds"]


# ---------------------------------------------------------------- what a run leaves behind

def stop_unless_finite(run, step, **risks):
    """Ends the run where a risk is NaN or infinite, before such weights are saved. Looking costs one wait for the device
    per generator update: a critic's NaN stays a NaN, so looking at its last update suffices."""
    broken = [name for name, risk in risks.items() if not torch.isfinite(risk)]
    if broken:
        kept = f"{run}/checkpoint.pt holds the last good state" if (run / "checkpoint.pt").exists() else "no checkpoint was written yet"
        fail(f"update {step}: {', '.join(broken)} is not finite; {kept}; try a smaller --lr-g, --lr-c or --lam.")


def log(run, config, step, seconds, **values):
    """Prints one line and appends the same to log.jsonl. scale is None for PI, whose scale head is never trained."""
    seen = step * (config["critic_steps"] + 1) * config["batch"]
    row = {"step": step, "seconds": round(seconds, 2), "images_per_second": round(seen / seconds, 1)}
    row |= {name: value.item() for name, value in values.items()}
    if config["method"] == "pi":
        row |= {"scale_mean": None, "scale_min": None}
    with open(run / "log.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    clock = lambda s: f"{int(s) // 3600}:{int(s) // 60 % 60:02d}:{int(s) % 60:02d}"
    scale = f"  scale {row['scale_mean']:.4f} (min {row['scale_min']:.4f})" if row["scale_mean"] is not None else ""
    over = "\r" if sys.stderr.isatty() else ""  # the step that progress() shows in place gives way to the line
    print(f"{over}update {step}/{config['updates']}  elapsed {clock(seconds)}  remaining {clock(seconds / step * (config['updates'] - step))}"
          f"  wasserstein {row['wasserstein']:.3f}  slope {row['slope']:.3f}  residual {row['residual']:.4f}{scale}"
          f"  {row['images_per_second']:.0f} images/s", flush=True)


def save(run, checkpoint):
    """Writes checkpoint.pt beside its place, then renames it: a crash leaves the old one whole. Tensors and plain types only."""
    torch.save(checkpoint, run / "checkpoint.pt.tmp")
    os.replace(run / "checkpoint.pt.tmp", run / "checkpoint.pt")


def load_checkpoint(run, device="cpu"):
    """RUN/checkpoint.pt -> dict as train() saved it; weights_only, so that a file from a stranger cannot run code."""
    path = Path(run) / "checkpoint.pt"
    if not path.exists():
        fail(f"{path}: no such checkpoint; give the folder of a run that train.py has written.")
    try:
        return torch.load(path, map_location=device, weights_only=True)
    except (OSError, RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError) as error:
        fail(f"{path}: is no checkpoint of train.py, or damaged ({type(error).__name__}).")


@torch.no_grad()
def draw_samples(run, config, step, G, slices):
    """samples/STEP.png: four fixed slices, each as input, translation, scale (UAPI) and, where there are pairs, truth."""
    inputs, truth = slices.evaluation_input if len(slices.evaluation_input) else slices.input, slices.evaluation_target
    chosen = [len(inputs) * k // 4 for k in range(4)]
    image, scale = G(to_unit(torch.from_numpy(inputs[chosen]).unsqueeze(1)).to(config["device"]))
    columns = {"input": inputs[chosen], "translation": 127.5 * (image.cpu() + 1)}
    if config["method"] == "uapi":
        columns["scale [grey levels]"] = [(s, float(s.max())) for s in 127.5 * scale.cpu()]
    if len(truth):
        columns["truth"] = truth[chosen]
    (run / "samples").mkdir(exist_ok=True)
    picture_grid(run / "samples" / f"{step:06d}.png", list(zip(*columns.values())), list(columns))


def draw_curves(run):
    """curves.png from log.jsonl; the README says what each number means and what is healthy."""
    rows = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    figure = Figure(figsize=(10, 6), layout="constrained")
    for ax, names in zip(figure.subplots(2, 2).flat, (["wasserstein"], ["slope"], ["residual"], ["scale_mean", "scale_min"])):
        for name in names:
            ax.plot([row["step"] for row in rows], [row[name] for row in rows], label=name)
        ax.set_xlabel("generator updates")
        ax.legend()
    figure.savefig(run / "curves.png", dpi=80)


# ---------------------------------------------------------------- the command line

def whole(least, most=10 ** 9):
    def check(text):
        if not text.isdecimal() or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"wants a whole number from {least} to {most}, not {text}")
        return int(text)
    return check


def number(least, strictly):
    def check(text):
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value < least or (strictly and value == least):
            raise argparse.ArgumentTypeError(f"wants a finite number {'above' if strictly else 'of at least'} {least}, not {text}")
        return value
    return check


def image_size(text):
    size = whole(1)(text)
    try:
        check_size(size)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error))
    return size


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--data", help="folder of slices, .h5 file, or the word phantom (Sec. 4.1)")
    flag("--method", choices=("uapi", "pi"), default="uapi", help="uapi, the default: patch loss of Eq. 9; pi: patch loss of Eq. 6 (Sec. 4.2)")
    flag("--lam", type=number(0, False), default=10.0, help="weight of the patch loss, default 10 (Eq. 6; Sec. 3.4 chooses it by grid search)")
    flag("--p", type=number(0, False), default=10.0, help="weight of the gradient penalty (Sec. 3.4: 10)")
    flag("--size", type=image_size, default=256, help="side d of the images (Sec. 4.1: 256)")
    flag("--batch", type=whole(1), default=8, help="images in a batch (Sec. 3.4: 8)")
    flag("--updates", type=whole(1), default=15000, help="generator updates (Sec. 3.4: 15,000)")
    flag("--critic-steps", type=whole(1), default=15, help="critic updates per generator update (Sec. 3.4: 15)")
    flag("--lr-g", type=number(0, True), default=5e-5, help="Adam's learning rate for the generator (Sec. 3.4: 5e-5)")
    flag("--lr-c", type=number(0, True), default=2e-5, help="Adam's learning rate for the critic (Sec. 3.4: 2e-5)")
    flag("--width", type=whole(1), default=16, help="width of the generator's first level (Sec. 3.4: 8.7 million parameters)")
    flag("--critic-width", type=whole(1), default=32, help="width of the critic's first level (Sec. 3.4: 2.8 million)")
    flag("--seed", type=whole(0), default=0, help="seed of weights, batches, phi and eps (Sec. 3.4 is silent)")
    flag("--device", help="cuda, cpu or mps; default: cuda where there is one, else cpu (Sec. 3.4 is silent)")
    flag("--out", help="folder of the run; default: runs/DATA_METHOD_lamLAM_seedSEED")
    flag("--resume", metavar="RUN", help="go on with this run; only --updates and --device may be given beside it")
    flag("--smoke", action="store_true", help="phantoms at 64x64, small networks, 150 updates: a first look on a CPU")
    flag("--dry-run", action="store_true", help="print the configuration and the shapes of one pass through P, G and f, then stop")
    parser.error = fail
    return parser


def pick_device(name):
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError):  # torch without CUDA asserts
        fail(f"--device {name}: this machine has no such device; use --device cpu.")
    return name


@torch.no_grad()
def dry_run(config, slices):
    G, f, _, _, streams, _, _ = build(config)
    x = draw(to_device(slices.input, config["device"]), config["batch"], streams["x"], config["device"])
    phi = sample_phi(config["batch"], config["size"], streams["phi"])
    image, scale = G(x)
    shapes = {"x": x, "phi.size": phi.size, "P(x)": patch(x, phi), "G^I(x)": image, "G^sigma(x)": scale, "f(G^I(x))": f(image)}
    for name, value in shapes.items():
        print(f"  {name:<12}{str(list(value.shape)):<20}{value.min():>10.3f} .. {value.max():.3f}")


def main():
    parser = make_parser()
    args = parser.parse_args()
    checkpoint = None
    if args.smoke:
        parser.set_defaults(**SMOKE)
    if args.resume:
        checkpoint = load_checkpoint(args.resume)
        parser.set_defaults(**checkpoint["config"])
    config = {flag: value for flag, value in vars(parser.parse_args()).items() if flag not in ("resume", "smoke", "dry_run")}
    if checkpoint:
        other = [flag for flag, value in checkpoint["config"].items() if flag not in ("updates", "device") and config[flag] != value]
        if args.smoke or args.dry_run or config["updates"] < checkpoint["step"]:
            fail(f"--resume stands alone, or with --device or with --updates of at least {checkpoint['step']}, where the run is now.")
        if other:
            fail(f"--resume goes on with the run's own settings; leave out {', '.join('--' + flag.replace('_', '-') for flag in other)}.")
    if not config["data"]:
        fail("nothing to train on: give --data a folder of slices, an .h5 file or the word phantom, or try --smoke.")
    config["device"] = pick_device(config["device"])
    config["out"] = config["out"] or f"runs/{Path(config['data']).stem}_{config['method']}_lam{config['lam']:g}_seed{config['seed']}"
    run = Path(args.resume or config["out"])
    if not checkpoint and not args.dry_run and (run / "checkpoint.pt").exists():
        fail(f"{run}: already holds a run; go on with --resume {run}, or choose another --out.")

    for flag, value in config.items():
        print(f"  {flag:<14}{value}")
    slices = load(config["data"], config["size"])
    if args.dry_run:
        return dry_run(config, slices)
    make_folder(run)
    (run / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    drop_log_after(run, checkpoint["step"] if checkpoint else 0)
    train(config, slices, run, checkpoint)
    print(f"finished: {run}")
    if len(slices.evaluation_input):
        print(f"judge it with: python evaluate.py {run} --data {config['data']} --out {run}/evaluation")


def drop_log_after(run, step):
    """Drops the lines that a killed run logged after its last checkpoint: they will be written again."""
    if not (run / "log.jsonl").exists():
        return
    lines = [line for line in (run / "log.jsonl").read_text().splitlines() if json.loads(line)["step"] <= step]
    (run / "log.jsonl.tmp").write_text("".join(line + "\n" for line in lines))
    os.replace(run / "log.jsonl.tmp", run / "log.jsonl")


if __name__ == "__main__":
    main()
