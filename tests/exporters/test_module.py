"""The module that is exported: preprocessing and network in one."""

import numpy as np
import torch


def test_preprocessing_enlarges_as_pillow_does() -> None:
    from PIL import Image

    from exporters.module import Preprocess

    image = np.random.default_rng(0).integers(0, 256, (28, 28), dtype=np.uint8)
    wanted = np.asarray(Image.fromarray(image).resize((96, 96), Image.Resampling.BILINEAR))
    enlarged = Preprocess(size=(96, 96))(torch.from_numpy(image)[None, None])[0, 0] * 255
    assert np.abs(enlarged.numpy() - wanted).max() <= 1  # Pillow rounds to whole numbers, twice
