"""Checks of ensembles in Triton's configurations: whether their steps fit together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Any

from pipeline.serving import config as configs


@dataclass(frozen=True)
class Known:
    """A model that a step may run.

    Attributes:
        config: Its `ModelConfig`; None if it cannot be read.
        versions: The versions in its folder.
    """

    config: Any
    versions: Set[int]


def problems(config: Any, models: Mapping[str, Known], own: str) -> Iterator[str]:
    """Yields what is wrong with an ensemble, in words; nothing for another model.

    Args:
        config: Its `ModelConfig`.
        models: The models of the repository; empty if they are not known.
        own: The ensemble's name.
    """
    scheduled = config.HasField("ensemble_scheduling")
    if config.platform != "ensemble":
        if scheduled:
            yield 'it has ensemble_scheduling, but its platform is not "ensemble"'
        return
    steps = config.ensemble_scheduling.step
    if not steps:
        yield "it is an ensemble without a step: name its models in ensemble_scheduling"
        return
    if config.instance_group:
        yield "it is an ensemble with an instance_group, which belongs to the models of its steps"
    yield from _flow(config, models)
    for number, step in enumerate(steps, 1):
        for problem in _of_model(step, models.get(step.model_name), config):
            yield f"step {number} {problem}"
    if _runs_itself(own, config, models):
        yield "it runs itself, by its steps"


def _flow(config: Any, models: Mapping[str, Known]) -> Iterator[str]:
    """Yields tensors that are written or read by none, or that differ at their two ends."""
    steps = config.ensemble_scheduling.step
    whole = config.max_batch_size > 0 and all(_batched(models.get(one.model_name)) for one in steps)
    # What fills each tensor: an input of the ensemble, or an output of a step; None if unknown.
    sources: dict[str, Any] = {entry.name: entry for entry in config.input}
    for number, step in enumerate(steps, 1):
        outputs = _named(models.get(step.model_name), "output")
        for key, name in sorted(step.output_map.items()):
            if name in sources:
                yield f"step {number} writes {name!r}, which is written before"
            sources[name] = outputs.get(key)
    for number, step in enumerate(steps, 1):
        inputs = _named(models.get(step.model_name), "input")
        for key, name in sorted(step.input_map.items()):
            if name not in sources:
                yield f"step {number} reads {name!r} as {key!r}, which no step writes"
            else:
                what = f"step {number} gives {key!r} of {step.model_name!r} what"
                yield from _unlike(what, sources[name], "it", inputs.get(key), batched=whole)
    read = {name for step in steps for name in step.input_map.values()}
    for entry in config.input:
        if entry.name not in read:
            yield f"input {entry.name!r} is read by none of the steps"
    for entry in config.output:
        if entry.name not in sources:
            yield f"output {entry.name!r} is written by none of the steps"
        else:
            what = f"output {entry.name!r}"
            yield from _unlike(what, entry, "its step", sources[entry.name], batched=whole)


def _of_model(step: Any, known: Known | None, config: Any) -> Iterator[str]:
    """Yields how a step does not fit the model that it runs."""
    if not step.model_name:
        yield "has no model_name"
    elif known is None:
        yield f"runs {step.model_name!r}, which is not in this repository"
    for side, names in (("input", step.input_map), ("output", step.output_map)):
        if not names:
            yield f"has no {side}_map"
        of_model = _named(known, side)
        for key in sorted(names):
            if of_model and key not in of_model:
                there = ", ".join(of_model)
                yield f"names {side} {key!r} of {step.model_name!r}, which has {there}"
    for key, entry in _named(known, "input").items():
        if key not in step.input_map and not entry.optional:
            yield f"does not give input {key!r} of {step.model_name!r}"
    if known is None or known.config is None:
        return
    if step.model_version > 0 and step.model_version not in known.versions:
        yield f"runs version {step.model_version} of {step.model_name!r}, which is not there"
    largest, of_step = config.max_batch_size, known.config.max_batch_size
    if largest > of_step > 0:
        yield (
            f"runs {step.model_name!r} with max_batch_size {of_step}, and that of the ensemble is"
            f" {largest}"
        )


def _batched(known: Known | None) -> bool:
    return known is not None and known.config is not None and known.config.max_batch_size > 0


def _named(known: Known | None, side: str) -> dict[str, Any]:
    """Returns the inputs or outputs in a model's configuration, by name."""
    if known is None or known.config is None:
        return {}
    return {entry.name: entry for entry in getattr(known.config, side)}


def _unlike(what: str, one: Any, where: str, other: Any, batched: bool) -> Iterator[str]:
    """Yields how the type or the dims of a tensor differ at its two ends, if both are known.

    Args:
        batched: Triton adds the batch at both ends.
    """
    if one is None or other is None:
        return
    kinds = [configs.type_of(entry) for entry in (one, other)]
    if kinds[0] != kinds[1]:
        yield f"{what} is {kinds[0]}; {where} has {kinds[1]}"
    dims = [
        list(entry.reshape.shape if entry.HasField("reshape") else entry.dims)
        for entry in (one, other)
    ]
    # With and without a batch of its own, the number of axes may differ.
    other_rank = len(dims[0]) != len(dims[1])
    other_axis = not other_rank and any(
        first != second and -1 not in (first, second) for first, second in zip(*dims, strict=True)
    )
    if (batched and other_rank) or other_axis:
        yield f"{what} has dims {dims[0]}; {where} has {dims[1]}"


def _runs_itself(own: str, config: Any, models: Mapping[str, Known]) -> bool:
    """Whether an ensemble runs itself, by its steps or by the ensembles among them."""
    seen: set[str] = set()
    waiting = [config]
    while waiting:
        for step in waiting.pop().ensemble_scheduling.step:
            if step.model_name == own:
                return True
            known = models.get(step.model_name)
            if known is not None and known.config is not None and step.model_name not in seen:
                seen.add(step.model_name)
                waiting.append(known.config)
    return False
