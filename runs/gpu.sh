#!/usr/bin/env bash
# All that a machine with one GPU should run, in order, in half an hour: first whether it is right, then
# how fast, and what matters most first.
#   RUN_ID=cuda-1 runs/gpu.sh    into results/, a line per step (make gpu); the same RUN_ID goes on
#   runs/gpu.sh --dry-run        every step, tiny, on the CPU, into a scratch folder
#   ONLY="checks table1-bundled" those steps alone; RESULTS=FOLDER records elsewhere
# A step that fails or runs past its limit ends alone; what it had recorded stays. Nothing is installed:
# what a bare machine lacks (pytest, SmolLM2 in data/) leaves out the steps that need it, and they say so.
# Without a network both can be carried there, below data/, which git ignores:
#   pip install --target data/site pytest hypothesis
#   python -m training.carry split         data/carry/, parts of 24 MiB, which the step `join` joins
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
PYTHON=${PYTHON:-python3} RUN_ID=${RUN_ID:-cuda-$(date +%F)} LOGS=${LOGS:-_build/gpu-session}
DRY=${1:-} FAILED=0 HALF_AN_HOUR=1800 SCRATCH=$(mktemp -d)
export PYTHONPATH=$PWD:$PWD/data/site PYTHONUNBUFFERED=1
trap 'rm -rf "$SCRATCH"' EXIT
mkdir -p "$LOGS"

step() { # NAME LIMIT python's arguments -- those of a dry run. With OPEN=1 it is made to be stopped.
  local name=$1 limit=$2 full=() status=ok code=0 start=$SECONDS
  [[ -z ${ONLY:-} || " $ONLY " == *" $name "* ]] || return 0
  shift 2
  while [ "$1" != -- ]; do full+=("$1"); shift; done
  if [ "$DRY" ]; then shift; else set -- "${full[@]}"; fi
  timeout --signal=INT --kill-after=15 "$limit" "$PYTHON" "$@" > "$LOGS/$name.log" 2>&1 || code=$?
  case $code in 0) ;; 124) status="stopped at $limit" ;; *) status="exit $code" ;; esac
  [[ ${OPEN:-} && $code = 124 ]] && status="stopped, as meant"
  [[ $status = ok || $status = *meant ]] || FAILED=1
  printf '%-28s%-20s%5d s  %.90s\n' "$name" "$status" $((SECONDS - start)) \
    "$(grep . "$LOGS/$name.log" | tail -n 1)" | tee -a "$LOGS/steps.log"
}

without() { # WHAT NAMES...: a line for each step that is left out
  local what=$1 name
  shift
  for name; do printf '%-28s%s\n' "$name" "left out  without $what" | tee -a "$LOGS/steps.log"; done
}

steps() {
  local pair left large=smollm2-distilled scratch=(--results "$SCRATCH")
  local gpu=(--device cuda --results "${RESULTS:-results}" --resume --run-id)
  local run=(-m spectr_lite reproduce)
  local report="from spectr_lite.book import environment; environment.report()"
  local there="from spectr_lite.models import smollm2; smollm2.load_target('cpu')"
  step environment 0.5m -c "$report" -- -c "$report"
  step join 0.5m -m training.carry join -- -m training.carry --help
  step fetch-smollm2 1m -m training.fetch_smollm2 -- -m training.fetch_smollm2
  "$PYTHON" -c "$there" > /dev/null 2>&1 || large=
  if "$PYTHON" -c "import pytest" > /dev/null 2>&1; then
    step checks 4m -m pytest -q -m gpu tests/test_gpu.py tests/test_graphs.py -- \
      -m pytest -q tests/test_gpu.py -k "cpu and agrees"
  else
    without pytest checks
  fi
  for pair in ${large:+"$large" smollm2 smollm2-drop3 smollm2-trigram}; do
    step "short-$pair" 2m "${run[@]}" decoding --pair "$pair" "${gpu[@]}" "$RUN_ID-short" --short \
      --minutes 0.8 -- "${run[@]}" decoding --help
  done
  for pair in $large bundled; do
    step "table1-$pair" 3m "${run[@]}" table1 --pair "$pair" "${gpu[@]}" "$RUN_ID" --minutes 2.2 -- \
      "${run[@]}" table1 --pair bundled --cell kseq:2:2 --prompts 2 --minutes 0.05 --device cpu \
      --run-id "dry-$pair" "${scratch[@]}"
  done
  for pair in $large bundled; do # batches of 1, 8 and 32; every rule
    step "decoding-$pair" 3.5m "${run[@]}" decoding --pair "$pair" "${gpu[@]}" "$RUN_ID" --minutes 2 -- \
      "${run[@]}" decoding --quick --run-id "dry-$pair" "${scratch[@]}"
  done
  step appendix-e 2.5m "${run[@]}" appendix-e "${gpu[@]}" "$RUN_ID" --minutes 1.5 -- \
    "${run[@]}" appendix-e --rounds 1 --device cpu "${scratch[@]}"
  step verifiers 2m "${run[@]}" verifiers "${gpu[@]}" "$RUN_ID" -- \
    "${run[@]}" verifiers --rounds 2 --vocabularies 100 --run-id dry "${scratch[@]}"
  if [ -z "$large" ]; then
    without SmolLM2 short-smollm2 table1-smollm2 decoding-smollm2 distil
    return
  fi
  left=$((HALF_AN_HOUR - SECONDS))
  OPEN=1 step distil $((left > 60 ? left : 60)) -m training.smollm2_draft --device cuda \
    --run-id "$RUN_ID" --stage sample shapes train -- -m training.smollm2_draft --help
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then steps && exit "$FAILED"; fi
