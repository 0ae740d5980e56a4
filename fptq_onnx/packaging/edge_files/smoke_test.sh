#!/bin/sh
# Checks the files of this package, builds the runner and compares the tokens it writes.
#
#     ./smoke_test.sh path/to/libonnxruntime.so
#
# CXX names another compiler, and RUN a program that runs the result: with
#     CXX=aarch64-linux-gnu-g++ RUN='qemu-aarch64 -L sysroot'
# a package for linux-aarch64 is tested on another machine (README.md).
set -eu
[ $# -eq 1 ] || { echo "usage: ./smoke_test.sh path/to/libonnxruntime.so" >&2; exit 2; }
runtime=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
cd "$(dirname "$0")"

sha256sum -c SHA256SUMS >/dev/null || { echo "FAILED: files were changed" >&2; exit 1; }
echo "files        as packaged"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# shellcheck disable=SC2086
${CXX:-c++} -std=c++17 ${CXXFLAGS:--O2} -o "$work/fptq_run" \
  runner/main.cc runner/decoder.cc runner/description.cc -ldl
echo "runner       built"

{ read -r prompt; read -r expected; } < model/smoke_tokens.txt
count=$(echo "$expected" | wc -w)
# shellcheck disable=SC2086
${RUN:-} "$work/fptq_run" --onnxruntime "$runtime" --ignore-end --tokens "$count" $prompt \
  > "$work/tokens" 2> "$work/log" || { cat "$work/log" >&2; echo "FAILED: no tokens" >&2; exit 1; }
# The runner goes on without the library, more slowly; a package that needs to is not in order.
if grep -q "portable graph" "$work/log"; then
  cat "$work/log" >&2
  echo "FAILED: the graph with the library's operators does not run here" >&2
  exit 1
fi
if [ "$(cat "$work/tokens")" != "$expected" ]; then
  echo "FAILED: wrote $(cat "$work/tokens"), expected $expected" >&2
  exit 1
fi
echo "model        writes the expected tokens: $expected"

if grep -q '^portable ' model/decoder.txt; then
  # shellcheck disable=SC2086
  ${RUN:-} "$work/fptq_run" --onnxruntime "$runtime" --portable --ignore-end --tokens "$count" \
    $prompt > "$work/tokens" 2> "$work/log" || { cat "$work/log" >&2; exit 1; }
  [ "$(wc -w < "$work/tokens")" -eq "$count" ] || { echo "FAILED: the portable graph" >&2; exit 1; }
  echo "portable     writes $count tokens: $(cat "$work/tokens")"
fi
echo "PASSED"
