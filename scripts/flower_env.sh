#!/usr/bin/env bash
# An environment with Flower, which PrivLM's own cannot hold: `scripts/flower_env.sh --help`.
set -euo pipefail

usage() {
  cat << 'TEXT'
usage: scripts/flower_env.sh [DIR]

Makes an environment with privlm[flower] of this checkout in DIR [.venv-flower]. Flower brings older versions of packages
that others of PrivLM's extras need, so that it has an environment of its own, on the machine of the SuperLink and on
those of the SuperNodes. The slow tests and benchmarks/federated.py find it there, or where PRIVLM_FLOWER_VENV says.

  PYTHON               the interpreter                                                        [python3]
  PRIVLM_FLOWER_BASE   an environment with privlm, whose packages are used where Flower brings none: seconds
                       instead of minutes, on one machine                                      [none]

Exit status: 0 made, or there already; 2 wrong use.
TEXT
}

case "${1:-}" in
  -h | --help) usage; exit 0 ;;
  -*) usage >&2; exit 2 ;;
esac

CHECKOUT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
DIR=$(realpath -m "${1:-$CHECKOUT/.venv-flower}")
FLWR=$(sed -n 's/^flower = \["\(.*\)"\].*$/\1/p' "$CHECKOUT/pyproject.toml")

[ -x "$DIR/bin/python" ] || "${PYTHON:-python3}" -m venv "$DIR"
SITE=$("$DIR/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
if [ -n "${PRIVLM_FLOWER_BASE:-}" ]; then
  "$PRIVLM_FLOWER_BASE/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$SITE/privlm_base.pth"
  "$DIR/bin/pip" install -q "$FLWR"
  "$DIR/bin/pip" install -q --no-deps -e "$CHECKOUT"
else
  "$DIR/bin/pip" install -q "$(sed -n 's/^TORCH := //p' "$CHECKOUT/Makefile")"
  "$DIR/bin/pip" install -q -e "$CHECKOUT[flower]"
fi
"$DIR/bin/python" -c 'from privlm.federated.flower import installed; print("flwr", installed.require())'
