#!/usr/bin/env bash
# Prints what a TPU host needs of requirements.txt: no test packages, and jax with its TPU library.
set -euo pipefail
sed -e '/^# Tests and checks/,$d' -e 's/^jax==/jax[tpu]==/' "$(dirname "${BASH_SOURCE[0]}")/../requirements.txt"
