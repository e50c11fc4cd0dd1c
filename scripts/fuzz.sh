#!/usr/bin/env bash
# Fuzzing, on Linux: docs/fuzzing.md says what holds in each target.
#
#   scripts/fuzz.sh setup            installs cargo-fuzz, and on Debian as root the C++ compiler that
#                                    libFuzzer is built with
#   scripts/fuzz.sh short            what CI runs: every target, some minutes in all
#   scripts/fuzz.sh long [RUNS]      every target, 1,000,000 runs each unless told otherwise
#   scripts/fuzz.sh one TARGET [OPTION...]   one target with libFuzzer's own options
#   scripts/fuzz.sh planted          the bug that is planted in each target is found
#   scripts/fuzz.sh coverage         what seeds and corpus reach
#   scripts/fuzz.sh seeds            writes fuzz/seeds anew
#
# What is found goes to target/fuzz/found, what was learnt to target/fuzz/corpus.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly targets=(frame envelope payloads extensions outbox handshake router)
readonly work=${CARGO_TARGET_DIR:-target}/fuzz
readonly built=$work/build/x86_64-unknown-linux-gnu/release

# Runs of the targets of `short`: what two cores do in some minutes. A run of `extensions` may be a
# handshake and its records, one of the last two a service that compresses and encrypts.
declare -rA short_runs=(
    [frame]=1000000 [envelope]=1000000 [payloads]=2000000 [extensions]=300000 [outbox]=1000000
    [handshake]=100000 [router]=60000
)

# No sanitizer: none of the code under test is unsafe. Memory is limited by what follows.
readonly limits=(-timeout=20 -rss_limit_mb=1024 -detect_leaks=0 -print_final_stats=1)

setup() {
    if ! command -v c++ >/dev/null; then
        [[ $EUID -eq 0 ]] || { echo 'a C++ compiler is missing: install g++'; exit 1; }
        apt-get update -q && apt-get install -qy --no-install-recommends g++
    fi
    cargo fuzz --version >/dev/null 2>&1 || cargo install cargo-fuzz --locked --version 0.13.2
}

# Builds all targets, with these features, into a folder of its own.
build() {
    local kind=$1
    shift
    setup
    # The instrumentation is not stable in any compiler; in the pinned one it works.
    RUSTC_BOOTSTRAP=1 cargo fuzz build --fuzz-dir fuzz --sanitizer none \
        --target x86_64-unknown-linux-gnu --target-dir "$work/build" "$@"
    mkdir -p "$work/$kind"
    local program
    for program in "${targets[@]}" replay seeds; do
        # The old one may be running.
        cp --remove-destination "$built/$program" "$work/$kind/"
    done
}

# One target: how often, and further options.
run() {
    local target=$1 runs=$2
    shift 2
    mkdir -p "$work/corpus/$target" "$work/found" "$work/log"
    "$work/clean/$target" "${limits[@]}" -runs="$runs" -artifact_prefix="$work/found/$target-" \
        "$@" "$work/corpus/$target" "fuzz/seeds/$target" >"$work/log/$target" 2>&1
}

# A line of the table: the last thing that libFuzzer says of its coverage, and its statistics.
report() {
    local target=$1 log=$work/log/$1
    printf '%-10s %10s runs  %6s per s  cov %6s  ft %6s\n' "$target" \
        "$(awk '/stat::number_of_executed_units/ { print $2 }' "$log")" \
        "$(awk '/stat::average_exec_per_sec/ { print $2 }' "$log")" \
        "$(grep -o 'cov: [0-9]*' "$log" | tail -n 1 | cut -d' ' -f2)" \
        "$(grep -o 'ft: [0-9]*' "$log" | tail -n 1 | cut -d' ' -f2)"
}

# All targets, two at a time: how often, and libFuzzer's options for all of them.
run_all() {
    local failed=0 target runs=$1
    shift
    printf '%s\n' "${targets[@]}" | runs_of=$runs xargs -P 2 -I TARGET \
        bash scripts/fuzz.sh _run TARGET "$@" || failed=1
    for target in "${targets[@]}"; do
        report "$target"
    done
    [[ $failed -eq 0 ]] || { echo "what was found is in $work/found"; exit 1; }
    variants
}

# Every variant of the decoder's errors is reached by what was learnt, or this fails.
variants() {
    "$work/clean/replay" --variants=FrameError frame fuzz/seeds/frame "$work/corpus/frame"
    "$work/clean/replay" --variants=EnvelopeErrorKind --variants=PayloadError \
        --variants=DeliveryHeadError --variants=RequestHeadError --variants=AckMemberError \
        --variants=ItemMemberError envelope fuzz/seeds/envelope "$work/corpus/envelope"
}

short() {
    build clean
    # From the seeds, and by the same choices every time.
    rm -rf "$work/corpus"
    run_all short -seed=1
}

long() {
    build clean
    run_all "${1:-1000000}" -seed=0
}

# In each target a bug is planted, and found within the runs of `short`, beginning with the seeds
# that do not show it by themselves.
planted() {
    build planted --features planted
    local target seed begin log missed=0
    mkdir -p "$work/log"
    for target in "${targets[@]}"; do
        begin=$work/planted-seeds/$target log=$work/log/$target.planted
        rm -rf "$begin" && mkdir -p "$begin"
        for seed in "fuzz/seeds/$target"/*; do
            ! "$work/planted/replay" "$target" "$seed" >/dev/null 2>&1 || cp "$seed" "$begin/"
        done
        if "$work/planted/$target" "${limits[@]}" -seed=1 -runs="${short_runs[$target]}" \
            -artifact_prefix="$work/planted-" "$begin" >"$log" 2>&1; then
            echo "$target: NOT FOUND"
            missed=1
        else
            printf '%-10s found after %s runs: %s\n' "$target" \
                "$(awk '/stat::number_of_executed_units/ { print $2 }' "$log")" \
                "$(grep -m 1 -A 1 'panicked at' "$log" | tail -n 1)"
        fi
    done
    return $missed
}

coverage() {
    build clean
    local target
    for target in "${targets[@]}"; do
        run "$target" 0
        report "$target"
    done
    variants
}

seeds() {
    build clean
    rm -rf fuzz/seeds
    "$work/clean/seeds" fuzz/seeds
}

case ${1:-help} in
    setup | short | planted | coverage | seeds) "$1" ;;
    long) long "${2:-}" ;;
    one)
        build clean
        target=$2
        shift 2
        "$work/clean/$target" "${limits[@]}" -artifact_prefix="$work/found/$target-" "$@" \
            "$work/corpus/$target" "fuzz/seeds/$target"
        ;;
    _run)
        target=$2
        shift 2
        if [[ $runs_of == short ]]; then
            run "$target" "${short_runs[$target]}" "$@"
        else
            run "$target" "$runs_of" "$@"
        fi || { grep -m 1 -A 3 'panicked at\|ERROR' "$work/log/$target"; exit 255; }
        ;;
    *) sed -n '2,14s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" ;;
esac
