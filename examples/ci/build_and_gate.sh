#!/usr/bin/env bash
# Build a model, measure it, hold it against its gates, and write what a pull request is told.
#
#   examples/ci/build_and_gate.sh MODEL GATES OUT [OPTION OF tokc build]...
#
# MODEL is a Hugging Face folder or a GGUF file, GATES a TOML file, OUT a folder for model.tokc, model.bench.json,
# build.json, gates.json and summary.md. Environment:
#   BASE           an artifact to compare with
#   CHANGES        gates on what changed since BASE, by spaces, such as "size<=+2% tpot@1<=+10%"; those of speed
#                  measure both in turns
#   BENCH_OPTIONS  options of tokc bench, such as "--batch 1 --batch 8 --repetitions 10"
#   PRICE          what an hour of the machine costs, such as 0.20/h: adds the cost of tokens
# Ends with the exit code of tokc check or tokc diff: 0 met, 3 a gate stops it, 1 or 2 something is not measured.
set -euo pipefail

if [ $# -lt 3 ]; then
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0" >&2
  exit 2
fi
model=$1 gates=$2 out=$3
shift 3
artifact=$out/model.tokc
mkdir -p "$out"
read -r -a bench_options <<< "${BENCH_OPTIONS:-}"
price=()
[ -z "${PRICE:-}" ] || price=(--price "$PRICE")

tokc build "$model" --out "$artifact" --json "$@" > "$out/build.json"
tokc bench "$artifact" --json "${bench_options[@]}" > /dev/null

verdict=0
tokc check "$artifact" --gates "$gates" "${price[@]}" --json > "$out/gates.json" 2> "$out/gates.err" || verdict=$?
{
  tokc check "$artifact" --gates "$gates" "${price[@]}" --markdown 2> /dev/null || true
  # 3 is a verdict, which the table tells; anything else is an error, which it cannot
  [ "$verdict" -eq 0 ] || [ "$verdict" -eq 3 ] || { echo '```'; cat "$out/gates.err"; echo '```'; }
  if [ -n "${PRICE:-}" ]; then
    echo
    tokc compare "$artifact" "${price[@]}" --hosted none --markdown
  fi
  if [ -n "${BASE:-}" ]; then
    read -r -a changes <<< "${CHANGES:-}"
    options=()
    for change in "${changes[@]}"; do options+=(--gate "$change"); done
    echo
    changed=0
    tokc diff "$BASE" "$artifact" "${options[@]}" --markdown 2>> "$out/gates.err" || changed=$?
    [ "$changed" -eq 0 ] || verdict=$changed
  fi
} > "$out/summary.md"
cat "$out/summary.md"
cat "$out/gates.err" >&2
exit "$verdict"
