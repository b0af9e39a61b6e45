"""The printed report of the train stage."""

import pytest

from pipeline.report import train


@pytest.mark.parametrize(
    ("correct", "epochs", "doubtful"), [(4, 10, True), (6, 10, True), (8, 10, False), (4, 0, False)]
)
def test_an_accuracy_that_may_be_chance_is_called_so(
    correct: int, epochs: int, doubtful: bool
) -> None:
    training = {
        "epochs": epochs,
        "images": 24,
        "batch_size": 16,
        "test_images": 12,
        "test_accuracy": correct / 12,
        "confusion": [[4, 0, 0], [4, 0, 0], [4, 0, 0]],
    }
    text = train.chance_doubt(training)
    assert bool(text) == doubtful
    if doubtful:
        assert "33.33% of 12 test images. It was trained for 20 steps" in text
