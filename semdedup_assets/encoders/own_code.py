"""Models that bring Python code of their own: it is never run, and nobody is asked whether to run it."""

import pickle
import threading
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, NoReturn

OWN_CODE = "needs Python code of its own, which is never run, and no setting allows it"

EMBED_YOURSELF = "name a model whose architecture the library has, or embed with your own program and read the vectors with `kind: vectors`"
"""What can be done instead of running the code of an encoder."""

_PICKLED = (
    "the weights are damaged, or a pickle of more than tensors, which could run code; convert them to .safetensors"
)

# Of two threads, the one that ends later would else restore what the other had put there.
_one_at_a_time = threading.RLock()


@contextmanager
def refusing_own_code() -> Generator[None, None, None]:
    """Refuse models whose configuration names Python code of their own (`auto_map`), while they are loaded.

    Transformers asks on standard input whether to run it where its caller says nothing, as OpenCLIP does; and what the
    configuration of a model gives OpenCLIP or sentence-transformers as arguments can say yes.

    Raises:
        ValueError: a model needs such code; `needs_own_code` knows it.
    """
    from transformers import dynamic_module_utils

    module: Any = dynamic_module_utils
    with _one_at_a_time:
        saved = {name: getattr(module, name) for name in ("TIME_OUT_REMOTE_CODE", "get_class_in_module")}
        # Without time for an answer nothing is asked; and through the other all code of a model comes.
        vars(module).update(TIME_OUT_REMOTE_CODE=0, get_class_in_module=_refuse)
        try:
            yield
        finally:
            vars(module).update(saved)


def _refuse(*_: Any, **__: Any) -> NoReturn:
    message = "the model contains custom code"
    raise ValueError(message)


def needs_own_code(error: Exception) -> bool:
    """Whether a model cannot be loaded because its own code is not run."""
    return "custom code" in str(error)


def why_not_loaded(error: Exception, remedy: str, *, instead: str) -> str:
    """Why a library cannot load a model, and what to do, as the end of a sentence.

    Args:
        error: what the library raised; of its lines the first is quoted, and what a colon leads to.
        remedy: in general.
        instead: of the remedy, where the model needs code of its own.
    """
    if needs_own_code(error):
        return f"{OWN_CODE}; {instead}"
    lines = [" ".join(line.split()) for line in str(error).splitlines() if line.strip()]
    cause = " ".join(lines[: 2 if lines[:1] and lines[0].endswith(":") else 1]) or type(error).__name__
    # Of a key that is missing, the message is the key alone.
    cause = f"{type(error).__name__}: {cause}" if isinstance(error, KeyError) else cause
    # PyTorch's own remedy would run what they hold.
    cause = _PICKLED if isinstance(error, pickle.UnpicklingError) or "weights_only" in cause else cause
    return f"cannot be loaded ({cause}); {remedy}"
