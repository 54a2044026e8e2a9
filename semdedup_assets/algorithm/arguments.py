"""What the one call is given, checked before any work: each error names the argument, what it is, and what to give."""

from numbers import Real
from operator import index
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor

_FLOATS = "float16, bfloat16, float32 or float64"


def described(value: object) -> str:
    """A value for a message: small ones as they are written, arrays and tables by their type."""
    is_small = value is None or isinstance(value, str | int | float | complex)
    return f"{value!r} ({type(value).__name__})" if is_small else type(value).__name__


def check_number(value: object, *, name: str, wanted: str) -> None:
    """Check that an argument is a real number.

    Raises:
        TypeError: it is not; names it.
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        message = f"{name}: {described(value)} is not a number; give {wanted}"
        raise TypeError(message)


def check_integer(value: object, *, name: str, least: int, without: str | None = None) -> None:
    """Check that an argument is a whole number.

    Args:
        value: of the argument.
        name: of the argument.
        least: the smallest number that it can be.
        without: what None means; None: it must be given.

    Raises:
        TypeError: it is none; names it.
        ValueError: it is too small; names it.
    """
    if value is None and without is not None:
        return
    also = f"; {without}" if without else ""
    try:
        number = None if isinstance(value, bool | np.bool_) else index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None:
        message = f"{name}: {described(value)} is not a whole number{also}"
        raise TypeError(message)
    if number < least:
        message = f"{name}: {number} is {'negative' if least == 0 else 'not a positive number'}{also}"
        raise ValueError(message)


def checked_k(k: Any, items: int) -> int:
    """The number of clusters: a suggestion for `auto` and None.

    Raises:
        TypeError: it is neither; names it.
        ValueError: it is not positive.
    """
    if k is None or (isinstance(k, str) and k == "auto"):
        from semdedup_assets.algorithm.kmeans import suggest_k

        return suggest_k(items)
    check_integer(k, name="k", least=1, without="'auto' chooses a number of clusters")
    return index(k)


def checked_vectors(vectors: Any) -> "Tensor":
    """The vectors as a tensor of the same memory, where they have a type that torch knows.

    Raises:
        TypeError: they are no array or tensor of numbers; says what they are and what to give.
        ValueError: they are not (n, d) floats, there are none, or a row is zero or not finite; names the row.
    """
    import torch

    from semdedup_assets.algorithm.unit_rows import as_tensor, check_rows

    tensor = _checked_tensor(vectors) if isinstance(vectors, torch.Tensor) else as_tensor(_checked_array(vectors))
    if len(tensor) == 0 or tensor.shape[1] == 0:
        message = f"vectors: there are no {'rows to deduplicate' if len(tensor) == 0 else 'numbers in the rows'}"
        raise ValueError(message)
    check_rows(tensor)
    return tensor


def _checked_tensor(vectors: "Tensor") -> "Tensor":
    import torch

    if vectors.layout != torch.strided or vectors.device.type == "meta":
        message = f"vectors: a tensor of layout {vectors.layout} on {vectors.device}; give a dense one, such as vectors.to_dense()"
        raise TypeError(message)
    known = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
    _check_shape(tuple(vectors.shape), str(vectors.dtype), is_float=vectors.dtype in known)
    return vectors.detach()


def _checked_array(vectors: Any) -> np.ndarray:
    """Whatever NumPy makes an array of floats of, in the machine's byte order."""
    if hasattr(vectors, "toarray"):
        message = f"vectors: {type(vectors).__name__} is sparse; give vectors.toarray(), if that fits into memory"
        raise TypeError(message)
    if isinstance(vectors, str | bytes) or (
        not hasattr(vectors, "__array__") and not isinstance(vectors, list | tuple)
    ):
        message = f"vectors: {described(vectors)} is neither a NumPy array nor a torch tensor; give (n, d) floats"
        raise TypeError(message)
    if isinstance(vectors, np.ma.MaskedArray) and np.ma.is_masked(vectors):
        message = "vectors: a masked array with masked numbers; exclude these rows, or fill them"
        raise ValueError(message)
    try:
        array: np.ndarray = np.asarray(vectors)
    except (ValueError, TypeError) as error:
        message = f"vectors: {type(vectors).__name__} gives no array ({error}); give (n, d) floats"
        raise ValueError(message) from error
    if array.dtype == object:
        message = (
            f"vectors: {type(vectors).__name__} of Python objects, which may be of several lengths or kinds; give floats, "
            "such as np.stack(list(vectors)).astype(np.float32)"
        )
        raise TypeError(message)
    _check_shape(array.shape, str(array.dtype), is_float=array.dtype.kind == "f" and array.dtype.itemsize <= 8)
    native = np.dtype(array.dtype.newbyteorder("="))
    return array.astype(native, copy=False)


def _check_shape(shape: tuple[int, ...], dtype: str, *, is_float: bool) -> None:
    if not is_float:
        message = f"vectors: expected an (n, d) array of floats ({_FLOATS}), got {dtype} of shape {shape}; convert them, such as to float32"
        raise ValueError(message)
    if len(shape) != 2:
        one = "; one vector is vectors[None]" if len(shape) == 1 else ""
        message = f"vectors: expected an (n, d) array of floats, got shape {shape}{one}"
        raise ValueError(message)


def checked_ids(ids: Any, n: int) -> np.ndarray:
    """(n,) uint64: what is given, or the row numbers.

    Raises:
        ValueError: they are not n distinct non-negative integers.
    """
    if ids is None:
        return np.arange(n, dtype=np.uint64)
    found: np.ndarray = np.asarray(ids)
    if found.shape != (n,) or found.dtype.kind not in "iu":
        wrong = f"{found.dtype} of shape {found.shape}"
    elif n and found.min() < 0:
        wrong = f"{found.min()} among them"
    else:
        values, counts = np.unique(found, return_counts=True)
        if len(values) == n:
            return found.astype(np.uint64)
        wrong = f"{values[counts > 1][0]} more than once"
    message = f"ids: expected {n} distinct non-negative integers, one per row; got {wrong}"
    raise ValueError(message)


def checked_protection(protect: Any, n: int) -> np.ndarray:
    """(n,) bool, as it is given.

    Raises:
        TypeError: it is no NumPy array.
        ValueError: it is none of n bools.
    """
    if not isinstance(protect, np.ndarray):
        message = f"protect: {type(protect).__name__} is no NumPy array; give np.asarray(protect, bool) of {n} rows"
        raise TypeError(message)
    if protect.shape != (n,) or protect.dtype != bool:
        message = f"protect: expected a NumPy array of {n} bools, one per row"
        raise ValueError(message)
    return protect
