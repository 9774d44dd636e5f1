"""What `make` would do, without doing it."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import svrt

ROOT = Path(svrt.__file__).parent
pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="no make")


def make(*arguments, **environment):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS", "CMAKE"))}
    command = ["make", "--no-print-directory", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=inherited | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def llama_cache(**environment):
    return make("--eval", "shown: ; @echo '$(LLAMA_CACHE)'", "shown", **environment).strip()


def test_what_was_compiled_with_other_options_is_not_installed_again(tmp_path):
    """pip itself would: its cache does not know with which options a wheel was compiled."""
    plain = llama_cache(XDG_CACHE_HOME=str(tmp_path))
    assert Path(plain).parent == tmp_path / "svrt" / "pip"
    assert plain == llama_cache(XDG_CACHE_HOME=str(tmp_path))
    assert plain != llama_cache(XDG_CACHE_HOME=str(tmp_path), CMAKE_ARGS="-DGGML_CUDA=on")


def test_llama_cpp_is_installed_from_that_cache():
    # A file that is older than the project's asks for it to be made; nothing is run.
    lines = make("--dry-run", "--always-make", ".venv/.llama")
    assert f'--cache-dir "{llama_cache()}" install --verbose' in lines


def test_options_for_the_compiler_stay_together():
    shown = make("--eval", "shown: ; @echo '$(CMAKE_ARGS)'", "shown")
    given = dict(option.split("=", 1) for option in shlex.split(shown))
    assert given["-DCMAKE_C_FLAGS"] == given["-DCMAKE_CXX_FLAGS"] == "-U__AMX_INT8__ -fschedule-insns -fsched-pressure"


def test_every_package_is_compiled_where_it_is_installed():
    packages = make("--eval", "shown: ; @echo '$(PACKAGES)'", "shown").split()
    inside = [path.parent.relative_to(ROOT) for path in ROOT.glob("**/__init__.py") if ".venv" not in path.parts]
    assert sorted(packages) == sorted(path.as_posix() for path in inside if path.parts[:1] != ("build",))
