"""A trained run at work (Sec. 4.4): pictures in, translations and scales out.

    python translate.py runs/uapi slice.png folder/ --out translated

It translates files, and all files in folders, at the size of the run's slices,
and brings each back to its own size. A translation lies in
OUT/RUN/translation/NAME.png, its scale in OUT/RUN/scale/NAME.npy (grey levels)
and NAME.png. OUT/scale.json holds the scale that is white in all such pictures.
A run that trains no scale leaves translations only.
"""
import io
import json
import os
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import run
from baselines import make_generator, trains_scale
from data import ENDINGS, images_in, read_grey, say_skipped, to_square, to_unit
from train import check_settings
from uncertainty import expected_residual

BATCH = 32


def load_run(folder, device):
    """Reads a run's generator and its settings."""
    checkpoint = run.load_checkpoint(folder, check_settings)
    config = checkpoint["config"]
    G = make_generator(config["method"], config["width"])
    run.load_states({"G": G}, checkpoint["networks"])
    return G.to(run.pick_device(device)).eval(), config


@torch.no_grad()
def translate(G, x, device):
    """Translates a tensor x [n,1,d,d] in grey levels -> image in [0,255]; alpha in grey levels,
    the scale itself but for ugac; beta, 1 but for ugac; on the CPU. ValueError for x of another
    shape or range."""
    if x.ndim != 4 or x.shape[1] != 1 or x.shape[2] != x.shape[3] or not len(x):
        raise ValueError(f"translate: wants grey images [n,1,d,d], got {list(x.shape)}")
    low, high = float(x.min()), float(x.max())
    if not (0 <= low and high <= 255) or (high <= 1 and (x != x.round()).any()):
        raise ValueError(f"translate: wants grey levels 0 to 255, got {low:g} to {high:g}")
    parts = [[part.cpu() for part in G(to_unit(batch.to(device)))] for batch in x.split(BATCH)]
    translation, alpha, *beta = [torch.cat(part) for part in zip(*parts)]
    beta = beta[0] if beta else torch.ones(()).expand_as(alpha)
    return 127.5 * translation + 127.5, 127.5 * alpha, beta


def read_pictures(paths):
    """Reads files, and folders of files -> (name, uint8 [h,w]) one by one. What cannot be read is
    named and skipped; the program ends where nothing can, where two have one name, or at a run."""
    by_name, bad = {}, []
    for given in map(Path, paths):
        if os.path.exists(given / "checkpoint.pt"):
            run.fail(f"{given}: is a run, not a folder of pictures; a call translates by one run.")
        for path in images_in(given).values() if os.path.isdir(given) else [given]:
            if by_name.setdefault(path.stem, path) != path:
                run.fail(f"{path}: {by_name[path.stem]} has the same name, which would name both "
                         "translations; give them in two calls with two --out.")
    for done, (name, path) in enumerate(by_name.items(), 1):
        run.progress(done, len(by_name), "translating")
        try:
            yield name, read_grey(path)
        except ValueError as error:
            bad.append(error)
    if len(bad) == len(by_name):
        run.fail(str(bad[0]) if bad else f"{', '.join(map(str, paths))}: no picture inside; "
                                         f"files end in {', '.join(ENDINGS)}")
    say_skipped(bad, len(by_name), "pictures")


def own_size(values, shape):
    """Brings [1,1,d,d] of a picture that to_square() has padded back to its own [h,w]."""
    values, (h, w), side = values.squeeze().numpy(), shape, max(shape)
    top, left = (side - h) // 2, (side - w) // 2
    square = np.asarray(Image.fromarray(values).resize((side, side), Image.Resampling.BICUBIC))
    return square[top:top + h, left:left + w].clip(values.min(), values.max())


def write_png(path, grey):
    picture = Image.fromarray(np.rint(grey).astype(np.uint8))
    run.replace_file(path, lambda new: picture.save(new, format="png"))


def write_npy(path, values):
    packed = io.BytesIO()
    np.save(packed, values)
    run.replace_file(path, lambda new: new.write_bytes(packed.getvalue()))


def write_translations(pictures, runs, out, device):
    """Translates pictures (name, uint8 [h,w]) by runs {name: (G, settings)} into the files that the
    top of this file describes. The white level holds for one call, so OUT must be new to it."""
    for used in (out / "scale.json", *(out / name for name in runs)):
        if os.path.exists(used):
            run.fail(f"{used}: belongs to another call, whose white level would be lost, or to a "
                     "run; choose another --out.")
    scales = {}
    for name, picture in pictures:
        for which, (G, config) in runs.items():
            x = torch.from_numpy(to_square(picture, config["size"])).float()[None, None]
            translation, alpha, beta = translate(G, x, device)
            run.make_folder(out / which / "translation")
            write_png(out / which / "translation" / f"{name}.png",
                      own_size(translation, picture.shape))
            if trains_scale(config):
                scale = own_size(expected_residual(alpha, beta), picture.shape)
                run.make_folder(out / which / "scale")
                write_npy(out / which / "scale" / f"{name}.npy", scale)
                scales[out / which / "scale" / name] = float(scale.max())
    print(f"wrote to {', '.join(str(out / run.printable(which)) for which in runs)}")
    if scales:
        white = max(scales.values())
        for path in scales:  # only now the white level is known
            write_png(f"{path}.png", np.load(f"{path}.npy") * (255 / white))
        text = json.dumps({"white_level_in_grey_levels": white}) + "\n"
        run.replace_file(out / "scale.json", lambda new: new.write_text(text))
        print(f"white is {white:.1f} grey levels in all pictures of scales ({out}/scale.json)")


@run.memory_may_run_out("give --device cpu, or fewer pictures")
def main():
    parser = run.make_parser(__doc__)
    flag = parser.add_argument
    flag("run", metavar="RUN", help="folder that train.py has written")
    flag("pictures", nargs="+", metavar="PICTURE", help="pictures and folders of them (Sec. 4.4)")
    flag("--out", default="translated", metavar="DIR", help="default: translated (Sec. 4.4)")
    flag("--device", help="cuda, cpu or mps; default: cuda where there is one, else cpu")
    args = parser.parse_args()
    run.reuse_freed_memory()
    device = run.pick_device(args.device)
    runs = {Path(args.run).resolve().name: load_run(args.run, device)}
    write_translations(read_pictures(args.pictures), runs, Path(args.out), device)


if __name__ == "__main__":
    run.start(main)
