"""The paper a second time, slow and obvious, and the toys that several test files share."""
import functools
import io
import itertools
import math
import sys
from contextlib import ExitStack, contextmanager, redirect_stderr
from statistics import fmean as mean
from unittest import mock

import torch
from torch import nn

import baselines
import data
import patch_op
import run
import train


# ---------------------------------------------------------------- the paper, slow and obvious

def agree(got, expected, equation, tolerance=1e-9):
    """Numbers or tensors agree everywhere; else the message holds the equation and both sides."""
    got, expected = (torch.as_tensor(v, dtype=torch.float64).detach() for v in (got, expected))
    assert got.shape == expected.shape, f"{equation}: {got.shape}, asked for {expected.shape}"
    got, expected = got.flatten(), expected.flatten()
    off = (got - expected).abs().nan_to_num(math.inf)
    n = off.argmax()
    assert off[n] <= tolerance, (f"{equation}\n  found          {got[n]:.10g}"
                                 f"\n  the paper asks {expected[n]:.10g}"
                                 f"\n  (entry {n} of {len(off)}; tolerance {tolerance:g})")


def noise(*shape, seed=0):
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=stream, dtype=torch.float64)


def phi_of(*settings):
    """(size, j1, j2) of every image -> Phi."""
    return patch_op.Phi(*torch.tensor(settings).T)


X, Y, FAKE = (noise(3, 1, 5, 5, seed=seed) for seed in (1, 2, 3))
PHI = phi_of((4, 1, 0), (5, 0, 0), (3, 0, 2))
EPS = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64).view(3, 1, 1, 1)
W, Q = noise(1, 5, 5, seed=4), 0.35


def critic(y, w=W, q=Q):
    """f(y) = sum_j w_j y_j + q/2 y_j^2, so grad f = w + q y, by hand; [b,1,5,5] -> [b]."""
    return (w * y + q / 2 * y ** 2).sum(dim=(1, 2, 3))


def generator(x, gain=0.8):
    """Image and scale depend on where a pixel lies, so that G(P(x)) and P(G(x)) differ."""
    ramp = torch.linspace(0.5, 1.5, x.shape[-1], dtype=x.dtype)
    return gain * x * ramp + 0.1 * x ** 2, 0.3 + 0.1 * (gain * x * ramp) ** 2


def pixels(image):
    return image.flatten().tolist()


def difference(risk, w, index, step=1e-5):
    """The slope of a risk in one entry of w, by central differences."""
    nudge = torch.zeros_like(w)
    nudge[index] = step
    return (risk(w + nudge).item() - risk(w - nudge).item()) / (2 * step)


def naive_patch(x, phi):
    """Eq. 4, pixel by pixel: Keys' kernel with a = -0.5, no taps outside the crop."""
    def kernel(t):
        if abs(t) <= 1:
            return 1.5 * abs(t) ** 3 - 2.5 * t ** 2 + 1
        return -0.5 * abs(t) ** 3 + 2.5 * t ** 2 - 4 * abs(t) + 2 if abs(t) < 2 else 0.0

    def taps(i, size, d):
        weights = {k: kernel((i + 0.5) * size / d - 0.5 - k) for k in range(size)}
        return [(k, weight / sum(weights.values())) for k, weight in weights.items()]

    out, d = torch.zeros_like(x), x.shape[-1]
    for n, (size, j1, j2) in enumerate(zip(*(v.tolist() for v in phi))):
        for c, i, j in itertools.product(range(x.shape[1]), range(d), range(d)):
            out[n, c, i, j] = sum(u * v * x[n, c, j1 + k, j2 + m].item()
                                  for k, u in taps(i, size, d) for m, v in taps(j, size, d))
    return out


def naive_f(y):
    return [sum(w * v + Q / 2 * v * v for w, v in zip(pixels(W), pixels(image))) for image in y]


def naive_penalty(y, fake, eps):
    """Last term of Eq. 2, not yet times p, with grad f = w + q y~."""
    slopes = [math.hypot(*(w + Q * (e * u + (1 - e) * v) for w, u, v in zip(pixels(W), *images)))
              for e, *images in zip(pixels(eps), map(pixels, fake), map(pixels, y))]
    return mean(max(slope - 1, 0) ** 2 for slope in slopes)


def naive_eq2(y, fake, eps, p):
    return mean(naive_f(fake)) - mean(naive_f(y)) + p * naive_penalty(y, fake, eps)


def naive_eq5(y, fake, phi, eps, p):
    y_patch, fake_patch = naive_patch(y, phi), naive_patch(fake, phi)
    return naive_eq2(y, fake, eps, p) + mean(naive_f(fake_patch)) - mean(naive_f(y_patch))


def naive_eq6(x, phi, lam, uncertainty):
    """Eq. 6 with the generator above, and Eq. 9 or its own last term -> risk, l_patch."""
    image, (b, scale) = generator(x)[0], generator(naive_patch(x, phi))
    a = naive_patch(image, phi)
    l_patch = mean(abs(v - u) / s + math.log(2 * s) if uncertainty else abs(v - u)
                   for u, v, s in zip(*map(pixels, (a, b, scale))))
    return -mean(naive_f(image)) - mean(naive_f(a)) + lam * l_patch, l_patch


# ---------------------------------------------------------------- toy networks and runs

TINY = dict(data="phantom", method="uapi", lam=10.0, p=10.0, size=64, batch=2, updates=2,
            critic_steps=3, lr_g=5e-5, lr_c=2e-5, width=1, critic_width=1, seed=0, bf16=False,
            device="cpu", out=None, init=None)
FAST = "--data phantom --size 64 --width 1 --critic-width 1 --batch 2 --critic-steps 1".split()


@functools.cache
def tiny_slices(size=64, phantoms=data.phantoms):
    return phantoms(size, subjects=3, slices=2)


class ToyG(nn.Module):
    """Two convolutions with the generator's manners: where a loop is audited, this is enough."""
    def __init__(self, width):
        super().__init__()
        self.shared = nn.Conv2d(1, 2, 3, padding=1)
        self.scale_head = nn.Conv2d(2, 1, 3, padding=1)

    def image(self, x):
        return torch.tanh(self.shared(x).sum(dim=1, keepdim=True) + x)

    def forward(self, x):
        h = self.shared(x)
        image = torch.tanh(h.sum(dim=1, keepdim=True) + x)
        return image, nn.functional.softplus(self.scale_head(h)) + 0.01


class ToyF(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.shared = nn.Conv2d(1, 2, 5, stride=3)

    def forward(self, y):
        return self.shared(y).square().mean(dim=(1, 2, 3))


@contextmanager
def replaced(**stand_ins):
    """Inside, these names mean other things in train.py, baselines.py and run.py, wherever they
    occur; pictures are not drawn unless asked for."""
    stand_ins = dict(draw_samples=lambda *_: None, draw_curves=lambda *_: None) | stand_ins
    with ExitStack() as stack:
        for module in (train, baselines, run):
            for name in stand_ins.keys() & vars(module).keys():
                stack.enter_context(mock.patch.object(module, name, stand_ins[name]))
        yield


def trained(folder, slices=None, **changes):
    """The state after a run of TINY's settings, some of them changed."""
    config = TINY | changes
    state = train.build(config)
    loop = train.train if config["method"] in ("pi", "uapi") else baselines.train
    with replaced():
        loop(config, slices or tiny_slices(), folder, state)
    return state


def go(*words, program=train, **stand_ins):
    """Runs a program's command line in this process, on few phantoms."""
    words = [f"{program.__name__}.py", *map(str, words)]
    with (replaced(**stand_ins), mock.patch.object(sys, "argv", words),
          mock.patch.object(data, "phantoms", tiny_slices)):
        program.main()


def refused(call, *words, **options):
    """What a call that must end with exit code 2 says on stderr: one sentence."""
    with redirect_stderr(io.StringIO()) as said:
        try:
            call(*words, **options)
        except SystemExit as stop:
            assert stop.code == 2, f"exit code {stop.code}"
        else:
            raise AssertionError("it went on")
    error = said.getvalue()
    assert error.startswith("error: ") and error.count("\n") == 1, error
    return error


def everything(folder):
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def untimed_log(folder):
    return [{name: value for name, value in row.items()
             if name not in ("seconds", "images_per_second")} for row in run.read_log(folder)]


def equal(one, other):
    """Bit for bit, however deep."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.equal(one, other)
    return one is other or type(one) is type(other) and one == other
