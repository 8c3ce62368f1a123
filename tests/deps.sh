#!/bin/sh
# Installs the Debian packages that are missing.
#
#   sh tests/deps.sh [--if-missing] build|lint …
#
# As root, or through sudo; each command is printed before it runs. --if-missing: says nothing when
# all is there, and on a system without dpkg leaves it to the compiler to find what is missing.

if_missing=
wanted=
for argument; do
  case "$argument" in
    --if-missing) if_missing=1 ;;
    # Built with, and tested with: cmocka, the sqlite3 shell, python3 (its module sqlite3 is one of
    # the drivers under test) and the real data set of the demo.
    build) wanted="$wanted gcc libc6-dev libsqlite3-dev libuv1-dev liblz4-dev libxxhash-dev libcmocka-dev sqlite3 python3 unicode-data" ;;
    lint) wanted="$wanted clang-format clang-tidy cppcheck" ;;
    *) echo "deps: no such group: $argument (build, lint)" >&2; exit 2 ;;
  esac
done

if ! command -v dpkg-query >/dev/null; then
  [ -n "$if_missing" ] && exit 0
  echo "deps: this is not a Debian system; install the equivalents of:$wanted" >&2
  exit 1
fi

missing=
for package in $wanted; do
  dpkg-query -W -f='${db:Status-Status}\n' "$package" 2>/dev/null | grep -qx installed || missing="$missing $package"
done
if [ -z "$missing" ]; then
  [ -n "$if_missing" ] || echo "deps: nothing is missing"
  exit 0
fi

run() {
  echo "$*"
  "$@"
}
root=
if [ "$(id -u)" -ne 0 ]; then
  if ! command -v sudo >/dev/null; then
    echo "deps: missing:$missing" >&2
    echo "deps: neither root nor sudo; run as root: apt-get install$missing" >&2
    exit 1
  fi
  root=sudo
fi

DEBIAN_FRONTEND=noninteractive
export DEBIAN_FRONTEND
# Package lists may be absent (a fresh image) or too old to download from.
for package in $missing; do
  if ! apt-cache show "$package" >/dev/null 2>&1; then
    run $root apt-get update || exit 1
    updated=1
    break
  fi
done
# $missing is a list of words.
run $root apt-get install -y --no-install-recommends $missing && exit 0
[ -z "$updated" ] || exit 1
run $root apt-get update && run $root apt-get install -y --no-install-recommends $missing
