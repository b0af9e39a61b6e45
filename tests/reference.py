"""The course notebook's building blocks as plain loops, a reference for every backend."""

import numpy as np

Pair = tuple[int, int]


def output_shape(shape: Pair, kernel: Pair, padding: Pair = (0, 0), stride: Pair = (1, 1)) -> Pair:
    """Returns height and width of the output of a window that slides over a padded image.

    With p rows of padding in total, half of them on each side, the height is
    floor((n_h - k_h + p_h + s_h) / s_h), and the width likewise.

    Args:
        shape: Height and width of the image, n_h and n_w.
        kernel: Height and width of the window, k_h and k_w.
        padding: Rows on each side and columns on each side: p_h / 2 and p_w / 2.
        stride: Rows and columns from one window to the next, s_h and s_w.
    """
    height, width = (
        (n - k + 2 * p + s) // s for n, k, p, s in zip(shape, kernel, padding, stride, strict=True)
    )
    return height, width


def corr2d(x: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Two-dimensional cross-correlation of one channel.

    y[i, j] = sum over a, b of x[i + a, j + b] * k[a, b].

    Args:
        x: Image [n_h, n_w].
        k: Kernel [k_h, k_w].

    Returns:
        [n_h - k_h + 1, n_w - k_w + 1].
    """
    k_h, k_w = k.shape
    y = np.zeros((x.shape[0] - k_h + 1, x.shape[1] - k_w + 1))
    for i, j in np.ndindex(y.shape):
        for a, b in np.ndindex(k_h, k_w):
            y[i, j] += x[i + a, j + b] * k[a, b]
    return y


def corr2d_multi_in(x: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Cross-correlation of several input channels: y = sum over c of corr2d(x[c], k[c]).

    Args:
        x: Image [c_i, n_h, n_w].
        k: Kernel [c_i, k_h, k_w].

    Returns:
        [n_h - k_h + 1, n_w - k_w + 1].
    """
    y = corr2d(x[0], k[0])
    for channel in range(1, len(x)):
        y += corr2d(x[channel], k[channel])
    return y


def corr2d_multi_in_out(x: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Cross-correlation with several output channels: y[o] = corr2d_multi_in(x, k[o]).

    Args:
        x: Image [c_i, n_h, n_w].
        k: Kernels [c_o, c_i, k_h, k_w].

    Returns:
        [c_o, n_h - k_h + 1, n_w - k_w + 1].
    """
    return np.stack([corr2d_multi_in(x, kernel) for kernel in k])


def corr2d_multi_in_out_1x1(x: np.ndarray, k: np.ndarray) -> np.ndarray:
    """`corr2d_multi_in_out` for 1x1 kernels, as the matrix product [c_o, c_i] @ [c_i, n_h * n_w].

    Args:
        x: Image [c_i, n_h, n_w].
        k: Kernels [c_o, c_i, 1, 1].

    Returns:
        [c_o, n_h, n_w].
    """
    pixels = x.reshape(x.shape[0], -1)
    mixed = k.reshape(k.shape[0], -1) @ pixels
    return mixed.reshape(-1, *x.shape[1:])


def pool2d(x: np.ndarray, size: Pair, mode: str = "max") -> np.ndarray:
    """Pooling of one channel with stride 1.

    y[i, j] = the maximum, or the mean, of x[i : i + p_h, j : j + p_w].

    Args:
        x: Image [n_h, n_w].
        size: Height and width of the window, p_h and p_w.
        mode: "max" or "avg".

    Returns:
        [n_h - p_h + 1, n_w - p_w + 1].
    """
    y = np.zeros(output_shape(x.shape, size))
    for i, j in np.ndindex(y.shape):
        window = x[i : i + size[0], j : j + size[1]]
        y[i, j] = window.max() if mode == "max" else window.sum() / window.size
    return y


def conv2d(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    padding: Pair = (0, 0),
    stride: Pair = (1, 1),
) -> np.ndarray:
    """A convolutional layer, in float64.

    y[n, o, i, j] = bias[o] + sum over c, a, b of
    padded[n, c, i * s_h + a, j * s_w + b] * weight[o, c, a, b], where padded has zeros around x.

    Args:
        x: Images [n, c_i, n_h, n_w].
        weight: Kernels [c_o, c_i, k_h, k_w].
        bias: [c_o].
        padding: Rows and columns of zeros on each side.
        stride: s_h and s_w.

    Returns:
        [n, c_o, height, width], see `output_shape`.
    """
    kernel = weight.shape[2:]
    padded = _pad(x, padding, 0.0)
    y = np.zeros((len(x), len(weight), *output_shape(x.shape[2:], kernel, padding, stride)))
    for n, o, i, j in np.ndindex(y.shape):
        y[n, o, i, j] = bias[o] + (_window(padded[n], i, j, kernel, stride) * weight[o]).sum()
    return y


def max_pool2d(
    x: np.ndarray, size: Pair, padding: Pair = (0, 0), stride: Pair | None = None
) -> np.ndarray:
    """A maximum pooling layer; the padding is minus infinity, which is never the maximum.

    y[n, c, i, j] = max over a, b of padded[n, c, i * s_h + a, j * s_w + b].

    Args:
        x: Images [n, c, n_h, n_w].
        size: Height and width of the window.
        padding: Rows and columns on each side, at most half the window.
        stride: s_h and s_w; the size of the window where none is given.

    Returns:
        [n, c, height, width], see `output_shape`.
    """
    stride = stride or size
    padded = _pad(x, padding, -np.inf)
    y = np.zeros((*x.shape[:2], *output_shape(x.shape[2:], size, padding, stride)))
    for n, c, i, j in np.ndindex(y.shape):
        y[n, c, i, j] = _window(padded[n, c], i, j, size, stride).max()
    return y


def avg_pool2d(
    x: np.ndarray, size: Pair, padding: Pair = (0, 0), stride: Pair | None = None
) -> np.ndarray:
    """An average pooling layer, in float64; the zeros of the padding count.

    y[n, c, i, j] = (sum over a, b of padded[n, c, i * s_h + a, j * s_w + b]) / (p_h * p_w).

    Arguments and result are those of `max_pool2d`.
    """
    stride = stride or size
    padded = _pad(x, padding, 0.0)
    y = np.zeros((*x.shape[:2], *output_shape(x.shape[2:], size, padding, stride)))
    for n, c, i, j in np.ndindex(y.shape):
        y[n, c, i, j] = _window(padded[n, c], i, j, size, stride).sum() / (size[0] * size[1])
    return y


def _pad(x: np.ndarray, padding: Pair, value: float) -> np.ndarray:
    """Puts rows and columns of `value` around the images [n, c, n_h, n_w]; returns float64."""
    (p_h, p_w), (n_h, n_w) = padding, x.shape[2:]
    padded = np.full((*x.shape[:2], n_h + 2 * p_h, n_w + 2 * p_w), value)
    padded[:, :, p_h : p_h + n_h, p_w : p_w + n_w] = x
    return padded


def _window(x: np.ndarray, i: int, j: int, size: Pair, stride: Pair) -> np.ndarray:
    """Returns the part of the image [..., n_h, n_w] in the window at row i and column j."""
    top, left = i * stride[0], j * stride[1]
    return x[..., top : top + size[0], left : left + size[1]]
