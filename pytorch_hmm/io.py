"""Models in files: safetensors, with what builds the module as JSON in the header. No code is loaded."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized

from .law import Law

if TYPE_CHECKING:
    from .hmm import BaseHMM

FORMAT = "pytorch-hmm 2"


def save(model: BaseHMM, path: str | os.PathLike[str]) -> None:
    """Write a model to `path`; an interrupted save leaves the file that was there.

    Raises:
        OSError: the folder does not exist or cannot be written to.
    """
    header = {
        "format": FORMAT,
        "model": json.dumps(_described(model, model._arguments())),
    }
    tensors = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    write(path, tensors, header)


def write(path: str | os.PathLike[str], tensors: dict[str, Any], header: dict[str, str]) -> None:
    """Write tensors and a header to `path`, wholly or not at all; the same ones as the same bytes."""
    content = serialized(tensors, header)
    size = int.from_bytes(content[:8], "little")
    described = json.loads(content[8 : 8 + size])
    # safetensors puts these in an order of chance
    described["__metadata__"] = dict(sorted(described["__metadata__"].items()))
    head = json.dumps(described, ensure_ascii=False).encode()
    head += b" " * (-len(head) % 8)
    replace(path, len(head).to_bytes(8, "little") + head + content[8 + size :])


def replace(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file whole or not at all: the name stands for the old content until the new one is on the disk.

    A process that is killed may leave a hidden file `.NAME.*.part` beside it, nothing else.

    Raises:
        OSError: the folder does not exist, cannot be written to, or the disk is full.
    """
    path = Path(path)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        with open(partial, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def read(path: str | os.PathLike[str], device: Any = "cpu") -> tuple[dict[str, Any], dict[str, str]]:
    """Tensors and header that `write` wrote to `path`.

    Raises:
        OSError: there is no such file. ValueError: it is damaged or something else.
    """
    path = Path(path)
    with open(path, "rb"):
        pass  # the error of a missing file is Python's own
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{path}: expected a file that save wrote, this one is damaged or something else: {error}"
        ) from None


def load(path: str | os.PathLike[str], base: type[BaseHMM], device: Any = "cpu") -> Any:
    """The model that `save` wrote to `path`.

    Args:
        base: what the model has to be.

    Raises:
        OSError: there is no such file. ValueError: it is not a whole file of `save`, or holds another model.
    """
    tensors, header = read(path, device)
    if header.get("format") != FORMAT:
        raise ValueError(f"{path}: expected a model in the format {FORMAT!r}, got {header.get('format')!r}")
    try:
        described = json.loads(header["model"])
        name = described["class"]
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path}: expected a description of the model in the header, got none: {error}") from None
    known: dict[str, Any] = _classes(base)
    if name not in known:
        raise ValueError(f"{path}: expected {' or '.join(sorted(known))}, got {name}")
    try:
        model = _built(described, known)
        model.to(device=device, dtype=tensors["initial_distribution.logits"].dtype)
        model.load_state_dict(tensors)
    except (TypeError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{path}: its tensors and its description do not fit each other: {error}") from None
    return model


def _described(module: BaseHMM | Law, arguments: dict[str, Any]) -> dict[str, Any]:
    """A module's class and arguments as JSON has them."""

    def plain(value: Any) -> Any:
        if isinstance(value, Law):
            return _described(value, value.arguments())
        return [plain(one) for one in value] if isinstance(value, list | tuple) else value

    return {"class": type(module).__name__, "arguments": {name: plain(x) for name, x in arguments.items()}}


def _built(described: dict[str, Any], known: dict[str, type[Any]]) -> Any:
    """The module that was described, of one of the classes `known`."""
    laws = _classes(Law)

    def made(value: Any) -> Any:
        if isinstance(value, dict):
            return _built(value, laws)
        return [made(one) for one in value] if isinstance(value, list) else value

    return known[described["class"]](**{name: made(value) for name, value in described["arguments"].items()})


def _classes(base: type[Any]) -> dict[str, type[Any]]:
    """The class and all below it, by name."""
    found = {base.__name__: base}
    for cls in base.__subclasses__():
        found |= _classes(cls)
    return found
