"""From the archives to slices (Sec. 4.1): raw IXI, fastMRI and CQ500 become the folder that train.py reads.

    python prepare.py ixi      --t1 IXI-T1/ --t2 IXI-T2/ --out ixi_slices/
    python prepare.py fastmri  --volumes singlecoil_train/ singlecoil_val/ --out knee_slices/
    python prepare.py mri2ct   --t1 IXI-T1/ --ct CQ500/ --out mri2ct_slices/

OUT/input/*.png, OUT/target/*.png, OUT/evaluation/NAME_input.png and NAME_target.png, 8-bit grey, 256x256, and
OUT/manifest.json: who went where, and every choice made. With --out NAME.h5: one file, and NAME.json beside it.
The same command again goes on where it stopped. Brains lie with the nose up and the patient's left on the right, as
radiologists look at them; the authors' own sample lies with the nose down, so do not mix the two.
"""
import argparse
import contextlib
import glob
import hashlib
import json
import os
import re
import shutil
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from data import SETS, fail, find_images, patient, picture_grid, progress

ACQUISITION = "CORPD_FBK"  # coronal proton density without fat suppression, as in Sec. 4.1
# The percentile that becomes white. Sec. 4.2, taken literally, has 100; but then a few voxels of fat and vessels press an
# IXI brain into the lower third of the greys.
WHITE = 99.9
AIR = -1024  # Hounsfield units; below lies only padding outside the scanner's circle (-1500, -2000 or worse)
UNFIT = re.compile(r"(?:[^\w.-]|_)+")  # for names of patients: blanks, and underscores, which end them in a slice's name
NIFTI = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
# what hospitals write into the description of a CT series, here in lower case; CQ500 has some 80 spellings
PLAIN = re.compile(r"plain|\bpre\b|pre.?contrast|non.?contrast|\bncct\b|without|\bw/?o\b|unenhanced|\bc-(?!\d)")
CONTRAST = re.compile(r"contrast|post(?!erior|.?fossa)|angio|\bcta\b|cect|\bc\b|\biv\b|\boral\b|\d ?cc\b|perf|venous|arter")
SHARP = re.compile(r"bone|hi.?res|hrct|sharp|lung|edge|\bh[67]\d|\bfc[38]\d")


# ---------------------------------------------------------------- who goes where, which slices, which greys

def core(n):
    """The core 60 % (Sec. 4.1) of n slices. Of 130: 26..103, as in the authors' sample."""
    return range(n // 5, n - n // 5)


def shuffled(names, args):
    """In an order that depends on names and seed alone: NumPy has frozen RandomState's stream for good."""
    names = sorted(names)[:args.limit]
    return [names[i] for i in np.random.RandomState(args.seed % 2 ** 32).permutation(len(names))]


def split(patients, args):
    """Patients -> {part: sorted list}, disjoint: 10 % for evaluation (Sec. 4.1), the others half and half. Two patients:
    nobody is left for evaluation. One: a pair to look at, and nobody to train on."""
    order = shuffled(patients, args)
    held = 0 if len(order) == 2 else max(1, round(len(order) / 10))
    middle = held + (len(order) - held + 1) // 2
    return {"input": sorted(order[held:middle]), "target": sorted(order[middle:]), "evaluation": sorted(order[:held])}


def to_grey(stack, kind, args):
    """Core slices of one volume [n,h,w] -> one by one, float32 [h,w] in [0,255]: CT through its window, MRI on one scale
    for the whole volume or, as the authors' sample has it, from minimum to maximum of every slice."""
    if stack.min() == stack.max():
        raise ValueError("all voxels of its core slices have one value; if it is a T1, does it lie where its T2 lies?")
    low, high = np.percentile(stack[:, ::2, ::2], [100 - WHITE, WHITE])  # of every fourth pixel, which spares a copy
    if kind == "ct":
        low, high = args.centre - args.width / 2, args.centre + args.width / 2
    for picture in stack:
        if kind != "ct" and args.normalise == "slice":
            low, high = picture.min(), picture.max()
        yield np.clip((picture - float(low)) / max(float(high - low), 1e-12) * 255, 0, 255)


def fit_square(picture, spacing, size):
    """float32 [h,w] in [0,255], mm between rows and between columns -> uint8 [size,size], pixels as wide as high, padded
    with black. Pillow's bicubic averages when it shrinks: from 320 to 256 it errs by half as much as the box filter."""
    sides = picture.shape * np.array(spacing)
    h, w = (max(1, round(size * side / sides.max())) for side in sides)
    resized = Image.fromarray(np.ascontiguousarray(picture)).resize((w, h), Image.Resampling.BICUBIC)
    top, left = (size - h) // 2, (size - w) // 2
    grey = np.rint(np.clip(resized, 0, 255)).astype(np.uint8)
    return np.pad(grey, ((top, size - h - top), (left, size - w - left)))


# ---------------------------------------------------------------- readers
# Each takes the file or files of one volume -> (core slices float32 [n,rows,columns], affine from [slice, row, column] to
# mm, the slices' numbers in the volume, notes for the manifest). ValueError: the reason why it cannot be used.

@contextlib.contextmanager
def reading(path):
    """Names the file in whatever is wrong with it: nibabel, pydicom and h5py let errors of zlib, struct and others through."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path.name} cannot be used ({type(error).__name__}: {' '.join(str(error).split())[:300]})")


def upright(voxels, affine):
    """-> [slice from bottom to top, row from front to back, column from right to left], and the affine of that."""
    from nibabel import orientations
    turn = orientations.ornt_transform(orientations.io_orientation(affine), orientations.axcodes2ornt("SPL"))
    return orientations.apply_orientation(voxels, turn), affine @ orientations.inv_ornt_aff(turn, voxels.shape)


def read_nifti(path):
    """-> all slices, upright, and their affine. NaN and infinities become the smallest value."""
    import nibabel
    with reading(path):
        image = nibabel.load(path)
        if np.prod(image.shape[3:]) != 1 or not (image.header["sform_code"] or image.header["qform_code"]):
            raise ValueError(f"shape {image.shape}; one 3-D volume is wanted, with sform or qform to say which way up it is")
        voxels = image.get_fdata(dtype=np.float32, caching="unchanged").reshape(image.shape[:3])
        finite = np.isfinite(voxels)
        voxels[~finite] = voxels.min(where=finite, initial=np.inf)
        return upright(voxels, image.affine)


def brain(path, grid_path=None):
    """A NIfTI volume on the core axial slices of its own grid or, linearly interpolated, of another volume's: IXI's T1 is
    stored sagittal, its T2 axial, in planes some 13 degrees apart. Both affines lead there; nothing is registered."""
    from scipy import ndimage
    stack, affine = read_nifti(grid_path or path)
    kept = core(len(stack))
    if not grid_path:
        return stack[kept.start:kept.stop], affine, kept, {"file": path.name}
    shape = len(kept), *stack.shape[1:]
    del stack  # so that both volumes and the result are never in memory together
    stack, own = read_nifti(path)
    step = np.linalg.inv(own) @ affine
    start = step[:3, 3] + step[:3, 0] * kept.start
    stack = ndimage.affine_transform(stack, step[:3, :3], start, shape, order=1, cval=float(stack.min()))
    return stack, affine, kept, {"file": path.name, "resampled_onto": grid_path.name}


def column_mask(name, columns):
    """4x random mask (Sec. 4.1) -> bool [columns], drawn by the file's name: the central 8 %, and others until a quarter is
    reached. Reference 3 tosses a coin for every column and reaches 4x on average only; Sec. 4.1 says 25 %."""
    central = round(0.08 * columns)
    mask = np.zeros(columns, bool)
    mask[columns // 2 - central // 2:][:central] = True
    generator = np.random.RandomState(np.frombuffer(hashlib.sha256(name.encode()).digest(), "<u4"))
    mask[generator.permutation(np.flatnonzero(~mask))[:round(columns / 4) - central]] = True
    return mask


def reconstruct(kspace, side=320):
    """Complex k-space [h,w], zero frequency in the middle -> magnitude [side,side], or less where k-space is smaller. The
    readout is oversampled, so that k-space has twice the image's rows; the crop comes before the magnitude."""
    image = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace), norm="ortho"))
    h, w = (min(side, n) for n in image.shape)
    top, left = (image.shape[0] - h) // 2, (image.shape[1] - w) // 2
    return np.abs(image[top:top + h, left:left + w])


def knee(path, accelerated):
    """A fastMRI volume, read slice by slice: zero-filled or fully sampled. Each is scaled to grey on its own: who has only
    the undersampled scan does not know the other (the scales differ by 2 to 5 %, which costs a pair less than 0.1 dB)."""
    with reading(path), h5py.File(path) as file:
        kspace, undersampled = file["kspace"], "mask" in file
        if kspace.ndim != 3 or kspace.dtype.kind != "c" or undersampled:
            raise ValueError(f"{kspace.dtype} {kspace.shape}, {undersampled=}; single-coil train and val releases are wanted")
        mask = column_mask(path.name, kspace.shape[2]) if accelerated else np.ones(kspace.shape[2], bool)
        kept = core(len(kspace))
        stack = np.stack([reconstruct(kspace[k] * mask) for k in kept])
    return stack, np.eye(4), kept, {"file": path.name, "acceleration": round(len(mask) / int(mask.sum()), 3)}


def ct(paths):
    """The CT of one patient in Hounsfield units: the NIfTI file if there is one, else the best of the DICOM series. Gantry
    tilt, uneven distances, table and head holder stay as acquired, as in Sec. 4.1."""
    if volumes := [path for path in paths if NIFTI.search(path.name)]:
        stack, affine, kept, notes = brain(volumes[0])
    else:
        series, notes = choose_series(paths)
        kept, affine = core(len(series)), np.eye(4)
        lengths = [1, *map(float, series[0].PixelSpacing)]
        affine[:3, :3] = directions(series[0]).T * lengths * [[-1], [-1], [1]]  # DICOM counts to the patient's left and back
        stack, affine = upright(np.stack([hounsfield(Path(series[k].filename)) for k in kept]), affine)
    return np.maximum(stack, AIR), affine, kept, notes


def hounsfield(path):
    """A padding value denser than bone is air; one that tissue has too is not believed: it would punch holes."""
    import pydicom
    with reading(path):
        image = pydicom.dcmread(path)
        hu = image.pixel_array * np.float32(image.get("RescaleSlope") or 1) + np.float32(image.RescaleIntercept)
        if hu.ndim != 2:
            raise ValueError(f"its pixels are {hu.shape}; one slice a file is wanted")
        hu[(image.pixel_array == image.get("PixelPaddingValue")) & (hu >= 3000)] = AIR
    return hu


def directions(header):
    """-> unit vectors [3,3] from slice to slice (upwards), from row to row, from column to column."""
    along_row, along_column = np.array(header.get("ImageOrientationPatient") or np.zeros(6), float).reshape(2, 3)
    up = np.cross(along_row, along_column)
    return np.stack([up * np.sign(up[2]), along_column, along_row])


def choose_series(paths):
    """DICOM files -> (headers of the best plain axial series from bottom to top, notes); of two at one place the first."""
    import pydicom
    series = {}
    for path in paths:
        with reading(path):
            header = pydicom.dcmread(path, stop_before_pixels=True)
            # a series without description is called by its folder, whose name CQ500 made of it
            header.title = f"{header.get('SeriesNumber') or 0} {header.get('SeriesDescription') or path.parent.name}"
            tags = [header.get(tag) for tag in ("PatientID", "SeriesInstanceUID", "Rows", "Columns")]
            key = *tags, "ImagePositionPatient" in header, *directions(header).round(2).flat
        series.setdefault(key, []).append(header)
    if len({key[0] for key in series}) > 1:
        raise ValueError("holds several people by PatientID; give --ct the folder that has a folder for every patient")
    found = {f"{headers[0].title}, {len(headers)} files": why_not(headers) for headers in series.values()}
    fit = [headers for headers in series.values() if not why_not(headers)]
    if not fit:
        raise ValueError(f"no plain axial CT series: {found}")
    best = min(fit, key=preference)
    heights = {round(float(directions(h)[0] @ h.ImagePositionPatient), 2): h for h in reversed(best)}
    return [heights[z] for z in sorted(heights)], {"series": best[0].title, "slices_acquired": len(best), "found": found}


def preference(headers):
    """Sorts series, the best first: as acquired before derived, which have been cut twice; soft before sharp kernels, whose
    noise hides grey and white matter; then those of most slices: Sec. 4.1 counts 130 a patient, which only thin ones have."""
    first = headers[0]
    derived = "DERIVED" in (first.get("ImageType") or [])
    sharp = bool(SHARP.search(f"{first.title} {first.get('ConvolutionKernel', '')}".lower()))
    return derived, sharp, -len(headers), int(first.get("SeriesNumber") or 0), str(first.get("SeriesInstanceUID"))


def why_not(headers):
    """The first reason for which a series is no plain axial scan, or None. Its description outranks ContrastBolusAgent,
    which is often filled in for the whole examination, plain scan included."""
    first, text = headers[0], headers[0].title.lower().replace("_", " ")
    agent = str(first.get("ContrastBolusAgent") or "none").strip().lower() not in ("none", "no", "n")
    modality = f"{first.get('Modality')} {first.get('PhotometricInterpretation')}"
    tags = ("ImagePositionPatient", "PixelSpacing", "RescaleIntercept")
    reasons = {
        f"pixels are {modality}": modality != "CT MONOCHROME2",
        "no place, pixel spacing or Hounsfield units": any(first.get(tag) is None for tag in tags),
        "localiser": "LOCALIZER" in (first.get("ImageType") or []),
        "not axial": abs(directions(first)[0]).argmax() != 2,
        "contrast agent": not PLAIN.search(text) and (CONTRAST.search(text) or agent),
        "fewer than 5 slices": len(headers) < 5}
    return next((reason for reason, holds in reasons.items() if holds), None)


# ---------------------------------------------------------------- archives
# Each -> (who goes where, {beginning of a volume's slice names: {domain: (kind of slice, reader)}})

def listed(folder, fits, wanted):
    """Files below a folder, sorted, so that the order on the disk decides nothing; hidden ones are left out."""
    paths = map(Path, sorted(glob.glob(f"{glob.escape(folder)}/**", recursive=True)))
    found = [path for path in paths if path.is_file() and fits(path)]
    if not found:
        fail(f"{folder}: no {wanted} in or below it; give the folder into which the archive was unpacked")
    return found


def find_contrast(folder, contrast):
    """-> {subject: its first file}, the subject being the name up to the contrast: IXI012-HH-1211-T1.nii.gz."""
    name = re.compile(rf"(.+?)[-_]{contrast}w?([-_.].*)?\.nii(\.gz)?", re.IGNORECASE)
    paths = listed(folder, lambda path: name.fullmatch(path.name), f"file named like IXI012-HH-1211-{contrast}.nii.gz")
    return {UNFIT.sub("-", name.fullmatch(path.name)[1]): path for path in reversed(paths)}


def ixi(args):
    t1, t2 = find_contrast(args.t1, "T1"), find_contrast(args.t2, "T2")
    both = sorted(t1.keys() & t2.keys())
    print(f"{len(both)} subjects have T1 and T2; {len(t1.keys() ^ t2.keys())} have only one of them and are left out")
    return split(both, args), {p: {"input": ("t1", partial(brain, t1[p], t2[p])), "target": ("t2", partial(brain, t2[p]))}
                               for p in both}


def fastmri(args):
    paths = [path for folder in args.volumes for path in listed(folder, lambda p: p.suffix.lower() == ".h5", ".h5 file")]
    volumes = {}
    for path in paths:
        acquisition, person = ACQUISITION, ""  # a file that cannot be opened is named when its turn comes
        with contextlib.suppress(Exception), h5py.File(path) as file:
            attributes = (np.asarray(file.attrs.get(name, "")) for name in ("acquisition", "patient_id"))
            acquisition, person = (str(attribute.astype(str)) for attribute in attributes)
        if acquisition == ACQUISITION:
            # of the id, a hash of 64 digits, twelve tell patients apart; without one a file is a patient of its own
            who = f"p{hashlib.sha256(person.encode()).hexdigest()[:12]}_" if person else ""
            stem = who + UNFIT.sub("-", path.stem)
            volumes[stem] = {"input": ("4x", partial(knee, path, True)), "target": ("full", partial(knee, path, False))}
    print(f"{len(volumes)} of {len(paths)} volumes are of acquisition {ACQUISITION}, the others are left out")
    return split({patient(stem) for stem in volumes}, args), volumes


def mri2ct(args):
    """Whatever lies directly in --ct, folder or NIfTI file, is one patient; so is --ct itself where DICOM files lie in it. One
    level too deep, every study or series of one person would count as somebody: give the folder of all patients.
    T1 is cut along its own axial grid: 154 slices of 0.94 mm a patient, where Sec. 4.1 counts 79."""
    from pydicom.misc import is_dicom

    def fits(path):
        return NIFTI.search(path.name) or path.suffix.lower() == ".dcm" or path.name.upper() != "DICOMDIR" and is_dicom(path)
    t1, scans = find_contrast(args.t1, "T1"), {}
    for folder in args.ct:
        for path in listed(folder, fits, "DICOM or NIfTI file"):
            first, *inside = path.relative_to(folder).parts
            name = first if inside else NIFTI.sub("", first) if NIFTI.search(first) else Path(folder).resolve().name
            scans.setdefault(UNFIT.sub("-", name), []).append(path)
    if t1.keys() & scans.keys():
        fail(f"{min(t1.keys() & scans.keys())} is the name of a T1 and of a CT patient; rename one of them")
    mri, target = shuffled(t1, args)[:args.patients_mri], shuffled(scans, args)[:args.patients_ct]
    print(f"{len(t1)} T1 volumes found, {len(mri)} taken; {len(scans)} CT patients found, {len(target)} taken")
    held = max(1, round(len(mri) / 10)) if len(mri) > 1 else 0
    volumes = {p: {"input": ("t1", partial(brain, t1[p]))} for p in mri}
    volumes |= {p: {"target": ("ct", partial(ct, scans[p]))} for p in target}
    return {"input": sorted(mri[held:]), "target": sorted(target), "evaluation": sorted(mri[:held])}, volumes


# ---------------------------------------------------------------- the run

def prepare_volume(folder, part, stem, sources, args):
    """-> notes for the manifest. Slices are written aside first and then renamed, so that nothing half-written stays."""
    notes = {"part": part}
    with tempfile.TemporaryDirectory(prefix="unfinished-", dir=folder) as aside:
        for domain, (kind, read) in sources.items():
            if part in (domain, "evaluation"):
                stack, affine, numbers, notes[kind] = read()
                notes["slices"], ending = len(numbers), domain if part == "evaluation" else kind
                for k, grey in zip(numbers, to_grey(stack, kind, args)):
                    square = fit_square(grey, np.linalg.norm(affine[:3, 1:3], axis=0), args.size)
                    Image.fromarray(square).save(Path(aside, f"{stem}_{k:03d}_{ending}.png"))
                del stack  # before the other half of the pair is read
        for path in Path(aside).iterdir():
            os.replace(path, folder / part / path.name)
    return notes


def begin(folder, parts, args):
    """-> the manifest of an earlier run, or a new one. Ends the program where the folder holds other slices."""
    elsewhere = ("t1", "t2", "ct", "volumes", "out", "preview")  # places differ between people, slices must not
    wanted = {key: value for key, value in vars(args).items() if key not in elsewhere} | {"split": parts}
    place = folder / "manifest.json"
    before = {"volumes": {}}
    with contextlib.suppress(OSError, ValueError):
        before = json.loads(place.read_text())
    differ = [key for key in wanted if before.get(key) != wanted[key]]
    if args.out.is_file() or differ and (place.exists() or find_images(folder)):
        fail(f"{args.out}: is finished, or of other settings ({', '.join(differ)}); choose another --out or remove it")
    return before | wanted | {"bad": {}}


def prepare(folder, manifest, volumes, args):
    """Goes through the volumes that the manifest does not hold as done; bad ones have another chance."""
    for part in manifest["split"]:
        (folder / part).mkdir(parents=True, exist_ok=True)
    part_of = {person: part for part, people in manifest["split"].items() for person in people}
    jobs = [stem for stem in volumes if patient(stem) in part_of]
    todo, started = [stem for stem in jobs if stem not in manifest["volumes"]], time.monotonic()
    print(f"{len(jobs)} volumes, {len(jobs) - len(todo)} of them done already")
    for count, stem in enumerate(todo, 1):
        try:
            manifest["volumes"][stem] = prepare_volume(folder, part_of[patient(stem)], stem, volumes[stem], args)
        except ValueError as error:
            manifest["bad"][stem] = str(error)
            print(f"\nskipped {stem}: {error}", file=sys.stderr)
        (folder / "manifest.tmp").write_text(json.dumps(manifest, indent=1) + "\n")
        os.replace(folder / "manifest.tmp", folder / "manifest.json")
        seconds = (time.monotonic() - started) / count * (len(todo) - count)
        progress(count, len(todo), f"{seconds // 60:4.0f} min {seconds % 60:02.0f} s left, volume")
    if not manifest["volumes"]:
        fail(f"{args.out}: not one of {len(jobs)} volumes could be used")


def draw_preview(place, found, rows=8):
    """Draws slices of all sets side by side; an evaluation pair stands in one row."""
    columns = {which: [np.asarray(Image.open(pairs[i][1])) for i in np.linspace(0, len(pairs) - 1, rows).astype(int)]
               for which, pairs in found.items() if pairs}
    picture_grid(place, list(zip(*columns.values())), list(columns))


def pack(out, found, size):
    """PNG files -> one .h5 as data.py reads it, slice by slice; written aside first, then renamed."""
    with h5py.File(f"{out}.tmp", "w") as file:
        for which, pairs in found.items():
            images = file.create_dataset(which, (len(pairs), size, size), "uint8", maxshape=(None, size, size),
                                         chunks=(1, size, size), compression="gzip")
            for k, (_, path) in enumerate(pairs):
                images[k] = np.asarray(Image.open(path))
            file.create_dataset(f"{which}_names", data=[name for name, _ in pairs], dtype=h5py.string_dtype())
    os.replace(f"{out}.tmp", out)


def run(args):
    """An .h5 is packed at the end, of PNG files in NAME.part, so that a run that was killed in the middle can go on."""
    packed = args.out.suffix.lower() == ".h5"
    folder = args.out.with_suffix(".part") if packed else args.out
    parts, volumes = {"ixi": ixi, "fastmri": fastmri, "mri2ct": mri2ct}[args.task](args)
    manifest = begin(folder, parts, args)
    prepare(folder, manifest, volumes, args)
    entries = find_images(folder)
    found = {which: [(name, paths[which]) for name, paths in entries if which in paths] for which in SETS}
    print(f"{args.out}: " + ", ".join(f"{len(pairs)} slices for {which}" for which, pairs in found.items()))
    if manifest["bad"]:
        print(f"skipped {len(manifest['bad'])} volumes in all; the manifest has the reasons", file=sys.stderr)
    if reached := [notes["4x"]["acceleration"] for notes in manifest["volumes"].values() if "4x" in notes]:
        print(f"acceleration reached: {min(reached)} to {max(reached)}")
    if args.preview:
        draw_preview(args.out.with_suffix(".png") if packed else folder / "preview.png", found)
    if packed:
        shutil.copyfile(folder / "manifest.json", args.out.with_suffix(".json"))
        pack(args.out, found, args.size)
        shutil.rmtree(folder)


def main():
    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument
    add("--out", type=Path, required=True, help="folder for PNG files, or NAME.h5 for one file")
    add("--size", type=int, default=256, help="side d of the slices in pixels (Sec. 4.1: 256)")
    add("--seed", type=int, default=0, help="decides who goes where (Sec. 4.1: randomly)")
    add("--limit", type=int, help="only the first so many patients, for a first look (Sec. 4.1: all)")
    add("--preview", action="store_true", help="also draw slices of both domains side by side")
    add("--normalise", choices=("volume", "slice"), default="volume", help="MRI: one grey scale a volume or a slice (Sec. 4.2)")
    parser = argparse.ArgumentParser(description="Turn raw IXI, fastMRI and CQ500 into slices (Sec. 4.1).")
    tasks = parser.add_subparsers(dest="task", required=True)
    add = tasks.add_parser("ixi", parents=[common], help="T1 to T2 (Sec. 4.1, modality propagation)").add_argument
    add("--t1", required=True, help="folder of T1 volumes, SUBJECT-T1.nii.gz")
    add("--t2", required=True, help="folder of T2 volumes, SUBJECT-T2.nii.gz")
    add = tasks.add_parser("fastmri", parents=[common], help="4x undersampled to full (Sec. 4.1, accelerated MRI)").add_argument
    add("--volumes", nargs="+", required=True, help="folders of single-coil .h5 files")
    add = tasks.add_parser("mri2ct", parents=[common], help="T1 to CT, unpaired (Sec. 4.1, MRI-to-CT)").add_argument
    add("--t1", required=True, help="folder of T1 volumes, SUBJECT-T1.nii.gz")
    add("--ct", nargs="+", required=True, help="folders with a folder of DICOM files, or a NIfTI file, for every patient")
    add("--centre", type=float, default=40, help="centre of the CT window in HU (Sec. 4.1 names none)")
    add("--width", type=float, default=400, help="width of the CT window in HU (Sec. 4.1 names none)")
    add("--patients-mri", type=int, default=144, help="random T1 patients, a tenth of them for evaluation (Sec. 4.1: 144)")
    add("--patients-ct", type=int, default=80, help="random CT patients (Sec. 4.1: 80)")
    for each in (parser, *tasks.choices.values()):
        each.error = fail
    args = parser.parse_args()
    for flag in ("size", "limit", "width", "patients_mri", "patients_ct"):
        value = getattr(args, flag, None)
        if value is not None and value < 1:
            fail(f"--{flag.replace('_', '-')} {value}: wants a number of at least 1")
    try:
        run(args)
    except ModuleNotFoundError as error:
        fail(f"{error.name} is missing, without which this archive cannot be read; install it with: pip install {error.name}")
    except (OSError, KeyboardInterrupt) as error:  # what reads a volume turns its OSErrors into ValueErrors
        fail(f"stopped ({type(error).__name__} {error}); the same command goes on from here")


if __name__ == "__main__":
    main()
