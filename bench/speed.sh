#!/usr/bin/env bash
# Measures what docs/speed.md quotes of training on a CPU, loam beside the best-tuned PyTorch, on a machine that does nothing
# else: a line for each shape into bench/results/, and all tables on the screen. 15 minutes on two cores, of which starting and
# compiling PyTorch takes half; behind each line are its minutes there.
#
#   LOAM_PYTHON=python3 bench/speed.sh
set -uo pipefail
cd "$(dirname "$0")/.."
failed=0

peer() {
  local began=$SECONDS
  deno run -q -P=bench bench/peer.ts "$@" || failed=1
  echo "--- $((SECONDS - began)) s"
}

compiled="torch compile,torch compile tuned"
peer --preset=tiny --rounds=7 --steps=20 --bf16_too                                                       # 1.5
peer --preset=small --rounds=5 --bf16_too                                                                 # 2.5
peer --preset=small --V=50257 --B=4 --rounds=4 --bf16_too                                                 # 2.5
peer --preset=small --rounds=5 --dtype=bfloat16                                                           # 2
peer --preset=124m --rounds=2 --steps=2 --bf16_too --only="loam,loam bf16,$compiled"                      # 4.5
peer --preset=small --T=1024 --B=2 --rounds=3 --bf16_too --only="loam,loam bf16,torch compile tuned"      # 1
peer --preset=small --T=4096 --B=1 --rounds=2 --bf16_too --only="loam,loam bf16,torch compile tuned"      # 1
exit $failed
