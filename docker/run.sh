#!/usr/bin/env bash
# Train in the container, with data and results outside it: docker/run.sh model=grid2d task=enwik8 hardware=gpu
set -euo pipefail
data="${GRIDLSTM_DATA:-}"
if [[ -n "$data" && "$data" != /* ]]; then data="$PWD/$data"; fi
cd "$(dirname "$0")/.."
data="${data:-$PWD/data}"
mkdir -p "$data" outputs multirun
data="$(cd "$data" && pwd)"
gpus=()
if command -v nvidia-smi >/dev/null; then gpus=(--gpus all); fi
exec docker run --rm ${gpus[@]+"${gpus[@]}"} --ipc=host --user "$(id -u):$(id -g)" \
  -v "$data:/app/data" -v "$PWD/outputs:/app/outputs" -v "$PWD/multirun:/app/multirun" \
  -e WANDB_MODE -e WANDB_API_KEY -e WANDB_ENTITY -e WANDB_PROJECT -e WANDB_BASE_URL \
  -e CUDA_VISIBLE_DEVICES -e OMP_NUM_THREADS \
  gridlstm "$@"
