"""Slices in, batches out (Sec. 4.1): two piles, and pairs to evaluate by.

    python data.py                           looks at the built-in phantoms
    python data.py ixi_slices/ --h5 ixi.h5   looks at a folder and packs it

DATA is one of these, slices being .png, .jpg, .tif or .npy:

    authors' layout     input/*   target/*   evaluation/NAME_input.*
                                             evaluation/NAME_target.*
    CycleGAN's layout   trainA/*  trainB/*   testA/NAME.*  testB/NAME.*
    an .h5 file         input, target, evaluation_input, evaluation_target:
                        uint8 [n,h,w]; input_names, ...: [n], equal in pairs
    phantom             built-in heads, made by phantoms.py from a seed

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
from PIL import Image, ImageOps

from phantoms import phantoms
from run import (bounded, fail, make_folder, make_parser, memory_may_run_out, printable,
                 progress, replace_file, save_png, start)

SETS = ("input", "target", "evaluation_input", "evaluation_target")
SET_FOLDERS = ("input", "target", "evaluation", "trainA", "trainB", "testA", "testB")
ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".npy")


class Slices(NamedTuple):
    """Holds one data set, uint8 [n,d,d] each; pairs share their index. For colour, c_in = c_out
    = c = 3, read_grey() and unsqueeze(1) here and every UNet() and Critic() would change."""
    input: np.ndarray
    target: np.ndarray
    evaluation_input: np.ndarray
    evaluation_target: np.ndarray    # empty where there are no pairs
    names: dict                      # set -> list of n names

    def on(self, device):
        """Returns input and target as torch uint8 [n,1,d,d], on the device where each fills at
        most half of what is free."""
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
    """Scales numbers [h,w] -> uint8 [h,w]. 8-bit stays as it is; all else is scaled, this image's
    smallest value to 0, its largest to 255, a constant one to 0. ValueError: not one finite grey
    image."""
    shape, kind = values.shape, values.dtype
    # A single pixel is no image, and to_square() would make a huge square of a long strip.
    if len(shape) != 2 or kind.kind not in "uifb" or min(shape) < 2 or max(shape) > 8192:
        raise ValueError(f"{path}: wants a grey image, its sides 2 to 8192; got {kind} {shape}")
    if kind == np.uint8:
        return np.array(values)
    with np.errstate(all="ignore"):  # whatever overflows ends as NaN
        values = np.asarray(values, np.float64)
        low, span = values.min(), np.ptp(values)
        values = (values - low) * (255 / span if span else 0)
    if not np.isfinite(values).all():
        raise ValueError(f"{path}: holds NaN, infinity, or a range too large or too small to scale")
    say_once("images that are not 8-bit are scaled one by one: smallest value to 0, largest to 255")
    return np.rint(values).astype(np.uint8)


def read_picture(file):
    """Reads an open PNG, JPEG or TIFF -> numbers [h,w], upright, colour made grey. ValueError for
    what Pillow would read, but wrongly."""
    with Image.open(file, formats=("PNG", "JPEG", "TIFF")) as picture:
        frames, mode, packing = getattr(picture, "n_frames", 1), picture.mode, str(picture.tile)
        tags = getattr(picture, "tag_v2", {})  # of a TIFF: bits, kind of number, meaning of 0, ...
        bits, kind, zero, more = map(tags.get, (258, 339, 262, 338))
        if frames > 1 or mode == "CMYK" or picture.has_transparency_data or more:
            raise ValueError(f"{frames} frames, {mode}; wants one, grey or RGB, no transparency "
                             "or further channel")
        if mode == "RGB" and (";16" in packing or 16 in (bits or ())):
            raise ValueError("colour of 16 bits, of which 8 would be lost; wants it grey, or 8-bit")
        # Pillow would drop signs, take 0 for white, and swap bytes that libtiff has swapped before.
        if tags and (zero is None or (bits, kind) == ((8,), (2,))
                     or "libtiff" in packing and any(f in packing for f in ("BS'", "BF'"))):
            raise ValueError("TIFF of signed bytes, packed big-endian or without tag 262; try .npy")
        picture = ImageOps.exif_transpose(picture)
        if mode in ("RGB", "P", "YCbCr"):
            say_once("colour turns grey (ITU-R 601): networks and metrics have one channel")
        values = np.asarray(picture.convert("L") if mode in ("RGB", "P", "YCbCr", "1") else picture)
    if bits == (32,) and values.dtype == np.int32 and kind in (None, (1,)):
        values = values.view(np.uint32)
    # Where 0 is white, Pillow inverts 8 bits, but no more.
    return -values.astype(float) if zero == 0 and values.itemsize > 1 else values


def read_grey(path):
    """Reads a picture -> uint8 [h,w]: colour to grey (ITU-R 601), 16-bit and float scaled per image
    to [0,255]. ValueError, one sentence: unreadable, animated, with transparency, or not grey."""
    name = printable(path)
    try:
        if not os.path.isfile(path):  # opening a pipe would wait for ever
            raise ValueError("no file")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            if Path(path).suffix.lower() == ".npy":
                values = np.lib.format.open_memmap(path, mode="r")  # headers may claim any size
            else:
                with open(path, "rb") as file:  # by its path, Pillow maps a TIFF without turning it
                    values = read_picture(file)
    except Exception as error:  # Pillow and numpy raise some ten kinds
        reason = str(error).split(" <_io")[0]  # Pillow adds how Python calls the file
        hint = "; .npy takes numbers of any type" if "cannot identify" in reason else ""
        raise ValueError(f"{name}: cannot be read as an image ({reason}){hint}") from None
    return to_grey_levels(values, name)


def to_square(grey, size):
    """Pads uint8 [h,w] with its minimum to a square, then resizes it to uint8 [size,size] by
    Pillow's box filter when it shrinks (each pixel the mean of those it covers), else bicubic."""
    side = max(grey.shape)
    margins = [((side - n) // 2, (side - n + 1) // 2) for n in grey.shape]
    square = np.pad(grey, margins, constant_values=grey.min())
    kernel = Image.Resampling.BOX if side > size else Image.Resampling.BICUBIC
    return np.array(Image.fromarray(square).resize((size, size), kernel))


# ---------------------------------------------------------------- pictures

def save_figure(path, figure, caption):
    """Writes a figure whole or not at all, below it a caption of any length."""
    figure.supxlabel(textwrap.fill(caption, int(15 * figure.get_figwidth())), fontsize=9)
    save_png(path, figure, dpi=150)


def picture_grid(path, columns, maps=0, caption="", square=None, labels=()):
    """Writes columns (title, pictures in grey levels), the last `maps` in colour, up to one white.
    square: (numbers of columns, first pixel, side); labels: one for each row."""
    titles, pictures = zip(*columns)
    rows = [[np.asarray(cell).squeeze() for cell in row] for row in zip(*pictures)]
    width, height = 1.3 * len(columns) + (0.8 if maps else 0), 1.3 * len(rows) + 0.7
    figure = Figure(figsize=(width, height), layout="constrained")
    axes, grey = figure.subplots(len(rows), len(columns), squeeze=False), len(columns) - maps
    white = np.quantile([row[grey:] for row in rows], .98) if maps else 0
    for row_axes, words in zip(axes, labels):
        row_axes[0].text(-.08, .5, words, transform=row_axes[0].transAxes, rotation=90, fontsize=8,
                         ha="right", va="center", multialignment="center")
    for row, row_axes in zip(rows, axes):
        for k, (cell, title, ax) in enumerate(zip(row, titles, row_axes)):
            colours, most = ("gray", 255) if k < grey else ("inferno", white)
            shown = ax.imshow(cell, colours, vmin=0, vmax=most)
            ax.set_title(title if row is rows[0] else "", fontsize=10)
            ax.axis("off")
            if square and k in square[0]:
                corner, side = (square[1] - .5, square[1] - .5), square[2]
                ax.add_patch(Rectangle(corner, side, side, fill=False, edgecolor="orange", lw=1.5))
    if maps:
        figure.colorbar(shown, ax=axes[:, grey:], label="grey levels", aspect=12 * len(rows),
                        extend="max", extendfrac=.03)
    save_figure(path, figure, caption)


def six_indices(n):
    """Returns six indices out of n, evenly spread."""
    return np.linspace(0, n - 1, 6).round().astype(int)


# ---------------------------------------------------------------- a data set

def load(data, size, sets=SETS):
    """Reads the named sets at size x size into memory (20k + 20k slices of 256x256: 2.6 GB), says
    what is there. Ends in one sentence where there is nothing to train on or to evaluate by."""
    path = Path(data)
    if str(data) == "phantom":
        slices = phantom_slices(size)
    elif not os.path.isfile(path) and not os.path.isdir(path):
        fail(f"{path}: no such folder or file; give a folder of slices, an .h5 or the word phantom")
    else:
        images, names = (read_folder if os.path.isdir(path) else read_h5)(path, size, sets)
        for which in [s for s in sets if s in ("input", "target")] or ["evaluation_input"]:
            if not images[which]:
                fail(f"{path}: no readable image for {which}; wants {expected_layout(path, which)}")
        slices = gather(images, names, size)
    describe(printable(path), slices, sets)
    return slices


def phantom_slices(size, subjects=40, slices=6, seed=0):
    """Draws built-in data: subjects people in input, as many others in target, a fifth as many
    others in evaluation -> Slices at size x size."""
    total = 2 * subjects + max(1, subjects // 5)
    t1, t2 = phantoms(total, size, slices, seed)
    names = [f"phantom{subject:03d}_{k:02d}" for subject in range(total) for k in range(slices)]
    one, other = subjects * slices, 2 * subjects * slices
    names = dict(zip(SETS, (names[:one], names[one:other], names[other:], names[other:])))
    return Slices(t1[:one], t2[one:other], t1[other:], t2[other:], names)


def gather(images, names, size):
    """Turns {set: images}, which it empties, and {set: names} into Slices."""
    arrays = (np.array(images.pop(s, []), np.uint8).reshape(-1, size, size) for s in SETS)
    return Slices(*arrays, {s: names.get(s, []) for s in SETS})


def list_folder(folder):
    """Lists a folder, sorted: the order of files on the disk numbers no slices."""
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        fail(f"{folder}: cannot be read ({error.strerror}); ask its owner, or give another folder.")


def expected_layout(path, which):
    """Says, for error messages, which layout is needed, and what was found."""
    layouts, hint = "input/ and target/, or trainA/ and trainB/", ""
    if which == "evaluation_input":
        layouts = "evaluation/NAME_input.png and NAME_target.png, or testA/ and testB/"
        hint = "; a plain folder of pictures: translate.py"
    inside = list_folder(path) if os.path.isdir(path) else [Path(f"no {which}")]
    there = [printable(path.name) for path in inside]
    more = f" and {len(there) - 6} more" if len(there) > 6 else ""
    return (f"{layouts}, inside; found: {', '.join(there[:6]) or 'nothing'}{more} "
            f"(files end in {', '.join(ENDINGS)}{hint})")


def images_in(folder):
    """Returns {name without ending: path}, sorted."""
    paths = list_folder(folder)
    pictures = {path.stem: path for path in paths if path.suffix.lower() in ENDINGS}
    if others := [path.name for path in paths if pictures.get(path.stem) != path]:
        print(f"{printable(folder)}: {len(others)} left out, {others[0]!r} first; "
              f"wanted: {', '.join(ENDINGS)}, one file a name", file=sys.stderr)
    return pictures


def find_images(root):
    """Searches a folder in either layout -> [(name, {set: path})], a pair in one entry. What has no
    partner is left out, named and counted, where others have one."""
    inside, odd = {path.name for path in list_folder(root) if os.path.isdir(path)}, []
    cyclegan = bool({"trainA", "testA"} & inside)
    if cyclegan:
        one, other, inputs, targets = (images_in(root / name) for name in SET_FOLDERS[3:])
    else:
        one, other, halves = (images_in(root / name) for name in SET_FOLDERS[:3])
        inputs, targets = ({name.removesuffix(end): path for name, path in halves.items()
                            if name.endswith(end)} for end in ("_input", "_target"))
        odd = [p.name for name, p in halves.items() if not name.endswith(("_input", "_target"))]
    if targets and not inputs.keys() & targets.keys():
        if not cyclegan:
            fail(f"{root}/evaluation: no NAME_input has its NAME_target; complete the pairs, or "
                 "remove every _target to evaluate without scores.")
        print("testA and testB share no name, so there are no pairs", file=sys.stderr)
        targets = {}  # CycleGAN's own sets are like this
    both = inputs.keys() & targets.keys() or inputs.keys()
    odd += [half[name].name for half in (inputs, targets) for name in half if name not in both]
    if odd:
        print(f"{len(odd)} files for evaluation have no partner and are left out, "
              f"{odd[0]!r} first", file=sys.stderr)
    entries = [(name, {"input": path}) for name, path in one.items()]
    entries += [(name, {"target": path}) for name, path in other.items()]
    entries += [(name, {s: half[name] for s, half in zip(SETS[2:], (inputs, targets)) if half})
                for name in inputs if name in both]
    return entries


def read_folder(root, size, sets):
    """Reads a folder -> {set: images}, {set: names}. What cannot be read is named, counted and left
    out, a pair as a whole."""
    images, names, bad = {s: [] for s in SETS}, {s: [] for s in SETS}, []
    entries = [(name, paths) for name, paths in find_images(root) if paths.keys() <= set(sets)]
    for done, (name, paths) in enumerate(entries, 1):
        progress(done, len(entries), "reading")
        try:
            for s, grey in [(s, to_square(read_grey(path), size)) for s, path in paths.items()]:
                images[s].append(grey)
                names[s].append(name)
        except ValueError as error:
            bad.append(error)
    say_skipped(bad, len(entries), "slices or pairs")
    return images, names


def read_h5(path, size, sets):
    """Reads an .h5 -> {set: images}, {set: names}, scaled image by image, as files are."""
    try:
        with h5py.File(path, "r") as file:
            for key, ndim in [(s, 3) for s in sets] + [(f"{s}_names", 1) for s in sets]:
                v = file[key] if isinstance(file.get(key, getlink=True), h5py.HardLink) else None
                if not isinstance(v, h5py.Dataset) or v.ndim != ndim or v.external or v.is_virtual:
                    raise ValueError(f"{key} is missing, has not {ndim} dimensions, or leads to "
                                     "another key or file")
                if v.nbytes > 1032 * os.path.getsize(path):  # the most that gzip can save
                    raise ValueError(f"{key} claims {v.nbytes} bytes, more than this file can hold")
            images = {s: [to_square(to_grey_levels(v, s), size) for v in file[s]] for s in sets}
            names = {s: list(file[f"{s}_names"].asstr("utf-8")[:]) for s in sets}
    except Exception as error:  # h5py raises some ten kinds
        fail(f"{path}: is not an .h5 of slices as the top of data.py describes it ({error}); "
             "to translate a picture give it to translate.py.")
    inputs, targets = names["evaluation_input"], names["evaluation_target"]
    if any(len(images[s]) != len(names[s]) for s in sets) or targets and targets != inputs:
        fail(f"{path}: images and names differ in number, or a pair's two names differ.")
    return images, names


def write_h5(path, slices):
    """Packs a data set into one .h5, in memory first: a full disk makes HDF5 itself crash."""
    packed = io.BytesIO()
    with h5py.File(packed, "w") as file:
        for s, images in zip(SETS, slices):
            file.create_dataset(s, data=images, compression="gzip", chunks=(1, *images.shape[1:]),
                                maxshape=(None, *images.shape[1:]))  # for a set without images
            file.create_dataset(f"{s}_names", dtype=h5py.string_dtype(),
                                data=[printable(name) for name in slices.names[s]])
    replace_file(path, lambda new: new.write_bytes(packed.getbuffer()))


def describe(data, slices, sets):
    """Prints counts, patients and ranges of the sets that were read. Warns of a patient in two of
    three: the piles would hold pairs, or the evaluation would have been trained on."""
    print(f"{data}: slices of {slices.input.shape[1]}x{slices.input.shape[2]}, 8-bit grey levels")
    people = {s: {patient(name) for name in slices.names[s]} for s in SETS}
    for s, v in [(s, getattr(slices, s)) for s in sets]:
        levels = f", range {v.min()}..{v.max()}, mean {v.mean():.1f}" if v.size else ""
        print(f"  {s:<18}{len(v):>6} slices of {len(people[s]):>4} patients{levels}")
    for one, other in ((SETS[0], SETS[1]), (SETS[0], SETS[2]), (SETS[1], SETS[2])):
        if both := sorted(people[one] & people[other]):
            print(f"warning: {len(both)} patients stand in both {one} and {other}, "
                  f"{printable(both[0])} among them; a file's name up to its first underscore is "
                  "taken for the patient", file=sys.stderr)


# ---------------------------------------------------------------- batches

def to_unit(images):
    """Brings grey levels 0..255 to [-1,1], what networks and losses see (Sec. 4.2)."""
    return images.float() / 127.5 - 1


def draw(images, b, generator, device):
    """Draws b images with replacement -> float32 [b,1,d,d] in [-1,1] on device. The generator lives
    on the CPU, so that a seed draws the same slices on every device."""
    index = torch.randint(len(images), (b,), generator=generator)
    return to_unit(images[index.to(images.device)].to(device))


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
    picture_grid("data.png", [(s, images[six_indices(len(images))])
                              for s, images in zip(SETS, slices) if len(images)])
    print("wrote data.png")


if __name__ == "__main__":
    start(main)
