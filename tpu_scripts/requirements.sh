#!/usr/bin/env bash
# Prints the part of requirements.txt that a TPU host needs: no test packages, and jax with its TPU library.
set -euo pipefail
sed -e '/^# Tests and checks/,$d' -e 's/^jax==/jax[tpu]==/' "$(dirname "${BASH_SOURCE[0]}")/../requirements.txt"
