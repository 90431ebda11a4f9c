"""The training loop (Sec. 3.4): 15 critic updates, then one generator update, 15,000 times.

    python train.py --data ixi_slices/ --lam 10      the paper's settings
    python train.py --smoke                          a first look on built-in phantoms, about a minute on a CPU
    python train.py --resume RUN                     goes on where RUN stopped, as if nothing had happened

RUN/ gets config.json, log.jsonl and checkpoint.pt (a line and a save per 1 % of the run, at most one per update), the
checkpoint before it, curves.png and samples/STEP.png.
"""
import argparse
import ctypes
import json
import math
import os
import pickle
import signal
import struct
import sys
import time
import zipfile
from contextlib import contextmanager
from pathlib import Path

import torch
from matplotlib.figure import Figure
from torch import distributed, nn

from baselines import METHODS, OWN_LAM, SCALED, critic_risk, critic_updates, generator_risk, make_generator, more_networks
from data import READ_ERRORS, draw, fail, load, make_folder, picture_grid, progress, replace_file, to_device, to_unit
from losses import critic_loss, critic_slope, generator_loss
from nets import Critic, check_size
from patch_op import Phi, patch, sample_phi

SMOKE = dict(data="phantom", size=64, width=8, critic_width=16, batch=4, critic_steps=2, lr_g=1e-3, lr_c=5e-4,
             updates=150, out="runs/smoke")


# ---------------------------------------------------------------- Sec. 3.4

def train(config, slices, run, checkpoint=None, signals=()):
    """Trains G and f in turn on two piles of slices (Sec. 3.4) and writes the folder run; a checkpoint continues a run.

    config: every flag by its name; slices: data.Slices; signals: a list that fills when the run is to stop -> G and f,
    trained. theta holds G, omega holds f; the compared methods of baselines.py add networks to both. Where the paper is
    silent: He initialisation, batches drawn with replacement. The released code trains the critic 30 times per update at
    first and takes the generator's batch for its next critic update."""
    method, b, d, p, lam, device = (config[flag] for flag in ("method", "batch", "size", "p", "lam", "device"))
    theta, omega, opt_G, opt_f, streams, memory, step, seconds = build(config, checkpoint)
    G, f, ours = theta["G"], omega["f"], method in ("pi", "uapi")
    X, Y = to_device(slices.input, device), to_device(slices.target, device)
    amp = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config["bf16"])
    every, moments = max(1, config["updates"] // 100), {math.ceil(config["updates"] * k / 10) for k in range(1, 11)}
    started = time.perf_counter() - seconds

    while step < config["updates"]:
        # Critic: n_c updates of omega; theta stands still.
        for _ in range(critic_updates(method, config["critic_steps"], step)):
            x, y = draw(X, b, streams["x"], device), draw(Y, b, streams["y"], device)  # (1) two independent batches
            phi = sample_phi(b, d, streams["phi"])                                     # (2) one patch setting per image
            eps = torch.rand(b, 1, 1, 1, generator=streams["eps"]).to(device)          # (3) where the penalty looks
            x, y, phi, eps = my_part(x, y, phi, eps)                                   # torchrun: each process its part
            with amp:
                if ours:
                    with torch.no_grad():
                        fake = G.image(x)                                              # (4) G(x), detached
                    risk_f = critic_loss(f, y, fake, phi, eps, p)                      # (5) Eq. 5
                else:
                    risk_f = critic_risk(method, theta, omega, x, y, phi, eps, p, memory, streams["other"])
            opt_f.zero_grad()
            risk_f.backward()
            average_gradients(omega)
            opt_f.step()                                                               # (6) moves omega

        # Generator: one update of theta; omega stands still.
        x = draw(X, b, streams["x"], device)                                           # (7) a fresh batch
        phi = sample_phi(b, d, streams["phi"])                                         # (8) and fresh patches
        x, phi = my_part(x, phi)
        omega.requires_grad_(False)
        with amp:
            if ours:
                risk_G, terms = generator_loss(f, G, x, phi, lam, method == "uapi")    # (9) Eq. 6, with Eq. 9 for UAPI
            else:
                y, = my_part(draw(Y, b, streams["y"], device))
                risk_G, terms = generator_risk(method, theta, omega, x, y, phi, lam, memory, streams["other"])
        opt_G.zero_grad()
        risk_G.backward()
        average_gradients(theta)
        opt_G.step()                                                                   # (10) moves theta
        omega.requires_grad_(True)
        step += 1
        # ---- Nothing below this line changes a weight. ----

        stop_unless_finite(run, step, critic=risk_f, generator=risk_G, **terms)
        stop, due = noted_by_any(signals), step % every == 0 or step == config["updates"]
        if is_first():
            progress(step, config["updates"], "update")
            seconds = time.perf_counter() - started
            if due:
                slope = critic_slope(f, y, G.image(x).detach(), eps).mean()
                log(run, config, step, seconds, wasserstein=-risk_f, slope=slope, **terms)
            if step in moments:
                draw_samples(run, config, step, G, slices)
                draw_curves(run)
            if due or stop:
                save(run, {"config": config, "step": step, "seconds": seconds, "memory": memory,
                           "networks": {name: network.state_dict() for name, network in [*theta.items(), *omega.items()]},
                           "opt_G": opt_G.state_dict(), "opt_f": opt_f.state_dict(),
                           "streams": {name: stream.get_state() for name, stream in streams.items()}})
            if stop:
                print(f"stopped after update {step}; go on with: python train.py --resume {run}", file=sys.stderr)
        if stop:
            leave_processes()
            raise SystemExit(128 + stop)
    return G, f


def build(config, checkpoint=None):
    """Networks, optimisers (Sec. 3.4: Adam, beta 0 and 0.9) and one random stream each for x, y, phi and eps (other: for
    the compared methods): new from the seed, or as the checkpoint left them. -> theta and omega (networks by name),
    opt_G, opt_f, streams, memory (of "released"), step, seconds spent so far."""
    method, width, critic_width, device = (config[flag] for flag in ("method", "width", "critic_width", "device"))
    torch.manual_seed(8 * config["seed"])  # the initial weights are all that is ever drawn from the global stream
    theta = nn.ModuleDict({"G": make_generator(method, width)})
    omega = nn.ModuleDict({"f": Critic(width=critic_width)})
    for networks, more in zip((theta, omega), more_networks(method, width, critic_width)):
        networks.update(more)
    opt_G = torch.optim.Adam(theta.to(device).parameters(), lr=config["lr_g"], betas=(0.0, 0.9))
    opt_f = torch.optim.Adam(omega.to(device).parameters(), lr=config["lr_c"], betas=(0.0, 0.9))
    streams = {name: torch.Generator().manual_seed(8 * config["seed"] + k)
               for k, name in enumerate(("x", "y", "phi", "eps", "other"), 1)}
    if checkpoint is None:
        return theta, omega, opt_G, opt_f, streams, {}, 0, 0.0
    restore({**theta, **omega}, checkpoint["networks"])
    restore({"opt_G": opt_G, "opt_f": opt_f}, checkpoint)
    restore(streams, checkpoint["streams"])
    memory = {name: value.to(device) for name, value in checkpoint["memory"].items()}
    return theta, omega, opt_G, opt_f, streams, memory, checkpoint["step"], checkpoint["seconds"]


# ---------------------------------------------------------------- several processes (torchrun)

def my_part(*drawn):
    """This process's part of each batch (or Phi) that all processes have drawn alike; everything without torchrun. N
    processes with b/N images each thus see what one process with b images sees."""
    if not distributed.is_initialized():
        return drawn
    rank, count = distributed.get_rank(), distributed.get_world_size()
    return [Phi(*my_part(*batch)) if isinstance(batch, Phi) else batch.chunk(count)[rank] for batch in drawn]


def average_gradients(networks):
    """Every gradient becomes its mean over the processes, sent as one flat buffer; nothing without torchrun. By hand,
    since DistributedDataParallel hooks into backward passes, and the penalty's double backward would set its hooks off twice."""
    if distributed.is_initialized():
        gradients = [w.grad for w in networks.parameters() if w.grad is not None]
        flat = torch.cat([g.flatten() for g in gradients])
        distributed.all_reduce(flat)
        for g, mean in zip(gradients, flat.div_(distributed.get_world_size()).split([g.numel() for g in gradients])):
            g.copy_(mean.view_as(g))


def noted_by_any(signals):
    """The signal that has asked any process to stop, 0 for none, so that all stop after the same update."""
    noted = torch.tensor(max(signals, default=0))
    if distributed.is_initialized():
        noted = noted.to("cuda" if distributed.get_backend() == "nccl" else "cpu")
        distributed.all_reduce(noted, distributed.ReduceOp.MAX)
    return int(noted)


def is_first():
    """True for the one process that prints, logs and saves."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def join_processes(device):
    """Under torchrun: joins the other processes; all but the first fall silent."""
    if "WORLD_SIZE" not in os.environ:
        return
    cuda = torch.device(device).type == "cuda"
    if cuda:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    distributed.init_process_group("nccl" if cuda else "gloo")
    if not is_first():
        sys.stdout = open(os.devnull, "w")


def leave_processes():
    """Under torchrun: waits for the others and parts, since one that just ended could take down those that still write."""
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


@contextmanager
def noting_signals():
    """Inside, SIGINT and SIGTERM are noted in the list it gives, so that the update in hand can be finished and saved; the
    same signal once more ends the program at once."""
    noted, before = [], {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(number, _):
        noted.append(number)
        signal.signal(number, signal.SIG_DFL)
    for number in before:
        signal.signal(number, note)
    try:
        yield noted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------- what a run leaves behind

CHECKPOINTS = ("checkpoint.pt", "checkpoint_before.pt")
CONTENTS = {"config", "step", "seconds", "memory", "networks", "opt_G", "opt_f", "streams"}  # of a checkpoint


def kept(run):
    """What a run that ends early can go on from, for its last words."""
    return f"{run}/checkpoint.pt holds the last good state" if (run / "checkpoint.pt").exists() else "no checkpoint was written yet"


def stop_unless_finite(run, step, **risks):
    """Ends the run where a risk is NaN or infinite, before such weights are saved. Looking costs one wait for the device
    per generator update: a critic's NaN stays a NaN, so looking at its last update suffices."""
    broken = [name for name, risk in risks.items() if not torch.isfinite(risk)]
    if broken:
        fail(f"update {step}: {', '.join(broken)} is not finite; {kept(run)}; try a smaller --lr-g, --lr-c or --lam.")


def log(run, config, step, seconds, **values):
    """Prints one line and appends the same to log.jsonl; under torchrun of the first process's part of the batch. scale is
    None for methods whose scale head is never trained; images_per_second leaves out released's additional critic updates."""
    seen = step * (config["critic_steps"] + 1) * config["batch"]
    row = {"step": step, "seconds": round(seconds, 2), "images_per_second": round(seen / seconds, 1)}
    row |= {name: value.item() for name, value in values.items()}
    if config["method"] not in SCALED:
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
    """Writes checkpoint.pt whole or not at all and keeps the one before it. Tensors and plain types only."""
    def write(place):
        torch.save(checkpoint, place)
        if (run / "checkpoint.pt").exists():
            os.replace(run / "checkpoint.pt", run / "checkpoint_before.pt")
    replace_file(run / "checkpoint.pt", write)


def load_checkpoint(run, device="cpu"):
    """RUN/checkpoint.pt -> dict as train() saved it, or checkpoint_before.pt where that one is damaged or missing;
    weights_only, so that a file from a stranger cannot run code, and with sound settings."""
    faults = []
    for path in (Path(run) / name for name in CHECKPOINTS):
        try:
            with zipfile.ZipFile(path) as archive:  # torch.load looks at no checksum, and fills what is marked a folder with garbage
                if any(entry.compress_type or entry.external_attr & 16 for entry in archive.infolist()) or archive.testzip():
                    raise ValueError("checksums do not agree")
            checkpoint = torch.load(path, map_location=device, weights_only=True)
            if not CONTENTS <= checkpoint.keys():
                raise ValueError("contents are missing")
            check_config(checkpoint["config"])
            if faults:
                print(f"{faults[0]}; taking {path}, the one before it", file=sys.stderr)
            return checkpoint
        except (FileNotFoundError, NotADirectoryError):
            faults += [f"{path}: no such checkpoint; give the folder of a run that train.py has written"]
        except (*READ_ERRORS, LookupError, AttributeError, AssertionError, struct.error, pickle.UnpicklingError, zipfile.BadZipFile) as error:
            why = error if type(error) is ValueError else type(error).__name__  # torch's own words fill a page
            faults.append(f"{path}: is no checkpoint of train.py, or damaged ({why})")
    fail(faults[0])


def check_config(config):
    """ValueError unless a checkpoint's settings are all there and could have been given on the command line."""
    def refuse(reason):
        raise ValueError(f"its configuration: {reason}")
    parser = make_parser()
    parser.error = refuse
    words = [f"--{flag.replace('_', '-')}" + (f"={value}" if value is not True else "")
             for flag, value in config.items() if value is not None and value is not False]
    if vars(parser.parse_args(words)) != config | dict(resume=None, smoke=False, dry_run=False):
        refuse("other flags than this train.py's, or values of another type")


def restore(parts, states):
    """Puts saved states into networks, optimisers or streams of the same names; one sentence where they do not fit."""
    for name, part in parts.items():
        try:
            (part.set_state if isinstance(part, torch.Generator) else part.load_state_dict)(states[name])
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
            fail(f"the checkpoint's {name} does not fit its own configuration (--method, --width, --critic-width): {type(error).__name__}; "
                 "it was changed by hand or belongs to another version.")


@torch.no_grad()
def draw_samples(run, config, step, G, slices):
    """samples/STEP.png: four fixed slices, each as input, translation, scale (alpha for ugac) and, where there are pairs, truth."""
    inputs, truth = slices.evaluation_input if len(slices.evaluation_input) else slices.input, slices.evaluation_target
    chosen = [len(inputs) * k // 4 for k in range(4)]
    image, scale, *_ = G(to_unit(torch.from_numpy(inputs[chosen]).unsqueeze(1)).to(config["device"]))
    columns = {"input": inputs[chosen], "translation": 127.5 * (image.cpu() + 1)}
    if config["method"] in SCALED:
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
    replace_file(run / "curves.png", lambda place: figure.savefig(place, dpi=80, format="png"))


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
    size = whole(1, 4096)(text)
    try:
        check_size(size)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error))
    return size


def make_parser():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--data", help="folder of slices, .h5 file, or the word phantom (Sec. 4.1)")
    flag("--method", choices=("uapi", "pi") + METHODS, default="uapi",
         help="uapi, the default: patch loss of Eq. 9; pi: of Eq. 6; the others: Sec. 4.2, baselines.py")
    flag("--lam", type=number(0, False), help="weight of the patch or consistency loss (Eq. 6; by grid search in Sec. 3.4), default 10; cut: 1; released: 0.5")
    flag("--p", type=number(0, False), default=10.0, help="weight of the gradient penalty (Sec. 3.4: 10)")
    flag("--size", type=image_size, default=256, help="side d of the images (Sec. 4.1: 256)")
    flag("--batch", type=whole(1, 4096), default=8, help="images in a batch (Sec. 3.4: 8)")
    flag("--updates", type=whole(1), default=15000, help="generator updates (Sec. 3.4: 15,000)")
    flag("--critic-steps", type=whole(1), default=15, help="critic updates per generator update (Sec. 3.4: 15)")
    flag("--lr-g", type=number(0, True), default=5e-5, help="Adam's learning rate for the generator (Sec. 3.4: 5e-5)")
    flag("--lr-c", type=number(0, True), default=2e-5, help="Adam's learning rate for the critic (Sec. 3.4: 2e-5)")
    flag("--width", type=whole(1, 256), default=16, help="width of the generator's first level (Sec. 3.4: 8.7 million parameters)")
    flag("--critic-width", type=whole(1, 512), default=32, help="width of the critic's first level (Sec. 3.4: 2.8 million)")
    flag("--seed", type=whole(0, 10 ** 8), default=0, help="seed of weights, batches, phi and eps (Sec. 3.4 is silent)")
    flag("--bf16", action="store_true", help="layers in bfloat16, patches, penalty and losses in float32 (Sec. 3.4 is silent)")
    flag("--device", help="cuda, cpu or mps; default: cuda where there is one, else cpu (Sec. 3.4 is silent)")
    flag("--out", help="folder of the run; default: runs/DATA_METHOD_lamLAM_seedSEED")
    flag("--resume", metavar="RUN", help="go on with this run; only --updates and --device may be given beside it")
    flag("--smoke", action="store_true", help="phantoms at 64x64, small networks, 150 updates: a first look on a CPU")
    flag("--dry-run", action="store_true", help="print the configuration and the shapes of one pass through P, G and f, then stop")
    parser.error = fail
    return parser


def keep_memory():
    """Tells glibc to keep freed memory. It gives blocks above 32 MB, such as one level of a 256x256 batch, back to the system
    and waits for fresh pages at the next use: a third of the time on a CPU. Elsewhere nothing happens."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(-4, 0)   # M_MMAP_MAX: no block gets a mapping of its own
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: what was freed is never given back


def pick_device(name):
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if name not in ("cpu", "mps") and torch.device(name).type != "cuda":  # torch knows more, which nobody has tried here
            raise RuntimeError
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError):  # torch without CUDA asserts
        fail(f"--device {name}: this machine has no such device, or no memory left on it; use --device cpu.")
    return name


@torch.no_grad()
def dry_run(config, slices):
    theta, omega, _, _, streams, *_ = build(config)
    G, f = theta["G"], omega["f"]
    x = draw(to_device(slices.input, config["device"]), config["batch"], streams["x"], config["device"])
    phi = sample_phi(config["batch"], config["size"], streams["phi"])
    image, scale, *_ = G(x)
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
    keep_memory()
    config["device"] = pick_device(config["device"])
    if config["lam"] is None:
        config["lam"] = OWN_LAM.get(config["method"], 10.0)
    config["out"] = config["out"] or f"runs/{Path(config['data']).stem}_{config['method']}_lam{config['lam']:g}_seed{config['seed']}"
    run = Path(args.resume or config["out"])
    if not checkpoint and not args.dry_run and any(os.path.exists(run / name) for name in CHECKPOINTS):
        fail(f"{run}: already holds a run; go on with --resume {run}, or choose another --out.")

    join_processes(config["device"])
    if distributed.is_initialized() and (config["batch"] % distributed.get_world_size() or config["method"] == "released"):
        fail("torchrun wants a --batch that its processes can share evenly, and just one process for --method released.")
    for flag, value in config.items():
        print(f"  {flag:<14}{value}")
    try:
        slices = load(config["data"], config["size"])
        if args.dry_run:
            return dry_run(config, slices)
        make_folder(run)
        if is_first():
            drop_log_after(run, checkpoint["step"] if checkpoint else 0)
            replace_file(run / "config.json", lambda place: place.write_text(json.dumps(config, indent=2) + "\n"))
            if checkpoint:  # in place of checkpoint.pt, or save() would take a damaged one for the one before
                replace_file(run / "checkpoint.pt", lambda place: torch.save(checkpoint, place))
        with noting_signals() as signals:
            train(config, slices, run, checkpoint, signals)
    except (OSError, MemoryError, RuntimeError) as error:
        explain(error, run)
    print(f"finished: {run}")
    if len(slices.evaluation_input):
        print(f"judge it with: python evaluate.py {run} --data {config['data']} --out {run}/evaluation")
    leave_processes()


def lacks_memory(error):
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(
        said in str(error) for said in ("can't allocate memory", "out of memory", "ALLOC_FAILED"))


def explain(error, run):
    """A full or lost disk and a lack of memory are the user's to mend and get a sentence; everything else is a bug of ours."""
    if isinstance(error, OSError):
        fail(f"{error.filename or run}: cannot be written ({error.strerror or error}); {kept(run)}; make room and go on.")
    if lacks_memory(error):
        fail(f"out of memory: choose a smaller --batch, --size or --width; {kept(run)}.")
    raise error


def drop_log_after(run, step):
    """Drops the lines that a killed run logged after its last checkpoint, or cut short: they will be written again."""
    if (run / "log.jsonl").exists():
        try:
            lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
            before = "".join(line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= step)
        except (ValueError, LookupError, TypeError):
            fail(f"{run}/log.jsonl: was not written by train.py, or is damaged; move it away, or choose another --out.")
        replace_file(run / "log.jsonl", lambda place: place.write_text(before))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # before the first update: there is nothing to save
        raise SystemExit(130)
