"""From the archives to slices (Sec. 4.1): small files in the archives' own layouts, written here, and, where the variable
RAW_SAMPLES names their folder, real ones.

Heads are functions of millimetres (x to the right, y to the front, z up), so that every file is cut from one object."""
import argparse
import hashlib
import json
import os
import sys
import tempfile
import tracemalloc
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

import data
import mutants
import prepare
from toys import refused

nibabel = pytest.importorskip("nibabel", reason="nibabel is not installed: pip install nibabel")
pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: pip install pydicom")
pytest.importorskip("scipy", reason="scipy is not installed: pip install scipy")

RAW = os.environ.get("RAW_SAMPLES")
real_files = pytest.mark.skipif(not RAW, reason="RAW_SAMPLES is not set to the folder of real raw files")


# ---------------------------------------------------------------- what the tests write

def head(x, y, z):
    """An egg, wider at the back, without a chin, a nose in front and a bright ball on the patient's left -> 0..1000."""
    inside = ((x / (62 - .15 * y)) ** 2 + (y / 85) ** 2 + (z / 70) ** 2 < 1) & ((y < 10) | (z > -10))
    nose = (np.abs(x) < 7) & (np.abs(y - 88) < 9) & (np.abs(z) < 40)
    ball = (x + 35) ** 2 + (y - 10) ** 2 + (z / 3) ** 2 < 12 ** 2
    return 500. * (inside | nose) + 500 * (ball & inside)


def sample(affine, shape, body=head):
    i = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    return body(*(np.tensordot(affine[:3, :3], i, 1) + affine[:3, 3, None, None, None]))


def grid(shape, spacing, tilt=0., codes="RAS"):
    """Affine of a volume centred on 0, its axes named by codes, turned about the left-right axis by tilt degrees."""
    axes = np.stack([{"R": (1, 0, 0), "A": (0, 1, 0), "S": (0, 0, 1), "L": (-1, 0, 0), "P": (0, -1, 0), "I": (0, 0, -1)}[c]
                     for c in codes], 1) * np.array(spacing, float)
    c, s = np.cos(np.radians(tilt)), np.sin(np.radians(tilt))
    affine = np.eye(4)
    affine[:3, :3] = np.array([[1, 0, 0], [0, c, -s], [0, s, c]]) @ axes
    affine[:3, 3] = -affine[:3, :3] @ (np.array(shape) - 1) / 2
    return affine


T1_GRID = (64, 64, 38), grid((64, 64, 38), (3.75, 3.75, 4.8), 7, "PSR")   # sagittal, as IXI stores it, 1/4 as fine
T2_GRID = (64, 64, 32), grid((64, 64, 32), (3.75, 3.75, 5.), -6, "LAS")   # axial, 13 degrees away


def write_nifti(path, shape, affine, body=head, dtype=np.int16):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(sample(affine, shape, body).astype(dtype), affine), path)


def write_ixi(root, patients):
    for patient in patients:
        write_nifti(root / "t1" / f"{patient}-T1.nii.gz", *T1_GRID)
        write_nifti(root / "t2" / f"{patient}-T2.nii.gz", *T2_GRID)


def write_ct(path, pixels, position, number, axes=(1, 0, 0, 0, 1, 0), **tags):
    """One DICOM slice as scanners write it; position is ImagePositionPatient: x to the left, y to the back, z up."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ds = pydicom.Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.4.{number}"
    ds.Modality, ds.PatientID, ds.SeriesInstanceUID, ds.SeriesNumber = "CT", "", "1.2.3", 1
    ds.ImageType, ds.SeriesDescription = ["ORIGINAL", "PRIMARY", "AXIAL"], "Plain"
    ds.InstanceNumber = number if isinstance(number, int) else 0
    ds.ImagePositionPatient, ds.ImageOrientationPatient, ds.PixelSpacing = list(map(float, position)), list(axes), [4., 4.]
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.BitsAllocated, ds.BitsStored, ds.HighBit = 1, "MONOCHROME2", 16, 16, 15
    ds.PixelRepresentation, ds.RescaleIntercept, ds.RescaleSlope = 1, -1024, 1
    for name, value in tags.items():
        setattr(ds, name, value)
    ds.PixelData = pixels.astype("<i2").tobytes()
    ds.save_as(path, enforce_file_format=True)


def ct_head(z, side=64):
    """Stored values (HU + 1024) of an axial slice as CT lies: columns to the patient's left, rows to the back."""
    y, x = np.meshgrid(*[(np.arange(side) - (side - 1) / 2) * 4.] * 2, indexing="ij")
    body = head(-x, -y, np.full_like(x, z))
    return np.where(body > 0, np.where(body > 900, 140, 40), -1000) + 1024


def write_knee(path, slices=5, shape=(48, 40), **attributes):
    rng = np.random.default_rng(len(path.name))
    kspace = (rng.standard_normal((slices, *shape)) + 1j * rng.standard_normal((slices, *shape))).astype(np.complex64)
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        file.attrs.update({"acquisition": "CORPD_FBK"} | attributes)
    return kspace


@pytest.fixture
def cli(monkeypatch, tmp_path):
    """Runs prepare.py's command line in a fresh folder; -> the folder."""
    monkeypatch.chdir(tmp_path)

    def run(line):
        monkeypatch.setattr(sys, "argv", ["prepare.py", *line.split()])
        prepare.main()
    run.folder = tmp_path
    return run


def read(pattern):
    return {p.name: np.asarray(Image.open(p)) for p in sorted(Path().glob(pattern))}


def manifest(out="out"):
    return json.loads(Path(out, "manifest.json").read_text())


def overlap(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


# ---------------------------------------------------------------- IXI

class Arguments:
    normalise, size, seed, limit, out = "volume", 64, 0, None, Path()


def squares(stack, spacing=(1, 1), arguments=Arguments):
    limits = prepare.grey_limits(stack, "t1", arguments)
    return np.stack([prepare.fit_square(p, spacing, arguments.size, limits)[0] for p in stack])


def test_t1_and_t2_cut_from_tilted_grids_show_the_same_anatomy(cli):
    write_ixi(cli.folder, ["IXI002-Guys-0828"])
    cli("ixi --t1 t1 --t2 t2 --out out --size 64")
    t1, t2 = (np.stack(list(read(f"out/evaluation/*_{domain}.png").values())) > 60 for domain in ("input", "target"))
    assert len(t1) == len(t2) == 20  # of 32
    assert overlap(t1, t2) > .95 and min(map(overlap, t1, t2)) > .93
    stack, affine, kept, _ = prepare.brain(Path("t1/IXI002-Guys-0828-T1.nii.gz"))
    own = squares(stack, np.linalg.norm(affine[:3, 1:3], axis=0)) > 60
    heights = np.rint((np.arange(6, 26) - 15.5) * 5 / 3.75 + 31.5).astype(int) - kept.start
    assert overlap(own[heights], t2) < .95  # the check has teeth: slices of equal height do not do


@pytest.mark.parametrize("codes", ["RAS", "LAS", "PSR", "LPI", "AIR", "ILP"])
def test_nose_is_up_and_left_is_on_the_right_whatever_order_the_file_stores(cli, codes):
    ras = sample(grid((48, 56, 40), (4, 4, 4)), (48, 56, 40))
    image = nibabel.Nifti1Image(ras.astype(np.int16), grid((48, 56, 40), (4, 4, 4)))
    turn = nibabel.orientations.ornt_transform(nibabel.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(codes))
    nibabel.save(image.as_reoriented(turn), "a.nii")
    stack, affine, kept, _ = prepare.brain(Path("a.nii"))
    assert (stack.shape, kept) == ((24, 56, 48), range(8, 32))
    assert np.allclose(affine[:3, :3], [[0, 0, -4], [0, -4, 0], [4, 0, 0]])  # slices go up, rows back, columns left
    assert np.array_equal(stack, ras[::-1, ::-1, 8:32].transpose(2, 1, 0))
    middle = stack[12]
    assert middle[7, 20:28].any() and not middle[-7].any()  # the nose, in the upper rows
    assert np.argwhere(middle > 900).mean(0)[1] > 30           # the ball on the patient's left, in the right half


def test_unequal_pixel_spacing_leaves_a_ball_round(cli):
    def ball(x, y, z):
        return 1000. * (x ** 2 + y ** 2 + z ** 2 < 50 ** 2)
    for name, spacing in (("a", (2, 4, 5)), ("b", (5, 2, 5))):
        shape = [round(200 / s) for s in spacing]
        write_nifti(cli.folder / name / "p-T1.nii", shape, grid(shape, spacing), ball)
        write_nifti(cli.folder / name / "p-T2.nii", shape, grid(shape, spacing), ball)
        cli(f"ixi --t1 {name} --t2 {name} --out out_{name} --size 128")
        picture = np.stack(list(read(f"out_{name}/evaluation/*_target.png").values())).max(0) > 127
        high, wide = picture.any(1).sum(), picture.any(0).sum()
        assert abs(high - wide) <= 4 and abs(high - 64) <= 4


def test_header_slope_and_nan_do_not_disturb_and_trailing_axes_of_one_are_dropped(cli):
    shape, affine = T2_GRID
    values = sample(affine, shape)
    plain = nibabel.Nifti1Image(values.astype(np.int16), affine)
    nibabel.save(plain, "plain.nii")
    one = nibabel.Nifti1Image(values.astype(np.int16)[..., None], affine)
    one.header.set_slope_inter(.5, 10)
    nibabel.save(one, "one.nii.gz")
    holed = values.astype(np.float32)
    holed[0, 0] = np.nan
    nibabel.save(nibabel.Nifti1Image(holed, affine), "holed.nii")
    stacks = [squares(prepare.brain(Path(name))[0]).astype(int) for name in ("plain.nii", "one.nii.gz", "holed.nii")]
    assert np.abs(stacks[0] - stacks[1]).max() <= 1 and np.abs(stacks[0] - stacks[2]).max() <= 1
    assert np.ptp(prepare.brain(Path("one.nii.gz"))[0]) == np.ptp(values[:, :, 6:26]) / 2


def test_core_is_the_authors_and_greys_fill_the_range(cli):
    assert (prepare.core(130)[0], prepare.core(130)[-1], len(prepare.core(1))) == (26, 103, 1)
    ramp = np.arange(4 * 64 * 64, dtype=np.float32).reshape(4, 64, 64)
    grey = squares(ramp).astype(int)
    assert grey.min() == 0 and grey.max() == 255 and grey[0].max() < 70 and (np.diff(grey.ravel()) >= 0).all()
    ramp[0, 0, 1] = 1e6
    assert squares(ramp)[3].max() > 250  # one bright voxel does not darken the others
    mask = np.zeros((2, 64, 64), np.float32)
    mask[0, 9, 9] = 1  # so little that both percentiles are 0
    assert squares(mask).max() == 255


def test_patients_are_disjoint_each_gives_one_contrast_and_the_seed_decides(cli, capsys):
    write_ixi(cli.folder, [f"IXI{i:03d}-HH-{i}" for i in range(5)])
    for line in ("out", "again", "other --seed 3"):
        cli(f"ixi --t1 t1 --t2 t2 --size 64 --out {line}")
    parts = manifest()["split"]
    assert [len(parts[p]) for p in ("input", "target", "evaluation")] == [2, 2, 1]
    assert len(set(sum(parts.values(), []))) == 5
    assert {n.split("_")[0] for n in read("out/input/*_t1.png")} == set(parts["input"])
    assert {n.split("_")[0] for n in read("out/target/*_t2.png")} == set(parts["target"])
    assert {n.split("_")[0] for n in read("out/evaluation/*")} == set(parts["evaluation"])
    assert len(list(Path("out").glob("*/*.png"))) == 20 * 6
    assert manifest() == manifest("again") and manifest("other")["split"] != parts
    assert all(np.array_equal(image, read("again/*/*.png")[name]) for name, image in read("out/*/*.png").items())
    slices = data.load("out", 64)
    assert [len(getattr(slices, which)) for which in data.SETS] == [40, 40, 20, 20]
    assert "warning" not in capsys.readouterr().err


def test_split_of_a_hundred_is_ten_forty_five_forty_five_and_of_few_makes_sense():
    sizes = [[len(part) for part in prepare.split(list(map(str, range(n))), Arguments).values()] for n in (100, 577, 3, 2, 1)]
    assert sizes == [[45, 45, 10], [260, 259, 58], [1, 1, 1], [1, 1, 0], [0, 0, 1]]
    assert prepare.split(["b", "c", "a", "d"], Arguments) == prepare.split(["d", "a", "c", "b"], Arguments)
    assert prepare.shuffled("abcdef", Arguments) == list("fcbdae")  # frozen: two people get the same patients

    class First(Arguments):
        limit = 3
    assert sorted(prepare.shuffled("fedcba", First)) == list("abc"), "--limit takes the first by name"


def test_names_in_every_spelling_are_found_and_patients_have_no_underscore(cli):
    for name in ("IXI001-HH-1-T1.nii.gz", "IXI002-HH-2_T1.nii", "sub/IXI003-HH-3-t1.NII.GZ", "sub_04_T1w.nii.gz",
                 "._IXI005-T1.nii.gz", "with space 6-T1_defaced.nii.gz"):
        path = cli.folder / "t1" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert sorted(prepare.by_subject(["t1"], "T1")) == ["IXI001-HH-1", "IXI002-HH-2", "IXI003-HH-3", "sub-04", "with-space-6"]


def test_bad_volumes_are_named_with_a_reason_and_the_others_go_on(cli, capsys):
    write_ixi(cli.folder, list("abcdewxyz"))
    whole = Path("t1/a-T1.nii.gz").read_bytes()
    for kind in ("t1", "t2"):
        K = kind.upper()
        Path(kind, f"a-{K}.nii.gz").write_bytes(whole[:2000])
        Path(kind, f"b-{K}.nii.gz").write_bytes(b"no gzip at all")
        nibabel.save(nibabel.Nifti1Image(np.ones((8, 8, 8, 3), np.int16), np.eye(4)), f"{kind}/c-{K}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(np.ones((8, 8, 8), np.int16), None), f"{kind}/d-{K}.nii.gz")
        nibabel.save(nibabel.Nifti1Image(np.ones((8, 8, 8), np.int16), np.eye(4)), f"{kind}/e-{K}.nii.gz")
    cli("ixi --t1 t1 --t2 t2 --size 64 --out out")
    bad = manifest()["bad"]
    reasons = "a-T2.nii.gz cannot be used (EOFError", "b-T2.nii.gz", "(8, 8, 8, 3)", "sform", "single grey"
    for name, reason in zip("abcde", reasons):
        assert reason in bad[name]
    said = capsys.readouterr()
    assert len(bad) == 5 and "skipped 5 volumes in all" in said.err and "Traceback" not in said.err
    assert {n.split("_")[0] for n in read("out/*/*.png")} == set("wxyz")


def test_preparing_a_pair_stays_below_two_volumes_of_memory(cli):
    shape = (96, 96, 80)
    for kind in ("T1", "T2"):
        write_nifti(Path(f"p-{kind}.nii.gz"), shape, grid(shape, (2.5, 2.5, 2.5), 7 * (kind == "T1")))
    prepare.brain(Path("p-T1.nii.gz"))  # imports
    sources = prepare.ixi(argparse.Namespace(t1=".", t2=".", limit=None, seed=0))[1]["p"]
    Path("evaluation").mkdir()
    tracemalloc.start()
    prepare.prepare_volume("evaluation", "p", sources, Arguments)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * np.prod(shape) * np.dtype(np.float32).itemsize


def brains_of(t1, t2):
    """prepare.brain()'s T1 on the core slices of the T2's grid; each given as (voxels [x,y,z], affine)."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"a-{name}.nii") for name in ("T1", "T2")]
        for path, (voxels, affine) in zip(paths, (t1, t2)):
            nibabel.save(nibabel.Nifti1Image(voxels.astype(np.float32), affine), path)
        stack, affine, *_ = prepare.brain(*paths)
        return stack, affine


def test_between_voxels_a_t1_is_interpolated_linearly():
    plane = lambda x, y, z: 500 + 2. * x + 3 * y - z
    stack, affine = brains_of((sample(T1_GRID[1], T1_GRID[0], plane), T1_GRID[1]), (np.zeros((9, 9, 10)), grid((9, 9, 10), (5., 5, 5), 8)))
    places = np.stack(np.meshgrid(np.arange(2, 8), *map(np.arange, stack.shape[1:]), indexing="ij"), -1)
    expected = plane(*np.moveaxis(places @ affine[:3, :3].T + affine[:3, 3], -1, 0))
    off = np.abs(stack - expected).max()
    assert off < .05, f"Sec. 4.1: a T1 that grows evenly, read between its voxels: off by {off:.2f}, asked for 0"


def test_outside_a_t1_lies_its_smallest_value():
    small, large = grid((8, 8, 8), (5., 5, 5)), grid((20, 20, 10), (5., 5, 5))
    stack, _ = brains_of((100 + np.arange(512.).reshape(8, 8, 8), small), (np.zeros((20, 20, 10)), large))
    assert (stack[:, 0, 0] == 100).all(), f"Sec. 4.1: beside a T1 of 100 to 611 lies {stack[:, 0, 0]}, asked for 100"


def test_holes_in_a_volume_become_its_smallest_value():
    voxels = 300 + np.arange(512, dtype=np.float32).reshape(8, 8, 8)
    voxels[2, 2, 2], voxels[3, 3, 3], voxels[4, 4, 4] = np.nan, np.inf, -np.inf
    with tempfile.TemporaryDirectory() as folder:
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), Path(folder, "holed.nii"))
        found, _ = prepare.read_nifti(Path(folder, "holed.nii"))
    assert found.min() == 300 and (found == 300).sum() == 4, \
        f"Sec. 4.1: NaN and infinities among 300 to 811: smallest {found.min()}, {(found == 300).sum()} times; asked for 300, 4 times"


def test_one_dark_voxel_does_not_brighten_the_others():
    ramp = 1000 + np.arange(4 * 64 * 64, dtype=np.float32).reshape(4, 64, 64)
    ramp[0, 0, 0] = -1e6
    darkest = squares(ramp)[0, 1].max()
    assert darkest < 10, f"Sec. 4.1: beside one voxel of -1e6 the darkest greys are {darkest}, asked for less than 10"


def test_a_narrow_picture_lies_in_the_middle_its_odd_column_on_the_right():
    picture = np.arange(64 * 33, dtype=np.float32).reshape(64, 33) + 100
    seen = np.flatnonzero(prepare.fit_square(picture, (1, 1), 64, [0, 3000])[0].any(0))
    assert (seen[0], seen[-1]) == (15, 47), f"Sec. 4.1: 33 columns in 64 lie at {seen[0]} to {seen[-1]}, asked for 15 to 47"


def test_a_volume_that_was_repaired_is_no_longer_called_bad(cli, capsys):
    write_ixi(cli.folder, "abcdef")
    who = prepare.split({*"abcdef"}, Arguments)["input"][0]  # it gives a T1
    path, line = Path(f"t1/{who}-T1.nii.gz"), "ixi --t1 t1 --t2 t2 --size 64 --out out"
    whole = path.read_bytes()
    path.write_bytes(whole[:1000])
    cli(line)
    assert [*manifest()["bad"]] == [who], f"the example has lost its point: {manifest()['bad']}"
    path.write_bytes(whole)
    capsys.readouterr()
    cli(line)
    then, said = manifest(), capsys.readouterr().err
    assert who in then["volumes"] and not then["bad"], f"{who} was repaired, yet called bad: {then['bad']}"
    assert "skipped" not in said, f"{who} was repaired: {said}"


# ---------------------------------------------------------------- fastMRI

def test_the_mask_is_the_same_for_the_same_name_and_keeps_a_quarter():
    mask = prepare.column_mask("file1000001.h5", np.ones(368, bool))
    assert mask.sum() == 92 and mask[184 - 14:184 + 14].all()
    assert np.flatnonzero(mask)[:8].tolist() == [1, 11, 16, 24, 25, 27, 35, 37]
    assert (mask != prepare.column_mask("file1000002.h5", np.ones(368, bool))).any()
    assert prepare.column_mask("file1000001.h5", np.ones(41, bool)).sum() == 10


@pytest.mark.parametrize("h, w", [(640, 332), (45, 33)])
def test_fully_sampled_reconstruction_is_the_known_one_and_zero_filling_keeps_the_masked_columns(h, w):
    """An oversampled readout as fastMRI has it, and odd sizes; the oracle is a DFT in double precision, two matrices."""
    rng = np.random.default_rng(0)
    image = rng.standard_normal((h, w)) + 1j * rng.standard_normal((h, w))

    def dft(n):
        t = np.arange(n) - n // 2
        return np.exp(-2j * np.pi * np.outer(t, t) / n) / np.sqrt(n)
    kspace = (dft(h) @ image @ dft(w).T).astype(np.complex64)
    shown = (slice(160, 480), slice(6, 326)) if h == 640 else (slice(None), slice(None))
    known = np.abs(image)[shown]
    assert np.abs(prepare.reconstruct(kspace) - known).max() / known.max() < 1e-5
    mask = prepare.column_mask("file1000001.h5", np.ones(w, bool))
    zero_filled = np.abs(dft(h).conj() @ (kspace * mask) @ dft(w).conj())[shown]
    assert np.abs(prepare.reconstruct(kspace * mask) - zero_filled).max() / known.max() < 1e-5


def test_fastmri_takes_its_acquisition_keeps_patients_together_and_names_what_it_cannot_use(cli, capsys):
    knees = cli.folder / "knees"
    kspace = {i: write_knee(knees / "train" / f"file{i}.h5", patient_id=f"person {i // 2}") for i in range(8)}
    write_knee(knees / "file20.h5", acquisition="CORPDFS_FBK")
    write_knee(knees / "file21.h5", acquisition="")
    with h5py.File(write_and_name(knees / "file22.h5"), "a") as file:
        file["mask"] = np.ones(40)
    with h5py.File(write_and_name(knees / "file23.h5"), "a") as file:
        del file["kspace"]
        file["kspace"] = np.zeros((5, 4, 48, 40), np.complex64)
    (knees / "file24.h5").write_bytes(b"nothing of the kind")
    cli("fastmri --volumes knees --out out --size 64")
    said = capsys.readouterr()
    assert "10 of 13 volumes are of acquisition CORPD_FBK, 1 cannot be opened" in said.out
    assert "acceleration reached, over the measured columns: 4.0" in said.out and "skipped 3 volumes in all" in said.err
    for name, word in (("file22", "undersampled=True"), ("file23", "single-coil"), ("file24", "file24.h5 cannot be used")):
        assert word in manifest()["bad"][name]
    people = {name.split("_")[1]: name.split("_")[0] for name in manifest()["volumes"]}
    volumes = {name.split("_")[1]: notes for name, notes in manifest()["volumes"].items()}
    for i in (0, 2, 4, 6):
        assert volumes[f"file{i}"]["part"] == volumes[f"file{i + 1}"]["part"]
        assert people[f"file{i}"] == people[f"file{i + 1}"]
    assert len(set(people.values())) == 4
    one = next(i for i in range(8) if volumes[f"file{i}"]["part"] == "evaluation")
    pair = read(f"out/evaluation/*_file{one}_001_*.png")
    assert [name.rpartition("_")[2] for name in pair] == ["input.png", "target.png"]
    for picture, columns in zip(pair.values(), (prepare.column_mask(f"file{one}.h5", np.ones(40, bool)), np.ones(40))):
        stack = np.stack([prepare.reconstruct(kspace[one][k] * columns) for k in (1, 2, 3)])
        assert np.array_equal(picture, squares(stack)[0])


def test_no_patient_id_of_fastmri_stands_in_a_name(cli):
    for i in range(3):
        write_knee(Path(f"knees/file{i}.h5"), patient_id=f"MRN00{i}4711")
    cli("fastmri --volumes knees --out out --size 48")
    names = [path.name for path in Path("out").rglob("*")]
    told = [name for name in names if "MRN00" in name] + ["manifest.json"] * ("MRN00" in Path("out/manifest.json").read_text())
    assert not told, f"Sec. 4.1: a patient's own ID stands in {told[:3]}, asked for 12 digits of its SHA-256"
    who = {f"p{hashlib.sha256(f'MRN00{i}4711'.encode()).hexdigest()[:12]}" for i in range(3)}
    assert {stem.split("_")[0] for stem in manifest()["volumes"]} == who


def write_and_name(path):
    write_knee(path)
    return path


# ---------------------------------------------------------------- MRI to CT

def write_cq500(root):
    """One patient as CQ500 has them: spaces, a localiser, a thick, a thin, a bone and two contrast series, the thin one
    with uneven distances, padding, files in no order, one slice twice; a stray file beside them."""
    study = root / "CQ500CT1 CQ500CT1" / "Unknown Study"
    where = np.cumsum([0, 4, 4, 4, 7, 7, 7, 7, 2, 7, 7]) - 28.
    for k, i in enumerate(np.random.default_rng(0).permutation(len(where))):
        pixels = ct_head(where[i])
        pixels[:3] = -2000  # outside the scanner's circle
        write_ct(study / "CT Thin Plain" / f"CT{k:06d}.dcm", pixels, (-126, -126, where[i]), i + 1, SeriesInstanceUID="1.2.1",
                 SeriesNumber=3, SeriesDescription="Thin Plain", PixelPaddingValue=-2000, GantryDetectorTilt=0)
    write_ct(study / "CT Thin Plain" / "twice", ct_head(where[4]) * 0, (-126, -126, where[4]), 99, SeriesInstanceUID="1.2.1",
             SeriesNumber=3, SeriesDescription="Thin Plain")
    others = [("CT 5mm", dict(SeriesNumber=2, SeriesDescription="5mm"), 6),
              ("CT Bone", dict(SeriesNumber=4, SeriesDescription="Thin", ConvolutionKernel="BONEPLUS"), 20),
              ("CT POST CONTRAST", dict(SeriesNumber=5, SeriesDescription="POST CONTRAST"), 21),
              ("CT Agent", dict(SeriesNumber=6, SeriesDescription="Thin", ContrastBolusAgent="OMNIPAQUE"), 22),
              ("CT Scout", dict(SeriesNumber=1, SeriesDescription="Scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]), 23),
              ("CT Sagittal", dict(SeriesNumber=7, SeriesDescription="Plain sag", axes=(0, 1, 0, 0, 0, -1)), 24),
              ("CT Inverse", dict(SeriesNumber=8, PhotometricInterpretation="MONOCHROME1"), 25)]
    for n, (folder, tags, count) in enumerate(others):
        for i in range(count):
            write_ct(study / folder / f"CT{i:06d}.dcm", ct_head(0, 8), (0, 0, i), i, SeriesInstanceUID=f"1.2.9.{n}", **tags)
    (root / "CQ500CT1 CQ500CT1" / "README").write_text("no DICOM file")
    return where


def test_cq500_tree_gives_its_thin_plain_series_in_order_with_padding_as_air(cli):
    where = write_cq500(cli.folder / "CQ500")
    write_nifti(cli.folder / "t1" / "IXI001-T1.nii.gz", *T1_GRID)
    cli("mri2ct --t1 t1 --ct CQ500 --out out --size 64")
    notes = manifest()["volumes"]["CQ500CT1-CQ500CT1"]["ct"]
    assert notes["series"].startswith("3 Thin Plain, 12 files in CT Thin Plain") and notes["slices_acquired"] == 11
    reasons = " ".join(line.rpartition(": ")[2] for line in notes["found"])
    assert [reasons.count(word) for word in ("contrast agent", "localiser", "not axial", "MONOCHROME1")] == [2, 1, 1, 1]
    slices = read("out/target/*.png")
    assert list(slices) == [f"CQ500CT1-CQ500CT1_{k:03d}_ct.png" for k in prepare.core(11)]
    for k, picture in zip(prepare.core(11), slices.values()):
        hu = ct_head(where[k]) - 1024.
        expected = np.rint(np.clip((hu - 40) / 400 + .5, 0, 1) * 255)
        expected[:3] = 0
        assert np.array_equal(picture, expected)
    assert not list(Path("out/evaluation").iterdir()) and len(read("out/input/*_t1.png")) == 38


def test_mri_to_ct_has_inputs_without_targets_to_evaluate(cli):
    for k in range(8):
        write_ct(cli.folder / "CQ500" / "CQ500CT7 CQ500CT7" / "CT Plain" / f"{k}.dcm", ct_head(k), (0, 0, k), k)
    for i in range(3):
        write_nifti(cli.folder / "t1" / f"IXI00{i}-T1.nii.gz", *T1_GRID)
    cli("mri2ct --t1 t1 --ct CQ500 --out out --size 64 --patients-mri 2")
    slices = data.load("out", 64)
    assert [len(getattr(slices, which)) for which in data.SETS] == [38, 6, 38, 0]  # T1: of 40
    assert len({data.patient(name) for name in slices.names["input"] + slices.names["evaluation_input"]}) == 2


@pytest.mark.parametrize("axes, turn", [((1, 0, 0, 0, 1, 0), lambda p: p), ((-1, 0, 0, 0, 1, 0), lambda p: p[:, ::-1]),
                                        ((1, 0, 0, 0, -1, 0), lambda p: p[::-1]), ((0, 1, 0, 1, 0, 0), lambda p: p.T),
                                        ((0, -1, 0, 1, 0, 0), lambda p: p[::-1].T), ((1, 0, 0, 0, .95, -.31), lambda p: p)])
def test_ct_slices_lie_as_radiologists_look_at_them_however_they_were_stored(cli, axes, turn):
    for k in range(5):
        write_ct(Path(f"{k}.dcm"), turn(ct_head(0)), (0, 0, k), k, axes)
    (hu, _, _), affine, _, _ = prepare.ct(sorted(Path().glob("*.dcm")))
    assert np.array_equal(hu, ct_head(0) - 1024) and np.allclose(np.linalg.norm(affine[:3, 1:3], axis=0), 4, rtol=1e-3)
    assert np.argwhere(hu > 100).mean(0)[1] > 35 and (hu[8, 30:34] > 0).all()  # ball on the right, nose up


def test_nifti_and_dicom_of_one_head_give_the_same_pictures(cli):
    z = np.arange(-30., 31, 5)
    for k in range(len(z)):
        write_ct(cli.folder / "ct" / "one" / f"IM{k}", ct_head(z[k]), (-126, -126, z[k]), k + 1)
    stack = np.stack([ct_head(height) - 1024. for height in z]).transpose(2, 1, 0)[::-1, ::-1]  # to RAS
    affine = np.diag([4., 4., 5., 1.])
    nibabel.save(nibabel.Nifti1Image(stack.astype(np.int16), affine), cli.folder / "ct" / "two.nii.gz")
    write_nifti(cli.folder / "t1" / "IXI001-T1.nii.gz", *T1_GRID)
    cli("mri2ct --t1 t1 --ct ct --out out --size 64")
    one, two = read("out/target/one_*.png"), read("out/target/two_*.png")
    assert len(one) == len(prepare.core(13)) and all(map(np.array_equal, one.values(), two.values()))


def test_padding_that_tissue_has_too_is_not_believed_and_bright_padding_is(cli):
    pixels = ct_head(0)
    pixels[0], pixels[1] = 30000, -1500
    for value, corner in ((1064, 28976), (30000, -1024)):
        write_ct(Path("a.dcm"), pixels, (0, 0, 0), 1, PixelPaddingValue=value)
        hu = prepare.hounsfield(Path("a.dcm"))
        assert hu[0, 0] == corner and (hu[30:34, 30:34] == 40).all()


@pytest.mark.parametrize("axes", [(1, 0, 0, 0, 1, 0), (-1, 0, 0, 0, 1, 0), (0, 1, 0, 1, 0, 0), (1, 0, 0, 0, .95, -.31)])
def test_ct_slices_are_numbered_from_bottom_to_top_whichever_way_their_normal_points(cli, axes):
    for k in range(6):
        write_ct(Path(f"{k}.dcm"), ct_head(0), (0, 0, -3 * k), k, axes)
    (read_series,), _ = prepare.plain_series(sorted(Path().glob("*.dcm")))
    assert [h.InstanceNumber for h in read_series.args[1]] == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("label, plain", [
    ("CT PLAIN THIN", True), ("CT PRE CONTRAST 5MM STD", True), ("HEAD WITHOUT", True), ("CT 0.625mm", True),
    ("Post Fossa 3mm", True), ("CT POST CONTRAST-2", False), ("CT 4cc sec 150cc D3D on", False), ("CT C THIN", False),
    ("CT ORAL IV", False), ("CTA_head", False), ("SIN CONTRASTE", True), ("Schaedel ohne KM", True), ("sans injection", True),
    ("CT without oral or IV contrast", True), ("NCCT", True), ("head no contrast", True), ("post op plain", True),
    ("Schaedel KM", False), ("Head CE", False), ("pre and post", False), ("Without and with", False), ("W/O & W", False),
    ("with and without contrast", False), ("CT C-2", False), ("avec injection", False),
    ("HEAD NON CON", True), ("Non-Con", True), ("NONCON HEAD", True), ("W/OUT CONTRAST", True),
    ("w/ out contrast", True),
    ("WO CON", True), ("W O CONTRAST", True), ("non enhanced", True), ("non - contrast", True),
    ("pre con", True), ("pre, con contraste", False),
    ("sin y con contraste", False), ("DELAYED", False), ("5 min delay", False), ("CTV", False),
    ("CTP", False), ("plain + contrast", False), ("plain & contrast", False), ("pre/contrast", False),
    ("TEST BOLUS", False), ("HEAD ENHANCE", False), ("venogram", False), ("W/OUT & W", False)])
def test_descriptions_of_series_are_understood(cli, label, plain):
    write_ct(Path("a.dcm"), ct_head(0), (0, 0, 0), 1)
    headers = [pydicom.dcmread("a.dcm") for _ in range(5)]
    for height, header in enumerate(headers):
        header.title, header.height = label, height
    assert (prepare.why_not(headers) is None) == plain, f"{label}: {prepare.why_not(headers)}"


def test_ct_patients_that_cannot_be_used_are_named(cli, capsys):
    for k in range(6):
        write_ct(cli.folder / "ct" / "good" / f"{k}.dcm", ct_head(k), (0, 0, k), k)
        write_ct(cli.folder / "ct" / "cut short" / f"{k}.dcm", ct_head(k), (0, 0, k), k)
        write_ct(cli.folder / "ct" / "two people" / f"{k}.dcm", ct_head(k), (0, 0, k), k, PatientID=str(k % 2))
        write_ct(cli.folder / "ct" / "all contrast" / f"{k}.dcm", ct_head(k), (0, 0, k), k, SeriesDescription="CTA")
        write_ct(cli.folder / "ct" / "packed" / f"{k}.dcm", ct_head(k), (0, 0, k), k)
        packed = pydicom.dcmread(cli.folder / "ct" / "packed" / f"{k}.dcm")
        packed.PixelData = pydicom.encaps.encapsulate([b"no JPEG"])
        packed["PixelData"].is_undefined_length = True
        packed.file_meta.TransferSyntaxUID = pydicom.uid.JPEGLosslessSV1
        packed.save_as(cli.folder / "ct" / "packed" / f"{k}.dcm")
    path = cli.folder / "ct" / "cut short" / "3.dcm"
    path.write_bytes(path.read_bytes()[:-4000])
    write_nifti(cli.folder / "t1" / "IXI001-T1.nii.gz", *T1_GRID)
    cli("mri2ct --t1 t1 --ct ct --out out --size 64")
    bad = manifest()["bad"]
    assert sorted(bad) == ["all-contrast", "cut-short", "packed", "two-people"]
    assert "3.dcm cannot be used" in bad["cut-short"] and "several people" in bad["two-people"]
    assert "contrast agent" in bad["all-contrast"] and ".dcm cannot be used" in bad["packed"]
    assert "Traceback" not in capsys.readouterr().err


# ---------------------------------------------------------------- the run

def test_a_stopped_run_goes_on_where_it_stopped_and_leaves_nothing_half_written(cli, monkeypatch, capsys):
    write_ixi(cli.folder, "abcd")
    save, count = Image.Image.save, iter(range(100))

    def interrupted(*arguments, **keywords):
        if next(count) == 50:
            raise KeyboardInterrupt
        save(*arguments, **keywords)
    monkeypatch.setattr(Image.Image, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):  # start() ends with 130 over it
        cli("ixi --t1 t1 --t2 t2 --size 64 --out out")
    assert "the same command goes on from here" in capsys.readouterr().err
    monkeypatch.setattr(Image.Image, "save", save)
    first = {p: p.stat().st_mtime_ns for p in Path("out").glob("*/*.png")}
    assert len(first) == 40 and not list(Path("out").glob(".unfinished*"))  # two volumes of 20, nothing of the third
    cli("ixi --t1 t1 --t2 t2 --size 64 --out out")
    assert "4 volumes, 2 of them done already" in capsys.readouterr().out
    cli("ixi --t1 t1 --t2 t2 --size 64 --out whole")
    assert all(p.stat().st_mtime_ns == time for p, time in first.items())
    one, other = read("out/*/*.png"), read("whole/*/*.png")
    assert list(one) == list(other) and all(map(np.array_equal, one.values(), other.values()))


def test_an_archive_without_a_usable_patient_ends_with_a_sentence(cli):
    write_knee(Path("knees/file1.h5"), acquisition="CORPDFS_FBK")
    assert "no patient of these archives" in refused(cli, "fastmri --volumes knees --out out")
    write_nifti(Path("t1/a-T1.nii.gz"), *T1_GRID)
    write_nifti(Path("t2/b-T2.nii.gz"), *T2_GRID)
    assert "no patient of these archives" in refused(cli, "ixi --t1 t1 --t2 t2 --out out")


def test_other_settings_patients_and_strange_folders_are_refused_in_one_sentence(cli):
    write_ixi(cli.folder, "abc")
    line = "ixi --t1 t1 --t2 t2 --size 64 --out out"
    cli(line)
    assert "(seed)" in refused(cli, line + " --seed 1")
    assert "(normalise)" in refused(cli, line + " --normalise slice")
    Path("foreign/input").mkdir(parents=True)
    Path("foreign/input/a.png").touch()
    write_ixi(cli.folder, "d")
    assert "(split)" in refused(cli, line)
    assert "other settings" in refused(cli, line.replace("out out", "out foreign"))
    Path("out/manifest.json").write_text("{")
    assert "other settings" in refused(cli, line)
    assert "nowhere: no file" in refused(cli, "ixi --t1 nowhere --t2 t2 --out new")
    assert "named like" in refused(cli, "ixi --t1 t2 --t2 t2 --out new")
    assert "DICOM" in refused(cli, "mri2ct --t1 t1 --ct out/target --out new")
    assert "no .h5 file" in refused(cli, "fastmri --volumes t1 --out new")
    assert "--out" in refused(cli, "ixi --t1 t1 --t2 t2")
    assert not Path("new").exists()


def test_a_missing_package_is_asked_for_in_one_sentence(cli, monkeypatch):
    write_ixi(cli.folder, "a")
    monkeypatch.setitem(sys.modules, "nibabel", None)
    assert "pip install nibabel" in refused(cli, "ixi --t1 t1 --t2 t2 --out out")


# ---------------------------------------------------------------- nothing wrong slips in

def write_series(folder, count=8, uid="1.2.3", start=0, step=1, values=lambda stored: stored,
                 **tags):
    for k in range(count):
        number = f"{uid}.{start}.{k}"  # every image has its own
        write_ct(Path(folder, f"{k:03d}.dcm"), values(ct_head(k)), (0, 0, start + step * k), number,
                 SeriesInstanceUID=uid, **{"InstanceNumber": k} | tags)


def dicoms(folder="p"):
    return sorted(Path(folder).rglob("*.dcm"))


def taken():
    """What is said of the series that is chosen of all in p."""
    return prepare.ct(dicoms())[3]["series"]


def write_hu(path, values=None):
    """The phantom's CT as NIfTI; values maps its Hounsfield units."""
    stack = np.stack([ct_head(z) - 1024. for z in range(0, 40, 4)]).transpose(2, 1, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image((values(stack) if values else stack).astype(np.int16), np.diag([4., 4., 4., 1.])), path)


def test_a_dicom_series_goes_before_the_nifti_file_beside_it(cli):
    write_series("p/s")
    write_hu(Path("p/a_brain_mask.nii.gz"), lambda hu: hu > -500)
    stack, _, kept, notes = prepare.ct(sorted(Path("p").rglob("*.*")))
    assert kept == prepare.core(8) and "8 files in s" in notes["series"] and stack.min() == -1000


def test_a_nifti_file_that_is_taken_is_named(cli, capsys):
    write_series("ct/p/s", SeriesDescription="CTA")
    write_hu(Path("ct/p/whole.nii.gz"))
    write_nifti(Path("t1/IXI001-T1.nii.gz"), *T1_GRID)
    cli("mri2ct --t1 t1 --ct ct --out out --size 64")
    assert "p: whole.nii.gz" in capsys.readouterr().out
    notes = manifest()["volumes"]["p"]["ct"]
    assert notes["file"] == "whole.nii.gz" and "contrast agent" in notes["found"][0]


@pytest.mark.parametrize("values", [lambda hu: (hu + 1000) / 8, lambda hu: np.where(hu < -500, 0, hu), lambda hu: hu + 1024])
def test_a_nifti_under_ct_without_hounsfield_units_is_refused_with_the_reason(cli, values):
    """8-bit, without its air, an MR."""
    write_hu(Path("p/x.nii.gz"), values)
    with pytest.raises(ValueError, match="nothing below -500"):
        prepare.ct([Path("p/x.nii.gz")])


@pytest.mark.parametrize("name, values, tags", [
    ("unsigned, without intercept", lambda stored: stored,
     dict(RescaleIntercept=0, PixelRepresentation=0)),
    ("wrapped at 4096", lambda stored: (stored - 1024) % 4096,
     dict(RescaleIntercept=0, PixelRepresentation=0)),
    ("only its padding is below", lambda stored: np.where(np.arange(64) < 3, -2000, stored),
     dict(RescaleIntercept=0))])
def test_a_dicom_series_without_hounsfield_units_is_refused(cli, name, values, tags):
    write_series("p/s", values=values, **tags)
    with pytest.raises(ValueError, match="nothing below -500") as end:
        prepare.ct(dicoms())
    assert "files in s" in str(end.value), f"{name}: the series is not named: {end.value}"


def test_pixels_times_slope_plus_intercept_are_hounsfield_units():
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.dcm")
        write_ct(path, ct_head(0) // 2, (0, 0, 0), 1, RescaleSlope=2)
        hu = prepare.hounsfield(path)
    expected = ct_head(0) // 2 * 2 - 1024
    found = f"tissue of {expected.max()} HU became {hu.max()}, air of {expected.min()} {hu.min()}"
    assert np.array_equal(hu, expected), found


def test_a_plain_and_an_enhanced_acquisition_under_one_uid_are_never_mixed(cli):
    """Of 15 and of 11 slices; only the plain one has -7."""
    write_series("p/s/a", 15, start=0, AcquisitionNumber=1, values=lambda stored: stored - 7)
    write_series("p/s/b", 11, start=2, AcquisitionNumber=2, ContrastBolusAgent="OMNIPAQUE",
                 SeriesDescription="Head")
    stack, _, _, notes = prepare.ct(dicoms())
    assert (stack.max(), len(stack)) == (140 - 7, len(prepare.core(15))), f"mixed: {notes}"
    assert "acquisition 1, 15 files" in notes["series"], f"taken: {notes['series']}"
    reasons = [line for line in notes["found"] if "acquisition 2, 11 files" in line]
    assert len(reasons) == 1 and "contrast agent" in reasons[0], f"found: {notes['found']}"


def test_of_two_acquisitions_that_say_nothing_the_first_is_taken(cli):
    write_series("p/s/a", 15, AcquisitionNumber=12)
    write_series("p/s/b", 15, AcquisitionNumber=2, values=lambda stored: stored - 7)
    stack, *_, notes = prepare.ct(dicoms())
    assert stack.max() == 140 - 7, f"the later one was taken: {notes['series']}"


def test_acquisitions_that_stand_on_one_another_are_one_series(cli):
    for k in range(12):
        write_series(f"p/s/{k}", 1, start=k, AcquisitionNumber=k // 2)
    assert "12 files" in taken(), f"a scan made step by step was taken apart: {taken()}"


def test_twins_are_counted_and_scans_that_nothing_tells_apart_are_refused(cli):
    write_series("p/s/a", 15)
    write_series("p/s/b", 2, start=3)
    assert "2 left out at heights of others" in taken(), f"twins are not counted: {taken()}"
    Path("p/copy.dcm").write_bytes(Path("p/s/a/000.dcm").read_bytes())
    assert "3 left out" in taken(), f"a copy of a file made a scan of its own: {taken()}"
    write_series("p/s/c", 12, start=1)
    with pytest.raises(ValueError, match="29 images at 15 heights, several scans in one"):
        prepare.ct(dicoms())


def test_a_series_whose_pixel_spacing_changes_is_named(cli):
    write_series("p/s/a", 5)
    write_series("p/s/b", 5, start=5, PixelSpacing=[.5, .5])
    with pytest.raises(ValueError, match="pixel spacing changes"):
        prepare.ct(dicoms())


def test_a_series_that_covers_the_head_goes_before_a_slab_of_more_slices(cli):
    write_series("p/slab", 32, "1.2.1", step=.625)
    write_series("p/head", 25, "1.2.2", step=5, ImageType=["DERIVED", "SECONDARY"],
                 SeriesDescription="sharp")
    assert "25 files in head" in taken(), f"a slab of 20 mm was taken for a head: {taken()}"
    write_series("p/thin", 50, "1.2.3", step=2.5, ImageType=["DERIVED", "SECONDARY"],
                 SeriesDescription="sharp")
    write_series("p/more", 30, "1.2.4", step=5, ImageType=["DERIVED", "SECONDARY"],
                 SeriesDescription="sharp")
    assert "50 files in thin" in taken(), f"beyond 100 mm slices do not count: {taken()}"


def test_twenty_files_at_one_height_are_no_series(cli):
    write_series("p/cine", 20, step=0)
    with pytest.raises(ValueError, match="fewer than 5 slices"):
        prepare.ct(dicoms())


@pytest.mark.parametrize("folder, plain", [("WO CONTRAST", True), ("NO CONTRAST", True),
                                           ("HEAD NON CON", True), ("C", True),
                                           ("series C", True), ("IV", True), ("CT C", False),
                                           ("HEAD C+", False), ("KM 5mm", False)])
def test_names_of_folders_are_understood_where_descriptions_are_missing(cli, folder, plain):
    write_series(f"p/{folder}", SeriesDescription=None)
    try:
        found = bool(prepare.ct(dicoms()))
    except ValueError as error:
        found = False
        assert "contrast agent" in str(error), str(error)
    assert found == plain, f"{folder!r} counts as {'plain' if found else 'enhanced'}"


def test_hi_res_is_sharp_and_stands_back(cli):
    write_series("p/HI RES", 9, "1.2.1", SeriesDescription=None)
    write_series("p/soft", 8, "1.2.2")
    assert "8 files in soft" in prepare.ct(dicoms())[3]["series"], "the sharp series was taken"


def test_of_a_patients_nifti_files_the_best_plain_one_is_taken_and_the_others_are_listed(cli):
    """Named as dcm2niix names them."""
    for name in ("4cc_sec_150cc_D3D_on_20100101_5", "CT_PLAIN_BONE_20100101_7",
                 "CT_PLAIN_THIN_20100101_2", "scout_1"):
        write_hu(Path(f"p/{name}.nii.gz"))
    nibabel.save(nibabel.Nifti1Image(np.full((64, 64, 3), -1000, np.int16), np.eye(4)),
                 "p/scout_1.nii.gz")
    *_, notes = prepare.ct(sorted(Path("p").glob("*.nii.gz")))
    assert notes["file"] == "CT_PLAIN_THIN_20100101_2.nii.gz", f"taken: {notes['file']}"
    found = "; ".join(notes["found"])
    assert found.count("nii.gz") == 4 and "D3D_on_20100101_5.nii.gz: contrast agent" in found, found
    with pytest.raises(ValueError, match="contrast agent"):
        prepare.ct([Path("p/4cc_sec_150cc_D3D_on_20100101_5.nii.gz")])
    with pytest.raises(ValueError, match="scout_1.nii.gz has 3 axial slices; 5 are wanted"):
        prepare.ct([Path("p/scout_1.nii.gz")])


def test_one_flipped_bit_in_a_compressed_nifti_never_passes(cli):
    rng = np.random.default_rng(0)
    nibabel.save(nibabel.Nifti1Image(rng.integers(0, 99, (16, 16, 16)).astype(np.int16), np.eye(4)), "a.nii.gz")
    whole = Path("a.nii.gz").read_bytes()
    wrong = 0
    for place in np.linspace(30, len(whole) - 1, 40).astype(int):
        Path("b.nii.gz").write_bytes(whole[:place] + bytes([whole[place] ^ 4]) + whole[place + 1:])
        try:
            prepare.brain(Path("b.nii.gz"))
            wrong += 1
        except ValueError as error:
            assert "b.nii.gz cannot be used" in str(error)
    assert not wrong


def test_the_plain_name_wins_and_the_others_are_named(cli, capsys):
    for name in ("S1-T1-mask", "S1-T1", "S2_T1w-brain"):
        write_nifti(Path(f"t1/{name}.nii.gz"), (4, 4, 4), np.eye(4))
    found = prepare.by_subject(["t1"], "T1")
    assert {who: path.name for who, path in found.items()} == {"S1": "S1-T1.nii.gz", "S2": "S2_T1w-brain.nii.gz"}
    assert "S1-T1-mask.nii.gz is left out" in capsys.readouterr().err


def test_names_that_would_be_one_patient_are_refused_by_name(cli):
    write_ixi(cli.folder, ["S 4", "S-4", "S_4"])
    said = refused(cli, "ixi --t1 t1 --t2 t2 --out out")
    assert "S 4" in said and "S-4" in said
    write_nifti(Path("one/A/S1-T1.nii.gz"), (4, 4, 4), np.eye(4))
    write_nifti(Path("one/B/S1-T1.nii.gz"), (4, 4, 4), np.eye(4))
    assert "one/A/S1-T1" in refused(cli, "ixi --t1 one --t2 t2 --out out")
    write_nifti(Path("plain/IXI001-T1.nii.gz"), *T1_GRID)
    write_series("ct/P 1")
    write_series("ct/P_1")
    assert "ct/P 1 and ct/P_1" in refused(cli, "mri2ct --t1 plain --ct ct --out out")
    for folder in ("train", "val"):
        write_knee(Path(folder, "file1.h5"))
    assert "train/file1.h5 and val/file1.h5" in refused(cli, "fastmri --volumes train val --out out")


def test_ct_one_level_too_deep_ends_with_a_sentence(cli):
    write_nifti(Path("t1/IXI001-T1.nii.gz"), *T1_GRID)
    for who in "ab":
        write_series(f"deep/{who}", PatientID="CQ500-CT-7", StudyInstanceUID="1.2.8")
    said = refused(cli, "mri2ct --t1 t1 --ct deep --out out")
    assert "deep/a and deep/b" in said and "CQ500-CT-7" in said and "in one folder" in said, said


def test_one_person_in_two_of_many_folders_is_refused(cli):
    write_nifti(Path("t1/IXI001-T1.nii.gz"), *T1_GRID)
    for who in "abcd":
        write_series(f"ct/{who}", PatientID="7" if who in "bd" else who,
                     StudyInstanceUID=f"1.2.{ord(who)}")
    said = refused(cli, "mri2ct --t1 t1 --ct ct --out out")
    assert "ct/b and ct/d share PatientID '7';" in said, said


@pytest.mark.parametrize("ids", [["ANONYMOUS", "anon", "7"], ["", "", ""], ["ANONYMOUS"] * 3,
                                 ["REMOVED"] * 3, ["REMOVED", "REMOVED", "7"]])
def test_a_patient_id_that_most_folders_share_says_nothing(cli, ids):
    write_nifti(Path("t1/IXI001-T1.nii.gz"), *T1_GRID)
    for who, person in zip("abc", ids):
        write_series(f"wide/{who}", PatientID=person, StudyInstanceUID=f"1.2.{ord(who)}")
    cli("mri2ct --t1 t1 --ct wide --out out --size 64")
    assert manifest()["split"]["target"] == ["a", "b", "c"], f"with {ids}: {manifest()['split']}"


def test_what_gave_nothing_in_ct_is_named(cli, capsys):
    write_nifti(Path("t1/IXI001-T1.nii.gz"), *T1_GRID)
    write_series("ct/good")
    Path("ct/empty").mkdir()
    Path("ct/p2.zip").touch()
    write_series("ct/bare")
    for path in list(Path("ct/bare").iterdir()):  # without the preamble: 128 bytes and DICM
        path.with_suffix("").write_bytes(path.read_bytes()[132:])
        path.unlink()
    cli("mri2ct --t1 t1 --ct ct --out out --size 64")
    said = capsys.readouterr().err
    missing = [name for name in ("ct/empty", "ct/p2.zip", "ct/bare") if name not in said]
    assert not missing, f"{missing} gave nothing, without a word: {said}"
    assert "ct/good" not in said, said
    for k in range(12):
        Path(f"ct/good/{k}.txt").touch()
    cli("mri2ct --t1 t1 --ct ct/good --out other --size 64")
    said = capsys.readouterr().err
    assert all(f"ct/good/{k}.txt" in said for k in range(12)) and ".dcm" not in said, said


def test_nifti_files_lying_directly_in_ct_are_said_to_be_patients(cli, capsys):
    write_nifti(Path("t1/IXI001-T1.nii.gz"), *T1_GRID)
    for name in ("P1_PLAIN_THIN_2", "P1_4cc_sec_150cc_5", "C"):  # C, no agent, comes after A, B
        write_hu(Path(f"ct/{name}.nii.gz"))
    cli("mri2ct --t1 t1 --ct ct --out out --size 64")
    said = capsys.readouterr().out
    words = "3 CT patients found, each a folder of --ct or a NIfTI file that lies in none"
    assert words in said, f"nobody says that a file is a patient: {said}"
    assert [*manifest()["bad"]] == ["P1-4cc-sec-150cc-5"], manifest()["bad"]
    assert "contrast agent" in manifest()["bad"]["P1-4cc-sec-150cc-5"], manifest()["bad"]


def test_sessions_of_one_bids_subject_stay_on_one_side(cli):
    names = [f"sub-{k:02d}_ses-{session}" for k in range(5) for session in (1, 2)]
    for name in names:
        write_nifti(Path(f"t1/{name}_T1w.nii.gz"), *T1_GRID)
        write_nifti(Path(f"t2/{name}_T2w.nii.gz"), *T2_GRID)
    cli("ixi --t1 t1 --t2 t2 --out out --size 64")
    drawn = manifest()["drawn"]
    subjects = sorted(sum(drawn.values(), []))
    assert subjects == [f"sub-{k:02d}" for k in range(5)], f"the patients are {drawn}"
    assert sorted(manifest()["volumes"]) == names, f"the volumes are {[*manifest()['volumes']]}"
    slices = data.load("out", 64)
    people = [{data.patient(name) for name in slices.names[which]} for which in data.SETS[:3]]
    assert sum(map(len, people)) == 5, f"somebody is in two sets: {people}"
    assert len(set.union(*people)) == 5, f"somebody is missing: {people}"
    write_series("ct/a")
    cli("mri2ct --t1 t1 --ct ct --out other --size 64 --patients-mri 3")
    parts = manifest("other")["split"]
    people = {*parts["input"], *parts["evaluation"]}
    assert len(parts["input"]) == 2 and len(people) == 3, f"somebody is in two sets: {parts}"
    volumes = [*manifest("other")["volumes"]]
    assert len(volumes) == 3 * 2 + 1, f"a session is lost: {volumes}"


@pytest.mark.parametrize("heights, missing", [
    ([*range(50), *range(90, 140)], 40), ([0, 1, 2, 3, 4, 6, 7, 8], 1), ([0, 4, 8, 12, 13, 20, 27, 34], 0),
    ([0, 1, 2, 3, 43], 39), ([0, 40, 41, 42, 43], 39), ([0, 2.5, 5, 7.5, 17.5, 27.5, 37.5], 0), ([0, 1, 2, 4, 6, 7, 8], 1)])
def test_a_gap_is_told_from_distances_that_change(heights, missing):
    assert (prepare.gap(heights) or "gap of 0").startswith(f"gap of {missing}")


def test_a_series_with_a_gap_is_named_and_not_chosen_while_a_whole_one_exists(cli):
    write_series("p/long", 9, "1.2.1")
    write_series("p/long/upper", 9, "1.2.1", 40)
    write_series("p/short", 8, "1.2.2", ImageType=["DERIVED", "SECONDARY"])
    notes = prepare.ct(sorted(Path("p").rglob("*.dcm")))[3]
    assert "8 files in short" in notes["series"]
    assert any("18 files in long: gap of 31 slices from 8 to 40 mm" in line for line in notes["found"])
    assert "gap of 31" in prepare.ct(sorted(Path("p/long").rglob("*.dcm")))[3]["series"]


def test_normalised_slices_reach_both_ends_after_shrinking(cli):
    class Slice(Arguments):
        normalise = "slice"
    noise = np.random.default_rng(0).normal(500, 100, (3, 200, 150)).astype(np.float32)
    for picture in squares(noise, arguments=Slice):
        assert picture[:, 8:-8].min() == 0 and picture.max() == 255


def test_a_slices_own_limits_are_those_of_its_voxels_without_bicubics_overshoot():
    step = np.full((200, 200), 100, np.float32)
    step[:, 90:] = 1000
    _, limits, _ = prepare.fit_square(step, (1, 1), 64, None)
    assert limits == [100, 1000], f"Sec. 4.1: black and white of a slice of 100 and 1000 are {limits}"


def test_padding_as_dense_as_bone_stays_and_denser_is_air():
    for hu, expected in ((1500, 1500), (2999, 2999), (3000, -1024), (3071, -1024)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "a.dcm")
            write_ct(path, np.full((8, 8), hu + 1024), (0, 0, 0), 1, PixelPaddingValue=hu + 1024)
            found = prepare.hounsfield(path)[0, 0]
        assert found == expected, f"Sec. 4.1: padding of {hu} HU became {found}, asked for {expected}"


def cut_off(height):
    return lambda x, y, z: head(x, y, z) * (z < height)


def test_a_pair_with_one_half_of_a_single_grey_is_left_out_and_counted(cli, capsys):
    write_ixi(cli.folder, "a")
    say_it_lies(Path("t1/a-T1.nii.gz"), up_by(60))
    cli("ixi --t1 t1 --t2 t2 --size 64 --out out")
    halves = [read(f"out/evaluation/*_{half}.png") for half in ("input", "target")]
    partners = [name.replace("target", "input") for name in halves[1]]
    assert list(halves[0]) == partners, f"pairs were torn apart: {halves[0].keys()}, {partners}"
    blank = [name for half in halves for name, picture in half.items() if not np.ptp(picture)]
    shown, notes = len(halves[0]), manifest()["volumes"]["a"]
    assert not blank, f"pairs with an empty half were kept: {blank}"
    assert shown == len(halves[1]) == notes["slices"], f"{shown} pairs, the manifest: {notes}"
    assert 10 <= shown < 20, f"the example has lost its point: {shown} pairs are left"
    assert notes["of_one_grey"] == 20 - shown, f"{shown} of 20 are left, the manifest: {notes}"
    said = capsys.readouterr().out
    assert f"left out {20 - shown} slices or pairs with a single grey" in said, said


def up_by(millimetres):
    return np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, millimetres], [0, 0, 0, 1]])


def say_it_lies(path, motion):
    """Moves what the file says of its place, not what it holds."""
    image = nibabel.load(path)
    nibabel.save(nibabel.Nifti1Image(np.asarray(image.dataobj), motion @ image.affine), path)


@pytest.mark.parametrize("fault, reason", [
    ("NaN", "all NaN or infinite"), ("400 mm", "20 of t1, 0 of t2"), ("110 mm", "of t1, 0 of t2"),
    ("metres", "not in mm"),
    ("T2 in metres", "not in mm"), ("a T1 mostly empty", "of t1, 0 of t2")])
def test_a_patient_with_more_than_half_of_the_pairs_empty_is_bad(cli, fault, reason):
    write_ixi(cli.folder, "a")
    path, (shape, affine) = Path("t1/a-T1.nii.gz"), T1_GRID
    in_metres = np.diag([.001, .001, .001, 1])
    if fault == "NaN":
        nibabel.save(nibabel.Nifti1Image(np.full(shape, np.nan, np.float32), affine), path)
    elif fault.endswith("mm"):
        say_it_lies(path, up_by(float(fault.split()[0])))
    elif fault.endswith("metres"):
        say_it_lies(Path("t2/a-T2.nii.gz") if "T2" in fault else path, in_metres)
    else:
        write_nifti(path, *T2_GRID, cut_off(-15))
    said = refused(cli, "ixi --t1 t1 --t2 t2 --size 64 --out out", warned=True)
    assert reason in manifest()["bad"]["a"], f"{fault}: {manifest()['bad']}"
    assert reason in said, f"{fault}: {said}"
    assert not read("out/evaluation/*"), f"{fault}: pairs were written"


@pytest.mark.parametrize("normalise", ["volume", "slice"])
def test_padding_does_not_hide_that_a_slice_is_of_a_single_grey(cli, normalise):
    class Chosen(Arguments):
        pass
    Chosen.normalise = normalise
    stack = np.full((2, 40, 60), 7, np.float32)
    stack[0, 5:30, 5:50] = np.arange(45) * 20 + 10
    stack[0, 0, 0] = 0  # below air, so that air becomes grey 1 or more
    limits = [0, 800] if normalise == "volume" else None
    found = [prepare.fit_square(picture, (1, 1), 64, limits) for picture in stack]
    blanks = [blank for *_, blank in found]
    assert blanks == [False, True], f"said to be of a single grey: {blanks}"
    if normalise == "volume":
        assert np.ptp(found[1][0]) > 0, "the example has lost its point: air is black, too"


@pytest.mark.parametrize("fault, reason", [
    ("colours", "not grey values"), ("complex numbers", "complex64, not grey values"),
    ("NaN in sform", "sform or qform holds NaN"),
    ("sform 30 mm off", "30 mm apart"), ("flat", "not in mm")])
def test_a_nifti_file_that_is_no_placed_grey_volume_is_refused_by_its_fault(cli, fault, reason):
    shape, affine = (8, 8, 8), np.eye(4)
    kinds = {"colours": [("R", "u1"), ("G", "u1"), ("B", "u1")], "complex numbers": np.complex64}
    image = nibabel.Nifti1Image(np.zeros(shape, kinds.get(fault, np.int16)), affine)
    if fault == "sform 30 mm off":
        image.set_qform(affine, 1)
        image.set_sform(up_by(30), 1)
    elif fault == "flat":
        image.set_sform(np.diag([1, 1, 0, 1]), 1)
        image.set_qform(None, 0)
    nibabel.save(image, "odd.nii")
    if fault == "NaN in sform":
        whole = Path("odd.nii").read_bytes()
        nan = np.float32(np.nan).tobytes()
        Path("odd.nii").write_bytes(whole[:292] + nan + whole[296:])  # in srow_x
    with pytest.raises(ValueError, match=reason) as end:
        prepare.read_nifti(Path("odd.nii"))
    assert "odd.nii cannot be used" in str(end.value), f"the file is not named: {end.value}"


@pytest.mark.parametrize("fault, reason", [
    ("NaN", "NaN or infinity"), ("gaps", "4 columns between measured ones")])
def test_kspace_that_is_not_whole_is_refused_by_its_fault(cli, fault, reason):
    kspace = write_knee(Path("knees/file1.h5"))
    kspace[:, :, :6] = kspace[:, :, -5:] = 0  # never measured, as in older files: no fault
    if fault == "NaN":
        kspace[2, 5, 9] = np.nan
    else:
        kspace[:, :, 10:14] = 0
    with h5py.File("knees/file1.h5", "a") as file:
        file["kspace"][:] = kspace
    with pytest.raises(ValueError, match=reason) as end:
        prepare.knee(Path("knees/file1.h5"), False)
    assert "file1.h5 cannot be used" in str(end.value), f"the file is not named: {end.value}"


# ---------------------------------------------------------------- nothing right is lost

def odd_file(kind, folder):
    path = folder / "odd.dcm"
    tags = dict(SeriesInstanceUID="1.9", PatientID="p7", SeriesDescription="Scout", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
    write_ct(path, ct_head(0), (0, 0, 0), 99, **tags | {
        "index without PatientID": {"PatientID": None, "Modality": "OT"}, "scout with an empty one": {"PatientID": ""},
        "RTSTRUCT": {"Modality": "RTSTRUCT", "PatientID": "x1"}}.get(kind, {}))
    if kind == "header cut after 200 bytes":
        path.write_bytes(path.read_bytes()[:200])
    elif kind == "damaged scout":
        path.write_bytes(path.read_bytes()[:350] + b"\xff" * 500)
    elif kind == "no DICOM":
        path.write_bytes(b"a report")


@pytest.mark.parametrize("kind", ["index without PatientID", "scout with an empty one", "header cut after 200 bytes",
                                  "damaged scout", "RTSTRUCT", "no DICOM"])
def test_an_odd_file_costs_only_itself(cli, kind):
    write_series("p/s", PatientID="p7")
    odd_file(kind, Path("p"))
    _, _, kept, notes = prepare.ct(sorted(Path("p").rglob("*.dcm")))
    assert kept == prepare.core(8) and "8 files in s" in notes["series"] and len(notes["found"]) == 2


def test_when_the_best_series_is_damaged_the_next_is_taken(cli):
    write_series("p/thin", 9, "1.2.1")
    write_series("p/thick", 8, "1.2.2")
    path = Path("p/thin/004.dcm")
    path.write_bytes(path.read_bytes()[:-4000])
    notes = prepare.ct(sorted(Path("p").rglob("*.dcm")))[3]
    assert "8 files in thick" in notes["series"] and "thin/004.dcm cannot be used" in notes["found"][-1]


@pytest.mark.parametrize("limit", ["", " --limit 5"])
def test_a_fastmri_file_that_cannot_be_opened_stays_out_of_the_split_and_joins_once_repaired(cli, limit):
    for i in range(6):
        write_knee(Path(f"knees/file{i}.h5"), patient_id=f"person {i}")
    whole = Path("knees/file2.h5").read_bytes()
    Path("knees/file2.h5").write_bytes(whole[:1000])
    line = "fastmri --volumes knees --size 64 --out out" + limit
    cli(line)
    first = manifest()
    assert len(sum(first["drawn"].values(), [])) == 5 and "knees/file2.h5 cannot be used" in first["bad"]["file2"]
    Path("knees/file2.h5").rename("file2.h5")
    cli(line)  # removed
    Path("knees/file2.h5").write_bytes(whole)
    cli(line)  # repaired
    then = manifest()
    new = set(then["volumes"]) - set(first["volumes"])
    assert len(new) == 1 and new.pop().endswith("_file2") and not then["bad"]
    assert all(set(first["split"][part]) <= set(then["split"][part]) for part in prepare.PARTS)
    assert then["split"]["evaluation"] == first["split"]["evaluation"]
    write_knee(Path("knees/file9.h5"), patient_id="person 1")
    cli(line)  # and once more, with another file of a patient who is known
    assert len(manifest()["volumes"]) == 7


def test_a_run_killed_between_the_first_volume_and_its_note_goes_on(cli, monkeypatch):
    class Killed(BaseException):
        pass
    replace = os.replace

    def killed(source, target):
        if "manifest" in str(target) and list(Path("out").glob("[ite]*/*.png")):
            raise Killed
        replace(source, target)
    write_ixi(cli.folder, "ab")
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(Killed):
        cli("ixi --t1 t1 --t2 t2 --size 64 --out out")
    monkeypatch.setattr(os, "replace", replace)
    cli("ixi --t1 t1 --t2 t2 --size 64 --out out")
    assert sorted(manifest()["volumes"]) == ["a", "b"]


def test_the_manifest_is_written_rarely_and_a_killed_run_ends_in_equal_pictures(cli, monkeypatch):
    class Killed(BaseException):
        pass
    replace, written = os.replace, []

    def watched(source, target):
        if "manifest" in str(target):
            written.append(target)
            if killing and len(written) > 1:  # as if the end had come before the manifest
                raise Killed
        replace(source, target)
    write_ixi(cli.folder, "abcdefgh")
    monkeypatch.setattr(os, "replace", watched)
    killing = False
    cli("ixi --t1 t1 --t2 t2 --size 64 --out whole")
    assert 2 <= len(written) <= 4, f"8 volumes in seconds, {len(written)} manifests"
    killing, written[:] = True, []
    with pytest.raises(Killed):
        cli("ixi --t1 t1 --t2 t2 --size 64 --out out")
    killing = False
    cli("ixi --t1 t1 --t2 t2 --size 64 --out out")
    one, other = read("out/*/*.png"), read("whole/*/*.png")
    assert list(one) == list(other), f"resumed to other files: {one.keys() ^ other.keys()}"
    assert all(map(np.array_equal, one.values(), other.values())), "resumed to other pictures"
    assert manifest() == manifest("whole"), "resumed to another manifest"


def test_the_manifest_is_saved_every_few_seconds(cli, monkeypatch):
    write_ixi(cli.folder, "abcdef")
    clock, save, written = iter(range(0, 1000, 3)), prepare.save, []
    monkeypatch.setattr(prepare.time, "monotonic", lambda: next(clock))

    def watched(path, notes):
        written.append(len(notes["volumes"]))
        save(path, notes)
    monkeypatch.setattr(prepare, "save", watched)
    cli("ixi --t1 t1 --t2 t2 --size 64 --out out")
    assert (written[0], written[-1]) == (0, 6), f"saved after {written} volumes"
    assert 3 <= len(written) <= 6, f"saved after {written} volumes"


def test_a_disk_without_room_for_the_manifest_is_complained_of_once(cli, monkeypatch):
    def full(source, target):
        raise OSError(28, "No space left on device")
    write_ixi(cli.folder, "ab")
    monkeypatch.setattr(os, "replace", full)
    said = refused(cli, "ixi --t1 t1 --t2 t2 --size 64 --out out")
    assert "manifest.json: cannot be written (No space left on device)" in said, said


def test_what_is_said_of_144_mri_patients_is_so(cli, capsys):
    for k in range(150):
        Path("t1").mkdir(exist_ok=True)
        Path(f"t1/IXI{k:03d}-T1.nii.gz").touch()
    write_series("ct/a")
    arguments = argparse.Namespace(t1="t1", ct=["ct"], limit=None, seed=0, patients_mri=144)
    drawn = prepare.mri2ct(arguments)[0]
    sizes = len(drawn["input"]), len(drawn["evaluation"])
    assert sizes == (130, 14), f"{sizes[0]} are left to train on"
    with pytest.raises(SystemExit):
        cli("mri2ct --help")
    said = " ".join(capsys.readouterr().out.split())
    assert "144; 130 are left to train on" in said, said


def test_a_set_without_a_slice_ends_with_exit_code_2_and_the_reasons(cli):
    write_nifti(Path("t1/IXI001-T1.nii.gz"), *T1_GRID)
    write_series("ct/a", SeriesDescription="CTA")
    said = refused(cli, "mri2ct --t1 t1 --ct ct --out out --size 64", warned=True)
    assert "target" in said and "a: no plain axial CT" in said and "contrast agent" in said


def test_ct_patients_who_cannot_be_used_are_replaced_or_the_shortfall_is_said(cli, capsys):
    write_nifti(Path("t1/IXI001-T1.nii.gz"), *T1_GRID)
    for who in "abcdef":
        write_series(f"ct/{who}", SeriesDescription="CTA" if who in "acd" else "Plain")
    line = "mri2ct --t1 t1 --ct ct --size 64 --patients-ct"
    cli(f"{line} 2 --out two")
    assert len(manifest("two")["split"]["target"]) == 2 and "not 2" not in capsys.readouterr().out
    files = read("two/target/*.png")
    cli(f"{line} 2 --out two")
    assert list(files) == list(read("two/target/*.png"))
    cli(f"{line} 5 --out five")
    assert manifest("five")["split"]["target"] == ["b", "e", "f"]
    assert "3 CT patients, not 5" in capsys.readouterr().out


def test_what_a_killed_run_left_aside_is_removed(cli):
    write_ixi(cli.folder, "ab")
    Path("out/.unfinished-abc").mkdir(parents=True)
    Path("out/.unfinished-abc/a_001_t1.png").touch()
    cli("ixi --t1 t1 --t2 t2 --size 64 --out out")
    assert not list(Path("out").glob(".unfinished*"))


def test_a_users_own_folders_are_left_alone(cli):
    write_ixi(cli.folder, "ab")
    theirs = Path("out/unfinished-thesis/page.txt")
    theirs.parent.mkdir(parents=True)
    theirs.touch()
    cli("ixi --t1 t1 --t2 t2 --size 64 --out out")
    assert theirs.exists(), "a user's own file in --out was removed"


def test_the_manifest_holds_every_choice(cli):
    write_nifti(Path("t1/IXI001-T1.nii.gz"), *T1_GRID)
    for k, folder in enumerate(("x", "x", "y", "y")):
        write_series(f"ct/a/{k}/{folder}", uid=f"1.2.{k}")
    write_series("ct/b", SeriesDescription="CTA")
    cli("mri2ct --t1 t1 --ct ct --out out --size 64 --centre 50 --width 350")
    notes = manifest()["volumes"]["a"]["ct"]
    assert len(notes["found"]) == 4 and notes["black_and_white"] == [-125, 225]
    assert manifest()["split"]["target"] == ["a"] and sorted(manifest()["bad"]) == ["b"]
    write_ixi(cli.folder, "cd")
    cli("ixi --t1 t1 --t2 t2 --out slice --size 64 --normalise slice")
    t1, t2 = (next(notes[kind] for notes in manifest("slice")["volumes"].values() if kind in notes) for kind in ("t1", "t2"))
    assert len(t1["black_and_white"]) == len(t2["black_and_white"]) == 20 and t2["black_and_white"][10][0] <= 0
    write_knee(Path("knees/file1.h5"))
    cli("fastmri --volumes knees --out knee --size 48")
    columns = manifest("knee")["volumes"]["file1"]["4x"]["columns"]
    assert columns == np.flatnonzero(prepare.column_mask("file1.h5", np.ones(40, bool))).tolist()


def test_reasons_name_the_folder_of_a_file(cli):
    write_series("p/CT Plain")
    Path("p/CT Plain/003.dcm").write_bytes(Path("p/CT Plain/003.dcm").read_bytes()[:-99])
    with pytest.raises(ValueError, match="CT Plain/003.dcm cannot be used"):
        prepare.ct(sorted(Path("p").rglob("*.dcm")))


def test_an_out_that_cannot_be_written_is_not_told_to_go_on(cli):
    write_ixi(cli.folder, "a")
    Path("file").touch()
    for out in ("file/slices", "file"):
        said = refused(cli, f"ixi --t1 t1 --t2 t2 --out {out}")
        assert "goes on" not in said and "choose another" in said


def test_an_out_that_looks_like_one_file_is_told_who_packs_it(cli):
    write_ixi(cli.folder, "a")
    said = refused(cli, "ixi --t1 t1 --t2 t2 --out knee.H5")
    assert "data.py" in said and "--h5 knee.H5" in said, f"nobody says how to get an .h5: {said}"
    assert not Path("knee.H5").exists(), "a folder was made that looks like a file"


def test_a_second_run_in_the_same_folder_ends_at_its_start(cli, monkeypatch):
    write_ixi(cli.folder, "ab")
    line, save, said = "ixi --t1 t1 --t2 t2 --size 64 --out out", Image.Image.save, []

    def meanwhile(*arguments, **keywords):
        monkeypatch.setattr(Image.Image, "save", save)
        said.append(refused(cli, line))
        save(*arguments, **keywords)
    monkeypatch.setattr(Image.Image, "save", meanwhile)
    cli(line)
    assert "another run writes there now" in said[0] and len(read("out/*/*.png")) == 40


# ---------------------------------------------------------------- what archives look like

def chosen(cli, **tags):
    write_series("p/C" if tags.pop("folder", False) else "p/s", **tags)
    try:
        return bool(prepare.ct(sorted(Path("p").rglob("*.dcm"))))
    except ValueError as error:
        assert "contrast agent" in str(error)
        return False


def test_a_folder_named_c_is_no_contrast_agent(cli):
    assert chosen(cli, folder=True, SeriesDescription=None)


def test_derived_with_a_blank_is_derived(cli):
    write_series("p/long", 9, "1.2.1", ImageType=["DERIVED ", "SECONDARY"])
    write_series("p/short", 8, "1.2.2")
    assert "short" in prepare.ct(sorted(Path("p").rglob("*.dcm")))[3]["series"]


@pytest.mark.parametrize("syntax", ["RLELossless", "JPEG2000Lossless"])
def test_rle_and_jpeg_2000_work_as_installed(cli, syntax):
    import io
    for k in range(8):
        write_ct(Path(f"p/{k}.dcm"), ct_head(k), (0, 0, k), k, PixelRepresentation=0)
        slice_ = pydicom.dcmread(f"p/{k}.dcm")
        if syntax == "RLELossless":
            slice_.compress(pydicom.uid.RLELossless)
        else:
            packed = io.BytesIO()
            Image.fromarray(ct_head(k).astype(np.uint16)).save(packed, "JPEG2000", irreversible=False, no_jp2=True)
            slice_.PixelData = pydicom.encaps.encapsulate([packed.getvalue()])
            slice_.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000Lossless
        slice_.save_as(f"p/{k}.dcm")
    assert np.array_equal(prepare.ct(sorted(Path("p").glob("*.dcm")))[0][0], ct_head(1) - 1024)


def test_columns_that_were_never_measured_do_not_count_towards_the_quarter(cli, capsys):
    kspace = write_knee(Path("knees/file7.h5"), shape=(64, 368))
    kspace[:, :, :18] = kspace[:, :, -18:] = 0
    with h5py.File("knees/file7.h5", "a") as file:
        file["kspace"][:] = kspace
    cli("fastmri --volumes knees --out out --size 64")
    notes = manifest()["volumes"]["file7"]["4x"]
    assert (notes["measured"], len(notes["columns"]), notes["acceleration"]) == (332, 83, 4.0)
    assert min(notes["columns"]) >= 18 and max(notes["columns"]) < 350
    assert set(range(184 - 13, 184 + 13)) <= set(notes["columns"])
    assert "over the measured columns: 4.0 to 4.0" in capsys.readouterr().out


def test_help_fits_80_columns_and_shows_an_example_after_the_options(cli, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    for task in ("", "ixi ", "fastmri ", "mri2ct "):
        with pytest.raises(SystemExit):
            cli(task + "--help")
        said = capsys.readouterr().out
        assert max(map(len, said.splitlines())) <= 80
        assert said.index("options:") < said.index(f"example: python prepare.py {task}")


# ---------------------------------------------------------------- planted mistakes

MISTAKES = [  # as in mutants.py: name, text as it is, text as it would be; and who must notice
    ("intercept_before_slope", "image.pixel_array * slope + intercept",
     "(image.pixel_array + intercept) * slope",
     lambda cli: test_pixels_times_slope_plus_intercept_are_hounsfield_units()),
    ("acquisitions_mixed", "for part in acquisitions(headers)]", "for part in [headers]]",
     lambda cli: test_a_plain_and_an_enhanced_acquisition_under_one_uid_are_never_mixed(cli)),
    ("slices_before_millimetres", "rank = (covered < HEAD, ", "rank = (False, ",
     lambda cli: test_a_series_that_covers_the_head_goes_before_a_slab_of_more_slices(cli)),
    ("greys_tested_after_padding", "not np.ptp(grey)", "not np.ptp(np.pad(grey, margins))",
     lambda cli: test_padding_does_not_hide_that_a_slice_is_of_a_single_grey(cli, "volume")),
    ("pairs_kept_with_an_empty_half", "blank = [any(pair)", "blank = [all(pair)",
     lambda cli: test_a_pair_with_one_half_of_a_single_grey_is_left_out_and_counted(cli, None))]


@pytest.mark.parametrize("name, line, wrong, audit", MISTAKES, ids=[row[0] for row in MISTAKES])
def test_a_mistake_planted_in_prepare_is_noticed(cli, name, line, wrong, audit):
    source = Path(prepare.__file__).read_text()
    mutant = mutants.Mutant(name, "prepare.py", line, wrong, mutants.LIKELY)
    try:
        exec(compile(mutants.plant(mutant, source), prepare.__file__, "exec"), vars(prepare))
        with pytest.raises((AssertionError, ValueError)):
            audit(cli)
    finally:
        exec(compile(source, prepare.__file__, "exec"), vars(prepare))


# ---------------------------------------------------------------- real files

def link(source, target):
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(Path(RAW, source).read_bytes())


@real_files
def test_real_ixi_grids_bring_t1_and_t2_of_one_person_together(cli):
    """IXI002's face masks, drawn on T1 and moved onto T2 by somebody else's registration, on the native grids."""
    for kind in ("T1", "T2"):
        link(f"nifti_ixi/IXI002-Guys-0828-{kind}_facemask_on_native_grid.nii.gz",
             cli.folder / kind / f"IXI002-Guys-0828-{kind}.nii.gz")
    cli("ixi --t1 T1 --t2 T2 --out out")
    t1, t2 = (np.stack(list(read(f"out/evaluation/*_{domain}.png").values())) > 127 for domain in ("input", "target"))
    assert t1.shape == (78, 256, 256) and overlap(t1, t2) > .95


@real_files
def test_real_oblique_pair_shows_one_head_once_its_frames_agree(cli):
    """The two headers put this head 9 degrees and 8 mm apart (T1 went through SPM's realignment). The rigid motion was
    found once by maximising mutual information: with it in T1's affine, resampling must bring the heads together."""
    t1 = nibabel.load(Path(RAW, "nifti_oblique/chris_t1.nii.gz"))
    c, s = np.cos(.157), np.sin(.157)
    motion = np.array([[1, 0, 0, -1.05], [0, c, -s, -.2], [0, s, c, -7.86], [0, 0, 0, 1]])
    (cli.folder / "T1").mkdir()
    nibabel.save(nibabel.Nifti1Image(np.asarray(t1.dataobj), np.linalg.inv(motion) @ t1.affine), "T1/chris-T1.nii.gz")
    link("nifti_oblique/chris_PD.nii.gz", cli.folder / "T2" / "chris-T2.nii.gz")
    cli("ixi --t1 T1 --t2 T2 --out out")
    pairs = [np.stack(list(read(f"out/evaluation/*_{domain}.png").values())) > 40 for domain in ("input", "target")]
    assert len(pairs[0]) == 34 and overlap(*pairs) > .94  # without the motion .918


@real_files
def test_real_ct_with_tilt_uneven_slices_and_padding_is_prepared(cli):
    for path in sorted(Path(RAW, "ct_dicom").glob("*.dcm")):
        link(f"ct_dicom/{path.name}", cli.folder / "CQ500" / "CQ500CT1 CQ500CT1" / "Unknown Study" / "CT Plain" / path.name)
    link("nifti_ixi/IXI012-HH-1211_T1.nii.gz", cli.folder / "T1" / "IXI012-HH-1211-T1.nii.gz")
    cli("mri2ct --t1 T1 --ct CQ500 --out out")
    slices = read("out/target/*.png")
    assert list(slices) == [f"CQ500CT1-CQ500CT1_{k:03d}_ct.png" for k in range(5, 23)]
    middle = slices["CQ500CT1-CQ500CT1_016_ct.png"]
    assert (middle[[0, 0, -1, -1], [0, -1, 0, -1]] == 0).all()    # padding in the corners
    assert 100 < np.median(middle[100:156, 100:156]) < 160 and (middle == 255).mean() > .02  # brain grey, bone white
    assert len(read("out/input/*_t1.png")) == 72


@real_files
def test_real_kspace_packed_as_fastmri_does_is_prepared(cli):
    from scipy.io import loadmat
    kspace = loadmat(Path(RAW, "kspace/larson_se_t1_sag_data.mat"))["data"].astype(np.complex64)
    for i in range(3):
        write_knee(cli.folder / "knees" / f"file{i}.h5")
        with h5py.File(cli.folder / "knees" / f"file{i}.h5", "a") as file:
            del file["kspace"]
            file["kspace"] = np.stack([kspace] * 3)
    cli("fastmri --volumes knees --out out")
    (x,), (y,) = (list(read(f"out/evaluation/*_001_{domain}.png").values()) for domain in ("input", "target"))
    assert y[60:200, 60:200].mean() > 3 * y[:20, :60].mean()      # a head on a dark ground, in the middle
    error = np.mean((x / 255. - y / 255.) ** 2)
    assert 18 < -10 * np.log10(error) < 28                         # alike, and not the same
