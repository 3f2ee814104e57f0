"""Windows of time warping: which columns of each row may be entered."""

from __future__ import annotations

from typing import Any

from .._check import need_count
from ..backend import Array, Backend

WINDOWS = ("sakoe_chiba", "slanted_band", "itakura")


def need_window(window: Any) -> tuple[str, int] | None:
    """A window's name and radius.

    Raises:
        TypeError, ValueError: not None, ("sakoe_chiba", radius), ("slanted_band", radius) or "itakura".
    """
    if window is None:
        return None
    name, *rest = window if isinstance(window, tuple | list) and window else (window,)
    if isinstance(name, str) and name in WINDOWS:
        if name == "itakura" and not rest:
            return name, 0
        if name != "itakura" and len(rest) == 1:
            return name, need_count(f"window: radius of {name}", rest[0], 0)
    wanted = '("sakoe_chiba", radius), ("slanted_band", radius), "itakura" or None'
    raise ValueError(f"window: expected {wanted}, got {window!r}")


def bounds_of(backend: Backend, window: tuple[str, int] | None, corners: Array, num_rows: int) -> Array:
    """(B, N, 2): first and last column of each row, the last below the first where there is none.

    Args:
        corners: (B, 2), last row and column of each grid.
    """
    xp = backend.xp
    rows = xp.astype(backend.arange(num_rows, like=corners), corners.dtype)[None, :]
    last, end = corners[:, :1], corners[:, 1:]
    name, radius = window or ("", 0)
    if name == "sakoe_chiba":
        low, high = rows - radius, rows + radius
    elif name == "slanted_band":
        span = xp.where(last == 0, 1, last)
        middle = rows * end
        low, high = -(-middle // span) - radius, middle // span + radius
    elif name == "itakura":
        # j <= 2 i, i <= 2 j + 1, and from the other corner j >= M - 2 N + 2 i + 1, 2 j <= i - N + 2 M
        low = xp.maximum(rows // 2, end - 2 * last + 2 * rows)
        high = xp.minimum(2 * rows, (rows - last + 2 * end + 1) // 2)
    else:
        low, high = 0 * rows, 0 * rows + end
    low, high = xp.where(low < 0, 0, low), xp.minimum(high, end)
    is_row = rows <= last
    low, high = xp.broadcast_arrays(xp.where(is_row, low, 1), xp.where(is_row, high, 0))
    return xp.stack([low, high], axis=-1)
