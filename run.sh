#!/bin/sh
# Sets loam up on a fresh machine and shows it at work.
#
#   ./run.sh         set up, build, prepare a small text, train a tiny model on it, write text with the model
#   ./run.sh test    set up, build, run every test; the last line reads "N passed, N failed"
#   ./run.sh help    print this
#
# Needs a C++ compiler and Deno. As root on Debian or Ubuntu it installs the compiler and a fast matrix library (oneDNN), and
# for the tests Open MPI, Chromium and iproute2; Deno comes through npm into .deno/ where it is missing, and the last line says how to
# put it on PATH. What is there already is used as it is. CUDA and NVIDIA's driver are never installed: where nvcc and
# cuBLASLt are found the CUDA library is built too; else the build and `deno task doctor` say what is missing.

set -eu
cd "$(dirname "$0")"

deno_version=2.9.6 # the one installed under .deno/; on PATH any 2.9 or later 2.x will do
iters=3000         # training steps of the demo: three minutes on two CPU cores of one's own
data=data/kjv
run=runs/kjv
mode=${1:-demo}
shell= # commands after which `deno task` works in the user's own shell, too

say() { printf '== %s\n' "$*"; }

die() {
  printf 'error: %s\n' "$*" >&2
  if [ "$mode" = test ]; then echo "0 passed, 1 failed"; fi
  exit 1
}

# ---- set-up ------------------------------------------------------------------------------------------------------------

set_up() {
  export DENO_NO_UPDATE_CHECK=1 DENO_NO_PROMPT=1
  # Deno and npm keep their caches in the home directory; where there is none to write to, they get another.
  if [ ! -d "${HOME:-}" ] || [ ! -w "$HOME" ]; then
    HOME=${TMPDIR:-/tmp}/loam-home-$(id -u)
    export HOME
    shell="export HOME=\"$HOME\"; "
    mkdir -p "$HOME" || die "Cannot make a directory for caches: set HOME to a directory that can be written"
  fi
  find_deno
  find_compiler
  find_blas
  deno install -q --frozen || die "Cannot install the npm packages of deno.lock: check the network, then run ./run.sh again"
}

# Puts a deno on PATH: the one that is there, else the one in .deno/, else one from npm.
find_deno() {
  if is_recent_deno; then return; fi
  case "$(uname -s)-$(uname -m)" in
    Linux-x86_64) package=@deno/linux-x64-glibc ;;
    Linux-aarch64) package=@deno/linux-arm64-glibc ;;
    Darwin-x86_64) package=@deno/darwin-x64 ;;
    Darwin-arm64) package=@deno/darwin-arm64 ;;
    *) die "Cannot find Deno 2.9 or later, nor a build of it for $(uname -s) $(uname -m): see https://deno.com" ;;
  esac
  # The package with the program itself: the one named deno starts it through Node.js, which may not pass signals on.
  PATH=$PWD/.deno/node_modules/$package:$PATH
  shell="${shell}export PATH=\"$PWD/.deno/node_modules/$package:\$PATH\"; "
  if is_recent_deno; then return; fi
  if ! command -v npm >/dev/null; then
    die "Cannot find Deno 2.9 or later, nor npm to install it: install Deno (https://deno.com), then run ./run.sh again"
  fi
  say "installing Deno $deno_version into .deno/"
  mkdir -p .deno
  echo '*' >.deno/.gitignore
  npm install --prefix .deno --no-save --no-audit --no-fund --loglevel=error "$package@$deno_version" </dev/null ||
    die "Cannot install Deno with npm: check the network or install Deno (https://deno.com), then run ./run.sh again"
  is_recent_deno || die "Deno from npm does not run here: try .deno/node_modules/$package/deno --version"
}

is_recent_deno() {
  deno --version 2>/dev/null | awk '$1 == "deno" { split($2, v, "."); ok = v[1] == 2 && v[2] >= 9 } END { exit !ok }'
}

find_compiler() {
  for compiler in ${CXX:+"$CXX"} g++ c++ clang++; do
    if command -v "$compiler" >/dev/null; then return; fi
  done
  apt_install g++ || die "Cannot find a C++ compiler: install g++ (Debian: apt-get install g++; macOS: xcode-select --install)"
}

# But for processors with AVX512-BF16, matrix products go through the first BLAS found at run time, else the built-in way.
find_blas() {
  if [ "$(uname -s)" = Darwin ]; then return; fi # Accelerate is always there
  if PATH=$PATH:/sbin:/usr/sbin ldconfig -p 2>/dev/null | grep -Eq 'lib(dnnl|mkl_rt|openblas|blis)'; then return; fi
  apt_install libdnnl-dev ||
    say "no BLAS found, training in float32 may be slower: install oneDNN or OpenBLAS (Debian: apt-get install libdnnl-dev)"
}

# What some tests drive, and skip where it is missing.
find_program() {
  if command -v "$1" >/dev/null; then return; fi
  apt_install "$2" || say "no $1 found: the tests that need it are skipped (Debian: apt-get install $2)"
}

# Installs a Debian package. Fails, saying nothing, where that is not ours to do; says why where it does not work.
apt_install() {
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then return 1; fi
  say "installing $1 with apt-get"
  log=$(mktemp)
  apt-get update >"$log" 2>&1 </dev/null || true # the lists at hand may be enough
  if DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$1" >>"$log" 2>&1 </dev/null; then
    rm -f "$log"
    return
  fi
  tail -n 5 "$log" >&2
  rm -f "$log"
  return 1
}

# ---- what to do --------------------------------------------------------------------------------------------------------

demo() {
  set_up
  deno task -q build --only=cpu || die "Cannot build: see above"
  deno task -q build --only=cuda || say "going on without the CUDA library, which does not build: see above"
  if [ ! -f $data/meta.json ]; then
    say "preparing a text: the King James Bible, in tokens of its own"
    deno task -q demo-corpus || die "Cannot write data/demo.txt: see above"
    # --overwrite: over what an interrupted one left
    deno task -q tokenizer --train data/demo.txt --vocab_size=1024 --split_on=blank_line --out=$data-tokenizer --overwrite ||
      die "Cannot train a tokenizer on data/demo.txt: see above"
    deno task -q prepare --input data/demo.txt --tokenizer=$data-tokenizer --split_on=blank_line --val_fraction=0.05 \
      --out=$data --overwrite || die "Cannot prepare data/demo.txt: see above"
  fi
  if [ -e $run/latest ]; then
    say "$run holds a trained model; to train another: rm -r $run, then ./run.sh"
  else
    rm -rf $run # interrupted before its first checkpoint
    say "training a tiny model on it for $iters steps"
    deno task -q train --preset=tiny --data_dir=$data --out_dir=$run --max_iters=$iters --log_interval=100 ||
      die "Cannot train: see above"
  fi
  say "writing text with it"
  deno task -q sample --checkpoint=$run --prompt="And it came to pass" --max_new_tokens=150 || die "Cannot sample from $run"
  say "data: $data   run: $run (metrics.jsonl, log.txt, checkpoints)"
  say "next: ${shell}deno task"
}

run_tests() {
  set_up
  find_program mpirun openmpi-bin
  find_program chromium chromium
  find_program ip iproute2
  deno task -q build || die "Cannot build: see above"
  logs=$(mktemp -d)
  trap 'rm -rf "$logs"' EXIT
  deno check -q || die "The types do not fit: see above"
  # Two halves at a time, of as much processor time: most tests of the program as a whole, and those beside their files with
  # what has a process of its own that is busy (the emulator, Chromium, the type check of examples).
  busy="tests/dashboard_test.ts tests/emu_test.ts tests/examples_test.ts tests/hopper_test.ts tests/nccl_test.ts"
  half whole --ignore="$(echo $busy | tr ' ' ,)" tests >/dev/null &
  half units $(folders_of_tests) $busy
  wait
  cat "$logs/whole"
  passed=0 failed=0 skipped=0
  for name in units whole; do add_up "$logs/$name"; done
  echo # a test that ends the process leaves its line unfinished
  reasons "$logs/units" "$logs/whole"
  if [ "$skipped" = 0 ]; then skipped=; else skipped=", $skipped skipped"; fi
  echo "$passed passed, $failed failed$skipped"
  [ "$passed" != 0 ] && [ "$failed" = 0 ]
}

# Runs the tests of some folders; their output also goes to a file of $logs, a code that is not 0 to one beside it.
half() {
  name=$1
  shift
  { deno task -q test --no-check "$@" 2>&1 || echo $? >"$logs/$name.code"; } | tee "$logs/$name"
}

# The folders with tests beside their files.
folders_of_tests() {
  for folder in */; do
    case $folder in tests/ | build/ | runs/ | node_modules/) continue ;; esac
    if [ -n "$(find "$folder" -name '*_test.ts' | head -n 1)" ]; then echo "${folder%/}"; fi
  done
}

# Adds the summary of a half, "ok | 15 passed (3 steps) | 0 failed | 1 ignored (40ms)", in colour on a terminal.
add_up() {
  code=$(cat "$1.code" 2>/dev/null || echo 0)
  summary=$(plain "$1" | grep -E '^(ok|FAILED) \| [0-9]+ passed' | tail -n 1)
  if [ -z "$summary" ]; then die "Cannot count the tests: deno test ended with code $code and without a summary"; fi
  failures=$(count failed)
  if [ "$code" != 0 ] && [ "$failures" = 0 ]; then failures=1; fi # an error outside of any test
  passed=$((passed + $(count passed))) failed=$((failed + failures)) skipped=$((skipped + $(count ignored)))
}

# The number before a word of $summary, 0 where the word is missing.
count() {
  number=$(printf '%s\n' "$summary" | sed -n "s/.*| \([0-9]*\) $1.*/\1/p")
  echo "${number:-0}"
}

# Why tests were skipped: the name of each ends with what it wants, "(LOAM_PYTHON)"; steps are indented.
reasons() {
  plain "$@" | sed -n 's/^\(.*\) \.\.\. ignored (.*/\1/p' |
    sed -e 's/^  .*/steps: commands of the pages that cannot run here, for the reasons in tests\/docs_test.ts/; t' \
      -e 's/.*(\([^()]*\))$/wants \1/; t' -e 's/^/skipped: /' |
    sort | uniq -c | sort -rn
}

# Files without colours.
plain() {
  sed "s/$(printf '\033')\[[0-9;]*m//g" "$@"
}

if [ $# -gt 1 ]; then die "Too many arguments: use ./run.sh, ./run.sh test or ./run.sh help"; fi
case $mode in
  demo) demo ;;
  test) run_tests ;;
  help | -h | --help) sed -n '2,/^$/s/^# \{0,1\}//p' "$(basename "$0")" ;;
  *) die "Unknown argument $mode: use ./run.sh, ./run.sh test or ./run.sh help" ;;
esac
