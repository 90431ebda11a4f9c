"""Sec. 4.4: pictures come back translated, each in its own size, or the program says why not."""
import contextlib
import io
import json
import math
import tempfile
from pathlib import Path
from unittest.mock import patch as replaced

import numpy as np
import pytest
import torch
from PIL import Image

import nets
import translate
from oracles import agree, naive_patch, phi_of
from toys import TINY, files_in, go, grey_levels, refused, saved, tiny_slices, toy, toy_with_beta


def grey(*shape, seed=0):
    return grey_levels(*shape, seed=seed).byte().numpy()


def batch(*pictures):
    """uint8 pictures of one shape -> [n,1,h,w] in grey levels."""
    return torch.from_numpy(np.stack(pictures)).float().unsqueeze(1)


def run_of(G, **changes):
    return G, TINY | changes


@contextlib.contextmanager
def written(pictures, **runs):
    """The folder that write_translations() fills, read inside; runs are made by run_of()."""
    with tempfile.TemporaryDirectory() as out, contextlib.redirect_stdout(io.StringIO()):
        translate.write_translations(list(pictures.items()), runs, Path(out), "cpu")
        yield Path(out)


def read_png(path):
    with Image.open(path) as picture:
        assert picture.format == "PNG" and picture.mode == "L"
        return np.asarray(picture).astype(float)


# ---------------------------------------------------------------- a run and its translations

def test_translations_arrive_in_grey_levels_and_in_order():
    x = batch(*tiny_slices().input[:5])
    with replaced.object(translate, "BATCH", 2):
        image, scale, beta = translate.translate(toy(0.9), x, "cpu")
        three = translate.translate(lambda u: (u, 0.1 + u ** 2, 2 + u), x, "cpu")
    u = x / 127.5 - 1
    assert beta.shape == scale.shape and (beta == 1).all()  # a Laplace density
    # beta has no unit
    assert torch.allclose(three[1], 127.5 * (0.1 + u ** 2), atol=1e-3)
    assert torch.allclose(three[2], 2 + u)
    assert torch.allclose(image, 127.5 * (0.9 * u + 1), atol=1e-3)
    assert torch.allclose(scale, 127.5 * toy(0.9)(u)[1], atol=1e-3)


def complaint(x):
    """The sentence of the ValueError that translate() must raise; G must not be asked at all."""
    def never(_):
        raise AssertionError(f"G was given {list(x.shape)} from {x.min()} to {x.max()}")
    try:
        translate.translate(never, x, "cpu")
    except ValueError as error:
        sentence = str(error)
    else:
        raise AssertionError(f"Sec. 4.4: {list(x.shape)} was translated")
    assert "\n" not in sentence and sentence.startswith("translate: wants "), sentence
    return sentence


def test_images_of_another_shape_are_refused_by_their_shape():
    for shape in ((3, 64, 64), (64, 64), (2, 3, 64, 64), (2, 1, 64, 32), (1, 1, 8, 8, 8),
                  (0, 1, 64, 64)):
        sentence = complaint(torch.full(shape, 100.0))
        assert str(list(shape)) in sentence, f"{list(shape)} is not named: {sentence}"


def test_numbers_that_are_no_grey_levels_are_refused_by_their_range():
    x = grey_levels(2, 1, 16, 16)
    x[0, 0, 0, 0], x[0, 0, 0, 1] = 0, 255
    missing = x.clone()
    missing[1, 0, 3, 3] = math.nan
    endless = x.clone()
    endless[1, 0, 3, 3] = math.inf
    for what, wrong, named in (("[-1,1]", x / 127.5 - 1, "got -1 to 1"),
                               ("one too dark", x - 0.5, "got -0.5 to 254.5"),
                               ("one too bright", x + 1, "got 1 to 256"),
                               ("16 bits", 257 * x, "got 0 to 65535"),
                               ("[0,1]", x / 255, "got 0 to 1"),
                               ("NaN", missing, "got nan to nan"),
                               ("infinity", endless, "got 0 to inf")):
        sentence = complaint(wrong)
        assert named in sentence, f"{what}: the sentence says {sentence!r}, not {named!r}"


def test_black_images_and_masks_of_0_and_1_are_grey_levels():
    black = torch.zeros(1, 1, 16, 16)
    mask = black.clone()
    mask[0, 0, 4:8] = 1
    for x in (black, mask, mask.byte(), 255 * mask, black + 0.5 + 100 * mask):
        image, _, _ = translate.translate(lambda u: (u, u ** 2 + 1), x, "cpu")
        agree(image, x.float(), "Sec. 4.4: the identity's translation", 1e-4)


def test_a_run_is_loaded_with_its_own_width_and_weights():
    G = nets.UNet(width=2)
    with tempfile.TemporaryDirectory() as folder:
        loaded, config = translate.load_run(saved(Path(folder), G, width=2, critic_width=3), "cpu")
    pairs = zip(G.parameters(), loaded.parameters(), strict=True)
    assert all(torch.equal(*pair) for pair in pairs) and config["width"] == 2
    assert not loaded.training


def test_a_device_that_is_not_there_is_named_and_not_the_checkpoint():
    name = "mps" if torch.cuda.is_available() else "cuda"
    with tempfile.TemporaryDirectory() as folder:
        path = saved(Path(folder) / "uapi", nets.UNet(width=1))
        error = refused(translate.load_run, path, name)
    assert f"--device {name}" in error and "checkpoint" not in error and "uapi" not in error, error


# ---------------------------------------------------------------- sizes

def test_a_translation_grows_back_by_the_bicubic_kernel():
    """Against Eq. 4's naive loop, which zooms by the same kernel."""
    d = 8
    values = grey_levels(1, 1, d, d, seed=3).float()
    large = torch.zeros(1, 1, 2 * d, 2 * d, dtype=torch.float64)
    large[..., :d, :d] = values
    expected = naive_patch(large, phi_of((d, 0, 0)))[0, 0].clamp(values.min(), values.max())
    agree(translate.own_size(values, (2 * d, 2 * d)), expected,
          "Sec. 4.4: a translation is resized bicubically", 1e-3)
    agree(translate.own_size(values, (9, 2 * d)), expected[3:12],
          "Sec. 4.4: and its margins, 3 pixels above and 4 below, are cut off", 1e-3)
    agree(translate.own_size(values, (2 * d, 10)), expected[:, 3:13],
          "Sec. 4.4: and its margins, 3 pixels on either side, are cut off", 1e-3)


def test_an_edge_grows_back_smoothly_through_the_whole_program():
    """The nearest pixel would make stairs of two equal columns out of a ramp."""
    ramp = np.tile(np.linspace(0, 255, 128).round().astype(np.uint8), (128, 1))
    with written({"a": ramp}, run=run_of(toy(1.0))) as out:
        shown = read_png(out / "run" / "translation" / "a.png")
    off = np.abs(shown - ramp)[4:-4, 4:-4].max()
    assert off <= 1, f"Sec. 4.4: the ramp comes back bicubically, but is off by {off} grey levels"
    steps = np.unique(np.diff(shown[64, 4:-4]))
    assert steps.min() >= 1 and steps.max() <= 3, f"Sec. 4.4: the ramp has steps {steps}"


def test_a_picture_of_the_runs_size_is_translated_as_it_is():
    picture = tiny_slices().evaluation_input[0]
    translation, scale, _ = translate.translate(toy(0.9), batch(picture), "cpu")
    with written({"a": picture}, same=run_of(toy(0.9))) as out:
        shown = read_png(out / "same" / "translation" / "a.png")
        assert np.abs(shown - translation.squeeze().numpy()).max() <= 0.5001
        assert np.allclose(np.load(out / "same" / "scale" / "a.npy"), scale.squeeze())


def test_one_picture_comes_back_in_its_own_place_and_scale():
    picture = tiny_slices().input[0][10:42]  # 32x64: padded above and below, never resized
    with written({"a": picture}, same=run_of(toy(1.0))) as out:
        assert np.array_equal(read_png(out / "same" / "translation" / "a.png"), picture)
        u = picture / 127.5 - 1
        scale = 127.5 * (0.2 + 0.1 * u ** 2 + 0.05 * u)
        assert np.allclose(np.load(out / "same" / "scale" / "a.npy"), scale, atol=1e-3)
        shown = read_png(out / "same" / "scale" / "a.png")
        # the white level is that of the picture's own pixels, not of its margins
        assert np.abs(shown - 255 * scale / scale.max()).max() <= 0.501


def test_a_picture_with_one_odd_side_comes_back_in_its_own_place():
    picture = tiny_slices().input[0][10:43]  # 33x64: 15 rows of padding above, 16 below
    for name, shown in (("33x64", picture), ("64x33", picture.T)):
        with written({"a": shown}, same=run_of(toy(1.0))) as out:
            found = read_png(out / "same" / "translation" / "a.png")
        off = np.abs(found - shown).max()
        assert off == 0, f"Sec. 4.4: {name}, translated by the identity, is off by {off} levels"


def test_growing_back_never_wraps_from_white_to_black():
    edge = np.zeros((128, 128), np.uint8)
    edge[:, 64:] = 255
    with written({"a": edge}, same=run_of(toy(1.0))) as out:
        assert (np.diff(read_png(out / "same" / "translation" / "a.png"), axis=1) >= 0).all()


def test_the_scale_of_a_picture_by_ugac_is_an_expected_residual():
    picture = tiny_slices().input[0]
    _, alpha, beta = translate.translate(toy_with_beta, batch(picture), "cpu")
    expected = [a * math.gamma(2 / b) / math.gamma(1 / b)
                for a, b in zip(alpha.flatten().tolist(), beta.flatten().tolist())]
    with written({"a": picture}, same=run_of(toy_with_beta, method="ugac")) as out:
        found = np.load(out / "same" / "scale" / "a.npy")
    agree(found.flatten() / expected, np.ones(64 * 64), "Sec. 4.5: ugac's scale over "
          "E|r| = alpha Gamma(2/beta) / Gamma(1/beta)", 1e-4)
    assert np.abs(found.flatten() / alpha.flatten().numpy() - 1).max() > 0.05, "beta is not used"


def test_a_scale_picture_is_as_dark_as_its_scale_is_small_beside_the_others_of_its_call():
    pictures = {"dark": np.full((64, 64), 127, np.uint8),
                "bright": np.full((64, 64), 255, np.uint8)}
    with written(pictures, run=run_of(lambda u: (u, 0.1 + 0.5 * (u + 1)))) as out:
        levels = [read_png(out / "run" / "scale" / f"{name}.png").mean() for name in pictures]
    wanted = [255 * (0.1 + 127 / 255) / 1.1, 255]
    assert levels == pytest.approx(wanted, abs=.5), f"one white asks for {wanted}, not {levels}"


def check_white_level(out, count):
    """Every scale NAME.png is its NAME.npy, 255 at scale.json's white level -> that level."""
    maps = {path: np.load(path) for path in out.rglob("*.npy")}
    white = json.loads((out / "scale.json").read_text())["white_level_in_grey_levels"]
    assert len(maps) == count and white == pytest.approx(max(map(np.max, maps.values())))
    for path, scale in maps.items():
        off = np.abs(read_png(path.with_suffix(".png")) - 255 * scale / white).max()
        assert off <= 0.501, f"{path}: has a white level of its own, off by {off} grey levels"
    return white


def test_runs_of_one_call_share_one_white_level_and_those_without_a_scale_have_none():
    pictures = {"a": grey(64, 64), "b": grey(50, 90, seed=1), "c": grey(130, 70, seed=2) // 2}
    G = lambda u: (u, 3 * toy(0.9)(u)[1])
    with written(pictures, one=run_of(toy(0.9)), three=run_of(G), pi=run_of(G, method="pi"),
                 lam0=run_of(G, lam=0.0)) as out:
        check_white_level(out, 6)
        ends = "translation/{}.png", "scale/{}.npy", "scale/{}.png"
        expected = [f"{run}/{end.format(name)}" for run in ("one", "three", "pi", "lam0")
                    for end in (ends if run in ("one", "three") else ends[:1])
                    for name in pictures]
        assert sorted(files_in(out)) == sorted([*expected, "scale.json"])


# ---------------------------------------------------------------- the program

@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """UAPI and PI, untrained."""
    root = tmp_path_factory.mktemp("runs")
    return {method: saved(root / method, nets.UNet(width=1), method=method)
            for method in ("uapi", "pi")}


@pytest.fixture
def pictures(tmp_path):
    """A picture of its own, and a folder with three, one of them no picture."""
    folder = tmp_path / "folder"
    folder.mkdir()
    for path, shape in ((tmp_path / "slice.png", (50, 90)), (folder / "b.png", (64, 64)),
                        (folder / "c.tif", (80, 30))):
        Image.fromarray(grey(*shape, seed=shape[0])).save(path)
    (folder / "d.png").write_text("text")
    return [tmp_path / "slice.png", folder]


SIZES = {"slice": (90, 50), "b": (64, 64), "c": (30, 80)}


def call(*words):
    go(*words, program=translate)


def test_files_and_folders_are_translated_in_one_call_each_in_its_own_size(
        tmp_path, capsys, runs, pictures):
    out = tmp_path / "out"
    call(runs["uapi"], *pictures, "--out", out)
    assert sorted(files_in(out)) == sorted(
        [f"uapi/translation/{name}.png" for name in SIZES]
        + [f"uapi/scale/{name}.{end}" for name in SIZES for end in ("npy", "png")]
        + ["scale.json"])
    for name, (width, height) in SIZES.items():
        for which in ("translation", "scale"):
            assert Image.open(out / "uapi" / which / f"{name}.png").size == (width, height)
        assert np.load(out / "uapi" / "scale" / f"{name}.npy").shape == (height, width)
    white = check_white_level(out, 3)
    said = capsys.readouterr()
    assert "d.png: cannot be read" in said.err and "skipped 1 of 4 pictures in all" in said.err
    assert f"white is {white:.1f} grey levels" in said.out


def test_the_programs_files_hold_what_translate_says(tmp_path, runs, pictures):
    call(runs["uapi"], *pictures, "--out", tmp_path / "out", "--device", "cpu")
    G, _ = translate.load_run(runs["uapi"], "cpu")
    translation, scale, _ = translate.translate(G, batch(grey(64, 64, seed=64)), "cpu")
    folder = tmp_path / "out" / "uapi"
    off = read_png(folder / "translation" / "b.png") - translation.squeeze().numpy()
    assert np.abs(off).max() <= 0.51
    assert np.allclose(np.load(folder / "scale" / "b.npy"), scale.squeeze(), rtol=1e-4)


def test_a_run_given_as_a_dot_has_its_folders_name(monkeypatch, tmp_path, runs, pictures):
    monkeypatch.chdir(runs["uapi"])
    call(".", *pictures, "--out", tmp_path / "out")
    found = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert found == ["scale.json", "uapi"], f"Sec. 4.4: OUT/RUN/ of the run . is {found}, not uapi"


def test_a_run_without_scale_leaves_translations_only(tmp_path, capsys, runs, pictures):
    lam0 = saved(tmp_path / "lam0", nets.UNet(width=1), lam=0.0)
    for folder in (runs["pi"], lam0):
        out = tmp_path / f"out_{folder.name}"
        call(folder, *pictures, "--out", out)
        assert sorted(files_in(out)) == sorted(f"{folder.name}/translation/{name}.png"
                                               for name in SIZES)
        assert "white" not in capsys.readouterr().out


def test_an_out_that_belongs_to_another_call_is_refused_and_stays_as_it_is(
        tmp_path, runs, pictures):
    """Else old pictures of scales would have another white level than scale.json says."""
    used, other, folder = (tmp_path / name for name in ("used", "other", "with_a_run"))
    call(runs["uapi"], *pictures, "--out", used)
    call(runs["pi"], *pictures, "--out", other)
    (folder / "uapi").mkdir(parents=True)
    (folder / "uapi" / "checkpoint.pt").write_text("somebody's")
    for which, out, named in (("uapi", used, used / "scale.json"), ("pi", used, "scale.json"),
                              ("pi", other, other / "pi"), ("uapi", folder, folder / "uapi")):
        before = files_in(tmp_path)
        error = refused(call, runs[which], *pictures, "--out", out)
        assert str(named) in error and "choose another --out" in error, error
        assert files_in(tmp_path) == before, f"Sec. 4.4: --out {out} was refused, but changed"
    call(runs["uapi"], *pictures, "--out", other)  # beside a run without scales there is room
    check_white_level(other, 3)


def test_two_pictures_of_one_name_are_refused_before_one_takes_the_others_place(
        tmp_path, runs, pictures):
    Image.fromarray(tiny_slices().input[0]).save(tmp_path / "b.jpg")
    words = [runs["uapi"], *pictures, tmp_path / "b.jpg", "--out", tmp_path / "out"]
    error = refused(call, *words)
    assert "has the same name" in error and "two calls with two --out" in error, error
    assert str(pictures[1] / "b.png") in error and str(tmp_path / "b.jpg") in error, error
    assert not (tmp_path / "out").exists()
    # named twice
    call(runs["uapi"], *pictures, pictures[1] / "b.png", "--out", tmp_path / "out")
    assert "uapi/translation/b.png" in files_in(tmp_path / "out")


def test_a_run_given_as_a_picture_is_refused(tmp_path, runs, pictures):
    for words in ([runs["pi"]], [*pictures, runs["pi"]], [runs["pi"], *pictures]):
        error = refused(call, runs["uapi"], *words, "--out", tmp_path / "out")
        assert f"{runs['pi']}: is a run" in error and "one run" in error, error
        assert not (tmp_path / "out").exists()


def test_names_that_would_meet_in_one_file_and_runs_are_no_pictures():
    """As the two tests above, without the program."""
    with tempfile.TemporaryDirectory() as root:
        root = Path(root)
        (root / "run").mkdir()
        for name in ("run/a.png", "a.png"):
            Image.fromarray(grey(9, 9)).save(root / name)
        read = lambda *paths: dict(translate.read_pictures(paths))
        error = refused(read, root / "a.png", root / "run")
        assert "has the same name" in error and "two calls with two --out" in error, error
        assert list(read(root / "a.png", root / "a.png")) == ["a"], "named twice, it is one picture"
        (root / "run" / "checkpoint.pt").write_text("weights")
        error = refused(read, root / "run")
        assert f"{root / 'run'}: is a run" in error, error


def test_files_of_another_call_are_not_written_over():
    """As a test above, without the program."""
    for used in ("scale.json", "same/translation/a.png"):
        with tempfile.TemporaryDirectory() as out:
            (Path(out) / used).parent.mkdir(parents=True, exist_ok=True)
            (Path(out) / used).write_text("another call's")
            before = files_in(Path(out))
            error = refused(translate.write_translations, [("a", grey(64, 64))],
                            {"same": run_of(toy(1.0))}, Path(out), "cpu")
            assert str(Path(out) / used.split("/")[0]) in error and "another --out" in error, error
            assert files_in(Path(out)) == before, f"{used}: there already, refused, but changed"


def test_read_pictures_gives_them_one_by_one_in_order():
    with tempfile.TemporaryDirectory() as root, contextlib.redirect_stderr(io.StringIO()) as said:
        root = Path(root)
        (root / "folder").mkdir()
        expected = {"z": grey(20, 30, seed=1), "a": grey(30, 20, seed=2), "m": grey(9, 9, seed=3)}
        for name, folder in (("z", root), ("a", root / "folder"), ("m", root / "folder")):
            Image.fromarray(expected[name]).save(folder / f"{name}.png")
        (root / "folder" / "bad.png").write_text("text")
        (root / "folder" / "notes.txt").write_text("text")
        found = dict(translate.read_pictures([root / "z.png", root / "folder"]))
    assert list(found) == ["z", "a", "m"], f"Sec. 4.4: {list(found)} instead of z, a, m"
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    assert "bad.png: cannot be read" in said.getvalue() and "notes.txt" in said.getvalue()


def test_wrong_use_ends_in_one_sentence_and_leaves_nothing_behind(
        monkeypatch, tmp_path, runs, pictures):
    text, empty, file, nothing = (tmp_path / name for name in ("text.png", "empty", "file", "none"))
    text.write_text("not a picture")
    empty.mkdir()
    file.write_text("a file")
    monkeypatch.chdir(empty)  # where a default --out would lie
    run, out = runs["uapi"], tmp_path / "out"
    before = files_in(tmp_path)
    for words, sentence in (([], "required: RUN, PICTURE"),
                            ([run], "required: PICTURE"),
                            ([run, text], "text.png: cannot be read as an image"),
                            ([run, text, "--out", out], "text.png: cannot be read as an image"),
                            ([run, nothing, "--out", out], f"{nothing}: cannot be read"),
                            ([run, empty, "--out", out], f"{empty}: no picture inside"),
                            ([run, *pictures, "--out", file], f"{file}"),
                            ([run, *pictures, "--out", file / "out"], f"{file / 'out'}"),
                            ([run, *pictures, "--out", out, "--device", "toaster"],
                             "--device toaster"),
                            ([run, *pictures, "--out", out, "--device", "meta"], "--device meta"),
                            ([nothing, *pictures, "--out", out], "no such checkpoint"),
                            ([empty, *pictures, "--out", out], "no such checkpoint"),
                            ([run, *pictures, "--data", "phantom", "--out", out], "--data")):
        error = refused(call, *words)
        assert sentence in error, f"{words}: says {error!r}, not {sentence!r}"
        assert files_in(tmp_path) == before, f"{words}: left {files_in(tmp_path).keys()}"
        assert not out.exists() and not list(empty.iterdir()), f"{words}: left a folder behind"
