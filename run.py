"""What a run leaves behind and how it ends; no loss, no network and no optimiser's step is in here.

    python run.py RUN [RUN ...]    says where runs stand and draws their curves: curves.png

It is used as `import run`: whatever names `run.` in a loop is machinery, and the rest is the paper
and plain PyTorch. At a first reading, skip this file but for decay_rates().
"""
import argparse
import ctypes
import errno
import json
import math
import os
import re
import shlex
import signal
import sys
import zipfile
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from statistics import fmean

import torch
from matplotlib.figure import Figure
from torch import distributed
from torch.nn.utils import parameters_to_vector, vector_to_parameters

CHECKPOINTS = ("checkpoint.pt", "checkpoint_before.pt")
CONTENTS = {"config": dict, "step": int, "seconds": float, "networks": dict, "opt_G": dict,
            "opt_f": dict, "streams": dict}


# ---------------------------------------------------------------- one sentence, whole files

def fail(sentence):
    """Ends the program over what its user can mend: one sentence, exit code 2, no traceback."""
    one_line = " ".join(re.split(r"[ \t\r\n]+", sentence)).rstrip(". ")
    print(f"error: {printable(one_line)}.", file=sys.stderr)
    raise SystemExit(2)


def start(main):
    """Runs a program. Names that the output cannot show are escaped; Ctrl-C ends it with 130, and a
    reader that has gone (| head) with 141."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
    except KeyboardInterrupt:
        raise SystemExit(130)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing left to flush to
        raise SystemExit(141)


def printable(name):
    """Returns a name as it can be printed and drawn: what no font has is escaped, as are bytes that
    are no text, which Python keeps as lone surrogates."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(name))


def quoted(name):
    """Returns a name as it can be copied to a command line."""
    return shlex.quote(str(name))


def label(name):
    """Returns a name for matplotlib, to which $ is mathematics, and a first _ means no legend."""
    name = printable(name).replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name


def make_parser(description, **options):
    """Returns an argument parser whose complaints are one sentence, too."""
    parser = argparse.ArgumentParser(description=description, **options,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.error = lambda complaint: fail(f"{complaint}; see --help")
    return parser


def bounded(kind, least, most, check=lambda value: None):
    """Returns an argparse type: int or float, from least to most; check raises ValueError."""
    def read(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        try:
            if not least <= value <= most:
                name = "whole" if kind is int else "finite"
                raise ValueError(f"wants a {name} number from {least:g} to {most:g}, not {text}")
            check(value)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error))
        return value
    return read


def make_folder(path):
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(f"{path}: cannot be made into a folder ({error.strerror}); choose another one.")


def replace_file(path, write):
    """Writes a file whole or not at all: write(new) fills PATH.tmp, which is then renamed."""
    new = Path(f"{path}.tmp")
    try:
        if os.path.exists(path) and not os.path.isfile(path):
            raise OSError("it is a folder or a device")
        write(new)
        os.replace(new, path)
    except (OSError, RuntimeError) as error:  # torch.save meets a full disk with a RuntimeError
        reason = getattr(error, "strerror", None) or error
        fail(f"{path}: cannot be written ({reason}); make room or choose another folder.")
    finally:
        if os.path.isfile(new):
            new.unlink()


def save_png(path, figure, dpi=80):
    replace_file(path, lambda new: figure.savefig(new, dpi=dpi, format="png"))


def lock(path):
    """Opens a file that just one process can hold -> the open file, None where another holds it.
    The lock ends with the process, also when it is killed. OSError where files cannot be locked."""
    file = open(path, "a")
    try:
        if os.name == "nt":
            import msvcrt
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        return None
    return file


def progress(done, total, what):
    """Keeps one line up to date on a terminal; silent where the output goes to a file."""
    if sys.stderr.isatty() and is_first():
        end = "\n" if done == total else "\r"  # "\r": what is printed next overwrites it
        print(f"{what} {done}/{total}", end=end, file=sys.stderr, flush=True)


# ---------------------------------------------------------------- processes (torchrun), device

def join_processes(device):
    """Under torchrun: joins the other processes; all but the first fall silent."""
    if distributed.is_torchelastic_launched():
        import torch.distributed.nn  # imported later, its defaults would keep the group alive
        if cuda := torch.device(device).type == "cuda":
            torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        distributed.init_process_group("nccl" if cuda else "gloo")
        if not is_first():
            sys.stdout = open(os.devnull, "w")


def leave_processes():
    """Waits for the others and parts; one that ends early could take down those still writing."""
    if distributed.is_initialized():
        distributed.barrier()
        distributed.destroy_process_group()


def is_first():
    """Is true for the one process that prints, logs and saves."""
    return not distributed.is_initialized() or distributed.get_rank() == 0


def my_share(*drawn):
    """Returns this process's share of each batch (or Phi) that all have drawn alike. N processes
    with b/N images each then see what one with b images sees; without torchrun all."""
    if not distributed.is_initialized():
        return drawn
    rank, count = distributed.get_rank(), distributed.get_world_size()
    return [type(batch)(*my_share(*batch)) if isinstance(batch, tuple) else batch.chunk(count)[rank]
            for batch in drawn]


def average_gradients(networks):
    """Every gradient becomes its mean over the processes. By hand: DistributedDataParallel hooks
    into backward passes, and the penalty's second one would set its hooks off twice."""
    if distributed.is_initialized():
        gradients = [w.grad for w in networks.parameters() if w.grad is not None]
        flat = parameters_to_vector(gradients)
        distributed.all_reduce(flat)
        vector_to_parameters(flat / distributed.get_world_size(), gradients)


def pick_device(name):
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if name not in ("cpu", "mps") and torch.device(name).type != "cuda":
            raise RuntimeError  # torch knows more, which nobody has tried here
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError):  # torch without CUDA asserts
        fail(f"--device {name}: this machine has no such device, or no memory left on it; "
             "use --device cpu.")
    return name


def bf16(config):
    """Makes layers that are called inside run in bfloat16 with --bf16; else nothing changes."""
    kind = torch.device(config["device"]).type
    return torch.autocast(kind, torch.bfloat16, enabled=config["bf16"])


def decay_rates(config, step, opt_G, opt_f):
    """Lets both learning rates fall linearly to 0 over the last part of a run; Sec. 3.4 has F = 0.

    rate = its flag times min( 1, (N - step) / (F N) ),   F = --decay, N = --updates
    """
    N, F = config["updates"], config["decay"]
    factor = min(1, (N - step) / (F * N)) if F > 0 else 1
    for optimizer, rate in ((opt_G, config["lr_g"]), (opt_f, config["lr_c"])):
        for group in optimizer.param_groups:
            group["lr"] = rate * factor


def warn_of_slow_bf16(config):
    """Warns that torch has no quick bfloat16 layers without AVX-512: there an update took 24 times
    as long as in float32 (results/README.md)."""
    slow = torch.backends.cpu.get_cpu_capability() == "AVX2"
    if slow and config["bf16"] and config["device"] == "cpu":
        print("note: this CPU has no AVX-512, and --bf16 is many times slower here than float32; "
              "leave it out")


def reuse_freed_memory():
    """Tells glibc to keep what is freed. It gives blocks above 32 MB back to the system and waits
    for fresh pages at the next use: at 256x256 a third of the time on a CPU."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if hasattr(libc, "mallopt"):
        libc.mallopt(-4, 0)   # M_MMAP_MAX: no block gets a mapping of its own
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: what was freed is never given back


# ---------------------------------------------------------------- log and curves

def is_due(step, n_updates, times, signal=0):
    """Is true, in the process that writes, at updates 1, 10, 100, at the last, after a signal, and
    about so many times in between, evenly."""
    evenly = step * times // n_updates > (step - 1) * times // n_updates
    return is_first() and (step in (1, 10, 100) or evenly or signal > 0)


def log(folder, config, step, seconds, **values):
    """Prints one line and appends a fuller one to log.jsonl; under torchrun of the first process's
    share of the batch. A scale that nothing trains is null; ugac's maps are then left out."""
    n_updates = config["updates"]
    images = step * (config["critic_steps"] + 1) * config["batch"] / seconds
    row = {"step": step, "seconds": round(seconds, 2), "images_per_second": round(images, 1),
           "scale_mean": None, "scale_min": None}
    row |= {name: value.item() for name, value in values.items()
            if config["lam"] > 0 or not name.startswith(("scale", "alpha", "beta"))}
    with open(folder / "log.jsonl", "a") as file:
        file.write(json.dumps(row) + "\n")
    elapsed = timedelta(seconds=int(seconds))
    remaining = timedelta(seconds=int(seconds / step * (n_updates - step)))
    numbers = "  wasserstein {wasserstein:.3f}  slope {slope:.3f}  residual {residual:.4f}"
    if row["scale_mean"] is not None:
        numbers += "  scale {scale_mean:.4f} (min {scale_min:.4f})"
    print(f"update {step}/{n_updates}  elapsed {elapsed}  remaining {remaining}"
          f"{numbers.format(**row)}  {images:.0f} images/s", flush=True)


def read_log(folder):
    """Reads the rows of log.jsonl, but for a last line that a killed run has cut short."""
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().split("\n")[:-1]]


def plot_curves(folders, path):
    """Draws three panels. The Wasserstein estimate's early numbers are a hundred times the later
    ones, so the height of its panel is that of the last nine tenths."""
    figure, later = Figure(figsize=(14, 4.2), layout="constrained"), [0]
    axes = dict(zip(("wasserstein", "slope", "residual"), figure.subplots(1, 3)))
    axes["slope"].axhspan(0.9, 1.5, color="green", alpha=.1, label="healthy in the end")
    axes["residual"].axhline(1 / 127.5, color="gray", linestyle="-.", label="floor of the scale")
    for k, folder in enumerate(folders):
        rows, name = read_log(folder), label(folder.resolve().name)
        steps = [row["step"] for row in rows]
        later += [row["wasserstein"] for row in rows if row["step"] > steps[-1] / 10]
        for panel, ax in axes.items():
            ax.plot(steps, [row[panel] for row in rows], color=f"C{k}", label=name)
        if rows[-1]["scale_mean"] is not None:
            scale = [row["scale_mean"] for row in rows]
            axes["residual"].plot(steps, scale, "--", color=f"C{k}", label=f"{name}, scale")
    axes["wasserstein"].set(title="Wasserstein estimate (early peaks cut off): should fall",
                            ylim=(min(later), 1.05 * max(later) + 1e-3))
    axes["slope"].set(title="slope of the critic: should settle near 1", yscale="log")
    axes["residual"].set(title="residual (solid), scale (dashed): should meet", yscale="log")
    for ax in axes.values():
        ax.set_xlabel("generator updates")
        ax.legend(fontsize=8)
    save_png(path, figure)


# ---------------------------------------------------------------- checkpoints

def save(folder, config, step, seconds, state):
    """Writes checkpoint.pt whole or not at all and keeps the one before; tensors and plain types
    only. Weights beyond all use are not saved: no run could go on from them."""
    networks = {**state.theta, **state.omega}
    for name, network in networks.items():
        if not all(w.abs().max() < 1e6 for w in network.parameters()):  # NaN is below nothing
            fail_diverged(folder, f"update {step}: the weights of {name} are above 1e6 or not "
                                  "finite")
    checkpoint = {"config": config, "step": step, "seconds": seconds,
                  "networks": {name: network.state_dict() for name, network in networks.items()},
                  "opt_G": state.opt_G.state_dict(), "opt_f": state.opt_f.state_dict(),
                  "streams": {name: stream.get_state() for name, stream in state.streams.items()}}

    def write(new):
        write_checkpoint(checkpoint, new)
        if (folder / "checkpoint.pt").exists():
            os.replace(folder / "checkpoint.pt", folder / "checkpoint_before.pt")
    replace_file(folder / "checkpoint.pt", write)


def write_checkpoint(checkpoint, path):
    with open(path, "wb") as file:  # torch.save itself opens no path that is not UTF-8
        torch.save(checkpoint, file)


def load_checkpoint(folder, check_settings=lambda config: None):
    """Reads FOLDER/checkpoint.pt, see save(), or the one before it where that is damaged or
    missing. weights_only: a stranger's file cannot run code; check_settings raises ValueError."""
    faults = []
    for path in (Path(folder) / name for name in CHECKPOINTS):
        try:
            with zipfile.ZipFile(path) as archive:  # torch.load reads no checksum
                if any(e.external_attr & 16 for e in archive.infolist()) or archive.testzip():
                    raise ValueError("checksums do not agree")
            with open(path, "rb") as file:
                checkpoint = torch.load(file, map_location="cpu", weights_only=True)
            if any(type(checkpoint[name]) is not kind for name, kind in CONTENTS.items()):
                raise ValueError("contents are of another type")
            check_settings(checkpoint["config"])
        except (FileNotFoundError, NotADirectoryError):
            faults.append(f"{path}: no such checkpoint; give the folder of a run of train.py")
        except Exception as error:  # zipfile, torch and pickle raise errors of all kinds
            reason = error if type(error) is ValueError else type(error).__name__
            faults.append(f"{path}: is no checkpoint of train.py, or damaged ({reason})")
        else:
            if faults:
                print(f"{faults[0]}; taking {path}, the one before it", file=sys.stderr)
            return checkpoint
    fail(faults[0])


def load_states(parts, states):
    """Puts saved states into networks, optimisers or streams of the same names."""
    for name, part in parts.items():
        load = part.set_state if isinstance(part, torch.Generator) else part.load_state_dict
        try:
            load(states[name])
        except (RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
            fail(f"the checkpoint's {name} does not fit --method, --width and --critic-width "
                 f"({type(error).__name__}); with --init give those in that run's config.json, "
                 "else the file was changed by hand.")


# ---------------------------------------------------------------- how a run begins and ends

def begin(folder, config, checkpoint):
    """Makes a run's folder ready: drops log lines after the checkpoint, or cut short, which will
    be written again, and saves the checkpoint once more, where a damaged one may lie."""
    if not is_first():
        return
    log_file, last = folder / "log.jsonl", checkpoint["step"] if checkpoint else 0
    if checkpoint and load_checkpoint(folder)["step"] != last:  # since it was read
        fail(f"{folder}: another process went on with it meanwhile; give the command once more.")
    try:
        rows = read_log(folder) if log_file.exists() else []
        lines = [json.dumps(row) + "\n" for row in rows if row["step"] <= last]
    except (ValueError, LookupError, TypeError):
        fail(f"{log_file}: was not written by train.py, or is damaged; move it away, or choose "
             "another --out.")
    text = json.dumps(config, indent=2) + "\n"
    replace_file(folder / "config.json", lambda new: new.write_text(text))
    if log_file.exists():
        replace_file(log_file, lambda new: new.write_text("".join(lines)))
    if checkpoint:
        replace_file(folder / "checkpoint.pt", lambda new: write_checkpoint(checkpoint, new))


@contextmanager
def claim_folder(folder):
    """Makes a folder; inside, no other run can write there. The claim is a lock on FOLDER/.claim,
    so that it ends with its process. The file stays."""
    make_folder(folder)
    claim = None
    if is_first():
        try:
            claim = lock(folder / ".claim")
        except OSError as error:
            fail(f"{folder}: cannot be written ({error.strerror}); choose another --out.")
        if not claim:
            fail(f"{folder}: another run writes there now; wait for its end, or choose another "
                 "--out.")
    try:
        yield
    finally:
        if claim:
            claim.close()


@contextmanager
def catching_signals():
    """Inside, SIGINT and SIGTERM are noted in the list it gives, so that the update in hand can be
    finished and saved; the same signal once more ends the program at once."""
    caught = []

    def note(number, _):
        caught.append(number)
        signal.signal(number, signal.SIG_DFL)
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def signal_received(caught):
    """Returns the signal that any process has got, 0 for none: all stop after one update."""
    number = torch.tensor(max(caught, default=0))
    if distributed.is_initialized():
        number = number.to("cuda" if distributed.get_backend() == "nccl" else "cpu")
        distributed.all_reduce(number, distributed.ReduceOp.MAX)
    return int(number)


def end_after_signal(folder, step, number):
    if is_first():
        print(f"stopped after update {step}; go on with: "
              f"python train.py --resume {quoted(folder)}", file=sys.stderr)
    leave_processes()
    raise SystemExit(128 + number)


def fail_unless_finite(folder, step, **risks):
    """Ends the run where a risk is NaN or infinite. Looking waits for the device, so it is done
    once per generator update: a critic's NaN stays a NaN."""
    broken = [name for name, risk in risks.items() if not torch.isfinite(risk)]
    if broken:
        fail_diverged(folder, f"update {step}: {', '.join(broken)} is not finite")


def fail_diverged(folder, what):
    """Ends a run whose losses or weights diverged; says which saved state is left."""
    saved = "no checkpoint was written yet"
    if os.path.exists(folder / "checkpoint.pt"):  # False, not an error, where it is forbidden
        saved = (f"{folder}/checkpoint.pt holds the last saved state, and --init {quoted(folder)} "
                 "starts a new run from its networks")
    fail(f"{what}; {saved}; choose a smaller --lr-g, --lr-c or --lam.")


@contextmanager
def memory_may_run_out(advice):
    """Ends the program with the advice where memory runs out inside; it is a decorator, too."""
    words = ("can't allocate memory", "out of memory", "ALLOC_FAILED")
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or any(word in str(error) for word in words):
            fail(f"out of memory: {advice}.")
        raise


def explain_failure(error, folder):
    """Ends over a full disk or a lack of memory, which users can mend; all else is a bug of
    ours."""
    exists = os.path.exists(folder / "checkpoint.pt")
    state = "holds the last saved state" if exists else "was not written yet"
    saved = f"{folder}/checkpoint.pt {state}"
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
        where, reason = error.filename or folder, error.strerror or error
        fail(f"{where}: cannot be written ({reason}); {saved}; make room and go on.")
    with memory_may_run_out(f"choose a smaller --batch, --size or --width; {saved}"):
        raise error


# ---------------------------------------------------------------- where runs stand

def main():
    parser = make_parser(__doc__)
    parser.add_argument("runs", nargs="+", metavar="RUN", help="folders that train.py has written")
    folders = [Path(folder) for folder in parser.parse_args().runs]
    names = ("data", "method", "size", "lam", "seed", "updates")
    logged = ("wasserstein", "slope", "residual", "scale_mean")
    for folder in folders:
        checkpoint = load_checkpoint(folder, lambda config: [config[name] for name in names])
        try:
            rows = read_log(folder)
            if any({"step", *logged}.difference(row) for row in rows):
                raise ValueError
            last = rows[-1]
            tenth = [row for row in rows if row["step"] > 0.9 * last["step"]]
            means = {name: fmean(row[name] for row in tenth)
                     for name in logged if last[name] is not None}
        except (OSError, ValueError, LookupError, TypeError):
            fail(f"{folder}/log.jsonl: is missing, empty or damaged; give the folder of a run.")
        print(f"{folder}: " + ", ".join(f"{name} {checkpoint['config'][name]}" for name in names))
        step, n_updates = checkpoint["step"], checkpoint["config"]["updates"]
        stands = "finished at" if step == n_updates else "can go on from"
        print(f"  {stands} update {step} of {n_updates}, whose checkpoint is whole")
        for title, row in (("last line", last), ("mean of the last tenth", means)):
            values = (f"{name} {value:.4g}" for name, value in row.items() if value is not None)
            print(f"  {title}: " + "  ".join(values))
    plot_curves(folders, Path("curves.png"))
    print("wrote curves.png")


if __name__ == "__main__":
    start(main)
