"""The rounding noise of a row, measured by runs with random rounding."""

from pathlib import Path

import numpy as np

from pipeline.golden import noise


def test_random_runs_add_up_one_by_one_as_engines_do() -> None:
    import torch

    from pipeline.golden import rounding

    grey = torch.full((2, 3, 150, 150), 0.3712)
    mixed = torch.rand(2, 3, 150, 150, generator=torch.Generator().manual_seed(0))
    for images, least, most in ((grey, 100, 10_000), (mixed, 0.5, 100)):
        for reduce in (
            lambda x: x.mean((2, 3)),
            lambda x: x.sum((-1, -2), keepdim=True),
            lambda x: torch.nn.functional.adaptive_avg_pool2d(x, 1),
            lambda x: x.mean((0, 2, 3)),
        ):
            exact = reduce(images.double())
            with torch.inference_mode(), rounding.approximate(0):
                computed = reduce(images)
            assert computed.shape == exact.shape
            assert computed.dtype == torch.float32
            units = (computed - exact).abs().max() / exact.abs().max() * 2**23
            assert least < units < most
    whole = torch.arange(24.0).reshape(2, 3, 4)
    with rounding.approximate(0):
        assert torch.equal(whole.mean(1), whole.double().mean(1).float())
        assert torch.equal(
            whole.sum((0, 2), keepdim=True), whole.double().sum((0, 2), True).float()
        )


def test_runs_with_moved_weights_measure_rounding_noise(tmp_path: Path) -> None:
    """Where one run is right by chance, the others are not."""
    import torch
    from torch import nn

    from exporters.module import Served
    from pipeline.golden.reference import ExactModel, make_reference
    from pipeline.golden.reference_cache import ReferenceCache
    from pipeline.golden.rows import Rows
    from pipeline.models import Model

    torch.manual_seed(0)
    network = nn.Linear(4, 3).eval()
    served = Served(network, None).eval()
    image = np.zeros((8, 4), np.float32)
    image[:, 0] = 1.0  # a single product, and a sum of two: nearly nothing to round
    model = Model(network=network, inputs={"x": image})
    cases = tuple(f"row {index}" for index in range(8))
    rows = Rows({"x": image}, cases, np.zeros(0, np.int64))
    cache = ReferenceCache(tmp_path / "kept.npz", "")
    computed = make_reference(
        model,
        served,
        ExactModel(model, ("y",)),
        rows,
        "fp32",
        None,
        cache,
        noise_runs=4,
        max_drop=0.01,
    )
    alone = noise.measure(computed.reference["y"], [computed.native["y"]])
    assert (computed.noise["y"][:, 0] > alone[:, 0]).all()
    unit = 2.0**-23 * np.abs(computed.reference["y"]).max()
    assert (computed.noise["y"][:, 1] < 3 * unit).all()


def test_an_approximated_function_may_be_off_by_a_unit_of_its_range() -> None:
    """Far out, a sigmoid is nearly zero, and approximations have no correct digit there."""
    import torch
    from torch import nn

    from exporters.module import Served
    from pipeline.golden.rounding import at_random

    x = torch.full((1, 4), -12.0)
    for module, size in ((nn.Sigmoid(), 1.0), (nn.SiLU(), 12.0), (nn.SiLU(inplace=True), 12.0)):
        served = Served(module, None)
        with torch.inference_mode():
            (exact,) = served(x.clone())
            errors = []
            for seed in range(8):
                with at_random(served, seed) as rounded_at_random:
                    (result,) = rounded_at_random(x.clone())
                errors += (result - exact).ravel().tolist()
        assert {round(error / (size * 2**-23), 1) for error in errors} == {-1.0, 1.0}
    with at_random(Served(nn.ReLU(), None), 0) as exactly, torch.inference_mode():
        assert (exactly(x)[0] == 0).all()
