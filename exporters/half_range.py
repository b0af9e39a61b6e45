"""When a number has left the range of a half type."""

from __future__ import annotations

# Values that come this near to the largest number of the type have left it: other inputs may well
# give twice what the golden ones do.
HEADROOM = 0.5
# Below its least normal number, a type loses a digit with each halving: that many bits may be lost.
LOST_BITS = 2
# A constant that its type holds with a greater relative error has lost its digits.
CONSTANT_ERROR = 0.01
