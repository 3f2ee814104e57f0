"""Machine code of the CPU kernels: compiled by Numba once a machine, kept on disk, loaded without Numba.

A kernel is compiled when a call first needs its variant. What is kept is the object code, named by a hash of all it
depends on: the sources, the compiler, the processor. Loading needs llvmlite alone, a tenth of a second, where Numba
would take four. A cache that cannot be written or read costs a compilation and nothing else. Processes that begin
together wait for the one that compiles, rather than do the same.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib
import importlib.metadata
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np

DIRECTORY = "HMM_FUNCTIONAL_CACHE_DIR"
"""Environment variable that says where object code is kept."""

PATIENCE = 120.0
"""Seconds to wait for another process's compilation: one that was stopped must not stop others."""

_ENTRY = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)
# what object code may ask of the process; anything else would end it when loaded
_KNOWN_SYMBOLS = re.compile(r"llvm\.|mem(set|cpy|move)$|log$|exp$")


class Entry:
    """A compiled function, taking the address of its fields and a thread's number; releases the interpreter's lock."""

    __slots__ = ("_function", "address")

    def __init__(self, address: int) -> None:
        self.address = address
        self._function = _ENTRY(address)

    def __call__(self, fields: int, thread: int) -> None:
        self._function(_RESULT, _PROBLEM, fields, thread)


_unused = np.zeros(2, np.int64)  # where Numba's convention returns a value and an exception
_RESULT, _PROBLEM = _unused.ctypes.data, _unused.ctypes.data + 8


def _after_fork() -> None:
    """A thread that held the lock is not in the child."""
    global _lock
    _lock = RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

_logger = logging.getLogger("hmm_functional")
_lock = RLock()
_entries: dict[tuple[Any, ...], Entry] = {}
_kept: list[Any] = []
_has_announced = False


@cache
def is_available() -> bool:
    """Whether kernels can be compiled here."""
    return find_spec("numba") is not None


def entry(module: str, *variant: Any) -> Entry:
    """The kernel `build(*variant)` of kernels/numba_<module>.py, as a function; "f32" and "f64" stand for types."""
    key = (module, *variant)
    found = _entries.get(key)
    if found is None:
        with _lock:
            found = _entries.get(key)
            if found is None:
                found = _entries[key] = _load(*_object(key))
    return found


def cache_directory() -> Path | None:
    """Where object code is kept: $HMM_FUNCTIONAL_CACHE_DIR, or pytorch-hmm in the user's cache; None if nowhere."""
    named = os.environ.get(DIRECTORY)
    if named is not None:
        return Path(named) if named else None
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "pytorch-hmm"
    except RuntimeError:  # no home
        return None


def _object(key: tuple[Any, ...]) -> tuple[str, bytes]:
    """Symbol and object code, from the cache or compiled."""
    directory = cache_directory()
    words = "-".join(str(int(word) if isinstance(word, bool) else word) for word in key)
    path = None if directory is None else directory / f"{words}-{_fingerprint()}.o"
    if path is not None and (kept := _read(path)) is not None:
        return kept
    _announce(directory)
    if path is None:
        return _compile(key)
    with _alone(path):
        if (kept := _read(path)) is not None:
            return kept
        symbol, code = _compile(key)
        _write(path, symbol, code)
    return symbol, code


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """No other process compiles for `path` meanwhile, as far as the system can tell; never waits past PATIENCE."""
    lock, handle = path.with_suffix(".lock"), None
    with suppress(ImportError, OSError):  # no such locks here, or nowhere to write
        import fcntl

        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    if handle is None:
        yield
        return
    try:
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            try:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)  # forked children do not hold it, the dead let go
                break
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:  # a file system without locks
                break
        yield
        with suppress(OSError):
            lock.unlink()
    finally:
        os.close(handle)


def _announce(directory: Path | None) -> None:
    global _has_announced
    if not _has_announced:
        _has_announced = True
        where = "nowhere, since no cache directory is known" if directory is None else f"in {directory}"
        _logger.warning("compiling CPU kernels for this machine, a few seconds each, once; kept %s", where)


_fingerprints: list[str] = []


def _fingerprint() -> str:
    """A hash of all that object code depends on."""
    if not _fingerprints:
        digest = hashlib.sha256()
        for path in sorted(Path(__file__).parent.glob("*.py")):
            if path.name.startswith("numba_") or path.name in ("layout.py", "compiled.py"):
                digest.update(path.read_bytes())
        target = _target()
        versions = [importlib.metadata.version(name) for name in ("numba", "llvmlite", "numpy")]
        for word in (*versions, *sys.version_info[:2], *target):
            digest.update(str(word).encode())
        _fingerprints.append(digest.hexdigest()[:24])
    return _fingerprints[0]


def _target() -> tuple[str, str, str]:
    """The machine: triple, processor, features."""
    import llvmlite.binding as llvm

    return llvm.get_process_triple(), llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()


def _read(path: Path) -> tuple[str, bytes] | None:
    """Symbol and code of a file that `_write` finished; None where there is none, or it is damaged."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, _, rest = content.partition(b"\n")
    if hashlib.sha256(rest).hexdigest().encode() != digest:
        return None
    symbol, _, code = rest.partition(b"\n")
    return symbol.decode(), code


def _write(path: Path, symbol: str, code: bytes) -> None:
    """Keep object code; another process may be doing the same."""
    content = symbol.encode() + b"\n" + code
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(hashlib.sha256(content).hexdigest().encode() + b"\n" + content)
            os.replace(name, path)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        _logger.info("compiled kernels cannot be kept in %s: %s", path.parent, error)


def _compile(key: tuple[Any, ...]) -> tuple[str, bytes]:
    """Symbol and object code of a variant, by Numba."""
    from numba import cfunc, types
    from numba.core import config
    from numba.core.compiler_lock import global_compiler_lock

    module, *variant = key
    build = importlib.import_module(f"{__package__}.numba_{module}").build
    names = {"f32": types.float32, "f64": types.float64}
    run = build(*(names.get(word, word) if isinstance(word, str) else word for word in variant))
    signature = types.int64(types.CPointer(types.int64), types.int64)
    with global_compiler_lock:  # Numba would optimise a function again in each of its callers: once at the end will do
        level, config.OPT = config.OPT, type(config.OPT)(0)
        try:
            compiled = cfunc(signature, error_model="numpy", fastmath={"nsz", "contract"})(run)
        finally:
            config.OPT = level
    wrapper = compiled._wrapper_name
    text = compiled._library.get_llvm_str()
    # the wrapper reports Python exceptions, of which there are none; it alone needs Python's symbols
    text, removed = re.subn(rf'^define [^\n]*@"?{re.escape(wrapper)}"?\(.*?^}}\n', "", text, flags=re.M | re.S)
    assert removed == 1, "Numba's code has an unknown form"
    return wrapper.removeprefix("cfunc."), _machine_code(text)


def _machine_code(text: str) -> bytes:
    import llvmlite.binding as llvm

    module = llvm.parse_assembly(text)
    for function in module.functions:
        uses = len(re.findall(rf'@"?{re.escape(function.name)}"?\(', text))
        if function.is_declaration and uses > 1 and not _KNOWN_SYMBOLS.match(function.name):
            raise RuntimeError(f"compiled kernel calls {function.name}, which no process is sure to have")
    machine = _machine()
    options = llvm.create_pipeline_tuning_options(speed_level=3)
    options.loop_vectorization = True
    options.inlining_threshold = 5000
    builder = llvm.create_pass_builder(machine, options)
    builder.getModulePassManager().run(module, builder)
    return bytes(machine.emit_object(module))


def _machine() -> Any:
    import llvmlite.binding as llvm

    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    triple, name, features = _target()
    target = llvm.Target.from_triple(triple)
    return target.create_target_machine(cpu=name, features=features, opt=3, codemodel="jitdefault", jit=True)


def _load(symbol: str, code: bytes) -> Entry:
    import llvmlite.binding as llvm

    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), _machine())
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    return Entry(_address(engine, symbol))


def from_text(text: str, symbol: str) -> int:
    """Address of a small function, given in LLVM's language."""
    import llvmlite.binding as llvm

    with _lock:
        return _address(llvm.create_mcjit_compiler(llvm.parse_assembly(text), _machine()), symbol)


def _address(engine: Any, symbol: str) -> int:
    """Of a function that will live as long as the process."""
    engine.finalize_object()
    _kept.append(engine)
    return int(engine.get_function_address(symbol))
