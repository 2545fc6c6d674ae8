# Recipes for people who work on Druse; `just` alone lists them.

default:
    @just --list

# Seconds, not minutes: what to run while editing.
fast:
    pytest -n 2 -m "not slow"

# Everything that CI runs, in a fresh virtual environment.
ci:
    bash .ci/run

# Rewrite style, then check style and types.
check:
    ruff check --fix .
    ruff format .
    mypy

# The native library with its C++ tests under the address and undefined-behaviour sanitizers.
native:
    cmake -G Ninja -S cpp_ext -B build/sanitized -DDRUSE_CUDA=OFF -DDRUSE_TESTS=ON -DDRUSE_WERROR=ON -DDRUSE_SANITIZE=address,undefined
    cmake --build build/sanitized
    ctest --test-dir build/sanitized --output-on-failure

# The periodic graph beside its competitors.
bench-graph:
    python benchmarks/graph.py

# One evaluation of the score network on every backend; the prior's steps and ranking; a training step.
bench-engine:
    python benchmarks/decoder.py
    python benchmarks/prior.py
    python benchmarks/train.py
