#!/bin/sh
# Runs one test program and counts.
#
#   RESULTS=file sh tests/run.sh [--must-fail] [--show | --tell] name program [argument …]
#   sh tests/run.sh --sum file
#
# A program says how many of its tests passed either as cmocka does or, on a line of its own, as
# "N passed, N failed" (the last such line counts). A program that dies, or that exits with
# another status than its count tells, is one more failed test; so is one that tested nothing, unless it says
# "N passed, N failed, N skipped" and why.
# --must-fail: a known-bad variant; it passes if it exits with status 1 and says what it found.
# --show: its output is shown as it comes; --tell: at the end. Otherwise it is shown if something failed.

if [ "$1" = --sum ]; then
  [ -f "$2" ] || { echo "0 passed, 0 failed"; exit 0; }
  awk '{ passed += $1; failed += $2 } $3 == "SKIPPED" { skipped += 1 }
    END { printf "%d passed, %d failed%s\n", passed, failed, skipped ? ", " skipped " skipped" : ""; exit failed != 0 }' "$2"
  exit
fi

must_fail=
show=
tell=
while :; do
  case "$1" in
    --must-fail) must_fail=1; shift ;;
    --show) show=1; shift ;;
    --tell) tell=1; shift ;;
    *) break ;;
  esac
done
name=$1${VARIANT:+ ($VARIANT)}
shift

log=$(mktemp "${TMPDIR:-/tmp}/balsa-test.XXXXXX") || exit 1
trap 'rm -f "$log" "$log.status"' EXIT
trap 'exit 130' INT TERM HUP

ASAN_OPTIONS=${ASAN_OPTIONS:-detect_leaks=1:abort_on_error=0:strict_string_checks=1}
UBSAN_OPTIONS=${UBSAN_OPTIONS:-print_stacktrace=1}
TSAN_OPTIONS=${TSAN_OPTIONS:-halt_on_error=0:second_deadlock_stack=1}
export ASAN_OPTIONS UBSAN_OPTIONS TSAN_OPTIONS

began=$(date +%s)
if [ -n "$show" ]; then
  { "$@" 2>&1 </dev/null; echo $? >"$log.status"; } | tee "$log"
  status=$(cat "$log.status")
else
  "$@" >"$log" 2>&1 </dev/null
  status=$?
fi
seconds=$(($(date +%s) - began))

if [ -n "$must_fail" ]; then
  if [ "$status" -eq 1 ]; then passed=1 failed=0; else passed=0 failed=1; fi
else
  set -- $(awk '
    /[0-9]+ passed, [0-9]+ failed/ {
      line = $0; sub(/ passed,.*/, "", line); sub(/.*[^0-9]/, "", line); told_passed = line + 0
      line = $0; sub(/ failed.*/, "", line); sub(/.*[^0-9]/, "", line); told_failed = line + 0
      told = 1
    }
    /^\[  PASSED  \]/ { passed += $4 }
    /^\[  FAILED  \] [0-9]+ test\(s\)/ { failed += $4 }
    END { if (told) print told_passed, told_failed; else print passed + 0, failed + 0 }' "$log")
  passed=$1 failed=$2
  [ "$status" -ne 0 ] && [ "$failed" -eq 0 ] && failed=1
  skipped=$(sed -n 's/.* failed, \([0-9][0-9]*\) skipped.*/\1/p' "$log" | tail -n 1)
  [ "$status" -eq 0 ] && [ "$passed" -eq 0 ] && [ "${skipped:-0}" -eq 0 ] && failed=1
fi

[ -n "$RESULTS" ] && printf '%d %d %s\n' "$passed" "$failed" "$name" >>"$RESULTS"
if [ "${skipped:-0}" -ne 0 ]; then
  [ -n "$RESULTS" ] && printf '0 0 SKIPPED %s\n' "$name" >>"$RESULTS"
  [ -z "$show" ] && grep SKIPPED "$log"
fi
if [ "$failed" -ne 0 ]; then
  [ -z "$show" ] && tail -n "${LOG_LINES:-200}" "$log"
  printf '  %-36s %5d passed, %d FAILED, exit status %d, %d s\n' "$name" "$passed" "$failed" "$status" "$seconds"
  exit 1
fi
[ -n "$tell" ] && sed 's/^/    /' "$log"
found=
[ -n "$must_fail" ] && found=", caught: $(grep -m1 -iE 'seed' "$log" | cut -c1-100)"
[ "${skipped:-0}" -ne 0 ] && found=", $skipped skipped"
printf '  %-36s %5d passed, %d s%s\n' "$name" "$passed" "$seconds" "$found"
