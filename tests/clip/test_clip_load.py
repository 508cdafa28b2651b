"""Loading: what stock open_clip gives, and one line that says what was wrong. Oracle: open_clip."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import pickle
import shutil
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import open_clip
import pico
import pytest
import torch
from safetensors.torch import load_file, save_file

from nullspace_unlearn.clip import load
from nullspace_unlearn.words import Words

WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"


@pytest.fixture
def folder(folder_of, tmp_path: Path) -> Path:
    """A ViT's model folder that a test may damage."""
    return Path(shutil.copytree(folder_of("ViT-B-32"), tmp_path / "model"))


@pytest.fixture
def builtin(folder, tmp_path, monkeypatch) -> str:
    """A built-in name of a ViT without quick-GELU, with a tag trained with it."""
    config = json.loads((folder / CONFIG).read_text())
    registry = open_clip.factory._MODEL_CONFIGS
    monkeypatch.setitem(registry, "pico-ViT", config["model_cfg"])
    tag = {"file": str(folder / WEIGHTS), "quick_gelu": True, "mean": (0.1, 0.2, 0.3)}
    monkeypatch.setitem(
        open_clip.pretrained._PRETRAINED, "pico-ViT", {"openai": tag, "laion": {**tag}}
    )
    del open_clip.pretrained._PRETRAINED["pico-ViT"]["laion"]["quick_gelu"]
    return "pico-ViT"


def stock_image_features(folder: Path) -> torch.Tensor:
    model = open_clip.create_model(f"local-dir:{folder}").eval()
    with torch.no_grad():
        return model.encode_image(pico.images(), normalize=False)


@pytest.mark.parametrize("spell", [str, Path, "local-dir:{}".format])
def test_a_folder_loads_as_in_stock_open_clip(spell, folder):
    clip = load(spell(folder), device="cpu")
    assert torch.equal(clip.encode_image(pico.images()), stock_image_features(folder))
    assert not clip.model.training
    assert not any(p.requires_grad for p in clip.model.parameters())
    assert clip.source.folder == folder
    assert (clip.source.name, clip.source.pretrained) == (folder.name, None)  # and no path
    assert clip.source.weights == folder / WEIGHTS
    assert clip.words is None
    assert clip.preprocess.transforms[-1].mean == [0.4, 0.5, 0.6]


def test_the_vocabulary_beside_the_weights_is_read(folder):
    words = Words(classes=("cat", "dog"), domains={"sketch": "sketch"})
    (folder / "vocabulary.json").write_text(json.dumps(words.to_json()))
    assert load(str(folder), device="cpu").words == words


@pytest.mark.parametrize("name", ["coca_base", "ViT-B-32"])
def test_embeddings_are_not_normalised(name, clip_of):
    clip = clip_of(name)
    for features in (clip.encode_image(pico.images()), clip.encode_text(pico.PROMPTS)):
        norms = features.norm(dim=-1)
        assert (norms - 1).abs().min() > 1e-2
        assert features.dtype == torch.float32
        # They can enter a gradient computation, which tensors made in inference mode cannot.
        weight = torch.ones(clip.dim, requires_grad=True)
        (features * weight).sum().backward()


def test_text_batches_do_not_matter(clip_of):
    clip = clip_of("ViT-B-32")
    whole = clip.encode_text(pico.PROMPTS)
    assert torch.allclose(clip.encode_text(pico.PROMPTS, batch_size=1), whole, atol=1e-5)
    assert clip.encode_text([]).shape == (0, clip.dim)
    with pytest.raises(ValueError, match="got the string 'cat'"):
        clip.encode_text("cat")
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        clip.encode_text(["cat"], batch_size=0)


def test_a_tag_trained_with_quick_gelu_gets_it(builtin, folder):
    """Oracle: stock open_clip from a folder whose config says quick_gelu."""
    plain = stock_image_features(folder)
    config = json.loads((folder / CONFIG).read_text())
    config["model_cfg"]["quick_gelu"] = True
    (folder / CONFIG).write_text(json.dumps(config))
    quick = stock_image_features(folder)
    assert not torch.allclose(plain, quick, atol=1e-3)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        forced = load(builtin, "openai", device="cpu")
        unforced = load(builtin, "laion", device="cpu")
    assert torch.equal(forced.encode_image(pico.images()), quick)
    assert forced.config["model_cfg"]["quick_gelu"] is True
    assert list(forced.config["preprocess_cfg"]["mean"]) == [0.1, 0.2, 0.3]
    assert torch.equal(unforced.encode_image(pico.images()), plain)  # control


def test_a_weights_file_warns_of_what_it_cannot_say(builtin, folder, tmp_path):
    bare = tmp_path / "bare.safetensors"
    shutil.copy(folder / WEIGHTS, bare)
    with pytest.warns(UserWarning, match="does not say how its images were preprocessed"):
        clip = load(builtin, str(bare), device="cpu")
    assert list(clip.config["preprocess_cfg"]["mean"]) == list(open_clip.OPENAI_DATASET_MEAN)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clip = load(builtin, str(folder / WEIGHTS), device="cpu")
    assert list(clip.config["preprocess_cfg"]["mean"]) == [0.4, 0.5, 0.6]


def test_no_weights_means_random_ones_and_a_warning(builtin):
    with pytest.warns(UserWarning, match="pico-ViT without pretrained weights: .* random"):
        assert load(builtin, device="cpu").source.weights is None


@pytest.mark.parametrize("kind", ["pure_fp16", "pure_bf16"])
def test_half_precision_encodes(kind, folder):
    """Oracle: the same folder in single precision, to the roundings of the half."""
    full = load(str(folder), device="cpu")
    half = load(str(folder), device="cpu", precision=kind)
    for made, exact in (
        (half.encode_image(pico.images()), full.encode_image(pico.images())),
        (half.encode_text(pico.PROMPTS), full.encode_text(pico.PROMPTS)),
    ):
        assert made.dtype == torch.float32
        assert 0 < (made - exact).norm() / exact.norm() < 0.05


@pytest.mark.parametrize("name", ["coca_base", "roberta-ViT-B-32"])
def test_precisions_that_open_clip_cannot_run_are_refused(name, folder_of):
    with pytest.raises(ValueError, match="allowed for CoCa and .*: fp32, pure_fp16, pure_bf16"):
        load(folder_of(name), device="cpu", precision="fp16")
    stock = open_clip.create_model(f"local-dir:{folder_of(name)}", precision="fp16").eval()
    with pytest.raises(RuntimeError, match="dtype"):  # control: it is so
        stock.encode_text(torch.randint(3, 60, (2, 8)))
    half = load(folder_of(name), device="cpu", precision="pure_fp16")
    assert half.encode_text(pico.PROMPTS).isfinite().all()


def test_logging_is_left_as_it_was(folder, caplog):
    root = logging.getLogger()
    before = list(root.handlers), root.level, logging.root.manager.disable
    load(str(folder), device="cpu")
    assert (list(root.handlers), root.level, logging.root.manager.disable) == before
    assert not caplog.records


def truncate(folder: Path) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[: len(data) // 2])


def scramble(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"not weights at all" * 9)


def poison(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    state["visual.proj"][0, 0] = float("nan")
    save_file(state, folder / WEIGHTS)


def drop(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    del state["visual.proj"]
    save_file(state, folder / WEIGHTS)


def resize(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    state["visual.proj"] = state["visual.proj"][:3].clone()
    save_file(state, folder / WEIGHTS)


def pickle_module(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    torch.save(torch.nn.Linear(2, 2), folder / "open_clip_pytorch_model.bin")


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / CONFIG).read_text())
    config["model_cfg"].update(changes)
    (folder / CONFIG).write_text(json.dumps(config))


def trust_code(folder: Path) -> None:
    text = json.loads((folder / CONFIG).read_text())["model_cfg"]["text_cfg"]
    edit_config(folder, text_cfg={**text, "tokenizer_kwargs": {"trust_remote_code": True}})


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
PAGE = b"\n<!DOCTYPE html><html><body>404</body></html>"


def instead(folder: Path, weights: bytes, name: str = "open_clip_pytorch_model.bin") -> None:
    (folder / WEIGHTS).unlink()
    (folder / name).write_bytes(weights)


def torchscript(folder: Path) -> None:
    made = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), made)
    instead(folder, made.getvalue())


def wrapped(prefix: str) -> Callable[[Path], None]:
    def wrap(folder: Path) -> None:
        state, made = load_file(folder / WEIGHTS), io.BytesIO()
        torch.save({prefix + name: value for name, value in state.items()}, made)
        instead(folder, made.getvalue())

    return wrap


def edit_tower(folder: Path, tower: str, **changes: object) -> None:
    said = json.loads((folder / CONFIG).read_text())["model_cfg"][tower]
    edit_config(folder, **{tower: {**said, **changes}})


def other_size(folder: Path) -> None:
    state = {name: value.half() for name, value in load_file(folder / WEIGHTS).items()}
    save_file(state, folder / WEIGHTS)
    edit_tower(folder, "vision_cfg", image_size=64)


BAD_FOLDERS = {
    "a pointer": (lambda f: instead(f, LFS, WEIGHTS), r"pointer of Git LFS .*git lfs pull"),
    "a pointer as .bin": (lambda f: instead(f, LFS), r"pointer of Git LFS"),
    "a web page": (lambda f: instead(f, PAGE, WEIGHTS), r"it is a web page"),
    "a web page as .bin": (lambda f: instead(f, PAGE), r"it is a web page"),
    "empty": (lambda f: instead(f, b"", WEIGHTS), r"it is empty"),
    "TorchScript": (torchscript, r"it is a TorchScript archive"),
    "compiled": (wrapped("_orig_mod."), r"begin with '_orig_mod\.'.*save the state_dict without"),
    "wrapped": (wrapped("model."), r"begin with 'model\.'"),
    "half, of another size": (other_size, r"another size than the configuration's image_size"),
    "a million layers": (
        lambda f: edit_tower(f, "vision_cfg", layers=10**6, width=1),
        r"asks for a model of at least [\d,]+ bytes, and weights file .* has",
    ),
    "a million layers of text": (
        lambda f: edit_tower(f, "text_cfg", layers=10**6),
        r"asks for a model of at least",
    ),
    "a wide tower": (lambda f: edit_tower(f, "vision_cfg", width=10**6), r"asks for a model of"),
    "truncated": (truncate, r"weights file .*safetensors is damaged"),
    "scrambled": (scramble, r"weights file .*safetensors is damaged"),
    "NaN": (poison, r"holds NaN or Inf in visual\.proj"),
    "missing key": (drop, r"does not fit the model: .*visual\.proj"),
    "other shape": (resize, r"does not fit the model: .*visual\.proj"),
    "pickled": (pickle_module, r"pickled code rather than weights"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), r"holds no weights"),
    "no config": (lambda f: (f / CONFIG).unlink(), rf"holds no {CONFIG}"),
    "no JSON": (lambda f: (f / CONFIG).write_text("{"), r"is no open_clip configuration"),
    "no model_cfg": (lambda f: (f / CONFIG).write_text("{}"), r"it lacks 'model_cfg'"),
    "a list": (lambda f: (f / CONFIG).write_text("[]"), r"is no open_clip configuration"),
    "bad dimension": (lambda f: edit_config(f, embed_dim="x"), r"embed_dim must be an integer"),
    "bad key": (lambda f: edit_config(f, nonsense=1), r"cannot build .* configuration.*nonsense"),
    "remote code": (trust_code, r"asks to run code"),
    "bad words": (lambda f: (f / "vocabulary.json").write_text("{}"), r"not a vocabulary file"),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_a_bad_folder_is_one_line_of_error(case, folder):
    damage, message = BAD_FOLDERS[case]
    load(str(folder), device="cpu")  # control: undamaged, it loads
    damage(folder)
    with pytest.raises(ValueError, match=message) as caught:
        load(str(folder), device="cpu")
    assert "\n" not in str(caught.value)


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (eval, (f"open({str(self.path)!r}, 'w').close()",))


def test_a_pipe_in_the_place_of_weights_is_not_read(folder):
    (folder / WEIGHTS).unlink()
    os.mkfifo(folder / WEIGHTS)
    for given in ((folder,), ("ViT-B-32", folder / WEIGHTS)):
        with pytest.raises(ValueError, match="weights file .* is a pipe or a device, and no file"):
            load(*given, device="cpu")


def test_embeddings_that_are_resized_are_said(folder):
    edit_tower(folder, "vision_cfg", image_size=64)
    edit_tower(folder, "text_cfg", context_length=16)
    with pytest.warns(UserWarning, match="resized") as said:
        load(str(folder), device="cpu")
    told = " ".join(str(one.message) for one in said)
    assert "5 position embeddings, and the configuration's image_size asks for 17" in told
    assert "8 position embeddings, and the configuration's context_length asks for 16" in told


def test_a_crafted_weights_file_runs_nothing(folder, tmp_path, monkeypatch):
    """open_clip falls back to a plain `torch.load` where the safe one ends in a TypeError."""
    ran, crafted = tmp_path / "ran", folder / "open_clip_pytorch_model.bin"
    # Pickle takes a state of None for none, and torch's safe reader fails over it.
    stumble = b"\x80\x02ccollections\nOrderedDict\n)RNb0"
    torch.save({}, crafted)
    with zipfile.ZipFile(crafted) as good:
        parts = {name: good.read(name) for name in good.namelist()}
    parts["open_clip_pytorch_model/data.pkl"] = stumble + pickle.dumps(Payload(ran), 2)[2:]
    with zipfile.ZipFile(crafted, "w") as bad:
        for name, data in parts.items():
            bad.writestr(name, data)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    model = load(str(folder), device="cpu").model
    with pytest.warns(UserWarning, match="FORCE_NO"), contextlib.suppress(Exception):
        open_clip.load_checkpoint(model, str(crafted))  # control: stock open_clip runs it
    assert ran.exists()
    ran.unlink()
    (folder / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="cannot load weights file") as caught:
        load(str(folder), device="cpu")
    assert "\n" not in str(caught.value) and not ran.exists()
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"


@pytest.mark.parametrize("part", ["tokenizer", "text tower"])
def test_code_that_a_text_tower_brings_along_is_refused(part, folder_of, tmp_path, monkeypatch):
    """transformers would ask on stdout whether to run it, and take a y on stdin."""
    whole = Path(shutil.copytree(folder_of("roberta-ViT-B-32"), tmp_path / "model"))
    config = json.loads((whole / CONFIG).read_text())
    tower = Path(config["model_cfg"]["text_cfg"]["hf_model_name"])
    edited = Path(shutil.copytree(tower, tmp_path / "tower"))
    config["model_cfg"]["text_cfg"]["hf_model_name"] = str(edited)
    (whole / CONFIG).write_text(json.dumps(config))
    load(str(whole), device="cpu")  # control
    file = (whole if part == "tokenizer" else edited) / (
        "tokenizer_config.json" if part == "tokenizer" else "config.json"
    )
    said = json.loads(file.read_text())
    brought = {"AutoTokenizer": ["tokenizer.Bad", None], "AutoConfig": "tokenizer.Bad"}
    file.write_text(json.dumps({**said, "auto_map": brought}))
    (file.parent / "tokenizer.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked"))
    with pytest.raises(ValueError, match=f"cannot load .*: {part} .* brings code along") as caught:
        load(str(whole), device="cpu")
    assert "\n" not in str(caught.value) and not (tmp_path / "ran").exists()


BAD_NAMES = {
    "unknown": (("ViT-B-23",), r"unknown model 'ViT-B-23'.*nearest: .*ViT-B-32"),
    "nothing like it": (("qqqqqqqq",), r"unknown model 'qqqqqqqq'.*allowed: nsu-mini"),
    "no such folder": (("local-dir:/no/such/folder",), r"'/no/such/folder' does not exist"),
    "empty folder name": (("local-dir:",), "names nothing after 'local-dir:'"),
    "empty hub name": (("hf-hub:",), "names nothing after 'hf-hub:'"),
    "unknown tag": (
        ("ViT-B-32", "laion3b"),
        r"unknown tag 'laion3b' for ViT-B-32; allowed: openai",
    ),
    "no such file": (("ViT-B-32", "nothing.pt"), r"weights file 'nothing.pt' does not exist"),
    "a folder as weights": (("ViT-B-32", "."), r"'.' is a folder; give the folder itself"),
}


@pytest.mark.parametrize("case", BAD_NAMES)
def test_a_bad_name_is_one_line_of_error(case):
    arguments, message = BAD_NAMES[case]
    with pytest.raises(ValueError, match=message) as caught:
        load(*arguments, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, "unknown device 'gpu'; allowed: auto, cpu, cuda, cuda:i"),
        ({"device": "cuda:x"}, "unknown device 'cuda:x'"),
        ({"device": "cuda:99"}, r"'cuda:99' is not there: torch sees \d+ CUDA devices"),
        ({"precision": "fp8"}, "unknown precision 'fp8'; allowed: fp32, fp16"),
    ],
)
def test_bad_options_are_refused(options, message, folder):
    with pytest.raises(ValueError, match=message):
        load(str(folder), **{"device": "cpu", **options})


def test_no_network_is_a_failure_not_bad_input(monkeypatch):
    def unreachable(*_: object, **__: object) -> None:
        raise ConnectionError("no route\nto host")

    # The package exports the function of the same name, so the module is reached by name.
    module = sys.modules["nullspace_unlearn.clip.load"]
    monkeypatch.setattr(module, "download_pretrained_from_hf", unreachable)
    with pytest.raises(RuntimeError, match="cannot download hf-hub:org/repo: no route to host"):
        load("hf-hub:org/repo")
    monkeypatch.setattr(open_clip, "download_pretrained", unreachable)
    with pytest.raises(RuntimeError, match="cannot download ViT-B-32 'openai': no route to host"):
        load("ViT-B-32", "openai")


def test_what_the_rest_of_the_package_needs_to_know(clip_of):
    clip = clip_of("RN50")
    assert clip.image_size == (32, 32)
    assert clip.logit_scale == pytest.approx(1 / 0.07, rel=1e-4)
    assert clip.dim == pico.DIM
