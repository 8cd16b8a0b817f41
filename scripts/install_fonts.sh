#!/usr/bin/env bash
# The Chinese fonts that task pfedcr renders lines with, as Debian's packages; root. Nothing is downloaded where all are
# there. `privlm doctor` says which are missing.
set -euo pipefail

PACKAGES=(fonts-noto-cjk fonts-wqy-zenhei fonts-wqy-microhei fonts-arphic-ukai fonts-arphic-uming)

absent=()
for package in "${PACKAGES[@]}"; do
  dpkg-query --show --showformat '${db:Status-Status}' "$package" 2> /dev/null | grep -qx installed || absent+=("$package")
done
if [ ${#absent[@]} = 0 ]; then
  echo "install_fonts.sh: all there: ${PACKAGES[*]}"
  exit 0
fi
if [ "$(id -u)" != 0 ]; then
  echo "install_fonts.sh: run as root: apt-get install --no-install-recommends ${absent[*]}" >&2
  exit 2
fi
apt-get update -q
DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends "${absent[@]}"
