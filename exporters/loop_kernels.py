"""Loop and Scan, of which the reference implementation leaves out some forms."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx.reference.ops import op_loop

from engines.contract import Array


class Loop(op_loop.Loop):
    """Runs without a condition, too, and puts what each run gives along a new first axis."""

    op_domain = ""

    def _run(
        self, *inputs: Any, context: Any = None, attributes: Any = None, **_options: Any
    ) -> Any:
        most, condition, *carried = inputs
        names = self.body.input_names  # type: ignore[attr-defined]
        limit = None if most is None else int(np.asarray(most).reshape(-1)[0])
        goes_on = condition is None or _is_true(condition)
        kept: list[list[Array]] = [[] for _ in range(self.K)]
        count = 0
        while goes_on and (limit is None or count < limit):
            feeds = dict(context or {})
            feeds |= zip(names, (np.array(count), np.array(goes_on), *carried), strict=True)
            outputs = self._run_body(feeds, attributes=attributes)  # type: ignore[attr-defined]
            goes_on, carried = _is_true(outputs[0]), outputs[1 : 1 + self.N]
            for values, value in zip(kept, outputs[1 + self.N :], strict=True):
                values.append(value)
            count += 1
        if kept and not count:
            raise ValueError("a Loop that does not run once gives outputs of unknown shapes")
        return (*carried, *map(np.stack, kept))


def _is_true(value: Any) -> bool:
    return bool(np.asarray(value).reshape(-1)[0])


KERNELS = [Loop]
