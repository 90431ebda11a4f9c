"""What one generator update costs, where its time goes, and what an obvious implementation of the same risks would cost.

    python tests/benchmark.py                            the paper's networks and batch at 64x64 and 128x128
    python tests/benchmark.py --size 64 --batch 2 4 8    every combination of sizes, batches, widths and critic steps

Not a test: nothing is asserted about time. Run it by hand, on a machine that does nothing else.

Seconds     Median of --repeats updates: n_c critic updates and one of the generator, the two blocks of train.train.
Split       From further updates with a stopwatch between the steps (on CUDA it waits for the device at each), so "rest", the
            total less the parts, can fall below 0. The penalty cannot be cut out of critic_loss: it is timed by itself,
            forward and backward, on inputs of the same kind, and "critic" is what it leaves.
Reference   Both heads in every critic update, four calls of f besides the penalty's, every patch cropped and interpolated by
            itself; it must find our risks to 1e-4 before anything is timed. The ratio is the median of ratios of neighbours:
            reference, ours, reference, ours, ... in one process.
FLOP        Counted while one update runs: 2 for a multiplication and an addition in convolutions (forward, backward, double
            backward) and in the patches' products, 0 for the rest; flops_by_hand must agree: "counted / by hand" is 1.
Rates       FLOP/s against one 3x3 convolution, 64 to 64 channels, forward, at the same size and batch, and a product of two
            2048x2048 matrices, in the same process and, with --bf16, in bfloat16 as well.
Tried       Ratios of times, below 1 is faster; one or two x86-64 cores, d = 128 and batch 8 unless said, medians of few pairs.
            Kept: a critic without torch's zero second derivative, critic update 0.93 (nets.leaky); group norm for instance
            norm, G 0.92; glibc keeps freed memory, update of two critic steps 0.63 at d = 256 (train.keep_memory); LeakyReLU
            in place in G, 0.9 at d = 256, with 12 % less memory. Not kept: the upsampling folded into its convolution, G 0.90 here but 1.39 at
            d = 64, width 8; fakes of five critic updates in one pass 1.16; G(x) and G(P(x)) in one pass 1.17; channels_last
            1.02 to 1.09; flush_denormal 1.01; fused Adam 0.33 of its own 0.4 %; the scale head of G(x) left out of Eq. 6 and 9
            1.00. Zero padding instead of reflection would be 0.85, and another function. Not tried: a captured CUDA graph.
Memory      Peak of a process of its own that runs two updates of one critic step (n_c does not change it): on CUDA what torch
            allocated, else the resident set; "before" is Python and torch alone.
"""
import argparse
import itertools
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from data import draw, fail, make_folder, to_device
from evaluate import perturb_all, score, translate
from losses import critic_loss, generator_loss, gradient_penalty, patch_laplace
from nets import Critic, UNet, layer_table
from patch_op import sample_phi
from train import build, image_size, keep_memory, make_parser, pick_device, whole

PARTS = ("data", "generator forward", "critic", "penalty", "generator step", "optimisers")


def obvious_patch(x, phi):
    """Eq. 4 as one would write it first. antialias=True only chooses the kernel: torch has another one without it."""
    d = x.shape[-1]
    crops = (image[None, :, j1:j1 + size, j2:j2 + size] for image, size, j1, j2 in zip(x.float(), *(v.tolist() for v in phi)))
    return torch.cat([F.interpolate(crop, (d, d), mode="bicubic", antialias=True) for crop in crops])


def obvious_critic_loss(f, y, fake, phi, eps, p):
    patches = f(obvious_patch(fake, phi)) - f(obvious_patch(y, phi))
    return (f(fake) - f(y) + patches).mean() + p * gradient_penalty(f, y, fake, eps)


def obvious_generator_loss(f, G, x, phi, lam):
    (image, _), (b, scale) = G(x), G(obvious_patch(x, phi))
    a = obvious_patch(image, phi)
    return -f(image).mean() - f(a).mean() + lam * patch_laplace(a, b, scale), {}


WAYS = {"ours": (lambda G, x: G.image(x), critic_loss, generator_loss),
        "reference": (lambda G, x: G(x)[0], obvious_critic_loss, obvious_generator_loss)}


def update(way, state, images, config, tick=lambda part: None):
    """The two blocks of train.train, in one of WAYS; tick(part) ends a part. -> y, fake, eps and both risks, the last of each."""
    b, d, p, lam, device = (config[flag] for flag in ("batch", "size", "p", "lam", "device"))
    theta, omega, opt_G, opt_f, streams, *_ = state
    G, f, (image, critic_risk, generator_risk) = theta["G"], omega["f"], WAYS[way]
    amp = torch.autocast(torch.device(device).type, torch.bfloat16, enabled=config["bf16"])

    for _ in range(config["critic_steps"]):
        x, y = draw(images, b, streams["x"], device), draw(images, b, streams["y"], device)
        phi = sample_phi(b, d, streams["phi"])
        eps = torch.rand(b, 1, 1, 1, generator=streams["eps"]).to(device)
        tick("data")
        with amp:
            with torch.no_grad():
                fake = image(G, x)
            tick("generator forward")
            risk_f = critic_risk(f, y, fake, phi, eps, p)
        opt_f.zero_grad()
        risk_f.backward()
        tick("critic")
        opt_f.step()
        tick("optimisers")

    x = draw(images, b, streams["x"], device)
    phi = sample_phi(b, d, streams["phi"])
    tick("data")
    omega.requires_grad_(False)
    with amp:
        risk_G, _ = generator_risk(f, G, x, phi, lam)
    opt_G.zero_grad()
    risk_G.backward()
    tick("generator step")
    opt_G.step()
    tick("optimisers")
    omega.requires_grad_(True)
    return y, fake, eps, risk_f, risk_G


def check_same_risks(config, images):
    """Ends the benchmark where the two ways disagree. lr = 0: Adam's first step is +-lr even where the gradient is rounding."""
    config = config | {"critic_steps": 1, "lr_g": 0.0, "lr_c": 0.0, "bf16": False}
    ours, reference = ([risk.item() for risk in update(way, build(config), images, config)[3:]] for way in WAYS)
    if not np.allclose(ours, reference, rtol=1e-4, atol=1e-4):
        fail(f"the reference finds other risks than train.py's code: {reference} for critic and generator, not {ours}.")


class Count(TorchDispatchMode):
    """Adds up torch's FLOP formulas, as its FlopCounterMode does, whose hooks do not survive the penalty's autograd.grad."""
    flops = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        out = operator(*args, **(kwargs or {}))
        formula = flop_registry.get(operator._overloadpacket)
        self.flops += formula(*args, **(kwargs or {}), out_val=out) if formula else 0
        return out


def flops_by_hand(config):
    """The FLOP of our update from the layers' shapes. Per image a convolution costs F = 2 K C k^2 H W forward, F for its weights'
    gradient and F for its input's; a patch 4 d^3. No gradient: x, y, fake and patches in critic steps, f's weights and the
    scale of G(x) in the generator's. The penalty takes 4F: f forward, its gradient, and back through that gradient 2F; f is
    piecewise linear and nets.leaky tells autograd so, or 2F more would go into zeros."""
    d = config["size"]
    G, f = ({name: flops for name, _, _, flops in layer_table(network, 1, d)}
            for network in (UNet(width=config["width"]), Critic(width=config["critic_width"])))
    G_first, G_scale, f_first = G["down.0.0.0"], sum(G[k] for k in G if k.startswith("scale")), f["down.0"]
    G, f, patch = sum(G.values()), sum(f.values()), 4 * d ** 3
    critic_step = G - G_scale + 4 * (3 * f - f_first) + 4 * f + 2 * patch
    generator = 2 * (3 * G - G_first) - 2 * G_scale + 4 * f + 3 * patch
    return config["batch"] * (config["critic_steps"] * critic_step + generator)


def stopwatch(device):
    """-> {part: seconds so far}, and tick(part), which gives the time since the last tick to this part."""
    spent, ticks = {}, [time.perf_counter()]

    def tick(part):
        getattr(torch, torch.device(device).type).synchronize()
        ticks.append(time.perf_counter())
        spent[part] = spent.get(part, 0.0) + ticks[-1] - ticks[-2]
    return spent, tick


def measure(config):
    """One setting -> {quantity: number}, all but memory."""
    b, d, device = (config[flag] for flag in ("batch", "size", "device"))
    pixels = np.random.default_rng(0).integers(0, 256, (32, d, d), dtype=np.uint8)
    images, states, flops = to_device(pixels, device), {way: build(config) for way in WAYS}, {}
    check_same_risks(config, images)
    for way in WAYS:
        with Count() as count:
            y, fake, eps, *_ = update(way, states[way], images, config)
        flops[way] = count.flops / 1e9
    G, f, dtype = states["ours"][0]["G"], states["ours"][1]["f"], torch.bfloat16 if config["bf16"] else torch.float32
    maps, kernel, square = (torch.rand(s, device=device, dtype=dtype) for s in ((b, 64, d, d), (64, 64, 3, 3), (2048, 2048)))
    truth, patients = torch.from_numpy(pixels).unsqueeze(1).float(), np.arange(len(pixels))
    works = {"reference": lambda: update("reference", states["reference"], images, config),
             "ours": lambda: update("ours", states["ours"], images, config),
             "judging": lambda: score(translate(G, perturb_all(pixels, "GN5"), device)[0], truth, patients),
             "one penalty": lambda: gradient_penalty(f, y, fake, eps).backward(),
             "convolution": lambda: F.conv2d(maps, kernel, padding=1), "product": lambda: square @ square}
    rounds = []
    for _ in range(config["repeats"] + 1):  # all in turn: what slows the machine for a while slows them all
        spent, tick = stopwatch(device)
        update("ours", states["ours"], images, config, tick)
        for name, work in works.items():
            work()
            tick(name)
        rounds.append(spent)
    rounds = rounds[1:]  # the first fills caches and memory pools
    t = {name: float(np.median([spent[name] for spent in rounds])) for name in rounds[0]}
    t["penalty"] = config["critic_steps"] * t["one penalty"]
    t["critic"] -= t["penalty"]
    flops |= {"convolution": 2e-9 * b * 64 * 64 * 9 * d * d, "product": 2e-9 * 2048 ** 3}
    rate = {name: flops[name] / t[name] for name in ("ours", "convolution", "product")}
    return {"seconds per update": t["ours"], **{f"seconds, {part}": t[part] for part in PARTS},
            "seconds, rest": t["ours"] - sum(t[part] for part in PARTS),
            "slowest / fastest": max(spent["ours"] for spent in rounds) / min(spent["ours"] for spent in rounds),
            "seconds per update, reference": t["reference"],
            "reference / ours": float(np.median([spent["reference"] / spent["ours"] for spent in rounds])),
            "GFLOP": flops["ours"], "GFLOP, reference": flops["reference"],
            "counted / by hand": 1e9 * flops["ours"] / flops_by_hand(config),
            **{f"GFLOP/s, {name}": value for name, value in rate.items()},
            **{f"ours / {name}": rate["ours"] / rate[name] for name in ("convolution", "product")},
            "seconds, noise, translation and scores of 1,000 images": t["judging"] / len(pixels) * 1000}


def peak(config, way):
    """Peak memory in MB of this process, which does nothing else, before and after two updates."""
    def reached():
        resident = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB
        return (torch.cuda.max_memory_allocated() if "cuda" in config["device"] else resident) / 1e6

    before, config, d = reached(), config | {"critic_steps": 1}, config["size"]
    state, images = build(config), to_device(np.zeros((32, d, d), np.uint8), config["device"])
    update(way, state, images, config)
    update(way, state, images, config)
    return {"peak MB, before": before, f"peak MB, {way}": reached()}


def elsewhere(job, config):
    """One job in a fresh process. This one must never run a network: on Linux a child's peak starts from its parent's."""
    child = subprocess.run([sys.executable, __file__, "--job", json.dumps([job, config])], stdout=subprocess.PIPE, text=True)
    return json.loads(child.stdout) if child.returncode == 0 else sys.exit(child.returncode)  # the child has said why


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flag = parser.add_argument
    flag("--size", type=image_size, nargs="+", default=[64, 128], help="sides of the images, default 64 128; the paper's is 256")
    flag("--batch", type=whole(1), nargs="+", default=[8], help="images in a batch, default 8, the paper's")
    flag("--width", type=whole(1), nargs="+", default=[16], help="widths of the generator's first level, default 16, the paper's")
    flag("--critic-width", type=whole(1), default=32, help="width of the critic's first level, default 32, the paper's")
    flag("--critic-steps", type=whole(1), nargs="+", default=[15], help="critic updates per update, default 15, the paper's")
    flag("--repeats", type=whole(1), default=5, help="rounds that count, after one that does not; default 5")
    flag("--threads", type=whole(1), help="CPU threads; default: torch's choice")
    flag("--device", help="cuda or cpu; default: cuda where there is one, else cpu")
    flag("--bf16", action="store_true", help="as train.py --bf16")
    flag("--out", metavar="FILE", help="write settings and numbers to this .json as well")
    flag("--job", help=argparse.SUPPRESS)
    parser.error = fail
    args = parser.parse_args()
    if args.job:
        job, config = json.loads(args.job)
        torch.set_num_threads(config["threads"])
        keep_memory()
        return print(json.dumps(measure(config) if job == "time" else peak(config, job)))

    machine = {"torch": torch.__version__, "device": pick_device(args.device), "threads": args.threads or torch.get_num_threads(),
               "bf16": args.bf16, "critic_width": args.critic_width, "repeats": args.repeats}
    rows = []
    for values in itertools.product(args.size, args.batch, args.width, args.critic_steps):
        setting = dict(zip(("size", "batch", "width", "critic_steps"), values))
        config = vars(make_parser().parse_args([])) | {"method": "uapi", "lam": 10.0} | machine | setting
        rows.append(setting | elsewhere("time", config) | elsewhere("ours", config) | elsewhere("reference", config))
    lines = [f"| {name} | " + " | ".join(f"{row[name]:.4g}" for row in rows) + " |" for name in rows[0]]
    print(machine, "", lines[0], "|---" * (len(rows) + 1) + "|", *lines[1:], sep="\n")
    if args.out:
        make_folder(Path(args.out).parent)
        Path(args.out).write_text(json.dumps({**machine, "settings": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
