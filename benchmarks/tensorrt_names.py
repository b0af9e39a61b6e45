"""The names that the code asks of TensorRT's modules, and the versions that have them.

    PYTHONPATH=. python benchmarks/tensorrt_names.py > benchmarks/results/tensorrt-names.md

Downloads the wheels (tests/engines/vendor_wheels.py has their versions) and imports their modules;
`make test-long` checks the same names.
"""

from __future__ import annotations

import sys
from collections import defaultdict

from tests.engines import vendor_names, vendor_wheels

MISSING = "**missing**"


def main() -> int:
    """Prints the table; returns 1 if a name is missing."""
    text = table()
    print(text, end="")
    return int(MISSING in text)


def table() -> str:
    """Returns the table in Markdown.

    Raises:
        UnavailableWheelError: A wheel could not be installed or imported.
    """
    versions: list[str] = []
    cells: dict[str, dict[str, str]] = defaultdict(dict)
    for wheels_name, wheels in vendor_wheels.WHEELS.items():
        contents = vendor_wheels.contents(wheels_name)
        versions.append(f"{wheels.module} {contents['version']}")
        interpreter = vendor_names.interpreted(contents, wheels.engine)
        for use in sorted(interpreter.uses, key=lambda use: (use.exists, use.optional)):
            missing = "absent" if use.optional else MISSING
            cells[use.name][versions[-1]] = "yes" if use.exists else missing
    groups: dict[tuple[str, ...], list[str]] = defaultdict(list)
    for name, row in sorted(cells.items()):
        owner, _, member = name.rpartition(".")
        groups[owner, *(row.get(version, "") for version in versions)].append(f"`{member}`")
    rows = [
        f"| {owner} | {', '.join(names)} | {' | '.join(row)} |"
        for (owner, *row), names in groups.items()
    ]
    return "\n".join(
        [
            "# Names that the engines ask of TensorRT\n",
            f"{len(cells)} names, derived from the source of the engines `tensorrt` and"
            " `tensorrt_rtx`, looked up in the imported modules of the vendor's wheels. Arguments"
            " of calls are compared with the signatures that the modules document. The bindings of"
            " the whole TensorRT are imported without its libraries, so none of their code was"
            " run.\n",
            "**yes**: it exists; **absent**: it does not, and the code asks before it uses it;"
            " empty: the code does not ask it of this version.\n",
            f"| of | names | {' | '.join(versions)} |",
            f"|{'---|' * (len(versions) + 2)}",
            *rows,
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
