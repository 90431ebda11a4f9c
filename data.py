"""Slices in, batches out (Sec. 4.1): two piles of images in which no two belong together, and pairs to judge by.

    python data.py [DATA] [--size 256] [--h5 FILE]    prints what is there, draws data.png and, with --h5, packs it

DATA is one of
    a folder in the authors' layout     input/*  target/*  evaluation/NAME_input.*  evaluation/NAME_target.*
    a folder in CycleGAN's layout       trainA/* trainB/*  testA/NAME.*             testB/NAME.*
    an .h5 file                         input, target, evaluation_input, evaluation_target: uint8 [n,h,w], each with
                                        its names beside it in input_names, ...: strings [n]
    phantom                             built-in heads, made here from a seed
Evaluation without targets (or without equal names) is unpaired: translations can be drawn, not scored.
A name begins with its patient, up to the first underscore: IXI022-Guys-0701_026_t1.jpg.
"""
import argparse
import functools
import io
import os
import sys
import tokenize
import warnings
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image

from patch_op import Phi, patch
from run import fail, make_folder, progress, replace_file

SETS = ("input", "target", "evaluation_input", "evaluation_target")
ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy")
# What Pillow, numpy and h5py raise over a file that is not what it seems.
READ_ERRORS = (OSError, EOFError, SyntaxError, tokenize.TokenError, ValueError, KeyError, TypeError, ArithmeticError, MemoryError,
               RuntimeError, Image.DecompressionBombError, Image.DecompressionBombWarning)
say_once = functools.cache(lambda sentence: print(sentence, file=sys.stderr))


class Slices(NamedTuple):
    """One data set in memory; images are uint8 [n,d,d]. Pairs share their index; no pairs: evaluation_target is empty."""
    input: np.ndarray
    target: np.ndarray
    evaluation_input: np.ndarray
    evaluation_target: np.ndarray
    names: dict                       # set -> list of n names
    noise: np.ndarray | None = None   # phantoms only: true Laplace scale of evaluation_target's noise, grey levels [n,d,d]

    def on(self, device):
        """input and target as torch uint8 [n,1,d,d], on the device where each fills at most half of what is free."""
        piles = [torch.from_numpy(images).unsqueeze(1) for images in (self.input, self.target)]
        cuda = torch.device(device).type == "cuda"
        return [pile if cuda and pile.numel() > torch.cuda.mem_get_info(device)[0] / 2 else pile.to(device)
                for pile in piles]


def patient(name):
    return name.split("_")[0]


# ---------------------------------------------------------------- one image

def to_grey_levels(values, path):
    """An array of numbers -> uint8 [h,w]. 8-bit stays as it is; everything else is scaled so that this image's smallest
    value becomes 0 and its largest 255 (a constant image becomes 0). ValueError: not one finite grey image."""
    # A single pixel is no image, and fit() would make a huge square of a long strip.
    if values.ndim != 2 or values.dtype.kind not in "uifb" or min(values.shape) < 2 or max(values.shape) > 8192:
        raise ValueError(f"{path}: wants one grey image of numbers, sides of 2 to 8192, got {values.dtype} {values.shape}")
    if values.dtype == np.uint8:
        return np.array(values)
    with np.errstate(all="ignore"):  # whatever overflows ends as NaN
        values = np.asarray(values, np.float64)
        low, span = values.min(), np.ptp(values)
        values = (values - low) * (255 / span if span else 0)
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: holds NaN, infinity, or a range too large or too small to be scaled")
    say_once("images that are not 8-bit are scaled one by one: smallest value to 0, largest to 255")
    return np.rint(values).astype(np.uint8)


def read_grey(path):
    """A picture file -> uint8 [h,w]: colour to grey (ITU-R 601), 16-bit and float scaled per image to [0,255].
    ValueError, one sentence: unreadable, animated, with transparency, or not one grey image."""
    try:
        if not os.path.isfile(path):  # opening a pipe would wait for ever
            raise ValueError("no file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if Path(path).suffix.lower() == ".npy":
                values = np.lib.format.open_memmap(path, mode="r")  # mapped, not loaded: its header may claim any size
            else:
                with Image.open(path, formats=("PNG", "JPEG", "TIFF")) as picture:
                    frames, mode = getattr(picture, "n_frames", 1), picture.mode
                    if frames > 1 or mode == "CMYK" or picture.has_transparency_data:
                        raise ValueError(f"{frames} frames, {mode}; wants one, grey or RGB, without transparency")
                    values = np.asarray(picture.convert("L") if mode in ("RGB", "P", "1", "YCbCr") else picture)
    except READ_ERRORS as error:
        raise ValueError(f"{path}: cannot be read as an image ({error})") from None
    return to_grey_levels(values, path)


def fit(grey, size):
    """uint8 [h,w] -> uint8 [size,size]: padded to a square with its own minimum (the image in the middle), then resized
    by Pillow's box filter when it shrinks (each pixel the mean of those it covers), by its bicubic when it grows."""
    (h, w), side = grey.shape, max(grey.shape)
    top, left = (side - h) // 2, (side - w) // 2
    square = np.pad(grey, ((top, side - h - top), (left, side - w - left)), constant_values=grey.min())
    kernel = Image.Resampling.BOX if side > size else Image.Resampling.BICUBIC
    return np.array(Image.fromarray(square).resize((size, size), kernel))


@torch.no_grad()
def draw_samples(path, G, slices, device, with_scale):
    """The row that Eq. 6 and 9 are about, for four fixed slices (of evaluation, where there are any): residual and scale
    belong to the two patches and share one colour bar. G(x) -> image, scale; for ugac the scale is alpha."""
    inputs, truth = slices.evaluation_input if len(slices.evaluation_input) else slices.input, slices.evaluation_target
    chosen, d = [len(inputs) * k // 4 for k in range(4)], inputs.shape[-1]
    x = to_unit(torch.from_numpy(inputs[chosen]).unsqueeze(1)).to(device)
    size = int(0.7 * d)
    phi = Phi(*(torch.full((4,), value) for value in (size, (d - size) // 2, (d - size) // 2)))  # the middle
    zoomed, (image, *_), (b, scale, *_) = patch(x, phi), G(x), G(patch(x, phi))
    a = patch(image, phi)
    columns = {"input x": x, "P(x)": zoomed, "translation G(x)": image, "a = P(G(x))": a, "b = G(P(x))": b}
    columns = {title: 127.5 * (values.cpu() + 1) for title, values in columns.items()}
    if len(truth):
        columns["truth"] = truth[chosen]
    residual, scale = 127.5 * (a - b).abs().cpu(), 127.5 * scale.cpu()
    tops = [float(max(r.max(), s.max() if with_scale else 0)) for r, s in zip(residual, scale)]
    columns["residual |a - b|"] = list(zip(residual, tops))
    if with_scale:
        columns["scale of P(x)"] = list(zip(scale, tops))
    make_folder(path.parent)
    picture_grid(path, list(zip(*columns.values())), list(columns))


def picture_grid(path, rows, titles, side=2.2):
    """Writes rows of cells as one picture, a title over each column. A cell is an image in grey levels, or a pair
    (map, top) drawn in colour from 0 to top."""
    figure = Figure(figsize=(side * len(titles), side * len(rows) + .3), layout="constrained")
    for cells, row in zip(rows, figure.subplots(len(rows), len(titles), squeeze=False)):
        for cell, title, ax in zip(cells, titles, row):
            values, top = cell if isinstance(cell, tuple) else (cell, 255)
            shown = ax.imshow(np.asarray(values).squeeze(), cmap="inferno" if isinstance(cell, tuple) else "gray", vmin=0, vmax=top)
            if isinstance(cell, tuple):
                figure.colorbar(shown, ax=ax, shrink=.8)
            ax.set_title(title if cells is rows[0] else "", fontsize=10)
            ax.axis("off")
    replace_file(path, lambda place: figure.savefig(place, dpi=90, format="png"))


# ---------------------------------------------------------------- a data set

def load(data, size, sets=SETS):
    """Reads the named sets (see the top of this file) at size x size into memory: 20k + 20k slices of 256x256 take
    2.6 GB. Prints what it found. Ends the program with one sentence where there is nothing to train on or to judge by."""
    path = Path(data)
    if str(data) == "phantom":
        slices = phantoms(size)
    elif not os.path.isfile(path) and not os.path.isdir(path):
        fail(f"{path}: no such folder or file; give --data a folder of slices, an .h5 file, or the word phantom.")
    else:
        images, names = read_folder(path, size, sets) if os.path.isdir(path) else read_h5(path, size, sets)
        for which in [s for s in sets if s in ("input", "target")] or ["evaluation_input"]:
            if not images[which]:
                fail(f"{path}: no readable image for {which}; the top of data.py shows the layouts, files end in {', '.join(ENDINGS)}.")
        stacks = (np.stack(images[s]) if images[s] else np.zeros((0, size, size), np.uint8) for s in SETS)
        slices = Slices(*stacks, names)
    describe(os.fsencode(path).decode(errors="backslashreplace"), slices)
    return slices


def images_in(folder):
    """{stem: path}, sorted, so that the order of files on the disk never decides which slice has which number."""
    paths = [p for p in sorted(folder.glob("*") if os.path.isdir(folder) else ()) if not p.name.startswith(".")]
    found = {p.stem: p for p in paths if p.suffix.lower() in ENDINGS and p.name.isprintable()}
    if others := [p.name for p in paths if found.get(p.stem) != p]:
        print(f"{folder}: {len(others)} left out, {others[0]!r} first; see ENDINGS in data.py, one file a name", file=sys.stderr)
    return found


def find_images(root):
    """A folder in either layout -> list of (name, {set: path}); the two halves of a pair stand in one entry."""
    if os.path.isdir(root / "trainA") or os.path.isdir(root / "testA"):
        one, other, inputs, targets = (images_in(root / name) for name in ("trainA", "trainB", "testA", "testB"))
        if inputs.keys() & targets.keys():
            print(f"{root}: {len(inputs.keys() ^ targets.keys())} test images without a partner of the same name are left out")
            inputs = {name: path for name, path in inputs.items() if name in targets}
    else:
        one, other, judged = (images_in(root / name) for name in ("input", "target", "evaluation"))
        inputs, targets = ({name.removesuffix(end): path for name, path in judged.items() if name.endswith(end)}
                           for end in ("_input", "_target"))
        lonely = sorted(inputs.keys() ^ targets.keys() if targets else ())
        lonely += [name for name in judged if not name.endswith(("_input", "_target"))]
        if lonely:
            fail(f"{root}/evaluation: {len(lonely)} slices miss their _input or _target, {lonely[0]} first; complete the "
                 "pairs, or remove every _target to evaluate without scores.")
    pairs = [(name, {"evaluation_input": path} | ({"evaluation_target": targets[name]} if name in targets else {}))
             for name, path in inputs.items()]
    return [(name, {"input": p}) for name, p in one.items()] + [(name, {"target": p}) for name, p in other.items()] + pairs


def read_folder(root, size, sets):
    """A folder -> {set: images}, {set: names}. What cannot be read is named, counted and left out, a pair as a whole."""
    found = [(name, {s: p for s, p in paths.items() if s in sets}) for name, paths in find_images(root) if paths.keys() & set(sets)]
    images, names, bad = {s: [] for s in SETS}, {s: [] for s in SETS}, []
    for done, (name, paths) in enumerate(found, 1):
        progress(done, len(found), "reading")
        try:
            for which, picture in [(s, fit(read_grey(p), size)) for s, p in paths.items()]:
                images[which].append(picture)
                names[which].append(name)
        except ValueError as error:
            bad.append(f"skipped {error}")
    for sentence in bad[:10] + ([f"skipped {len(bad)} of {len(found)} slices or pairs in all."] if bad else []):
        print(sentence, file=sys.stderr)
    return images, names


def read_h5(path, size, sets):
    """An .h5 of the layout above -> {set: images}, {set: names}; what is not 8-bit is scaled image by image, as files are."""
    images, names = {s: [] for s in SETS}, {s: [] for s in SETS}
    try:
        with h5py.File(path, "r") as file:
            for s in sets:
                for key, ndim in ((s, 3), (f"{s}_names", 1)):
                    values = file[key] if isinstance(file.get(key, getlink=True), h5py.HardLink) else None
                    if not isinstance(values, h5py.Dataset) or values.ndim != ndim or values.external or values.is_virtual:
                        raise ValueError(f"{key} is missing, has not {ndim} dimensions, or leads to another place or file")
                    if values.nbytes > 1032 * os.path.getsize(path):  # the most that gzip can save
                        raise ValueError(f"{key} claims {values.nbytes} bytes, more than this file can hold")
                images[s] = [fit(to_grey_levels(image, s), size) for image in file[s]]
                names[s] = list(file[f"{s}_names"].asstr("utf-8")[:])
    except READ_ERRORS as error:
        fail(f"{path}: is not an .h5 of slices as the top of data.py describes it ({error}).")
    if any(len(images[s]) != len(names[s]) for s in sets) or len(images[SETS[2]]) != len(images[SETS[3]]) > 0:
        fail(f"{path}: images and names, or the two halves of the evaluation pairs, differ in number.")
    return images, names


def write_h5(path, slices):
    """Packs a data set into one .h5 (layout: top of this file), in memory first: a full disk makes HDF5 itself crash."""
    packed = io.BytesIO()
    with h5py.File(packed, "w") as file:
        for which in SETS:
            file.create_dataset(which, data=getattr(slices, which))
            file.create_dataset(f"{which}_names", data=slices.names[which], dtype=h5py.string_dtype())
    replace_file(path, lambda place: place.write_bytes(packed.getbuffer()))


def describe(data, slices):
    """Prints counts, patients and ranges; warns where a patient stands in two of the three sets, since then the two
    piles hold pairs, or the evaluation has been trained on."""
    print(f"{data}: slices of {slices.input.shape[1]}x{slices.input.shape[2]}, 8-bit grey levels")
    people = {which: {patient(name) for name in slices.names[which]} for which in SETS}
    for which, images in zip(SETS, slices):
        print(f"  {which:<18}{len(images):>6} slices of {len(people[which]):>4} patients" +
              (f", range {images.min()}..{images.max()}, mean {images.mean():.1f}" if len(images) else ""))
    for one, other in (("input", "target"), ("input", "evaluation_input"), ("target", "evaluation_input")):
        if both := sorted(people[one] & people[other]):
            print(f"warning: {len(both)} patients stand in both {one} and {other}, {both[0]} among them", file=sys.stderr)


# ---------------------------------------------------------------- batches

def to_unit(images):
    """Grey levels 0..255 -> [-1,1], what networks and losses see (Sec. 4.2)."""
    return images.float() / 127.5 - 1


def draw(images, b, generator, device):
    """b images drawn with replacement -> float32 [b,1,d,d] in [-1,1] on device. The generator lives on the CPU, so that
    a seed draws the same slices on every device."""
    index = torch.randint(len(images), (b,), generator=generator)
    return to_unit(images[index.to(images.device)].to(device))


# ---------------------------------------------------------------- phantoms

#             air  scalp skull  CSF  grey  white     (grey levels / 255)
T1 = np.array([.02, .88, .10, .17, .50, .74])
T2 = np.array([.02, .52, .07, .92, .60, .38])
NOISE = np.array([.003, .02, .008, .06, .03, .012])  # Laplace scale of the target's noise in each tissue


def smooth_field(rng, cells, side):
    """A random field [side,side] that varies over about side/cells pixels, zero mean, unit deviation. The draws do not
    depend on side, so that one subject looks the same at every size."""
    grid = rng.standard_normal((cells + 3, cells + 3)).astype(np.float32)
    field = np.asarray(Image.fromarray(grid).resize((side, side), Image.Resampling.BICUBIC, box=(1, 1, cells + 2, cells + 2)))
    return (field - field.mean()) / field.std()


def head(z, side, fields):
    """Tissue labels [side,side] of one axial slice at height z in [0,1]: 0 air, 1 scalp, 2 skull, 3 CSF, 4 grey, 5 white."""
    bend_y, bend_x, folds_a, folds_b, (tilt, long, wide, ventricle) = fields
    v, u = np.meshgrid(*[(np.arange(side) + .5) / side * 2 - 1] * 2, indexing="ij")
    v, u = v + .018 * bend_y, u + .018 * bend_x
    v, u = v * np.cos(tilt) - u * np.sin(tilt), v * np.sin(tilt) + u * np.cos(tilt)
    shrink = 1 - .22 * z ** 2
    radius = np.hypot(v / (long * shrink), u / (wide * shrink) * (1 + .10 * v))
    folds = np.abs(np.cos(2 * z) * folds_a + np.sin(2 * z) * folds_b)  # small along winding lines: the sulci
    depth = np.clip((radius - .38) / .42, 0, 1)                        # 0 deep inside, 1 at the cortex
    label = np.zeros((side, side), np.int64)
    for tissue, edge in ((1, 1.00), (2, .93), (3, .865), (5, .82)):
        label[radius < edge] = tissue
    label[(radius < .82) & ((folds < .80 * depth) | (radius > .76))] = 4
    label[(radius < .82) & (folds < .15 * depth)] = 3
    label[(np.abs(u) < .012) & (radius < .82) & (np.abs(v) > .30)] = 3  # the cleft between the hemispheres
    w = np.abs(u)                                                       # mirror images: left and right
    label[np.hypot((v + .02) / .17, (w - .17) / .085) < 1.1 - .8 * z] = 4                       # thalami
    label[np.hypot((v + .27) / .12, (w - .16) / .05) < 1.2 - .9 * z] = 4                        # caudate heads
    horn = v + .02                                                      # the ventricles: two bows, wider at both ends
    label[np.abs(w - .05 - 1.1 * horn ** 2) < ventricle * (1.1 - z) * np.sqrt(np.clip(1 - (horn / .3) ** 2, 0, 1))] = 3
    return label


def phantom_subject(subject, size, slices, seed):
    """One subject's slices: T1, T2 in grey levels with noise, and the Laplace scale of T2's noise; each [slices,size,size].
    Drawn at twice the size and averaged down, so that pixels at a border hold both tissues. T1 has Gaussian noise of
    1 % of the range, T2 Laplace noise whose scale depends on the tissue; each has its own smooth bias field."""
    rng = np.random.default_rng([seed, subject])
    side = 2 * size
    bends, folds = [smooth_field(rng, 4, side) for _ in range(2)], [smooth_field(rng, 17, side) for _ in range(2)]
    shape = rng.normal(0, .06), rng.uniform(.82, .92), rng.uniform(.66, .76), rng.uniform(.03, .065)
    contrasts = [contrast * rng.normal(1, .03, 6) for contrast in (T1, T2)]
    bias = [1 + .06 * smooth_field(rng, 2, size) for _ in range(2)]
    out = np.zeros((3, slices, size, size))
    for k, z in enumerate(np.linspace(.05, .75, slices) + rng.uniform(-.04, .04)):
        label = head(np.clip(z, 0, 1), side, (*bends, *folds, shape))
        t1, t2, scale = (255 * np.mean([table[label[i::2, j::2]] for i in (0, 1) for j in (0, 1)], axis=0)
                         for table in (*contrasts, NOISE))
        out[:, k] = (t1 * bias[0] + rng.normal(0, 2.55, t1.shape), t2 * bias[1] + rng.laplace(0, scale), scale)
    return out


def phantoms(size, subjects=40, slices=6, seed=0):
    """Built-in data: heads of random shape with skull, CSF, folded grey and white matter and ventricles.
    subjects people in input, as many others in target, a fifth as many others in evaluation, slices of each -> Slices
    at size x size, with noise, the true Laplace scale of the evaluation targets' noise in grey levels. The same size
    and seed always give the same arrays."""
    total = 2 * subjects + max(1, subjects // 5)
    people = []
    for subject in range(total):
        people.append(phantom_subject(subject, size, slices, seed))
        progress(subject + 1, total, "drawing phantom")
    t1, t2, scale = np.concatenate(people, axis=1)
    t1, t2 = (np.rint(image.clip(0, 255)).astype(np.uint8) for image in (t1, t2))
    names = [f"phantom{subject:03d}_{k:02d}" for subject in range(total) for k in range(slices)]
    one, other = subjects * slices, 2 * subjects * slices
    return Slices(t1[:one], t2[one:other], t1[other:], t2[other:],
                  dict(zip(SETS, (names[:one], names[one:other], names[other:], names[other:]))), scale[other:].astype(np.float32))


def main():
    parser = argparse.ArgumentParser(description="Print what a data set holds and draw data.png.")
    parser.add_argument("data", nargs="?", default="phantom", help="folder, .h5 file or the word phantom (Sec. 4.1)")
    parser.add_argument("--size", type=int, default=256, help="side d in pixels (Sec. 4.1: 256)")
    parser.add_argument("--h5", metavar="FILE", help="also pack the data set into this .h5 file")
    parser.error = fail
    args = parser.parse_args()
    if args.size < 1:
        fail(f"--size {args.size}: wants a whole number of at least 1.")
    slices = load(args.data, args.size)
    if args.h5:
        make_folder(Path(args.h5).parent)
        write_h5(args.h5, slices)
        print(f"wrote {args.h5}")
    columns = [images[np.linspace(0, len(images) - 1, 6).astype(int)] for images in slices[:4] if len(images)]
    picture_grid("data.png", list(zip(*columns)), SETS[:len(columns)])
    print("wrote data.png")


if __name__ == "__main__":
    main()
