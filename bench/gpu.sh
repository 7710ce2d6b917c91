#!/usr/bin/env bash
# Measures loam on a GPU: builds, checks the kernels, times kernels and whole steps beside PyTorch and beside what was predicted,
# compares the loss curve, and writes bench/results/<gpu>-<date>.json and .log. What the README says of a GPU comes from these
# files. It has not run on a GPU yet: it was rehearsed on a CPU, and with the emulator in a GPU's place. Times are estimates.
#
#   bench/gpu.sh                             all stages, in less than 10 minutes; called again, those that are not done yet
#   bench/gpu.sh --resume=FILE.json          goes on with an earlier file, from another machine perhaps
#   bench/gpu.sh --stages=kernels,steps4     these stages, done or not; their results replace those of the file
#   bench/gpu.sh --device=cpu                a rehearsal with toy shapes on a machine without a GPU
#
#   --seconds=N       end within so much time (580)
#   --out=DIR         where the two files go (bench/results)
#   --data_dir=DIR    the dataset of the loss curve (data/c4 if it is there, else the demo corpus)
#   --name=NAME       instead of <gpu>-<date>
#
# Stages, what matters most first: env build check tests kernels steps4 steps8 steps16 curve sanitizer. Each has its share of the
# time, and what those before it left over. One that fails or runs out of time is recorded, and the next begins; in a second call
# what has not begun comes first, then what has failed. The JSON file is whole at every moment: a stage is in it from its
# beginning, and where this script is told to end (SIGTERM, SIGINT, SIGHUP) what the stage has written until then.
# Needs deno with its npm cache, and nvcc or a built build/libloam_cuda.so; python3 (or $LOAM_PYTHON) with torch for
# comparisons. It uses no network, and leaves the card's settings alone.

set -uo pipefail
cd "$(dirname "$0")/.." || exit

device=cuda out=bench/results data_dir="" name="" stage="" seconds=580 stages="" resume=""
for arg; do
  case $arg in
    --device=*) device=${arg#*=} ;;
    --stages=*) stages=${arg#*=} ;;
    --resume=*) resume=${arg#*=} ;;
    --out=*) out=${arg#*=} ;;
    --data_dir=*) data_dir=${arg#*=} ;;
    --name=*) name=${arg#*=} ;;
    --seconds=*) seconds=${arg#*=} ;;
    --stage=*) stage=${arg#*=} ;; # how this script calls itself under a time limit
    -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' bench/gpu.sh && exit ;;
    *) echo "error: Cannot read the argument $arg; see bench/gpu.sh --help" >&2 && exit 1 ;;
  esac
done
export LOAM_PYTHON=${LOAM_PYTHON:-python3} NO_COLOR=1 PYTHONUNBUFFERED=1
work=runs/gpu # scratch: git and the next run ignore it

# Shapes: the real ones on a GPU, toys elsewhere.
if [ "$device" = cuda ]; then
  preset=gpt-270m dtype=bfloat16 rounds=3 steps=200 toy=()
  kernels=(--preset=gpt-270m)
  torch_kernels=(--device=cuda --weights=322000000)
  curve=(--batch_size=2 --gradient_accumulation_steps=2 --warmup_iters=20)
else
  preset=tiny dtype=float32 rounds=1 steps=10 toy=(--T=32)
  kernels=(--preset=tiny --B=1 --T=32 --n_layer=1 --copy_mb=4 --rotate_mb=0 --batch_ms=1 --batches=3)
  torch_kernels=(--device=cpu --weights=100000 --B=1 --T=32 --C=128 --H=4 --K=2 --F=384 --V=128 --chunk=32
    --batch_ms=1 --rotate_mb=0.01)
  curve=(--batch_size=2 --gradient_accumulation_steps=2 --warmup_iters=5 --block_size=32)
fi

bench() { deno run -q -P=bench "$@"; }
report() { deno run -q --allow-read --allow-write bench/gpu_report.ts "$@"; }
first_line() { "$@" 2>/dev/null | head -n 1; }
of_card() { first_line nvidia-smi --query-gpu="$1" --format=csv,noheader,nounits; }

# ---- stages: each prints its log and leaves its figures in $work/<stage>.json or $work/<stage>-*.json ------------------

stage_env() {
  query=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit,temperature.gpu
  echo "nvidia_smi: $(first_line nvidia-smi --query-gpu=$query --format=csv,noheader)"
  echo "nvidia_smi_columns: $query"
  echo "nvcc: $(nvcc --version 2>/dev/null | tail -n 1)"
  echo "compiler: $(first_line "${CXX:-g++}" --version)"
  echo "deno: $(first_line deno --version)"
  echo "kernel: $(uname -sr)"
  echo "cpus: $(nproc)"
  echo "commit: $(git rev-parse HEAD 2>/dev/null || echo "${LOAM_COMMIT:-unknown}")"
  echo "changed_files: $(git status --porcelain 2>/dev/null | wc -l)"
  nccl='torch.cuda.is_available() and print("nccl:", *torch.cuda.nccl.version())'
  "$LOAM_PYTHON" -c "import torch; print('torch:', torch.__version__); $nccl" 2>/dev/null || echo "torch: none"
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

# A step of a small model with heads of 64. Before it train compares every kernel with the CPU's, and on H100 and H200 Hopper's
# attention with the portable one; asked for by name it may not be passed over.
stage_check() {
  kinds=auto code=0
  [ "$(of_card compute_cap)" = 9.0 ] && kinds="hopper portable"
  for kind in $kinds; do
    echo "--- $kind"
    rm -rf $work/checked
    [ "$device" = cuda ] && asked=(--attention="$kind") || asked=()
    deno run -q -P=train train.ts --device="$device" --preset=tiny --n_head=2 --n_kv_head=1 --max_iters=1 \
      --data_dir="$(prepared)" --out_dir=$work/checked --eval_interval=0 --sample_interval=0 --save_interval=0 \
      "${asked[@]}" || code=1
  done
  return $code
}

stage_tests() {
  LOAM_TEST_DEVICE=$device deno test -q -P=test --no-check runtime/wide_test.ts runtime/ops_test.ts runtime/tape_test.ts \
    runtime/optim_test.ts model/llama_test.ts model/generate_test.ts
}

stage_kernels() {
  bench bench/kernels.ts --device="$device" "${kernels[@]}" --json=$work/kernels.json
  code=$?
  if grep -q '"attention": "hopper' $work/kernels.json; then # the portable kernels beside Hopper's
    LOAM_ATTENTION=portable bench bench/kernels.ts --device="$device" "${kernels[@]}" --filter=attention \
      --json=$work/kernels-portable.json
  fi
  "$LOAM_PYTHON" bench/torch_kernels.py "${torch_kernels[@]}" >$work/kernels-torch.json || rm $work/kernels-torch.json
  return $code
}

stage_steps4() { peer steps4 --B=4; }
stage_steps8() { large_steps 8 22000; }
stage_steps16() { large_steps 16 60000; }

# With the memory that a larger card has nothing is computed twice.
large_steps() { # batch, MiB of memory that it takes
  memory=$(of_card memory.total)
  [ "${memory:-$2}" -ge "$2" ] || { echo "left out: this card has $memory MiB, B=$1 takes $2" && return; }
  peer "steps$1" --B="$1" --recompute=none --head_chunk=8192 --only="loam,torch compile"
}

# The sides run one after the other: three such models do not fit on every card, and loam's figures are there first.
peer() { # name of the result, flags
  bench bench/peer.ts --preset=$preset --device="$device" --dtype=$dtype --accum=4 --rounds=$rounds --steps=3 --alone \
    --json="$work/$1.json" "${toy[@]}" "${@:2}"
}

stage_curve() {
  bench bench/curve.ts --preset=$preset --device="$device" --data_dir="$(prepared)" --max_iters=$steps \
    "${curve[@]}" --json=$work/curve.json
}

# Two steps of a model of one layer with a tail tile in attention and in every row.
stage_sanitizer() {
  [ "$device" = cuda ] || { echo "compute-sanitizer needs a GPU" && return 1; }
  command -v compute-sanitizer >/dev/null || { echo "compute-sanitizer is not installed" && return 1; }
  code=0
  for tool in memcheck racecheck synccheck; do
    echo "--- $tool"
    rm -rf $work/sanitized
    timeout -k 5 $((limit / 3 - 2)) compute-sanitizer --tool $tool --target-processes all --error-exitcode 9 \
      deno run -q -P=train train.ts --device="$device" --preset=tiny --data_dir="$(prepared)" --out_dir=$work/sanitized \
      --n_layer=1 --n_embd=128 --n_head=2 --n_kv_head=1 --n_inner=192 --block_size=80 --batch_size=2 --max_iters=2 \
      --gradient_accumulation_steps=2 --eval_interval=0 --sample_interval=0 --save_interval=0 --self_check=false || code=1
  done
  return $code
}

# The dataset to train on: the one asked for, data/c4, or the demo corpus, made here if need be.
prepared() {
  for dir in $data_dir data/c4 data/demo; do
    [ -f "$dir/meta.json" ] && echo "$dir" && return
  done
  deno task -q prepare >&2 && echo data/demo
}

# Shares of the time, about the seconds that each takes.
declare -A shares=([env]=20 [build]=90 [check]=30 [tests]=90 [kernels]=65 [steps4]=95 [steps8]=55 [steps16]=55 [curve]=65
  [sanitizer]=45)
all=env,build,check,tests,kernels,steps4,steps8,steps16,curve,sanitizer

# ---- running them ------------------------------------------------------------------------------------------------------

if [ -n "$stage" ]; then
  "stage_$stage"
  exit
fi

for asked in ${stages//,/ }; do
  [ -n "${shares[$asked]:-}" ] || { echo "error: Cannot run stage $asked; see bench/gpu.sh --help" >&2 && exit 1; }
done
mkdir -p "$out" $work
if [ -n "$resume" ]; then
  [ -f "$resume" ] || { echo "error: Cannot resume: there is no $resume" >&2 && exit 1; }
  name=$(basename "$resume" .json)
  [ "$resume" -ef "$out/$name.json" ] || cp "$resume" "$out/$name.json"
  [ "${resume%.json}.log" -ef "$out/$name.log" ] || cp "${resume%.json}.log" "$out" 2>/dev/null
fi
if [ -z "$name" ]; then
  card=$([ "$device" = cuda ] && of_card name)
  name=$(echo "${card:-$device}" | tr '[:upper:]' '[:lower:]' | tr -cs '[:alnum:]\n' '-' | sed 's/-$//')-$(date +%F)
fi
result=$out/$name.json

# Those asked for, else what is not done; and the library, where this machine does not have it.
todo=${stages:-$(report "$result" --todo "$all")}
[ -n "$stages" ] || [ -z "$todo" ] || [ -f "build/libloam_$device.so" ] || todo=build,$(sed 's/\bbuild\b//' <<<"$todo")
todo=${todo//,/ }
[ -n "${todo// /}" ] || echo "every stage of $result is done; --stages=NAMES runs some again"

child="" told="" # the stage that runs; the signal that ended this script
for signal in HUP:129 INT:130 TERM:143; do
  # shellcheck disable=SC2064 # now
  trap "told=${signal#*:}; [ -z \"\$child\" ] || kill -TERM \$child 2>/dev/null" "${signal%:*}"
done

# Runs one stage within its time and puts what it left behind into the result file.
run_stage() { # name, seconds from the start at which it has to end
  limit=$(($2 - SECONDS))
  [ "$limit" -ge 4 ] || { echo "=== $1: left out, no time" && return; }
  export limit # the stage may divide it
  echo "=== $1, at most $limit s"
  rm -f $work/"$1".json $work/"$1"-*.json $work/"$1".log
  report "$result" $work "$1" -1 0
  began=$SECONDS
  timeout -k 5 "$limit" bash bench/gpu.sh "${arguments[@]}" --stage="$1" >$work/"$1".log 2>&1 &
  child=$!
  wait $child
  code=$?
  [ -z "$told" ] || { wait $child && true; code=$told; }
  child="" took=$((SECONDS - began))
  report "$result" $work "$1" $code $took
  tail -n 12 $work/"$1".log
  echo "=== $1: code $code after $took s"
  { echo "=== $1 ($(date -u +%FT%TZ), code $code, $took s)" && cat $work/"$1".log; } >>"$out/$name.log"
}

arguments=("$@")
total=0 passed=0
for each in $todo; do total=$((total + shares[$each])); done
for each in $todo; do
  passed=$((passed + shares[$each]))
  run_stage "$each" $(((seconds - 12) * passed / total))
  [ -z "$told" ] || { echo "ended in $each; $result has what there is, and a second call goes on" && exit "$told"; }
done
report "$result"
echo "$result and .log"
