#!/usr/bin/env bash
# Power modes of a Jetson by name, and clocks held at their highest while something is measured. Not run on hardware yet.
set -euo pipefail

CONF=${SVRT_NVPMODEL_CONF:-/etc/nvpmodel.conf}
CLOCKS=${SVRT_CLOCKS:-/var/lib/svrt/clocks.conf}

usage() {
  cat <<'TEXT'
Usage: jetson/power-mode.sh COMMAND

  list            modes of this board; the one in force is marked
  set NAME        change the mode, such as 15W or MAXN_SUPER; it stays over a restart
  hold CMD...     run a command with all clocks at the highest of the mode, and give them back after it
TEXT
}

die() {
  echo "power-mode.sh: error: $*" >&2
  exit 2
}

need() { command -v "$1" >/dev/null || die "no $1 here: this is not a Jetson"; }

# ID and name a line, of `< POWER_MODEL ID=0 NAME=15W >`.
modes() {
  [ -r "$CONF" ] || die "no $CONF: this is not a Jetson"
  sed -n 's/^< *POWER_MODEL  *ID=\([0-9]*\)  *NAME=\([^ >]*\) *>.*/\1 \2/p' "$CONF"
}

current() { nvpmodel -q | sed -n 's/^NV Power Mode: *//p'; }

list() {
  local now id name
  now=$(current)
  while read -r id name; do
    if [ "$name" = "$now" ]; then echo "* $id $name"; else echo "  $id $name"; fi
  done < <(modes)
}

set_mode() {
  local wanted=$1 id
  id=$(modes | awk -v name="$wanted" '$2 == name { print $1; exit }')
  [ -n "$id" ] || die "no mode $wanted here; there are: $(modes | awk '{ printf "%s%s", sep, $2; sep = ", " }')"
  [ "$(id -u)" = 0 ] || die "run it with sudo"
  # Some changes need a restart, and nvpmodel asks for it. The answer here is no, which also drops the change: whoever
  # wants the board to restart says so.
  nvpmodel -m "$id" <<<NO || true
  [ "$(current)" = "$wanted" ] ||
    die "the mode is still $(current): $wanted needs a restart; run: nvpmodel -m $id, and answer YES: the board restarts into it"
}

hold() {
  local status=0
  [ $# -gt 0 ] || die "hold needs a command"
  [ "$(id -u)" = 0 ] || die "run it with sudo"
  mkdir -p "$(dirname "$CLOCKS")"
  rm -f "$CLOCKS" # jetson_clocks does not write over one
  jetson_clocks --store "$CLOCKS"
  trap 'jetson_clocks --restore "$CLOCKS"' EXIT
  jetson_clocks
  "$@" || status=$?
  exit "$status"
}

case ${1:-} in
  list)
    need nvpmodel
    list
    ;;
  set)
    [ $# -eq 2 ] || die "set needs the name of a mode; see list"
    need nvpmodel
    set_mode "$2"
    ;;
  hold)
    need jetson_clocks
    shift
    hold "$@"
    ;;
  -h | --help) usage ;;
  *)
    usage >&2
    exit 2
    ;;
esac
