#!/usr/bin/env bash
# Prints what a TPU host installs, with dependencies: requirements.txt with jax's TPU library, and gcsfs for gs:// paths.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# tensorflow-text asks for `tensorflow`, whose files are those of tensorflow-cpu.
sed -e 's/^jax==/jax[tpu]==/' -e '/^tensorflow-cpu==/d' -e 's/^\(tensorflow==[^;]*\);.*/\1/' requirements.txt
sed -n '/^gcsfs==/p' requirements-dev.txt
