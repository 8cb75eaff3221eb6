#!/usr/bin/env bash
# All that a machine with one GPU should run, in order, in half an hour: checks, then measurements.
#   RUN_ID=cuda-1 runs/gpu.sh    into results/, a line per step (make gpu); the same RUN_ID goes on
#   runs/gpu.sh --dry-run        every step, tiny, on the CPU, into a scratch folder
# A step that fails or runs past its limit ends alone; what it had recorded stays. Nothing is installed:
# what a bare machine lacks (pytest, SmolLM2 in data/) leaves out the steps that need it, and they say so.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
PYTHON=${PYTHON:-python3} RUN_ID=${RUN_ID:-cuda-$(date +%F)} LOGS=${LOGS:-_build/gpu-session}
DRY=${1:-} FAILED=0 SCRATCH=$(mktemp -d)
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
trap 'rm -rf "$SCRATCH"' EXIT
mkdir -p "$LOGS"

step() { # NAME LIMIT python's arguments -- those of a dry run. With OPEN=1 it is made to be stopped.
  local name=$1 limit=$2 full=() status=ok code=0 start=$SECONDS
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
  local large=smollm2 pair gpu=(--device cuda --run-id "$RUN_ID") scratch=(--results "$SCRATCH")
  local run=(-m spectr_lite reproduce)
  local report="from spectr_lite.book import environment; environment.report()"
  local there="from spectr_lite.models import smollm2; smollm2.load_target('cpu')"
  [ -f spectr_lite/models/data/smollm2/draft.safetensors ] && large=smollm2-distilled
  step environment 1m -c "$report" -- -c "$report"
  step fetch-smollm2 1m -m training.fetch_smollm2 -- -m training.fetch_smollm2
  "$PYTHON" -c "$there" > /dev/null 2>&1 || large=
  if "$PYTHON" -c "import pytest" > /dev/null 2>&1; then
    step checks 4m -m pytest -q -m gpu tests/test_gpu.py tests/test_graphs.py -- \
      -m pytest -q tests/test_gpu.py -k "cpu and agrees"
  else
    without pytest checks
  fi
  step decoding-bundled 3.5m "${run[@]}" decoding --pair bundled "${gpu[@]}" --minutes 2 --resume -- \
    "${run[@]}" decoding --quick --run-id dry-bundled "${scratch[@]}"
  if [ "$large" ]; then
    step "decoding-$large" 4.5m "${run[@]}" decoding --pair "$large" "${gpu[@]}" --minutes 3 --resume \
      -- "${run[@]}" decoding --quick --run-id "dry-$large" "${scratch[@]}"
  fi
  for pair in bundled $large; do
    step "table1-$pair" 3.5m "${run[@]}" table1 --pair "$pair" "${gpu[@]}" --minutes 2.5 --resume -- \
      "${run[@]}" table1 --pair bundled --cell kseq:2:2 --prompts 2 --minutes 0.05 --device cpu \
      --run-id "dry-$pair" "${scratch[@]}"
  done
  step appendix-e 3m "${run[@]}" appendix-e "${gpu[@]}" --minutes 2 --resume -- \
    "${run[@]}" appendix-e --rounds 1 --device cpu "${scratch[@]}"
  step verifiers 2m "${run[@]}" verifiers "${gpu[@]}" --resume -- \
    "${run[@]}" verifiers --rounds 2 --vocabularies 100 --run-id dry "${scratch[@]}"
  if [ -z "$large" ]; then without SmolLM2 decoding-smollm2 table1-smollm2 distil; return; fi
  OPEN=1 step distil 9m -m training.smollm2_draft "${gpu[@]}" --stage sample shapes train -- \
    -m training.smollm2_draft --help
}

if [ "${BASH_SOURCE[0]}" = "$0" ]; then steps && exit "$FAILED"; fi
