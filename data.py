"""Slices in, batches out (Sec. 4.1): two piles, and pairs to judge by.

    python data.py                           looks at the built-in phantoms
    python data.py ixi_slices/ --h5 ixi.h5   looks at a folder and packs it

DATA is one of these, slices being .png, .jpg, .tif or .npy:

    authors' layout     input/*   target/*   evaluation/NAME_input.*
                                             evaluation/NAME_target.*
    CycleGAN's layout   trainA/*  trainB/*   testA/NAME.*  testB/NAME.*
    an .h5 file         input, target, evaluation_input, evaluation_target:
                        uint8 [n,h,w]; names in input_names, ...: strings [n]
    phantom             built-in heads, made here from a seed

A name begins with its patient, up to the first underscore: IXI022_026_t1.jpg.
Evaluation without targets has no pairs: it can be translated, not scored.
"""
import functools
import io
import os
import sys
import textwrap
import warnings
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from patch_op import Phi, patch
from run import (bounded, fail, make_folder, make_parser, memory_may_run_out, progress,
                 replace_file)

SETS = ("input", "target", "evaluation_input", "evaluation_target")
ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy")


class Slices(NamedTuple):
    """One data set in memory, uint8 [n,d,d] each; pairs share their index. For colour, c_in = c_out
    = c = 3, read_grey() and unsqueeze(1) here and every UNet() and Critic() would change."""
    input: np.ndarray
    target: np.ndarray
    evaluation_input: np.ndarray
    evaluation_target: np.ndarray    # empty where there are no pairs
    names: dict                      # set -> list of n names
    noise: np.ndarray | None = None  # phantoms: Laplace scale of evaluation_target's noise [n,d,d]

    def on(self, device):
        """input and target as torch uint8 [n,1,d,d], on the device where each fills at most half
        of what is free."""
        piles = [torch.from_numpy(images).unsqueeze(1) for images in (self.input, self.target)]
        cuda = torch.device(device).type == "cuda"
        return [pile if cuda and pile.numel() > torch.cuda.mem_get_info(device)[0] / 2
                else pile.to(device) for pile in piles]


def patient(name):
    return name.split("_")[0]


@functools.cache
def say_once(sentence):
    print(sentence, file=sys.stderr)


def say_skipped(reasons, total, what):
    if reasons:
        print(*(f"skipped {reason}" for reason in reasons[:10]), file=sys.stderr, sep="\n")
        print(f"skipped {len(reasons)} of {total} {what} in all.", file=sys.stderr)


# ---------------------------------------------------------------- one image

def to_grey_levels(values, path):
    """Numbers [h,w] -> uint8 [h,w]. 8-bit stays as it is; all else is scaled, this image's smallest
    value to 0, its largest to 255, a constant one to 0. ValueError: not one finite grey image."""
    is_image = values.ndim == 2 and values.dtype.kind in "uifb"
    # A single pixel is no image, and fit() would make a huge square of a long strip.
    if not is_image or min(values.shape) < 2 or max(values.shape) > 8192:
        raise ValueError(f"{path}: wants one grey image of numbers, sides of 2 to 8192, "
                         f"got {values.dtype} {values.shape}")
    if values.dtype == np.uint8:
        return np.array(values)
    with np.errstate(all="ignore"):  # whatever overflows ends as NaN
        values = np.asarray(values, np.float64)
        low, span = values.min(), np.ptp(values)
        values = (values - low) * (255 / span if span else 0)
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: holds NaN, infinity, or a range too large or too small to scale")
    say_once("images that are not 8-bit are scaled one by one: smallest value to 0, largest to 255")
    return np.rint(values).astype(np.uint8)


def read_grey(path):
    """A picture file -> uint8 [h,w]: colour to grey (ITU-R 601), 16-bit and float scaled per image
    to [0,255]. ValueError, one sentence: unreadable, animated, with transparency, or not grey."""
    try:
        if not os.path.isfile(path):  # opening a pipe would wait for ever
            raise ValueError("no file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if Path(path).suffix.lower() == ".npy":
                # Mapped, not loaded: its header may claim any size.
                values = np.lib.format.open_memmap(path, mode="r")
            else:
                with Image.open(path, formats=("PNG", "JPEG", "TIFF")) as picture:
                    frames, mode = getattr(picture, "n_frames", 1), picture.mode
                    if frames > 1 or mode == "CMYK" or picture.has_transparency_data:
                        raise ValueError(f"{frames} frames, {mode}; wants one, grey or RGB, "
                                         "without transparency")
                    if mode in ("RGB", "P", "YCbCr"):
                        say_once("pictures in colour are turned to grey (ITU-R 601): "
                                 "networks and metrics have one channel")
                        picture = picture.convert("L")
                    values = np.asarray(picture.convert("L") if mode == "1" else picture)
    except Exception as error:  # Pillow and numpy raise some ten kinds
        raise ValueError(f"{path}: cannot be read as an image ({error})") from None
    return to_grey_levels(values, path)


def fit(grey, size):
    """uint8 [h,w] -> uint8 [size,size]: padded to a square with its own minimum, then resized by
    Pillow's box filter when it shrinks (each pixel the mean of those it covers), else bicubic."""
    (h, w), side = grey.shape, max(grey.shape)
    top, left = (side - h) // 2, (side - w) // 2
    margins = (top, side - h - top), (left, side - w - left)
    square = np.pad(grey, margins, constant_values=grey.min())
    kernel = Image.Resampling.BOX if side > size else Image.Resampling.BICUBIC
    return np.array(Image.fromarray(square).resize((size, size), kernel))


# ---------------------------------------------------------------- pictures

def save_figure(path, figure, caption):
    """Writes a figure whole or not at all, below it a caption of any length."""
    figure.supxlabel(textwrap.fill(caption, int(15 * figure.get_figwidth())), fontsize=9)
    replace_file(path, lambda place: figure.savefig(place, dpi=150, format="png"))


def picture_grid(path, columns, maps=0, caption="", square=None):
    """Writes columns {title: pictures in grey levels}. The last `maps` columns are drawn in colour,
    from 0 to one white level for all. square: (numbers of columns, first pixel, side)."""
    rows = [[np.asarray(cell).squeeze() for cell in row] for row in zip(*columns.values())]
    width, height = 1.3 * len(columns) + (0.8 if maps else 0), 1.3 * len(rows) + 0.7
    figure = Figure(figsize=(width, height), layout="constrained")
    axes, grey = figure.subplots(len(rows), len(columns), squeeze=False), len(columns) - maps
    white = np.quantile([row[grey:] for row in rows], .98) if maps else 0
    for row, row_axes in zip(rows, axes):
        for k, (cell, title, ax) in enumerate(zip(row, columns, row_axes)):
            style = ("gray", 255) if k < grey else ("inferno", white)
            shown = ax.imshow(cell, cmap=style[0], vmin=0, vmax=style[1])
            ax.set_title(title if row is rows[0] else "", fontsize=10)
            ax.axis("off")
            if square and k in square[0]:
                corner, side = (square[1] - .5, square[1] - .5), square[2]
                ax.add_patch(Rectangle(corner, side, side, fill=False, edgecolor="orange", lw=1.5))
    if maps:
        figure.colorbar(shown, ax=axes[:, grey:], label="grey levels", aspect=12 * len(rows),
                        extend="max", extendfrac=.03)
    save_figure(path, figure, caption)


def six_of(n):
    """The numbers of six images out of n, evenly spread."""
    return np.linspace(0, n - 1, 6).round().astype(int)


@torch.no_grad()
def plot_samples(path, G, slices, device, with_scale):
    """The row that Eq. 6 and 9 are about, for three fixed slices, of evaluation if there are any.
    The scale is the patch's. ugac's alpha, beta are none of patches: never drawn here."""
    inputs = slices.evaluation_input if len(slices.evaluation_input) else slices.input
    chosen, d = [len(inputs) * k // 6 for k in (1, 3, 5)], inputs.shape[-1]
    x = to_unit(torch.from_numpy(inputs[chosen]).unsqueeze(1)).to(device)
    size, first = int(0.7 * d), (d - int(0.7 * d)) // 2  # the middle
    phi = Phi(*(torch.full((3,), value) for value in (size, first, first)))
    (image, *_), (b, scale, *beta) = G(x), G(patch(x, phi))
    a = patch(image, phi)
    columns = {"input\n$x$": x, "patch\n$P(x)$": patch(x, phi), "translation\n$G(x)$": image,
               "its patch\n$a = P(G(x))$": a, "patch, translated\n$b = G(P(x))$": b}
    columns = {title: 127.5 * (values.cpu() + 1) for title, values in columns.items()}
    if len(slices.evaluation_target):
        columns["truth\n(never seen)"] = slices.evaluation_target[chosen]
    columns["patch residual\n$|a - b|$"] = 127.5 * (a - b).abs().cpu()
    caption = ("Patch invariance (Eq. 6): a, the orange square cut out after the translation, and "
               "b, cut out before it, should be alike.")
    with_scale = with_scale and not beta
    if with_scale:
        columns["scale\n$G^\\sigma(P(x))$"] = 127.5 * scale.cpu()
        caption += " The scale (Eq. 9) is to say, from the patch alone, where they are not."
    make_folder(path.parent)
    picture_grid(path, columns, 1 + with_scale, caption, ((0, 2), first, size))


# ---------------------------------------------------------------- a data set

def load(data, size, sets=SETS):
    """Reads the named sets at size x size into memory (20k + 20k slices of 256x256: 2.6 GB), says
    what is there. Ends in one sentence where there is nothing to train on or to judge by."""
    path = Path(data)
    if str(data) == "phantom":
        slices = phantoms(size)
    elif not os.path.isfile(path) and not os.path.isdir(path):
        fail(f"{path}: no such folder or file; give --data a folder of slices, an .h5 file, or the "
             "word phantom.")
    else:
        read = read_folder if os.path.isdir(path) else read_h5
        images, names = read(path, size, sets)
        for which in [s for s in sets if s in ("input", "target")] or ["evaluation_input"]:
            if not images[which]:
                fail(f"{path}: no readable image for {which}; wants {wanted(path, which)}")
        slices = gather(images, names, size)
    describe(os.fsencode(path).decode(errors="backslashreplace"), slices, sets)
    return slices


def gather(images, names, size):
    """{set: images}, {set: names} -> Slices, empty where a set was not read."""
    nothing = np.zeros((0, size, size), np.uint8)
    arrays = (np.stack(images[s]) if images.get(s) else nothing for s in SETS)
    return Slices(*arrays, {s: names.get(s, []) for s in SETS})


def wanted(path, which):
    """What a place must hold inside and what it does hold: half of an error's sentence."""
    layouts, hint = "input/ and target/, or trainA/ and trainB/", ""
    if which == "evaluation_input":
        layouts = "evaluation/NAME_input.png and NAME_target.png, or testA/ and testB/"
        hint = "; a plain folder of pictures: evaluate.py --image"
    there = sorted(p.name for p in path.glob("*")) if os.path.isdir(path) else [f"no {which}"]
    more = f" and {len(there) - 6} more" if len(there) > 6 else ""
    return (f"{layouts}, inside; found: {', '.join(there[:6]) or 'nothing'}{more} "
            f"(files end in {', '.join(ENDINGS)}{hint})")


def images_in(folder):
    """{name without ending: path}, sorted: the order of files on the disk numbers no slices."""
    paths = sorted(folder.glob("[!.]*"))
    pictures = {path.stem: path for path in paths
                if path.suffix.lower() in ENDINGS and path.name.isprintable()}
    if others := [path.name for path in paths if pictures.get(path.stem) != path]:
        print(f"{folder}: {len(others)} left out, {others[0]!r} first; see ENDINGS in data.py, "
              "one file a name", file=sys.stderr)
    return pictures


def find_images(root):
    """A folder in either layout -> list of (name, {set: path}), a pair in one entry. What has no
    partner is left out, named and counted, where others have one."""
    cyclegan, odd = os.path.isdir(root / "trainA") or os.path.isdir(root / "testA"), []
    if cyclegan:
        one, other, inputs, targets = (images_in(root / name)
                                       for name in ("trainA", "trainB", "testA", "testB"))
    else:
        one, other, judged = (images_in(root / name) for name in ("input", "target", "evaluation"))
        inputs, targets = ({name.removesuffix(end): path for name, path in judged.items()
                            if name.endswith(end)} for end in ("_input", "_target"))
        odd = [path.name for name, path in judged.items()
               if not name.endswith(("_input", "_target"))]
    if targets and not inputs.keys() & targets.keys():
        if not cyclegan:
            fail(f"{root}/evaluation: no NAME_input has its NAME_target; complete the pairs, or "
                 "remove every _target to evaluate without scores.")
        # CycleGAN's own sets are like this.
        print(f"{root}: testA and testB share no name, so there are no pairs", file=sys.stderr)
        targets = {}
    both = inputs.keys() & targets.keys() or inputs.keys()
    for half in (inputs, targets):
        odd += [path.name for name, path in half.items() if name not in both]
    if odd:
        print(f"{root}: {len(odd)} files for evaluation have no partner and are left out, "
              f"{odd[0]!r} first", file=sys.stderr)
    entries = [(name, {"input": path}) for name, path in one.items()]
    entries += [(name, {"target": path}) for name, path in other.items()]
    entries += [(name, {s: half[name] for s, half in zip(SETS[2:], (inputs, targets)) if half})
                for name in inputs if name in both]
    return entries


def read_folder(root, size, sets):
    """A folder -> {set: images}, {set: names}. What cannot be read is named, counted and left out,
    a pair as a whole."""
    images, names, bad = {s: [] for s in SETS}, {s: [] for s in SETS}, []
    entries = [(name, paths) for name, paths in find_images(root) if paths.keys() <= set(sets)]
    for done, (name, paths) in enumerate(entries, 1):
        progress(done, len(entries), "reading")
        try:
            for which, picture in [(s, fit(read_grey(path), size)) for s, path in paths.items()]:
                images[which].append(picture)
                names[which].append(name)
        except ValueError as error:
            bad.append(error)
    say_skipped(bad, len(entries), "slices or pairs")
    return images, names


def read_h5(path, size, sets):
    """An .h5 file -> {set: images}, {set: names}, scaled image by image, as files are."""
    try:
        with h5py.File(path, "r") as file:
            for key, ndim in [(s, 3) for s in sets] + [(f"{s}_names", 1) for s in sets]:
                v = file[key] if isinstance(file.get(key, getlink=True), h5py.HardLink) else None
                if not isinstance(v, h5py.Dataset) or v.ndim != ndim or v.external or v.is_virtual:
                    raise ValueError(f"{key} is missing, has not {ndim} dimensions, or leads to "
                                     "another place or file")
                if v.nbytes > 1032 * os.path.getsize(path):  # the most that gzip can save
                    raise ValueError(f"{key} claims {v.nbytes} bytes, more than this file can hold")
            images = {s: [fit(to_grey_levels(image, s), size) for image in file[s]] for s in sets}
            names = {s: list(file[f"{s}_names"].asstr("utf-8")[:]) for s in sets}
    except Exception as error:  # h5py raises some ten kinds
        fail(f"{path}: is not an .h5 of slices as the top of data.py describes it ({error}); "
             "to translate a picture give it to evaluate.py --image.")
    inputs, targets = len(images["evaluation_input"]), len(images["evaluation_target"])
    if any(len(images[s]) != len(names[s]) for s in sets) or 0 < targets != inputs:
        fail(f"{path}: images and names, or the halves of the evaluation pairs, differ in number.")
    return images, names


def write_h5(path, slices):
    """Packs a data set into one .h5, in memory first: a full disk makes HDF5 itself crash."""
    packed = io.BytesIO()
    with h5py.File(packed, "w") as file:
        for s in SETS:
            images = getattr(slices, s)
            file.create_dataset(s, data=images, compression="gzip", chunks=(1, *images.shape[1:]),
                                maxshape=(None, *images.shape[1:]))  # for a set without images
            file.create_dataset(f"{s}_names", data=slices.names[s], dtype=h5py.string_dtype())
    replace_file(path, lambda place: place.write_bytes(packed.getbuffer()))


def describe(data, slices, sets):
    """Prints counts, patients and ranges of the sets that were read. Warns of a patient in two of
    three: the piles would hold pairs, or the evaluation would have been trained on."""
    print(f"{data}: slices of {slices.input.shape[1]}x{slices.input.shape[2]}, 8-bit grey levels")
    people = {s: {patient(name) for name in slices.names[s]} for s in SETS}
    for s, images in [(s, getattr(slices, s)) for s in sets]:
        line = f"  {s:<18}{len(images):>6} slices of {len(people[s]):>4} patients"
        if len(images):
            line += f", range {images.min()}..{images.max()}, mean {images.mean():.1f}"
        print(line)
    for one, other in ((SETS[0], SETS[1]), (SETS[0], SETS[2]), (SETS[1], SETS[2])):
        if both := sorted(people[one] & people[other]):
            print(f"warning: {len(both)} patients stand in both {one} and {other}, {both[0]} among "
                  "them; a file's name up to its first underscore is taken for the patient",
                  file=sys.stderr)


# ---------------------------------------------------------------- batches

def to_unit(images):
    """Grey levels 0..255 -> [-1,1], what networks and losses see (Sec. 4.2)."""
    return images.float() / 127.5 - 1


def draw(images, b, generator, device):
    """b images drawn with replacement -> float32 [b,1,d,d] in [-1,1] on device. The generator lives
    on the CPU, so that a seed draws the same slices on every device."""
    index = torch.randint(len(images), (b,), generator=generator)
    return to_unit(images[index.to(images.device)].to(device))


# ---------------------------------------------------------------- phantoms

#             air  scalp skull  CSF  grey  white     (grey levels / 255)
T1 = np.array([.02, .88, .10, .28, .50, .74])
T2 = np.array([.02, .75, .07, .92, .60, .38])
NOISE = np.array([.003, .02, .008, .06, .03, .012])  # Laplace scale of the target's noise


def smooth_field(rng, cells, side):
    """A random field [side,side] that varies over side/cells pixels, zero mean, unit deviation.
    The draws do not depend on side, so that one subject looks the same at every size."""
    grid = Image.fromarray(rng.standard_normal((cells + 3, cells + 3)).astype(np.float32))
    box = 1, 1, cells + 2, cells + 2
    field = np.asarray(grid.resize((side, side), Image.Resampling.BICUBIC, box=box))
    return (field - field.mean()) / field.std()


def head(z, side, fields):
    """Tissues [side,side] of an axial slice at height z in [0,1], numbered as the columns above."""
    bend_y, bend_x, folds_a, folds_b, (tilt, long, wide, ventricle) = fields
    v, u = (np.mgrid[:side, :side] + .5) / side * 2 - 1
    v, u = v + .018 * bend_y, u + .018 * bend_x
    v, u = v * np.cos(tilt) - u * np.sin(tilt), v * np.sin(tilt) + u * np.cos(tilt)
    shrink = 1 - .22 * z ** 2
    radius = np.hypot(v / (long * shrink), u / (wide * shrink) * (1 + .10 * v))
    folds = np.abs(np.cos(2 * z) * folds_a + np.sin(2 * z) * folds_b)  # small along the sulci
    depth = np.clip((radius - .38) / .42, 0, 1)  # 0 deep inside, 1 at the cortex
    label = np.zeros((side, side), np.int64)
    for tissue, edge in ((1, 1.00), (2, .89), (3, .79), (5, .74)):
        label[radius < edge] = tissue
    label[(radius < .74) & ((folds < .80 * depth) | (radius > .68))] = 4
    label[(radius < .74) & (folds < .15 * depth)] = 3
    label[(np.abs(u) < .012) & (radius < .74) & (np.abs(v) > .30)] = 3  # between the hemispheres
    w = np.abs(u)  # mirror images: left and right
    label[np.hypot((v + .02) / .17, (w - .17) / .085) < 1.1 - .8 * z] = 4  # thalami
    label[np.hypot((v + .27) / .12, (w - .16) / .05) < 1.2 - .9 * z] = 4   # caudate heads
    horn = v + .02  # the ventricles: two bows, wider at both ends
    bow = ventricle * (1.1 - z) * np.sqrt(np.clip(1 - (horn / .3) ** 2, 0, 1))
    label[np.abs(w - .05 - 1.1 * horn ** 2) < bow] = 3
    return label


def phantom_subject(subject, size, slices, seed):
    """One subject's slices: T1, T2 in grey levels, and the Laplace scale of T2's noise, depending
    on the tissue; each [slices,size,size]. T1 has Gaussian noise of 1 % of the range; each has its
    own smooth bias field. Drawn at twice the size, so that pixels at a border hold both tissues."""
    rng = np.random.default_rng([seed, subject])
    side = 2 * size
    fields = [smooth_field(rng, cells, side) for cells in (4, 4, 17, 17)]  # bends, then folds
    shape = rng.normal(0, .06), rng.uniform(.82, .92), rng.uniform(.66, .76), rng.uniform(.03, .065)
    contrasts = [contrast * rng.normal(1, .03, 6) for contrast in (T1, T2)]
    bias = [1 + .06 * smooth_field(rng, 2, size) for _ in range(2)]
    out = np.zeros((3, slices, size, size))
    for k, z in enumerate(np.linspace(.05, .75, slices) + rng.uniform(-.04, .04)):
        label = head(np.clip(z, 0, 1), side, (*fields, shape))
        quarters = [label[i::2, j::2] for i in (0, 1) for j in (0, 1)]
        t1, t2, scale = (255 * np.mean([table[quarter] for quarter in quarters], axis=0)
                         for table in (*contrasts, NOISE))
        t1 = t1 * bias[0] + rng.normal(0, 2.55, t1.shape)
        out[:, k] = t1, t2 * bias[1] + rng.laplace(0, scale), scale
    return out


def phantoms(size, subjects=40, slices=6, seed=0):
    """Built-in data: random heads with skull, CSF, folded grey and white matter, and ventricles.
    subjects people in input, as many others in target, a fifth as many others in evaluation ->
    Slices at size x size. The same size and seed always give the same arrays."""
    total = 2 * subjects + max(1, subjects // 5)
    people = []
    for subject in range(total):
        people.append(phantom_subject(subject, size, slices, seed))
        progress(subject + 1, total, "drawing phantom")
    t1, t2, scale = np.concatenate(people, axis=1)
    t1, t2 = (np.rint(image.clip(0, 255)).astype(np.uint8) for image in (t1, t2))
    names = [f"phantom{subject:03d}_{k:02d}" for subject in range(total) for k in range(slices)]
    one, other = subjects * slices, 2 * subjects * slices
    names = dict(zip(SETS, (names[:one], names[one:other], names[other:], names[other:])))
    scale = scale[other:].astype(np.float32)
    return Slices(t1[:one], t2[one:other], t1[other:], t2[other:], names, scale)


@memory_may_run_out("choose a smaller --size, or fewer slices")
def main():
    parser = make_parser(__doc__)
    flag = parser.add_argument
    flag("data", nargs="?", metavar="DATA", default="phantom", help="default: phantom (Sec. 4.1)")
    flag("--size", type=bounded(int, 2, 4096), default=256, help="side d in pixels (Sec. 4.1: 256)")
    flag("--h5", metavar="FILE", help="also pack the data set into this .h5 file")
    args = parser.parse_args()
    slices = load(args.data, args.size)
    if args.h5:
        make_folder(Path(args.h5).parent)
        write_h5(args.h5, slices)
        print(f"wrote {args.h5}")
    picture_grid("data.png", {s: images[six_of(len(images))]
                              for s, images in zip(SETS, slices) if len(images)})
    print("wrote data.png")


if __name__ == "__main__":
    main()
