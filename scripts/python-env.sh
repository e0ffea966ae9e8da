#!/usr/bin/env bash
# Prints the folder of a Python environment with the trainer's requirements, or those in the file that is named, building
# it first where it is absent: python-env.sh [REQUIREMENTS [GIGABYTES_NEEDED]].
# It lies outside the checkout, under a name that changes with the requirements: built once, shared, never stale.
# Only retraining, golden files, other programs' clients and the comparison with diffusers need it; nothing that serves pictures does.
set -euo pipefail

requirements="${1:-$(cd "$(dirname "$0")/.." && pwd)/services/trainer/requirements.txt}"
cache="${ATELIER_CACHE:-$HOME/.cache/atelier}"
python="${PYTHON:-python3}"
GIGABYTES_NEEDED="${2:-10}" # of the trainer's: 6.5 installed, and pip's downloads beside it

say() { echo "python-env: $*" >&2; }
fail() { say "$@"; exit 1; }

command -v "$python" > /dev/null || {
  [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null || fail "$python was not found: install Python 3.11 or newer"
  say "installing python3"
  apt-get install -y -qq python3 python3-venv >&2 || { apt-get update -qq >&2 && apt-get install -y -qq python3 python3-venv >&2; }
}
version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "Python 3.11 or newer is needed; $python is $version"

key="$({ echo "$version $(uname -sm)"; cat "$requirements"; } | sha256sum | cut -c 1-16)"
folder="$cache/python-$key"
complete="$folder/.complete"

# One builder at a time; the others wait, and find it built.
mkdir -p "$cache"
exec 9> "$folder.lock"
flock 9
if [ ! -e "$complete" ]; then
  free_gigabytes="$(df -Pk "$cache" | awk 'NR == 2 { print int($4 / 1000000) }')"
  [ "$free_gigabytes" -ge "$GIGABYTES_NEEDED" ] ||
    fail "$cache has $free_gigabytes GB free; $GIGABYTES_NEEDED are needed. ATELIER_CACHE names another folder"
  if ! "$python" -c 'import ensurepip' 2> /dev/null; then
    [ "$(id -u)" = 0 ] && command -v apt-get > /dev/null || fail "$python cannot make environments: install python3-venv"
    say "installing python3-venv"
    apt-get install -y -qq python3-venv >&2 || { apt-get update -qq >&2 && apt-get install -y -qq python3-venv >&2; }
  fi
  say "building $folder (once, some minutes)"
  rm -rf "$folder"
  "$python" -m venv "$folder"
  "$folder/bin/python" -m pip install --quiet --disable-pip-version-check --requirement "$requirements" >&2
  touch "$complete"
fi
echo "$folder"
