#!/usr/bin/env bash
# Trains in the container, results and data on this side: docker/run.sh model=grid2d task=enwik8 hardware=gpu
set -euo pipefail
cd "$(dirname "$0")/.."
mkdir -p data outputs multirun
gpus=()
if command -v nvidia-smi >/dev/null; then gpus=(--gpus all); fi
exec docker run --rm ${gpus[@]+"${gpus[@]}"} --ipc=host \
  -v "$PWD/data:/app/data" -v "$PWD/outputs:/app/outputs" -v "$PWD/multirun:/app/multirun" \
  -e WANDB_MODE -e WANDB_API_KEY -e WANDB_ENTITY \
  gridlstm "$@"
