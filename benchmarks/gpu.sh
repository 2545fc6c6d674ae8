#!/usr/bin/env bash
# Everything that is to be known of a CUDA machine, in one folder, in under nine minutes.
#
#   bash benchmarks/gpu.sh [--no-build] [--out FOLDER] [--bundle BUNDLE] [--budget SECONDS] [--commit NAME]
#
# Builds Druse with its CUDA kernels in a virtual environment (--no-build: takes the druse that is installed), then: the
# tests marked `gpu`, compute-sanitizer, the bundle's recorded outputs in each precision, times of kernels, of steps and of
# the network in PyTorch, and 500 crystals in each precision from the same latents, for benchmarks/precision.py.
# Without ONNX Runtime's CUDA provider: the kernels, and PyTorch. Each part has a limit, and one that fails stops no other.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

build=yes out=build/gpu_results bundle="" budget=530 commit=""
while [ $# -gt 0 ]; do
  case $1 in
    --no-build) build=no ;;
    --out) out=$2; shift ;;
    --bundle) bundle=$2; shift ;;
    --budget) budget=$2; shift ;;
    --commit) commit=$2; shift ;;
    *) sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
  esac
  shift
done
python=$(command -v python || command -v python3) || { echo "there is no python" >&2; exit 2; }
mkdir -p "$out/logs" "$out/runs"
out=$(cd "$out" && pwd)
: >"$out/summary.tsv"

note() { printf '%s\t%s\t%s\n' "$1" "$2" "$3" >>"$out/summary.tsv"; }

# part FILE LIMIT COMMAND...: what it prints goes to FILE; what it complains of, to logs/.
part() {
  local file=$1 limit=$2 left=$((budget - SECONDS)) begin=${EPOCHREALTIME//[.,]/} code state
  shift 2
  if [ "$left" -lt 5 ]; then note "$file" 0.0 "left out: no time left"; return; fi
  [ "$limit" -le "$left" ] || limit=$left
  timeout --kill-after=5 "$limit" "$@" >"$out/$file" 2>"$out/logs/$file.err"
  code=$?
  case $code in
    0) state=ok ;;
    124 | 137) state="FAILED: stopped after $limit s" ;;
    *) state="FAILED: exit code $code" ;;
  esac
  [ -s "$out/logs/$file.err" ] || rm -f "$out/logs/$file.err"
  local spent=$(((${EPOCHREALTIME//[.,]/} - begin) / 100000))
  note "$file" "$((spent / 10)).$((spent % 10))" "$state"
  echo "$SECONDS s: $file: $state"
}

has() { "$python" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)"; }

if [ "$build" = yes ]; then
  part build.txt 240 bash -euo pipefail -c '
    "$1" -m venv --system-site-packages build/gpu
    build/gpu/bin/pip install --quiet ".[cuda]" beartype hypothesis jaxtyping pytest pytest-xdist' - "$python"
  if grep -q FAILED "$out/summary.tsv"; then
    echo "Druse could not be built:" >&2
    tail -n 20 "$out/logs/build.txt.err" >&2
    exit 2
  fi
  export PATH="$PWD/build/gpu/bin:$PATH"
  python=$PWD/build/gpu/bin/python
fi
druse=("$python" -m druse)

{
  nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,power.limit --format=csv 2>&1
  "$python" --version
  echo "commit ${commit:-$(git rev-parse HEAD 2>/dev/null || echo not known)}"
  nproc
} >"$out/machine.txt" 2>&1

if ! "$python" -c '
import sys
from druse import _native
sys.exit(not (_native.library().druse_has_cuda() and _native.library().druse_cuda_devices()))'; then
  echo "no CUDA device answers, or this druse was built without CUDA; druse doctor says more" >&2
  exit 2
fi
[ -n "$bundle" ] || bundle=$("$python" -c '
from importlib import resources
print(resources.files("druse") / "data" / "default.zip")')
reason=$("$python" -c '
from druse.backends import open_backend
from druse.errors import DruseError
try:
    open_backend("ort-cuda")
except DruseError as error:
    print(error)' 2>"$out/logs/ort-cuda.err")
stated=$("$python" -c '
import sys
from druse.bundle import Bundle
print("fp32", "tf32", *sorted(Bundle.open(sys.argv[1]).con_cdvae.decoder.precisions, reverse=True))' "$bundle")
[ -z "$reason" ] || { stated=""; echo "without ONNX Runtime's CUDA provider: $reason"; }

# what is not timed, side by side
workers=()
if has xdist; then workers=(-n 4); fi
part tests.txt 150 "$python" -m pytest -q -p no:cacheprovider -o filterwarnings=default -m gpu "${workers[@]}" tests/gpu &
sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
for tool in memcheck racecheck; do
  if [ -n "$sanitizer" ]; then
    part "$tool.txt" 150 "$sanitizer" --tool "$tool" --error-exitcode 3 "$python" tests/gpu/sanitize.py &
  else
    note "$tool.txt" 0.0 "left out: no compute-sanitizer"
  fi
done
for precision in $stated; do
  part "verify_$precision.json" 60 "${druse[@]}" bundle verify "$bundle" --backend ort-cuda --precision "$precision" --json
done
part doctor.json 60 "${druse[@]}" doctor --json
wait

# what is timed, one after the other; the most important first
part gpu_graph.txt 40 "$python" benchmarks/gpu_graph.py --json "$out/gpu_graph.json"
for precision in fp32 tf32 fp16 bf16; do
  if [[ " $stated " != *" $precision "* ]]; then
    note "$precision" 0.0 "left out: ${reason:-the bundle has no such graphs}"
    continue
  fi
  how=(--bundle "$bundle" --backend ort-cuda --precision "$precision")
  rm -rf "$out/runs/$precision"
  part "generate_$precision.json" 60 "${druse[@]}" generate "${how[@]}" --count 500 --oversample 1 --strategy less \
    --seed 0 --out "$out/runs/$precision" --json
  part "bench_$precision.json" 60 "${druse[@]}" bench "${how[@]}" --json
done
if [ -n "$stated" ]; then
  # shellcheck disable=SC2086  # several words
  part step_error.txt 60 "$python" benchmarks/step_error.py "$out/runs/fp32" --bundle "$bundle" \
    --json "$out/step_error.json" --precisions $stated
fi
if has torch; then
  part gpu_decoder.txt 90 "$python" benchmarks/gpu_decoder.py --json "$out/gpu_decoder.json"
else
  note gpu_decoder.txt 0.0 "left out: no PyTorch"
fi

{
  echo
  cat "$out/machine.txt"
  printf '\n%-24s %8s  %s\n' part seconds result
  awk -F '\t' '{ printf "%-24s %8s  %s\n", $1, $2, $3 }' "$out/summary.tsv"
  echo "all: $SECONDS s"
} | tee "$out/summary.txt"
! grep -q FAILED "$out/summary.tsv"
