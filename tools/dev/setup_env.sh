#!/bin/sh
# Set up .venv, the environment of this project; `make env` calls it, and so do `make demo` and
# `make test`. A second run finds everything in place and returns at once. Needs no more than a
# Python with its venv module, or uv (https://docs.astral.sh/uv), which does most of the work.
#
# Environment variables:
#   PYTHON          interpreter for .venv: a path, a name or a version such as 3.12
#                   (default: the first on PATH that requirements/python.txt admits)
#   MMCV            "compiled" builds mmcv with its own operators, which takes 10 minutes on two
#                   cores; otherwise overlock_mm.mmcv_ops stands in for them
#   OVERLOCK_CACHE  where compiled mmcv wheels are kept (default: ~/.cache/overlock_mm)
#   MAX_JOBS        compilers that run at a time (default: one per core)
#   FORCE_CUDA      1 compiles the CUDA kernels of overlock_mm, 0 does not (default: 1 with a GPU)

set -eu
cd "$(dirname "$0")/../.."
root=$PWD
venv=$root/.venv
python=$venv/bin/python
log=$venv/setup.log
mmcv=${MMCV:-pure}
wanted_python=${PYTHON:-$(cat requirements/python.txt)}
cache=${OVERLOCK_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/overlock_mm}
export MAX_JOBS="${MAX_JOBS:-$(getconf _NPROCESSORS_ONLN)}"
# What would lead Python out of .venv.
unset PYTHONPATH PYTHONHOME VIRTUAL_ENV
export UV_NO_PROGRESS=1
# Half a minute here, and seven seconds less at each start where PYTHONDONTWRITEBYTECODE is set, as
# images for containers often do.
export UV_COMPILE_BYTECODE=1

# .venv, less uv's cache of 6 GB, which is shared by all environments of a user.
NEEDED_GB=8
STEPS=5
PROOF='import overlock_mm, mmcv.ops, mmdet.datasets, mmseg.models, mmpretrain.models'
READ_REMEDY='as the lines above say; after a network failure, run the same command again.'

stop() { # PROBLEM REMEDY
    printf 'Set-up stopped. %s\n  Remedy: %s\n' "$1" "$2" >&2
    exit 1
}

fingerprint() { # FILE...: changes when the text of one of them does
    cat "$@" | cksum
}

stack_fingerprint() {
    printf '%s %s %s ' "$mmcv" "${PYTHON:-any}" "$venv"
    fingerprint tools/dev/setup_env.sh requirements/*.txt
}

package_fingerprint() {
    find overlock_mm/ops/csrc -type f | LC_ALL=C sort | tr '\n' '\0' | xargs -0 cat setup.py pyproject.toml | cksum
}

is_current() { # MARK TEXT
    [ -f "$venv/$1" ] && [ "$(cat "$venv/$1")" = "$2" ] && [ -x "$python" ]
}

step=0
doing() { # WHAT USUAL_TIME COMMAND...: one numbered step; its output goes to the log
    step=$((step + 1))
    printf '[%s/%s] %s (usually %s)\n' "$step" "$STEPS" "$1" "$2"
    shift 2
    began=$(date +%s)
    run "$@"
    seconds=$(($(date +%s) - began))
    printf '      done in %d:%02d\n' $((seconds / 60)) $((seconds % 60))
}

run() { # COMMAND...
    printf '\n$ %s\n' "$*" >>"$log"
    # Not as the condition of an `if`, which would let a function continue after a failure in it.
    set +e
    (set -e && "$@") >>"$log" 2>&1
    status=$?
    set -e
    if [ "$status" -ne 0 ]; then
        tail -n 15 "$log" | sed 's/^/    | /' >&2
        stop "This failed: $*. The full output is in $log." "$READ_REMEDY"
    fi
}

find_uv() { # sets $uv, and installs it into .uv where the machine has none
    uv=$(command -v uv || true)
    if [ -n "$uv" ]; then return; fi
    uv=$root/.uv/bin/uv
    if "$uv" --version >/dev/null 2>&1; then return; fi
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 python3.10 python; do
        if ! "$candidate" -c 'import ensurepip, venv' 2>/dev/null; then continue; fi
        if "$candidate" -m venv --clear .uv && .uv/bin/python -m pip install -q --disable-pip-version-check uv; then
            return
        fi
        stop "uv could not be installed with $candidate." "$READ_REMEDY"
    done
    stop 'Neither uv nor a Python with the modules venv and ensurepip was found.' \
        'install one of them (Debian, Ubuntu: apt install python3 python3-venv python3-dev).'
}

check_disk() {
    free=$(df -Pk "$root" | awk 'NR == 2 {print int($4 / 1000000)}')
    if [ "$free" -lt "$NEEDED_GB" ]; then
        stop "Not enough disk space at $root: $free GB free, $NEEDED_GB GB needed." \
            'free some space, or work on a larger disk.'
    fi
}

install() { # ARGUMENTS of uv pip install...
    "$uv" pip install --python "$python" "$@"
}

install_stack() {
    # Without the requirements that these packages declare: together they ask for two
    # distributions of OpenCV, which overwrite each other. What they import is in runtime.txt.
    install --no-deps -r requirements/openmmlab.txt
    if [ "$mmcv" = compiled ]; then
        compile_mmcv
        install --no-deps "$wheel"
    else
        # In isolation, hence without torch, mmcv builds no operators: a pure wheel in seconds.
        install --no-deps -r requirements/mmcv.txt
    fi
}

# Neither pip nor uv knows the torch that a wheel was compiled against, so a cache of theirs could
# hand out one with a foreign ABI; the folder's name holds it.
compile_mmcv() { # sets $wheel, from the cache or compiled into it
    torch=$("$python" -c 'import torch; print(torch.__version__)')
    tag=$("$python" -c 'import sys; print("cp%d%d" % sys.version_info[:2])')
    pin=$(grep -E '^[a-z]' requirements/mmcv_compiled.txt)
    folder=$cache/wheels/$tag-torch$torch
    mkdir -p "$folder"
    find_wheel "$folder"
    if [ -n "$wheel" ]; then return; fi

    scratch=$(mktemp -d "$folder/building-XXXXXX")
    trap 'rm -rf "$scratch"' EXIT
    "$python" -m pip download --no-deps --no-binary :all: --no-build-isolation -d "$scratch" "$pin"
    tar -xf "$scratch"/*.tar.gz -C "$scratch"
    source=$(find "$scratch" -mindepth 1 -maxdepth 1 -type d)
    # The headers of torch 2.14 demand C++20, and mmcv asks its compiler for C++17.
    if "$python" -c 'import sys, torch; sys.exit(torch.torch_version.TorchVersion(torch.__version__) < (2, 14))'; then
        sed -i 's/-std=c++17/-std=c++20/g' "$source/setup.py"
    fi
    # PATH, because torch looks there for ninja, without which it compiles on one core; no
    # GPU, because mmcv would look for a CUDA toolkit.
    PATH=$venv/bin:$PATH TMPDIR=$scratch MMCV_WITH_OPS=1 FORCE_CUDA=0 CUDA_VISIBLE_DEVICES='' \
        "$python" -m pip wheel -v --no-deps --no-cache-dir --no-build-isolation -w "$scratch" "$source"
    find_wheel "$scratch"
    mv "$wheel" "$folder"
    find_wheel "$folder"
}

find_wheel() { # FOLDER: sets $wheel, to nothing where there is none
    wheel=$(find "$1" -maxdepth 1 -name '*mmcv-*.whl' | head -n 1)
}

install_package() {
    # CUDA kernels take minutes to compile and help only beside a GPU.
    if [ ! -e /dev/nvidia0 ]; then export FORCE_CUDA="${FORCE_CUDA:-0}"; fi
    PATH=$venv/bin:$PATH "$python" -m pip install -v --no-deps --no-build-isolation -e .
}

case $mmcv in
pure | compiled) ;;
*) stop "MMCV is \"$mmcv\"; it can be \"compiled\" or unset." 'make env MMCV=compiled' ;;
esac

# Held by the commands that run here too, which may outlive a killed set-up.
if command -v flock >/dev/null; then
    exec 9>.setup.lock
    if ! flock -n 9; then
        echo "Another set-up is at work in $venv; waiting for it."
        flock 9
    fi
fi

stack=$(stack_fingerprint)
package=$(package_fingerprint)
if is_current setup.stack "$stack" && is_current setup.package "$package"; then exit 0; fi

trap 'printf "\nSet-up interrupted; the same command continues it.\n" >&2; exit 130' INT TERM
find_uv
if ! is_current setup.stack "$stack"; then
    # --system: not the interpreter of the environment that is about to be removed.
    interpreter=$("$uv" python find --system "$wanted_python") ||
        stop "No fitting Python: $wanted_python is needed, as the line above says." \
            'name another one: make env PYTHON=/path/to/python3.12 (or PYTHON=3.12).'
    check_disk
    echo "Setting up $venv with $interpreter: about 3 min on a fast line. Details: $log"
    rm -rf "$venv"
    mkdir "$venv"
    doing 'environment folder' '5 s' "$uv" venv --allow-existing --seed --python "$interpreter" "$venv"
    doing 'torch and other libraries, 2.6 GB to download' '1 to 2 min' install \
        -r requirements/torch.txt -r requirements/build.txt -r requirements/runtime.txt -r requirements/dev.txt
    case $mmcv in
    pure) doing 'OpenMMLab stack' '15 s' install_stack ;;
    compiled) doing 'OpenMMLab stack, with a compiled mmcv' '10 min' install_stack ;;
    esac
    echo "$stack" >"$venv/setup.stack"
else
    STEPS=2
    echo "Completing $venv. Details: $log"
fi
doing 'overlock_mm itself, editable, and its compiled operators' '1 min' install_package
grep -h '^ *overlock_mm is ' "$log" | tail -n 1 || true
doing 'proof: importing all of it' '20 s' "$python" -c "$PROOF"
echo "$package" >"$venv/setup.package"
echo "Environment ready: $venv"
