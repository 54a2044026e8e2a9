"""What a training resumes from after its process ended: written whole or not at all, and used by the same training only."""

import json
import os
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

_IDENTITY, _STATE = "identity.json", "state.pt"
# Seconds between two states at least, and how many times longer than writing one takes: 2 % of a training go into them.
_LEAST_SECONDS, _LEAST_RATIO = 0.25, 50


@dataclass
class ResumableState:
    """The folder in which a training keeps its state.

    Attributes:
        folder: local.
        due: by `time.monotonic`, when a state is next written.
    """

    folder: Path
    due: float = field(default_factory=lambda: time.monotonic() + _LEAST_SECONDS)

    @classmethod
    def of(cls, folder: Path, identity: dict[str, Any]) -> "ResumableState":
        """The state of a training; what another one left in the folder is removed.

        Args:
            folder: local; made where it is not there.
            identity: what determines the training, as JSON values.
        """
        known, expected = folder / _IDENTITY, json.dumps(identity, sort_keys=True)
        if not known.exists() or known.read_text(encoding="utf-8") != expected:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            known.write_text(expected, encoding="utf-8")
        return cls(folder)

    def read(self, device: "torch.device") -> dict[str, Any] | None:
        """What was written last; None where nothing was.

        Raises:
            ValueError: it is damaged; names it and the remedy.
        """
        import torch

        path = self.folder / _STATE
        try:
            state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        except FileNotFoundError:
            return None
        except Exception as error:  # torch reports damage by whatever the unpickler meets
            message = f"{path}: cannot be read ({error}); remove it, and the training begins anew"
            raise ValueError(message) from error
        return state

    def write(self, state: dict[str, Any]) -> None:
        """Replace what was written last."""
        import torch

        started, temporary = time.monotonic(), self.folder / f"{_STATE}.tmp"
        with temporary.open("wb") as stream:
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self.folder / _STATE)
        self.due = time.monotonic() + max(_LEAST_SECONDS, _LEAST_RATIO * (time.monotonic() - started))
