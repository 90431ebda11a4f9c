"""benchmark.py times what train.py does: its update moves the weights as the loop itself, and its FLOP are those of the layers."""
import torch

import benchmark
import train
from data import to_device
from test_train import TINY, tiny_slices


def test_the_benchmarks_update_is_the_loops(tmp_path, monkeypatch):
    for picture in ("draw_samples", "draw_curves"):
        monkeypatch.setattr(train, picture, lambda *_: None)
    slices = tiny_slices()
    G, f = train.train(TINY | {"updates": 1}, slices._replace(target=slices.input), tmp_path)
    state = train.build(TINY)
    benchmark.update("ours", state, to_device(slices.input, "cpu"), TINY)
    for ours, theirs in ((G, state[0]["G"]), (f, state[1]["f"])):
        assert all(torch.equal(u, v) for u, v in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_risks_are_the_references_and_flop_are_counted_as_by_hand():
    found = benchmark.measure(TINY | {"critic_steps": 1, "repeats": 1})  # ends the program where the reference finds other risks
    assert found["counted / by hand"] == 1
    parts = sum(found[f"seconds, {part}"] for part in benchmark.PARTS) + found["seconds, rest"]
    assert abs(parts - found["seconds per update"]) < 1e-9
