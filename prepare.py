"""From the archives to slices (Sec. 4.1): raw IXI, fastMRI and CQ500 become what train.py reads.

    python prepare.py ixi     --t1 IXI-T1/ --t2 IXI-T2/ --out all_ixi_slices/
    python prepare.py fastmri --volumes singlecoil_val/ --out knee_slices/
    python prepare.py mri2ct  --t1 IXI-T1/ --ct CQ500/ --out mri2ct_slices/

--t1, --t2: SUBJECT-T1.nii.gz at any depth. --volumes: .h5 files of fastMRI's single-coil train and
val. --ct: for every patient a folder of DICOM files, as in CQ500, or a NIfTI file in HU; RLE and
JPEG 2000 work as installed, lossless JPEG with pylibjpeg. --out gets input/*.png, target/*.png,
evaluation/NAME_input.png and NAME_target.png, and manifest.json with every choice. The same command
goes on and tries again what could not be used. In mri2ct an IXI T1 gives some 154 slices, where
Sec. 4.1 counts 79. Brains lie nose up, left on the right, those of the authors' sample nose down.
"""
import argparse
import contextlib
import glob
import gzip
import hashlib
import json
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

from data import SETS, find_images, patient
from run import (bounded, claim_folder, fail, make_folder, memory_may_run_out, progress,
                 replace_file, start)

PARTS = ("input", "target", "evaluation")
ACQUISITION = "CORPD_FBK"  # coronal proton density without fat suppression, as in Sec. 4.1
WHITE = 99.9  # percentile; with Sec. 4.2's 100 a few voxels of fat press a brain into lower greys
HEAD = 90  # mm; CT series that cover less come last, the others go by their slices
AIR = -1024  # Hounsfield units; below lies only padding outside the scanner's circle
UNFIT = re.compile(r"(?:[^\w.-]|_)+")  # in names: blanks, and underscores, which end a patient's
NIFTI = re.compile(r"\.nii(\.gz)?$", re.IGNORECASE)
# Descriptions of CT series, in lower case; CQ500 has some 80. PLAIN takes along what it denies.
PLAIN = re.compile(r"(plain|\bpre(?=\b|contrast)|\bnon?(?=\W{0,3}(con(trast|\b)|enhanc|iv\b|ce\b))"
    r"|\bncct\b|unenhanc\w*|without|\bw */? *o(ut)?\b|\bc-(?!\d)|\bs/c\b|\bnati[vf]"
    r"|\b(sin|sem|sans|senza|ohne|zonder)\b)"
    r"([^\w+&/]*(or )?"
    r"(con(?!\W*contr)|contrast\w*|enhanc\w*|agent|injection|iv|oral|ce|km|mdc|c)\b)*")
CONTRAST = re.compile(r"contrast|enhanc|inject|post(?!erior|.?fossa|.?op|.?trauma)|angio|cect|perf"
    r"|veno|arter|delay|bolus|\d ?cc\b|\b(ct[apv]|c|ce|km|mdc|iv|oral|with|mit|con|avec)\b"
    r"|\bw *(and|[&/+]|$)|[d&/+] *w\b")
# Only in CQ500's "CT C" C says contrast; elsewhere it follows A and B, as IV follows III.
LABEL = re.compile(r"(?i)^iv$|(?<!CT[ _])(?<![^\W_])c(?![^\W_]|[-+])")
SHARP = re.compile(r"bone|hi(gh)?.?res|hrct|sharp|lung|edge|\bh[67]\d|\bfc[38]\d")


# ---------------------------------------------------------------- who goes where, slices, greys
def core(n):
    """The core 60 % of n slices (Sec. 4.1; knees: ours). Of 130: 26..103, as the authors have."""
    return range(n // 5, n - n // 5)


def shuffled(names, args):
    """In an order that names and seed decide: NumPy has frozen RandomState's stream for good."""
    names = sorted(names)[:args.limit] or fail("no patient of these archives fits; see --help")
    return np.random.RandomState(args.seed % 2 ** 32).permutation(names).tolist()


def split(patients, args):
    """Patients -> {part: sorted list}: 10 % for evaluation (Sec. 4.1), the others half and half. Of
    two patients nobody is left for evaluation; one is a pair to look at, nobody to train on."""
    order = shuffled(patients, args)
    held = 0 if len(order) == 2 else max(1, round(len(order) / 10))
    half = held + (len(order) - held + 1) // 2
    return dict(zip(PARTS, map(sorted, (order[held:half], order[half:], order[:held]))))


def grey_limits(stack, kind, args):
    """-> what becomes 0 and 255: CT's window, or an MRI's range; None: every slice has its own."""
    if kind == "ct":
        return [args.centre - args.width / 2, args.centre + args.width / 2]
    if args.normalise == "volume":  # strides spare a copy
        return np.percentile(stack[:, ::2, ::2], [100 - WHITE, WHITE]).tolist()


def fit_square(picture, spacing, size, limits):
    """float32 [h,w], mm between pixels -> uint8 [size,size], its limits, is it of a single grey.
    Pillow's bicubic averages when it shrinks: from 320 to 256 it errs half as much as a box."""
    def to_grey(values, low, high):
        return np.clip((values - low) / max(high - low, 1e-12) * 255, 0, 255)
    picture = to_grey(picture, *limits) if limits else np.ascontiguousarray(picture)
    sides = picture.shape * np.array(spacing)
    h, w = (max(1, round(size * side / sides.max())) for side in sides)
    small = np.asarray(Image.fromarray(picture).resize((w, h), Image.Resampling.BICUBIC))
    # a slice's own limits are those of its shrunk pixels, less bicubic's overshoot
    own = [float(max(small.min(), picture.min())), float(min(small.max(), picture.max()))]
    grey = np.rint(to_grey(small, *([0, 255] if limits else own))).astype(np.uint8)
    margins = [((size - n) // 2, (size - n + 1) // 2) for n in (h, w)]
    return np.pad(grey, margins), limits or own, not np.ptp(grey)  # air need not be black


# ---------------------------------------------------------------- readers
# Each -> (core slices of a volume float32 [n,rows,columns], affine from [slice, row, column] to mm,
# the slices' numbers in the volume, notes for the manifest). ValueError: why it cannot be used.

@contextlib.contextmanager
def reading(path):
    """Names file and folder in what goes wrong: the libraries raise errors of all kinds."""
    try:
        yield
    except Exception as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise ValueError(f"{path.parent.name}/{path.name} cannot be used ({why})") from None


def upright(voxels, affine):
    """-> [slice from bottom to top, row from front to back, column right to left], its affine."""
    from nibabel import orientations as turns
    turn = turns.ornt_transform(turns.io_orientation(affine), turns.axcodes2ornt("SPL"))
    return turns.apply_orientation(voxels, turn), affine @ turns.inv_ornt_aff(turn, voxels.shape)


def nifti_fault(image):
    """Why a NIfTI image is no grey volume of which is known where it lies, or None."""
    shape, kind, lengths = image.shape, image.get_data_dtype(), np.abs(image.affine[:3, :3]).max(0)
    forms = [form for form, code in (image.get_sform(True), image.get_qform(True)) if code]
    if len(shape) < 3 or np.prod(shape[3:]) != 1 or not forms:
        return f"{shape}; one 3-D volume is wanted, placed by sform or qform"
    apart = np.ptp(forms @ np.array([*shape[:3], 1]), axis=0).max()  # where they put a corner
    reasons = {f"its voxels are {kind}, not grey values": kind.kind not in "iuf",
               "its sform or qform holds NaN or infinity": not np.isfinite(forms).all(),
               f"voxels of {lengths}, not in mm": lengths.min() < .05 or lengths.max() > 50,
               f"its sform and qform lie {apart:.0f} mm apart": apart > 10}
    return next((reason for reason, holds in reasons.items() if holds), None)


def read_nifti(path):
    """-> all slices, upright, and their affine. NaN and infinities become the smallest value."""
    import nibabel
    with reading(path):
        with (gzip.open if path.suffix.lower() == ".gz" else open)(path) as stream:
            stream.seek(0, 2)  # to the checksum at its end, which nibabel never reads
        image = nibabel.load(path)
        if fault := nifti_fault(image):
            raise ValueError(fault)
        voxels = image.get_fdata(dtype=np.float32, caching="unchanged").reshape(image.shape[:3])
        finite = np.isfinite(voxels)
        if not finite.any():
            raise ValueError("its voxels are all NaN or infinite")
        voxels[~finite] = voxels.min(where=finite, initial=np.inf)
        return upright(voxels, image.affine)


def brain(path, grid_path=None):
    """A NIfTI volume on the core axial slices of its own grid or, interpolated, of another's: IXI's
    T1 is stored sagittal, its T2 axial, some 13 degrees apart. Nothing is registered."""
    from scipy import ndimage
    stack, affine = read_nifti(grid_path or path)
    if len(stack) < 5:
        raise ValueError(f"{(grid_path or path).name} has {len(stack)} axial slices; 5 are wanted")
    numbers, notes = core(len(stack)), {"file": path.name}
    if not grid_path:
        return stack[numbers.start:numbers.stop], affine, numbers, notes
    shape = len(numbers), *stack.shape[1:]
    del stack  # so that both volumes and the result are never in memory together
    stack, own = read_nifti(path)
    step = np.linalg.inv(own) @ affine
    start, air = step[:3, 3] + step[:3, 0] * numbers.start, float(stack.min())
    stack = ndimage.affine_transform(stack, step[:3, :3], start, shape, order=1, cval=air)
    return stack, affine, numbers, notes | {"resampled_onto": grid_path.name}


def column_mask(name, measured):
    """4x random mask (Sec. 4.1), drawn by the file's name: of the measured columns, bool [w], the
    central 8 % and others up to a quarter. Reference 3 draws every column: 4x on average."""
    central = round(0.08 * measured.sum())
    mask = np.zeros(len(measured), bool)
    mask[len(mask) // 2 - central // 2:][:central] = True
    bits = np.frombuffer(hashlib.sha256(name.encode()).digest(), "<u4")
    others = np.random.RandomState(bits).permutation(np.flatnonzero(measured & ~mask))
    mask[others[:round(measured.sum() / 4) - central]] = True
    return mask & measured


def reconstruct(kspace, side=320):
    """Complex k-space [h,w] -> magnitude, its middle [side,side]: it has twice the image's rows."""
    image = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace), norm="ortho"))
    rows, columns = (slice((n - min(side, n)) // 2, (n + min(side, n)) // 2) for n in image.shape)
    return np.abs(image[rows, columns])


def knee(path, accelerated):
    """A fastMRI volume, zero-filled or fully sampled, each scaled to grey on its own: who has one
    does not know the other (scales differ by 2 to 5 %, less than 0.1 dB a pair)."""
    with reading(path), h5py.File(path) as file:
        kspace, undersampled = file["kspace"], "mask" in file
        if kspace.ndim != 3 or kspace.dtype.kind != "c" or undersampled:
            raise ValueError(f"{kspace.shape}, {undersampled=}; wants single-coil train and val")
        numbers = core(len(kspace))
        slices = kspace[numbers.start:numbers.stop]
        if not np.isfinite(slices).all():
            raise ValueError("its k-space holds NaN or infinity")
        measured = np.any(slices, axis=(0, 1))  # older files hold columns of zeros at both ends
        if gaps := np.sum(~np.trim_zeros(measured)):
            raise ValueError(f"{gaps} columns between measured ones hold nothing")
        mask = column_mask(path.name, measured) if accelerated else measured
        stack = np.stack([reconstruct(image * mask) for image in slices])
    notes = {"acceleration": round(float(measured.sum() / max(1, mask.sum())), 3),
             "measured": int(measured.sum()), "columns": np.flatnonzero(mask).tolist()}
    return stack, np.eye(4), numbers, {"file": path.name} | (notes if accelerated else {})


def ct(paths):
    """A patient's CT in Hounsfield units: the best plain axial DICOM series that can be read, else
    a NIfTI file. Gantry tilt, uneven distances, table and head holder stay, as in Sec. 4.1."""
    readers, remarks = plain_series([path for path in paths if not NIFTI.search(path.name)])
    readers += plain_niftis([path for path in paths if NIFTI.search(path.name)], remarks)
    for read in readers:
        try:
            stack, affine, numbers, notes = read()
            if not np.any((stack >= AIR) & (stack < -500)):  # below AIR lies padding
                raise ValueError(f"nothing below -500; no HU, or no air: {[*notes.values()][0]}")
            return np.maximum(stack, AIR, out=stack), affine, numbers, notes | {"found": remarks}
        except ValueError as error:
            remarks.append(str(error))
    raise ValueError(f"no plain axial CT series: {'; '.join(remarks)}")


def plain_niftis(paths, remarks):
    """As plain_series(), of NIfTI files: dcm2niix names them so; the largest has most slices."""
    names = {p: LABEL.sub("", NIFTI.sub("", p.name)).lower().replace("_", " ") for p in paths}
    fit = [path for path in paths if not CONTRAST.search(PLAIN.sub(" ", names[path]))]
    fit.sort(key=lambda path: (bool(SHARP.search(names[path])), -path.stat().st_size))
    remarks += [f"{path.name}: {'plain' if path in fit else 'contrast agent'}" for path in paths]
    return [partial(brain, path) for path in fit]


def read_series(title, headers):
    """headers: of one slice after the other, from bottom to top."""
    affine, numbers, first = np.eye(4), core(len(headers)), headers[0]
    with reading(Path(first.filename)):  # DICOM counts to the patient's left and back
        affine[:3, :3] = directions(first).T * [1, *first.PixelSpacing] * [[-1], [-1], [1]]
    stack = np.stack([hounsfield(Path(headers[k].filename)) for k in numbers])
    return *upright(stack, affine), numbers, {"series": title, "slices_acquired": len(headers)}


def hounsfield(path):
    """Padding denser than bone is air; padding that tissue has too would punch holes, and stays."""
    import pydicom
    with reading(path):
        image = pydicom.dcmread(path)
        slope, intercept = np.float32([image.get("RescaleSlope") or 1, image.RescaleIntercept])
        hu = image.pixel_array * slope + intercept
        if hu.ndim != 2:
            raise ValueError(f"its pixels are {hu.shape}; one slice a file is wanted")
        hu[(image.pixel_array == image.get("PixelPaddingValue")) & (hu >= 3000)] = AIR
    return hu


def directions(header):
    """-> unit vectors [3,3] from slice to slice, upwards, from row to row, column to column."""
    six = np.array(header.get("ImageOrientationPatient") or np.zeros(6), float)
    up = np.cross(six[:3], six[3:])
    return np.stack([up * np.sign(up[2]), six[3:], six[:3]])


def grouped(paths):
    """DICOM files -> (headers, a list for each series, why files cannot be read)."""
    import pydicom
    series, remarks = {}, []
    for path in paths:
        try:
            with reading(path):
                header = pydicom.dcmread(path, stop_before_pixels=True)
                said = header.get("SeriesDescription") or LABEL.sub("", path.parent.name)
                header.title = f"{header.get('SeriesNumber') or 0} {said}"
                axes, corner = directions(header), header.get("ImagePositionPatient")
                header.height = corner and round(float(axes[0] @ np.array(corner, float)), 2)
                header.later, header.acquisition = 0, int(header.get("AcquisitionNumber") or 0)
                tags = (header.get(tag) for tag in ("SeriesInstanceUID", "Rows", "Columns"))
                series.setdefault((*tags, not corner, *axes.round(2).flat), []).append(header)
        except ValueError as error:
            remarks.append(str(error))
    return [part for headers in series.values() for part in acquisitions(headers)], remarks


def acquisitions(headers):
    """Takes apart acquisitions that interleave, as plain and enhanced; a stack is one scan."""
    order = sorted((header.height or 0, header.acquisition) for header in headers)
    numbers = sorted({number for _, number in order})
    if sum(one[1] != other[1] for one, other in zip(order, order[1:])) < len(numbers):
        return [headers]
    for header in headers:
        header.later = numbers.index(header.acquisition)
        header.title += f", acquisition {header.acquisition}"
    return [[header for header in headers if header.later == k] for k in range(len(numbers))]


def plain_series(paths):
    """DICOM files -> (readers of plain axial series, the best first; a line on all that was found):
    of a whole head; without a gap; not derived, which is cut twice; of a soft kernel, since noise
    hides grey and white matter; the first acquisition; most slices: Sec. 4.1 counts 130."""
    (series, remarks), fit = grouped(paths), {}
    for headers in series:
        first, reason = headers[0], why_not(headers)
        title = f"{first.title}, {len(headers)} files in {Path(first.filename).parent.name}: "
        if not reason:
            slices = {header.height: header for header in reversed(headers)}  # of twins the first
            heights, twins = sorted(slices), len(headers) - len(slices)
            title += f"{twins} left out at heights of others, " * (twins > 0)
            covered = np.median(np.diff(heights)) * len(heights)
            reason = gap(heights) or "whole"
            derived = "DERIVED" in str(first.get("ImageType")).upper()
            sharp = bool(SHARP.search(f"{first.title} {first.get('ConvolutionKernel')}".lower()))
            rank = (covered < HEAD, reason != "whole", derived, sharp, first.later,
                    -min(covered, HEAD), -len(slices), title + reason, len(fit))
            fit[rank] = [slices[height] for height in heights]
        remarks.append(title + reason)
    suspects = sum(fit.values() or series, [])
    if len({str(header.get("PatientID") or "").strip() for header in suspects} - {""}) > 1:
        raise ValueError("holds several people by PatientID; --ct wants a folder for every patient")
    return [partial(read_series, rank[-2], fit[rank]) for rank in sorted(fit)], remarks


def gap(heights):
    """Sorted, in mm -> where slices are missing, or None. Distances may change within a scan."""
    steps = np.diff(heights)
    for i, (step, low, high) in enumerate(zip(steps, heights, heights[1:])):
        usual = np.median(steps[max(0, i - 2):i + 3])
        if step > 1.7 * usual:
            return f"gap of {step / usual - 1:.0f} slices from {low:g} to {high:g} mm"


def why_not(headers):
    """Why a series is no plain axial scan, or None. Its description outranks ContrastBolusAgent,
    which is often filled in for the whole examination, plain scan included."""
    first, tags = headers[0], ("ImagePositionPatient", "PixelSpacing", "RescaleIntercept")
    left, denied = PLAIN.subn(" ", first.title.lower().replace("_", " "))  # "pre and post" is both
    agent = str(first.get("ContrastBolusAgent") or "no").strip().lower() not in ("none", "no", "n")
    pixels = f"{first.get('Modality')} {first.get('PhotometricInterpretation')}"
    files, heights = (len({h.get(tag) for h in headers}) for tag in ("SOPInstanceUID", "height"))
    reasons = {f"pixels are {pixels}": pixels != "CT MONOCHROME2",
               "no place, pixel spacing or Hounsfield units": None in map(first.get, tags),
               "localiser": "LOCALIZER" in str(first.get("ImageType")).upper(),
               "not axial": abs(directions(first)[0]).argmax() != 2,
               "contrast agent": CONTRAST.search(left) or agent and not denied,
               "pixel spacing changes": len({str(h.get("PixelSpacing")) for h in headers}) > 1,
               "fewer than 5 slices": heights < 5,
               f"{files} images at {heights} heights, several scans in one": files > 1.5 * heights}
    return next((reason for reason, holds in reasons.items() if holds), None)


# ---------------------------------------------------------------- archives
# Each -> (who goes where, {start of slices' names: {domain: (kind, reader)}}, {unopened: reason})

def listed(folders, fits, wanted):
    """-> (folder, file below it), sorted, since the disk must not decide; no hidden files."""
    for folder in folders:
        paths = map(Path, sorted(glob.glob(f"{glob.escape(folder)}/**", recursive=True)))
        fit = [(folder, path) for path in paths if path.is_file() and fits(path)]
        yield from fit or fail(f"{folder}: no {wanted} in or below it; give the unpacked archive")


def keep_apart(taken, name, path):
    if taken.setdefault(name, path) != path:
        fail(f"{taken[name]} and {path} would both be {name}; rename one or move it elsewhere")


def by_subject(folders, contrast=None):
    """-> {name: file}. S1-T1.nii.gz wins over S1-T1-mask.nii.gz. In BIDS sub-00_ses-1 is sub-00."""
    form = rf"(.+?)[-_]{contrast}w?([-_.].*)?\.nii(\.gz)?" if contrast else r"(.+)()\.h5"
    wanted = f"file named like IXI012-HH-1211-{contrast}.nii.gz" if contrast else ".h5 file"
    form, files, spellings, names = re.compile(form, re.IGNORECASE), {}, {}, {}
    paths = [path for _, path in listed(folders, lambda path: form.fullmatch(path.name), wanted)]
    for path in sorted(paths, key=lambda path: bool(form.fullmatch(path.name)[2])):
        spelling = form.fullmatch(path.name)[1]
        subject = re.sub(r"^(sub-[^-]+)-", r"\1_", UNFIT.sub("-", spelling))
        keep_apart(spellings, subject, spelling)
        keep_apart(names, path.name, path)
        if files.setdefault(subject, path) != path:
            print(f"{path} is left out: {files[subject].name} is taken", file=sys.stderr)
    return files


def ixi(args):
    t1, t2 = by_subject([args.t1], "T1"), by_subject([args.t2], "T2")
    both = sorted(t1.keys() & t2.keys())
    print(f"{len(both)} T1 have their T2, {len(t1.keys() ^ t2.keys())} files without are left out")
    volumes = {stem: {"input": ("t1", partial(brain, t1[stem], t2[stem])),
                      "target": ("t2", partial(brain, t2[stem]))} for stem in both}
    return split({*map(patient, both)}, args), volumes, {}


def fastmri(args):
    volumes, unopened, keys = {}, {}, ("acquisition", "patient_id")
    files = by_subject(args.volumes)
    for stem, path in files.items():
        try:
            with reading(path), h5py.File(path) as file:
                said = [str(np.asarray(file.attrs.get(key, "")).astype(str)) for key in keys]
        except ValueError as error:
            unopened[stem], said = str(error), [None]
            print(f"left out: {error}", file=sys.stderr)
        if said[0] == ACQUISITION:
            # twelve of the id's 64 digits tell patients apart; without one a file is a patient
            who = f"p{hashlib.sha256(said[1].encode()).hexdigest()[:12]}_" if said[1] else ""
            volumes[who + stem] = {"input": ("4x", partial(knee, path, True)),
                                   "target": ("full", partial(knee, path, False))}
    print(f"{len(volumes)} of {len(files)} volumes are of acquisition {ACQUISITION}, "
          f"{len(unopened)} cannot be opened, the others are left out")
    return split({*map(patient, volumes)}, args), volumes, unopened


def keep_people_apart(scans, sources):
    """Refuses CT patients of one PatientID and examination, or of one ID that says who they are."""
    from pydicom import dcmread
    seen, tags = {}, ["PatientID", "StudyInstanceUID"]
    for name, path in [(name, path) for name, paths in scans.items() for path in paths[:9]]:
        with contextlib.suppress(Exception):  # what is wrong with it is said when its turn comes
            header = dcmread(path, specific_tags=tags, stop_before_pixels=True)
            for study in ("", header.get("StudyInstanceUID") or name):
                seen.setdefault((header.PatientID.strip(), study), {})[name] = str(sources[name])
    for (person, study), own in seen.items():  # REMOVED, which most share, says nothing
        says = 2 * len(own) <= len(scans) and not re.match("(?i)0*$|.*(anon|unknown)", person)
        if len(own) > 1 and (says or study):
            fail(f"{' and '.join(own.values())} share PatientID {person!r}; put them in one folder")


def mri2ct(args):
    """Each entry of --ct is a patient, DICOM files are one; the first who can be used count."""
    from pydicom import misc
    def fits(path):
        named = NIFTI.search(path.name) or path.suffix.lower() == ".dcm"
        return named or path.name.upper() != "DICOMDIR" and misc.is_dicom(path)
    t1, scans, used = by_subject([args.t1], "T1"), {}, set()
    sources = {patient(stem): path for stem, path in t1.items()}
    for folder, path in listed(args.ct, fits, "DICOM or NIfTI file"):
        first, *inside = path.relative_to(folder).parts
        used.add(Path(folder, first))
        source = Path(folder, first) if inside or NIFTI.search(first) else Path(folder).resolve()
        name = UNFIT.sub("-", NIFTI.sub("", source.name))
        keep_apart(sources, name, source)
        scans.setdefault(name, []).append(path)
    keep_people_apart(scans, sources)
    if unused := sorted(map(str, {p for c in args.ct for p in Path(c).glob("[!.]*")} - used)):
        print("left out, no NIfTI and no DICOM with preamble:", *unused, file=sys.stderr)
    target, mri = shuffled(scans, args), shuffled({*map(patient, t1)}, args)[:args.patients_mri]
    print(f"{len(t1)} T1 volumes found, {len(mri)} patients taken; {len(scans)} CT patients found, "
          "each a folder of --ct or a NIfTI file that lies in none")
    held = max(1, round(len(mri) / 10)) if len(mri) > 1 else 0
    volumes = {stem: {"input": ("t1", partial(brain, path))} for stem, path in t1.items()}
    volumes |= {who: {"target": ("ct", partial(ct, scans[who]))} for who in target}
    return dict(zip(PARTS, (sorted(mri[held:]), target, sorted(mri[:held])))), volumes, {}


# ---------------------------------------------------------------- the run
def prepare_volume(part, stem, sources, args):
    """-> notes for the manifest. Slices are written aside, then renamed: none is half-written.
    Those of a single grey, or pairs with such a half, are left out; too many are an error."""
    notes, halves, blanks = {"part": part}, {}, {}
    for domain, (kind, read) in sources.items():
        if part in (domain, "evaluation"):
            stack, affine, numbers, notes[kind] = read()
            limits = grey_limits(stack, kind, args)
            spacing = np.linalg.norm(affine[:3, 1:3], axis=0)
            squares = [fit_square(picture, spacing, args.size, limits) for picture in stack]
            ending = domain if part == "evaluation" else kind
            halves[ending], own, blanks[kind] = map(list, zip(*squares))
            notes[kind]["black_and_white"] = limits or own
            del stack  # before the other half of the pair is read
    blank = [any(pair) for pair in zip(*blanks.values())]
    if 2 * sum(blank) > len(blank):
        found = ", ".join(f"{sum(flags)} of {kind}" for kind, flags in blanks.items())
        raise ValueError(f"too many of its {len(blank)} slices are of a single grey ({found}); the "
                         "volume is empty, or lies apart from its partner")
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=args.out) as aside:
        for ending, half in halves.items():
            for i in np.flatnonzero(~np.array(blank)):
                Image.fromarray(half[i]).save(Path(aside, f"{stem}_{numbers[i]:03d}_{ending}.png"))
        for path in Path(aside).iterdir():
            path.replace(args.out / part / path.name)
    return notes | {"slices": blank.count(False), "of_one_grey": blank.count(True)}


def begin(parts, volumes, unopened, args):
    """-> the manifest of an earlier run that left slices, or a new one; others end the program. Who
    could not be opened then and can be now joins input or target."""
    settings = {k: v for k, v in vars(args).items() if k not in "t1 t2 ct volumes out".split()}
    if not any(path for part in PARTS for path in (args.out / part).glob("[!.]*")):
        return settings | {"drawn": parts, "unopened": [*unopened], "bad": unopened, "volumes": {}}
    before = {"drawn": {}, "unopened": [], "bad": {}}
    with contextlib.suppress(OSError, ValueError, TypeError):
        before |= json.loads((args.out / "manifest.json").read_text())
    known, now = ({*sum(drawn.values(), [])} for drawn in (before["drawn"], parts))
    differ = [key for key in settings if before.get(key) != settings[key]]
    gone = known - {*map(patient, volumes)}
    differ += ["split"] * bool(gone or now - known and not before["unopened"])
    if differ:
        fail(f"{args.out}: holds other settings ({', '.join(differ)}); choose another --out")
    for who in sorted(now - known):
        min(before["drawn"]["input"], before["drawn"]["target"], key=len).append(who)
    return before | {"bad": {k: v for k, v in before["bad"].items() if k in volumes} | unopened}


def save(path, manifest):
    """The split holds who gave slices; a list of numbers takes one line."""
    part_of = {patient(stem): notes["part"] for stem, notes in manifest["volumes"].items()}
    manifest["split"] = {p: sorted(who for who in part_of if part_of[who] == p) for p in PARTS}
    text = json.dumps(manifest, indent=1)
    text = re.sub(r"\[[-+.\de,\s]+\]", lambda numbers: " ".join(numbers[0].split()), text) + "\n"
    replace_file(path, lambda unfinished: unfinished.write_text(text))


def prepare(manifest, volumes, args):
    """Goes through the volumes that are not done or noted yet; bad ones have another chance."""
    part_of = {who: part for part, people in manifest["drawn"].items() for who in people}
    done, bad = manifest["volumes"], manifest["bad"]
    todo = [stem for stem in volumes if patient(stem) in part_of and stem not in done]
    print(f"{len(todo) + len(done)} volumes, {len(done)} of them done already")
    path, due = args.out / "manifest.json", 0
    try:
        for count, stem in enumerate(todo, 1):
            if time.monotonic() >= due:  # not for every volume: a large one takes longer
                due = None
                save(path, manifest)
                due = time.monotonic() + 5
            progress(count, len(todo), "volume")
            full = sum("ct" in notes for notes in done.values()) >= getattr(args, "patients_ct", 0)
            if full and "ct" in volumes[stem].get("target", ()):
                continue
            try:
                done[stem] = prepare_volume(part_of[patient(stem)], stem, volumes[stem], args)
                bad.pop(stem, None)
                if scan := done[stem].get("ct"):
                    print(f"{stem}: {scan.get('series') or scan['file']}")
            except ValueError as error:
                bad[stem] = str(error)
                print(f"skipped {stem}: {error}", file=sys.stderr)
    finally:
        if due is not None:  # else saving has failed, and was complained of
            save(path, manifest)


def report(manifest, args):
    """Says what there is; ends the program where a set is without a slice."""
    entries, bad, done = find_images(args.out), manifest["bad"], manifest["volumes"].values()
    files = {s: [paths[s] for _, paths in entries if s in paths] for s in SETS}
    print(f"{args.out}: " + ", ".join(f"{len(paths)} slices for {s}" for s, paths in files.items()))
    if bad:
        print(f"skipped {len(bad)} volumes in all; the manifest has the reasons", file=sys.stderr)
    for part, which in zip(PARTS, SETS):
        if manifest["drawn"][part] and not files[which]:
            reasons = "; ".join(f"{stem}: {reason}" for stem, reason in [*bad.items()][:3])
            fail(f"{args.out}: not one slice for {part}; {reasons}")
    if blank := sum(notes["of_one_grey"] for notes in done):
        print(f"left out {blank} slices or pairs with a single grey")
    if reached := [notes["4x"]["acceleration"] for notes in done if "4x" in notes]:
        print(f"acceleration reached, over the measured columns: {min(reached)} to {max(reached)}")
    if (taken := len(manifest["split"]["target"])) < getattr(args, "patients_ct", 0):
        print(f"{taken} CT patients, not {args.patients_ct}: no others can be used")


def prepare_locked(args):
    """Prepares a folder in which no other run is at work."""
    if args.out.suffix.lower() == ".h5":
        fail(f"{args.out}: choose another --out, a folder; data.py FOLDER --h5 {args.out} packs it")
    parts, volumes, unopened = {"ixi": ixi, "fastmri": fastmri, "mri2ct": mri2ct}[args.task](args)
    with claim_folder(args.out):
        for part in PARTS:
            make_folder(args.out / part)
        for left in args.out.glob(".unfinished-*"):  # by a run that was killed
            shutil.rmtree(left)
        manifest = begin(parts, volumes, unopened, args)
        prepare(manifest, volumes, args)
        report(manifest, args)


@memory_may_run_out("choose a smaller --size")
def main():
    common = argparse.ArgumentParser(add_help=False)
    add, many = common.add_argument, bounded(int, 1, 10 ** 9)
    add("--out", type=Path, required=True, help="folder for PNG files; data.py can pack it")
    add("--size", type=bounded(int, 1, 4096), default=256, help="side d in pixels (Sec. 4.1: 256)")
    add("--seed", type=int, default=0, help="decides who goes where (Sec. 4.1: randomly)")
    add("--limit", type=many, help="a first look at so many patients, with an --out of its own")
    add("--normalise", choices=("volume", "slice"), default="volume",
        help="what has its own grey scale (Sec. 4.2 is silent); CT has a window")
    parser = argparse.ArgumentParser(description="Turn raw IXI, fastMRI and CQ500 into slices.")
    tasks = parser.add_subparsers(dest="task", required=True)
    add = tasks.add_parser("ixi", parents=[common], help="T1 to T2").add_argument
    add("--t1", required=True, help="folder of T1 volumes, SUBJECT-T1.nii.gz")
    add("--t2", required=True, help="folder of T2 volumes, SUBJECT-T2.nii.gz")
    add = tasks.add_parser("fastmri", parents=[common], help="4x undersampled to full").add_argument
    add("--volumes", nargs="+", required=True, help="folders of single-coil .h5 files")
    add = tasks.add_parser("mri2ct", parents=[common], help="T1 to CT, unpaired").add_argument
    add("--t1", required=True, help="folder of T1 volumes, SUBJECT-T1.nii.gz")
    add("--ct", nargs="+", required=True, help="holds a folder or a NIfTI file for every patient")
    add("--centre", type=bounded(float, -1e5, 1e5), default=40, help="of the CT window in HU: ours")
    add("--width", type=bounded(float, 1, 1e5), default=400, help="of the CT window in HU: ours")
    add("--patients-mri", type=many, default=144, help="Sec. 4.1: 144; 130 are left to train on")
    add("--patients-ct", type=many, default=80, help="CT patients (Sec. 4.1: 80)")
    examples = [line.split() for line in __doc__.splitlines() if "python prepare.py" in line]
    for each, words in zip((parser, *tasks.choices.values()), examples[:1] + examples):
        each.error, each.epilog = fail, f"example: {' '.join(words)}"
        each.formatter_class = partial(argparse.RawDescriptionHelpFormatter, width=79)
    args = parser.parse_args()
    try:
        prepare_locked(args)
    except ModuleNotFoundError as error:
        fail(f"{error.name} is missing; install it with: pip install {error.name}")
    except (KeyboardInterrupt, BrokenPipeError):
        print("stopped; the same command goes on from here", file=sys.stderr)
        raise
    except OSError as error:  # readers turn theirs into ValueErrors
        fail(f"stopped ({error}); the same command goes on from here")


if __name__ == "__main__":
    start(main)
