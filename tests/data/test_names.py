"""Folder names become words by one rule."""

from __future__ import annotations

from pathlib import Path

import pytest

from nullspace_unlearn.data.names import check_domains, spoken


@pytest.mark.parametrize(
    "folder, word",
    [
        ("car", "car"),
        ("sedan_car", "sedan car"),
        ("AnnualCrop", "Annual Crop"),
        ("PermanentCrop", "Permanent Crop"),
        ("art__painting_", "art painting"),
        ("McDonalds", "McDonalds"),
        ("iPhone", "iPhone"),
        ("T-shirt", "T-shirt"),
        ("USA", "USA"),
        ("n02085620-Chihuahua", "Chihuahua"),
        ("n02085620_toy_dog", "toy dog"),
        ("n02958343", "car"),
        ("n01440764", "tench"),
        ("n0295834", "n0295834"),  # no WordNet number
        ("_", "_"),
    ],
)
def test_the_word_of_a_class(folder: str, word: str) -> None:
    said = spoken("class", [folder])
    assert said.words == (word,)
    assert bool(said.said) == (word != folder)  # what differs is said


def test_numbers_are_names_for_classes_alone() -> None:
    assert spoken("domain", ["n02958343", "line_art"]).words == ("n02958343", "line art")
    with pytest.raises(ValueError, match="'n99999999' is a WordNet number .* --class-word n99999"):
        spoken("class", ["n99999999"])
    assert spoken("class", ["n99999999"], {"n99999999": "thing"}).words == ("thing",)


def test_the_thousand_are_called_as_open_clip_calls_them() -> None:
    """Oracle: the order of the sorted numbers is that of open_clip's names."""
    from importlib import resources

    from open_clip import IMAGENET_CLASSNAMES

    file = resources.files("timm.data") / "_info" / "imagenet_synsets.txt"
    numbers = sorted(file.read_text().split())
    words = spoken("class", numbers).words
    assert words == tuple(IMAGENET_CLASSNAMES)
    assert len(set(words)) == 998  # two missiles, two pairs of sunglasses


def test_what_the_user_says_goes_before() -> None:
    names = ("sedan_car", "AnnualCrop")
    said = spoken("class", names, {"sedan_car": "limousine", "elsewhere": "x"})
    assert said.words == ("limousine", "Annual Crop")
    assert said.said == ("prompts speak of classes AnnualCrop as 'Annual Crop'",)
    many = spoken("class", [f"a_{i}" for i in range(9)]).said
    assert len(many) == 1 and many[0].endswith("and 6 more")


@pytest.mark.parametrize("name", ["train", "Test", "val", "validation"])
def test_parts_of_a_data_set_are_no_domains(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} in 'root' is a part of the data, not a domain"):
        check_domains(Path("root"), ["photo", name])
    check_domains(Path("root"), ["photo", "trains"])  # control
