"""What one generator update with its critic updates costs, beside an obvious way to write it.

    python tests/benchmark.py --size 128 --batch 8      other settings of train.py as there

Not a test: run it by hand on a machine that does nothing else. It trains on noise and prints JSON.

seconds      median of --repeats updates by train.train() itself, without log, pictures and saving
peak MB      after two updates of one critic step: on CUDA what torch allocated, else the resident
             set. More critic steps do not change it. "before" is Python and torch alone
obvious way  both heads in every critic update, four calls of f, every patch cropped and zoomed by
             itself; test_benchmark.py asserts that its risks are ours. The ratio is of neighbours
GFLOP        of convolutions and the patches' products, forward, backward, and back through the
             penalty's gradient; 2 for a multiplication and addition
share        GFLOP/s over those of one 3x3 convolution, 64 to 64 channels, forward, at the same
             size and batch
"""
import json
import resource
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import losses
import run
import train
from data import Slices
from nets import UNet


def obvious_patch(x, phi):
    """Eq. 4 as one would write it first; antialias=True only chooses TensorFlow's kernel."""
    crops = (image[None, :, j1:j1 + size, j2:j2 + size]
             for image, size, j1, j2 in zip(x.float(), *(v.tolist() for v in phi)))
    return torch.cat([F.interpolate(c, x.shape[2:], mode="bicubic", antialias=True) for c in crops])


def obvious_critic_loss(f, y, fake, phi, eps, p):
    patches = f(obvious_patch(fake, phi)) - f(obvious_patch(y, phi))
    return losses.wasserstein_critic_loss(f, y, fake, eps, p) + patches.mean()


def obvious_generator_loss(f, G, x, phi, lam, uncertainty=True):
    (image, _), (b, scale) = G(x), G(obvious_patch(x, phi))
    a = obvious_patch(image, phi)
    return -f(image).mean() - f(a).mean() + lam * losses.patch_laplace(a, b, scale), {}


OURS = losses.critic_loss, losses.generator_loss, UNet.image
OBVIOUS = obvious_critic_loss, obvious_generator_loss, lambda G, x: G(x)[0]


def update(way, config, slices, state):
    """One generator update and its critic updates by train.train, one way or the other."""
    risks = dict(zip(("critic_loss", "generator_loss"), way))
    with mock.patch.multiple(train, **risks), mock.patch.object(UNet, "image", way[2]):
        for _ in train.train(config | {"updates": 1}, slices, state):
            pass  # the update is over


class Count(TorchDispatchMode):
    """Adds up torch's FLOP formulas; FlopCounterMode's hooks do not survive the penalty."""
    flops = 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        out = operator(*args, **(kwargs or {}))
        formula = flop_registry.get(operator._overloadpacket)
        self.flops += formula(*args, **(kwargs or {}), out_val=out) if formula else 0
        return out


def peak(device):
    resident = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB
    return (torch.cuda.max_memory_allocated() if "cuda" in device else resident) / 1e6


def seconds(device, work):
    wait = getattr(torch, torch.device(device).type).synchronize
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start


def measure(config):
    """-> {quantity: number}. To be called first in a process, or the peak is another's."""
    b, d, device = config["batch"], config["size"], config["device"]
    found = {"peak MB, before": peak(device)}
    pixels = np.random.default_rng(0).integers(0, 256, (32, d, d), dtype=np.uint8)
    slices, state = Slices(pixels, pixels, pixels[:0], pixels[:0], {}), train.build(config)
    for _ in range(2):
        update(OURS, config | {"critic_steps": 1}, slices, state)
    found["peak MB"] = peak(device)
    with Count() as count:
        update(OURS, config, slices, state)
    kind = {"device": device, "dtype": torch.bfloat16 if config["bf16"] else torch.float32}
    maps, kernel = torch.rand(b, 64, d, d, **kind), torch.rand(64, 64, 3, 3, **kind)
    works = (lambda: update(OBVIOUS, config, slices, state),
             lambda: update(OURS, config, slices, state), lambda: F.conv2d(maps, kernel, padding=1))
    # All in turn: what slows the machine slows them all. The first round fills caches.
    rounds = [[seconds(device, work) for work in works] for _ in range(config["repeats"] + 1)][1:]
    obvious, ours, convolution = np.array(rounds).T
    rate, best = count.flops / np.median(ours), 2 * b * 64 * 64 * 9 * d * d / np.median(convolution)
    return found | {"seconds per update": np.median(ours), "GFLOP": count.flops / 1e9,
                    "GFLOP/s": rate / 1e9, "share": rate / best,
                    "obvious way / ours": np.median(obvious / ours)}


def main():
    parser = train.make_parser()
    parser.description = __doc__
    parser.add_argument("--repeats", type=run.bounded(int, 1, 1000), default=5,
                        help="rounds that count, after one that does not; default 5")
    config = vars(parser.parse_args()) | {"lam": 10.0}
    config["device"] = run.pick_device(config["device"])
    run.reuse_freed_memory()
    config |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    print(json.dumps(config | measure(config), indent=2))


if __name__ == "__main__":
    main()
