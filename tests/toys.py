"""Toy networks, tiny runs, and the programs' command lines run in this process."""
import functools
import io
import sys
from contextlib import ExitStack, contextmanager, redirect_stderr
from unittest import mock

import torch
from torch import nn

import baselines
import data
import run
import train

TINY = dict(data="phantom", method="uapi", lam=10.0, p=10.0, size=64, batch=2, updates=2,
            critic_steps=3, lr_g=5e-5, lr_c=2e-5, decay=0.0, width=1, critic_width=1, seed=0,
            bf16=False, device="cpu", out=None, init=None)
FAST = "--data phantom --size 64 --width 1 --critic-width 1 --batch 2 --critic-steps 1".split()


@functools.cache
def tiny_slices(size=64, phantom_slices=data.phantom_slices):
    return phantom_slices(size, subjects=3, slices=2)


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
    stand_ins = dict(plot_samples=lambda *_: None, plot_curves=lambda *_: None) | stand_ins
    with ExitStack() as stack:
        for module in (train, baselines, run):
            for name in stand_ins.keys() & vars(module).keys():
                stack.enter_context(mock.patch.object(module, name, stand_ins[name]))
        yield


def double_precision(**stand_ins):
    """Inside, everything is trained in float64. Adam divides each gradient by its own size, so in
    float32 the rounding of a gradient that is 0 on paper, as of every bias before a norm, becomes
    a step as large as any other, and another one on another CPU."""
    build = train.build

    def build_double(config):
        torch.set_default_dtype(torch.float64)
        try:
            return build(config)
        finally:
            torch.set_default_dtype(torch.float32)
    return replaced(build=build_double, draw=lambda *words: data.draw(*words).double(), **stand_ins)


def grey_levels(*shape, seed=0):
    return 255 * torch.rand(*shape, generator=torch.Generator().manual_seed(seed),
                            dtype=torch.float64)


def toy(gain):
    """A translation that can be written down, and a scale that differs from pixel to pixel."""
    return lambda x: (gain * x, 0.2 + 0.1 * x ** 2 + 0.05 * x)


def toy_with_beta(u):
    """A translation with a generalized Gaussian map, as UGAC's."""
    return 0.9 * u, 0.3 + 0.1 * u ** 2, 0.5 + (u + 1)


def saved(folder, G, **changes):
    """A run's folder as train.py leaves it, with this generator and TINY's settings, some of them
    changed."""
    config = TINY | changes
    state = train.build(config)
    folder.mkdir(parents=True, exist_ok=True)
    run.save(folder, config, 1, 0.0, state._replace(theta=nn.ModuleDict({"G": G})))
    return folder


def loop_of(config):
    return train.train if config["method"] in ("pi", "uapi") else baselines.train


def exhaust(updates):
    """Runs a loop to its end without looking at what it yields: a generator does nothing by itself."""
    for _ in updates:
        pass


def trained(folder, slices=None, **changes):
    """The state after a run of TINY's settings, some of them changed, with all that follows an
    update."""
    config, slices = TINY | changes, slices or tiny_slices()
    state = train.build(config)
    with replaced():
        train.follow(loop_of(config)(config, slices, state), config, slices, folder, state)
    return state


def twins_networks():
    """What three float64 updates of the twin loop make of two methods' networks: gcgan's critics
    share their images, cyclegan trains two generators, and both its critics see x and y. A mistake
    shows as steps of Adam, 1e-6 here; rounding, as of biases before a norm, is 1e-5 of that."""
    found = {}
    with double_precision():
        for method in ("gcgan", "cyclegan"):
            config = TINY | dict(method=method, batch=4, updates=3, critic_steps=2, lr_g=1e-6,
                                 lr_c=1e-6)
            state = train.build(config)
            exhaust(loop_of(config)(config, tiny_slices(), state))
            for name, network in {**state.theta, **state.omega}.items():
                found[f"{method}'s {name}"] = network.state_dict()
    return found


def go(*words, program=train, **stand_ins):
    """Runs a program's command line in this process, on few phantoms."""
    words = [f"{program.__name__}.py", *map(str, words)]
    with (replaced(**stand_ins), mock.patch.object(sys, "argv", words),
          mock.patch.object(data, "phantom_slices", tiny_slices)):
        program.main()


def refused(call, *words, warned=False, **options):
    """What a call that must end with exit code 2 says on stderr: one sentence, after others only
    where it has warned before."""
    with redirect_stderr(io.StringIO()) as said:
        try:
            call(*words, **options)
        except SystemExit as stop:
            assert stop.code == 2, f"exit code {stop.code}"
        else:
            raise AssertionError("it went on")
    *before, last = said.getvalue().splitlines()
    assert last.startswith("error: ") and (warned or not before), said.getvalue()
    assert not any(line.startswith(("error: ", "Traceback")) for line in before), before
    return said.getvalue()


def files_in(folder):
    """Every file below a folder by its relative path, with its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob("*")) if path.is_file()}


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
