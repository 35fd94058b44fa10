# shellcheck shell=bash
# Sourced by the launchers: help, one line for a mistake, and --dry-run.

# The comment at the top of a launcher, as its --help.
show_help() {
  sed -n '2,/^[^#]/{/^#/!d;s/^# \{0,1\}//;p;}' "$0"
}

die() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# A command as a line that can be pasted into a shell.
quoted() {
  local word flag line=""
  for word in "$@"; do
    if [[ ! $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then
      flag=""
      [[ ! $word =~ ^--[a-z_-]+= ]] || flag=${BASH_REMATCH[0]}
      word=${word#"$flag"}
      word="$flag'${word//\'/\'\\\'\'}'"
    fi
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

# Runs a command; under --dry-run only prints it.
run() {
  if [[ ${DRY_RUN:-} ]]; then
    quoted "$@"
  else
    "$@"
  fi
}

# Dies unless a program is there, which --dry-run does not need.
need() {
  [[ ${DRY_RUN:-} ]] || command -v "$1" > /dev/null || die "$1 is not installed; $2"
}

# The value of --NAME among main's flags, given as --NAME=VALUE or --NAME VALUE.
flag_value() {
  local name=$1 value=""
  shift
  while (($#)); do
    case $1 in
      --"$name"=*) value=${1#*=} ;;
      --"$name") value=${2:-} ;;
    esac
    shift
  done
  printf '%s' "$value"
}
