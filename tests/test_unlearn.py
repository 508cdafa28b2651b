"""From a request to an edit: which names, which words, which method, and what it does."""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import nullspace_unlearn as nsu
from nullspace_unlearn.clip import Clip
from nullspace_unlearn.data import mini
from nullspace_unlearn.data.bundled import bundled_to_report
from nullspace_unlearn.data.folders import read_folder
from nullspace_unlearn.erasers import IMAGES, METHODS
from nullspace_unlearn.evaluate.compare import compare
from nullspace_unlearn.evaluate.zeroshot import predict
from nullspace_unlearn.features.embed import embed
from nullspace_unlearn.forget import Forget
from nullspace_unlearn.looks import synthesise_for
from nullspace_unlearn.plans import cells_needed, plan, space_for
from nullspace_unlearn.prototypes import (
    Synthesis,
    Visual,
    class_prototypes,
    from_images,
    imagenet_names,
)
from nullspace_unlearn.unlearn import certify, certify_plan, erase
from nullspace_unlearn.words import Words

DIM = 64


@pytest.fixture(scope="module")
def clip() -> Clip:
    return nsu.load("nsu-mini", device="cpu")


@dataclass(frozen=True, eq=False)
class Named(Clip):
    """A model whose prompt features are one random vector a word, near for what is said to be."""

    near: Mapping[str, str] = field(default_factory=dict)
    prompts: list[str] = field(default_factory=list)

    def encode_text(self, texts: Sequence[str], batch_size: int = 256) -> Tensor:
        self.prompts.extend(texts)
        return torch.stack([self.vector(text) for text in texts])

    def vector(self, text: str) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
        own = torch.randn(DIM, generator=torch.Generator().manual_seed(seed))
        if text not in self.near:
            return own
        return self.vector(self.near[text]) + 0.3 * own


def named(clip: Clip, near: Mapping[str, str] | None = None, words: Words | None = None) -> Named:
    parts = {f.name: getattr(clip, f.name) for f in fields(Clip)}
    return Named(**{**parts, "words": words}, near=near or {})


TEMPLATES = ("{class}",)
OWN = Words(
    classes=("ox", "yak", "emu"),
    domains={"photo": "photo", "art_painting": "painting"},
    class_templates=TEMPLATES,
    aliases={"ox": ("bull", "yak"), "yak": ("bull", "dri")},
)


def test_the_users_list_comes_before_the_folders_and_that_before_imagenet(clip):
    carrying, bare = named(clip, words=OWN), named(clip)
    listed = plan(carrying, Forget(["ox"]), classes=["ox", "hen"])
    assert listed.keep == ("hen",)
    assert plan(carrying, Forget(["ox"])).keep == ("yak", "emu")
    kept = plan(bare, Forget(["ox"]), templates=TEMPLATES).keep
    assert set(kept) == {name for name in imagenet_names() if name.casefold() != "ox"}
    # Kept names join any of them, once each, in order.
    assert plan(carrying, Forget(["ox"], keep=["cow", "emu"])).keep == ("yak", "emu", "cow")
    assert plan(bare, Forget(["ox"], keep=["zo"]), templates=TEMPLATES).keep[-1] == "zo"


def test_what_is_forgotten_need_not_be_in_imagenet_but_in_a_list(clip):
    carrying, bare = named(clip, words=OWN), named(clip)
    assert plan(bare, Forget(["flux capacitor"])).forget.names == ("flux capacitor",)
    with pytest.raises(ValueError, match="'cow' is not in the class list: ox, yak, emu"):
        plan(carrying, Forget(["cow"]))


def test_near_synonyms_go_too_and_are_listed(clip):
    near = {"goldfish": "car", "ostrich": "car", "hen": "dog"}
    model = named(clip, near)
    made = plan(model, Forget(["car"]), templates=TEMPLATES)
    # The rule in plain numpy: 1 - cos less than a quarter of the mean over pairs of names.
    names = [name for name in imagenet_names() if name.casefold() != "car"]
    rows = np.stack([model.vector(name).double().numpy() for name in names])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    car = model.vector("car").double().numpy()
    far = 1 - rows @ (car / np.linalg.norm(car))
    close = far < 0.25 * (1 - (rows @ rows.T).mean())
    assert made.synonyms == tuple(n for n, c in zip(names, close, strict=True) if c)
    assert set(made.synonyms) == {"goldfish", "ostrich"}
    assert made.keep == tuple(n for n in names if n not in made.synonyms)
    assert len(made.keep) == len(made.keep_rows)
    # A name the user keeps stays, and a list of the user's own is taken as it is.
    asked = plan(model, Forget(["car"], keep=["ostrich"]), templates=TEMPLATES)
    assert asked.synonyms == ("goldfish",) and "ostrich" in asked.keep
    listed = plan(model, Forget(["car"]), templates=TEMPLATES, classes=["car", "ostrich", "dog"])
    assert listed.synonyms == () and listed.keep == ("ostrich", "dog")


def test_a_cell_request_keeps_the_nearest_of_a_bundled_vocabulary(clip):
    model = named(clip, {"ostrich": "car"})
    request = Forget(["car"], ["photo"], keep=["hen"])
    made = plan(model, request, templates=TEMPLATES)
    everything = plan(model, Forget(["car"]), templates=TEMPLATES)
    nearness = dict(
        zip(everything.keep, (everything.keep_rows @ everything.forget_rows.mT)[:, 0], strict=True)
    )
    nearest = sorted(nearness, key=lambda name: -nearness[name])[:64]
    assert set(made.keep) == {*nearest, "hen"} and made.synonyms == ("ostrich",)
    rows = class_prototypes(model, made.keep, TEMPLATES)
    torch.testing.assert_close(made.keep_rows, rows)
    assert made.words.classes[0] in {"car", *made.keep}
    assert set(made.words.classes) == {"car", *made.keep}


def test_aliases_of_the_folder_join_those_of_the_user(clip):
    model = named(clip, words=OWN)
    # yak is a class of its own, so forgetting ox does not take it along.
    assert plan(model, Forget(["ox"])).forget.names == ("ox", "bull")
    made = plan(model, Forget(["ox"], aliases={"ox": ["zebu"]}))
    assert made.forget.aliases == {"ox": ("zebu", "bull")}
    assert len(made.forget_rows) == 3
    assert plan(model, Forget(["ox"], keep=["bull"])).forget.names == ("ox",)
    # An alias that two classes share is forgotten once.
    assert plan(model, Forget(["ox", "yak"])).forget.names == ("ox", "yak", "bull", "dri")


@pytest.mark.parametrize("asked", ["art_painting", "painting"])
def test_a_domain_goes_by_its_key_or_its_word(asked, clip):
    made = plan(named(clip, words=OWN), Forget(["ox"], [asked]))
    assert made.forget.domains == ("art_painting",)
    assert made.mask.tolist() == [[False, True], [False, False], [False, False]]


def test_domains_of_the_request_of_the_folder_and_by_default(clip):
    carrying, bare = named(clip, words=OWN), named(clip)
    given = plan(carrying, Forget(["ox"], ["drawing"]), domains={"quickdraw": "drawing", "p": "p"})
    assert given.forget.domains == ("quickdraw",)
    default = plan(bare, Forget(["car"], ["watercolour"]), classes=["car", "dog"])
    assert tuple(default.words.domains) == ("photo", "painting", "cartoon", "sketch", "watercolour")
    with pytest.raises(ValueError, match="unknown domain 'watercolour'; known: photo, art_paint"):
        plan(carrying, Forget(["ox"], ["watercolour"]))
    with pytest.raises(ValueError, match="every known domain"):
        plan(carrying, Forget(["ox"], ["photo", "painting"]))
    with pytest.raises(ValueError, match="domain named twice"):
        plan(carrying, Forget(["ox"], ["art_painting", "painting"]))


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (Forget(["ox"]), "hull"),
        (Forget(["ox"], ["photo"]), "gated"),
        (Forget(domains=["photo"]), "gated"),
    ],
)
def test_each_kind_of_request_has_its_method(request_, expected, clip):
    shown = plan(named(clip, words=OWN), request_, images=True)
    assert shown.method == ("hull" if expected == "hull" else "neutral")
    assert space_for(clip, shown) == ("embedding" if expected == "hull" else "mlp")
    assert space_for(clip, shown, "embedding") == "embedding"
    model = named(clip, words=OWN)
    assert plan(model, request_).method == expected
    on_text = "avert" if request_.paradigm == "global" else expected
    assert plan(model, request_, side="text").method == on_text
    for name, method in METHODS.items():
        for side in ("visual", "text"):
            if request_.paradigm in method.paradigms and side in method.sides:
                assert plan(model, request_, method=name, side=side).method == name
            else:
                with pytest.raises(ValueError, match=f"method '{name}' does not forget"):
                    plan(model, request_, method=name, side=side)
    with pytest.raises(ValueError, match="unknown method 'magic'; allowed: hull, avert"):
        plan(model, request_, method="magic")


def test_a_whole_domain_needs_a_class_list(clip):
    with pytest.raises(ValueError, match="say which classes the model must go on telling apart"):
        plan(named(clip, words=None), Forget(domains=["sketch"]))
    given = plan(named(clip, words=None), Forget(domains=["sketch"]), classes=["car", "dog"])
    assert given.mask.tolist() == [[False, False, False, True]] * 2  # the control


def test_a_class_list_of_what_is_forgotten_keeps_nothing(clip):
    with pytest.raises(ValueError, match="nothing is kept"):
        plan(clip, Forget(["car"]), classes=["car"])


REQUESTS = {
    "global": Forget(["car", "dog"], aliases={"car": ["cab"]}, keep=["sedan"]),
    "cell": Forget(["car", "dog"], ["sketch", "photo"], aliases={"car": ["cab"]}),
    "domain": Forget(domains=["sketch"]),
}


@pytest.mark.parametrize("kind", REQUESTS)
def test_the_provenance_makes_the_same_edit_again(kind, clip):
    edit = erase(clip, REQUESTS[kind])
    said = json.loads(json.dumps(dict(edit.provenance), allow_nan=False))
    assert said == dict(edit.provenance)  # plain values: lists, not tuples
    assert (
        said["request"]["aliases"].get("car", [])
        == {
            "global": ["cab", "automobile"],
            "cell": ["cab", "automobile", "sedan"],
            "domain": [],
        }[kind]
    )
    again = erase(
        clip,
        Forget(**said["request"]),
        domains=said["domains"],
        templates=said["templates"]["class"],
        method=said["method"],
        strength=said["strength"],
    )
    assert torch.equal(again.read, edit.read) and torch.equal(again.write, edit.write)
    assert dict(again.provenance) == said
    other = erase(clip, replace(REQUESTS[kind], keep=("lorry",)))  # control
    assert other.provenance["kept"] != said["kept"]


@pytest.mark.parametrize("kind", REQUESTS)
@pytest.mark.parametrize("strength", [1e-3, 0.5, 2.0])
def test_strength_scales_the_edit(kind, strength, clip):
    whole, part = erase(clip, REQUESTS[kind]), erase(clip, REQUESTS[kind], strength=strength)
    z = torch.randn(5, clip.dim, dtype=torch.float64)
    torch.testing.assert_close(part.apply(z) - z, strength * (whole.apply(z) - z))
    assert part.provenance["strength"] == strength


@pytest.mark.parametrize("strength", [0, -1, 2.01, float("nan"), float("inf")])
def test_strength_has_a_range(strength, clip):
    with pytest.raises(ValueError, match=r"strength must lie in \(0, 2\]"):
        erase(clip, Forget(["car"]), strength=strength)


def test_a_plan_is_taken_as_made(clip):
    made = plan(clip, Forget(["car"]), method="nullspace")
    assert torch.equal(erase(clip, made).read, erase(clip, made.forget, method="nullspace").read)
    with pytest.raises(ValueError, match="a plan is already made; classes, method go to plan"):
        erase(clip, made, classes=["car", "dog"], method="hull")


def test_only_distinct_prompts_of_what_is_needed_are_encoded(clip):
    model = named(clip, words=OWN)
    plan(model, Forget(["ox"]))
    assert sorted(model.prompts) == ["bull", "emu", "ox", "yak"]


@pytest.fixture(scope="module")
def pictures(clip):
    return embed(clip, bundled_to_report(6, 77), quiet=True)


@pytest.mark.parametrize(("class_", "domain"), [("dog", "sketch"), ("truck", "painting")])
def test_a_forgotten_cell_falls_and_the_others_stay(class_, domain, clip, pictures):
    made = plan(clip, Forget([class_], [domain]))
    edit = erase(clip, made)
    edited = edit.fold(clip)
    # Encoded again by the edited network, and counted by hand.
    again = embed(edited, bundled_to_report(6, 77), quiet=True)
    text = class_prototypes(clip, mini.CLASSES, made.words.class_templates).float()
    here = (again.labels == mini.CLASSES.index(class_)) & (
        again.domains == mini.DOMAINS.index(domain)
    )
    accuracy = {}
    for name, embeddings in (("before", pictures.embeddings), ("after", again.embeddings)):
        right = predict(embeddings, text) == again.labels
        accuracy[name] = float(right[here].double().mean()), float(right[~here].double().mean())
    assert accuracy["before"][0] > 0.8  # control: untouched, it is known
    assert accuracy["after"][0] <= 0.2
    assert accuracy["after"][1] > accuracy["before"][1] - 0.03
    # What `nsu erase` reports from cached features is the same.
    found = compare(
        clip, edited, edit, "visual", pictures, made.forget, made.words.class_templates
    ).figures
    for name in accuracy:
        assert found[name]["forgotten"] == pytest.approx(accuracy[name][0])
        assert found[name]["kept"] == pytest.approx(accuracy[name][1])


def test_a_class_everywhere_is_forgotten_with_proof(clip, pictures):
    made = plan(clip, Forget(["car"]))
    edited = erase(clip, made).fold(clip)
    names = ("car", "automobile", "sedan")
    proof = certify(edited, names, made.keep, made.words.class_templates)
    assert proof.holds.all()
    assert not certify(clip, names, made.keep, made.words.class_templates).holds.any()  # control
    again = embed(edited, bundled_to_report(6, 77), quiet=True)
    text = class_prototypes(clip, mini.CLASSES, made.words.class_templates).float()
    predicted = predict(again.embeddings, text)
    assert not (predicted == mini.CLASSES.index("car")).any()
    assert (predict(pictures.embeddings, text) == mini.CLASSES.index("car")).any()


def test_on_the_text_side_normalised_prompts_are_what_is_certified(clip):
    made = plan(clip, Forget(["car"]))
    edited = erase(clip, made).fold(clip, "text")
    templates = made.words.class_templates
    proof = certify(edited, made.forget.names, made.keep, templates)
    # Scores use unit prototypes, which lie on a sphere and in no hull of others.
    assert not proof.holds.any()
    rows = class_prototypes(edited, made.forget.names, templates)
    assert torch.allclose(rows.norm(dim=-1), torch.ones(len(rows), dtype=rows.dtype))


def test_the_example_of_the_readme(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    clip = nsu.load("nsu-mini")
    edit = nsu.erase(clip, nsu.Forget(classes=["car"], domains=["sketch"]))
    edit.fold(clip).save("out/")

    again = nsu.load("out/")
    assert again.words == clip.words
    picture = clip.preprocess(mini.render("car", "sketch", 1))[None].to(clip.device)
    expected = edit.apply(clip.encode_image(picture))
    torch.testing.assert_close(again.encode_image(picture), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, clip.encode_image(picture), rtol=1e-4, atol=1e-4)


# On pictures that no edit has seen, and from pictures.

EACH = 4


@pytest.fixture(scope="module")
def fresh(clip: Clip) -> Tensor:
    """Pictures `[classes, domains, EACH, ...]` that neither training nor any prototype has seen."""
    drawn = [
        clip.preprocess(mini.render(c, d, 7_000_000 + i))
        for c in mini.CLASSES
        for d in mini.DOMAINS
        for i in range(EACH)
    ]
    return torch.stack(drawn).unflatten(0, (len(mini.CLASSES), len(mini.DOMAINS), EACH))


@pytest.fixture(scope="module")
def seen(clip: Clip, tmp_path_factory: pytest.TempPathFactory) -> Visual:
    """Three real pictures a cell, one of them left for the judging of the others."""
    root = tmp_path_factory.mktemp("pictures")
    mini.write_images(root, seeds=range(8_000_000, 8_000_003))
    return from_images(clip, read_folder(root), quiet=True, space="mlp")


def right(clip: Clip, fresh: Tensor, mask: Tensor) -> tuple[float, float]:
    """Accuracy on forgotten and on kept cells, by the network itself."""
    text = class_prototypes(clip, mini.CLASSES, clip.words.class_templates)
    z = clip.encode_image(fresh.flatten(0, 2)).double()
    named = (z @ text.mT).argmax(-1).reshape(fresh.shape[:3])
    grid = (named == torch.arange(len(named))[:, None, None]).double().mean(-1)
    return float(grid[mask].mean()), float(grid[~mask].mean())


CELL, DOMAIN = Forget(["dog"], ["sketch"]), Forget(domains=["sketch"])


def test_prompts_alone_forget_a_domain(clip, fresh):
    made = plan(clip, DOMAIN)
    before = right(clip, fresh, made.mask)
    after = right(erase(clip, made).fold(clip), fresh, made.mask)
    assert before[0] > 0.8 and before[1] > 0.8  # the control: untouched
    assert after[0] < 0.25 and after[1] > before[1] - 0.2


@pytest.mark.parametrize(
    ("request_", "space"),
    [(CELL, "embedding"), (DOMAIN, "embedding"), (DOMAIN, "hidden"), (DOMAIN, "mlp")],
)
def test_real_pictures_forget_a_cell_and_a_domain_wherever_they_are_read(
    request_, space, clip, fresh, seen
):
    made = plan(clip, request_)
    # For a cell they choose their numbers; for a domain these are given, since it takes seconds.
    numbers = None if request_ is CELL else asdict(IMAGES)
    edit = erase(clip, made, visual=seen, space=space, numbers=numbers)
    assert edit.space == space
    assert edit.rank == (1 if request_ is CELL else 2)
    edited = edit.fold(clip)
    before, after = right(clip, fresh, made.mask), right(edited, fresh, made.mask)
    assert before[0] > 0.8 and before[1] > 0.8  # the control: untouched
    assert after[0] < 0.25 and after[1] > before[1] - 0.1


def test_the_provenance_says_where_prototypes_came_from(clip, seen):
    made = plan(clip, CELL)
    numbers = asdict(IMAGES)
    for visual, space in ((None, "embedding"), (seen, "embedding"), (seen, "mlp")):
        edit = erase(clip, made, visual=visual, space=space, strength=0.5, numbers=numbers)
        said = json.loads(json.dumps(dict(edit.provenance), allow_nan=False))
        assert said == dict(edit.provenance)
        assert said["method"] == "gated" and said["space"] == space
        if visual is None:
            assert said["prototypes"] == "prompts"
        else:
            assert said["prototypes"]["files"] == seen.features.provenance["files"]
            assert len(said["prototypes"]["files"]) == len(seen.features)
            assert said["prototypes"]["made_with"]["weights"] == clip.source.sha256


def test_given_numbers_are_taken_and_real_images_choose_theirs(clip, seen):
    made = plan(clip, CELL)
    chosen = erase(clip, made, visual=seen).provenance["numbers"]
    fixed = erase(clip, made, visual=seen, numbers=asdict(IMAGES)).provenance["numbers"]
    numbers = {k: v for k, v in fixed.items() if k != "rank"}
    assert numbers == {"ridge": IMAGES.ridge, "margin": IMAGES.margin, "slack": IMAGES.slack}
    assert chosen != fixed


def test_what_pictures_show_beside_the_request_changes_nothing(clip, seen):
    choices = {
        "classes": ["cat", "car", "dog"],
        "domains": {"sketch": "sketch", "photo": "photo"},
    }
    few = plan(clip, CELL, **choices)
    edit = erase(clip, few, visual=seen)
    same = erase(clip, few, visual=seen.on(("dog", "cat", "car"), ("photo", "sketch")))
    torch.testing.assert_close(edit.read @ edit.write.mT, same.read @ same.write.mT)
    with pytest.raises(ValueError, match="no image of 2 cells that the request needs: car/sketch"):
        erase(clip, few, visual=seen.on(("dog", "cat"), ("photo", "sketch")))


def test_what_cannot_be_read_is_refused(clip, seen, unchecked):
    cell, text = plan(clip, CELL), plan(clip, CELL, side="text")
    everywhere = Forget(["car"])
    said = "space is 'pixels'; allowed: embedding, hidden, mlp, value"
    with unchecked(), pytest.raises(ValueError, match=said):
        erase(clip, cell, visual=seen, space="pixels")  # type: ignore[arg-type]
    for space in ("hidden", "mlp"):
        with pytest.raises(ValueError, match=f"only images show what the {space} feature is"):
            erase(clip, cell, space=space)
        with pytest.raises(ValueError, match=f"the {space} feature is the image tower's"):
            erase(clip, text, visual=seen, space=space)
        with pytest.raises(ValueError, match=f"nullspace reads embedding, not {space}; .* gated"):
            erase(clip, CELL, visual=seen, space=space, method="nullspace")
    bare = Visual(replace(seen.features, hidden=None), "images")
    for space in ("hidden", "mlp"):
        with pytest.raises(ValueError, match=f"were made without the {space} feature"):
            erase(clip, cell, visual=bare, space=space)
    with pytest.raises(ValueError, match="two_sided looks at images: give visual"):
        erase(clip, everywhere, method="two_sided")
    for name, method in METHODS.items():
        if method.images == "none":
            side = method.sides[0]
            request_ = everywhere if "global" in method.paradigms else CELL
            with pytest.raises(ValueError, match=f"'{name}' takes no visual prototypes; .* gated,"):
                erase(clip, request_, visual=seen, method=name, side=side)
    # The controls: what remains is taken.
    assert erase(clip, text, visual=seen, numbers=asdict(IMAGES)).space == "embedding"
    assert erase(clip, cell, visual=bare, numbers=asdict(IMAGES)).space == "embedding"


def test_two_sided_on_real_pictures_keeps_the_proof(clip, seen, fresh):
    made = plan(clip, Forget(["car"]), method="two_sided")
    assert made.forget.names == ("car", "automobile", "sedan")
    edited = erase(clip, made, visual=seen).fold(clip)
    assert certify_plan(edited, made).holds.all()
    for other in (clip, erase(clip, Forget(["car"]), method="nullspace").fold(clip)):  # controls
        assert not certify_plan(other, made).holds.all()
    before, after = right(clip, fresh, made.mask), right(edited, fresh, made.mask)
    assert before[0] > 0.8 and after[0] == 0 and after[1] > before[1] - 0.1


@pytest.mark.parametrize("request_", [Forget(["car"]), CELL, DOMAIN])
def test_nullspace_takes_what_pictures_show_too(request_, clip, seen):
    made = plan(clip, request_, method="nullspace")
    text, both = erase(clip, made), erase(clip, made, visual=seen)
    assert both.rank > text.rank
    f = seen.features
    means, labels, domains = seen.seen(f.class_names).cell_means()
    gone = means[request_.mask(f.class_names, f.domain_names)[labels, domains]]
    assert both.apply(gone).norm(dim=-1).max() < 1e-8
    assert text.apply(gone).norm(dim=-1).max() > 0.1  # the control


def test_which_cells_pictures_must_show(clip):
    made = plan(clip, CELL)
    assert cells_needed(made) == (made.words.classes, dict(made.words.domains))
    model = named(clip, {"ostrich": "car"})
    large = plan(model, Forget(["car"]), templates=TEMPLATES)
    nearness = dict(
        zip(large.keep, (large.keep_rows @ large.forget_rows.mT)[:, 0].tolist(), strict=True)
    )
    nearest = sorted(nearness, key=lambda name: -nearness[name])[:64]
    classes, domains = cells_needed(large)
    assert len(large.words.classes) > 900 and set(classes) == {"car", *nearest}
    assert [c for c in large.words.classes if c in classes] == list(classes)
    assert domains == {"photo": "photo"}  # one is enough, and a thousand names cost enough
    mine = plan(model, Forget(["car"]), templates=TEMPLATES, classes=["car", *nearest[:9]])
    # The control: a short list stays whole, in every domain.
    assert cells_needed(mine) == (mine.words.classes, dict(mine.words.domains))


def test_pictures_made_by_the_model_itself_forget_a_cell(clip, fresh, tmp_path):
    choices = {
        "classes": ["cat", "car", "dog"],
        "domains": {"drawn": "sketch", "taken": "photo"},
    }
    made = plan(clip, Forget(["car"], ["taken"]), **choices)
    synthesis = Synthesis(each=2)
    visual = synthesise_for(clip, made, synthesis, quiet=True, cache=tmp_path, space="mlp")
    f = visual.features
    assert (f.class_names, f.domain_names) == cells_shown(made) and len(f) == 12
    assert visual.made_of == "pictures" and visual.mlp is not None
    edit = erase(clip, made, visual=visual)
    assert edit.provenance["prototypes"]["synthesis"]["each"] == 2
    places = [mini.CLASSES.index(name) for name in made.words.classes]
    columns = [mini.DOMAINS.index(word) for word in made.words.domains.values()]
    text = class_prototypes(clip, made.words.classes, made.words.class_templates)

    def grid(model: Clip) -> Tensor:
        shown = fresh[places][:, columns]
        z = model.encode_image(shown.flatten(0, 2)).double()
        predicted = (z @ text.mT).argmax(-1).reshape(shown.shape[:3])
        return (predicted == torch.arange(len(places))[:, None, None]).double().mean(-1)

    before, after = grid(clip), grid(edit.fold(clip))
    assert before.min() >= 0.8  # the control: untouched
    assert after[made.mask].max() < 0.25 and after[~made.mask].mean() > 0.9


def cells_shown(made) -> tuple[tuple[str, ...], tuple[str, ...]]:
    classes, domains = cells_needed(made)
    return classes, tuple(domains)


def test_pictures_that_are_none_to_the_model_are_refused_or_said(clip):
    """Without a step of ascent the pictures of every cell are the same."""
    choices = {"classes": ["cat", "car", "dog"], "domains": {"sketch": "sketch", "photo": "photo"}}
    starts, refused = Synthesis(each=1, steps=0), []
    for class_ in choices["classes"]:
        for domain in choices["domains"]:
            made = plan(clip, Forget([class_], [domain]), **choices)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                try:
                    synthesise_for(clip, made, starts, quiet=True)
                except ValueError as error:
                    refused.append(f"{class_}/{domain}")
                    assert f"in 1 of the forgotten cells: {refused[-1]}; give real" in str(error)
                else:
                    assert "for its own cell in 5 of 6 cells" in str(said[0].message)
    assert len(refused) == 5
