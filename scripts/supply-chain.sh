#!/usr/bin/env bash
# What this software is made of.
#
#   scripts/supply-chain.sh check [advisories]   licences, sources and duplicate versions; with
#                                                `advisories` also known vulnerabilities, whose
#                                                database is fetched
#   scripts/supply-chain.sh sbom [FOLDER]        a CycloneDX bill of materials for each package, in
#                                                FOLDER [target/sbom]
#
# What is allowed is in deny.toml. The tools (cargo-deny, cargo-cyclonedx) are installed with cargo
# when they are missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

die() { printf 'supply-chain.sh: %s\n' "$*" >&2; exit 1; }
usage() { sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"; }

# need TOOL VERSION: the oldest version that understands our arguments.
need() {
    cargo "${1#cargo-}" --version >/dev/null 2>&1 || cargo install --locked "$1@^$2"
}

check() {
    need cargo-deny 0.20.2
    cargo deny --locked --all-features check licenses bans sources "$@"
}

sbom() {
    local folder=${1:-target/sbom} manifest name
    need cargo-cyclonedx 0.5.9
    mkdir -p "$folder"
    cargo cyclonedx --all-features --target all --format json --spec-version 1.5 --override-filename sbom
    while IFS= read -r manifest; do
        name=$(sed -n 's/^name = "\(.*\)"/\1/p' "$(dirname "$manifest")/Cargo.toml" | head -n 1)
        # Where this checkout lies is nobody's business.
        sed "s|file://$PWD/|file:///|g" "$manifest" >"$folder/$name.cdx.json"
        rm "$manifest"
    done < <(find apps bench crates -name sbom.json -not -path '*/target/*')
    ls -1 "$folder"/*.cdx.json || die 'nothing was written'
}

command=${1:-help}
shift || true
case $command in
    check)
        [[ $# -eq 0 || $* == advisories ]] || die "check what? Nothing, or \`advisories\`"
        check "$@"
        ;;
    sbom) sbom "$@" ;;
    help | -h | --help) usage ;;
    *)
        usage >&2
        die "unknown command \`$command\`"
        ;;
esac
