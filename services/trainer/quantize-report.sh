#!/usr/bin/env bash
# Prints the figures of docs/quantisation.md: both modes on the embedded model, pictures and speed against the original.
# Further arguments go to `quantize`: --judge FILE, --prompts 20.
set -euo pipefail
cd "$(dirname "$0")/../.."
python="${PYTHON:-$(bash scripts/python-env.sh)/bin/python}"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
for mode in weight-only dynamic; do
  PYTHONPATH=services/trainer PYTHONWARNINGS=ignore "$python" -m atelier_trainer --threads "${THREADS:-1}" \
    quantize deploy/models/atelier-tiny --mode "$mode" --out "$scratch/$mode" --report "$@"
done
