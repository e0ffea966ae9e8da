#!/usr/bin/env bash
# The trainer's own tests, in the Python environment that the requirements name (built once, kept outside the checkout).
set -euo pipefail
cd "$(dirname "$0")/../.."
python="$(bash scripts/python-env.sh)/bin/python"
PYTHONPATH=services/trainer "$python" -m pytest -q services/trainer/tests "$@"
