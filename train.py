"""The loop (Sec. 3.4): 15 critic updates, 1 generator update, 15,000 times.

    python train.py --data ixi_slices/ --lam 10   the paper's settings, our lam
    python train.py --smoke                       a first look on phantoms
    python train.py --smoke --data DIR --out RUN  the same on your own slices
    python train.py --resume RUN                  goes on where RUN stopped
    python train.py --init RUN --data DIR         a new run from RUN's networks
    torchrun --standalone --nproc_per_node=2 train.py --data DIR    two processes share each batch

RUN/ gets config.json, log.jsonl, curves.png, samples/STEP.png, checkpoint.pt
and the one before it: a line and a save per 1 % of the run, a picture per 10 %,
and all of them at updates 1, 10 and 100, too.
"""
import os
import time
from pathlib import Path
from typing import NamedTuple

import torch
from torch import distributed, nn

import baselines
import run
from data import draw, load, picture_grid, to_unit
from losses import critic_loss, critic_slope, generator_loss
from nets import Critic, UNet, check_size
from patch_op import Phi, patch, sample_phi

SMOKE = dict(data="phantom", size=64, width=8, critic_width=16, batch=4, critic_steps=4,
             lr_g=1e-3, lr_c=5e-4, updates=450, out="runs/smoke")
YOUNG_FLAGS = {"decay": 0.0}  # older checkpoints lack them and were trained with these values


# ---------------------------------------------------------------- settings

def make_parser():
    parser, bounded = run.make_parser(__doc__), run.bounded
    flag, many = parser.add_argument, bounded(int, 1, 10 ** 9)
    weight, rate = bounded(float, 0, 1e12), bounded(float, 1e-12, 1e12)
    flag("--data", help="folder of slices, .h5 file, or the word phantom (Sec. 4.1)")
    flag("--method", choices=("uapi", "pi") + baselines.METHODS, default="uapi",
         help="uapi, the default: Eq. 9; pi: Eq. 6; others: baselines.py (Sec. 4.2; uagc: ours)")
    flag("--lam", type=weight, help="weight of the patch or consistency loss (Eq. 6; Sec. 3.4: by "
                                    "grid search), default 10; cut: 1")
    flag("--p", type=weight, default=10.0, help="weight of the gradient penalty (Sec. 3.4: 10)")
    flag("--size", type=bounded(int, 1, 4096, check_size), default=256,
         help="side d of the images (Sec. 4.1: 256)")
    flag("--batch", type=bounded(int, 1, 4096), default=8, help="images in a batch (Sec. 3.4: 8)")
    flag("--updates", type=many, default=15000, help="generator updates (Sec. 3.4: 15,000)")
    flag("--critic-steps", type=many, default=15, help="critic updates for each (Sec. 3.4: 15)")
    flag("--lr-g", type=rate, default=5e-5, help="learning rate of G (Sec. 3.4: 5e-5)")
    flag("--lr-c", type=rate, default=2e-5, help="learning rate of f (Sec. 3.4: 2e-5)")
    flag("--decay", type=bounded(float, 0, 1), default=0.0, metavar="F",
         help="both rates fall to 0 over the last F of --updates, anew with more (Sec. 3.4: 0)")
    flag("--width", type=bounded(int, 1, 256), default=16,
         help="width of G's first level (Sec. 3.4: 8.7 million parameters)")
    flag("--critic-width", type=bounded(int, 1, 512), default=32,
         help="width of f's first level (Sec. 3.4: 2.8 million parameters)")
    flag("--seed", type=bounded(int, 0, 10 ** 8), default=0,
         help="seed of weights, batches, phi and eps (Sec. 3.4 is silent)")
    flag("--bf16", action="store_true",
         help="layers in bfloat16; on a CPU compare the time with and without (Sec. 3.4 is silent)")
    flag("--device", help="cuda, cpu or mps; default: cuda where there is one, else cpu")
    flag("--out", help="folder of the run; default: runs/DATA_METHOD_lamLAM_seedSEED")
    flag("--init", metavar="RUN", help="start a new run from this run's networks")
    flag("--resume", metavar="RUN",
         help="go on with this run; takes --updates, --device and --data only")
    flag("--smoke", action="store_true", help="small settings for a first look on a CPU")
    return parser


def check_settings(config):
    """Raises ValueError unless a checkpoint's settings could stand on the command line."""
    def refuse(reason):
        raise ValueError(f"its configuration: {reason}")
    parser = make_parser()
    parser.error = refuse
    if config.keys() - vars(parser.parse_args([])):  # --help among them
        refuse("other flags than this train.py's")
    words = [f"--{flag.replace('_', '-')}" + ("" if value is True else f"={value}")
             for flag, value in config.items() if value is not None and value is not False]
    given = YOUNG_FLAGS | config | dict(resume=None, smoke=False)
    if vars(parser.parse_args(words)) != given:
        refuse("flags are missing, or values of another type")


def read_settings():
    """Returns every flag by its name, and the checkpoint that --resume names."""
    parser, checkpoint = make_parser(), None
    args = parser.parse_args()
    if args.smoke:
        parser.set_defaults(**SMOKE)
    if args.resume:
        checkpoint = run.load_checkpoint(args.resume, check_settings)
        parser.set_defaults(**checkpoint["config"])
    config = vars(parser.parse_args())  # again, by the defaults of --smoke or the checkpoint
    for flag in ("resume", "smoke"):
        del config[flag]
    if checkpoint:
        if args.smoke or config["updates"] < checkpoint["step"]:
            run.fail("--resume stands alone, or with --device, with --data where data were moved, "
                     f"or with --updates of at least {checkpoint['step']}, where the run is now.")
        other = [f"--{flag.replace('_', '-')}"
                 for flag, value in (YOUNG_FLAGS | checkpoint["config"]).items()
                 if flag not in ("updates", "device", "data") and config[flag] != value]
        if other:
            run.fail(f"--resume goes on with the run's own settings; leave out {', '.join(other)}, "
                     "or start a new run from its networks with --init.")
        config["out"] = args.resume  # the folder may have been moved
    if not config["data"]:
        run.fail("nothing to train on: give --data a folder of slices, an .h5 file or the word "
                 "phantom, or try --smoke.")
    config["device"] = run.pick_device(config["device"])
    if config["lam"] is None:
        config["lam"] = baselines.LAM.get(config["method"], 10.0)
    if not config["out"]:
        settings = "{method}_lam{lam:g}_seed{seed}".format(**config)
        data = Path(os.path.abspath(config["data"]))  # "." has a name, too, and a link its own
        name = data.stem if data.is_file() else data.name  # only files have endings
        config["out"] = f"runs/{name}_{settings}"
    return config, checkpoint


def fail_over_another_run(folder, checkpoint):
    """Ends a new run that would overwrite another; two data sets can share a default name."""
    if not checkpoint and any(os.path.exists(folder / name) for name in run.CHECKPOINTS):
        data = run.load_checkpoint(folder)["config"].get("data")
        run.fail(f"{folder}: already holds a run, on {data}; go on with it by "
                 f"--resume {run.quoted(folder)}, or choose another --out.")


# ---------------------------------------------------------------- networks and optimisers

class State(NamedTuple):
    """Holds all that an update changes or draws from, as does a checkpoint."""
    theta: nn.ModuleDict          # {"G": the generator}; compared methods train more
    omega: nn.ModuleDict          # {"f": the critic}; likewise
    opt_G: torch.optim.Optimizer  # moves theta
    opt_f: torch.optim.Optimizer  # moves omega
    streams: dict                 # a torch.Generator each for x, y, phi, eps and for baselines.py
    step: int = 0                 # generator updates done when the loop begins
    seconds: float = 0.0          # and the time they took, with pictures and saving


def build(config):
    """Makes networks, optimisers (Sec. 3.4: Adam, beta 0 and 0.9) and streams from the seed."""
    torch.manual_seed(8 * config["seed"])  # for the initial weights, and nothing else
    if config["method"] in ("pi", "uapi"):
        theta = nn.ModuleDict({"G": UNet(width=config["width"])})
        omega = nn.ModuleDict({"f": Critic(width=config["critic_width"])})
    else:
        theta, omega = baselines.build_networks(config)
    theta, omega = theta.to(config["device"]), omega.to(config["device"])
    opt_G = torch.optim.Adam(theta.parameters(), lr=config["lr_g"], betas=(0.0, 0.9))
    opt_f = torch.optim.Adam(omega.parameters(), lr=config["lr_c"], betas=(0.0, 0.9))
    # Seeds 8 s + 1, ...: no stream shares its seed with the weights, or with another seed's stream.
    streams = {name: torch.Generator().manual_seed(8 * config["seed"] + k)
               for k, name in enumerate(("x", "y", "phi", "eps", "baselines"), 1)}
    return State(theta, omega, opt_G, opt_f, streams)


def resumed(state, checkpoint):
    """Returns the state as a checkpoint left it."""
    run.load_states({**state.theta, **state.omega}, checkpoint["networks"])
    run.load_states({"opt_G": state.opt_G, "opt_f": state.opt_f}, checkpoint)
    run.load_states(state.streams, checkpoint["streams"])
    return state._replace(step=checkpoint["step"], seconds=checkpoint["seconds"])


# ---------------------------------------------------------------- the loop

def train(config, slices, state):
    """Trains G and f in turn on two piles of slices (Sec. 3.4), which moves the state's weights.
    It is a Python generator: after every update it yields what follow() needs.

    config: every flag by its name; slices: data.Slices. What begins with run. is machinery: skip
    it. Where the paper is silent: batches are drawn with replacement. The released code trains f 30
    times per update at first and reuses G's batch.
    """
    G, f, opt_G, opt_f = state.theta["G"], state.omega["f"], state.opt_G, state.opt_f
    b, d, n_c = config["batch"], config["size"], config["critic_steps"]
    p, lam, uncertainty = config["p"], config["lam"], config["method"] == "uapi"
    device, streams = config["device"], state.streams
    X, Y = slices.on(device)
    step, n_updates = state.step, config["updates"]

    while step < n_updates:
        run.decay_rates(config, step, opt_G, opt_f)  # Sec. 3.4: constant
        # The critic: n_c updates of omega. theta stands still.
        for _ in range(n_c):
            x = draw(X, b, streams["x"], device)                       # (1) unrelated batches,
            y = draw(Y, b, streams["y"], device)                       #     [b,1,d,d] each
            phi = sample_phi(b, d, streams["phi"])                     # (2) a patch for each image
            eps = torch.rand(b, 1, 1, 1, generator=streams["eps"])     # (3) a number for each image
            x, y, phi, eps = run.my_share(x, y, phi, eps.to(device))   # all, without torchrun
            with run.bf16(config):
                with torch.no_grad():
                    fake = G.image(x)                                  # (4) G(x), no gradient
                risk_f = critic_loss(f, y, fake, phi, eps, p)          # (5) Eq. 5
            opt_f.zero_grad()
            risk_f.backward()
            run.average_gradients(f)
            opt_f.step()                                               # (6) moves omega

        # The generator: one update of theta. omega stands still.
        x = draw(X, b, streams["x"], device)                           # (7) a fresh batch
        phi = sample_phi(b, d, streams["phi"])                         # (8) and fresh patches
        x, phi = run.my_share(x, phi)
        f.requires_grad_(False)                                        # spares work
        with run.bf16(config):
            risk_G, terms = generator_loss(f, G, x, phi, lam, uncertainty)  # (9) Eq. 6, 9
        opt_G.zero_grad()
        risk_G.backward()
        run.average_gradients(G)
        opt_G.step()                                                   # (10) moves theta
        f.requires_grad_(True)
        step += 1
        # Nothing below this line changes a weight.
        yield step, risk_f, risk_G, terms, (x, y, eps)


# ---------------------------------------------------------------- what follows an update

def follow(loop, config, slices, folder, state):
    """Runs a loop, train() or its twin in baselines.py: says how far it is, logs, draws, saves, and
    ends it where a number is not finite or a signal asks for it."""
    G, f, n_updates = state.theta["G"], state.omega["f"], config["updates"]
    began = time.perf_counter() - state.seconds
    with run.catching_signals() as caught:
        for step, risk_f, risk_G, terms, (x, y, eps) in loop:
            run.progress(step, n_updates, "update")
            run.fail_unless_finite(folder, step, critic=risk_f, generator=risk_G, **terms)
            signal = run.signal_received(caught)
            if run.is_due(step, n_updates, 100, signal):
                # wasserstein: minus the critic's risk. slope: from this G(x) to the last y.
                slope = critic_slope(f, y, G.image(x).detach(), eps).mean()
                seconds = time.perf_counter() - began
                run.log(folder, config, step, seconds, wasserstein=-risk_f, slope=slope, **terms)
                if run.is_due(step, n_updates, 10, signal):
                    with_scale = config["method"] == "uapi" and config["lam"] > 0
                    plot_samples(folder / "samples" / f"{step:06d}.png", G, slices,
                                 config["device"], with_scale)
                    run.plot_curves([folder], folder / "curves.png")
                run.save(folder, config, step, seconds, state)
            if signal:
                run.end_after_signal(folder, step, signal)


@torch.no_grad()
def plot_samples(path, G, slices, device, with_scale):
    """Draws the images of Eq. 6 and 9 for three fixed slices, of evaluation if there are any. The
    scale is the patch's; those of ugac and uagc do not belong to patches and are left out."""
    inputs = slices.evaluation_input if len(slices.evaluation_input) else slices.input
    chosen, d = [len(inputs) * k // 6 for k in (1, 3, 5)], inputs.shape[-1]
    x = to_unit(torch.from_numpy(inputs[chosen]).unsqueeze(1)).to(device)
    size, first = int(0.7 * d), (d - int(0.7 * d)) // 2  # the middle
    phi = Phi(*(torch.full((3,), value) for value in (size, first, first)))
    (image, *_), (b, scale, *_) = G(x), G(patch(x, phi))
    a = patch(image, phi)
    columns = {"input\n$x$": x, "patch\n$P(x)$": patch(x, phi), "translation\n$G(x)$": image,
               "its patch\n$a = P(G(x))$": a, "patch, translated\n$b = G(P(x))$": b}
    columns = {title: 127.5 * (values.cpu() + 1) for title, values in columns.items()}
    if len(slices.evaluation_target):
        columns["truth\n(never seen)"] = slices.evaluation_target[chosen]
    columns["patch residual\n$|a - b|$"] = 127.5 * (a - b).abs().cpu()
    caption = ("Patch invariance (Eq. 6): a, the orange square cut out after the translation, and "
               "b, cut out before it, should be alike.")
    if with_scale:
        columns["scale\n$G^\\sigma(P(x))$"] = 127.5 * scale.cpu()
        caption += " The scale (Eq. 9) sees the patch alone and should be bright where they differ."
    run.make_folder(path.parent)
    picture_grid(path, columns.items(), 1 + with_scale, caption, ((0, 2), first, size))


# ---------------------------------------------------------------- the program

def prepared_state(config, checkpoint):
    """Returns the state to go on from: new, with the networks of --init, or the checkpoint's."""
    state = build(config)
    if checkpoint:
        return resumed(state, checkpoint)
    if config["init"]:
        networks = run.load_checkpoint(config["init"], check_settings)["networks"]
        run.load_states({**state.theta, **state.omega}, networks)
        if networks.keys() != {*state.theta, *state.omega}:  # cyclegan's would fit uapi's
            run.fail(f"--init {config['init']}: its method trains {', '.join(networks)}, not what "
                     f"--method {config['method']} trains; give a run of like networks.")
    return state


def main():
    config, checkpoint = read_settings()
    folder = Path(config["out"])
    fail_over_another_run(folder, checkpoint)  # before the slices are read, and once more after
    run.reuse_freed_memory()
    run.join_processes(config["device"])
    if distributed.is_initialized() and config["batch"] % distributed.get_world_size():
        run.fail("torchrun wants a --batch that its processes can share evenly.")
    for flag, value in config.items():
        print(f"  {flag:<14}{value}")
    run.warn_of_slow_bf16(config)
    try:
        slices = load(config["data"], config["size"])
        state = prepared_state(config, checkpoint)
        with run.claim_folder(folder):
            fail_over_another_run(folder, checkpoint)
            run.begin(folder, config, checkpoint)
            loop = train if config["method"] in ("pi", "uapi") else baselines.train
            follow(loop(config, slices, state), config, slices, folder, state)
    except (OSError, MemoryError, RuntimeError) as error:
        run.explain_failure(error, folder)
    print(f"finished: {folder}")
    if len(slices.evaluation_input):
        words = map(run.quoted, (folder, config["data"], folder / "evaluation"))
        print("evaluate it with: python evaluate.py {} --data {} --out {}".format(*words))
    run.leave_processes()


if __name__ == "__main__":
    run.start(main)
