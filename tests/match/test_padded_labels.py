"""Labels sorted by image."""

from __future__ import annotations

import pytest
import torch

from rebalance.match.padded import padded_labels

SIZE = (100, 200)  # height, width


def test_by_hand() -> None:
    image = torch.tensor([0.0, 2, 2])
    boxes = torch.tensor([[0.5, 0.5, 0.1, 0.2], [0.25, 0.1, 0.5, 0.2], [0.75, 0.75, 0.5, 0.5]])
    found = padded_labels(image, torch.tensor([3.0, 0, 7]), boxes, images=4, size=SIZE)
    none = [0.0, 0, 0, 0]
    expected = [
        [[90, 40, 110, 60], none],  # centre 100, 50; 20 x 20 pixels
        [none, none],
        [[0, 0, 100, 20], [100, 50, 200, 100]],
        [none, none],
    ]
    torch.testing.assert_close(found.boxes, torch.tensor(expected, dtype=torch.float32))
    assert found.classes.tolist() == [[3, 0], [0, 0], [0, 7], [0, 0]]
    assert found.valid.tolist() == [[True, False], [False, False], [True, True], [False, False]]


@pytest.mark.parametrize("most", [None, 0])
def test_no_labels(most: int | None) -> None:
    found = padded_labels(torch.zeros(0), torch.zeros(0), torch.zeros(0, 4), images=3, size=SIZE, most=most)
    assert [x.shape for x in found] == [(3, 0, 4), (3, 0), (3, 0)]
    assert found.valid.dtype == torch.bool


def test_the_number_counted_on_the_host_gives_the_same() -> None:
    g = torch.Generator().manual_seed(0)
    image = torch.randint(5, (20,), generator=g).sort().values
    classes, boxes = torch.randint(9, (20,), generator=g), torch.rand(20, 4, generator=g)
    counted = padded_labels(image, classes, boxes, images=6, size=SIZE)
    given = padded_labels(image, classes, boxes, images=6, size=SIZE, most=int(image.bincount().max()))
    for a, b in zip(counted, given, strict=True):
        assert torch.equal(a, b)
    assert counted.valid.sum(1).tolist() == image.bincount(minlength=6).tolist()
    # every label is there once, in its order
    assert torch.equal(counted.classes[counted.valid], classes)
