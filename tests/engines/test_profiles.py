"""Profiles as users write them."""

import pytest

from engines import profiles
from engines.errors import UsageError


def test_ranges_are_read_by_axis() -> None:
    assert profiles.parse(["batch=1", "batch=2:8:32/images.2=64:128:256"]) == (
        {"batch": (1, 1, 1)},
        {"batch": (2, 8, 32), "images.2": (64, 128, 256)},
    )
    assert profiles.parse([]) == ()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("batch", "cannot be read"),
        ("=1", "cannot be read"),
        ("batch=1:2", "cannot be read"),
        ("batch=-1", "cannot be read"),
        ("batch=1:2:3:4", "cannot be read"),
        ("batch=1/", "cannot be read"),
        ("batch=1/batch=2", "names batch twice"),
        ("batch=8:4:16", "'batch=8:4:16' do not rise from 1"),
        ("batch=0", "'batch=0' do not rise from 1"),
    ],
)
def test_other_words_are_refused_with_the_form(word: str, message: str) -> None:
    with pytest.raises(UsageError, match=message) as caught:
        profiles.parse([word])
    assert "AXIS=LEAST:USUAL:LARGEST" in caught.value.hint
