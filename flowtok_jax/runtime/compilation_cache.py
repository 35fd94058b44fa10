"""Compiled programs kept on disk, so that the next process need not compile them again.

Whoever can write into the folder can have us run any code: it belongs to this user
alone. Programs for a CPU use the instructions that it has, which JAX's key leaves out:
each kind of processor has a folder of its own.
"""

import contextlib
import functools
import hashlib
import logging
import os
import pathlib
import platform
import stat
import tempfile
from collections.abc import Iterator

import jax
from jax.experimental.compilation_cache import compilation_cache

# Where compiled programs are kept; "off" for nowhere.
VARIABLE = "FLOWTOK_COMPILATION_CACHE"
OFF = "off"
# JAX drops what was not used for longest. Programs of H are tens of megabytes each.
MAX_BYTES = 4 * 2**30
# Of what compiles faster there are hundreds, and reading them takes as long.
LEAST_SECONDS = 0.3
CPU_INFO = pathlib.Path("/proc/cpuinfo")


@functools.cache
def processor() -> str:
    """Returns a name of this processor and the instructions that it has."""
    parts = [platform.machine(), platform.processor()]
    if CPU_INFO.is_file():
        described = CPU_INFO.read_text(errors="replace").splitlines()
        kept = ("model name", "flags", "Features", "CPU part")
        parts += sorted({line for line in described if line.startswith(kept)})
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def cache_folder() -> pathlib.Path | None:
    """Returns the folder of compiled programs, None where the user wants none."""
    named = os.environ.get(VARIABLE, "")
    if named.strip().lower() == OFF:
        return None
    if named:
        return pathlib.Path(named).expanduser() / processor()
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    return pathlib.Path(base) / "flowtok_jax" / "compiled" / processor()


def use_compilation_cache() -> None:
    """Makes JAX keep compiled programs, unless it was told where to, or not to.

    A folder that cannot be used is named in a warning, and programs are compiled anew.
    """
    options = jax.config
    if options.jax_compilation_cache_dir or not options.jax_enable_compilation_cache:
        return
    try:
        if (folder := cache_folder()) is None:
            return
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        reason = _why_unsafe(folder)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home directory
        reason = str(error)
    if reason:
        logging.warning(
            "programs are compiled anew by every command: %s; %s=DIR names another "
            "folder for them, %s=%s keeps none",
            reason,
            VARIABLE,
            VARIABLE,
            OFF,
        )
        return
    options.update("jax_compilation_cache_dir", str(folder))
    options.update("jax_compilation_cache_max_size", MAX_BYTES)
    options.update("jax_persistent_cache_min_entry_size_bytes", -1)
    options.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)


@contextlib.contextmanager
def fresh_cache() -> Iterator[None]:
    """Keeps programs in a folder that is empty at first and goes with the block."""
    with tempfile.TemporaryDirectory(prefix="flowtok_programs_") as folder:
        options = {
            "jax_enable_compilation_cache": True,
            "jax_compilation_cache_dir": folder,
            "jax_persistent_cache_min_entry_size_bytes": -1,
            "jax_persistent_cache_min_compile_time_secs": 0.0,
        }
        before = {name: getattr(jax.config, name) for name in options}
        try:
            _configure(options)
            yield
        finally:
            _configure(before)


def _configure(options: dict[str, object]) -> None:
    for name, value in options.items():
        jax.config.update(name, value)
    # JAX opens a folder once, and would go on with the one that it has.
    compilation_cache.reset_cache()


def _why_unsafe(folder: pathlib.Path) -> str:
    """Says why a folder cannot hold programs, "" where it can."""
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"{folder} cannot be written"
    if os.name == "nt":  # folders of a home are the user's own there
        return ""
    found = folder.stat()
    if found.st_uid != os.getuid():
        return f"{folder} belongs to another user, who could have us run any code"
    if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return f"others can write {folder}, and have us run any code (chmod 700 cures)"
    return ""
