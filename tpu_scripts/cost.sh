#!/usr/bin/env bash
# Computes the cost of a TPU: chips x hours x price. State the price yourself: it depends on zone, date, spot and
# contract (cloud.google.com/tpu/pricing).
#
#   tpu_scripts/cost.sh --accelerator_type v5litepod-16 --hours 24 --price_per_chip_hour PRICE
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=settings.bash
source "$(dirname "$0")/settings.bash"

setting[hours]="" setting[price_per_chip_hour]=""
read_settings "$@"
need hours price_per_chip_hour
check hours '[0-9]+(\.[0-9]+)?' "a number"
check price_per_chip_hour '[0-9]+(\.[0-9]+)?' "a number"
read_accelerator_type
awk -v type="${setting[accelerator_type]}" -v chips="$chips" -v hours="${setting[hours]}" \
  -v price="${setting[price_per_chip_hour]}" \
  'BEGIN { printf "%s: %d chips x %s hours x %s a chip-hour = %.2f\n", type, chips, hours, price, chips * hours * price }'
