#!/usr/bin/env bash
# Measures what docs/speed.md quotes of training on a CPU, loam beside the best-tuned PyTorch, on a machine that does nothing
# else: each shape into bench/results/, all tables on the screen, and at the end their rows for that page. 15 minutes on two
# cores, half of which PyTorch takes to start and to compile; behind each line are its minutes there.
#
#   LOAM_PYTHON=python3 bench/speed.sh
set -uo pipefail
cd "$(dirname "$0")/.."
failed=0 rows="" walls="" printed=$(mktemp)
trap 'rm -f "$printed"' EXIT

peer() {
  local began=$SECONDS
  deno run -q -P=bench bench/peer.ts --markdown "$@" | tee "$printed" || failed=1
  rows+=$(sed -n 's/^markdown: //p' "$printed")$'\n'
  walls+=$(sed -n 's/^wall: //p' "$printed")$'\n'
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
echo "| | loam tok/s | with bf16 GEMMs | PyTorch, best | which | ratio | with bf16 | peak memory, loam / bf16 / PyTorch |"
printf '%s' "$rows"
echo "| | wall, float32 | reached | ratio at the wall | wall, bfloat16 | reached | ratio at the wall |"
printf '%s' "$walls"
exit $failed
