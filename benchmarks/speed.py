"""How fast, as ratios measured in one run: `python benchmarks/speed.py all`.

Writes results/speed.md and .json, a section a command, and docs/images/speed.png.
"""

from __future__ import annotations

import json
import logging
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import click
import matplotlib
import numpy as np
import torch
from _processes import in_a_process, peak_mib
from _tables import RESULTS, markdown, rounded
from torch import Tensor

from nullspace_unlearn.edit import Edit
from nullspace_unlearn.erasers import hull
from nullspace_unlearn.evaluate.fused import count_right, predict_edits
from nullspace_unlearn.linalg import unit

ROOT = Path(__file__).parents[1]
IMAGENET = Path("data") / "clip_vitb32" / "imagenet_4shot.npz"
REPEATS = 5

data_option: Callable[[Any], Any] = click.option(
    "--data",
    type=click.Path(path_type=Path),
    default=ROOT.parent / "shared",
    show_default="../shared beside the checkout",
)


@click.group()
@click.option("--threads", default=1, show_default=True, help="Of torch.")
def main(threads: int) -> None:
    """Measure speed."""
    logging.getLogger().setLevel(logging.ERROR)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # for the processes started from here
    torch.set_num_threads(threads)


# 1,000 edits.


def imagenet(data: Path) -> tuple[Tensor, Tensor, Tensor]:
    """Images `[4000, 512]` float32, labels, unit text prototypes `[1000, 512]` float64."""
    path = data / IMAGENET
    if not path.is_file():
        raise click.UsageError(f"no ImageNet embeddings: put them at {path}")
    with np.load(path) as arrays:
        images = torch.from_numpy(arrays["image_features"].astype(np.float32))
        text = torch.from_numpy(arrays["text_features"].astype(np.float64))
        labels = torch.from_numpy(arrays["labels"].astype(np.int64))
    return images, labels, unit(text)


def every_class(text: Tensor) -> Edit:
    """One edit a class, each keeping all others."""
    stays = ~torch.eye(len(text), dtype=torch.bool, device=text.device)
    return hull(text[:, None], text, keep_mask=stays)


def seconds(work: Callable[[], Any], device: str = "cpu") -> float:
    """Wall time of one call."""
    started = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


@main.command()
@data_option
@click.option("--device", default="cpu", show_default=True, help="Where ours runs: cpu or cuda.")
def edits(data: Path, device: str) -> None:
    """1,000 single-class edits, each judged on 4,000 images x 1,000 classes."""
    images, labels, text = imagenet(data)
    n = len(text)
    placed = [part.to(device) for part in (images, labels, text)]

    def ours() -> tuple[Edit, Tensor]:
        made = every_class(placed[2])
        return made, count_right(placed[0], placed[2], placed[1], None, (n, 1), made)

    made, _ = ours()  # warm
    derive, whole, leace = [], [], dict[str, list[float]]()
    for turn in range(REPEATS):  # in turn, so that a drift of the machine's speed meets all alike
        derive.append(seconds(lambda: every_class(placed[2]), device))
        whole.append(seconds(ours, device))
        for rows, found in _leace(images, labels, text, turn).items():
            leace.setdefault(rows, []).extend(found)

    # The plain loop: one operator at a time, all scores again, in float32, where it is fastest.
    per_edit, scores32 = [], text.float().mT.contiguous()
    plain: list[Tensor] = []
    looped: list[Edit] = []
    for c in range(n):
        others = torch.arange(n) != c

        def one(c: int = c, others: Tensor = others) -> None:
            edit = hull(text[c : c + 1], text[others])
            plain.append(((images @ edit.operator().float()) @ scores32).argmax(-1))
            looped.append(edit)

        per_edit.append(seconds(one))
    loop = sum(per_edit)

    # Equal predictions: the loop's own edits in float64, where rounding decides nothing but ties.
    named = predict_edits(*placed[::2], made).cpu()
    wrong = differing = differing32 = 0
    for c in range(n):
        scores = looped[c].apply(images.double(), None) @ text.mT
        best = scores.gather(-1, named[c][:, None])[:, 0]
        # Names that are one vector tie, and either may be named.
        wrong += int((best < scores.amax(-1) - 1e-9).sum())
        differing += int((named[c] != scores.argmax(-1)).sum())
        differing32 += int((named[c] != plain[c]).sum())

    floor, rates = _floor(images, text)
    memory = in_a_process(_memory_of_edits, data)
    result = {
        "edits": n, "images": len(images), "classes": n, "device": device,
        "ours_s": statistics.median(whole), "ours_all_s": whole,
        "derive_s": statistics.median(derive), "loop_s": loop,
        "loop_median_edit_s": statistics.median(per_edit),
        "predictions": n * len(images), "wrong": wrong,
        "differ_from_float64_loop": differing, "differ_from_float32_loop": differing32,
        "concept_erasure_s": {k: n * statistics.median(v) for k, v in leace.items()},
        "peak_mib": memory, "floor_s": floor, "rates": rates,
    }  # fmt: skip
    result["times_faster_than_the_loop"] = loop / result["ours_s"]
    # Fits alone on both sides: the package's are not judged either.
    result["times_faster_than_concept_erasure"] = {
        k: v / result["derive_s"] for k, v in result["concept_erasure_s"].items()
    }
    result["times_the_floor"] = result["ours_s"] / floor
    save("edits" if device == "cpu" else f"edits-{device}", result)


def _leace(images: Tensor, labels: Tensor, text: Tensor, turn: int) -> dict[str, list[float]]:
    """Seconds of one fit of the concept-erasure package in float32, for a few classes."""
    from concept_erasure import LeaceEraser

    n = len(text)
    found: dict[str, list[float]] = {"text": [], "images": []}
    for c in range(turn, n, n // 6):
        is_it = torch.nn.functional.one_hot(torch.tensor(c), n).float()
        rows, concept = text.float(), (labels == c).float()
        found["text"].append(seconds(lambda r=rows, z=is_it: LeaceEraser.fit(r, z)))
        found["images"].append(seconds(lambda z=concept: LeaceEraser.fit(images, z)))
    return found


def _floor(images: Tensor, text: Tensor) -> tuple[float, dict[str, float]]:
    """Least seconds for what cannot be left out, at this machine's measured rates.

    Untouched scores; for each edit the amounts `z·read` and the moves `t·write`; the names in the
    metric, each forgotten name's products with all names once to find the nearest and once to prove
    that there is no better; the solve of the write. Then the best of a few classes an image and
    edit, of which at least one score must be read and one label written.
    """
    n, dim = text.shape
    square = torch.randn(1024, 1024, dtype=torch.float64)
    rate = 2 * 1024**3 / statistics.median(seconds(lambda: square @ square) for _ in range(9))
    much = torch.empty(1 << 25, dtype=torch.float64)
    copied = 2 * much.nbytes / statistics.median(seconds(much.clone) for _ in range(9))
    scores = 2 * len(images) * n * dim
    names = 2 * n * n * dim
    operations = 2 * scores + names + (3 * 2 * n * dim * dim) + 2 * names
    moved = len(images) * n * (8 + 8) + n * n * 8
    return operations / rate + moved / copied, {"gflop_s": rate / 1e9, "gbyte_s": copied / 1e9}


def _memory_of_edits(data: Path) -> float:
    images, labels, text = imagenet(data)
    count_right(images, text, labels, None, (len(text), 1), every_class(text))
    return peak_mib()  # of the whole process, torch and the data included


# `nsu erase` on a full-size model.


@main.command()
@click.option("--model", default="ViT-B-32", show_default=True)
def erase(model: str) -> None:
    """Where the time of `nsu erase` goes on a full-size model with random weights."""
    runs = [in_a_process(_erase_once, model) for _ in range(REPEATS)]
    result = {
        "model": model,
        "runs": runs,
        "share_of_the_rest": statistics.median(r["rest"] / r["total"] for r in runs),
        **{f"{k}_s": statistics.median(r[k] for r in runs) for k in runs[0]},
    }
    save("erase", result)


def _erase_once(model: str) -> dict[str, float]:
    import nullspace_unlearn.clip as clips
    from nullspace_unlearn.cli import nsu
    from nullspace_unlearn.clip import Clip

    spent = dict.fromkeys(("load", "prompts", "write"), 0.0)

    @contextmanager
    def timed(part: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        spent[part] += time.perf_counter() - started

    def spy(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            with timed(part):
                return function(*given, **named)

        return call

    with tempfile.TemporaryDirectory() as folder, mock.patch.multiple(
        Clip,
        encode_text=spy("prompts", Clip.encode_text),
        save=spy("write", Clip.save),
    ), mock.patch.object(clips, "load", spy("load", clips.load)):  # fmt: skip
        started = time.perf_counter()
        arguments = ["erase", "--model", model, "--class", "sports car", "--quiet", "--no-cache"]
        nsu.main([*arguments, "--output", f"{folder}/out"], standalone_mode=False)
        total = time.perf_counter() - started
    return {**spent, "total": total, "rest": total - sum(spent.values())}


# How time and memory grow.


def _hulls(data: Path, requests: int, names: int, images: int) -> dict[str, float]:
    """Derive and judge so many edits, on embeddings made from real ones."""
    real, _, text = imagenet(data)
    generator = torch.Generator().manual_seed(0)

    def more(rows: Tensor, n: int) -> Tensor:
        """As many rows as are asked for: the real ones, then mixtures of two."""
        first, second = (torch.randint(len(rows), (n,), generator=generator) for _ in range(2))
        share = torch.rand(n, 1, generator=generator, dtype=rows.dtype)
        mixed = unit(share * rows[first] + (1 - share) * rows[second])
        mixed[: len(rows)] = rows[:n]
        return mixed

    vocabulary, shown = more(text, names), more(real, images).half()
    asked = torch.arange(requests) * (len(text) // requests)
    stays = torch.ones(requests, names, dtype=torch.bool)
    stays[torch.arange(requests), asked] = False
    classes = text[:1000]
    labels = torch.zeros(images, dtype=torch.int64)
    before = peak_mib()
    started = time.perf_counter()
    made = hull(text[asked, None], vocabulary, keep_mask=stays)
    derived = time.perf_counter()
    count_right(shown, classes, labels, None, (len(classes), 1), made)
    judged = time.perf_counter()
    return {
        "requests": requests, "names": names, "images": images,
        "derive_s": derived - started, "judge_s": judged - derived,
        "above_the_data_mib": peak_mib() - before,
    }  # fmt: skip


AXES = {
    "requests": [1, 10, 100, 1000],
    "names": [1_000, 3_000, 10_000, 30_000, 100_000],
    "images": [1_000, 10_000, 100_000, 1_000_000],
}
AT = {"requests": 100, "names": 1_000, "images": 4_000}


@main.command()
@data_option
def curves(data: Path) -> None:
    """Time and memory as requests, kept names and images grow."""
    found: dict[str, list[dict[str, float]]] = {}
    for axis, values in AXES.items():
        found[axis] = []
        for value in values:
            at = AT | {axis: value}
            if axis == "images":
                at["requests"] = 10
            found[axis].append(in_a_process(_hulls, data, *at.values()))
    _draw(found)
    save("curves", {"points": found})


def _growth(rows: list[dict[str, float]], axis: str) -> float:
    """Exponent of time over the last factor of ten."""
    which = "judge_s" if axis == "images" else "derive_s"
    last = rows[-1]
    first = next(row for row in rows if row[axis] == last[axis] / 10)
    return float(np.log10(last[which] / first[which]))


def _draw(found: dict[str, list[dict[str, float]]]) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    for axis, (name, rows) in zip(axes, found.items(), strict=True):
        x = [row[name] for row in rows]
        axis.loglog(x, [row["derive_s"] for row in rows], "o-", label="derive, s")
        axis.loglog(x, [row["judge_s"] for row in rows], "s-", label="judge, s")
        memory = [max(row["above_the_data_mib"], 1) / 1024 for row in rows]
        axis.loglog(x, memory, "^--", color="grey", label="memory, GiB")
        which = "judge_s" if name == "images" else "derive_s"
        axis.loglog(x, [rows[-1][which] * v / x[-1] for v in x], ":", color="black", label="linear")
        axis.set_xlabel(name)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(ROOT / "docs" / "images" / "speed.png", dpi=120)
    plt.close(figure)


# Beside training.


@main.command()
def training() -> None:
    """The closed form against ADU until it forgets and keeps as much, on the bundled model."""
    import _peers as peers
    import _worlds as worlds

    world = worlds.bundled()
    rows = []
    for number, forget in enumerate(world.requests("domain")):
        closed = peers.run_closed(world, "gated, text", forget, 0)
        peer = peers.PEERS["bundled"]["adu"]
        trained = peers.run_trained(world, peer, forget, 0)
        enough = [e for e, h in enumerate(trained["validation"]) if h and h >= closed["h4"]]
        share = (enough[0] + 1) / trained["epochs"] if enough else 1.0
        rows.append(
            {
                "request": number, "closed_h": closed["h4"], "closed_s": closed["seconds"],
                "adu_h": trained["h4"], "adu_s": trained["seconds"] * share,
                "reached": bool(enough), "ratio": trained["seconds"] * share / closed["seconds"],
            }
        )  # fmt: skip
    save("training", {"rows": rows, "ratio": statistics.median(row["ratio"] for row in rows)})


# Stored embeddings.


@main.command()
@click.option("--rows", default=1_000_000, show_default=True)
@click.option("--ranks", default="3,100", show_default=True)
def stores(rows: int, ranks: str) -> None:
    """`nsu apply --embeddings` on unit rows of 512 float16, on two threads; and `Edit.apply`."""
    dim, found = 512, []
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as f:
        shape = rows, dim
        held = np.lib.format.open_memmap(f"{f}/store.npy", "w+", np.float16, shape)
        for start in range(0, rows, 10_000):
            some = random.standard_normal((min(10_000, rows - start), dim), dtype=np.float32)
            held[start : start + len(some)] = some / np.linalg.norm(some, axis=1, keepdims=True)
        del held
        for rank in map(int, ranks.split(",")):
            thin = (random.standard_normal((dim, rank)) / 60 for _ in range(2))
            Edit(*map(torch.from_numpy, thin)).save(f"{f}/{rank}.patch")
            store = in_a_process(_apply_to_store, f, rank)
            found.append(
                {"rank": rank, **store, "in_memory": in_a_process(_apply_in_memory, f, rank)}
            )
    save("stores", {"rows": rows, "dim": dim, "runs": found})


def _apply_to_store(folder: str, rank: int) -> dict[str, float]:
    """Wall and processor seconds, and peak memory, of the command as a shell runs it."""
    # It tells its own peak: that of a child begins with what its parent held.
    code = (
        "import atexit, pathlib\n"
        "atexit.register(lambda: print(pathlib.Path('/proc/self/status').read_text()))\n"
        "from nullspace_unlearn.cli import main\n"
        "main()"
    )
    files = [f"{folder}/{rank}.patch", "--embeddings", f"{folder}/store.npy"]
    command = [sys.executable, "-c", code, "apply", *files, "--output", f"{folder}/{rank}.npy"]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    started = time.perf_counter()
    told = subprocess.run(
        [*command, "--quiet"], check=True, env=environment, capture_output=True, text=True
    ).stdout
    wall = time.perf_counter() - started
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    peak = next(line for line in told.splitlines() if line.startswith("VmHWM"))
    return {
        "wall_s": wall,
        "processor_s": used.ru_utime + used.ru_stime,
        "peak_mib": int(peak.split()[1]) / 1024,
    }


def _apply_in_memory(folder: str, rank: int) -> dict[str, float]:
    """The same of `Edit.apply` in float64, on an array that is in memory already."""
    edit, rows = Edit.load(f"{folder}/{rank}.patch"), np.load(f"{folder}/store.npy")
    before, started, used = peak_mib(), time.perf_counter(), time.process_time()
    edit.apply(rows)
    return {
        "wall_s": time.perf_counter() - started,
        "processor_s": time.process_time() - used,
        "above_the_data_mib": peak_mib() - before,
    }


@main.command(name="all")
@data_option
@click.pass_context
def everything(context: click.Context, data: Path) -> None:
    """Every section in turn."""
    context.invoke(edits, data=data, device="cpu")
    context.invoke(erase, model="ViT-B-32")
    context.invoke(curves, data=data)
    context.invoke(training)
    context.invoke(stores, rows=1_000_000, ranks="3,100")


# What is written.


def save(section: str, result: dict[str, Any]) -> None:
    """Put one section into results/speed.json and write the tables again."""
    path = RESULTS / "speed.json"
    held = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    machine = f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} in use"
    held[section] = {**rounded(result), "machine": machine, "torch": torch.__version__}
    path.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
    parts = [_SECTIONS[name.split("-")[0]](part) for name, part in held.items()]
    head = "# Speed\n\nMade by `python benchmarks/speed.py all`, a section a command. All times are"
    head += " wall times; ratios are of times taken in one run."
    (RESULTS / "speed.md").write_text("\n\n".join([head, *parts]) + "\n", encoding="utf-8")


def _edits_part(r: dict[str, Any]) -> str:
    rows = [
        ["ours, derived and judged", f"{r['ours_s']:.2f}", ""],
        [
            "the plain loop, the same",
            f"{r['loop_s']:.0f}",
            f"{r['times_faster_than_the_loop']:.0f}",
        ],
        ["ours, derived alone", f"{r['derive_s']:.2f}", ""],
        *(
            [
                f"concept-erasure, fitted alone, on {k}",
                f"{v:.0f}",
                f"{r['times_faster_than_concept_erasure'][k]:.0f}",
            ]
            for k, v in r["concept_erasure_s"].items()
        ),
    ]
    return "\n\n".join(
        [
            f"## {r['edits']:,} edits, each on {r['images']:,} images x {r['classes']:,} classes"
            "\n\n"
            f"`python benchmarks/speed.py edits` ({r['device']}; {r['machine']}). Ours is the "
            f"median of {len(r['ours_all_s'])} runs; the loop ran once; concept-erasure is the "
            "median fit times 1,000.",
            markdown(["what", "seconds", "times as long as ours"], rows),
            f"- Predictions that are not the arg max of the loop's edits in float64: {r['wrong']} "
            f"of {r['predictions']:,}; {r['differ_from_float64_loop']} name another class of the "
            f"same score. {r['differ_from_float32_loop']} differ from the loop in float32 (names "
            "that are one vector, and rounding).\n"
            f"- Peak memory of the process, torch and data included: {r['peak_mib']:.0f} MiB.\n"
            f"- Floor (operations and bytes that cannot be left out, at "
            f"{r['rates']['gflop_s']:.0f} GFLOP/s in float64 and {r['rates']['gbyte_s']:.0f} GB/s "
            "measured in the same run): "
            f"{r['floor_s']:.2f} s; ours takes {r['times_the_floor']:.1f} times that.",
        ]
    )


def _erase_part(r: dict[str, Any]) -> str:
    parts = ["load", "prompts", "write", "rest", "total"]
    return (
        f"## `nsu erase` on {r['model']} with random weights\n\n"
        f"`python benchmarks/speed.py erase` ({r['machine']}), medians of {len(r['runs'])} fresh "
        "processes: one class, ImageNet's names kept, nothing cached.\n\n"
        + markdown(parts, [[f"{r[f'{p}_s']:.2f} s" for p in parts]])
        + f"\n\nEverything besides loading, prompts and writing: {r['share_of_the_rest']:.1%}."
    )


def _curves_part(r: dict[str, Any]) -> str:
    lines = []
    for axis, rows in r["points"].items():
        for row in rows:
            lines.append(
                [
                    axis,
                    *(f"{row[k]:,}" for k in ("requests", "names", "images")),
                    f"{row['derive_s']:.2f}",
                    f"{row['judge_s']:.2f}",
                    f"{row['above_the_data_mib']:.0f}",
                ]
            )
    header = ["what grows", "requests", "kept names", "images", "derive, s", "judge, s", "MiB"]
    ends = ", ".join(f"{k} {_growth(rows, k):.2f}" for k, rows in r["points"].items())
    return (
        f"## Growth\n\n`python benchmarks/speed.py curves` ({r['machine']}), a fresh process a "
        "row; memory is what was needed above what making the data took. Names and images beyond "
        "the real ones are mixtures of two.\n\n"
        + markdown(header, lines)
        + f"\n\nExponent of time over the last factor of ten: {ends} (1 is linear).\n\n"
        "![Growth](../../docs/images/speed.png)"
    )


def _training_part(r: dict[str, Any]) -> str:
    rows = [
        [
            str(row["request"]),
            f"{row['closed_h']:.3f}",
            f"{row['closed_s']:.2f}",
            f"{row['adu_h']:.3f}",
            f"{row['adu_s']:.1f}",
            "yes" if row["reached"] else "no, all its training counts",
            f"{row['ratio']:.0f}",
        ]
        for row in r["rows"]
    ]
    header = ["domain", "ours: H", "s", "ADU: H", "s", "reached ours on validation", "ratio"]
    return (
        f"## Beside training\n\n`python benchmarks/speed.py training` ({r['machine']}): a whole "
        "domain of nsu-mini, from prompts alone, against ADU on 8 images a cell until its "
        "validation H is ours.\n\n"
        + markdown(header, rows)
        + f"\n\nMedian ratio: {r['ratio']:.0f}."
    )


def _stores_part(r: dict[str, Any]) -> str:
    rows = []
    for run in r["runs"]:
        seconds = [f"{run[k]:.1f}" for k in ("wall_s", "processor_s")]
        rows.append(["`nsu apply`, .npy to .npy", str(run["rank"]), *seconds,
                     f"{run['peak_mib']:.0f} in all"])  # fmt: skip
        memory = run["in_memory"]
        seconds = [f"{memory[k]:.1f}" for k in ("wall_s", "processor_s")]
        rows.append(["`Edit.apply`, in memory, float64", str(run["rank"]), *seconds,
                     f"{memory['above_the_data_mib']:.0f} above the data"])  # fmt: skip
    header = ["what", "rank", "seconds", "processor seconds", "peak MiB"]
    return (
        f"## Stored embeddings: {r['rows']:,} x {r['dim']} float16\n\n"
        f"`python benchmarks/speed.py stores` ({r['machine']}), unit rows drawn at random, a fresh "
        "process each; the command's seconds hold its start and the writing to disk. Where other "
        "work shared the machine, seconds say that; processor seconds over two cores are what a "
        "quiet one takes.\n\n" + markdown(header, rows)
    )


_SECTIONS: dict[str, Callable[[dict[str, Any]], str]] = {
    "edits": _edits_part,
    "erase": _erase_part,
    "curves": _curves_part,
    "training": _training_part,
    "stores": _stores_part,
}


if __name__ == "__main__":
    main()
