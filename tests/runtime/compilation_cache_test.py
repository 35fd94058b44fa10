import os
import stat
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache as jax_cache

from flowtok_jax.runtime import compilation_cache
from flowtok_jax.runtime.compilation_cache import (
    VARIABLE,
    cache_folder,
    use_compilation_cache,
)

OPTIONS = (
    "jax_compilation_cache_dir",
    "jax_compilation_cache_max_size",
    "jax_persistent_cache_min_entry_size_bytes",
    "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture
def no_cache():
    """JAX as it is before a command or FlowTok set it up."""
    before = {name: getattr(jax.config, name) for name in OPTIONS}
    jax.config.update("jax_compilation_cache_dir", None)
    jax_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    jax_cache.reset_cache()


def test_a_program_is_compiled_once_and_read_by_the_next_process(
    no_cache, tmp_path, monkeypatch
):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "new" / "programs"))
    monkeypatch.setattr(compilation_cache, "LEAST_SECONDS", 0.0)
    use_compilation_cache()
    hits = []
    jax.monitoring.register_event_listener(lambda event, **_: hits.append(event))

    def run():
        jax.clear_caches()  # as a new process has none
        hits.clear()
        value = jax.jit(lambda x: jnp.sin(x) @ x.T)(jnp.ones((5, 3)))
        return float(value[0, 0]), hits.count("/jax/compilation_cache/cache_hits")

    first, read = run()
    assert read == 0
    second, read = run()
    assert read > 0
    assert first == second
    kept = list(cache_folder().glob("*-cache"))
    assert kept
    assert stat.S_IMODE(cache_folder().stat().st_mode) == 0o700


def test_the_folder_is_the_user_s_and_the_processor_s(monkeypatch, tmp_path):
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    first = cache_folder()
    assert first.is_relative_to(tmp_path / "flowtok_jax")
    info = tmp_path / "cpuinfo"
    info.write_text("flags\t\t: sse2 avx\n")
    monkeypatch.setattr(compilation_cache, "CPU_INFO", info)
    compilation_cache.processor.cache_clear()
    other = cache_folder()
    compilation_cache.processor.cache_clear()
    assert first.parent == other.parent
    assert first != other


@pytest.mark.parametrize("value", ["off", " OFF "])
def test_it_can_be_switched_off(no_cache, monkeypatch, caplog, value):
    monkeypatch.setenv(VARIABLE, value)
    use_compilation_cache()
    assert not jax.config.jax_compilation_cache_dir
    assert not caplog.records


def test_where_jax_was_told_a_folder_that_one_is_used(no_cache, monkeypatch, tmp_path):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "ours"))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "theirs"))
    use_compilation_cache()
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "theirs")
    assert not (tmp_path / "ours").exists()


def test_a_folder_that_others_can_write_is_not_used(
    no_cache, monkeypatch, tmp_path, caplog
):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    cache_folder().mkdir()
    cache_folder().chmod(0o777)
    use_compilation_cache()
    assert not jax.config.jax_compilation_cache_dir
    assert "chmod 700" in caplog.text
    assert VARIABLE in caplog.text


def test_a_folder_of_another_user_is_not_used(no_cache, monkeypatch, tmp_path, caplog):
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: os.stat(tmp_path).st_uid + 1)
    use_compilation_cache()
    assert not jax.config.jax_compilation_cache_dir
    assert "another user" in caplog.text


def test_a_folder_that_cannot_be_made_is_named(no_cache, monkeypatch, tmp_path, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "file"))
    use_compilation_cache()
    assert not jax.config.jax_compilation_cache_dir
    assert "compiled anew" in caplog.text
    assert str(tmp_path / "file") in caplog.text


def test_flowtok_uses_it_and_the_package_alone_loads_no_jax(tmp_path):
    code = (
        "import sys, flowtok_jax\n"
        "assert 'jax' not in sys.modules\n"
        "flowtok_jax.FlowTok\n"
        "import jax\n"
        "print(jax.config.jax_compilation_cache_dir)\n"
    )
    environment = os.environ | {VARIABLE: str(tmp_path)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-c", code]
    said = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    )
    assert said.stdout.strip().startswith(str(tmp_path))
