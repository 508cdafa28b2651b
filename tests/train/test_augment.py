"""Augmentation: the identity and the mirror where they should be, and never a new colour."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from nullspace_unlearn.train import augment as module
from nullspace_unlearn.train.augment import augment


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(n: int, rows: int = 12, columns: int = 12) -> Tensor:
    return torch.randn(n, 3, rows, columns, generator=generator(9))


@pytest.mark.parametrize("rows, columns", [(12, 12), (9, 14)])
def test_without_a_crop_each_image_is_itself_or_its_mirror_image(
    rows: int, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pictures(64, rows, columns)
    cropped = augment(images, generator())
    monkeypatch.setattr(module, "SMALLEST", 1.0)
    made = augment(images, generator())

    def itself(some: Tensor) -> Tensor:
        return (some - images).abs().amax((1, 2, 3)) < 1e-4

    def mirrored(some: Tensor) -> Tensor:
        return (some - images.flip(-1)).abs().amax((1, 2, 3)) < 1e-4

    assert (itself(made) ^ mirrored(made)).all()
    assert 16 < itself(made).sum() < 48
    assert not (itself(cropped) | mirrored(cropped)).any()  # control


def test_what_is_symmetric_has_no_mirror_image(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(16)
    symmetric = images + images.flip(-1)
    monkeypatch.setattr(module, "SMALLEST", 1.0)
    assert torch.allclose(augment(symmetric, generator()), symmetric, atol=1e-4)
    assert not torch.allclose(augment(images, generator()), images, atol=1e-1)  # control


def test_a_crop_is_a_square_inside_that_keeps_enough_of_the_area() -> None:
    """Oracle: an image whose first two channels are the coordinates says where each pixel is."""
    size = 32
    axis = (torch.arange(size) + 0.5) / size * 2 - 1
    grid = torch.stack([axis.expand(size, size), axis[:, None].expand(size, size)])
    images = torch.cat([grid, torch.zeros(1, size, size)]).expand(500, -1, -1, -1)
    x, y = augment(images, generator())[:, :2, 8:-8, 8:-8].unbind(1)  # no border here

    def line(values: Tensor) -> tuple[Tensor, Tensor]:
        """Slope and middle of a coordinate that must be linear in the same one of the result."""
        slope = (values[:, -1] - values[:, 0]) / (axis[-9] - axis[8])
        middle = values.mean(1)
        expected = middle[:, None] + slope[:, None] * axis[8:-8]
        assert torch.allclose(values, expected, atol=1e-4)
        return slope, middle

    across, right = line(x.mean(1))
    along, down = line(y.mean(2))
    assert torch.allclose(across.abs(), along, atol=1e-4)
    area = along.square()
    assert module.SMALLEST - 1e-3 < area.min() < module.SMALLEST + 0.02
    assert 0.98 < area.max() <= 1 + 1e-3
    assert area.mean() == pytest.approx((1 + module.SMALLEST) / 2, abs=0.02)
    assert (along + right.abs() < 1 + 1e-3).all() and (along + down.abs() < 1 + 1e-3).all()
    assert right.min() < -0.1 and right.max() > 0.1 and down.min() < -0.1 and down.max() > 0.1
    assert 200 < (across < 0).sum() < 300


def test_no_value_lies_outside_those_of_its_image_and_channel() -> None:
    images = pictures(40)
    made = augment(images, generator())
    assert made.shape == images.shape and made.dtype == images.dtype
    assert (made.amin((2, 3)) >= images.amin((2, 3)) - 1e-5).all()
    assert (made.amax((2, 3)) <= images.amax((2, 3)) + 1e-5).all()
    constant = torch.full((5, 3, 8, 8), -1.7)
    assert torch.allclose(augment(constant, generator()), constant, atol=1e-5)


def test_it_follows_from_the_generator(fresh: None) -> None:
    images = pictures(20)
    made = augment(images, generator())
    assert torch.equal(made, augment(images, generator()))
    assert not torch.equal(made, augment(images, generator(1)))
    again = generator()
    assert not torch.equal(augment(images, again), augment(images, again))


@pytest.fixture
def fresh() -> Iterator[None]:
    """Torch's own randomness is neither read nor moved."""
    state = torch.get_rng_state()
    yield
    assert torch.equal(torch.get_rng_state(), state)
