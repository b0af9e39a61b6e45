"""Finding a network's weights in a file whose names have other prefixes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from engines.errors import DeployError

if TYPE_CHECKING:
    import torch
    from torch import nn

_DEEPEST = 16  # dictionaries in dictionaries
# What torch.compile and DataParallel put into the names of the modules that they wrap.
_WRAPPING = ("_orig_mod", "module")
_NAMED = 5  # tensors in a message


def flatten(content: Any, prefix: str = "", outer: tuple[Any, ...] = ()) -> dict[str, torch.Tensor]:
    """Returns all tensors in nested dictionaries, by their keys joined by dots.

    What is not a tensor, such as the number of an epoch, is left out.

    Args:
        prefix: What the names begin with.
        outer: The dictionaries around this one; one that contains itself is not followed again.

    Raises:
        ValueError: Two tensors have the same name.
    """
    import torch

    is_inside_itself = any(content is other for other in outer)
    if not isinstance(content, Mapping) or is_inside_itself or len(outer) >= _DEEPEST:
        return {}
    tensors: dict[str, torch.Tensor] = {}
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, torch.Tensor):
            inside = {name: value}
        else:
            inside = flatten(value, f"{name}.", (*outer, content))
        if twice := sorted(tensors.keys() & inside.keys()):
            raise ValueError(f"two tensors are called {twice[0]}")
        tensors |= inside
    return tensors


def select(
    held: Mapping[str, torch.Tensor], network: nn.Module, key: str | None, where: str
) -> tuple[dict[str, torch.Tensor], str]:
    """Returns the tensors of a file that have the names and shapes of a network's.

    Their names may all have a prefix, such as `model.` or `state_dict.module.`, or lack one that
    the network's have. Tensors outside of that prefix are left out.

    Args:
        held: All tensors of the file.
        key: The prefix to take, without its last dot, if the user gave one.
        where: The file, for messages.

    Returns:
        The tensors by the network's names, and what was done, for people; "" if nothing. If no
        prefix fits, all tensors of the file by their own names.

    Raises:
        DeployError: Several prefixes fit, or the one given does not occur.
    """
    wanted = network.state_dict()
    # A network may call a module of its own `module`.
    plain = _unwrapped(held) if _unwrapped(wanted).keys() == wanted.keys() else dict(held)
    if key is not None:
        key = key.rstrip(".")
        group = _under(plain, f"{key}.") or _under(dict(held), f"{key}.")
        if not group:
            raise DeployError(
                f"{where} has no tensors under {key!r}; it holds {listed(held)}",
                "give the first parts of their names with --weights-key",
            )
        inside = _under(group, "", _common_prefix(wanted))
        if _fits(inside, wanted, network) and not _fits(group, wanted, network):
            group = inside
        return _tied(group, network), f"took the {len(group):,} tensors under {key!r}"
    complete: list[str] = []
    for lacking in dict.fromkeys(("", _common_prefix(wanted))):
        complete = [
            prefix
            for prefix in _prefixes(plain, wanted, network, lacking)
            if _fits(_under(plain, prefix, lacking), wanted, network)
        ]
        if complete:
            break
    put = f"put {lacking!r} before the names" if lacking else ""
    if "" in complete:
        return _tied(_under(plain, "", lacking), network), put
    if not complete:
        return _tied(plain, network), ""
    if len(complete) > 1:
        names = ", ".join(prefix.rstrip(".") for prefix in complete)
        raise DeployError(
            f"{where} holds the model's weights {len(complete)} times, under {names}",
            f"choose one, as with --weights-key {complete[0].rstrip('.')}",
        )
    (prefix,) = complete
    group = _under(plain, prefix, lacking)
    note = f"took the {len(group):,} tensors under {prefix.rstrip('.')!r}"
    if others := len(plain) - len(group):
        note += f" and left out {others:,} others"
    note += f" ({put})" if put else ""
    return _tied(group, network), note


def shared(network: nn.Module) -> list[list[str]]:
    """Returns the names of each tensor of a network; tied weights have several."""
    names: dict[int, list[str]] = {}
    for name, tensor in network.state_dict(keep_vars=True).items():
        names.setdefault(id(tensor), []).append(name)
    return [*names.values()]


def listed(tensors: Mapping[str, torch.Tensor]) -> str:
    """Returns how many tensors there are, with the names and shapes of the first."""
    first = [f"{name} {list(tensor.shape)}" for name, tensor in tensors.items()][:_NAMED]
    more = ", ..." if len(tensors) > _NAMED else ""
    return f"{len(tensors):,} tensors: {', '.join(first)}{more}"


def _unwrapped(held: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Removes the parts of names that wrappers add, unless two tensors would have one name."""
    renamed = {}
    for name, tensor in held.items():
        renamed[".".join(part for part in name.split(".") if part not in _WRAPPING)] = tensor
    return renamed if len(renamed) == len(held) else dict(held)


def _under(
    tensors: Mapping[str, torch.Tensor], prefix: str, lacking: str = ""
) -> dict[str, torch.Tensor]:
    """Returns the tensors under a prefix, by names in which another one takes its place."""
    return {
        f"{lacking}{name.removeprefix(prefix)}": tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _prefixes(
    held: Mapping[str, torch.Tensor],
    wanted: Mapping[str, torch.Tensor],
    network: nn.Module,
    lacking: str,
) -> list[str]:
    """Returns the prefixes under which the file has the tensor with the longest name.

    Args:
        lacking: What the network's names begin with and the file's do not.
    """
    if not wanted:
        return [""]
    # Of tied weights, a file may lack one.
    longest = max(wanted, key=len)
    anchors = next((names for names in shared(network) if longest in names), [longest])
    tails = [anchor.removeprefix(lacking) for anchor in anchors]
    ends = [name.removesuffix(tail) for tail in tails for name in held if name.endswith(tail)]
    return [prefix for prefix in dict.fromkeys(ends) if not prefix or prefix.endswith(".")]


def _common_prefix(wanted: Mapping[str, torch.Tensor]) -> str:
    first = {name.partition(".")[0] for name in wanted}
    return f"{first.pop()}." if len(first) == 1 else ""


def _fits(
    group: Mapping[str, torch.Tensor],
    wanted: Mapping[str, torch.Tensor],
    network: nn.Module,
) -> bool:
    group = _tied(group, network)
    return group.keys() >= wanted.keys() and all(
        group[name].shape == tensor.shape for name, tensor in wanted.items()
    )


def _tied(group: Mapping[str, torch.Tensor], network: nn.Module) -> dict[str, torch.Tensor]:
    """Adds tensors that the network shares with others, of which a file may hold one only."""
    complete = dict(group)
    for names in shared(network):
        known = next((name for name in names if name in group), None)
        if known is not None:
            complete |= {name: group[known] for name in names if name not in group}
    return complete
