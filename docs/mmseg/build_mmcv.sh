#!/bin/sh
# Compiles mmcv 2.1.0 for the torch that a Python has, and installs mmsegmentation 1.2.2 beside it.
#
#   docs/mmseg/build_mmcv.sh [PYTHON] [FOLDER]
#
# PYTHON is that of a virtual environment with torch (default: python). FOLDER keeps the source, the object files and
# the wheel (default: build/mmcv), so that an interrupted run goes on and a finished one is only checked. MAX_JOBS sets
# how many files are compiled at once (default: 2; each takes up to 1.5 GiB).
set -eu

VERSION=2.1.0
python=$(command -v "${1:-python}") || { echo "There is no Python '${1:-python}'." >&2; exit 2; }
# The folder changes on the way. Not resolved: a virtual environment is known by the link's own place.
python=$(cd "$(dirname "$python")" && pwd)/$(basename "$python")
folder=${2:-build/mmcv}
export MAX_JOBS="${MAX_JOBS:-2}" PIP_DISABLE_PIP_VERSION_CHECK=1

# Object files fit one torch and one Python.
target=$("$python" -c 'import sys, torch; print(f"torch-{torch.__version__}-{sys.implementation.cache_tag}")') || {
    echo "'$python' has no torch. Install it first." >&2
    exit 2
}
mkdir -p "$folder/$target"
folder=$(cd "$folder/$target" && pwd)
source=$folder/mmcv-$VERSION

# mmcv's setup needs pkg_resources, which later setuptools lack; those of the environment stay as they are.
tools=$folder/tools
[ -e "$tools/.done" ] || {
    "$python" -m pip install --quiet --upgrade --target "$tools" 'setuptools<81' wheel ninja
    touch "$tools/.done"
}
with_tools() { PATH="$tools/bin:$PATH" PYTHONPATH="$tools" PYTHONWARNINGS=ignore "$@"; }

[ -e "$folder/mmcv-$VERSION.tar.gz" ] ||
    with_tools "$python" -m pip download --quiet --no-deps --no-build-isolation --no-binary mmcv \
        --dest "$folder" "mmcv==$VERSION"

[ -e "$source/.done" ] || {
    rm -rf "$source"
    tar -xzf "$folder/mmcv-$VERSION.tar.gz" -C "$folder"
    # The headers of current torch are C++20.
    sed -i.orig 's/-std=c++17/-std=c++20/' "$source/setup.py"
    touch "$source/.done"
}

ls "$folder"/mmcv-$VERSION-*.whl >/dev/null 2>&1 || {
    echo "Compiling mmcv $VERSION for $target: about 12 minutes on two free cores. Its output: $folder/build.log"
    (cd "$source" && MMCV_WITH_OPS=1 with_tools "$python" setup.py bdist_wheel --dist-dir "$folder/new") \
        >"$folder/build.log" 2>&1 || { tail -n 20 "$folder/build.log" >&2; exit 1; }
    # Moved when whole, so that what is there is whole.
    mv "$folder"/new/mmcv-$VERSION-*.whl "$folder"
}

# Both have the folder `mmcv`.
"$python" -m pip uninstall --quiet --yes mmcv-lite
"$python" -m pip install --quiet "$folder"/mmcv-$VERSION-*.whl mmsegmentation==1.2.2 'mmengine>=0.10.7,<1' ftfy regex

"$python" -W ignore - <<'CHECK'
import mmcv.ops, mmengine, mmseg.models, torch
boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
kept = mmcv.ops.nms(boxes, torch.tensor([0.9, 0.8, 0.7]), 0.5)[1].tolist()
assert kept == [0, 2], f"non-maximum suppression kept {kept}, not [0, 2]"
print(f"mmcv {mmcv.__version__}, mmengine {mmengine.__version__}, mmseg {mmseg.__version__}, torch {torch.__version__}: ready")
CHECK
