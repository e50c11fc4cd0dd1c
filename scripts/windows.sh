#!/usr/bin/env bash
# Builds, lints, tests and runs the workspace as Windows programs on Linux, under Wine.
#
#   scripts/windows.sh setup                 install what is missing, make the Wine prefix
#   scripts/windows.sh test [ARGS...]        cargo test ARGS...; without ARGS the whole workspace
#   scripts/windows.sh clippy [ARGS...]      cargo clippy ARGS...; without ARGS the whole workspace
#   scripts/windows.sh run [ARGS...]         build the `migration-ipc` program and run it with ARGS
#   scripts/windows.sh cargo COMMAND [...]   any other cargo command, for example `build --release`
#   scripts/windows.sh stop                  end everything that runs in the Wine prefix
#
# The compiler is rustup's where `rustup target add x86_64-pc-windows-gnu` was done. Otherwise it is
# Debian's, which comes with the source of its standard library; cargo then builds that too. As
# root on Debian or Ubuntu `setup` installs all packages; elsewhere it names the missing commands.
#
# Variables:
#   MIGRATION_IPC_WINE_PREFIX    the Wine prefix, about 700 MB (default: `wine` in the target folder)
#   MIGRATION_IPC_WINDOWS_RUSTC  `rustup` or `debian`, to choose the compiler
#
# docs/windows.md says what a green run under Wine shows and what only real Windows can show.
set -euo pipefail

readonly target=x86_64-pc-windows-gnu
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
readonly root
target_dir=${CARGO_TARGET_DIR:-$root/target}
[[ $target_dir == /* ]] || target_dir=$PWD/$target_dir
prefix=${MIGRATION_IPC_WINE_PREFIX:-$target_dir/wine}
[[ $prefix == /* ]] || prefix=$PWD/$prefix
readonly target_dir prefix
readonly ready=$prefix/.migration-ipc-ready

say() { printf 'windows.sh: %s\n' "$*" >&2; }
die() { say "$*"; exit 1; }
usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }

# --- the tools -----------------------------------------------------------------------------------

compiler() {
    if [[ -n ${MIGRATION_IPC_WINDOWS_RUSTC:-} ]]; then
        echo "$MIGRATION_IPC_WINDOWS_RUSTC"
    elif command -v rustup >/dev/null && rustup target list --installed | grep -qx "$target"; then
        echo rustup
    else
        echo debian
    fi
}

# Prints the Debian packages of the tools that are missing, one per line.
missing_packages() {
    command -v x86_64-w64-mingw32-gcc >/dev/null || echo gcc-mingw-w64-x86-64-win32
    command -v wine >/dev/null && command -v wineserver >/dev/null || printf 'wine\nwine64\n'
    if [[ $(compiler) == debian ]]; then
        [[ -x /usr/bin/rustc ]] || echo rustc-web
        [[ -d /usr/lib/rustlib/src/rust/library ]] || echo rust-web-src
        [[ -x /usr/bin/clippy-driver ]] || echo rust-web-clippy
    fi
}

install_tools() {
    local missing
    mapfile -t missing < <(missing_packages)
    [[ ${#missing[@]} -gt 0 ]] || return 0
    if [[ $EUID -ne 0 ]] || ! command -v apt-get >/dev/null; then
        die "missing: ${missing[*]} (names of Debian packages). Install them, or run" \
            "\`scripts/windows.sh setup\` as root on Debian. For the compiler," \
            "\`rustup target add $target\` does as well"
    fi
    say "installing ${missing[*]}"
    local log
    log=$(mktemp)
    local try
    for try in 1 2 3; do
        if apt-get update -q >"$log" 2>&1 </dev/null &&
            DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
                "${missing[@]}" >>"$log" 2>&1 </dev/null; then
            rm -f "$log"
            return 0
        fi
        say "apt-get failed (attempt $try of 3)"
        sleep $((try * 5))
    done
    cat "$log" >&2
    rm -f "$log"
    die "could not install ${missing[*]}"
}

use_tools() {
    export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_LINKER=x86_64-w64-mingw32-gcc
    export CARGO_TARGET_X86_64_PC_WINDOWS_GNU_RUNNER=wine
    export WINEPREFIX=$prefix
    export WINEDEBUG=${WINEDEBUG:--all}
    # Without these Wine offers to install Mono and a browser, and writes menu entries.
    export WINEDLLOVERRIDES='winemenubuilder.exe,mscoree,mshtml,winedbg.exe=d'
    build_options=(--target "$target")
    if [[ $(compiler) == debian ]]; then
        export RUSTC=/usr/bin/rustc RUSTDOC=/usr/bin/rustdoc
        # Building the standard library is an unstable option of cargo.
        export RUSTC_BOOTSTRAP=1
        build_options+=("-Zbuild-std=std,panic_unwind,test")
    fi
}

# --- the Wine prefix -----------------------------------------------------------------------------

make_prefix() {
    mkdir -p "$(dirname "$prefix")"
    exec 8>"$prefix.lock"
    flock 8
    if [[ ! -e $ready ]]; then
        say "making the Wine prefix $prefix"
        rm -rf "$prefix"
        WINEARCH=win64 wineboot --init >/dev/null 2>&1 </dev/null 8>&- ||
            die "wineboot could not make the prefix $prefix"
        wineserver --wait 8>&-
        add_prng
        : >"$ready"
    fi
    exec 8>&-
}

# Wine 9 and later have the library.
add_prng() {
    local system32=$prefix/drive_c/windows/system32
    [[ ! -e $system32/bcryptprimitives.dll ]] || return 0
    x86_64-w64-mingw32-gcc -O2 -Wall -Wextra -Werror -shared -s \
        -o "$system32/bcryptprimitives.dll" "$root/scripts/bcryptprimitives.c" -ladvapi32
}

# Keeps Wine's background processes from one program to the next, so that no test pays for their
# start, and detached from our output, which they would hold open. They end with the last
# invocation of this script that uses the prefix (a shared lock on file descriptor 9 counts them).
start_wine() {
    exec 9>"$prefix.users"
    flock --shared 9
    trap stop_wine EXIT
    wineserver --persistent 9>&- 2>/dev/null || true # it answers 2 when one runs already
    wine cmd /c exit >/dev/null 2>&1 </dev/null 9>&- ||
        die "Wine cannot start a program in $prefix; \`rm -r\` it and try again"
}

stop_wine() {
    if flock --exclusive --nonblock 9; then
        wineserver --kill 9>&- || true # it answers 1 when none runs any more
    fi
}

# --- the commands --------------------------------------------------------------------------------

# cargo_windows COMMAND [ARGS...]: inserts the build options behind the command's name.
cargo_windows() {
    local command=$1
    shift
    (cd "$root" && exec cargo "$command" "${build_options[@]}" "$@" 9>&-)
}

setup() {
    install_tools
    use_tools
    make_prefix
}

main() {
    local command=${1:-help}
    shift || true
    case $command in
        setup)
            setup
            say "ready: $(compiler)'s compiler, $(wine --version), prefix $prefix"
            ;;
        test)
            setup
            [[ $# -gt 0 ]] || set -- --workspace
            start_wine
            cargo_windows test "$@"
            ;;
        clippy)
            setup
            # The excepted lint takes every thread-local of this target, which has no native ones, for
            # one that is not const.
            [[ $# -gt 0 ]] || set -- --workspace --all-targets -- -D warnings \
                -A clippy::missing_const_for_thread_local
            # `cargo clippy` would take rustup's lints, which cannot read what Debian's compiler wrote.
            if [[ $(compiler) == debian ]]; then
                (cd "$root" && /usr/bin/cargo-clippy clippy "${build_options[@]}" "$@")
            else
                cargo_windows clippy "$@"
            fi
            ;;
        run)
            setup
            cargo_windows build --package migration-ipc-reference
            start_wine
            wine "$target_dir/$target/debug/migration-ipc.exe" "$@" 9>&-
            ;;
        cargo)
            [[ $# -gt 0 ]] || die "cargo: which command? For example: scripts/windows.sh cargo build"
            setup
            start_wine
            cargo_windows "$@"
            ;;
        stop)
            use_tools
            wineserver --kill || say "nothing was running in $prefix"
            ;;
        help | -h | --help) usage ;;
        *)
            usage >&2
            die "unknown command \`$command\`"
            ;;
    esac
}

main "$@"
