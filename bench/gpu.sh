#!/usr/bin/env bash
# Measures loam on a GPU: builds, runs the tests on the card, times kernels and whole steps beside PyTorch, compares the loss
# curve, and writes bench/results/<gpu>-<date>.json and .log. What the README says of a GPU comes from these files.
#
#   bench/gpu.sh                                    everything, about 25 minutes
#   bench/gpu.sh --quick                            fewer steps and batch sizes, about 10 minutes
#   bench/gpu.sh --stages=kernels,steps             some stages; their results replace those of the same file
#   bench/gpu.sh --device=cpu                       a rehearsal with toy shapes on a machine without a GPU
#
#   --out=DIR         where the two files go (bench/results)
#   --data_dir=DIR    the dataset of the loss curve (data/c4 if it is there, else the demo corpus)
#   --name=NAME       instead of <gpu>-<date>
#   --seconds=N       end within so much time: stages are cut short or left out
#
# Stages: env build tests sanitizer kernels steps curve. Each has a time limit; one that fails is recorded and the next
# begins. Needs deno with its npm cache, and nvcc or a built build/libloam_cuda.so; python3 (or $LOAM_PYTHON) with torch for
# comparisons. It uses no network.

set -uo pipefail
cd "$(dirname "$0")/.." || exit

device=cuda quick="" out=bench/results data_dir="" name="" stage="" seconds=100000
stages=env,build,tests,sanitizer,kernels,steps,curve
for arg; do
  case $arg in
    --device=*) device=${arg#*=} ;;
    --stages=*) stages=${arg#*=} ;;
    --out=*) out=${arg#*=} ;;
    --data_dir=*) data_dir=${arg#*=} ;;
    --name=*) name=${arg#*=} ;;
    --seconds=*) seconds=${arg#*=} ;;
    --quick) quick=1 ;;
    --stage=*) stage=${arg#*=} ;; # how this script calls itself under a time limit
    -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' bench/gpu.sh && exit ;;
    *) echo "error: Cannot read the argument $arg; see bench/gpu.sh --help" >&2 && exit 1 ;;
  esac
done
export LOAM_PYTHON=${LOAM_PYTHON:-python3} NO_COLOR=1 PYTHONUNBUFFERED=1
work=runs/gpu # scratch: git and the next run ignore it

# Shapes: the real ones on a GPU, toys elsewhere.
if [ "$device" = cuda ]; then
  preset=gpt-270m dtype=bfloat16 rounds=3 batches="4 16" steps=200
  [ -z "$quick" ] || { rounds=2 batches=4 steps=50; }
  kernels=(--preset=gpt-270m)
  torch_kernels=(--device=cuda --weights=322000000)
  curve=(--batch_size=4 --gradient_accumulation_steps=4 --warmup_iters=20)
else
  preset=tiny dtype=float32 rounds=1 batches="2 4" steps=40
  [ -z "$quick" ] || { batches=2 steps=10; }
  kernels=(--preset=tiny --B=1 --T=32 --n_layer=1 --copy_mb=4 --rotate_mb=0 --batch_ms=1 --batches=3)
  torch_kernels=(--device=cpu --weights=100000 --B=1 --T=32 --C=128 --H=4 --K=2 --F=384 --V=128 --chunk=32
    --batch_ms=1 --rotate_mb=0.01)
  curve=(--batch_size=2 --gradient_accumulation_steps=2 --warmup_iters=5 --block_size=32)
fi

bench() { deno run -q -P=bench "$@"; }
first_line() { "$@" 2>/dev/null | head -n 1; }

# ---- stages: each prints its log and leaves its figures in $work/<stage>.json or $work/<stage>-*.json ------------------

stage_env() {
  query=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu
  echo "nvidia_smi: $(first_line nvidia-smi --query-gpu=$query --format=csv,noheader)"
  echo "nvidia_smi_columns: $query"
  echo "nvcc: $(nvcc --version 2>/dev/null | tail -n 1)"
  echo "compiler: $(first_line "${CXX:-g++}" --version)"
  echo "deno: $(first_line deno --version)"
  echo "torch: $("$LOAM_PYTHON" -c 'import torch; print(torch.__version__)' 2>/dev/null)"
  echo "nccl: $("$LOAM_PYTHON" -c 'import torch; print(*torch.cuda.nccl.version(), sep=".")' 2>/dev/null)"
  echo "kernel: $(uname -sr)"
  echo "cpus: $(nproc)"
  echo "commit: $(git rev-parse HEAD 2>/dev/null || echo "${LOAM_COMMIT:-unknown}")"
  echo "changed_files: $(git status --porcelain 2>/dev/null | wc -l)"
  deno --version >/dev/null # without it no other stage can run
}

stage_build() {
  if [ "$device" = cuda ]; then
    deno task build --arch=native || { [ -f build/libloam_cuda.so ] && echo "using the library that was brought along"; }
  else
    deno task build
  fi
  code=$?
  cksum build/libloam_*.so
  deno task doctor
  return $code
}

stage_tests() {
  LOAM_TEST_DEVICE=$device deno test -q -P=test runtime model
}

# Two steps of a model of one layer with a tail tile in attention and in every row.
stage_sanitizer() {
  [ "$device" = cuda ] || { echo "compute-sanitizer needs a GPU" && return 1; }
  command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not installed" && return 1; }
  code=0
  for tool in memcheck racecheck synccheck; do
    echo "--- $tool"
    rm -rf $work/sanitized
    timeout -k 5 $((limit / 3 - 6)) compute-sanitizer --tool $tool --target-processes all --error-exitcode 9 \
      deno run -q -P=train train.ts --device="$device" --preset=tiny --data_dir="$(prepared)" --out_dir=$work/sanitized \
      --n_layer=1 --n_embd=128 --n_head=2 --n_kv_head=1 --n_inner=192 --block_size=80 --batch_size=2 --max_iters=2 \
      --gradient_accumulation_steps=2 --eval_interval=0 --sample_interval=0 --save_interval=0 || code=1
  done
  return $code
}

stage_kernels() {
  bench bench/kernels.ts --device="$device" "${kernels[@]}" --json=$work/kernels.json
  code=$?
  if grep -q '"attention": "hopper' $work/kernels.json; then # the portable kernels beside Hopper's
    LOAM_ATTENTION=portable bench bench/kernels.ts --device="$device" "${kernels[@]}" --filter=attention
  fi
  "$LOAM_PYTHON" bench/torch_kernels.py "${torch_kernels[@]}" >$work/kernels-torch.json || rm $work/kernels-torch.json
  return $code
}

stage_steps() {
  code=0
  for B in $batches; do
    alone=false
    [ "$B" -le 4 ] || alone=true # three models of a larger batch do not fit on one card
    peer "steps-B$B" --B="$B" --alone=$alone || code=1
  done
  [ -n "$quick" ] || peer steps-recompute-none --only=loam --recompute=none || code=1
  return $code
}

peer() { # name of the result, flags
  bench bench/peer.ts --preset=$preset --device="$device" --dtype=$dtype --accum=4 --rounds=$rounds --steps=3 \
    --json="$work/$1.json" "${@:2}"
}

stage_curve() {
  bench bench/curve.ts --preset=$preset --device="$device" --data_dir="$(prepared)" --max_iters=$steps \
    "${curve[@]}" --json=$work/curve.json
}

# The dataset to train on: the one asked for, data/c4, or the demo corpus, made here if need be.
prepared() {
  for dir in $data_dir data/c4 data/demo; do
    [ -f "$dir/meta.json" ] && echo "$dir" && return
  done
  deno task -q prepare >&2 && echo data/demo
}

declare -A limits=([env]=60 [build]=300 [tests]=300 [sanitizer]=380 [kernels]=240 [steps]=900 [curve]=500) # seconds

# ---- running them ------------------------------------------------------------------------------------------------------

if [ -n "$stage" ]; then
  "stage_$stage"
  exit
fi

for stage in ${stages//,/ }; do
  [ -n "${limits[$stage]:-}" ] || { echo "error: Cannot run stage $stage; see bench/gpu.sh --help" >&2 && exit 1; }
done
mkdir -p "$out" $work
if [ -z "$name" ]; then
  card=$([ "$device" = cuda ] && first_line nvidia-smi --query-gpu=name --format=csv,noheader)
  name=$(echo "${card:-$device}" | tr '[:upper:]' '[:lower:]' | tr -cs '[:alnum:]\n' '-' | sed 's/-$//')-$(date +%F)
fi

# Runs one stage and puts what it left behind into the result file.
run_stage() {
  left=$((seconds - SECONDS - 15)) limit=${limits[$1]}
  [ "$limit" -le "$left" ] || limit=$left
  [ "$limit" -ge 20 ] || { echo "=== $1: left out, no time" && return; }
  export limit # the stage may divide it
  echo "=== $1"
  rm -f $work/"$1".json $work/"$1"-*.json
  began=$SECONDS
  timeout -k 10 "$limit" bash bench/gpu.sh "${arguments[@]}" --stage="$1" >$work/"$1".log 2>&1
  code=$? took=$((SECONDS - began))
  tail -n 12 $work/"$1".log
  echo "=== $1: code $code after $took s"
  { echo "=== $1 ($(date -u +%FT%TZ), code $code, $took s)" && cat $work/"$1".log; } >>"$out/$name.log"
  deno run -q --allow-read --allow-write bench/gpu_report.ts "$out/$name.json" $work "$1" $code $took
}

arguments=("$@")
for stage in ${stages//,/ }; do run_stage "$stage"; done
deno run -q --allow-read bench/gpu_report.ts "$out/$name.json"
echo "$out/$name.json and .log"
