#!/usr/bin/env bash
# Trains the embedded model from nothing and writes its bundle: pictures, CLIP pair, VAE, U-Net, judge, export.
# Step budgets and the seed are fixed (atelier_trainer/config.py); a killed run goes on where it stopped.
# Usage: services/trainer/train.sh [--threads N] [--work FOLDER]
set -euo pipefail
cd "$(dirname "$0")/../.."
python="$(bash scripts/python-env.sh)/bin/python"
export PYTHONPATH=services/trainer
"$python" -m atelier_trainer --seed 7 "$@" train --out deploy/models/atelier-tiny
